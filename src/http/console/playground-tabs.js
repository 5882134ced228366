// Owns the row of tabs: its keys, and the reasons of tabs that cannot be chosen.

import { element, setText, uniqueId } from "./dom.js";

// Steps of the keys that move along the row.
const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };

// Tabs `[[name, text], …]` over one panel. `fit(obstacles)` disables those that have a reason there, and leaves one that
// is disabled now; `choose(name)` chooses one, unless it is disabled. `onChange` gets the name of the chosen tab.
export function tabRow({ label, tabs, panel, onChange }) {
  const reason = element("p", { class: "hint tab-reason", role: "status" });
  const row = element("div", { class: "segments tabs", role: "tablist", "aria-label": label });
  const controls = tabs.map(([name, text]) => tabControl(name, text, panel));
  let obstacles = {};
  let chosen = tabs[0][0];

  const show = () => {
    for (const { control, name, why } of controls) {
      const isChosen = name === chosen;
      control.setAttribute("aria-selected", String(isChosen));
      control.tabIndex = isChosen ? 0 : -1;
      const obstacle = obstacles[name] ?? "";
      setText(why, obstacle);
      control.title = obstacle;
      if (obstacle) control.setAttribute("aria-disabled", "true");
      else control.removeAttribute("aria-disabled");
      if (isChosen) panel.setAttribute("aria-labelledby", control.id);
    }
  };
  const choose = (name) => {
    setText(reason, obstacles[name] ?? "");
    if (obstacles[name] || name === chosen) return;
    chosen = name;
    show();
    onChange(chosen);
  };
  const fit = (next) => {
    obstacles = next;
    setText(reason, "");
    const isPossible = ([name]) => !obstacles[name];
    const other = tabs.find(isPossible);
    const isLeft = obstacles[chosen] && other;
    if (isLeft) [chosen] = other;
    show();
    if (isLeft) onChange(chosen);
  };
  // Focus moves over disabled tabs as well: their reasons have to be found.
  row.addEventListener("keydown", (event) => {
    const at = controls.findIndex(({ control }) => control === document.activeElement);
    const last = controls.length - 1;
    const step = STEPS[event.key];
    const besides = step && (at + step + controls.length) % controls.length;
    const next = event.key === "Home" ? 0 : event.key === "End" ? last : besides;
    if (at < 0 || next === undefined) return;
    event.preventDefault();
    controls[next].control.focus();
    choose(controls[next].name);
  });
  for (const { control, name } of controls) {
    control.addEventListener("click", () => choose(name));
    row.append(control);
  }
  show();
  const whys = controls.map(({ why }) => why);
  return { root: element("div", { class: "tab-row" }, row, whys, reason), choose, fit, chosen: () => chosen };
}

function tabControl(name, text, panel) {
  const why = element("span", { class: "visually-hidden", id: uniqueId("tab-reason") });
  const control = element(
    "button",
    {
      type: "button",
      role: "tab",
      id: `tab-${name}`,
      "aria-controls": panel.id,
      "aria-describedby": why.id,
      data: { tab: name },
    },
    text,
  );
  return { name, control, why };
}
