// Owns the frame around the pages: navigation, theme, sign-out.

import { element, replace } from "./dom.js";
import { icon, mark } from "./icons.js";

const PAGES = [
  ["", "Overview", "overview"],
  ["playground", "Playground", "playground"],
  ["jobs", "Jobs", "jobs"],
  ["keys", "API keys", "keys"],
  ["projects", "Projects", "projects"],
  ["usage", "Usage", "usage"],
  ["models", "Models", "models"],
  ["loras", "LoRAs", "loras"],
  ["kubernetes", "Kubernetes", "kubernetes"],
  ["audit", "Audit log", "audit"],
  ["reference", "API reference", "reference"],
];

// Builds the frame. Returns the element for pages, and a function that marks the present page.
export function buildShell(application, onSignOut) {
  const links = new Map(PAGES.map(([name, label, symbol]) => [name, navigationLink(name, label, symbol)]));
  const navigation = element(
    "nav",
    { class: "navigation", id: "navigation", "aria-label": "Main" },
    element(
      "ul",
      null,
      [...links.values()].map((link) => element("li", null, link)),
    ),
    element(
      "div",
      { class: "navigation-foot" },
      themeButton(),
      element(
        "button",
        { type: "button", class: "navigation-link", id: "sign-out", on: { click: onSignOut } },
        icon("signOut"),
        element("span", null, "Sign out"),
      ),
    ),
  );
  const main = element("main", { id: "content", class: "content", tabindex: "-1" });
  const { bar, closeMenu } = topBar(navigation);
  replace(
    application,
    skipLink(main),
    element("div", { class: "shell" }, element("div", { class: "side" }, bar, navigation), main),
  );
  const markPage = (name) => {
    closeMenu();
    for (const [other, link] of links) {
      if (other === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  };
  return { main, markPage };
}

function navigationLink(name, label, symbol) {
  return element("a", { class: "navigation-link", href: `#/${name}` }, icon(symbol), element("span", null, label));
}

// Following the link would change the route, which is behind the `#` as well.
function skipLink(main) {
  const skip = (event) => {
    event.preventDefault();
    main.focus();
  };
  return element("a", { class: "skip-link", href: "#content", on: { click: skip } }, "Skip to content");
}

function themeButton() {
  const place = element("span", { class: "icon-place" });
  const caption = element("span");
  const say = (theme) => {
    replace(place, icon(theme === "dark" ? "sun" : "moon"));
    caption.textContent = theme === "dark" ? "Light theme" : "Dark theme";
  };
  say(window.fluxserveTheme.current());
  document.addEventListener("theme", (event) => say(event.detail));
  return element(
    "button",
    { type: "button", class: "navigation-link", id: "theme", on: { click: () => window.fluxserveTheme.toggle() } },
    place,
    caption,
  );
}

function topBar(navigation) {
  const place = element("span", { class: "icon-place" }, icon("menu"));
  const setOpen = (open) => {
    navigation.classList.toggle("is-open", open);
    toggle.setAttribute("aria-expanded", String(open));
    replace(place, icon(open ? "close" : "menu"));
  };
  const toggle = element(
    "button",
    {
      type: "button",
      class: "icon-button menu-button",
      "aria-label": "Menu",
      "aria-expanded": "false",
      "aria-controls": "navigation",
      on: { click: () => setOpen(toggle.getAttribute("aria-expanded") !== "true") },
    },
    place,
  );
  navigation.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || toggle.getAttribute("aria-expanded") !== "true") return;
    setOpen(false);
    toggle.focus();
  });
  const brand = element(
    "a",
    { class: "brand", href: "#/", "aria-label": "fluxserve, overview" },
    mark(),
    element("span", null, "fluxserve"),
  );
  return { bar: element("header", { class: "top-bar" }, brand, toggle), closeMenu: () => setOpen(false) };
}
