// One answer: its text, where each token came from, and what drafting has done for it.

/** The letter that stands for each source, in steps and in what is stored. */
export const LETTERS = { target: "t", dflash: "d", lookup: "l" };
/** How the page calls each source. */
export const SOURCE_NAMES = { t: "target’s own", d: "from the drafter", l: "from the text" };

/** What a stream has brought so far; views draw from it whenever they like. */
export class Answer {
  constructor({ isDrafted = true } = {}) {
    this.isDrafted = isDrafted;
    this.state = "waiting"; // then running; then done, stopped or failed
    this.problem = "";
    this.text = "";
    this.reasoning = "";
    this.pieces = []; // what each token has made visible: text, letter, step, isReasoning
    this.steps = []; // the letters of each step's tokens: "ddt"; the first is the prefill's
    this.arrivals = []; // of each step, in milliseconds since the prompt was sent
    this.numTokens = 0;
    this.finishReason = null;
    this.usage = null;
    this.summary = null; // what the server says of the whole answer at its end
    this.sentAt = null;
    this.firstAt = null;
    this.lastAt = null;
  }

  /** Begin to wait for the server, `now` in milliseconds. */
  begin(now) {
    this.sentAt = now;
  }

  /** Take in one chunk of the stream. */
  takeIn(chunk, now) {
    const choice = chunk.choices?.[0];
    if (chunk.usage) this.usage = chunk.usage;
    if (!choice) {
      if (chunk.dflash) this.summary = chunk.dflash;
      return;
    }
    this.state = "running";
    this.finishReason = choice.finish_reason ?? this.finishReason;
    if (chunk.dflash?.tokens) this.#takeTokens(chunk.dflash.tokens, now);
    else this.#takeText(choice.delta ?? {});
    if (this.firstAt === null && this.pieces.length) this.firstAt = now;
    this.lastAt = now;
  }

  #takeTokens(tokens, now) {
    if (!tokens.length) return;
    this.arrivals.push(now - this.sentAt);
    const letters = tokens.map((token) => LETTERS[token.source] ?? "t").join("");
    this.steps.push(letters);
    this.numTokens += tokens.length;
    tokens.forEach((token, index) => {
      if (token.reasoning) this.#add(token.reasoning, letters[index], true);
      // A token inside a character shows nothing, but it counts and keeps its place.
      if (token.text || !token.reasoning) this.#add(token.text ?? "", letters[index], false);
    });
  }

  /** Take in the text of a server that does not say where tokens come from. */
  #takeText(delta) {
    if (delta.reasoning_content) this.#add(delta.reasoning_content, "", true);
    if (delta.content) this.#add(delta.content, "", false);
  }

  #add(text, letter, isReasoning) {
    this.pieces.push({ text, letter, isReasoning, step: this.steps.length - 1 });
    if (isReasoning) this.reasoning += text;
    else this.text += text;
  }

  /** End the answer. */
  end(state, problem = "") {
    this.state = state;
    this.problem = problem;
  }

  /** Tell whether it is known when each step came: not of what was stored. */
  get canReplay() {
    return this.state === "done" && this.arrivals.length > 0;
  }

  /** Return an answer that will come once more as this one came; `catchUp` lets it. */
  replay(now) {
    const again = new Answer({ isDrafted: this.isDrafted });
    again.begin(now);
    again.source = this;
    return again;
  }

  /** Take over what the answer that is replayed had got by this moment. */
  catchUp(now) {
    const { source, steps, pieces } = this;
    this.state = "running";
    while (source.arrivals[steps.length] <= now - this.sentAt) {
      const at = source.arrivals[steps.length];
      this.numTokens += source.steps[steps.length].length;
      steps.push(source.steps[steps.length]);
      this.firstAt ??= this.sentAt + at;
      this.lastAt = this.sentAt + at;
    }
    while (source.pieces[pieces.length]?.step < steps.length) {
      const piece = source.pieces[pieces.length];
      pieces.push(piece);
      if (piece.isReasoning) this.reasoning += piece.text;
      else this.text += piece.text;
    }
    if (steps.length < source.steps.length) return;
    const { finishReason, usage, summary, state } = source;
    Object.assign(this, { finishReason, usage, summary, state });
  }

  get isOver() {
    return ["done", "stopped", "failed"].includes(this.state);
  }

  /** Return how many decode steps gave 1, 2, 3, … tokens. */
  get histogram() {
    const counts = [];
    for (const step of this.steps.slice(1)) {
      while (counts.length < step.length) counts.push(0);
      counts[step.length - 1] += 1;
    }
    return counts;
  }

  /** Return the tokens of each source. */
  get sourceCounts() {
    const counts = { t: 0, d: 0, l: 0 };
    for (const step of this.steps) for (const letter of step) counts[letter] += 1;
    return counts;
  }

  /**
   * Return the figures of the answer so far.
   *
   * Times are the browser's own until the server has sent its own.
   */
  measures() {
    const times = this.summary?.timings;
    const decoded = this.numTokens - (this.steps[0]?.length ?? 0);
    let seconds = (this.lastAt - this.firstAt) / 1000;
    if (times?.first_token_seconds != null) seconds = times.seconds - times.first_token_seconds;
    const numSteps = this.steps.length - 1;
    return {
      numTokens: this.numTokens,
      tokensPerSecond: decoded > 0 && seconds > 0 ? decoded / seconds : null,
      acceptanceLength: numSteps > 0 ? decoded / numSteps : null,
      numSteps: Math.max(0, numSteps),
      firstTokenSeconds:
        times?.first_token_seconds ??
        (this.firstAt === null ? null : (this.firstAt - this.sentAt) / 1000),
      seconds: times?.seconds ?? (this.lastAt === null ? null : (this.lastAt - this.sentAt) / 1000),
      cachedTokens: this.usage?.prompt_tokens_details?.cached_tokens ?? null,
      promptTokens: this.usage?.prompt_tokens ?? null,
    };
  }

  /** Return the answer as it is stored; its pieces shrink to letters and lengths. */
  toRecord() {
    const { isDrafted, state, problem, finishReason, usage, summary, text, reasoning } = this;
    return {
      ...{ isDrafted, problem, finishReason, usage, summary, text, reasoning },
      state: this.isOver ? state : "stopped", // the page was closed while it ran
      steps: this.steps.join(" "),
      pieces: this.pieces
        .map((piece) => `${piece.isReasoning ? "r" : ""}${piece.text.length}`)
        .join(" "),
      times: [this.sentAt, this.firstAt, this.lastAt],
    };
  }

  /** Return the answer that a record stands for; one without pieces has no sources. */
  static fromRecord(record) {
    const answer = new Answer({ isDrafted: record.isDrafted !== false });
    const { state, problem, finishReason, usage, summary, times } = record;
    Object.assign(answer, { state, problem, finishReason, usage, summary });
    [answer.sentAt, answer.firstAt, answer.lastAt] = times ?? [null, null, null];
    answer.steps = record.steps ? record.steps.split(" ") : [];
    answer.numTokens = answer.steps.reduce((sum, step) => sum + step.length, 0);
    restorePieces(answer, record);
    return answer;
  }
}

function restorePieces(answer, record) {
  const lengths = record.pieces ? record.pieces.split(" ") : [];
  const stepOf = [];
  answer.steps.forEach((step, number) => {
    for (const letter of step) stepOf.push([letter, number]);
  });
  answer.text = record.text ?? "";
  answer.reasoning = record.reasoning ?? "";
  const isWhole = lengths.length === stepOf.length; // else a token is of text and reasoning both
  let [atText, atReasoning] = [0, 0];
  if (!isWhole) {
    if (answer.reasoning) answer.pieces.push(plainPiece(answer.reasoning, true));
    if (answer.text) answer.pieces.push(plainPiece(answer.text, false));
    return;
  }
  lengths.forEach((shown, index) => {
    const isReasoning = shown.startsWith("r");
    const length = Number(isReasoning ? shown.slice(1) : shown);
    const [letter, step] = stepOf[index];
    const from = isReasoning ? atReasoning : atText;
    const text = (isReasoning ? answer.reasoning : answer.text).slice(from, from + length);
    if (isReasoning) atReasoning += length;
    else atText += length;
    answer.pieces.push({ text, letter, isReasoning, step });
  });
}

function plainPiece(text, isReasoning) {
  return { text, letter: "", isReasoning, step: -1 };
}
