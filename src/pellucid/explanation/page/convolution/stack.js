// The receptive field of a stack of layers: which inputs one output sees, and which between them it never does.

import { button } from "../core/controls.js";
import { el, range, svg } from "../core/dom.js";
import { few, muted, worked } from "./parts.js";

const MOST = 16; // layers
const DRAWN = 64; // places of the input that are drawn
const PRESETS = [[2, 2, 2], [1, 2, 5], [1, 2, 4, 8]];
const BOUNDS = [[1, 32], [1, 8], [1, 512]];

export function parsed(text) {
  const layers = text.trim().split(/\s+/).map((layer) => layer.split(".").map(Number));
  const sound = layers.filter((layer) => layer.length === 3 && layer.every(Number.isInteger))
    .map((layer) => layer.map((value, k) => Math.min(Math.max(value, BOUNDS[k][0]), BOUNDS[k][1])));
  return (sound.length ? sound : [[3, 1, 1]]).slice(0, MOST);
}
export const written = (layers) => layers.map((layer) => layer.join(".")).join(" ");

// Level by level, from the one output down to the input: how often each place is used, by its distance to the first.
function levelsOf(layers) {
  const levels = [new Map([[0, 1]])];
  for (const [kernel, stride, dilation] of [...layers].reverse()) {
    const below = new Map();
    for (const [place, times] of levels.at(-1))
      for (let m = 0; m < kernel; m++) {
        const at = place * stride + m * dilation;
        below.set(at, (below.get(at) ?? 0) + times);
      }
    levels.push(below);
  }
  return levels;
}

// The exhibit of a network of causal convolutions: the stack alone.
export function network(exhibit) {
  const { data, words } = exhibit;
  const valid = ({ stack }) => ({ stack: written(parsed(stack)) });
  const settings = exhibit.choose({ stack: written(data.stack) }, valid);
  exhibit.view(words("stack"), () => {
    exhibit.source(settings.changed());
    return stack({ words, settings, data, causal: true });
  });
}

export function stack({ words, settings, data, causal = false }) {
  const layers = parsed(settings.values.stack);
  const set = (changed) => settings.set({ stack: written(changed) });
  const levels = levelsOf(layers);
  const read = [...levels.at(-1).keys()];
  const size = Math.max(...read) + 1;
  const never = range(size).filter((place) => !levels.at(-1).has(place));
  const jumps = jumpsOf(layers);
  const sum = layers.map(([kernel, , dilation], index) => `(${kernel} − 1)·${dilation}·${jumps[index]}`);
  const preset = (dilations) => button(dilations.join(", "),
    () => set(dilations.map((dilation) => [layers[0][0], 1, dilation])), { "data-key": `stack:${dilations}` });
  const add = { disabled: layers.length >= MOST, "data-key": "stack:add" };
  return [
    el("p", {}, words("stack_idea")),
    table(words, layers, set),
    el("div", { class: "controls" },
      button(words("layer_add"), () => set([...layers, layers.at(-1)]), add),
      el("span", { class: "control" }, words("dilations"), PRESETS.map(preset))),
    drawing(words, layers, levels, size, causal, data.tokens),
    worked(words("stack_size"), ` 1 + ${sum.join(" + ")} = `, el("b", { "data-number": "reach" }, String(size)),
      ` · ${words("stack_jump", { jump: jumps.at(-1) })}`),
    el("p", { class: never.length > 0 && "warning" }, never.length
      ? words("stack_never", { read: read.length, size, n: never.length, list: few(never, 10) })
      : words("stack_all", { size })),
    muted(words("stack_paths")),
  ];
}

// How far apart, in places of the input, neighbours of every level lie, from the input up.
function jumpsOf(layers) {
  const jumps = [1];
  for (const [, stride] of layers) jumps.push(jumps.at(-1) * stride);
  return jumps;
}

function table(words, layers, set) {
  const names = ["size_k", "size_s", "size_d"];
  const number = (layer, index, k) => el("input", {
    type: "number", min: BOUNDS[k][0], max: BOUNDS[k][1], value: layer[k], "data-key": `stack:${index},${k}`,
    "aria-label": `${words("layer", { number: index + 1 })} · ${words(names[k])}`,
    onchange: (event) => set(layers.with(index, layer.with(k, Math.round(Number(event.target.value)) || layer[k]))),
  });
  const remove = (index) => button("−", () => set(layers.toSpliced(index, 1)), {
    disabled: layers.length === 1, "data-key": `stack:remove:${index}`,
    "aria-label": words("layer_remove", { number: index + 1 }),
  });
  const rows = layers.map((layer, index) => el("tr", {},
    el("th", { scope: "row" }, words("layer", { number: index + 1 })),
    range(3).map((k) => el("td", {}, number(layer, index, k))), el("td", {}, remove(index))));
  const heads = names.map((name) => el("th", { scope: "col" }, words(name)));
  return el("table", { class: "stack" },
    el("thead", {}, el("tr", {}, el("td"), heads, el("td"))), el("tbody", {}, rows));
}

// From the output at the top down to the input: places that are read are filled, those between them crossed out.
function drawing(words, layers, levels, size, causal, tokens) {
  if (size > DRAWN) return muted(words("stack_wide", { size, most: DRAWN }));
  const unit = Math.max(13, Math.min(30, Math.floor(900 / size)));
  const depth = layers.length;
  const jumps = jumpsOf(layers);
  const reach = [1];
  layers.forEach(([kernel, , dilation], index) => reach.push(reach.at(-1) + (kernel - 1) * dilation * jumps[index]));
  // A place stands over the middle of what it sees of the input; over the last of it where no later input is read.
  const middle = (level) => (causal ? reach[depth - level] : (reach[depth - level] + 1) / 2) - 0.5;
  const x = (level, place) => (place * jumps[depth - level] + middle(level)) * unit;
  const y = (level) => level * 54 + 16;
  const lines = layers.toReversed().flatMap(([kernel, stride, dilation], level) =>
    [...levels[level].keys()].flatMap((place) => range(kernel).map((m) => svg("line", {
      x1: x(level, place), y1: y(level) + 9, x2: x(level + 1, place * stride + m * dilation), y2: y(level + 1) - 9,
    }))));
  const box = (level, place, times = 0) => {
    const said = times === 0 ? "×" : level === depth || times > 1 ? String(times) : "";
    const places = { "data-level": level, "data-place": place, "data-times": times };
    return svg("g", { class: times ? "read" : "never", ...places },
      svg("rect", { x: x(level, place) - unit * 0.42, y: y(level) - 9, width: unit * 0.84, height: 18, rx: 2 }),
      svg("text", { x: x(level, place), y: y(level) + 4, "text-anchor": "middle" }, said));
  };
  const boxes = levels.flatMap((places, level) =>
    range(Math.max(...places.keys()) + 1).map((place) => box(level, place, places.get(place))));
  const named = causal && tokens && unit >= 18;
  const texts = named && range(size).map((place) => svg("text", {
    class: "token", x: x(depth, place), y: y(depth) + 26, "text-anchor": "middle",
  }, tokens[tokens.length - size + place] ?? ""));
  const [width, height] = [size * unit, y(depth) + (named ? 36 : 16)];
  return el("figure", { class: "pyramid" },
    el("div", { class: "scroll" }, svg("svg", {
      role: "img", "aria-label": words("stack_said", { layers: depth, size }), width, height,
      viewBox: `0 0 ${width} ${height}`,
    }, lines, boxes, texts)),
    el("figcaption", {}, words(causal ? "stack_caption_causal" : "stack_caption")));
}
