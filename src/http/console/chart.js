// Owns the charts: bars and lines as SVG, each with a text summary for screen readers.

import { element, replace, setText, svg } from "./dom.js";

const HEIGHT = 100;
const STEP = 10;
// Share of a step's width that the bar takes; the rest is the gap.
const BAR_SHARE = 0.72;

// A chart that `update` redraws. `kind` is `bars` or `line`. An item is `{ label, values, text }`: its position, its
// values (bars are stacked in this order, in the given tones; a line has one), and its tooltip. If there are fewer than
// `itemsMin` items, they are aligned to the right.
export function chart({
  kind,
  tones = ["accent"],
  formatValue,
  height = "medium",
  floor = 1,
  itemsMin = 0,
  ceilingOf = niceCeiling,
}) {
  const image = svg("svg", { class: "chart-image", role: "img", preserveAspectRatio: "none" });
  const top = element("span");
  const middle = element("span");
  const scale = element(
    "div",
    { class: "chart-scale", "aria-hidden": "true" },
    top,
    middle,
    element("span", null, "0"),
  );
  const tip = element("div", { class: "chart-tip", hidden: true, "aria-hidden": "true" });
  const plot = element("div", { class: `chart-plot chart-${height}` }, image, tip);
  const axis = element("div", { class: "chart-axis", "aria-hidden": "true" });
  const figure = element("figure", { class: "chart" }, scale, plot, axis);
  let items = [];

  const draw = kind === "bars" ? drawBars : drawLine;
  const update = (next, summary, axisLabels) => {
    items = [...Array(Math.max(0, itemsMin - next.length)).fill(null), ...next];
    const highest = Math.max(floor, ...next.map((item) => item.values.reduce((sum, value) => sum + value, 0)));
    const ceiling = ceilingOf(highest);
    image.setAttribute("viewBox", `0 0 ${Math.max(1, items.length) * STEP} ${HEIGHT}`);
    image.setAttribute("aria-label", summary);
    replace(image, gridLines(items.length), draw(items, ceiling, tones));
    setText(top, formatValue(ceiling));
    setText(middle, formatValue(ceiling / 2));
    replace(
      axis,
      axisLabels.map((label) => element("span", null, label)),
    );
  };
  followPointer(plot, tip, image, () => items);
  return { figure, update };
}

// The next round number: 1, 2, 4, 5, 8 or 10 times a power of ten.
function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 8, 10].map((factor) => factor * power).find((candidate) => candidate >= value - 1e-9);
}

// The same for bytes, in powers of 1024.
export function niceBytesCeiling(value) {
  const unit = 1024 ** Math.floor(Math.log2(Math.max(1, value)) / 10);
  return niceCeiling(value / unit) * unit;
}

function gridLines(items) {
  const width = Math.max(1, items) * STEP;
  return [0, HEIGHT / 2, HEIGHT].map((y) => svg("line", { class: "chart-grid", x1: 0, x2: width, y1: y, y2: y }));
}

function drawBars(items, ceiling, tones) {
  return items.map((item, index) => {
    let y = HEIGHT;
    const parts = item.values.map((value, order) => {
      const height = (value / ceiling) * HEIGHT;
      y -= height;
      const x = index * STEP + (STEP * (1 - BAR_SHARE)) / 2;
      return value > 0 && svg("rect", { class: `chart-${tones[order]}`, x, y, width: STEP * BAR_SHARE, height });
    });
    return svg("g", { data: { index } }, parts);
  });
}

function drawLine(items, ceiling) {
  const point = (item, index) => item && `${(index + 0.5) * STEP},${HEIGHT - (item.values[0] / ceiling) * HEIGHT}`;
  const points = items.map(point).filter(Boolean);
  if (points.length === 0) return [];
  const first = (items.length - points.length + 0.5) * STEP;
  const last = (items.length - 0.5) * STEP;
  return [
    svg("polygon", { class: "chart-area", points: `${first},${HEIGHT} ${points.join(" ")} ${last},${HEIGHT}` }),
    svg("polyline", { class: "chart-line", points: points.join(" ") }),
  ];
}

function followPointer(plot, tip, image, itemsNow) {
  const leave = () => {
    tip.hidden = true;
    image.querySelector(".is-pointed")?.classList.remove("is-pointed");
  };
  plot.addEventListener("pointermove", (event) => {
    const items = itemsNow();
    const frame = plot.getBoundingClientRect();
    const share = (event.clientX - frame.left) / frame.width;
    const index = Math.min(items.length - 1, Math.max(0, Math.floor(share * items.length)));
    const item = items[index];
    leave();
    if (!item?.text) return;
    image.querySelector(`[data-index="${index}"]`)?.classList.add("is-pointed");
    replace(tip, element("strong", null, item.label), element("span", null, item.text));
    tip.hidden = false;
    const half = tip.offsetWidth / 2;
    const center = ((index + 0.5) / items.length) * frame.width;
    tip.style.left = `${Math.min(frame.width - half, Math.max(half, center))}px`;
  });
  plot.addEventListener("pointerleave", leave);
}
