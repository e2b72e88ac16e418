// Controls that set one of an exhibit's settings each. All are the browser's own, so keys and readers know them.

import { el } from "./dom.js";
import { within } from "./numbers.js";

let made = 0;

// A labelled control; draw() shows the settings' present values. Whoever makes it lists it in exhibit.controls().
function labelled(label, control, shown) {
  control.id = `control-${++made}`;
  return el("div", { class: "control" }, el("label", { for: control.id }, label), control, shown);
}

export function slider(label, settings, key, { min, max, step = 1, text = String }) {
  const shown = el("output", { class: "shown" });
  const input = el("input", {
    type: "range", "data-setting": key,
    oninput: () => settings.set({ [key]: Number(input.value) }),
  });
  const node = labelled(label, input, shown);
  node.draw = () => {
    const value = settings.values[key];
    const bound = (limit) => (typeof limit === "function" ? limit(settings.values) : limit);
    Object.assign(input, { min: bound(min), max: bound(max), step, value });
    shown.textContent = text(value);
    input.setAttribute("aria-valuetext", text(value));
  };
  return node;
}

// One of several: options are [value, text].
export function choice(label, settings, key, options) {
  const name = `choice-${++made}`;
  const inputs = options.map(([value, text]) => {
    const input = el("input", {
      type: "radio", name, value: String(value), "data-setting": key, onchange: () => settings.set({ [key]: value }),
    });
    return [value, input, el("label", {}, input, el("span", {}, text))];
  });
  const node = el("fieldset", { class: "control choice" }, el("legend", {}, label), ...inputs.map((i) => i[2]));
  node.draw = () => inputs.forEach(([value, input]) => (input.checked = settings.values[key] === value));
  return node;
}

export function toggle(label, settings, key) {
  const input = el("input", {
    type: "checkbox", "data-setting": key, onchange: () => settings.set({ [key]: input.checked }),
  });
  const node = el("label", { class: "control toggle" }, input, el("span", {}, label));
  node.draw = () => (input.checked = settings.values[key]);
  return node;
}

// One of many, by name.
export function menu(label, settings, key, options) {
  const select = el("select", {
    "data-setting": key, onchange: () => settings.set({ [key]: parse(select.value) }),
  }, options.map(([value, text]) => el("option", { value: String(value) }, text)));
  const parse = (text) => options.find(([value]) => String(value) === text)[0];
  const node = labelled(label, select);
  node.draw = () => (select.value = String(settings.values[key]));
  return node;
}

export const button = (text, act, attributes = {}) =>
  el("button", { type: "button", class: "button", onclick: act, ...attributes }, text);

// Back, play, on, and a slider: steps through 0 … count − 1. Keys of the exhibit: ← → step, space plays.
export function player(exhibit, label, key, { count, text }) {
  const { settings, words } = exhibit;
  const total = () => (typeof count === "function" ? count(settings.values) : count);
  const go = (by) => settings.set({ [key]: within(settings.values[key] + by, 0, total() - 1) });
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "▶";
    play.setAttribute("aria-label", words("play"));
  };
  const start = () => {
    if (settings.values[key] >= total() - 1) settings.set({ [key]: 0 });
    play.textContent = "⏸";
    play.setAttribute("aria-label", words("pause"));
    const pace = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1600 : 800;
    timer = setInterval(() => {
      if (!node.isConnected || settings.values[key] >= total() - 1) stop();
      else go(1);
    }, pace);
  };
  const back = button("◀", () => go(-1), { "aria-label": words("back") });
  const play = button("▶", () => (timer ? stop() : start()), { "aria-label": words("play") });
  const on = button("▶▏", () => go(1), { "aria-label": words("on") });
  const line = slider(label, settings, key, { min: 0, max: () => Math.max(0, total() - 1), text });
  const node = el("div", { class: "player", role: "group", "aria-label": label }, back, play, on, line);
  node.draw = () => {
    line.draw();
    // Not disabled: that would take the focus from under who steps to the end.
    back.setAttribute("aria-disabled", String(settings.values[key] <= 0));
    on.setAttribute("aria-disabled", String(settings.values[key] >= total() - 1));
  };
  exhibit.keys({
    ArrowLeft: () => go(-1),
    ArrowRight: () => go(1),
    " ": () => (timer ? stop() : start()),
    Escape: () => timer && stop(),
  });
  return node;
}
