// The measurements of one answer, as they happen.

import { byId, make, onNextFrame, shownNumber, shownSeconds } from "./dom.js";
import { StepStrip } from "./step_strip.js";

const LEAST_PAUSE = 100; // ms between two changes of the figures: faster ones cannot be read
const strip = new StepStrip(byId("strip"));
const bars = byId("histogram").tBodies[0];

let answer = null;
let mostTokens = 4; // that a step of this engine can give
let drawnAt = 0;
let timer = null;

/** Show the measurements of this answer from now on; null: of none. */
export function showMeasurements(wanted) {
  answer = wanted;
  drawnAt = 0;
  update();
}

/** Take the figures of a model: how many tokens a step can give. */
export function setMostTokens(drafts) {
  mostTokens = drafts + 1;
  update();
}

/** Draw the figures anew if they are of this answer. */
export function update(changed = answer) {
  if (changed !== answer) return;
  if (answer) strip.show(answer.steps, Math.max(mostTokens, ...longest()));
  const pause = LEAST_PAUSE - (performance.now() - drawnAt);
  if (pause <= 0 || !answer || answer.isOver) onNextFrame(draw);
  else timer ??= setTimeout(() => onNextFrame(draw), pause);
}

function longest() {
  return answer.steps.slice(-64).map((step) => step.length);
}

function draw() {
  clearTimeout(timer);
  timer = null;
  drawnAt = performance.now();
  byId("measured").dataset.state = answer ? answer.state : "empty";
  const figures = answer?.measures();
  byId("figure-speed").textContent = shownNumber(figures?.tokensPerSecond, 1);
  byId("figure-acceptance").textContent = shownNumber(figures?.acceptanceLength, 2);
  byId("figure-first").textContent = shownSeconds(figures?.firstTokenSeconds);
  byId("figure-cached").textContent = shownNumber(figures?.cachedTokens);
  byId("figure-prompt").textContent =
    figures?.promptTokens == null ? "" : ` of ${shownNumber(figures.promptTokens)}`;
  byId("figure-most").textContent = `of at most ${mostTokens}`;
  byId("strip-label").textContent = stripWords(figures);
  drawHistogram(answer?.histogram ?? []);
  drawSources();
}

function stripWords(figures) {
  if (!figures?.numSteps) return "no decode step yet";
  return `${shownNumber(figures.numSteps)} steps gave ${shownNumber(figures.numTokens)} tokens`;
}

function drawHistogram(counts) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  const largest = Math.max(1, ...counts);
  const rows = Math.max(counts.length, mostTokens);
  while (bars.rows.length > rows) bars.deleteRow(-1);
  while (bars.rows.length < rows) bars.append(newRow(bars.rows.length + 1));
  for (let index = 0; index < rows; index += 1) {
    const count = counts[index] ?? 0;
    const [, bar, words] = bars.rows[index].cells;
    bar.firstChild.style.setProperty("--share", count / largest);
    words.textContent = total ? `${Math.round((100 * count) / total)} %` : "";
  }
}

function newRow(number) {
  const bar = make("td", { class: "share", "aria-hidden": "true" }, make("i"));
  return make("tr", {}, make("th", { scope: "row", text: number }), bar, make("td"));
}

function drawSources() {
  const counts = answer?.sourceCounts ?? { t: 0, d: 0, l: 0 };
  const total = counts.t + counts.d + counts.l;
  const drafts = answer?.summary?.drafts ?? {};
  const names = { t: null, d: "dflash", l: "lookup" };
  for (const [letter, source] of Object.entries(names)) {
    const share = total ? Math.round((100 * counts[letter]) / total) : null;
    byId(`count-${letter}`).textContent = shownNumber(total ? counts[letter] : null);
    byId(`share-${letter}`).textContent = share === null ? "–" : `${share} %`;
    byId(`part-${letter}`).style.setProperty("--share", total ? counts[letter] / total : 0);
    const words = acceptedWords(counts[letter], drafts[source]);
    if (source) byId(`verified-${letter}`).textContent = words;
  }
}

function acceptedWords(accepted, count) {
  if (!count?.verified) return "";
  return `${shownNumber(accepted)} of ${shownNumber(count.verified)} drafts accepted`;
}
