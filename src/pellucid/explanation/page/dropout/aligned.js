// Rows of numbers that stand under one another, entry by entry, and a line from 0 to 1 with what the coins drew.

import { el, range } from "../core/dom.js";
import { walk } from "../core/matrix.js";
import { greatest, places, short, written } from "../core/numbers.js";
import { marked } from "./marked.js";

// A table of rows over the same entries.
//   heads(c)   of a column
//   rows       each with key, symbol, head, numbers, and of them text(c), mark(c), edit(c, number), says(c); one that
//              is `merged` has a single cell, a coin that the whole row shares
//   chosen, pick(c)   the column that is looked at
export function aligned({ label, columns, heads, rows, chosen, pick }) {
  const line = (row, r) => {
    const decimals = row.numbers && places(row.numbers);
    const most = row.signed ? greatest(row.numbers) || 1 : 1;
    const width = row.merged ? columns : 1;
    return el("tbody", { role: "rowgroup", "data-grid": row.key }, el("tr", { role: "row" },
      el("th", { scope: "row", role: "rowheader" },
        el("span", { class: "symbol", "data-symbol": row.symbol }, row.shown ?? row.symbol), " ", el("span", { class: "word" }, row.head)),
      range(row.merged ? 1 : columns).map((c) => cell(row, r, c, decimals, width, most))));
  };
  const cell = (row, r, c, decimals, width, most) => {
    const text = row.text?.(c) ?? written(row.numbers[c], decimals);
    const says = `${row.head} ${row.says?.(c) ?? heads(c)}`;
    const number = row.signed ? row.numbers[c] : 0;
    const kind = number ? (number > 0 ? "positive" : "negative") : "";
    const attributes = {
      class: ["cell", kind, row.mark?.(c), c === chosen && width === 1 && "chosen"].filter(Boolean).join(" "),
      style: { "--strength": Number.isFinite(number) ? (Math.abs(number) / most).toFixed(3) : 0 },
      colspan: width > 1 && width, role: "gridcell", "data-at": `${r},${c}`,
    };
    if (!row.edit)
      return el("td", {
        ...attributes, "data-key": `${row.key}:${c}`, "aria-label": `${says}: ${text}`, title: says,
        tabindex: c === chosen || width > 1 ? 0 : -1, onclick: width === 1 && (() => pick(c)),
      }, text);
    const input = el("input", {
      value: text, inputmode: "decimal", "aria-label": says, "data-key": `${row.key}:edit:${c}`, onfocus: () => input.select(),
      onchange: () => {
        const given = Number(input.value.replace("−", "-"));
        if (input.value.trim() === "" || !Number.isFinite(given) || row.refuses?.(given)) input.value = text;
        else row.edit(c, given);
      },
    });
    return el("td", attributes, input);
  };
  const top = el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, el("td", { role: "presentation" }), range(columns).map((c) =>
    el("th", { scope: "col", role: "columnheader", class: c === chosen && "chosen", onclick: () => pick(c) }, heads(c)))));
  const table = el("table", { class: "matrix aligned", role: "grid", "aria-label": label }, top, rows.map(line));
  walk(table);
  return el("div", { class: "scroll" }, table);
}

const MOST_LABELS = 20;

const percent = (share) => `${(100 * share).toFixed(2)}%`;

// Where the draws lie between 0 and 1, and where p cuts: what lies to its left falls.
export function threshold({ words, symbol, chance, draws, names, full = names, chosen, pick }) {
  const cut = Math.min(1, chance);
  const order = range(draws.length).sort((a, b) => draws[a] - draws[b]);
  const labelled = draws.length <= MOST_LABELS;
  const ends = [];
  const lanes = new Array(draws.length);
  for (const index of labelled ? order : []) {
    const free = ends.findIndex((end) => draws[index] - end > 0.12);
    lanes[index] = free < 0 ? ends.length : free;
    ends[lanes[index]] = draws[index];
  }
  const dots = range(labelled ? draws.length : 0).map((index) => {
    const falls = draws[index] < chance;
    return el("button", {
      type: "button", class: `dot${falls ? " falls" : ""}${index === chosen ? " chosen" : ""}`, "data-key": `dot:${index}`,
      style: { left: percent(draws[index]), top: `${1.75 * lanes[index]}rem` },
      "aria-label": words(falls ? "dot_falls" : "dot_stays", { name: full(index), draw: short(draws[index]) }),
      title: `${full(index)}: ${short(draws[index])}`, onclick: () => pick(index),
    }, falls ? "×" : "●", el("span", {}, names(index)));
  });
  const next = order.find((index) => draws[index] >= chance);
  const last = order.filter((index) => draws[index] < chance).at(-1);
  const said = [
    next !== undefined && marked(words, "next_falls", { name: full(next), symbol, draw: short(draws[next]) }),
    last !== undefined && marked(words, "next_returns", { name: full(last), symbol, draw: short(draws[last]) }),
  ];
  return el("div", { class: "odds" },
    el("div", { class: "dots", style: { height: `${1.75 * ends.length}rem` } }, dots),
    el("div", { class: "axis", "aria-hidden": "true" },
      el("div", { class: "fallen", style: { width: percent(cut) } }),
      Array.from(draws, (draw) => el("i", { style: { left: percent(draw) } })),
      el("div", { class: "cut", style: { left: percent(cut) } }, el("span", { "data-symbol": symbol }, `${symbol} = ${short(chance)}`)),
      cut > 0.14 && el("span", { class: "zone", style: { left: percent(cut / 2) } }, words("left_falls")),
      cut < 0.86 && el("span", { class: "zone", style: { left: percent((1 + cut) / 2) } }, words("right_stays")),
      [0, 1].map((end) => Math.abs(cut - end) > 0.12 && el("span", { class: "end", style: { left: percent(end) } }, String(end)))),
    el("p", {}, said[0] || null, said[0] && said[1] ? words("gap") : null, said[1] || null));
}
