// Owns how a job is followed until it has ended: by its events, and by asking where there are none to be had.

import { jobs } from "./api.js";
import { isUnfinished } from "./job-view.js";

// Pause before events that were refused are asked for again.
const REOPEN_MS = 2000;

// Tells `onNews(job, preview)` whenever something is new, `preview` being an address or undefined; then `onEnd(job)`, or
// `onProblem(error)` where the worker knows nothing of it any more. Silent once the signal is aborted.
export function followJob(job, { signal, onNews, onEnd, onProblem }) {
  let now = job;
  let source = null;
  let timer = null;

  const tell = (changes, preview) => {
    now = { ...now, ...changes };
    onNews(now, preview);
  };
  const open = () => {
    source = jobs.events(job.job_id);
    const on = (name, act) => source.addEventListener(name, ({ data }) => act(JSON.parse(data)));
    on("queued", ({ position, eta_seconds }) =>
      tell({ status: "queued", queue_position: position, eta_seconds, progress: { ...now.progress, step: 0 } }),
    );
    on("step", ({ step, steps, eta_seconds, preview }) =>
      tell({ status: "running", queue_position: 0, eta_seconds, progress: { step, steps } }, preview),
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
  // The stream was refused, and does not say why.
  const ask = async () => {
    try {
      const answered = await jobs.show(job.job_id, signal);
      if (!isUnfinished(answered)) {
        onEnd(answered);
        return;
      }
      tell(answered);
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
