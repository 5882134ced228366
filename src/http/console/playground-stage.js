// Owns the playground's stage: a running job, and its image.

import { jobs } from "./api.js";
import { generateCommand } from "./curl.js";
import { element, replace, setText } from "./dom.js";
import { sentence } from "./format.js";
import { cancelButton, downloadLink, isUnfinished, parameterFacts, progressText, resultImage } from "./job-view.js";
import { button, codeBlock, emptyState, notice, statusBadge } from "./widgets.js";

// `show(job, preview)` shows a job's state and may be called repeatedly. A preview is a URL and stays until the next
// one.
export function playgroundStage(actions) {
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
    showEnd(job, { canvas, below, actions, isStillShown: () => endShown === job.job_id });
  };
  replace(
    canvas,
    emptyState("sparkle", "No image yet", "Describe an image and press Generate. Previews appear here while it runs."),
  );
  return { root, show };
}

// The canvas takes the image's shape at once, to avoid a layout shift later.
function shape(canvas, { width, height }) {
  canvas.style.aspectRatio = `${width} / ${height}`;
  canvas.classList.toggle("is-tall", height > width);
}

function beginProgress(job, { canvas, below }) {
  const image = element("img", {
    class: "preview",
    alt: "Preview of the image while it is generated",
    hidden: true,
    data: { testid: "preview" },
  });
  const waiting = element("div", { class: "canvas-waiting" });
  const badgePlace = element("span");
  const words = element("span", { class: "muted", data: { testid: "progress-text" } });
  const bar = element("progress", {
    class: "bar",
    max: job.progress.steps,
    "aria-label": "Completed steps",
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

function showEnd(job, { canvas, below, actions, isStillShown }) {
  const line = element(
    "div",
    { class: "stage-line" },
    element("div", { class: "job-status", role: "status" }, statusBadge(job.status)),
    element("span", { class: "muted" }, progressText(job)),
  );
  if (job.status === "succeeded") {
    showImage(job, canvas, isStillShown);
    replace(below, line, resultParts(job, actions));
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
      button("Use these settings", { symbol: "edit", onClick: () => actions.onUseParameters(job.parameters) }),
    ),
  );
}

// The preview stays until the image is decoded.
async function showImage(job, canvas, isStillShown) {
  const image = resultImage(job);
  image.dataset.testid = "result";
  try {
    await image.decode();
  } catch {
    // The image has been deleted; its replacement says so.
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
      : element("p", { class: "canvas-text" }, "The image has been deleted"),
  );
}

function resultParts(job, actions) {
  const { parameters } = job;
  // A job's parameters are the fields of its request, with every default filled in.
  const command = generateCommand({ body: parameters });
  return [
    element("p", { class: "job-prompt" }, parameters.prompt),
    element(
      "div",
      { class: "row-buttons" },
      downloadLink(job),
      button("Use this seed", { symbol: "dice", onClick: () => actions.onUseSeed(parameters.seed) }),
      button("Use these settings", { symbol: "edit", onClick: () => actions.onUseParameters(parameters) }),
    ),
    parameterFacts(job),
    element(
      "details",
      { class: "more" },
      element("summary", null, "Generate it with curl"),
      codeBlock(command, "command that generates this image", { testid: "playground-curl" }),
    ),
  ];
}
