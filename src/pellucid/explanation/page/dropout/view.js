// Dropout: five aligned rows, the crowd of masks, the thinned networks, and masks by their shape.

import { button, choice, player, slider } from "../core/controls.js";
import { el } from "../core/dom.js";
import { register } from "../core/exhibit.js";
import { matrix } from "../core/matrix.js";
import { short, size, term, within } from "../core/numbers.js";
import { aligned, threshold } from "./aligned.js";
import { block } from "./block.js";
import { masksByShape } from "./coins.js";
import { crowd } from "./crowd.js";
import { marked, number } from "./marked.js";
import { ACTS, averages, monteCarlo, Net, networks } from "./nets.js";
import { drawsTyped, edited, State } from "./state.js";

register("dropout", (exhibit) => {
  const { data, words } = exhibit;
  const entries = data.kind === "block" ? data.x.data.length / data.x.shape[0] : data.x.data.length;
  const settings = exhibit.choose(
    {
      ...asComputed(data), entry: data.entry, plane: 0, input: data.net.input, act: "linear", toy: data.shape.length > 3 ? "picture" : "sequence",
    },
    (chosen) => valid(data, data.programs ? chosen : { ...chosen, ...asComputed(data) }, entries),
  );
  const isBlock = data.kind === "block";
  const playable = Boolean(data.programs);
  const width = () => within(exhibit.root.clientWidth - 40, 280, 660);
  const pChosen = () => slider("p", settings, "p", { min: 0, max: 1, step: 0.01, text: short });

  if (playable)
    exhibit.controls(
      pChosen(),
      choice(words("mode"), settings, "mode", [["train", words("train")], ["eval", words("eval")]]),
      player(exhibit, words("call"), "call", { count: data.masks, text: (call) => String(call + 1) }),
      button(words("again"), () => settings.set({ call: (settings.values.call + 1) % data.masks }), { "data-act": "again" }),
      ...(isBlock && data.planes > 1 ? [slider(words("plane"), settings, "plane", { min: 0, max: data.planes - 1 })] : []),
    );

  exhibit.view(words("mask_title"), () => {
    exhibit.source(settings.changed(["p", "mode", "call", "x", "draws", "grad", "input"]));
    const state = new State(exhibit);
    return [
      playable ? null : el("p", { class: "muted" }, data.missing === "size" ? words("missing_size", { entries: data.shape.reduce((a, b) => a * b, 1) }) : words("missing", { operation: data.missing })),
      ...(isBlock ? block(exhibit, state) : rowsOf(exhibit, state)),
      playable ? el("p", { class: "muted" }, source(state)) : null,
    ];
  });

  if (!isBlock && data.rows > 1)
    exhibit.view(words("sheet_title"), () => sheet(exhibit, new State(exhibit)));

  if (playable) exhibit.fold(words(data.kind === "plain" ? "crowd_title" : "crowd_title_other"), () => crowd(exhibit, new State(exhibit), width()), { "data-part": "crowd" });

  fold("nets", () => {
    const net = new Net(exhibit);
    return [el("p", {}, words("nets_idea")), ...networks(net, words), ...averages(net, words)];
  }, [
    choice(words("output"), settings, "act", ACTS.map((act) => [act, words(act)])),
    slider(words("input"), settings, "input", { min: -2, max: 2, step: 0.1, text: short }),
  ]);

  fold("coins", () => masksByShape(exhibit), [
    choice(words("tensor"), settings, "toy", [["sequence", "N×T×C"], ["picture", "N×C×H×W"]]),
  ]);

  exhibit.fold(words("backward_title"), () => backward(exhibit, new State(exhibit)), { "data-part": "backward" });

  fold("mc", () => monteCarlo(new Net(exhibit), words, width()), [
    choice(words("output"), settings, "act", ACTS.map((act) => [act, words(act)])),
  ]);

  // A folded part with controls of its own.
  function fold(part, draw, controls) {
    const inside = exhibit.fold(words(`${part}_title`), draw, { "data-part": part });
    inside.before(exhibit.controls(...controls));
  }

  function source(state) {
    const call = state.values.call + data.call;
    if (!state.training) return words("source_eval");
    if (data.seeded) return words("source_seed", { seed: data.seed_text, call });
    return words("source_torch", { seed: data.seed_text, stream: String(call) });
  }
});

// What the controls change, as it is where there are none.
const asComputed = ({ p, training }) => ({ p, mode: training ? "train" : "eval", call: 0, x: "", draws: "", grad: "" });

const valid = (data, v, entries) => ({
  ...v,
  p: within(v.p, 0, 1), input: within(v.input, -9, 9),
  call: Math.round(within(v.call, 0, data.masks - 1)),
  entry: Math.round(within(v.entry, 0, entries - 1)),
  plane: Math.round(within(v.plane, 0, (data.planes ?? 1) - 1)),
  mode: v.mode === "eval" ? "eval" : "train",
  act: ACTS.includes(v.act) ? v.act : ACTS[0],
  toy: v.toy in data.toys ? v.toy : "sequence",
});


// Values, draws, threshold, mask, result: the five rows of one line of the input.
function rowsOf(exhibit, state) {
  const { data, words, settings } = exhibit;
  const { columns } = data;
  const { entry } = state;
  const [line, column] = [Math.floor(entry / columns), entry % columns];
  const { y, mask } = state.result();
  const row = (x) => Array.from(x.data.slice(line * columns, (line + 1) * columns));
  const [xs, draws, kept, ys] = [state.x, state.draws, mask, y].map(row);
  const at = (c) => line * columns + c;
  const merged = columns > 1 && new Set(data.coins[line]).size === 1;
  const pick = (c) => settings.set({ entry: at(c) });
  const says = (c) => state.name(at(c));
  const dropped = (c) => (kept[c] ? "" : "dropped");
  const playable = Boolean(data.programs);
  const editX = playable && ((c, value) => settings.set({ x: edited(settings.values.x, at(c), value) }));
  const editDraw = playable && ((c, value) => settings.set({ draws: `${settings.values.call}|${typed(state, line, c, value)}` }));
  const compared = (c) => `${draws[c] < state.p ? "<" : "≥"} ${short(state.p)}`;
  const rows = [
    { key: "x", symbol: "x", head: words("row_x"), numbers: xs, signed: true, edit: editX, says },
    state.training && { key: "draws", symbol: "draws", head: words(merged ? "row_draw_shared" : "row_draws"), numbers: draws, merged, edit: editDraw, says, refuses: (u) => u < 0 || u >= 1 },
    state.training && { key: "threshold", symbol: "p", head: words("row_threshold"), text: compared, merged, says, mark: dropped },
    state.training && { key: "mask", symbol: "mask", head: words("row_mask"), numbers: kept, says, mark: dropped },
    { key: "y", symbol: "y", head: words("row_y"), numbers: ys, signed: true, says, mark: dropped },
  ].filter(Boolean);
  const hidden = [
    data.width > columns && words("showing", { shown: columns, total: data.width }),
    data.height > data.rows && words("showing_rows", { shown: data.rows, total: data.height }),
  ].filter(Boolean).join(" · ");
  const shared = state.training && new Set(data.coins.flat()).size < data.rows * data.columns;
  return [
    el("p", {}, words(state.training ? `how_${data.kind}` : "how_eval"), shared ? words("gap") + words(merged ? "how_merged" : "how_shared") : ""),
    aligned({ label: words("mask_title"), columns, heads: (c) => String(c), rows, chosen: column, pick }),
    data.rows > 1 || hidden ? el("p", { class: "muted" }, [data.rows > 1 && words("line_shown", { name: state.name(at(0)) }), hidden].filter(Boolean).join(" · ")) : null,
    el("p", { class: "worked", id: "worked" }, worked(state, words, entry, state.result())),
    state.training
      ? threshold({
        words, symbol: "p", chance: state.p, draws: merged ? draws.slice(0, 1) : draws, pick: (c) => pick(merged ? column : c), chosen: merged ? 0 : column,
        names: (c) => (merged ? words("the_coin") : String(c)), full: (c) => (merged ? words("line_coin") : says(c)),
      })
      : null,
  ];
}

// A coin that several entries share is typed in for all of them.
function typed(state, line, column, value) {
  const { coins, columns } = state.data;
  const coin = coins[line][column];
  let text = drawsTyped(state.values);
  coins.forEach((row, r) => row.forEach((own, c) => {
    if (own === coin) text = edited(text, r * columns + c, value);
  }));
  return text;
}

// The chosen entry's way in one line: its draw, whether it stays, and what that makes of it.
function worked(state, words, entry, { y, mask, a, b }) {
  const { p, training, data } = state;
  const facts = { name: state.name(entry), x: short(state.x.data[entry]), draw: short(state.draws.data[entry]), p: short(p), y: short(y.data[entry]) };
  if (!training) return marked(words, "worked_eval", facts);
  const stays = mask.data[entry] !== 0;
  const [x, share] = [term(state.x.data[entry]), `1 − ${facts.p}`];
  const line = data.kind === "other" ? `y = ${facts.y}`
    : p === 1 ? `${x} × 0 = ${facts.y}`
    : data.kind === "plain" ? `${x} × ${stays ? 1 : 0}/(${share}) = ${facts.y}`
    : `a·${stays ? "x" : "α′"} + b = ${short(a)} × ${stays ? x : term(data.saturated)} + ${short(b)} = ${facts.y}`;
  return [marked(words, stays ? "worked_stays" : "worked_falls", facts), words("gap"), number(line)];
}

// The whole result, where it has more than one line.
function sheet({ data, words, settings }, state) {
  const { columns, rows } = data;
  const { y, mask } = state.result();
  const entry = (r, c) => r * columns + c;
  const numbers = matrix({
    key: "sheet", label: words("row_y"), rows, columns, value: (r, c) => y.data[entry(r, c)],
    rowHeads: (r) => state.name(entry(r, 0), "").replace(/, \d+\]$/, columns > 1 ? ", …]" : "$&"),
    mark: (r, c) => `${mask.data[entry(r, c)] ? "" : "dropped"} ${entry(r, c) === state.entry ? "active" : ""}`,
    says: (r, c) => `${state.name(entry(r, c), "y")} · ${words(mask.data[entry(r, c)] ? "stays" : "falls")}`,
    pick: (r, c) => settings.set({ entry: entry(r, c) }),
  });
  return [el("p", {}, words("sheet_how")), numbers];
}

// The gradient goes back through the same mask.
function backward(exhibit, state) {
  const { data, words, settings } = exhibit;
  const isBlock = data.kind === "block";
  const { entry } = state;
  const columns = isBlock ? data.x.shape[2] : data.columns;
  const line = Math.floor(entry / columns);
  const result = state.result();
  const row = (x) => Array.from(x.data.slice(line * columns, (line + 1) * columns));
  const arrived = state.gradient();
  const kept = row(result.mask);
  const at = (c) => line * columns + c;
  const dropped = (c) => (kept[c] || !state.training ? "" : "dropped");
  const says = (c) => state.name(at(c));
  const rows = [
    { key: "grad", symbol: "y", shown: "∂L/∂y", head: words("row_grad"), numbers: row(state.grad), signed: true, says,
      edit: data.programs && ((c, value) => settings.set({ grad: edited(settings.values.grad, at(c), value) })) },
    state.training && { key: "grad-mask", symbol: "mask", head: words("row_mask"), numbers: kept, says, mark: dropped },
    { key: "arrived", symbol: "x", shown: "∂L/∂x", head: words("row_arrived"), numbers: row(arrived), signed: true, says, mark: dropped },
  ].filter(Boolean);
  const stays = !state.training || result.mask.data[entry] !== 0;
  const factor = !state.training ? "1"
    : data.kind === "alpha" ? `a, a = ${short(result.a ?? 0)}`
    : isBlock ? `1/(${result.stays}/${size(data.shape)})` : `1/(1 − ${short(state.p)})`;
  const facts = { name: state.name(entry), g: term(state.grad.data[entry]), factor, result: short(arrived.data[entry]) };
  return [
    el("p", {}, words("backward_how")),
    aligned({
      label: words("backward_title"), columns, heads: (c) => String(c), rows, chosen: entry % columns,
      pick: (c) => settings.set({ entry: at(c) - (entry - state.values.entry) }),
    }),
    el("p", { class: "worked", id: "worked-back" },
      data.kind === "other" || (state.p === 1 && state.training) ? number(`∂L/∂${facts.name} = ${facts.result}`)
        : marked(words, stays ? "back_stays" : "back_falls", facts)),
  ];
}
