// Owns the pages of projects: their list, and one with its limits and budget.

import { projects } from "./api.js";
import { budgetBar, budgetText } from "./budget-view.js";
import { element, replace } from "./dom.js";
import { count, exactMoment, plural } from "./format.js";
import { createProject, deleteProject, editProject, GROUP_LIMITS } from "./project-dialogs.js";
import { toastProblem } from "./toast.js";
import { button, card, emptyState, facts, linkButton, pageHead, skeleton, time } from "./widgets.js";

export const showProjects = (page) => (page.rest.length > 0 ? showProject(page) : showList(page));

async function showList({ main, signal }) {
  const place = element("div", { class: "columns" }, skeleton(6));
  const create = () => createProject(() => reload().catch(toastProblem));
  const reload = async () => {
    const list = await projects.list(signal);
    replace(place, list.length > 0 ? list.map(projectCard) : nothing());
  };
  const nothing = () =>
    emptyState(
      "projects",
      "No projects yet",
      "A project has keys that share limits and a budget: those of a team, a customer or an application.",
      button("Create the first project", { kind: "primary", symbol: "plus", onClick: create }),
    );
  replace(
    main,
    pageHead(
      "Projects",
      "Keys that share limits and a budget.",
      button("Create project", { kind: "primary", symbol: "plus", onClick: create, id: "create-project" }),
    ),
    place,
  );
  await reload();
}

function projectCard(project) {
  const { id, name, keys, budget } = project;
  return element(
    "section",
    { class: "card", data: { testid: "project-card", projectId: id } },
    element(
      "h2",
      { class: "card-title" },
      element("a", { href: `#/projects/${encodeURIComponent(id)}` }, name),
    ),
    facts([["Keys", plural(keys, "key")], ...limitFacts(project.limits)]),
    budget && budgetBar(name, budget),
  );
}

function limitFacts(limits) {
  const set = GROUP_LIMITS.filter(([limit]) => limits[limit] !== null);
  return set.map(([limit, label]) => [label, count(limits[limit])]);
}

async function showProject(page) {
  const { main, signal, rest } = page;
  replace(main, backLink(), pageHead("Project"), skeleton(6));
  const project = await projects.show(rest[0], signal);
  const again = () => showProject(page).catch(toastProblem);
  const leave = () => {
    location.hash = "#/projects";
  };
  document.title = `${project.name} - fluxserve`;
  const none = element("span", { class: "muted" }, "No limit");
  const limit = ([name, label]) => [label, project.limits[name] === null ? none.cloneNode(true) : count(project.limits[name])];
  replace(
    main,
    backLink(),
    pageHead(
      project.name,
      null,
      button("Edit", { symbol: "edit", onClick: () => editProject(project, again) }),
      button("Delete", { kind: "danger-quiet", symbol: "trash", onClick: () => deleteProject(project, leave) }),
    ),
    element(
      "div",
      { class: "columns" },
      card(
        "About",
        facts([
          ["Keys", plural(project.keys, "key")],
          ["Created", [time(project.created_at), element("span", { class: "note" }, exactMoment(project.created_at))]],
          ["ID", element("code", null, project.id)],
        ]),
        element("p", { class: "hint" }, "Keys get into a project and out of it on their own pages."),
      ),
      card(
        "Limits of all its keys together",
        facts([...GROUP_LIMITS.map(limit), ["Budget", budgetText(project.limits.budget)]]),
        project.budget && budgetBar(project.name, project.budget),
      ),
    ),
  );
  main.querySelector("h1").focus({ preventScroll: true });
}

function backLink() {
  return linkButton("Projects", "#/projects", { kind: "quiet", symbol: "back" });
}
