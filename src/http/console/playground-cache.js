// Owns the playground's cache between steps: whether it is used, and its threshold.

import { element } from "./dom.js";
import { field, numberOf } from "./form.js";

const THRESHOLD_DEFAULT = 0.08;

// `put` sets the threshold of an earlier image, or no cache. `read` returns its part of the request.
export function playgroundCache() {
  const chosen = element("input", { type: "checkbox", id: "cache", "aria-describedby": "cache-hint cache-error" });
  const threshold = element("input", {
    type: "number",
    id: "cache-threshold",
    inputmode: "decimal",
    autocomplete: "off",
    min: 0,
    max: 1,
    step: "any",
  });
  const thresholdField = field("cache_threshold", "Threshold", threshold, {
    hint: "Above 0 and at most 1: more leaves out more, and changes the image more.",
  });
  const choice = element(
    "div",
    { class: "choice" },
    chosen,
    element(
      "div",
      null,
      element("label", { for: "cache" }, "Faster, lossy"),
      element("p", { class: "hint", id: "cache-hint" }, "Leaves out most of a step that would change little. The image is another one."),
    ),
  );
  const root = element(
    "div",
    { class: "stack-small" },
    element("div", { class: "field", data: { field: "cache" } }, choice, element("p", { class: "field-error", id: "cache-error" })),
    thresholdField,
  );

  const show = () => {
    thresholdField.hidden = !chosen.checked;
  };
  const put = ({ cache_threshold: next }) => {
    chosen.checked = next !== undefined && next !== null;
    threshold.value = next ?? THRESHOLD_DEFAULT;
    show();
  };
  chosen.addEventListener("change", show);
  put({});

  const read = () => {
    if (!chosen.checked) return {};
    const value = numberOf(threshold);
    return value === null ? { cache: "first_block" } : { cache: "first_block", cache_threshold: value };
  };
  return { root, put, read };
}
