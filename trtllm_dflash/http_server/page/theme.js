// Light, dark, or as the system has it. A classic script in the head: it acts before anything is
// painted, so that a dark page does not flash white.

(() => {
  const KEY = "dflash.theme";
  const root = document.documentElement;

  function stored() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  }

  function set(theme) {
    root.dataset.theme = theme;
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // It holds until the page is closed.
    }
  }

  root.dataset.theme = ["light", "dark"].includes(stored()) ? stored() : "system";
  addEventListener("DOMContentLoaded", () => {
    for (const choice of document.querySelectorAll("input[name=theme]")) {
      choice.checked = choice.value === root.dataset.theme;
      choice.addEventListener("change", () => set(choice.value));
    }
  });
})();
