// Owns what is said of the cluster: whether it can be reached, what it lacks, and tokens that it has not taken back yet.

import { kubectlLines } from "./curl.js";
import { element } from "./dom.js";
import { exactMoment, plural, secondsUntil, sentence } from "./format.js";
import { badge, card, codeBlock, facts, notice, steps, time } from "./widgets.js";

const REMOVALS_SHOWN_MAX = 10;
const REMOVAL_SECONDS = 5;

const say = (...children) => element("p", null, children);
const code = (text) => element("code", null, text);

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
    say(sentence(problem)),
    say("On the worker's machine, ", code("fluxserve kubernetes check"), " says line by line what is missing."),
  );
}

function clusterFacts({ server, version, namespace, auto_open: opensItself }) {
  return facts(
    [
      ["API server", code(server)],
      ["Version", version || element("span", { class: "muted" }, "Not known")],
      ["Worker's namespace", code(namespace)],
      ["Namespaces are opened", opensItself ? "By this worker" : "By you, with two objects"],
    ],
    { class: "facts facts-across" },
  );
}

function autoOpenNotice() {
  return notice(
    "warn",
    say(element("strong", null, "This worker is as good as an administrator of the cluster.")),
    say(
      "With ",
      code("auto_open"),
      " its account can bind the role ",
      code("fluxserve-namespace-user"),
      " in every namespace, those of the system included. Whoever takes over the worker takes over the cluster. Without it you apply two objects for each namespace, and it has no rights but in its own.",
    ),
  );
}

// Those removals that are worth a word: for a moment each key that ends has some.
export function overdueRemovals(removals) {
  return removals.filter(({ attempts, since }) => attempts > 0 || -secondsUntil(since) > REMOVAL_SECONDS);
}

// What should be gone from the cluster, tokens for the most part, and is not known to be; null where all is.
export function removalsNotice(overdue) {
  if (overdue.length === 0) return null;
  const others = overdue.length - REMOVALS_SHOWN_MAX;
  return notice(
    "warn",
    say(element("strong", null, "The cluster has not confirmed that this is gone")),
    say(
      "These keys may no longer enter, but tokens that they were given may still work in the cluster. The worker goes on trying by itself.",
    ),
    element(
      "ul",
      { class: "removals", "aria-label": "Not confirmed to be gone" },
      overdue.slice(0, REMOVALS_SHOWN_MAX).map(removalView),
      others > 0 && element("li", null, `And ${plural(others, "other")}.`),
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
    : "What had opened ";
  return element(
    "li",
    null,
    say(what, element("strong", null, namespace)),
    say(
      "Since ",
      time(since),
      `, ${plural(attempts, "attempt")}.`,
      end && [" They end by themselves ", time(end), `, at ${exactMoment(end)}.`],
    ),
    error && say("Last error: ", sentence(error)),
  );
}

// How somebody gets in, from the key to the first command.
export function accessCard(namespace) {
  return card(
    "Let somebody in",
    steps([
      [
        "Create a key for them",
        say(
          "On the page ",
          element("a", { href: "#/keys" }, "API keys"),
          ", with the scope Kubernetes exec and the namespaces that they need. Such a key cannot draw.",
        ),
      ],
      [
        "Hand over the key and the kubeconfig",
        say("Each open namespace has a button for its kubeconfig. The file holds no secret; the key is one."),
      ],
      [
        "They run kubectl",
        say("Beside kubectl it needs sh and curl, as on Linux, macOS and WSL."),
        codeBlock(kubectlLines({ namespace }), "lines for the user of a key", { testid: "kubectl-lines" }),
      ],
    ]),
  );
}
