// Owns the windows in which namespaces are added, renamed and deleted. Each ends with `onDone`, once it is closed.

import { keys, kubernetes } from "./api.js";
import { element, replace, setText } from "./dom.js";
import { plural } from "./format.js";
import { clearErrors, field, formAlert, showErrors } from "./form.js";
import { formDialog } from "./form-dialog.js";
import { nameError } from "./namespace-text.js";
import { notice } from "./widgets.js";

// Of so many keys it is looked up whether they are left with no namespace.
const KEYS_LOOKED_UP_MAX = 20;

const say = (...children) => element("p", null, children);

// A form with a namespace's name. `send` is given a name that can be one.
function nameDialog({ title, label, value, hint, lead, send, testid }) {
  const formId = `${testid}-form`;
  const name = element("input", {
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
  const submit = (event) => {
    event.preventDefault();
    dialog.onSubmit();
  };
  const form = element(
    "form",
    { id: formId, class: "form", novalidate: true, on: { submit } },
    formAlert(),
    lead,
    field("name", "Name", name, { hint }),
  );
  const sendName = async () => {
    const wanted = name.value.trim();
    const error = nameError(wanted);
    if (error) return showErrors(form, [["name", error]]);
    try {
      return await send(wanted);
    } catch (problem) {
      if (problem.code !== "namespace_exists") throw problem;
      return showErrors(form, [["name", problem.message.replace(/\.$/, "")]]);
    }
  };
  const dialog = formDialog({ title, form, formId, label, send: sendName, testid });
}

export function addNamespace({ cluster, onDone }) {
  const byItself = "The worker opens it by itself.";
  const byHand = "Afterwards you are shown the two objects that open it.";
  nameDialog({
    title: "Add namespace",
    label: "Add namespace",
    testid: "add-namespace",
    hint: `As it is called in the cluster, where it must exist. ${cluster.auto_open ? byItself : byHand}`,
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
      say("Nothing in the cluster is renamed: the same ID stands for another of its namespaces instead."),
      notice(
        "warn",
        say(
          "Keys that may enter ",
          element("strong", null, name),
          " may enter the other one from now on. Tokens for the old one end within seconds, and its kubeconfig has to be downloaded anew.",
        ),
      ),
    ],
    hint: "As the other one is called in the cluster, where it must exist.",
    send: async (wanted) => {
      if (wanted === name) return true;
      const renamed = await kubernetes.rename(id, wanted);
      return () => onDone(renamed);
    },
  });
}

export function deleteNamespace(namespace, { onDone }) {
  const { id, name } = namespace;
  const formId = "delete-namespace-form";
  const place = element("div", { class: "form" });
  // Asked for only where keys have the namespace in their scope.
  let consent = null;
  const submit = (event) => {
    event.preventDefault();
    dialog.onSubmit();
  };
  const form = element(
    "form",
    { id: formId, class: "form", on: { submit } },
    formAlert(),
    say(
      "Nothing is deleted in the cluster: what runs there stays. But no key lets anybody into ",
      element("strong", null, name),
      " any more, and tokens for it end within seconds.",
    ),
    place,
  );
  const send = async () => {
    if (consent && !consent.checked) return showErrors(form, [["force", "Tick this to delete it all the same"]]);
    try {
      await kubernetes.remove(id, { force: Boolean(consent) });
    } catch (problem) {
      if (problem.code !== "namespace_in_use") throw problem;
      consent = consentBox();
      replace(place, await usesView(problem, id), consentField(consent));
      setText(dialog.submit, "Delete anyway");
      consent.focus();
      return false;
    }
    return onDone;
  };
  const dialog = formDialog({
    title: `Delete ${name}`,
    form,
    formId,
    label: "Delete namespace",
    kind: "danger",
    send,
    testid: "delete-namespace-dialog",
  });
}

const consentBox = () =>
  element("input", { type: "checkbox", id: "delete-force", "aria-describedby": "delete-force-error" });

// A tick and not only a second click: the first may have been a double one.
function consentField(box) {
  const label = "Take it out of their scopes, and revoke keys that are left with none";
  box.addEventListener("input", () => clearErrors(box.form));
  return element(
    "div",
    { class: "field", data: { field: "force" } },
    element("div", { class: "choice" }, box, element("label", { for: box.id }, label)),
    element("p", { class: "field-error", id: "delete-force-error" }),
  );
}

// The keys that have a namespace in their scope, and what becomes of each.
async function usesView(problem, namespaceId) {
  const uses = problem.errors;
  const lonely = await keysWithOnly(namespaceId, uses);
  const use = ({ field: id, reason }) =>
    element(
      "li",
      null,
      element("a", { href: `#/keys/${encodeURIComponent(id)}` }, reason),
      lonely.has(id) && [" ", element("strong", null, "would be revoked")],
    );
  const view = notice(
    "warn",
    say(element("strong", null, `${plural(uses.length, "key has", "keys have")} it in the scope.`)),
    say("If you delete it all the same, they lose it. A key that has no other is revoked, which cannot be undone."),
    element("ul", { class: "bullets", "aria-label": "Keys with this namespace" }, uses.map(use)),
  );
  view.setAttribute("role", "alert");
  return view;
}

// The ids of those that have no other namespace. What cannot be looked up is not said.
async function keysWithOnly(namespaceId, uses) {
  const looked = await Promise.allSettled(uses.slice(0, KEYS_LOOKED_UP_MAX).map(({ field: id }) => keys.show(id)));
  const hasOnly = ({ scope }) => scope.kubernetes_exec?.namespace_ids?.every((id) => id === namespaceId);
  return new Set(
    looked.filter(({ status, value }) => status === "fulfilled" && hasOnly(value)).map(({ value }) => value.id),
  );
}
