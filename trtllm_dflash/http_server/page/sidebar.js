// The list of conversations that the browser keeps.

import { byId, icon, make } from "./dom.js";
import { visible } from "./plain_text.js";
import { conversations, dropConversation, keepConversation, onOtherTabs } from "./store.js";

const UNDO = 8_000; // ms
const DAY = new Intl.DateTimeFormat("en", { day: "numeric", month: "short" });
const TIME = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hour12: false });

const list = byId("conversations");
const toast = byId("toast");
let timer = null;

/** Shows the conversations; `onOpen` gets the id of the chosen one, `onDropped` of a lost one. */
export class Sidebar {
  constructor({ onOpen, onDropped, onRestored }) {
    this.events = { onOpen, onDropped, onRestored };
    this.currentId = null;
    byId("delete-all").addEventListener("click", () => this.#dropAll());
    onOtherTabs(() => this.draw());
  }

  /** Show the list anew; `currentId` is the conversation on the page. */
  draw(currentId = this.currentId) {
    this.currentId = currentId;
    const kept = conversations();
    const focused = document.activeElement?.dataset?.conversation;
    list.replaceChildren(...kept.map((each) => this.#row(each)));
    if (focused) list.querySelector(`[data-conversation="${CSS.escape(focused)}"]`)?.focus();
    byId("no-conversations").hidden = kept.length > 0;
    byId("delete-all").hidden = kept.length < 2;
  }

  #row({ id, title, updated }) {
    const words = visible(title) || "Untitled";
    const isCurrent = id === this.currentId;
    const open = make("button", { type: "button", class: "open", "data-conversation": id });
    open.append(make("span", { class: "title", text: words }));
    open.append(make("time", { text: shownDate(new Date(updated)) }));
    if (isCurrent) open.setAttribute("aria-current", "page");
    open.addEventListener("click", () => this.events.onOpen(id));
    const drop = make("button", { type: "button", class: "drop", title: "Delete" }, icon("cross"));
    drop.setAttribute("aria-label", `Delete ${words}`);
    drop.addEventListener("click", () => this.#drop([id]));
    return make("li", {}, open, drop);
  }

  #dropAll() {
    this.#drop(conversations().map((each) => each.id));
  }

  /** Delete conversations; for some seconds they can be had back. */
  #drop(ids) {
    const dropped = conversations().filter((each) => ids.includes(each.id));
    for (const id of ids) dropConversation(id);
    for (const id of ids) this.events.onDropped(id);
    this.draw();
    const words = dropped.length === 1 ? "Deleted." : `Deleted ${dropped.length} conversations.`;
    showToast(words, "Undo", () => {
      for (const each of dropped) keepConversation(each);
      this.events.onRestored(dropped.map((each) => each.id));
      this.draw();
    });
  }
}

function shownDate(date) {
  const isToday = date.toDateString() === new Date().toDateString();
  return (isToday ? TIME : DAY).format(date);
}

/** Show a short message, with something to do about it. */
export function showToast(words, action = null, onAction = null) {
  clearTimeout(timer);
  toast.replaceChildren(make("span", { text: words }));
  toast.hidden = false;
  const hide = () => (toast.hidden = true);
  if (action) {
    const button = make("button", { type: "button", text: action });
    button.addEventListener("click", () => {
      hide();
      onAction();
    });
    toast.append(button);
  }
  timer = setTimeout(hide, UNDO);
}
