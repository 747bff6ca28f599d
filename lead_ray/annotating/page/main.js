// Puts the page together.

import { address } from "./api.js";
import { $, toast } from "./dom.js";
import { openExport, openImages } from "./gallery.js";
import { actions, drawHelp } from "./keys.js";
import { draw } from "./overlay.js";
import { drawPanel } from "./panel.js";
import { drawPlot } from "./plot.js";
import { openSchema } from "./schema.js";
import { begin, next, store, watch } from "./store.js";
import { fit, onView, view } from "./view.js";

const photo = $("photo");
let shown = null;
let drawnCurve = null;

watch(() => {
  drawPanel();
  showPhoto();
  draw();
  if (drawnCurve !== store.project.curve) {
    drawnCurve = store.project.curve;
    drawPlot();
  }
});
onView(draw);

function showPhoto() {
  const key = store.image?.key ?? null;
  if (key === shown) return;
  shown = key;
  photo.hidden = key === null;
  if (key === null) return;
  photo.alt = store.image.name;
  photo.src = address(`picture/${key}`);
  fit(store.image.size);
}

photo.addEventListener("error", () => photo.src && toast("This image cannot be decoded; set it aside with X."));

for (const [id, action] of Object.entries({
  previous: actions.previous, undo: actions.undo, redo: actions.redo, occluded: actions.occluded, missing: actions.missing,
  clear: actions.clear, box: actions.box, skip: actions.skip, primary: actions.primary,
  "zoom-in": actions.larger, "zoom-out": actions.smaller, "zoom-fit": actions.fit,
  "open-images": openImages, "open-schema": openSchema, "open-export": openExport,
  "open-help": () => $("help-dialog").showModal(),
})) {
  $(id).addEventListener("click", action);
}

// After a click on a button keys belong to the image again: Enter must not press the button once more.
addEventListener("click", (event) => {
  const inDialog = event.composedPath().some((node) => node.tagName === "DIALOG");
  if (event.detail > 0 && !inDialog) document.activeElement?.blur();
});

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.id !== "schema-dialog" && dialog.close());
}

// The first image comes as soon as there are points to place in it.
$("schema-dialog").addEventListener("close", () => {
  if (store.project.schema.points.length && !store.image) next($("order").value);
});

$("order").value = localStorage.order ?? "teaches";
$("order").addEventListener("change", () => {
  localStorage.order = $("order").value;
  $("order").blur();
});

new ResizeObserver(() => {
  if (view.fitted && store.image) fit(store.image.size);
  else draw();
  if (store.project) drawPlot();
}).observe($("stage"));

addEventListener("beforeunload", (event) => store.waiting && !store.reachable && event.preventDefault());

drawHelp();
try {
  await begin();
  if (!store.project.schema.points.length) openSchema();
  else if (!store.image && !store.failure) await next($("order").value);
} catch (error) {
  toast(error.message);
}
