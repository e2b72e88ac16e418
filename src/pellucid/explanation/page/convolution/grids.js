// The window over the input: input, kernel and output as grids, and where the window reads, by the formula's indices.

import { el, range } from "../core/dom.js";
import { matrix, overview } from "../core/matrix.js";
import { term } from "../core/numbers.js";
import { tensor } from "../core/tensor.js";
import { withEdit } from "./model.js";
import { few, head, mark, minus, MOST, muted, named, showing, span } from "./parts.js";

const ROWS = 12; // channels, and entries of a kernel along an axis, that are shown

export function grids(scene) {
  const { data, words, model } = scene;
  const line = data.spatial === 1;
  const kind = data.family === "pooling" ? "pooling"
    : data.transposed ? "transposed" : data.layers ? "text" : line ? "line" : "picture";
  return [
    el("p", {}, words(`idea_${kind}`, { channels: model.each })),
    el("div", { class: "views" },
      line ? inputLine(scene) : inputPicture(scene), data.family !== "pooling" && kernel(scene), output(scene)),
    legend(scene), indices(scene), muted(words("counted_from")),
  ];
}

// -- the input -------------------------------------------------------------------------------------------------------

// What the places of the padded input show of a channel, and how they are marked.
function placesOf(scene, channel) {
  const { model, at, values } = scene;
  const { rows, columns } = model.windows;
  const index = model.reads(values.o).indexOf(channel);
  const outside = (r, c) => rows.outside(r) || columns.outside(c);
  const hole = (r, c) => rows.hole(r) || columns.hole(c);
  const taps = new Map();
  const sources = new Set(); // what is read instead of a place in the padding
  for (let tap = 0; index >= 0 && tap < model.windows.taps; tap++) {
    const stands = model.windows.stands(at, tap);
    const read = model.windows.read(at, tap);
    if (!rows.shared || read !== null) taps.set(stands.join(), tap);
    if (read && outside(...stands)) sources.add(`${read[0] * rows.spread},${read[1] * columns.spread}`);
  }
  const [i, j] = model.windows.place(at);
  const reach = (line, k) => [line.taps(k)[0], line.taps(k).at(-1)];
  const [[top, bottom], [left, right]] = [reach(rows, i), reach(columns, j)];
  const [unreadRows, unreadColumns] = model.unread;
  const unread = (r, c) => unreadRows.includes(rows.at(r)) || unreadColumns.includes(columns.at(c));
  return {
    value(r, c) {
      if (rows.at(r) >= 0 && columns.at(c) >= 0) return model.x(channel, rows.at(r), columns.at(c));
      return hole(r, c) || model.pooling ? null : 0;
    },
    mark(r, c) {
      const tap = taps.get(`${r},${c}`);
      const inside = index >= 0 && r >= top && r <= bottom && c >= left && c <= right;
      return mark(
        tap !== undefined && "touched", tap !== undefined && scene.lit(index, tap),
        ((tap === undefined && inside) || hole(r, c)) && "gap", outside(r, c) && "padding",
        sources.has(`${r},${c}`) && "source", !outside(r, c) && !hole(r, c) && unread(r, c) && "hatched");
    },
    says(r, c) {
      if (hole(r, c)) return scene.words("place_hole");
      const place = (scene.data.spatial === 1 ? [head(columns, c)] : [head(rows, r), head(columns, c)]).join(", ");
      return scene.words(outside(r, c) ? "place_padding" : "place", { place });
    },
    // The pixel at a place; null in the padding and in holes.
    pixel: (r, c) => (outside(r, c) || hole(r, c) ? null : [channel, rows.at(r), columns.at(c)]),
    point(r, c) {
      const tap = taps.get(`${r},${c}`);
      if (tap === undefined) scene.untap();
      else scene.tapped(index, tap);
    },
    low: [top, left], high: [bottom, right],
  };
}

// From where to where a grid of the input goes: all of it with its padding, or what a slice of it holds.
function extent({ data, model }, line, index) {
  if (data.whole) return [Math.min(line.from, 0), Math.max(line.to, (line.size - 1) * line.spread)];
  const [first, count] = [model.windows.first[index], model.windows.count[index]];
  return [line.place(first, 0), line.place(first + count - 1, line.kernel - 1)];
}

// What all grids of the input do; `cells(r)` are the places of a row, and its row there.
function inputGrid(scene, cells, options) {
  const { data, words, model, values, settings } = scene;
  const [height, width] = model.size;
  const to = (what) => (r, c) => {
    const [places, row] = cells(r);
    return places[what](row, c);
  };
  const pixel = to("pixel");
  return matrix({
    key: "input", label: words("input"), value: to("value"), mark: to("mark"), says: to("says"), leave: scene.untap,
    hover: values.edit ? undefined : to("point"),
    pick(r, c) {
      const at = pixel(r, c);
      if (at && data.whole) settings.set({ pixel: (at[0] * height + at[1]) * width + at[2] });
    },
    edit: values.edit && ((r, c, number) => {
      const at = pixel(r, c);
      if (at) settings.set({ edits: withEdit(values.edits, `x.${at.join(".")}`, number) });
      else scene.exhibit.draw();
    }),
    ...options,
  });
}

function inputPicture(scene) {
  const { data, words, model, values, settings } = scene;
  const { rows, columns } = model.windows;
  const channels = model.reads(values.o);
  const channel = channels.includes(values.c) ? values.c : channels[0];
  const places = placesOf(scene, channel);
  const down = span(...extent(scene, rows, 0), places.low[0], places.high[0]);
  const across = span(...extent(scene, columns, 1), places.low[1], places.high[1]);
  const step = (by, key, text) => {
    const to = channels[channels.indexOf(channel) + by];
    const attributes = { disabled: to === undefined, "data-key": key, "aria-label": words(key) };
    const act = () => settings.set({ c: to });
    return el("button", { type: "button", class: "button", onclick: act, ...attributes }, text);
  };
  const said = words("channel_of", { channel, total: values.in, shape: model.size.join(" × ") });
  const inside = across.filter((c) => !columns.outside(c) && !columns.hole(c)).length;
  return el("div", { class: "part" },
    picture(scene, `picture x ${channel}`, words("picture_of", { channel }), model.size, {
      of: (r, c) => model.x(channel, r, c), means: data.overview?.x?.[channel],
      shown: [[down, rows], [across, columns]]
        .flatMap(([places, line]) => [places[0] / line.spread, places.length / line.spread]),
      pick: (r, c) => scene.pin(nearest(model, r, c)),
    }),
    inputGrid(scene, (r) => [places, r], {
      rows: down.length, columns: across.length, top: down[0], left: across[0],
      caption: el("span", {},
        named(data.symbols.x), ` ${words("input")} · ${said}`, showing(scene, inside, columns.size),
        channels.length > 1 && [step(-1, "channel_before", "◀"), step(1, "channel_next", "▶")]),
      rowHeads: (r) => head(rows, r), columnHeads: (c) => head(columns, c),
    }));
}

function inputLine(scene) {
  const { data, words, model, values } = scene;
  const { columns } = model.windows;
  const channels = model.pooling ? [values.o] : range(data.whole ? values.in : data.x.shape[0]);
  const group = model.reads(values.o);
  const places = channels.map((channel) => placesOf(scene, channel));
  const [{ low, high }] = places;
  const across = span(...extent(scene, columns, 1), low[1], high[1]);
  const first = channels.indexOf(group[0]);
  const down = span(0, channels.length - 1, first, first, ROWS);
  const total = model.pooling ? 1 : values.in;
  const said = words(data.layers ? "text_of" : "line_of", { channels: values.in, places: columns.size });
  const inside = across.filter((c) => !columns.outside(c) && !columns.hole(c)).length;
  return el("div", { class: "part" }, inputGrid(scene, (r) => [places[r], 0], {
    rows: down.length, columns: across.length, top: down[0], left: across[0],
    caption: el("span", {}, named(data.symbols.x), ` ${words("input")} · ${said}`,
      showing(scene, down.length, total), showing(scene, inside, columns.size)),
    rowHeads: (r) => words(scene.rowWord("x"), { channel: channels[r] }),
    columnHeads: (c) => tokenHead(scene, c),
    mark: (r, c) => mark(places[r].mark(0, c), !group.includes(channels[r]) && "aside"),
  }));
}

function tokenHead({ data, model }, c) {
  const { columns } = model.windows;
  const token = data.tokens && !columns.hole(c) && !columns.outside(c) ? data.tokens[columns.at(c)] : null;
  return token ? el("span", { class: "token" }, token, el("small", {}, head(columns, c))) : head(columns, c);
}

// A large picture as it is, or by the means of its blocks; framed is what is shown as numbers.
//   of(row, column)   its numbers, where the page has them all; otherwise `means` are Python's
//   shown     [first row, rows, first column, columns] of the frame
//   pick(row, column)   what a click does
function picture({ data, words, model }, name, label, [height, width], { of, means, shown, pick }) {
  if ((height <= MOST && width <= MOST) || (!data.whole && !means)) return null;
  const [down, across] = data.whole ? [Math.ceil(height / 48), Math.ceil(width / 48)] : [1, 1];
  const { blocks, drawn } = model.once(name, () => {
    const blocks = data.whole ? averaged(of, height, width, down, across) : means;
    return { blocks, drawn: overview(label, blocks, { top: 0, left: 0, height: 0, width: 0 }, true) };
  });
  const view = drawn.viewBox.baseVal;
  const [top, rows, left, columns] = shown;
  const frame = {
    x: (left / width) * view.width, width: (columns / width) * view.width,
    y: (top / height) * view.height, height: (rows / height) * view.height,
  };
  for (const [key, value] of Object.entries(frame)) drawn.querySelector(".frame").setAttribute(key, value);
  drawn.onclick = data.whole ? (event) => {
    const box = drawn.getBoundingClientRect();
    const along = (at, start, length, count) => Math.min(Math.floor(((at - start) / length) * count), count - 1);
    pick(along(event.clientY, box.top, box.height, height), along(event.clientX, box.left, box.width, width));
  } : null;
  const single = data.whole && down === 1 && across === 1;
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
    const gaps = range(windows.count[k]).map((i) =>
      Math.abs((line.place(i, 0) + line.place(i, line.kernel - 1)) / 2 - place * line.spread));
    return gaps.indexOf(Math.min(...gaps));
  };
  return along(windows.rows, row, 0) * windows.count[1] + along(windows.columns, column, 1);
}

// -- kernel and output -----------------------------------------------------------------------------------------------

// The kernel of one output channel: for the channel that is shown, or a row for each.
function kernel(scene) {
  const { data, words, model, values, at } = scene;
  const { rows, columns } = model.windows;
  const channels = model.reads(values.o);
  const line = data.spatial === 1;
  const own = Math.max(0, channels.indexOf(values.c));
  const down = Math.min(line ? channels.length : rows.kernel, ROWS);
  const tapOf = (r, c) => (line ? [r, c] : [own, r * columns.kernel + c]);
  const said = line
    ? words(data.layers ? "filter_short" : "kernel_line", { channel: values.o })
    : words("kernel_of", { out: values.o, channel: channels[own] });
  return el("div", { class: "part" }, matrix({
    key: "kernel", label: words("kernel_grid"), rows: down, columns: Math.min(columns.kernel, ROWS),
    caption: el("span", {}, named(model.layer.names?.weight ?? data.symbols.weight),
      ` ${words("kernel_grid")} · ${said}`, showing(scene, down, line ? channels.length : rows.kernel)),
    rowHeads: (r) => (line ? words(scene.rowWord("x"), { channel: channels[r] }) : `m=${r}`),
    columnHeads: (c) => (line ? `m=${c}` : `n=${c}`),
    value: (r, c) => model.tapWeight(values.o, ...tapOf(r, c)),
    mark: (r, c) => scene.lit(...tapOf(r, c)),
    says(r, c) {
      const [row, column] = model.windows.stands(at, tapOf(r, c)[1]);
      if (rows.hole(row) || columns.hole(column)) return words("tap_on_hole");
      return words("tap_on", { place: (line ? [] : [head(rows, row)]).concat(head(columns, column)).join(", ") });
    },
    hover: values.edit ? undefined : (r, c) => scene.tapped(...tapOf(r, c)),
    leave: scene.untap,
    edit: values.edit && ((r, c, number) => {
      const [k, tap] = tapOf(r, c);
      const place = [values.width, values.o, k, Math.floor(tap / columns.kernel), tap % columns.kernel];
      scene.settings.set({ edits: withEdit(values.edits, `w.${place.join(".")}`, number) });
    }),
  }));
}

function output(scene) {
  const { data, words, model, values, at, state } = scene;
  const { first, count } = model.windows;
  const line = data.spatial === 1;
  const outs = line && !model.pooling ? range(data.whole ? values.out : data.y.shape[0]) : [values.o];
  const [i, j] = [line ? outs.indexOf(values.o) : Math.floor(at / count[1]), at % count[1]];
  const down = span(0, (line ? outs.length : count[0]) - 1, i, i, line ? ROWS : MOST);
  const across = span(0, count[1] - 1, j, j);
  const of = (r, c) => (line ? [outs[r], c] : [values.o, r * count[1] + c]);
  const full = data.whole ? count : data.size[1];
  const said = line
    ? words("positions", { n: full[1] })
    : words("channel_of", { channel: values.o, total: values.out, shape: full.join(" × ") });
  return el("div", { class: "part" },
    !line && picture(scene, `picture y ${values.o}`, words("picture_of", { channel: values.o }), full, {
      of: (r, c) => model.of(values.o).y[r * count[1] + c], means: data.overview?.y?.[values.o],
      shown: [down[0] + first[0], down.length, across[0] + first[1], across.length],
      pick: (r, c) => scene.pin(r * count[1] + c),
    }),
    matrix({
      key: "output", label: words("output"), rows: down.length, columns: across.length, top: down[0], left: across[0],
      caption: el("span", {},
        named(data.symbols.y), ` ${words("output")} · ${said}`, showing(scene, across.length, full[1])),
      rowHeads: (r) => (line ? words(scene.rowWord("y"), { channel: outs[r] }) : String(r + first[0])),
      columnHeads: (c) => String(c + first[1]),
      value: (r, c) => model.of(of(r, c)[0]).y[of(r, c)[1]],
      mark: (r, c) => (of(r, c).join() === `${values.o},${at}` ? (state.pinned ? "pinned" : "active") : ""),
      says: (r, c) => words("output_at", { place: line ? `${outs[r]}, ${c}` : `${r + first[0]}, ${c + first[1]}` }),
      hover: (r, c) => of(r, c)[0] === values.o && scene.hover(of(r, c)[1]),
      leave: scene.leave,
      pick: (r, c) => scene.pin(of(r, c)[1], { o: of(r, c)[0] }),
    }));
}

// -- words under the grids -------------------------------------------------------------------------------------------

function legend({ words, model, state, data }) {
  const { rows, columns } = model.windows;
  const spread = rows.spread > 1 || columns.spread > 1;
  const key = (kind, text) => el("li", {}, el("span", { class: `swatch cell ${kind}` }), words(text));
  return el("ul", { class: "legend" },
    key("touched", "legend_touched"),
    (spread || rows.dilation > 1 || columns.dilation > 1) && key("gap", spread ? "legend_hole" : "legend_gap"),
    (rows.from < 0 || columns.from < 0) &&
      key("padding", `legend_${data.family === "pooling" ? "pooling" : model.values.mode}`),
    model.unread.flat().length > 0 && key("hatched", "legend_unread"),
    el("li", { class: "muted" }, words(state.pinned ? "pinned" : "hovering")));
}

// Where the window reads, with the numbers of the formula.
function indices(scene) {
  const { data, model, at } = scene;
  const { rows, columns } = model.windows;
  const [i, j] = model.windows.place(at);
  const line = data.spatial === 1;
  return el("dl", { class: "indices" },
    !line && index(scene, "index_row", rows, "i", i, "m"),
    index(scene, line ? "index_place" : "index_column", columns, line ? "i" : "j", j, line ? "m" : "n"));
}

function index({ words, model }, name, line, letter, k, tap) {
  const taps = line.taps(k);
  const places = few(taps.map(minus), 6) + (taps.length > 6 ? `, ${minus(taps.at(-1))}` : "");
  const said = [el("dt", {}, words(name))];
  if (line.shared) {
    const share = `/${line.positions}`;
    const from = `⌊${letter}·${line.size}${share}⌋ = ${line.start(k)}`;
    const to = `⌈(${letter} + 1)·${line.size}${share}⌉ − 1 = ${line.end(k) - 1}`;
    return [said, el("dd", {}, words("index_shared", { from, to }), ` (${letter} = ${k})`)];
  }
  const [general, own] = line.spread > 1 ? [letter, k] : [`${letter}·s`, `${k}·${line.stride}`];
  const reads = taps.map((place, m) => [place, line.read(k, m)]);
  const away = reads.filter(([place]) => line.outside(place));
  const notes = [];
  if (line.spread > 1) {
    const found = reads.filter(([, read]) => read >= 0).map(([, read]) => read).join(", ") || "—";
    notes.push(words("index_spread", { spread: line.spread, found }));
  } else if (away.some(([, read]) => read < 0)) {
    const key = model.pooling ? "index_left_out" : "index_zero";
    notes.push(words(key, { places: away.map(([place]) => minus(place)).join(", ") }));
  } else if (away.length)
    notes.push(words("index_reads", { pairs: away.map(([place, read]) => `${minus(place)} → ${read}`).join(", ") }));
  return [said, el("dd", {},
    `${general} − p + ${tap}·d = ${own} − ${term(line.before)} + ${tap}·${line.dilation} = ${places} `,
    el("span", { class: "muted" }, `(${tap} = 0 … ${line.kernel - 1})`),
    notes.map((note) => el("div", { class: "muted" }, note)))];
}
