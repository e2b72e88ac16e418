// Normalization: who shares a mean and a variance, and what becomes of each number.

import { choice, slider } from "../core/controls.js";
import { el, range } from "../core/dom.js";
import { register } from "../core/exhibit.js";
import { overview } from "../core/matrix.js";
import { count, short, wholeWithin, within } from "../core/numbers.js";
import { field, table, when } from "./fields.js";
import { formulas, worked } from "./formula.js";
import { backward, batchOfOne, divisors, padding, running } from "./lessons.js";
import { entry, gap, joined, Model, parsed } from "./model.js";
import { look, meaning, multiples, named } from "./multiples.js";
import { shapes } from "./shapes.js";

const LISTED = 8; // averages
const COMPUTED = ["edits", "eps", "padding", "divisor", "momentum"]; // settings that need the formula's program

function initialOf(data) {
  const lengths = data.lengths ?? [];
  return {
    kind: data.own,
    groups: data.group,
    show: "x",
    cell: 0,
    mode: data.eval ? "eval" : "train",
    divisor: "biased",
    seen: 0,
    momentum: data.running?.momentum ?? 0.1,
    eps: data.eps,
    edits: "",
    padding: true,
    ...Object.fromEntries(lengths.map((length, index) => [`length${index}`, length])),
  };
}

// Bring settings, which may be anybody's, into range.
function validOf(data) {
  const cells = data.x.data.length;
  const whole = (value, most) => wholeWithin(value, 0, most);
  const one = (value, known, initial) => (known.includes(value) ? value : initial);
  const initial = initialOf(data);
  return (values) => {
    const found = {
      ...values,
      kind: one(values.kind, data.kinds, initial.kind),
      groups: one(values.groups, data.groups, initial.groups),
      show: one(values.show, ["x", "x_hat", "y"], "x"),
      mode: one(values.mode, ["train", "eval"], initial.mode),
      divisor: one(values.divisor, ["biased", "unbiased"], "biased"),
      cell: whole(values.cell, cells - 1),
      seen: data.running ? whole(values.seen, data.running.mean.shape[0]) : 0,
      momentum: within(values.momentum, 0, 1),
      eps: Math.max(values.eps, 0),
      edits: joined(parsed(values.edits)),
    };
    if (found.kind === "lrn" && found.show === "x_hat") found.show = "y";
    if (data.lengths)
      range(data.lengths.length).forEach(
        (n) => (found[`length${n}`] = whole(values[`length${n}`], data.shape[data.channel === 2 ? 1 : 2])),
      );
    return data.programs ? found : { ...found, ...Object.fromEntries(COMPUTED.map((key) => [key, initial[key]])) };
  };
}

register("normalization", (exhibit) => {
  const { data, words } = exhibit;
  const settings = exhibit.choose(initialOf(data), validOf(data));
  const model = new Model(data, settings);
  exhibit.controls(...controls(exhibit, settings));
  exhibit.view(words("picture_title"), () => {
    exhibit.source(model.recomputed);
    return picture(exhibit, model);
  });
  const lines = exhibit.view(words("worked_title"), () =>
    el(
      "div",
      { class: "beside" },
      el(
        "div",
        { class: "formulas scroll" },
        formulas(model),
        model.hasPadding && settings.values.padding && el("p", { class: "muted" }, words("mark")),
      ),
      el("div", {}, workedView(exhibit, model)),
    ),
  );
  if (model.canChange) lines.before(exhibit.controls(...fields(exhibit, model)));
  exhibit.view(words("shapes_title"), () => shapes(exhibit, model));
  divisors(exhibit, model);
  if (data.own !== "own") {
    running(exhibit, model);
    if (data.alone) batchOfOne(exhibit, model);
  }
  backward(exhibit, model);
  if (data.lengths || data.real) padding(exhibit, model);
});

function controls({ data, words }, settings) {
  const is = (kind) => settings.values.kind === kind;
  const shows = [
    ["x", "x"],
    ["x_hat", "x̂"],
    ["y", "y"],
  ];
  const groups = {
    get values() {
      return { index: data.groups.indexOf(settings.values.groups) };
    },
    set: ({ index }) => settings.set({ groups: data.groups[index] }),
  };
  const steps = { min: 0, max: data.groups.length - 1, text: (index) => String(data.groups[index]) };
  const modes = [
    ["train", words("train")],
    ["eval", words("eval")],
  ];
  return [
    data.kinds.length > 1 &&
      choice(
        words("kind"),
        settings,
        "kind",
        data.kinds.map((kind) => [kind, words(`kind_${kind}`)]),
      ),
    data.groups.length > 0 && when(slider(words("groups"), groups, "index", steps), () => is("group")),
    when(choice(words("mode"), settings, "mode", modes), () => `${settings.values.kind}/eval` in data.values),
    when(choice(words("show"), settings, "show", shows), () => !is("lrn")),
    data.own === "lrn" &&
      when(
        choice(
          words("show"),
          settings,
          "show",
          shows.filter(([key]) => key !== "x_hat"),
        ),
        () => is("lrn"),
      ),
  ];
}

// -- the picture -------------------------------------------------------------------------------------------------

const placeName = (model, place) =>
  named(
    model.data.letters,
    place.map((index, axis) => [axis, index]),
  );
const shown = (model) => ({ x: model.x, x_hat: model.numbers.x_hat, y: model.numbers.y })[model.values.show];

function picture(exhibit, model) {
  const { words, data } = exhibit;
  const { kind, show } = model.values;
  const sharing = new Set(model.shares(model.place).map(String));
  const value = shown(model);
  const partition = kind !== "lrn";
  const alone =
    model.member.centred && !model.remembers && model.real(model.place) && model.count(model.place).real === 1;
  return [
    el("p", {}, words(model.remembers ? "main_eval" : `main_${kind}`)),
    !data.whole &&
      el("p", { class: "muted" }, words("part", { shown: data.shown.join("×"), total: data.shape.join("×") })),
    el("p", { class: "muted" }, `${axesOf(exhibit)}${words("stop")}${words(partition ? "walk" : "walk_window")}`),
    el(
      "div",
      { class: "beside" },
      el(
        "div",
        {},
        multiples(data, {
          key: "input",
          label: show === "x" ? "x" : show === "y" ? "y" : "x̂",
          value: (place) => entry(value, place),
          chosen: model.place,
          set: (place) => (partition ? model.setOf(place) : null),
          shares: (place) => sharing.has(String(place)),
          real: (place) => model.real(place),
          says: (place, isShared) => `${placeName(model, place)}${isShared ? ` · ${words("in_set")}` : ""}`,
          pick: (place) => model.pick(place),
        }),
        el("p", { class: "count", role: "status" }, counted(exhibit, model)),
        alone && el("p", {}, words("single")),
        meeting(exhibit, model),
      ),
      partition && averages(exhibit, model),
    ),
    data.overview && mapOf(exhibit),
  ];
}

// "N: 3 samples, C: 4 channels"
function axesOf({ data, words }) {
  const sizes = data.letters.map((letter, axis) => [
    letter,
    meaning(letter) === "other" ? String(data.shape[axis]) : words(`size_${letter}`, { n: data.shape[axis] }),
  ]);
  return sizes.map(([letter, text]) => words("axis_is", { letter, size: text })).join(words("comma"));
}

// "3 samples × 2 rows × 2 columns = 12 numbers share this μ and σ²."
function counted(exhibit, model) {
  const { words } = exhibit;
  if (!model.real(model.place)) return words("is_padding");
  const { factors, total, real } = model.count(model.place);
  const product = factors.map(([letter, n]) => words(`size_${meaning(letter)}`, { n, letter })).join(" × ") || "1";
  if (model.values.kind === "lrn") return words("count_window", { n: total, inside: model.shares(model.place).length });
  if (model.remembers) return words("count_eval", { product, n: total });
  return words(`count${real === total ? "" : "_real"}_${model.member.centred ? "both" : "square"}`, {
    product,
    n: total,
    real,
  });
}

// Where the groups meet another member; both are computed and compared.
function meeting(exhibit, model) {
  const { data, words } = exhibit;
  if (model.values.kind !== "group") return [];
  const { groups } = model.values;
  const channels = data.shape[data.channel];
  const lines = [];
  const compared = (kind) => {
    const [ours, theirs] = [model.numbersOf().x_hat, model.numbersOf(kind).x_hat];
    const real = model.places.filter((place) => model.real(place));
    return words("meets", {
      kind: words(`kind_${kind}`),
      ours: short(entry(ours, model.place)),
      theirs: short(entry(theirs, model.place)),
      gap: short(gap(ours, theirs, real)),
    });
  };
  const sameAsLayer = String(data.members.layer.axes) === String(model.member.axes);
  if (groups === 1)
    lines.push(sameAsLayer ? `${words("group_one")}${words("then")}${compared("layer")}` : words("group_one_sentence"));
  if (groups === channels)
    lines.push(
      "instance" in data.members
        ? `${words("group_each")}${words("then")}${compared("instance")}`
        : words("group_each_flat"),
    );
  if (groups > 1 && groups < channels) lines.push(words("group_between", { n: channels / groups, channels }));
  return lines.map((line) => el("p", { class: "meeting" }, line));
}

// The averages one by one, with the look that their numbers have.
function averages(exhibit, model) {
  const { words } = exhibit;
  const { numbers, member } = model;
  const sets = new Map();
  for (const place of model.places.filter((one) => model.real(one)).reverse()) sets.set(model.setOf(place), place);
  const own = model.setOf(model.place);
  const sorted = [...sets].sort(([a], [b]) => a - b);
  const list = sorted.filter(([set], index) => index < LISTED || set === own);
  const rows = list.map(([set, place]) => {
    const { class: looks, style } = look(set);
    const at = model.coordinates(place).map(([letter, index]) => `${letter.toLowerCase()} = ${index + 1}`);
    const number = (name) =>
      el("td", { class: "number recomputed", "data-average": name }, short(entry(numbers[name], place)));
    return el(
      "tr",
      { class: set === own ? "own" : null, "aria-current": set === own ? "true" : null },
      el("th", { scope: "row" }, el("span", { class: `swatch ${looks}`, style }), at.join(", ") || words("all")),
      el("td", { class: "number" }, count(model.count(place).real)),
      number("mean"),
      member.centred && number("var"),
    );
  });
  const averaged = member.centred ? ["μ", "σ²"] : ["mean_square"];
  const heads = model.remembers ? ["running_mean", "running_var"] : averaged;
  const title = model.remembers ? "averages_kept" : member.centred ? "averages" : "averages_square";
  return el(
    "figure",
    { class: "averages" },
    el("figcaption", {}, words(title, { n: averageCount(model) })),
    table("", [words("set"), words("numbers"), ...heads], rows),
    sets.size > rows.length && el("p", { class: "muted" }, words("showing", { shown: rows.length, total: sets.size })),
  );
}

// How many averages there are for the whole input.
function averageCount(model) {
  const { shape } = model.data;
  const { kind, groups } = model.values;
  return (
    shape.filter((_, axis) => !model.member.axes.includes(axis)).reduce((a, b) => a * b, 1) *
    (kind === "group" ? groups : 1)
  );
}

function mapOf(exhibit) {
  const { data, words } = exhibit;
  const [rows, columns] = data.overview.shape;
  const [first, second] = data.shape.length === 1 ? [1, data.shape[0]] : data.shape;
  const [height, width] = data.shape.length === 1 ? [1, data.shown[0]] : data.shown;
  const frame = {
    left: 0,
    top: 0,
    width: Math.max(1, (width / second) * columns),
    height: Math.max(1, (height / first) * rows),
  };
  return el(
    "figure",
    {},
    el("figcaption", {}, words("overview", { down: data.letters[0], across: data.letters[1] ?? "" })),
    overview(words("overview_label"), data.overview, frame),
  );
}

// -- the worked lines --------------------------------------------------------------------------------------------

function workedView(exhibit, model) {
  const { words, data } = exhibit;
  if (!model.real(model.place)) return [el("p", {}, words("is_padding"))];
  return [
    el("p", { class: "muted" }, words("worked_cell", { place: placeName(model, model.place) })),
    ...worked(model),
    model.member.layers === false && model.values.kind !== "lrn" && model.values.kind !== data.own
      ? el("p", { class: "muted" }, words("new_parameters"))
      : null,
    data.unsupported ? el("p", { class: "muted" }, words("unsupported", { name: data.unsupported })) : null,
    !data.whole ? el("p", { class: "muted" }, words("fixed")) : null,
  ];
}

// What may be written over: the chosen number, its γ and β, ε.
function fields(exhibit, model) {
  const { words, data } = exhibit;
  const neighbours = () => model.values.kind === "lrn";
  const learned = (name, symbol, has) => {
    const node = field(
      symbol,
      name,
      () => entry(model.affine(name), model.place),
      (number) => model.edit(model.affineKey(name, model.place), number),
    );
    return when(node, () => !neighbours() && has(model.member));
  };
  const others = Object.keys(data.numbers).map((name) => {
    const symbol = { alpha: "α", beta: "β", k: "k" }[name];
    return when(
      field(
        symbol,
        `number.${name}`,
        () => model.number(name),
        (number) => model.edit(`number.${name}`, number),
      ),
      neighbours,
    );
  });
  return [
    el("span", { class: "muted" }, words("change")),
    field(
      "x",
      "x",
      () => entry(model.x, model.place),
      (number) => model.edit(`x.${model.values.cell}`, number),
    ),
    learned("gamma", "γ", (member) => member.scales),
    learned("beta", "β", (member) => member.shifts),
    when(
      field(
        "ε",
        "eps",
        () => model.values.eps,
        (number) => model.settings.set({ eps: number }),
      ),
      () => !neighbours(),
    ),
    ...others,
  ];
}
