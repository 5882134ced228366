// Owns the cluster's status: whether it is reachable, what it lacks, and tokens that it has not revoked yet.

import { kubectlLines } from "./curl.js";
import { element } from "./dom.js";
import { exactMoment, plural, secondsUntil, sentence } from "./format.js";
import { badge, card, code, codeBlock, facts, notice, paragraph, steps, time } from "./widgets.js";

const REMOVALS_SHOWN_MAX = 10;
const REMOVAL_SECONDS = 5;

export function clusterCard(cluster) {
  return element(
    "section",
    { class: "card", data: { testid: "cluster" } },
    element(
      "div",
      { class: "card-head" },
      element("h2", { class: "card-title" }, "Cluster"),
      cluster.reachable ? badge("Reachable", "good") : badge("Not reachable", "bad"),
    ),
    element(
      "div",
      { class: "stack-small" },
      cluster.problem && problemNotice(cluster),
      clusterFacts(cluster),
      cluster.auto_open && autoOpenNotice(),
    ),
  );
}

function problemNotice({ reachable, problem }) {
  return notice(
    reachable ? "warn" : "bad",
    paragraph(sentence(problem)),
    paragraph("On the worker's machine, ", code("fluxserve kubernetes check"), " lists what is missing."),
  );
}

function clusterFacts({ server, version, namespace, auto_open: opensItself }) {
  return facts(
    [
      ["API server", code(server)],
      ["Version", version || element("span", { class: "muted" }, "Unknown")],
      ["Worker's namespace", code(namespace)],
      ["Namespaces are opened", opensItself ? "By this worker" : "By you, with two objects each"],
    ],
    { class: "facts facts-across" },
  );
}

function autoOpenNotice() {
  return notice(
    "warn",
    paragraph(element("strong", null, "This worker has the power of a cluster administrator.")),
    paragraph(
      "With ",
      code("auto_open"),
      " its account can bind the role ",
      code("fluxserve-namespace-user"),
      " in every namespace, including the system's. An attacker who controls the worker controls the cluster. Without this setting you apply two objects for each namespace, and the worker has rights in its own namespace only.",
    ),
  );
}

// Removals that are overdue. Every key that ends has pending removals for a moment.
export function overdueRemovals(removals) {
  return removals.filter(({ attempts, since }) => attempts > 0 || -secondsUntil(since) > REMOVAL_SECONDS);
}

// Objects, mostly tokens, whose removal the cluster has not confirmed; null if there are none.
export function removalsNotice(overdue) {
  if (overdue.length === 0) return null;
  const others = overdue.length - REMOVALS_SHOWN_MAX;
  return notice(
    "warn",
    paragraph(element("strong", null, "The cluster has not confirmed these removals")),
    paragraph(
      "These keys have lost access, but tokens issued to them may still work in the cluster. The worker keeps retrying.",
    ),
    element(
      "ul",
      { class: "removals", "aria-label": "Unconfirmed removals" },
      overdue.slice(0, REMOVALS_SHOWN_MAX).map(removalView),
      others > 0 && element("li", null, `And ${plural(others, "more", "more")}.`),
    ),
  );
}

function removalView({
  key_id: id,
  key_prefix: prefix,
  namespace,
  since,
  attempts,
  last_error: error,
  tokens_end_at: end,
}) {
  const what = id
    ? ["Tokens of ", element("a", { href: `#/keys/${encodeURIComponent(id)}` }, code(prefix)), " for "]
    : "Objects that opened ";
  return element(
    "li",
    null,
    paragraph(what, element("strong", null, namespace)),
    paragraph(
      "Since ",
      time(since),
      `, ${plural(attempts, "attempt")}.`,
      end && [" The tokens expire ", time(end), `, at ${exactMoment(end)}.`],
    ),
    error && paragraph("Last error: ", sentence(error)),
  );
}

// How a user gets access, from the key to the first command.
export function accessCard(namespace) {
  return card(
    "Give someone access",
    steps([
      [
        "Create an API key",
        paragraph(
          "On the page ",
          element("a", { href: "#/keys" }, "API keys"),
          ", with the scope Kubernetes exec and the namespaces the user needs. Such a key cannot generate images.",
        ),
      ],
      [
        "Hand over the key and the kubeconfig",
        paragraph("Each open namespace has a button for its kubeconfig. The file holds no secret; the key is secret."),
      ],
      [
        "The user runs kubectl",
        paragraph("This needs kubectl, sh and curl, as on Linux, macOS and WSL."),
        codeBlock(kubectlLines({ namespace }), "commands for the key's user", { testid: "kubectl-lines" }),
      ],
    ]),
  );
}
