// The shapes of what the chosen member averages and learns, each with its reason.

import { el } from "../core/dom.js";
import { count, size } from "../core/numbers.js";
import { meaning } from "./multiples.js";

export function shapes(exhibit, model) {
  const { words, data } = exhibit;
  const { kind, groups } = model.values;
  const { member } = model;
  const word = (axis) => words(`axis_${meaning(data.letters[axis])}`, { letter: data.letters[axis] });
  const list = (axes) => axes.map(word).join(words("list"));
  const kept = data.shape.map((_, axis) => axis).filter((axis) => !member.axes.includes(axis));
  const averaged = data.shape.map((extent, axis) => (kept.includes(axis) ? extent : 1));
  const average = { lrn: data.shape, group: [data.shape[0], groups] }[kind] ?? averaged;
  const affine = member.affine.map((axis) => data.shape[axis]);
  const facts = {
    averaged: list(member.axes),
    kept: list(kept),
    axes: list(member.affine),
    n: data.channel === null ? 0 : data.shape[data.channel] / groups,
  };
  const why = kind === "lrn" ? "why_window" : kind === "group" ? "why_group" : kept.length ? "why_average" : "why_one";
  const row = (symbol, shape, reason) =>
    el(
      "tr",
      { "data-symbol": symbol },
      el("th", { scope: "row" }, symbol),
      el("td", { class: "number" }, shape ? shape.join("×") || "1" : "—"),
      el("td", { class: "number" }, shape ? count(size(shape)) : "0"),
      el("td", {}, reason),
    );
  const learned = (symbol, has) =>
    row(symbol, has ? affine : null, has ? words(affineReason(kind, member, data), facts) : words("why_none"));
  const rows = [row("x", data.shape, words("why_x", { axes: data.letters.join("×") }))];
  if (member.centred) rows.push(row("μ", average, words(why, facts)), row("σ²", average, words("why_variance")));
  else rows.push(row("mean_square", average, words(why, facts)));
  if (kind !== "lrn") rows.push(learned("γ", member.scales));
  if (member.centred) rows.push(learned("β", member.shifts));
  if (model.remembers || (kind === data.running?.kind && data.running.own)) {
    const channels = [data.shape[data.channel]];
    rows.push(row("running_mean", channels, words("why_running")), row("running_var", channels, words("why_running")));
  }
  const heads = ["symbol", "shape", "numbers", "why"].map((head) => el("th", { scope: "col" }, words(`head_${head}`)));
  return el(
    "div",
    { class: "scroll" },
    el("table", { class: "facts shapes" }, el("thead", {}, el("tr", {}, heads)), el("tbody", {}, rows)),
  );
}

// Why γ and β have their shape: where a place means the same everywhere there is one for all.
function affineReason(kind, member, data) {
  if (kind === "own") return "affine_own";
  if (kind === "batch") return "affine_batch";
  if (kind === "instance" || kind === "group") return "affine_channel";
  if (member.affine.length > 1) return "affine_places";
  return data.letters.length > 2 ? "affine_features" : "affine_flat";
}
