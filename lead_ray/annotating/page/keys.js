// What every key does, and the list of them.

import { drawing, wholeImage } from "./box.js";
import { $, el } from "./dom.js";
import { draw, look, where } from "./overlay.js";
import { put, toggleOccluded } from "./pointer.js";
import { accept, changed, commit, MISSING, next, points, previous, proposals, redo, said, select, setAside, store, target, undo } from "./store.js";
import { fit, toImage, zoom } from "./view.js";

const size = () => store.image?.size;
const chosen = () => store.selected ?? target()?.id ?? null;
const order = () => $("order").value;

export const actions = {
  primary: () => (proposals().length ? accept() : next(order())),
  next: () => next(order()),
  previous,
  undo,
  redo,
  occluded: () => chosen() !== null && toggleOccluded(chosen()),
  missing() {
    const id = chosen();
    if (id === null) return;
    commit([{ id, mark: said(id)?.mark === MISSING ? null : MISSING, x: null, y: null, by: "hand" }]);
    store.selected = null;
    select(target()?.id ?? id);
  },
  clear: () => drawing.on ? wholeImage() : store.selected !== null && said(store.selected) && commit([{ id: store.selected, mark: null, by: "hand" }]),
  box: () => store.image && draws(!drawing.on),
  skip: () => store.image && setAside(),
  fit: () => fit(size()),
  larger: () => zoom(1.25, size()),
  smaller: () => zoom(0.8, size()),
};

function draws(on) {
  drawing.on = on;
  changed();
}

const walk = (by) => {
  const all = points().map((point) => point.id);
  if (all.length) select(all[(all.indexOf(chosen()) + by + all.length) % all.length]);
};

function nudge(right, down) {
  const id = chosen();
  if (id === null || !store.image) return;
  const at = where(id);
  const stage = $("stage").getBoundingClientRect();
  const from = at ? [at.x, at.y] : toImage(stage.width / 2, stage.height / 2); // keys alone can place a point, too
  put(id, [from[0] + right, from[1] + down]);
  select(id);
}

const plain = {
  Enter: actions.primary, n: actions.next, PageDown: actions.next, p: actions.previous, PageUp: actions.previous,
  o: actions.occluded, m: actions.missing, x: actions.skip, Backspace: actions.clear, Delete: actions.clear,
  z: undo, Z: redo, y: redo, f: actions.fit, 0: actions.fit, "+": actions.larger, "=": actions.larger, "-": actions.smaller,
  b: actions.box, "]": () => walk(1), "[": () => walk(-1), Escape: () => (drawing.on ? draws(false) : select(null)),
  l() { look.names = !(look.names ?? points().length <= 12); draw(); },
  h: () => $("overlay").classList.add("hushed"),
  "?": () => $("help-dialog").showModal(),
};
const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

addEventListener("keydown", (event) => {
  if (!store.project || document.querySelector("dialog[open]") || event.target.closest("select, input")) return;
  const command = event.ctrlKey || event.metaKey;
  if (command && ["z", "y", "Z"].includes(event.key)) {
    event.preventDefault();
    return event.key === "z" ? undo() : redo();
  }
  if (command || event.altKey) return;
  if (event.key === "Enter" && event.target.closest("button")) return; // a button that has the focus is what is meant
  if (arrows[event.key]) {
    event.preventDefault();
    const far = event.shiftKey ? 10 : 1;
    return nudge(...arrows[event.key].map((step) => step * far));
  }
  const action = plain[event.key] ?? plain[event.key.toLowerCase()];
  if (!action || (event.repeat && action === actions.primary)) return;
  event.preventDefault();
  action();
});
addEventListener("keyup", (event) => event.key.toLowerCase() === "h" && $("overlay").classList.remove("hushed"));

const WORDS = [
  ["Place the next point", "click"], ["Move a point", "drag"], ["Move it by a pixel, by ten", "← ↑ → ↓", "Shift"],
  ["Occluded: there, but hidden", "O", "right click"], ["Missing: not in the image", "M"], ["Take a point back", "Backspace"],
  ["Draw a box around the object", "B"], ["Change the box", "drag a side"], ["Next, previous point", "]", "["], ["Place over another point", "Alt click"],
  ["Accept one proposal", "click it"], ["Accept all proposals; then, next image", "Enter"],
  ["Next, previous image", "N", "P"], ["Set the image aside", "X"],
  ["Undo, redo", "Ctrl Z", "Ctrl Y"], ["Zoom", "wheel", "pinch", "+", "−"], ["Move the image", "drag beside a point"], ["Fit the image", "F"],
  ["Names on, off", "L"], ["Hide the points", "hold H"], ["Place with a finger, magnified", "hold, slide, lift"], ["This list", "?"],
];

export function drawHelp() {
  $("help-dialog").replaceChildren(
    el("header", {}, el("h2", { id: "help-title" }, "Keys and gestures"), el("button", { type: "button", onclick: () => $("help-dialog").close() }, "Close")),
    el("div", { class: "body" },
      el("dl", { class: "keys" },
        ...WORDS.map(([what, ...keys]) => el("div", {}, el("dt", {}, what), el("dd", {}, ...keys.flatMap((key) => [el("kbd", {}, key), " "])))))),
  );
}
