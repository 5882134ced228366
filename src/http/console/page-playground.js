// Owns the playground: a form on one side, the generated image on the other, earlier images below.

import { jobs, loras, models } from "./api.js";
import { fileName } from "./curl.js";
import { isDialogOpen } from "./dialog.js";
import { element, replace } from "./dom.js";
import { clearErrors, showErrors, showProblem } from "./form.js";
import { followJob } from "./job-events.js";
import { isUnfinished } from "./job-view.js";
import { playgroundForm } from "./playground-form.js";
import { playgroundHistory } from "./playground-history.js";
import { playgroundStage } from "./playground-stage.js";
import { toastProblem } from "./toast.js";
import { emptyState, pageHead, skeleton, whileBusy } from "./widgets.js";

const CURRENT_JOB = "fluxserve.playground.job";
// Jobs whose images are kept, to compare and to copy their names.
const KEPT_MAX = 12;

export async function showPlayground({ main, signal, query }) {
  const place = element("div", { class: "playground" }, skeleton(8));
  replace(main, pageHead("Playground", "Try a prompt. Images generated here need no API key and count against no key's limits."), place);
  const [cards, runtime, adapters] = await Promise.all([
    models.cards(signal),
    models.runtime(signal),
    loras.list(signal),
  ]);
  const served = cards.filter((card) => runtime.some((state) => state.id === card.id && state.desired_replicas > 0));
  const offered = served.length > 0 ? served : cards;
  if (offered.length === 0) {
    replace(
      place,
      emptyState("playground", "No models", "This worker has no model to generate images with."),
    );
    return;
  }
  buildPlayground({ place, signal, offered, adapters, chosen: query.get("model") });
}

function buildPlayground({ place, signal, offered, adapters, chosen }) {
  let watching = null;
  const form = playgroundForm({ cards: offered, loras: adapters, chosen, signal, onSubmit: () => generate() });
  const sent = sentImages();
  const stage = playgroundStage({
    onUseSeed: form.useSeed,
    onUseParameters: form.useParameters,
    onEdit: (job) => editResult(job, form),
    sentWith: sent.of,
  });
  const history = playgroundHistory({ signal, onChoose: (job) => watch(job) });

  // Shows a job, and follows it until it ends or another one is shown.
  const watch = (job) => {
    watching?.abort();
    watching = new AbortController();
    const { signal: mine } = watching;
    signal.addEventListener("abort", () => watching.abort(), { signal: mine });
    sessionStorage.setItem(CURRENT_JOB, job.job_id);
    history.mark(job.job_id);
    stage.show(job);
    form.setGenerating(isUnfinished(job));
    if (isUnfinished(job)) followJob(job, { signal: mine, onUpdate: stage.show, onEnd, onProblem });
  };

  const onEnd = async (job) => {
    watching.abort();
    stage.show(job);
    form.setGenerating(false);
    await history.reload();
    history.mark(job.job_id);
  };

  const onProblem = (error) => {
    watching.abort();
    form.setGenerating(false);
    toastProblem(error);
  };

  const generate = async () => {
    clearErrors(form.root);
    try {
      const job = await whileBusy(form.submit, async () => {
        const { body, images, before, errors } = await form.read();
        if (errors.length > 0) {
          showErrors(form.root, errors);
          return null;
        }
        const accepted = await jobs.generate(body);
        sent.keep(accepted.job_id, { images, before });
        return accepted;
      });
      if (!job) return;
      // The answer to a new job may be short; then its full state is requested.
      watch(job.parameters ? job : await jobs.show(job.job_id, signal));
      // On small screens the stage is below the form.
      if (matchMedia("(max-width: 60rem)").matches) stage.root.scrollIntoView({ block: "start" });
    } catch (error) {
      if (error.name !== "AbortError") showProblem(form.root, form.problemHere(error));
    }
  };

  takeFiles(form, signal);
  signal.addEventListener("abort", stage.release);
  replace(place, form.root, element("div", { class: "playground-side" }, stage.root, history.root));
  resume(watch, signal);
  history.reload();
}

// Shows the job again that was shown or running before the user left the page.
async function resume(watch, signal) {
  const id = sessionStorage.getItem(CURRENT_JOB);
  if (!id) return;
  try {
    watch(await jobs.show(id, signal));
  } catch {
    sessionStorage.removeItem(CURRENT_JOB);
  }
}

// What was sent with the newest jobs. The worker keeps no images, and neither does the browser beyond this page.
function sentImages() {
  const kept = new Map();
  const keep = (id, what) => {
    kept.set(id, what);
    if (kept.size > KEPT_MAX) kept.delete(kept.keys().next().value);
  };
  return { keep, of: (id) => kept.get(id) };
}

// Puts a job's image into the form, in place of the one it was made of.
async function editResult(job, form) {
  try {
    const image = await jobs.result(job.job_id);
    const name = fileName(`flux-${job.parameters.seed}`, job.parameters.output_format);
    const isTaken = form.take([new File([image], name, { type: image.type })], { replaces: true });
    if (!isTaken) throw new Error("The chosen model takes no image to edit.");
    form.root.scrollIntoView({ block: "start" });
  } catch (error) {
    toastProblem(error);
  }
}

// Images that are pasted, or dropped beside their places. The browser would otherwise leave the page to show them.
function takeFiles(form, signal) {
  const holdsFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files") ?? false;
  const take = (files) => {
    const images = [...files].filter(({ type }) => type.startsWith("image/"));
    if (images.length > 0 && !isDialogOpen()) form.take(images);
  };
  // A text that is copied from a document comes with its picture.
  const paste = ({ clipboardData: data }) => data && !data.types.includes("text/plain") && take(data.files);
  document.addEventListener("paste", paste, { signal });
  const catchFiles = (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    if (event.type === "drop") take(event.dataTransfer.files);
  };
  for (const name of ["dragover", "drop"]) document.addEventListener(name, catchFiles, { signal });
}
