// The conversation: sends prompts, takes answers in, and keeps both.

import { ConnectionLost, Refusal, streamChat } from "./api.js";
import { Answer } from "./answer.js";
import { headline } from "./plain_text.js";
import { freshSeed, requestBody } from "./settings.js";
import { conversation as stored, keepConversation, keepForNow } from "./store.js";

const KEEP_EVERY = 3_000; // ms, while an answer grows

/**
 * Holds the conversation on the page, and the turn that runs.
 *
 * A running turn goes on when another conversation is opened, and is kept where it belongs.
 * `events` has what the page does: opened, added, began, changed, failed,
 * ended, kept, notKept.
 */
export class Chat {
  constructor(events) {
    this.events = events;
    this.model = "";
    this.current = newConversation();
    this.running = null; // { conversation, turn, controller }
    this.keptAt = 0;
  }

  /** Begin an empty conversation. */
  startNew() {
    this.#show(newConversation());
  }

  /** Open a conversation that was kept. */
  open(id) {
    if (this.running?.conversation.id === id) {
      this.#show(this.running.conversation);
      return;
    }
    const record = stored(id);
    if (record) this.#show(fromRecord(record));
  }

  #show(conversation) {
    this.current = conversation;
    this.events.opened(conversation);
  }

  /** Send a prompt; with `isPair` it is answered twice, without drafts and with them. */
  async send(prompt, { isPair }) {
    const { current } = this;
    const answers = isPair ? [new Answer({ isDrafted: false }), new Answer()] : [new Answer()];
    const turn = { prompt, answers };
    if (!current.turns.length) current.title = headline(prompt);
    current.turns.push(turn);
    this.events.added(turn);
    await this.#run(current, turn);
  }

  /** Ask for the last turn's answers again, in place of those that failed or were stopped. */
  async retry(turn) {
    if (!this.canRetry(turn)) return;
    turn.answers = turn.answers.map((answer) => new Answer({ isDrafted: answer.isDrafted }));
    this.events.opened(this.current);
    await this.#run(this.current, turn);
  }

  /** Tell whether a turn may be asked again: the last one, once it has ended. */
  canRetry(turn) {
    const isLast = this.current.turns.at(-1) === turn;
    return !this.running && isLast && turn.answers.every((answer) => answer.isOver);
  }

  /** End the answers that run; what they have is kept. */
  stop() {
    this.running?.controller.abort();
  }

  async #run(conversation, turn) {
    const controller = new AbortController();
    this.running = { conversation, turn, controller };
    this.#keep(conversation);
    const messages = messagesBefore(conversation, turn);
    const seed = turn.answers.length === 2 ? freshSeed() : null;
    // The settings of this moment count, also for the one of a pair that comes second.
    const asked = turn.answers.map((answer) => {
      const body = requestBody(this.model, messages, { isDrafted: answer.isDrafted, seed });
      return () => this.#stream(answer, body, controller.signal);
    });
    // One after the other: a step of the engine has one number of drafts for all its requests,
    // so at once the one without drafts would have them, too.
    for (const ask of asked) await ask();
    this.running = null;
    this.#keep(conversation);
    this.events.ended(turn);
  }

  async #stream(answer, body, signal) {
    answer.begin(performance.now());
    this.events.began(answer);
    const onChunk = (chunk) => {
      answer.takeIn(chunk, performance.now());
      this.events.changed(answer);
      this.#keepNowAndThen();
    };
    try {
      if (signal.aborted) throw signal.reason;
      await streamChat(body, { signal, onChunk });
      answer.end("done");
    } catch (error) {
      if (signal.aborted) answer.end("stopped");
      else answer.end("failed", problemWords(error));
      if (!signal.aborted) this.events.failed(error);
    }
    this.events.changed(answer);
  }

  #keepNowAndThen() {
    if (performance.now() - this.keptAt > KEEP_EVERY) this.keepRunning();
  }

  /** Keep what a running turn has so far; also when the page is left. */
  keepRunning() {
    const grown = this.running?.conversation;
    this.keptAt = performance.now();
    if (grown && !grown.isDropped) keepForNow(toRecord(grown));
  }

  #keep(conversation) {
    conversation.updated = Date.now();
    if (conversation.isDropped) return;
    if (!keepConversation(toRecord(conversation))) this.events.notKept();
    this.events.kept();
  }
}

function newConversation() {
  // Not randomUUID: pages of plain HTTP from another machine do not have it.
  const id = [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(36));
  return { id: id.join("-"), title: "", updated: Date.now(), turns: [] };
}

function toRecord({ id, title, updated, turns }) {
  const kept = turns.map(({ prompt, answers }) => ({
    prompt,
    answers: answers.map((answer) => answer.toRecord()),
  }));
  return { id, title, updated, turns: kept };
}

function fromRecord({ id, title, updated, turns }) {
  const restored = turns.map(({ prompt, answers }) => ({
    prompt,
    answers: answers.map(Answer.fromRecord),
  }));
  return { id, title, updated, turns: restored };
}

/** Return the messages up to a turn's prompt; turns without any answer are left out. */
function messagesBefore(conversation, turn) {
  const messages = [];
  for (const earlier of conversation.turns) {
    if (earlier === turn) break;
    const answer = earlier.answers.findLast((each) => each.text);
    if (!answer) continue;
    messages.push({ role: "user", content: earlier.prompt });
    messages.push({ role: "assistant", content: answer.text });
  }
  return [...messages, { role: "user", content: turn.prompt }];
}

function problemWords(error) {
  if (error instanceof ConnectionLost) {
    return `${error.message} Your prompt, and what had come of the answer, are kept here.`;
  }
  if (!(error instanceof Refusal)) return "The answer could not be read.";
  const later = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  return `${error.message}${later}`;
}
