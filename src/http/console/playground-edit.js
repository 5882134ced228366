// Owns the tab that edits: reference images where the model reads them, an input image with a strength elsewhere, and
// images of a style.

import { element, replace, setText, uniqueId } from "./dom.js";
import { slider } from "./form.js";
import { FILE_HINT } from "./image-files.js";
import { dropZone } from "./playground-drop.js";
import { countOf } from "./playground-modes.js";

const STRENGTH_DEFAULT = 0.6;
// The largest scale of the API.
const STYLE_SCALE_MAX = 2;

// `source` is the place of the input image, which other tabs have as well.
export function editPanel({ source, signal }) {
  const root = element("div", { class: "form" });
  const strength = slider("strength", "Strength", {
    min: 0.05,
    max: 1,
    step: 0.05,
    value: STRENGTH_DEFAULT,
    hint: "How much the result may differ. Low values change details, 1 ignores the input image.",
  });
  const references = dropZone({
    role: "reference",
    label: "Images to edit",
    hint: `Say in the prompt what to change. ${FILE_HINT}`,
    signal,
  });
  const styles = dropZone({
    role: "style",
    label: "Style",
    optional: true,
    hint: "The result varies the look and content of these images.",
    signal,
    extra: styleScale,
  });
  let zones = [];

  const fit = (card) => {
    const has = (role) => countOf(card, role).max > 0;
    zones = [has("reference") ? references : has("input") && source, has("style") && styles].filter(Boolean);
    if (has("reference")) references.fit(countOf(card, "reference").max);
    if (has("style")) styles.fit(countOf(card, "style").max);
  };
  const enter = () => replace(root, zones.map((zone) => [zone.root, zone === source && strength.root]));
  const read = () => {
    const images = zones.flatMap((zone) => zone.images().map((image) => imageOf(zone.role, image)));
    const [first] = images;
    return {
      images,
      fields: first?.role === "input" ? { strength: strength.read() } : {},
      before: first && first.role !== "style" ? { file: first.file, isStretched: first.role === "input" } : null,
      errors: first ? [] : [[zones[0]?.role ?? "images", "Choose an image"]],
    };
  };
  const put = ({ strength: value }) => strength.put(value ?? STRENGTH_DEFAULT);
  // The result has the size of the images of these places, if the request names none.
  return { root, fit, enter, put, read, zones: () => zones, sized: [references] };
}

const imageOf = (role, { file, scale }) => ({ role, file, options: role === "style" ? { scale } : {} });

// The scale is kept with the image: others come and go.
function styleScale(image) {
  image.scale ??= 1;
  const id = uniqueId("style-scale");
  const value = element("output", { class: "range-value", for: id }, String(image.scale));
  const scale = element("input", {
    type: "range",
    id,
    "aria-label": `Scale of ${image.name}`,
    min: 0,
    max: STYLE_SCALE_MAX,
    step: 0.05,
    value: image.scale,
  });
  scale.addEventListener("input", () => {
    image.scale = Number(scale.value);
    setText(value, String(image.scale));
  });
  return element("div", { class: "field-row drop-image-extra" }, scale, value);
}
