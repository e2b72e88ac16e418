// Depthwise convolution of pictures whose channels lie side by side, and its gradients: a vector is some channels of
// one place.
//
// The result and the gradient of the input are the same sum, over the taps that meet at a place. Along a row these taps
// are the same at every place of a phase (of which the gradient of the input has as many as the stride), each read at a
// place that moves on by a fixed step, except at both ends, where some of them lie outside.

#define TAPS_OF_A_ROW 32 // at most
#define CHUNKS 64        // of rows, that threads take one after another
#define MOST_VECTORS 4   // of channels that are summed up together
#define PLACES (VECTOR_BYTES < 64 ? 2 : 4) // whose sums of all these stay in registers
#define MOST_SUMS 8      // taps of a row whose weights have their gradients summed up together
#define MOST_ROWS 3      // and rows of such, as far as they are together
#define MOST_TOGETHER 12 // taps
#define UNROLL _Pragma("GCC unroll 32")

int64_t lanes(void) { return LANES; }

struct depthwise {
  const data_storage *x, *weight, *bias, *dy; // (batch, height, width, channels); weight (channels, taps)
  data_storage *y, *dx;
  real *dw;   // of every part: of every tap, and then of the bias, the sum for all channels, their number rounded up
  real *work; // weights and bias in the same way
  int64_t batch, channels, size[2], result[2], kernel[2], stride[2], dilation[2], before[2];
  int64_t parts, blocks; // of the batch, each with its own sums; and of channels
  struct threads threads;
};

// Places of a row, first + j · step for every j below count, and the taps that they share: at place j tap k reads what
// lies at source[k] + j · source_step. From inner on to outer all sources exist.
struct phase {
  int64_t first, step, count, source_step, inner, outer;
  int64_t taps, tap[TAPS_OF_A_ROW], source[TAPS_OF_A_ROW];
};

// A sum over the taps at every place of a picture.
struct sum {
  const struct depthwise *d;
  const data_storage *from; // of the size...
  int64_t source[2];
  data_storage *to; // and of that
  int64_t size[2];
  int biased, gradient;
};

INLINE int64_t floor_of(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// Whether a tap reads for a place along an axis, and at which place; that may lie outside.
INLINE int reads(const struct sum *s, int axis, int64_t place, int64_t tap, int64_t *at)
{
  const struct depthwise *const d = s->d;
  const int64_t shift = tap * d->dilation[axis] - d->before[axis], stride = d->stride[axis];
  *at = s->gradient ? (place - shift) / stride : place * stride + shift;
  return !s->gradient || (place - shift) % stride == 0;
}

static struct phase phase_of(const struct sum *s, int64_t number)
{
  const struct depthwise *const d = s->d;
  struct phase p = {0};
  const int64_t stride = d->stride[1];
  p.first = number, p.step = s->gradient ? stride : 1, p.source_step = s->gradient ? 1 : stride;
  p.count = s->size[1] > number ? (s->size[1] - number + p.step - 1) / p.step : 0;
  p.inner = 0, p.outer = p.count;
  for (int64_t i = 0; i < d->kernel[1]; i++) {
    const int64_t k = s->gradient ? d->kernel[1] - 1 - i : i; // so that places ascend
    int64_t at;
    if (!reads(s, 1, number, k, &at))
      continue;
    const int64_t inner = -floor_of(at, p.source_step), outer = floor_of(s->source[1] - 1 - at, p.source_step) + 1;
    p.inner = inner > p.inner ? inner : p.inner, p.outer = outer < p.outer ? outer : p.outer;
    p.tap[p.taps] = k, p.source[p.taps++] = at;
  }
  p.outer = p.outer > p.inner ? p.outer : p.inner;
  if (p.inner > p.count)
    p.inner = p.outer = p.count;
  return p;
}

// The taps that read something at a place of a row of a certain size; they follow each other.
struct range { int64_t first, last; };
INLINE struct range taps_at(const struct phase *p, int64_t j, int64_t size)
{
  struct range inside = {0, 0};
  for (int64_t k = 0; k < p->taps; k++) {
    const int64_t at = p->source[k] + j * p->source_step;
    if (at >= 0 && at < size)
      inside.first = inside.last ? inside.first : k, inside.last = k + 1;
  }
  return inside;
}

// The rows that are read for a row of the sum, and the weights of their taps.
struct rows {
  int64_t count;
  const data_storage *from[TAPS_OF_A_ROW];
  const real *weights[TAPS_OF_A_ROW];
};

INLINE vec bias_of(const struct sum *s, int64_t channel)
{
  const struct depthwise *const d = s->d;
  return s->biased ? load_real(d->work + d->kernel[0] * d->kernel[1] * ROUND_UP(d->channels) + channel) : splat(0);
}

INLINE void sum_places(const int places, const int vectors, const int n, const struct sum *s, const struct phase *p,
                       const struct rows *rows, int64_t j, int64_t first, int64_t last, int64_t channel,
                       data_storage *to)
{
  const struct depthwise *const d = s->d;
  const int64_t channels = d->channels, padded = ROUND_UP(channels);
  vec sums[places][vectors];
  for (int v = 0; v < vectors; v++) {
    const vec bias = bias_of(s, channel + v * LANES);
    for (int i = 0; i < places; i++)
      sums[i][v] = bias;
  }
  for (int64_t r = 0; r < rows->count; r++)
    for (int64_t k = first; k < last; k++) {
      const real *const weights = rows->weights[r] + p->tap[k] * padded + channel;
      const data_storage *const from = rows->from[r] + (p->source[k] + j * p->source_step) * channels + channel;
      for (int v = 0; v < vectors; v++) {
        const vec weight = load_real(weights + v * LANES);
        for (int i = 0; i < places; i++)
          sums[i][v] += weight * take_data(from + i * p->source_step * channels + v * LANES, n);
      }
    }
  for (int i = 0; i < places; i++)
    for (int v = 0; v < vectors; v++)
      put_data(to + (p->first + (j + i) * p->step) * channels + channel + v * LANES, sums[i][v], n);
}

// Some places at an end of a row, where taps may read nothing.
INLINE void sum_ends(const int vectors, const int n, const struct sum *s, const struct phase *p,
                     const struct rows *rows, int64_t begin, int64_t end, int64_t channel, data_storage *to)
{
  for (int64_t j = begin; j < end; j++) {
    const struct range inside = taps_at(p, j, s->source[1]);
    sum_places(1, vectors, n, s, p, rows, j, inside.first, inside.last, channel, to);
  }
}

// Taps that lie side by side, at places in a row: what is read serves all of them.
INLINE void sum_dense(const int vectors, const int taps, const int step, const struct sum *s, const struct phase *p,
                      const struct rows *rows, int64_t j, int64_t channel, data_storage *to)
{
  const struct depthwise *const d = s->d;
  const int64_t channels = d->channels, padded = ROUND_UP(channels);
  vec sums[PLACES][vectors];
  for (int v = 0; v < vectors; v++) {
    const vec bias = bias_of(s, channel + v * LANES);
    for (int i = 0; i < PLACES; i++)
      sums[i][v] = bias;
  }
  for (int64_t r = 0; r < rows->count; r++) {
    const data_storage *const from = rows->from[r] + (p->source[0] + j * step) * channels + channel;
    vec weights[taps][vectors];
    for (int k = 0; k < taps; k++)
      for (int v = 0; v < vectors; v++)
        weights[k][v] = load_real(rows->weights[r] + p->tap[k] * padded + channel + v * LANES);
    UNROLL for (int i = 0; i < (PLACES - 1) * step + taps; i++)
      UNROLL for (int v = 0; v < vectors; v++) {
        vec read = load_data(from + i * channels + v * LANES);
        STAY(read);
        UNROLL for (int k = 0; k < taps; k++)
          if (i >= k && (i - k) % step == 0 && (i - k) / step < PLACES)
            sums[(i - k) / step][v] += weights[k][v] * read;
      }
  }
  for (int i = 0; i < PLACES; i++)
    for (int v = 0; v < vectors; v++)
      store_data(to + (p->first + (j + i) * p->step) * channels + channel + v * LANES, sums[i][v]);
}

#define CASE_OF_DENSE(taps, step)                                                                                      \
  case (taps) * 4 + (step):                                                                                            \
    for (; j + PLACES <= p->outer; j += PLACES) {                                                                      \
      int v = 0;                                                                                                       \
      for (; v + 1 < vectors; v += 2)                                                                                  \
        sum_dense(2, taps, step, s, p, rows, j, channel + v * LANES, to);                                              \
      for (; v < vectors; v++)                                                                                         \
        sum_dense(1, taps, step, s, p, rows, j, channel + v * LANES, to);                                              \
    }                                                                                                                  \
    return j;

// As many places as they serve; the first place that is left.
static int64_t sum_all_dense(int vectors, const struct sum *s, const struct phase *p, const struct rows *rows,
                             int64_t channel, data_storage *to)
{
  int64_t j = p->inner;
  for (int64_t k = 1; k < p->taps; k++)
    if (p->source[k] != p->source[k - 1] + 1)
      return j;
  if (p->source_step >= 4)
    return j;
  switch (p->taps * 4 + p->source_step) {
    CASE_OF_DENSE(1, 1) CASE_OF_DENSE(2, 1) CASE_OF_DENSE(3, 1) CASE_OF_DENSE(4, 1) CASE_OF_DENSE(5, 1)
    CASE_OF_DENSE(7, 1) CASE_OF_DENSE(3, 2) CASE_OF_DENSE(5, 2) CASE_OF_DENSE(7, 2)
  }
  return j;
}

INLINE void sum_inside(const int vectors, const int n, const struct sum *s, const struct phase *p,
                       const struct rows *rows, int64_t j, int64_t channel, data_storage *to)
{
  for (; j + PLACES <= p->outer; j += PLACES)
    sum_places(PLACES, vectors, n, s, p, rows, j, 0, p->taps, channel, to);
  for (; j < p->outer; j++)
    sum_places(1, vectors, n, s, p, rows, j, 0, p->taps, channel, to);
}

INLINE void sum_channels(const int vectors, const int n, const struct sum *s, const struct phase *p,
                         const struct rows *rows, int64_t channel, data_storage *to)
{
  int64_t j = p->inner;
  sum_ends(vectors, n, s, p, rows, 0, j, channel, to);
  if (n == LANES)
    j = sum_all_dense(vectors, s, p, rows, channel, to);
  sum_inside(vectors, n, s, p, rows, j, channel, to);
  sum_ends(vectors, n, s, p, rows, p->outer, p->count, channel, to);
}

static void sum_row(const struct sum *s, const struct phase *p, const struct rows *rows, data_storage *to)
{
  const int64_t channels = s->d->channels;
  int64_t c = 0;
  for (; c + MOST_VECTORS * LANES <= channels; c += MOST_VECTORS * LANES)
    sum_channels(MOST_VECTORS, LANES, s, p, rows, c, to);
  for (; c + LANES <= channels; c += LANES)
    sum_channels(1, LANES, s, p, rows, c, to);
  if (c < channels)
    sum_channels(1, (int)(channels - c), s, p, rows, c, to);
}

static void sum_task(const void *context, int64_t task, int64_t worker)
{
  const struct sum *const s = context;
  const struct depthwise *const d = s->d;
  const int64_t all = d->batch * s->size[0], tasks = all < CHUNKS ? all : CHUNKS, padded = ROUND_UP(d->channels);
  const int64_t phases = s->gradient ? d->stride[1] : 1;
  for (int64_t number = 0; number < phases; number++) {
    const struct phase p = phase_of(s, number);
    for (int64_t i = all * task / tasks; i < all * (task + 1) / tasks; i++) {
      struct rows rows = {0};
      for (int64_t k = 0; k < d->kernel[0]; k++) {
        int64_t at;
        if (!reads(s, 0, i % s->size[0], k, &at) || at < 0 || at >= s->source[0])
          continue;
        rows.from[rows.count] = s->from + (i / s->size[0] * s->source[0] + at) * s->source[1] * d->channels;
        rows.weights[rows.count++] = d->work + k * d->kernel[1] * padded;
      }
      sum_row(s, &p, &rows, s->to + i * s->size[1] * d->channels);
    }
  }
}

static void compute(const struct sum *s)
{
  const struct depthwise *const d = s->d;
  const int64_t taps = d->kernel[0] * d->kernel[1], padded = ROUND_UP(d->channels), all = d->batch * s->size[0];
  memset(d->work, 0, (size_t)((taps + 1) * padded) * sizeof(real));
  for (int64_t c = 0; c < d->channels; c++) {
    for (int64_t k = 0; k < taps; k++)
      d->work[k * padded + c] = read_data(d->weight + c * taps + k);
    if (d->bias)
      d->work[taps * padded + c] = read_data(d->bias + c);
  }
  share(&d->threads, sum_task, s, all < CHUNKS ? all : CHUNKS);
}

// -- the gradient of the weights ------------------------------------------------------------------------------------

// The gradient of some places of a row of the result, times what the taps read there, for the channels of a vector.
INLINE void add_weights(const int rows, const int taps, const int n, const struct depthwise *d, const data_storage *dy,
                         const data_storage *x, int64_t count, real *to)
{
  const int64_t channels = d->channels, padded = ROUND_UP(channels), to_row = d->kernel[1] * padded;
  const int64_t step = d->stride[1] * channels, tap = d->dilation[1] * channels;
  const int64_t row = d->dilation[0] * d->size[1] * channels;
  vec sums[rows][taps];
  for (int r = 0; r < rows; r++)
    for (int k = 0; k < taps; k++)
      sums[r][k] = load_real(to + r * to_row + k * padded);
  for (int64_t i = 0; i < count; i++) {
    const vec given = take_data(dy + i * channels, n);
    for (int r = 0; r < rows; r++)
      for (int k = 0; k < taps; k++)
        sums[r][k] += given * take_data(x + r * row + i * step + k * tap, n);
  }
  for (int r = 0; r < rows; r++)
    for (int k = 0; k < taps; k++)
      store_real(to + r * to_row + k * padded, sums[r][k]);
}

// The same for taps that lie side by side, at some places at once: what is read serves all of them.
INLINE void add_dense(const int rows, const int taps, const int step, const struct depthwise *d, const data_storage *dy,
                      const data_storage *x, int64_t count, real *to)
{
  const int64_t channels = d->channels, padded = ROUND_UP(channels), to_row = d->kernel[1] * padded;
  const int64_t row = d->dilation[0] * d->size[1] * channels;
  vec sums[rows][taps];
  for (int r = 0; r < rows; r++)
    for (int k = 0; k < taps; k++)
      sums[r][k] = load_real(to + r * to_row + k * padded);
  for (int64_t j = 0; j < count; j += PLACES, dy += PLACES * channels, x += PLACES * step * channels) {
    vec given[PLACES];
    for (int i = 0; i < PLACES; i++)
      given[i] = load_data(dy + i * channels);
    UNROLL for (int r = 0; r < rows; r++)
      UNROLL for (int i = 0; i < (PLACES - 1) * step + taps; i++) {
        vec read = load_data(x + r * row + i * channels);
        STAY(read);
        UNROLL for (int k = 0; k < taps; k++)
          if (i >= k && (i - k) % step == 0 && (i - k) / step < PLACES)
            sums[r][k] += given[(i - k) / step] * read;
      }
  }
  for (int r = 0; r < rows; r++)
    for (int k = 0; k < taps; k++)
      store_real(to + r * to_row + k * padded, sums[r][k]);
}

#define CASE_OF_DENSE_WEIGHTS(rows, taps, step)                                                                        \
  case ((rows) * 8 + (taps)) * 4 + (step): add_dense(rows, taps, step, d, dy, x, count, to); return count;

// As many places as they serve; how many.
static int64_t add_all_dense(const struct depthwise *d, int64_t rows, int64_t taps, const data_storage *dy,
                             const data_storage *x, int64_t count, real *to)
{
  if (d->dilation[1] != 1 || taps >= 8 || d->stride[1] >= 4)
    return 0;
  count -= count % PLACES;
  switch ((rows * 8 + taps) * 4 + d->stride[1]) {
    CASE_OF_DENSE_WEIGHTS(1, 3, 1) CASE_OF_DENSE_WEIGHTS(2, 3, 1) CASE_OF_DENSE_WEIGHTS(3, 3, 1)
    CASE_OF_DENSE_WEIGHTS(1, 3, 2) CASE_OF_DENSE_WEIGHTS(2, 3, 2) CASE_OF_DENSE_WEIGHTS(3, 3, 2)
    CASE_OF_DENSE_WEIGHTS(1, 5, 1) CASE_OF_DENSE_WEIGHTS(2, 5, 1)
    CASE_OF_DENSE_WEIGHTS(1, 5, 2) CASE_OF_DENSE_WEIGHTS(2, 5, 2)
    CASE_OF_DENSE_WEIGHTS(1, 7, 1) CASE_OF_DENSE_WEIGHTS(1, 7, 2)
  }
  return 0;
}

#define CASE_OF_TAPS(rows, taps)                                                                                       \
  case (rows) * 16 + (taps): add_weights(rows, taps, n, d, dy, x, count, to); break;
#define CASES_OF_TAPS(rows)                                                                                            \
  CASE_OF_TAPS(rows, 1) CASE_OF_TAPS(rows, 2) CASE_OF_TAPS(rows, 3) CASE_OF_TAPS(rows, 4)
INLINE void add_some(const int n, const struct depthwise *d, int64_t rows, int64_t taps, const data_storage *dy,
                     const data_storage *x, int64_t count, real *to)
{
  switch (rows * 16 + taps) {
    CASES_OF_TAPS(1) CASES_OF_TAPS(2) CASES_OF_TAPS(3)
    CASE_OF_TAPS(1, 5) CASE_OF_TAPS(1, 6) CASE_OF_TAPS(1, 7) CASE_OF_TAPS(1, 8) CASE_OF_TAPS(2, 5) CASE_OF_TAPS(2, 6)
  }
}

// All taps at some places at which each of them lies inside.
INLINE void add_inside(const int n, const struct depthwise *d, int64_t first_row, int64_t last_row, int64_t first_tap,
                       int64_t last_tap, const data_storage *dy, const data_storage *x, int64_t count, real *to)
{
  const int64_t channels = d->channels, padded = ROUND_UP(channels);
  const int64_t width = last_tap - first_tap, groups = (width + MOST_SUMS - 1) / MOST_SUMS;
  for (int64_t g = 0; g < groups; g++) {
    const int64_t k = first_tap + width * g / groups, taps = first_tap + width * (g + 1) / groups - k;
    const int64_t fit = MOST_TOGETHER / taps, most = fit < MOST_ROWS ? fit : MOST_ROWS;
    for (int64_t r = first_row; r < last_row; r += most) {
      const int64_t rows = last_row - r < most ? last_row - r : most;
      const data_storage *const from = x + (r * d->dilation[0] * d->size[1] + k * d->dilation[1]) * channels;
      real *const sums = to + (r * d->kernel[1] + k) * padded;
      const int64_t done = n == LANES ? add_all_dense(d, rows, taps, dy, from, count, sums) : 0;
      if (done < count)
        add_some(n, d, rows, taps, dy + done * channels, from + done * d->stride[1] * channels, count - done, sums);
    }
  }
}

// Some places at an end of a row, where taps may read nothing.
INLINE void add_ends(const int n, const struct depthwise *d, const struct phase *p, int64_t first_row, int64_t last_row,
                     int64_t begin, int64_t end, const data_storage *dy, const data_storage *x, real *to)
{
  for (int64_t j = begin; j < end; j++) {
    const struct range inside = taps_at(p, j, d->size[1]);
    const data_storage *const from = x + (j * p->source_step - d->before[1]) * d->channels;
    if (inside.last > inside.first)
      add_inside(n, d, first_row, last_row, inside.first, inside.last, dy + j * d->channels, from, 1, to);
  }
}

// A row of the result's gradient, for the channels of a vector.
INLINE void add_row(const int n, const struct depthwise *d, const struct phase *p, int64_t b, int64_t place,
                    int64_t channel, real *to)
{
  const int64_t channels = d->channels, padded = ROUND_UP(channels), top = place * d->stride[0] - d->before[0];
  int64_t first = 0, last = d->kernel[0];
  while (first < last && top + first * d->dilation[0] < 0)
    first++;
  while (last > first && top + (last - 1) * d->dilation[0] >= d->size[0])
    last--;
  const data_storage *const dy = d->dy + (b * d->result[0] + place) * d->result[1] * channels + channel;
  const data_storage *const x = d->x + (b * d->size[0] + top) * d->size[1] * channels + channel;
  to += channel;
  real *const biases = to + d->kernel[0] * d->kernel[1] * padded;
  vec total = load_real(biases);
  for (int64_t j = 0; j < p->count; j++)
    total += take_data(dy + j * channels, n);
  store_real(biases, total);
  if (p->outer > p->inner) {
    const data_storage *const from = x + (p->inner * p->source_step - d->before[1]) * channels;
    add_inside(n, d, first, last, 0, p->taps, dy + p->inner * channels, from, p->outer - p->inner, to);
  }
  add_ends(n, d, p, first, last, 0, p->inner, dy, x, to);
  add_ends(n, d, p, first, last, p->outer, p->count, dy, x, to);
}

struct weights {
  const struct depthwise *d;
  struct phase phase;
};

static void weights_task(const void *context, int64_t task, int64_t worker)
{
  const struct weights *const w = context;
  const struct depthwise *const d = w->d;
  const int64_t part = task / d->blocks, block = task % d->blocks, vectors = ROUND_UP(d->channels) / LANES;
  const int64_t padded = vectors * LANES, sums = d->kernel[0] * d->kernel[1] + 1;
  const int64_t begin = vectors * block / d->blocks * LANES, end = vectors * (block + 1) / d->blocks * LANES;
  real *const to = d->dw + part * sums * padded;
  for (int64_t k = 0; k < sums; k++)
    memset(to + k * padded + begin, 0, (size_t)(end - begin) * sizeof(real));
  for (int64_t b = d->batch * part / d->parts; b < d->batch * (part + 1) / d->parts; b++)
    for (int64_t place = 0; place < d->result[0]; place++)
      for (int64_t c = begin; c < end; c += LANES)
        if (c + LANES <= d->channels)
          add_row(LANES, d, &w->phase, b, place, c, to);
        else
          add_row((int)(d->channels - c), d, &w->phase, b, place, c, to);
}

void forward(const struct depthwise *d)
{
  struct sum s = {d, d->x, {d->size[0], d->size[1]}, d->y, {d->result[0], d->result[1]}, d->bias != 0, 0};
  compute(&s);
}

void backward(const struct depthwise *d)
{
  struct sum s = {d, d->dy, {d->result[0], d->result[1]}, d->dx, {d->size[0], d->size[1]}, 0, 1};
  if (d->dx)
    compute(&s);
  if (!d->dw)
    return;
  const struct sum read = {d, d->x, {d->size[0], d->size[1]}, 0, {d->result[0], d->result[1]}, 0, 0};
  const struct weights w = {d, phase_of(&read, 0)};
  share(&d->threads, weights_task, &w, d->parts * d->blocks);
}
