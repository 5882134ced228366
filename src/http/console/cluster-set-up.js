// Owns what the page of namespaces shows while this worker has no cluster: how to give it one.

import { element, setText } from "./dom.js";
import { toastProblem } from "./toast.js";
import { button, card, codeBlock, facts, steps, whileBusy } from "./widgets.js";

// `again` looks whether it has been done, and gives whether it has.
export function clusterSetUp(again) {
  return element("div", { class: "set-up" }, stepsCard(again), aboutCard(), otherWays());
}

const code = (text) => element("code", null, text);
const say = (...children) => element("p", null, children);

function stepsCard(again) {
  return card(
    "Connect a cluster",
    element("p", { class: "card-lead" }, "This worker has no cluster yet. Four steps give it one; they are done once."),
    steps([
      [
        "Prepare the cluster",
        say(
          "Where kubectl is signed in as an administrator of the cluster. It makes the namespace ",
          code("fluxserve"),
          " with an account for this worker, which has no rights outside it.",
        ),
        codeBlock("fluxserve kubernetes manifest | kubectl apply -f -", "command that prepares the cluster"),
      ],
      [
        "Connect this worker",
        say(
          "On the worker's machine, with the worker's data folder. The administrator's kubeconfig is used this once: what is kept is a token of the worker's own account.",
        ),
        codeBlock("fluxserve kubernetes connect --kubeconfig ~/.kube/config", "command that connects this worker"),
      ],
      [
        "Restart the worker",
        say(
          "It finds the connection in its data folder, and renews its token while it runs. Only after a week at rest it has to be connected again.",
        ),
      ],
      [
        "Check the connection",
        say("It says line by line what works and what is missing."),
        codeBlock("fluxserve kubernetes check", "command that checks the connection"),
        lookAgain(again),
      ],
    ]),
  );
}

function lookAgain(again) {
  const status = element("p", { class: "hint", role: "status" });
  const look = async () => {
    try {
      if (await whileBusy(control, again)) return;
      const now = new Date().toLocaleTimeString("en-US", { hourCycle: "h23" });
      setText(status, `At ${now} there was no cluster yet.`);
    } catch (error) {
      toastProblem(error);
    }
    control.focus();
  };
  const control = button("Look again", { symbol: "refresh", onClick: look, id: "look-again" });
  return element("div", { class: "step-action" }, control, status);
}

function aboutCard() {
  const list = [
    "An API key with the scope Kubernetes exec lets kubectl into the namespaces that you choose. Nobody needs an account in the cluster.",
    "A token that a key is turned into is good for ten minutes, and ends within seconds once the key is revoked.",
    "The worker calls the cluster, the cluster never calls the worker. Any cluster will do, also a managed one.",
    "Everything else here works without a cluster.",
  ];
  return card(
    "What it is for",
    element(
      "ul",
      { class: "bullets" },
      list.map((text) => element("li", null, text)),
    ),
  );
}

function otherWays() {
  return element(
    "details",
    { class: "card more" },
    element("summary", null, "Other ways to connect, and settings"),
    facts([
      ["The worker runs in the cluster", code("FLUXSERVE_KUBERNETES_IN_CLUSTER=true")],
      ["Another kubeconfig for the worker", code("FLUXSERVE_KUBERNETES_KUBECONFIG=/path/to/kubeconfig")],
      ["The API server's address for users", code("FLUXSERVE_KUBERNETES_SERVER=…")],
      ["Another namespace for its account", code("FLUXSERVE_KUBERNETES_NAMESPACE=…")],
      [
        "The worker opens namespaces by itself",
        [
          element("span", { class: "line" }, code("fluxserve kubernetes manifest --auto-open | kubectl apply -f -")),
          element("span", { class: "line" }, code("FLUXSERVE_KUBERNETES_AUTO_OPEN=true")),
          element(
            "span",
            { class: "line note is-warning" },
            "This lets the worker's account bind a role in every namespace: it is then as good as an administrator of the cluster.",
          ),
        ],
      ],
    ]),
  );
}
