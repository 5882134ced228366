// Owns the choice between light and dark. A classic script, so that the theme is in place before the first paint.

(() => {
  const STORAGE_NAME = "fluxserve.theme";
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");

  function chosen() {
    try {
      const choice = localStorage.getItem(STORAGE_NAME);
      return choice === "light" || choice === "dark" ? choice : null;
    } catch {
      return null; // This browser has storage disabled: the system's choice applies.
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
      // The choice then lasts until the page is reloaded.
    }
    apply(next);
  }

  const followSystem = () => apply(chosen() || (prefersDark.matches ? "dark" : "light"));
  prefersDark.addEventListener("change", followSystem);
  followSystem();
  window.fluxserveTheme = { current, toggle };
})();
