// Owns one control image of the form: its file, how its map is made, and the ControlNet that reads it.

import { element, replace, setText, uniqueId } from "./dom.js";
import { field, select, slider } from "./form.js";
import { FILE_HINT } from "./image-files.js";
import { dropZone } from "./playground-drop.js";
import { MAP_TEXT, controlModesOf, countOf } from "./playground-modes.js";
import { iconButton } from "./widgets.js";

const SCALE_MAX = 2;
const PREPROCESS_TEXT = { canny: "Edges (Canny)", depth: "Depth" };

// `place` begins the names of its fields. `entitle(name, isRemovable)` says which one it is, `put(options)` sets what an
// earlier request said of its image, `read()` returns its part of the request, `release()` frees its picture.
export function controlImage({ signal, onRemove }) {
  const place = uniqueId("control");
  const leaving = new AbortController();
  signal.addEventListener("abort", () => leaving.abort(), { signal: leaving.signal });
  const zone = dropZone({ role: "control", name: place, label: "Image", hint: FILE_HINT, signal: leaving.signal });
  const preprocess = select([], "");
  const preprocessField = field(`${place}.preprocess`, "Preprocess", preprocess);
  const mapText = element("p", { class: "hint", role: "status", data: { testid: "map-text" } });
  const net = netFields(place);
  const title = element("p", { class: "control-title", id: uniqueId("control-title") });
  const remove = iconButton("Remove", "trash", onRemove);
  const root = element(
    "div",
    { class: "form control-entry", role: "group", "aria-labelledby": title.id, data: { testid: "control-entry" } },
    element("div", { class: "control-head" }, title, remove),
    zone.root,
    preprocessField,
    mapText,
    net.root,
  );

  const tellMap = () => setText(mapText, MAP_TEXT[preprocess.value || "none"]);
  preprocess.addEventListener("change", tellMap);

  const entitle = (name, isRemovable) => {
    setText(title, name);
    const label = `Remove ${name.toLowerCase()}`;
    remove.setAttribute("aria-label", label);
    remove.title = label;
    remove.hidden = !isRemovable;
  };
  const fit = (card) => {
    zone.fit(Math.min(1, countOf(card, "control").max));
    net.fit(card.controlnets ?? []);
    const kinds = card.preprocess ?? [];
    refill(preprocess, [["", "None: it is a map"], ...kinds.map((kind) => [kind, PREPROCESS_TEXT[kind] ?? kind])]);
    preprocessField.hidden = kinds.length === 0;
    tellMap();
  };
  const put = (options) => {
    net.put(options);
    preprocess.value = options.preprocess ?? "";
    // The model at hand may not make such maps.
    if (preprocess.selectedIndex < 0) preprocess.value = "";
    tellMap();
  };
  const read = () => {
    const options = { ...(preprocess.value && { preprocess: preprocess.value }), ...net.read() };
    return zone.images().map(({ file }) => ({ role: "control", place, file, options }));
  };
  return { root, place, zone, entitle, fit, put, read, release: () => leaving.abort() };
}

// The fields of a ControlNet: its name, the kind of map, when and how strongly it acts. A model that takes control images
// by itself has none of them.
function netFields(place) {
  const net = select([], "");
  const mode = select([], "");
  const modeField = field(`${place}.mode`, "Kind of map", mode);
  const share = { min: 0, max: 1, step: 0.05 };
  const scale = slider(`${place}.scale`, "Scale", { min: 0, max: SCALE_MAX, step: 0.05, value: 1 });
  const start = slider(`${place}.start`, "Start", { ...share, max: 0.95, value: 0 });
  const end = slider(`${place}.end`, "End", { ...share, min: 0.05, value: 1 });
  const root = element(
    "div",
    { class: "form" },
    field(`${place}.controlnet`, "ControlNet", net),
    modeField,
    scale.root,
    element("div", { class: "field-grid" }, start.root, end.root),
    element("p", { class: "hint" }, "It acts between these shares of the steps."),
  );
  let nets = [];

  const modesOfChosen = () => controlModesOf(nets.find(({ name }) => name === net.value));
  const fitModes = () => {
    const modes = modesOfChosen();
    refill(
      mode,
      modes.map((name) => [name, name.replaceAll("_", " ")]),
    );
    modeField.hidden = modes.length === 0;
  };
  net.addEventListener("change", fitModes);

  const fit = (next) => {
    nets = next;
    refill(
      net,
      nets.map(({ name }) => [name, name]),
    );
    root.hidden = nets.length === 0;
    fitModes();
  };
  const put = (options) => {
    if (nets.some(({ name }) => name === options.controlnet)) net.value = options.controlnet;
    fitModes();
    // The worker may say the number of a mode that has a name.
    const kind = modesOfChosen()[options.mode] ?? options.mode;
    if (modesOfChosen().includes(kind)) mode.value = kind;
    scale.put(options.scale ?? 1);
    start.put(options.start ?? 0);
    end.put(options.end ?? 1);
  };
  const read = () => {
    if (nets.length === 0) return {};
    const kind = mode.value && { mode: /^\d+$/.test(mode.value) ? Number(mode.value) : mode.value };
    return { controlnet: net.value, ...kind, scale: scale.read(), start: start.read(), end: end.read() };
  };
  return { root, fit, put, read };
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
