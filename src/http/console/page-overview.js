// Owns the overview: the worker's state, load and speed.

import { overview } from "./api.js";
import { chart, niceBytesCeiling } from "./chart.js";
import { element, replace, setText } from "./dom.js";
import { bytes, clock, count, duration, exactMoment, plural, relative, secondsUntil, words } from "./format.js";
import { repeat } from "./router.js";
import {
  card,
  facts,
  linkButton,
  modelState,
  pageHead,
  problemView,
  skeleton,
  table,
  tableRow,
  time,
} from "./widgets.js";

const REFRESH_MS = 2000;
// The worker reports its present memory only. Earlier samples are kept here, also while other pages are shown.
const MEMORY_SAMPLES_MAX = 60;
const memorySamples = [];

const MODEL_COLUMNS = [{ label: "Model" }, { label: "State" }, { label: "Replicas", class: "numeric" }];

export async function showOverview({ main, signal }) {
  const view = buildView();
  const trouble = element("div");
  const body = element("div", { class: "stack" }, skeleton(6));
  replace(
    main,
    pageHead(
      "Overview",
      "The worker's state, queue and speed right now.",
      linkButton("Open playground", "#/playground", { kind: "primary", symbol: "sparkle" }),
    ),
    element("div", { class: "stack" }, trouble, body),
  );
  const refresh = async () => {
    try {
      const state = await overview(signal);
      replace(trouble);
      if (!body.contains(view.root)) replace(body, view.root);
      view.update(state);
    } catch (error) {
      if (error.name === "AbortError" || error.status === 401) return;
      if (!body.contains(view.root)) replace(body);
      if (!trouble.firstChild) replace(trouble, problemView(error));
    }
  };
  await repeat(refresh, REFRESH_MS, signal);
}

function buildView() {
  const parts = [
    stateTile(),
    queueTile(),
    latencyTile(),
    hourTile(),
    minutesCard(),
    memoryCard(),
    modelsCard(),
    workerCard(),
  ];
  const [state, queue, latency, hour, minutes, memory, models, worker] = parts.map((part) => part.root);
  const root = element(
    "div",
    { class: "stack" },
    element("div", { class: "tiles" }, state, queue, latency, hour),
    element("div", { class: "charts" }, minutes, memory),
    element("div", { class: "columns" }, models, worker),
  );
  return { root, update: (state) => parts.forEach((part) => part.update(state)) };
}

function tile(label, testid) {
  const value = element("p", { class: "tile-value", data: { testid } }, "–");
  const note = element("p", { class: "tile-note" });
  const root = element("section", { class: "tile card" }, element("h2", { class: "tile-label" }, label), value, note);
  return { root, value, note };
}

const STATES = { ready: "Ready", not_ready: "Not ready", draining: "Draining" };

function stateTile() {
  const { root, value, note } = tile("Worker", "worker-state");
  const update = ({ state, started_at: startedAt }) => {
    setText(value, STATES[state] || words(state));
    value.dataset.state = state;
    setText(note, `Up for ${duration(Math.max(0, -secondsUntil(startedAt)))}`);
  };
  return { root, update };
}

function queueTile() {
  const { root, value, note } = tile("Queue", "queue");
  const update = ({ queue }) => {
    setText(value, `${count(queue.running)} running`);
    setText(note, `${count(queue.queued)} queued, at most ${count(queue.jobs_max)}`);
  };
  return { root, update };
}

function latencyTile() {
  const { root, value, note } = tile("Time per image", "latency");
  const update = ({ latency_seconds: latency }) => {
    const isKnown = latency.median !== null && latency.median !== undefined;
    setText(value, isKnown ? duration(latency.median) : "–");
    const slowest = latency.p95 === null ? "" : `95% within ${duration(latency.p95)}`;
    setText(note, isKnown ? `Median. ${slowest}` : "No image yet");
  };
  return { root, update };
}

function hourTile() {
  const { root, value, note } = tile("Last hour", "last-hour");
  const update = ({ minutes }) => {
    const { images, failed } = totals(minutes);
    setText(value, plural(images, "image"));
    setText(note, failed === 0 ? "None failed" : `${count(failed)} failed`);
    note.classList.toggle("is-bad", failed > 0);
  };
  return { root, update };
}

function memoryCard() {
  const now = element("p", { class: "usage-total", data: { testid: "memory" } }, "–");
  const note = element("p", { class: "hint" });
  const line = chart({
    kind: "line",
    formatValue: bytes,
    height: "medium",
    itemsMin: MEMORY_SAMPLES_MAX,
    ceilingOf: niceBytesCeiling,
  });
  const root = card("Memory", now, note, line.figure);
  root.classList.add("memory-card");
  const update = ({ memory }) => {
    const resident = memory.resident_bytes;
    if (resident === null || resident === undefined) {
      setText(note, "Unknown on this system");
      line.figure.hidden = true;
      return;
    }
    memorySamples.push({
      label: new Date().toLocaleTimeString("en-US", { hourCycle: "h23" }),
      values: [resident],
      text: bytes(resident),
    });
    if (memorySamples.length > MEMORY_SAMPLES_MAX) memorySamples.shift();
    setText(now, bytes(resident));
    setText(note, "Resident memory of the worker's process");
    const levels = memorySamples.map((sample) => sample.values[0]);
    const summary = `Resident memory while this page was open: now ${bytes(resident)}, between ${bytes(Math.min(...levels))} and ${bytes(Math.max(...levels))}`;
    line.update(memorySamples, summary, [`${(MEMORY_SAMPLES_MAX * REFRESH_MS) / 60000} min ago`, "now"]);
  };
  return { root, update };
}

function totals(minutes) {
  const sum = (name) => minutes.reduce((total, minute) => total + minute[name], 0);
  return { images: sum("images"), failed: sum("failed") };
}

function minutesCard() {
  const bars = chart({
    kind: "bars",
    tones: ["accent", "bad"],
    formatValue: (value) => (Number.isInteger(value) ? count(value) : ""),
    height: "large",
    floor: 4,
  });
  const legend = element(
    "p",
    { class: "legend", "aria-hidden": "true" },
    element("span", { class: "legend-accent" }, "Finished"),
    element("span", { class: "legend-bad" }, "Failed"),
  );
  const root = card(
    null,
    element("div", { class: "card-head" }, element("h2", { class: "card-title" }, "Images per minute"), legend),
    bars.figure,
  );
  const update = ({ minutes }) => {
    const items = minutes.map(({ at, images, failed }) => ({
      label: clock(at),
      values: [images, failed],
      text: failed > 0 ? `${plural(images, "image")}, ${count(failed)} failed` : plural(images, "image"),
    }));
    const { images, failed } = totals(minutes);
    const most = Math.max(0, ...minutes.map((minute) => minute.images));
    const summary = `Images per minute in the last hour: ${plural(images, "image")} in total, at most ${count(most)} in one minute, ${count(failed)} failed`;
    bars.update(items, summary, hourLabels(minutes));
  };
  return { root, update };
}

function hourLabels(minutes) {
  if (minutes.length === 0) return [];
  const at = (share) => clock(minutes[Math.round((minutes.length - 1) * share)].at);
  return [at(0), at(0.25), at(0.5), at(0.75), "now"];
}

function workerCard() {
  const version = element("span");
  const device = element("span");
  const started = element("time");
  const root = card(
    "Worker",
    facts([
      ["Version", version],
      ["Device", device],
      ["Started", started],
    ]),
  );
  const update = (now) => {
    setText(version, now.version);
    setText(device, now.device);
    started.dateTime = now.started_at;
    started.title = exactMoment(now.started_at);
    setText(started, relative(now.started_at));
  };
  return { root, update };
}

function modelsCard() {
  const place = element("div");
  const root = card("Models", place);
  let shown = "";
  const update = ({ models }) => {
    const asText = JSON.stringify(models);
    if (asText === shown) return;
    shown = asText;
    const rows = models.map((model) =>
      tableRow(MODEL_COLUMNS, [
        element("span", { class: "strong" }, model.id),
        modelState(model),
        `${model.ready_replicas} of ${model.desired_replicas}`,
      ]),
    );
    replace(
      place,
      models.length > 0
        ? table("Models", MODEL_COLUMNS, rows, { isPlain: true })
        : element("p", { class: "muted" }, "This worker has no models."),
    );
  };
  return { root, update };
}
