// A magnifier beside the pointer while a point is moved: the finger or the arrow hides what it points at.

import { $ } from "./dom.js";
import { store } from "./store.js";
import { view } from "./view.js";

const SIDE = 148; // as in the style sheet
const AWAY = 30;
const LEAST = 3; // times larger than on the stage

export function showLoupe(x, y, at, colour) {
  const canvas = $("loupe");
  const photo = $("photo");
  const stage = $("stage").getBoundingClientRect();
  if (!photo.complete || !photo.naturalWidth) return;
  const ink = canvas.getContext("2d");
  const density = canvas.width / SIDE;
  const scale = Math.max(view.scale * LEAST, 6); // screen pixels a pixel of the image
  const shown = SIDE / scale; // pixels of the image across the loupe
  const stored = photo.naturalWidth / store.image.size[0]; // the file may have been shrunk for the page
  ink.fillStyle = "#0b0c0e";
  ink.fillRect(0, 0, canvas.width, canvas.height);
  ink.imageSmoothingEnabled = scale < 12;
  ink.drawImage(
    photo,
    (at[0] + 0.5 - shown / 2) * stored, (at[1] + 0.5 - shown / 2) * stored, shown * stored, shown * stored,
    0, 0, canvas.width, canvas.height,
  );
  const middle = canvas.width / 2;
  for (const [width, paint] of [[4 * density, "#0009"], [1.5 * density, colour]]) {
    ink.lineWidth = width;
    ink.strokeStyle = paint;
    ink.beginPath();
    for (const [across, down] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      ink.moveTo(middle + across * 7 * density, middle + down * 7 * density);
      ink.lineTo(middle + across * 26 * density, middle + down * 26 * density);
    }
    ink.stroke();
  }
  // Up and to the left of the pointer, or where there is room.
  const left = x - SIDE - AWAY > 8 ? x - SIDE - AWAY : x + AWAY;
  const top = y - SIDE - AWAY > 8 ? y - SIDE - AWAY : y + AWAY;
  canvas.style.transform = `translate(${Math.min(left, stage.width - SIDE - 8)}px, ${Math.min(top, stage.height - SIDE - 8)}px)`;
  canvas.hidden = false;
}

export const hideLoupe = () => ($("loupe").hidden = true);
