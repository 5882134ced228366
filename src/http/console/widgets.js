// Owns the building blocks of pages: buttons, badges, times, notices, empty states.

import { element, replace, setText } from "./dom.js";
import { exactMoment, relative } from "./format.js";
import { icon } from "./icons.js";

export const paragraph = (...children) => element("p", null, children);
export const code = (text) => element("code", null, text);

// A button. `kind` is primary, plain, quiet or danger.
export function button(label, { kind = "plain", symbol, onClick, ...attributes } = {}) {
  return element(
    "button",
    { type: "button", class: `button button-${kind}`, on: onClick ? { click: onClick } : {}, ...attributes },
    symbol && icon(symbol),
    element("span", null, label),
  );
}

// A button that shows only an icon; the label is its accessible name.
export function iconButton(label, symbol, onClick, attributes) {
  return element(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, on: { click: onClick }, ...attributes },
    icon(symbol),
  );
}

// A link that looks like a button.
export function linkButton(label, href, { kind = "plain", symbol, ...attributes } = {}) {
  return element(
    "a",
    { class: `button button-${kind}`, href, ...attributes },
    symbol && icon(symbol),
    element("span", null, label),
  );
}

// Runs a button's action and disables the button until it is done.
export async function whileBusy(control, work) {
  control.disabled = true;
  control.setAttribute("aria-busy", "true");
  try {
    return await work();
  } finally {
    control.disabled = false;
    control.removeAttribute("aria-busy");
  }
}

// A button that copies a text and confirms it in its label.
export function copyButton(text, label = "Copy", attributes = {}) {
  const read = typeof text === "function" ? text : () => text;
  const caption = element("span", { "aria-live": "polite" }, label);
  const place = element("span", { class: "icon-place" }, icon("copy"));
  const control = element(
    "button",
    { type: "button", class: "button button-plain button-small", ...attributes },
    place,
    caption,
  );
  let reset;
  control.addEventListener("click", async () => {
    const done = await copy(read());
    setText(caption, done ? "Copied" : "Press Ctrl+C");
    replace(place, icon(done ? "check" : "copy"));
    clearTimeout(reset);
    reset = setTimeout(() => {
      setText(caption, label);
      replace(place, icon("copy"));
    }, 2000);
  });
  return control;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

// Over plain HTTP browsers offer the clipboard on localhost only; elsewhere the old way still works.
function copyBySelection(text) {
  const holder = document.querySelector("dialog[open]") || document.body;
  const field = element("textarea", { class: "visually-hidden", readonly: true, "aria-label": "Text to copy" });
  field.value = text;
  const before = document.activeElement;
  holder.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus();
  return done;
}

// Code with a button that copies it.
export function codeBlock(text, label, attributes = {}) {
  const { testid, ...others } = attributes;
  return element(
    "div",
    { class: "code-block", ...others },
    element(
      "pre",
      { tabindex: "0", role: "group", "aria-label": label },
      element("code", testid ? { data: { testid } } : null, text),
    ),
    copyButton(text, "Copy", { "aria-label": `Copy ${label}` }),
  );
}

// A word in a colored pill. `tone` is neutral, accent, good, warn or bad.
export function badge(text, tone = "neutral", attributes = {}) {
  return element("span", { class: `badge badge-${tone}`, ...attributes }, text);
}

const STATUS_TONES = {
  queued: "neutral",
  running: "accent",
  succeeded: "good",
  failed: "bad",
  canceled: "neutral",
  active: "good",
  expired: "warn",
  revoked: "bad",
  ready: "good",
  not_ready: "warn",
  draining: "warn",
  delivered: "good",
  pending: "accent",
};

export function statusBadge(status, label = status.replaceAll("_", " ")) {
  return element(
    "span",
    { class: `badge badge-dot badge-${STATUS_TONES[status] || "neutral"}`, data: { status } },
    label.charAt(0).toUpperCase() + label.slice(1),
  );
}

// A moment relative to now, with the exact time as the tooltip.
export function time(iso, write = relative) {
  return element("time", { datetime: iso, title: exactMoment(iso) }, write(iso));
}

// The head of a page: its h1, description and actions.
export function pageHead(title, description, ...actions) {
  return element(
    "header",
    { class: "page-head" },
    element(
      "div",
      null,
      element("h1", { tabindex: "-1" }, title),
      description && element("p", { class: "page-description" }, description),
    ),
    actions.length > 0 && element("div", { class: "page-actions" }, actions),
  );
}

// A framed section of a page.
export function card(title, ...children) {
  return element("section", { class: "card" }, title && element("h2", { class: "card-title" }, title), children);
}

export function emptyState(symbol, title, text, ...actions) {
  return element(
    "div",
    { class: "empty" },
    element("span", { class: "empty-symbol" }, icon(symbol)),
    element("p", { class: "empty-title" }, title),
    text && element("p", { class: "empty-text" }, text),
    actions.length > 0 && element("div", { class: "empty-actions" }, actions),
  );
}

// Gray lines in place of content that is loading.
export function skeleton(lines = 4) {
  const rows = Array.from({ length: lines }, () => element("span", { class: "skeleton-line" }));
  return element(
    "div",
    { class: "skeleton", role: "status" },
    element("span", { class: "visually-hidden" }, "Loading"),
    rows,
  );
}

const NOTICE_SYMBOLS = { information: "information", good: "check", warn: "warning", bad: "warning" };

// A notice with a tone: information, good, warn or bad.
export function notice(tone, ...children) {
  return element(
    "div",
    { class: `notice notice-${tone}` },
    icon(NOTICE_SYMBOLS[tone]),
    element("div", { class: "notice-text" }, children),
  );
}

// An error, with a button to try again.
export function problemView(problem, retry) {
  return element(
    "div",
    { class: "notice notice-bad", role: "alert" },
    icon("warning"),
    element(
      "div",
      { class: "notice-text" },
      element("p", null, problem.message),
      problem.requestId && element("p", { class: "request-id" }, `Request ${problem.requestId}`),
    ),
    retry && button("Try again", { onClick: retry }),
  );
}

// Numbered steps, each as `[title, ...children]`.
export function steps(list) {
  const step = ([title, ...children]) =>
    element("li", { class: "step" }, element("h3", { class: "step-title" }, title), children);
  return element("ol", { class: "steps" }, list.map(step));
}

// Terms and values as rows. Entries without a value are left out.
export function facts(entries, attributes = {}) {
  const rows = entries
    .filter(([, value]) => value !== null && value !== undefined && value !== false)
    .map(([term, value]) => element("div", null, element("dt", null, term), element("dd", null, value)));
  return element("dl", { class: "facts", ...attributes }, rows);
}

// A table that turns into cards on small screens. A row is a list of cells in the order of the columns. A column is `{
// label, class?, hidden? }`, where `hidden` leaves its heading to screen readers. A plain table contains nothing
// focusable, so its frame takes the focus for scrolling.
export function table(label, columns, rows, { isPlain = false } = {}) {
  const heading = ({ label: text, hidden, class: name }) =>
    element(
      "th",
      { scope: "col", role: "columnheader", class: name },
      hidden ? element("span", { class: "visually-hidden" }, text) : text,
    );
  return element(
    "div",
    { class: "table-frame", ...(isPlain && { tabindex: "0", role: "group", "aria-label": label }) },
    element(
      "table",
      { "aria-label": label, role: "table" },
      element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, columns.map(heading))),
      element("tbody", { role: "rowgroup" }, rows),
    ),
  );
}

export function tableRow(columns, cells, attributes = {}) {
  const cell = (content, index) =>
    element(
      "td",
      { role: "cell", class: columns[index].class, data: { label: columns[index].hidden ? "" : columns[index].label } },
      content,
    );
  return element("tr", { role: "row", ...attributes }, cells.map(cell));
}

// A row of buttons of which one is selected.
export function segments(label, options, chosen, onChange) {
  const group = element("div", { class: "segments", role: "group", "aria-label": label });
  const buttons = options.map(([value, text]) =>
    element(
      "button",
      {
        type: "button",
        "aria-pressed": String(value === chosen),
        on: {
          click: (event) => {
            for (const other of buttons) other.setAttribute("aria-pressed", String(other === event.currentTarget));
            onChange(value);
          },
        },
      },
      text,
    ),
  );
  group.append(...buttons);
  return group;
}

// A badge with a model's state.
export function modelState({ available, desired_replicas: desired, loading }) {
  if (available) return badge("Ready", "good");
  if (loading) return badge(`Loading, ${Math.floor((100 * loading.bytes) / Math.max(loading.bytes_total, 1))} %`, "warn");
  return desired > 0 ? badge("Not ready", "warn") : badge("Not served", "neutral");
}
