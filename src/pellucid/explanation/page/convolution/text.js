// What a text convolution keeps: of every filter of every width the greatest feature in the sentence.

import { el, range } from "../core/dom.js";
import { matrix } from "../core/matrix.js";
import { short } from "../core/numbers.js";
import { Model } from "./model.js";
import { mark, muted, showing } from "./parts.js";

const FILTERS = 8;
const POSITIONS = 16;

export function overTime(scene) {
  const { data, words, model, values, at } = scene;
  const models = data.layers.map((_, width) =>
    width === values.width ? model : new Model(data, { ...values, width }, model.changed));
  const filters = values.out;
  const shown = range(Math.min(filters, FILTERS));
  const best = (width, filter) => {
    const { y } = models[width].of(filter);
    return y.reduce((found, value, place) => (value > y[found] || Number.isNaN(value) ? place : found), 0);
  };
  const kept = (width, filter) =>
    model.changed ? models[width].of(filter).y[best(width, filter)] : data.result.data[width * filters + filter];
  const table = (width) => {
    const all = models[width].windows.positions;
    const positions = Math.min(all, POSITIONS);
    const label = words("features_of", { width: data.layers[width].width });
    const active = (r, c) => width === values.width && r === values.o && c === at;
    return matrix({
      key: `features-${width}`, label, caption: label + showing(scene, positions, all),
      rows: shown.length, columns: positions, value: (r, c) => models[width].of(r).y[c],
      rowHeads: (r) => words("filter_short", { channel: r }), columnHeads: String,
      mark: (r, c) => mark(best(width, r) === c && "greatest", active(r, c) && "active"),
      pick: (r, c) => scene.pin(c, { o: r, width }),
    });
  };
  const columns = data.layers.flatMap((_, width) => shown.map((filter) => [width, filter]));
  const [start, { width }] = [best(values.width, values.o), data.layers[values.width]];
  const places = data.tokens ? data.tokens.slice(start, start + width).join(" ") : `${start} … ${start + width - 1}`;
  return [
    el("p", {}, words("over_time_idea")),
    el("div", { class: "views" }, data.layers.map((_, index) => table(index))),
    filters > FILTERS && muted(words("showing", { shown: FILTERS, total: filters })),
    matrix({
      key: "kept", label: words("kept"), caption: words("kept"), rows: 1, columns: columns.length,
      columnHeads: (c) => `${data.layers[columns[c][0]].width}·${columns[c][1]}`, value: (_, c) => kept(...columns[c]),
    }),
    el("p", {}, words("winner", {
      filter: values.o, width, words: places, value: short(kept(values.width, values.o)),
    })),
  ];
}
