// Owns the windows for what an administrator takes to the cluster: objects to apply, objects to delete, kubeconfigs.

import { kubernetes } from "./api.js";
import { kubectlLines, kubectlWith } from "./curl.js";
import { openDialog } from "./dialog.js";
import { element, replace, setText } from "./dom.js";
import { clearErrors, formAlert, radios, showProblem } from "./form.js";
import { icon } from "./icons.js";
import { lacks } from "./namespace-text.js";
import { button, code, codeBlock, notice, paragraph, segments, whileBusy } from "./widgets.js";

const FORMS = [
  ["command", "As a command"],
  ["yaml", "As YAML"],
];

const VERSIONS = [
  { value: "v1", label: "1.22 or newer" },
  { value: "v1beta1", label: "Before 1.22", hint: "As in Debian 12. Check with kubectl version --client." },
];

// Shows the objects that open a namespace, and their status in the cluster. Returns a function that updates the window
// with the namespace's present state.
export function showObjects(namespace, { cluster, formerly = null, onClose }) {
  const { name, objects } = namespace;
  const status = element("div", { class: "objects-status", role: "status" });
  const block = element("div", { class: "objects" });
  const after = element("p", { class: "hint" });
  const show = (form) => {
    const isCommand = form === "command";
    replace(
      block,
      isCommand
        ? codeBlock(kubectlWith("apply", objects), "command that applies the objects", { testid: "objects" })
        : codeBlock(objects, "objects as YAML", { testid: "objects" }),
    );
    replace(
      after,
      isCommand
        ? "Paste it into a terminal where kubectl is signed in as a cluster administrator."
        : [
            "Pass it to ",
            code("kubectl apply -f -"),
            " as a cluster administrator, or store it with the cluster's other manifests.",
          ],
    );
  };
  show("command");
  let last = null;
  const update = (current) => {
    const text = JSON.stringify([current.state, current.missing, current.problem]);
    if (text === last) return;
    last = text;
    replace(status, statusNotice(current, { cluster, wasPending: namespace.state !== "open" }));
  };
  update(namespace);
  const close = openDialog({
    title: namespace.state === "open" ? `Objects of ${name}` : `Open ${name} in the cluster`,
    wide: true,
    testid: "objects-dialog",
    body: [
      status,
      paragraph(
        "Two objects let the worker issue tokens for ",
        element("strong", null, name),
        ": an account in the worker's own namespace, and a role binding that gives this account access. Applying them twice does no harm.",
      ),
      element("div", null, segments("Form", FORMS, "command", show)),
      element("div", { class: "stack-small" }, block, after),
      podSecurity(name),
      namespaceHint(name),
      formerly && leftovers(formerly),
    ],
    actions: [button("Close", { onClick: () => close() })],
    onClose,
  });
  return update;
}

function statusNotice(namespace, { cluster, wasPending }) {
  const { name, state, problem } = namespace;
  const list = lacks(namespace);
  if (state === "open") {
    const isDone = wasPending && !problem;
    const next = isDone ? "Next, create a key for it and hand it over with the kubeconfig." : list.join(" ");
    return notice(problem ? "warn" : "good", paragraph(element("strong", null, `${name} is open. `), next));
  }
  const wait = cluster.auto_open
    ? "The worker opens it by itself and keeps retrying. You can also apply the objects yourself."
    : "This window updates when the objects are there.";
  return notice(
    problem ? "warn" : "information",
    paragraph(element("strong", null, "Not open yet. "), list.join(" ")),
    paragraph(wait),
  );
}

function podSecurity(name) {
  const command = `kubectl label --overwrite namespace ${name} pod-security.kubernetes.io/enforce=restricted`;
  return [
    paragraph("Users with access can start pods. Label the namespace so that these pods cannot take over their node:"),
    codeBlock(command, "command that labels the namespace"),
  ];
}

function namespaceHint(name) {
  return element(
    "details",
    { class: "more" },
    element("summary", null, "The namespace does not exist yet?"),
    codeBlock(`kubectl create namespace ${name}`, "command that creates the namespace"),
  );
}

function leftovers(namespace) {
  return element(
    "details",
    { class: "more" },
    element("summary", null, `Delete the objects of ${namespace.name}`),
    codeBlock(kubectlWith("delete --ignore-not-found", namespace.objects), "command that deletes the old objects"),
  );
}

// After a namespace was removed here: its objects in the cluster that are no longer needed.
export function showLeftovers(namespace) {
  const close = openDialog({
    title: `Leftover objects of ${namespace.name}`,
    wide: true,
    testid: "leftovers-dialog",
    body: [
      paragraph("Its two objects are still in the cluster. They give no access, but you may want to delete them:"),
      codeBlock(kubectlWith("delete --ignore-not-found", namespace.objects), "command that deletes the objects"),
    ],
    actions: [button("Done", { kind: "primary", onClick: () => close() })],
  });
}

// Offers a namespace's kubeconfig, with the commands for its user.
export function showKubeconfig(namespace) {
  const { id, name, state } = namespace;
  const version = radios("api_version", "Version of kubectl", VERSIONS, "v1");
  const form = element(
    "form",
    { id: "kubeconfig-form", class: "form", on: { submit: (event) => submit(event) } },
    formAlert(),
    version,
  );
  const place = element("span", { class: "icon-place" }, icon("download"));
  const caption = element("span", { "aria-live": "polite" }, "Download");
  const download = element(
    "button",
    { type: "submit", form: "kubeconfig-form", class: "button button-primary", autofocus: true },
    place,
    caption,
  );
  const submit = async (event) => {
    event.preventDefault();
    clearErrors(form);
    try {
      const chosen = form.querySelector("input:checked").value;
      const { filename, kubeconfig } = await whileBusy(download, () => kubernetes.kubeconfig(id, chosen));
      saveFile(filename, kubeconfig);
      setText(caption, "Downloaded");
      replace(place, icon("check"));
      download.focus();
    } catch (error) {
      showProblem(form, error);
    }
  };
  const close = openDialog({
    title: `Kubeconfig for ${name}`,
    testid: "kubeconfig-dialog",
    body: [
      state !== "open" && notice("warn", paragraph(`${name} is not open yet. Until it is, kubectl gets an error that says so.`)),
      paragraph(
        "For everyone who works in ",
        element("strong", null, name),
        ". It holds no secret: kubectl asks this worker for a token with the API key in ",
        code("REMOTEGPU_API_KEY"),
        ".",
      ),
      form,
      element("h3", { class: "card-subtitle" }, "Commands for the user"),
      codeBlock(kubectlLines({ namespace: name }), "commands for the key's user"),
    ],
    actions: [button("Close", { onClick: () => close() }), download],
  });
}

function saveFile(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/yaml" }));
  const link = element("a", { href: url, download: name });
  link.click();
  // By then the browser has started reading it.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
