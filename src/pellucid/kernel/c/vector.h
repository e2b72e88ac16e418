// Vectors of reals by the vector extensions of GCC and Clang, and the types that they have in memory.
//
// DOUBLE is defined before: 0 for arithmetic in float, 1 for double. What only one instruction does well is written as
// assembly: <immintrin.h> would take longer to read than the rest of a kernel takes to compile.

#include <math.h>
#include <stdint.h>
#include <string.h>

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi" // all functions are in one translation unit
#endif

#define INLINE static inline __attribute__((always_inline, unused))
#define UNUSED __attribute__((unused))

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#if DOUBLE
typedef double real;
typedef int64_t integer;
#define LANES (VECTOR_BYTES / 8)
#define SUFFIX "pd"
#else
typedef float real;
typedef int32_t integer;
#define LANES (VECTOR_BYTES / 4)
#define SUFFIX "ps"
#endif

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef integer ivec __attribute__((vector_size(VECTOR_BYTES))); // of masks: -1 where true, else 0

#define ROUND_UP(n) (((n) + LANES - 1) / LANES * LANES)

// A vector stays in its register: read anew for every product, it would be asked of the cache as often, across two of
// its lines too.
#if defined(__x86_64__)
#define STAY(v) __asm__("" : "+v"(v))
#else
#define STAY(v) (void)0
#endif

#define SELECT(mask, a, b) ((__typeof__(a))(((mask) & (__typeof__(mask))(a)) | (~(mask) & (__typeof__(mask))(b))))

INLINE vec splat(real x) { return x - (vec){0}; }
INLINE vec choose(ivec mask, vec a, vec b) { return SELECT(mask, a, b); }
INLINE vec from_mask(ivec mask) { return (vec)(mask & (ivec)splat(1)); }

// The smaller and the larger one; b where one of them is NaN.
#if defined(__AVX__)
#define DEFINE_SELECTION(name, instruction, comparison)                                                                \
  INLINE vec name(vec a, vec b)                                                                                        \
  {                                                                                                                    \
    vec result;                                                                                                        \
    __asm__(instruction SUFFIX " %2, %1, %0" : "=v"(result) : "v"(a), "v"(b));                                         \
    return result;                                                                                                     \
  }
#else
#define DEFINE_SELECTION(name, instruction, comparison)                                                                \
  INLINE vec name(vec a, vec b) { return choose(a comparison b, a, b); }
#endif
DEFINE_SELECTION(lesser, "vmin", <)
DEFINE_SELECTION(greater, "vmax", >)

// Reductions of the lanes: always of the first half with the second.
typedef real vec32 __attribute__((vector_size(32)));
typedef real vec16 __attribute__((vector_size(16)));
#define DEFINE_REDUCTION(name, COMBINED)                                                                               \
  INLINE real name(vec v)                                                                                              \
  {                                                                                                                    \
    union {                                                                                                            \
      vec whole;                                                                                                       \
      vec32 halves[2];                                                                                                 \
      vec16 quarters[4];                                                                                               \
    } parts = {v};                                                                                                     \
    if (VECTOR_BYTES == 64)                                                                                            \
      parts.halves[0] = COMBINED(parts.halves[0], parts.halves[1]);                                                    \
    if (VECTOR_BYTES >= 32)                                                                                            \
      parts.quarters[0] = COMBINED(parts.quarters[0], parts.quarters[1]);                                              \
    return name##_of_quarter(parts.quarters[0]);                                                                       \
  }
#if DOUBLE
#define DEFINE_QUARTER(name, COMBINED)                                                                                 \
  INLINE real name##_of_quarter(vec16 a)                                                                               \
  {                                                                                                                    \
    const vec16 b = {a[1], a[0]};                                                                                      \
    return COMBINED(a, b)[0];                                                                                          \
  }
#else
#define DEFINE_QUARTER(name, COMBINED)                                                                                 \
  INLINE real name##_of_quarter(vec16 a)                                                                               \
  {                                                                                                                    \
    const vec16 b = {a[2], a[3], a[0], a[1]};                                                                          \
    const vec16 c = COMBINED(a, b), d = {c[1], c[0], c[3], c[2]};                                                      \
    return COMBINED(c, d)[0];                                                                                          \
  }
#endif
#define SUM(a, b) ((a) + (b))
#define MULTIPLIED(a, b) ((a) * (b))
#define LARGEST(a, b) SELECT((a > b) | (a != a), a, b)
#define SMALLEST(a, b) SELECT((a < b) | (a != a), a, b)
DEFINE_QUARTER(sum, SUM)
DEFINE_QUARTER(multiplied, MULTIPLIED)
DEFINE_QUARTER(largest, LARGEST)
DEFINE_QUARTER(smallest, SMALLEST)
DEFINE_REDUCTION(sum, SUM)
DEFINE_REDUCTION(multiplied, MULTIPLIED)
DEFINE_REDUCTION(largest, LARGEST)
DEFINE_REDUCTION(smallest, SMALLEST)

// What is stored, LANES of it, and its conversion. Types narrower than float pass through float, as in torch.
typedef float float32_lanes __attribute__((vector_size(4 * LANES)));
typedef double float64_lanes __attribute__((vector_size(8 * LANES)));
typedef uint16_t half_lanes __attribute__((vector_size(2 * LANES)));
typedef uint8_t bool_lanes __attribute__((vector_size(LANES)));
typedef uint32_t bits_lanes __attribute__((vector_size(4 * LANES)));

INLINE vec from_float32(float32_lanes v) { return __builtin_convertvector(v, vec); }
INLINE vec from_float64(float64_lanes v) { return __builtin_convertvector(v, vec); }
INLINE float32_lanes to_float32(vec v) { return __builtin_convertvector(v, float32_lanes); }
INLINE float64_lanes to_float64(vec v) { return __builtin_convertvector(v, float64_lanes); }

INLINE vec from_bfloat16(half_lanes v)
{
  return from_float32((float32_lanes)(__builtin_convertvector(v, bits_lanes) << 16));
}
INLINE half_lanes to_bfloat16(vec v)
{
  const float32_lanes x = to_float32(v);
  const bits_lanes bits = (bits_lanes)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(SELECT((bits_lanes)(x == x), rounded, (bits >> 16) | 0x40), half_lanes);
}

#if (defined(__F16C__) || defined(__AVX512F__)) && LANES >= 8
INLINE vec from_float16(half_lanes v)
{
  float32_lanes result;
  __asm__("vcvtph2ps %1, %0" : "=v"(result) : "v"(v));
  return from_float32(result);
}
INLINE half_lanes to_float16(vec v)
{
  half_lanes result;
  __asm__("vcvtps2ph $0, %1, %0" : "=v"(result) : "v"(to_float32(v)));
  return result;
}
#else
// The fields of a half, moved to those of a float, are the number times 2^-112, of a normal and of a subnormal one.
INLINE vec from_float16(half_lanes v)
{
  const bits_lanes bits = __builtin_convertvector(v, bits_lanes), magnitude = bits & 0x7fff;
  const bits_lanes finite = (bits_lanes)((float32_lanes)(magnitude << 13) * 0x1p112f);
  const bits_lanes special = (bits_lanes)(magnitude >= 0x7c00) & 0x7f800000;
  return from_float32((float32_lanes)(finite | special | ((bits & 0x8000) << 16)));
}
// Below 2^-14 the sum with 1/2 has the half's spacing; above, the exponent is rebased and the carry of rounding goes
// into it, up to infinity.
INLINE half_lanes to_float16(vec v)
{
  const bits_lanes bits = (bits_lanes)to_float32(v), magnitude = bits & 0x7fffffff;
  const bits_lanes tiny = (bits_lanes)((float32_lanes)magnitude + 0.5f) - 0x3f000000;
  const bits_lanes normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const bits_lanes special = ((bits_lanes)(magnitude > 0x7f800000) & 0x200) | 0x7c00;
  const bits_lanes finite = SELECT((bits_lanes)(magnitude < 0x38800000), tiny, normal);
  const bits_lanes result = SELECT((bits_lanes)(magnitude < 0x47800000), finite, special);
  return __builtin_convertvector(result | ((bits >> 16) & 0x8000), half_lanes);
}
#endif

INLINE ivec from_bool(bool_lanes v) // in steps of twice the width, for which there are instructions
{
  const bits_lanes words = __builtin_convertvector(__builtin_convertvector(v, half_lanes), bits_lanes);
  return __builtin_convertvector(words, ivec) != 0;
}
INLINE bool_lanes to_bool(ivec mask) { return __builtin_convertvector(mask & 1, bool_lanes); }

// From and to any address; a part is the first count lanes, 0 < count < LANES, and nothing behind them is touched.
#define DEFINE_MEMORY(type, element, lanes, value)                                                                     \
  INLINE value load_##type(const element *p)                                                                           \
  {                                                                                                                    \
    lanes stored;                                                                                                      \
    memcpy(&stored, p, sizeof stored);                                                                                 \
    return from_##type(stored);                                                                                        \
  }                                                                                                                    \
  INLINE void store_##type(element *p, value v)                                                                        \
  {                                                                                                                    \
    const lanes stored = to_##type(v);                                                                                 \
    memcpy(p, &stored, sizeof stored);                                                                                 \
  }
#define DEFINE_PARTS(type, element, lanes, value)                                                                      \
  INLINE value load_##type##_part(const element *p, int count)                                                         \
  {                                                                                                                    \
    lanes stored = {0};                                                                                                \
    memcpy(&stored, p, (size_t)count * sizeof *p);                                                                     \
    return from_##type(stored);                                                                                        \
  }                                                                                                                    \
  INLINE void store_##type##_part(element *p, value v, int count)                                                      \
  {                                                                                                                    \
    const lanes stored = to_##type(v);                                                                                 \
    memcpy(p, &stored, (size_t)count * sizeof *p);                                                                     \
  }
#define DEFINE_MASKED_PARTS(type)                                                                                      \
  INLINE vec load_##type##_part(const real *p, int count)                                                              \
  {                                                                                                                    \
    vec v;                                                                                                             \
    const uint16_t mask = (uint16_t)((1u << count) - 1);                                                               \
    __asm__("vmovu" SUFFIX " %1, %0%{%2%}%{z%}" : "=v"(v) : "m"(*(const real(*)[count])p), "Yk"(mask));                \
    return v;                                                                                                          \
  }                                                                                                                    \
  INLINE void store_##type##_part(real *p, vec v, int count)                                                           \
  {                                                                                                                    \
    const uint16_t mask = (uint16_t)((1u << count) - 1);                                                               \
    __asm__("vmovu" SUFFIX " %1, %0%{%2%}" : "=m"(*(real(*)[count])p) : "v"(v), "Yk"(mask));                           \
  }
#define DEFINE_SCALARS(type, element, lanes)                                                                           \
  INLINE real read_##type(const element *p)                                                                            \
  {                                                                                                                    \
    const lanes stored = {*p};                                                                                         \
    return from_##type(stored)[0];                                                                                     \
  }                                                                                                                    \
  INLINE void write_##type(element *p, real x) { *p = to_##type(splat(x))[0]; }

DEFINE_MEMORY(float32, float, float32_lanes, vec)
DEFINE_MEMORY(float64, double, float64_lanes, vec)
DEFINE_MEMORY(bfloat16, uint16_t, half_lanes, vec)
DEFINE_MEMORY(float16, uint16_t, half_lanes, vec)
DEFINE_MEMORY(bool, uint8_t, bool_lanes, ivec)

#if defined(__AVX512F__) && DOUBLE
DEFINE_PARTS(float32, float, float32_lanes, vec)
DEFINE_MASKED_PARTS(float64)
#elif defined(__AVX512F__)
DEFINE_MASKED_PARTS(float32)
DEFINE_PARTS(float64, double, float64_lanes, vec)
#else
DEFINE_PARTS(float32, float, float32_lanes, vec)
DEFINE_PARTS(float64, double, float64_lanes, vec)
#endif
DEFINE_PARTS(bfloat16, uint16_t, half_lanes, vec)
DEFINE_PARTS(float16, uint16_t, half_lanes, vec)
DEFINE_PARTS(bool, uint8_t, bool_lanes, ivec)

INLINE real read_float32(const float *p) { return (real)*p; }
INLINE real read_float64(const double *p) { return (real)*p; }
INLINE void write_float32(float *p, real x) { *p = (float)x; }
INLINE void write_float64(double *p, real x) { *p = (double)x; }
DEFINE_SCALARS(bfloat16, uint16_t, half_lanes)
DEFINE_SCALARS(float16, uint16_t, half_lanes)
INLINE int read_bool(const uint8_t *p) { return *p != 0; }
INLINE void write_bool(uint8_t *p, int value) { *p = value != 0; }
