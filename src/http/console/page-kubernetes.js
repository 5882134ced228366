// Owns the page of namespaces.

import { namespaces } from "./api.js";
import { element, replace } from "./dom.js";
import { words } from "./format.js";
import { badge, emptyState, linkButton, notice, pageHead, skeleton, table, tableRow } from "./widgets.js";

const COLUMNS = [{ label: "Namespace" }, { label: "State" }, { label: "ID" }];
const GOOD_STATES = ["active", "ready"];

export async function showKubernetes({ main, signal }) {
  const place = element("div", { class: "stack" }, skeleton(4));
  replace(main, pageHead("Kubernetes", "The namespaces that a Kubernetes exec key can let kubectl into."), place);
  const list = await namespaces(signal);
  if (list === null) {
    replace(place, noCluster());
    return;
  }
  if (list.length === 0) {
    replace(
      place,
      emptyState("kubernetes", "No namespaces", "The cluster has no namespace that belongs to this worker yet."),
    );
    return;
  }
  const rows = list.map((namespace) =>
    tableRow(COLUMNS, [
      element("span", { class: "strong" }, namespace.name),
      badge(words(namespace.state), GOOD_STATES.includes(namespace.state) ? "good" : "warn"),
      element("code", null, namespace.id),
    ]),
  );
  replace(
    place,
    table("Namespaces", COLUMNS, rows, { isPlain: true }),
    notice(
      "information",
      element(
        "p",
        null,
        "To let somebody in, create a key with the scope Kubernetes exec and choose the namespaces. Such a key cannot draw images.",
      ),
      linkButton("To API keys", "#/keys"),
    ),
  );
}

function noCluster() {
  return emptyState(
    "kubernetes",
    "No cluster is configured on this worker",
    "Once one is, its namespaces are listed here, and a key with the scope Kubernetes exec lets kubectl into them. Everything else works without a cluster.",
    linkButton("Read the API reference", "#/reference"),
  );
}
