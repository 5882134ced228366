// Owns the fields for creating and editing keys, and the request body they make.

import { budgetFields, isSameBudget } from "./budget-view.js";
import { element } from "./dom.js";
import { DAY, exactMoment } from "./format.js";
import { field, numberOf, radios, select } from "./form.js";
import { PRIORITIES } from "./key-text.js";
import { stateBadge } from "./namespace-text.js";

const NAME_CHARACTERS_MAX = 100;

const LIMITS = [
  ["requests_per_minute", "Requests per minute", 1_000_000],
  ["concurrent_jobs", "Concurrent jobs", 100_000],
  ["megapixel_steps_per_day", "Megapixel-steps per day", 1_000_000_000],
];

const SCOPES = [
  { value: "inference", label: "Inference", hint: "Generates images. Right for almost every application." },
  { value: "kubernetes_exec", label: "Kubernetes exec", hint: "Gives kubectl access to namespaces. Cannot generate images." },
  { value: "all", label: "All", hint: "Everything, including what is added later. Prefer a narrower scope." },
];

const EXPIRATIONS = [
  ["none", "No expiration"],
  ["7", "In 7 days"],
  ["30", "In 30 days"],
  ["90", "In 90 days"],
  ["365", "In a year"],
  ["custom", "At a date and time"],
];

// The fields for a new key, or for `key`. `namespaces` is null without a cluster; `projects` are those to choose from. `read` returns `{ body, errors }`: all
// fields of a new key, or the changed fields of an existing one.
export function keyForm({ key = null, namespaces, projects = [] }) {
  const name = element("input", {
    type: "text",
    id: "key-name",
    name: "name",
    maxlength: NAME_CHARACTERS_MAX,
    required: true,
    autocomplete: "off",
    autofocus: true,
    value: key?.name,
  });
  const scope = scopeFields(key?.scope, namespaces);
  const expiration = expirationFields(key);
  const priority = priorityField(key?.limits.priority);
  const limits = limitFields(key?.limits);
  const budget = budgetFields(key?.limits.budget ?? null, "key");
  const project = projectField(key?.project ?? null, projects);
  const content = [
    field("name", "Name", name, {
      hint: "The system that uses the key. Give each system its own key, so that you can revoke one without the others.",
    }),
    scope.root,
    expiration.root,
    priority.root,
    limits.root,
    budget.root,
    project.root,
  ];
  const read = () => {
    const body = {
      name: name.value.trim(),
      scope: scope.read(),
      limits: { ...limits.read(), priority: priority.read(), budget: budget.read() },
      project: project.read(),
    };
    const expiresAt = expiration.read();
    if (expiresAt !== undefined) body.expires_at = expiresAt;
    const errors = budget.errors();
    if (body.name === "") errors.push(["name", "Enter a name"]);
    if (body.scope.kubernetes_exec?.namespace_ids?.length === 0)
      errors.push(["scope", "Choose at least one namespace"]);
    if (Number.isNaN(Date.parse(body.expires_at ?? "2000-01-01")))
      errors.push(["expires_at", "Enter a date and time"]);
    return { body: key ? differences(body, key) : withoutEmpty(body), errors };
  };
  return { content, read };
}

function scopeFields(scope, namespaces) {
  const chosen = !scope || scope.inference ? "inference" : scope.all ? "all" : "kubernetes_exec";
  const picker = namespacePicker(scope?.kubernetes_exec, namespaces);
  const root = radios("scope", "Scope", SCOPES, chosen, (value) => {
    picker.root.hidden = value !== "kubernetes_exec";
  });
  picker.root.hidden = chosen !== "kubernetes_exec";
  root.querySelector('input[value="kubernetes_exec"]').closest(".choice").after(picker.root);
  const read = () => {
    const value = root.querySelector('input[name="scope"]:checked').value;
    return value === "kubernetes_exec" ? { kubernetes_exec: picker.read() } : { [value]: true };
  };
  return { root, read };
}

const NO_CLUSTER = "This worker has no cluster yet.";
const NO_NAMESPACES = "To choose some, first add them on the Kubernetes page.";

// Without known namespaces the only choices are "all" and those the key already has, which must not get lost.
function namespacePicker(scope, namespaces) {
  const had = scope?.namespace_ids || [];
  const unknown = had
    .filter((id) => !namespaces?.some((namespace) => namespace.id === id))
    .map((id) => ({ id, name: id }));
  const offered = [...(namespaces || []), ...unknown];
  if (offered.length === 0) {
    const root = element(
      "div",
      { class: "nested" },
      element("p", { class: "hint" }, `All namespaces. ${namespaces ? NO_NAMESPACES : NO_CLUSTER}`),
    );
    return { root, read: () => ({ all_namespaces: true }) };
  }
  const box = ({ id, name, state }) => {
    const input = element("input", {
      type: "checkbox",
      name: "namespace",
      value: id,
      id: `namespace-${id}`,
      checked: had.includes(id),
    });
    const label = element(
      "label",
      { for: `namespace-${id}` },
      name,
      state === "pending" && [" ", stateBadge({ state })],
    );
    return element("div", { class: "choice" }, input, label);
  };
  const list = element("div", { class: "checks", role: "group", "aria-label": "Namespaces" }, offered.map(box));
  const isChosen = had.length > 0;
  list.hidden = !isChosen;
  const which = radios(
    "namespaces",
    "Namespaces",
    [
      { value: "all", label: "All namespaces" },
      { value: "chosen", label: "Selected namespaces" },
    ],
    isChosen ? "chosen" : "all",
    (value) => {
      list.hidden = value !== "chosen";
    },
  );
  const root = element("div", { class: "nested" }, which, list);
  const read = () => {
    if (root.querySelector('input[name="namespaces"]:checked').value === "all") return { all_namespaces: true };
    return { namespace_ids: [...list.querySelectorAll("input:checked")].map((input) => input.value) };
  };
  return { root, read };
}

function expirationFields(key) {
  const keep = key?.expires_at ? [["keep", `Unchanged: ${exactMoment(key.expires_at)}`]] : [];
  const choice = select([...keep, ...EXPIRATIONS], keep.length > 0 ? "keep" : "none", { id: "key-expiration" });
  const moment = element("input", {
    type: "datetime-local",
    id: "key-expires-at",
    "aria-label": "Date and time of expiration",
    hidden: true,
  });
  choice.addEventListener("change", () => {
    moment.hidden = choice.value !== "custom";
  });
  const root = field("expires_at", "Expiration", choice, {
    beside: moment,
    hint: "An expiration limits the damage of a leaked key. You can extend it later.",
  });
  // Undefined to keep the expiration, null to remove it.
  const read = () => {
    if (choice.value === "keep") return undefined;
    if (choice.value === "none") return null;
    if (choice.value !== "custom") return new Date(Date.now() + Number(choice.value) * DAY * 1000).toISOString();
    const date = new Date(moment.value);
    return Number.isNaN(date.getTime()) ? "" : date.toISOString();
  };
  return { root, read };
}

// The API lists the priority among the limits; for a user it is not one.
function priorityField(priority = "normal") {
  const options = PRIORITIES.map(({ value, name, note }) => [value, note ? `${name}: ${note}` : name]);
  const choice = select(options, priority, { id: "key-priority" });
  const root = field("limits.priority", "Priority", choice, {
    hint: "How keys share the device while several have jobs. A low-priority key gets a quarter of a normal key's share. Applies to new jobs.",
  });
  return { root, read: () => choice.value };
}

// Without projects the field is left out: there is nothing to choose.
function projectField(chosen, projects) {
  const options = [["", "No project"], ...projects.map(({ id, name }) => [id, name])];
  const choice = select(options, chosen ?? "", { id: "key-project" });
  const root = field("project", "Project", choice, {
    hint: "The limits and the budget of a project apply beside those of the key.",
  });
  return { root: projects.length > 0 ? root : null, read: () => choice.value || null };
}

function limitFields(limits) {
  const inputs = LIMITS.map(([name, label, max]) => {
    const input = element("input", {
      type: "number",
      min: 1,
      max,
      step: 1,
      inputmode: "numeric",
      placeholder: "No limit",
      id: `key-${name.replaceAll("_", "-")}`,
      value: limits?.[name],
    });
    return [name, input, field(`limits.${name}`, label, input)];
  });
  const root = element(
    "fieldset",
    { class: "field" },
    element("legend", null, "Limits", element("span", { class: "optional" }, " optional")),
    element(
      "div",
      { class: "field-grid" },
      inputs.map(([, , holder]) => holder),
    ),
    element(
      "p",
      { class: "hint" },
      "A request over a limit gets status 429. A megapixel-step is one million pixels times one step. A negative prompt doubles an image's steps, and each image counts 4 extra steps: 1024 × 1024 with 30 steps costs about 36.",
    ),
  );
  const read = () => Object.fromEntries(inputs.map(([name, input]) => [name, numberOf(input)]));
  return { root, read };
}

function withoutEmpty(body) {
  const limits = Object.fromEntries(Object.entries(body.limits).filter(([, value]) => value !== null));
  const { name, scope, project, expires_at: expiresAt } = body;
  return {
    name,
    scope,
    ...(project && { project }),
    ...(expiresAt && { expires_at: expiresAt }),
    ...(Object.keys(limits).length > 0 && { limits }),
  };
}

function differences(body, key) {
  const changes = {};
  if (body.name !== key.name) changes.name = body.name;
  if (!isSameScope(body.scope, key.scope)) changes.scope = body.scope;
  if (body.expires_at !== undefined && body.expires_at !== key.expires_at) changes.expires_at = body.expires_at;
  if (body.project !== key.project) changes.project = body.project;
  const isSame = (name, value) =>
    name === "budget" ? isSameBudget(value, key.limits.budget) : value === (key.limits[name] ?? null);
  const limits = Object.entries(body.limits).filter(([name, value]) => !isSame(name, value));
  if (limits.length > 0) changes.limits = Object.fromEntries(limits);
  return changes;
}

function isSameScope(one, other) {
  const plain = (scope) => {
    const ids = scope.kubernetes_exec?.namespace_ids;
    return JSON.stringify(ids ? [...ids].sort() : scope);
  };
  return plain(one) === plain(other);
}
