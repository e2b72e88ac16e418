// The exhibit of a recurrent layer.

import { button, choice, menu, player, slider, toggle } from "../core/controls.js";
import { el, range } from "../core/dom.js";
import { register } from "../core/exhibit.js";
import { overview } from "../core/matrix.js";
import { wholeWithin, within } from "../core/numbers.js";
import { backward, effect, weightGradient } from "./backward.js";
import { convention, ledger, longest } from "./ledger.js";
import { Model, at } from "./model.js";
import { field, puzzle } from "./puzzle.js";
import { lines, opened, valves } from "./step.js";
import { reading, shownToken, strip } from "./strip.js";


function settingsOf(exhibit) {
  const { data } = exhibit;
  const [steps, kept] = [data.steps, data.kept.length];
  const units = data.units ?? range(data.states[0].size);
  const among = (list, value) => (list.includes(value) ? value : list[0] ?? "");
  const names = data.parameters.map(({ name }) => name);
  const initial = {
    step: Math.min(1, kept - 1), line: Math.max(0, data.sites.length - 1), unit: units[0], sum: 0, part: 0, all: false,
    folded: false, swap_a: 0, swap_b: 0, zero: 0, scaled: data.scaled ?? "", factor: 1, loss: "sum", weight: names[0] ?? "",
    added: steps, symbol: data.puzzle[0]?.name ?? "", rows: 0, columns: 0, told: false, side: "paper", biases: 1, length: steps,
  };
  return exhibit.choose(initial, (values) => ({
    ...values,
    step: wholeWithin(values.step, 0, kept - 1),
    line: wholeWithin(values.line, 0, initial.line),
    unit: units.includes(values.unit) ? values.unit : units[0],
    sum: wholeWithin(values.sum, 0, Math.max(0, data.sums.length - 1)),
    part: wholeWithin(values.part, 0, Math.max(0, (data.sums[wholeWithin(values.sum, 0, data.sums.length - 1)]?.parts.length ?? 1) - 1)),
    swap_a: wholeWithin(values.swap_a, 0, steps), swap_b: wholeWithin(values.swap_b, 0, steps), zero: wholeWithin(values.zero, 0, steps),
    scaled: among(data.scaled ? [data.scaled, ...names] : names, values.scaled),
    factor: within(values.factor, 0, 3),
    loss: values.loss === "unit" ? "unit" : "sum",
    weight: among(names, values.weight),
    added: wholeWithin(values.added, 0, steps),
    symbol: among(data.puzzle.map(({ name }) => name), values.symbol),
    rows: Math.max(0, Math.round(values.rows)), columns: Math.max(0, Math.round(values.columns)),
    side: values.side === "torch" ? "torch" : "paper",
    biases: values.biases === 2 ? 2 : 1,
    length: wholeWithin(values.length, 1, longest(data)),
  }));
}

register("recurrence", (exhibit) => {
  const { data, words } = exhibit;
  const settings = settingsOf(exhibit);
  const model = (exhibit.model ??= new Model(data));
  const now = () => model.of(settings.values);
  const units = data.units ?? range(data.states[0].size);

  // The gradients of the loss that is chosen: Python's where it has sent them, else recomputed.
  const gradients = () => {
    const run = now();
    const loss = settings.values.loss === "sum" ? "sum" : Math.min(settings.values.unit, data.output.size - 1);
    return run.backward(loss) ?? (model.experiments ? model.of(settings.values, true).backward(loss) : null);
  };
  // A part whose numbers may come from the page while those around it are Python's.
  const own = (recomputed, children) => el("div", { "data-source": recomputed ? "page" : "python" }, children);
  const inside = (place, ...controls) => place.before(exhibit.controls(...controls));
  const stepText = (place) => {
    const t = data.kept[place] + 1;
    const token = now().token(t - 1);
    return token === null ? words("step_of", { t, steps: data.steps }) : words("step_token", { t, steps: data.steps, token: shownToken(token) });
  };

  // -- the sentence and the network ---------------------------------------------------------------------------

  const unitControl = data.units
    ? menu(words("unit"), settings, "unit", units.map((unit) => [unit, String(unit + 1)]))
    : slider(words("unit"), settings, "unit", { min: 0, max: units.length - 1, text: (unit) => `${unit + 1} / ${units.length}` });
  const linePlayer = data.sites.length > 1 && player(exhibit, words("line"), "line", {
    count: data.sites.length, text: (line) => `${line + 1} / ${data.sites.length}`,
  });
  const addPlayer = player(exhibit, words("added"), "added", { count: data.steps + 1, text: (k) => `${k} / ${data.steps}` });
  exhibit.controls(
    player(exhibit, words("step"), "step", { count: data.kept.length, text: stepText }),
    unitControl,
    toggle(words("fold"), settings, "folded"),
  );
  exhibit.view(words("strip"), () => {
    const run = now();
    const local = !run.recomputed && (settings.values.length !== data.steps || (settings.values.loss === "unit" && gradients()?.recomputed));
    exhibit.source(run.recomputed || local);
    if (local) exhibit.root.dataset.source = "python";
    const first = data.kept.length < data.steps;
    return [
      el("p", {}, words(settings.values.folded ? "folded_idea" : "strip_idea", { state: data.states.map(({ label }) => `${label}₀`).join(", ") })),
      data.places > 1 && el("p", { class: "muted" }, words("first_level", { n: data.places })),
      data.training && el("p", { class: "muted" }, words("without_draws")),
      strip(exhibit, run),
      el("p", { class: "muted" }, words("boxes")),
      el("p", { class: "worked" }, reading(exhibit, run)),
      first && el("p", { class: "muted" }, words("steps_shown", { shown: data.kept.length, total: data.steps })),
      data.overview && el("figure", {}, el("figcaption", {}, words("overview", { h: data.states[0].label, size: data.states[0].size, steps: data.steps })),
        el("div", { class: "scroll" }, overview(words("overview", { h: data.states[0].label, size: data.states[0].size, steps: data.steps }), data.overview)),
        el("p", { class: "muted" }, words("units_shown", { shown: units.length, total: data.states[0].size }))),
    ];
  }, { "data-part": "strip" });

  // -- one step -----------------------------------------------------------------------------------------------

  const linesPlace = exhibit.view(words("lines"), () => [el("p", {}, words("lines_idea")), lines(exhibit, now())], { "data-part": "lines" });
  if (linePlayer) inside(linesPlace, linePlayer);

  if (data.sums.length) {
    const place = exhibit.view(words("opened"), () => opened(exhibit, now()), { "data-part": "opened" });
    const controls = [];
    if (data.sums.length > 1)
      controls.push(menu(words("which_sum"), settings, "sum", data.sums.map(({ label }, index) => [index, label])));
    const most = data.sums.reduce((all, { parts }) => Math.max(all, parts.length), 1);
    if (most > 1) {
      const part = menu(words("which_part"), settings, "part", range(most).map((index) => [index, String(index + 1)]));
      const draw = part.draw;
      part.draw = () => {
        const { parts } = data.sums[settings.values.sum];
        [...part.querySelectorAll("option")].forEach((option, index) => {
          option.hidden = index >= parts.length;
          option.textContent = parts[index]?.label || "–";
        });
        draw();
      };
      controls.push(part);
    }
    controls.push(toggle(words("all_terms"), settings, "all"));
    inside(place, ...controls);
  }
  if (data.valves.length)
    exhibit.view(words("valves"), () => [el("p", {}, words("valves_idea")), valves(exhibit, now())], { "data-part": "valves" });

  // -- what is folded -----------------------------------------------------------------------------------------

  if (data.puzzle.length) {
    const place = exhibit.fold(words("puzzle"), () => puzzle(exhibit), { "data-part": "puzzle" });
    const symbol = menu(words("which_symbol"), settings, "symbol", data.puzzle.map(({ name, label }) => [name, label]));
    symbol.addEventListener("change", () => settings.set({ rows: 0, columns: 0, told: false }));
    inside(place, symbol, field(words("rows"), settings, "rows"), field(words("columns"), settings, "columns"),
      button(words("tell"), () => settings.set({ told: true }), { "data-act": "tell" }));
  }

  const experiments = exhibit.fold(words("experiments"), () => model.experiments
    ? [el("p", {}, words("experiments_idea")), effect(exhibit, model, now())]
    : el("p", {}, words(data.trouble.key, { operation: data.trouble.operation })), { "data-part": "experiments" });
  if (model.experiments) {
    const which = (place) => (place ? `${place}${data.tokens ? ` ${shownToken(data.tokens[place - 1])}` : ""}` : "–");
    const controls = [];
    if (data.steps > 1)
      for (const [key, name] of [["swap_a", "swap_first"], ["swap_b", "swap_second"]])
        controls.push(slider(words(name), settings, key, { min: 0, max: data.steps, text: which }));
    controls.push(slider(words("zero"), settings, "zero", { min: 0, max: data.steps, text: (t) => (t ? at(data.states[0].label, t - 1) : "–") }));
    if (data.parameters.length) {
      controls.push(menu(words("scaled"), settings, "scaled", data.parameters.map(({ name, label }) => [name, label])));
      controls.push(slider(words("factor"), settings, "factor", { min: 0, max: 3, step: 0.05, text: (factor) => `× ${factor}` }));
    }
    inside(experiments, ...controls);
  }

  const back = exhibit.fold(words("backward"), () => {
    const found = gradients();
    return own(found?.recomputed, [backward(exhibit, now(), found)]);
  }, { "data-part": "backward" });
  inside(back, choice(words("loss"), settings, "loss", [["sum", words("loss_is_sum")], ["unit", words("loss_is_unit")]]));

  if (data.parameters.length) {
    const place = exhibit.fold(words("outer"), () => {
      const found = gradients();
      return own(found?.recomputed, [weightGradient(exhibit, now(), found)]);
    }, { "data-part": "outer" });
    inside(place, menu(words("which_weight"), settings, "weight", data.parameters.map(({ name, label }) => [name, label])), addPlayer);
  }
  if (data.convention) {
    const place = exhibit.fold(words("convention"), () => convention(exhibit, now()), { "data-part": "convention" });
    const controls = [choice(words("side"), settings, "side", [["paper", "x U"], ["torch", "W xᵀ"]])];
    if (data.convention.counts.some(({ name }) => name.startsWith("bias_hh")))
      controls.push(choice(words("biases"), settings, "biases", [[1, words("one")], [2, words("two")]]));
    inside(place, ...controls);
  }
  const place = exhibit.fold(words("ledger"), () => ledger(exhibit), { "data-part": "ledger" });
  inside(place, slider(words("length"), settings, "length", { min: 1, max: longest(data), text: (n) => words("n_steps", { n }) }));
});
