// The shape puzzle: which size fits? One axis at a time, with the solver's reasons.

import { el, range } from "../core/dom.js";
import { language } from "../core/language.js";

// A field for a whole number; nothing is guessed while it is empty.
export function field(label, settings, key) {
  const input = el("input", {
    type: "number", min: 1, step: 1, inputmode: "numeric", "data-setting": key,
    onchange: () => settings.set({ [key]: Math.max(0, Math.round(Number(input.value)) || 0), told: false }),
  });
  const node = el("label", { class: "control field" }, el("span", {}, label), input);
  node.draw = () => {
    if (document.activeElement !== input || !settings.values[key]) input.value = settings.values[key] || "";
  };
  return node;
}

export function puzzle(exhibit) {
  const { data, settings, words } = exhibit;
  const { symbol, rows, columns, told } = settings.values;
  const wanted = data.puzzle.find(({ name }) => name === symbol);
  const vector = wanted.shape[0] === 1 && wanted.reasons[language.current].every(({ axis }) => axis === 0);
  const reasons = wanted.reasons[language.current];
  const reasonOf = (axis) => reasons.find((reason) => reason.axis === (vector ? axis - 1 : axis));
  const given = [
    ...data.inputs.map(({ label, size }) => `${label} 1×${size}`),
    ...data.states.map(({ label, size }) => `${label} 1×${size}`),
  ].join(", ");
  const said = [];
  const guesses = [rows, columns];
  const names = [words("rows"), words("columns")];
  if (told) {
    said.push(el("p", { class: "verdict right" }, `✓ ${wanted.label} ${wanted.shape.join("×")}`));
    for (const { sentence } of reasons) said.push(el("p", {}, sentence));
  } else {
    for (const axis of range(2)) {
      const guess = guesses[axis];
      if (!guess) {
        said.push(el("p", { class: "muted" }, words("guess", { axis: names[axis], name: wanted.label })));
        break;
      }
      const fits = guess === wanted.shape[axis];
      const reason = reasonOf(axis);
      const row = vector && axis === 0;
      said.push(el("p", { class: `verdict ${fits ? "right" : "wrong"}` },
        words(fits ? "fits" : "fits_not", { mark: fits ? "✓" : "✗", axis: names[axis], n: guess, name: wanted.label })));
      said.push(el("p", {}, row ? words("vector_row", { name: wanted.label }) : fits ? reason?.sentence : reason?.because));
      if (!fits) {
        const hint = hintOf(exhibit, wanted, axis, guess);
        if (hint && !row) said.push(el("p", {}, hint));
        break;
      }
      if (axis) said.push(el("p", { class: "verdict right" }, words("solved", { name: wanted.label, shape: wanted.shape.join("×"), n: wanted.shape[0] * wanted.shape[1] })));
    }
  }
  return [
    el("p", {}, words("puzzle_idea", { given, name: wanted.label })),
    wanted.uses.map((line) => el("p", {}, el("code", {}, line))),
    el("p", { class: "worked puzzle-sum", "data-symbol": wanted.label }, words("puzzle_sum", {
      name: wanted.label, rows: told ? wanted.shape[0] : rows || "?", columns: told ? wanted.shape[1] : columns || "?",
    })),
    el("div", { role: "status" }, said),
  ];
}

// What would happen with a guess that does not fit, without the answer.
function hintOf({ data, words }, wanted, axis, guess) {
  if (guess === wanted.shape[1 - axis] && wanted.shape[0] !== wanted.shape[1]) return words("turned", { name: wanted.label });
  const same = [...data.inputs, ...data.states].find(({ size }) => size === guess);
  return same ? words("size_of", { n: guess, name: same.label }) : words(guess < wanted.shape[axis] ? "too_small" : "too_large", { n: guess });
}
