// Three equal views of a convolution: a window that moves, one product of matrices, and a sparse matrix.

import { el, range, svg } from "../core/dom.js";
import { matrix } from "../core/matrix.js";
import { short } from "../core/numbers.js";

const ROWS = 8;
const COLUMNS = 27;
const ENTRIES = 40_000; // of the sparse matrix that are drawn

export function equal(scene) {
  const { data, words, model, values, at, span } = scene;
  const { windows, each } = model;
  const channels = model.reads(values.o);
  const [height, width] = model.size;
  const columns = each * windows.taps;
  const inputs = channels.length * height * width;
  const own = model.of(values.o);
  const bias = model.bias(values.o);
  const weights = model.kernels(values.o);
  const entry = (position, index) => model.entry(channels[Math.floor(index / windows.taps)], position, index % windows.taps);
  const sparse = sparseRows(model, channels, weights);
  const xs = (column) => model.x(channels[Math.floor(column / (height * width))], Math.floor(column / width) % height, column % width);
  const byProduct = (position) => range(columns).reduce((sum, k) => sum + entry(position, k) * weights[k], bias);
  const bySparse = (position) => [...sparse[position]].reduce((sum, [column, { weight }]) => sum + weight * xs(column), bias);
  const gaps = range(windows.positions).map((p) => Math.max(Math.abs(byProduct(p) - own.y[p]), Math.abs(bySparse(p) - own.y[p])));
  const gap = gaps.some(Number.isNaN) ? NaN : gaps.reduce((a, b) => Math.max(a, b), 0);
  const rows = span(0, windows.positions - 1, at, at, ROWS);
  const shown = range(Math.min(columns, COLUMNS));
  const litOf = (index) => scene.lit(Math.floor(index / windows.taps), index % windows.taps).trim();
  const tap = (index) => scene.tapped(Math.floor(index / windows.taps), index % windows.taps);
  const tapName = (index) => {
    const k = index % windows.taps;
    const parts = [channels[Math.floor(index / windows.taps)], ...(data.spatial === 1 ? [] : [Math.floor(k / windows.columns.kernel)]), k % windows.columns.kernel];
    return parts.join(",");
  };
  const line = (key, value) => el("p", { class: "worked" }, words(key), " ", el("b", { class: "recomputed", "data-number": key }, short(value)));
  return [
    el("p", {}, words("equal_idea")),
    line("equal_window", own.y[at]),
    el("h4", {}, words("im2col")),
    el("p", {}, words("im2col_idea", { rows: windows.positions, columns })),
    el("div", { class: "views" },
      matrix({
        key: "im2col", label: words("im2col"), rows: rows.length, columns: shown.length, top: rows[0],
        caption: `${words("im2col_rows")} · ${windows.positions} × ${columns}` + (rows.length < windows.positions ? ` · ${words("showing", { shown: rows.length, total: windows.positions })}` : ""),
        rowHeads: (r) => `${r}`, columnHeads: tapName, value: (r, k) => entry(r, k),
        mark: (r, k) => `${r === at ? "row " : ""}${litOf(k)}`, hover: (r, k) => tap(k), leave: scene.untap,
        pick: (r) => scene.pin(r),
      }),
      matrix({
        key: "column", label: words("kernel_grid"), caption: words("as_column"), rows: 1, columns: shown.length,
        columnHeads: tapName, rowHeads: () => data.symbols.weight, value: (_, k) => weights[k], mark: (_, k) => litOf(k),
        hover: (_, k) => tap(k), leave: scene.untap,
      })),
    columns > shown.length && el("p", { class: "muted" }, words("showing", { shown: shown.length, total: columns })),
    line("equal_product", byProduct(at)),
    el("h4", {}, words("sparse")),
    el("p", {}, words("sparse_idea", { rows: windows.positions, columns: inputs, filled: sparse.reduce((n, row) => n + row.size, 0), all: windows.positions * inputs })),
    windows.positions * inputs <= ENTRIES ? drawn(scene, sparse, inputs) : el("p", { class: "muted" }, words("too_large")),
    rowOf(scene, sparse[at], xs, channels, litOf, tap),
    line("equal_sparse", bySparse(at)),
    el("p", { class: "same" }, words("equal_same", { n: windows.positions }), " ", el("b", { class: "recomputed", "data-number": "gap" }, `max |Δ| = ${short(gap)}`)),
  ];
}

// The rows of the sparse matrix: for every input that is read, its coefficient and the taps that make it.
function sparseRows(model, channels, weights) {
  const { windows } = model;
  const [height, width] = model.size;
  return range(windows.positions).map((position) => {
    const row = new Map();
    channels.forEach((_, k) => {
      for (let tap = 0; tap < windows.taps; tap++) {
        const place = windows.read(position, tap);
        if (!place) continue;
        const column = (k * height + place[0]) * width + place[1];
        const index = k * windows.taps + tap;
        const known = row.get(column) ?? { weight: 0, taps: [] };
        row.set(column, { weight: known.weight + weights[index], taps: [...known.taps, index] });
      }
    });
    return row;
  });
}

// The pattern of the matrix; the row of the present window is framed, the entries of a tap are lit.
function drawn(scene, sparse, inputs) {
  const { model, words, at, state } = scene;
  const unit = Math.max(3, Math.min(12, Math.floor(680 / inputs)));
  const tap = state.tap && state.tap[0] * model.windows.taps + state.tap[1];
  const boxes = sparse.flatMap((row, r) => [...row].map(([column, { weight, taps }]) => svg("rect", {
    x: column * unit, y: r * unit, width: unit - 0.5, height: unit - 0.5,
    class: `${weight < 0 ? "negative" : "positive"}${taps.includes(tap) ? " chosen" : ""}`,
    onpointerenter: r === at ? () => scene.tapped(Math.floor(taps[0] / model.windows.taps), taps[0] % model.windows.taps) : undefined,
  })));
  const [width, height] = [inputs * unit, sparse.length * unit];
  return el("div", { class: "scroll" }, svg("svg", {
    class: "sparse", role: "img", "aria-label": words("sparse_said", { row: at }), width, height, viewBox: `-1 -1 ${width + 2} ${height + 2}`,
  }, svg("rect", { class: "ground", width, height }), boxes, svg("rect", { class: "frame", x: 0, y: at * unit, width, height: unit })));
}

// The entries of the present row that are not 0, over the inputs that they are multiplied with.
function rowOf(scene, row, xs, channels, litOf, tap) {
  const { data, words, model, at } = scene;
  const [height, width] = model.size;
  const all = [...row].sort(([a], [b]) => a - b);
  const shown = all.slice(0, COLUMNS);
  if (!shown.length) return el("p", { class: "muted" }, words("only_padding"));
  const place = (column) => [channels[Math.floor(column / (height * width))], ...(data.spatial === 1 ? [] : [Math.floor(column / width) % height]), column % width].join(",");
  const marked = (c) => (shown[c][1].taps.some((index) => litOf(index)) ? "lit" : "");
  return matrix({
    key: "sparse", label: words("sparse_row", { row: at }), rows: 2, columns: shown.length,
    caption: words("sparse_row", { row: at }) + (all.length > shown.length ? ` · ${words("showing", { shown: shown.length, total: all.length })}` : ""),
    rowHeads: (r) => (r ? data.symbols.x : data.symbols.weight), columnHeads: (c) => place(shown[c][0]),
    value: (r, c) => (r ? xs(shown[c][0]) : shown[c][1].weight), mark: (r, c) => marked(c),
    hover: (r, c) => tap(shown[c][1].taps[0]), leave: scene.untap,
  });
}
