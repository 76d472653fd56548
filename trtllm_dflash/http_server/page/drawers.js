// On narrow screens the two sides of the page are drawers: one opens over the conversation.

import { byId } from "./dom.js";

const backdrop = byId("backdrop");
let opened = null; // { drawer, opener }

/** Let a button open a drawer, and its own button close it. */
export function makeDrawer(drawerId, openerId, closerId) {
  const drawer = byId(drawerId);
  const opener = byId(openerId);
  opener.addEventListener("click", () => openDrawer(drawer, opener));
  byId(closerId).addEventListener("click", () => closeDrawer());
}

function openDrawer(drawer, opener) {
  closeDrawer();
  opened = { drawer, opener };
  drawer.classList.add("is-open");
  opener.setAttribute("aria-expanded", "true");
  backdrop.hidden = false;
  byId("stage").inert = true; // neither the Tab key nor a screen reader leaves the drawer
  drawer.querySelector("button, input, select, textarea, a")?.focus();
}

/** Close the drawer that is open; tell whether there was one. */
export function closeDrawer() {
  if (!opened) return false;
  const { drawer, opener } = opened;
  opened = null;
  drawer.classList.remove("is-open");
  opener.setAttribute("aria-expanded", "false");
  backdrop.hidden = true;
  byId("stage").inert = false;
  opener.focus();
  return true;
}

/** Open a drawer where there are drawers: its button is only then in sight. */
export function openIfNarrow(drawerId, openerId) {
  const opener = byId(openerId);
  if (opener.offsetParent !== null) openDrawer(byId(drawerId), opener);
}

backdrop.addEventListener("click", () => closeDrawer());
// A window that grows has no drawers.
matchMedia("(min-width: 75rem)").addEventListener("change", () => closeDrawer());
