// Owns how a mask is painted: by mouse, pen or finger, and by keys that move the brush.

// Points of a line; a longer one goes on as another.
const POINTS_MAX = 2000;
// The longer side of the image, in steps of an arrow key, and in small ones.
const STEPS = 40;
const SMALL_STEPS = 200;
// The bit of a pen's eraser in `buttons`.
const PEN_ERASER = 32;

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// Paints on `layer` where `canvas` is touched, with a brush `brush()`: `{ size, erases }`, in pixels of the image. `ring`
// shows the brush, `onLine` is called after each line. `reset(image)` begins with another image.
export function maskBrush({ canvas, ring, layer, brush, onLine }) {
  let image = { width: 1, height: 1 };
  let at = [0, 0];
  let line = null;

  const placeRing = () => {
    const { size } = brush();
    ring.style.setProperty("left", `${(100 * at[0]) / image.width}%`);
    ring.style.setProperty("top", `${(100 * at[1]) / image.height}%`);
    ring.style.setProperty("width", `${(100 * size) / image.width}%`);
  };
  const begin = (erases) => {
    line = { kind: erases ? "erase" : "paint", size: brush().size, points: [at] };
    layer.sketch(line);
  };
  const end = () => {
    if (!line) return;
    layer.add(line);
    line = null;
    onLine();
  };
  const goTo = (x, y) => {
    at = [Math.min(image.width, Math.max(0, x)), Math.min(image.height, Math.max(0, y))];
    placeRing();
    if (!line) return;
    line.points.push(at);
    layer.sketch({ ...line, points: line.points.slice(-2) });
    if (line.points.length < POINTS_MAX) return;
    const { kind } = line;
    layer.add(line);
    begin(kind === "erase");
  };
  const follow = ({ clientX, clientY }) => {
    const box = canvas.getBoundingClientRect();
    goTo(((clientX - box.left) / box.width) * image.width, ((clientY - box.top) / box.height) * image.height);
  };
  // By a key: in steps of the image's longer side.
  const step = ([x, y], steps) => {
    const length = Math.max(image.width, image.height) / steps;
    goTo(at[0] + x * length, at[1] + y * length);
  };
  const hand = { begin, end, follow, step, isPainting: () => line !== null, erases: () => brush().erases };
  followPointer(canvas, ring, hand);
  followKeys(canvas, hand);
  canvas.addEventListener("focus", () => {
    ring.hidden = false;
    placeRing();
  });
  canvas.addEventListener("blur", () => {
    ring.hidden = true;
    end();
  });
  const reset = (next) => {
    image = next;
    at = [image.width / 2, image.height / 2];
    line = null;
    ring.hidden = true;
    placeRing();
  };
  return { reset, end, placeRing };
}

function followPointer(canvas, ring, { begin, end, follow, isPainting, erases }) {
  // A second finger paints nothing.
  let pointer = null;
  canvas.addEventListener("pointerdown", (event) => {
    const isEraser = (event.buttons & PEN_ERASER) !== 0;
    if (isPainting() || (event.button !== 0 && !isEraser)) return;
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);
    follow(event);
    begin(erases() || isEraser);
  });
  canvas.addEventListener("pointermove", (event) => {
    ring.hidden = false;
    if (isPainting() && event.pointerId !== pointer) return;
    const parts = event.getCoalescedEvents?.() ?? [];
    for (const part of parts.length > 0 ? parts : [event]) follow(part);
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
    canvas.addEventListener(name, (event) => {
      if (event.pointerId !== pointer) return;
      pointer = null;
      end();
    });
  }
  canvas.addEventListener("pointerleave", () => {
    ring.hidden = document.activeElement !== canvas;
  });
}

function followKeys(canvas, { begin, end, step, isPainting, erases }) {
  // Whether the space bar began the line: otherwise it must not end it.
  let isHeld = false;
  canvas.addEventListener("keydown", (event) => {
    const way = ARROWS[event.key];
    if (!way && event.key !== " ") return;
    event.preventDefault();
    if (way) {
      step(way, event.shiftKey ? SMALL_STEPS : STEPS);
    } else if (!event.repeat && !isPainting()) {
      isHeld = true;
      begin(erases());
    }
  });
  canvas.addEventListener("keyup", (event) => {
    if (event.key !== " " || !isHeld) return;
    isHeld = false;
    end();
  });
}
