// What one window computes, written out; and how many windows there are.

import { el, range } from "../core/dom.js";
import { matrix } from "../core/matrix.js";
import { short, term } from "../core/numbers.js";
import { phaseOf } from "./choices.js";
import { few, mark, muted, operator, result, worked } from "./parts.js";

const BLOCKS = 3; // channels whose products are shown one by one
const ROWS = 12; // channels of a sequence, and entries of a kernel along an axis
const TERMS = 9; // products, and entries of a pooling, that are written out in a line

export function products(scene) {
  const { data, words, model, values, at, state } = scene;
  const now = state.hovered === null ? phaseOf(values) : null;
  const kind = `${model.pooling ? "reduce" : "do"}${data.average ? "_mean" : ""}`;
  const { columns } = model.windows;
  const phases = range(3).map((phase) =>
    el("li", phase === now && { class: "now", "aria-current": "step" },
      words(columns.shared && phase === 2 ? "reduce_shared" : `${kind}_${phase}`, { stride: columns.stride })));
  const [i, j] = model.windows.place(at);
  const name = `${data.symbols.y}[${(data.spatial === 1 ? [values.o, j] : [values.o, i, j]).join(", ")}]`;
  const y = model.of(values.o).y[at];
  return [el("ol", { class: "phases" }, phases), model.pooling ? pooled(scene, name, y) : multiplied(scene, name, y)];
}

// One matrix of a chain; `of` gives the number of a channel and a tap.
function small(scene, name, caption, channels, of, marks = () => "") {
  const { data, words, model, values } = scene;
  const { rows, columns } = model.windows;
  const line = data.spatial === 1;
  const tapOf = (r, c) => (line ? [channels[r], c] : [channels[0], r * columns.kernel + c]);
  return matrix({
    key: `${name}-${channels[0]}`, label: caption, caption, leave: scene.untap,
    rows: line ? channels.length : Math.min(rows.kernel, ROWS), columns: Math.min(columns.kernel, ROWS),
    value: (r, c) => of(...tapOf(r, c)), hover: (r, c) => scene.tapped(...tapOf(r, c)),
    mark: (r, c) => mark(marks(...tapOf(r, c)), scene.lit(...tapOf(r, c))),
    says: (r, c) => (of(...tapOf(r, c)) === null ? words("in_padding") : null),
    rowHeads: line ? (r) => words(scene.rowWord("x"), { channel: model.reads(values.o)[channels[r]] }) : undefined,
  });
}

function multiplied(scene, name, y) {
  const { data, words, model, values, at } = scene;
  const { windows } = model;
  const line = data.spatial === 1;
  const channels = model.reads(values.o);
  const shown = Math.min(channels.length, line ? ROWS : BLOCKS);
  const found = model.products(values.o, at);
  const totals = found.map((row) => row.reduce((a, b) => a + b, 0));
  const { python } = model.of(values.o);
  const entry = (k, tap) => model.entry(channels[k], at, tap);
  const weight = (k, tap) => model.tapWeight(values.o, k, tap);
  const chain = (group) => {
    const which = line ? words("channels_all", { n: shown }) : words("channel_one", { channel: channels[group[0]] });
    const padded = (_, tap) => (windows.read(at, tap) ? "" : "padding");
    const sums = { key: "subtotals", label: words("subtotals"), caption: words("subtotals"), value: (r) => totals[r] };
    return el("div", { class: `chain${python ? "" : " made"}`, role: "group", "aria-label": which },
      !line && el("span", { class: "which" }, which),
      small(scene, "entries", words("entries"), group, entry, padded), operator("⊙"),
      small(scene, "weights", words("kernel_grid"), group, weight), operator("="),
      small(scene, "products", words("products"), group, (k, tap) => found[k][tap]),
      operator(line ? "→" : "→ Σ ="),
      line ? matrix({ ...sums, rows: shown, columns: 1 }) : result(totals[group[0]]));
  };
  const bias = model.bias(values.o);
  const biased = () => model.layer.bias &&
    [" + ", el("span", { "data-symbol": model.layer.names?.bias ?? data.symbols.bias }, term(bias))];
  const terms = range(channels.length * windows.taps)
    .map((index) => [Math.floor(index / windows.taps), index % windows.taps])
    .map((place) => `${term(entry(...place))}·${term(weight(...place))}`);
  return [
    line ? chain(range(shown)) : range(shown).map((k) => chain([k])),
    shown < channels.length && muted(words("showing", { shown, total: channels.length })),
    !python && !model.changed && muted(words("made_here")),
    worked(el("span", { "data-symbol": data.symbols.y }, data.layers ? words("before_activation") : name), " = ",
      terms.length <= TERMS && [terms.join(" + "), biased(), el("br"), "= "],
      summed(words, totals), biased(), " = ",
      result(data.layers ? totals.reduce((a, b) => a + b, bias) : y, "sum")),
    data.layers && worked(words("activated", { name }), " ", result(y, "result")),
  ];
}

function summed(words, totals) {
  if (totals.length <= 6) return totals.map(term).join(" + ");
  const rest = totals.slice(4);
  const others = words("others", { n: rest.length, sum: short(rest.reduce((a, b) => a + b, 0)) });
  return [...totals.slice(0, 4).map(term), others].join(" + ");
}

function pooled(scene, name, y) {
  const { data, words, model, values, at } = scene;
  const reads = range(model.windows.taps).filter((tap) => model.windows.read(at, tap));
  const numbers = reads.map((tap) => model.entry(values.o, at, tap));
  const best = data.average ? -1 : reads[numbers.findIndex((number) => Object.is(number, y) || number === y)];
  const grid = small(scene, "entries", words("entries"), [0],
    (_, tap) => (reads.includes(tap) ? model.entry(values.o, at, tap) : null),
    (_, tap) => mark(!reads.includes(tap) && "padding", tap === best && "greatest touched"));
  const divisor = model.divisors?.[at];
  const text = data.average
    ? `(${few(numbers.map(term), TERMS, " + ")}) / ${short(divisor)}`
    : words("greatest_of", { list: few(numbers.map(short), TERMS) });
  const counted = numbers.length === divisor ? "divisor_read" : "divisor_other";
  return [
    el("div", { class: "chain" }, grid, operator("→"), result(y)),
    worked(el("span", { "data-symbol": data.symbols.y }, name), ` = ${text} = `, result(y, "sum")),
    data.average && muted(words(counted, { n: numbers.length, divisor })),
  ];
}

// -- how many outputs ------------------------------------------------------------------------------------------------

export function sizes(scene) {
  const { data, words, model, values } = scene;
  const { rows, columns } = model.windows;
  const line = data.spatial === 1;
  const said = (index) => {
    const along = index ? columns : rows;
    const axis = words(`axis_${data.spatial}_${index}`);
    const unread = model.unread[index];
    const behind = unread[0] > along.read(along.positions - 1, 0);
    return [
      worked(el("b", {}, axis), "  ", count(words, model.axis("hw"[index], index), along, line ? "L" : "HW"[index])),
      unread.length > 0 &&
        el("p", {}, words(behind ? "unread_end" : "unread", { n: unread.length, axis, list: few(unread, 8) })),
    ];
  };
  const [p, q, outs, { each }] = [rows.positions, columns.positions, values.out, model];
  const taps = line ? columns.kernel : `${rows.kernel}×${columns.kernel}`;
  return [
    line ? said(1) : [said(0), said(1)],
    el("p", {}, line
      ? words("total_line", { outs, positions: q, n: outs * q })
      : words("total_picture", { outs, rows: p, columns: q, n: outs * p * q })),
    !model.pooling && el("p", {},
      words("weights_count", { outs, each, taps, n: outs * each * model.windows.taps }), " ",
      values.groups > 1 && words("weights_groups", { groups: values.groups, each, all: values.in })),
  ];
}

function count(words, numbers, line, letter) {
  const { size, kernel, stride, dilation, padding, around, transposed, extra, ceil, least } = numbers;
  const total = line.positions;
  if (line.shared) return words("size_shared", { size, total });
  if (transposed) {
    if (around === "same") return `${letter}·s = ${size}·${stride} = ${total}`;
    const [e, added] = extra ? [" + e", ` + ${extra}`] : ["", ""];
    const own = `(${size} − 1)·${stride} − 2·${padding} + ${dilation}·(${kernel} − 1) + 1`;
    return `(${letter} − 1)·s − 2p + d(k − 1) + 1${e} = ${own}${added} = ${total}`;
  }
  if (around === "same" || around === "causal") {
    const [before, after] = line.margins;
    return `⌈${letter}/s⌉ = ⌈${size}/${stride}⌉ = ${total}. ${words(`size_${around}`, { before, after })}`;
  }
  const p = around === "valid" ? 0 : padding;
  const room = size + 2 * p - dilation * (kernel - 1) - 1;
  if (least && room < 0) return words("size_short", { size, kernel });
  const rounded = (text) => (ceil ? `⌈${text}⌉` : `⌊${text}⌋`);
  const plain = (ceil ? Math.ceil : Math.floor)(room / stride) + 1;
  const text = [
    `${rounded(`(${letter} + 2p − d(k − 1) − 1)/s`)} + 1`,
    `${rounded(`(${size} + 2·${p} − ${dilation}·(${kernel} − 1) − 1)/${stride}`)} + 1`,
    `${rounded(`${room}/${stride}`)} + 1`, plain,
  ].join(" = ");
  return plain === total ? text : `${text}. ${words("size_ceil", { total })}`;
}
