// The parts that are folded until they are wanted: two divisors, what training keeps, one sample alone, the way back.

import { choice, player, slider, toggle } from "../core/controls.js";
import { el, range, svg } from "../core/dom.js";
import { matrix } from "../core/matrix.js";
import { short, term } from "../core/numbers.js";
import { table, when } from "./fields.js";
import { entry, gap } from "./model.js";
import { multiples, named } from "./multiples.js";

const text = (...parts) => el("p", {}, ...parts);
const worked = (...parts) => el("p", { class: "worked" }, ...parts);
const result = (number, name) => el("span", { class: "recomputed", "data-result": name }, short(number));
const bold = (symbol, shown = symbol) => el("b", { "data-symbol": symbol }, shown);

// Put controls into a folded part, above what is redrawn.
const above = (inside, box) => inside.before(box);

// -- biased or unbiased ------------------------------------------------------------------------------------------

export function divisors(exhibit, model) {
  const { words, data } = exhibit;
  const inside = exhibit.fold(
    words("divisor_title"),
    () => {
      const { kind } = model.values;
      if (!model.member.centred) return text(words("divisor_square"));
      const numbers = model.numbersOf(kind, model.values.groups, "train");
      const { real: n } = model.count(model.place);
      if (!model.real(model.place)) return text(words("is_padding"));
      const variance = entry(numbers.var, model.place);
      const total = variance * n;
      const unbiased = n > 1 ? total / (n - 1) : NaN;
      const stored = kind === data.running?.kind;
      return [
        text(words("divisor_main")),
        worked(words("divisor_sum"), " ∑ (x − μ)² = ", result(total, "sum")),
        worked(bold("σ²"), " = ", short(total), ` / ${n} = `, result(variance, "biased"), " · ", words("normalizes")),
        worked(
          words("unbiased"),
          " = ",
          short(total),
          ` / (${n} − 1) = `,
          result(unbiased, "unbiased"),
          " · ",
          words(stored ? "stored" : "not_stored"),
        ),
        n === 1 ? text(words("divisor_single")) : text(words("divisor_effect", { n, factor: short((n - 1) / n) })),
        model.unbiased ? text(words("divisor_on")) : null,
      ];
    },
    { class: "view divisor" },
  );
  if (model.canChange)
    above(
      inside,
      exhibit.controls(
        when(
          choice(words("divisor"), model.settings, "divisor", [
            ["biased", "n"],
            ["unbiased", "n − 1"],
          ]),
          () => `${model.values.kind}/unbiased` in data.programs && !model.remembers,
        ),
      ),
    );
}

// -- what training keeps -----------------------------------------------------------------------------------------

export function running(exhibit, model) {
  const { words, data } = exhibit;
  const given = data.running;
  const plays = given !== null && given.mean.shape[0] > 0;
  const here = () => plays && model.values.kind === given.kind;
  const inside = exhibit.fold(
    words("running_title"),
    () => {
      if (given === null) return text(words("running_none"));
      if (!here())
        return text(words(plays ? "running_other" : "running_single", { kind: words(`kind_${given.kind}`) }));
      return batches(exhibit, model);
    },
    { class: "view running" },
  );
  if (!plays) return;
  const box = exhibit.controls(
    player(exhibit, words("batches"), "seen", {
      count: given.mean.shape[0] + 1,
      text: (seen) => (seen === 0 ? words("before") : words("after", { seen })),
    }),
    given.momentum !== null &&
      model.canChange &&
      slider(words("momentum"), model.settings, "momentum", { min: 0, max: 1, step: 0.05 }),
  );
  above(inside, when(box, here));
  exhibit.drawn.push(() => box.draw());
}

function batches(exhibit, model) {
  const { words, data } = exhibit;
  const { seen } = model.values;
  const kept = model.kept();
  const c = model.place[data.channel];
  const given = data.running;
  const origin = words(given.own ? "running_batches" : "running_lent", { c: c + 1 });
  const lines = [text(words("running_main")), el("p", { class: "muted" }, origin)];
  if (seen > 0) {
    const factor = model.factor(seen - 1);
    const step = (symbol, before, own, after) =>
      worked(
        bold(symbol),
        ` ← (1 − ${short(factor)}) · ${term(before)} + ${short(factor)} · ${term(own)} = `,
        result(after, symbol),
      );
    lines.push(
      step("running_mean", kept.means[seen - 1][c], kept.mean[seen - 1][c], kept.means[seen][c]),
      step("running_var", kept.vars[seen - 1][c], kept.var[seen - 1][c], kept.vars[seen][c]),
      el("p", { class: "muted" }, words(given.momentum === null ? "cumulative" : "momentum_torch")),
    );
  }
  const heads = ["batch", "its_mean", "kept_mean", "its_var", "kept_var"].map((key) => words(`running_${key}`));
  const rows = range(given.mean.shape[0] + 1).map((k) =>
    el(
      "tr",
      { class: k === seen ? "own" : k > seen ? "later" : null, "aria-current": k === seen ? "true" : null },
      el("th", { scope: "row" }, k === 0 ? words("before") : String(k)),
      [k && kept.mean[k - 1][c], kept.means[k][c], k && kept.var[k - 1][c], kept.vars[k][c]].map((number, column) =>
        el(
          "td",
          { class: "number recomputed", "data-kept": `${k},${column}` },
          k === 0 && column % 2 === 0 ? "" : short(number),
        ),
      ),
    ),
  );
  lines.push(
    table("kept", heads, rows),
    chart(
      words("chart", { c: c + 1 }),
      kept.mean.map((row) => row[c]),
      kept.means.map((row) => row[c]),
      seen,
    ),
    el("p", { class: "muted" }, words("chart_legend")),
  );
  if (model.real(model.place)) {
    const normal = (mode) => entry(model.numbersOf(given.kind, 1, mode).x_hat, model.place);
    const training = [words("train_x"), " = ", result(normal("train"), "train")];
    const using = [words("eval_x"), " = ", result(normal("eval"), "eval")];
    lines.push(worked(...training, words("comma"), ...using), text(words("eval_main")));
  }
  return lines;
}

// Means of the batches as dots, the running mean as a line through them; what is no number has no place.
function chart(label, means, running, seen) {
  const [width, height, pad] = [420, 130, 14];
  const all = [...means, ...running].filter(Number.isFinite);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const x = (k) => pad + (k / means.length) * (width - 2 * pad);
  const y = (value) => height - pad - ((value - low) / (high - low || 1)) * (height - 2 * pad);
  const placed = (values) => values.map((value, k) => ({ value, k })).filter(({ value }) => Number.isFinite(value));
  const line = placed(running).map(({ value, k }) => `${x(k).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  return svg(
    "svg",
    { class: "chart", role: "img", "aria-label": label, viewBox: `0 0 ${width} ${height + 16}` },
    svg("title", {}, label),
    svg("line", { class: "now", x1: x(seen), x2: x(seen), y1: 0, y2: height }),
    svg("polyline", { class: "running", points: line }),
    placed(running).map(({ value, k }) => svg("rect", { class: "running", x: x(k) - 3, y: y(value) - 3, width: 6, height: 6 })),
    running.map((_, k) => svg("text", { x: x(k), y: height + 12, "text-anchor": "middle" }, String(k))),
    placed(means).map(({ value, k }) => svg("circle", { class: k < seen ? "seen" : "later", cx: x(k + 1), cy: y(value), r: 4 })),
  );
}

// -- one sample alone --------------------------------------------------------------------------------------------

export function batchOfOne(exhibit, model) {
  const { words, data } = exhibit;
  exhibit.fold(
    words("alone_title"),
    () => {
      const sample = model.place[0];
      const spaces = data.letters.length > 2;
      const places = model.places.filter((place) => place[0] === sample && model.real(place));
      const real = places.filter((place) => place[data.channel] === 0).length;
      const rows = ["batch", "layer"].map((kind) => {
        const together = model.numbersOf(kind, 1, "train").x_hat;
        const alone = model.alone(kind, sample);
        const widened = { shape: together.shape, data: together.data.slice() };
        const width = alone.data.length;
        widened.data.set(alone.data, sample * width);
        const difference = gap(together, widened, places);
        const grid = (x, key, caption, from) => oneSample(model, x, `${key}-${kind}`, caption, from);
        return el(
          "div",
          { class: "pair" },
          el("h4", {}, words(`kind_${kind}`)),
          grid(together, "together", words("together", { n: data.shape[0] }), sample),
          grid(alone, "alone", words("alone"), 0),
          text(
            words(kind === "batch" ? "alone_gap" : difference < 1e-6 ? "alone_same" : "alone_gap", {
              gap: short(difference),
            }),
          ),
        );
      });
      return [
        text(words("alone_main", { n: sample + 1 })),
        ...rows,
        text(words(real === 1 ? "alone_single" : spaces ? "alone_space" : "alone_flat", { n: real })),
        data.alone.error ? el("blockquote", { lang: "en" }, data.alone.error) : null,
        text(words("alone_eval")),
      ];
    },
    { class: "view alone" },
  );
}

// x̂ of a sample: channels down and places across, or steps down and channels across.
function oneSample(model, x, key, caption, sample) {
  const { shown, letters } = model.data;
  const inner = shown.slice(1);
  const [rows, columns] = inner.length === 1 ? [1, inner[0]] : [inner[0], inner.slice(1).reduce((a, b) => a * b, 1)];
  const per = rows * columns;
  const own = model.place[0];
  const place = (r, c) => model.places[own * per + r * columns + c];
  return matrix({
    key,
    label: `${caption}: x̂`,
    caption: el("span", {}, caption),
    rows,
    columns,
    value: (r, c) => (model.real(place(r, c)) ? x.data[sample * per + r * columns + c] : null),
    says: (r, c) =>
      named(
        letters,
        place(r, c).map((index, axis) => [axis, index]),
      ),
  });
}

// -- the way back ------------------------------------------------------------------------------------------------

export function backward(exhibit, model) {
  const { words, data } = exhibit;
  exhibit.fold(
    words("backward_title"),
    () => {
      const { place } = model;
      if (!model.real(place)) return text(words("is_padding"));
      const numbers = model.numbersOf();
      if (!numbers.d_x) return text(words("backward_unknown"));
      const sharing = new Set(model.shares(place).map(String));
      const parts = [
        text(words(model.member.centred ? "backward_main" : "backward_main_square")),
        multiples(data, {
          key: "gradient",
          label: "∂L/∂x",
          value: (at) => entry(numbers.d_x, at),
          chosen: place,
          set: (at) => (model.values.kind === "lrn" ? null : model.setOf(at)),
          shares: (at) => sharing.has(String(at)),
          real: (at) => model.real(at),
          says: (at) =>
            named(
              data.letters,
              at.map((index, axis) => [axis, index]),
            ),
          pick: (at) => model.pick(at),
        }),
      ];
      if (model.unbiased) parts.push(el("p", { class: "muted" }, words("backward_biased")));
      if (model.values.kind === "lrn") return [...parts, text(words("backward_lrn"))];
      return [...parts, ...terms(exhibit, model, numbers), ...learned(exhibit, model, numbers)];
    },
    { class: "view backward" },
  );
}

// The mean of something over the numbers that share the chosen one's average.
function meanOf(model, of) {
  const shares = model.shares(model.place);
  return shares.reduce((sum, place) => sum + of(place), 0) / Math.max(1, shares.length);
}

function terms(exhibit, model, numbers) {
  const { words } = exhibit;
  const { place, member } = model;
  const [gamma, upstream] = [model.affine("gamma"), model.upstream];
  const g = (at) => entry(upstream, at) * entry(gamma, at);
  const deviation = Math.sqrt(entry(member.centred ? numbers.var : numbers.mean, place) + model.values.eps);
  const normal = entry(numbers.x_hat, place);
  const averaged = "mean_g" in numbers;
  const meanG = averaged ? entry(numbers.mean_g, place) : meanOf(model, g);
  const meanGx = averaged ? entry(numbers.mean_gx, place) : meanOf(model, (at) => g(at) * entry(numbers.x_hat, at));
  const sigma = short(deviation);
  const found = [["direct", `${term(g(place))} / ${sigma}`, g(place) / deviation]];
  if (!model.remembers) {
    if (member.centred) found.push(["centre", `−${term(meanG)} / ${sigma}`, -meanG / deviation]);
    found.push(["spread", `−${term(normal)} · ${term(meanGx)} / ${sigma}`, (-normal * meanGx) / deviation]);
  }
  const greatest = Math.max(...found.map(([, , value]) => Math.abs(value)), 1e-300);
  const total = found.reduce((sum, [, , value]) => sum + value, 0);
  const gradient = entry(numbers.d_x, place);
  const rows = found.map(([name, shown, value]) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, words(`term_${name}`)),
      el("td", {}, shown),
      el("td", { class: "number recomputed", "data-term": name }, short(value)),
      el(
        "td",
        { "aria-hidden": "true" },
        el("span", {
          class: `bar ${value < 0 ? "negative" : "positive"}`,
          style: { "--width": `${((Math.abs(value) / greatest) * 6).toFixed(2)}rem` },
        }),
      ),
    ),
  );
  const ofNormal = result(g(place), "g");
  const [times, factor] = member.scales ? [" · γ", ` · ${term(entry(gamma, place))}`] : ["", ""];
  return [
    worked(bold("x", "∂L/∂x̂"), ` = ∂L/∂y${times} = ${term(entry(upstream, place))}${factor} = `, ofNormal),
    table("terms", null, rows),
    worked(
      bold("x", "∂L/∂x"),
      " = ",
      words("sum_of_terms"),
      " = ",
      result(total, "total"),
      " · ",
      words("gradient_of_formula"),
      " ",
      result(gradient, "gradient"),
      " · ",
      words("differs", { gap: short(Math.abs(total - gradient)) }),
    ),
    text(words(model.remembers ? "backward_eval" : "backward_terms")),
  ];
}

function learned(exhibit, model, numbers) {
  const { words } = exhibit;
  const { place, member } = model;
  if (!member.scales) return [];
  const upstream = model.upstream;
  const shares = model.places.filter((at) => member.affine.every((axis) => at[axis] === place[axis]) && model.real(at));
  const some = (of) =>
    `${shares.slice(0, 3).map(of).join(" + ")}${shares.length > 3 || !model.data.whole ? " + …" : ""}`;
  const g = (at) => term(entry(upstream, at));
  const line = (symbol, formula, written, name) =>
    worked(
      bold(symbol, `∂L/∂${symbol}`),
      ` = ${formula} = ${some(written)} = `,
      result(entry(numbers[name], place), name),
    );
  return [
    text(words("backward_learned")),
    line("γ", "∑ ∂L/∂y · x̂", (at) => `${g(at)} · ${term(entry(numbers.x_hat, at))}`, "d_gamma"),
    member.shifts && line("β", "∑ ∂L/∂y", g, "d_beta"),
  ];
}

// -- padding -----------------------------------------------------------------------------------------------------

export function padding(exhibit, model) {
  const { words, data } = exhibit;
  const inside = exhibit.fold(
    words("padding_title"),
    () => {
      const real = model.places.filter((place) => model.real(place) && place[data.channel ?? 0] === 0).length;
      const total = model.places.filter((place) => place[data.channel ?? 0] === 0).length;
      return [
        text(words(data.letters.includes("T") ? "padding_sentence" : "padding_main")),
        data.channel === null ? null : text(words("padding_count", { real, total })),
        model.hasPadding && !model.values.padding ? text(words("padding_counted")) : null,
      ];
    },
    { class: "view padding-lesson" },
  );
  if (!model.canChange) return;
  const extent = data.shape[model.time ?? 0];
  const lengths = (data.lengths ?? [])
    .slice(0, 6)
    .map((_, n) => slider(words("length", { n: n + 1 }), model.settings, `length${n}`, { min: 0, max: extent }));
  above(inside, exhibit.controls(toggle(words("leave_out"), model.settings, "padding"), ...lengths));
}
