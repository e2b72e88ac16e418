// Columns of a row in memory: n of them from a place, n = LANES or what is left at the end of the row.

#define INLINE static inline __attribute__((always_inline, unused))
#define UNUSED __attribute__((unused))

typedef float float32_storage;
typedef double float64_storage;
typedef uint16_t bfloat16_storage;
typedef uint16_t float16_storage;
typedef uint8_t bool_storage;
#if DOUBLE
typedef double real_storage;
#define take_real take_float64
#define put_real put_float64
#define read_real read_float64
#define write_real write_float64
#define store_real store_float64
#else
typedef float real_storage;
#define take_real take_float32
#define put_real put_float32
#define read_real read_float32
#define write_real write_float32
#define store_real store_float32
#endif

#define DEFINE_COLUMNS(type)                                                                                           \
  INLINE vec take_##type(const type##_storage *from, int n)                                                            \
  {                                                                                                                    \
    return n == LANES ? load_##type(from) : load_##type##_part(from, n);                                               \
  }                                                                                                                    \
  INLINE void put_##type(type##_storage *to, vec v, int n)                                                             \
  {                                                                                                                    \
    if (n == LANES)                                                                                                    \
      store_##type(to, v);                                                                                             \
    else                                                                                                               \
      store_##type##_part(to, v, n);                                                                                   \
  }
DEFINE_COLUMNS(float32)
DEFINE_COLUMNS(float64)
DEFINE_COLUMNS(bfloat16)
DEFINE_COLUMNS(float16)

INLINE ivec take_bool(const uint8_t *from, int n) { return n == LANES ? load_bool(from) : load_bool_part(from, n); }
INLINE void put_bool(uint8_t *to, ivec v, int n)
{
  if (n == LANES)
    store_bool(to, v);
  else
    store_bool_part(to, v, n);
}
INLINE ivec splat_bool(uint8_t value) { return (ivec){0} - (value != 0); }

// The lanes before n as they are, the others as the identity of a reduction.
INLINE vec keep(vec v, int n, real other)
{
  if (n == LANES)
    return v;
  for (int lane = n; lane < LANES; lane++)
    v[lane] = other;
  return v;
}
INLINE vec add_columns(vec total, vec v, int n) { return total + keep(v, n, 0); }
INLINE vec multiply_columns(vec total, vec v, int n) { return total * keep(v, n, 1); }
INLINE vec larger_columns(vec total, vec v, int n) { return vec_maximum(total, keep(v, n, -INFINITY)); }
INLINE vec smaller_columns(vec total, vec v, int n) { return vec_minimum(total, keep(v, n, INFINITY)); }
