// Owns the fields of forms: their labels, hints and errors.

import { element, replace, setText, uniqueId } from "./dom.js";

// A control with its label, hint and error. `name` is the field's name in the API; errors refer to it.
export function field(name, label, control, { hint, beside, optional = false } = {}) {
  const id = control.id || uniqueId(`field-${name.replaceAll(".", "-")}`);
  const errorId = `${id}-error`;
  const hintId = `${id}-hint`;
  control.id = id;
  if (!control.name) control.setAttribute("name", name);
  control.setAttribute("aria-describedby", hint ? `${hintId} ${errorId}` : errorId);
  const error = element("p", { class: "field-error", id: errorId });
  // The user is correcting the mistake.
  control.addEventListener("input", () => {
    setText(error, "");
    control.removeAttribute("aria-invalid");
  });
  return element(
    "div",
    { class: "field", data: { field: name } },
    element("label", { for: id }, label, optional && element("span", { class: "optional" }, " optional")),
    beside ? element("div", { class: "field-row" }, control, beside) : control,
    hint && element("p", { class: "hint", id: hintId }, hint),
    error,
  );
}

// A group of radio buttons, each `{ value, label, hint? }`.
export function radios(name, legend, options, chosen, onChange) {
  const choice = ({ value, label, hint }) => {
    const id = uniqueId(`${name}-${value}`);
    const input = element("input", {
      type: "radio",
      name,
      value,
      id,
      checked: value === chosen,
      "aria-describedby": hint ? `${id}-hint` : null,
      on: onChange ? { change: () => onChange(value) } : {},
    });
    return element(
      "div",
      { class: "choice" },
      input,
      element(
        "div",
        null,
        element("label", { for: id }, label),
        hint && element("p", { class: "hint", id: `${id}-hint` }, hint),
      ),
    );
  };
  const errorId = uniqueId(`${name}-error`);
  return element(
    "fieldset",
    { class: "field", data: { field: name }, "aria-describedby": errorId },
    element("legend", null, legend),
    options.map(choice),
    element("p", { class: "field-error", id: errorId }),
  );
}

// A select of `[value, text]` pairs.
export function select(options, chosen, attributes = {}) {
  const control = element(
    "select",
    attributes,
    options.map(([value, text]) => element("option", { value }, text)),
  );
  if (chosen !== undefined && chosen !== null) control.value = chosen;
  return control;
}

// A slider with its value beside it, as a field. `write` makes the value's text.
export function slider(name, label, { hint, write = String, onInput, ...attributes }) {
  const control = element("input", { type: "range", id: uniqueId(name.replaceAll(".", "-")), ...attributes });
  const shown = element("output", { class: "range-value", for: control.id });
  const tell = () => setText(shown, write(control.value));
  const put = (value) => {
    control.value = value;
    tell();
  };
  control.addEventListener("input", () => {
    tell();
    onInput?.(Number(control.value));
  });
  tell();
  return { root: field(name, label, control, { hint, beside: shown }), put, read: () => Number(control.value) };
}

// The place for errors that belong to no field.
export function formAlert() {
  return element("div", { class: "form-alert", role: "alert" });
}

// Removes all errors from a form.
export function clearErrors(form) {
  for (const holder of form.querySelectorAll(".field-error")) setText(holder, "");
  for (const control of form.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
  for (const alert of form.querySelectorAll(".form-alert")) replace(alert);
}

// Shows a problem at the fields that it names, and the rest above the form.
export function showProblem(form, problem) {
  clearErrors(form);
  const left = [];
  let first = null;
  for (const { field: name, reason } of problem.errors || []) {
    const holder = form.querySelector(`[data-field="${CSS.escape(name)}"]`);
    if (!holder) {
      left.push(`${name}: ${reason}`);
      continue;
    }
    setText(holder.querySelector(".field-error"), reason.charAt(0).toUpperCase() + reason.slice(1));
    const control = holder.querySelector("input, select, textarea");
    control?.setAttribute("aria-invalid", "true");
    first ??= control;
  }
  if (!first || left.length > 0) {
    const lines = left.length > 0 ? left : [problem.message];
    replace(
      form.querySelector(".form-alert"),
      lines.map((line) => element("p", null, line)),
      problem.requestId && element("p", { class: "request-id" }, `Request ${problem.requestId}`),
    );
  }
  first?.focus();
}

// Shows errors that were found before sending, as `[[field, reason], …]`.
export function showErrors(form, errors) {
  showProblem(form, { errors: errors.map(([name, reason]) => ({ field: name, reason })), message: "" });
}

// The number in a field, or null if it is empty.
export function numberOf(control) {
  const text = control.value.trim();
  return text === "" ? null : Number(text);
}
