// The other way round: one entry of the input, every output that uses it, and the gradient that comes back.

import { choice } from "../core/controls.js";
import { el, range } from "../core/dom.js";
import { matrix } from "../core/matrix.js";
import { short, term } from "../core/numbers.js";

const MOST = 14;
const WORK = 600_000; // products up to which the gradient of the whole input is computed in the page
const TERMS = 8;

export function backward(scene) {
  const { data, words, model, values, settings, span } = scene;
  const { windows } = model;
  const [height, width] = model.size;
  const pixel = [Math.floor(values.pixel / (height * width)), Math.floor(values.pixel / width) % height, values.pixel % width];
  const [channel, row, column] = pixel;
  const line = data.spatial === 1;
  const outs = range(values.out).filter((out) => model.reads(out).includes(channel));
  const shown = outs.includes(values.o) ? values.o : outs[0];
  const gradients = range(values.out).map((out) =>
    values.loss === "sum" ? new Float64Array(windows.positions).fill(1) : Float64Array.from(model.of(out).y));
  const readers = windows.readers(row, column);
  const terms = outs.flatMap((out) => readers.map(([at, tap]) => {
    const factor = share(model, out, channel, at, tap);
    return { out, at, tap, factor, g: gradients[out][at] };
  }));
  const sum = terms.reduce((total, { factor, g }) => total + factor * g, 0);
  const found = whole(scene, gradients);
  const using = new Set(readers.map(([at]) => at));
  const place = (at) => (line ? [windows.place(at)[1]] : windows.place(at)).join(", ");
  const name = `${data.symbols.x}[${line ? [channel, column] : pixel}]`.replaceAll(",", ", ");
  const y = data.symbols.y;
  const first = terms.slice(0, TERMS);
  const [i] = readers.length ? windows.place(readers[0][0]) : [0];
  const [, j] = readers.length ? windows.place(readers[0][0]) : [0, 0];
  const down = span(0, windows.count[0] - 1, i, i), across = span(0, windows.count[1] - 1, j, j);
  const control = choice(words("loss"), settings, "loss", [["sum", words("loss_sum", { y })], ["squares", words("loss_squares", { y })]]);
  control.draw();
  return [
    el("p", {}, words(data.family === "pooling" ? (data.average ? "backward_mean" : "backward_greatest") : "backward_idea")),
    control,
    el("div", { class: "views" },
      pixels(scene, pixel, found),
      matrix({
        key: "gradients", label: words("gradients"), rows: down.length, columns: across.length, top: down[0], left: across[0],
        caption: `∂L/∂${y}[${shown}] · ${words("gradients")}`,
        rowHeads: line ? undefined : String, columnHeads: String,
        value: (r, c) => gradients[shown][r * windows.count[1] + c],
        mark: (r, c) => (using.has(r * windows.count[1] + c) && outs.length ? "touched" : ""),
      })),
    el("p", {}, words(readers.length ? "used_by" : "used_never", {
      name, n: readers.length, places: [...using].slice(0, 6).map((at) => `(${place(at)})`).join(", ") + (using.size > 6 ? ", …" : ""), outs: outs.length,
    })),
    readers.length > 0 && el("p", { class: "worked" }, `∂L/∂${name} = Σ ${data.family === "pooling" ? words("share") : data.symbols.weight} · ∂L/∂${y} = `,
      first.map(({ factor, g }) => `${term(factor)}·${term(g)}`).join(" + "), terms.length > TERMS ? ` + … (${words("terms", { n: terms.length })})` : "",
      " = ", el("b", { class: "recomputed", "data-number": "gradient" }, short(sum))),
    data.family !== "pooling" && el("p", { class: "muted" }, words(data.transposed ? "adjoint_transposed" : "adjoint")),
  ];
}

// What of an output's gradient comes back to an entry that a tap of its window reads.
function share(model, out, channel, at, tap) {
  if (!model.pooling) return model.tapWeight(out, model.reads(out).indexOf(channel), tap);
  if (model.data.average) return 1 / model.divisors[at];
  return model.underWindows(out, new Float64Array(model.windows.positions).fill(1))(at, 0, tap);
}

// The gradient of the whole input; null where that is too much.
function whole({ data, model, values }, gradients) {
  const { windows, each } = model;
  if (!model.changed && values.loss === "sum" && data.backward) return data.backward.data;
  if (values.out * windows.positions * each * windows.taps > WORK || data.gradient?.unsupported) return null;
  const key = `${values.loss}`;
  model.gradients ??= {};
  return (model.gradients[key] ??= model.backward(gradients));
}

// The input, to choose an entry of, and its gradient.
function pixels(scene, [channel, row, column], found) {
  const { data, words, model, values, settings, span } = scene;
  const [height, width] = model.size;
  const line = data.spatial === 1;
  const rows = line ? values.in : height;
  const here = line ? channel : row;
  const down = span(0, rows - 1, here, here, MOST), across = span(0, width - 1, column, column, MOST);
  const index = (r, c) => (line ? r * width + c : (channel * height + r) * width + c);
  const pixelOf = (r, c) => (line ? [r, 0, c] : [channel, r, c]);
  const grid = (key, caption, value) => matrix({
    key, label: caption, caption, rows: down.length, columns: across.length, top: down[0], left: across[0],
    rowHeads: (r) => (line ? words(scene.rowWord("x"), { channel: r }) : String(r)), columnHeads: String, value,
    mark: (r, c) => (index(r, c) === values.pixel ? "active" : ""),
    pick: (r, c) => settings.set({ pixel: index(r, c) }),
  });
  const x = data.symbols.x;
  const which = line ? "" : `[${channel}]`;
  return [
    grid("pixels", `${x}${which} · ${words("pick_pixel")}`, (r, c) => model.x(...pixelOf(r, c))),
    found ? grid("backward", `∂L/∂${x}${which}`, (r, c) => found[index(r, c)]) : el("p", { class: "muted" }, words("too_much")),
  ];
}
