// Owns the size presets: those that fit a model, and their buttons.

import { element, replace, svg } from "./dom.js";

// Name, width and height of each shape, at about a million pixels.
const SHAPES = [
  ["Square", 1024, 1024],
  ["Landscape", 1216, 832],
  ["Portrait", 832, 1216],
  ["Wide", 1344, 768],
  ["Tall", 768, 1344],
];

// The presets of a model, as buttons that fill in the two fields. `fit` switches to another model, `mark` highlights
// the preset in the fields.
export function sizePresets({ width, height }, onChange) {
  const root = element("div", { class: "presets", role: "group", "aria-label": "Size presets" });
  const mark = () => {
    const size = `${width.value}x${height.value}`;
    for (const button of root.children) button.setAttribute("aria-pressed", String(button.dataset.size === size));
  };
  const choose = (preset) => {
    width.value = preset.width;
    height.value = preset.height;
    mark();
    onChange();
  };
  const fit = (card) => {
    const buttons = presetsOf(card).map((preset) => presetButton(preset, () => choose(preset)));
    replace(root, buttons);
    mark();
  };
  width.addEventListener("input", mark);
  height.addEventListener("input", mark);
  return { root, fit, mark };
}

// The model's default size, then the usual shapes in the largest size that the model allows.
function presetsOf(card) {
  const { parameter_limits: limits, parameter_defaults: defaults } = card;
  const scale = Math.min(
    1,
    limits.width_max / 1344,
    limits.height_max / 1344,
    Math.sqrt(limits.pixels_max / (1024 * 1024)),
  );
  const round = (pixels) => Math.floor((pixels * scale) / limits.size_multiple_of) * limits.size_multiple_of;
  const shapes = SHAPES.map(([name, width, height]) => ({ name, width: round(width), height: round(height) }));
  const fits = ({ width, height }) =>
    width >= limits.width_min && height >= limits.height_min && width * height <= limits.pixels_max;
  const usual = { name: "Default", width: defaults.width, height: defaults.height };
  const others = shapes.filter(fits).filter(({ width, height }) => width !== usual.width || height !== usual.height);
  return [usual, ...others];
}

function presetButton({ name, width, height }, onClick) {
  return element(
    "button",
    {
      type: "button",
      class: "preset",
      title: `${width} × ${height}`,
      "aria-label": `${name}, ${width} × ${height}`,
      data: { size: `${width}x${height}` },
      on: { click: onClick },
    },
    presetShape(width, height),
    element("span", null, name),
  );
}

// An icon with the proportions.
function presetShape(width, height) {
  const scale = 14 / Math.max(width, height);
  const size = { width: width * scale, height: height * scale };
  const frame = svg("rect", { ...size, x: 8 - size.width / 2, y: 8 - size.height / 2, rx: 1.5 });
  return svg("svg", { class: "preset-shape", viewBox: "0 0 16 16", "aria-hidden": "true" }, frame);
}
