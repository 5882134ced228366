// Owns how a budget looks, and its fields in forms.

import { element } from "./dom.js";
import { count, decimal } from "./format.js";
import { field, select } from "./form.js";

const KINDS = [
  ["", "No budget"],
  ["megapixel_steps", "Megapixel-steps a month"],
  ["money", "Money a month"],
];

const amountOf = (budget) => (budget.money === undefined ? budget.megapixel_steps : budget.money);

// As `100,000 megapixel-steps a month`.
export function budgetText(budget) {
  if (!budget) return element("span", { class: "muted" }, "No budget");
  if (budget.money !== undefined) return `${money(budget.money)} a month`;
  return `${count(budget.megapixel_steps)} megapixel-steps a month`;
}

// As `12.34`: an amount with six decimals, rounded for people.
export const money = (text, currency = "") =>
  `${new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 4 }).format(Number(text))}${currency && ` ${currency}`}`;

// A bar that shows how much of a budget is used in its month.
export function budgetBar(name, { month, budget, used, share }) {
  const isMoney = budget.money !== undefined;
  const spent = isMoney ? used.money && money(used.money) : decimal(used.megapixel_steps);
  const total = isMoney ? money(budget.money) : `${count(budget.megapixel_steps)} megapixel-steps`;
  if (share === null) {
    return element(
      "div",
      { class: "budget" },
      element("p", { class: "hint" }, `The budget of ${total} is not enforced: this worker has no prices.`),
    );
  }
  const percent = Math.floor(share * 100);
  return element(
    "div",
    { class: "budget", data: { testid: "budget", level: share >= 1 ? "exhausted" : share >= 0.8 ? "warning" : "fine" } },
    element("progress", { class: "bar", max: 1, value: Math.min(1, share), "aria-label": `Share of the budget of ${name} that is used` }),
    element("p", { class: "hint" }, `${spent} of ${total} in ${month}: ${percent} %`, share >= 1 && ". New jobs are refused until the month ends"),
  );
}

// The fields of a budget. `read` returns it as requests have it, or null for none.
export function budgetFields(budget, idPrefix) {
  const kind = select(KINDS, !budget ? "" : budget.money === undefined ? "megapixel_steps" : "money", {
    id: `${idPrefix}-budget-kind`,
  });
  const amount = element("input", {
    type: "text",
    inputmode: "decimal",
    autocomplete: "off",
    id: `${idPrefix}-budget`,
    "aria-label": "Amount of the budget",
    value: budget ? amountOf(budget) : null,
    hidden: !budget,
  });
  kind.addEventListener("change", () => {
    amount.hidden = kind.value === "";
  });
  const root = field("limits.budget", "Budget", kind, {
    beside: amount,
    hint: "For a calendar month, UTC. The log tells when 80 % is used. When it is used up, requests get status 429 until the month ends.",
  });
  const read = () => {
    if (kind.value === "") return null;
    const text = amount.value.trim();
    return { [kind.value]: kind.value === "money" ? text : Number(text) };
  };
  const errors = () => {
    if (kind.value === "" || /^\d+(\.\d{1,6})?$/.test(amount.value.trim())) return [];
    return [["limits.budget", "Enter an amount"]];
  };
  return { root, read, errors };
}

// Whether two budgets are the same, as amounts may be written in several ways.
export function isSameBudget(one, other) {
  if (!one || !other) return !one && !other;
  return (one.money === undefined) === (other.money === undefined) && Number(amountOf(one)) === Number(amountOf(other));
}
