// What a recurrent layer computed at every step: Python's numbers, or those of the same formula run here after a change.

import { range } from "../core/dom.js";
import { run, same, tensor } from "../core/tensor.js";

const low = (number) => String(number).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);

// Write a label of step t (from 1) with its times as numbers: xₜ is x₂.
export const timed = (label, t) => label.replaceAll("ₜ₋₁", low(t - 1)).replaceAll("ₜ", low(t));
export const at = (label, t) => label + low(t);

const length = (numbers) => Math.sqrt(numbers.reduce((sum, n) => sum + n * n, 0));
const reader = (data, offset, width, columns) => ({
  width,
  get: (j) => {
    const place = columns ? columns.indexOf(j) : j;
    return place < 0 || place >= width ? null : data[offset + place];
  },
});

export class Model {
  constructor(data) {
    this.data = data;
    this.cache = new Map();
    this.experiments = data.programs !== null;
  }

  // The run for some settings: as Python had it, unless something of the experiments is changed or `again` asks for it.
  of({ swap_a, swap_b, zero, factor, scaled }, again = false) {
    const changed = this.experiments && (swap_a !== swap_b || zero > 0 || factor !== 1);
    if (!changed && !again) return (this.python ??= new Given(this.data));
    const change = { swap_a, swap_b, zero, factor, scaled };
    const key = JSON.stringify(change);
    if (!this.cache.has(key)) {
      if (this.cache.size > 3) this.cache.delete(this.cache.keys().next().value);
      this.cache.set(key, new Recomputed(this.data, change));
    }
    return this.cache.get(key);
  }

  unchanged() {
    return this.of({ swap_a: 0, swap_b: 0, zero: 0, factor: 1, scaled: this.data.scaled }, true);
  }
}

class Run {
  constructor(data) {
    this.data = data;
    this.order = range(data.steps);
  }

  weight(name) {
    return this.data.parameters.find((parameter) => parameter.name === name);
  }

  // A row that stands at a source, at the step with this place among the carried ones.
  row([kind, which], place) {
    const { data } = this;
    if (kind === "value") return this.value(which, place);
    if (kind === "state") return this.state(which, data.kept[place]);
    if (kind === "input") return this.input(which, place);
    if (kind === "number") return { width: 1, get: () => which };
    const { shape, columns, values } = this.weight(which);
    const width = shape.at(-1) ?? 1;
    return reader(this.scaledBy(which, values).data, 0, width, columns);
  }

  // An entry of a matrix that stands at a source.
  entry([kind, which], r, c) {
    if (kind === "parameter") {
      const { columns, values } = this.weight(which);
      return pick(this.scaledBy(which, values), columns, r, c);
    }
    return kind === "value" ? this.matrix(which, r, c) : null;
  }

  scaledBy(name, values) {
    return values;
  }

  token(step) {
    return this.data.tokens?.[this.order[step]] ?? null;
  }

  id(step) {
    return this.data.ids?.[this.order[step]] ?? null;
  }
}

// Of a row, or of a matrix of the sample row by row.
const entries = (shape) => shape.reduce((total, size) => total * size, 1);

function pick(values, columns, r, c) {
  const width = values.shape.at(-1);
  const place = columns ? columns.indexOf(c) : c;
  return place < 0 ? null : values.data[(values.shape.length > 1 ? r * width : 0) + place];
}

class Given extends Run {
  recomputed = false;

  value(which, place) {
    const { rows, columns, shape } = this.data.sites[which];
    if (!rows) return { width: shape.at(-1) ?? 1, get: () => null };
    const wide = rows.shape[1];
    return reader(rows.data, (rows.shape[0] === 1 ? 0 : place) * wide, entries(shape), columns);
  }

  matrix(which, r, c) {
    const { matrix, columns } = this.data.sites[which];
    return matrix ? pick(matrix, columns, r, c) : null;
  }

  input(which, place) {
    const { rows, size } = this.data.inputs[which];
    return reader(rows.data, place * size, size, null);
  }

  // A state entry at a moment, 0 … steps.
  state(which, moment) {
    const { rows, size } = this.data.states[which];
    return reader(rows.data, this.data.times.indexOf(moment) * size, size, null);
  }

  get last() {
    return this.data.last.data;
  }

  get changes() {
    return this.data.changes.data;
  }

  // The gradients of a loss: the sum of the last output, or one entry of it; null where Python has not sent it.
  backward(loss) {
    const { backward } = this.data;
    const row = loss === "sum" ? 0 : backward.units.indexOf(loss) + 1;
    if (loss !== "sum" && !row) return null;
    const losses = backward.units.length + 1;
    return {
      recomputed: false,
      grad: (which, moment, j) => {
        const { rows, columns } = backward.states[which];
        const place = columns ? columns.indexOf(j) : j;
        return place < 0 ? null : rows.data[(backward.moments.indexOf(moment) * losses + row) * rows.shape[2] + place];
      },
      length: (which, moment) => backward.lengths[which].data[moment * losses + row],
      norms: backward.norms?.map((norms) => norms.data) ?? null,
      part: (name, step) => {
        if (loss !== "sum") return null;
        const { corners } = backward.parts.find((part) => part.name === name);
        const wide = corners.data.length / this.data.steps;
        return tensor(corners.shape.slice(1), corners.data.slice(step * wide, (step + 1) * wide));
      },
    };
  }
}

class Recomputed extends Run {
  recomputed = true;

  constructor(data, change) {
    super(data);
    this.change = change;
    const [a, b] = [change.swap_a, change.swap_b];
    if (a && b) [this.order[a - 1], this.order[b - 1]] = [this.order[b - 1], this.order[a - 1]];
    this.weights = Object.fromEntries(data.parameters.map(({ name, values }) => [name, this.scaledBy(name, values)]));
    this.moments = [data.states.map(({ rows, size }) => tensor([1, size], rows.data.slice(0, size)))];
    this.values = [];
    this.losses = new Map();
    for (const step of this.order.keys()) {
      const { values, results } = run(data.programs.forward, this.inputsOf(step));
      this.values.push(values);
      this.moments.push(results.slice(results.length - data.states.length));
      this.last = results[0].data;
    }
  }

  scaledBy(name, values) {
    const { factor, scaled } = this.change;
    if (name !== scaled || factor === 1) return values;
    return (this.scaledValues ??= tensor(values.shape, values.data.map((value) => value * factor)));
  }

  // The state that a step starts from; zeros where the experiment says so.
  before(step) {
    const found = this.moments[step];
    return this.change.zero === step + 1 ? found.map(({ shape }) => tensor(shape)) : found;
  }

  inputsOf(step, rows = 1) {
    const { inputs, states } = this.data;
    const repeated = (row) => (rows === 1 ? row : tensor([rows, row.shape[1]], Float64Array.from(
      { length: rows * row.shape[1] }, (_, index) => row.data[index % row.shape[1]])));
    const x = inputs.map(({ name, size, rows: all }) =>
      [name, repeated(tensor([1, size], all.data.slice(this.order[step] * size, (this.order[step] + 1) * size)))]);
    const h = this.before(step).map((state, which) => [states[which].name, repeated(state)]);
    return { ...Object.fromEntries([...x, ...h]), ...this.weights };
  }

  value(which, place) {
    const { shape, data } = this.values[place][which];
    return reader(data, 0, entries(shape), null);
  }

  matrix(which, r, c) {
    return pick(this.values[0][which], null, r, c);
  }

  input(which, place) {
    const { size, rows } = this.data.inputs[which];
    return reader(rows.data, this.order[place] * size, size, null);
  }

  state(which, moment) {
    const found = moment < this.data.steps ? this.before(moment)[which] : this.moments[moment][which];
    return reader(found.data, 0, found.data.length, null);
  }

  get changes() {
    return range(this.data.steps).map((step) => {
      const before = this.before(step)[0].data;
      return length(this.moments[step + 1][0].data.map((value, j) => value - before[j]));
    });
  }

  backward(loss) {
    if (!this.losses.has(loss)) this.losses.set(loss, this.gradients(loss));
    return this.losses.get(loss);
  }

  gradients(loss) {
    const { data } = this;
    const own = data.output.own;
    const seed = tensor([1, data.output.size]);
    if (loss === "sum") seed.data.fill(1);
    else seed.data[loss] = 1;
    const zeros = data.states.map(({ size }) => tensor([1, size]));
    let after = own ? zeros : [seed, ...zeros.slice(1)];
    const moments = [after];
    const parts = [];
    const count = data.inputs.length + data.states.length;
    for (let step = data.steps - 1; step >= 0; step--) {
      const given = own ? [step === data.steps - 1 ? seed : tensor(seed.shape), ...after] : after;
      const grads = Object.fromEntries(given.map((grad, index) => [`grad_${index}`, grad]));
      const { results } = run(data.programs.gradient, { ...this.inputsOf(step), ...grads });
      after = results.slice(data.inputs.length, count);
      if (this.change.zero === step + 1) after = zeros;
      moments.unshift(after);
      parts.unshift(results.slice(count));
    }
    return {
      recomputed: true,
      grad: (which, moment, j) => moments[moment][which].data[j],
      length: (which, moment) => length(moments[moment][which].data),
      norms: this.norms(),
      part: (name, step) => corner(parts[step][data.parameters.findIndex((parameter) => parameter.name === name)]),
    };
  }

  // The Frobenius norms of the derivatives of the last state by the state at every moment.
  norms() {
    if (this.kept !== undefined) return this.kept;
    const { data } = this;
    const { jacobian } = data.programs;
    if (!jacobian) return (this.kept = null);
    const rows = data.states[0].size;
    let now = data.states.map(({ size }) => tensor([rows, size]));
    for (let j = 0; j < rows; j++) now[0].data[j * rows + j] = 1;
    const found = data.states.map(() => []);
    const keep = () => now.forEach((part, which) => found[which].unshift(length(part.data)));
    keep();
    for (let step = data.steps - 1; step >= 0; step--) {
      const given = data.output.own ? [tensor([rows, data.output.size]), ...now] : now;
      const grads = Object.fromEntries(given.map((grad, index) => [`grad_${index}`, grad]));
      now = run(jacobian, { ...this.inputsOf(step, rows), ...grads }).results;
      if (this.change.zero === step + 1) now = now.map(({ shape }) => tensor(shape));
      keep();
    }
    return (this.kept = found);
  }
}

function corner(value, most = 8) {
  const [rows, columns] = value.shape.length > 1 ? value.shape : [1, value.shape[0] ?? 1];
  const [high, wide] = [Math.min(rows, most), Math.min(columns, most)];
  const cut = tensor([high, wide]);
  for (let r = 0; r < high; r++) for (let c = 0; c < wide; c++) cut.data[r * wide + c] = value.data[r * columns + c];
  return value.shape.length > 1 ? cut : same(cut, [wide]);
}
