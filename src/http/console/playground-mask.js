// Owns the editor of masks: the image with its mask above it, and the tools.

import { openDialog } from "./dialog.js";
import { element, setText } from "./dom.js";
import { slider } from "./form.js";
import { maskBrush } from "./mask-brush.js";
import { maskLayer } from "./mask-layer.js";
import { button, iconButton } from "./widgets.js";

// The diameter of the brush, in percent of the image's longer side.
const BRUSH = { min: 1, max: 50, step: 1, value: 12 };
// By how many of these percent a key changes it.
const BRUSH_STEP = 3;

const KEYS =
  "Arrow keys move the brush, with Shift in small steps. Space paints while it is held. B and E choose brush and " +
  "eraser, [ and ] change the size. Ctrl+Z undoes, Ctrl+Shift+Z redoes.";

// `load(image)` shows an image, or null, and begins a new mask if it is another one; `file()` returns the mask as a file.
export function maskEditor() {
  const picture = element("img", { alt: "" });
  const ring = element("div", { class: "mask-ring", hidden: true });
  const canvas = element("canvas", {
    id: "mask",
    tabindex: "0",
    role: "application",
    "aria-label": "Mask: paint what to repaint",
    "aria-describedby": "mask-keys",
  });
  const stage = element("div", { class: "mask-stage" }, picture, canvas, ring);
  const status = element("p", { class: "hint", role: "status", data: { testid: "mask-status" } });
  const error = element("p", { class: "field-error" });
  const layer = maskLayer(canvas);
  let image = null;
  let erases = false;

  const size = slider("brush-size", "Brush size", {
    ...BRUSH,
    write: (value) => `${value} %`,
    onInput: () => hand.placeRing(),
  });
  const brush = () => ({ size: (size.read() / 100) * Math.max(image?.width ?? 1, image?.height ?? 1), erases });
  const tell = () => {
    const share = layer.share();
    const some = share < 0.01 ? "Less than 1" : `About ${Math.round(100 * share)}`;
    setText(error, "");
    setText(status, share === 0 ? "Nothing is painted yet." : `${some} % of the image is repainted.`);
    allow(undo, layer.canUndo());
    allow(redo, layer.canRedo());
  };
  // The focus would be lost with a control that is disabled.
  const allow = (control, isPossible) => {
    if (!isPossible && control === document.activeElement) canvas.focus();
    control.disabled = !isPossible;
  };
  const hand = maskBrush({ canvas, ring, layer, brush, onLine: tell });
  const act = (work) => () => {
    hand.end();
    work();
    tell();
  };
  const whole = (kind) =>
    act(() => {
      layer.sketch({ kind });
      layer.add({ kind });
    });
  const choose = (next) => {
    erases = next;
    paint.setAttribute("aria-pressed", String(!erases));
    erase.setAttribute("aria-pressed", String(erases));
  };
  const paint = iconButton("Brush", "brush", () => choose(false));
  const erase = iconButton("Eraser", "eraser", () => choose(true));
  const undo = iconButton("Undo", "undo", act(layer.undo));
  const redo = iconButton("Redo", "redo", act(layer.redo));
  const tools = [
    ...[paint, erase, undo, redo],
    iconButton("Invert the mask", "invert", whole("invert")),
    iconButton("Fill the mask", "fill", whole("fill")),
    iconButton("Clear the mask", "trash", whole("clear")),
    iconButton("Enlarge", "expand", ({ currentTarget }) => enlarge(root, currentTarget), {
      class: "icon-button mask-enlarge",
    }),
  ];
  const root = element(
    "div",
    { class: "field mask-editor", data: { field: "mask" } },
    element("div", { class: "mask-tools", role: "group", "aria-label": "Tools of the mask" }, tools),
    stage,
    status,
    error,
    size.root,
    keysHelp(),
  );
  listenToKeys(root, {
    undo: act(layer.undo),
    redo: act(layer.redo),
    choose,
    resize: (steps) => {
      size.put(size.read() + steps * BRUSH_STEP);
      hand.placeRing();
    },
  });

  const load = (next) => {
    root.hidden = next === null;
    if (next === image) return;
    image = next;
    if (!image) {
      picture.removeAttribute("src");
      return;
    }
    picture.src = image.address;
    stage.style.setProperty("--ratio", String(image.width / image.height));
    layer.reset(image);
    hand.reset(image);
    tell();
  };
  choose(false);
  root.hidden = true;
  return { root, load, isEmpty: () => layer.share() === 0, file: layer.file };
}

function keysHelp() {
  const help = element("p", { class: "hint", id: "mask-keys" }, KEYS);
  return element("details", { class: "more" }, element("summary", null, "Keys"), help);
}

// The keys that act wherever the focus is in the editor.
function listenToKeys(root, { undo, redo, choose, resize }) {
  const acts = { b: () => choose(false), e: () => choose(true), "[": () => resize(-1), "]": () => resize(1) };
  root.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    const isHeld = event.ctrlKey || event.metaKey;
    // Brackets need AltGr on some keyboards, which counts as Ctrl+Alt.
    const isBracket = key === "[" || key === "]";
    const work = isHeld && !isBracket ? { z: event.shiftKey ? redo : undo, y: redo }[key] : acts[key];
    if (!work) return;
    event.preventDefault();
    work();
  });
}

// Moves the editor into a window, and back when that is closed.
function enlarge(root, control) {
  const home = element("div");
  root.replaceWith(home);
  const close = openDialog({
    title: "Paint the mask",
    wide: true,
    testid: "mask-dialog",
    body: root,
    actions: [button("Done", { kind: "primary", onClick: () => close() })],
    onClose: () => {
      home.replaceWith(root);
      control.focus();
    },
  });
}
