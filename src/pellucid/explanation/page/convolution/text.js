// What a text convolution keeps: of every filter of every width the greatest feature in the sentence.

import { el, range } from "../core/dom.js";
import { matrix } from "../core/matrix.js";
import { short } from "../core/numbers.js";
import { Model } from "./model.js";

const FILTERS = 8;

export function overTime(scene) {
  const { data, words, model, values, settings } = scene;
  const models = data.layers.map((_, width) => (width === values.width ? model : new Model(data, { ...values, width }, model.changed)));
  const python = !model.changed;
  const filters = values.out;
  const shown = range(Math.min(filters, FILTERS));
  const best = (width, filter) => {
    const { y } = models[width].of(filter);
    return y.reduce((found, value, at) => (value > y[found] || Number.isNaN(value) ? at : found), 0);
  };
  const kept = (width, filter) => (python ? data.result.data[width * filters + filter] : models[width].of(filter).y[best(width, filter)]);
  const wordsAt = (width, filter) => {
    const start = best(width, filter);
    return data.tokens ? data.tokens.slice(start, start + data.layers[width].width).join(" ") : `${start} … ${start + data.layers[width].width - 1}`;
  };
  const table = (width) => {
    const own = models[width];
    const positions = Math.min(own.windows.positions, 16);
    return matrix({
      key: `features-${width}`, label: words("features_of", { width: data.layers[width].width }), rows: shown.length, columns: positions,
      caption: words("features_of", { width: data.layers[width].width }) + (positions < own.windows.positions ? ` · ${words("showing", { shown: positions, total: own.windows.positions })}` : ""),
      rowHeads: (r) => words("filter_short", { channel: r }), columnHeads: String,
      value: (r, c) => own.of(r).y[c],
      mark: (r, c) => `${best(width, r) === c ? "greatest " : ""}${width === values.width && r === values.o && c === scene.at ? "active" : ""}`,
      pick: (r, c) => (width === values.width ? scene.pin(c, { o: r }) : scene.pin(c, { o: r, width })),
    });
  };
  const columns = data.layers.flatMap((_, width) => shown.map((filter) => [width, filter]));
  return [
    el("p", {}, words("over_time_idea")),
    el("div", { class: "views" }, data.layers.map((_, width) => table(width))),
    filters > FILTERS && el("p", { class: "muted" }, words("showing", { shown: FILTERS, total: filters })),
    matrix({
      key: "kept", label: words("kept"), caption: words("kept"), rows: 1, columns: columns.length,
      columnHeads: (c) => `${data.layers[columns[c][0]].width}·${columns[c][1]}`, value: (_, c) => kept(...columns[c]),
    }),
    el("p", {}, words("winner", {
      filter: values.o, width: data.layers[values.width].width, words: wordsAt(values.width, values.o), value: short(kept(values.width, values.o)),
    })),
  ];
}
