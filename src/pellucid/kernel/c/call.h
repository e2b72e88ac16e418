// What a call of a loop is given, and how its work is shared among threads.

#define ROUNDED(bytes) (((bytes) + 63) / 64 * 64)

struct call {
  int64_t time, batch;         // of the whole sequence
  int64_t start;               // the number of the first step, where this is a chunk of a longer sequence
  int64_t begin, end;          // the steps of this call, counted in the order in which they are taken
  int64_t backwards;           // 1: from the last step to the first
  int64_t block;               // rows that one thread takes at a time
  int64_t chunk;               // steps whose input products are computed together
  int64_t together;            // 1: one block of rows, whose input products all threads compute before the steps
  int64_t threads;
  uint64_t seed;               // of the random draws
  const int64_t *lengths;      // real steps of each row, or NULL
  const int64_t *strides;      // of the matrices: row and column of each
  const int64_t *slots;        // how many steps of each state are kept
  void (*parallel)(void (*)(void *), void *, unsigned, unsigned); // GOMP_parallel of torch's OpenMP, or NULL
  char *work;                  // packed matrices, then the scratch of each thread
  void *const *buffers;
};

struct tasks {
  const struct call *call;
  void (*run)(const struct call *, int64_t task, int64_t worker);
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
    tasks->run(tasks->call, task, worker);
  }
}

static void share(const struct call *call, void (*run)(const struct call *, int64_t, int64_t), int64_t count)
{
  struct tasks tasks = {call, run, count, 0, 0};
  const int64_t threads = call->threads < count ? call->threads : count;
  if (threads > 1 && call->parallel)
    call->parallel(take_tasks, &tasks, (unsigned)threads, 0);
  else
    take_tasks(&tasks);
}

static inline int any_real(const struct call *call, int64_t first, int64_t rows, int64_t t)
{
  if (!call->lengths)
    return 1;
  for (int64_t r = first; r < first + rows; r++)
    if (t < call->lengths[r])
      return 1;
  return 0;
}
