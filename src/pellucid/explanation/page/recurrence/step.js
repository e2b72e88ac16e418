// One step line by line, one unit opened, and the valves.

import { el, range, svg } from "../core/dom.js";
import { matrix } from "../core/matrix.js";
import { short, term } from "../core/numbers.js";
import { timed } from "./model.js";

const SHOWN = 8;

// The units that grids show: all of a few, else the eight round the chosen one.
export function unitsShown(exhibit, size) {
  const { data, settings } = exhibit;
  const all = data.units ?? range(data.states[0].size);
  const fitting = (size === undefined ? all : all.filter((unit) => unit < size));
  if (fitting.length <= SHOWN + 2 && !data.units) return fitting;
  const start = Math.floor(Math.max(0, fitting.indexOf(settings.values.unit)) / SHOWN) * SHOWN;
  return fitting.slice(start, start + SHOWN);
}

// How a row of some width is laid out: parts as wide as a state, or a plain row.
function layout(exhibit, width, cut) {
  const { size } = exhibit.data.states[0];
  if (cut && width % size === 0) return { parts: width / size, units: unitsShown(exhibit), size };
  const units = width <= SHOWN + 2 ? range(width) : range(SHOWN);
  return { parts: 1, units, size: width };
}

function rowGrid(exhibit, key, label, row, caption, cut = true) {
  const { words, settings, data } = exhibit;
  const { parts, units, size } = layout(exhibit, row.width, cut);
  const own = cut && size === data.states[0].size;
  const few = units.length < size;
  const shown = few ? words("showing", { shown: units.length * parts, total: row.width }) : "";
  return matrix({
    key, label, rows: parts, columns: units.length,
    caption: caption || shown ? [caption, caption && shown ? " · " : "", shown] : null,
    value: (r, c) => row.get(r * size + units[c]),
    columnHeads: few || own ? (c) => String(units[c] + 1) : undefined,
    rowHeads: parts > 1 ? (r) => `${r * size + 1}–${(r + 1) * size}` : undefined,
    mark: (r, c) => (own && units[c] === settings.values.unit ? "active" : ""),
    says: (r, c) => words("cell_says", { label, j: r * size + units[c] + 1 }),
    pick: own ? (r, c) => settings.set({ unit: units[c] }) : undefined,
  });
}

// A matrix of the sample, or its first rows and columns.
function sampleGrid(exhibit, key, label, values, [rows, columns]) {
  const { words } = exhibit;
  const [high, wide] = [rows, columns].map((size) => (size <= SHOWN + 2 ? size : SHOWN));
  const few = high * wide < rows * columns;
  return matrix({
    key, label, rows: high, columns: wide,
    caption: few ? words("showing", { shown: high * wide, total: rows * columns }) : null,
    value: (r, c) => values.get(r * columns + c),
    columnHeads: (c) => String(c + 1), rowHeads: (r) => String(r + 1),
  });
}

// What enters, then every line of the author's: formula, shapes, numbers.
export function lines(exhibit, run) {
  const { data, settings, words } = exhibit;
  const { step, line } = settings.values;
  const t = data.kept[step] + 1;
  const entering = [
    ...data.inputs.map(({ label, size }, which) => ({ label, size, row: run.input(which, step), key: `input-${which}`, say: `${label}ₜ`, cut: false })),
    ...data.states.map(({ label, size }, which) => ({
      label, size, row: run.state(which, t - 1), key: `state-${which}`, say: `${label}ₜ₋₁`,
    })),
  ].map(({ label, size, row, key, say, cut }) => el("li", { "data-symbol": label },
    el("p", { class: "line said" }, el("code", {}, timed(say, t)), el("span", { class: "muted" }, ` 1×${size}`)),
    rowGrid(exhibit, key, timed(say, t), row, null, cut)));
  const sites = data.sites.slice(0, line + 1).map((site, place) => {
    const label = timed(site.label, t);
    const numbers = () => {
      if (site.matrix || !(site.rows || site.grid)) return el("p", { class: "muted" }, words("matrix_once", { shape: site.result }));
      if (!site.rows) return el("p", { class: "muted" }, words("matrix_each", { shape: site.result }));
      const [key, value] = [`value-${place}`, run.value(place, step)];
      return site.grid ? sampleGrid(exhibit, key, label, value, site.grid) : rowGrid(exhibit, key, label, value);
    };
    return el("li", { class: place === line ? "newest" : "", "data-symbol": site.symbol },
      el("div", { class: "said" },
        el("p", { class: "line" }, el("code", {}, label)),
        el("p", { class: "shapes muted" }, site.shapes ? `${site.shapes} → ${site.result}` : site.result)),
      numbers());
  });
  const rest = data.sites.length - sites.length;
  return [
    el("ol", { class: "lines" }, entering, sites),
    rest > 0 && el("p", { class: "muted" }, words("lines_left", { n: rest })),
    data.sites.length === 0 && el("p", { class: "muted" }, words("no_lines")),
    !rest && el("p", {}, words("step_done", { h: timed(`${data.states[0].label}ₜ`, t) })),
  ];
}

// -- one unit -----------------------------------------------------------------------------------------------------

// All terms of the sum that makes a column: products, and values that are added.
function termsOf(run, sum, column, step, t) {
  const found = [];
  for (const { sign, left, right, names, of, label } of sum.terms) {
    if (left) {
      const row = run.row(left, step);
      for (let k = 0; k < row.width; k++) {
        const [x, w] = [row.get(k), run.entry(right, k, column)];
        found.push({ value: sign * x * w, sign, x, w, k, names: names.map((name) => timed(name, t)) });
      }
    } else {
      const row = run.row(of, step);
      found.push({ value: sign * row.get(row.width === 1 ? 0 : column), label: timed(label, t), sign });
    }
  }
  return found;
}

function columnOf(exhibit, run, sum, step) {
  const { unit, part } = exhibit.settings.values;
  const { width } = run.value(sum.at, step);
  const parts = sum.parts.length;
  const size = Math.floor(width / parts);
  const which = Math.min(part, parts - 1);
  const own = Math.min(unit, size - 1);
  return { which, own, column: which * size + own };
}

export function opened(exhibit, run) {
  const { data, settings, words } = exhibit;
  const { step, all } = settings.values;
  const sum = data.sums[settings.values.sum];
  const t = data.kept[step] + 1;
  const { which, own, column } = columnOf(exhibit, run, sum, step);
  const terms = termsOf(run, sum, column, step, t).filter(({ value }) => value !== null);
  terms.sort((a, b) => Math.abs(b.value) - Math.abs(a.value) || 0);
  const most = all ? terms.length : Math.min(terms.length, 14);
  const shown = terms.slice(0, most);
  const others = terms.slice(most);
  const total = run.value(sum.at, step).get(column);
  const rows = [];
  let sumSoFar = 0;
  for (const one of shown) {
    const from = sumSoFar;
    sumSoFar += one.value;
    const written = one.names
      ? [`${one.names[0]}[${one.k + 1}] · ${one.names[1]}[${one.k + 1}, ${column + 1}]`, `${one.sign < 0 ? "−" : ""}${term(one.x)} × ${term(one.w)} = ${short(one.value)}`]
      : [`${one.label}[${column + 1}]`, short(one.value)];
    rows.push({ name: written[0], written: written[1], from, to: sumSoFar, value: one.value });
  }
  if (others.length) {
    const rest = others.reduce((all, one) => all + one.value, 0);
    rows.push({ name: words("others", { n: others.length }), written: short(rest), from: sumSoFar, to: sumSoFar + rest, value: rest });
    sumSoFar += rest;
  }
  rows.push({ name: timed(sum.label, t), written: `= ${short(total)}`, from: 0, to: total, value: total, whole: true });
  const { after, function: name, whole } = sum.parts[which];
  let activated = null;
  if (after !== null) {
    activated = run.value(after, step).get(whole ? column : own);
    rows.push({ name: `${name}(${short(total)})`, written: `= ${short(activated)}`, from: 0, to: activated, value: activated, whole: true });
  }
  const counts = sum.terms.filter((one) => one.left).map((one) => run.row(one.left, step).width);
  return [
    el("p", {}, words("opened_idea", {
      unit: column + 1,
      sum: counts.length > 1 ? `${counts.join(" + ")} = ` : "",
      n: counts.reduce((a, b) => a + b, 0),
    })),
    waterfall(rows, words("waterfall_label", { unit: column + 1 }), [words("so_far"), words("term")]),
    activated !== null && el("p", { class: "worked recomputed" }, words("opened_end", { total: short(total), name, result: short(activated) })),
  ];
}

const BAR = 190;

function waterfall(rows, label, [soFar, term]) {
  const ends = rows.flatMap(({ from, to }) => [from, to]).filter(Number.isFinite);
  const [low, high] = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const scale = BAR / (high - low || 1);
  const x = (value) => (value - low) * scale;
  return el("div", { class: "scroll" }, el("table", { class: "waterfall", "aria-label": label, "data-grid": "waterfall" },
    el("tr", {}, el("td"), el("td"), el("th", { scope: "col" }, soFar), el("th", { scope: "col" }, term)),
    rows.map((row) => {
    const [left, right] = [Math.min(row.from, row.to), Math.max(row.from, row.to)];
    const bar = Number.isFinite(left + right) && svg("svg", { width: BAR + 4, height: 18, viewBox: `-2 0 ${BAR + 4} 18`, "aria-hidden": "true" },
      svg("path", { class: "zero", d: `M${x(0)} 0V18` }),
      svg("rect", { class: row.value < 0 ? "negative" : "positive", x: x(left), y: 3, width: Math.max(1, x(right) - x(left)), height: 12 }),
      row.value < 0 && svg("path", { class: "hatch", d: range(Math.floor((x(right) - x(left)) / 6)).map((k) => `M${x(left) + k * 6} 15l6 -12`).join("") }));
    return el("tr", { class: row.whole ? "whole" : "" },
      el("th", { scope: "row" }, row.name),
      el("td", {}, bar),
      el("td", { class: "recomputed number", "data-at": "sum" }, short(row.to)),
      el("td", { class: "recomputed written" }, row.written));
  })));
}

// -- valves -------------------------------------------------------------------------------------------------------

const [WIDTH, PIPE] = [300, 220];

function valve(gate, inside, passed, label) {
  const open = Math.min(Math.max(gate, 0), 1) * 26;
  return svg("svg", { class: "valve", width: WIDTH, height: 44, viewBox: `0 0 ${WIDTH} 44`, role: "img", "aria-label": label },
    svg("path", { class: "pipe", d: `M4 8H${PIPE - 4}M4 36H${PIPE - 4}` }),
    svg("rect", { class: `flow ${inside < 0 ? "negative" : "positive"}`, x: 4, y: 9, width: PIPE / 2 - 10, height: 26 }),
    svg("rect", { class: `flow ${passed < 0 ? "negative" : "positive"}`, x: PIPE / 2 + 6, y: 22 - open / 2, width: PIPE / 2 - 10, height: open }),
    svg("rect", { class: "gate", x: PIPE / 2 - 6, y: 4, width: 12, height: 18 - open / 2 }),
    svg("rect", { class: "gate", x: PIPE / 2 - 6, y: 22 + open / 2, width: 12, height: 18 - open / 2 }),
    svg("text", { x: 12, y: 27 }, short(inside)),
    svg("text", { x: PIPE + 2, y: 27 }, short(passed)));
}

const among = (run, source, step, j) => {
  const row = run.row(source, step);
  return row.get(row.width === 1 ? 0 : Math.min(j, row.width - 1));
};

export function valves(exhibit, run) {
  const { data, settings, words } = exhibit;
  const { step, unit } = settings.values;
  const t = data.kept[step] + 1;
  return data.valves.map(({ at: place, label, terms }, index) => {
    const { width } = run.value(place, step);
    const j = Math.min(unit, width - 1);
    const result = run.value(place, step).get(j);
    const pieces = terms.map((one, k) => {
      const value = one.sign * among(run, one.of, step, j);
      const sign = one.sign < 0 ? "− " : k ? "+ " : "";
      if (!one.gate)
        return { value, node: el("div", { class: "valve-row" }, el("code", {}, sign + timed(one.label, t)), el("p", { class: "worked recomputed" }, `= ${short(value)}`)) };
      const gate = among(run, one.gate, step, j);
      const inside = one.others.reduce((all, [operator, source]) => {
        const number = among(run, source, step, j);
        return operator === "/" ? all / number : all * number;
      }, 1);
      const others = one.others.map(([operator, , name], at) => (at ? ` ${operator === "/" ? "/" : "⊙"} ` : "") + timed(name, t)).join("");
      return { value, node: el("div", { class: "valve-row" },
        el("code", {}, `${sign}${timed(one.gate_label, t)} ⊙ ${others}`),
        valve(gate, inside, value, words("valve_label", { gate: short(gate), inside: short(inside), passed: short(value) })),
        el("p", { class: "worked recomputed" }, words("valve_open", { percent: short(gate * 100) }), el("br"),
          `${one.sign < 0 ? "−" : ""}${short(gate)} × ${term(inside)} = ${short(value)}`)) };
    });
    const sum = pieces.map(({ value }, k) => (k ? ` + ${term(value)}` : short(value))).join("");
    return el("div", { class: "valves", "data-valve": index },
      el("h4", {}, el("code", {}, timed(label, t))),
      el("div", { class: "views" }, pieces.map(({ node }) => node)),
      el("p", { class: "worked" }, el("span", { class: "recomputed", "data-result": index },
        pieces.length > 1 ? `${sum} = ${short(result)}` : ""), pieces.length > 1 ? ` · ${words("of_unit", { unit: j + 1 })}` : words("of_unit", { unit: j + 1 })),
      terms.filter((one) => one.gate && one.gate[0] === "value").map((one, k) =>
        rowGrid(exhibit, `gate-${index}-${k}`, timed(one.gate_label, t), run.row(one.gate, step), el("code", {}, timed(one.gate_label, t)))));
  });
}
