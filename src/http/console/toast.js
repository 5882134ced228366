// Owns the short messages about what has just happened, in the page's live region.

import { element } from "./dom.js";
import { icon } from "./icons.js";

const SHOWN_MS = { good: 5000, bad: 12000 };
const TOASTS_MAX = 4;

function show(kind, text, requestId) {
  const region = document.getElementById("toasts");
  const toast = element(
    "div",
    { class: `toast toast-${kind}`, data: { testid: `toast-${kind}` } },
    icon(kind === "good" ? "check" : "warning"),
    element(
      "div",
      { class: "toast-text" },
      element("p", null, text),
      requestId && element("p", { class: "request-id" }, `Request ${requestId}`),
    ),
    element(
      "button",
      { type: "button", class: "icon-button", "aria-label": "Dismiss", on: { click: () => toast.remove() } },
      icon("close"),
    ),
  );
  region.append(toast);
  while (region.children.length > TOASTS_MAX) region.firstElementChild.remove();
  setTimeout(() => toast.remove(), SHOWN_MS[kind]);
}

// Something was done.
export const toastDone = (text) => show("good", text);

// Something was not done. Nothing is said of requests that were given up on purpose or of a session that has ended.
export function toastProblem(error) {
  if (error.name === "AbortError" || error.status === 401) return;
  show("bad", error.message, error.requestId);
}
