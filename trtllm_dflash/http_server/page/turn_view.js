// A turn of the conversation on the page: the prompt, and the answer or two answers beside it.

import { iconButton, make, onNextFrame, shownNumber, shownSeconds } from "./dom.js";
import { visible } from "./plain_text.js";
import { TextFlow } from "./text_flow.js";

const COPIED = 1_500; // ms for which a button says that it has copied

/** One answer; `draw` brings it up to date with what the stream has brought. */
class AnswerView {
  constructor(answer, actions, title) {
    this.answer = answer;
    this.actions = actions;
    this.isOfPair = title !== null;
    this.numDrawn = 0;
    this.hasChosen = false; // whether the reader has opened or closed the reasoning
    const stepLength = (step) => answer.steps[step]?.length ?? 0;
    this.thoughts = make("div", { class: "flow" });
    this.summary = make("summary", { text: "Reasoning" });
    this.details = make("details", { class: "reasoning", hidden: true });
    this.details.append(this.summary, this.thoughts);
    this.summary.addEventListener("click", () => (this.hasChosen = true));
    this.body = make("div", { class: "flow" });
    this.figures = make("span", { class: "figures" });
    this.notice = make("p", { class: "notice", role: "status", hidden: true });
    this.buttons = make("span", { class: "buttons" });
    this.element = make("section", { class: "answer", "aria-label": title ?? "Answer" });
    this.speed = make("small");
    const heading = make("h3", { class: "column-title", text: title }, this.speed);
    if (title) this.element.append(heading);
    const foot = make("footer", { class: "foot" }, this.figures, this.buttons);
    this.element.append(this.details, this.body, this.notice, foot);
    this.textFlow = new TextFlow(this.body, stepLength);
    this.thoughtFlow = new TextFlow(this.thoughts, stepLength);
    this.#addButtons();
  }

  #addButtons() {
    const copy = iconButton("copy", "Copy", () => this.#copy(copy));
    const look = iconButton("chart", "Measurements", () => this.actions.inspect(this.answer));
    this.buttons.append(copy, look);
  }

  async #copy(button) {
    const words = button.lastChild;
    words.textContent = (await copyText(this.answer.text)) ? "Copied" : "Not allowed here";
    setTimeout(() => (words.textContent = "Copy"), COPIED);
  }

  draw() {
    const { answer } = this;
    const fresh = answer.pieces.slice(this.numDrawn);
    this.numDrawn = answer.pieces.length;
    const isLive = !answer.isOver;
    this.thoughtFlow.append(fresh.filter((piece) => piece.isReasoning), { isLive });
    this.textFlow.append(fresh.filter((piece) => !piece.isReasoning), { isLive });
    this.element.dataset.state = answer.state;
    this.#drawReasoning();
    this.#drawFigures();
    this.speed.textContent = speedWords(answer);
    this.notice.hidden = !noticeWords(answer);
    this.notice.textContent = noticeWords(answer);
    this.buttons.hidden = !answer.isOver;
  }

  #drawFigures() {
    const parts = figureParts(this.answer, this.isOfPair);
    if (this.figures.textContent === parts.join("")) return;
    this.figures.replaceChildren(...parts.map((text) => make("span", { text })));
  }

  /** Keep the reasoning open while there is nothing else, unless the reader chose otherwise. */
  #drawReasoning() {
    const { reasoning, text, isOver } = this.answer;
    this.details.hidden = !reasoning;
    if (this.hasChosen) return;
    this.details.open = Boolean(reasoning) && !text && !isOver;
    this.summary.textContent = text || isOver ? "Reasoning" : "Reasoning…";
  }
}

function figureParts(answer, isOfPair) {
  if (answer.state === "waiting") {
    return [answer.sentAt === null ? "comes next" : "waiting for the first token…"];
  }
  const figures = answer.measures();
  const words = [];
  // A pair has its speeds at the head of the columns.
  if (figures.tokensPerSecond && !isOfPair) {
    words.push(`${shownNumber(figures.tokensPerSecond, 1)} tokens/s`);
  }
  if (figures.acceptanceLength && answer.isDrafted) {
    words.push(`${shownNumber(figures.acceptanceLength, 2)} tokens a step`);
  }
  if (figures.numTokens) words.push(`${shownNumber(figures.numTokens)} tokens`);
  if (figures.seconds) words.push(shownSeconds(figures.seconds));
  if (figures.cachedTokens) words.push(`${shownNumber(figures.cachedTokens)} from the cache`);
  return words;
}

/** Return what tells the columns of a pair apart while both grow. */
function speedWords(answer) {
  const { tokensPerSecond, numSteps } = answer.measures();
  if (!tokensPerSecond) return "";
  return `${shownNumber(tokensPerSecond, 1)} tokens/s, ${shownNumber(numSteps)} steps`;
}

function noticeWords(answer) {
  if (answer.state === "stopped") return "Stopped. What had come until then is kept.";
  if (answer.state === "failed") return answer.problem;
  if (answer.finishReason === "length") return "Cut off at the limit of new tokens.";
  return "";
}

/** Copy a text; tell whether that worked. */
async function copyText(text) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(
      () => true,
      () => false,
    );
  }
  // Pages of plain HTTP from another machine have no clipboard but this old one.
  const field = make("textarea", { class: "hidden-words" });
  field.value = text;
  document.body.append(field);
  field.select();
  const hasCopied = document.execCommand("copy");
  field.remove();
  return hasCopied;
}

/** A prompt with its answers. */
export class TurnView {
  constructor(turn, number, actions) {
    this.turn = turn;
    this.actions = actions;
    this.isReplaying = false;
    const isPair = turn.answers.length === 2;
    const heading = make("h2", { class: "hidden-words", text: `Prompt ${number}` });
    const prompt = make("div", { class: "prompt", text: visible(turn.prompt) });
    this.columns = make("div", { class: isPair ? "answers pair" : "answers" });
    this.#show(turn.answers);
    this.verdict = make("div", { class: "verdict", role: "status", hidden: true });
    const outlined = { class: "quiet retry" };
    this.retry = iconButton("again", "Try again", () => actions.retry(turn), outlined);
    this.element = make("article", { class: "turn" }, heading, prompt);
    this.replay = iconButton("again", "Replay both at once", () => this.#replay(), outlined);
    const below = isPair ? [this.verdict, this.replay] : [];
    this.element.append(this.columns, ...below, this.retry);
    this.draw = () => this.#draw();
    this.#draw();
  }

  /** Draw before the next frame. */
  drawSoon() {
    onNextFrame(this.draw);
  }

  #show(answers) {
    const titles = answers.length === 2 ? ["Drafts off", "Drafts on"] : [null];
    this.answers = answers.map((one, at) => new AnswerView(one, this.actions, titles[at]));
    this.columns.replaceChildren(...this.answers.map((view) => view.element));
  }

  /** Let both answers of a pair grow at once, each as fast as it came by itself. */
  #replay() {
    const now = performance.now();
    const again = this.turn.answers.map((answer) => answer.replay(now));
    this.#show(again);
    const tick = () => {
      if (!this.element.isConnected) return; // another conversation was opened
      for (const answer of again) answer.catchUp(performance.now());
      const hasEnded = again.every((answer) => answer.isOver);
      if (hasEnded) this.#show(this.turn.answers);
      else requestAnimationFrame(tick);
      this.isReplaying = !hasEnded;
      this.#draw();
    };
    tick();
  }

  #draw() {
    for (const view of this.answers) view.draw();
    const { answers } = this.turn;
    this.replay.hidden = this.isReplaying || !answers.every((answer) => answer.canReplay);
    this.retry.hidden = !this.actions.canRetry(this.turn);
    const parts = answers.length === 2 ? verdictParts(this.turn) : [];
    if (parts.length) this.verdict.replaceChildren(...parts);
    this.verdict.hidden = !parts.length || this.isReplaying;
    this.actions.drawn();
  }
}

/** Return what the comparison of a pair shows, once both have ended by themselves. */
function verdictParts({ answers }) {
  const [off, on] = answers;
  if (off.state !== "done" || on.state !== "done") return [];
  const [slow, fast] = [off.measures(), on.measures()];
  const parts = [];
  // Requests of others in the same steps bring their drafts with them.
  if (off.sourceCounts.d + off.sourceCounts.l) {
    const words = "Other requests shared the engine, so this says nothing of speed. Ask again.";
    return [make("span", { text: words })];
  }
  if (slow.tokensPerSecond && fast.tokensPerSecond) {
    const ratio = shownNumber(fast.tokensPerSecond / slow.tokensPerSecond, 2);
    const figure = make("b", { text: `${ratio} ×` });
    parts.push(make("span", {}, figure, " the tokens per second with drafts"));
    const [few, many] = [shownNumber(fast.numSteps), shownNumber(slow.numSteps)];
    parts.push(make("span", { text: `${few} steps instead of ${many}` }));
  }
  parts.push(make("span", { text: comparedTexts(off.text, on.text) }));
  return parts;
}

function comparedTexts(one, other) {
  if (one === other) return "the two texts are equal";
  let at = 0;
  while (one[at] === other[at]) at += 1;
  return `the texts part at character ${at + 1}`;
}
