// Which entries of its input every window reads: the rules of nn/windows.py, one axis at a time.

import { within } from "../core/numbers.js";

const NOWHERE = -1;
const whole = (value, by) => ((value % by) + by) % by;

// What is read at a place outside a line of `size` entries.
const BEYOND = {
  zeros: () => NOWHERE,
  reflect: (place, size) => size - 1 - Math.abs(size - 1 - Math.abs(place)),
  replicate: (place) => place,
  circular: (place, size) => whole(place, size),
};

function continued(place, size, mode) {
  if (place >= 0 && place < size) return place;
  const beyond = BEYOND[mode](place, size);
  return mode === "zeros" ? beyond : within(beyond, 0, size - 1);
}

// A window of `kernel` entries, `dilation` apart, that moves by `stride` and starts `before` places ahead of the line.
// A `spread` above 1 puts the input's entries that far apart, with holes between them.
function slide({ size, positions, kernel, stride, dilation, before, spread, mode }) {
  const place = (i, m) => i * stride - before + m * dilation;
  const held = (at) => Math.floor(at / spread);
  const at = (p) => (whole(p, spread) === 0 ? continued(held(p), size, mode) : NOWHERE);
  return {
    size, positions, kernel, before, stride, dilation, spread, reach: dilation * (kernel - 1) + 1, place, at,
    read: (i, m) => at(place(i, m)),
    outside: (p) => held(p) < 0 || held(p) >= size,
    hole: (p) => whole(p, spread) !== 0,
    taps: (i) => Array.from({ length: kernel }, (_, m) => place(i, m)),
    from: -before,
    to: Math.max((positions - 1) * stride - before + dilation * (kernel - 1), (size - 1) * spread),
  };
}

// A line shared out among `positions` windows, nearly equal.
function share({ size, positions }) {
  const start = (i) => Math.floor((i * size) / positions);
  const end = (i) => Math.ceil(((i + 1) * size) / positions);
  const kernel = Math.max(...Array.from({ length: positions }, (_, i) => end(i) - start(i)));
  const inside = (i, m) => start(i) + m < end(i);
  return {
    size, positions, kernel, before: 0, stride: 0, dilation: 1, spread: 1, reach: kernel, shared: true, start, end,
    place: (i, m) => start(i) + m,
    at: (p) => (p < size ? p : NOWHERE),
    read: (i, m) => (inside(i, m) ? start(i) + m : NOWHERE),
    outside: () => false,
    hole: () => false,
    taps: (i) => Array.from({ length: end(i) - start(i) }, (_, m) => start(i) + m),
    from: 0,
    to: size - 1,
  };
}

// How far ahead of the input the first window starts, how many windows there are, and by how much the input is
// continued on both sides.
function placement({ size, kernel, stride, dilation, padding, around, ceil, extra, least }, transposed) {
  const reach = dilation * (kernel - 1) + 1;
  const up = Math.ceil(size / stride);
  if (transposed) {
    const crop = around === "same" ? Math.floor(Math.max(reach - stride, 0) / 2) : padding;
    const before = reach - 1 - crop;
    const positions = around === "same" ? size * stride : (size - 1) * stride - 2 * crop + reach + extra;
    const last = Math.floor((positions - 1 + crop) / stride);
    const margins = [Math.max(Math.floor(before / stride), 0), Math.max(last - size + 1, 0)];
    return { before, positions, margins };
  }
  if (around === "same") {
    const missing = stride === 1 ? reach - 1 : Math.max((up - 1) * stride + reach - size, 0);
    const before = Math.floor(missing / 2);
    return { before, positions: up, margins: [before, missing - before] };
  }
  if (around === "causal") return { before: reach - 1, positions: up, margins: [reach - 1, 0] };
  const before = around === "valid" ? 0 : padding;
  const room = size + 2 * before - reach;
  let positions = Math.floor(room / stride) + 1;
  if (ceil) {
    positions = Math.ceil(room / stride) + 1;
    if ((positions - 1) * stride >= size + before) positions--;
  }
  return { before, positions: Math.max(positions, least ?? -Infinity), margins: [before, before] };
}

// The line of one axis, or { error, facts }: why there is none.
export function lineOf(options) {
  const { size, kernel, stride, dilation, around, mode, transposed, shared } = options;
  if (shared) return share(options);
  const found = placement(options, transposed);
  const reach = dilation * (kernel - 1) + 1;
  const most = { reflect: size - 1, circular: size }[mode];
  const asked = Math.max(...found.margins);
  if (around === "causal" && (mode === "reflect" || mode === "circular")) return { error: "later", facts: { mode } };
  if (most !== undefined && asked > most) return { error: "beyond", facts: { mode, size, most, asked } };
  if (found.positions <= 0) {
    if (transposed) return { error: "cut", facts: { size, reach } };
    return { error: "room", facts: { reach, kernel, dilation, room: size + found.margins[0] + found.margins[1] } };
  }
  const moves = transposed ? { stride: 1, spread: stride } : { stride, spread: 1 };
  return { ...slide({ ...options, ...found, ...moves, mode }), ...found, padding: found.before };
}

// The windows of two axes at once, those from `first` on, `count` of them along each axis; a sequence is a picture of
// one row. Windows and taps are numbered row by row.
export class Windows {
  constructor(rows, columns, first = [0, 0], count = [rows.positions, columns.positions]) {
    Object.assign(this, { rows, columns, first, count, taps: rows.kernel * columns.kernel });
    this.positions = count[0] * count[1];
  }

  place(at) {
    return [this.first[0] + Math.floor(at / this.count[1]), this.first[1] + (at % this.count[1])];
  }

  // Where a tap of a window stands, in the padding perhaps.
  stands(at, tap) {
    const [i, j] = this.place(at);
    const { rows, columns } = this;
    return [rows.place(i, Math.floor(tap / columns.kernel)), columns.place(j, tap % columns.kernel)];
  }

  // The [row, column] of the input that a tap of a window reads; null where nothing is read.
  read(at, tap) {
    const [i, j] = this.place(at);
    const row = this.rows.read(i, Math.floor(tap / this.columns.kernel));
    const column = this.columns.read(j, tap % this.columns.kernel);
    return row < 0 || column < 0 ? null : [row, column];
  }

  // Every [window, tap] that reads a pixel.
  readers(row, column) {
    const along = (line, coordinate, first, count) => {
      const found = [];
      for (let i = 0; i < count; i++)
        for (let m = 0; m < line.kernel; m++) if (line.read(i + first, m) === coordinate) found.push([i, m]);
      return found;
    };
    const across = along(this.columns, column, this.first[1], this.count[1]);
    return along(this.rows, row, this.first[0], this.count[0]).flatMap(([i, m]) =>
      across.map(([j, n]) => [i * this.count[1] + j, m * this.columns.kernel + n]));
  }
}

// The entries of a line that no window reads.
export function untouched(line) {
  const read = new Set();
  for (let i = 0; i < line.positions; i++) for (let m = 0; m < line.kernel; m++) read.add(line.read(i, m));
  return Array.from({ length: line.size }, (_, k) => k).filter((k) => !read.has(k));
}
