// How a model's text is shown: as it is, but for characters that one cannot see and that could
// deceive. What is copied is always the text itself.

// C0 controls but tab and line feed, DEL, C1 controls, and the controls that turn the direction of
// writing around. Marks of direction (U+200E, U+200F, U+061C) stay: they belong to honest text.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

/** Return the text with a visible sign for each character that would act in secret. */
export function visible(text) {
  return text.replace(HIDDEN, (character) => {
    const code = character.charCodeAt(0);
    if (code === 0x0d) return "";
    if (code < 0x20) return String.fromCharCode(0x2400 + code); // ␛ for ESC
    if (code === 0x7f) return "\u2421";
    return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

/** Return the first words of a text on one line, for titles. */
export function headline(text, limit = 60) {
  const line = visible(text.slice(0, 4 * limit)).replace(/\s+/g, " ").trim();
  return line.length <= limit ? line : `${line.slice(0, limit - 1).trimEnd()}…`;
}
