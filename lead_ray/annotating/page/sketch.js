// The skeleton, drawn by clicking one point and then another.

import { svg } from "./dom.js";

const SIDE = 200;
const EDGE = 34;

export function drawSketch(parent, draft, where, redrawn) {
  const places = layout(draft.points, where);
  let chosen = null;

  function toggle(id) {
    if (chosen === null || chosen === id) chosen = chosen === id ? null : id;
    else {
      const joined = draft.skeleton.findIndex((pair) => pair.includes(chosen) && pair.includes(id));
      if (joined >= 0) draft.skeleton.splice(joined, 1);
      else draft.skeleton.push([chosen, id]);
      return redrawn();
    }
    draw();
  }

  function point({ id, name, colour }) {
    const [cx, cy] = places.get(id);
    const label = svg("text", { x: Math.min(Math.max(cx, EDGE), SIDE - EDGE), y: cy + 17 });
    label.textContent = name;
    const press = (event) => (event.type === "click" || event.key === "Enter" || event.key === " ") && (event.preventDefault(), toggle(id));
    return [
      ...(chosen === id ? [svg("circle", { cx, cy, r: 10, class: "chosen" })] : []),
      svg("circle", { cx, cy, r: 6, fill: colour, tabindex: 0, role: "button", "data-sketch": id, "aria-label": `Join ${name}`, "aria-pressed": chosen === id, onclick: press, onkeydown: press }),
      label,
    ];
  }

  function draw() {
    const lines = draft.skeleton.map(([one, other]) => {
      const [x1, y1] = places.get(one);
      const [x2, y2] = places.get(other);
      return svg("line", { x1, y1, x2, y2 });
    });
    parent.replaceChildren(svg("svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, class: "sketch" }, ...lines, ...draft.points.flatMap(point)));
  }
  draw();
}

// Where they lie in the image on show; on a circle as long as one of them lies nowhere.
function layout(points, where) {
  const known = points.map((point) => where(point.id));
  const free = SIDE - 2 * EDGE;
  if (known.some((at) => !at)) {
    const turn = (number) => (2 * Math.PI * number) / points.length - Math.PI / 2;
    const on = (part) => SIDE / 2 + (free / 2) * part;
    return new Map(points.map((point, number) => [point.id, [on(Math.cos(turn(number))), on(Math.sin(turn(number)))]]));
  }
  const [left, top] = [Math.min(...known.map((at) => at.x)), Math.min(...known.map((at) => at.y))];
  const wide = Math.max(...known.map((at) => at.x)) - left;
  const high = Math.max(...known.map((at) => at.y)) - top;
  const scale = free / (Math.max(wide, high) || 1);
  const x = (at) => SIDE / 2 + (at.x - left - wide / 2) * scale;
  const y = (at) => SIDE / 2 + (at.y - top - high / 2) * scale;
  return new Map(points.map((point, number) => [point.id, [x(known[number]), y(known[number])]]));
}
