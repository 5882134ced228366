// Owns the windows for adding, renaming and deleting namespaces. Each calls `onDone` after closing.

import { keys, kubernetes } from "./api.js";
import { element, replace, setText } from "./dom.js";
import { plural } from "./format.js";
import { clearErrors, field } from "./form.js";
import { formDialog } from "./form-dialog.js";
import { nameError } from "./namespace-text.js";
import { notice, paragraph } from "./widgets.js";

// For at most so many keys the page checks whether they would be left without a namespace.
const KEYS_LOOKED_UP_MAX = 20;

// A window that asks for a namespace's name. `send` gets a valid name.
function nameDialog({ title, label, value, hint, lead, send, testid }) {
  const input = element("input", {
    type: "text",
    name: "name",
    id: "namespace-name",
    autocomplete: "off",
    autocapitalize: "none",
    spellcheck: "false",
    required: true,
    autofocus: true,
    value,
  });
  const read = () => {
    const name = input.value.trim();
    const error = nameError(name);
    return { body: name, errors: error ? [["name", error]] : [] };
  };
  const sendName = async (name) => {
    try {
      return await send(name);
    } catch (problem) {
      if (problem.code === "namespace_exists") {
        problem.errors = [{ field: "name", reason: problem.message.replace(/\.$/, "") }];
      }
      throw problem;
    }
  };
  formDialog({ title, content: [lead, field("name", "Name", input, { hint })], label, read, send: sendName, testid });
}

export function addNamespace({ cluster, onDone }) {
  const byItself = "The worker opens it by itself.";
  const byHand = "The next window shows the two objects that open it.";
  nameDialog({
    title: "Add namespace",
    label: "Add namespace",
    testid: "add-namespace",
    hint: `Its name in the cluster, where it must exist. ${cluster.auto_open ? byItself : byHand}`,
    send: async (name) => {
      const added = await kubernetes.add(name);
      return () => onDone(added);
    },
  });
}

export function renameNamespace(namespace, { onDone }) {
  const { id, name } = namespace;
  nameDialog({
    title: `Rename ${name}`,
    label: "Rename",
    testid: "rename-namespace",
    value: name,
    lead: [
      paragraph("This renames nothing in the cluster: the same ID refers to a different namespace from now on."),
      notice(
        "warn",
        paragraph(
          "Keys with access to ",
          element("strong", null, name),
          " get access to the other namespace instead. Tokens for the old one end within seconds, and users need a new kubeconfig.",
        ),
      ),
    ],
    hint: "The other namespace's name in the cluster, where it must exist.",
    send: async (wanted) => {
      if (wanted === name) return true;
      const renamed = await kubernetes.rename(id, wanted);
      return () => onDone(renamed);
    },
  });
}

export function deleteNamespace(namespace, { onDone }) {
  const { id, name } = namespace;
  const place = element("div", { class: "form" });
  // Needed only if keys have the namespace in their scope.
  let consent = null;
  const read = () => {
    const errors = consent && !consent.checked ? [["force", "Tick this box to delete the namespace anyway"]] : [];
    return { body: { force: Boolean(consent) }, errors };
  };
  const send = async (options) => {
    try {
      await kubernetes.remove(id, options);
    } catch (problem) {
      if (problem.code !== "namespace_in_use") throw problem;
      consent = consentBox();
      replace(place, await usesView(problem, id), consentField(consent));
      setText(submit, "Delete anyway");
      consent.focus();
      return false;
    }
    return onDone;
  };
  const submit = formDialog({
    title: `Delete ${name}`,
    content: [
      paragraph(
        "Nothing is deleted in the cluster: what runs there keeps running. But no key gives access to ",
        element("strong", null, name),
        " anymore, and its tokens end within seconds.",
      ),
      place,
    ],
    label: "Delete namespace",
    kind: "danger",
    read,
    send,
    testid: "delete-namespace-dialog",
  });
}

const consentBox = () =>
  element("input", { type: "checkbox", id: "delete-force", "aria-describedby": "delete-force-error" });

// A checkbox, not just a second click: the first click may have been a double click.
function consentField(box) {
  const label = "Remove it from their scopes, and revoke keys that are left without a namespace";
  box.addEventListener("input", () => clearErrors(box.form));
  return element(
    "div",
    { class: "field", data: { field: "force" } },
    element("div", { class: "choice" }, box, element("label", { for: box.id }, label)),
    element("p", { class: "field-error", id: "delete-force-error" }),
  );
}

// The keys that have a namespace in their scope, and what happens to each.
async function usesView(problem, namespaceId) {
  const uses = problem.errors;
  const onlyHere = await keysWithOnly(namespaceId, uses);
  const use = ({ field: id, reason }) =>
    element(
      "li",
      null,
      element("a", { href: `#/keys/${encodeURIComponent(id)}` }, reason),
      onlyHere.has(id) && [" ", element("strong", null, "would be revoked")],
    );
  const view = notice(
    "warn",
    paragraph(element("strong", null, `${plural(uses.length, "key has", "keys have")} this namespace in scope.`)),
    paragraph("If you delete it anyway, they lose access to it. A key without another namespace is revoked, which cannot be undone."),
    element("ul", { class: "bullets", "aria-label": "Keys with this namespace" }, uses.map(use)),
  );
  view.setAttribute("role", "alert");
  return view;
}

// The ids of the keys that have no other namespace. Failed lookups are left out.
async function keysWithOnly(namespaceId, uses) {
  const looked = await Promise.allSettled(uses.slice(0, KEYS_LOOKED_UP_MAX).map(({ field: id }) => keys.show(id)));
  const hasOnly = ({ scope }) => scope.kubernetes_exec?.namespace_ids?.every((id) => id === namespaceId);
  return new Set(
    looked.filter(({ status, value }) => status === "fulfilled" && hasOnly(value)).map(({ value }) => value.id),
  );
}
