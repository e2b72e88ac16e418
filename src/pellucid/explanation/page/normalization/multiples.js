// The input as small multiples: a block of cells for each sample and channel, in which the arrows walk.

import { el, range } from "../core/dom.js";
import { walk } from "../core/matrix.js";
import { places as decimalsOf, written } from "../core/numbers.js";

const COLOURS = 8;
const HATCHES = 5;

// How a set of numbers looks: its colour and its hatching, different for neighbours.
export const look = (set) => ({ class: `set h${set % HATCHES}`, style: { "--set": `var(--group-${set % COLOURS})` } });

// Which of the page's words a letter has.
export const meaning = (letter) => ("NCHWDLT".includes(letter) ? letter : "other");

// Which axes stand where: blocks down and across, and in each block rows and columns.
function arrangement({ letters, channel }) {
  const axes = range(letters.length);
  if (axes.length < 3) return { down: [], across: [], rows: axes.slice(0, -1), columns: axes.slice(-1) };
  if (axes.length === 3) return { down: [], across: [0], rows: [1], columns: [2] };
  if (channel === null)
    return { down: [0], across: axes.slice(1, -2), rows: axes.slice(-2, -1), columns: axes.slice(-1) };
  const rest = axes.filter((axis) => axis !== 0 && axis !== channel);
  return { down: [0], across: [channel], rows: rest.slice(0, -1), columns: rest.slice(-1) };
}

const indices = (axes, shape) =>
  axes.reduce((found, axis) => found.flatMap((at) => range(shape[axis]).map((index) => [...at, [axis, index]])), [[]]);
export const named = (letters, at) =>
  at.map(([axis, index]) => `${letters[axis].toLowerCase()} = ${index + 1}`).join(", ");

// Draw them.
//   key, label    of the grid
//   value(place)  the number of a cell
//   set(place)    the number of its set; null where it belongs to none
//   chosen, shares    the chosen place and whether a place shares its average
//   real(place), says(place), pick(place)
export function multiples(data, options) {
  const { key, label, value, set, chosen, shares, real, says, pick } = options;
  const { letters, shown } = data;
  const lie = arrangement(data);
  const [down, across, rows, columns] = ["down", "across", "rows", "columns"].map((part) => indices(lie[part], shown));
  const all = [];
  const placeOf = (...parts) => {
    const place = new Array(shown.length).fill(0);
    for (const [axis, index] of parts.flat()) place[axis] = index;
    return place;
  };
  for (const d of down)
    for (const a of across) for (const r of rows) for (const c of columns) all.push(value(placeOf(d, a, r, c)));
  const decimals = decimalsOf(all.filter((number) => number !== null));

  function cell(place, row, column) {
    const number = value(place);
    const [isReal, isShared] = [real(place), shares(place)];
    const isChosen = chosen.every((index, axis) => index === place[axis]);
    const own = isReal && set(place) !== null ? look(set(place)) : { class: "", style: {} };
    const text = isReal ? written(number, decimals) : "–";
    const marks = [own.class, isShared ? "shares" : "", isChosen ? "active" : "", isReal ? "" : "padding"];
    return el(
      "td",
      {
        class: `cell ${marks.filter(Boolean).join(" ")}`,
        style: own.style,
        role: "gridcell",
        tabindex: isChosen ? 0 : -1,
        "data-at": `${row},${column}`,
        "data-key": `${key}:${place}`,
        "aria-label": `${text} · ${says(place, isShared)}`,
        "aria-selected": String(isChosen),
        title: says(place, isShared),
        onclick: () => pick(place),
        onfocus: () => isChosen || pick(place),
      },
      text,
    );
  }

  const heads = lie.across.length === 0 || lie.down.length === 0;
  function block(d, a, down, across) {
    const head =
      heads &&
      el(
        "tr",
        { role: "row" },
        rows[0].length > 0 &&
          el(
            "td",
            { role: "presentation", class: "corner" },
            `${lie.rows.map((axis) => letters[axis]).join("")}↓ ${letters[lie.columns[0]]}→`,
          ),
        columns.map((c) => el("th", { scope: "col", role: "columnheader" }, String(c[0][1] + 1))),
      );
    const lines = rows.map((r, i) =>
      el(
        "tr",
        { role: "row" },
        heads && r.length > 0 && el("th", { scope: "row", role: "rowheader" }, String(r.at(-1)[1] + 1)),
        columns.map((c, j) => cell(placeOf(d, a, r, c), down * rows.length + i, across * columns.length + j)),
      ),
    );
    const name = named(letters, [...d, ...a]);
    return el(
      "table",
      { class: "matrix multiple", role: "grid", "aria-label": name ? `${label}, ${name}` : label },
      head,
      lines,
    );
  }

  const drawn = down.flatMap((d, i) => [
    lie.down.length > 0 && el("div", { class: "axis" }, named(letters, d)),
    ...across.map((a, j) =>
      el(
        "figure",
        { class: "multiple" },
        heads && a.length > 0 && el("figcaption", {}, named(letters, a)),
        block(d, a, i, j),
      ),
    ),
  ]);
  const top = lie.down.length > 0 && [el("div"), ...across.map((a) => el("div", { class: "axis" }, named(letters, a)))];
  const box = el(
    "div",
    {
      class: `multiples ${lie.down.length > 0 ? "crossed" : "loose"}`,
      style: { "--across": across.length },
      "data-multiples": key,
    },
    top,
    drawn,
  );
  walk(box);
  return el("div", { class: "scroll" }, box);
}
