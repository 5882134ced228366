// Owns the modal windows. The browser's own <dialog> keeps the focus inside and gives it back afterwards.

import { element, uniqueId } from "./dom.js";
import { iconButton } from "./widgets.js";

// Opens a window with a title and gives a function that closes it. With `deliberate` neither Escape nor a click beside
// it nor a cross closes it: what it shows will not be seen again.
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
  if (deliberate) refuseToSlipAway(dialog);
  else closeBeside(dialog, close);
  dialog.addEventListener("close", () => {
    dialog.remove();
    onClose?.();
  });
  document.body.append(dialog);
  dialog.showModal();
  dialog.querySelector("[autofocus]")?.focus();
  return close;
}

function refuseToSlipAway(dialog) {
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Escape") event.preventDefault();
  });
}

// A click on the backdrop arrives at the dialog itself, one inside at something within. Both ends of the click count:
// a selection that is drawn out of the window is no wish to close it.
function closeBeside(dialog, close) {
  let pressedBeside = false;
  dialog.addEventListener("pointerdown", (event) => {
    pressedBeside = event.target === dialog;
  });
  dialog.addEventListener("click", (event) => {
    if (pressedBeside && event.target === dialog) close();
  });
}

// Closes whatever is open, as when another page is shown; not what has to be closed deliberately.
export function closeAllDialogs() {
  for (const dialog of document.querySelectorAll("dialog[open]:not([data-deliberate])")) dialog.close();
}

// Whether there is one already, as after a second click on a button that took its time.
export const isDialogOpen = () => document.querySelector("dialog[open]") !== null;
