// Owns the playground's LoRAs: the chosen ones, each with its strength.

import { element, replace, setText, uniqueId } from "./dom.js";
import { select } from "./form.js";
import { iconButton } from "./widgets.js";

const LORAS_MAX = 8;
const SCALE_DEFAULT = 1;
// The API takes -10 to 10; beyond 2 images fall apart.
const SCALE_SHOWN_MAX = 2;

// `put` sets the LoRAs of an earlier image, of which it gets the parameters; `read` returns its part of the request.
export function playgroundLoras(loras) {
  const choice = select([["", "Add a LoRA"], ...loras.map(({ id, name }) => [id, name])], "", {
    id: "lora-choice",
    "aria-label": "Add a LoRA",
  });
  const list = element("ul", { class: "lora-uses", "aria-label": "LoRAs of the image" });
  const error = element("p", { class: "field-error" });
  const root = element(
    "details",
    { class: "more" },
    element("summary", null, "LoRAs"),
    element("div", { class: "field", data: { field: "loras" } }, choice, error),
    list,
  );
  root.hidden = loras.length === 0;
  let uses = [];

  const show = () => {
    replace(
      list,
      uses.map((use, index) => loraUse(use, index, () => drop(use))),
    );
    choice.disabled = uses.length >= LORAS_MAX;
  };
  const drop = (use) => {
    uses = uses.filter((other) => other !== use);
    show();
    choice.focus();
  };
  const add = (id, scale) => {
    const lora = loras.find((other) => other.id === id);
    if (lora && uses.length < LORAS_MAX) uses.push({ lora, scale });
  };
  choice.addEventListener("change", () => {
    add(choice.value, SCALE_DEFAULT);
    choice.value = "";
    show();
  });

  const put = ({ loras: used = [] }) => {
    uses = [];
    for (const { id, scale } of used) add(id, scale);
    if (uses.length > 0) root.open = true;
    show();
  };
  const read = () => (uses.length === 0 ? {} : { loras: uses.map(({ lora, scale }) => ({ id: lora.id, scale })) });
  show();
  return { root, put, read };
}

function loraUse(use, index, onDrop) {
  const id = uniqueId("lora-scale");
  const { name, trigger_words: words } = use.lora;
  const value = element("output", { class: "range-value", for: id });
  const bound = Math.max(SCALE_SHOWN_MAX, Math.ceil(Math.abs(use.scale)));
  const scale = element("input", { type: "range", id, min: -bound, max: bound, step: 0.05, value: use.scale });
  const tell = () => setText(value, String(use.scale));
  scale.addEventListener("input", () => {
    use.scale = Number(scale.value);
    tell();
  });
  tell();
  return element(
    "li",
    { class: "field", data: { field: `loras[${index}].id`, testid: "lora-use" } },
    element("label", { for: id }, name),
    element("div", { class: "field-row" }, scale, value, iconButton(`Remove ${name}`, "close", onDrop)),
    words.length > 0 && element("p", { class: "hint" }, `Trigger words: ${words.join(", ")}`),
    element("p", { class: "field-error" }),
  );
}
