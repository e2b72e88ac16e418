// DropBlock: draws for the corners, the squares that fall with them, and the scale that is counted afterwards.

import { el, range } from "../core/dom.js";
import { matrix } from "../core/matrix.js";
import { short, term } from "../core/numbers.js";
import { threshold } from "./aligned.js";
import { marked } from "./marked.js";

export function block(exhibit, state) {
  const { data, words, settings } = exhibit;
  const { entry } = state;
  const [rows, columns] = data.x.shape.slice(1);
  const [corners, wide] = data.draws.shape.slice(1);
  const plane = Math.floor(entry / (rows * columns));
  const [row, column] = [Math.floor(entry / columns) % rows, entry % columns];
  const { y, mask, stays } = state.result();
  const chance = state.touched ? state.chance() : data.gamma;
  const at = (x) => (r, c) => x.data[(plane * rows + r) * columns + c];
  const draw = (r, c) => state.draws.data[(plane * corners + r) * wide + c];
  const [high, broad] = data.block;
  const covers = (r, c) => row - r >= 0 && row - r < high && column - c >= 0 && column - c < broad;
  const falls = (r, c) => state.training && draw(r, c) < chance;
  const dropped = (r, c) => (at(mask)(r, c) ? "" : "dropped");
  const chosen = (r, c) => (r === row && c === column ? "active" : "");
  const pick = (r, c) => settings.set({ entry: r * columns + c });
  const grid = (key, symbol, x, mark) => matrix({
    key, label: words(`row_${key}`), caption: caption(symbol, words(`row_${key}`)), rows, columns, value: at(x), pick,
    mark: (r, c) => `${mark ? dropped(r, c) : ""} ${chosen(r, c)}`, signed: key !== "mask",
    says: (r, c) => state.name((plane * rows + r) * columns + c, symbol),
  });
  return [
    el("p", {}, words("block_how", { block: `${high}×${broad}` })),
    el("div", { class: "views" },
      grid("x", "x", state.x, false),
      matrix({
        key: "draws", label: words("row_draws"), caption: caption("draws", words("block_draws", { n: corners * wide })), rows: corners, columns: wide,
        value: state.training ? draw : () => null, signed: false,
        mark: (r, c) => `${falls(r, c) ? "dropped" : ""} ${covers(r, c) ? "touched" : ""}`,
        says: (r, c) => words(falls(r, c) ? "corner_falls" : "corner_stays"),
      }),
      grid("mask", "mask", mask, true),
      grid("y", "y", y, true)),
    el("p", { class: "worked", id: "worked" }, worked()),
    state.training && threshold({
      words, symbol: "γ", chance, draws: range(corners * wide).map((k) => draw(Math.floor(k / wide), k % wide)),
      names: corner, full: (k) => words("corner_named", { corner: corner(k) }), chosen: -1, pick: () => {},
    }),
    state.training && data.programs && el("p", {}, words("block_gamma"), words("gap"),
      el("span", { class: "worked recomputed" },
        state.p === 1 ? "γ = 1"
          : `γ = p·H·W/(${high}·${broad}·${corners * wide}) = ${short(state.p)} × ${data.height * data.width}/${high * broad * corners * wide} = ${short(chance)}`)),
  ];

  function corner(k) {
    return `${Math.floor(k / wide)},${k % wide}`;
  }

  function caption(symbol, text) {
    return [el("span", { class: "symbol", "data-symbol": symbol }, symbol), ` ${text}`];
  }

  function worked() {
    const name = state.name(entry);
    const x = state.x.data[entry];
    if (!state.training) return marked(words, "worked_eval", { name, x: short(x) });
    const found = range(corners * wide).map((k) => [Math.floor(k / wide), k % wide]).find(([r, c]) => covers(r, c) && falls(r, c));
    if (found) return marked(words, "worked_block_falls", { name, corner: found.join(", "), draw: short(draw(...found)), gamma: short(chance) });
    const total = data.shape.reduce((a, b) => a * b, 1);
    return marked(words, "worked_block_stays", { name, line: `${term(x)} / (${stays}/${total}) = ${short(y.data[entry])}` });
  }
}
