// The greatest entry under every window, or the sum of them times a scale; and the gradient of the input. Every channel
// is by itself.
//
// The first of equal entries counts, and a NaN is greater than any number, as in torch. Which tap it was is kept as a
// byte for every result; backward reads nothing else of the input.

struct pooling {
  struct windows windows;
  double scale;   // of a sum
  int64_t largest; // 1: the greatest entry
};

struct pool_pass {
  const struct pooling *pooling;
  struct planes planes;
  int64_t bytes; // of a thread's scratch
};

// The numbers of the taps are kept in reals while they are looked for; bytes have LANES of them at a time.
INLINE void take_taps(uint8_t *to, const real *from, int64_t count)
{
  for (int64_t i = 0; i < count; i += LANES) {
    const bool_lanes bytes = __builtin_convertvector(__builtin_convertvector(take_real(from + i, PART(count - i)), ivec), bool_lanes);
    memcpy(to + i, &bytes, (size_t)PART(count - i));
  }
}
INLINE void lay_taps(real *to, const uint8_t *from, int64_t count)
{
  for (int64_t i = 0; i < count; i += LANES) {
    bool_lanes bytes = {0};
    memcpy(&bytes, from + i, (size_t)PART(count - i));
    put_real(to + i, __builtin_convertvector(bytes, vec), PART(count - i));
  }
}

// All places of a channel.
static void pool_places(const struct pooling *pooling, const struct planes *planes, const real *in, real *out, real *best)
{
  const struct windows *const w = &pooling->windows;
  for (int64_t p = 0; p < planes->places; p += LANES) {
    vec result = splat(0), tap = splat(0);
    for (int64_t t = 0; t < w->tap_count; t++) {
      const vec entry = load_real(in + w->taps[2 * t] * planes->row + w->taps[2 * t + 1] + p);
      if (!pooling->largest) {
        result += entry;
        continue;
      }
      const ivec better = t == 0 ? (ivec){0} - 1 : (entry > result) | (entry != entry);
      result = choose(better, entry, result), tap = choose(better, splat((real)t), tap);
    }
    store_real(out + p, pooling->largest ? result : result * splat((real)pooling->scale));
    store_real(best + p, tap);
  }
}

static void pool_task(const void *context, int64_t task, int64_t worker)
{
  const struct pool_pass *const pass = context;
  const struct windows *const w = &pass->pooling->windows;
  const struct planes *const planes = &pass->planes;
  const int64_t units = w->batch * w->groups, tasks = units < CHUNKS ? units : CHUNKS, row = planes->phases * planes->row;
  const int64_t size = w->result[0] * w->result[1] * w->result[2], width = w->result[2];
  real *const in = (real *)(w->work + worker * pass->bytes), *const out = in + row, *const best = out + planes->row;
  const vec outside = splat(pass->pooling->largest ? -INFINITY : 0);
  for (int64_t i = 0; i < row; i += LANES)
    store_real(in + i, outside);
  for (int64_t unit = units * task / tasks; unit < units * (task + 1) / tasks; unit++) {
    lay_input(w, planes, channel_of(w, unit / w->groups, unit % w->groups, 0), in);
    pool_places(pass->pooling, planes, in, out, best);
    take_result(w, out, w->y + unit * size, 0);
    for (int64_t r = 0; w->best && r < size / width; r++) {
      const int64_t from = (r / w->result[1] * w->plane[1] + r % w->result[1]) * w->plane[2];
      take_taps(w->best + unit * size + r * width, best + from, width);
    }
  }
}

static void unpool_task(const void *context, int64_t task, int64_t worker)
{
  const struct pool_pass *const pass = context;
  const struct windows *const w = &pass->pooling->windows;
  const struct planes *const planes = &pass->planes;
  const int64_t units = w->batch * w->groups, tasks = units < CHUNKS ? units : CHUNKS, row = planes->phases * planes->row;
  const int64_t size = w->result[0] * w->result[1] * w->result[2], width = w->result[2];
  const vec scale = splat((real)pass->pooling->scale);
  real *const dx = (real *)(w->work + worker * pass->bytes), *const dy = dx + row, *const best = dy + planes->row;
  memset(dx, 0, (size_t)(row + 2 * planes->row) * sizeof(real));
  for (int64_t unit = units * task / tasks; unit < units * (task + 1) / tasks; unit++) {
    lay_gradient(w, w->dy + unit * size, dy);
    for (int64_t r = 0; w->best && r < size / width; r++)
      lay_taps(best + (r / w->result[1] * w->plane[1] + r % w->result[1]) * w->plane[2],
               w->best + unit * size + r * width, width);
    for (int64_t phase = 0; phase < planes->phases; phase++)
      memset(dx + phase * planes->row, 0, (size_t)planes->entries * sizeof(real));
    for (int64_t t = 0; t < w->tap_count; t++) {
      real *const to = dx + w->taps[2 * t] * planes->row + w->taps[2 * t + 1];
      for (int64_t p = 0; p < planes->places; p += LANES) {
        const vec given = load_real(dy + p);
        const vec own = w->best ? choose(load_real(best + p) == splat((real)t), given, splat(0)) : given * scale;
        store_real(to + p, load_real(to + p) + own);
      }
    }
    take_input(w, planes, dx, w->dx + unit * w->size[0] * w->size[1] * w->size[2]);
  }
}

static struct pool_pass pass_of(const struct pooling *pooling)
{
  struct pool_pass pass = {pooling, planes_of(&pooling->windows), 0};
  pass.bytes = ROUNDED((pass.planes.phases + 2) * pass.planes.row * (int64_t)sizeof(real));
  return pass;
}

void work_bytes(const struct pooling *pooling, int64_t *shared_and_own)
{
  shared_and_own[0] = 0, shared_and_own[1] = pass_of(pooling).bytes;
}

static void run(const struct pooling *pooling, void (*task)(const void *, int64_t, int64_t))
{
  const struct pool_pass pass = pass_of(pooling);
  const int64_t units = pooling->windows.batch * pooling->windows.groups;
  share(&pooling->windows.threads, task, &pass, units < CHUNKS ? units : CHUNKS);
}
void forward(const struct pooling *pooling) { run(pooling, pool_task); }
void backward(const struct pooling *pooling) { run(pooling, unpool_task); }
