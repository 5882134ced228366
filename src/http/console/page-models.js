// Owns the page of models: the limits of each, and whether it is ready.

import { models } from "./api.js";
import { element, replace } from "./dom.js";
import { count, decimal, words } from "./format.js";
import { emptyState, facts, linkButton, modelState, pageHead, skeleton } from "./widgets.js";

export async function showModels({ main, signal }) {
  const place = element("div", { class: "columns" }, skeleton(6));
  replace(main, pageHead("Models", "The models this worker serves, with their defaults and limits."), place);
  const [cards, runtime] = await Promise.all([models.cards(signal), models.runtime(signal)]);
  if (cards.length === 0) {
    replace(place, emptyState("models", "No models", "This worker has no models."));
    return;
  }
  const stateOf = new Map(runtime.map((state) => [state.id, state]));
  replace(
    place,
    cards.map((model) => modelCard(model, stateOf.get(model.id))),
  );
}

function modelCard(model, state) {
  const { parameter_defaults: defaults, parameter_limits: limits } = model;
  const megapixels = decimal(limits.pixels_max / 1e6);
  return element(
    "section",
    { class: "card model-card" },
    element(
      "div",
      { class: "card-head" },
      element("h2", { class: "card-title" }, model.id),
      state && modelState(state),
    ),
    facts([
      ["Replicas", state && `${state.ready_replicas} ready of ${state.desired_replicas}`],
      ["Precision", state?.precision && `${state.precision}, lossy`],
      ["Default size", `${defaults.width} × ${defaults.height}`],
      ["Default steps", count(defaults.steps)],
      ["Default guidance", decimal(defaults.guidance)],
    ]),
    element("h3", { class: "card-subtitle" }, "Limits"),
    facts([
      ["Width", `${limits.width_min} to ${limits.width_max} px`],
      ["Height", `${limits.height_min} to ${limits.height_max} px`],
      ["Size", `Multiples of ${limits.size_multiple_of}, at most ${megapixels} megapixels`],
      ["Steps", `${limits.steps_min} to ${limits.steps_max}`],
      ["Guidance", `${decimal(limits.guidance_min)} to ${decimal(limits.guidance_max)}`],
      ["Prompt", `Up to ${count(model.max_prompt_chars)} characters`],
      ["Images", imagesText(model)],
      ["ControlNets", model.controlnets?.length > 0 && model.controlnets.map(({ name }) => name).join(", ")],
    ]),
    state?.available &&
      element(
        "div",
        { class: "card-foot" },
        linkButton("Open in playground", `#/playground?model=${encodeURIComponent(model.id)}`, { symbol: "sparkle" }),
      ),
  );
}

// How many images a request has, by their roles.
function imagesText({ images = {} }) {
  const texts = Object.entries(images)
    .filter(([, { max }]) => max > 0)
    .map(([role, { min, max }]) => `${words(role)}: ${min === max ? min : `${min} to ${max}`}`);
  return texts.length > 0 ? texts.map((text) => element("span", { class: "line" }, text)) : "None";
}
