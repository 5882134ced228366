// Owns the tab that follows control images: as many as the model takes, each with its own settings.

import { element, setText } from "./dom.js";
import { controlImage } from "./playground-control-image.js";
import { countOf } from "./playground-modes.js";
import { button } from "./widgets.js";

// `watch(act)` calls `act(images)` after every change of the images, which are in the order of the request.
export function controlPanel({ signal }) {
  const list = element("div", { class: "form" });
  const addControl = button("Add a control image", { symbol: "plus", onClick: () => addOne() });
  const told = element("p", { class: "hint", role: "status", data: { testid: "control-count" } });
  const root = element("div", { class: "form" }, list, addControl, told);
  const watchers = [];
  let entries = [];
  let card = {};
  let max = 1;

  const images = () => entries.flatMap(({ zone }) => zone.images());
  const tellImages = () => {
    for (const act of watchers) act(images());
  };
  const show = () => {
    entries.forEach((entry, index) =>
      entry.entitle(max > 1 ? `Control image ${index + 1}` : "Control image", entries.length > 1),
    );
    addControl.hidden = entries.length >= max;
    setText(told, max > 1 ? `${entries.length} of at most ${max} control images` : "");
  };
  const add = () => {
    const entry = controlImage({ signal, onRemove: () => removeOne(entry) });
    entry.fit(card);
    entry.zone.watch(tellImages);
    entries.push(entry);
    list.append(entry.root);
    return entry;
  };
  const drop = (entry) => {
    entries = entries.filter((other) => other !== entry);
    entry.root.remove();
    entry.release();
  };
  const resize = (count) => {
    while (entries.length > count) drop(entries.at(-1));
    while (entries.length < count) add();
    show();
    tellImages();
  };
  // The focus goes where the next step is: to the new place, or to where one is added again.
  const addOne = () => {
    const entry = add();
    show();
    entry.zone.focus();
  };
  const removeOne = (entry) => {
    drop(entry);
    show();
    tellImages();
    addControl.focus();
  };

  const fit = (next) => {
    card = next;
    ({ max } = countOf(card, "control"));
    for (const entry of entries) entry.fit(card);
    resize(Math.max(1, Math.min(entries.length, max)));
  };
  const put = ({ images: earlier = [] }) => {
    const given = earlier.filter(({ role }) => role === "control");
    if (given.length > 0) resize(Math.max(1, Math.min(given.length, max)));
    entries.forEach((entry, index) => entry.put(given[index] ?? {}));
  };
  // Each file goes to a place without an image, or to a new one. A model that takes one image gets another.
  const take = (files) => {
    for (const file of files) {
      const free = entries.find(({ zone }) => zone.isEmpty());
      const entry = free ?? (max <= 1 ? entries[0] : entries.length < max ? add() : null);
      show();
      if (!entry) {
        setText(told, `The model takes at most ${max} control images: remove one first`);
        return;
      }
      entry.zone.take([file]);
    }
  };
  const read = () => {
    const reason = entries.length > 1 ? "Choose an image, or remove this control image" : "Choose an image";
    const empty = entries.filter(({ zone }) => zone.images().length === 0);
    return {
      images: entries.flatMap((entry) => entry.read()),
      fields: {},
      before: null,
      errors: empty.map(({ place }) => [place, reason]),
    };
  };
  const zones = () => entries.map(({ zone }) => zone);
  const watch = (act) => watchers.push(act);
  return { root, fit, enter: () => {}, put, take, read, zones, watch };
}
