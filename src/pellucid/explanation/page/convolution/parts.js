// Small pieces that the parts of the exhibit share.

import { el, range } from "../core/dom.js";
import { short } from "../core/numbers.js";

export const MOST = 14; // places along an axis up to which all are shown as numbers
const PART = 9; // places that are shown of more

// The places from..to of a grid that are shown: all of them, or some round those that matter.
export function span(from, to, low, high, most = MOST) {
  if (to - from + 1 <= most) return range(to - from + 1).map((k) => k + from);
  const length = Math.min(most, PART);
  const middle = Math.floor((low + high + 1 - length) / 2);
  const start = Math.min(Math.max(Math.min(middle, low), from), to - length + 1);
  return range(length).map((k) => k + start);
}

export const muted = (...children) => el("p", { class: "muted" }, children);
export const worked = (...children) => el("p", { class: "worked" }, children);
export const result = (value, name) =>
  el("b", { class: "recomputed", "data-number": name }, typeof value === "string" ? value : short(value));
export const named = (name) => el("b", { "data-symbol": name }, name);
export const operator = (text) => el("span", { class: "operator", "aria-hidden": "true" }, text);
export const minus = (number) => String(number).replace("-", "−");
export const few = (list, most, between = ", ") =>
  (list.length > most ? [...list.slice(0, most), "…"] : list).join(between);
export const mark = (...parts) => parts.filter(Boolean).join(" ");
export const showing = ({ words }, shown, total) => (shown < total ? ` · ${words("showing", { shown, total })}` : "");

// How a place of a line is called: by its coordinate in the input, which is negative ahead of it.
export const head = (line, place) => (line.hole(place) ? "·" : minus(Math.floor(place / line.spread)));
