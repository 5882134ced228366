// Owns following a job to its end: by its events, or by polling where there are none.

import { jobs } from "./api.js";
import { isUnfinished } from "./job-view.js";

// Pause before a refused event stream is requested again.
const REOPEN_MS = 2000;

// Calls `onUpdate(job, preview)` for every update, where `preview` is a URL or undefined; at the end `onEnd(job)`, or
// `onProblem(error)` if the worker no longer knows the job. Calls nothing once the signal is aborted.
export function followJob(job, { signal, onUpdate, onEnd, onProblem }) {
  let now = job;
  let source = null;
  let timer = null;

  const update = (changes, preview) => {
    now = { ...now, ...changes };
    onUpdate(now, preview);
  };
  const open = () => {
    source = jobs.events(job.job_id);
    const on = (name, act) => source.addEventListener(name, ({ data }) => act(JSON.parse(data)));
    on("queued", ({ position, eta_seconds }) =>
      update({ status: "queued", queue_position: position, eta_seconds, progress: { ...now.progress, step: 0 } }),
    );
    on("step", ({ step, steps, eta_seconds, preview }) =>
      update({ status: "running", queue_position: 0, eta_seconds, progress: { step, steps } }, preview),
    );
    for (const end of ["succeeded", "failed", "canceled"]) {
      on(end, (ended) => {
        source.close();
        onEnd(ended);
      });
    }
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) ask();
    });
  };
  // The stream was refused without a reason.
  const ask = async () => {
    try {
      const answered = await jobs.show(job.job_id, signal);
      if (!isUnfinished(answered)) {
        onEnd(answered);
        return;
      }
      update(answered);
      timer = setTimeout(open, REOPEN_MS);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status === 0) timer = setTimeout(ask, REOPEN_MS);
      else onProblem(error);
    }
  };
  signal.addEventListener("abort", () => {
    source?.close();
    clearTimeout(timer);
  });
  open();
}
