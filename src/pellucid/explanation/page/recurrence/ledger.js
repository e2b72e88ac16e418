// Two ways to write the same weights, and what stays and what grows with the length.

import { el, svg } from "../core/dom.js";
import { matrix } from "../core/matrix.js";
import { count, short, size } from "../core/numbers.js";
import { rowText } from "./strip.js";

const MOST = 6;

export function convention(exhibit, run) {
  const { data, settings, words } = exhibit;
  const { layer, pairs, counts, biases, apart } = data.convention;
  const { side, biases: number } = settings.values;
  const torch = side === "torch";
  const two = number === 2;
  const registered = counts.filter(({ name }) => name.startsWith("bias")).length; // a cell of one's own has its one bias
  const grids = pairs.map(({ ours, theirs, shape }) => {
    const { shape: own } = run.weight(ours);
    const [rows, columns] = torch ? shape : own;
    const name = torch ? theirs : ours;
    const [high, wide] = [Math.min(MOST, rows), Math.min(MOST, columns)];
    const shown = high * wide < rows * columns ? ` · ${words("showing", { shown: `${high}×${wide}`, total: `${rows}×${columns}` })}` : "";
    return el("div", { "data-symbol": run.weight(ours).label }, matrix({
      key: `convention-${ours}`, label: name, caption: [el("code", {}, name), ` ${rows}×${columns}`, shown],
      rows: high, columns: wide,
      value: (r, c) => (torch ? run.entry(["parameter", ours], c, r) : run.entry(["parameter", ours], r, c)),
      rowHeads: (r) => String(r + 1), columnHeads: (c) => String(c + 1),
    }));
  });
  const counted = (both) => counts.filter(({ name }) => both || !name.startsWith("bias_hh"));
  const totals = [false, true].map((both) => counted(both).reduce((sum, { shape }) => sum + size(shape), 0));
  const written = ({ name, shape }) =>
    torch ? `${name} ${shape.join("×")}` : `${oursOf(pairs, name, apart)} ${shape.length < 2 ? rowText(shape) : [...shape].reverse().join("×")}`;
  const used = counted(two);
  const input = data.inputs[0].size;
  const first = pairs[0];
  return [
    el("p", {}, words(torch ? "torch_idea" : "paper_idea", { layer })),
    first && el("p", { class: "worked" }, torch
      ? `${first.theirs} · xᵀ: ${first.shape.join("×")} · ${input}×1 → ${first.shape[0]}×1`
      : `x · ${first.ours}: 1×${input} · ${input}×${first.shape[0]} → 1×${first.shape[0]}`),
    el("div", { class: "views" }, grids),
    registered > 0 && el("p", {}, words(apart ? "biases_apart" : two ? "biases_two" : "biases_one", { layer })),
    biases.length > 1 && !apart && el("p", { class: "worked recomputed" }, `b[1] = ${short(biases[0].data[0])} + ${plus(biases[1].data[0])} = ${short(biases[0].data[0] + biases[1].data[0])}`),
    el("p", { class: "worked", "data-total": totals[Number(two)] },
      `${used.map(written).join(" + ")} = ${used.map(({ shape }) => count(size(shape))).join(" + ")} = ${count(totals[Number(two)])}`),
    registered > 1 && el("p", {}, words("totals", { one: totals[0], two: totals[1] })),
  ];
}

const plus = (number) => (number < 0 ? `(${short(number)})` : short(number));
const oursOf = (pairs, name, apart) =>
  pairs.find(({ theirs }) => theirs === name)?.ours ?? (name.startsWith("bias_ih") ? "b" : apart ? "c" : "b′");

export const longest = (data) => Math.max(200, 2 * data.steps);

export function ledger(exhibit) {
  const { data, settings, words } = exhibit;
  const { length } = settings.values;
  const learned = data.parameters.filter((parameter) => parameter.learned);
  const weights = learned.reduce((sum, { shape }) => sum + size(shape), 0);
  const { macs, other } = data.ledger;
  const flops = (2 * macs + other) * length;
  const wide = 260;
  const bar = (share, kind) => svg("svg", { width: wide, height: 16, viewBox: `0 0 ${wide} 16`, "aria-hidden": "true" },
    svg("rect", { class: kind, x: 0, y: 2, width: Math.max(1, wide * share), height: 12 }));
  const row = (name, number, share, kind, key) => el("tr", {}, el("th", { scope: "row" }, name),
    el("td", { class: "number recomputed", "data-at": key }, count(number)), el("td", {}, bar(share, kind)));
  return el("div", { "data-source": length === data.steps ? "python" : "page" },
    el("p", {}, words("ledger_idea")),
    el("div", { class: "scroll" }, el("table", { class: "facts ledger", "data-grid": "ledger" },
      row(words("weights"), weights, 0.5, "stays", "weights"),
      row(words("work"), flops, length / longest(data), "grows", "flops"))),
    el("p", { class: "worked" }, words("ledger_terms", { terms: learned.map(({ label, shape }) => `${label} ${rowText(shape)}`).join(" + "), n: weights })),
    el("p", { class: "worked recomputed" }, words("ledger_work", { macs, other, one: 2 * macs + other, length, n: flops })));
}
