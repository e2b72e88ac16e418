// The formulas of the chosen member with explicit indices, and their lines with the numbers of the chosen cell.

import { el, math } from "../core/dom.js";
import { short, term } from "../core/numbers.js";
import { entry } from "./model.js";

const mi = (text, symbol) => math("mi", { "data-symbol": symbol }, text);
const mn = (text) => math("mn", {}, text);
const mo = (text, attributes) => math("mo", attributes, text);
const row = (...parts) => math("mrow", {}, ...parts);
const sub = (base, ...index) => math("msub", {}, base, row(...index));
const frac = (top, bottom) => math("mfrac", {}, row(top), row(bottom));
const root = (...inside) => math("msqrt", {}, ...inside);
const squared = (...inside) => math("msup", {}, row(...inside), mn("2"));
const block = (...parts) => math("math", { display: "block" }, row(...parts));
const commas = (letters) => letters.flatMap((letter, index) => [index > 0 && mo(","), mi(letter)]);
const minus = () => mo("−");
const sigma = () => mo("∑", { movablelimits: "false" });
const equals = () => mo("=");

const hat = () => math("mover", { accent: "true" }, mi("x"), mo("^"));

// Letters of the indices: of the input's axes, and of the average that a cell belongs to.
function letters(model) {
  const all = model.data.letters.map((letter) => letter.toLowerCase());
  const kept = model.coordinates(model.places[0]).map(([letter]) => letter.toLowerCase());
  const affine = model.member.affine.map((axis) => all[axis]);
  return { all, kept, affine };
}

const x = (all) => sub(mi("x", "x"), ...commas(all));
const mu = (kept) => (kept.length ? sub(mi("μ", "μ"), ...commas(kept)) : mi("μ", "μ"));
const variance = (kept) => math("msubsup", {}, mi("σ", "σ²"), row(...commas(kept)), mn("2"));
const learned = (symbol, at) => (at.length ? sub(mi(symbol, symbol), ...commas(at)) : mi(symbol, symbol));

// 1/(N·H·W) Σ_n Σ_h Σ_w, or with padding Σ m · / Σ m.
function average(model, inside, all, less = 0) {
  const { member, data, values } = model;
  const sums = () =>
    member.axes.map((axis) => {
      const grouped = values.kind === "group" && axis === data.channel;
      return math("munder", {}, sigma(), grouped ? row(mi("c"), mo("∈"), mi("g")) : mi(all[axis]));
    });
  const masked = model.hasPadding && values.padding;
  if (masked) {
    const marks = () => sub(mi("m"), ...commas(all.filter((_, axis) => axis !== data.channel)));
    return [frac(row(...sums(), marks(), inside), row(...sums(), marks(), less ? [minus(), mn("1")] : null))];
  }
  const sizes = member.axes.flatMap((axis, index) => {
    const letter = data.letters[axis];
    const grouped = values.kind === "group" && axis === data.channel;
    return [index > 0 && mo("·"), ...(grouped ? [mo("("), mi("C"), mo("/"), mi("G"), mo(")")] : [mi(letter)])];
  });
  return [frac(mn("1"), row(...sizes, less ? [minus(), mn("1")] : null)), ...sums(), inside];
}

// The lines of the formula, each a MathML element.
export function formulas(model) {
  const { all, kept, affine } = letters(model);
  const { member, values, data } = model;
  const scaled = member.scales ? [mo("·"), learned("γ", affine)] : [];
  const shifted = member.shifts ? [mo("+"), learned("β", affine)] : [];
  if (values.kind === "lrn") return neighbours(all, data, member);
  const y = (inside) => block(sub(mi("y"), ...commas(all)), equals(), inside, ...scaled, ...shifted);
  const normal = () => sub(hat(), ...commas(all));
  if (!member.centred) {
    const mean = () => sub(mi("mean_square", "mean_square"), ...commas(kept));
    return [
      block(mean(), equals(), ...average(model, squared(x(all)), all)),
      block(normal(), equals(), frac(x(all), root(mean(), mo("+"), mi("ε")))),
      y(normal()),
    ];
  }
  const over = (center, spread) =>
    block(normal(), equals(), frac(row(x(all), minus(), center), root(spread, mo("+"), mi("ε"))));
  if (model.remembers) {
    const c = all[data.channel];
    return [
      over(sub(mi("running_mean", "running_mean"), mi(c)), sub(mi("running_var", "running_var"), mi(c))),
      y(normal()),
    ];
  }
  const gaps = squared(mo("("), x(all), minus(), mu(kept), mo(")"));
  return [
    block(mu(kept), equals(), ...average(model, x(all), all)),
    block(variance(kept), equals(), ...average(model, gaps, all, model.unbiased ? 1 : 0)),
    over(mu(kept), variance(kept)),
    y(normal()),
  ];
}

function neighbours(all, data, member) {
  const c = all[data.channel];
  const inside = all.with(data.channel, "j");
  const half = (size) => Math.floor(size / 2);
  const mean = () => sub(mi("mean_square", "mean_square"), ...commas(all));
  const from = row(mi("j"), equals(), mi(c), minus(), mn(String(half(member.window))));
  const to = row(mi(c), mo("+"), mn(String(half(member.window - 1))));
  return [
    block(
      mean(),
      equals(),
      frac(mn("1"), mn(String(member.window))),
      math("munderover", {}, sigma(), from, to),
      squared(sub(mi("x", "x"), ...commas(inside))),
    ),
    block(
      sub(mi("y"), ...commas(all)),
      equals(),
      frac(x(all), math("msup", {}, row(mo("("), mi("k"), mo("+"), mi("α"), mo("·"), mean(), mo(")")), mi("β"))),
    ),
  ];
}

// -- with numbers ------------------------------------------------------------------------------------------------

const TERMS = 5;

const result = (number) => el("span", { class: "recomputed" }, short(number));
const line = (symbol, ...parts) =>
  el("p", { class: "worked" }, el("b", { "data-symbol": symbol }, symbol), " = ", ...parts);

// (0.31 + 1.2 + … + 0.5), of many numbers the first and the last; of those that are not in the page their number only.
function sum(model, numbers, count, written) {
  const shown =
    numbers.length <= TERMS + 1
      ? numbers.map(written)
      : [...numbers.slice(0, TERMS - 1).map(written), "…", written(numbers.at(-1))];
  if (numbers.length < count && model.values.kind !== "lrn") shown.push("…");
  return `(${shown.join(" + ") || "0"})`;
}

// The lines from the values to γx̂ + β of the chosen cell.
export function worked(model) {
  const { place, values, member, numbers, x: all } = model;
  const value = entry(all, place);
  const y = entry(numbers.y, place);
  if (!model.real(place)) return [];
  const mean = entry(numbers.mean, place);
  const members = model.shares(place).map((one) => entry(all, one));
  const { real: count } = model.count(place);
  if (values.kind === "lrn") {
    const [alpha, beta, k] = ["alpha", "beta", "k"].map((name) => model.number(name));
    return [
      line("mean_square", `${sum(model, members, count, (v) => `${term(v)}²`)} / ${count} = `, result(mean)),
      line("y", `${short(value)} / (${short(k)} + ${short(alpha)} · ${short(mean)})^${short(beta)} = `, result(y)),
    ];
  }
  const normal = entry(numbers.x_hat, place);
  const [gamma, beta] = ["gamma", "beta"].map((name) => entry(model.affine(name), place));
  const last = line(
    "y",
    `${member.scales ? `${term(gamma)} · ` : ""}${term(normal)}${member.shifts ? ` + ${term(beta)}` : ""} = `,
    result(y),
  );
  const eps = short(values.eps);
  if (!member.centred)
    return [
      line("mean_square", `${sum(model, members, count, (v) => `${term(v)}²`)} / ${count} = `, result(mean)),
      line("x̂", `${short(value)} / √(${short(mean)} + ${eps}) = `, result(normal)),
      last,
    ];
  const spread = entry(numbers.var, place);
  const quotient = `${short(value - mean)} / ${short(Math.sqrt(spread + values.eps))}`;
  const whole = `(${short(value)} − ${term(mean)}) / √(${short(spread)} + ${eps})`;
  const hats = line("x̂", `${whole} = ${quotient} = `, result(normal));
  if (model.remembers) return [line("running_mean", result(mean)), line("running_var", result(spread)), hats, last];
  const squares = sum(model, members, count, (v) => `(${short(v)} − ${term(mean)})²`);
  return [
    line("μ", `${sum(model, members, count, term)} / ${count} = `, result(mean)),
    line("σ²", `${squares} / ${model.unbiased ? `(${count} − 1)` : count} = `, result(spread)),
    hats,
    last,
  ];
}
