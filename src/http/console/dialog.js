// Owns the modal windows. The browser's <dialog> keeps the focus inside and restores it afterwards.

import { element, uniqueId } from "./dom.js";
import { iconButton } from "./widgets.js";

// Opens a window and returns a function that closes it. A `deliberate` window shows something that cannot be shown
// again: neither Escape, a click outside nor a close button dismisses it.
export function openDialog({ title, body, actions = [], deliberate = false, wide = false, testid, onClose }) {
  const titleId = uniqueId("dialog-title");
  const close = () => dialog.close();
  const dialog = element(
    "dialog",
    {
      class: wide ? "dialog dialog-wide" : "dialog",
      "aria-labelledby": titleId,
      closedby: deliberate ? "none" : null,
      data: { ...(testid && { testid }), ...(deliberate && { deliberate: "" }) },
    },
    element(
      "div",
      { class: "dialog-frame" },
      element(
        "div",
        { class: "dialog-head" },
        element("h2", { id: titleId }, title),
        !deliberate && iconButton("Close", "close", close),
      ),
      element("div", { class: "dialog-body" }, body),
      actions.length > 0 && element("div", { class: "dialog-actions" }, actions),
    ),
  );
  if (deliberate) preventDismissal(dialog);
  else closeOnOutsideClick(dialog, close);
  dialog.addEventListener("close", () => {
    dialog.remove();
    onClose?.();
  });
  document.body.append(dialog);
  dialog.showModal();
  dialog.querySelector("[autofocus]")?.focus();
  return close;
}

function preventDismissal(dialog) {
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Escape") event.preventDefault();
  });
}

// A click on the backdrop targets the dialog itself, a click inside targets a descendant. Press and release must both
// be outside: dragging a selection out of the window must not close it.
function closeOnOutsideClick(dialog, close) {
  let pressedOutside = false;
  dialog.addEventListener("pointerdown", (event) => {
    pressedOutside = event.target === dialog;
  });
  dialog.addEventListener("click", (event) => {
    if (pressedOutside && event.target === dialog) close();
  });
}

// Closes all open windows except deliberate ones, as when the page changes.
export function closeAllDialogs() {
  for (const dialog of document.querySelectorAll("dialog[open]:not([data-deliberate])")) dialog.close();
}

// Whether a window is open, as after a second click on a slow button.
export const isDialogOpen = () => document.querySelector("dialog[open]") !== null;
