// Windows over a padded plane, along up to three axes: what convolution and pooling share.
//
// A channel is laid out flat: row after row of a padded plane, so that a tap of the window is nothing but a distance
// from the first one, whatever the axes. With a stride, entries that the same taps read make a plane of their own, a
// phase. Results are computed flat too, for every place at which a row of the plane may begin and end; what lies between
// two rows of the result is not copied out.

#define AXES 3
#define CHUNKS 64 // of the work of a forward pass
#define ROUND_UP(n) (((n) + LANES - 1) / LANES * LANES)

struct windows {
  const data_storage *x, *weight, *bias, *dy; // all but x are contiguous
  data_storage *y, *dx;                       // NULL where one is not wanted
  real *dw;                                   // of every part: the weights' and then the biases'; or NULL
  uint8_t *best;                              // of a maximum: which tap it was, for every result; or NULL
  const int64_t *taps;                        // of every tap: its phase, and its distance within the phase's plane
  char *work;
  int64_t batch, groups, in, out, tap_count; // channels of one group
  int64_t x_batch, x_channel, x_strides[AXES - 1];
  int64_t size[AXES], result[AXES], before[AXES], stride[AXES], plane[AXES];
  int64_t parts; // of the batch, each with its own part of dw
  struct threads threads;
};

struct planes {
  int64_t phases, entries, row; // planes of a channel, entries of a plane, and what a plane takes in memory
  int64_t places;               // results of a channel, laid flat
};

static struct planes planes_of(const struct windows *w)
{
  struct planes p;
  p.phases = w->stride[0] * w->stride[1] * w->stride[2];
  p.entries = w->plane[0] * w->plane[1] * w->plane[2];
  p.row = ROUND_UP(p.entries) + LANES;
  p.places = ((w->result[0] - 1) * w->plane[1] + w->result[1] - 1) * w->plane[2] + w->result[2];
  return p;
}

INLINE void read_row(real *to, const data_storage *from, int64_t count)
{
  for (int64_t i = 0; i < count; i += LANES) {
    const int n = PART(count - i);
    put_real(to + i, take_data(from + i, n), n);
  }
}
INLINE void write_row(data_storage *to, const real *from, int64_t count, vec bias)
{
  for (int64_t i = 0; i < count; i += LANES) {
    const int n = PART(count - i);
    put_data(to + i, take_real(from + i, n) + bias, n);
  }
}

// The first entry of a row that lies in a phase.
INLINE int64_t first_of_phase(const struct windows *w, int64_t phase)
{
  const int64_t stride = w->stride[2], shift = (phase - w->before[2]) % stride;
  return shift < 0 ? shift + stride : shift;
}

// A row of two phases: its first entry, if the margin is odd, and then pairs of entries, as many as are read.
struct pairs {
  int64_t first, at; // entries ahead of the first pair; its place in both phases
  int64_t even, odd; // entries of the phases from there on
};
INLINE struct pairs pairs_of(const struct windows *w)
{
  const int64_t first = w->before[2] % 2 < w->size[2] ? w->before[2] % 2 : w->size[2], at = (first + w->before[2]) / 2;
  const int64_t left = w->size[2] - first, room = w->plane[2] > at ? w->plane[2] - at : 0;
  const struct pairs pairs = {first, at, (left + 1) / 2 < room ? (left + 1) / 2 : room, left / 2 < room ? left / 2 : room};
  return pairs;
}
INLINE void apart(vec a, vec b, vec *even, vec *odd)
{
#if defined(__clang__)
  for (int i = 0; i < LANES; i++) {
    even[0][i] = i < LANES / 2 ? a[2 * i] : b[2 * i - LANES];
    odd[0][i] = i < LANES / 2 ? a[2 * i + 1] : b[2 * i + 1 - LANES];
  }
#else
  ivec evens;
  for (int i = 0; i < LANES; i++)
    evens[i] = 2 * i;
  *even = __builtin_shuffle(a, b, evens), *odd = __builtin_shuffle(a, b, evens + 1);
#endif
}
INLINE void together(vec even, vec odd, vec *a, vec *b)
{
#if defined(__clang__)
  for (int i = 0; i < LANES; i++) {
    a[0][i] = i % 2 ? odd[i / 2] : even[i / 2];
    b[0][i] = i % 2 ? odd[(i + LANES) / 2] : even[(i + LANES) / 2];
  }
#else
  ivec low;
  for (int i = 0; i < LANES; i++)
    low[i] = i / 2 + i % 2 * LANES;
  *a = __builtin_shuffle(even, odd, low), *b = __builtin_shuffle(even, odd, low + LANES / 2);
#endif
}
INLINE int some(int64_t left) { return left < 0 ? 0 : PART(left); }
INLINE vec take_some(const data_storage *from, int n) { return n > 0 ? take_data(from, n) : splat(0); }

static void read_pairs(const struct windows *w, const data_storage *row, real *even, real *odd)
{
  const struct pairs p = pairs_of(w);
  if (p.first)
    odd[p.at - 1] = read_data(row);
  for (int64_t i = 0; i < p.even; i += LANES) {
    const data_storage *const from = row + p.first + 2 * i;
    const int64_t left = p.even + p.odd - 2 * i;
    vec evens, odds;
    apart(take_some(from, some(left)), take_some(from + LANES, some(left - LANES)), &evens, &odds);
    put_real(even + p.at + i, evens, PART(p.even - i));
    if (i < p.odd)
      put_real(odd + p.at + i, odds, PART(p.odd - i));
  }
}
static void write_pairs(const struct windows *w, const real *even, const real *odd, data_storage *row)
{
  const struct pairs p = pairs_of(w);
  if (p.first)
    write_data(row, odd[p.at - 1]);
  for (int64_t i = 0; i < p.even; i += LANES) {
    data_storage *const to = row + p.first + 2 * i;
    const int64_t left = p.even + p.odd - 2 * i;
    vec a, b;
    together(load_real(even + p.at + i), load_real(odd + p.at + i), &a, &b);
    put_data(to, a, PART(left));
    if (left > LANES)
      put_data(to + LANES, b, PART(left - LANES));
  }
  const int64_t done = p.first + p.even + p.odd;
  memset(row + done, 0, (size_t)(w->size[2] - done) * sizeof(*row));
}

// One channel of the input into its planes, whose margins are zero already.
static void lay_input(const struct windows *w, const struct planes *l, const data_storage *x, real *planes)
{
  for (int64_t d = 0; d < w->size[0]; d++)
    for (int64_t h = 0; h < w->size[1]; h++) {
      const int64_t pd = d + w->before[0], ph = h + w->before[1];
      const int64_t qd = pd / w->stride[0], qh = ph / w->stride[1];
      if (qd >= w->plane[0] || qh >= w->plane[1])
        continue; // no window reads it
      const data_storage *const row = x + d * w->x_strides[0] + h * w->x_strides[1];
      const int64_t phase = (pd % w->stride[0] * w->stride[1] + ph % w->stride[1]) * w->stride[2];
      real *const to = planes + phase * l->row + (qd * w->plane[1] + qh) * w->plane[2];
      if (w->stride[2] == 1) {
        const int64_t most = w->plane[2] - w->before[2];
        read_row(to + w->before[2], row, w->size[2] < most ? w->size[2] : most);
        continue;
      }
      if (w->stride[2] == 2) {
        read_pairs(w, row, to, to + l->row);
        continue;
      }
      for (int64_t r = 0; r < w->stride[2]; r++) {
        int64_t i = first_of_phase(w, r), q = (i + w->before[2]) / w->stride[2];
        for (; i < w->size[2] && q < w->plane[2]; i += w->stride[2], q++)
          to[r * l->row + q] = read_data(row + i);
      }
    }
}

// The same way back, of its gradient.
static void take_input(const struct windows *w, const struct planes *l, const real *planes, data_storage *dx)
{
  for (int64_t d = 0; d < w->size[0]; d++)
    for (int64_t h = 0; h < w->size[1]; h++, dx += w->size[2]) {
      const int64_t pd = d + w->before[0], ph = h + w->before[1];
      const int64_t qd = pd / w->stride[0], qh = ph / w->stride[1];
      if (qd >= w->plane[0] || qh >= w->plane[1]) {
        memset(dx, 0, (size_t)w->size[2] * sizeof(*dx));
        continue;
      }
      const int64_t phase = (pd % w->stride[0] * w->stride[1] + ph % w->stride[1]) * w->stride[2];
      const real *const from = planes + phase * l->row + (qd * w->plane[1] + qh) * w->plane[2];
      if (w->stride[2] == 1) {
        const int64_t most = w->plane[2] > w->before[2] ? w->plane[2] - w->before[2] : 0;
        const int64_t count = w->size[2] < most ? w->size[2] : most;
        write_row(dx, from + w->before[2], count, splat(0));
        memset(dx + count, 0, (size_t)(w->size[2] - count) * sizeof(*dx));
        continue;
      }
      if (w->stride[2] == 2) {
        write_pairs(w, from, from + l->row, dx);
        continue;
      }
      for (int64_t r = 0; r < w->stride[2]; r++) {
        int64_t i = first_of_phase(w, r), q = (i + w->before[2]) / w->stride[2];
        for (; i < w->size[2]; i += w->stride[2], q++)
          write_data(dx + i, q < w->plane[2] ? from[r * l->row + q] : 0);
      }
    }
}

static void lay_gradient(const struct windows *w, const data_storage *dy, real *flat)
{
  for (int64_t d = 0; d < w->result[0]; d++)
    for (int64_t h = 0; h < w->result[1]; h++, dy += w->result[2])
      read_row(flat + (d * w->plane[1] + h) * w->plane[2], dy, w->result[2]);
}
static void take_result(const struct windows *w, const real *flat, data_storage *y, real bias)
{
  for (int64_t d = 0; d < w->result[0]; d++)
    for (int64_t h = 0; h < w->result[1]; h++, y += w->result[2])
      write_row(y, flat + (d * w->plane[1] + h) * w->plane[2], w->result[2], splat(bias));
}

// Where one channel of one sample begins.
INLINE const data_storage *channel_of(const struct windows *w, int64_t b, int64_t g, int64_t c)
{
  return w->x + b * w->x_batch + (g * w->in + c) * w->x_channel;
}
