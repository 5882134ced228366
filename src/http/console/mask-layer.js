// Owns the pixels of a mask: the canvas above the image, and the file that is sent.

import { element } from "./dom.js";
import { draw, maskHistory } from "./mask-strokes.js";

// The longer side of the canvas: sharp on a screen, small in memory.
const SIDE_MIN = 512;
const SIDE_MAX = 2048;
// The largest canvas of every browser.
const FILE_PIXELS_MAX = 16_777_216;
// A side of the copy in which covered pixels are counted.
const COUNTED_SIDE = 256;

// What is painted on `canvas`, whose color shows where the image is repainted. `reset(image)` begins a mask for an image
// `{ width, height }`.
export function maskLayer(canvas) {
  const context = canvas.getContext("2d");
  // What can no longer be undone.
  const settled = element("canvas").getContext("2d");
  const counted = element("canvas", { width: COUNTED_SIDE, height: COUNTED_SIDE }).getContext("2d", {
    willReadFrequently: true,
  });
  let image = { width: 1, height: 1 };
  const history = maskHistory((operation) => draw(settled, operation, image));

  // Drawing then counts in pixels of the image. A new size also clears a canvas.
  const size = (target, { width, height }) => {
    target.canvas.width = width;
    target.canvas.height = height;
    target.setTransform(width / image.width, 0, 0, height / image.height, 0, 0);
  };
  const replay = (target) => {
    target.globalCompositeOperation = "source-over";
    target.clearRect(0, 0, image.width, image.height);
    target.drawImage(settled.canvas, 0, 0, image.width, image.height);
    for (const operation of history.operations()) draw(target, operation, image);
  };
  const reset = ({ width, height }) => {
    image = { width, height };
    const longer = Math.max(width, height);
    const scale = Math.min(SIDE_MAX, Math.max(SIDE_MIN, longer)) / longer;
    const sides = { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
    history.forget();
    size(context, sides);
    size(settled, sides);
  };
  const move = (act) => {
    act();
    replay(context);
  };

  const file = () => {
    const target = element("canvas").getContext("2d");
    size(target, image.width * image.height <= FILE_PIXELS_MAX ? image : canvas);
    replay(target);
    return whiteOnBlack(target, image);
  };
  return {
    reset,
    // A part of an operation that goes on, to be seen at once.
    sketch: (operation) => draw(context, operation, image),
    add: history.add,
    undo: () => move(history.undo),
    redo: () => move(history.redo),
    canUndo: history.canUndo,
    canRedo: history.canRedo,
    // The share that is repainted, from 0 to 1.
    share: () => coveredShare(canvas, counted),
    // A PNG file in the image's size, where white is repainted. A smaller one for an image beyond what canvases hold: the
    // worker stretches it.
    file,
  };
}

// The copy is fine enough for the smallest brush to be found in it.
function coveredShare(canvas, counted) {
  counted.clearRect(0, 0, COUNTED_SIDE, COUNTED_SIDE);
  counted.drawImage(canvas, 0, 0, COUNTED_SIDE, COUNTED_SIDE);
  const { data } = counted.getImageData(0, 0, COUNTED_SIDE, COUNTED_SIDE);
  let covered = 0;
  for (let at = 3; at < data.length; at += 4) if (data[at] > 127) covered += 1;
  return covered / (COUNTED_SIDE * COUNTED_SIDE);
}

async function whiteOnBlack(target, { width, height }) {
  const layers = [
    ["source-in", "#ffffff"],
    ["destination-over", "#000000"],
  ];
  for (const [composite, color] of layers) {
    target.globalCompositeOperation = composite;
    target.fillStyle = color;
    target.fillRect(0, 0, width, height);
  }
  const blob = await new Promise((resolve) => target.canvas.toBlob(resolve, "image/png"));
  if (!blob) throw new Error("This browser cannot make a mask of this size");
  return new File([blob], "mask.png", { type: "image/png" });
}
