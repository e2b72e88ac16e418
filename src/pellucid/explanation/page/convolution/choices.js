// The settings of the exhibit, what goes together, and their controls.

import { el } from "../core/dom.js";
import { choice, menu, player, slider, toggle } from "../core/controls.js";
import { wholeWithin } from "../core/numbers.js";

const SIZES = ["k", "s", "d", "p"];
const PHASES = 3; // of every position: multiplied, summed, moved on
export const positionOf = (values) => Math.floor(values.step / PHASES);
export const phaseOf = (values) => values.step % PHASES;
export const stepOf = (position) => position * PHASES;

export function initialOf(data) {
  const names = { k: "kernel", s: "stride", d: "dilation", p: "padding" };
  const sizes = Object.fromEntries(SIZES.flatMap((key) =>
    ["h", "w"].map((axis, index) => [key + axis, data[names[key]][index]])));
  const [channels, height, width] = data.x.shape;
  const middle = Math.floor(height / 2) * width + Math.floor(width / 2);
  const [own, stride, dilation] = [sizes.kw, sizes.sw, sizes.dw];
  return {
    ...sizes, around: data.around, mode: data.mode, groups: data.groups, in: data.channels[0], out: data.channels[1],
    ceil: data.ceil ?? false, counted: data.counted ?? false,
    rows: data.y?.shape[1] ?? 1, columns: data.y?.shape[2] ?? 1,
    square: SIZES.every((key) => sizes[`${key}h`] === sizes[`${key}w`]), picture: "given", kernel: "own", edits: "",
    edit: false, o: 0, c: 0, step: 0, width: 0, pixel: Math.min(middle, channels * height * width - 1), loss: "sum",
    stack: Array(3).fill([own, stride, dilation].join(".")).join(" "),
  };
}

const whole = (value, low, high) => wholeWithin(value, low, Math.max(low, high));

function limitsOf(data) {
  const initial = initialOf(data);
  const upTo = (key, least) => Math.max(least, initial[`${key}h`], initial[`${key}w`]);
  return {
    k: [1, upTo("k", 7)], s: [1, upTo("s", 4)], d: [1, upTo("d", 4)], p: [0, upTo("p", 4)],
    in: [1, Math.max(6, data.channels[0])], out: [1, Math.max(6, data.channels[1])],
    groups: [1, Math.max(6, data.groups)],
    rows: [1, Math.max(7, initial.rows)], columns: [1, Math.max(7, initial.columns)],
  };
}

const named = (options, value, otherwise) => (options.includes(value) ? value : otherwise);
const AROUND = ({ transposed, spatial }) =>
  transposed ? ["numbers", "same"] : ["numbers", "valid", "same", ...(spatial === 1 ? ["causal"] : [])];
const MODES = ["zeros", "reflect", "replicate", "circular"];

// What brings settings into range; `mended` is told what had to change: [key of a word, facts].
export function validOf(data, modelOf, mended) {
  const limits = limitsOf(data);
  const initial = initialOf(data);
  const pooling = data.family === "pooling";
  return (given) => {
    const values = { ...given };
    mended.length = 0;
    for (const key of SIZES)
      for (const axis of ["h", "w"]) values[key + axis] = whole(values[key + axis], ...limits[key]);
    for (const key of ["in", "out", "groups", "rows", "columns"]) values[key] = whole(values[key], ...limits[key]);
    if (values.square && data.spatial === 2)
      for (const key of SIZES) values[`${key}h`] = values[`${key}w`];
    if (data.spatial === 1) for (const key of SIZES) values[`${key}h`] = initial[`${key}h`];
    values.around = named(AROUND(data), values.around, initial.around);
    values.mode = named(MODES, values.mode, initial.mode);
    values.picture = named(["given", "ring", "edge"], values.picture, "given");
    values.kernel = named(["own", "edge", "mean"], values.kernel, "own");
    values.loss = named(["sum", "squares"], values.loss, "sum");
    if (pooling) {
      values.in = values.out = data.channels[0];
      for (const axis of ["h", "w"]) {
        const most = Math.floor(values[`k${axis}`] / 2);
        if (values[`p${axis}`] > most) {
          mended.push(["mended_padding", { padding: values[`p${axis}`], most }]);
          values[`p${axis}`] = most;
        }
      }
    }
    if (!data.whole) // what other settings read is not in the page
      for (const key of Object.keys(initial))
        if (!["o", "c", "step", "kernel", "edits", "edit", "stack"].includes(key)) values[key] = initial[key];
    const asked = values.groups;
    while (values.in % values.groups || values.out % values.groups) values.groups--;
    if (values.groups !== asked)
      mended.push(["mended_groups", { asked, groups: values.groups, in: values.in, out: values.out }]);
    values.o = whole(values.o, 0, (data.whole ? values.out : data.y.shape[0]) - 1);
    values.c = whole(values.c, 0, (data.whole ? values.in : data.x.shape[0]) - 1);
    values.width = whole(values.width, 0, (data.layers?.length ?? 1) - 1);
    values.pixel = whole(values.pixel, 0, values.in * data.x.shape[1] * data.x.shape[2] - 1);
    const model = modelOf(values);
    values.step = whole(values.step, 0, model.error ? 0 : PHASES * model.windows.positions - 1);
    return values;
  };
}

// The controls: those of the window first, what is shown and the others folded.
export function controls(exhibit, modelOf, clear) {
  const { settings, words, data } = exhibit;
  const limits = limitsOf(data);
  const pooling = data.family === "pooling";
  const when = (node, wanted) => {
    const draw = node.draw;
    node.draw = () => {
      draw();
      node.hidden = !wanted(settings.values);
    };
    return node;
  };
  const line = (key, name, index) =>
    slider(words(name), settings, key, { min: limits[index][0], max: limits[index][1] });
  const pairs = SIZES.filter((key) => key !== "d" || !(pooling && data.average)).flatMap((key) => {
    const shown = (values) => key !== "p" || values.around === "numbers";
    const across = when(line(`${key}w`, data.spatial === 1 ? `size_${key}` : `size_${key}w`, key), shown);
    if (data.spatial === 1) return [across];
    const alone = when(line(`${key}w`, `size_${key}`, key), (values) => values.square && shown(values));
    return [
      alone, when(line(`${key}h`, `size_${key}h`, key), (values) => !values.square && shown(values)),
      when(across, (values) => !values.square && shown(values)),
    ];
  });
  const options = (key, keys) => keys.map((value) => [value, words(`${key}_${value}`)]);
  if (data.layers)
    exhibit.controls(choice(words("size_width"), settings, "width",
      data.layers.map((layer, index) => [index, words("width_of", { width: layer.width })])));
  else if (data.whole && data.shared)
    exhibit.controls(
      data.spatial === 2 && line("rows", "outputs_h", "rows"),
      line("columns", data.spatial === 2 ? "outputs_w" : "outputs", "columns"));
  else if (data.whole) {
    exhibit.controls(...pairs, ...(data.spatial === 2 ? [toggle(words("square"), settings, "square")] : []));
    const more = exhibit.controls(
      ...(pooling ? [] : [
        menu(words("around"), settings, "around", options("around", AROUND(data))),
        menu(words("mode"), settings, "mode", options("mode", MODES)),
        line("in", "channels_in", "in"), line("out", "channels_out", "out"), line("groups", "groups", "groups"),
      ]),
      ...(pooling ? [toggle(words("ceil"), settings, "ceil")] : []),
      ...(data.slidingAverage && data.divisor === null ? [toggle(words("counted"), settings, "counted")] : []));
    fold(exhibit, words(pooling ? "more_pooling" : "more"), more);
  }
  const usable = !data.program.unsupported;
  if (usable) {
    const play = exhibit.controls(
      data.whole && !data.layers && menu(words("picture"), settings, "picture", options(
        data.spatial === 1 ? "line" : "picture", ["given", "ring", "edge"])),
      !pooling && menu(words("kernel"), settings, "kernel", options("kernel", ["own", "edge", "mean"])),
      toggle(words("edit"), settings, "edit"));
    fold(exhibit, words(pooling ? "try_pooling" : "try"), play);
  }
  const outs = (values) => (data.whole ? values.out : data.y.shape[0]) - 1;
  const going = player(exhibit, words("player"), "step", {
    count: (values) => (modelOf(values).error ? 1 : PHASES * modelOf(values).windows.positions),
    text: (step) => {
      const model = modelOf(settings.values);
      return words(`phase_${phaseOf({ step })}`, {
        number: positionOf({ step }) + 1, total: model.error ? 0 : model.windows.positions,
      });
    },
  });
  const escape = exhibit.bound.Escape;
  exhibit.keys({
    Escape: () => {
      escape();
      clear();
    },
  });
  const name = words(pooling ? "channel" : data.layers ? "filter" : "channel_out");
  exhibit.controls(going, when(slider(name, settings, "o", { min: 0, max: outs }), outs));
}

function fold(exhibit, title, box) {
  exhibit.root.append(el("details", { class: "more" }, el("summary", {}, title), box));
}
