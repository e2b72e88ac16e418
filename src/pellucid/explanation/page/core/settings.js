// What can be chosen on the page, and its place in the URL's hash: #conv.stride=2&lang=zh.

const stores = new Map();

export const readHash = () => new URLSearchParams(location.hash.slice(1));

// Set what the hash says by key; null takes a key out of it.
export function writeHash(changes) {
  const hash = readHash();
  for (const [key, value] of Object.entries(changes)) {
    if (value === null) hash.delete(key);
    else hash.set(key, String(value));
  }
  const text = hash.toString();
  try {
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  } catch {
    // a sandboxed frame has no history of its own
  }
}

function parsed(text, initial) {
  if (typeof initial === "number") return text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : initial;
  if (typeof initial === "boolean") return text === "true";
  return text;
}

class Settings {
  constructor(kind, initial, valid) {
    Object.assign(this, { kind, initial, valid, values: { ...initial }, listeners: [] });
    this.load();
  }

  load() {
    const hash = readHash();
    const found = { ...this.initial };
    for (const [key, initial] of Object.entries(this.initial)) {
      const text = hash.get(`${this.kind}.${key}`);
      if (text !== null) found[key] = parsed(text, initial);
    }
    this.values = this.valid(found);
  }

  // Whether something differs from what Python computed; `keys` are those that matter.
  changed(keys = Object.keys(this.initial)) {
    return keys.some((key) => this.values[key] !== this.initial[key]);
  }

  set(changes) {
    this.values = this.valid({ ...this.values, ...changes });
    const said = ([key, value]) => [`${this.kind}.${key}`, value === this.initial[key] ? null : value];
    writeHash(Object.fromEntries(Object.entries(this.values).map(said)));
    this.tell();
  }

  reset(keys = Object.keys(this.initial)) {
    this.set(Object.fromEntries(keys.map((key) => [key, this.initial[key]])));
  }

  tell() {
    for (const listener of [...this.listeners]) listener(this.values);
  }
}

// The settings of an exhibit, made once; `valid` brings values that do not go together into range.
export function settingsOf(kind, initial, valid = (values) => values) {
  if (!stores.has(kind)) stores.set(kind, new Settings(kind, initial, valid));
  return stores.get(kind);
}

addEventListener("hashchange", () => {
  for (const settings of stores.values()) {
    settings.load();
    settings.tell();
  }
});
