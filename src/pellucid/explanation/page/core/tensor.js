// Tensors {shape, data} in row-major order and the operations of a program (see program.py): one line for each.

import { size, within } from "./numbers.js";

export const tensor = (shape, data) => ({ shape, data: data ?? new Float64Array(size(shape)) });
export const scalar = (number) => tensor([], Float64Array.of(number));
export const filled = (shape, number) => tensor(shape, new Float64Array(size(shape)).fill(number));

export function strides(shape) {
  const found = new Array(shape.length);
  let step = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    found[axis] = step;
    step *= shape[axis];
  }
  return found;
}

// The tensor of a shape whose entry at a place is pick(place).
export function build(shape, pick) {
  const result = tensor(shape);
  const place = new Array(shape.length).fill(0);
  for (let index = 0; index < result.data.length; index++) {
    result.data[index] = pick(place, index);
    for (let axis = shape.length - 1; axis >= 0 && ++place[axis] === shape[axis]; axis--) place[axis] = 0;
  }
  return result;
}

export function at(x, ...place) {
  let index = 0;
  for (let axis = 0; axis < x.shape.length; axis++) index = index * x.shape[axis] + place[axis];
  return x.data[index];
}

export const same = (x, shape) => tensor(shape, x.data);
export const mapped = (f) => (x) => tensor(x.shape, Float64Array.from(x.data, f));

const lift = (x) => (typeof x === "number" || typeof x === "boolean" ? scalar(Number(x)) : x);
const axisOf = (x, axis) => (axis < 0 ? axis + x.shape.length : axis);

function broadcast(a, b) {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, axis) => {
    const left = a[axis - rank + a.length] ?? 1;
    const right = b[axis - rank + b.length] ?? 1;
    return left === 1 ? right : left;
  });
}

function reader(x, rank) {
  const steps = strides(x.shape).map((step, axis) => (x.shape[axis] === 1 ? 0 : step));
  const skip = rank - x.shape.length;
  return (place) => {
    let index = 0;
    for (let axis = 0; axis < steps.length; axis++) index += place[axis + skip] * steps[axis];
    return x.data[index];
  };
}

const pairwise = (f) => (left, right) => {
  const [a, b] = [lift(left), lift(right)];
  if (a.shape.length === b.shape.length && a.shape.every((extent, axis) => extent === b.shape[axis]))
    return tensor(a.shape, a.data.map((value, index) => f(value, b.data[index])));
  const shape = broadcast(a.shape, b.shape);
  const [first, second] = [reader(a, shape.length), reader(b, shape.length)];
  return build(shape, (place) => f(first(place), second(place)));
};

const compared = (f) => pairwise((a, b) => Number(f(a, b)));
const scaled = (f) => (a, b, { alpha = 1 } = {}) => f(a, alpha === 1 ? b : OPERATIONS.mul(b, alpha));

function product(a, b) {
  const [rows, inner, columns] = [a.shape[0], a.shape[1], b.shape[1]];
  const result = tensor([rows, columns]);
  for (let r = 0; r < rows; r++)
    for (let k = 0; k < inner; k++) {
      const factor = a.data[r * inner + k];
      for (let c = 0; c < columns; c++) result.data[r * columns + c] += factor * b.data[k * columns + c];
    }
  return result;
}

function transposed(x) {
  const [rows, columns] = x.shape;
  const result = tensor([columns, rows]);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < columns; c++) result.data[c * rows + r] = x.data[r * columns + c];
  return result;
}

function permuted(x, axes) {
  const order = axes.map((axis) => axisOf(x, axis));
  if (order.length === 2 && order[0] === 1) return transposed(x);
  const steps = strides(x.shape);
  const shape = order.map((axis) => x.shape[axis]);
  return build(shape, (place) => x.data[order.reduce((index, axis, k) => index + place[k] * steps[axis], 0)]);
}

function expanded(x, shape) {
  const wanted = shape.map((extent, axis) => (extent === -1 ? x.shape[axis - shape.length + x.shape.length] : extent));
  return build(wanted, reader(x, wanted.length));
}

function viewed(x, shape) {
  const known = shape.reduce((total, extent) => (extent === -1 ? total : total * extent), 1);
  return same(x, shape.map((extent) => (extent === -1 ? x.data.length / known : extent)));
}

function sliced(x, dim = 0, start = 0, end = Infinity, step = 1) {
  const axis = axisOf(x, dim);
  const extent = x.shape[axis];
  const bound = (place) => within(place < 0 ? place + extent : place, 0, extent);
  const [first, last] = [bound(start ?? 0), bound(end ?? Infinity)];
  const shape = x.shape.with(axis, Math.max(0, Math.ceil((last - first) / step)));
  const steps = strides(x.shape);
  return build(shape, (place) =>
    x.data[place.reduce((index, p, k) => index + (k === axis ? first + p * step : p) * steps[k], 0)]);
}

function scattered(x, source, dim = 0, start = 0, end = Infinity, step = 1) {
  const axis = axisOf(x, dim);
  const bound = (place) => within(place < 0 ? place + x.shape[axis] : place, 0, x.shape[axis]);
  const [first, last] = [bound(start ?? 0), bound(end ?? Infinity)];
  const steps = strides(source.shape);
  return build(x.shape, (place, index) => {
    const own = (place[axis] - first) / step;
    if (place[axis] < first || place[axis] >= last || !Number.isInteger(own)) return x.data[index];
    return source.data[place.reduce((total, p, k) => total + (k === axis ? own : p) * steps[k], 0)];
  });
}

function selected(x, dim, place) {
  const axis = axisOf(x, dim);
  const from = place < 0 ? place + x.shape[axis] : place;
  return same(sliced(x, axis, from, from + 1), x.shape.toSpliced(axis, 1));
}

function parts(x, sizes, dim = 0) {
  let start = 0;
  return sizes.map((extent) => sliced(x, dim, start, (start += extent)));
}

function joined(list, dim = 0) {
  const some = list.filter((x) => !(x.shape.length === 1 && x.shape[0] === 0));
  const axis = axisOf(some[0], dim);
  const shape = some[0].shape.with(axis, some.reduce((total, x) => total + x.shape[axis], 0));
  const starts = [];
  some.reduce((total, x) => (starts.push(total), total + x.shape[axis]), 0);
  const steps = some.map((x) => strides(x.shape));
  return build(shape, (place) => {
    let which = some.length - 1;
    while (starts[which] > place[axis]) which--;
    return some[which].data[
      place.reduce((index, p, k) => index + (k === axis ? p - starts[which] : p) * steps[which][k], 0)
    ];
  });
}

const axesOf = (x, dims) => {
  const list = dims === undefined || dims === null ? [] : [dims].flat();
  return list.length ? list.map((axis) => axisOf(x, axis)) : x.shape.map((_, axis) => axis);
};

function reduced(x, dims, keep, start, step) {
  const axes = axesOf(x, dims);
  const kept = x.shape.map((extent, axis) => (axes.includes(axis) ? 1 : extent));
  const result = filled(kept, start);
  const steps = strides(kept).map((stride, axis) => (axes.includes(axis) ? 0 : stride));
  build(x.shape, (place, index) => {
    const target = place.reduce((total, p, axis) => total + p * steps[axis], 0);
    result.data[target] = step(result.data[target], x.data[index]);
    return 0;
  });
  return keep ? result : same(result, kept.filter((_, axis) => !axes.includes(axis)));
}

const sum = (x, dims, keep = false) => reduced(x, dims, keep, 0, (a, b) => a + b);
const numberOf = (x, dims) => axesOf(x, dims).reduce((total, axis) => total * x.shape[axis], 1);
const mean = (x, dims, keep = false) => OPERATIONS.div(sum(x, dims, keep), numberOf(x, dims));
const amax = (x, dims, keep = false) => reduced(x, dims, keep, -Infinity, Math.max);

// The greatest along an axis and where it stands: the first of equal ones, or the first that is no number.
function greatest(x, dim, keep = false) {
  const axis = axisOf(x, dim);
  const lines = permuted(x, [...x.shape.keys()].filter((k) => k !== axis).concat(axis));
  const extent = x.shape[axis];
  const kept = x.shape.filter((_, k) => k !== axis);
  const places = build(kept, (_, index) => {
    let best = 0;
    const at = (k) => lines.data[index * extent + k];
    for (let k = 1; k < extent && !Number.isNaN(at(best)); k++) if (at(k) > at(best) || Number.isNaN(at(k))) best = k;
    return best;
  });
  const values = build(kept, (_, index) => lines.data[index * extent + places.data[index]]);
  return [values, places].map((found) => (keep ? same(found, x.shape.with(axis, 1)) : found));
}

function vectorNorm(x, order = 2, dims = null, keep = false) {
  const sizes = OPERATIONS.abs(x);
  if (order === 0) return sum(OPERATIONS.sign(sizes), dims, keep);
  if (order === Infinity) return amax(sizes, dims, keep);
  if (order === -Infinity) return OPERATIONS.amin(sizes, dims, keep);
  return OPERATIONS.pow(sum(OPERATIONS.pow(sizes, order), dims, keep), 1 / order);
}

function variance(x, dims, keywords = {}) {
  const { correction = 1, keepdim = false } = keywords;
  const gaps = OPERATIONS.sub(x, mean(x, dims, true));
  return OPERATIONS.div(sum(OPERATIONS.mul(gaps, gaps), dims, keepdim), numberOf(x, dims) - (correction ?? 1));
}

function softmax(x, dim) {
  const powers = OPERATIONS.exp(OPERATIONS.sub(x, amax(x, dim, true)));
  return OPERATIONS.div(powers, sum(powers, dim, true));
}

function layerNorm(x, shape, weight, bias, eps) {
  const axes = shape.map((_, k) => x.shape.length - shape.length + k);
  const mu = mean(x, axes, true);
  const gaps = OPERATIONS.sub(x, mu);
  const root = OPERATIONS.rsqrt(OPERATIONS.add(mean(OPERATIONS.mul(gaps, gaps), axes, true), eps));
  let y = OPERATIONS.mul(gaps, root);
  if (weight) y = OPERATIONS.mul(y, weight);
  return [bias ? OPERATIONS.add(y, bias) : y, mu, root];
}

// Of the input alone, the first of the three gradients; those of weight and bias are programs of their own.
function layerNormBackward(gradient, x, shape, mu, root, weight) {
  const { mul, sub } = OPERATIONS;
  const axes = shape.map((_, k) => x.shape.length - shape.length + k);
  const ofNormal = weight ? mul(gradient, weight) : gradient;
  const normal = mul(sub(x, mu), root);
  const centred = sub(ofNormal, mean(ofNormal, axes, true));
  return [mul(root, sub(centred, mul(normal, mean(mul(ofNormal, normal), axes, true)))), null, null];
}

function padded(x, pads, value = 0) {
  const before = x.shape.map((_, axis) => pads[2 * (x.shape.length - 1 - axis)] ?? 0);
  const shape = x.shape.map((extent, axis) => extent + before[axis] + (pads[2 * (x.shape.length - 1 - axis) + 1] ?? 0));
  const steps = strides(x.shape);
  return build(shape, (place) => {
    const from = place.map((p, axis) => p - before[axis]);
    return from.every((p, axis) => p >= 0 && p < x.shape[axis])
      ? x.data[from.reduce((index, p, axis) => index + p * steps[axis], 0)]
      : value;
  });
}

function choose(condition, a, b) {
  const [yes, no] = [lift(a), lift(b)];
  const shape = broadcast(broadcast(condition.shape, yes.shape), no.shape);
  const [c, y, n] = [condition, yes, no].map((x) => reader(x, shape.length));
  return build(shape, (place) => (c(place) ? y(place) : n(place)));
}

// Windows of an axis, on a new last axis.
function windows(x, dim, width, step) {
  const axis = axisOf(x, dim);
  const steps = strides(x.shape);
  const shape = [...x.shape.with(axis, Math.floor((x.shape[axis] - width) / step) + 1), width];
  return build(shape, (place) => {
    const offset = place[place.length - 1];
    return x.data[steps.reduce((index, s, k) => index + (k === axis ? place[k] * step + offset : place[k]) * s, 0)];
  });
}

// The greatest of every window of the last two axes; where it stood is not told.
function pooled(x, size, stride = [], padding = [0, 0], dilation = [1, 1], ceil = false) {
  if (ceil) throw new Error("max_pool2d: ceil_mode is not known to the page");
  const step = stride.length ? stride : size;
  const extents = x.shape.slice(-2);
  const counts = extents.map((extent, axis) =>
    Math.floor((extent + 2 * padding[axis] - dilation[axis] * (size[axis] - 1) - 1) / step[axis]) + 1);
  const result = build([...x.shape.slice(0, -2), ...counts], (place) => {
    const [top, left] = place.slice(-2).map((p, axis) => p * step[axis] - padding[axis]);
    const plane = place.slice(0, -2).reduce((index, p, axis) => index * x.shape[axis] + p, 0) * extents[0] * extents[1];
    let greatest = -Infinity;
    for (let i = 0; i < size[0]; i++)
      for (let j = 0; j < size[1]; j++) {
        const [r, c] = [top + i * dilation[0], left + j * dilation[1]];
        const inside = r >= 0 && r < extents[0] && c >= 0 && c < extents[1];
        const value = inside ? x.data[plane + r * extents[1] + c] : -Infinity;
        if (value > greatest || Number.isNaN(value)) greatest = value;
      }
    return greatest;
  });
  return [result, null];
}

// Abramowitz and Stegun's fractions are too coarse for the digits that are shown: a series, and a continued fraction.
function erf(x) {
  const a = Math.abs(x);
  if (a < 2.5) {
    let [part, total] = [a, a];
    for (let n = 1; n < 60; n++) total += (part *= (-a * a) / n) / (2 * n + 1);
    return (Math.sign(x) * 2 * total) / Math.sqrt(Math.PI);
  }
  let fraction = 0;
  for (let n = 60; n > 0; n--) fraction = n / 2 / (a + fraction);
  return Math.sign(x) * (1 - Math.exp(-a * a) / ((a + fraction) * Math.sqrt(Math.PI)));
}

const sigmoid = (v) => (v >= 0 ? 1 / (1 + Math.exp(-v)) : Math.exp(v) / (1 + Math.exp(v)));
const evenly = (v) => (Math.abs(v % 1) === 0.5 ? 2 * Math.round(v / 2) : Math.round(v));
const clamp = (x, low, high) => mapped((v) => within(v, low ?? -Infinity, high ?? Infinity))(x);
const gelu = (x, { approximate = "none" } = {}) =>
  mapped(
    approximate === "tanh"
      ? (v) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3)))
      : (v) => 0.5 * v * (1 + erf(v / Math.SQRT2)),
  )(x);

const normal = (v) => Math.exp(-v * v / 2) / Math.sqrt(2 * Math.PI);
const geluSlope = (v) => 0.5 * (1 + erf(v / Math.SQRT2)) + v * normal(v);

const plain = Object.fromEntries(
  "abs acos asin atan ceil cos cosh exp expm1 floor log log1p log2 sign sin sinh sqrt tan tanh"
    .split(" ").map((name) => [name, mapped(Math[name])]),
);

export const OPERATIONS = {
  ...plain,
  add: scaled(pairwise((a, b) => a + b)),
  sub: scaled(pairwise((a, b) => a - b)),
  mul: pairwise((a, b) => a * b),
  div: pairwise((a, b) => a / b),
  atan2: pairwise(Math.atan2),
  pow: pairwise((a, b) => a ** b),
  maximum: pairwise((a, b) => (Number.isNaN(a + b) ? NaN : Math.max(a, b))),
  minimum: pairwise((a, b) => (Number.isNaN(a + b) ? NaN : Math.min(a, b))),
  ge: compared((a, b) => a >= b),
  gt: compared((a, b) => a > b),
  le: compared((a, b) => a <= b),
  lt: compared((a, b) => a < b),
  eq: compared((a, b) => a === b),
  ne: compared((a, b) => a !== b),
  logical_and: compared((a, b) => a && b),
  logical_or: compared((a, b) => a || b),
  logical_not: mapped((v) => Number(!v)),
  bitwise_and: compared((a, b) => a && b),
  bitwise_or: compared((a, b) => a || b),
  bitwise_not: mapped((v) => Number(!v)),
  neg: mapped((v) => -v),
  relu: mapped((v) => (v > 0 ? v : Number.isNaN(v) ? v : 0)),
  round: mapped(evenly),
  reciprocal: mapped((v) => 1 / v),
  sgn: mapped(Math.sign),
  softplus: (x, beta = 1, threshold = 20) =>
    mapped((v) => (v * beta > threshold ? v : Math.log1p(Math.exp(v * beta)) / beta))(x),
  rsqrt: mapped((v) => 1 / Math.sqrt(v)),
  sigmoid: mapped(sigmoid),
  erf: mapped(erf),
  elu: (x, alpha = 1, scale = 1, inside = 1) =>
    mapped((v) => scale * (v > 0 ? v : alpha * Math.expm1(v * inside)))(x),
  leaky_relu: (x, slope = 0.01) => mapped((v) => (v > 0 ? v : slope * v))(x),
  gelu,
  gelu_backward: pairwise((gradient, x) => gradient * geluSlope(x)),
  clamp,
  clamp_min: (x, low) => clamp(x, low),
  clamp_max: (x, high) => clamp(x, undefined, high),
  hardtanh: (x, low = -1, high = 1) => clamp(x, low, high),
  where: choose,
  mm: product,
  addmm: (c, a, b, { beta = 1, alpha = 1 } = {}) =>
    OPERATIONS.add(OPERATIONS.mul(c, beta), OPERATIONS.mul(product(a, b), alpha)),
  bmm: (a, b) => {
    const pieces = Array.from({ length: a.shape[0] }, (_, k) => product(selected(a, 0, k), selected(b, 0, k)));
    return joined(pieces.map((piece) => same(piece, [1, ...piece.shape])));
  },
  permute: permuted,
  view: viewed,
  unsafe_view: viewed,
  expand: expanded,
  unsqueeze: (x, dim) => same(x, x.shape.toSpliced(dim < 0 ? dim + x.shape.length + 1 : dim, 0, 1)),
  squeeze: (x, dims) => {
    const axes = axesOf(x, dims);
    return same(x, x.shape.filter((extent, axis) => extent !== 1 || !axes.includes(axis)));
  },
  slice: sliced,
  slice_scatter: scattered,
  select_scatter: (x, source, dim, place) => {
    const axis = axisOf(x, dim);
    const from = place < 0 ? place + x.shape[axis] : place;
    return scattered(x, same(source, source.shape.toSpliced(axis, 0, 1)), axis, from, from + 1);
  },
  select: selected,
  unbind: (x, dim = 0) => Array.from({ length: x.shape[axisOf(x, dim)] }, (_, k) => selected(x, dim, k)),
  split_with_sizes: parts,
  getitem: (list, index) => list[index],
  index_select: (x, dim, index) => joined(Array.from(index.data, (p) => sliced(x, dim, p, p + 1)), dim),
  cat: joined,
  constant_pad_nd: padded,
  max_pool2d_with_indices: pooled,
  sum: (x, dims, keep) => sum(x, dims, keep),
  mean: (x, dims, keep) => mean(x, dims, keep),
  prod: (x, dims, keep) => reduced(x, dims, keep ?? false, 1, (a, b) => a * b),
  amax,
  linalg_vector_norm: vectorNorm,
  max: greatest,
  amin: (x, dims, keep = false) => reduced(x, dims, keep, Infinity, Math.min),
  any: (x, dims, keep = false) => reduced(x, dims, keep, 0, (a, b) => Number(a || b)),
  cumsum: (x, dim) => {
    const axis = axisOf(x, dim);
    const step = strides(x.shape)[axis];
    const result = tensor(x.shape, x.data.slice());
    return tensor(
      x.shape,
      build(x.shape, (place, index) => (result.data[index] += place[axis] ? result.data[index - step] : 0)).data,
    );
  },
  unfold: windows,
  var: variance,
  softmax,
  log_softmax: (x, dim) => {
    const moved = OPERATIONS.sub(x, amax(x, dim, true));
    return OPERATIONS.sub(moved, OPERATIONS.log(sum(OPERATIONS.exp(moved), dim, true)));
  },
  native_layer_norm: layerNorm,
  native_layer_norm_backward: layerNormBackward,
  full: (shape, number) => filled(shape, Number(number)),
  full_like: (x, number) => filled(x.shape, Number(number)),
  zeros_like: (x) => filled(x.shape, 0),
  ones_like: (x) => filled(x.shape, 1),
  scalar_tensor: (number) => scalar(Number(number)),
  ...Object.fromEntries("alias clone copy detach to_copy".split(" ").map((name) => [name, (x) => x])),
};

// Run a program on its inputs, tensors by name; return the recorded values and the results.
export function run(program, inputs) {
  const known = new Map();
  program.inputs.forEach((name, index) => known.set(program.read[index], inputs[name]));
  const value = (part) => {
    if (Array.isArray(part)) return part.map(value);
    if (part === "inf" || part === "-inf") return part === "inf" ? Infinity : -Infinity;
    return typeof part === "string" && part[0] === "%" ? known.get(part.slice(1)) : part;
  };
  for (const [name, operation, args, keywords] of program.nodes) {
    if (operation === "constant") {
      known.set(name, program.constants[args[0]]);
      continue;
    }
    const named = Object.fromEntries(Object.entries(keywords).map(([key, part]) => [key, value(part)]));
    const given = args.map(value);
    known.set(name, OPERATIONS[operation](...given, ...(Object.keys(named).length ? [named] : [])));
  }
  return { values: program.values.map(value), results: program.results.map(value) };
}
