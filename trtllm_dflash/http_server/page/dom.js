// Small helpers around the DOM. Text enters it through text nodes alone, so nothing that a model
// or a server writes can become markup.

/** Return the element with this id. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element #${id}`);
  return found;
}

/** Return a new element; `text` is put into it as text, all other options are attributes. */
export function make(tag, { text, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  if (text != null) element.textContent = text;
  element.append(...children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Return one of the icons that index.html defines; its button has the words. */
export function icon(name) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("class", "icon");
  picture.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  picture.append(use);
  return picture;
}

/** Return a button with an icon before its words. */
export function iconButton(name, words, onClick, attributes = {}) {
  const button = make("button", { type: "button", class: "quiet", ...attributes }, icon(name));
  button.append(make("span", { text: words }));
  button.addEventListener("click", onClick);
  return button;
}

const works = new Set();
let isFrameAsked = false;

/**
 * Do `work` once before the next frame, however often it was asked for until then.
 *
 * A stream may bring hundreds of chunks a second; the page changes once a frame for all of them.
 */
export function onNextFrame(work) {
  works.add(work);
  if (isFrameAsked) return;
  isFrameAsked = true;
  requestAnimationFrame(() => {
    isFrameAsked = false;
    const now = [...works];
    works.clear();
    for (const each of now) each();
  });
}

/** Return a number with so many digits behind the point, or a dash for none. */
export function shownNumber(value, digits = 0) {
  if (value == null || !Number.isFinite(value)) return "–";
  return value.toLocaleString("en", {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  });
}

/** Return a duration as people read it: 48 ms, 2.31 s, 1 min 20 s. */
export function shownSeconds(seconds) {
  if (seconds == null || !Number.isFinite(seconds)) return "–";
  if (seconds < 0.1) return `${shownNumber(seconds * 1000, seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${shownNumber(seconds, 2)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}
