// Numbers: those that Python packed, and how they are written; the rules are those of typesetting.py.

const READERS = { f4: Float32Array, f8: Float64Array };

export const within = (value, low, high) => Math.min(Math.max(value, low), high);
export const wholeWithin = (value, low, high) => within(Math.round(value), low, high);

// The largest finite magnitude, 0 where there is none.
export const greatest = (numbers) =>
  Array.from(numbers).filter(Number.isFinite).reduce((most, number) => Math.max(most, Math.abs(number)), 0);

// How far two numbers lie from each other; what is the same, infinite or no number too, not at all.
export const distance = (a, b) => (a === b || (Number.isNaN(a) && Number.isNaN(b)) ? 0 : Math.abs(a - b));

export const size = (shape) => shape.reduce((product, extent) => product * extent, 1);

export function unpacked(value) {
  if (Array.isArray(value)) return value.map(unpacked);
  if (value === null || typeof value !== "object") return value;
  if ("base64" in value && "shape" in value) {
    const text = atob(value.base64);
    const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    return { shape: value.shape, data: Float64Array.from(new READERS[value.type](bytes.buffer)) };
  }
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, unpacked(part)]));
}

// How many decimals numbers that stand together have: as many as give the greatest four significant digits, 0 where
// all are whole, null where only powers of ten will do.
export function places(numbers) {
  const finite = Array.from(numbers).filter(Number.isFinite);
  const most = greatest(finite);
  if (most === 0 || (finite.every((n) => n === Math.round(n)) && most < 1e4)) return 0;
  if (most >= 1e4 || most < 1e-2) return null;
  return within(3 - Math.floor(Math.log10(Number(most.toExponential(3)))), 0, 4);
}

export function written(number, decimals) {
  if (number === null || number === undefined || Number.isNaN(number)) return "nan";
  if (!Number.isFinite(number)) return number > 0 ? "inf" : "−inf";
  if (number === 0) return "0";
  if (decimals === null) {
    const [digits, power] = number.toExponential(2).split("e");
    return `${digits}e${power[0]}${power.slice(1).padStart(2, "0")}`.replaceAll("-", "−");
  }
  const text = number.toFixed(decimals);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

// One number in a sentence: at most four digits.
export function short(number) {
  if (number === null || !Number.isFinite(number)) return written(number, 0);
  const digits = Math.abs(number) < 1e-3 ? 2 : 4;
  let text = Number(number.toPrecision(digits)).toString();
  if (Math.abs(number) >= 1e6) text = number.toExponential(3);
  return text.replaceAll("-", "−");
}

// A number as a factor or a term: negative ones in parentheses.
export const term = (number) => (short(number).startsWith("−") ? `(${short(number)})` : short(number));

export const count = (number) => number.toLocaleString("en-US");
export const shapeText = (shape) => shape.join("×") || "1";
