// Owns the windows around forms: sending, waiting, and errors that go back to the fields.

import { openDialog } from "./dialog.js";
import { element } from "./dom.js";
import { clearErrors, showProblem } from "./form.js";
import { button, whileBusy } from "./widgets.js";

// A window around a form. `send` is what its button does; what that throws is shown in the form. The window closes when
// it gives something: true, or a function that is called once the window is gone.
export function formDialog({ title, form, formId, label, kind = "primary", send, testid, submitAttributes = {} }) {
  const submit = element(
    "button",
    { type: "submit", form: formId, class: `button button-${kind}`, ...submitAttributes },
    label,
  );
  const close = openDialog({
    title,
    testid,
    body: form,
    actions: [button("Cancel", { onClick: () => close() }), submit],
  });
  const onSubmit = async () => {
    clearErrors(form);
    try {
      await whileBusy(submit, async () => {
        const sent = await send();
        if (!sent) return;
        close();
        if (sent instanceof Function) sent();
      });
    } catch (error) {
      showProblem(form, error);
    }
  };
  return { onSubmit, submit };
}
