// Runs before the page shows, so that it never shows in the wrong colours first.
(() => {
  const root = document.documentElement;
  const stored = (name) => {
    try {
      return localStorage.getItem(name);
    } catch {
      return null;
    }
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const chosen = stored("theme");
    root.dataset.theme = chosen || (dark.matches ? "dark" : "light");
    root.dispatchEvent(new Event("themechange"));
  };
  dark.addEventListener("change", apply);
  addEventListener("storage", apply);
  root.addEventListener("apply-theme", apply);
  apply();
  if (stored("blur")) root.dataset.blur = "";
})();
