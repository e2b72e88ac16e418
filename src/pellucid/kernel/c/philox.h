// Uniform random numbers by a counter: Philox-4x32-10, the same bits as pellucid.kernel.random.uniform.
//
// A block b of the counter gives elements 4b to 4b + 3; each lane of 64 bits mixes one block. Words are in the low
// halves, the high halves are arbitrary.

#define PHILOX_BLOCKS (VECTOR_BYTES / 8)
#define PHILOX_NUMBERS (4 * PHILOX_BLOCKS)

typedef uint64_t words __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t philox_integers __attribute__((vector_size(VECTOR_BYTES)));
typedef float philox_floats __attribute__((vector_size(VECTOR_BYTES)));

INLINE words product_of_words(words a, uint64_t b)
{
#if defined(__AVX2__)
  words result;
  __asm__("vpmuludq %2, %1, %0" : "=v"(result) : "v"(a), "v"((words){0} + b));
  return result;
#elif defined(__SSE2__) && !defined(__AVX__)
  words result = a;
  __asm__("pmuludq %1, %0" : "+x"(result) : "x"((words){0} + b));
  return result;
#else
  return (a & 0xFFFFFFFF) * b;
#endif
}

// The upper 24 bits of the words a and b of every block as fractions, next to each other.
INLINE words philox_pairs(words a, words b)
{
  const philox_integers numbers = (philox_integers)(((a >> 8) & 0xFFFFFF) | ((b >> 8) & 0xFFFFFF) << 32);
  return (words)(__builtin_convertvector(numbers, philox_floats) * 0x1p-24f);
}

UNUSED static void philox_group(float *out, uint64_t seed, uint64_t stream, uint64_t block)
{
  words c0, c1, c2 = (words){0} + stream, c3 = c2 >> 32;
  for (int i = 0; i < PHILOX_BLOCKS; i++)
    c0[i] = block + (uint64_t)i;
  c1 = c0 >> 32;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const words p0 = product_of_words(c0, 0xD2511F53), p1 = product_of_words(c2, 0xCD9E8D57);
    c0 = (p1 >> 32) ^ c1 ^ k0, c1 = p1;
    c2 = (p0 >> 32) ^ c3 ^ k1, c3 = p0;
  }
  const words first = philox_pairs(c0, c1), second = philox_pairs(c2, c3);
  uint64_t pairs[2 * PHILOX_BLOCKS];
  for (int i = 0; i < PHILOX_BLOCKS; i++)
    pairs[2 * i] = first[i], pairs[2 * i + 1] = second[i];
  memcpy(out, pairs, sizeof pairs);
}

// Elements first to first + count - 1 of the sequence of a seed and a stream.
UNUSED static void philox_uniform(float *out, int64_t count, uint64_t seed, uint64_t stream, uint64_t first)
{
  uint64_t block = first / 4;
  const int64_t skipped = (int64_t)(first % 4);
  float group[PHILOX_NUMBERS];
  if (skipped && count > 0) {
    const int64_t taken = count < 4 - skipped ? count : 4 - skipped;
    philox_group(group, seed, stream, block++);
    memcpy(out, group + skipped, (size_t)taken * sizeof *out);
    out += taken, count -= taken;
  }
  for (; count >= PHILOX_NUMBERS; count -= PHILOX_NUMBERS, out += PHILOX_NUMBERS, block += PHILOX_BLOCKS)
    philox_group(out, seed, stream, block);
  if (count > 0) {
    philox_group(group, seed, stream, block);
    memcpy(out, group, (size_t)count * sizeof *out);
  }
}
