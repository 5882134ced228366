// Owns the playground's stage: a running job, and how it ended.

import { element, replace, setText } from "./dom.js";
import { sentence } from "./format.js";
import { cancelButton, isUnfinished, progressText } from "./job-view.js";
import { shape, showResult } from "./playground-result.js";
import { button, emptyState, notice, statusBadge } from "./widgets.js";

// `show(job, preview)` shows a job's state and may be called repeatedly. A preview is a URL and stays until the next
// one. `release` frees what is shown. Of the actions, `sentWith(id)` returns what was sent with a job.
export function playgroundStage(actions) {
  const canvas = element("div", { class: "canvas" });
  const below = element("div", { class: "stage-below" });
  const root = element("section", { class: "card stage", "aria-label": "Result" }, canvas, below);
  let shown = null;
  let free = () => {};

  const release = () => {
    free();
    free = () => {};
  };
  const show = (job, preview) => {
    release();
    if (shown?.id !== job.job_id) shown = null;
    if (isUnfinished(job)) {
      shown ??= beginProgress(job, { canvas, below });
      shown.update(job, preview);
      return;
    }
    shown = null;
    const places = { canvas, below, line: endLine(job) };
    if (job.status === "succeeded") free = showResult(job, { ...places, given: actions.sentWith(job.job_id), actions });
    else showNothing(job, { ...places, actions });
  };
  replace(
    canvas,
    emptyState("sparkle", "No image yet", "Describe an image and press Generate. Previews appear here while it runs."),
  );
  return { root, show, release };
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

function endLine(job) {
  return element(
    "div",
    { class: "stage-line" },
    element("div", { class: "job-status", role: "status" }, statusBadge(job.status)),
    element("span", { class: "muted" }, progressText(job)),
  );
}

function showNothing(job, { canvas, below, line, actions }) {
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
