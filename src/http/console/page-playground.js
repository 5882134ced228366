// Owns the playground: a form on one side, the image that comes of it on the other, earlier ones below.

import { jobs, models } from "./api.js";
import { element, replace } from "./dom.js";
import { clearErrors, showProblem } from "./form.js";
import { followJob } from "./job-events.js";
import { isUnfinished } from "./job-view.js";
import { playgroundForm } from "./playground-form.js";
import { playgroundHistory } from "./playground-history.js";
import { playgroundStage } from "./playground-stage.js";
import { toastProblem } from "./toast.js";
import { emptyState, pageHead, skeleton, whileBusy } from "./widgets.js";

const CURRENT_JOB = "fluxserve.playground.job";

export async function showPlayground({ main, signal, query }) {
  const place = element("div", { class: "playground" }, skeleton(8));
  replace(main, pageHead("Playground", "Try a prompt. Images drawn here need no key and count for none."), place);
  const [cards, runtime] = await Promise.all([models.cards(signal), models.runtime(signal)]);
  const served = cards.filter((card) => runtime.some((state) => state.id === card.id && state.desired_replicas > 0));
  const offered = served.length > 0 ? served : cards;
  if (offered.length === 0) {
    replace(
      place,
      emptyState("playground", "No model", "This worker knows no model, so there is nothing to draw with."),
    );
    return;
  }
  buildPlayground({ place, signal, offered, chosen: query.get("model") });
}

function buildPlayground({ place, signal, offered, chosen }) {
  let watching = null;
  const form = playgroundForm({ cards: offered, chosen, onSubmit: () => draw() });
  const stage = playgroundStage({ onUseSeed: form.useSeed, onUseParameters: form.useParameters });
  const history = playgroundHistory({ signal, onChoose: (job) => watch(job) });

  // Shows a job, and follows it until it has ended or another is to be shown.
  const watch = (job) => {
    watching?.abort();
    watching = new AbortController();
    const { signal: mine } = watching;
    signal.addEventListener("abort", () => watching.abort(), { signal: mine });
    sessionStorage.setItem(CURRENT_JOB, job.job_id);
    history.mark(job.job_id);
    stage.show(job);
    form.setDrawing(isUnfinished(job));
    if (isUnfinished(job)) followJob(job, { signal: mine, onNews: stage.show, onEnd, onProblem });
  };

  const onEnd = async (job) => {
    watching.abort();
    stage.show(job);
    form.setDrawing(false);
    await history.reload();
    history.mark(job.job_id);
  };

  const onProblem = (error) => {
    watching.abort();
    form.setDrawing(false);
    toastProblem(error);
  };

  const draw = async () => {
    clearErrors(form.root);
    try {
      const job = await whileBusy(form.submit, () => jobs.draw(form.read()));
      // Some answers to a new job are short: how it stands is asked for at once.
      watch(job.parameters ? job : await jobs.show(job.job_id, signal));
      // Where the stage is below the form, it is what is of interest now.
      if (matchMedia("(max-width: 60rem)").matches) stage.root.scrollIntoView({ block: "start" });
    } catch (error) {
      if (error.name !== "AbortError") showProblem(form.root, error);
    }
  };

  replace(place, form.root, element("div", { class: "playground-side" }, stage.root, history.root));
  resume(watch, signal);
  history.reload();
}

// Shows again what was shown before another page was, or what was still being drawn.
async function resume(watch, signal) {
  const id = sessionStorage.getItem(CURRENT_JOB);
  if (!id) return;
  try {
    watch(await jobs.show(id, signal));
  } catch {
    sessionStorage.removeItem(CURRENT_JOB);
  }
}
