// The object's box, where the image holds more than the object: the model looks at nothing else. Its sides are pixels
// from the image's corner, so that the whole image is [0, 0, width, height].
//
// While drawing is on, a drag anywhere draws a new box. At any time its sides and corners can be dragged.

import { svg } from "./dom.js";
import { setBox, store, watch } from "./store.js";
import { toScreen, view } from "./view.js";

export const drawing = { on: false };

const LEAST = 4; // pixels of a side, as the server has it
const corner = (x, y) => toScreen(x - 0.5, y - 0.5);
let shown = null;

// Another image: nobody is drawing in it yet.
watch(() => {
  if (shown !== store.image?.key) drawing.on = false;
  shown = store.image?.key;
});

export function wholeImage() {
  drawing.on = false;
  if (store.image?.box) setBox(null);
}

// Which sides of the box are under a place of the stage: {x: -1 | 0 | 1, y: -1 | 0 | 1}, or null.
export function grip(x, y, reach) {
  const box = store.image?.box;
  if (!box) return null;
  const [left, top] = corner(box[0], box[1]);
  const [right, bottom] = corner(box[0] + box[2], box[1] + box[3]);
  if (x < left - reach || x > right + reach || y < top - reach || y > bottom + reach) return null;
  const side = (at, low, high) => (Math.abs(at - high) <= reach ? 1 : Math.abs(at - low) <= reach ? -1 : 0);
  const sides = { x: side(x, left, right), y: side(y, top, bottom) };
  return sides.x || sides.y ? sides : null;
}

export const cursor = (sides) => (!sides ? "" : !sides.y ? "ew" : !sides.x ? "ns" : sides.x === sides.y ? "nwse" : "nesw");

// A box whose sides follow a drag between two places of the image; sides null: a new box between them.
export function dragged(before, sides, from, to) {
  const [width, height] = store.image.size;
  const old = before && sides ? [before[0], before[1], before[0] + before[2], before[1] + before[3]] : null;
  const along = (axis, length, side) => {
    const ends = old ? [old[axis], old[axis + 2]] : [from[axis] + 0.5, to[axis] + 0.5];
    if (old && side) ends[side > 0 ? 1 : 0] += to[axis] - from[axis];
    return ends.map((end) => Math.min(Math.max(Math.round(end * 100) / 100, 0), length)).sort((one, other) => one - other);
  };
  const [left, right] = along(0, width, sides?.x);
  const [top, bottom] = along(1, height, sides?.y);
  return [left, top, right - left, bottom - top].map((side) => Math.round(side * 100) / 100);
}

export const largeEnough = (box) => box[2] >= Math.min(LEAST, store.image.size[0]) && box[3] >= Math.min(LEAST, store.image.size[1]);

// What lies outside is dimmed; the handles are there to be seen, the whole side can be dragged.
export function drawBox() {
  const box = store.image.box;
  if (!box) return [];
  const [left, top] = corner(box[0], box[1]);
  const [width, height] = [box[2] * view.scale, box[3] * view.scale];
  const [x0, y0] = corner(0, 0);
  const [x1, y1] = corner(...store.image.size);
  const around = `M${x0} ${y0}H${x1}V${y1}H${x0}ZM${left} ${top}h${width}v${height}h${-width}Z`;
  const shape = { x: left, y: top, width, height };
  const handles = [0, 0.5, 1].flatMap((x) => [0, 0.5, 1].flatMap((y) => (x === 0.5 && y === 0.5 ? [] : [[x, y]])));
  return [
    svg("path", { d: around, "fill-rule": "evenodd", class: "outside" }),
    svg("rect", { ...shape, class: "box-under" }),
    svg("rect", { ...shape, class: "box" }),
    ...handles.map(([x, y]) => svg("rect", { x: left + x * width - 3.5, y: top + y * height - 3.5, width: 7, height: 7, class: "handle" })),
  ];
}
