// Sentences with numbers in them: what was recomputed is marked, the words around it are not.

import { el } from "../core/dom.js";

const MARK = "\u0001";
const PLACES = ["name", "corner", "symbol"];

export const number = (text, attributes = {}) => el("span", { class: "recomputed", ...attributes }, text);

// A text of the page whose blanks are filled with numbers, given as strings; `name` and `corner` are places.
export function marked(words, key, facts) {
  const wrapped = Object.entries(facts).map(([name, fact]) => [name, typeof fact === "string" && !PLACES.includes(name) ? `${MARK}${fact}${MARK}` : fact]);
  return words(key, Object.fromEntries(wrapped)).split(MARK).map((part, index) => (index % 2 ? number(part) : part));
}
