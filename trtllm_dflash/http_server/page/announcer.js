// What a screen reader is told of an answer: whole sentences, politely, and never a flood.

import { byId } from "./dom.js";
import { visible } from "./plain_text.js";

const PAUSE = 2_000; // ms between two announcements
const MOST = 600; // characters of one announcement
const SENTENCE = /[\s\S]*[.!?:;\n](?=\s|$)/;

const region = byId("announcements");
let pending = "";
let timer = null;

/** Say something short soon. */
export function announce(words) {
  pending += ` ${words}`;
  speakSoon();
}

/** Say the sentences that a piece of an answer completes, once there are some. */
export function announceText(text) {
  pending += text;
  speakSoon();
}

/** Say all that is left. */
export function finishAnnouncing(words) {
  pending += `\n${words}.\n`;
  speakSoon();
}

function speakSoon() {
  if (timer === null) timer = setTimeout(speak, PAUSE / 4);
}

function speak() {
  timer = null;
  const whole = SENTENCE.exec(pending)?.[0] ?? "";
  if (!whole) {
    if (pending.length > MOST) pending = `${pending.slice(-MOST)}`;
    return;
  }
  pending = pending.slice(whole.length);
  // Of a fast answer only the latest is spoken: the rest stands in the conversation.
  region.textContent = visible(whole.slice(-MOST).trim());
  timer = setTimeout(speak, PAUSE);
}
