// Philox-4x32-10: the numbers of kernel/random.py, the same bits for the same seed, stream and index of an element.
// Seed and stream are pairs of 32-bit words, the low one first.

const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
const WEYL = [0x9e3779b9, 0xbb67ae85];
const ROUNDS = 10;
const WORD = 2 ** 32;

// The high and the low word of the product of two words.
function product(a, b) {
  const [aLow, aHigh, bLow, bHigh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const [low, first, second] = [aLow * bLow, aLow * bHigh, aHigh * bLow];
  const carry = (low >>> 16) + (first & 0xffff) + (second & 0xffff);
  return [aHigh * bHigh + (first >>> 16) + (second >>> 16) + (carry >>> 16), Math.imul(a, b) >>> 0];
}

// Mix four words of a counter with the two of a key into four random words.
function philox(counter, key) {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < ROUNDS; round++) {
    const [high0, low0] = product(MULTIPLIERS[0], c0);
    const [high1, low1] = product(MULTIPLIERS[1], c2);
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    [k0, k1] = [(k0 + WEYL[0]) >>> 0, (k1 + WEYL[1]) >>> 0];
  }
  return [c0, c1, c2, c3];
}

// The number in [0, 1) of an element, as float32 has it: the upper 24 bits of its word.
export function uniform(index, seed, stream) {
  const block = Math.floor(index / 4);
  const words = philox([block % WORD, Math.floor(block / WORD), ...stream], seed);
  return (words[index % 4] >>> 8) / 2 ** 24;
}

// The stream that lies `steps` behind another.
export function later([low, high], steps) {
  const sum = low + steps;
  return [sum % WORD, (high + Math.floor(sum / WORD)) % WORD];
}
