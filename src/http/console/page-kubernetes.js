// Owns the page of the cluster and its namespaces.

import { hasNoCluster, kubernetes } from "./api.js";
import { accessCard, clusterCard, overdueRemovals, removalsNotice } from "./cluster-card.js";
import { clusterSetUp } from "./cluster-set-up.js";
import { element, replace, setText } from "./dom.js";
import { relative } from "./format.js";
import { addNamespace, deleteNamespace, renameNamespace } from "./namespace-dialogs.js";
import { showKubeconfig, showLeftovers, showObjects } from "./namespace-objects.js";
import { namespaceList } from "./namespace-list.js";
import { repeat } from "./router.js";
import { toastDone } from "./toast.js";
import { button, pageHead, problemView, skeleton } from "./widgets.js";

const REFRESH_MS = 4000;
const EXAMPLE_NAME = "team-a";

export async function showKubernetes(page) {
  const { main, signal } = page;
  const add = button("Add namespace", { kind: "primary", symbol: "plus", id: "add-namespace", hidden: true });
  const place = element("div", { class: "stack" }, skeleton(6));
  const description = "Let people run kubectl in the namespaces you choose, with an API key instead of a cluster account.";
  replace(main, pageHead("Kubernetes", description, add), place);
  let state;
  try {
    state = await ask(signal);
  } catch (error) {
    if (!hasNoCluster(error)) throw error;
    replace(
      place,
      clusterSetUp(() => checkAgain(page)),
    );
    return;
  }
  const view = buildView({ add, state, signal });
  add.hidden = false;
  replace(place, view.root);
  setTimeout(() => repeat(view.refresh, REFRESH_MS, signal), REFRESH_MS);
}

async function ask(signal) {
  const [cluster, namespaces] = await Promise.all([kubernetes.cluster(signal), kubernetes.namespaces(signal)]);
  return { cluster, namespaces };
}

function buildView({ add, state: first, signal }) {
  let state = first;
  let latest = 0;
  const trouble = element("div");
  const removals = renewed(removalsNotice);
  const cluster = renewed(clusterCard);
  const access = renewed(accessCard);

  const refresh = async () => {
    latest += 1;
    const mine = latest;
    try {
      const next = await ask(signal);
      // Drops an answer that was requested before a change.
      if (mine !== latest) return;
      replace(trouble);
      windows.tell(state.namespaces, next.namespaces);
      state = next;
      show();
    } catch (error) {
      if (error.name === "AbortError" || error.status === 401 || mine !== latest) return;
      if (!trouble.firstChild) replace(trouble, problemView(error));
    }
  };
  const windows = namespaceWindows({
    cluster: () => state.cluster,
    refresh,
    focusList: (id) => (id && list.focus(id)) || add.focus(),
  });
  const list = namespaceList(windows.onAdd, windows);
  const show = () => {
    removals.update(overdueRemovals(state.cluster.pending_removals));
    cluster.update(state.cluster);
    list.update(state.namespaces);
    access.update((state.namespaces.find(isOpen) || state.namespaces[0])?.name || EXAMPLE_NAME);
  };
  add.addEventListener("click", windows.onAdd);
  show();
  const root = element("div", { class: "stack" }, trouble, removals.root, cluster.root, list.root, access.root);
  return { root, refresh };
}

const isOpen = ({ state }) => state === "open";

// The callbacks of the buttons, and `tell`, which reports that a namespace has been opened: in the window that waits
// for it, or in a toast. `cluster()` is the cluster's present state; `focusList` puts the focus on a namespace, or
// above the list.
function namespaceWindows({ cluster, refresh, focusList }) {
  let waiting = null;
  const tell = (before, after) => {
    const wasPending = new Set(before.filter((namespace) => !isOpen(namespace)).map(({ id }) => id));
    for (const namespace of after) {
      if (namespace.id === waiting?.id) waiting.update(namespace);
      else if (isOpen(namespace) && wasPending.has(namespace.id)) toastDone(`${namespace.name} is open.`);
    }
  };
  const openObjects = (namespace, formerly = null) => {
    const onClose = () => {
      waiting = null;
      // The button that opened the window is gone if there is nothing left to apply.
      if (document.activeElement === document.body) focusList(namespace.id);
    };
    waiting = { id: namespace.id, update: showObjects(namespace, { cluster: cluster(), formerly, onClose }) };
  };
  const onAdded = (namespace) => {
    refresh();
    if (isOpen(namespace)) toastDone(`Added ${namespace.name}. It is open.`);
    else openObjects(namespace);
  };
  const onRenamed = (before) => (namespace) => {
    refresh();
    const left = isOpen(before) ? before : null;
    if (!isOpen(namespace)) return openObjects(namespace, left);
    toastDone(`${before.name} is now ${namespace.name}. It is open.`);
    if (left) showLeftovers(left);
  };
  const onDeleted = (namespace) => {
    refresh();
    toastDone(`Deleted ${namespace.name}.`);
    focusList(null);
    // With `auto_open` the worker deletes the objects itself.
    if (isOpen(namespace) && !cluster().auto_open) showLeftovers(namespace);
  };
  return {
    tell,
    onAdd: () => addNamespace({ cluster: cluster(), onDone: onAdded }),
    onObjects: (namespace) => openObjects(namespace),
    onKubeconfig: showKubeconfig,
    onRename: (namespace) => renameNamespace(namespace, { onDone: onRenamed(namespace) }),
    onDelete: (namespace) => deleteNamespace(namespace, { onDone: () => onDeleted(namespace) }),
  };
}

// A part of the page that is rendered again when its data changes. The focus stays where it was.
function renewed(render) {
  const root = element("div");
  const controls = () => [...root.querySelectorAll("a, button, summary, [tabindex]")];
  let last = null;
  const update = (shown) => {
    const text = JSON.stringify(shown);
    if (text !== last) {
      const focused = controls().indexOf(document.activeElement);
      replace(root, render(shown));
      controls()[focused]?.focus();
    }
    last = text;
    for (const moment of root.querySelectorAll("time")) setText(moment, relative(moment.dateTime));
  };
  return { root, update };
}

// Returns whether a cluster has been configured meanwhile, and if so shows it.
async function checkAgain(page) {
  try {
    await kubernetes.cluster(page.signal);
  } catch (error) {
    if (hasNoCluster(error)) return false;
    throw error;
  }
  await showKubernetes(page);
  page.main.querySelector("h1").focus();
  return true;
}
