// The sentence under the unrolled network: a column a step, one set of weights with lines to every step.

import { el, range, svg } from "../core/dom.js";
import { shapeText, short } from "../core/numbers.js";
import { at } from "./model.js";

const COLUMNS = 6;
const [WIDE, LEFT, CELL, HIGH] = [150, 120, 80, 46];

const vectorShape = (size) => `1×${size}`;
export const rowText = (shape) => shapeText(shape.length === 1 ? [1, ...shape] : shape);

// The steps that are drawn, as places among the carried ones.
function windowOf(exhibit, count = COLUMNS) {
  const { data, settings } = exhibit;
  const start = Math.min(Math.max(0, settings.values.step - Math.floor(count / 2)), Math.max(0, data.kept.length - count));
  return range(Math.min(count, data.kept.length)).map((place) => place + start);
}

// A character or word as it can be seen: marks for blanks, long ones cut at whole characters.
export function shownToken(token, most = 8) {
  const marks = { "\n": "⏎", "\t": "⇥", "\r": "␍", ...(token.trim() ? {} : { " ": "␣" }) };
  const plain = [...token].map((c) => marks[c] ?? (/\p{Cc}/u.test(c) ? "\uFFFD" : c)).join("");
  const pieces = typeof Intl.Segmenter === "function" ? [...new Intl.Segmenter().segment(plain)].map((s) => s.segment) : [...plain];
  return pieces.length > most ? `${pieces.slice(0, most).join("")}…` : plain;
}

// A vector as a row of coloured boxes with signs, the first eight entries.
function boxes(row, x, y, label) {
  const shown = range(Math.min(8, row.width)).map((j) => row.get(j));
  const greatest = shown.reduce((most, n) => Math.max(most, Math.abs(n ?? 0)), 0) || 1;
  const side = 9;
  const left = x - (shown.length * side) / 2;
  return svg("g", { class: "boxes" }, svg("title", {}, label), shown.map((number, j) => {
    const sign = number > 0 ? "positive" : "negative";
    return [
      svg("rect", { x: left + j * side, y, width: side, height: side, class: number === null ? "" : sign,
        "fill-opacity": number ? (Math.abs(number) / greatest).toFixed(2) : 0 }),
      number < 0 && svg("path", { class: "minus", d: `M${left + j * side + 2.5} ${y + side / 2}h4` }),
    ];
  }));
}

// A line with a head at (x, y) that points to the right, or upward.
const arrow = (path, x, y, upward = false) => [
  svg("path", { class: "arrow", d: path }),
  svg("path", { class: "tip", d: upward ? `M${x} ${y}l-4 8h8z` : `M${x} ${y}l-8 -4v8z` }),
];
const text = (x, y, content, attributes = {}) => svg("text", { x, y, "text-anchor": "middle", ...attributes }, content);

export function strip(exhibit, run) {
  const { data, settings, words } = exhibit;
  const { step, folded } = settings.values;
  const places = folded ? [Math.min(step, data.kept.length - 1)] : windowOf(exhibit);
  const weights = data.parameters;
  const rails = weights.length * 19 + 14;
  const cellTop = rails + 22;
  const middle = cellTop + HIGH / 2;
  const inputs = data.inputs.length;
  const bottom = cellTop + HIGH + 46 + inputs * 30;
  const height = bottom + (data.tokens ? 66 : 24);
  const width = LEFT + places.length * WIDE + (folded ? 90 : 70);
  const centre = (index) => LEFT + index * WIDE + WIDE / 2;
  const state = data.states.map(({ label }) => label);
  const named = (t) => state.slice(0, 2).map((label) => at(label, t)).join(", ") + (state.length > 2 ? ", …" : "");
  const sizes = data.states.map(({ size }) => vectorShape(size)).join(", ");

  const lines = weights.map(({ name, label, shape }, index) => {
    const y = 14 + index * 19;
    const drop = (column) => centre(column) - CELL / 2 + ((index + 1) * CELL) / (weights.length + 1);
    return svg("g", { class: `rail rail-${index % 4}`, "data-symbol": label },
      svg("text", { x: 4, y: y + 4, class: "name" }, `${label}  ${rowText(shape)}`),
      svg("path", { d: `M${LEFT - 8} ${y}H${drop(places.length - 1)}` }),
      places.map((_, column) => [
        svg("path", { d: `M${drop(column)} ${y}V${cellTop}` }),
        svg("circle", { cx: drop(column), cy: y, r: 2.6 }),
      ]),
      svg("title", {}, words("shared", { name })));
  });

  const columns = places.map((place, column) => {
    const t = data.kept[place] + 1;
    const x = centre(column);
    const now = place === step;
    const token = run.token(t - 1);
    const gap = column && data.kept[place] !== data.kept[places[column - 1]] + 1;
    const says = words("column", { t, token: token === null ? "" : shownToken(token) });
    const choose = () => settings.set({ step: place });
    return svg("g", {
      class: `step ${now ? "now" : ""}`, role: "button", tabindex: 0, "aria-label": says, "aria-pressed": String(now),
      "data-key": `strip:${place}`, onclick: choose,
      onkeydown: (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        event.stopPropagation();
        choose();
      },
    },
      svg("rect", { class: "back", x: x - 45, y: rails + 6, width: 90, height: height - rails - 8, rx: 8 }),
      svg("rect", { class: "cell-box", x: x - CELL / 2, y: cellTop, width: CELL, height: HIGH, rx: 8 }),
      text(x, cellTop + 19, words("step_short", { t }), { class: "small" }),
      boxes(run.state(0, t), x, cellTop + 27, named(t)),
      data.inputs.map(({ label, size }, which) => {
        const y = cellTop + HIGH + 40 + which * 30;
        return svg("g", { "data-symbol": label },
          which === 0 && arrow(`M${x} ${y - 12}V${cellTop + HIGH + 4}`, x, cellTop + HIGH + 2, true),
          boxes(run.input(which, place), x, y - 8, at(label, t)),
          text(x, y + 15, `${at(label, t)}  ${vectorShape(size)}`, { class: "name" }));
      }),
      token !== null && [
        text(x, bottom + 12, words("id", { id: run.id(t - 1) }), { class: "small" }),
        svg("rect", { class: "token-box", x: x - 40, y: bottom + 20, width: 80, height: 32, rx: 6 }),
        text(x, bottom + 42, shownToken(token), { class: "token" }),
        svg("title", {}, token),
      ],
      gap && text(x - WIDE / 2, middle - 22, "…", { class: "name" }));
  });

  const between = folded ? loop() : range(places.length + 1).map((index) => {
    const from = index ? centre(index - 1) + CELL / 2 + 2 : 84;
    const to = index < places.length ? centre(index) - CELL / 2 - 2 : width - 8;
    const t = index ? data.kept[places[index - 1]] + 1 : data.kept[places[0]];
    return svg("g", { "data-symbol": state[0] }, arrow(`M${from} ${middle}H${to - 3}`, to, middle),
      text((from + to) / 2, middle - 6, named(t), { class: "name" }),
      text((from + to) / 2, middle + 15, data.states.length > 1 ? "" : sizes, { class: "small" }));
  });

  function loop() {
    const [x, right] = [centre(0), centre(0) + CELL / 2];
    const t = data.kept[places[0]] + 1;
    return svg("g", { "data-symbol": state[0] },
      arrow(`M${right} ${middle}h38v${-(HIGH / 2 + 12)}H${x - CELL / 2 - 34}v${HIGH / 2 + 12}h29`, x - CELL / 2 - 1, middle),
      text(right + 44, middle + 5, named(t), { class: "name", "text-anchor": "start" }),
      text(right + 44, middle + 21, sizes, { class: "small", "text-anchor": "start" }));
  }

  const start = !folded && svg("g", { "data-symbol": state[0] },
    svg("rect", { class: "token-box", x: 6, y: cellTop + 4, width: 78, height: HIGH - 8, rx: 6 }),
    text(45, middle - 1, named(data.kept[places[0]]), { class: "name" }),
    text(45, middle + 14, data.states.length > 1 ? vectorShape(data.states[0].size) : sizes, { class: "small" }));
  return el("div", { class: "scroll" }, svg("svg", {
    class: "strip", role: "group", "aria-label": words("strip_label"), width, height, viewBox: `0 0 ${width} ${height}`,
  }, columns, lines, between, start));
}

// What a step reads, in words: character, id and the first numbers of its vector.
export function reading(exhibit, run) {
  const { data, settings, words } = exhibit;
  const t = data.kept[settings.values.step] + 1;
  const row = run.input(0, settings.values.step);
  const numbers = range(Math.min(6, row.width)).map((j) => short(row.get(j))).join(", ");
  const facts = { x: at(data.inputs[0].label, t), size: row.width, numbers: row.width > 6 ? `${numbers}, …` : numbers };
  const token = run.token(t - 1);
  if (token === null) return words("reads_vector", facts);
  return words("reads_token", { ...facts, token: shownToken(token), id: run.id(t - 1), different: data.different });
}
