// Owns a mask as the list of what was painted, so that it can be undone, and drawn in any size.

// Operations that can be undone.
const OPERATIONS_MAX = 100;
// Shown above the image; the file of the mask is white.
const COLOR = "#d6257e";

const COMPOSITES = {
  paint: "source-over",
  erase: "destination-out",
  fill: "source-over",
  clear: "destination-out",
  // Where nothing was there is color now, and where color was there is nothing.
  invert: "xor",
};

// Draws an operation `{ kind, size?, points? }`, where `size` is the diameter of the brush. The unit of the context and
// of all numbers is a pixel of the image, whose size is `image`.
export function draw(context, { kind, size, points }, image) {
  context.globalCompositeOperation = COMPOSITES[kind];
  context.fillStyle = context.strokeStyle = COLOR;
  if (!points) {
    context.fillRect(0, 0, image.width, image.height);
    return;
  }
  const [[x, y], ...others] = points;
  context.beginPath();
  if (others.length === 0) {
    context.arc(x, y, size / 2, 0, 2 * Math.PI);
    context.fill();
    return;
  }
  context.lineWidth = size;
  context.lineCap = context.lineJoin = "round";
  context.moveTo(x, y);
  for (const [toX, toY] of others) context.lineTo(toX, toY);
  context.stroke();
}

// The operations, in order. `settle` gets the oldest when there are too many: it can no longer be undone.
export function maskHistory(settle) {
  let done = [];
  let undone = [];
  const move = (from, to) => {
    if (from.length > 0) to.push(from.pop());
  };
  return {
    add(operation) {
      done.push(operation);
      undone = [];
      if (done.length > OPERATIONS_MAX) settle(done.shift());
    },
    undo: () => move(done, undone),
    redo: () => move(undone, done),
    forget() {
      done = [];
      undone = [];
    },
    operations: () => done,
    canUndo: () => done.length > 0,
    canRedo: () => undone.length > 0,
  };
}
