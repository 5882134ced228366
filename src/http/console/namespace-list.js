// Owns the list of namespaces. It is brought up to date in place, so that neither focus nor selection is lost.

import { element, replace, setText } from "./dom.js";
import { lacks, stateBadge } from "./namespace-text.js";
import { button, emptyState, iconButton, table, tableRow, time } from "./widgets.js";

const COLUMNS = [
  { label: "Namespace", class: "cell-main" },
  { label: "State" },
  { label: "Checked" },
  { label: "Actions", class: "cell-actions", hidden: true },
];

// `onAdd` is what the first one is added with; `uses` holds what the buttons of a row do, each with the namespace as it is
// then: onObjects, onKubeconfig, onRename, onDelete.
export function namespaceList(onAdd, uses) {
  const frame = table("Namespaces", COLUMNS, []);
  const body = frame.querySelector("tbody");
  const nothing = noNamespaces(onAdd);
  const place = element("div");
  const rows = new Map();
  const update = (namespaces) => {
    for (const namespace of namespaces) {
      const row = rows.get(namespace.id);
      if (row) row.update(namespace);
      else rows.set(namespace.id, namespaceRow(namespace, uses));
    }
    const wanted = namespaces.map(({ id }) => rows.get(id).root);
    const isSame = wanted.length === body.children.length && wanted.every((row, index) => row === body.children[index]);
    if (!isSame) replace(body, wanted);
    const shown = namespaces.length > 0 ? frame : nothing;
    if (shown !== place.firstChild) replace(place, shown);
  };
  const root = element(
    "section",
    { class: "stack-small" },
    element("h2", { class: "section-title" }, "Namespaces"),
    place,
  );
  // Gives whether there is such a namespace.
  const focus = (id) => {
    const row = rows.get(id);
    row?.focus();
    return Boolean(row?.root.isConnected);
  };
  return { root, update, focus };
}

function noNamespaces(onAdd) {
  return emptyState(
    "kubernetes",
    "No namespaces yet",
    "Add one that is in the cluster. Keys can then be given access to it, and to it alone.",
    button("Add the first namespace", { kind: "primary", symbol: "plus", onClick: onAdd }),
  );
}

function namespaceRow(namespace, uses) {
  let current = namespace;
  let stateShown = null;
  const name = element("span", { class: "strong" });
  const state = element("div", { class: "cell-lines namespace-state" });
  const checked = element("span");
  const kubeconfig = button("Kubeconfig", {
    symbol: "download",
    class: "button button-plain button-small",
    onClick: () => uses.onKubeconfig(current),
  });
  const objects = iconButton("", "code", () => uses.onObjects(current));
  const rename = iconButton("", "edit", () => uses.onRename(current));
  const remove = iconButton("", "trash", () => uses.onDelete(current));
  const root = tableRow(
    COLUMNS,
    [
      element("div", { class: "key-name" }, name, element("code", null, namespace.id)),
      state,
      checked,
      element("div", { class: "row-actions" }, kubeconfig, objects, rename, remove),
    ],
    { data: { testid: "namespace-row", namespaceId: namespace.id } },
  );

  const showName = () => {
    setText(name, current.name);
    kubeconfig.setAttribute("aria-label", `Kubeconfig for ${current.name}`);
    const labels = [
      [objects, `Objects of ${current.name}`],
      [rename, `Rename ${current.name}`],
      [remove, `Delete ${current.name}`],
    ];
    for (const [control, label] of labels) {
      control.setAttribute("aria-label", label);
      control.title = label;
    }
  };
  const showState = () => {
    const text = JSON.stringify([current.state, current.missing, current.problem]);
    if (text === stateShown) return;
    stateShown = text;
    const hadFocus = state.contains(document.activeElement);
    replace(
      state,
      stateView(current, () => uses.onObjects(current)),
    );
    if (hadFocus) focus();
  };
  const focus = () => (state.querySelector("button") || kubeconfig).focus();
  const update = (next) => {
    current = next;
    showName();
    showState();
    replace(checked, next.checked_at ? time(next.checked_at) : element("span", { class: "muted" }, "Not yet"));
  };
  update(namespace);
  return { root, update, focus };
}

function stateView(namespace, onObjects) {
  return [
    stateBadge(namespace),
    lacks(namespace).map((text) => element("span", { class: "note" }, text)),
    namespace.state === "pending" &&
      button("Show what to apply", {
        symbol: "code",
        class: "button button-plain button-small",
        onClick: onObjects,
        "aria-label": `Show what to apply for ${namespace.name}`,
      }),
  ];
}
