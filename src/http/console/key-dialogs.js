// Owns the windows for creating, editing, rotating and revoking keys. Each calls `onDone` at the end.

import { keys, models, namespaces, projects } from "./api.js";
import { firstCommand, kubectlLines } from "./curl.js";
import { isDialogOpen, openDialog } from "./dialog.js";
import { element } from "./dom.js";
import { DAY } from "./format.js";
import { field, radios } from "./form.js";
import { formDialog } from "./form-dialog.js";
import { keyForm } from "./key-form.js";
import { canGenerate } from "./key-text.js";
import { toastDone } from "./toast.js";
import { button, code, codeBlock, copyButton, notice, paragraph } from "./widgets.js";

const FALLBACK_MODEL = "black-forest-labs/FLUX.1-dev";

export async function createKey(onDone) {
  const [list, offered] = await Promise.all([namespaces(), projects.list()]);
  if (isDialogOpen()) return;
  const { content, read } = keyForm({ namespaces: list, projects: offered });
  formDialog({
    title: "Create API key",
    content,
    label: "Create key",
    read,
    send: async (body) => {
      const created = await keys.create(body);
      // Shown over the form, which closes behind it: at no moment is the value nowhere on the screen.
      await showValue({ key: created, title: "API key created", namespaces: list });
      onDone(created);
      return true;
    },
    testid: "create-key-dialog",
  });
}

export async function editKey(key, onDone) {
  const [list, offered] = await Promise.all([namespaces(), projects.list()]);
  if (isDialogOpen()) return;
  const { content, read } = keyForm({ key, namespaces: list, projects: offered });
  formDialog({
    title: `Edit ${key.name}`,
    content,
    label: "Save",
    read,
    send: async (changes) => {
      if (Object.keys(changes).length > 0) {
        const edited = await keys.edit(key.id, changes);
        toastDone(`Saved ${edited.name}. The changes apply to the next request.`);
        onDone(edited);
      }
      return true;
    },
    testid: "edit-key-dialog",
  });
}

const GRACES = [
  { value: "0", label: "None", hint: "The old value stops working at once, as needed after a leak." },
  { value: "3600", label: "1 hour" },
  { value: String(DAY), label: "24 hours" },
  { value: String(7 * DAY), label: "7 days", hint: "The maximum." },
];

export function rotateKey(key, onDone) {
  const grace = radios("grace_seconds", "How long the old value keeps working", GRACES, "0");
  formDialog({
    title: `Rotate ${key.name}`,
    content: [
      paragraph(
        "The key gets a new value and keeps its name, scope and limits. During the overlap both values work, so that clients can switch without an interruption.",
      ),
      grace,
    ],
    label: "Rotate key",
    send: async () => {
      const rotated = await keys.rotate(key.id, Number(grace.querySelector("input:checked").value));
      await showValue({ key: rotated, title: "API key rotated" });
      onDone(rotated);
      return true;
    },
    testid: "rotate-key-dialog",
  });
}

export function revokeKey(key, onDone) {
  const typed = element("input", {
    type: "text",
    id: "revoke-name",
    autocomplete: "off",
    spellcheck: "false",
    autofocus: true,
  });
  formDialog({
    title: `Revoke ${key.name}`,
    content: [
      paragraph(
        "Every request with ",
        code(key.prefix),
        " is refused from now on. This cannot be undone. The key stays in this list and in the audit log.",
      ),
      field("name", ["Type ", element("strong", null, key.name), " to confirm"], typed),
    ],
    label: "Revoke key",
    kind: "danger",
    send: async () => {
      const revoked = await keys.revoke(key.id);
      toastDone(`Revoked ${key.name}.`);
      onDone(revoked);
      return true;
    },
    isReady: () => typed.value.trim() === key.name.trim(),
    testid: "revoke-key-dialog",
  });
}

// Shows a key's value once. The promise resolves when the user confirms that it is stored.
async function showValue({ key, title, namespaces: list = null }) {
  const namespace = exampleNamespace(key.scope, list || []);
  const command = canGenerate(key.scope)
    ? firstCommand(key.key, await exampleModel())
    : namespace && kubectlLines({ key: key.key, namespace: namespace.name });
  return new Promise((resolve) => {
    const close = openDialog({
      title,
      deliberate: true,
      wide: true,
      testid: "key-value-dialog",
      body: [
        notice("warn", paragraph("Store this value now. Only its hash is kept, so it cannot be shown again.")),
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

// A namespace that a key gives access to, preferably an open one; null if there is none.
function exampleNamespace({ kubernetes_exec: kubernetes }, list) {
  if (!kubernetes) return null;
  const allowed = list.filter(({ id }) => kubernetes.all_namespaces || kubernetes.namespace_ids.includes(id));
  return allowed.find(({ state }) => state === "open") || allowed[0] || null;
}

function kubeconfigHint({ name, state }) {
  const where = "The kubeconfig is on the Kubernetes page.";
  return state === "open" ? where : `${where} ${name} is not open yet; that page shows what is missing.`;
}

// A ready model for the example. An unreachable catalog must not cost the key's value.
async function exampleModel() {
  try {
    const list = await models.runtime();
    return (list.find((model) => model.available) || list[0])?.id || FALLBACK_MODEL;
  } catch {
    return FALLBACK_MODEL;
  }
}
