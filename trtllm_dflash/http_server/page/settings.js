// The settings of requests: their form, what they are by default, and the request they make.

import { byId } from "./dom.js";
import { useApiKey } from "./api.js";
import { readItem, writeItem } from "./store.js";

const KEY = "dflash.settings";
const NAMES = [
  ...["temperature", "top_p", "seed", "max_tokens"],
  ...["drafts", "draft_len", "effort", "system"],
];
const MAX_SEED = 2 ** 32;

const form = byId("settings");
const field = (name) => form.elements[name];
const defaults = Object.fromEntries(NAMES.map((name) => [name, field(name).value]));

/** Fill the form with what was set last time; `onKey` is called when a key was entered. */
export function openSettings({ onKey }) {
  const stored = readItem(KEY) ?? {};
  for (const name of NAMES) {
    if (typeof stored[name] === "string") setValue(name, stored[name]);
  }
  form.addEventListener("input", (event) => {
    if (event.target.name === "api_key") useApiKey(event.target.value);
    else keep();
    showDependents();
  });
  field("api_key").addEventListener("change", onKey);
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("reset-settings").addEventListener("click", () => {
    for (const name of NAMES) setValue(name, defaults[name]);
    keep();
    showDependents();
  });
  showDependents();
}

function setValue(name, value) {
  const before = field(name).value;
  field(name).value = value;
  // A select has no value that is none of its options: what an older page stored, say.
  if (field(name).tagName === "SELECT" && field(name).value !== value) field(name).value = before;
}

function keep() {
  writeItem(KEY, Object.fromEntries(NAMES.map((name) => [name, field(name).value])));
}

/** Greedy decoding reads neither top-p nor a seed. */
function showDependents() {
  const isGreedy = !(Number(field("temperature").value) > 0);
  field("top_p").disabled = isGreedy;
  field("seed").disabled = isGreedy;
  byId("greedy-hint").hidden = !isGreedy;
  const isOff = field("drafts").value === "off";
  field("draft_len").disabled = isOff;
}

/** Offer what the model has: its sources of drafts and how many it may draft. */
export function offerFor(model) {
  const facts = model?.dflash ?? {};
  const allowed = facts.drafts ?? ["dflash", "lookup", "both"];
  for (const option of field("drafts").options) {
    const isSource = !["", "off"].includes(option.value);
    option.disabled = facts.speculates === false || (isSource && !allowed.includes(option.value));
  }
  if (field("drafts").selectedOptions[0]?.disabled) field("drafts").value = "";
  const most = Math.max(0, (facts.block_size ?? 1) - 1);
  const wanted = (readItem(KEY) ?? {}).draft_len ?? "";
  const lengths = Array.from({ length: most }, (_, index) => String(index + 1));
  const auto = form.elements.draft_len.options;
  while (auto.length > 2) auto.remove(2);
  for (const length of lengths) auto.add(new Option(length, length));
  setValue("draft_len", wanted);
  showDependents();
}

/** Show that the server wants a key. */
export function showKeyNeeded() {
  byId("key-row").dataset.needed = "true";
}

/** Return a seed for answers that are to be compared. */
export function freshSeed() {
  return Math.floor(Math.random() * MAX_SEED);
}

/** Return the first setting whose value is none, with the browser's words; null if all are good. */
export function invalidSetting() {
  const wrong = [...form.elements].find((each) => each.willValidate && !each.validity.valid);
  return wrong ? { field: wrong, words: wrong.validationMessage } : null;
}

/** Return the body of a request for these messages. */
export function requestBody(model, messages, { isDrafted = true, seed = null } = {}) {
  const system = field("system").value.trim();
  const before = system ? [{ role: "system", content: system }] : [];
  const body = {
    model,
    messages: [...before, ...messages],
    stream: true,
    stream_options: { include_usage: true },
    dflash: { tokens: true },
    ...sampling(seed),
    ...drafting(isDrafted),
  };
  if (field("max_tokens").value) body.max_tokens = Number(field("max_tokens").value);
  if (field("effort").value) body.reasoning_effort = field("effort").value;
  return body;
}

function sampling(seed) {
  const temperature = Number(field("temperature").value);
  if (!(temperature > 0)) return { temperature: 0 };
  const found = { temperature };
  if (field("top_p").value) found.top_p = Number(field("top_p").value);
  const typed = field("seed").value;
  if (typed) found.seed = Number(typed);
  else if (seed !== null) found.seed = seed;
  return found;
}

function drafting(isDrafted) {
  const source = field("drafts").value;
  if (!isDrafted || source === "off") return { draft: false };
  const found = {};
  if (source) found.drafts = source;
  const length = field("draft_len").value;
  if (length) found.draft_len = length === "auto" ? "auto" : Number(length);
  return found;
}
