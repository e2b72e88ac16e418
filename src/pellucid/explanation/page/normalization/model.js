// The numbers of the exhibit: Python's, or those of the formula's program after a change of the reader's.

import { range } from "../core/dom.js";
import { distance, size } from "../core/numbers.js";
import { run, scalar, tensor } from "../core/tensor.js";

// The entry of a tensor that broadcasts to the input.
export function entry(x, place) {
  let index = 0;
  const skip = place.length - x.shape.length;
  for (let axis = 0; axis < x.shape.length; axis++)
    index = index * x.shape[axis] + (x.shape[axis] === 1 ? 0 : place[axis + skip]);
  return x.data[index];
}

function placesOf(shape) {
  return shape.reduce(
    (found, extent) => found.flatMap((place) => range(extent).map((index) => [...place, index])),
    [[]],
  );
}

const flat = (shape, place) => place.reduce((index, p, axis) => index * shape[axis] + p, 0);

// What the reader wrote over numbers, as the hash keeps it: "x.3:1.5,gamma.1.0:2".
export function parsed(text) {
  const pairs = text.split(",").map((part) => part.split(":"));
  return new Map(
    pairs
      .filter(([key, number]) => key && number?.trim() && Number.isFinite(Number(number)))
      .map(([key, number]) => [key, Number(number)]),
  );
}

export const joined = (edits) => [...edits].map(([key, number]) => `${key}:${number}`).join(",");

export class Model {
  constructor(data, settings) {
    Object.assign(this, { data, settings });
    this.places = placesOf(data.shown);
    this.canChange = data.programs !== null;
  }

  get values() {
    return this.settings.values;
  }

  // -- which member ----------------------------------------------------------------------------------------------

  get member() {
    return this.data.members[this.values.kind];
  }

  // Whether the averages are those that training has kept.
  get remembers() {
    return this.values.mode === "eval" && `${this.values.kind}/eval` in this.data.values;
  }

  key(kind = this.values.kind, groups = this.values.groups) {
    return kind === "group" ? `group/${groups}` : kind;
  }

  get place() {
    return this.places[this.values.cell];
  }

  pick(place) {
    this.settings.set({ cell: flat(this.data.shown, place) });
  }

  // -- what is read ----------------------------------------------------------------------------------------------

  get edits() {
    return parsed(this.values.edits);
  }

  edit(key, number) {
    this.settings.set({ edits: joined(this.edits.set(key, number)) });
  }

  written(key, initial) {
    return this.edits.get(key) ?? initial;
  }

  get x() {
    const edits = this.edits;
    return tensor(
      this.data.shown,
      this.data.x.data.map((number, index) => edits.get(`x.${index}`) ?? number),
    );
  }

  affine(name, member = this.member) {
    const [edits, given] = [this.edits, member[name]];
    return tensor(
      given.shape,
      given.data.map((number, index) => edits.get(`${name}.${member.affine.join("-")}.${index}`) ?? number),
    );
  }

  affineKey(name, place) {
    const { shape } = this.member[name];
    return `${name}.${this.member.affine.join("-")}.${flat(
      shape,
      place.map((p, axis) => (shape[axis] === 1 ? 0 : p)),
    )}`;
  }

  number(name) {
    return this.written(`number.${name}`, this.data.numbers[name]);
  }

  get hasPadding() {
    return this.data.lengths
      ? this.lengths.some((length) => length < this.data.shape[this.time])
      : this.data.real !== null;
  }

  get time() {
    return this.data.letters.length === 3 ? (this.data.channel === 2 ? 1 : 2) : null;
  }

  get lengths() {
    return this.data.lengths.map((_, index) => this.values[`length${index}`]);
  }

  real(place) {
    if (!this.values.padding) return true;
    if (this.data.lengths) return place[this.time] < this.values[`length${place[0]}`];
    return this.data.real === null || entry(this.data.real, place) !== 0;
  }

  get marked() {
    const { shown, channel } = this.data;
    const shape = shown.map((extent, axis) => (axis === channel ? 1 : extent));
    return tensor(
      shape,
      Float64Array.from(placesOf(shape), (place) => Number(this.real(place))),
    );
  }

  get upstream() {
    return tensor(
      this.data.shown,
      this.data.upstream.data.map((g, index) => (this.real(this.places[index]) ? g : 0)),
    );
  }

  // What a member's program reads.
  inputs(kind = this.values.kind, mode = "train") {
    const member = this.data.members[kind];
    const inputs = { x: this.x, eps: scalar(this.values.eps), real: this.marked };
    if (kind === "lrn")
      return {
        ...inputs,
        ...Object.fromEntries(["alpha", "beta", "k"].map((name) => [name, scalar(this.number(name))])),
      };
    Object.assign(inputs, { gamma: this.affine("gamma", member), beta: this.affine("beta", member) });
    if (mode === "eval") {
      const kept = this.kept();
      const shape = this.data.shown.map((extent, axis) => (axis === this.data.channel ? extent : 1));
      Object.assign(inputs, {
        mean: tensor(shape, kept.means[this.values.seen]),
        variance: tensor(shape, kept.vars[this.values.seen]),
      });
    }
    return inputs;
  }

  // -- numbers ---------------------------------------------------------------------------------------------------

  // Whether the input, or what the formula reads beside it, is other than Python had it.
  get changed() {
    const lengths = this.data.lengths ? this.data.lengths.map((_, index) => `length${index}`) : [];
    return this.settings.changed(["edits", "eps", "padding", ...lengths]);
  }

  get unbiased() {
    return (
      this.values.divisor === "unbiased" &&
      !this.remembers &&
      `${this.values.kind}/unbiased` in (this.data.programs ?? {})
    );
  }

  get recomputed() {
    return this.canChange && (this.changed || this.unbiased || this.settings.changed(["momentum"]));
  }

  // The numbers of a member: mean, var, x_hat, y and gradients, tensors that broadcast to the input.
  numbersOf(kind = this.values.kind, groups = this.values.groups, mode = this.remembers ? "eval" : "train") {
    const key = this.key(kind, groups) + (mode === "eval" ? "/eval" : "");
    const seen = mode === "eval" ? this.values.seen : 0;
    const again = this.changed || (seen > 0 && this.settings.changed(["momentum"]));
    if (!this.canChange || !again) return this.data.values[seen > 0 ? `${key}/${seen}` : key];
    const inputs = this.inputs(kind, mode);
    return { ...this.forward(key, inputs), ...this.backward(key, inputs) };
  }

  forward(key, inputs) {
    const { forward, ...sites } = this.data.programs[key];
    const { values, results } = run(forward, inputs);
    const found = Object.fromEntries(
      ["mean", "var", "x_hat"].filter((name) => name in sites).map((name) => [name, values[sites[name]]]),
    );
    return { ...found, y: results[0] };
  }

  backward(key, inputs) {
    const program = this.data.programs[key].gradient;
    if (program === null) return {};
    const { results } = run(program, { ...inputs, grad_0: this.upstream });
    return Object.fromEntries(program.inputs.map((name, index) => [`d_${name}`, results[index]]));
  }

  // The numbers that are shown.
  get numbers() {
    const stamp = JSON.stringify(this.values);
    if (this.stamp !== stamp) {
      this.found = this.unbiased ? this.forward(`${this.values.kind}/unbiased`, this.inputs()) : this.numbersOf();
      this.stamp = stamp;
    }
    return this.found;
  }

  // -- who shares an average -------------------------------------------------------------------------------------

  channelsOfGroup(kind = this.values.kind, groups = this.values.groups) {
    return kind === "group" ? this.data.shape[this.data.channel] / groups : 1;
  }

  // Where an average stands among all: its coordinates by letter, the group's number for a group's.
  coordinates(place, kind = this.values.kind) {
    const { letters, channel } = this.data;
    if (kind === "lrn") return letters.map((letter, axis) => [letter, place[axis]]);
    const { axes } = this.data.members[kind];
    const found = letters.map((letter, axis) => [letter, place[axis]]).filter((_, axis) => !axes.includes(axis));
    return kind === "group" ? [...found, ["G", Math.floor(place[channel] / this.channelsOfGroup())]] : found;
  }

  setOf(place, kind = this.values.kind) {
    const { letters, shape } = this.data;
    const extent = (letter) => (letter === "G" ? this.values.groups : shape[letters.indexOf(letter)]);
    return this.coordinates(place, kind).reduce((index, [letter, at]) => index * extent(letter) + at, 0);
  }

  // The places in the page of the numbers that the average of a place takes.
  shares(place, kind = this.values.kind) {
    if (kind === "lrn") {
      const { channel } = this.data;
      const first = place[channel] - Math.floor(this.member.window / 2);
      return range(this.member.window)
        .map((step) => place.with(channel, first + step))
        .filter((one) => one[channel] >= 0 && one[channel] < this.data.shown[channel]);
    }
    const own = this.setOf(place, kind);
    return this.places.filter((one) => this.setOf(one, kind) === own && this.real(one));
  }

  // How many numbers it takes: sizes of the averaged axes, and how many of their product are real.
  count(place, kind = this.values.kind) {
    const { shape, letters, channel, members } = this.data;
    if (kind === "lrn")
      return { factors: [["C", this.member.window]], total: this.member.window, real: this.member.window };
    const factors = members[kind].axes.map((axis) => [
      letters[axis],
      kind === "group" && axis === channel ? this.channelsOfGroup() : shape[axis],
    ]);
    const total = size(factors.map(([, extent]) => extent));
    if (this.data.whole) return { factors, total, real: this.shares(place, kind).length };
    const counts = this.data.counts?.[this.key(kind)];
    return { factors, total, real: counts ? Math.round(entry(counts, place)) : total };
  }

  // -- what training keeps ---------------------------------------------------------------------------------------

  // Running statistics before and after each batch, rows of channels; and the batches' own.
  kept() {
    const given = this.data.running;
    const [batches, channels] = given.mean.shape;
    const rows = (x, many) => range(many).map((row) => x.data.slice(row * channels, (row + 1) * channels));
    const found = Object.fromEntries(["mean", "var"].map((name) => [name, rows(given[name], batches)]));
    for (const name of ["means", "vars"]) found[name] = rows(given[name], batches + 1);
    if (!this.canChange || !(this.changed || this.settings.changed(["momentum"]))) return found;
    if (this.changed) [found.mean[0], found.var[0]] = this.ofFirstBatch();
    for (let batch = 0; batch < batches; batch++) {
      const factor = this.factor(batch);
      const towards = (before, seen) =>
        before.map((value, c) => (Number.isNaN(seen[c]) ? value : (1 - factor) * value + factor * seen[c]));
      found.means[batch + 1] = towards(found.means[batch], found.mean[batch]);
      found.vars[batch + 1] = towards(found.vars[batch], found.var[batch]);
    }
    return found;
  }

  // How far the running statistics move towards those of a batch.
  factor(batch) {
    return this.data.running.momentum === null ? 1 / (this.data.running.tracked + batch + 1) : this.values.momentum;
  }

  // Mean and unbiased variance of the input's channels; of Instance the mean over its samples.
  ofFirstBatch() {
    const { kind } = this.data.running;
    const { mean, var: variance } = this.forward(kind, this.inputs(kind));
    const { channel, shape } = this.data;
    const samples = kind === "instance" ? shape[0] : 1;
    const average = (pick) =>
      Float64Array.from(
        range(shape[channel]),
        (c) =>
          range(samples).reduce(
            (sum, n) => sum + pick(shape.map((_, axis) => (axis === channel ? c : axis === 0 ? n : 0))),
            0,
          ) / samples,
      );
    const counted = (place) => this.count(place, kind).real;
    return [
      average((place) => entry(mean, place)),
      average((place) => (entry(variance, place) * counted(place)) / (counted(place) - 1)),
    ];
  }

  // -- one sample alone ------------------------------------------------------------------------------------------

  // x̂ of a sample that is a batch of its own.
  alone(kind, sample) {
    const { shown } = this.data;
    const width = size(shown.slice(1));
    const cut = (x) => tensor([1, ...x.shape.slice(1)], x.data.slice(sample * width, (sample + 1) * width));
    if (!this.changed) return cut(this.data.alone[kind]);
    const inputs = this.inputs(kind);
    const marked = this.marked;
    const own = size(marked.shape.slice(1));
    const real = tensor([1, ...marked.shape.slice(1)], marked.data.slice(sample * own, (sample + 1) * own));
    return this.forward(`${kind}/alone`, { ...inputs, x: cut(this.x), real }).x_hat;
  }
}

// The largest difference of two tensors that broadcast to places, over these places.
export const gap = (a, b, places) =>
  places.reduce((most, place) => Math.max(most, distance(entry(a, place), entry(b, place))), 0);
