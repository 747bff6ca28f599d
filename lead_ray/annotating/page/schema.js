// The points of the category: names, colours, order, lines between them, and what 100 % is.

import { ask } from "./api.js";
import { $, amount, el } from "./dom.js";
import { where } from "./overlay.js";
import { drawSketch } from "./sketch.js";
import { reload, store } from "./store.js";

// Names, and where the sketch draws them: in 0..1 across and down.
const FACE = [["left eye", [0.1, 0.1]], ["right eye", [0.9, 0.1]], ["nose", [0.5, 0.5]], ["left mouth corner", [0.2, 0.9]], ["right mouth corner", [0.8, 0.9]]];
let draft; // {category, points: [{id, name, colour}], skeleton: [[id, id]], normaliser: [id, id] | null}
let base; // the revision that it was begun from
let hints; // number of a point -> where the sketch draws it as long as it lies nowhere
let fresh; // numbers of new points, below 0, until the server gives them theirs

// A golden angle from colour to colour, as lead_ray.labels.palette.
function colour(number) {
  const hue = ((number * 0.61803398875) % 1) * 6;
  const part = (shift) => {
    const at = (shift + hue) % 6;
    return Math.round(255 * 0.95 * (1 - 0.75 * Math.max(0, Math.min(at, 4 - at, 1))));
  };
  return `#${[5, 3, 1].map((shift) => part(shift).toString(16).padStart(2, "0")).join("")}`;
}

function add(name, after = draft.points.length - 1) {
  const taken = new Set(draft.points.map((point) => point.colour));
  let number = 0;
  while (taken.has(colour(number))) number += 1;
  const point = { id: fresh--, name, colour: colour(number) };
  draft.points.splice(after + 1, 0, point);
  return point;
}

export async function openSchema() {
  await reload(); // how often each point was placed
  draft = structuredClone(store.project.schema);
  base = store.project.schemaRevision;
  fresh = -1;
  hints = new Map();
  if (!draft.points.length) add("");
  render();
  if (!$("schema-dialog").open) $("schema-dialog").showModal();
  focusName(draft.points.find((point) => !point.name)?.id ?? draft.points[0].id);
}

const focusName = (id) => $("schema-dialog").querySelector(`[data-name="${id}"]`)?.focus();

function render() {
  const note = el("p", { role: "alert", id: "schema-note" }, "Points can be renamed, added and reordered at any time.");
  const list = el("ol", { "aria-label": "Points" }, ...draft.points.map(row));
  const sketch = el("div", {});
  drawSketch(sketch, draft, (id) => (store.image && where(id)) ?? hint(id), render);
  $("schema-dialog").replaceChildren(
    el("header", {}, el("h2", { id: "schema-title" }, "The points of your category"),
      el("button", { type: "button", onclick: () => $("schema-dialog").close() }, "Close")),
    el("div", { class: "body schema" },
      el("div", {}, category(), list,
        el("div", { class: "group" },
          el("button", { type: "button", id: "add-point", onclick: () => grow("") }, "Add a point"),
          draft.points.length < 2 && el("button", { type: "button", onclick: face }, "Five points of a face"))),
      el("div", {}, normaliser(), el("fieldset", {}, el("legend", {}, "Lines: click one point, then another"), sketch))),
    el("footer", {}, note, el("button", { type: "button", class: "primary", id: "save-schema", onclick: save }, "Save points")),
  );
}

const hint = (id) => hints.has(id) ? { x: hints.get(id)[0], y: hints.get(id)[1] } : null;

function category() {
  const input = el("input", { type: "text", id: "schema-category", value: draft.category, oninput: () => (draft.category = input.value) });
  return el("div", { class: "field" }, el("label", { for: "schema-category" }, "Category"), input);
}

function grow(name, after) {
  const { id } = add(name, after);
  render();
  focusName(id);
}

function face() {
  draft.points = [];
  draft.category = "face";
  const ids = FACE.map(([name, place]) => {
    const { id } = add(name);
    hints.set(id, place);
    return id;
  });
  draft.skeleton = [[ids[0], ids[2]], [ids[1], ids[2]], [ids[2], ids[3]], [ids[2], ids[4]], [ids[3], ids[4]]];
  draft.normaliser = [ids[0], ids[1]];
  render();
}

function row(point, place) {
  const name = el("input", {
    type: "text", value: point.name, "data-name": point.id, "aria-label": `Name of point ${place + 1}`, placeholder: "name",
    oninput: () => (point.name = name.value),
    onkeydown: (event) => {
      if (event.key === "Enter") grow("", place);
      if (event.altKey && event.key === "ArrowUp") move(place, place - 1);
      if (event.altKey && event.key === "ArrowDown") move(place, place + 1);
    },
    onpaste: (event) => pasteNames(event, point, place),
    onchange: () => render(),
  });
  const paint = el("input", { type: "color", value: point.colour, "aria-label": `Colour of ${point.name || "the point"}`, onchange: () => { point.colour = paint.value; render(); } });
  const handle = el("button", { type: "button", class: "handle", "aria-label": `Move ${point.name || "the point"}`, title: "Drag, or Alt ↑ ↓ in the name" }, "⠿");
  const clicks = store.project.clicks[point.id] ?? 0;
  const item = el("li", {}, handle, paint, name,
    el("span", { class: "clicks", title: `placed in ${amount(clicks, "image")}` }, clicks || ""),
    el("button", { type: "button", class: "remove", "aria-label": `Remove ${point.name || "the point"}`, onclick: () => remove(point, clicks) }, "✕"));
  handle.addEventListener("pointerdown", (event) => lift(event, item, handle, place));
  return item;
}

// Several lines at once become several points.
function pasteNames(event, point, place) {
  const names = event.clipboardData.getData("text").split(/[\n\t,;]+/).map((name) => name.trim()).filter(Boolean);
  if (names.length < 2) return;
  event.preventDefault();
  point.name = names[0];
  names.slice(1).forEach((name, number) => add(name, place + number));
  render();
}

function move(from, to) {
  if (to < 0 || to >= draft.points.length) return;
  const [point] = draft.points.splice(from, 1);
  draft.points.splice(to, 0, point);
  render();
  focusName(point.id);
}

function lift(event, item, handle, place) {
  event.preventDefault();
  const height = item.offsetHeight + 5;
  const start = event.clientY;
  handle.setPointerCapture(event.pointerId);
  item.classList.add("lifted");
  handle.onpointermove = (moved) => (item.style.transform = `translateY(${moved.clientY - start}px)`);
  handle.onpointerup = (ended) => {
    const to = place + Math.round((ended.clientY - start) / height);
    move(place, Math.min(Math.max(to, 0), draft.points.length - 1));
  };
}

function remove(point, clicks) {
  const words = `Remove “${point.name}”? It was placed in ${amount(clicks, "image")}; those clicks go with it.`;
  if (clicks && !confirm(words)) return;
  draft.points = draft.points.filter((each) => each !== point);
  draft.skeleton = draft.skeleton.filter((pair) => !pair.includes(point.id));
  if (draft.normaliser?.includes(point.id)) draft.normaliser = null;
  render();
}

function normaliser() {
  const choice = (end) => {
    const select = el("select", { "aria-label": `${end ? "Second" : "First"} point of what is 100 %` },
      el("option", { value: "" }, end ? "" : "longer side of the image"),
      ...draft.points.map((point) => el("option", { value: point.id }, point.name || "unnamed")));
    select.value = draft.normaliser?.[end] ?? "";
    select.disabled = end === 1 && !draft.normaliser;
    select.addEventListener("change", () => {
      const value = select.value === "" ? null : Number(select.value);
      if (value === null) draft.normaliser = null;
      else {
        const other = draft.normaliser?.[1 - end] ?? draft.points.find((point) => point.id !== value)?.id;
        const differs = other === value ? draft.points.find((point) => point.id !== value)?.id : other;
        draft.normaliser = differs === undefined ? null : end ? [differs, value] : [value, differs];
      }
      render();
    });
    return select;
  };
  return el("fieldset", {}, el("legend", {}, "Errors are in % of the distance between"),
    el("div", { class: "pair" }, choice(0), el("span", { class: "quiet" }, "and"), choice(1)));
}

async function save() {
  const note = $("schema-note");
  const points = draft.points.filter((point) => point.name.trim() || point.id >= 0);
  const there = new Set(points.map((point) => point.id));
  const skeleton = draft.skeleton.filter((pair) => pair.every((id) => there.has(id)));
  const ends = draft.normaliser?.every((id) => there.has(id)) ? draft.normaliser : null;
  try {
    await ask("api/schema", { schema: { ...draft, points, skeleton, normaliser: ends }, base, request: crypto.randomUUID() });
    await reload();
    $("schema-dialog").close();
  } catch (error) {
    note.textContent = error.message;
    note.className = "bad";
    if (error.status === 409) await reload();
  }
}
