// Owns the windows with what goes between this worker and the cluster by hand: objects to apply, objects that are left,
// kubeconfigs.

import { kubernetes } from "./api.js";
import { kubectlLines, kubectlWith } from "./curl.js";
import { openDialog } from "./dialog.js";
import { element, replace, setText } from "./dom.js";
import { clearErrors, formAlert, radios, showProblem } from "./form.js";
import { icon } from "./icons.js";
import { lacks } from "./namespace-text.js";
import { button, codeBlock, notice, segments, whileBusy } from "./widgets.js";

const FORMS = [
  ["command", "As a command"],
  ["yaml", "As YAML"],
];

const VERSIONS = [
  { value: "v1", label: "1.22 or newer" },
  { value: "v1beta1", label: "Before 1.22", hint: "As in Debian 12. kubectl version --client tells which it is." },
];

const code = (text) => element("code", null, text);
const say = (...children) => element("p", null, children);

// Shows the objects that open a namespace, and how far the cluster is with them. Gives a function that tells the window
// of the namespace's present state.
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
        ? "Paste it into a terminal where kubectl is signed in as an administrator of the cluster."
        : [
            "Hand it to ",
            code("kubectl apply -f -"),
            " as an administrator of the cluster, or put it where the cluster's other objects are kept.",
          ],
    );
  };
  show("command");
  let last = null;
  const update = (current) => {
    const text = JSON.stringify([current.state, current.missing, current.problem]);
    if (text === last) return;
    last = text;
    replace(status, statusNotice(current, { cluster, hasWaited: namespace.state !== "open" }));
  };
  update(namespace);
  const close = openDialog({
    title: namespace.state === "open" ? `Objects of ${name}` : `Open ${name} in the cluster`,
    wide: true,
    testid: "objects-dialog",
    body: [
      status,
      say(
        "Two objects let the worker give tokens for ",
        element("strong", null, name),
        ": an account in its own namespace, and a role binding that lets this account in. Applying them twice does no harm.",
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

function statusNotice(namespace, { cluster, hasWaited }) {
  const { name, state, problem } = namespace;
  const list = lacks(namespace);
  if (state === "open") {
    const isDone = hasWaited && !problem;
    const next = isDone ? "Next, create a key for it and hand that over with the kubeconfig." : list.join(" ");
    return notice(problem ? "warn" : "good", say(element("strong", null, `${name} is open. `), next));
  }
  const wait = cluster.auto_open
    ? "The worker opens it by itself and goes on trying. You can apply the objects yourself as well."
    : "This window notices by itself once the objects are there.";
  return notice(
    problem ? "warn" : "information",
    say(element("strong", null, "Not open yet. "), list.join(" ")),
    say(wait),
  );
}

function podSecurity(name) {
  const command = `kubectl label --overwrite namespace ${name} pod-security.kubernetes.io/enforce=restricted`;
  return [
    say("Who is let in can start pods. Label the namespace, so that these cannot take over the node they run on:"),
    codeBlock(command, "command that labels the namespace"),
  ];
}

function namespaceHint(name) {
  return element(
    "details",
    { class: "more" },
    element("summary", null, "The cluster has no such namespace yet?"),
    codeBlock(`kubectl create namespace ${name}`, "command that makes the namespace"),
  );
}

function leftovers(namespace) {
  return element(
    "details",
    { class: "more" },
    element("summary", null, `Take away what is left of ${namespace.name}`),
    codeBlock(kubectlWith("delete --ignore-not-found", namespace.objects), "command that takes the old objects away"),
  );
}

// After a namespace went from here: what is of no use in the cluster any more.
export function showLeftovers(namespace) {
  const close = openDialog({
    title: `What is left of ${namespace.name}`,
    wide: true,
    testid: "leftovers-dialog",
    body: [
      say("Its two objects are still in the cluster. They let nobody in, but you may want to take them away:"),
      codeBlock(kubectlWith("delete --ignore-not-found", namespace.objects), "command that takes the objects away"),
    ],
    actions: [button("Done", { kind: "primary", onClick: () => close() })],
  });
}

// Offers a namespace's kubeconfig, with what its user types.
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
      state !== "open" && notice("warn", say(`${name} is not open yet. Until it is, kubectl is told so.`)),
      say(
        "For everybody who works in ",
        element("strong", null, name),
        ". It holds no secret: with it kubectl asks this worker for a token, with the API key that is in ",
        code("REMOTEGPU_API_KEY"),
        ".",
      ),
      form,
      element("h3", { class: "card-subtitle" }, "What they type"),
      codeBlock(kubectlLines({ namespace: name }), "lines for the user of a key"),
    ],
    actions: [button("Close", { onClick: () => close() }), download],
  });
}

function saveFile(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/yaml" }));
  const link = element("a", { href: url, download: name });
  link.click();
  // The browser has begun to read it by then.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
