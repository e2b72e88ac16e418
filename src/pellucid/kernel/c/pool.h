// The greatest entry under every window, or the sum of them times a scale; and the gradient of the input. Every channel
// is by itself.
//
// The first of equal entries counts, and a NaN is greater than any number, as in torch. Which tap it was is kept as a
// byte for every result; backward reads nothing else of the input.

struct pooling {
  struct windows windows;
  double scale;    // of a sum
  int64_t largest; // 1: the greatest entry
  int64_t tiles;   // 1: windows tile the input, two columns wide
};

struct pool_pass {
  const struct pooling *pooling;
  struct planes planes;
  int64_t bytes; // of a thread's scratch
};

INLINE void take_taps(uint8_t *to, const real *from, int64_t count)
{
  for (int64_t i = 0; i < count; i += LANES)
    put_taps(to + i, take_real(from + i, PART(count - i)), PART(count - i));
}
INLINE void lay_taps(real *to, const uint8_t *from, int64_t count)
{
  for (int64_t i = 0; i < count; i += LANES)
    put_real(to + i, get_taps(from + i, PART(count - i)), PART(count - i));
}

// The first tap that reads an entry of the input at a place, not what is added around it.
static int64_t first_inside(const struct windows *w, int64_t place)
{
  for (int64_t t = 0; t < w->tap_count; t++) {
    int64_t phase = w->taps[2 * t], at = w->taps[2 * t + 1] + place;
    int inside = 1;
    for (int axis = AXES - 1; axis >= 0; phase /= w->stride[axis], at /= w->plane[axis], axis--) {
      const int64_t entry = at % w->plane[axis] * w->stride[axis] + phase % w->stride[axis] - w->before[axis];
      inside &= 0 <= entry && entry < w->size[axis];
    }
    if (inside)
      return t;
  }
  return 0;
}

// All places of a channel.
static void pool_places(const struct pooling *pooling, const struct planes *planes, const real *in, real *out,
                        real *best)
{
  const struct windows *const w = &pooling->windows;
  for (int64_t p = 0; p < planes->places; p += LANES) {
    vec result = splat(0), tap = splat(0);
    for (int64_t t = 0; t < w->tap_count; t++) {
      const vec entry = load_real(in + w->taps[2 * t] * planes->row + w->taps[2 * t + 1] + p);
      if (pooling->largest)
        compete(entry, t, &result, &tap);
      else
        result += entry;
    }
    const ivec least = result == splat(-INFINITY); // no entry of these was greater than what is around the input
    if (pooling->largest && w->best && sum(from_mask(least)) > 0)
      for (int i = 0; i < LANES; i++)
        tap[i] = least[i] ? (real)first_inside(w, p + i) : tap[i];
    store_real(out + p, pooling->largest ? result : result * splat((real)pooling->scale));
    store_real(best + p, tap);
  }
}

// -- windows of two columns side by side ------------------------------------------------------------------------------

// Pairs of a row's entries, and back; n of them.
INLINE void take_pairs(const data_storage *row, int n, vec *even, vec *odd)
{
  apart(take_some(row, some(2 * n)), take_some(row + LANES, some(2 * n - LANES)), even, odd);
}
INLINE void put_pairs(data_storage *row, vec even, vec odd, int n)
{
  vec a, b;
  together(even, odd, &a, &b);
  put_data(row, a, some(2 * n));
  if (2 * n > LANES)
    put_data(row + LANES, b, some(2 * n - LANES));
}

// A row of results of windows that lie side by side in memory; the rows of the first one, and how far the next ones are.
INLINE void pool_pairs(const struct pooling *pooling, const data_storage *x, data_storage *y, uint8_t *best)
{
  const struct windows *const w = &pooling->windows;
  for (int64_t q = 0; q < w->result[2]; q += LANES) {
    const int n = PART(w->result[2] - q);
    vec result = splat(0), tap = splat(0);
    for (int64_t i = 0; i < w->stride[0]; i++)
      for (int64_t j = 0; j < w->stride[1]; j++) {
        const int64_t t = 2 * (i * w->stride[1] + j);
        vec even, odd;
        take_pairs(x + i * w->x_strides[0] + j * w->x_strides[1] + 2 * q, n, &even, &odd);
        if (pooling->largest)
          compete(even, t, &result, &tap), compete(odd, t + 1, &result, &tap);
        else
          result += even + odd;
      }
    put_data(y + q, pooling->largest ? result : result * splat((real)pooling->scale), n);
    if (best)
      put_taps(best + q, tap, n);
  }
}

INLINE void unpool_pairs(const struct pooling *pooling, const data_storage *dy, const uint8_t *best, data_storage *dx)
{
  const struct windows *const w = &pooling->windows;
  for (int64_t q = 0; q < w->result[2]; q += LANES) {
    const int n = PART(w->result[2] - q);
    const vec given = take_data(dy + q, n), tap = best ? get_taps(best + q, n) : splat(0), zero = splat(0);
    const vec share = given * splat((real)pooling->scale);
    for (int64_t i = 0; i < w->stride[0]; i++)
      for (int64_t j = 0; j < w->stride[1]; j++) {
        const real t = (real)(2 * (i * w->stride[1] + j));
        const vec even = best ? choose(tap == splat(t), given, zero) : share;
        const vec odd = best ? choose(tap == splat(t + 1), given, zero) : share;
        put_pairs(dx + (i * w->size[1] + j) * w->size[2] + 2 * q, even, odd, n);
      }
  }
}

// One channel: its rows of results, whose windows tile the input; what is left of the input at the end is read by none.
INLINE void pool_tiles(const struct pooling *pooling, const data_storage *x, data_storage *y, uint8_t *best)
{
  const struct windows *const w = &pooling->windows;
  for (int64_t d = 0; d < w->result[0]; d++)
    for (int64_t h = 0; h < w->result[1]; h++, y += w->result[2], best = best ? best + w->result[2] : best)
      pool_pairs(pooling, x + d * w->stride[0] * w->x_strides[0] + h * w->stride[1] * w->x_strides[1], y, best);
}
INLINE void unpool_tiles(const struct pooling *pooling, const data_storage *dy, const uint8_t *best, data_storage *dx)
{
  const struct windows *const w = &pooling->windows;
  int whole = 1;
  for (int axis = 0; axis < AXES; axis++)
    whole &= w->size[axis] == w->result[axis] * w->stride[axis];
  if (!whole)
    memset(dx, 0, (size_t)(w->size[0] * w->size[1] * w->size[2]) * sizeof(*dx));
  for (int64_t d = 0; d < w->result[0]; d++)
    for (int64_t h = 0; h < w->result[1]; h++, dy += w->result[2], best = best ? best + w->result[2] : best)
      unpool_pairs(pooling, dy, best, dx + (d * w->stride[0] * w->size[1] + h * w->stride[1]) * w->size[2]);
}

// -- tasks ------------------------------------------------------------------------------------------------------------

static void pool_task(const void *context, int64_t task, int64_t worker)
{
  const struct pool_pass *const pass = context;
  const struct windows *const w = &pass->pooling->windows;
  const struct planes *const planes = &pass->planes;
  const int64_t units = w->batch * w->groups, tasks = units < CHUNKS ? units : CHUNKS;
  const int64_t row = planes->phases * planes->row;
  const int64_t size = w->result[0] * w->result[1] * w->result[2], width = w->result[2];
  real *const in = (real *)(w->work + worker * pass->bytes), *const out = in + row, *const best = out + planes->row;
  const vec outside = splat(pass->pooling->largest ? -INFINITY : 0);
  for (int64_t i = 0; i < row; i += LANES)
    store_real(in + i, outside);
  for (int64_t unit = units * task / tasks; unit < units * (task + 1) / tasks; unit++) {
    const data_storage *const x = channel_of(w, unit / w->groups, unit % w->groups, 0);
    if (pass->pooling->tiles) {
      pool_tiles(pass->pooling, x, w->y + unit * size, w->best ? w->best + unit * size : 0);
      continue;
    }
    lay_input(w, planes, x, in);
    pool_places(pass->pooling, planes, in, out, best);
    take_result(w, out, w->y + unit * size, 0);
    uint8_t *to = w->best ? w->best + unit * size : 0;
    for (int64_t d = 0; to && d < w->result[0]; d++)
      for (int64_t h = 0; h < w->result[1]; h++, to += width)
        take_taps(to, best + (d * w->plane[1] + h) * w->plane[2], width);
  }
}

static void unpool_task(const void *context, int64_t task, int64_t worker)
{
  const struct pool_pass *const pass = context;
  const struct windows *const w = &pass->pooling->windows;
  const struct planes *const planes = &pass->planes;
  const int64_t units = w->batch * w->groups, tasks = units < CHUNKS ? units : CHUNKS;
  const int64_t row = planes->phases * planes->row;
  const int64_t size = w->result[0] * w->result[1] * w->result[2], width = w->result[2];
  const vec scale = splat((real)pass->pooling->scale);
  real *const dx = (real *)(w->work + worker * pass->bytes), *const dy = dx + row, *const best = dy + planes->row;
  memset(dx, 0, (size_t)(row + 2 * planes->row) * sizeof(real));
  for (int64_t unit = units * task / tasks; unit < units * (task + 1) / tasks; unit++) {
    data_storage *const own = w->dx + unit * w->size[0] * w->size[1] * w->size[2];
    if (pass->pooling->tiles) {
      unpool_tiles(pass->pooling, w->dy + unit * size, w->best ? w->best + unit * size : 0, own);
      continue;
    }
    lay_gradient(w, w->dy + unit * size, dy);
    const uint8_t *from = w->best ? w->best + unit * size : 0;
    for (int64_t d = 0; from && d < w->result[0]; d++)
      for (int64_t h = 0; h < w->result[1]; h++, from += width)
        lay_taps(best + (d * w->plane[1] + h) * w->plane[2], from, width);
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
    take_input(w, planes, dx, own);
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
