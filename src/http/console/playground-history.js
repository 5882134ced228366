// Owns the strip of images that were generated in the playground.

import { jobs } from "./api.js";
import { element, replace } from "./dom.js";
import { cut } from "./format.js";
import { resultImage } from "./job-view.js";

const IMAGES_MAX = 24;
const LABEL_CHARACTERS = 80;

export function playgroundHistory({ signal, onChoose }) {
  const strip = element("ul", { class: "strip" });
  const root = element(
    "section",
    { class: "history", "aria-label": "Earlier images" },
    element("h2", { class: "card-title" }, "Earlier images"),
    strip,
  );
  root.hidden = true;
  let marked = null;

  const mark = (id) => {
    marked = id;
    for (const control of strip.querySelectorAll("button"))
      control.setAttribute("aria-pressed", String(control.dataset.jobId === id));
  };
  const entry = (job) =>
    element(
      "li",
      null,
      element(
        "button",
        {
          type: "button",
          class: "strip-image",
          "aria-label": `Show: ${cut(job.parameters.prompt, LABEL_CHARACTERS)}`,
          data: { jobId: job.job_id },
          on: { click: () => onChoose(job) },
        },
        resultImage(job, { lazy: true, alt: "" }),
      ),
    );
  const reload = async () => {
    try {
      const page = await jobs.list({ key_id: "playground", status: "succeeded", limit: IMAGES_MAX }, signal);
      root.hidden = page.data.length === 0;
      replace(strip, page.data.map(entry));
      mark(marked);
    } catch {
      // The strip is a convenience: problems with the worker show at the form.
    }
  };
  return { root, reload, mark };
}
