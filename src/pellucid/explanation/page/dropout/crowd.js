// The average over many masks: a curve that approaches what is expected, and the table of its numbers.

import { el, range, svg } from "../core/dom.js";
import { places, short, term, written } from "../core/numbers.js";
import { marked, number } from "./marked.js";
import { varianceOf } from "./state.js";

export function crowd(exhibit, state, width) {
  const { words, data } = exhibit;
  const { entry } = state;
  const { call } = state.values;
  const masks = data.crowd.masks ?? data.masks;
  const samples = state.many(entry);
  const curve = runningMean(samples);
  const untouched = !state.settings.changed(["p", "x"]);
  const counts = data.counts.filter((n) => n <= masks);
  const entries = data.x.data.length;
  const own = (values, row = 0) => values.data[row * entries + entry];
  const means = untouched ? counts.map((_, row) => own(data.crowd.means, row)) : counts.map((n) => curve[n - 1]);
  const measured = withoutRounding(untouched ? own(data.crowd.measured) : varianceOf(samples), means.at(-1));
  const facts = { name: state.name(entry), x: short(state.x.data[entry]), masks };
  if (![...means, measured].every(Number.isFinite))
    return el("p", {}, words("crowd_infinite", facts));
  const exact = state.block
    ? { mean: state.x.data[entry], variance: measured }
    : untouched
      ? { mean: own(data.crowd.expected), variance: own(data.crowd.variance) }
      : state.expected(entry);
  const returns = state.block || (data.kind === "plain" && state.values.p < 1); // the average returns to x
  const now = Math.min(call + 1, masks);
  const chart = curveChart({
    width, curve, target: exact.mean, deviation: Math.sqrt(exact.variance), now,
    label: words("curve_label", { ...facts, target: short(exact.mean), last: short(curve.at(-1)) }),
    targetText: `${returns ? facts.name : words("expected")} = ${short(exact.mean)}`,
  });
  const columns = now > 1 && !counts.includes(now) ? [...counts, now].sort((a, b) => a - b) : counts;
  const mean = (n) => means[counts.indexOf(n)] ?? curve[n - 1];
  const numbers = [columns.map(mean), columns.map((n) => Math.abs(mean(n) - exact.mean)), columns.map((n) => Math.sqrt(exact.variance / n))];
  const heads = ["row_mean", returns ? "row_gap" : "row_gap_expected", "row_error"];
  return [
    why(state, words, facts),
    el("figure", {}, chart, el("figcaption", {}, words("axis_masks"))),
    el("div", { class: "scroll" }, el("table", { class: "facts plain numbers-table", "data-grid": "crowd" },
      el("tr", {}, el("th", { scope: "col" }, words("row_masks")), heads.map((key) => el("th", { scope: "col", class: "number" }, words(key)))),
      columns.map((n, r) => el("tr", {}, el("th", { scope: "row", "data-masks": n }, String(n)),
        numbers.map((column, c) => el("td", { class: "number recomputed", "data-at": `${r},${c}` }, written(column[r], places(column)))))))),
    spread(state, words, exact.variance, measured, masks),
  ];
}

function why(state, words, facts) {
  const { p } = state.values;
  const { kind } = state.data;
  if (state.block) return el("p", {}, words("crowd_block", facts));
  if (kind !== "plain") return el("p", {}, words(kind === "alpha" ? "crowd_alpha" : "crowd_other", facts));
  if (p === 1) return el("p", {}, words("crowd_all", facts));
  const x = state.x.data[state.entry];
  const kept = short(x / (1 - p));
  return el("p", {}, marked(words, "crowd_why", { name: facts.name, p: short(p), q: short(1 - p), kept }), words("gap"),
    el("span", { class: "worked recomputed", id: "crowd-worked" },
      `${short(1 - p)} × ${kept.startsWith("−") ? `(${kept})` : kept} + ${short(p)} × 0 = ${facts.x}`));
}

function spread(state, words, variance, measured, masks) {
  const { p } = state.values;
  const x = state.x.data[state.entry];
  const strong = (key, value) => el("strong", {}, number(short(value), { id: key }));
  const measuredText = [words("variance_measured", { masks }), words("gap"), strong("variance-measured", measured), words("stop")];
  if (state.block) return el("p", {}, measuredText);
  const formula = state.data.kind !== "plain" || p === 1
    ? [words("variance_outcomes"), words("gap")]
    : [words("variance_formula"), words("gap"), number(`${short(p)}/(1 − ${short(p)}) × ${term(x)}² = `)];
  return el("p", {}, measuredText, formula, strong("variance-exact", variance), words("stop"),
    variance > 0 ? words("error_shrinks") : "");
}

function runningMean(samples) {
  let total = 0;
  return samples.map((value, index) => (total += value) / (index + 1));
}

// A variance that is nothing but the rounding of equal numbers is 0.
const withoutRounding = (variance, mean) => (variance < 1e-20 * mean ** 2 ? 0 : variance);

// The running mean over 1, 2, … masks on a logarithmic axis, in the band of one standard deviation of the mean.
function curveChart({ width, curve, target, deviation, now, label, targetText }) {
  const [height, left, right, top, bottom] = [214, 56, 12, 14, 24];
  const far = Math.max(deviation, ...curve.map((v) => Math.abs(v - target))) || 1;
  const x = (n) => left + ((width - left - right) * Math.log10(n)) / Math.log10(Math.max(2, curve.length));
  const y = (v) => top + ((height - top - bottom) * (target + far * 1.08 - v)) / (2.16 * far);
  const at = (n, v) => `${x(n).toFixed(1)},${y(v).toFixed(1)}`;
  const steps = range(61).map((k) => curve.length ** (k / 60));
  const band = [
    ...steps.map((n) => at(n, target + deviation / Math.sqrt(n))),
    ...steps.reverse().map((n) => at(n, target - deviation / Math.sqrt(n))),
  ];
  const drawn = range(curve.length).filter((k) => k < 100 || k % Math.ceil(k / 60) === 0 || k === curve.length - 1);
  const ticks = [1, 10, 100, 1000].filter((n) => n <= curve.length);
  const marks = [target - far, target, target + far];
  const decimals = places(marks);
  return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    svg("title", {}, label),
    svg("polygon", { class: "band", points: band.join(" ") }),
    svg("line", { class: "goal", x1: left, x2: width - right, y1: y(target), y2: y(target) }),
    svg("polyline", { class: "curve", points: drawn.map((k) => at(k + 1, curve[k])).join(" ") }),
    svg("circle", { class: "here", cx: x(now), cy: y(curve[now - 1]), r: 5 }),
    svg("text", { x: width - right, y: y(target) - 7, "text-anchor": "end", class: "goal-text" }, targetText),
    marks.map((v) => svg("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end", class: "tick" }, written(v, decimals))),
    ticks.map((n) => [
      svg("line", { class: "axis-line", x1: x(n), x2: x(n), y1: height - bottom, y2: height - bottom + 5 }),
      svg("text", { x: x(n), y: height - bottom + 18, "text-anchor": n === 1 ? "start" : n === 1000 ? "end" : "middle", class: "tick" }, String(n)),
    ]),
    svg("line", { class: "axis-line", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
}
