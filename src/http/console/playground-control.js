// Owns the tab that follows a control image: its ControlNet, how its map is made, and when and how strongly it acts.

import { element, replace } from "./dom.js";
import { field, select, slider } from "./form.js";
import { FILE_HINT } from "./image-files.js";
import { dropZone } from "./playground-drop.js";
import { MAP_TEXT, controlModesOf, countOf } from "./playground-modes.js";

const SCALE_MAX = 2;
const PREPROCESS_TEXT = { canny: "Edges (Canny)", depth: "Depth" };
export function controlPanel({ signal }) {
  const root = element("div", { class: "form" });
  const zone = dropZone({ role: "control", label: "Control image", hint: FILE_HINT, signal });
  const net = select([], "", { id: "controlnet" });
  const mode = select([], "", { id: "control-mode" });
  const preprocess = select([], "", { id: "preprocess" });
  const share = { min: 0, max: 1, step: 0.05 };
  const scale = slider("control.scale", "Scale", { min: 0, max: SCALE_MAX, step: 0.05, value: 1 });
  const start = slider("control.start", "Start", { ...share, max: 0.95, value: 0 });
  const end = slider("control.end", "End", { ...share, min: 0.05, value: 1 });
  const mapText = element("p", { class: "hint", role: "status", data: { testid: "map-text" } });
  const modeField = field("control.mode", "Kind of map", mode);
  const netFields = element(
    "div",
    { class: "form" },
    field("control.controlnet", "ControlNet", net),
    modeField,
    scale.root,
    element("div", { class: "field-grid" }, start.root, end.root),
    element("p", { class: "hint" }, "It acts between these shares of the steps."),
  );
  const preprocessField = field("control.preprocess", "Preprocess", preprocess);
  replace(root, zone.root, preprocessField, mapText, netFields);
  let nets = [];

  const tellMap = () => replace(mapText, MAP_TEXT[preprocess.value || "none"]);
  const netOf = () => nets.find(({ name }) => name === net.value);
  const fitModes = () => {
    const modes = controlModesOf(netOf());
    refill(
      mode,
      modes.map((name) => [name, name.replaceAll("_", " ")]),
    );
    modeField.hidden = modes.length === 0;
  };
  preprocess.addEventListener("change", tellMap);
  net.addEventListener("change", fitModes);

  const fit = (card) => {
    nets = card.controlnets ?? [];
    zone.fit(Math.min(1, countOf(card, "control").max));
    refill(net, nets.map(({ name }) => [name, name]));
    // A model that takes control images by itself has neither nets nor strengths.
    netFields.hidden = nets.length === 0;
    const kinds = card.preprocess ?? [];
    refill(preprocess, [["", "None: it is a map"], ...kinds.map((kind) => [kind, PREPROCESS_TEXT[kind] ?? kind])]);
    preprocessField.hidden = kinds.length === 0;
    fitModes();
    tellMap();
  };
  const put = ({ images = [] }) => {
    const given = images.find(({ role }) => role === "control") ?? {};
    if (nets.some(({ name }) => name === given.controlnet)) net.value = given.controlnet;
    fitModes();
    // The worker may say the number of a mode that has a name.
    if (given.mode !== undefined) mode.value = controlModesOf(netOf())[given.mode] ?? given.mode;
    preprocess.value = given.preprocess ?? "";
    tellMap();
    scale.put(given.scale ?? 1);
    start.put(given.start ?? 0);
    end.put(given.end ?? 1);
  };
  const optionsOf = () => {
    const options = preprocess.value ? { preprocess: preprocess.value } : {};
    if (nets.length === 0) return options;
    if (mode.value) options.mode = /^\d+$/.test(mode.value) ? Number(mode.value) : mode.value;
    return { controlnet: net.value, ...options, scale: scale.read(), start: start.read(), end: end.read() };
  };
  const read = () => {
    const images = zone.images().map(({ file }) => ({ role: "control", file, options: optionsOf() }));
    return { images, fields: {}, before: null, errors: images.length > 0 ? [] : [["control", "Choose an image"]] };
  };
  return { root, fit, enter: () => {}, put, read, zones: () => [zone] };
}

// Other options, and the same choice where it is still among them.
function refill(control, options) {
  const before = control.value;
  replace(
    control,
    options.map(([value, text]) => element("option", { value }, text)),
  );
  if (options.some(([value]) => value === before)) control.value = before;
}
