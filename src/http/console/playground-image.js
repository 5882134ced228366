// Owns the input image: its field, its thumbnail, and the strength.

import { element, setText } from "./dom.js";
import { field } from "./form.js";
import { button } from "./widgets.js";

const STRENGTH_DEFAULT = 0.6;
// The part before the base64 in a data URL.
const ADDRESS_HEAD = /^data:[^,]*,/;

// `fit` shows it only if the model takes an input image, `read` returns its part of the request, `put` sets the
// strength.
export function playgroundImage({ onChoose }) {
  const file = element("input", { type: "file", id: "input-image", accept: "image/png,image/jpeg,image/webp" });
  const shown = element("img", { class: "input-image", alt: "The input image" });
  const strength = element("input", { type: "range", id: "strength", min: 0.05, max: 1, step: 0.05 });
  const value = element("output", { class: "range-value", for: "strength" });
  const remove = button("Remove", { onClick: () => clear() });
  const row = element("div", { class: "input-image-row" }, shown, remove);
  const strengthField = field("strength", "Strength", strength, { hint: "How much the result may differ. Low values change details, 1 ignores the input image.",
    beside: value,
  });
  const root = element(
    "details",
    { class: "more" },
    element("summary", null, "Input image"),
    // The worker's errors refer to this name.
    field("input_images_base64[0]", "File", file, {
      hint: "PNG, JPEG or WebP. Stretched if the size below has other proportions.",
    }),
    row,
    strengthField,
  );
  let address = null;

  const show = (next) => {
    address = next;
    row.hidden = strengthField.hidden = next === null;
    if (next === null) shown.removeAttribute("src");
    else shown.src = next;
  };
  const clear = () => {
    file.value = "";
    show(null);
  };
  const put = (next) => {
    strength.value = next ?? STRENGTH_DEFAULT;
    setText(value, strength.value);
  };
  strength.addEventListener("input", () => setText(value, strength.value));
  file.addEventListener("change", async () => {
    show(file.files.length > 0 ? await addressOf(file.files[0]) : null);
    if (address !== null) onChoose();
  });
  clear();
  put(null);

  const fit = (card) => {
    root.hidden = card.max_input_images === 0;
    if (root.hidden) clear();
  };
  const read = () =>
    address === null
      ? {}
      : { input_images_base64: [address.replace(ADDRESS_HEAD, "")], strength: Number(strength.value) };
  return { root, fit, put, read };
}

function addressOf(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
