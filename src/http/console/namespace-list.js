// Owns the list of namespaces. It is updated in place, to keep focus and selection.

import { element, replace, setText } from "./dom.js";
import { lacks, stateBadge } from "./namespace-text.js";
import { button, emptyState, iconButton, table, tableRow, time } from "./widgets.js";

const COLUMNS = [
  { label: "Namespace", class: "cell-main" },
  { label: "State" },
  { label: "Checked" },
  { label: "Actions", class: "cell-actions", hidden: true },
];

// `onAdd` adds the first namespace. `actions` holds the callbacks of a row's buttons: onObjects, onKubeconfig,
// onRename, onDelete. Each gets the namespace's present state.
export function namespaceList(onAdd, actions) {
  const frame = table("Namespaces", COLUMNS, []);
  const body = frame.querySelector("tbody");
  const nothing = noNamespaces(onAdd);
  const place = element("div");
  const rows = new Map();
  const update = (namespaces) => {
    for (const namespace of namespaces) {
      const row = rows.get(namespace.id);
      if (row) row.update(namespace);
      else rows.set(namespace.id, namespaceRow(namespace, actions));
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
  // Returns whether there is such a namespace.
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
    "Add one that exists in the cluster. You can then give keys access to it.",
    button("Add the first namespace", { kind: "primary", symbol: "plus", onClick: onAdd }),
  );
}

function namespaceRow(namespace, actions) {
  let current = namespace;
  let stateShown = null;
  const name = element("span", { class: "strong" });
  const state = element("div", { class: "cell-lines namespace-state" });
  const checked = element("span");
  const kubeconfig = button("Kubeconfig", {
    symbol: "download",
    class: "button button-plain button-small",
    onClick: () => actions.onKubeconfig(current),
  });
  const objects = iconButton("", "code", () => actions.onObjects(current));
  const rename = iconButton("", "edit", () => actions.onRename(current));
  const remove = iconButton("", "trash", () => actions.onDelete(current));
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
      stateView(current, () => actions.onObjects(current)),
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
      button("Show objects to apply", {
        symbol: "code",
        class: "button button-plain button-small",
        onClick: onObjects,
        "aria-label": `Show objects to apply for ${namespace.name}`,
      }),
  ];
}
