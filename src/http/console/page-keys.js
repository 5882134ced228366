// Owns the list of API keys.

import { keys } from "./api.js";
import { element, replace } from "./dom.js";
import { createKey, editKey, revokeKey, rotateKey } from "./key-dialogs.js";
import { adviceByKind, scopeView, stateView, warningsFor } from "./key-text.js";
import { namespacesById } from "./namespace-text.js";
import { pagedList } from "./paged-list.js";
import { noteRoute } from "./router.js";
import { toastProblem } from "./toast.js";
import { button, emptyState, iconButton, pageHead, segments, table, tableRow, time } from "./widgets.js";

const PER_PAGE = 50;
const NAMES_MAX = 5;

const COLUMNS = [
  { label: "Key", class: "cell-main" },
  { label: "Scope" },
  { label: "State" },
  { label: "Created" },
  { label: "Expires" },
  { label: "Last used" },
  { label: "Actions", class: "cell-actions", hidden: true },
];

const STATES = [
  ["", "All"],
  ["active", "Active"],
  ["expired", "Expired"],
  ["revoked", "Revoked"],
];

export async function showKeys({ main, signal, query }) {
  let state = STATES.some(([value]) => value === query.get("state")) ? query.get("state") : "";
  let shown = [];
  let namespaces = null;
  const advice = element("div");
  const frame = table("API keys", COLUMNS, []);
  const body = frame.querySelector("tbody");
  const create = () => createKey(list.reload).catch(toastProblem);
  const list = pagedList({
    load: (cursor) => {
      if (!cursor) shown = [];
      return keys.list({ state, cursor, limit: PER_PAGE }, signal).then(async (page) => {
        if (page.data.some(namesNamespaces)) namespaces ??= await namespacesById(signal);
        shown.push(...page.data);
        showAdvice(advice, shown);
        return page;
      });
    },
    place: body,
    frame,
    render: (key) => keyRow(key, namespaces, () => reloadAt(key)),
    empty: () => noKeys(state, create),
  });
  // The row is rebuilt; keyboard focus returns to it.
  const reloadAt = async (key) => {
    await list.reload();
    body.querySelector(`[data-key-id="${CSS.escape(key.id)}"] a`)?.focus();
  };
  const filter = segments("State", STATES, state, (value) => {
    state = value;
    noteRoute(value ? `#/keys?state=${value}` : "#/keys");
    list.reload();
  });
  replace(
    main,
    pageHead(
      "API keys",
      "Keys, their scopes and limits. Changes apply to the next request.",
      button("Create API key", { kind: "primary", symbol: "plus", onClick: create, id: "create-key" }),
    ),
    element("div", { class: "stack" }, advice, element("div", { class: "toolbar" }, filter), list.root),
  );
  await list.reload();
}

function noKeys(state, create) {
  if (state) return emptyState("keys", `No ${state} keys`, "No key is in this state.");
  return emptyState(
    "keys",
    "No API keys yet", "An application needs a key to generate images. Create one for each system, with the narrowest scope it needs.",
    button("Create the first key", { kind: "primary", symbol: "plus", onClick: create }),
  );
}

const namesNamespaces = ({ scope }) => Boolean(scope.kubernetes_exec?.namespace_ids);

function keyRow(key, namespaces, onDone) {
  const muted = (text) => element("span", { class: "muted" }, text);
  const cells = [
    element(
      "div",
      { class: "key-name" },
      element("a", { class: "strong", href: `#/keys/${encodeURIComponent(key.id)}` }, key.name),
      element("code", null, key.prefix),
      warningsFor(key),
    ),
    element("div", { class: "cell-lines" }, scopeView(key.scope, namespaces)),
    element("div", { class: "cell-lines" }, stateView(key, { isShort: true })),
    time(key.created_at),
    key.expires_at ? time(key.expires_at) : muted("Never"),
    key.last_used_at ? time(key.last_used_at) : muted("Never"),
    keyActions(key, onDone),
  ];
  return tableRow(COLUMNS, cells, { data: { testid: "key-row", keyId: key.id } });
}

// The actions for a key. A revoked key cannot be changed.
function keyActions(key, onDone) {
  if (key.state === "revoked") return element("span", { class: "muted" }, "–");
  const isActive = key.state === "active";
  return element(
    "div",
    { class: "row-actions" },
    iconButton(`Edit ${key.name}`, "edit", () => editKey(key, onDone).catch(toastProblem)),
    isActive && iconButton(`Rotate ${key.name}`, "rotate", () => rotateKey(key, onDone)),
    iconButton(`Revoke ${key.name}`, "revoke", () => revokeKey(key, onDone)),
  );
}

function showAdvice(place, shown) {
  const list = adviceByKind(shown);
  if (list.length === 0) return replace(place);
  const wasOpen = place.querySelector("details")?.open;
  const keyLink = (key) => element("a", { href: `#/keys/${encodeURIComponent(key.id)}` }, key.name);
  const line = ({ text, keys: named }) =>
    element(
      "li",
      null,
      `${text} `,
      named.slice(0, NAMES_MAX).flatMap((key, index) => [index > 0 && ", ", keyLink(key)]),
      named.length > NAMES_MAX && ` and ${named.length - NAMES_MAX} more`,
      ".",
    );
  const details = element(
    "details",
    { class: "advice", open: wasOpen },
    element(
      "summary",
      null,
      element("strong", null, "Suggestions"),
      element("span", { class: "muted" }, list.length),
    ),
    element("ul", null, list.map(line)),
  );
  return replace(place, details);
}
