// The receptive field of a stack of layers: which inputs one output sees, and which between them it never does.

import { button } from "../core/controls.js";
import { el, range, svg } from "../core/dom.js";

const MOST = 16; // layers
const DRAWN = 64; // places of the input that are drawn
const PRESETS = ["2,2,2", "1,2,5", "1,2,4,8"];
const BOUNDS = [[1, 32], [1, 8], [1, 512]];

export function parsed(text) {
  const layers = text.trim().split(/\s+/).map((layer) => layer.split(".").map(Number));
  const sound = layers.filter((layer) => layer.length === 3 && layer.every(Number.isInteger))
    .map((layer) => layer.map((value, k) => Math.min(Math.max(value, BOUNDS[k][0]), BOUNDS[k][1])));
  return (sound.length ? sound : [[3, 1, 1]]).slice(0, MOST);
}
export const written = (layers) => layers.map((layer) => layer.join(".")).join(" ");

// Level by level, from the one output down to the input: how often each place is used, by its distance to the first.
export function levelsOf(layers) {
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
  const settings = exhibit.choose({ stack: written(data.stack) }, (values) => ({ stack: written(parsed(values.stack)) }));
  exhibit.root.classList.add("windows");
  exhibit.view(words("stack"), () => {
    exhibit.source(settings.changed());
    return stack({ words, settings, data, causal: true });
  });
}

export function stack({ words, settings, causal = false }) {
  const layers = parsed(settings.values.stack);
  const set = (changed) => settings.set({ stack: written(changed) });
  const number = (index, k) => {
    const input = el("input", {
      type: "number", min: BOUNDS[k][0], max: BOUNDS[k][1], value: layers[index][k], "data-key": `stack:${index},${k}`,
      "aria-label": `${words("layer", { number: index + 1 })} · ${words(["size_k", "size_s", "size_d"][k])}`,
      onchange: () => set(layers.map((layer, n) => (n === index ? layer.with(k, Math.round(Number(input.value)) || layer[k]) : layer))),
    });
    return el("td", {}, input);
  };
  const row = (index) => el("tr", {}, el("th", { scope: "row" }, words("layer", { number: index + 1 })), range(3).map((k) => number(index, k)),
    el("td", {}, button("−", () => set(layers.toSpliced(index, 1)), {
      disabled: layers.length === 1, "aria-label": words("layer_remove", { number: index + 1 }), "data-key": `stack:remove:${index}`,
    })));
  const levels = levelsOf(layers);
  const read = [...levels.at(-1).keys()];
  const size = Math.max(...read) + 1;
  const steps = [];
  let jump = 1;
  for (const [kernel, stride, dilation] of layers) {
    steps.push(`(${kernel} − 1)·${dilation}·${jump}`);
    jump *= stride;
  }
  const never = range(size).filter((place) => !levels.at(-1).has(place));
  return [
    el("p", {}, words("stack_idea")),
    el("table", { class: "stack" },
      el("thead", {}, el("tr", {}, el("td", {}), ["size_k", "size_s", "size_d"].map((key) => el("th", { scope: "col" }, words(key))), el("td", {}))),
      el("tbody", {}, range(layers.length).map(row))),
    el("div", { class: "controls" },
      button(words("layer_add"), () => set([...layers, layers.at(-1)]), { disabled: layers.length >= MOST, "data-key": "stack:add" }),
      el("span", { class: "control" }, words("dilations"), PRESETS.map((preset) =>
        button(preset.replaceAll(",", ", "), () => set(preset.split(",").map((dilation) => [layers[0][0], 1, Number(dilation)])), { "data-key": `stack:${preset}` })))),
    drawing(words, layers, levels, size, causal),
    el("p", { class: "worked" }, words("stack_size"), ` 1 + ${steps.join(" + ")} = `, el("b", { "data-number": "reach" }, String(size)), ` · ${words("stack_jump", { jump })}`),
    el("p", { class: never.length ? "warning" : "" }, never.length
      ? words("stack_never", { read: read.length, size, n: never.length, list: never.length > 10 ? [...never.slice(0, 10), "…"].join(", ") : never.join(", ") })
      : words("stack_all", { size })),
    el("p", { class: "muted" }, words("stack_paths")),
  ];
}

// From the output at the top down to the input: places that are read are filled, those between them hatched.
function drawing(words, layers, levels, size, causal) {
  if (size > DRAWN) return el("p", { class: "muted" }, words("stack_wide", { size, most: DRAWN }));
  const unit = Math.max(13, Math.min(30, Math.floor(900 / size)));
  const high = 54;
  const jumps = [1];
  for (const [, stride] of layers) jumps.push(jumps.at(-1) * stride);
  const depth = layers.length;
  // The middle of a place of a level, in places of the input: over the middle of what it sees.
  const reach = [1];
  layers.forEach(([kernel, , dilation], n) => reach.push(reach.at(-1) + (kernel - 1) * dilation * jumps[n]));
  const x = (level, place) => (place * jumps[depth - level] + (causal ? reach[depth - level] : (reach[depth - level] + 1) / 2) - 0.5) * unit;
  const y = (level) => level * high + 16;
  const lines = [];
  levels.slice(0, -1).forEach((places, level) => {
    const [kernel, stride, dilation] = layers[depth - 1 - level];
    for (const place of places.keys())
      for (let m = 0; m < kernel; m++)
        lines.push(svg("line", { x1: x(level, place), y1: y(level) + 9, x2: x(level + 1, place * stride + m * dilation), y2: y(level + 1) - 9 }));
  });
  const boxes = levels.flatMap((places, level) => {
    const last = Math.max(...places.keys());
    return range(last + 1).map((place) => {
      const times = places.get(place);
      return svg("g", { class: times ? "read" : "never", "data-level": level, "data-place": place, "data-times": times ?? 0 },
        svg("rect", { x: x(level, place) - unit * 0.42, y: y(level) - 9, width: unit * 0.84, height: 18, rx: 2 }),
        svg("text", { x: x(level, place), y: y(level) + 4, "text-anchor": "middle" }, times ? (level === depth || times > 1 ? String(times) : "") : "×"));
    });
  });
  const width = size * unit;
  return el("figure", { class: "pyramid" }, el("div", { class: "scroll" }, svg("svg", {
    role: "img", "aria-label": words("stack_said", { layers: depth, size }), width, height: y(depth) + 16, viewBox: `0 0 ${width} ${y(depth) + 16}`,
  }, lines, boxes)), el("figcaption", {}, words(causal ? "stack_caption_causal" : "stack_caption")));
}
