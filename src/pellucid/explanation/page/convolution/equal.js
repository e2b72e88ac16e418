// Three equal views of a convolution: a window that moves, one product of matrices, and a sparse matrix.

import { el, range, svg } from "../core/dom.js";
import { matrix } from "../core/matrix.js";
import { distance, short } from "../core/numbers.js";
import { mark, muted, result, showing, span, worked } from "./parts.js";

const ROWS = 8;
const COLUMNS = 27;
const ENTRIES = 40_000; // of the sparse matrix that are drawn

export function equal(scene) {
  const { data, words, model, values, at } = scene;
  const { windows } = model;
  const flat = flattened(scene);
  const rows = span(0, windows.positions - 1, at, at, ROWS);
  const shown = Math.min(flat.columns, COLUMNS);
  const line = (key, value) => worked(words(key), " ", result(value, key));
  const filled = flat.sparse.reduce((sum, row) => sum + row.size, 0);
  const entries = windows.positions * flat.inputs;
  return [
    el("p", {}, words("equal_idea")),
    line("equal_window", model.of(values.o).y[at]),
    el("h4", {}, words("im2col")),
    el("p", {}, words("im2col_idea", { rows: windows.positions, columns: flat.columns })),
    matrix({
      key: "im2col", label: words("im2col"), rows: rows.length, columns: shown, top: rows[0], leave: scene.untap,
      caption: `${words("im2col_rows")} · ${windows.positions} × ${flat.columns}` +
        showing(scene, rows.length, windows.positions),
      rowHeads: String, columnHeads: flat.tapName, value: flat.entry,
      mark: (r, k) => mark(r === at && "row", flat.lit(k)), hover: (r, k) => flat.tap(k), pick: (r) => scene.pin(r),
    }),
    matrix({
      key: "column", label: words("kernel_grid"), caption: words("as_column"), rows: 1, columns: shown,
      rowHeads: () => data.symbols.weight, columnHeads: flat.tapName, value: (_, k) => flat.weights[k],
      mark: (_, k) => flat.lit(k), hover: (_, k) => flat.tap(k), leave: scene.untap,
    }),
    flat.columns > shown && muted(words("showing", { shown, total: flat.columns })),
    line("equal_product", flat.byProduct(at)),
    el("h4", {}, words("sparse")),
    el("p", {}, words("sparse_idea", { rows: windows.positions, columns: flat.inputs, filled, all: entries })),
    entries <= ENTRIES ? pattern(scene, flat) : muted(words("too_large")),
    sparseRow(scene, flat),
    line("equal_sparse", flat.bySparse(at)),
    el("p", { class: "same" }, words("equal_same", { n: windows.positions }), " ",
      result(`max |Δ| = ${short(flat.gap)}`, "gap")),
  ];
}

// The convolution of one output channel with everything in a row: taps of all channels, entries of all channels.
function flattened(scene) {
  const { data, model, values } = scene;
  const { windows } = model;
  const [height, width] = model.size;
  const channels = model.reads(values.o);
  const weights = model.kernels(values.o);
  const bias = model.bias(values.o);
  const split = (index) => [Math.floor(index / windows.taps), index % windows.taps];
  const placeOf = (column) =>
    [channels[Math.floor(column / (height * width))], Math.floor(column / width) % height, column % width];
  const name = ([channel, row, column]) => (data.spatial === 1 ? [channel, column] : [channel, row, column]).join(",");
  const entry = (at, index) => model.entry(channels[split(index)[0]], at, split(index)[1]);
  const sparse = model.once(`sparse ${values.o}`, () =>
    range(windows.positions).map((at) => coefficients(model, channels, weights, at)));
  const x = (column) => model.x(...placeOf(column));
  const byProduct = (at) => weights.reduce((sum, weight, index) => sum + entry(at, index) * weight, bias);
  const bySparse = (at) => [...sparse[at]].reduce((sum, [column, { weight }]) => sum + weight * x(column), bias);
  const { y } = model.of(values.o);
  const gap = model.once(`gap ${values.o}`, () =>
    range(windows.positions).flatMap((at) => [distance(byProduct(at), y[at]), distance(bySparse(at), y[at])])
      .reduce((most, gap) => (most >= gap || Number.isNaN(most) ? most : gap), 0));
  return {
    columns: weights.length, inputs: channels.length * height * width,
    weights, entry, sparse, x, byProduct, bySparse, gap,
    lit: (index) => scene.lit(...split(index)), tap: (index) => scene.tapped(...split(index)),
    placeName: (column) => name(placeOf(column)),
    tapName(index) {
      const [channel, tap] = split(index);
      return name([channels[channel], Math.floor(tap / windows.columns.kernel), tap % windows.columns.kernel]);
    },
  };
}

// A row of the sparse matrix: for every entry that is read, its coefficient and the taps that make it.
function coefficients({ windows, size: [height, width] }, channels, weights, at) {
  const row = new Map();
  for (let index = 0; index < weights.length; index++) {
    const place = windows.read(at, index % windows.taps);
    if (!place) continue;
    const column = (Math.floor(index / windows.taps) * height + place[0]) * width + place[1];
    const known = row.get(column) ?? { weight: 0, taps: [] };
    row.set(column, { weight: known.weight + weights[index], taps: [...known.taps, index] });
  }
  return row;
}

// The pattern of the matrix; the row of the present window is framed, the entries of a tap are filled.
function pattern(scene, flat) {
  const { words, at } = scene;
  const unit = Math.max(3, Math.min(12, Math.floor(680 / flat.inputs)));
  const boxes = flat.sparse.flatMap((row, r) => [...row].map(([column, { weight, taps }]) => svg("rect", {
    x: column * unit, y: r * unit, width: unit - 0.5, height: unit - 0.5,
    class: mark(weight < 0 ? "negative" : "positive", taps.some(flat.lit) && "chosen"),
    onpointerenter: r === at && (() => flat.tap(taps[0])),
  })));
  const [width, height] = [flat.inputs * unit, flat.sparse.length * unit];
  return el("div", { class: "scroll" }, svg("svg", {
    class: "sparse", role: "img", "aria-label": words("sparse_said", { row: at }),
    width, height, viewBox: `-1 -1 ${width + 2} ${height + 2}`,
  }, svg("rect", { class: "ground", width, height }), boxes,
  svg("rect", { class: "frame", x: 0, y: at * unit, width, height: unit })));
}

// The entries of the present row that are not 0, over the entries of the input that they are multiplied with.
function sparseRow(scene, flat) {
  const { data, words, at } = scene;
  const all = [...flat.sparse[at]].sort(([a], [b]) => a - b);
  const shown = all.slice(0, COLUMNS);
  if (!shown.length) return muted(words("only_padding"));
  return matrix({
    key: "sparse", label: words("sparse_row", { row: at }), rows: 2, columns: shown.length,
    caption: words("sparse_row", { row: at }) + showing(scene, shown.length, all.length),
    rowHeads: (r) => (r ? data.symbols.x : data.symbols.weight), columnHeads: (c) => flat.placeName(shown[c][0]),
    value: (r, c) => (r ? flat.x(shown[c][0]) : shown[c][1].weight),
    mark: (r, c) => mark(shown[c][1].taps.some(flat.lit) && "lit"),
    hover: (r, c) => flat.tap(shown[c][1].taps[0]), leave: scene.untap,
  });
}
