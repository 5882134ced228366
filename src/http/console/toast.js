// Owns the short messages about completed actions, in the page's live region.

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

// Reports success.
export const toastDone = (text) => show("good", text);

// Reports a failure, except for aborted requests and an ended session.
export function toastProblem(error) {
  if (error.name === "AbortError" || error.status === 401) return;
  show("bad", error.message, error.requestId);
}
