// Owns the chart of a key's usage.

import { keys } from "./api.js";
import { budgetBar } from "./budget-view.js";
import { chart } from "./chart.js";
import { element, replace, setText } from "./dom.js";
import { compact, decimal, duration, utcDay } from "./format.js";
import { select } from "./form.js";
import { card, problemView, segments, skeleton, table, tableRow } from "./widgets.js";

const MEASURES = [
  ["requests", "Requests"],
  ["images", "Images"],
  ["megapixel_steps", "Megapixel-steps"],
  ["gpu_seconds", "GPU time"],
];
const PERIODS = [
  ["7", "7 days"],
  ["30", "30 days"],
  ["90", "90 days"],
  ["365", "A year"],
];
const PERIOD_DEFAULT = "30";

export function usageCard(key, signal) {
  const state = { measure: "requests", days: PERIOD_DEFAULT, data: [] };
  const total = element("p", { class: "usage-total" });
  const bars = chart({ kind: "bars", formatValue: compact, height: "large" });
  const tablePlace = element("div");
  const status = element("div", null, skeleton(4));
  const shown = element("div", { class: "stack-small" }, total, bars.figure, tableDetails(tablePlace));
  shown.hidden = true;

  const update = () => showUsage(state, { bars, total, tablePlace });
  const load = async () => {
    try {
      const { data, budget } = await keys.usage(key.id, state.days, signal);
      state.data = data;
      replace(status, budget && budgetBar(key.name, budget));
      shown.hidden = false;
      update();
    } catch (error) {
      if (error.name !== "AbortError" && error.status !== 401) replace(status, problemView(error, load));
    }
  };
  const choose = (measure) => {
    state.measure = measure;
    update();
  };
  const period = select(PERIODS, state.days, { "aria-label": "Period", class: "select-small" });
  period.addEventListener("change", () => {
    state.days = period.value;
    load();
  });
  load();
  return card(
    null,
    element(
      "div",
      { class: "card-head" },
      element("h2", { class: "card-title" }, "Usage"),
      element("div", { class: "toolbar" }, segments("Measure", MEASURES, state.measure, choose), period),
    ),
    status,
    shown,
  );
}

function tableDetails(place) {
  return element("details", { class: "as-table" }, element("summary", null, "Show as table"), place);
}

const format = (measure, value) => (measure === "gpu_seconds" ? duration(value) : decimal(value));

function showUsage({ measure, days, data }, { bars, total, tablePlace }) {
  const label = MEASURES.find(([name]) => name === measure)[1];
  const sum = data.reduce((amount, day) => amount + day[measure], 0);
  const most = data.reduce((best, day) => (day[measure] > best[measure] ? day : best), data[0]);
  const items = data.map((day) => ({
    label: utcDay(day.date),
    values: [day[measure]],
    text: format(measure, day[measure]),
  }));
  const first = data[0]?.date;
  const middle = data[Math.floor((data.length - 1) / 2)]?.date;
  const labels = data.length > 0 ? [utcDay(first), utcDay(middle), "Today"] : [];
  const peak = sum > 0 ? `, most on ${utcDay(most.date)} with ${format(measure, most[measure])}` : "";
  setText(total, `${format(measure, sum)} in ${days} days`);
  bars.update(items, `${label} in the last ${days} days: ${format(measure, sum)} in total${peak}`, labels);
  const columns = [{ label: "UTC day" }, ...MEASURES.map(([, name]) => ({ label: name, class: "numeric" }))];
  const rows = [...data]
    .reverse()
    .map((day) => tableRow(columns, [utcDay(day.date), ...MEASURES.map(([name]) => format(name, day[name]))]));
  replace(tablePlace, table("Usage by day", columns, rows, { isPlain: true }));
}
