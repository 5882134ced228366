// Owns the texts about keys: scopes, priorities, states, and advice for the administrator.

import { element } from "./dom.js";
import { DAY, plural, secondsUntil } from "./format.js";
import { statusBadge, time } from "./widgets.js";

const EXPIRES_SOON_SECONDS = 14 * DAY;
const UNUSED_SECONDS = 30 * DAY;
const NAMESPACES_NAMED_MAX = 3;

// As `{ name, note? }`.
function scopeText(scope, namespaces) {
  if (scope.all) return { name: "All" };
  if (scope.inference) return { name: "Inference" };
  const kubernetes = scope.kubernetes_exec || {};
  const note = kubernetes.all_namespaces
    ? "all namespaces"
    : namespacesText(kubernetes.namespace_ids || [], namespaces);
  return { name: "Kubernetes exec", note };
}

// By name if the names are known, up to a maximum.
function namespacesText(ids, namespaces) {
  const names = ids.map((id) => namespaces?.get(id)?.name).filter(Boolean);
  if (names.length === 0) return plural(ids.length, "namespace");
  const named = names.slice(0, NAMESPACES_NAMED_MAX);
  const others = ids.length - named.length;
  return others > 0 ? `${named.join(", ")} and ${plural(others, "other")}` : named.join(", ");
}

// `namespaces` maps the known ids to namespaces.
export function scopeView(scope, namespaces = null) {
  const { name, note } = scopeText(scope, namespaces);
  return [element("span", null, name), note && element("span", { class: "note" }, note)];
}

// All priorities, the lowest first.
export const PRIORITIES = [
  { value: "low", name: "Low", note: "yields to other keys" },
  { value: "normal", name: "Normal" },
  { value: "high", name: "High", note: "four times the share of a normal key" },
];

export function priorityView(priority) {
  const { name, note } = PRIORITIES.find(({ value }) => value === priority) || { name: priority };
  return [element("span", null, name), note && element("span", { class: "note" }, note)];
}

// Whether a key with this scope can generate images.
export const canGenerate = (scope) => Boolean(scope.all || scope.inference);

// The state, and until when the value before the last rotation works.
export function stateView(key, { isShort = false } = {}) {
  const which = isShort
    ? "Old value expires "
    : ["Old value ", element("code", null, key.overlap?.prefix), " expires "];
  return [
    statusBadge(key.state),
    key.overlap && element("span", { class: "note", title: key.overlap.prefix }, which, time(key.overlap.until)),
  ];
}

const isSoon = (iso) => iso !== null && secondsUntil(iso) > 0 && secondsUntil(iso) < EXPIRES_SOON_SECONDS;
const ageSeconds = (iso) => -secondsUntil(iso);

// All kinds of advice: which keys each applies to, and its text.
const ADVICE = [
  {
    kind: "expires-soon",
    applies: (key) => isSoon(key.expires_at),
    note: "Expires soon",
    text: "Expires within 14 days. Extend it or replace the key in time:",
  },
  {
    kind: "unused",
    applies: (key) => ageSeconds(key.last_used_at || key.created_at) > UNUSED_SECONDS,
    note: "Unused for 30 days",
    text: "Not used for 30 days or more. Revoke it if it is no longer needed:",
  },
  {
    kind: "wide-scope",
    applies: (key) => Boolean(key.scope.all),
    note: null,
    text: "Has the scope All. For generating images, Inference is enough:",
  },
  {
    kind: "no-expiration",
    applies: (key) => key.expires_at === null,
    note: null,
    text: "Has no expiration. An expiration limits the damage of a leak:",
  },
];

// The advice for a key. Only active keys get any.
export function adviceFor(key) {
  return key.state === "active" ? ADVICE.filter((advice) => advice.applies(key)) : [];
}

// Each kind of advice that applies to some key, with these keys.
export function adviceByKind(keys) {
  const list = ADVICE.map((advice) => ({ ...advice, keys: keys.filter((key) => adviceFor(key).includes(advice)) }));
  return list.filter((advice) => advice.keys.length > 0);
}

// The short warnings for a table row.
export function warningsFor(key) {
  return adviceFor(key)
    .filter((advice) => advice.note)
    .map((advice) => element("span", { class: "note is-warning" }, advice.note));
}
