// Numbers to write over, and controls that are there only sometimes.

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
