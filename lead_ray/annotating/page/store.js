// What the page knows. The server is the truth: every edit is sent there at once, and what others change is merged in,
// point by point, by revision.

import { ask, listen, Outbox, Refused } from "./api.js";
import { toast } from "./dom.js";

export const MISSING = 0;
export const OCCLUDED = 1;
export const VISIBLE = 2;
const DEPTH = 300;

const kept = (name, otherwise) => JSON.parse(sessionStorage.getItem(name + location.pathname)) ?? otherwise;
const keep = (name, value) => sessionStorage.setItem(name + location.pathname, JSON.stringify(value));

export const store = {
  project: null, // the server's state
  image: null, // what is on show: key, name, size, box, points {id: {mark, x, y, revision}}, proposals {id: {...}}
  selected: null, // number of the point that keys change
  reason: "",
  failure: null, // why there is no image
  undone: kept("redo", []),
  done: kept("undo", []),
  seen: kept("seen", []), // keys of images, in the order in which they were shown
  place: kept("place", -1),
  waiting: 0,
  reachable: true,
};

const watchers = [];
export const watch = (watcher) => watchers.push(watcher);
export const changed = () => watchers.forEach((watcher) => watcher());

const outbox = new Outbox(
  (waiting, reachable) => {
    Object.assign(store, { waiting, reachable });
    if (store.project) changed();
  },
  (edit, revision) => {
    if (edit.content.image !== store.image?.key) return;
    if ("box" in edit.content) store.image.boxRevision = Math.max(store.image.boxRevision, revision);
    for (const { id } of edit.content.points ?? []) {
      const said = store.image.points[id];
      if (said) said.revision = Math.max(said.revision, revision);
    }
  },
  (edit, reason) => {
    toast(reason);
    if (store.image) show(store.image.key, store.reason, false);
  },
);

export const points = () => store.project?.schema.points ?? [];
export const said = (id) => store.image?.points[id] ?? null;
export const proposed = (id) => (said(id) ? null : (store.image?.proposals[id] ?? null));
export const unsaid = () => points().filter((point) => !said(point.id));
export const proposals = () => points().filter((point) => proposed(point.id));

// The point that a click on the image places.
export function target() {
  const chosen = points().find((point) => point.id === store.selected);
  if (chosen && !said(chosen.id)) return chosen;
  return unsaid()[0] ?? null;
}

export function select(id) {
  store.selected = id;
  changed();
}

// Say something of points of the image on show: [{id, mark: 0 | 1 | 2 | null, x, y, by}].
export function commit(edits, { remember = true } = {}) {
  const { key, points: known } = store.image;
  const before = edits.map(({ id }) => ({ id, mark: null, ...known[id] }));
  for (const { id, mark, x, y } of edits) {
    if (mark === null) delete known[id];
    else known[id] = { mark, x: mark ? x : null, y: mark ? y : null, revision: known[id]?.revision ?? 0 };
  }
  if (remember) note({ key, before, after: edits });
  outbox.add("api/points", { image: key, points: edits });
  changed();
}

// Say where the object is in the image on show: [x, y, width, height] from the corner, or null for anywhere.
export function setBox(box, { remember = true } = {}) {
  const { key, box: before } = store.image;
  store.image.box = box;
  if (remember) note({ key, boxes: { before, after: box } });
  outbox.add("api/box", { image: key, box });
  changed();
}

function note(step) {
  store.done = [...store.done, step].slice(-DEPTH);
  store.undone = [];
  keep("undo", store.done);
  keep("redo", store.undone);
}

const ELSEWHERE = "What was changed elsewhere since stays as it is.";

const same = (one, other) =>
  (one?.mark ?? null) === (other?.mark ?? null) &&
  (!one?.mark || (Math.abs(one.x - other.x) < 0.01 && Math.abs(one.y - other.y) < 0.01));

async function travel(from, to, state, wanted) {
  const step = store[from].at(-1);
  if (!step) return;
  store[from] = store[from].slice(0, -1);
  store[to] = [...store[to], step];
  keep("undo", store.done);
  keep("redo", store.undone);
  if (store.image?.key !== step.key) await visit(step.key, "");
  if (store.image?.key !== step.key) return;
  if (step.boxes) {
    if (String(store.image.box) !== String(step.boxes[state])) return toast(ELSEWHERE, true);
    return setBox(step.boxes[wanted], { remember: false });
  }
  const schema = new Set(points().map((point) => point.id));
  const mine = step[wanted].filter(
    (each, place) => schema.has(each.id) && same(store.image.points[each.id], step[state][place]),
  );
  if (mine.length < step[wanted].length) toast(ELSEWHERE, true);
  if (mine.length) {
    store.selected = mine.at(-1).id;
    commit(mine.map(({ id, mark, x, y }) => ({ id, mark, x, y, by: from })), { remember: false });
  }
}

export const undo = () => travel("done", "undone", "after", "before");
export const redo = () => travel("undone", "done", "before", "after");

export function accept() {
  const edits = proposals().map(({ id }) => {
    const { x, y } = proposed(id);
    return { id, mark: VISIBLE, x: clamp(x, store.image.size[0]), y: clamp(y, store.image.size[1]), by: "proposal" };
  });
  if (edits.length) commit(edits);
}

export const clamp = (value, length) => Math.round(Math.min(Math.max(value, -0.5), length - 0.5) * 100) / 100;

let asked = 0;

// Show an image; what was asked for last wins.
async function show(key, reason, anew = true) {
  const mine = ++asked;
  try {
    const image = await ask(`api/images/${key}`);
    if (mine !== asked) return;
    image.proposals = byId(image.proposals ?? []);
    for (const { content } of outbox.edits.filter((edit) => edit.content.image === key)) {
      merge(image, content.points ?? [], 0);
      if ("box" in content) image.box = content.box;
    }
    Object.assign(store, { image, reason, failure: null });
    if (anew) store.selected = null;
    history.replaceState(null, "", `#${key}`);
  } catch (error) {
    if (mine !== asked) return;
    if (!(error instanceof Refused)) return toast("The server does not answer. Is lead-ray annotate still running?");
    Object.assign(store, { image: null, failure: error.message });
  }
  changed();
}

const byId = (list) => Object.fromEntries(list.map((each) => [each.id, each]));

export async function visit(key, reason) {
  store.seen = [...store.seen.slice(0, store.place + 1), key].slice(-DEPTH);
  store.place = store.seen.length - 1;
  keep("seen", store.seen);
  keep("place", store.place);
  await show(key, reason);
}

export async function next(order) {
  if (store.place < store.seen.length - 1) return step(1);
  const after = store.image?.key ?? store.seen.at(-1) ?? "";
  const offer = await ask(`api/next?order=${order}&after=${after}`).catch((error) => toast(error.message));
  if (!offer) return;
  if (offer.image) await visit(offer.image, offer.reason);
  else toast(`That was all: ${offer.reason}.`, true);
}

export const previous = () => store.place > 0 && step(-1);

async function step(by) {
  store.place += by;
  keep("place", store.place);
  await show(store.seen[store.place], "");
}

function merge(image, edits, revision) {
  for (const { id, mark, x, y } of edits) {
    if (mark === null) delete image.points[id];
    else image.points[id] = { mark, x, y, revision };
  }
}

export async function setAside() {
  const skip = store.image.kind !== "skipped";
  store.image.kind = skip ? "skipped" : "todo";
  outbox.add("api/skip", { image: store.image.key, skip });
  changed();
}

export async function reload() {
  store.project = await ask("api/state");
  changed();
}

// An event of the server.
function heard(event) {
  if (event.counts) store.project.counts = event.counts;
  if (event.revision) store.project.revision = event.revision;
  const here = store.image && event.image === store.image.key;
  if (event.kind === "schema") reload().then(() => store.image && show(store.image.key, store.reason, false));
  if (event.kind === "status") store.project.status = event.status;
  if (event.kind === "curve") store.project.curve = event.curve;
  if (event.kind === "broken") store.project.counts.broken += 1;
  if (event.kind === "proposals" && here) store.image.proposals = byId(event.proposals);
  if (event.kind === "skip" && here) store.image.kind = event.skip ? "skipped" : "todo";
  if (event.kind === "box" && here && !outbox.waitsForBox(event.image) && store.image.boxRevision < event.revision) {
    Object.assign(store.image, { box: event.box, boxRevision: event.revision });
  }
  if (event.kind === "points" && here) {
    const news = event.points.filter(
      ({ id }) => !outbox.waitsFor(event.image, id) && (said(id)?.revision ?? 0) < event.revision,
    );
    merge(store.image, news, event.revision);
  }
  changed();
}

export async function begin() {
  await reload();
  listen(heard, async (revision) => {
    outbox.send();
    if (revision === store.project.revision) return;
    await reload(); // the connection was away, or edits came before it was there
    if (store.image) await show(store.image.key, store.reason, false);
  });
  const wanted = location.hash.slice(1) || store.seen[store.place];
  if (wanted && store.seen[store.place] === wanted) await show(wanted, "");
  else if (wanted) await visit(wanted, "");
}
