// The list of points, the counts, and the buttons below the image.

import { drawing } from "./box.js";
import { $, amount, el, svg } from "./dom.js";
import { MISSING, OCCLUDED, points, proposals, proposed, said, select, store, target, unsaid } from "./store.js";

export function drawPanel() {
  const { counts, schema, status } = store.project;
  $("title").textContent = store.project.project;
  const labelled = counts.finished;
  $("progress-bar").style.width = `${(100 * labelled) / Math.max(counts.images, 1)}%`;
  $("progress").setAttribute("aria-label", `${labelled} of ${amount(counts.images, "image")} labelled`);
  const others = [
    counts.begun && `${counts.begun} begun`,
    counts.skipped && `${counts.skipped} set aside`,
    counts.broken && `${counts.broken} broken`,
  ].filter(Boolean);
  $("counts").replaceChildren(
    el("b", {}, labelled.toLocaleString("en")),
    ` of ${amount(counts.images, "image")} labelled`,
    others.length ? ` · ${others.join(" · ")}` : "",
  );
  const waits = store.waiting > 0 && !store.reachable;
  $("saved").textContent = waits
    ? `${amount(store.waiting, "edit")} not sent: the server does not answer`
    : store.waiting ? "Saving…" : store.image ? "Saved" : "";
  $("saved").classList.toggle("waiting", waits);
  $("category").textContent = schema.category;
  $("placed").textContent = store.image && points().length ? `${points().length - unsaid().length} of ${points().length}` : "";
  drawPoints();
  drawBar();
  drawAbout();
  $("status").textContent = statusLine(status);
}

function statusLine(status) {
  if (!status) return "No model: nothing is proposed.";
  const read = status.read && status.read < status.images ? ` · ${status.read.toLocaleString("en")} of ${amount(status.images, "image")} read` : "";
  return (status.fitted ? `Learned from ${amount(status.fitted, "image")}` : status.state) + read;
}

function drawPoints() {
  const next = target();
  const focused = document.activeElement?.dataset?.point;
  $("points").replaceChildren(
    ...points().map((point) => {
      const known = said(point.id);
      const guess = proposed(point.id);
      const current = store.selected === point.id || (store.selected === null && next?.id === point.id);
      const words = known ? ["missing", "occluded", ""][known.mark] : guess ? `${Math.round(100 * guess.confidence)} %` : "";
      const long = known ? ["missing", "occluded", "placed"][known.mark] : guess ? `proposed, ${words} certain` : "not placed";
      return el("li", {},
        el("button", {
          type: "button",
          "data-point": point.id,
          "aria-current": current ? "true" : null,
          "aria-label": `${point.name}: ${long}`,
          disabled: !store.image,
          onclick: () => select(point.id),
        },
          sign(point.colour, known, guess),
          el("span", { class: "label" }, point.name),
          el("span", { class: "said" }, words)));
    }),
  );
  if (focused !== undefined) $("points").querySelector(`[data-point="${focused}"]`)?.focus();
}

// What is known of a point, as it looks on the image.
function sign(colour, known, guess) {
  const shape = { cx: 7, cy: 7 };
  const line = (x1, y1, x2, y2) => svg("line", { x1, y1, x2, y2, stroke: colour, "stroke-width": 1.8, "stroke-linecap": "round" });
  const parts = {
    missing: () => [line(3, 3, 11, 11), line(11, 3, 3, 11)],
    occluded: () => [svg("circle", { ...shape, r: 5, fill: "none", stroke: colour, "stroke-width": 1.8 }), line(4, 10, 10, 4)],
    visible: () => [svg("circle", { ...shape, r: 5.5, fill: colour })],
    guess: () => [svg("circle", { ...shape, r: 5, fill: "none", stroke: colour, "stroke-width": 1.8 })],
    none: () => [svg("circle", { ...shape, r: 2, fill: colour, "fill-opacity": 0.75 })],
  };
  const kind = known ? ["missing", "occluded", "visible"][known.mark] : guess ? "guess" : "none";
  return svg("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" }, ...parts[kind]());
}

function drawBar() {
  const known = store.selected === null ? null : said(store.selected);
  const about = known || (store.image && target());
  $("undo").disabled = !store.done.length;
  $("redo").disabled = !store.undone.length;
  $("previous").disabled = store.place <= 0;
  $("occluded").disabled = !(known && known.mark !== MISSING) && !(about && proposed(about.id));
  $("occluded").setAttribute("aria-pressed", known?.mark === OCCLUDED);
  $("missing").disabled = !about;
  $("missing").setAttribute("aria-pressed", known?.mark === MISSING);
  $("clear").disabled = drawing.on ? !store.image?.box : !known;
  $("box").disabled = !store.image;
  $("box").setAttribute("aria-pressed", drawing.on);
  $("skip").disabled = !store.image;
  $("skip").setAttribute("aria-pressed", store.image?.kind === "skipped");
  const waiting = proposals().length;
  $("primary-text").textContent = waiting ? `Accept ${amount(waiting, "proposal")}` : "Next image";
  $("primary").classList.toggle("calm", !waiting && Boolean(store.image) && unsaid().length > 0);
  $("primary").disabled = !points().length;
}

function drawAbout() {
  $("name").textContent = store.image?.name ?? "";
  $("reason").textContent = store.image && store.reason ? `Chosen: ${store.reason}` : "";
  const next = store.image && target();
  $("stage").classList.toggle("boxing", drawing.on);
  if (drawing.on) {
    const away = store.image?.box ? " · Clear: the whole image" : "";
    $("target").replaceChildren(`Drag a box around the object${away}`);
  } else {
    $("target").replaceChildren(...(next ? [el("i", {}), next.name] : []));
    if (next) $("target").firstChild.style.background = next.colour;
  }
  const blank = $("blank");
  blank.hidden = Boolean(store.image);
  if (!store.image) {
    blank.replaceChildren(el("p", {}, store.failure ? `This image cannot be shown: ${store.failure}.` : "Which points has your category?"));
  }
}
