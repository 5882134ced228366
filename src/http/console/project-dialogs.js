// Owns the windows for creating, editing and deleting projects. Each calls `onDone` at the end.

import { projects } from "./api.js";
import { budgetFields, isSameBudget } from "./budget-view.js";
import { element } from "./dom.js";
import { field, numberOf } from "./form.js";
import { formDialog } from "./form-dialog.js";
import { toastDone } from "./toast.js";
import { paragraph } from "./widgets.js";

const NAME_CHARACTERS_MAX = 100;

export const GROUP_LIMITS = [
  ["requests_per_minute", "Requests per minute", 1_000_000],
  ["concurrent_jobs", "Concurrent jobs", 100_000],
  ["megapixel_steps_per_day", "Megapixel-steps per day", 1_000_000_000],
];

function projectForm(project) {
  const name = element("input", {
    type: "text",
    id: "project-name",
    name: "name",
    maxlength: NAME_CHARACTERS_MAX,
    required: true,
    autocomplete: "off",
    autofocus: true,
    value: project?.name,
  });
  const inputs = GROUP_LIMITS.map(([limit, label, max]) => {
    const input = element("input", {
      type: "number",
      min: 1,
      max,
      step: 1,
      inputmode: "numeric",
      placeholder: "No limit",
      id: `project-${limit.replaceAll("_", "-")}`,
      value: project?.limits[limit],
    });
    return [limit, input, field(`limits.${limit}`, label, input)];
  });
  const budget = budgetFields(project?.limits.budget ?? null, "project");
  const content = [
    field("name", "Name", name, { hint: "A team, a customer or an application. No two projects have the same name." }),
    element(
      "fieldset",
      { class: "field" },
      element("legend", null, "Limits of all its keys together", element("span", { class: "optional" }, " optional")),
      element(
        "div",
        { class: "field-grid" },
        inputs.map(([, , holder]) => holder),
      ),
    ),
    budget.root,
  ];
  const read = () => {
    const body = { name: name.value.trim() };
    const limits = Object.fromEntries(inputs.map(([limit, input]) => [limit, numberOf(input)]));
    const errors = budget.errors();
    if (body.name === "") errors.push(["name", "Enter a name"]);
    const had = project?.limits ?? {};
    const changed = Object.entries(limits).filter(([limit, value]) => value !== (had[limit] ?? null));
    if (!isSameBudget(budget.read(), had.budget ?? null)) changed.push(["budget", budget.read()]);
    if (changed.length > 0) body.limits = Object.fromEntries(changed);
    if (project && body.name === project.name) delete body.name;
    return { body, errors };
  };
  return { content, read };
}

export function createProject(onDone) {
  formDialog({
    title: "Create project",
    label: "Create project",
    testid: "create-project",
    ...projectForm(null),
    send: async (body) => {
      const project = await projects.create(body);
      return () => {
        toastDone(`Created ${project.name}.`);
        onDone(project);
      };
    },
  });
}

export function editProject(project, onDone) {
  formDialog({
    title: `Edit ${project.name}`,
    label: "Save",
    testid: "edit-project",
    ...projectForm(project),
    send: async (changes) => {
      const edited = await projects.edit(project.id, changes);
      return () => {
        toastDone(`Saved ${edited.name}. The changes apply to the next request.`);
        onDone(edited);
      };
    },
  });
}

export function deleteProject(project, onDone) {
  formDialog({
    title: `Delete ${project.name}?`,
    label: "Delete project",
    kind: "danger",
    testid: "delete-project",
    content: [paragraph("Keys must leave it first. What it has used stays in reports, without its name.")],
    send: async () => {
      await projects.remove(project.id);
      return () => {
        toastDone(`Deleted ${project.name}.`);
        onDone();
      };
    },
  });
}
