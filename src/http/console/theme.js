// Owns the choice between light and dark. A classic script, so that the theme is in place before the first paint.

(() => {
  const STORAGE_NAME = "fluxserve.theme";
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");

  function chosen() {
    try {
      const choice = localStorage.getItem(STORAGE_NAME);
      return choice === "light" || choice === "dark" ? choice : null;
    } catch {
      return null; // Storage is switched off in this browser: the system's choice stands.
    }
  }

  const current = () => document.documentElement.dataset.theme;

  function apply(theme) {
    document.documentElement.dataset.theme = theme;
    document.dispatchEvent(new CustomEvent("theme", { detail: theme }));
  }

  function toggle() {
    const next = current() === "dark" ? "light" : "dark";
    try {
      localStorage.setItem(STORAGE_NAME, next);
    } catch {
      // The choice then holds until the page is loaded again.
    }
    apply(next);
  }

  const followSystem = () => apply(chosen() || (prefersDark.matches ? "dark" : "light"));
  prefersDark.addEventListener("change", followSystem);
  followSystem();
  window.fluxserveTheme = { current, toggle };
})();
