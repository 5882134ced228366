// Owns what is said of keys: their scopes, priorities and states in words, and what an administrator may want to look at.

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

// By name, as far as the names are known and not too many.
function namespacesText(ids, namespaces) {
  const names = ids.map((id) => namespaces?.get(id)?.name).filter(Boolean);
  if (names.length === 0) return plural(ids.length, "namespace");
  const named = names.slice(0, NAMESPACES_NAMED_MAX);
  const others = ids.length - named.length;
  return others > 0 ? `${named.join(", ")} and ${plural(others, "other")}` : named.join(", ");
}

// `namespaces` are those that are known, by their ids.
export function scopeView(scope, namespaces = null) {
  const { name, note } = scopeText(scope, namespaces);
  return [element("span", null, name), note && element("span", { class: "note" }, note)];
}

// Every priority, the lowest first.
export const PRIORITIES = [
  { value: "low", name: "Low", note: "yields to other keys" },
  { value: "normal", name: "Normal" },
  { value: "high", name: "High", note: "four times the share of a normal key" },
];

export function priorityView(priority) {
  const { name, note } = PRIORITIES.find(({ value }) => value === priority) || { name: priority };
  return [element("span", null, name), note && element("span", { class: "note" }, note)];
}

// Whether the key can draw.
export const canDraw = (scope) => Boolean(scope.all || scope.inference);

// The state, and that the value before the last rotation still works.
export function stateView(key, { isShort = false } = {}) {
  const which = isShort
    ? "Old value works, ends "
    : ["Old value ", element("code", null, key.overlap?.prefix), " works, ends "];
  return [
    statusBadge(key.state),
    key.overlap && element("span", { class: "note", title: key.overlap.prefix }, which, time(key.overlap.until)),
  ];
}

const isSoon = (iso) => iso !== null && secondsUntil(iso) > 0 && secondsUntil(iso) < EXPIRES_SOON_SECONDS;
const ageSeconds = (iso) => -secondsUntil(iso);

// Every kind of advice: whom it is for, and what it says.
const ADVICE = [
  {
    kind: "expires-soon",
    applies: (key) => isSoon(key.expires_at),
    note: "Expires soon",
    text: "Expires within 14 days. Put off the end or hand out a new key in time:",
  },
  {
    kind: "unused",
    applies: (key) => ageSeconds(key.last_used_at || key.created_at) > UNUSED_SECONDS,
    note: "Unused for 30 days",
    text: "Not used for 30 days or more. Revoke what nobody needs:",
  },
  {
    kind: "wide-scope",
    applies: (key) => Boolean(key.scope.all),
    note: null,
    text: "Scope All. If the system only draws images, Inference is enough:",
  },
  {
    kind: "no-expiration",
    applies: (key) => key.expires_at === null,
    note: null,
    text: "No expiration. One bounds the harm of a leak:",
  },
];

// The advice that applies to an active key; there is nothing to be done about others.
export function adviceFor(key) {
  return key.state === "active" ? ADVICE.filter((advice) => advice.applies(key)) : [];
}

// Every kind of advice with the keys that it applies to, without those that apply to none.
export function adviceByKind(keys) {
  const list = ADVICE.map((advice) => ({ ...advice, keys: keys.filter((key) => adviceFor(key).includes(advice)) }));
  return list.filter((advice) => advice.keys.length > 0);
}

// The short warnings for a row of the table.
export function warningsFor(key) {
  return adviceFor(key)
    .filter((advice) => advice.note)
    .map((advice) => element("span", { class: "note is-warning" }, advice.note));
}
