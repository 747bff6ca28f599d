// Held-out error by number of labelled images, with its standard error.

import { $, el, svg } from "./dom.js";
import { store } from "./store.js";

const HEIGHT = 148;
const LEFT = 34;
const BOTTOM = 20;
const TOP = 8;

export function drawPlot() {
  const curve = store.project.curve;
  const last = curve.at(-1);
  $("error-now").textContent = last ? `${last.error.toFixed(1)} % ± ${last.standard_error.toFixed(1)}` : "";
  if (curve.length < 2) {
    const words = store.project.model
      ? "Falls here as you label: each image is judged by a read-out that has not seen it."
      : "Needs a model: start with --model RUN.";
    return $("plot").replaceChildren(el("p", {}, words));
  }
  const width = $("plot").clientWidth || 264;
  const most = nice(Math.max(...curve.map((each) => each.error + each.standard_error)));
  const from = curve[0].images;
  const to = last.images;
  const x = (images) => LEFT + ((width - LEFT - 8) * (images - from)) / (to - from);
  const y = (error) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - TOP) * Math.min(error, most)) / most;
  const line = curve.map((each) => `${x(each.images)},${y(each.error)}`).join(" ");
  const above = curve.map((each) => `${x(each.images)},${y(each.error + each.standard_error)}`);
  const below = curve.map((each) => `${x(each.images)},${y(Math.max(each.error - each.standard_error, 0))}`).reverse();
  const words = (text, attributes) => {
    const node = svg("text", { fill: "#9aa0a8", "font-size": 11, ...attributes });
    node.textContent = text;
    return node;
  };
  const grid = [0, most / 2, most].flatMap((error) => [
    svg("line", { x1: LEFT, x2: width - 8, y1: y(error), y2: y(error), stroke: "#2a2e33" }),
    words(`${+error.toPrecision(3)} %`, { x: LEFT - 7, y: y(error) + 4, "text-anchor": "end" }),
  ]);
  const label = `Held-out error from ${curve[0].error.toFixed(1)} % after ${from} to ${last.error.toFixed(1)} % after ${to} images`;
  $("plot").replaceChildren(
    svg("svg", { width, height: HEIGHT, role: "img", "aria-label": label },
      ...grid,
      svg("polygon", { points: [...above, ...below].join(" "), fill: "#7db4ff", "fill-opacity": 0.16 }),
      svg("polyline", { points: line, fill: "none", stroke: "#7db4ff", "stroke-width": 2, "stroke-linejoin": "round" }),
      svg("circle", { cx: x(to), cy: y(last.error), r: 3.5, fill: "#7db4ff" }),
      words(from, { x: LEFT, y: HEIGHT - 4 }),
      words(`${to} images`, { x: width - 8, y: HEIGHT - 4, "text-anchor": "end" })),
  );
}

// The next round number, of which half is round, too.
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 1.6, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value);
}
