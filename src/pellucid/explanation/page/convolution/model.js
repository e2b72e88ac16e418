// What the settings make of the layer: its windows, input and kernels, and what the formula computes of them.

import { OPERATIONS, run, tensor } from "../core/tensor.js";
import { lineOf, untouched, Windows } from "./geometry.js";

// The settings on which the numbers depend; as long as none of them has changed, those of Python are shown.
export const DECIDING = [
  "kh", "kw", "sh", "sw", "dh", "dw", "ph", "pw", "around", "mode", "groups", "in", "out", "ceil", "counted", "rows",
  "columns", "picture", "kernel", "edits",
];

// Pictures by formula, for an input of any size.
const PICTURES = {
  ring: (row, column, height, width) => {
    const [u, v] = [((column + 0.5) / width) * 2 - 1, ((row + 0.5) / height) * 2 - 1];
    const distance = Math.abs(Math.hypot(u / 0.6, v / 0.8) - 1);
    return distance < 0.3 ? 9 : distance < 0.45 ? 4 : 0;
  },
  edge: (row, column, height, width) => (column < width / 2 ? 0 : 9),
};
const KERNELS = {
  edge: (u, v, height, width) => Math.sign(v - (width - 1) / 2),
  mean: (u, v, height, width, each) => 1 / (height * width * each),
};

// The cells that the reader has changed: "x.0.1.2=5,w.0.0.1.1=2".
export const edited = (text) =>
  new Map(text.split(",").filter(Boolean).map((part) => {
    const [place, value] = part.split("=");
    return [place, Number(value)];
  }));
export const withEdit = (text, place, value) =>
  [...edited(text).set(place, value)].map(([key, number]) => `${key}=${number}`).join(",");

export class Model {
  constructor(data, values, changed) {
    Object.assign(this, { data, values, changed, pooling: data.family === "pooling", known: new Map() });
    this.layer = data.layers ? data.layers[values.width] : data;
    this.edits = edited(values.edits);
    const [rows, columns] = ["h", "w"].map((axis, index) => lineOf(this.axis(axis, index)));
    const wrong = rows.error ? rows : columns.error ? columns : null;
    this.error = wrong && { key: wrong.error, facts: wrong.facts, axis: wrong === rows ? 0 : 1 };
    if (this.error) return;
    const [first, count] = data.whole ? [] : [data.first, data.y.shape.slice(1)];
    this.windows = new Windows(rows, columns, first, count);
    this.unread = [untouched(rows), untouched(columns)];
    this.each = values.in / values.groups;
    this.divisors = this.pooling && data.average ? this.countEntries() : null;
  }

  get size() {
    return this.data.size ? this.data.size[0] : this.data.x.shape.slice(1);
  }

  axis(name, index) {
    const { data, values } = this;
    const flat = data.spatial === 1 && index === 0;
    return {
      size: this.size[index], kernel: flat ? 1 : data.layers ? this.layer.width : values[`k${name}`],
      stride: flat ? 1 : values[`s${name}`], dilation: flat ? 1 : values[`d${name}`],
      padding: flat ? 0 : values[`p${name}`], around: flat ? "numbers" : values.around, mode: values.mode,
      ceil: values.ceil && !flat, transposed: data.transposed, shared: data.shared,
      positions: data.shared ? values[index ? "columns" : "rows"] : undefined,
      extra: Math.min(data.extra?.[index] ?? 0, Math.max(values[`s${name}`], values[`d${name}`]) - 1),
      least: data.layers && !flat ? 1 : undefined,
    };
  }

  // How many entries a mean counts at every position.
  countEntries() {
    const { data, values, windows } = this;
    const along = (line, padding, i) =>
      data.slidingAverage && values.counted
        ? Math.min(line.size + 2 * padding - i * line.stride, line.kernel)
        : line.taps(i).filter((_, m) => line.read(i, m) >= 0).length;
    return Float64Array.from({ length: windows.positions }, (_, at) => {
      if (data.divisor !== null) return data.divisor;
      const [i, j] = windows.place(at);
      return along(windows.rows, values.ph, i) * along(windows.columns, values.pw, j);
    });
  }

  x(channel, row, column) {
    const { data, values, size } = this;
    const own = this.edits.get(`x.${channel}.${row}.${column}`);
    if (own !== undefined) return own;
    if (values.picture !== "given") return PICTURES[values.picture](row, column, size[0], size[1]);
    const [channels, height, width] = data.x.shape;
    const [top, left] = data.origin ?? [0, 0];
    return data.x.data[((channel % channels) * height + row - top) * width + column - left];
  }

  // An entry of a kernel: the layer's own, from the beginning again where there is none.
  weight(out, channel, u, v) {
    const { values, windows, each } = this;
    const own = this.edits.get(`w.${values.width ?? 0}.${out}.${channel}.${u}.${v}`);
    if (own !== undefined) return own;
    if (values.kernel !== "own") return KERNELS[values.kernel](u, v, windows.rows.kernel, windows.columns.kernel, each);
    const [outs, channels, height, width] = this.layer.weight.shape;
    return this.layer.weight.data[
      (((out % outs) * channels + (channel % channels)) * height + (u % height)) * width + (v % width)
    ];
  }

  tapWeight(out, channel, tap) {
    const width = this.windows.columns.kernel;
    return this.weight(out, channel, Math.floor(tap / width), tap % width);
  }

  bias(out) {
    const own = this.layer.bias;
    return own ? own.data[out % own.data.length] : 0;
  }

  // The input channels that an output channel reads.
  reads(out) {
    if (this.pooling) return [out];
    const start = Math.floor(out / (this.values.out / this.values.groups)) * this.each;
    return Array.from({ length: this.each }, (_, k) => start + k);
  }

  entry(channel, at, tap) {
    const place = this.windows.read(at, tap);
    if (place === null) return this.pooling && !this.data.average ? -Infinity : 0;
    return this.x(channel, place[0], place[1]);
  }

  // What every window of an output channel reads: (positions, channels, taps).
  entries(out) {
    const { windows } = this;
    const channels = this.reads(out);
    const found = new Float64Array(windows.positions * channels.length * windows.taps);
    for (let at = 0, index = 0; at < windows.positions; at++)
      for (const channel of channels)
        for (let tap = 0; tap < windows.taps; tap++) found[index++] = this.entry(channel, at, tap);
    return found;
  }

  kernels(out) {
    const { each, windows } = this;
    return Float64Array.from({ length: each * windows.taps }, (_, index) =>
      this.tapWeight(out, Math.floor(index / windows.taps), index % windows.taps));
  }

  // The inputs of the formula's program, for one output channel.
  inputs(out) {
    const { windows, each } = this;
    const { count, taps, rows, columns } = windows;
    const x = this.entries(out);
    if (this.pooling)
      return {
        entries: tensor([windows.positions, taps], x), divisor: tensor([windows.positions], this.divisors ?? []),
      };
    const [weight, bias] = [this.kernels(out), Float64Array.of(this.bias(out))];
    if (this.data.layers)
      return {
        x: tensor([1, windows.positions, each, taps], x), weights: tensor([1, 1, 1, each, taps], weight),
        biases: tensor([1, 1, 1], bias),
      };
    return {
      x: tensor([1, ...count, each, rows.kernel, columns.kernel], x),
      weight: tensor([1, 1, 1, each, rows.kernel, columns.kernel], weight), bias: tensor([1, 1, 1], bias),
    };
  }

  // Something that follows from these settings, made once.
  once(key, make) {
    if (!this.known.has(key)) this.known.set(key, make());
    return this.known.get(key);
  }

  // The products under every window, (positions, channels, taps), and the outputs, of one output channel; `python`
  // tells which of them Python has computed.
  of(out) {
    return this.once(out, () => this.computed(out));
  }

  computed(out) {
    const { data, layer, windows, each } = this;
    const python = !this.changed;
    const size = windows.positions * each * windows.taps;
    const products = python && layer.products ? layer.products.data.slice(out * size, (out + 1) * size) : null;
    const y = python ? layer.y.data.slice(out * windows.positions, (out + 1) * windows.positions) : null;
    if (y && (products || this.pooling)) return { products, y, python: true };
    const made = run(data.program, this.inputs(out));
    const index = data.program.products ?? -1;
    return { products: index < 0 ? null : made.values[index].data, y: y ?? made.results[0].data, python: false };
  }

  // The products of one window: rows of taps, one for each channel that is read.
  products(out, at) {
    const { windows, each } = this;
    const { products } = this.of(out);
    return Array.from({ length: each }, (_, k) => {
      const start = (at * each + k) * windows.taps;
      return Array.from(products.subarray(start, start + windows.taps));
    });
  }

  // The gradient of the input: by the formula's gradient under every window, summed where windows read the same.
  backward(gradients) {
    const { data, windows, values } = this;
    const [height, width] = this.size;
    const found = new Float64Array(values.in * height * width);
    for (let out = 0; out < values.out; out++) {
      const channels = this.reads(out);
      const inside = this.underWindows(out, gradients[out]);
      for (let at = 0; at < windows.positions; at++)
        channels.forEach((channel, k) => {
          for (let tap = 0; tap < windows.taps; tap++) {
            const place = windows.read(at, tap);
            if (place) found[(channel * height + place[0]) * width + place[1]] += inside(at, k, tap);
          }
        });
    }
    return found;
  }

  // The gradient of what a window reads, as a function of window, channel and tap.
  underWindows(out, gradient) {
    const { data, windows, each } = this;
    const inputs = this.inputs(out);
    if (this.pooling && !data.average) {
      const [, best] = OPERATIONS.max(inputs.entries, -1);
      return (at, channel, tap) => (best.data[at] === tap ? gradient[at] : 0);
    }
    const shape = this.pooling ? [windows.positions] : [1, ...windows.count];
    const [found] = run(data.gradient, { ...inputs, grad_0: tensor(shape, gradient) }).results;
    const wide = found.data.length > windows.positions;
    return (at, channel, tap) => found.data[wide ? (at * each + channel) * windows.taps + tap : at];
  }
}
