// Mouse, pen and fingers on the stage.
//
// A click places the next point, a drag from a point moves it, one from a side of the box moves that, a drag from
// elsewhere moves the image. A finger that rests shows the loupe and places where it is lifted. Two fingers, the wheel
// or a trackpad's pinch zoom.

import { cursor, dragged, drawing, grip, largeEnough } from "./box.js";
import { $ } from "./dom.js";
import { hideLoupe, showLoupe } from "./loupe.js";
import { draw, look, under, where } from "./overlay.js";
import { changed, clamp, commit, OCCLUDED, points, proposed, said, select, setBox, store, target, VISIBLE } from "./store.js";
import { pan, toImage, zoom } from "./view.js";

const STILL = 4; // pixels that a click may move
const RESTS = 280; // milliseconds until a finger rests
const stage = $("stage");
const down = new Map(); // pointers on the stage: id -> last place
let drag = null; // {kind: "click" | "point" | "box" | "pan" | "aim" | "pinch", ...}

const place = (event) => {
  const bounds = stage.getBoundingClientRect();
  return [event.clientX - bounds.left, event.clientY - bounds.top];
};
const reach = (event) => (event.pointerType === "touch" ? 24 : 10);
const colour = (id) => points().find((point) => point.id === id)?.colour ?? "#fff";
const inside = ([x, y]) => x >= -0.5 && y >= -0.5 && x <= store.image.size[0] - 0.5 && y <= store.image.size[1] - 0.5;
const within = ([x, y]) => ({ x: clamp(x, store.image.size[0]), y: clamp(y, store.image.size[1]) });

export function put(id, at, by = "hand") {
  const mark = said(id)?.mark === OCCLUDED ? OCCLUDED : VISIBLE;
  commit([{ id, mark, ...within(at), by }]);
}

export function toggleOccluded(id) {
  const at = where(id);
  if (!at) return;
  commit([{ id, mark: said(id)?.mark === OCCLUDED ? VISIBLE : OCCLUDED, ...within([at.x, at.y]), by: "hand" }]);
}

stage.addEventListener("pointerdown", (event) => {
  if (!store.image || event.target.closest("button, .blank")) return;
  const [x, y] = place(event);
  down.set(event.pointerId, [x, y]);
  stage.setPointerCapture(event.pointerId);
  if (down.size === 2) return pinch();
  if (event.button === 2 || (drag && drag.kind !== "click")) return;
  const wheel = event.button === 1;
  const id = event.altKey || wheel || drawing.on ? null : under(x, y, reach(event));
  const sides = id === null && !event.altKey && !wheel ? grip(x, y, reach(event)) : null;
  drag = { kind: "click", id, sides, start: [x, y], wheel };
  if (event.pointerType === "touch" && id === null && !sides && !drawing.on) drag.timer = setTimeout(() => aim(x, y), RESTS);
});

function pinch() {
  clearTimeout(drag?.timer);
  if (drag?.kind === "box") store.image.box = drag.before;
  hideLoupe();
  const [[x1, y1], [x2, y2]] = down.values();
  drag = { kind: "pinch", apart: Math.hypot(x1 - x2, y1 - y2), middle: [(x1 + x2) / 2, (y1 + y2) / 2] };
}

function aim(x, y) {
  const next = target();
  if (!next || !inside(toImage(x, y))) return;
  drag = { kind: "aim", id: next.id };
  showLoupe(x, y, toImage(x, y), next.colour);
}

stage.addEventListener("pointermove", (event) => {
  if (!store.image) return;
  const [x, y] = place(event);
  if (!drag) return hover(x, y, event);
  if (!down.has(event.pointerId)) return;
  const before = down.get(event.pointerId);
  down.set(event.pointerId, [x, y]);
  if (drag.kind === "pinch") return movePinch();
  if (drag.kind === "click" && Math.hypot(x - drag.start[0], y - drag.start[1]) > STILL) begin(event);
  if (drag.kind === "pan") pan(x - before[0], y - before[1], store.image.size);
  if (drag.kind === "aim") showLoupe(x, y, toImage(x, y), colour(drag.id));
  if (drag.kind === "point") movePoint(x, y);
  if (drag.kind === "box") moveBox(x, y);
});

// A press has become a drag: of a point, of a box, or of the image.
function begin(event) {
  clearTimeout(drag.timer);
  if (!drag.wheel && (drag.sides || drawing.on)) {
    Object.assign(drag, { kind: "box", before: store.image.box });
    return;
  }
  if (drag.id === null) {
    drag.kind = "pan";
    stage.classList.add("panning");
    return;
  }
  const at = where(drag.id);
  const start = toImage(...drag.start);
  Object.assign(drag, { kind: "point", offset: [at.x - start[0], at.y - start[1]] });
  drag.before = said(drag.id) ? { ...said(drag.id) } : null;
  stage.classList.add("dragging");
  store.selected = drag.id;
}

function movePoint(x, y) {
  const pointed = toImage(x, y);
  drag.at = within([pointed[0] + drag.offset[0], pointed[1] + drag.offset[1]]);
  const mark = drag.before?.mark === OCCLUDED ? OCCLUDED : VISIBLE;
  store.image.points[drag.id] = { mark, ...drag.at, revision: drag.before?.revision ?? 0 };
  draw();
  showLoupe(x, y, [drag.at.x, drag.at.y], colour(drag.id));
}

function moveBox(x, y) {
  store.image.box = dragged(drag.before, drag.sides, toImage(...drag.start), toImage(x, y));
  draw();
}

function movePinch() {
  if (down.size < 2) return;
  const [[x1, y1], [x2, y2]] = down.values();
  const apart = Math.hypot(x1 - x2, y1 - y2);
  const middle = [(x1 + x2) / 2, (y1 + y2) / 2];
  pan(middle[0] - drag.middle[0], middle[1] - drag.middle[1], store.image.size);
  zoom(apart / drag.apart, store.image.size, ...middle);
  Object.assign(drag, { apart, middle });
}

function lift(event) {
  if (!down.delete(event.pointerId)) return;
  const ended = drag;
  if (ended?.kind === "pinch" && down.size) return; // the second finger is still there
  drag = null;
  clearTimeout(ended?.timer);
  hideLoupe();
  stage.classList.remove("dragging", "panning");
  if (!ended || !store.image) return;
  const [x, y] = place(event);
  if (ended.kind === "box") {
    const box = store.image.box;
    store.image.box = ended.before;
    if (event.type === "pointerup" && largeEnough(box)) {
      drawing.on = false;
      setBox(box);
    } else changed();
  } else if (ended.kind === "point" && ended.at) {
    if (ended.before) store.image.points[ended.id] = ended.before;
    else delete store.image.points[ended.id];
    if (event.type === "pointerup") put(ended.id, [ended.at.x, ended.at.y]);
    else draw();
  } else if (event.type !== "pointerup") return;
  else if (ended.kind === "aim") click(null, toImage(x, y));
  else if (ended.kind === "click" && !ended.wheel && !drawing.on) click(ended.id, toImage(...ended.start));
}

function click(id, at) {
  if (id !== null) {
    const guess = proposed(id);
    store.selected = id;
    if (guess) put(id, [guess.x, guess.y], "proposal");
    else select(id);
    return;
  }
  const next = target();
  if (next && inside(at)) {
    store.selected = next.id;
    put(next.id, at);
  } else if (store.selected !== null) select(null);
}

stage.addEventListener("pointerup", lift);
stage.addEventListener("pointercancel", lift);
stage.addEventListener("contextmenu", (event) => {
  event.preventDefault();
  if (event.pointerType === "touch" || !store.image) return;
  const id = under(...place(event), reach(event));
  if (id !== null) toggleOccluded(id);
});
stage.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    if (!store.image) return;
    const lines = event.deltaMode === 1 ? 16 : 1;
    const speed = event.ctrlKey ? 0.01 : 0.0022; // a trackpad's pinch comes as a wheel with ctrl, in smaller steps
    zoom(Math.exp(-event.deltaY * lines * speed), store.image.size, ...place(event));
  },
  { passive: false },
);
stage.addEventListener("dblclick", (event) => event.preventDefault());
stage.addEventListener("pointerleave", () => hover(-1e4, -1e4, { pointerType: "mouse" }));

function hover(x, y, event) {
  const id = drawing.on ? null : under(x, y, reach(event));
  stage.classList.toggle("grab", id !== null);
  stage.dataset.sides = id === null ? cursor(grip(x, y, reach(event))) : "";
  if (id !== look.hovered) {
    look.hovered = id;
    draw();
  }
}
