// Owns what the Kubernetes page shows while this worker has no cluster: how to connect one.

import { element, setText } from "./dom.js";
import { toastProblem } from "./toast.js";
import { button, card, code, codeBlock, facts, paragraph, steps, whileBusy } from "./widgets.js";

// `again` checks for a cluster and returns whether there is one.
export function clusterSetUp(again) {
  return element("div", { class: "set-up" }, stepsCard(again), aboutCard(), otherWays());
}

function stepsCard(again) {
  return card(
    "Connect a cluster",
    element("p", { class: "card-lead" }, "This worker has no cluster yet. Connect one in four steps; each is done once."),
    steps([
      [
        "Prepare the cluster",
        paragraph(
          "Run this where kubectl is signed in as a cluster administrator. It creates the namespace ",
          code("fluxserve"),
          " with an account for this worker. The account has no rights outside it.",
        ),
        codeBlock("fluxserve kubernetes manifest | kubectl apply -f -", "command that prepares the cluster"),
      ],
      [
        "Connect this worker",
        paragraph(
          "Run this on the worker's machine, with the worker's data folder. It uses the administrator's kubeconfig once and keeps only a token of the worker's own account.",
        ),
        codeBlock("fluxserve kubernetes connect --kubeconfig ~/.kube/config", "command that connects this worker"),
      ],
      [
        "Restart the worker",
        paragraph(
          "It finds the connection in its data folder and renews its token while it runs. After a week offline, connect it again.",
        ),
      ],
      [
        "Check the connection",
        paragraph("This lists what works and what is missing."),
        codeBlock("fluxserve kubernetes check", "command that checks the connection"),
        checkAgain(again),
      ],
    ]),
  );
}

function checkAgain(again) {
  const status = element("p", { class: "hint", role: "status" });
  const check = async () => {
    try {
      if (await whileBusy(control, again)) return;
      const now = new Date().toLocaleTimeString("en-US", { hourCycle: "h23" });
      setText(status, `No cluster yet, checked at ${now}.`);
    } catch (error) {
      toastProblem(error);
    }
    control.focus();
  };
  const control = button("Check again", { symbol: "refresh", onClick: check, id: "check-again" });
  return element("div", { class: "step-action" }, control, status);
}

function aboutCard() {
  const list = [
    "An API key with the scope Kubernetes exec gives kubectl access to the namespaces you choose. Its user needs no account in the cluster.",
    "A key is exchanged for tokens that last ten minutes. Revoking the key ends them within seconds.",
    "The worker calls the cluster; the cluster never calls the worker. Any cluster works, including managed ones.",
    "Image generation and everything else here works without a cluster.",
  ];
  return card(
    "What a cluster is for",
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
    element("summary", null, "Other ways to connect and more settings"),
    facts([
      ["The worker runs in the cluster", code("FLUXSERVE_KUBERNETES_IN_CLUSTER=true")],
      ["Another kubeconfig for the worker", code("FLUXSERVE_KUBERNETES_KUBECONFIG=/path/to/kubeconfig")],
      ["The API server's address as users see it", code("FLUXSERVE_KUBERNETES_SERVER=…")],
      ["Another namespace for the worker's account", code("FLUXSERVE_KUBERNETES_NAMESPACE=…")],
      [
        "The worker opens namespaces itself",
        [
          element("span", { class: "line" }, code("fluxserve kubernetes manifest --auto-open | kubectl apply -f -")),
          element("span", { class: "line" }, code("FLUXSERVE_KUBERNETES_AUTO_OPEN=true")),
          element(
            "span",
            { class: "line note is-warning" },
            "This lets the worker's account bind a role in every namespace, which gives it the power of a cluster administrator.",
          ),
        ],
      ],
    ]),
  );
}
