// One tensor under masks of several shapes: every tile is a coin, and what lies on it falls or stays together.

import { el, svg } from "../core/dom.js";
import { shapeText, size } from "../core/numbers.js";
import { later, uniform } from "../core/philox.js";
import { build, filled, run, scalar, strides } from "../core/tensor.js";
import { marked } from "./marked.js";
import { gamma } from "./state.js";

const [CELL, GAP, PLANE] = [20, 5, 13];

export function masksByShape(exhibit) {
  const { data, words, settings } = exhibit;
  const { toy, p, call } = settings.values;
  const { shape, masks } = data.toys[toy];
  const touched = settings.changed(["p", "call"]);
  return [
    el("p", {}, words(`toy_${toy}`, { shape: shapeText(shape), entries: size(shape) })),
    el("div", { class: "coins" }, masks.map((one) => {
      const mask = touched ? drawnMask(one, shape, data, p, call) : one.mask;
      const coins = size(one.drawn);
      const kept = mask.data.reduce((a, b) => a + b, 0);
      return el("figure", { class: one.layer === data.layer ? "own" : "", "data-toy": one.layer },
        el("figcaption", {}, el("strong", {}, one.layer), one.layer === data.layer ? ` · ${words("this_layer")}` : "",
          el("br"), `draws ${shapeText(one.drawn)}: `, el("strong", {}, words("coins", { n: coins }))),
        picture(one, shape, mask, words("mask_label", { layer: one.layer, coins, kept, entries: mask.data.length })),
        el("p", { class: "muted" }, words(`shares_${toy}_${one.layer.toLowerCase()}`)),
        el("p", {}, marked(words, "kept_of", { kept: String(kept), entries: mask.data.length })));
    })),
    el("p", {}, words("own_coins", {
      layer: data.layer, shape: shapeText(data.shape), drawn: shapeText(data.drawn), coins: size(data.drawn), entries: size(data.shape),
    })),
  ];
}

function drawnMask({ drawn, program, share }, shape, data, p, call) {
  const draws = build(drawn, (_, index) => uniform(index, data.toy_seed, later([0, 0], call)));
  const ones = filled(shape, 1);
  if (program) {
    const { values } = run(program.forward, { x: ones, draws, gamma: scalar(gamma(share, p)) });
    return values[program.names.mask];
  }
  if (p === 1) return filled(shape, 0);
  const { forward, names } = data.plain.some;
  const mask = run(forward, { x: ones, draws, p: scalar(p) }).values[names.mask];
  const steps = strides(mask.shape);
  return build(shape, (place) => mask.data[place.reduce((at, k, axis) => at + (drawn[axis] === 1 ? 0 : k * steps[axis]), 0)]);
}

// Samples stand below one another; a sample is a plane of rows, or, for pictures, a row of planes.
function picture({ drawn, program }, shape, mask, label) {
  const [high, wide] = shape.slice(-2);
  const planes = shape.length === 4 ? shape[1] : 1;
  const at = (place) => {
    const [sample, plane, row, column] = place.length === 4 ? place : [place[0], 0, place[1], place[2]];
    return [plane * (wide * CELL + (wide - 1) * GAP + PLANE) + column * (CELL + GAP), sample * (high * (CELL + GAP) + PLANE - GAP) + row * (CELL + GAP)];
  };
  const width = planes * (wide * CELL + (wide - 1) * GAP + PLANE) - PLANE;
  const height = shape[0] * (high * (CELL + GAP) + PLANE - GAP) - PLANE;
  const tiles = new Map();
  const cells = [];
  build(shape, (place, index) => {
    const [x, y] = at(place);
    const coin = program ? index : place.map((k, axis) => (drawn[axis] === 1 ? 0 : k)).join();
    const tile = tiles.get(coin) ?? { left: x, top: y, right: x, bottom: y, kept: mask.data[index] };
    tiles.set(coin, { ...tile, right: Math.max(tile.right, x), bottom: Math.max(tile.bottom, y) });
    cells.push({ x, y, kept: mask.data[index] });
    return 0;
  });
  return svg("svg", { viewBox: `-2 -2 ${width + 4} ${height + 4}`, style: { "max-width": `${width + 4}px` }, role: "img", "aria-label": label },
    svg("title", {}, label),
    [...tiles.values()].map(({ left, top, right, bottom, kept }) => svg("rect", {
      class: kept ? "tile" : "tile out", x: left, y: top, width: right - left + CELL, height: bottom - top + CELL, rx: 5,
    })),
    cells.map(({ x, y, kept }) => kept
      ? svg("circle", { class: "entry", cx: x + CELL / 2, cy: y + CELL / 2, r: 4 })
      : svg("path", { class: "cross", d: `M${x + 6} ${y + 6}l8 8m0 -8l-8 8` })));
}
