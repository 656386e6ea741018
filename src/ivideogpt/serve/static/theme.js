// A classic script in the head, so that the page is never drawn in the wrong theme first.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => localStorage.getItem("ivideogpt.theme");
  const apply = () => {
    document.documentElement.dataset.theme = stored() ?? (system.matches ? "dark" : "light");
  };
  system.addEventListener("change", apply);
  apply();
})();
