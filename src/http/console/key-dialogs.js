// Owns the windows in which keys are created, edited, rotated and revoked. Each ends with `onDone`.

import { keys, models, namespaces } from "./api.js";
import { firstCommand, kubectlLines } from "./curl.js";
import { isDialogOpen, openDialog } from "./dialog.js";
import { element } from "./dom.js";
import { DAY } from "./format.js";
import { field, formAlert, radios, showErrors } from "./form.js";
import { formDialog } from "./form-dialog.js";
import { keyForm } from "./key-form.js";
import { canDraw } from "./key-text.js";
import { toastDone } from "./toast.js";
import { button, codeBlock, copyButton, notice } from "./widgets.js";

const FALLBACK_MODEL = "black-forest-labs/FLUX.1-dev";

export async function createKey(onDone) {
  const list = await namespaces();
  if (isDialogOpen()) return;
  const formId = "create-key-form";
  const { form, read } = keyForm({ id: formId, namespaces: list, onSubmit: () => dialog.onSubmit() });
  const send = async () => {
    const { body, errors } = read();
    if (errors.length > 0) return showErrors(form, errors);
    const created = await keys.create(body);
    // Shown over the form, which closes behind it: never is there a moment in which the value is nowhere.
    await showValue({ key: created, title: "API key created", namespaces: list });
    onDone(created);
    return true;
  };
  const dialog = formDialog({
    title: "Create API key",
    form,
    formId,
    label: "Create key",
    send,
    testid: "create-key-dialog",
  });
}

export async function editKey(key, onDone) {
  const list = await namespaces();
  if (isDialogOpen()) return;
  const formId = "edit-key-form";
  const { form, read } = keyForm({ id: formId, key, namespaces: list, onSubmit: () => dialog.onSubmit() });
  const send = async () => {
    const { body, errors } = read();
    if (errors.length > 0) return showErrors(form, errors);
    if (Object.keys(body).length > 0) {
      const edited = await keys.edit(key.id, body);
      toastDone(`Saved ${edited.name}. It holds from the next request on.`);
      onDone(edited);
    }
    return true;
  };
  const dialog = formDialog({
    title: `Edit ${key.name}`,
    form,
    formId,
    label: "Save",
    send,
    testid: "edit-key-dialog",
  });
}

const GRACES = [
  { value: "0", label: "None", hint: "The old value stops working at once. Right after a leak." },
  { value: "3600", label: "1 hour" },
  { value: String(DAY), label: "24 hours" },
  { value: String(7 * DAY), label: "7 days", hint: "The longest there is." },
];

export function rotateKey(key, onDone) {
  const formId = "rotate-key-form";
  const grace = radios("grace_seconds", "How long the old value goes on working", GRACES, "0");
  const submit = (event) => {
    event.preventDefault();
    dialog.onSubmit();
  };
  const form = element(
    "form",
    { id: formId, class: "form", on: { submit } },
    formAlert(),
    element(
      "p",
      null,
      "The key gets a new value and keeps its name, scope and limits. During the overlap both values work, so that nothing has to stop.",
    ),
    grace,
  );
  const send = async () => {
    const seconds = Number(form.querySelector("input:checked").value);
    const rotated = await keys.rotate(key.id, seconds);
    await showValue({ key: rotated, title: "API key rotated" });
    onDone(rotated);
    return true;
  };
  const dialog = formDialog({
    title: `Rotate ${key.name}`,
    form,
    formId,
    label: "Rotate key",
    send,
    testid: "rotate-key-dialog",
  });
}

export function revokeKey(key, onDone) {
  const formId = "revoke-key-form";
  const typed = element("input", {
    type: "text",
    id: "revoke-name",
    autocomplete: "off",
    spellcheck: "false",
    autofocus: true,
  });
  const submit = (event) => {
    event.preventDefault();
    if (typed.value.trim() === key.name.trim()) dialog.onSubmit();
  };
  const form = element(
    "form",
    { id: formId, class: "form", on: { submit } },
    formAlert(),
    element(
      "p",
      null,
      "Every request with ",
      element("code", null, key.prefix),
      " is refused from now on. This cannot be undone; the key stays in this list and in the audit log.",
    ),
    field("name", ["Type ", element("strong", null, key.name), " to confirm"], typed),
  );
  const send = async () => {
    const revoked = await keys.revoke(key.id);
    toastDone(`Revoked ${key.name}.`);
    onDone(revoked);
    return true;
  };
  const dialog = formDialog({
    title: `Revoke ${key.name}`,
    form,
    formId,
    label: "Revoke key",
    kind: "danger",
    send,
    testid: "revoke-key-dialog",
    submitAttributes: { disabled: true },
  });
  typed.addEventListener("input", () => {
    dialog.submit.disabled = typed.value.trim() !== key.name.trim();
  });
}

// Shows a key's value, this once. The promise is kept when somebody has said that it is stored.
async function showValue({ key, title, namespaces: list = null }) {
  const namespace = exampleNamespace(key.scope, list || []);
  const command = canDraw(key.scope)
    ? firstCommand(key.key, await exampleModel())
    : namespace && kubectlLines({ key: key.key, namespace: namespace.name });
  return new Promise((resolve) => {
    const close = openDialog({
      title,
      deliberate: true,
      wide: true,
      testid: "key-value-dialog",
      body: [
        notice(
          "warn",
          element("p", null, "Store this value now. Only a hash of it is kept, so it cannot be shown again."),
        ),
        element(
          "div",
          { class: "key-value" },
          element("code", { id: "key-value", data: { testid: "key-value" } }, key.key),
          copyButton(key.key, "Copy key", { autofocus: true, data: { testid: "copy-key" } }),
        ),
        command && element("h3", { class: "card-subtitle" }, "Try it"),
        command && codeBlock(command, "first commands with this key", { testid: "key-curl" }),
        namespace && element("p", { class: "hint" }, kubeconfigHint(namespace)),
      ],
      actions: [
        button("I have stored it", { kind: "primary", onClick: () => close(), data: { testid: "key-stored" } }),
      ],
      onClose: resolve,
    });
  });
}

// A namespace that a key lets kubectl into, an open one rather than another; nothing for a key that does something else.
function exampleNamespace({ kubernetes_exec: kubernetes }, list) {
  if (!kubernetes) return null;
  const allowed = list.filter(({ id }) => kubernetes.all_namespaces || kubernetes.namespace_ids.includes(id));
  return allowed.find(({ state }) => state === "open") || allowed[0] || null;
}

function kubeconfigHint({ name, state }) {
  const where = "The kubeconfig is on the page Kubernetes.";
  return state === "open" ? where : `${where} ${name} is not open yet: that page says what is missing.`;
}

// A model that draws, for the example; the catalog being out of reach must not cost the key's value.
async function exampleModel() {
  try {
    const list = await models.runtime();
    return (list.find((model) => model.available) || list[0])?.id || FALLBACK_MODEL;
  } catch {
    return FALLBACK_MODEL;
  }
}
