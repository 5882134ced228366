// Owns the playground's stage: a job while it is drawn, and its image.

import { jobs } from "./api.js";
import { drawCommand } from "./curl.js";
import { element, replace, setText } from "./dom.js";
import { sentence } from "./format.js";
import { cancelButton, downloadLink, isUnfinished, parameterFacts, progressText, resultImage } from "./job-view.js";
import { button, codeBlock, emptyState, notice, statusBadge } from "./widgets.js";

// `show(job, preview)` shows how a job stands; it may be called over and over with the same job. A preview is an address,
// and stays until there is another one.
export function playgroundStage(uses) {
  const canvas = element("div", { class: "canvas" });
  const below = element("div", { class: "stage-below" });
  const root = element("section", { class: "card stage", "aria-label": "Result" }, canvas, below);
  let shown = null;
  let endShown = null;

  const show = (job, preview) => {
    if (shown?.id !== job.job_id) shown = null;
    if (isUnfinished(job)) {
      endShown = null;
      shown ??= beginProgress(job, { canvas, below });
      shown.update(job, preview);
      return;
    }
    shown = null;
    endShown = job.job_id;
    showEnd(job, { canvas, below, uses, isStillShown: () => endShown === job.job_id });
  };
  replace(
    canvas,
    emptyState("sparkle", "Nothing drawn yet", "Describe an image and press Draw. You can watch it take shape here."),
  );
  return { root, show };
}

// The canvas takes the image's shape at once, so that nothing jumps when it comes.
function shape(canvas, { width, height }) {
  canvas.style.aspectRatio = `${width} / ${height}`;
  canvas.classList.toggle("is-tall", height > width);
}

function beginProgress(job, { canvas, below }) {
  const image = element("img", {
    class: "preview",
    alt: "Preview of the image while it is drawn",
    hidden: true,
    data: { testid: "preview" },
  });
  const waiting = element("div", { class: "canvas-waiting" });
  const badgePlace = element("span");
  const words = element("span", { class: "muted", data: { testid: "progress-text" } });
  const bar = element("progress", {
    class: "bar",
    max: job.progress.steps,
    "aria-label": "Steps done",
    data: { testid: "progress" },
  });
  let statusShown = null;
  shape(canvas, job.parameters);
  replace(canvas, waiting, image);
  replace(
    below,
    element(
      "div",
      { class: "stage-line" },
      element("div", { class: "job-status", role: "status" }, badgePlace),
      words,
      cancelButton(job, () => {}),
    ),
    bar,
  );

  const update = (now, preview) => {
    if (statusShown !== now.status) replace(badgePlace, statusBadge(now.status));
    statusShown = now.status;
    setText(words, progressText(now));
    bar.value = now.progress.step;
    // Sharper with every step.
    image.dataset.done = String(Math.min(4, Math.floor((now.progress.step / now.progress.steps) * 5)));
    if (!preview) return;
    image.src = preview;
    image.hidden = false;
  };
  return { id: job.job_id, update };
}

function showEnd(job, { canvas, below, uses, isStillShown }) {
  const line = element(
    "div",
    { class: "stage-line" },
    element("div", { class: "job-status", role: "status" }, statusBadge(job.status)),
    element("span", { class: "muted" }, progressText(job)),
  );
  if (job.status === "succeeded") {
    showImage(job, canvas, isStillShown);
    replace(below, line, resultParts(job, uses));
    return;
  }
  shape(canvas, job.parameters);
  replace(canvas, element("p", { class: "canvas-text" }, job.status === "canceled" ? "Canceled" : "No image"));
  replace(
    below,
    line,
    job.error &&
      notice(
        "bad",
        element("p", null, sentence(job.error.reason)),
        element("p", { class: "request-id" }, `${job.error.code}, ${job.job_id}`),
      ),
    element("p", { class: "job-prompt" }, job.parameters.prompt),
    element(
      "div",
      { class: "row-buttons" },
      button("Use these settings", { symbol: "edit", onClick: () => uses.onUseParameters(job.parameters) }),
    ),
  );
}

// The preview stays until the image can take its place.
async function showImage(job, canvas, isStillShown) {
  const image = resultImage(job);
  image.dataset.testid = "result";
  try {
    await image.decode();
  } catch {
    // It is no longer kept, and says so itself.
  }
  if (!isStillShown()) return;
  shape(canvas, job.parameters);
  const link = element(
    "a",
    {
      href: jobs.resultPath(job.job_id),
      target: "_blank",
      rel: "noopener",
      "aria-label": "Open the image in full size",
    },
    image,
  );
  replace(
    canvas,
    image.complete && image.naturalWidth > 0
      ? link
      : element("p", { class: "canvas-text" }, "The image is no longer kept"),
  );
}

function resultParts(job, uses) {
  const { parameters } = job;
  // What a job says of itself are the fields of the request, with every default filled in.
  const command = drawCommand({ body: parameters });
  return [
    element("p", { class: "job-prompt" }, parameters.prompt),
    element(
      "div",
      { class: "row-buttons" },
      downloadLink(job),
      button("Use this seed", { symbol: "dice", onClick: () => uses.onUseSeed(parameters.seed) }),
      button("Use these settings", { symbol: "edit", onClick: () => uses.onUseParameters(parameters) }),
    ),
    parameterFacts(job),
    element(
      "details",
      { class: "more" },
      element("summary", null, "The same with curl"),
      codeBlock(command, "command that draws this image", { testid: "playground-curl" }),
    ),
  ];
}
