// All images, a page of them at a time: a folder may hold 100,000.

import { ask, address } from "./api.js";
import { $, amount, el, toast } from "./dom.js";
import { store, visit } from "./store.js";

const KINDS = { all: "All", todo: "Unlabelled", begun: "Begun", finished: "Labelled", skipped: "Set aside", broken: "Broken" };
const PAGE = 80;

export function openImages() {
  const dialog = $("images-dialog");
  const grid = el("div", { class: "gallery" });
  const body = el("div", { class: "body" }, grid);
  const which = el("select", { "aria-label": "Which images" }, ...Object.entries(KINDS).map(([value, text]) => el("option", { value }, text)));
  const search = el("input", { type: "search", placeholder: "Part of a name", "aria-label": "Search names" });
  const found = el("span", { class: "quiet" });
  let shown = 0;
  let total = 0;
  let turn = 0;
  let busy = false;

  async function more() {
    if (busy || (shown && shown >= total)) return;
    busy = true;
    const mine = turn;
    const query = new URLSearchParams({ which: which.value, search: search.value, start: shown, count: PAGE });
    const page = await ask(`api/images?${query}`).catch((error) => toast(error.message));
    busy = false;
    if (mine !== turn) return more();
    if (!page) return;
    total = page.total;
    shown += page.rows.length;
    found.textContent = amount(total, "image");
    grid.append(...page.rows.map((row) => card(row, dialog)));
    if (shown < total && body.scrollHeight <= body.clientHeight) more();
  }

  function anew() {
    turn += 1;
    shown = 0;
    grid.replaceChildren();
    more();
  }

  which.addEventListener("change", anew);
  search.addEventListener("input", anew);
  body.addEventListener("scroll", () => body.scrollTop + 2 * body.clientHeight > body.scrollHeight && more());
  dialog.replaceChildren(
    el("header", {}, el("h2", { id: "images-title" }, "Images"), found,
      el("div", { class: "filters" }, search, which),
      el("button", { type: "button", onclick: () => dialog.close() }, "Close")),
    body,
  );
  dialog.showModal();
  anew();
}

function card(row, dialog) {
  const frame = el("span", { class: "frame" });
  if (row.reason) frame.append(el("span", { class: "why" }, row.reason));
  else frame.append(el("img", { src: address(`thumbnail/${row.key}`), loading: "lazy", alt: "" }));
  if (row.kind !== "todo" && !row.reason) frame.append(el("span", { class: `kind ${row.kind}` }, KINDS[row.kind]));
  const open = () => {
    dialog.close();
    visit(row.key, "");
  };
  return el("button", {
    type: "button",
    title: row.name,
    disabled: row.kind === "broken",
    "aria-current": row.key === store.image?.key ? "true" : null,
    onclick: open,
  }, frame, el("span", { class: "name" }, row.name));
}

export function openExport() {
  const dialog = $("export-dialog");
  const note = el("p", { role: "status" }, `Files go to ${store.project.path}/exports`);
  const write = async (format) => {
    try {
      const { file } = await ask("api/export", { format });
      note.textContent = `Written: ${file}`;
      note.className = "";
    } catch (error) {
      note.textContent = error.message;
      note.className = "bad";
    }
  };
  dialog.replaceChildren(
    el("header", {}, el("h2", { id: "export-title" }, "Export labels"), el("button", { type: "button", onclick: () => dialog.close() }, "Close")),
    el("div", { class: "body" },
      el("div", { class: "exports" }, ...store.project.formats.map(({ name, title, loses }) =>
        el("button", { type: "button", "data-format": name, onclick: () => write(name) }, title,
          el("small", {}, loses ? `leaves out ${loses}` : "all that is known"))))),
    el("footer", {}, note),
  );
  dialog.showModal();
}
