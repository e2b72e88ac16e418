// Backward through time: what each state and each weight has to do with the loss; and the experiments.

import { el, range, svg } from "../core/dom.js";
import { matrix } from "../core/matrix.js";
import { places, short, written } from "../core/numbers.js";
import { at, timed } from "./model.js";
import { shownToken } from "./strip.js";
import { unitsShown } from "./step.js";

// Numbers over time as bars whose lengths are logarithms; every number is printed.
function bars(rows, label, key) {
  const logs = rows.map(({ number }) => Math.log10(number)).filter(Number.isFinite);
  const [low, high] = [Math.floor(Math.min(0, ...logs) - 0.001), Math.ceil(Math.max(0, ...logs) + 0.001)];
  const scale = 210 / (high - low);
  const x = (power) => (power - low) * scale;
  const every = Math.max(1, Math.ceil((high - low) / 5));
  const ticks = range(high - low + 1).filter((k) => k % every === 0).map((k) => k + low);
  const axis = svg("svg", { width: 250, height: 18, viewBox: "-20 0 250 18", "aria-hidden": "true" },
    ticks.map((power) => svg("text", { x: x(power), y: 13, "text-anchor": "middle", class: "small" }, `1e${power}`.replace("-", "−"))));
  return el("div", { class: "scroll" }, el("table", { class: "bars", "aria-label": label, "data-grid": key },
    el("tr", {}, el("td"), el("td"), el("td", {}, axis)),
    rows.map(({ name, number, mark }) => el("tr", { class: mark ?? "" }, el("th", { scope: "row" }, name),
      el("td", { class: "number recomputed", "data-at": "norm" }, short(number)),
      el("td", {}, svg("svg", { width: 250, height: 16, viewBox: "-20 0 250 16", "aria-hidden": "true" },
        ticks.map((power) => svg("path", { class: "zero", d: `M${x(power)} 0V16` })),
        number > 0 && svg("rect", { class: "grows", x: 0, y: 3, width: Math.max(1, x(Math.log10(number))), height: 10 })))))));
}

export function backward(exhibit, run, found) {
  const { data, settings, words } = exhibit;
  const { loss, unit } = settings.values;
  if (!found) return el("p", { class: "muted" }, words("loss_not_here"));
  const shown = data.backward.moments;
  const last = data.states[0].label;
  const said = loss === "sum" ? words("loss_sum", { y: at(data.output.own ? data.output.name : last, data.steps) })
    : words("loss_unit", { y: at(data.output.own ? data.output.name : last, data.steps), unit: unit + 1 });
  const grids = data.states.map(({ label, size }, which) => {
    const units = unitsShown(exhibit, size);
    return matrix({
      key: `grad-${which}`, label: words("gradient_of", { name: label }), rows: units.length, columns: shown.length,
      caption: [words("gradient_of", { name: `${label}ₜ` }), units.length < size ? ` · ${words("showing", { shown: units.length, total: size })}` : ""],
      value: (r, c) => found.grad(which, shown[c], units[r]),
      text: (r, c) => written(found.grad(which, shown[c], units[r]), places(units.map((unit) => found.grad(which, shown[c], unit)))),
      rowHeads: (r) => words("unit_n", { n: units[r] + 1 }), columnHeads: (c) => at(label, shown[c]),
      says: (r, c) => `∂L/∂${at(label, shown[c])}[${units[r] + 1}]`,
      pick: (r) => settings.set({ unit: units[r] }),
    });
  });
  const lengths = data.states.map(({ label }, which) => el("div", {},
    el("p", {}, words("length_of", { name: `${label}ₜ` })),
    bars(shown.map((moment) => ({ name: at(label, moment), number: found.length(which, moment) })), words("length_of", { name: label }), `length-${which}`)));
  const norms = found.norms;
  const first = norms?.[0][0];
  const end = norms?.[0][data.steps];
  const verdict = norms && (first < end * 0.5 ? "vanishes" : first > end * 2 ? "explodes" : "keeps");
  return [
    el("p", {}, words("backward_idea")),
    el("p", { class: "worked" }, said),
    grids,
    el("div", { class: "views" }, lengths),
    el("h4", {}, words("jacobian")),
    norms ? [
      el("p", {}, words("jacobian_idea", { end: at(last, data.steps), h: `${last}ₜ`, t: data.steps, size: data.states[0].size, root: short(Math.sqrt(data.states[0].size)) })),
      el("div", { class: "views" }, norms.map((numbers, which) => bars(shown.map((moment) => ({
        name: `∂${at(last, data.steps)}/∂${at(data.states[which].label, moment)}`, number: numbers[moment],
      })), words("jacobian"), `norm-${which}`))),
      el("p", { class: "worked recomputed" }, words(verdict, { from: short(end), to: short(first), steps: data.steps, factor: short(first / end) })),
    ] : el("p", { class: "muted" }, words(run.recomputed && data.backward.norms ? "jacobian_slow" : "jacobian_large")),
  ];
}

// The gradient of a weight as the sum of what every step adds.
export function weightGradient(exhibit, run, found) {
  const { data, settings, words } = exhibit;
  const { weight, added } = settings.values;
  const parameter = data.parameters.find(({ name }) => name === weight);
  if (!found?.part(weight, 0)) return el("p", { class: "muted" }, words("loss_not_here"));
  const steps = range(data.steps).reverse();  // as backward goes
  const used = steps.slice(0, added);
  const sum = found.part(weight, 0).data.map(() => 0);
  for (const step of used) found.part(weight, step).data.forEach((value, index) => (sum[index] += value));
  const newest = used.at(-1);
  const part = newest === undefined ? null : found.part(weight, newest);
  const [rows, columns] = found.part(weight, 0).shape.length > 1 ? found.part(weight, 0).shape : [1, found.part(weight, 0).shape[0] ?? 1];
  const full = parameter.shape.length > 1 ? parameter.shape : [1, parameter.shape[0] ?? 1];
  const shown = rows * columns < full[0] * full[1] ? ` · ${words("showing", { shown: `${rows}×${columns}`, total: `${full[0]}×${full[1]}` })}` : "";
  const grid = (key, caption, numbers) => matrix({
    key, label: caption, caption: [caption, shown], rows, columns, value: (r, c) => numbers[r * columns + c],
    rowHeads: (r) => String(r + 1), columnHeads: (c) => String(c + 1),
  });
  const outer = part && outerOf(exhibit, run, weight, newest, part, rows, columns);
  const { difference, agrees } = data.backward.checked;
  return [
    el("p", {}, words("outer_idea", { name: parameter.label })),
    part && el("p", { class: "worked" }, words("newest", { t: newest + 1, k: added, steps: data.steps })),
    outer?.worked,
    el("div", { class: "views" },
      part && el("div", { class: outer?.left ? "outer" : "" },
        outer?.left && [el("span"), outer.right, outer.left],
        grid("part", words(outer?.left ? "part_outer" : "part_of", { name: parameter.label, t: newest + 1 }), part.data)),
      grid("sum", words(added === data.steps ? "sum_all" : "sum_so_far", { name: parameter.label, k: added }), sum)),
    settings.values.loss === "sum" && el("p", { class: "worked" }, words(agrees ? "checked" : "checked_not", { difference: difference === null ? "nan" : written(difference, null) })),
  ];
}

// xₜᵀ δₜ: where a weight stands right of a row in one product, what a step adds is an outer product.
function outerOf(exhibit, run, weight, step, part, rows, columns) {
  const { data, words } = exhibit;
  const place = data.kept.indexOf(step);
  const terms = data.sums.flatMap((sum) => sum.terms).filter((one) => one.right && one.right[1] === weight && one.right[0] === "parameter");
  if (terms.length !== 1 || place < 0) return null;
  const row = run.row(terms[0].left, place);
  const left = range(rows).map((k) => row.get(k));
  if (left.some((number) => number === null)) return null;
  const strongest = left.reduce((best, number, k) => (Math.abs(number) > Math.abs(left[best]) ? k : best), 0);
  if (!left[strongest]) return { worked: el("p", {}, words("outer_zero", { x: at(terms[0].names[0].replace(/ₜ.*$/, ""), terms[0].left[0] === "state" ? step : step + 1) })) };
  const right = range(columns).map((c) => part.data[strongest * columns + c] / left[strongest]);
  const name = terms[0].names[0].replace("ₜ₋₁", "").replace("ₜ", "");
  const t = terms[0].left[0] === "state" ? step : step + 1;
  const value = part.data[strongest * columns];
  return {
    left: matrix({ key: "outer-left", label: name, caption: `${at(name, t)}ᵀ`, rows, columns: 1, value: (r) => left[r] }),
    right: matrix({ key: "outer-right", label: "δ", caption: words("delta", { name: timed(terms[0].label, step + 1) }), rows: 1, columns, value: (_, c) => right[c] }),
    worked: el("p", { class: "worked recomputed" }, `${at(name, t)}[${strongest + 1}] · δ[1] = ${short(left[strongest])} × ${right[0] < 0 ? `(${short(right[0])})` : short(right[0])} = ${short(value)}`),
  };
}

// -- experiments ----------------------------------------------------------------------------------------------------

export function effect(exhibit, model, run) {
  const { data, settings, words } = exhibit;
  if (!run.recomputed) return el("p", { class: "muted" }, words("nothing_changed"));
  const plain = model.unchanged();
  const units = unitsShown(exhibit, data.output.size);
  const name = at(data.output.own ? data.output.name : data.states[0].label, data.steps);
  const rows = [plain.last, run.last, run.last.map((value, j) => value - plain.last[j])];
  const distance = Math.sqrt(rows[2].reduce((sum, value) => sum + value * value, 0));
  const norm = Math.sqrt(plain.last.reduce((sum, value) => sum + value * value, 0));
  const steps = data.backward.moments.filter((moment) => moment > 0);
  const apart = (moment) => {
    const [one, other] = [run.state(0, moment), plain.state(0, moment)];
    return Math.sqrt(range(one.width).reduce((sum, j) => sum + (one.get(j) - other.get(j)) ** 2, 0));
  };
  const sentence = data.tokens && settings.values.swap_a !== settings.values.swap_b &&
    el("p", {}, words("sentence_now", { sentence: range(Math.min(data.steps, 24)).map((step) => shownToken(run.token(step))).join(" ") }));
  return [
    sentence,
    matrix({
      key: "effect", label: words("effect", { name }), caption: [words("effect", { name }), units.length < data.output.size ? ` · ${words("showing", { shown: units.length, total: data.output.size })}` : ""],
      rows: 3, columns: units.length, value: (r, c) => rows[r][units[c]],
      rowHeads: (r) => words(["effect_before", "effect_after", "effect_difference"][r]), columnHeads: (c) => String(units[c] + 1),
    }),
    el("p", { class: "worked recomputed", "data-distance": distance }, words("distance", { name, distance: short(distance), share: short((100 * distance) / (norm || 1)) })),
    el("p", {}, words("apart")),
    bars(steps.map((moment) => ({ name: at(data.states[0].label, moment), number: apart(moment) })), words("apart"), "apart"),
  ];
}
