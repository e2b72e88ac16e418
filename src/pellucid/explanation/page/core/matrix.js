// Numbers as a grid of cells: colour and a printed sign say which are positive, arrows walk, Enter picks.

import { el, range, svg } from "./dom.js";
import { greatest, places, written } from "./numbers.js";

// Arrow keys walk over the cells of a grid. One cell at a time can be reached by Tab.
export function walk(table) {
  table.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const here = event.target.closest("[data-at]");
    if (!here || event.target.matches("input")) return;
    const [row, column] = here.dataset.at.split(",").map(Number);
    if (event.key in steps) {
      event.preventDefault();
      event.stopPropagation();
      const [down, right] = steps[event.key];
      table.querySelector(`[data-at="${row + down},${column + right}"]`)?.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      event.stopPropagation();
      here.click();
    }
  });
}

// A grid of numbers.
//   key       names the grid: for the focus, and for who looks for it (data-grid)
//   label     what a screen reader says of it; `caption` is shown, and may hold elements
//   rows, columns, value(r, c)   the numbers; null is an empty cell
//   text(r, c)       what is written instead of the number
//   mark(r, c)       classes of a cell: touched, gap, padding, hatched, active, pinned, greatest, dropped, group-0 …
//   says(r, c)       what a cell is, for the pointer and the screen reader; by default its place and number
//   rowHeads, columnHeads   (index) => text
//   pick(r, c), hover(r, c), leave()   what the pointer and the keys do
//   edit(r, c, number)      makes every cell an input
//   signed    whether colour tells the sign (default)
//   decimals  how many; by default those that suit all numbers together
//   top, left        the place that the first cell has in a larger matrix
export function matrix(options) {
  const { key, label, caption, rows, columns, value, top = 0, left = 0, signed = true } = options;
  const numbers = range(rows).map((r) => range(columns).map((c) => value(r + top, c + left)));
  const all = numbers.flat().filter((n) => n !== null && n !== undefined);
  const decimals = options.decimals === undefined ? places(all) : options.decimals;
  const most = greatest(all) || 1;
  const active = range(rows).flatMap((r) => range(columns).map((c) => [r + top, c + left]))
    .find(([r, c]) => /\b(active|pinned)\b/.test(options.mark?.(r, c) ?? "")) ?? [top, left];
  const walks = Boolean(options.pick || options.hover);

  function cell(r, c) {
    const number = numbers[r - top][c - left];
    const text = options.text?.(r, c) ?? (number === null || number === undefined ? "" : written(number, decimals));
    const says = options.says?.(r, c) ?? null;
    const kind = signed && number ? (number > 0 ? "positive" : "negative") : "";
    const attributes = {
      class: `cell ${kind} ${options.mark?.(r, c) ?? ""}`.trim(),
      style: { "--strength": Number.isFinite(number) ? (Math.abs(number) / most).toFixed(3) : 0 },
      "data-at": `${r},${c}`, "data-key": `${key}:${r},${c}`, title: says, "aria-label": says && (text ? `${text} · ${says}` : says),
      role: "gridcell",
    };
    if (walks)
      Object.assign(attributes, {
        tabindex: r === active[0] && c === active[1] ? 0 : -1,
        onclick: options.pick && (() => options.pick(r, c)),
        onpointerenter: options.hover && (() => options.hover(r, c)),
        onfocus: options.hover && (() => options.hover(r, c)),
      });
    if (!options.edit) return el("td", attributes, text);
    const input = el("input", {
      value: text, inputmode: "decimal", "aria-label": says ?? `${label} ${r}, ${c}`, "data-key": `${key}:edit:${r},${c}`,
      onchange: () => {
        const given = Number(input.value.replace("−", "-"));
        if (input.value.trim() === "" || !Number.isFinite(given)) input.value = text;
        else options.edit(r, c, given);
      },
    });
    return el("td", { ...attributes, "data-key": null }, input);
  }

  const heads = options.columnHeads && el("tr", { role: "row" },
    options.rowHeads && el("td", { role: "presentation" }),
    range(columns).map((c) => el("th", { scope: "col", role: "columnheader" }, options.columnHeads(c + left))));
  const lines = range(rows).map((r) => el("tr", { role: "row" },
    options.rowHeads && el("th", { scope: "row", role: "rowheader" }, options.rowHeads(r + top)),
    range(columns).map((c) => cell(r + top, c + left))));
  const table = el("table", {
    class: "matrix", role: "grid", "aria-label": label, "data-grid": key,
    onpointerleave: options.leave && (() => options.leave()),
  }, heads, lines);
  if (walks) walk(table);
  return el("figure", { class: "grid" }, caption && el("figcaption", {}, caption), el("div", { class: "scroll" }, table));
}

// An overview of a large matrix by the means of its blocks; `shown` marks a part of it, in blocks. Pixels of a picture
// are `square`.
export function overview(label, blocks, shown, square = false) {
  const [rows, columns] = blocks.shape;
  const most = blocks.data.reduce((a, b) => Math.max(a, Math.abs(b)), 0) || 1;
  const unit = Math.min(9, 360 / columns, 240 / rows);
  const side = unit > 2 ? Math.floor(unit) : unit;
  const [width, height] = square ? [side, side] : [Math.min(9, 360 / columns), Math.min(9, 240 / rows)];
  const boxes = range(rows * columns).map((index) => {
    const value = blocks.data[index];
    return svg("rect", {
      x: (index % columns) * width, y: Math.floor(index / columns) * height, width, height,
      class: value >= 0 ? "positive" : "negative", "fill-opacity": (Math.abs(value) / most).toFixed(3),
    });
  });
  const frame = shown && svg("rect", {
    class: "frame", x: shown.left * width, y: shown.top * height, width: shown.width * width, height: shown.height * height,
  });
  return svg("svg", {
    class: "overview", role: "img", "aria-label": label, width: columns * width, height: rows * height,
    viewBox: `0 0 ${columns * width} ${rows * height}`,
  }, svg("title", {}, label), boxes, frame);
}
