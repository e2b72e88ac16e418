// The numbers under the present settings: Python's as long as nothing is changed, else those of the formula's program.

import { later, uniform } from "../core/philox.js";
import { build, filled, mapped, run, scalar, tensor } from "../core/tensor.js";

// What a reader has typed over numbers: "3:2.5,4:-1", the place of an entry and its value.
const edits = (text) =>
  new Map(text.split(",").map((pair) => pair.split(":").map(Number))
    .filter(([place, value]) => Number.isInteger(place) && Number.isFinite(value)));
export const edited = (text, place, value) =>
  [...edits(text).set(place, value)].map((pair) => pair.join(":")).join(",");
const over = (numbers, text) => {
  const changes = edits(text);
  return tensor(numbers.shape, numbers.data.map((value, place) => changes.get(place) ?? value));
};

// Draws that are typed in belong to one call: "2|0:0.9".
export const drawsTyped = ({ call, draws }) => (draws.startsWith(`${call}|`) ? draws.slice(`${call}|`.length) : "");

export class State {
  constructor({ data, settings }) {
    const { values } = settings;
    Object.assign(this, { data, settings, values, training: values.mode === "train", p: values.mode === "train" ? values.p : 0 });
    this.block = data.kind === "block";
    this.entry = this.block ? values.plane * data.x.shape[1] * data.x.shape[2] + values.entry : values.entry;
    this.touched = Boolean(data.programs) && settings.changed(["p", "mode", "call", "x", "draws"]);
    this.x = over(data.x, values.x);
    this.grad = over(data.gradient, values.grad);
    this.draws = this.drawn(values.call);
  }

  // The draws of a call, as the layer draws them; call 0 is the one that was explained.
  drawn(call) {
    const { data, values } = this;
    const own = call === 0 ? data.draws : build(data.draws.shape, (_, index) => this.coin(this.coinOf(index), call));
    return call === values.call ? over(own, drawsTyped(values)) : own;
  }

  coinOf(index) {
    return this.block ? index : this.data.coins[Math.floor(index / this.data.columns)][index % this.data.columns];
  }

  coin(coin, call) {
    return uniform(coin, this.data.seed, later(this.data.stream, call));
  }

  // The chance that decides a coin: p itself, or DropBlock's γ.
  chance(p = this.p) {
    return this.block ? gamma(this.data.share_of_p, p) : p;
  }

  // What the formula's lines compute, and the values that they have names for.
  result() {
    const { data } = this;
    if (!this.touched) return { y: data.y, mask: data.named?.mask ?? data.mask ?? filled(data.x.shape, 0), ...numbersOf(data) };
    const { results, named } = this.run(this.x, this.training ? this.draws : filled(this.draws.shape, 0), this.p);
    const mask = named("mask") ?? filled(this.x.shape, 0);
    return {
      y: shaped(results[0], this.x.shape), mask: mapped(Number)(shaped(mask, this.x.shape)),
      a: named("a")?.data[0], b: named("b")?.data[0], stays: named("kept")?.data[0],
    };
  }

  gradient() {
    if (!this.touched && this.values.grad === "") return this.data.arrived;
    const { backward } = this.programFor(this.p);
    const draws = this.training ? this.draws : filled(this.draws.shape, 0);
    const inputs = { ...this.inputs(this.x, draws, this.p), grad_0: like(this.grad, this.data) };
    return shaped(run(backward, inputs).results[0], this.x.shape);
  }

  // Run the layer's formula on some entries and draws.
  run(x, draws, p) {
    const { forward, names } = this.programFor(p);
    const { values, results } = run(forward, this.inputs(x, draws, p));
    return { results, named: (name) => (name in names ? values[names[name]] : undefined) };
  }

  programFor(p) {
    const { programs } = this.data;
    return this.block ? programs : p === 1 ? programs.all : programs.some;
  }

  inputs(x, draws, p) {
    if (!this.block) return { x, draws, p: scalar(p) };
    return { x: like(x, this.data), draws: tensor(this.data.drawn, draws.data), gamma: scalar(this.chance(p)) };
  }

  // An entry under many calls.
  many(entry) {
    const { data } = this;
    if (this.block)
      return Float64Array.from({ length: data.crowd.masks }, (_, call) => {
        const draws = build(data.draws.shape, (_, index) => this.coin(index, call));
        return this.run(this.x, draws, this.values.p).results[0].data[entry];
      });
    const coin = this.coinOf(entry);
    const draws = tensor([data.masks], Float64Array.from({ length: data.masks }, (_, call) => this.coin(coin, call)));
    return shaped(this.run(this.one(entry), draws, this.values.p).results[0], draws.shape).data;
  }

  // The mean and the variance of an entry: those of its two outcomes, kept and dropped, by their probabilities.
  expected(entry) {
    const { p } = this.values;
    const [dropped, kept] = this.run(this.one(entry), tensor([2], Float64Array.of(-1, 2)), p).results[0].data;
    if (p === 1) return { mean: dropped, variance: 0, dropped };
    return { mean: (1 - p) * kept + p * dropped, variance: p * (1 - p) * (kept - dropped) ** 2, kept, dropped };
  }

  one(entry) {
    return tensor([1], Float64Array.of(this.x.data[entry]));
  }

  // The place of an entry in the layer's input: x[0, 3].
  name(entry, symbol = "x") {
    const { data } = this;
    const flat = this.block ? entry : Math.floor(entry / data.columns) * data.width + (entry % data.columns);
    const place = [];
    let rest = flat;
    for (const extent of [...this.shapeForNames()].reverse()) {
      place.unshift(rest % extent);
      rest = Math.floor(rest / extent);
    }
    return place.length ? `${symbol}[${place.join(", ")}]` : symbol;
  }

  shapeForNames() {
    const { data } = this;
    if (!this.block || data.programs) return data.shape;
    return [...data.shape.slice(0, -2).map(() => 1), ...data.x.shape.slice(1)];  // the corner of a large input
  }
}

export const gamma = (share, p) => (p === 1 ? 1 : share * p);

const numbersOf = ({ named, stays }) => ({ a: named?.a, b: named?.b, stays });
const like = (x, { shape, kind }) => (kind === "block" ? tensor(shape, x.data) : x);

// A result of the formula in a shape; where everything is dropped it may have fewer entries, all the same.
export function shaped(x, shape) {
  const result = tensor(shape);
  return tensor(shape, result.data.map((_, index) => x.data[index % x.data.length]));
}

export const meanOf = (numbers) => numbers.reduce((a, b) => a + b, 0) / numbers.length;
export function varianceOf(numbers) {
  const mean = meanOf(numbers);
  return meanOf(numbers.map((n) => (n - mean) ** 2));
}
