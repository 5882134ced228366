// Owns the places for images: files that are dropped, pasted or chosen, with their checks, and their small pictures.

import { element, setText, uniqueId } from "./dom.js";
import { field } from "./form.js";
import { icon } from "./icons.js";
import { IMAGE_KINDS, readImage } from "./image-files.js";
import { iconButton } from "./widgets.js";

// A place for the images of a role, which errors call `name`. `extra(image)` makes what stands beside each. `fit(max)` says
// how many it may have, `watch(act)` calls `act(images)` after every change, `settled()` waits for files that are still
// being read. Object URLs live until their image leaves, at the latest until `signal` is aborted.
export function dropZone({ role, name = role, label, hint, optional, signal, extra = () => null }) {
  const id = uniqueId(`${role}-image`);
  const input = element("input", { type: "file", class: "drop-input", id, accept: IMAGE_KINDS });
  const holder = field(name, label, input, { hint, optional });
  const words = element("span");
  const zone = element("div", { class: "drop-zone" }, icon("upload"), words);
  const list = element("ul", { class: "drop-images", "aria-label": label });
  const full = element("p", { class: "hint" });
  const told = element("p", { class: "visually-hidden", role: "status" });
  const items = new Map();
  const error = holder.querySelector(".field-error");
  const watchers = [];
  let images = [];
  let max = 1;
  let arriving = Promise.resolve();
  let arrivals = 0;
  error.setAttribute("aria-live", "polite");
  input.replaceWith(zone, list, full, told);
  zone.append(input);

  const show = () => {
    const isFull = max > 1 && images.length >= max;
    const isFocused = document.activeElement === input;
    showItems();
    list.hidden = images.length === 0;
    zone.hidden = isFull;
    setText(full, isFull ? `No more than ${max} images.` : "");
    full.hidden = !isFull;
    input.multiple = max > 1;
    setText(words, callOf(images.length, max));
    // The focus would be lost with the place that is hidden.
    if (isFull && isFocused) list.lastElementChild.querySelector("button").focus();
    for (const act of watchers) act(images);
  };
  // Those that stay are left as they are: one of them may have the focus.
  const showItems = () => {
    for (const [image, item] of items) {
      if (images.includes(image)) continue;
      item.remove();
      items.delete(image);
    }
    for (const image of images.filter((each) => !items.has(each))) {
      items.set(image, dropImage(image, extra(image), () => remove(image)));
      list.append(items.get(image));
    }
  };
  const keep = (kept) => {
    for (const image of images) if (!kept.includes(image)) URL.revokeObjectURL(image.address);
    images = kept;
  };
  const remove = (image) => {
    keep(images.filter((other) => other !== image));
    show();
    setText(told, `Removed ${image.name}`);
    input.focus();
  };
  const add = async (file) => {
    if (max > 1 && images.length >= max) throw new Error(`Takes at most ${max} images`);
    const image = await readImage(file);
    const others = max > 1 ? images : [];
    image.name = distinctName(file.name, others);
    keep([...others, image]);
    setText(told, `Added ${image.name}`);
    if (signal.aborted) keep([]);
  };
  const receive = async (files, replaces) => {
    setText(error, "");
    input.removeAttribute("aria-invalid");
    if (replaces) keep([]);
    try {
      for (const file of max > 1 ? files : files.slice(0, 1)) await add(file);
    } catch (problem) {
      setText(error, problem.message);
      input.setAttribute("aria-invalid", "true");
    }
    show();
  };
  // One after the other: two drops in a row must not pass each other.
  const take = (files, { replaces = false } = {}) => {
    if (files.length === 0) return arriving;
    arrivals += 1;
    arriving = arriving
      .then(() => receive(files, replaces))
      .finally(() => {
        arrivals -= 1;
      });
    return arriving;
  };

  listen({ zone, input }, take);
  signal.addEventListener("abort", () => keep([]));
  const fit = (next) => {
    max = next;
    keep(images.slice(0, max));
    show();
  };
  show();
  const watch = (act) => watchers.push(act);
  return {
    root: holder,
    role,
    take,
    fit,
    watch,
    focus: () => input.focus(),
    images: () => images,
    // Whether it has no image, and none is on its way.
    isEmpty: () => images.length === 0 && arrivals === 0,
    settled: () => arriving,
  };
}

// Browsers call every pasted image image.png: labels tell them apart.
function distinctName(name, images) {
  let wanted = name;
  for (let number = 2; images.some((image) => image.name === wanted); number += 1) wanted = `${name} (${number})`;
  return wanted;
}

function callOf(count, max) {
  if (count === 0) return max > 1 ? "Drop, paste or choose images" : "Drop, paste or choose an image";
  return max > 1 ? `Add another image (${count} of at most ${max})` : "Replace the image";
}

function listen({ zone, input }, take) {
  const mark = (isOver) => zone.classList.toggle("is-over", isOver);
  input.addEventListener("change", () => {
    take([...input.files]);
    // So that the same file can be chosen again.
    input.value = "";
  });
  input.addEventListener("dragenter", () => mark(true));
  input.addEventListener("dragleave", () => mark(false));
  zone.addEventListener("drop", (event) => {
    mark(false);
    event.preventDefault();
    // The page takes files that are dropped elsewhere.
    event.stopPropagation();
    take([...event.dataTransfer.files]);
  });
}

function dropImage({ name, address, width, height }, extra, onRemove) {
  return element(
    "li",
    { class: "drop-image" },
    element("img", { src: address, alt: "" }),
    element(
      "div",
      { class: "drop-image-text" },
      element("span", { class: "drop-image-name", title: name }, name),
      element("span", { class: "hint" }, `${width} × ${height} px`),
    ),
    iconButton(`Remove ${name}`, "close", onRemove),
    extra,
  );
}
