// The 16 networks that four units make, their exact average, and what many masks predict.

import { el, range, svg } from "../core/dom.js";
import { places, short, written } from "../core/numbers.js";
import { later, uniform } from "../core/philox.js";
import { run, scalar, tensor } from "../core/tensor.js";
import { marked } from "./marked.js";
import { meanOf, shaped, varianceOf } from "./state.js";

export const ACTS = ["linear", "tanh", "relu"];

// The network's numbers at p and an input: Python's at first, then those of its program.
export class Net {
  constructor({ data, settings }) {
    const { p, input, act } = settings.values;
    Object.assign(this, { net: data.net, data, p, input, act: ACTS.indexOf(act) });
    this.touched = settings.changed(["p", "input"]);
    this.units = this.net.masks.shape[1];
    if (!this.touched) Object.assign(this, rowsOf(this.net));
    else this.recompute();
  }

  recompute() {
    const { net, p } = this;
    const draws = tensor(net.masks.shape, net.masks.data.map((kept) => 3 * kept - 1));
    const { outputs, hidden } = this.run(draws, p);
    const kept = range(net.masks.shape[0]).map((k) => this.mask(k).reduce((a, b) => a + b, 0));
    const probabilities = kept.map((k) => (1 - p) ** k * p ** (this.units - k));
    const average = outputs.map((column) => column.reduce((sum, z, k) => sum + probabilities[k] * z, 0));
    const deviation = outputs.map((column, a) =>
      Math.sqrt(column.reduce((sum, z, k) => sum + probabilities[k] * (z - average[a]) ** 2, 0)));
    const scaled = this.run(tensor([1, this.units]), 0).outputs.map((column) => column[0]);
    Object.assign(this, { outputs, hidden, probabilities, average, deviation, scaled });
  }

  mask(network) {
    return Array.from(this.net.masks.data.slice(network * this.units, (network + 1) * this.units));
  }

  // Three outputs for every row of draws.
  run(draws, p) {
    const { forward, names } = p === 1 ? this.net.all : this.net.some;
    const { U, V } = this.net;
    const { values, results } = run(forward, { x: tensor([1, 1], Float64Array.of(this.input)), draws, U, V, p: scalar(p) });
    const outputs = results.map((z) => Array.from(shaped(z, [draws.shape[0]]).data));
    return { outputs, hidden: Array.from(values[names.h].data) };
  }

  // What as many masks predict, drawn as a layer with the seed of the page draws them.
  samples() {
    const { samples } = this.net;
    const draws = tensor([samples, this.units]);
    for (let call = 0; call < samples; call++)
      for (let unit = 0; unit < this.units; unit++)
        draws.data[call * this.units + unit] = uniform(unit, this.data.toy_seed, later([0, 0], call));
    return this.run(draws, this.p).outputs;
  }
}

const rowsOf = (net) => ({
  ...Object.fromEntries(["hidden", "probabilities", "average", "deviation", "scaled"].map((key) => [key, Array.from(net[key].data)])),
  outputs: ACTS.map((_, a) => range(net.masks.shape[0]).map((k) => net.outputs.data[k * ACTS.length + a])),
});

export function networks(net, words) {
  const outputs = net.outputs[net.act];
  const decimals = places(outputs);
  const groups = range(net.units + 1).map((dropped) => net.units - dropped).map((kept) => {
    const members = range(outputs.length).filter((k) => net.mask(k).reduce((a, b) => a + b, 0) === kept);
    const [one] = members;
    return el("div", { class: "nets" },
      el("p", { class: "group" }, words("kept_units", { kept, units: net.units }), words("gap"),
        el("span", { class: "recomputed" }, `(1 − p)${power(kept)} · p${power(net.units - kept)} = ${short(net.probabilities[one])}`),
        words("each_of", { n: members.length })),
      el("div", { class: "row" }, members.map((k) => el("figure", { class: "net" },
        drawing(net.mask(k), words("net_label", {
          kept: net.mask(k).flatMap((m, unit) => (m ? [unit + 1] : [])).join(", ") || "–", out: written(outputs[k], decimals),
        })),
        el("figcaption", { class: "recomputed", "data-net": k }, written(outputs[k], decimals))))));
  });
  return [el("p", {}, words("nets_how")), el("div", { class: "crowd-of-nets" }, whole(net, words), el("div", {}, groups))];
}

const power = (n) => (n === 1 ? "" : ["⁰", "", "²", "³", "⁴"][n]);

// The network itself, with its weights and values: what eval uses.
function whole(net, words) {
  const [width, height, gap] = [330, 190, 44];
  const label = words("whole_label");
  const sign = (n) => (n < 0 ? "minus" : "plus");
  const out = written(net.scaled[net.act], 2);
  return el("figure", { class: "whole" },
    svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
      svg("title", {}, label),
      range(net.units).map((unit) => {
        const y = 26 + unit * gap;
        const [u, v] = [net.net.U.data[unit], net.net.V.data[unit]];
        return [
          svg("line", { class: sign(u), x1: 40, y1: 92, x2: 146, y2: y, "stroke-width": 1 + Math.abs(u) }),
          svg("line", { class: sign(v), x1: 182, y1: y, x2: 288, y2: 92, "stroke-width": 1 + Math.abs(v) }),
          svg("text", { x: 108, y: 92 + (y - 92) * 0.66 - 5, "text-anchor": "middle", class: "weight" }, short(u)),
          svg("text", { x: 222, y: 92 + (y - 92) * 0.66 - 5, "text-anchor": "middle", class: "weight" }, short(v)),
          svg("circle", { class: "unit", cx: 164, cy: y, r: 20 }),
          svg("text", { x: 164, y: y + 4, "text-anchor": "middle", class: "recomputed" }, written(net.hidden[unit], 2)),
        ];
      }),
      svg("circle", { class: "unit", cx: 22, cy: 92, r: 18 }),
      svg("text", { x: 22, y: 96, "text-anchor": "middle" }, short(net.input)),
      svg("circle", { class: "unit", cx: 307, cy: 92, r: 21 }),
      svg("text", { x: 307, y: 96, "text-anchor": "middle", class: "recomputed", "data-net": "scaled" }, out)),
    el("figcaption", {}, words("whole_caption")));
}

function drawing(mask, label) {
  const place = (unit) => 10 + unit * 17;
  return svg("svg", { viewBox: "0 0 96 72", role: "img", "aria-label": label }, svg("title", {}, label),
    mask.map((kept, unit) => kept && [
      svg("line", { x1: 10, y1: 36, x2: 48, y2: place(unit) }), svg("line", { x1: 48, y1: place(unit), x2: 86, y2: 36 }),
    ]),
    mask.map((kept, unit) => [
      svg("circle", { class: kept ? "unit" : "unit out", cx: 48, cy: place(unit), r: 6.5 }),
      kept ? null : svg("path", { class: "cross", d: `M43.5 ${place(unit) - 4.5}l9 9m0 -9l-9 9` }),
    ]),
    svg("circle", { class: "unit end", cx: 10, cy: 36, r: 5 }), svg("circle", { class: "unit end", cx: 86, cy: 36, r: 5 }));
}

// The average of all 16 against the one network that eval uses.
export function averages(net, words) {
  const total = net.probabilities.reduce((a, b) => a + b, 0);
  const gaps = ACTS.map((_, a) => {
    const gap = net.average[a] - net.scaled[a];
    return Math.abs(gap) < 1e-12 ? 0 : gap;
  });
  const decimals = places([...net.average, ...net.scaled]);
  const row = (key, numbers) => el("tbody", { "data-grid": `net-${key}` }, el("tr", {}, el("th", { scope: "row" }, words(`net_${key}`)),
    numbers.map((n, a) => el("td", { class: `number recomputed${a === net.act ? " current" : ""}`, "data-at": `0,${a}` }, written(n, decimals)))));
  const [linear, tanh, relu] = gaps.map(short);
  return [
    el("div", { class: "scroll" }, el("table", { class: "facts plain numbers-table" },
      el("thead", {}, el("tr", {}, el("td"), ACTS.map((act) => el("th", { scope: "col", class: "number" }, words(act))))),
      row("average", net.average), row("scaled", net.scaled), row("gap", gaps))),
    el("p", {}, marked(words, "net_total", { total: short(total) }), words("gap"),
      marked(words, gaps[0] === 0 ? "net_linear" : "net_linear_off", { gap: linear }), words("gap"),
      marked(words, "net_bent", { tanh, relu })),
  ];
}

// Dropout left on in prediction: the outputs of many masks.
export function monteCarlo(net, words, width) {
  const samples = net.samples()[net.act];
  const mean = net.touched ? meanOf(samples) : net.net.mean.data[net.act];
  const spread = net.touched ? Math.sqrt(varianceOf(samples)) : net.net.spread.data[net.act];
  const [exact, deviation] = [net.average[net.act], net.deviation[net.act]];
  const facts = { n: samples.length, mean: short(mean), spread: short(spread) };
  const number = (key, value) => el("td", { class: "number recomputed", "data-mc": key }, short(value));
  return [
    el("p", {}, words("mc_how")),
    el("figure", {}, histogram(samples, mean, spread, width, words, words("mc_label", facts)), el("figcaption", {}, words("axis_output"))),
    el("div", { class: "scroll" }, el("table", { class: "facts plain numbers-table" },
      el("tr", {}, el("td"), el("th", { scope: "col", class: "number" }, words("mean")), el("th", { scope: "col", class: "number" }, words("deviation"))),
      el("tr", {}, el("th", { scope: "row" }, words("mc_measured", { n: samples.length })), number("mean", mean), number("spread", spread)),
      el("tr", {}, el("th", { scope: "row" }, words("mc_exact")), number("exact", exact), number("deviation", deviation)))),
    el("p", {}, words("mc_library"), " ", el("code", {}, `pellucid.monte_carlo(model, x, samples=${samples.length})`), words("mc_returns")),
  ];
}

function histogram(samples, mean, spread, width, words, label) {
  const [height, left, right, top, bottom] = [186, 40, 16, 26, 22];
  const [least, most] = [Math.min(...samples, mean - spread), Math.max(...samples, mean + spread)];
  const room = (most - least || 1) * 0.04;
  const [low, high] = [least - room, most + room];
  const bins = 28;
  const counts = new Array(bins).fill(0);
  for (const value of samples) counts[Math.min(bins - 1, Math.floor(((value - low) / (high - low)) * bins))]++;
  const tallest = Math.max(...counts);
  const x = (v) => left + ((width - left - right) * (v - low)) / (high - low);
  const y = (n) => height - bottom - ((height - top - bottom) * n) / tallest;
  const wide = (width - left - right) / bins;
  const ticks = range(5).map((k) => low + room + ((high - low - 2 * room) * k) / 4);
  const decimals = places(ticks);
  return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    svg("title", {}, label),
    svg("rect", { class: "band", x: x(mean - spread), width: Math.max(0, x(mean + spread) - x(mean - spread)), y: top, height: height - top - bottom }),
    counts.map((n, k) => n > 0 && svg("rect", { class: "bar", x: left + k * wide + 0.5, width: wide - 1, y: y(n), height: height - bottom - y(n) })),
    svg("line", { class: "goal", x1: x(mean), x2: x(mean), y1: top - 6, y2: height - bottom }),
    svg("text", { class: "goal-text", x: Math.min(Math.max(x(mean), 90), width - 90), y: 14, "text-anchor": "middle" }, `${words("mean")} ${short(mean)} ± ${short(spread)}`),
    [0, tallest].map((n) => svg("text", { class: "tick", x: left - 6, y: y(n) + 4, "text-anchor": "end" }, String(n))),
    ticks.map((v) => svg("text", { class: "tick", x: x(v), y: height - bottom + 17, "text-anchor": "middle" }, written(v, decimals))),
    svg("line", { class: "axis-line", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
}
