// Owns the audit log: who did what, when and from where.

import { audit } from "./api.js";
import { element, replace } from "./dom.js";
import { exactMoment, words } from "./format.js";
import { icon } from "./icons.js";
import { pagedList } from "./paged-list.js";
import { emptyState, pageHead, time } from "./widgets.js";

const PER_PAGE = 50;

const ACTORS = {
  administrator: "The administrator",
  command_line: "An operator at the command line",
  worker: "The worker",
  stranger: "Someone not signed in",
  key_holder: "A key's user",
};

const SYMBOLS = {
  key_created: "plus",
  key_edited: "edit",
  key_rotated: "rotate",
  key_revoked: "revoke",
  password_set: "keys",
  signed_in: "check",
  signed_out: "signOut",
  sign_in_refused: "warning",
  credential_issued: "kubernetes",
  namespace_created: "plus",
  namespace_renamed: "edit",
  namespace_deleted: "trash",
  lora_added: "plus",
  lora_removed: "trash",
  project_created: "plus",
  project_edited: "edit",
  project_deleted: "trash",
  budget_reached: "warning",
  webhook_edited: "edit",
  webhook_secret_made: "rotate",
  content_refused: "revoke",
  moderation_failed: "warning",
};

export async function showAudit({ main, signal }) {
  const entries = element("ol", { class: "timeline", "aria-label": "Audit log, newest first" });
  const list = pagedList({
    load: (cursor) => audit({ cursor, limit: PER_PAGE }, signal),
    place: entries,
    render: entryView,
    empty: () =>
      emptyState(
        "audit",
        "No entries yet", "Every sign-in, every change to keys, LoRAs and namespaces, and every token for kubectl is logged here.",
      ),
  });
  replace(
    main,
    pageHead("Audit log", "Who changed keys, LoRAs, namespaces, the password and sessions, and from where."),
    list.root,
  );
  await list.reload();
}

function entryView(entry) {
  const isWarning = entry.action === "sign_in_refused" || entry.action === "budget_reached";
  const hasDetail = entry.detail && Object.keys(entry.detail).length > 0;
  return element(
    "li",
    { class: isWarning ? "entry is-warning" : "entry", data: { action: entry.action } },
    element("span", { class: "entry-symbol" }, icon(SYMBOLS[entry.action] || "information")),
    element(
      "div",
      { class: "entry-body" },
      element(
        "p",
        { class: "entry-sentence" },
        element("strong", null, ACTORS[entry.actor] || words(entry.actor)),
        " ",
        actionText(entry),
        ".",
      ),
      element(
        "p",
        { class: "entry-meta" },
        time(entry.at),
        element("span", null, exactMoment(entry.at)),
        entry.address && element("span", null, `from ${entry.address}`),
        entry.detail?.jti && element("span", null, "token ", element("code", null, entry.detail.jti)),
      ),
      hasDetail &&
        element(
          "details",
          null,
          element("summary", null, "Details"),
          element(
            "pre",
            { tabindex: "0", role: "group", "aria-label": "Details of the entry" },
            JSON.stringify(entry.detail, null, 2),
          ),
        ),
    ),
  );
}

function actionText(entry) {
  const detail = entry.detail || {};
  switch (entry.action) {
    case "key_created":
      return ["created the key ", detail.name && `“${detail.name}” `, keyLink(entry)];
    case "key_edited":
      return ["changed ", changes(detail), " of the key ", keyLink(entry)];
    case "key_rotated":
      return [
        "gave the key ",
        keyLink(entry),
        " a new value",
        detail.new_prefix && [", ", prefix(detail.new_prefix)],
        overlap(detail),
      ];
    case "key_revoked":
      return ["revoked the key ", keyLink(entry)];
    case "password_set":
      return "set the administrator password; all sessions ended";
    case "signed_in":
      return "signed in";
    case "signed_out":
      return "signed out";
    case "sign_in_refused":
      return "tried to sign in with a wrong password";
    case "credential_issued":
      return ["got a token for the namespace ", namespaceName(detail), " with ", keyLink(entry), tokenEnd(detail)];
    case "namespace_created":
      return ["added the namespace ", namespaceName(detail)];
    case "namespace_renamed":
      return ["renamed the namespace ", detail.was && element("strong", null, detail.was), " to ", namespaceName(detail)];
    case "namespace_deleted":
      return ["deleted the namespace ", namespaceName(detail)];
    case "lora_added":
      return ["added the LoRA ", element("strong", null, detail.lora)];
    case "lora_removed":
      return ["removed the LoRA ", element("strong", null, detail.lora)];
    case "project_created":
      return ["created the project ", element("strong", null, detail.project)];
    case "project_edited":
      return ["changed ", changes({ ...(detail.project && { name: true }), ...(detail.limits && { limits: true }) }), " of the project ", projectLink(detail)];
    case "project_deleted":
      return ["deleted the project ", element("strong", null, detail.project)];
    case "budget_reached":
      return [
        `noticed that ${detail.percent} % of the budget of the ${detail.holder} `,
        element("strong", null, detail.name),
        ` for ${detail.month} is used`,
      ];
    case "webhook_edited":
      return ["changed the webhook of the key ", keyLink(entry), detail.host && [", to ", element("strong", null, detail.host)]];
    case "webhook_secret_made":
      return ["made a webhook secret for the key ", keyLink(entry)];
    case "content_refused":
      return ["was refused ", detail.stage === "after" ? "an image" : "a prompt", " by the moderation", ofKey(entry)];
    case "moderation_failed":
      return [
        "got no answer from the moderation; the job was ",
        detail.outcome === "failed_allowed" ? "allowed" : "refused",
        ofKey(entry),
      ];
    default:
      return [words(entry.action).toLowerCase(), entry.key_prefix && [" ", keyLink(entry)]];
  }
}

function prefix(text) {
  return element("code", null, text);
}

function keyLink({ key_id: id, key_prefix: text }) {
  return id ? element("a", { href: `#/keys/${encodeURIComponent(id)}` }, prefix(text)) : prefix(text);
}

const projectLink = ({ project_id: id, project }) =>
  element("a", { href: `#/projects/${encodeURIComponent(id)}` }, project || element("code", null, id));
const ofKey = (entry) => entry.key_prefix && [", key ", keyLink(entry)];

const namespaceName = ({ namespace }) => element("strong", null, namespace);

function tokenEnd({ expires_at: end }) {
  return end && ["; it expires at ", element("time", { datetime: end }, exactMoment(end))];
}

function changes(detail) {
  const names = { name: "the name", scope: "the scope", expires_at: "the expiration", limits: "the limits", project: "the project" };
  const changed = Object.keys(detail).map((field) => names[field] || field);
  if (changed.length < 2) return changed[0] || "nothing";
  return `${changed.slice(0, -1).join(", ")} and ${changed.at(-1)}`;
}

function overlap({ old_value_until: until }) {
  return until
    ? ["; the old one works until ", element("time", { datetime: until }, exactMoment(until))]
    : "; the old one stopped working at once";
}
