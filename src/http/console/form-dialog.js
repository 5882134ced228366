// Owns the windows around forms: reading, sending, and errors that belong to the fields.

import { openDialog } from "./dialog.js";
import { element, uniqueId } from "./dom.js";
import { clearErrors, formAlert, showErrors, showProblem } from "./form.js";
import { button, whileBusy } from "./widgets.js";

const noFields = () => ({ body: null, errors: [] });

// Opens a window around a form with `content`. Its button calls `send(body)` with what `read` returns as
// `{ body, errors }`; errors of either are shown in the form. The window closes if `send` returns true, or a function to
// call after closing. With `isReady` the button is disabled until that returns true. Returns the button.
export function formDialog({ title, content, label, kind = "primary", read = noFields, send, isReady, testid }) {
  const formId = uniqueId("dialog-form");
  const submit = element("button", { type: "submit", form: formId, class: `button button-${kind}` }, label);
  const onSubmit = async (event) => {
    event.preventDefault();
    if (isReady && !isReady()) return;
    clearErrors(form);
    const { body, errors } = read();
    if (errors.length > 0) {
      showErrors(form, errors);
      return;
    }
    try {
      await whileBusy(submit, async () => {
        const sent = await send(body);
        if (!sent) return;
        close();
        if (sent instanceof Function) sent();
      });
    } catch (error) {
      showProblem(form, error);
    }
  };
  const form = element(
    "form",
    { id: formId, class: "form", novalidate: true, on: { submit: onSubmit } },
    formAlert(),
    content,
  );
  if (isReady) {
    const update = () => {
      submit.disabled = !isReady();
    };
    form.addEventListener("input", update);
    update();
  }
  const close = openDialog({
    title,
    testid,
    body: form,
    actions: [button("Cancel", { onClick: () => close() }), submit],
  });
  return submit;
}
