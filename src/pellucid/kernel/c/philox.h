// Uniform random numbers by a counter: Philox-4x32-10, the same bits as pellucid.kernel.random.uniform.
//
// A block b of the counter gives elements 4b to 4b + 3. Each lane of 64 bits mixes one block: a word is in its low half
// and the high half is arbitrary, until the last round leaves two words in one lane, and the other two in another.
// The blocks of a group are in the order 0 4 1 5 2 6 3 7: shuffles within 16 bytes then put their numbers in order.

#if defined(__AVX__) && !defined(__AVX2__)
#define PHILOX_BYTES 16 // wider ones are of reals only
#else
#define PHILOX_BYTES VECTOR_BYTES
#endif
#define PHILOX_BLOCKS (PHILOX_BYTES / 8) // of a group
#define PHILOX_NUMBERS (4 * PHILOX_BLOCKS)
#define PHILOX_GROUPS (PHILOX_BYTES == 64 ? 4 : 2) // as many as registers hold: one multiplies while others wait

#define PHILOX_M0 0xD2511F53u
#define PHILOX_M1 0xCD9E8D57u
#define PHILOX_W0 0x9E3779B9u
#define PHILOX_W1 0xBB67AE85u

typedef uint64_t words __attribute__((vector_size(PHILOX_BYTES)));
typedef uint32_t half_words __attribute__((vector_size(PHILOX_BYTES)));
typedef int32_t philox_integers __attribute__((vector_size(PHILOX_BYTES)));
typedef float philox_floats __attribute__((vector_size(PHILOX_BYTES)));

#if PHILOX_BYTES == 64
#define EVERY_16_BYTES(LIST) LIST(0), LIST(1), LIST(2), LIST(3)
#elif PHILOX_BYTES == 32
#define EVERY_16_BYTES(LIST) LIST(0), LIST(1)
#else
#define EVERY_16_BYTES(LIST) LIST(0)
#endif
#define PHILOX_ORDER(i) i, PHILOX_BLOCKS / 2 + i
#define FIRST_LANES(i) 2 * i, PHILOX_BLOCKS + 2 * i
#define SECOND_LANES(i) 2 * i + 1, PHILOX_BLOCKS + 2 * i + 1
#define SWAPPED_HALVES(i) 4 * i + 1, 4 * i, 4 * i + 3, 4 * i + 2
#if defined(__clang__)
#define SHUFFLED(a, b, order) __builtin_shufflevector(a, b, EVERY_16_BYTES(order))
#else
#define SHUFFLED(a, b, order) __builtin_shuffle(a, b, (__typeof__(a)){EVERY_16_BYTES(order)})
#endif

INLINE words swapped_halves(words a) { return (words)SHUFFLED((half_words)a, (half_words)a, SWAPPED_HALVES); }

INLINE words product_of_words(words a, uint32_t b)
{
#if defined(__AVX__)
  words result;
  __asm__("vpmuludq %2, %1, %0" : "=v"(result) : "v"(a), "v"((words){0} + b));
  return result;
#elif defined(__SSE2__)
  words result = a;
  __asm__("pmuludq %1, %0" : "+x"(result) : "x"((words){0} + b));
  return result;
#else
  return (a & 0xFFFFFFFF) * b;
#endif
}

// a ^ b ^ c in both halves of every lane, or in the low one only, where the high one of a stays.
INLINE words xor3(words a, words b, uint64_t c, int both)
{
#if defined(__AVX512F__)
  const uint16_t mask = both ? 0xFFFF : 0x5555;
  __asm__("vpternlogd $0x96, %2, %1, %0%{%3%}" : "+v"(a) : "v"(b), "v"((words){0} + c), "Yk"(mask));
  return a;
#else
  return a ^ ((b ^ c) & (both ? UINT64_MAX : UINT32_MAX));
#endif
}

// The upper 24 bits of every half as a fraction.
INLINE words philox_fractions(words a)
{
  return (words)(__builtin_convertvector((philox_integers)((half_words)a >> 8), philox_floats) * 0x1p-24f);
}

// What blocks with the same upper word share: the keys of the rounds, and what of the first two rounds does not depend
// on the lower word, which is mixed into c2 and c3 by the first one and into c0 and c1 by the second.
struct philox {
  uint64_t first_c2, c0, c2, c3, k0[10], k1[10];
};

// Some groups at once; products: of their lower words and M0, moved on to the next groups.
INLINE void philox_groups(float *out, int groups, const struct philox *shared, words *products)
{
  words c0[PHILOX_GROUPS], c1[PHILOX_GROUPS], c2[PHILOX_GROUPS], c3[PHILOX_GROUPS];
#define EACH_GROUP _Pragma("GCC unroll 4") for (int i = 0; i < groups; i++)
  EACH_GROUP {
    c1[i] = product_of_words(swapped_halves(*products) ^ shared->first_c2, PHILOX_M1);
    c0[i] = swapped_halves(c1[i]) ^ shared->c0;
    c2[i] = *products ^ shared->c2;
    c3[i] = (words){0} + shared->c3;
    *products += (uint64_t)PHILOX_M0 * PHILOX_BLOCKS;
  }
  _Pragma("GCC unroll 8") for (int round = 2; round < 10; round++)
    EACH_GROUP {
      const words p0 = product_of_words(c0[i], PHILOX_M0), p1 = product_of_words(c2[i], PHILOX_M1);
      c0[i] = xor3(swapped_halves(p1), c1[i], shared->k0[round], round < 9), c1[i] = p1;
      c2[i] = xor3(swapped_halves(p0), c3[i], shared->k1[round], round < 9), c3[i] = p0;
    }
  EACH_GROUP {
    const words a = philox_fractions(c0[i]), b = philox_fractions(c2[i]);
    const words first = SHUFFLED(a, b, FIRST_LANES), second = SHUFFLED(a, b, SECOND_LANES);
    memcpy(out + i * PHILOX_NUMBERS, &first, sizeof first);
    memcpy(out + i * PHILOX_NUMBERS + PHILOX_NUMBERS / 2, &second, sizeof second);
  }
}

// Not in philox_blocks, where the compiler would keep the keys in registers that it does not have.
UNUSED __attribute__((noinline)) static void philox_fill(float *out, int64_t count, const struct philox *shared,
                                                         uint32_t block)
{
  words products = product_of_words((words){EVERY_16_BYTES(PHILOX_ORDER)} + block, PHILOX_M0);
  for (int64_t made; count > 0; out += made, count -= made) {
    const int groups = count > PHILOX_GROUPS / 2 * PHILOX_NUMBERS ? PHILOX_GROUPS : 1;
    made = groups * PHILOX_NUMBERS;
    float last[PHILOX_GROUPS * PHILOX_NUMBERS], *const to = count < made ? last : out;
    if (groups == 1)
      philox_groups(to, 1, shared, &products);
    else
      philox_groups(to, PHILOX_GROUPS, shared, &products);
    if (count < made)
      memcpy(out, last, (size_t)count * sizeof *out);
  }
}

// The first elements of count from the start of a block on whose blocks have the same upper word; returns how many.
UNUSED __attribute__((noinline)) static int64_t philox_blocks(float *out, int64_t count, uint64_t seed,
                                                              uint64_t stream, uint64_t block)
{
  const int64_t left = 4 * ((INT64_C(1) << 32) - (uint32_t)block), made = count < left ? count : left;
  struct philox shared;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++, k0 += PHILOX_W0, k1 += PHILOX_W1)
    shared.k0[round] = k0, shared.k1[round] = k1;
  const uint64_t p1 = (uint64_t)PHILOX_M1 * (uint32_t)stream;
  const uint64_t p0 = (uint64_t)PHILOX_M0 * (uint32_t)((p1 >> 32) ^ (block >> 32) ^ shared.k0[0]);
  shared.first_c2 = (stream >> 32) ^ shared.k1[0];
  shared.c0 = p1 ^ shared.k0[1];
  shared.c2 = (p0 >> 32) ^ shared.k1[1];
  shared.c3 = p0;
  philox_fill(out, made, &shared, (uint32_t)block);
  return made;
}

// The first elements of count that are in one block; returns how many. That is quicker than a group, and takes as long
// as some forty numbers of many.
UNUSED __attribute__((noinline)) static int64_t philox_part(float *out, int64_t count, uint64_t seed, uint64_t stream,
                                                            uint64_t first)
{
  uint32_t c0 = (uint32_t)(first >> 2), c1 = (uint32_t)(first >> 34), c2 = (uint32_t)stream;
  uint32_t c3 = (uint32_t)(stream >> 32), k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++, k0 += PHILOX_W0, k1 += PHILOX_W1) {
    const uint64_t p0 = (uint64_t)PHILOX_M0 * c0, p1 = (uint64_t)PHILOX_M1 * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1, c3 = (uint32_t)p0;
  }
  const uint32_t block[] = {c0, c1, c2, c3};
  int64_t made = 0;
  for (uint64_t i = first % 4; i < 4 && made < count; i++)
    out[made++] = (float)(int32_t)(block[i] >> 8) * 0x1p-24f;
  return made;
}

// Elements first to first + count - 1 of the sequence of a seed and a stream.
UNUSED static void philox_uniform(float *out, int64_t count, uint64_t seed, uint64_t stream, uint64_t first)
{
  for (int64_t made; count > 0; out += made, count -= made, first += (uint64_t)made)
    if (first % 4 || count < 4)
      made = philox_part(out, count, seed, stream, first);
    else
      made = philox_blocks(out, count, seed, stream, first / 4);
}

// One element of that sequence.
UNUSED static float philox_number(uint64_t seed, uint64_t stream, uint64_t element)
{
  float number;
  philox_part(&number, 1, seed, stream, element);
  return number;
}
