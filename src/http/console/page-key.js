// Owns the page of one API key: its properties, limits and usage.

import { keys, projects } from "./api.js";
import { budgetText } from "./budget-view.js";
import { element, replace } from "./dom.js";
import { count, exactMoment } from "./format.js";
import { editKey, revokeKey, rotateKey } from "./key-dialogs.js";
import { adviceFor, canGenerate, priorityView, scopeView, stateView } from "./key-text.js";
import { namespaceView, namespacesById } from "./namespace-text.js";
import { toastProblem } from "./toast.js";
import { usageCard } from "./usage-card.js";
import { webhookCard } from "./webhook-card.js";
import { button, card, facts, linkButton, notice, pageHead, skeleton, time } from "./widgets.js";

export async function showKey(page) {
  const { main, signal, rest } = page;
  replace(main, backLink(), pageHead("API key"), skeleton(6));
  const key = await keys.show(rest[0], signal);
  const namespaces = key.scope.kubernetes_exec?.namespace_ids ? await namespacesById(signal) : new Map();
  const project = key.project && (await projects.show(key.project, signal));
  const again = () => showKey(page).catch(toastProblem);
  document.title = `${key.name} - fluxserve`;
  replace(
    main,
    backLink(),
    pageHead(key.name, element("code", null, key.prefix), ...actions(key, again)),
    element(
      "div",
      { class: "stack" },
      advice(key),
      element("div", { class: "columns" }, aboutCard(key, namespaces, project), limitsCard(key)),
      usageCard(key, signal),
      canGenerate(key.scope) && webhookCard(key, signal),
    ),
  );
  main.querySelector("h1").focus({ preventScroll: true });
}

function backLink() {
  return linkButton("API keys", "#/keys", { kind: "quiet", symbol: "back" });
}

function actions(key, again) {
  const jobs = linkButton("Jobs", `#/jobs?key_id=${encodeURIComponent(key.id)}`, { symbol: "jobs" });
  if (key.state === "revoked") return [jobs];
  return [
    jobs,
    button("Edit", { symbol: "edit", onClick: () => editKey(key, again).catch(toastProblem) }),
    key.state === "active" && button("Rotate", { symbol: "rotate", onClick: () => rotateKey(key, again) }),
    button("Revoke", { kind: "danger-quiet", symbol: "revoke", onClick: () => revokeKey(key, again) }),
  ];
}

function advice(key) {
  const list = adviceFor(key);
  if (list.length === 0) return null;
  const say = (text) => element("p", null, `${text.replace(/:$/, "")}.`);
  return notice(
    "information",
    list.map(({ text }) => say(text)),
  );
}

const moment = (iso) => [time(iso), element("span", { class: "note" }, exactMoment(iso))];

function aboutCard(key, namespaces, project) {
  const namespaceIds = key.scope.kubernetes_exec?.namespace_ids;
  return card(
    "About",
    facts([
      ["State", stateView(key)],
      ["Scope", scopeView(key.scope)],
      ["Priority", priorityView(key.limits.priority)],
      ["Namespaces", namespaceIds?.map((id) => element("span", { class: "line" }, namespaceView(id, namespaces)))],
      ["Project", project && element("a", { href: `#/projects/${encodeURIComponent(project.id)}` }, project.name)],
      ["Created", moment(key.created_at)],
      ["Expires", key.expires_at ? moment(key.expires_at) : "Never"],
      ["Revoked", key.revoked_at && moment(key.revoked_at)],
      ["Last used", key.last_used_at ? moment(key.last_used_at) : "Never"],
      ["Rotated", key.rotated_at ? moment(key.rotated_at) : "Never"],
      ["ID", element("code", null, key.id)],
    ]),
  );
}

function lorasView(loras) {
  if (loras === null) return element("span", { class: "muted" }, "All");
  return loras.length > 0 ? loras.join(", ") : "None";
}

function limitsCard(key) {
  const limit = (value) => (value === null ? element("span", { class: "muted" }, "No limit") : count(value));
  return card(
    "Limits",
    facts([
      ["Requests per minute", limit(key.limits.requests_per_minute)],
      ["Concurrent jobs", limit(key.limits.concurrent_jobs)],
      ["Megapixel-steps per day", limit(key.limits.megapixel_steps_per_day)],
      ["Budget", budgetText(key.limits.budget)],
      ["LoRAs", lorasView(key.limits.loras)],
    ]),
    element(
      "p",
      { class: "hint" },
      "Days are UTC days. A request over a limit gets status 429, with the time to wait before a retry.",
    ),
  );
}
