// Owns the places for images: files that are dropped, pasted or chosen, with their checks, and their small pictures.

import { element, replace, setText, uniqueId } from "./dom.js";
import { field } from "./form.js";
import { icon } from "./icons.js";
import { IMAGE_KINDS, readImage } from "./image-files.js";
import { iconButton } from "./widgets.js";

// A place for the images of a role. `extra(image)` makes what stands beside each. `fit(max)` says how many it may have,
// `watch(act)` calls `act(images)` after every change, `settled()` waits for files that are still being read. Object URLs
// live until their image leaves, at the latest until `signal` is aborted.
export function dropZone({ role, label, hint, optional, signal, extra = () => null }) {
  const id = uniqueId(`${role}-image`);
  const input = element("input", { type: "file", class: "drop-input", id, accept: IMAGE_KINDS });
  const holder = field(role, label, input, { hint, optional });
  const words = element("span");
  const zone = element("div", { class: "drop-zone" }, icon("upload"), words);
  const list = element("ul", { class: "drop-images", "aria-label": label });
  const error = holder.querySelector(".field-error");
  const watchers = [];
  let images = [];
  let max = 1;
  let arriving = Promise.resolve();
  error.setAttribute("aria-live", "polite");
  input.replaceWith(zone, list);
  zone.append(input);

  const show = () => {
    replace(
      list,
      images.map((image) => dropImage(image, extra(image), () => remove(image))),
    );
    list.hidden = images.length === 0;
    zone.hidden = max > 1 && images.length >= max;
    input.multiple = max > 1;
    setText(words, callOf(images.length, max));
    for (const act of watchers) act(images);
  };
  const keep = (kept) => {
    for (const image of images) if (!kept.includes(image)) URL.revokeObjectURL(image.address);
    images = kept;
  };
  const remove = (image) => {
    keep(images.filter((other) => other !== image));
    show();
    input.focus();
  };
  const add = async (file) => {
    if (max > 1 && images.length >= max) throw new Error(`Takes at most ${max} images`);
    const image = await readImage(file);
    keep(max > 1 ? [...images, image] : [image]);
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
    if (files.length > 0) arriving = arriving.then(() => receive(files, replaces));
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
  return { root: holder, role, take, fit, watch, images: () => images, settled: () => arriving };
}

function callOf(count, max) {
  if (count === 0) return max > 1 ? "Drop, paste or choose images" : "Drop, paste or choose an image";
  return max > 1 ? "Add another image" : "Replace the image";
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

function dropImage({ file, address, width, height }, extra, onRemove) {
  return element(
    "li",
    { class: "drop-image" },
    element("img", { src: address, alt: "" }),
    element(
      "div",
      { class: "drop-image-text" },
      element("span", { class: "drop-image-name" }, file.name),
      element("span", { class: "hint" }, `${width} × ${height} px`),
    ),
    iconButton(`Remove ${file.name}`, "close", onRemove),
    extra,
  );
}
