// Text that grows, in pieces, with or without colours.
//
// The text is cut into blocks of some lines. A frame appends to the last block alone, so its cost
// does not grow with the answer. Blocks have a span for each token only while they are coloured
// and near the visible part; otherwise each is one text node.

import { make, onNextFrame } from "./dom.js";
import { visible } from "./plain_text.js";
import { SOURCE_NAMES } from "./answer.js";

const BLOCK = 800; // characters behind which a block ends at the next line's end
const LONG_BLOCK = 4000; // and at the next space
const LONGEST_BLOCK = 8000; // and anywhere
const SCREENFUL = 6; // blocks that fill a screen, with some to spare
const MARGIN = "600px"; // how far outside the visible part blocks keep their spans

const blockOf = new WeakMap();
const near = new Set();
let isColoured = true;

const observer = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const block = blockOf.get(entry.target);
      if (entry.isIntersecting) near.add(block);
      else near.delete(block);
      onNextFrame(block.draw);
    }
  },
  { rootMargin: MARGIN },
);

/** Colour all tokens by their source, or none. */
export function setColoured(wanted) {
  isColoured = wanted;
  for (const block of near) onNextFrame(block.draw);
}

/** Forget all blocks, once a conversation has left the page. */
export function forgetBlocks() {
  observer.disconnect();
  near.clear();
}

class Block {
  constructor(stepLengthOf, isNear) {
    this.node = make("div", { class: "block" });
    this.pieces = [];
    this.size = 0;
    this.draw = () => this.#draw();
    this.stepLengthOf = stepLengthOf;
    this.numDrawn = 0;
    this.hasSpans = false;
    blockOf.set(this.node, this);
    if (isNear) near.add(this);
    observer.observe(this.node);
  }

  add(piece) {
    this.pieces.push(piece);
    this.size += piece.text.length;
  }

  get isFull() {
    const last = this.pieces.at(-1)?.text ?? "";
    if (this.size > BLOCK && last.endsWith("\n")) return true;
    return this.size > LONG_BLOCK && (/\s$/.test(last) || this.size > LONGEST_BLOCK);
  }

  #draw() {
    const wantsSpans = isColoured && near.has(this);
    if (wantsSpans !== this.hasSpans) {
      this.node.replaceChildren();
      this.numDrawn = 0;
      this.hasSpans = wantsSpans;
    }
    const fresh = this.pieces.slice(this.numDrawn);
    this.numDrawn = this.pieces.length;
    if (!fresh.length) return;
    if (wantsSpans) {
      this.node.append(...fresh.filter((piece) => piece.text).map((piece) => this.#span(piece)));
      return;
    }
    const text = fresh.map((piece) => visible(piece.text)).join("");
    if (this.node.lastChild) this.node.lastChild.appendData(text);
    else this.node.append(text);
  }

  #span(piece) {
    if (!piece.letter) return document.createTextNode(visible(piece.text));
    const tokens = this.stepLengthOf(piece.step);
    const where = piece.step === 0 ? "prefill" : `step ${piece.step}`;
    return make("span", {
      class: `token ${piece.letter}`,
      text: visible(piece.text),
      title: `${SOURCE_NAMES[piece.letter]} · ${where}, ${tokens} token${tokens > 1 ? "s" : ""}`,
    });
  }
}

/** Draws the pieces of an answer's text, or of its reasoning, into an element. */
export class TextFlow {
  constructor(element, stepLengthOf) {
    this.element = element;
    this.stepLengthOf = stepLengthOf;
    this.last = null;
  }

  /**
   * Append pieces and draw them at once: call it once a frame.
   *
   * The blocks of an answer that grows stand at the end, mostly in sight, and have colours from
   * the start (`isLive`). Of an old answer the observer tells which ones are in sight.
   */
  append(pieces, { isLive }) {
    const touched = new Set();
    for (const piece of pieces) {
      if (!this.last || this.last.isFull) {
        this.last = new Block(this.stepLengthOf, isLive);
        this.element.append(this.last.node);
      }
      this.last.add(piece);
      touched.add(this.last);
    }
    // After a burst only its end is in sight; the rest need not have spans first.
    for (const block of [...touched].slice(0, -SCREENFUL)) near.delete(block);
    for (const block of touched) block.draw();
  }
}
