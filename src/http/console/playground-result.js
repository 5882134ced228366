// Owns a finished image in the playground's stage: the image, the comparison with the one it was made of, and how to
// generate it again.

import { jobs } from "./api.js";
import { generateCommand } from "./curl.js";
import { element, replace } from "./dom.js";
import { downloadLink, parameterFacts, resultImage } from "./job-view.js";
import { compareView } from "./playground-compare.js";
import { MAP_TEXT } from "./playground-modes.js";
import { generateScript } from "./python.js";
import { button, codeBlock, linkButton, segments } from "./widgets.js";

// The canvas takes the image's shape at once, to avoid a layout shift later.
export function shape(canvas, { width, height }) {
  canvas.style.aspectRatio = `${width} / ${height}`;
  canvas.classList.toggle("is-tall", height > width);
}

// Shows a succeeded job below its `line`. `given` is what was sent with it, if this page sent it. Returns a function that
// frees the object URLs.
export function showResult(job, { canvas, below, line, given, actions }) {
  const { images = [], before = null } = given ?? {};
  const views = element("div", { class: "stage-views" });
  const links = new Map();
  let compare = null;
  let isReleased = false;
  const addressOf = (file) => {
    if (!links.has(file)) links.set(file, URL.createObjectURL(file));
    return links.get(file);
  };
  const onImage = (image) => {
    if (isReleased) return;
    shape(canvas, { width: image.naturalWidth, height: image.naturalHeight });
    const link = imageLink(job);
    const showAlone = () => replace(canvas, replace(link, image));
    if (!before) {
      showAlone();
      return;
    }
    compare = compareView({ before, after: image });
    const showBoth = () => {
      compare.root.prepend(image);
      replace(canvas, compare.root);
    };
    const choices = [
      ["compare", "Compare"],
      ["result", "Result"],
    ];
    replace(views, segments("View", choices, "compare", (view) => (view === "compare" ? showBoth() : showAlone())));
    showBoth();
  };
  const onGone = () => {
    if (isReleased) return;
    shape(canvas, job.parameters);
    replace(canvas, element("p", { class: "canvas-text" }, "The image has been deleted"));
  };

  views.hidden = !before;
  replace(below, line, views, resultParts(job, { images, addressOf, actions }));
  load(job).then(onImage, onGone);
  return () => {
    isReleased = true;
    compare?.release();
    for (const address of links.values()) URL.revokeObjectURL(address);
  };
}

// What is shown stays until the image is decoded. Fails if it has been deleted.
async function load(job) {
  const image = resultImage(job);
  image.dataset.testid = "result";
  await image.decode();
  return image;
}

function imageLink({ job_id: id }) {
  return element("a", {
    href: jobs.resultPath(id),
    target: "_blank",
    rel: "noopener",
    "aria-label": "Open the image in full size",
  });
}

function resultParts(job, { images, addressOf, actions }) {
  const { parameters } = job;
  const mask = images.find(({ role }) => role === "mask");
  const controls = images.filter(({ role }) => role === "control");
  const used = images.map(({ role, file, options }) => ({ role, ...options, file: file.name }));
  // A job's parameters are the fields of its request, with every default filled in.
  const body = images.length > 0 ? { ...parameters, images: used } : parameters;
  return [
    element("p", { class: "job-prompt" }, parameters.prompt),
    controls.map((image) => controlFigure(image, addressOf)),
    element(
      "div",
      { class: "row-buttons" },
      downloadLink(job),
      button("Edit this image", { symbol: "brush", onClick: () => actions.onEdit(job) }),
      button("Use this seed", { symbol: "dice", onClick: () => actions.onUseSeed(parameters.seed) }),
      button("Use these settings", { symbol: "edit", onClick: () => actions.onUseParameters(parameters) }),
      mask && linkButton("Download mask", addressOf(mask.file), { symbol: "download", download: mask.file.name }),
    ),
    parameterFacts(job),
    again("curl", "command", "playground-curl", generateCommand({ body })),
    again("Python", "script", "playground-python", generateScript({ body })),
  ];
}

function again(tool, what, testid, text) {
  return element(
    "details",
    { class: "more" },
    element("summary", null, `Generate it with ${tool}`),
    codeBlock(text, `${what} that generates this image`, { testid }),
  );
}

// The image as it was sent: the worker returns no maps.
function controlFigure({ file, options }, addressOf) {
  return element(
    "figure",
    { class: "control-figure", data: { testid: "control-image" } },
    element("img", { src: addressOf(file), alt: "The control image" }),
    element(
      "figcaption",
      { class: "hint" },
      element("span", { class: "line" }, file.name),
      MAP_TEXT[options.preprocess ?? "none"],
    ),
  );
}
