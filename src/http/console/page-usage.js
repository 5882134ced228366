// Owns the page of usage: by day as a chart, and by key, model or project as a table, with downloads, budgets and alerts.

import { alertsCard } from "./alerts-card.js";
import { projects, usage } from "./api.js";
import { budgetBar, money } from "./budget-view.js";
import { chart } from "./chart.js";
import { element, replace, setText } from "./dom.js";
import { compact, count, decimal, duration, utcDay } from "./format.js";
import { select } from "./form.js";
import { pagedList } from "./paged-list.js";
import { card, emptyState, linkButton, pageHead, problemView, segments, skeleton, table, tableRow } from "./widgets.js";

const GROUPS = [
  ["day", "Day"],
  ["key", "Key"],
  ["model", "Model"],
  ["project", "Project"],
];
const MEASURES = [
  ["jobs", "Jobs"],
  ["images", "Images"],
  ["megapixel_steps", "Megapixel-steps"],
  ["engine_seconds", "Engine time"],
];
const COST = ["cost", "Cost"];
const PERIODS = [
  ["7", "7 days"],
  ["30", "30 days"],
  ["90", "90 days"],
  ["365", "A year"],
];
const DAY_MILLISECONDS = 24 * 60 * 60 * 1000;

const dateOf = (moment) => moment.toISOString().slice(0, 10);

// The last `days` UTC days, including today.
function period(days) {
  const now = Date.now();
  return { from: dateOf(new Date(now - (days - 1) * DAY_MILLISECONDS)), to: dateOf(new Date(now)) };
}

export async function showUsage({ main, signal }) {
  const state = { days: 30, group: "key", measure: "images", prices: null };
  const chartPlace = element("div", null, skeleton(5));
  const rowsPlace = element("div");
  const budgetsPlace = element("div");
  const downloads = element("div", { class: "toolbar" });
  const drawRows = () => {
    replace(downloads, downloadLinks(state));
    const list = rowList(state, signal);
    replace(rowsPlace, list.root);
    return list.reload();
  };
  const load = async () => {
    try {
      const report = await usage.report({ ...period(state.days), group_by: "day" }, signal);
      state.prices = report.prices;
      replace(chartPlace, dayChart(report, state));
      await drawRows();
    } catch (error) {
      if (error.name !== "AbortError" && error.status !== 401) replace(chartPlace, problemView(error, load));
    }
  };
  const days = select(PERIODS, String(state.days), { "aria-label": "Period", class: "select-small" });
  days.addEventListener("change", () => {
    state.days = Number(days.value);
    load();
  });
  const groups = segments("Rows", GROUPS, state.group, (group) => {
    state.group = group;
    drawRows();
  });
  replace(
    main,
    pageHead("Usage", "Who has used what. Days are UTC days: a job counts in the one in which it ended.", days),
    element(
      "div",
      { class: "stack" },
      chartPlace,
      budgetsPlace,
      card(
        null,
        element("div", { class: "card-head" }, element("h2", { class: "card-title" }, "In detail"), groups, downloads),
        rowsPlace,
      ),
      alertsCard(signal),
    ),
  );
  await Promise.all([load(), showBudgets(budgetsPlace, signal)]);
}

async function showBudgets(place, signal) {
  const list = (await projects.list(signal)).filter(({ budget }) => budget);
  if (list.length === 0) return;
  const line = ({ id, name, budget }) =>
    element(
      "li",
      null,
      element("a", { class: "strong", href: `#/projects/${encodeURIComponent(id)}` }, name),
      budgetBar(name, budget),
    );
  replace(place, card("Budgets of projects", element("ul", { class: "plain-list stack-small" }, list.map(line))));
}

function downloadLinks({ days, group }) {
  const link = (format, label) =>
    linkButton(label, usage.path({ ...period(days), group_by: group, format }), {
      symbol: "download",
      download: "",
      data: { testid: `download-${format}` },
    });
  return [link("csv", "CSV"), link("ndjson", "JSON lines")];
}

function valueOf(measure, row) {
  return measure === "cost" ? Number(row.cost) : row[measure];
}

function say(measure, row, currency) {
  if (measure === "engine_seconds") return duration(row.engine_seconds);
  if (measure === "cost") return money(row.cost, currency);
  return decimal(row[measure]);
}

const measuresOf = ({ prices }) => (prices ? [...MEASURES, COST] : MEASURES);

function dayChart(report, state) {
  const currency = report.prices?.currency;
  const bars = chart({ kind: "bars", formatValue: compact, height: "large" });
  const total = element("p", { class: "usage-total" });
  const update = () => {
    const { measure } = state;
    const label = measuresOf(state).find(([name]) => name === measure)[1];
    const items = report.data.map((row) => ({
      label: utcDay(row.group),
      values: [valueOf(measure, row)],
      text: say(measure, row, currency),
    }));
    const sum = say(measure, report.total, currency);
    setText(total, `${sum} in ${report.data.length} days`);
    const labels = [utcDay(report.from), utcDay(report.data[Math.floor((report.data.length - 1) / 2)].group), "Today"];
    bars.update(items, `${label} in the last ${report.data.length} days: ${sum} in total`, labels);
  };
  if (!measuresOf(state).some(([name]) => name === state.measure)) state.measure = "images";
  const measures = segments("Measure", measuresOf(state), state.measure, (measure) => {
    state.measure = measure;
    update();
  });
  update();
  return card(
    null,
    element("div", { class: "card-head" }, element("h2", { class: "card-title" }, "By day"), measures),
    element("div", { class: "stack-small" }, total, bars.figure),
  );
}

function rowList(state, signal) {
  const label = GROUPS.find(([name]) => name === state.group)[1];
  const currency = state.prices?.currency;
  const hasRequests = state.group === "day" || state.group === "key";
  const columns = [
    { label, class: "cell-main" },
    ...(hasRequests ? [{ label: "Requests", class: "numeric" }] : []),
    ...measuresOf(state).map(([, name]) => ({ label: name, class: "numeric" })),
  ];
  const frame = table(`Usage by ${state.group}`, columns, [], { isPlain: state.group !== "key" && state.group !== "project" });
  const query = { ...period(state.days), group_by: state.group };
  const isUsed = (row) => row.jobs > 0 || row.requests > 0;
  return pagedList({
    load: async (cursor) => {
      const page = await usage.report({ ...query, cursor }, signal);
      // Of days the chart shows those without use.
      return state.group === "day" ? { ...page, data: page.data.filter(isUsed).reverse() } : page;
    },
    place: frame.querySelector("tbody"),
    frame,
    render: (row) =>
      tableRow(
        columns,
        [
          groupView(state.group, row),
          ...(hasRequests ? [count(row.requests)] : []),
          ...measuresOf(state).map(([measure]) => say(measure, row, currency)),
        ],
        { data: { testid: "usage-row", group: row.group } },
      ),
    empty: () => emptyState("usage", "Nothing was used", "In these days no job ended."),
  });
}

const WORDS = { playground: "The playground", unknown: "Unknown", none: "No project" };

function groupView(group, row) {
  if (group === "day") return utcDay(row.group);
  if (WORDS[row.group]) return element("span", { class: "muted" }, WORDS[row.group]);
  if (group === "model") return row.group;
  const page = group === "key" ? "keys" : "projects";
  if (row.name === null) return element("code", null, row.group);
  return element("a", { class: "strong", href: `#/${page}/${encodeURIComponent(row.group)}` }, row.name);
}
