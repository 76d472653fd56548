// A picture of the last decode steps: each is a column, one cell for each token that it gave.

import { onNextFrame } from "./dom.js";

const COLUMN = 7; // pixels, with its gap
const GAP = 2;
const MOST_CELL = 11;

/** Draws the steps of an answer into a canvas; the newest stands at the right end. */
export class StepStrip {
  constructor(canvas) {
    this.canvas = canvas;
    this.steps = [];
    this.tallest = 4;
    const redraw = () => onNextFrame(this.draw);
    this.draw = () => this.#draw();
    new ResizeObserver(redraw).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    new MutationObserver(redraw).observe(document.documentElement, {
      attributeFilter: ["data-theme"],
    });
  }

  /** Show these steps, given as letters; the tallest one possible has `tallest` tokens. */
  show(steps, tallest) {
    this.steps = steps;
    this.tallest = Math.max(2, tallest);
    onNextFrame(this.draw);
  }

  #draw() {
    const { canvas } = this;
    const ratio = devicePixelRatio;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const inks = Object.fromEntries(
      ["t", "d", "l"].map((letter) => [letter, style.getPropertyValue(`--ink-${letter}`)]),
    );
    const cell = Math.min(MOST_CELL, Math.floor(height / this.tallest));
    const numColumns = Math.floor((width + GAP) / COLUMN);
    const seen = this.steps.slice(1).slice(-numColumns);
    seen.forEach((step, index) => {
      [...sorted(step)].forEach((letter, row) => {
        const [x, y] = [index * COLUMN, height - (row + 1) * cell + 1];
        drawCell(context, { x, y, width: COLUMN - GAP, height: cell - 1, letter, inks });
      });
    });
  }
}

/** Return the letters of a step from the bottom up: the target's own token bears the drafts. */
function sorted(step) {
  return step.endsWith("t") ? `t${step.slice(0, -1)}` : step;
}

/** Draw a token: the target's own is hollow, a draft is full, one from the text has a slit. */
function drawCell(context, { x, y, width, height, letter, inks }) {
  context.fillStyle = inks[letter];
  context.strokeStyle = inks[letter];
  if (letter === "t") {
    context.lineWidth = 1;
    context.strokeRect(x + 0.5, y + 0.5, width - 1, height - 1);
    return;
  }
  context.fillRect(x, y, width, height);
  if (letter === "l") context.clearRect(x + width / 2 - 0.75, y, 1.5, height);
}
