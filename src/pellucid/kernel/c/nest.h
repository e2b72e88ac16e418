// What a call of nested loops is given: a formula over axes instead of time. And stores past the caches: a line that is
// written whole need not be read first.

#if defined(__AVX__) && !defined(__clang__)
#define STREAM(to, v) __asm__ volatile("vmovntdq %1, %0" : "=m"(*(__typeof__(v) *)(to)) : "v"(v))
#define FINISH_STREAMS __asm__ volatile("sfence" ::: "memory")
#elif defined(__AVX__)
#define STREAM(to, v) __builtin_nontemporal_store(v, (__typeof__(v) *)(to))
#define FINISH_STREAMS __asm__ volatile("sfence" ::: "memory")
#else
#define STREAM(to, v) memcpy(to, &(v), sizeof(v))
#define FINISH_STREAMS (void)0
#endif
#define WHOLE_LINES 64 // bytes that go past the caches where other rows come before the next columns, not half a line
#define DEFINE_RESULT(type, lanes)                                                                                     \
  INLINE void result_##type(type##_storage *to, vec v, int n, int past)                                              \
  {                                                                                                                    \
    lanes stored = to_##type(v);                                                                                       \
    if (past && n == LANES && sizeof(stored) >= (past == WHOLE_LINES ? WHOLE_LINES : 16) &&                            \
        (uintptr_t)to % sizeof(stored) == 0)                                                                           \
      STREAM(to, stored);                                                                                              \
    else                                                                                                               \
      put_##type(to, v, n);                                                                                            \
  }
#if DOUBLE
DEFINE_RESULT(float64, float64_lanes)
#else
DEFINE_RESULT(float32, float32_lanes)
#endif
DEFINE_RESULT(bfloat16, half_lanes)
DEFINE_RESULT(float16, half_lanes)

#define CHUNK 4096 // columns whose sum is made by itself: a long sum would swallow small terms

// What will be read soon: the processor itself sees no further than the end of a page.
#define FETCH_PLACE(place) __builtin_prefetch(place, 0, 2)
#define FETCH(place) FETCH_PLACE((const char *)(place) + 1024)

struct nest {
  const int64_t *sizes;      // of the axes
  const int64_t *strides;    // of every operand: in elements along every axis, then between the parts of a total
  void *const *places;       // of every operand
  const double *numbers;
  const int64_t *offsets;    // of every operand that is random: its first element in the sequence
  uint64_t seed, stream;     // of the random draws
  int64_t rows;              // the product of the axes outside
  int64_t tiles, tile;       // the columns are cut into tiles of so many, where they are not reduced
  int64_t parts;             // of the work; one thread takes one at a time, and each has its part of a total
  int64_t total;             // entries of all totals of a part
  real *totals;              // where those of the first part begin
  int64_t past;              // 1: results go past the caches, which they would only clear of what is still read
  int64_t scratch;           // bytes of a thread's scratch
  char *work;
  struct threads threads;
};

UNUSED static void start_part(const struct nest *call, int64_t part)
{
  memset(call->totals + part * call->total, 0, (size_t)call->total * sizeof(real));
}

// The sums over all rows, in the place of the first part's.
UNUSED static void add_up_parts(const struct nest *call)
{
  for (int64_t part = 1; part < call->parts; part++) {
    const real *const other = call->totals + part * call->total;
    for (int64_t i = 0; i < call->total; i++)
      call->totals[i] += other[i];
  }
}
