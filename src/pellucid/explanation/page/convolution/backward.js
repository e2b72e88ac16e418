// The other way round: one entry of the input, every output that uses it, and the gradient that comes back.

import { choice } from "../core/controls.js";
import { el, range } from "../core/dom.js";
import { matrix } from "../core/matrix.js";
import { term } from "../core/numbers.js";
import { few, mark, muted, result, span, worked } from "./parts.js";

const WORK = 600_000; // products up to which the gradient of the whole input is computed in the page
const TERMS = 8;

export function backward(scene) {
  const { data, words, model, values, settings } = scene;
  const { windows } = model;
  const [height, width] = model.size;
  const line = data.spatial === 1;
  const [row, column] = [Math.floor(values.pixel / width) % height, values.pixel % width];
  const channel = Math.floor(values.pixel / (height * width));
  const { x, y, weight } = data.symbols;
  const name = `${x}[${(line ? [channel, column] : [channel, row, column]).join(", ")}]`;
  const outs = range(values.out).filter((out) => model.reads(out).includes(channel));
  const gradients = range(values.out).map((out) =>
    values.loss === "sum" ? new Float64Array(windows.positions).fill(1) : Float64Array.from(model.of(out).y));
  const readers = windows.readers(row, column);
  const share = shareOf(model, channel);
  const terms = outs.flatMap((out) => readers.map(([at, tap]) => [share(out, at, tap), gradients[out][at]]));
  const using = [...new Set(readers.map(([at]) => at))];
  const places = few(using.map((at) => `(${windows.place(at).slice(line ? 1 : 0).join(", ")})`), 6);
  const losses = ["sum", "squares"].map((key) => [key, words(`loss_${key}`, { y })]);
  const loss = choice(words("loss"), settings, "loss", losses);
  loss.draw();
  const kind = model.pooling ? (data.average ? "mean" : "greatest") : "idea";
  return [
    el("p", {}, words(`backward_${kind}`)),
    loss,
    el("div", { class: "views" },
      pixels(scene, [channel, row, column], whole(scene, gradients)),
      given(scene, gradients[outs.includes(values.o) ? values.o : outs[0]], using)),
    el("p", {}, readers.length
      ? words("used_by", { name, n: readers.length, places, outs: outs.length }) : words("used_never", { name })),
    readers.length > 0 && worked(`∂L/∂${name} = Σ ${model.pooling ? words("share") : weight} · ∂L/∂${y} = `,
      terms.slice(0, TERMS).map(([factor, gradient]) => `${term(factor)}·${term(gradient)}`).join(" + "),
      terms.length > TERMS && ` + … (${words("terms", { n: terms.length })})`, " = ",
      result(terms.reduce((sum, [factor, gradient]) => sum + factor * gradient, 0), "gradient")),
    !model.pooling && muted(words(data.transposed ? "adjoint_transposed" : "adjoint")),
  ];
}

// What part of an output's gradient comes back to an entry that a tap of its window reads.
function shareOf(model, channel) {
  if (!model.pooling) return (out, at, tap) => model.tapWeight(out, model.reads(out).indexOf(channel), tap);
  if (model.data.average) return (out, at) => 1 / model.divisors[at];
  const inside = model.underWindows(channel, new Float64Array(model.windows.positions).fill(1));
  return (out, at, tap) => inside(at, 0, tap);
}

// The gradient of the whole input; null where that is too much.
function whole({ data, model, values }, gradients) {
  const { windows, each } = model;
  if (!model.changed && values.loss === "sum" && data.backward) return data.backward.data;
  if (values.out * windows.positions * each * windows.taps > WORK || data.gradient?.unsupported) return null;
  return model.once(`gradient ${values.loss}`, () => model.backward(gradients));
}

// The gradients of an output channel; those that are used are marked.
function given({ data, words, model }, gradient, using) {
  const { windows } = model;
  const [i, j] = using.length ? windows.place(using[0]) : [0, 0];
  const down = span(0, windows.count[0] - 1, i, i);
  const across = span(0, windows.count[1] - 1, j, j);
  return matrix({
    key: "gradients", label: words("gradients"), caption: `∂L/∂${data.symbols.y} · ${words("gradients")}`,
    rows: down.length, columns: across.length, top: down[0], left: across[0],
    rowHeads: data.spatial === 1 ? undefined : String, columnHeads: String,
    value: (r, c) => gradient[r * windows.count[1] + c],
    mark: (r, c) => mark(using.includes(r * windows.count[1] + c) && "touched"),
  });
}

// The input, to choose an entry of, and its gradient.
function pixels(scene, [channel, row, column], found) {
  const { data, words, model, values, settings } = scene;
  const [height, width] = model.size;
  const line = data.spatial === 1;
  const here = line ? channel : row;
  const down = span(0, (line ? values.in : height) - 1, here, here);
  const across = span(0, width - 1, column, column);
  const index = (r, c) => (line ? r * width + c : (channel * height + r) * width + c);
  const grid = (key, caption, value) => matrix({
    key, label: caption, caption, value,
    rows: down.length, columns: across.length, top: down[0], left: across[0],
    rowHeads: (r) => (line ? words(scene.rowWord("x"), { channel: r }) : String(r)), columnHeads: String,
    mark: (r, c) => mark(index(r, c) === values.pixel && "active"),
    pick: (r, c) => settings.set({ pixel: index(r, c) }),
  });
  const name = `${data.symbols.x}${line ? "" : `[${channel}]`}`;
  return [
    grid("pixels", `${name} · ${words("pick_pixel")}`, (r, c) => model.x(...(line ? [r, 0, c] : [channel, r, c]))),
    found ? grid("backward", `∂L/∂${name}`, (r, c) => found[index(r, c)]) : muted(words("too_much")),
  ];
}
