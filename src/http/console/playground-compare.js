// Owns the comparison of an image before and after, by a line that is moved across them.

import { element } from "./dom.js";

// By how many percent keys move the line.
const ARROWS = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2 };
const STEPS = { ...ARROWS, PageDown: -10, PageUp: 10, Home: -100, End: 100 };
const MIDDLE = 50;

// `after` is a loaded image, `before` a file. An image that is stretched to the result's size is shown so. `release`
// frees the file's object URL.
export function compareView({ before: { file, isStretched }, after }) {
  const address = URL.createObjectURL(file);
  const earlier = element("img", {
    src: address,
    alt: "The image before",
    class: isStretched ? "compare-earlier is-stretched" : "compare-earlier",
    draggable: "false",
    data: { testid: "before" },
  });
  const line = element("div", {
    class: "compare-line",
    role: "slider",
    tabindex: "0",
    "aria-label": "Line between before and after",
    "aria-valuemin": "0",
    "aria-valuemax": "100",
  });
  const label = (text, side) => element("span", { class: `compare-label compare-${side}`, "aria-hidden": "true" }, text);
  const root = element(
    "div",
    { class: "compare", data: { testid: "compare" } },
    after,
    earlier,
    label("Before", "left"),
    label("After", "right"),
    line,
  );
  after.draggable = false;
  root.style.setProperty("--ratio", String(after.naturalWidth / after.naturalHeight));
  let position = MIDDLE;

  const put = (percent) => {
    position = Math.min(100, Math.max(0, percent));
    root.style.setProperty("--position", `${position}%`);
    line.setAttribute("aria-valuenow", String(Math.round(position)));
    line.setAttribute("aria-valuetext", `${Math.round(position)} % of the width before`);
  };
  const follow = ({ clientX }) => {
    const { left, width } = root.getBoundingClientRect();
    put((100 * (clientX - left)) / width);
  };
  root.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    root.setPointerCapture(event.pointerId);
    line.focus({ preventScroll: true });
    follow(event);
  });
  root.addEventListener("pointermove", (event) => {
    if (root.hasPointerCapture(event.pointerId)) follow(event);
  });
  line.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    put(position + step);
  });
  put(MIDDLE);
  return { root, release: () => URL.revokeObjectURL(address) };
}
