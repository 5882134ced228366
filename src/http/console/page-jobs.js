// Owns the list of jobs of all keys and of the playground.

import { jobs, keys } from "./api.js";
import { element, replace } from "./dom.js";
import { cut, words } from "./format.js";
import { select } from "./form.js";
import { PLAYGROUND, isUnfinished, openJob, progressText, resultImage, sizeText } from "./job-view.js";
import { pagedList } from "./paged-list.js";
import { noteRoute, repeat } from "./router.js";
import { toastProblem } from "./toast.js";
import { button, emptyState, linkButton, pageHead, statusBadge, table, tableRow, time } from "./widgets.js";

const PER_PAGE = 30;
const REFRESH_MS = 2500;
// At most so many unfinished jobs are polled, so that a long queue does not flood the worker.
const FOLLOWED_MAX = 12;
const KEYS_MAX = 100;
const PROMPT_CHARACTERS = 110;

const STATUSES = ["queued", "running", "succeeded", "failed", "canceled"];
const COLUMNS = [
  { label: "Image", class: "cell-thumbnail", hidden: true },
  { label: "Prompt", class: "cell-main" },
  { label: "Status" },
  { label: "Size" },
  { label: "Requested by" },
  { label: "Created" },
];

export async function showJobs(page) {
  const { main, signal, rest, query } = page;
  const filter = {
    status: STATUSES.includes(query.get("status")) ? query.get("status") : "",
    key_id: query.get("key_id") || "",
  };
  const body = element("div", { class: "stack" });
  const reload = button("Refresh", { symbol: "refresh", onClick: () => list.reload() });
  replace(main, pageHead("Jobs", "Every requested image, from all API keys and the playground.", reload), body);

  const names = await keyNames(signal);
  const keyName = (id) => (id === null || id === undefined ? PLAYGROUND : names.get(id) || cut(id, 14));
  const shown = new Map();
  const open = (id) => openJobHere(id, { filter, keyName, signal, shown });
  const frame = table("Jobs", COLUMNS, []);
  const list = pagedList({
    load: (cursor) => {
      if (!cursor) shown.clear();
      return jobs.list({ ...filter, cursor, limit: PER_PAGE }, signal);
    },
    place: frame.querySelector("tbody"),
    frame,
    render: (job) => jobRow(job, { keyName, open, shown }),
    empty: () => noJobs(filter),
  });
  replace(
    body,
    filterBar(filter, names, () => list.reload()),
    list.root,
  );
  await list.reload();
  if (rest.length > 0) open(rest[0]);
  repeat(() => followUnfinished(shown, signal), REFRESH_MS, signal);
}

// The names of the keys by their ids, from the first page of keys.
async function keyNames(signal) {
  const { data } = await keys.list({ limit: KEYS_MAX }, signal);
  return new Map(data.map((key) => [key.id, key.name]));
}

function routeOf({ status, key_id: keyId }) {
  const query = new URLSearchParams();
  if (status) query.set("status", status);
  if (keyId) query.set("key_id", keyId);
  const text = query.toString();
  return text ? `#/jobs?${text}` : "#/jobs";
}

function filterBar(filter, names, onChange) {
  const changed = (name) => (event) => {
    filter[name] = event.target.value;
    noteRoute(routeOf(filter));
    onChange();
  };
  const known = [["", "All keys"], ["playground", PLAYGROUND], ...names];
  const hasOther = filter.key_id && !known.some(([value]) => value === filter.key_id);
  const status = select([["", "Any status"], ...STATUSES.map((name) => [name, words(name)])], filter.status, {
    id: "filter-status",
  });
  const key = select(hasOther ? [...known, [filter.key_id, cut(filter.key_id, 14)]] : known, filter.key_id, {
    id: "filter-key",
  });
  status.addEventListener("change", changed("status"));
  key.addEventListener("change", changed("key_id"));
  return element(
    "div",
    { class: "toolbar" },
    element("div", { class: "inline-field" }, element("label", { for: "filter-status" }, "Status"), status),
    element("div", { class: "inline-field" }, element("label", { for: "filter-key" }, "Requested by"), key),
  );
}

function noJobs({ status, key_id: keyId }) {
  if (status || keyId) return emptyState("jobs", "No matching jobs", "No job matches the filters above.");
  return emptyState(
    "jobs",
    "No jobs yet",
    "Requested images show up here, with their progress.",
    linkButton("Generate the first image", "#/playground", { kind: "primary", symbol: "sparkle" }),
  );
}

function jobRow(job, context) {
  const { keyName, open, shown } = context;
  const { prompt } = job.parameters;
  const cells = [
    element(
      "div",
      { class: "thumbnail" },
      job.status === "succeeded"
        ? resultImage(job, { lazy: true, alt: "" })
        : element("span", { class: `thumbnail-empty is-${job.status}` }),
    ),
    element(
      "button",
      { type: "button", class: "link-button", on: { click: () => open(job.job_id) } },
      cut(prompt, PROMPT_CHARACTERS),
    ),
    element(
      "div",
      { class: "cell-lines" },
      statusBadge(job.status),
      element("span", { class: "note" }, job.error ? job.error.code.replaceAll("_", " ") : progressText(job)),
    ),
    element(
      "div",
      { class: "cell-lines" },
      element("span", null, sizeText(job.parameters)),
      element("span", { class: "note" }, `${job.parameters.steps} steps`),
    ),
    element("div", { class: "cell-lines" }, element("span", null, cut(keyName(job.key_id), 24))),
    time(job.created_at),
  ];
  const row = tableRow(COLUMNS, cells, { data: { testid: "job-row", jobId: job.job_id } });
  const update = (next) => {
    const replacement = jobRow(next, context);
    const hadFocus = row.contains(document.activeElement);
    row.replaceWith(replacement);
    if (hadFocus) replacement.querySelector("button")?.focus();
  };
  shown.set(job.job_id, { job, update });
  return row;
}

async function followUnfinished(shown, signal) {
  const unfinished = [...shown.values()].filter(({ job }) => isUnfinished(job)).slice(-FOLLOWED_MAX);
  try {
    const current = await Promise.all(unfinished.map(({ job }) => jobs.show(job.job_id, signal)));
    for (const job of current) showChange(shown, job);
  } catch (error) {
    // The rows stay until the next attempt. An unreachable worker is reported elsewhere.
    if (error.status !== 404 && error.status !== 0) toastProblem(error);
  }
}

function showChange(shown, job) {
  const entry = shown.get(job.job_id);
  if (!entry) return;
  const before = entry.job;
  const isSame =
    before.status === job.status &&
    before.progress.step === job.progress.step &&
    before.queue_position === job.queue_position;
  if (!isSame) entry.update(job);
}

function openJobHere(id, { filter, keyName, signal, shown }) {
  noteRoute(`#/jobs/${encodeURIComponent(id)}`);
  openJob(id, {
    keyName,
    signal,
    onChange: (job) => showChange(shown, job),
    onClose: () => {
      if (!signal.aborted) noteRoute(routeOf(filter));
    },
  });
}
