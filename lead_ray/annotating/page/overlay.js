// Points and skeleton over the image, in screen pixels: they stay as large as they are whatever the zoom.

import { drawBox } from "./box.js";
import { $, svg } from "./dom.js";
import { MISSING, OCCLUDED, points, proposed, said, store } from "./store.js";
import { toScreen, view } from "./view.js";

export const look = { names: null, hovered: null }; // names: true, false, or null for "if they are few"

const RADIUS = 5.5;
const RING = 11;
const BEYOND = 12; // points more than which show their names only under the pointer

// Where a point is drawn: what was said of it, or what is proposed; null: nowhere.
export function where(id) {
  const known = said(id);
  if (known) return known.mark === MISSING ? null : known;
  return proposed(id);
}

export function draw() {
  const overlay = $("overlay");
  if (!store.image) return overlay.replaceChildren();
  const drawn = points().flatMap((point) => {
    const at = where(point.id);
    return at ? [{ ...point, at, place: toScreen(at.x, at.y), guess: !said(point.id) }] : [];
  });
  const byId = new Map(drawn.map((each) => [each.id, each]));
  overlay.replaceChildren(...drawBox(), ...edges(byId), ...drawn.flatMap(dot), ...drawn.flatMap((each) => tag(each, drawn)));
}

function edges(byId) {
  const pairs = store.project.schema.skeleton.filter(([one, other]) => byId.has(one) && byId.has(other));
  return pairs.flatMap(([one, other]) => {
    const [x1, y1] = byId.get(one).place;
    const [x2, y2] = byId.get(other).place;
    const guess = byId.get(one).guess || byId.get(other).guess;
    const line = { x1, y1, x2, y2 };
    return [svg("line", { ...line, class: "edge-under" }), svg("line", { ...line, class: guess ? "edge proposed" : "edge" })];
  });
}

function dot({ id, colour, at, place: [cx, cy], guess }) {
  const marks = store.selected === id ? [svg("circle", { cx, cy, r: guess ? RING + 4 : RADIUS + 5, class: "selected" })] : [];
  if (guess) return [...marks, ...ring(colour, at, cx, cy)];
  const occluded = at.mark === OCCLUDED;
  const reach = RADIUS * 0.62;
  marks.push(
    svg("circle", { cx, cy, r: RADIUS, class: "halo" }),
    svg("circle", { cx, cy, r: RADIUS, class: "dot", fill: occluded ? "#14161a" : colour, ...(occluded && { stroke: colour }) }),
  );
  if (occluded) {
    marks.push(svg("line", { x1: cx - reach, y1: cy + reach, x2: cx + reach, y2: cy - reach, class: "slash" }));
  }
  return marks;
}

// A proposal is hollow. The arc around it is as much of a circle as it is certain; the pale disc is the ensemble's
// spread, where that is wider.
function ring(colour, { confidence, spread }, cx, cy) {
  const whole = 2 * Math.PI * RING;
  const wide = spread * view.scale;
  const shape = { cx, cy, r: RING };
  return [
    ...(wide > RING ? [svg("circle", { cx, cy, r: Math.min(wide, 200), class: "spread", fill: colour })] : []),
    svg("circle", { ...shape, class: "ring-ground" }),
    svg("circle", {
      ...shape,
      class: "ring",
      stroke: colour,
      "stroke-dasharray": `${whole * confidence} ${whole}`,
      transform: `rotate(-90 ${cx} ${cy})`,
    }),
    svg("circle", { cx, cy, r: RADIUS - 1.6, class: "halo" }),
    svg("circle", { cx, cy, r: RADIUS - 1.6, class: "hollow", stroke: colour }),
  ];
}

function tag({ id, name, place: [x, y], guess }, drawn) {
  const shown = look.hovered === id || store.selected === id || (look.names ?? drawn.length <= BEYOND);
  if (!shown) return [];
  // To the left, where another point lies closely to the right.
  const crowded = drawn.some(({ place: [left, top] }) => left > x + 1 && left < x + 130 && Math.abs(top - y) < 26);
  const side = crowded ? { x: x - RING - 5, "text-anchor": "end" } : { x: x + RING + 5 };
  const text = svg("text", { ...side, y: y + 4, class: guess ? "tag proposed" : "tag" });
  text.textContent = name;
  return [text];
}

// The point under a place of the stage, within so many screen pixels.
export function under(x, y, reach) {
  let best = null;
  let least = reach;
  for (const point of points()) {
    const at = where(point.id);
    if (!at) continue;
    const [left, top] = toScreen(at.x, at.y);
    const distance = Math.hypot(left - x, top - y);
    if (distance <= least) [best, least] = [point.id, distance];
  }
  return best;
}
