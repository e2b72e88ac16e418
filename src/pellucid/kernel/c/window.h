// Windows over a padded plane, along up to three axes: what convolution and pooling share.
//
// A channel is laid out flat: row after row of a padded plane, so that a tap of the window is nothing but a distance
// from the first one, whatever the axes. With a stride, entries that the same taps read make a plane of their own, a
// phase. Results are computed flat too, for every place at which a row of the plane may begin and end; what lies between
// two rows of the result is not copied out.
//
// Where rows are short, lanes samples may lie beside each other at every place, so that a vector is one place of all of
// them: nothing is computed between rows, and every vector begins at a line of the cache.

#define AXES 3
#define CHUNKS 64 // of the work of a forward pass

struct windows {
  const data_storage *x, *weight, *bias, *dy; // all but x are contiguous
  data_storage *y, *dx;                       // NULL where one is not wanted
  real *dw;                                   // of every part: the weights' and then the biases'; or NULL
  uint8_t *best;                              // of a maximum: which tap it was, for every result; or NULL
  const int64_t *taps;                        // of every tap: its phase, and its distance within the phase's plane
  const int64_t *patch;                       // of every result of a patch: its distance; where the greatest is taken
  char *work;
  int64_t batch, groups, in, out, tap_count; // channels of one group
  int64_t x_batch, x_channel, x_strides[AXES - 1];
  int64_t size[AXES], result[AXES], before[AXES], stride[AXES], plane[AXES];
  int64_t parts; // of the batch, each with its own part of dw
  int64_t lanes; // samples that lie beside each other: 1 or LANES
  int64_t patch_count, pooled[AXES], patch_stride[AXES]; // patches of results, 0 where none are pooled
  struct threads threads;
};

struct planes {
  int64_t phases, entries, row; // planes of a channel, entries of a plane, and what a plane takes in memory
  int64_t places;               // results of a channel, laid flat
};

int64_t lanes(void) { return LANES; }

static struct planes planes_of(const struct windows *w)
{
  struct planes p;
  p.phases = w->stride[0] * w->stride[1] * w->stride[2];
  p.entries = w->plane[0] * w->plane[1] * w->plane[2] * w->lanes;
  p.row = ROUND_UP(p.entries) + LANES;
  p.places = (((w->result[0] - 1) * w->plane[1] + w->result[1] - 1) * w->plane[2] + w->result[2]) * w->lanes;
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
  const int64_t even = (left + 1) / 2, odd = left / 2;
  const struct pairs pairs = {first, at, even < room ? even : room, odd < room ? odd : room};
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

// A place along an axis of the padded input as its place in the plane and its phase, without divisions on the way.
struct step {
  int64_t place, phase, stride;
};
INLINE struct step step_from(const struct windows *w, int axis)
{
  const int64_t padded = w->before[axis], stride = w->stride[axis];
  const struct step step = {stride == 1 ? padded : padded / stride, stride == 1 ? 0 : padded % stride, stride};
  return step;
}
INLINE void advance(struct step *step)
{
  if (++step->phase == step->stride)
    step->phase = 0, step->place++;
}

// Where a row of the input lies in its planes, in the first phase of the last axis; −1 where no window reads it.
INLINE int64_t row_of_input(const struct windows *w, const struct planes *l, struct step depth, struct step height)
{
  const int64_t phase = (depth.phase * w->stride[1] + height.phase) * w->stride[2];
  if (depth.place >= w->plane[0] || height.place >= w->plane[1])
    return -1;
  return phase * l->row + (depth.place * w->plane[1] + height.place) * w->plane[2] * w->lanes;
}

// One channel of the input into its planes, whose margins are zero already.
static void lay_input(const struct windows *w, const struct planes *l, const data_storage *x, real *planes)
{
  struct step depth = step_from(w, 0);
  for (int64_t d = 0; d < w->size[0]; d++, advance(&depth)) {
    struct step height = step_from(w, 1);
    for (int64_t h = 0; h < w->size[1]; h++, advance(&height)) {
      const int64_t place = row_of_input(w, l, depth, height);
      if (place < 0)
        continue;
      const data_storage *const row = x + d * w->x_strides[0] + h * w->x_strides[1];
      real *const to = planes + place;
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
}

// The same way back, of its gradient.
static void take_input(const struct windows *w, const struct planes *l, const real *planes, data_storage *dx)
{
  struct step depth = step_from(w, 0);
  for (int64_t d = 0; d < w->size[0]; d++, advance(&depth)) {
    struct step height = step_from(w, 1);
    for (int64_t h = 0; h < w->size[1]; h++, advance(&height), dx += w->size[2]) {
      const int64_t place = row_of_input(w, l, depth, height);
      if (place < 0) {
        memset(dx, 0, (size_t)w->size[2] * sizeof(*dx));
        continue;
      }
      const real *const from = planes + place;
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

// -- the greatest of several ---------------------------------------------------------------------------------------

// The numbers of the taps are kept in reals while they are looked for; bytes have LANES of them at a time.
INLINE void put_taps(uint8_t *to, vec taps, int n)
{
  const bool_lanes bytes = __builtin_convertvector(__builtin_convertvector(taps, ivec), bool_lanes);
  memcpy(to, &bytes, (size_t)n);
}
INLINE vec get_taps(const uint8_t *from, int n)
{
  bool_lanes bytes = {0};
  memcpy(&bytes, from, (size_t)n);
  return __builtin_convertvector(bytes, vec);
}
// A better entry takes the place of the best one so far.
INLINE void compete(vec entry, int64_t tap, vec *best, vec *best_tap)
{
  const ivec better = tap == 0 ? (ivec){0} - 1 : (entry > *best) | (entry != entry);
  *best = choose(better, entry, *best), *best_tap = choose(better, splat((real)tap), *best_tap);
}

// -- samples beside each other ---------------------------------------------------------------------------------------

// A square of LANES samples by n places of a row, between memory and lanes; samples that are not there are zeros.
INLINE void turn_in(const data_storage *row, int64_t sample, int samples, int n, vec *square)
{
  for (int i = 0; i < LANES; i++)
    square[i] = i < samples ? take_data(row + i * sample, n) : splat(0);
  transpose(square);
}
INLINE void turn_out(vec *square, data_storage *row, int64_t sample, int samples, int n)
{
  transpose(square);
  for (int i = 0; i < samples; i++)
    put_data(row + i * sample, square[i], n);
}

static void lay_inputs(const struct windows *w, const struct planes *l, const data_storage *x, int samples, real *planes)
{
  struct step depth = step_from(w, 0);
  for (int64_t d = 0; d < w->size[0]; d++, advance(&depth)) {
    struct step height = step_from(w, 1);
    for (int64_t h = 0; h < w->size[1]; h++, advance(&height)) {
      const int64_t place = row_of_input(w, l, depth, height);
      struct step width = step_from(w, 2);
      for (int64_t i = 0; place >= 0 && i < w->size[2]; i += LANES) {
        vec square[LANES];
        const int n = PART(w->size[2] - i);
        turn_in(x + d * w->x_strides[0] + h * w->x_strides[1] + i, w->x_batch, samples, n, square);
        for (int j = 0; j < n && width.place < w->plane[2]; j++, advance(&width))
          store_real(planes + place + width.phase * l->row + width.place * LANES, square[j]);
      }
    }
  }
}

static void take_inputs(const struct windows *w, const struct planes *l, const real *planes, int samples,
                        data_storage *dx)
{
  const int64_t sample = w->groups * w->in * w->size[0] * w->size[1] * w->size[2];
  struct step depth = step_from(w, 0);
  for (int64_t d = 0; d < w->size[0]; d++, advance(&depth)) {
    struct step height = step_from(w, 1);
    for (int64_t h = 0; h < w->size[1]; h++, advance(&height), dx += w->size[2]) {
      const int64_t place = row_of_input(w, l, depth, height);
      struct step width = step_from(w, 2);
      for (int64_t i = 0; i < w->size[2]; i += LANES) {
        vec square[LANES];
        const int n = PART(w->size[2] - i);
        for (int j = 0; j < LANES; j++, advance(&width)) {
          const int64_t at = place + width.phase * l->row + width.place * LANES;
          square[j] = place < 0 || j >= n || width.place >= w->plane[2] ? splat(0) : load_real(planes + at);
        }
        turn_out(square, dx + i, sample, samples, n);
      }
    }
  }
}

static void lay_gradients(const struct windows *w, const data_storage *dy, int samples, real *flat)
{
  const int64_t sample = w->groups * w->out * w->result[0] * w->result[1] * w->result[2];
  for (int64_t d = 0; d < w->result[0]; d++)
    for (int64_t h = 0; h < w->result[1]; h++, dy += w->result[2])
      for (int64_t i = 0; i < w->result[2]; i += LANES) {
        vec square[LANES];
        const int n = PART(w->result[2] - i);
        turn_in(dy + i, sample, samples, n, square);
        for (int j = 0; j < n; j++)
          store_real(flat + ((d * w->plane[1] + h) * w->plane[2] + i + j) * LANES, square[j]);
      }
}

static void take_results(const struct windows *w, const real *flat, int samples, data_storage *y, real bias)
{
  const int64_t sample = w->groups * w->out * w->result[0] * w->result[1] * w->result[2];
  for (int64_t d = 0; d < w->result[0]; d++)
    for (int64_t h = 0; h < w->result[1]; h++, y += w->result[2])
      for (int64_t i = 0; i < w->result[2]; i += LANES) {
        vec square[LANES];
        const int n = PART(w->result[2] - i);
        const real *const from = flat + ((d * w->plane[1] + h) * w->plane[2] + i) * LANES;
        for (int j = 0; j < LANES; j++)
          square[j] = j < n ? load_real(from + j * LANES) + splat(bias) : splat(0);
        turn_out(square, y + i, sample, samples, n);
      }
}
