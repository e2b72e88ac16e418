// What a call of a loop is given, and how its work is shared among threads.

#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#define YIELD sched_yield()
#else
#define YIELD (void)0
#endif
#if defined(__x86_64__) || defined(__i386__)
#define PAUSE __builtin_ia32_pause()
#else
#define PAUSE (void)0
#endif
#if defined(__SSE__)
#define SUBNORMALS_AS_ZERO 0x8040 // of operands and of results
#define ARITHMETIC_MODE() __builtin_ia32_stmxcsr()
#define SET_ARITHMETIC_MODE(mode) __builtin_ia32_ldmxcsr(mode)
#else
#define SUBNORMALS_AS_ZERO 0
#define ARITHMETIC_MODE() 0
#define SET_ARITHMETIC_MODE(mode) (void)(mode)
#endif
#define SPINS 4096      // looks at a flag before another thread is let run
#define MOST_HELPERS 63

#define ROUNDED(bytes) (((bytes) + 63) / 64 * 64)

struct threads {
  int64_t count;
  void (*parallel)(void (*)(void *), void *, unsigned, unsigned); // GOMP_parallel of torch's OpenMP, or NULL
};

struct call {
  int64_t time, batch;         // of the whole sequence
  int64_t start;               // the number of the first step, where this is a chunk of a longer sequence
  int64_t begin, end;          // the steps of this call, counted in the order in which they are taken
  int64_t backwards;           // 1: from the last step to the first
  int64_t block;               // rows that one thread takes at a time
  int64_t chunk;               // steps whose input products are computed together
  int64_t direct;              // 1: the matrices are read where they lie, without being packed
  int64_t together;            // 1: one block of rows, with whose products all threads help
  uint64_t seed;               // of the random draws
  const int64_t *lengths;      // real steps of each row, or NULL
  const int64_t *strides;      // of the matrices: row and column of each
  const int64_t *slots;        // how many steps of each state are kept
  char *work;                  // packed matrices, then the scratch of each thread
  void *const *buffers;
  struct threads threads;
};

// What a thread does. Numbers too small for all their digits count as 0 meanwhile: some processors take many times as
// long for each of them, and a gradient that vanishes along a sequence passes through all their sizes.
struct work {
  void (*run)(void *argument);
  void *argument;
};

static void without_subnormals(void *argument)
{
  const struct work *work = argument;
  const unsigned before = ARITHMETIC_MODE();
  SET_ARITHMETIC_MODE(before | SUBNORMALS_AS_ZERO);
  work->run(work->argument);
  SET_ARITHMETIC_MODE(before);
}

static void on_threads(const struct threads *threads, int64_t count, void (*run)(void *), void *argument)
{
  struct work work = {run, argument};
  if (count > 1 && threads->parallel)
    threads->parallel(without_subnormals, &work, (unsigned)count, 0);
  else
    without_subnormals(&work);
}

// Tasks that threads take one after another.
struct tasks {
  const void *context;
  void (*run)(const void *context, int64_t task, int64_t worker);
  int64_t count, next, workers;
};

static void take_tasks(void *argument)
{
  struct tasks *tasks = argument;
  const int64_t worker = __atomic_fetch_add(&tasks->workers, 1, __ATOMIC_RELAXED);
  for (;;) {
    const int64_t task = __atomic_fetch_add(&tasks->next, 1, __ATOMIC_RELAXED);
    if (task >= tasks->count)
      return;
    tasks->run(tasks->context, task, worker);
  }
}

UNUSED static void share(const struct threads *threads, void (*run)(const void *, int64_t, int64_t),
                         const void *context, int64_t count)
{
  struct tasks tasks = {context, run, count, 0, 0};
  on_threads(threads, threads->count < count ? threads->count : count, take_tasks, &tasks);
}

// One thread takes all steps, and others help it with its products: each has a share of the panels. What a helper has
// not begun when the first thread is through with its own share, that one does itself: it waits for work, never for a
// thread, which may have lost its processor to another program.
struct team {
  int64_t helpers;
  int64_t arrivals, ended;
  int64_t product;                      // the number of the one that is being computed
  struct { _Alignas(64) int64_t begun, done; } shares[MOST_HELPERS]; // the last products whose share is begun and done
  void (*run)(const void *context, int64_t share, int64_t shares);
  const void *context;
  void (*body)(const void *call, struct team *team);
  const void *call;
};

static void help(struct team *team, int64_t helper)
{
  int64_t seen = 0;
  for (int64_t spins = 1; !__atomic_load_n(&team->ended, __ATOMIC_ACQUIRE); spins++) {
    int64_t product = __atomic_load_n(&team->product, __ATOMIC_ACQUIRE), before = product - 1;
    if (product != seen) {
      seen = product, spins = 0;
      if (__atomic_compare_exchange_n(&team->shares[helper].begun, &before, product, 0, __ATOMIC_ACQ_REL,
                                      __ATOMIC_RELAXED)) {
        team->run(team->context, helper + 1, team->helpers + 1);
        __atomic_store_n(&team->shares[helper].done, product, __ATOMIC_RELEASE);
      }
    } else if (spins % SPINS) {
      PAUSE;
    } else {
      YIELD;
    }
  }
}

// Compute a product by shares; without a team there is one.
INLINE void with_help(struct team *team, void (*run)(const void *, int64_t, int64_t), const void *context)
{
  if (!team) {
    run(context, 0, 1);
    return;
  }
  team->run = run, team->context = context;
  const int64_t product = team->product + 1;
  __atomic_store_n(&team->product, product, __ATOMIC_RELEASE);
  run(context, 0, team->helpers + 1);
  for (int64_t helper = 0; helper < team->helpers; helper++) {
    int64_t before = product - 1;
    if (__atomic_compare_exchange_n(&team->shares[helper].begun, &before, product, 0, __ATOMIC_ACQ_REL,
                                    __ATOMIC_RELAXED))
      run(context, helper + 1, team->helpers + 1);
    else
      for (int64_t spins = 1; __atomic_load_n(&team->shares[helper].done, __ATOMIC_ACQUIRE) != product; spins++)
        if (spins % SPINS)
          PAUSE;
        else
          YIELD;
  }
}

static void join(void *argument)
{
  struct team *team = argument;
  const int64_t arrival = __atomic_fetch_add(&team->arrivals, 1, __ATOMIC_ACQ_REL);
  if (arrival > 0) {
    help(team, arrival - 1);
    return;
  }
  team->body(team->call, team);
  __atomic_store_n(&team->ended, 1, __ATOMIC_RELEASE);
}

UNUSED static void gather(const struct threads *threads, void (*body)(const void *, struct team *), const void *call)
{
  struct team team = {0};
  team.helpers = (threads->count < MOST_HELPERS ? threads->count : MOST_HELPERS + 1) - 1;
  team.body = body, team.call = call;
  on_threads(threads, team.helpers + 1, join, &team);
}

static inline int64_t blocks_of(const struct call *call) { return (call->batch + call->block - 1) / call->block; }

static inline int any_real(const struct call *call, int64_t first, int64_t rows, int64_t t)
{
  if (!call->lengths)
    return 1;
  for (int64_t r = first; r < first + rows; r++)
    if (t < call->lengths[r])
      return 1;
  return 0;
}

// A sum over all rows of all steps is made of sums over PART_STEPS steps, so that it does not swallow small terms.
#define PART_STEPS 32
UNUSED static void add_part(real *total, real *part, int64_t width)
{
  for (int64_t c = 0; c < width; c++)
    total[c] += part[c], part[c] = 0;
}
