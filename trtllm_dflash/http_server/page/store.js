// What the browser keeps: settings and conversations. All of it is bounded, and the page works
// without it, as in a private window.

const PREFIX = "dflash.chat.";
const MAX_CONVERSATIONS = 50;
const MAX_CHARACTERS = 3_000_000; // of all conversations; browsers keep about 5 MB for an origin
const MAX_ONE = 1_500_000;

/** Return what was kept under a key, or null. */
export function readItem(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null; // not JSON, or no storage at all
  }
}

/** Keep a value; tell whether that worked. */
export function writeItem(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Forget a key. */
export function removeItem(key) {
  try {
    localStorage.removeItem(key);
  } catch {
    // Without storage there is nothing to forget.
  }
}

function keys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  } catch {
    return [];
  }
}

function isConversation(found) {
  return typeof found?.id === "string" && Array.isArray(found.turns);
}

/** Return all conversations, the latest first. */
export function conversations() {
  const found = keys().map(readItem).filter(isConversation);
  return found.sort((one, other) => other.updated - one.updated);
}

/** Return one conversation, or null. */
export function conversation(id) {
  const found = readItem(PREFIX + id);
  return isConversation(found) ? found : null;
}

/** Keep a conversation that still grows, if there is room: nothing gives way to it yet. */
export function keepForNow(kept) {
  if (JSON.stringify(kept).length <= MAX_ONE) writeItem(PREFIX + kept.id, kept);
}

/** Keep a conversation, and drop the oldest ones beyond the limits; tell whether it is kept. */
export function keepConversation(kept) {
  let record = kept;
  if (JSON.stringify(record).length > MAX_ONE) record = withoutSources(record);
  if (JSON.stringify(record).length > MAX_ONE) return false;
  // What other tabs hold counts too, so the room is made again each time.
  makeRoom(kept.id, JSON.stringify(record).length);
  while (!writeItem(PREFIX + kept.id, record)) {
    const oldest = conversations().filter((other) => other.id !== kept.id).at(-1);
    if (!oldest) return false;
    dropConversation(oldest.id);
  }
  return true;
}

/** Drop a conversation. */
export function dropConversation(id) {
  removeItem(PREFIX + id);
}

function makeRoom(id, size) {
  let room = MAX_CHARACTERS - size;
  let places = MAX_CONVERSATIONS - 1;
  for (const other of conversations()) {
    if (other.id === id) continue;
    room -= JSON.stringify(other).length;
    places -= 1;
    if (room < 0 || places < 0) dropConversation(other.id);
  }
}

/** Return a conversation without the sources of its tokens, which are as long as the text. */
function withoutSources(record) {
  const turns = record.turns.map((turn) => ({
    ...turn,
    answers: turn.answers.map((answer) => ({ ...answer, pieces: "" })),
  }));
  return { ...record, turns };
}

/** Call `work` when another tab changes the conversations. */
export function onOtherTabs(work) {
  addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(PREFIX)) work();
  });
}
