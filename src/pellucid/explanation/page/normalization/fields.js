// Numbers to write over, controls that are there only sometimes, and tables.

import { el } from "../core/dom.js";
import { short } from "../core/numbers.js";

let made = 0;

// A labelled number: read() is shown, write(number) takes what is written; other text is put back.
export function field(label, name, read, write) {
  const id = `field-${++made}`;
  const input = el("input", {
    id,
    type: "text",
    inputmode: "decimal",
    autocomplete: "off",
    "data-field": name,
    onchange: () => {
      const given = Number(input.value.replace("−", "-"));
      if (input.value.trim() === "" || !Number.isFinite(given)) node.draw();
      else write(given);
    },
  });
  const node = el("div", { class: "control field" }, el("label", { for: id, "data-symbol": label }, label), input);
  node.draw = () => (input.value = short(read()));
  return node;
}

// A control that is hidden as long as there is nothing for it to do.
export function when(node, test) {
  const draw = node.draw;
  node.draw = () => {
    node.hidden = !test();
    if (!node.hidden) draw?.();
  };
  return node;
}

// A table that scrolls where it is too wide; a head that names a symbol lights it.
export function table(kind, heads, rows) {
  const symbols = ["μ", "σ²", "mean_square", "running_mean", "running_var"];
  const head = (text) => el("th", { scope: "col", "data-symbol": symbols.includes(text) && text }, text);
  const top = heads && el("thead", {}, el("tr", {}, heads.map(head)));
  return el("div", { class: "scroll" }, el("table", { class: `facts ${kind}` }, top, el("tbody", {}, rows)));
}
