// A window over an input: where it lies, what it multiplies and adds, how it moves on; and what follows from that.

import { el } from "../core/dom.js";
import { register } from "../core/exhibit.js";
import { backward } from "./backward.js";
import { controls, initialOf, positionOf, stepOf, validOf } from "./choices.js";
import { equal } from "./equal.js";
import { grids } from "./grids.js";
import { DECIDING, Model } from "./model.js";
import { network, stack } from "./stack.js";
import { overTime } from "./text.js";
import { products, sizes } from "./worked.js";

register("convolution", (exhibit) => {
  const { data, words } = exhibit;
  exhibit.root.classList.add("windows");
  if (data.family === "network") return network(exhibit);
  const pooling = data.family === "pooling";
  const scene = sceneOf(exhibit);
  const guarded = (draw) => () => (scene.model.error ? [] : draw(scene));
  exhibit.view(null, () => {
    exhibit.source(scene.model.changed);
    return [notice(scene), guarded(grids)()];
  });
  exhibit.view(words(pooling ? "reduced" : "multiplied"), guarded(products));
  if (data.layers) exhibit.view(words("over_time"), guarded(overTime));
  exhibit.view(words("counted_positions"), guarded(sizes));
  if (data.whole && !data.layers) exhibit.fold(words("backward"), guarded(backward));
  if (data.whole && data.family === "convolution") exhibit.fold(words("equal"), guarded(equal));
  if (!data.layers && !data.shared && !data.transposed) exhibit.fold(words("stack"), () => stack(scene));
});

// What the parts have in common: the settings with the model that they make, the window and the tap in sight.
function sceneOf(exhibit) {
  const { data, words } = exhibit;
  const initial = initialOf(data);
  let last = null;
  const modelOf = (values) => {
    const key = [...DECIDING, "width"].map((name) => values[name]).join("|");
    const changed = DECIDING.some((name) => values[name] !== initial[name]);
    if (last?.key !== key) last = { key, model: new Model(data, values, changed) };
    return last.model;
  };
  exhibit.mended ??= [];
  const state = (exhibit.state ??= { hovered: null, pinned: false, tap: null });
  const settings = exhibit.choose(initial, validOf(data, modelOf, exhibit.mended));
  const become = (changes) => {
    Object.assign(state, changes);
    exhibit.draw();
  };
  const isTap = (channel, tap) => state.tap !== null && state.tap[0] === channel && state.tap[1] === tap;
  const scene = {
    exhibit, data, words, settings, state,
    get values() {
      return settings.values;
    },
    get model() {
      return modelOf(settings.values);
    },
    // The window in sight: the one that is pointed at, or the one of the settings.
    get at() {
      return Math.min(state.hovered ?? positionOf(settings.values), scene.model.windows.positions - 1);
    },
    // How the rows of a sequence are called: channels, or entries of a word's vector and filters.
    rowWord: (name) => (data.layers ? (name === "x" ? "vector_short" : "filter_short") : "channel_short"),
    hover: (at) => state.pinned || at === scene.at || become({ hovered: at }),
    leave: () => state.pinned || state.hovered === null || become({ hovered: null }),
    pin(at, more = {}) {
      Object.assign(state, { hovered: null, pinned: true });
      settings.set({ step: stepOf(at), ...more });
    },
    tapped: (channel, tap) => isTap(channel, tap) || become({ tap: [channel, tap] }),
    untap: () => state.tap === null || become({ tap: null }),
    lit: (channel, tap) => (isTap(channel, tap) ? "lit" : ""),
  };
  settings.listeners.push(() => state.pinned || (state.hovered = null));
  controls(exhibit, modelOf, () => become({ hovered: null, pinned: false, tap: null }));
  return scene;
}

// What had to be mended, what cannot be, and by which rule other weights came about.
function notice({ exhibit, data, words, model, settings, values }) {
  const said = exhibit.mended.map(([key, facts]) => words(key, facts));
  if (model.error) {
    const axis = words(`axis_${data.spatial}_${model.error.axis}`);
    said.push(words(`error_${model.error.key}`, { ...model.error.facts, axis }));
  }
  if (data.program.unsupported) said.push(words("unsupported", { operation: data.program.unsupported }));
  if (!data.whole) said.push(words("slice", { rows: data.size[0][0], columns: data.size[0][1] }));
  const patch = data.pooled?.slice(2 - data.spatial).join(" × ");
  if (data.inside) said.push(words(`inside_${data.inside}`, { patch }));
  const other = ["kh", "kw", "in", "out", "groups"].some((key) => values[key] !== settings.initial[key]);
  if (other && data.family === "convolution") said.push(words("rule"));
  return said.length > 0 && el("div", { class: "notice", role: "status" }, said.map((text) => el("p", {}, text)));
}
