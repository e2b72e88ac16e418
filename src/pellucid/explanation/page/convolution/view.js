// A window over an input: where it lies, what it multiplies and adds, how it moves on; and what follows from that.

import { el, range, replace } from "../core/dom.js";
import { register } from "../core/exhibit.js";
import { matrix, overview } from "../core/matrix.js";
import { short, term } from "../core/numbers.js";
import { tensor } from "../core/tensor.js";
import { backward } from "./backward.js";
import { controls, initialOf, phaseOf, positionOf, stepOf, validOf } from "./choices.js";
import { equal } from "./equal.js";
import { DECIDING, Model, withEdit } from "./model.js";
import { network, stack } from "./stack.js";
import { overTime } from "./text.js";

const MOST = 14; // places along an axis up to which all are shown as numbers
const PART = 9; // places that are shown of more
const BLOCKS = 3; // channels whose products are shown one by one

// The places from..to of a grid that are shown: all of them, or some round those that matter.
export function span(from, to, low, high, most = MOST) {
  if (to - from + 1 <= most) return range(to - from + 1).map((k) => k + from);
  const length = Math.min(most, PART);
  const middle = Math.floor((low + high + 1 - length) / 2);
  const start = Math.min(Math.max(Math.min(middle, low), from), to - length + 1);
  return range(length).map((k) => k + start);
}

register("convolution", (exhibit) => {
  const { data, words } = exhibit;
  if (data.family === "network") return network(exhibit);
  exhibit.root.classList.add("windows");
  const state = (exhibit.state ??= { hovered: null, pinned: false, tap: null });
  const initial = initialOf(data);
  let last = null;
  const modelOf = (values) => {
    const key = [...DECIDING, "width"].map((name) => values[name]).join("|");
    const changed = DECIDING.some((name) => values[name] !== initial[name]);
    if (last?.key !== key) last = { key, model: new Model(data, values, changed) };
    return last.model;
  };
  exhibit.mended ??= [];
  const settings = exhibit.choose(initial, validOf(data, modelOf, exhibit.mended));
  const clear = () => {
    Object.assign(state, { hovered: null, pinned: false, tap: null });
    exhibit.draw();
  };
  controls(exhibit, modelOf, clear);
  const scene = {
    exhibit, data, words, settings, state, span,
    get values() {
      return settings.values;
    },
    get model() {
      return modelOf(settings.values);
    },
    get at() {
      const wanted = state.hovered ?? positionOf(settings.values);
      return Math.min(wanted, scene.model.windows.positions - 1);
    },
    // How the rows of a sequence are called: channels, or entries of a word's vector and filters.
    rowWord: (name) => (data.layers ? (name === "x" ? "vector_short" : "filter_short") : "channel_short"),
    hover(at) {
      if (state.pinned || at === scene.at) return;
      state.hovered = at;
      exhibit.draw();
    },
    pin(at, more = {}) {
      Object.assign(state, { hovered: null, pinned: true });
      settings.set({ step: stepOf(at), ...more });
    },
    tapped(channel, tap) {
      const same = state.tap && state.tap[0] === channel && state.tap[1] === tap;
      if (same) return;
      state.tap = [channel, tap];
      exhibit.draw();
    },
    lit: (channel, tap) => (state.tap && state.tap[0] === channel && state.tap[1] === tap ? " lit" : ""),
    untap() {
      if (!state.tap) return;
      state.tap = null;
      exhibit.draw();
    },
  };
  settings.listeners.push(() => state.pinned || (state.hovered = null));
  const guarded = (draw) => () => (scene.model.error ? [] : draw(scene));
  exhibit.view(null, () => {
    const { model } = scene;
    exhibit.source(model.changed);
    return [notice(scene), model.error ? [] : window_(scene)];
  }, { class: "view first" });
  exhibit.view(words(data.family === "pooling" ? "reduced" : "multiplied"), guarded(products));
  if (data.layers) exhibit.view(words("over_time"), guarded(overTime));
  exhibit.view(words("counted_positions"), guarded(sizes));
  if (data.whole && !data.layers) exhibit.fold(words("backward"), guarded(backward));
  if (data.whole && data.family === "convolution") exhibit.fold(words("equal"), guarded(equal));
  if (!data.layers && !data.shared && !data.transposed) exhibit.fold(words("stack"), () => stack(scene));
});

// What had to be mended, what cannot be, and by which rule other weights came about.
function notice({ exhibit, data, words, model, settings, values }) {
  const said = exhibit.mended.map(([key, facts]) => words(key, facts));
  if (model.error) said.push(words(`error_${model.error.key}`, { ...model.error.facts, axis: words(`axis_${data.spatial}_${model.error.axis}`) }));
  if (data.program.unsupported) said.push(words("unsupported", { operation: data.program.unsupported }));
  if (!data.whole) said.push(words("slice", { rows: data.size[0][0], columns: data.size[0][1] }));
  if (data.inside) said.push(words(`inside_${data.inside}`));
  const { initial } = settings;
  const other = ["kh", "kw", "in", "out", "groups"].some((key) => values[key] !== initial[key]);
  if (other && data.family === "convolution") said.push(words("rule"));
  return said.length ? el("div", { class: "notice", role: "status" }, said.map((text) => el("p", {}, text))) : null;
}

// -- the window over the input ---------------------------------------------------------------------------------------

function window_(scene) {
  const { data, words, model } = scene;
  const idea = data.family === "pooling" ? "idea_pooling" : data.transposed ? "idea_transposed" : data.layers ? "idea_text" : data.spatial === 1 ? "idea_line" : "idea_picture";
  return [
    el("p", {}, words(idea, { channels: model.each })),
    el("div", { class: "views" }, input(scene), data.family !== "pooling" && kernel(scene), output(scene)),
    legend(scene), indices(scene),
  ];
}

const mark = (...parts) => parts.filter(Boolean).join(" ");

function input(scene) {
  return scene.data.spatial === 1 ? inputLine(scene) : inputPicture(scene);
}

// What a place of the padded input shows, and how it is marked.
function placeOf(scene, channel) {
  const { model, at, state, values } = scene;
  const { rows, columns } = model.windows;
  const taps = new Map();
  const sources = new Set();
  if (model.reads(values.o).includes(channel))
    for (let tap = 0; tap < model.windows.taps; tap++) {
      const stands = model.windows.stands(at, tap);
      const read = model.windows.read(at, tap);
      const shut = rows.shared && read === null;
      if (!shut) taps.set(stands.join(), tap);
      if (read && (rows.outside(stands[0]) || columns.outside(stands[1])))
        sources.add(`${read[0] * rows.spread},${read[1] * columns.spread}`);
    }
  const [i, j] = model.windows.place(at);
  const reach = (line, k) => [line.place(k, 0), line.place(k, 0) + (line.shared ? line.end(k) - line.start(k) : line.reach) - 1];
  const [top, bottom] = reach(rows, i);
  const [left, right] = reach(columns, j);
  const [unreadRows, unreadColumns] = model.unread;
  const index = model.reads(values.o).indexOf(channel);
  return {
    value(r, c) {
      const [row, column] = [rows.at(r), columns.at(c)];
      if (row >= 0 && column >= 0) return model.x(channel, row, column);
      return rows.hole(r) || columns.hole(c) || model.pooling ? null : 0;
    },
    mark(r, c) {
      const outside = rows.outside(r) || columns.outside(c);
      const tap = taps.get(`${r},${c}`);
      const inside = index >= 0 && r >= top && r <= bottom && c >= left && c <= right;
      const [row, column] = [rows.at(r), columns.at(c)];
      return mark(
        tap !== undefined && "touched", tap !== undefined && state.tap && scene.lit(index, tap).trim(),
        ((tap === undefined && inside) || rows.hole(r) || columns.hole(c)) && "gap", outside && "padding",
        sources.has(`${r},${c}`) && "source",
        !outside && !rows.hole(r) && !columns.hole(c) && (unreadRows.includes(row) || unreadColumns.includes(column)) && "hatched");
    },
    tap: (r, c) => taps.get(`${r},${c}`),
    low: [Math.min(top, bottom), Math.min(left, right)], high: [bottom, right],
  };
}

// From where to where a grid of the input goes: all of it with its padding, or what a slice of it holds.
function extent(scene, line, index) {
  const { data, model } = scene;
  if (data.whole) return [Math.min(line.from, 0), Math.max(line.to, (line.size - 1) * line.spread)];
  const [first, count] = [model.windows.first[index], model.windows.count[index]];
  return [line.place(first, 0), line.place(first + count - 1, line.kernel - 1)];
}

const showing = ({ words }, shown, total) => (shown < total ? ` · ${words("showing", { shown, total })}` : "");

function inputPicture(scene) {
  const { data, words, model, values, settings } = scene;
  const { rows, columns } = model.windows;
  const channels = model.reads(values.o);
  const channel = channels.includes(values.c) ? values.c : channels[0];
  const cells = placeOf(scene, channel);
  const [down, across] = [
    span(...extent(scene, rows, 0), cells.low[0], cells.high[0]), span(...extent(scene, columns, 1), cells.low[1], cells.high[1]),
  ];
  const name = data.symbols.x;
  const said = words("channel_of", { channel, total: values.in, shape: model.size.join(" × ") });
  const pick = channels.length > 1 && el("span", { class: "steps" },
    stepButton(scene, "c", channels, channel, -1), stepButton(scene, "c", channels, channel, 1));
  const framed = [down[0] / rows.spread, down.length / rows.spread, across[0] / columns.spread, across.length / columns.spread];
  return el("div", { class: "part" },
    picture(scene, words("picture_of", { channel }), model.size, {
      of: (r, c) => model.x(channel, r, c), means: data.overview?.x?.[channel], shown: framed,
      pick: (r, c) => scene.pin(nearest(model, r, c)),
    }),
    matrix({
      key: "input", label: words("input"), rows: down.length, columns: across.length, top: down[0], left: across[0],
      caption: el("span", {}, el("b", { "data-symbol": name }, name), ` ${words("input")} · ${said}`,
        showing(scene, across.filter((c) => !columns.outside(c)).length, model.size[1]), pick),
      rowHeads: (r) => head(rows, r), columnHeads: (c) => head(columns, c),
      value: cells.value, mark: cells.mark,
      says: (r, c) => placeSaid(scene, r, c),
      hover: values.edit ? undefined : (r, c) => tapAt(scene, channels.indexOf(channel), cells.tap(r, c)),
      leave: scene.untap,
      pick: (r, c) => pickPixel(scene, channel, r, c),
      edit: values.edit ? (r, c, number) => editInput(scene, channel, r, c, number) : undefined,
    }));
}

function stepButton({ settings, words }, key, all, present, by) {
  const to = all[all.indexOf(present) + by];
  return el("button", {
    type: "button", class: "button", disabled: to === undefined, "data-key": `${key}${by}`,
    "aria-label": words(by < 0 ? "channel_before" : "channel_next"), onclick: () => settings.set({ [key]: to }),
  }, by < 0 ? "◀" : "▶");
}

const head = (line, place) => (line.hole(place) ? "·" : line.spread > 1 ? String(Math.floor(place / line.spread)) : String(place)).replace("-", "−");
const tapAt = (scene, channel, tap) => (tap === undefined || channel < 0 ? scene.untap() : scene.tapped(channel, tap));

function placeSaid({ words, model }, r, c) {
  const { rows, columns } = model.windows;
  const place = [head(rows, r), head(columns, c)].join(", ");
  if (rows.hole(r) || columns.hole(c)) return words("place_hole");
  return words(rows.outside(r) || columns.outside(c) ? "place_padding" : "place", { place });
}

function pixelAt({ model }, channel, r, c) {
  const { rows, columns } = model.windows;
  if (rows.outside(r) || columns.outside(c) || rows.hole(r) || columns.hole(c)) return null;
  return [channel, rows.at(r), columns.at(c)];
}

function pickPixel(scene, channel, r, c) {
  const pixel = pixelAt(scene, channel, r, c);
  const [height, width] = scene.model.size;
  if (pixel && scene.data.whole) scene.settings.set({ pixel: (pixel[0] * height + pixel[1]) * width + pixel[2] });
}

function editInput(scene, channel, r, c, number) {
  const pixel = pixelAt(scene, channel, r, c);
  if (pixel) scene.settings.set({ edits: withEdit(scene.values.edits, `x.${pixel.join(".")}`, number) });
  else scene.exhibit.draw();
}

// A large picture as it is, or by the means of its blocks; framed is what is shown as numbers.
//   of(row, column)   its numbers, where the page has them all; otherwise `means` are Python's
//   shown     [first row, rows, first column, columns] of the frame
//   pick(row, column)   what a click does
function picture({ data, words }, label, [height, width], { of, means, shown, pick }) {
  if ((height <= MOST && width <= MOST) || (!data.whole && !means)) return null;
  const [down, across] = data.whole ? [Math.ceil(height / 48), Math.ceil(width / 48)] : [1, 1];
  const blocks = data.whole ? averaged(of, height, width, down, across) : means;
  const scale = [blocks.shape[0] / height, blocks.shape[1] / width];
  const drawn = overview(label, blocks, {
    top: shown[0] * scale[0], height: shown[1] * scale[0], left: shown[2] * scale[1], width: shown[3] * scale[1],
  });
  if (data.whole)
    drawn.addEventListener("click", (event) => {
      const box = drawn.getBoundingClientRect();
      const along = (at, start, length, count) => Math.min(Math.floor(((at - start) / length) * count), count - 1);
      pick(along(event.clientY, box.top, box.height, height), along(event.clientX, box.left, box.width, width));
    });
  const single = down === 1 && across === 1 && data.whole;
  return el("figure", { class: "picture" }, drawn,
    el("figcaption", {}, words(single ? "pixels" : "means", { rows: blocks.shape[0], columns: blocks.shape[1] })));
}

function averaged(of, height, width, down, across) {
  const shape = [Math.ceil(height / down), Math.ceil(width / across)];
  return tensor(shape, Float64Array.from({ length: shape[0] * shape[1] }, (_, index) => {
    const [top, left] = [Math.floor(index / shape[1]) * down, (index % shape[1]) * across];
    const rows = range(Math.min(down, height - top)).map((k) => k + top);
    const columns = range(Math.min(across, width - left)).map((k) => k + left);
    const sum = rows.reduce((total, r) => total + columns.reduce((inner, c) => inner + of(r, c), 0), 0);
    return sum / (rows.length * columns.length);
  }));
}

// The window whose middle is nearest to a place of the input.
function nearest({ windows }, row, column) {
  const along = (line, place, k) => {
    const middles = range(windows.count[k]).map((i) => line.place(i, 0) + (line.reach - 1) / 2);
    const gaps = middles.map((middle) => Math.abs(middle - place * line.spread));
    return gaps.indexOf(Math.min(...gaps));
  };
  return along(windows.rows, row, 0) * windows.count[1] + along(windows.columns, column, 1);
}

function inputLine(scene) {
  const { data, words, model, values, at } = scene;
  const { columns } = model.windows;
  const channels = model.pooling ? [values.o] : range(data.whole ? values.in : data.x.shape[0]);
  const group = model.reads(values.o);
  const cells = channels.map((channel) => placeOf(scene, channel));
  const across = span(...extent(scene, columns, 1), cells[0].low[1], cells[0].high[1]);
  const down = span(0, channels.length - 1, channels.indexOf(group[0]), channels.indexOf(group[0]), 12);
  const name = data.symbols.x;
  const total = data.whole ? values.in : data.channels[0];
  return el("div", { class: "part" }, matrix({
    key: "input", label: words("input"), rows: down.length, columns: across.length, top: down[0], left: across[0],
    caption: el("span", {}, el("b", { "data-symbol": name }, name),
      ` ${words("input")} · ${words(data.layers ? "text_of" : "line_of", { channels: total, places: columns.size })}`,
      showing(scene, down.length, model.pooling ? down.length : total),
      showing(scene, across.filter((c) => !columns.outside(c)).length, columns.size * columns.spread)),
    rowHeads: (r) => words(scene.rowWord("x"), { channel: channels[r] }),
    columnHeads: (c) => tokenHead(scene, c),
    value: (r, c) => cells[r].value(0, c),
    mark: (r, c) => mark(cells[r].mark(0, c), group.includes(channels[r]) || "aside"),
    says: (r, c) => words("place_line", { channel: channels[r], place: head(columns, c) }),
    hover: values.edit ? undefined : (r, c) => tapAt(scene, group.indexOf(channels[r]), cells[r].tap(0, c)),
    leave: scene.untap,
    pick: (r, c) => pickPixel(scene, channels[r], 0, c),
    edit: values.edit ? (r, c, number) => editInput(scene, channels[r], 0, c, number) : undefined,
  }));
}

export function tokenHead({ data, model }, c) {
  const { columns } = model.windows;
  const token = data.tokens && !columns.hole(c) && !columns.outside(c) ? data.tokens[columns.at(c)] : null;
  return token ? el("span", { class: "token" }, token, el("small", {}, head(columns, c))) : head(columns, c);
}

// The kernel of one output channel: for the channel that is shown, or a row for each.
function kernel(scene) {
  const { data, words, model, values } = scene;
  const { rows, columns } = model.windows;
  const channels = model.reads(values.o);
  const line = data.spatial === 1;
  const channel = Math.max(0, channels.indexOf(values.c));
  const down = line ? span(0, channels.length - 1, 0, 0, 12) : span(0, rows.kernel - 1, 0, 0, 12);
  const across = span(0, columns.kernel - 1, 0, 0, 12);
  const tapOf = (r, c) => (line ? [r, c] : [channel, r * columns.kernel + c]);
  const name = model.layer.names?.weight ?? data.symbols.weight;
  const places = line ? words("kernel_line", { out: values.o }) : words("kernel_of", { out: values.o, channel: channels[channel] });
  const { at } = scene;
  const [i, j] = model.windows.place(at);
  return el("div", { class: "part" }, matrix({
    key: "kernel", label: words("kernel_grid"), rows: down.length, columns: across.length,
    caption: el("span", {}, el("b", { "data-symbol": name }, name), ` ${words("kernel_grid")} · ${places}`,
      showing(scene, down.length, line ? channels.length : rows.kernel)),
    rowHeads: (r) => (line ? words(scene.rowWord("x"), { channel: channels[r] }) : `m=${r}`),
    columnHeads: (c) => (line ? `m=${c}` : `n=${c}`),
    value: (r, c) => model.tapWeight(values.o, ...tapOf(r, c)),
    mark: (r, c) => scene.lit(...tapOf(r, c)).trim(),
    says: (r, c) => {
      const place = model.windows.stands(at, tapOf(r, c)[1]);
      return words("tap_on", { place: line ? head(columns, place[1]) : [head(rows, place[0]), head(columns, place[1])].join(", ") });
    },
    hover: values.edit ? undefined : (r, c) => scene.tapped(...tapOf(r, c)),
    leave: scene.untap,
    edit: values.edit ? (r, c, number) => {
      const [k, tap] = tapOf(r, c);
      const place = [values.width ?? 0, values.o, k, Math.floor(tap / columns.kernel), tap % columns.kernel];
      scene.settings.set({ edits: withEdit(values.edits, `w.${place.join(".")}`, number) });
    } : undefined,
  }));
}

function output(scene) {
  const { data, words, model, values, at, state } = scene;
  const { windows } = model;
  const line = data.spatial === 1;
  const outs = line ? (model.pooling ? [values.o] : range(data.whole ? values.out : data.y.shape[0])) : [values.o];
  const [i, j] = [Math.floor(at / windows.count[1]), at % windows.count[1]];
  const here = line ? outs.indexOf(values.o) : i;
  const down = span(0, (line ? outs.length : windows.count[0]) - 1, here, here, line ? 12 : MOST);
  const across = span(0, windows.count[1] - 1, j, j);
  const place = (r, c) => (line ? [outs[r], c] : [values.o, r * windows.count[1] + c]);
  const name = data.symbols.y;
  const full = data.size ? data.size[1] : windows.count;
  const shape = (data.whole ? windows.count : full).slice(line ? 1 : 0).join(" × ");
  const { first } = windows;
  const features = !line && picture(scene, words("picture_of", { channel: values.o }), data.whole ? windows.count : full, {
    of: (r, c) => model.of(values.o).y[r * windows.count[1] + c], means: data.overview?.y?.[values.o],
    shown: [down[0] + first[0], down.length, across[0] + first[1], across.length],
    pick: (r, c) => scene.pin(r * windows.count[1] + c),
  });
  return el("div", { class: "part" }, features, matrix({
    key: "output", label: words("output"), rows: down.length, columns: across.length, top: down[0], left: across[0],
    caption: el("span", {}, el("b", { "data-symbol": name }, name),
      ` ${words("output")} · ${line ? shape : words("channel_of", { channel: values.o, total: values.out, shape })}`,
      showing(scene, across.length, data.whole ? windows.count[1] : full[1])),
    rowHeads: (r) => (line ? words(scene.rowWord("y"), { channel: outs[r] }) : String(r + first[0])),
    columnHeads: (c) => String(c + first[1]),
    value: (r, c) => model.of(place(r, c)[0]).y[place(r, c)[1]],
    mark: (r, c) => {
      const [out, position] = place(r, c);
      return out === values.o && position === at ? (state.pinned ? "pinned" : "active") : "";
    },
    says: (r, c) => words("output_at", { place: line ? `${outs[r]}, ${c}` : `${r + first[0]}, ${c + first[1]}` }),
    hover: (r, c) => place(r, c)[0] === values.o && scene.hover(place(r, c)[1]),
    leave: () => {
      if (state.hovered === null || state.pinned) return;
      state.hovered = null;
      scene.exhibit.draw();
    },
    pick: (r, c) => scene.pin(place(r, c)[1], { o: place(r, c)[0] }),
  }));
}

function legend({ words, model, state, data }) {
  const { rows, columns } = model.windows;
  const gaps = rows.dilation > 1 || columns.dilation > 1 || rows.spread > 1 || columns.spread > 1;
  const padding = rows.from < 0 || columns.from < 0;
  const unread = model.unread.flat().length;
  const key = (kind, text) => el("li", {}, el("span", { class: `swatch cell ${kind}` }), text);
  return el("ul", { class: "legend" },
    key("touched", words("legend_touched")),
    gaps && key("gap", words(rows.spread > 1 || columns.spread > 1 ? "legend_hole" : "legend_gap")),
    padding && key("padding", words(`legend_${data.family === "pooling" ? "pooling" : model.values.mode}`)),
    unread > 0 && key("hatched", words("legend_unread")),
    el("li", { class: "muted" }, words(state.pinned ? "pinned" : "hovering")));
}

// Where the window reads, with the numbers of the formula.
function indices(scene) {
  const { data, words, model, at } = scene;
  const { rows, columns } = model.windows;
  const [i, j] = model.windows.place(at);
  const one = data.spatial === 1;
  const axes = [[rows, i, ["i", "m", "index_row"]], [columns, j, one ? ["i", "m", "index_place"] : ["j", "n", "index_column"]]];
  return el("dl", { class: "indices" }, axes.slice(one ? 1 : 0).map(([line, k, [letter, tap, name]]) => {
    const taps = line.taps(k);
    const shown = taps.length > 7 ? [...taps.slice(0, 6).map(minus), "…", minus(taps.at(-1))] : taps.map(minus);
    if (line.shared) {
      const text = `⌊${letter}·${line.size}/${line.positions}⌋ … ⌈(${letter}+1)·${line.size}/${line.positions}⌉ − 1`;
      return [el("dt", {}, words(name)), el("dd", {}, `${text} = ${shown.join(", ")}  (${letter} = ${k})`)];
    }
    const spread = line.spread > 1;
    const general = spread ? `${letter} − p + ${tap}·d` : `${letter}·s − p + ${tap}·d`;
    const own = spread ? `${k} − ${term(line.before)} + ${tap}·${line.dilation}` : `${k}·${line.stride} − ${term(line.before)} + ${tap}·${line.dilation}`;
    const reads = taps.map((p, m) => [p, line.read(k, m)]);
    const away = reads.filter(([p]) => line.outside(p));
    const notes = [];
    if (spread) notes.push(words("index_spread", { spread: line.spread, found: reads.filter(([, r]) => r >= 0).map(([, r]) => r).join(", ") || "—" }));
    if (away.length && !spread) {
      const nowhere = away.filter(([, r]) => r < 0).map(([p]) => minus(p));
      if (nowhere.length) notes.push(words(model.pooling ? "index_left_out" : "index_zero", { places: nowhere.join(", ") }));
      else notes.push(words("index_reads", { pairs: away.map(([p, r]) => `${minus(p)} → ${r}`).join(", ") }));
    }
    return [
      el("dt", {}, words(name)),
      el("dd", {}, `${general} = ${own} = ${shown.join(", ")}`, el("span", { class: "muted" }, `  (${tap} = 0 … ${line.kernel - 1})`),
        notes.map((note) => el("div", { class: "muted" }, note))),
    ];
  }));
}

export const minus = (number) => String(number).replace("-", "−");

// -- what is computed ------------------------------------------------------------------------------------------------

function products(scene) {
  const { data, words, model, values, at } = scene;
  const y = model.of(values.o).y[at];
  const name = outputName(scene);
  const phases = el("ol", { class: "phases" }, range(3).map((phase) =>
    el("li", { class: phaseOf(values) === phase && scene.state.hovered === null ? "now" : "", "aria-current": phaseOf(values) === phase ? "step" : null },
      words(`${data.family === "pooling" ? "reduce" : "do"}_${phase}${data.average ? "_mean" : ""}`, { stride: model.windows.columns.spread > 1 ? 1 : model.windows.columns.stride }))));
  return data.family === "pooling" ? [phases, pooled(scene, name, y)] : [phases, multiplied(scene, name, y)];
}

export function outputName({ data, model, at, values }) {
  const [i, j] = model.windows.place(at);
  return `${data.symbols.y}[${data.spatial === 1 ? [values.o, j] : [values.o, i, j]}]`.replaceAll(",", ", ");
}

// One matrix of a chain; `of` gives the number of a channel and a tap.
function small(scene, key, caption, channels, of, extra = {}) {
  const { data, model } = scene;
  const { rows, columns } = model.windows;
  const line = data.spatial === 1;
  const tapOf = (r, c) => (line ? [channels[r], c] : [channels[0], r * columns.kernel + c]);
  return matrix({
    key, label: caption, caption, rows: line ? channels.length : Math.min(rows.kernel, 12), columns: Math.min(columns.kernel, 12),
    value: (r, c) => of(...tapOf(r, c)), mark: (r, c) => mark(extra.mark?.(...tapOf(r, c)), scene.lit(...tapOf(r, c)).trim()),
    hover: (r, c) => scene.tapped(...tapOf(r, c)), leave: scene.untap,
    rowHeads: line ? (r) => scene.words(scene.rowWord("x"), { channel: model.reads(scene.values.o)[channels[r]] }) : undefined,
  });
}

const sign = (text) => el("span", { class: "operator", "aria-hidden": "true" }, text);

function multiplied(scene, name, y) {
  const { data, words, model, values, at } = scene;
  const { windows } = model;
  const channels = model.reads(values.o);
  const own = model.of(values.o);
  const found = model.products(values.o, at);
  const totals = found.map((line) => line.reduce((a, b) => a + b, 0));
  const line = data.spatial === 1;
  const groups = line ? [range(Math.min(channels.length, 12))] : range(Math.min(channels.length, BLOCKS)).map((k) => [k]);
  const padded = (_, tap) => (windows.read(at, tap) ? "" : "padding");
  const chains = groups.map((group) => {
    const which = line ? words("channels_all", { n: channels.length }) : words("channel_one", { channel: channels[group[0]] });
    return el("div", { class: `chain${own.python ? "" : " made"}`, role: "group", "aria-label": which },
      !line && el("span", { class: "which" }, which),
      small(scene, `entries-${group[0]}`, words("entries"), group, (k, tap) => model.entry(channels[k], at, tap), { mark: padded }), sign("⊙"),
      small(scene, `weights-${group[0]}`, words("kernel_grid"), group, (k, tap) => model.tapWeight(values.o, k, tap)), sign("="),
      small(scene, `products-${group[0]}`, words("products"), group, (k, tap) => found[k][tap]),
      line
        ? [sign("→"), matrix({ key: "subtotals", label: words("subtotals"), caption: words("subtotals"), rows: group.length, columns: 1, value: (r) => totals[r] })]
        : el("span", { class: "subtotal" }, sign("→ Σ ="), el("b", { class: "recomputed", "data-subtotal": group[0] }, short(totals[group[0]]))));
  });
  const bias = model.bias(values.o);
  const listed = totals.length > 6 ? [...totals.slice(0, 4).map(term), words("others", { n: totals.length - 4, sum: short(totals.slice(4).reduce((a, b) => a + b, 0)) })] : totals.map(term);
  const sum = totals.reduce((a, b) => a + b, bias);
  const biased = () => (model.layer.bias ? [" + ", el("span", { "data-symbol": model.layer.names?.bias ?? data.symbols.bias }, term(bias))] : []);
  const taps = found.flat();
  const terms = channels.flatMap((channel, k) => range(windows.taps).map((tap) => `${term(model.entry(channel, at, tap))}·${term(model.tapWeight(values.o, k, tap))}`));
  const rest = channels.length - (line ? groups[0].length : groups.length);
  return [
    chains,
    rest > 0 && el("p", { class: "muted" }, words("showing", { shown: channels.length - rest, total: channels.length })),
    !own.python && !model.changed && el("p", { class: "muted" }, words("made_here")),
    taps.length <= 9 && el("p", { class: "worked" }, terms.join(" + "), biased(), " = ", el("b", { class: "recomputed" }, short(sum))),
    el("p", { class: "worked" },
      el("span", { "data-symbol": data.symbols.y }, data.layers ? words("before_activation") : name), " = ", listed.join(" + "), biased(), " = ",
      el("b", { class: "recomputed", "data-number": "sum" }, short(data.layers ? sum : y))),
    data.layers && el("p", { class: "worked" }, words("activated", { name }), " ", el("b", { class: "recomputed", "data-number": "result" }, short(y))),
  ];
}

function pooled(scene, name, y) {
  const { data, words, model, values, at } = scene;
  const { windows } = model;
  const reads = range(windows.taps).filter((tap) => windows.read(at, tap));
  const numbers = reads.map((tap) => model.entry(values.o, at, tap));
  const best = reads[numbers.findIndex((n) => n === y || (Number.isNaN(n) && Number.isNaN(y)))];
  const list = numbers.length > 9 ? [...numbers.slice(0, 9).map(short), "…"] : numbers.map(short);
  const grid = small(scene, "entries-0", words("entries"), [0],
    (_, tap) => (windows.read(at, tap) ? model.entry(values.o, at, tap) : null),
    { mark: (_, tap) => mark(!windows.read(at, tap) && "padding", !data.average && tap === best && "greatest touched") });
  const divisor = model.divisors?.[at];
  const text = data.average
    ? [`(${numbers.length > 9 ? list.join(" + ") : numbers.map(term).join(" + ")}) / ${short(divisor)} = `]
    : [words("greatest_of", { list: list.join(", ") }), " = "];
  return [
    el("div", { class: "chain" }, grid, sign("→"), el("span", { class: "subtotal" }, el("b", { class: "recomputed" }, short(y)))),
    el("p", { class: "worked" }, el("span", { "data-symbol": data.symbols.y }, name), " = ", ...text, el("b", { class: "recomputed", "data-number": "sum" }, short(y))),
    data.average && el("p", { class: "muted" }, words(numbers.length === divisor ? "divisor_read" : "divisor_other", { n: numbers.length, divisor })),
  ];
}

// -- how many outputs ------------------------------------------------------------------------------------------------

function sizes(scene) {
  const { data, words, model, values } = scene;
  const { rows, columns } = model.windows;
  const one = data.spatial === 1;
  const axes = [[rows, "h", 0], [columns, "w", 1]].slice(one ? 1 : 0);
  const said = axes.flatMap(([line, axis, index]) => {
    const name = words(`axis_${data.spatial}_${index}`);
    const numbers = model.axis(axis, index);
    const unread = model.unread[index];
    return [
      el("p", { class: "worked" }, el("b", {}, name), ": ", sizeText(words, numbers, line, one ? "L" : "HW"[index])),
      unread.length > 0 && el("p", {}, words(line.positions === 1 || unread[0] > line.at(line.place(line.positions - 1, 0)) ? "unread_end" : "unread", {
        n: unread.length, axis: name, list: unread.length > 8 ? [...unread.slice(0, 8), "…"].join(", ") : unread.join(", "),
      })),
    ];
  });
  const [p, q] = [rows.positions, columns.positions];
  const outs = values.out;
  const total = one ? words("total_line", { outs, positions: q, n: outs * q }) : words("total_picture", { outs, rows: p, columns: q, n: outs * p * q });
  const shape = data.family === "pooling" ? null : el("p", {}, words("weights_count", {
    outs, each: model.each, taps: one ? columns.kernel : `${rows.kernel}×${columns.kernel}`, n: outs * model.each * model.windows.taps, groups: values.groups,
  }), " ", values.groups > 1 ? words("weights_groups", { groups: values.groups, each: model.each, all: values.in }) : "");
  return [said, el("p", {}, total), shape];
}

function sizeText(words, numbers, line, letter) {
  const { size, kernel, stride, dilation, padding, around, transposed, extra } = numbers;
  const result = line.positions;
  if (line.shared) return words("size_shared", { size, result });
  if (transposed)
    return around === "same"
      ? `${size}·${stride} = ${result}`
      : `(${letter} − 1)·s − 2p + d(k − 1) + 1${extra ? " + e" : ""} = (${size} − 1)·${stride} − 2·${padding} + ${dilation}·(${kernel} − 1) + 1${extra ? ` + ${extra}` : ""} = ${result}`;
  if (around === "same" || around === "causal") {
    const [before, after] = line.margins;
    return `⌈${letter}/s⌉ = ⌈${size}/${stride}⌉ = ${result}. ${words(around === "same" ? "size_same" : "size_causal", { before, after })}`;
  }
  const p = around === "valid" ? 0 : padding;
  const room = size + 2 * p - dilation * (kernel - 1) - 1;
  const [open, close] = numbers.ceil ? ["⌈", "⌉"] : ["⌊", "⌋"];
  if (numbers.least && room < 0) return words("size_short", { size, kernel });
  const plain = (numbers.ceil ? Math.ceil : Math.floor)(room / stride) + 1;
  const text = `${open}(${letter} + 2p − d(k − 1) − 1)/s${close} + 1 = ${open}(${size} + 2·${p} − ${dilation}·(${kernel} − 1) − 1)/${stride}${close} + 1 = ${open}${room}/${stride}${close} + 1 = ${plain}`;
  return plain === result ? text : `${text}. ${words("size_ceil", { result })}`;
}
