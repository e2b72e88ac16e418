// An exhibit: an interactive picture with its settings, words and keys.

import { el, reachable, replace } from "./dom.js";
import { wordsOf } from "./language.js";
import { settingsOf } from "./settings.js";

const views = new Map();

// Say what draws the exhibits of a kind: view(exhibit) builds everything for the present language.
export const register = (kind, view) => views.set(kind, view);

export class Exhibit {
  constructor(root, kind, data, texts) {
    Object.assign(this, { root, kind, data, texts, words: wordsOf(texts), unfolded: new Set() });
    root.tabIndex = -1;
    root.addEventListener("keydown", (event) => this.pressed(event));
  }

  // Build it anew: at first, and when the language changes.
  build() {
    this.bound = {};
    this.drawn = [];
    this.folds = 0;
    if (this.settings) this.settings.listeners.length = 0;
    this.root.replaceChildren();
    this.badge = el("p", { class: "source", role: "status" });
    views.get(this.kind)(this);
    this.root.prepend(this.badge);
    this.settings?.listeners.push(() => this.draw());
    this.draw();
  }

  // The settings with their initial values, to be called once in a view; `valid` mends what does not go together.
  choose(initial, valid) {
    this.settings = settingsOf(this.kind, initial, valid);
    return this.settings;
  }

  // Controls, which stay while the settings change.
  controls(...nodes) {
    this.drawn.push(...nodes.filter((node) => node && node.draw).map((node) => () => node.draw()));
    const box = el("div", { class: "controls" }, ...nodes);
    this.root.append(box);
    return box;
  }

  // A part of the picture, drawn again when a setting changes; draw() returns its children.
  view(title, draw, attributes = {}) {
    const inside = el("div", { class: "inside" });
    this.root.append(el("section", { class: "view", ...attributes }, title && el("h3", {}, title), inside));
    this.drawn.push(() => replace(inside, draw()));
    return inside;
  }

  // A part that is folded until it is wanted, and drawn only then; it stays as it is when the language changes.
  fold(title, draw, attributes = {}) {
    const number = this.folds++;
    const inside = el("div", { class: "inside" });
    const open = this.unfolded.has(number);
    const details = el("details", { class: "view", open, ...attributes }, el("summary", {}, el("h3", {}, title)), inside);
    const again = () => details.open && replace(inside, draw());
    details.addEventListener("toggle", () => {
      this.unfolded[details.open ? "add" : "delete"](number);
      again();
      this.reach();
    });
    this.root.append(details);
    this.drawn.push(again);
    return inside;
  }

  draw() {
    for (const draw of this.drawn) draw();
    this.reach();
  }

  reach() {
    cancelAnimationFrame(this.reaching);
    this.reaching = requestAnimationFrame(() => reachable(this.root));
  }

  // Say whether the numbers are Python's or were computed in the page after a change of the reader's.
  source(recomputed) {
    this.root.dataset.source = recomputed ? "page" : "python";
    this.badge.textContent = this.words(recomputed ? "recomputed" : "computed");
    if (recomputed)
      this.badge.append(" ", el("button", { type: "button", onclick: () => this.settings.reset() }, this.words("reset")));
  }

  // What keys do while the exhibit has the focus, or nothing has and it is the only one: { ArrowLeft: act, … };
  // of one key the last that was given.
  keys(acts) {
    Object.assign(this.bound, acts);
  }

  pressed(event) {
    const taken = event.target.matches("input, select, textarea") || (event.target.matches("button, summary") && event.key === " ");
    const act = this.bound[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey || (taken && event.key !== "Escape")) return;
    event.preventDefault();
    act();
  }
}
