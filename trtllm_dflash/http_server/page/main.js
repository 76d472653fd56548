// Puts the page together: the conversation in the middle, what was kept at the left, measurements
// and settings at the right.

import { announce, announceText, finishAnnouncing } from "./announcer.js";
import { Refusal } from "./api.js";
import { Chat } from "./chat.js";
import { byId, onNextFrame } from "./dom.js";
import { closeDrawer, makeDrawer, openIfNarrow } from "./drawers.js";
import { setMostTokens, showMeasurements, update } from "./panel.js";
import { ServerWatch } from "./server_watch.js";
import * as settings from "./settings.js";
import { showToast, Sidebar } from "./sidebar.js";
import { readItem, writeItem } from "./store.js";
import { forgetBlocks, setColoured } from "./text_flow.js";
import { TurnView } from "./turn_view.js";

const VIEW_KEY = "dflash.view";
const STUCK = 60; // pixels from the end at which the page follows an answer
const scroller = byId("scroller");
const turns = byId("turns");
const prompt = byId("prompt");
const colour = byId("colour");

let views = [];
let isFollowing = true;
let numAnnounced = 0; // pieces of the answer that is read out

const chat = new Chat({
  opened: showConversation,
  added: (turn) => {
    isFollowing = true;
    addTurn(turn);
  },
  began: (answer) => {
    numAnnounced = 0;
    if (chat.running.conversation === chat.current) showMeasurements(answer);
    showRunning();
    announce(answer.isDrafted ? "Answering." : "Answering without drafts.");
  },
  changed: (answer) => {
    viewOf(answer)?.drawSoon();
    update(answer);
    announceFresh(answer);
  },
  ended: (turn) => {
    for (const view of views) view.drawSoon();
    showRunning();
    const { state, problem } = turn.answers.at(-1);
    finishAnnouncing({ done: "End of the answer", stopped: "Stopped" }[state] ?? problem);
  },
  failed: (error) => {
    if (error instanceof Refusal && error.status !== 401) return;
    if (error instanceof Refusal) watch.forget();
    watch.look();
  },
  kept: () => sidebar.draw(chat.current.id),
  notKept: () => showToast("The browser cannot keep this conversation: it has no room for it."),
});

const actions = {
  inspect: (answer) => {
    showMeasurements(answer);
    openIfNarrow("panel", "open-panel");
  },
  retry: (turn) => chat.retry(turn),
  canRetry: (turn) => chat.canRetry(turn) && turn.answers.some((each) => each.state !== "done"),
  drawn: follow,
};

const sidebar = new Sidebar({
  onOpen: (id) => {
    chat.open(id);
    closeDrawer();
  },
  onDropped: (id) => {
    if (chat.running?.conversation.id === id) {
      chat.running.conversation.isDropped = true;
      chat.stop();
    }
    if (chat.current.id === id) chat.startNew();
  },
  onRestored: (ids) => chat.open(ids[0]),
});

function viewOf(answer) {
  return views.find((view) => view.turn.answers.includes(answer));
}

function showConversation(conversation) {
  forgetBlocks();
  views = [];
  turns.replaceChildren();
  turns.classList.remove("wide");
  for (const turn of conversation.turns) addTurn(turn);
  byId("welcome").hidden = conversation.turns.length > 0;
  showMeasurements(conversation.turns.at(-1)?.answers.at(-1) ?? null);
  sidebar.draw(conversation.id);
  isFollowing = true;
  scroller.scrollTop = 0;
  follow();
}

function addTurn(turn) {
  byId("welcome").hidden = true;
  views.push(new TurnView(turn, views.length + 1, actions));
  turns.append(views.at(-1).element);
  turns.classList.toggle("wide", views.some((view) => view.answers.length > 1));
  onNextFrame(follow);
}

function announceFresh(answer) {
  const { turn, conversation } = chat.running;
  // Of a pair, which has one text, the second one is read out.
  if (answer !== turn.answers.at(-1) || conversation !== chat.current) return;
  const fresh = answer.pieces.slice(numAnnounced).filter((piece) => !piece.isReasoning);
  numAnnounced = answer.pieces.length;
  announceText(fresh.map((piece) => piece.text).join(""));
}

/** Keep the end of a growing answer in sight, unless the reader has scrolled away from it. */
function follow() {
  if (isFollowing && views.length) scroller.scrollTop = scroller.scrollHeight;
}

scroller.addEventListener("scroll", () => {
  const rest = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  isFollowing = rest < STUCK;
  byId("to-end").hidden = isFollowing;
});
byId("to-end").addEventListener("click", () => {
  isFollowing = true;
  follow();
});

function showRunning() {
  const isRunning = chat.running !== null;
  byId("send").hidden = isRunning;
  byId("stop").hidden = !isRunning;
  document.body.dataset.running = isRunning;
}

function isPair() {
  return document.querySelector("input[name=mode]:checked").value === "pair";
}

async function send() {
  const text = prompt.value;
  if (!text.trim() || chat.running) return;
  const wrong = settings.invalidSetting();
  if (wrong) {
    openIfNarrow("panel", "open-panel");
    wrong.field.reportValidity();
    return;
  }
  prompt.value = "";
  keepView();
  await chat.send(text, { isPair: isPair() });
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
prompt.addEventListener("keydown", (event) => {
  // While a character is composed, Enter chooses it.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
prompt.addEventListener("input", keepView);
byId("stop").addEventListener("click", () => {
  chat.stop();
  prompt.focus();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && !closeDrawer()) chat.stop();
});
for (const button of document.querySelectorAll("[data-prompt]")) {
  button.addEventListener("click", () => {
    prompt.value = button.dataset.prompt;
    prompt.focus();
    keepView();
  });
}
byId("new-chat").addEventListener("click", () => {
  chat.startNew();
  closeDrawer();
  prompt.focus();
});
addEventListener("pagehide", () => chat.keepRunning());

/** Keep what the page looks like, and the prompt that is not sent yet. */
function keepView() {
  const model = byId("model").value;
  writeItem(VIEW_KEY, { colour: colour.checked, isPair: isPair(), prompt: prompt.value, model });
}

function openView() {
  const view = readItem(VIEW_KEY) ?? {};
  colour.checked = view.colour !== false;
  if (view.isPair === true) byId("mode-pair").checked = true;
  prompt.value = typeof view.prompt === "string" ? view.prompt : "";
  showColour();
}

function showColour() {
  setColoured(colour.checked);
  byId("legend").hidden = !colour.checked;
}

colour.addEventListener("change", () => {
  showColour();
  keepView();
});
for (const choice of document.querySelectorAll("input[name=mode]")) {
  choice.addEventListener("change", keepView);
}

const WORDS = {
  ready: ["Ready", ""],
  locked: ["API key needed", "The server wants an API key. Enter it in the settings."],
  busy: ["Not ready", "The server takes no requests at the moment. The page keeps asking."],
  gone: ["No connection", "The server cannot be reached. The page keeps trying; nothing is lost."],
};

const watch = new ServerWatch((state, before) => {
  const [short, long] = WORDS[state];
  byId("server-state").dataset.state = state;
  byId("server-words").textContent = short;
  byId("server-notice").hidden = state === "ready";
  byId("server-notice").textContent = long;
  if (state === "ready") {
    showModels();
    if (before && before !== "ready") showToast("The server is back.");
  }
  if (state === "locked") settings.showKeyNeeded();
});

function showModels() {
  const select = byId("model");
  const wanted = select.value || readItem(VIEW_KEY)?.model;
  select.replaceChildren(...watch.models.map((model) => new Option(model.id, model.id)));
  if (watch.models.some((model) => model.id === wanted)) select.value = wanted;
  takeModel();
}

function takeModel() {
  const model = watch.models.find((each) => each.id === byId("model").value);
  chat.model = model?.id ?? "";
  settings.offerFor(model);
  const hasDrafts = model?.dflash?.speculates !== false;
  byId("mode-pair").disabled = !hasDrafts;
  if (!hasDrafts) byId("mode-chat").checked = true;
  setMostTokens(hasDrafts ? mostDrafts(model?.dflash) : 0);
}

function mostDrafts(facts) {
  const own = facts?.draft_len ?? 0;
  return own === "auto" ? facts.block_size - 1 : own;
}

byId("model").addEventListener("change", () => {
  takeModel();
  keepView();
});
makeDrawer("side", "open-side", "close-side");
makeDrawer("panel", "open-panel", "close-panel");
settings.openSettings({
  onKey: () => {
    watch.forget();
    watch.look();
  },
});
openView();
showConversation(chat.current);
showRunning();
watch.look();
