// Owns the playground's form: fields that fit the chosen model, and the request they make.

import { examplePrompt } from "./curl.js";
import { element } from "./dom.js";
import { count } from "./format.js";
import { field, formAlert, numberOf, select } from "./form.js";
import { base64Of } from "./image-files.js";
import { playgroundCache } from "./playground-cache.js";
import { playgroundLoras } from "./playground-loras.js";
import { errorsAtPlaces } from "./playground-modes.js";
import { playgroundPanels } from "./playground-panels.js";
import { sizePresets } from "./playground-sizes.js";
import { iconButton } from "./widgets.js";

const DRAFT = "fluxserve.playground.draft";
const SEED_MAX = 2 ** 53 - 1;

// `read` returns the request and what it has of images, `useSeed` and `useParameters` fill in those of an earlier image,
// `take` takes files, `problemHere` names the form's fields in a problem of the worker.
export function playgroundForm({ cards, loras, chosen, signal, onSubmit }) {
  const fields = buildFields(cards);
  const { model, prompt, negative, seed } = fields;
  const submit = element("button", { type: "submit", class: "button button-primary button-block", id: "generate" }, "Generate");
  const remember = () => sessionStorage.setItem(DRAFT, JSON.stringify(valuesOf(fields)));
  const presets = sizePresets(fields, remember);
  // Without a size, the worker uses the image's size.
  const forgetSize = () => {
    fields.width.value = fields.height.value = "";
    presets.mark();
    remember();
  };
  const panels = playgroundPanels({ signal, onImage: forgetSize });
  // Options that every tab has: each with a `root`, `put(parameters)` and `read()`.
  const options = [playgroundLoras(loras), playgroundCache()];
  const putSeed = (value) => {
    seed.value = value;
    remember();
  };
  const parts = { presets: presets.root, panels, options: options.map((option) => option.root), submit };
  const root = layOut(fields, parts, () => putSeed(randomSeed()));

  const fit = ({ keepValues }) => {
    const card = cards.find(({ id }) => id === model.value);
    applyLimits(fields, card);
    if (!keepValues) applyDefaults(fields, card);
    presets.fit(card);
    panels.fit(card);
    if (!keepValues && panels.isSized()) forgetSize();
  };
  const put = (values) => {
    fillIn(fields, values);
    presets.mark();
    if (negative.value) negative.closest("details").open = true;
  };
  listen({ root, prompt, model }, { onSubmit, remember, onModel: () => fit({ keepValues: false }) });

  const draft = readDraft() || {};
  model.value = [chosen, draft.model, cards[0].id].find((wanted) => cards.some(({ id }) => id === wanted));
  fit({ keepValues: false });
  // Drops the sizes and steps of a draft for another model.
  const { prompt: text, negative: negativeText, seed: seedText } = draft;
  put(draft.model === model.value ? draft : { prompt: text, negative: negativeText, seed: seedText });

  const useParameters = (parameters) => {
    const { model: id, negative_prompt: negativePrompt = "", output_format: format, ...others } = parameters;
    if (cards.some((card) => card.id === id)) model.value = id;
    fit({ keepValues: true });
    put({ ...others, negative: negativePrompt, format });
    panels.put(parameters);
    for (const option of options) option.put(parameters);
    remember();
    prompt.focus();
  };
  const useSeed = (value) => {
    putSeed(value);
    seed.focus();
  };
  const setGenerating = (isGenerating) => {
    submit.disabled = isGenerating;
    submit.textContent = isGenerating ? "Generating" : "Generate";
  };
  // The images of the last request, to know which one an error means.
  let images = [];
  const read = async () => {
    const { fields: more, before, errors, ...given } = await panels.read();
    ({ images } = given);
    const body = { ...requestOf(fields), ...more };
    if (images.length > 0) body.images = await Promise.all(images.map(sentImage));
    return { body: Object.assign(body, ...options.map((option) => option.read())), images, before, errors };
  };
  const problemHere = ({ message, requestId, errors = [] }) => ({
    message,
    requestId,
    errors: errorsAtPlaces(errors, images),
  });
  return { root, submit, setGenerating, useSeed, useParameters, take: panels.take, read, problemHere };
}

const sentImage = async ({ role, file, options }) => ({ role, base64: await base64Of(file), ...options });

function layOut(fields, { presets, panels, options, submit }, onRoll) {
  const { model, prompt, negative, width, height, steps, guidance, seed, format } = fields;
  return element(
    "form",
    { class: "card form playground-form", novalidate: true, "aria-label": "Image" },
    formAlert(),
    field("model", "Model", model),
    panels.tabs,
    panels.panel,
    field("prompt", "Prompt", prompt),
    element(
      "details",
      { class: "more" },
      element("summary", null, "Negative prompt"),
      field("negative_prompt", "What to avoid", negative, { hint: "Doubles the time per step." }),
    ),
    options,
    element(
      "fieldset",
      { class: "field" },
      element("legend", null, "Size"),
      presets,
      element("div", { class: "field-grid" }, field("width", "Width", width), field("height", "Height", height)),
    ),
    element(
      "div",
      { class: "field-grid-three" },
      field("steps", "Steps", steps),
      field("guidance", "Guidance", guidance),
      field("output_format", "Format", format),
    ),
    field("seed", "Seed", seed, { beside: iconButton("Pick a random seed", "dice", onRoll) }),
    element("div", { class: "form-submit" }, submit),
  );
}

function listen({ root, prompt, model }, { onSubmit, remember, onModel }) {
  root.addEventListener("submit", (event) => {
    event.preventDefault();
    onSubmit();
  });
  root.addEventListener("input", remember);
  model.addEventListener("change", onModel);
  // Ctrl+Enter and Cmd+Enter submit from within the prompt.
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) root.requestSubmit();
  });
}

function buildFields(cards) {
  const number = (attributes) =>
    element("input", { type: "number", inputmode: "decimal", autocomplete: "off", ...attributes });
  return {
    model: select(
      cards.map((card) => [card.id, card.id]),
      cards[0].id,
      { id: "model" },
    ),
    prompt: element("textarea", {
      id: "prompt",
      rows: 4,
      required: true,
      spellcheck: "true",
    }),
    negative: element("textarea", { id: "negative-prompt", rows: 2 }),
    width: number({ id: "width", placeholder: "Automatic" }),
    height: number({ id: "height", placeholder: "Automatic" }),
    steps: number({ id: "steps", step: 1 }),
    guidance: number({ id: "guidance", step: "any" }),
    seed: element("input", {
      type: "text",
      id: "seed",
      inputmode: "numeric",
      autocomplete: "off",
      placeholder: "Random",
    }),
    format: select(
      [
        ["png", "PNG"],
        ["jpeg", "JPEG"],
        ["webp", "WebP"],
      ],
      "png",
      { id: "output-format" },
    ),
  };
}

function applyLimits({ prompt, negative, width, height, steps, guidance }, card) {
  const limits = card.parameter_limits;
  prompt.placeholder = examplePrompt(card.id);
  const bound = (control, min, max, step) => {
    control.min = min;
    control.max = max;
    if (step) control.step = step;
    control.title = `From ${count(min)} to ${count(max)}${step > 1 ? `, a multiple of ${step}` : ""}`;
  };
  bound(width, limits.width_min, limits.width_max, limits.size_multiple_of);
  bound(height, limits.height_min, limits.height_max, limits.size_multiple_of);
  bound(steps, limits.steps_min, limits.steps_max);
  bound(guidance, limits.guidance_min, limits.guidance_max);
  prompt.maxLength = card.max_prompt_chars;
  negative.maxLength = card.max_prompt_chars;
}

function applyDefaults(fields, card) {
  for (const [name, value] of Object.entries(card.parameter_defaults)) {
    if (fields[name]) fields[name].value = value;
  }
}

// 53 random bits, the most that a JSON number holds exactly.
function randomSeed() {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return String(Math.min(SEED_MAX, (high & 0x1fffff) * 2 ** 32 + low));
}

const valuesOf = (fields) => Object.fromEntries(Object.entries(fields).map(([name, control]) => [name, control.value]));

function fillIn(fields, values) {
  for (const [name, control] of Object.entries(fields)) {
    if (values[name] !== undefined) control.value = values[name];
  }
}

function readDraft() {
  try {
    return JSON.parse(sessionStorage.getItem(DRAFT));
  } catch {
    return null;
  }
}

// Sends what was typed even if it breaks a rule: the worker's error is then shown at the field.
function requestOf({ model, prompt, negative, width, height, steps, guidance, seed, format }) {
  const body = { model: model.value, prompt: prompt.value, output_format: format.value };
  if (negative.value.trim() !== "") body.negative_prompt = negative.value;
  for (const [name, control] of Object.entries({ width, height, steps, guidance })) {
    const value = numberOf(control);
    if (value !== null) body[name] = value;
  }
  const seedText = seed.value.trim();
  if (seedText !== "") body.seed = /^\d{1,16}$/.test(seedText) ? Number(seedText) : seedText;
  return body;
}
