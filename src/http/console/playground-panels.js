// Owns the tabs of the playground's form: which images each takes, and their part of the request.

import { element, replace } from "./dom.js";
import { FILE_HINT } from "./image-files.js";
import { controlPanel } from "./playground-control.js";
import { dropZone } from "./playground-drop.js";
import { editPanel } from "./playground-edit.js";
import { inpaintPanel } from "./playground-inpaint.js";
import { MODES, countOf, modeOf, obstaclesOf } from "./playground-modes.js";
import { tabRow } from "./playground-tabs.js";

const NOTHING = { images: [], fields: {}, before: null, errors: [] };

// `fit(card)` leaves the tabs that a model serves, `put(parameters)` shows the tab of an earlier image, `take(files)`
// takes images that come from anywhere on the page, and returns whether a tab takes images; with `replaces` in place of
// those that are edited. `read()` returns the images `{ role, file, options, place? }`, other fields, the image to compare
// the result with, and errors as `[[field, reason], …]`. `onImage` is called when there is another image whose size the
// result may have, `isSized()` says whether there is one.
export function playgroundPanels({ signal, onImage }) {
  const source = dropZone({ role: "input", label: "Image", hint: FILE_HINT, signal });
  const panels = {
    generate: generatePanel(),
    edit: editPanel({ source, signal }),
    inpaint: inpaintPanel({ source }),
    control: controlPanel({ signal }),
  };
  const panel = element("div", { id: "playground-panel", role: "tabpanel" });
  const present = () => panels[tabs.chosen()];
  const enter = () => {
    present().enter();
    replace(panel, present().root);
  };
  const tabs = tabRow({ label: "What to do", tabs: MODES, panel, onChange: enter });
  tellOfNew([source, ...panels.edit.sized, panels.control], onImage);

  const fit = (card) => {
    source.fit(Math.max(1, countOf(card, "input").max));
    for (const each of Object.values(panels)) each.fit(card);
    tabs.fit(obstaclesOf(card));
    enter();
  };
  const put = (parameters) => {
    tabs.choose(modeOf(parameters));
    present().put(parameters);
  };
  const take = (files, { replaces = false } = {}) => {
    if (present().zones().length === 0 || (replaces && tabs.chosen() === "control")) tabs.choose("edit");
    const [zone] = present().zones();
    if (present().take) present().take(files);
    else zone?.take(files, { replaces });
    return zone !== undefined;
  };
  const read = async () => {
    await Promise.all(present().zones().map((zone) => zone.settled()));
    return present().read();
  };
  const isSized = () => present().zones().some((zone) => zone.role !== "style" && zone.images().length > 0);
  return { tabs: tabs.root, panel, fit, put, take, read, isSized };
}

function generatePanel() {
  const root = element("p", { class: "hint" }, "From words alone. The other tabs begin with images.");
  const nothing = () => {};
  return { root, fit: nothing, enter: nothing, put: nothing, read: () => NOTHING, zones: () => [] };
}

// Tells when the first image of a place, or of several, is another one.
function tellOfNew(places, onImage) {
  for (const { watch } of places) {
    let before = null;
    watch(([first = null]) => {
      if (first && first !== before) onImage();
      before = first;
    });
  }
}
