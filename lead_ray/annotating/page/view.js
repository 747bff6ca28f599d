// Where the image lies on the stage. Points are pixels of the image, pixel centres at integers.

import { $ } from "./dom.js";

export const view = { scale: 1, left: 0, top: 0, fitted: true };

const LARGEST = 40; // screen pixels a pixel of the image
const AROUND = 28; // free space around an image that fits
const watchers = [];
export const onView = (watcher) => watchers.push(watcher);

export const toScreen = (x, y) => [view.left + (x + 0.5) * view.scale, view.top + (y + 0.5) * view.scale];
export const toImage = (x, y) => [(x - view.left) / view.scale - 0.5, (y - view.top) / view.scale - 0.5];

function fitting([width, height]) {
  const stage = $("stage").getBoundingClientRect();
  // The line above the image is for the name of the point, the one below for that of the file.
  return Math.min((stage.width - 2 * AROUND) / width, (stage.height - 3.4 * AROUND) / height, LARGEST);
}

export function fit(size) {
  if (!size) return;
  const stage = $("stage").getBoundingClientRect();
  view.scale = Math.max(fitting(size), 1e-3);
  view.left = (stage.width - size[0] * view.scale) / 2;
  view.top = (stage.height - size[1] * view.scale) / 2;
  view.fitted = true;
  settle(size);
}

// Zoom by a factor around a place of the stage; without one, around its middle.
export function zoom(factor, size, x, y) {
  if (!size) return;
  const stage = $("stage").getBoundingClientRect();
  x ??= stage.width / 2;
  y ??= stage.height / 2;
  const scale = Math.min(Math.max(view.scale * factor, fitting(size) / 2), LARGEST);
  view.left = x - ((x - view.left) * scale) / view.scale;
  view.top = y - ((y - view.top) * scale) / view.scale;
  view.scale = scale;
  view.fitted = false;
  settle(size);
}

export function pan(right, down, size) {
  view.left += right;
  view.top += down;
  view.fitted = false;
  settle(size);
}

// Some of the image always stays on the stage.
function settle([width, height]) {
  const stage = $("stage").getBoundingClientRect();
  const least = 60;
  view.left = Math.min(Math.max(view.left, least - width * view.scale), stage.width - least);
  view.top = Math.min(Math.max(view.top, least - height * view.scale), stage.height - least);
  const photo = $("photo");
  photo.style.width = `${width}px`;
  photo.style.height = `${height}px`;
  photo.style.transform = `translate(${view.left}px, ${view.top}px) scale(${view.scale})`;
  photo.classList.toggle("pixels", view.scale >= 9);
  watchers.forEach((watcher) => watcher());
}
