// Owns the tab that repaints a part of an image: the image, its mask, and how much is generated around it.

import { element, replace } from "./dom.js";
import { field, numberOf, slider } from "./form.js";
import { countOf } from "./playground-modes.js";
import { maskEditor } from "./playground-mask.js";

// Under a mask something new is wanted. A model that is made for this ignores what was there.
const STRENGTH_DEFAULT = 0.9;
const FILL_STRENGTH_DEFAULT = 1;
// The API's limit.
const PADDING_MAX = 4096;

// `source` is the place of the input image, which other tabs have as well.
export function inpaintPanel({ source }) {
  const root = element("div", { class: "form" });
  const editor = maskEditor();
  const strength = slider("strength", "Strength", {
    min: 0.05,
    max: 1,
    step: 0.05,
    value: STRENGTH_DEFAULT,
    hint: "How much the repainted part may differ. 1 ignores what is there.",
  });
  const padding = element("input", {
    type: "number",
    id: "mask-padding",
    inputmode: "numeric",
    autocomplete: "off",
    min: 0,
    max: PADDING_MAX,
    step: 1,
    placeholder: "Whole image",
  });
  const paddingField = field("mask_padding", "Pixels around the mask", padding, {
    optional: true,
    hint: "Only that region is generated, in the size below, and put back. For details of large images.",
  });
  let strengthDefault = STRENGTH_DEFAULT;
  source.watch(([image = null]) => editor.load(image));

  const fit = (card) => {
    strengthDefault = countOf(card, "mask").min > 0 ? FILL_STRENGTH_DEFAULT : STRENGTH_DEFAULT;
    strength.put(strengthDefault);
  };
  const enter = () => replace(root, source.root, editor.root, strength.root, paddingField);
  const read = async () => {
    const [image] = source.images();
    const fields = { strength: strength.read() };
    if (numberOf(padding) !== null) fields.mask_padding = numberOf(padding);
    if (!image) return { images: [], fields, before: null, errors: [["input", "Choose an image"]] };
    if (editor.isEmpty()) return { images: [], fields, before: null, errors: [["mask", "Paint the part to repaint"]] };
    const mask = await editor.file();
    return {
      images: [
        { role: "input", file: image.file, options: {} },
        { role: "mask", file: mask, options: {} },
      ],
      fields,
      before: { file: image.file, isStretched: true },
      errors: [],
    };
  };
  const put = ({ strength: value, mask_padding: pixels }) => {
    strength.put(value ?? strengthDefault);
    padding.value = pixels ?? "";
  };
  return { root, fit, enter, put, read, zones: () => [source] };
}
