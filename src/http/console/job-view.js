// Owns how a job is shown: its image, its parameters, its detail window.

import { jobs } from "./api.js";
import { openDialog } from "./dialog.js";
import { element, replace } from "./dom.js";
import { decimal, duration, exactMoment, jobSeconds, plural, sentence, words } from "./format.js";
import { repeat } from "./router.js";
import { toastDone, toastProblem } from "./toast.js";
import { fileName } from "./curl.js";
import { button, copyButton, facts, linkButton, notice, skeleton, statusBadge, time, whileBusy } from "./widgets.js";

const REFRESH_MS = 1000;

export const isUnfinished = (job) => job.status === "queued" || job.status === "running";
export const sizeText = ({ width, height }) => `${width} × ${height}`;
export const PLAYGROUND = "Playground";

// The job's progress in a few words.
export function progressText(job) {
  if (job.status === "queued") return queueText(job);
  if (job.status === "running")
    return job.progress.step > 0 ? `Step ${job.progress.step} of ${job.progress.steps}` : "Encoding the prompt";
  const seconds = jobSeconds(job);
  return seconds === null ? "" : `Took ${duration(seconds)}`;
}

function queueText({ queue_position: position, eta_seconds: eta }) {
  const place = position === null || position === undefined
      ? "Queued"
      : position <= 1
        ? "Next in the queue"
        : `Position ${position} in the queue`;
  return eta ? `${place}, about ${duration(eta)}` : place;
}

// The image of a succeeded job. Results are deleted after a day; then a text takes its place.
export function resultImage(job, { lazy = false, alt = job.parameters.prompt } = {}) {
  const { width, height } = job.parameters;
  const image = element("img", {
    src: jobs.resultPath(job.job_id),
    alt,
    width,
    height,
    loading: lazy ? "lazy" : null,
    decoding: "async",
  });
  image.addEventListener("error", () =>
    image.replaceWith(element("span", { class: "no-image", title: "The image has been deleted" }, "Deleted")),
  );
  return image;
}

export function downloadLink(job) {
  const { seed, output_format: format } = job.parameters;
  return linkButton("Download", jobs.resultPath(job.job_id), {
    symbol: "download",
    download: fileName(`flux-${seed}`, format),
  });
}

export function parameterFacts({ parameters }) {
  return facts([
    ["Model", parameters.model],
    ["Size", `${sizeText(parameters)} px`],
    ["Steps", parameters.steps],
    ["Guidance", decimal(parameters.guidance)],
    [
      "Seed",
      element(
        "span",
        { class: "with-button" },
        element("code", { data: { testid: "seed" } }, parameters.seed),
        copyButton(String(parameters.seed), "Copy", { "aria-label": "Copy seed" }),
      ),
    ],
    ["Format", parameters.output_format.toUpperCase()],
    ["Negative prompt", parameters.negative_prompt],
    ["Images", imageTexts(parameters)],
    ["Around the mask", Number.isInteger(parameters.mask_padding) && `${parameters.mask_padding} px`],
    ["Strength", parameters.strength && decimal(parameters.strength)],
    ["LoRAs", parameters.loras?.map(loraText)],
    ["Cache", parameters.cache && `First block, threshold ${parameters.cache_threshold}`],
  ]);
}

// The images of a job: each by its role, with what else was said of it. Old jobs only know how many there were.
function imageTexts({ images, input_images: inputs }) {
  if (!images) return inputs && plural(inputs, "input image");
  const texts = images.map(({ role, ...options }) =>
    [words(role), ...Object.entries(options).map(([name, value]) => `${name} ${value}`)].join(", "),
  );
  return texts.length > 0 && texts.map((text) => element("span", { class: "line" }, text));
}

// A LoRA by the beginning of its id, which is that of its file, and its strength.
const loraText = ({ id, scale }) =>
  element("span", { class: "line" }, element("code", { title: id }, id.slice(0, 12)), ` × ${scale}`);

// Opens a window with everything about a job, and updates it until the job ends. `keyName` maps a key's id to its name.
export function openJob(id, { keyName, signal, onChange, onClose }) {
  const place = element("div", { class: "job-detail" }, skeleton(8));
  const closing = new AbortController();
  const close = () => closing.abort();
  signal.addEventListener("abort", close, { signal: closing.signal });
  openDialog({
    title: "Job",
    wide: true,
    testid: "job-dialog",
    body: place,
    onClose: () => {
      close();
      onClose?.();
    },
  });
  let shown = "";
  const refresh = async () => {
    try {
      const job = await jobs.show(id, closing.signal);
      // Rendered again only on a change, to keep a selection or an open image.
      const asText = JSON.stringify(job, (name, value) => (name.endsWith("_url") ? undefined : value));
      if (asText !== shown) {
        shown = asText;
        replace(place, jobDetail(job, keyName, refresh));
        onChange?.(job);
      }
      if (!isUnfinished(job)) close();
    } catch (error) {
      if (error.name === "AbortError") return;
      close();
      replace(place, notice("bad", element("p", null, error.message)));
    }
  };
  repeat(refresh, REFRESH_MS, closing.signal);
}

function jobDetail(job, keyName, refresh) {
  const moment = (iso) => iso && time(iso, exactMoment);
  return [
    element("div", { class: "job-image" }, jobImage(job)),
    element(
      "div",
      { class: "stack-small" },
      element(
        "div",
        { class: "job-status" },
        statusBadge(job.status),
        element("span", { class: "muted" }, progressText(job)),
      ),
      job.error &&
        notice(
          "bad",
          element("p", null, sentence(job.error.reason)),
          element("p", { class: "request-id" }, job.error.code),
        ),
      element("p", { class: "job-prompt" }, job.parameters.prompt),
      (job.status === "succeeded" || isUnfinished(job)) &&
        element(
          "div",
          { class: "row-buttons" },
          job.status === "succeeded" ? downloadLink(job) : cancelButton(job, refresh),
        ),
      parameterFacts(job),
      facts([
        ["Requested by", keyName(job.key_id)],
        ["Created", moment(job.created_at)],
        ["Started", moment(job.started_at)],
        ["Finished", moment(job.finished_at)],
        ["Job", element("code", null, job.job_id)],
      ]),
    ),
  ];
}

function jobImage(job) {
  if (job.status === "succeeded") return resultImage(job);
  if (!isUnfinished(job)) return element("p", { class: "muted" }, "No image");
  return element("progress", {
    class: "bar",
    max: job.progress.steps,
    value: job.progress.step,
    "aria-label": "Completed steps",
  });
}

export function cancelButton(job, onDone) {
  const control = button("Cancel job", { kind: "danger-quiet", symbol: "stop", data: { testid: "cancel-job" } });
  control.addEventListener("click", async () => {
    try {
      const canceled = await whileBusy(control, () => jobs.cancel(job.job_id));
      if (canceled.status === "canceled") toastDone("Job canceled.");
      await onDone();
    } catch (error) {
      toastProblem(error);
    }
  });
  return control;
}
