// out[o][p] = Σ over channels c and taps t of weight[o][c][t] · in[c][stride · p + dilation · t − before], and the
// gradients of in and weight.
//
// One tile of sums serves the result and the gradient of the input: a few channels by a few vectors of places, over a
// list of terms, each with a distance and a weight for every channel. Another serves the gradient of the weights: a few
// channels by a few terms, over all places.

#define MOST_CHANNELS 8 // of a tile of places
#define MOST_VECTORS 8
#define MOST_RESULTS 4 // channels of a tile of weights
#define MOST_TERMS 12

// What follows from the sizes.
struct laid {
  struct planes planes;
  int64_t place_row;               // what the results of a channel take
  int64_t margin, dy_row;          // ahead of the gradient of the result, and what a channel of it takes
  int64_t channels, vectors;       // of a tile of the result
  int64_t dx_channels, dx_vectors; // and of the input's gradient
  int64_t weights, dx_weights;     // packed
  int64_t accumulators;
};

static int64_t tile_channels(int64_t channels)
{
  static const int64_t sizes[] = {8, 6, 4, 2, 1};
  int64_t best = 1, least = INT64_MAX;
  for (int i = 0; i < 5; i++) {
    const int64_t computed = (channels + sizes[i] - 1) / sizes[i] * sizes[i];
    if (computed < least)
      least = computed, best = sizes[i];
  }
  return best;
}
static int64_t tile_vectors(int64_t channels)
{
  return VECTOR_BYTES < 64 ? (channels > 4 ? 1 : channels > 2 ? 2 : 4) : channels > 6 ? 3 : channels > 4 ? 4 : channels > 2 ? 6 : 8;
}

static struct laid laid_out(const struct windows *w)
{
  struct laid l = {0};
  l.planes = planes_of(w);
  l.place_row = ROUND_UP(l.planes.places);
  for (int64_t t = 0; t < w->tap_count; t++)
    if (w->taps[2 * t + 1] > l.margin)
      l.margin = w->taps[2 * t + 1];
  l.margin = ROUND_UP(l.margin);
  l.dy_row = l.margin + ROUND_UP(l.planes.entries) + LANES;
  l.channels = tile_channels(w->out), l.vectors = tile_vectors(l.channels);
  l.dx_channels = tile_channels(w->in), l.dx_vectors = tile_vectors(l.dx_channels);
  l.weights = (w->out + l.channels - 1) / l.channels * l.channels * w->in * w->tap_count;
  l.dx_weights = (w->in + l.dx_channels - 1) / l.dx_channels * l.dx_channels * w->out * w->tap_count;
  l.accumulators = w->out * w->in * w->tap_count * LANES;
  return l;
}

// -- tiles ---------------------------------------------------------------------------------------------------------

// Sums of count terms: term k reads places further on by distances[k], and has channels weights.
INLINE void sum_terms(const int channels, const int vectors, const real *in, const int64_t *distances,
                      const real *weights, int64_t count, real *out, int64_t out_row)
{
  vec sums[MOST_CHANNELS][MOST_VECTORS];
  for (int c = 0; c < channels; c++)
    for (int v = 0; v < vectors; v++)
      sums[c][v] = splat(0);
  for (int64_t k = 0; k < count; k++, weights += channels) {
    const real *const from = in + distances[k];
    vec entries[MOST_VECTORS];
    for (int v = 0; v < vectors; v++)
      entries[v] = load_real(from + v * LANES);
    for (int c = 0; c < channels; c++)
      for (int v = 0; v < vectors; v++)
        sums[c][v] += weights[c] * entries[v];
  }
  for (int c = 0; c < channels; c++)
    for (int v = 0; v < vectors; v++)
      store_real(out + c * out_row + v * LANES, sums[c][v]);
}

#define CASE_OF_VECTORS(channels, n)                                                                                   \
  case n: sum_terms(channels, n, in, distances, weights, count, out, out_row); break;
#define DEFINE_SUMS(channels, CASES)                                                                                   \
  static void sums_of_##channels(int64_t vectors, const real *in, const int64_t *distances, const real *weights,       \
                                 int64_t count, real *out, int64_t out_row)                                            \
  {                                                                                                                    \
    switch (vectors) {                                                                                                 \
      CASES                                                                                                            \
    }                                                                                                                  \
  }
#define UP_TO_3(c) CASE_OF_VECTORS(c, 1) CASE_OF_VECTORS(c, 2) CASE_OF_VECTORS(c, 3)
#define UP_TO_4(c) UP_TO_3(c) CASE_OF_VECTORS(c, 4)
#define UP_TO_6(c) UP_TO_4(c) CASE_OF_VECTORS(c, 5) CASE_OF_VECTORS(c, 6)
#define UP_TO_8(c) UP_TO_6(c) CASE_OF_VECTORS(c, 7) CASE_OF_VECTORS(c, 8)
DEFINE_SUMS(1, UP_TO_8(1))
DEFINE_SUMS(2, UP_TO_8(2))
DEFINE_SUMS(4, UP_TO_6(4))
DEFINE_SUMS(6, UP_TO_4(6))
DEFINE_SUMS(8, UP_TO_3(8))

// All places of all channels; weights are packed by tiles of channels, and out has a row for each of those.
static void sum_all(const real *in, const int64_t *distances, const real *weights, int64_t count, int64_t channels,
                    int64_t tile, int64_t most, int64_t places, real *out, int64_t out_row)
{
  const int64_t vectors = (places + LANES - 1) / LANES, steps = (vectors + most - 1) / most;
  for (int64_t i = 0; i < steps; i++) {
    const int64_t first = vectors * i / steps, width = vectors * (i + 1) / steps - first, at = first * LANES;
    for (int64_t c = 0; c < channels; c += tile) {
      const real *const of_tile = weights + c * count;
      real *const to = out + c * out_row + at;
      switch (tile) {
      case 1: sums_of_1(width, in + at, distances, of_tile, count, to, out_row); break;
      case 2: sums_of_2(width, in + at, distances, of_tile, count, to, out_row); break;
      case 4: sums_of_4(width, in + at, distances, of_tile, count, to, out_row); break;
      case 6: sums_of_6(width, in + at, distances, of_tile, count, to, out_row); break;
      default: sums_of_8(width, in + at, distances, of_tile, count, to, out_row); break;
      }
    }
  }
}

// Products of the result's gradient with what every term reads, added up over all places, a sum for every lane.
INLINE void add_weights(const int results, const int terms, const real *dy, int64_t dy_row, const real *x,
                        const int64_t *distances, int64_t places, real *to, int64_t to_row)
{
  vec sums[MOST_RESULTS][MOST_TERMS];
  for (int o = 0; o < results; o++)
    for (int k = 0; k < terms; k++)
      sums[o][k] = splat(0);
  for (int64_t p = 0; p < places; p += LANES) {
    vec given[MOST_RESULTS];
    for (int o = 0; o < results; o++)
      given[o] = load_real(dy + o * dy_row + p);
    for (int k = 0; k < terms; k++) {
      const vec read = load_real(x + distances[k] + p);
      for (int o = 0; o < results; o++)
        sums[o][k] += given[o] * read;
    }
  }
  for (int o = 0; o < results; o++)
    for (int k = 0; k < terms; k++) {
      real *const place = to + o * to_row + k * LANES;
      store_real(place, load_real(place) + sums[o][k]);
    }
}

#define CASE_OF_TERMS(results, n)                                                                                      \
  case n: add_weights(results, n, dy, dy_row, x, distances, places, to, to_row); break;
#define DEFINE_WEIGHTS(results, CASES)                                                                                 \
  static void weights_of_##results(int64_t terms, const real *dy, int64_t dy_row, const real *x,                       \
                                   const int64_t *distances, int64_t places, real *to, int64_t to_row)                 \
  {                                                                                                                    \
    switch (terms) {                                                                                                   \
      CASES                                                                                                            \
    }                                                                                                                  \
  }
#define TERMS_UP_TO_6(o)                                                                                               \
  CASE_OF_TERMS(o, 1) CASE_OF_TERMS(o, 2) CASE_OF_TERMS(o, 3) CASE_OF_TERMS(o, 4) CASE_OF_TERMS(o, 5)                  \
  CASE_OF_TERMS(o, 6)
#define TERMS_UP_TO_12(o)                                                                                              \
  TERMS_UP_TO_6(o) CASE_OF_TERMS(o, 7) CASE_OF_TERMS(o, 8) CASE_OF_TERMS(o, 9) CASE_OF_TERMS(o, 10)                    \
  CASE_OF_TERMS(o, 11) CASE_OF_TERMS(o, 12)
DEFINE_WEIGHTS(1, TERMS_UP_TO_12(1))
DEFINE_WEIGHTS(2, TERMS_UP_TO_12(2))
DEFINE_WEIGHTS(3, TERMS_UP_TO_6(3))
DEFINE_WEIGHTS(4, TERMS_UP_TO_6(4))

static void add_all_weights(const real *dy, int64_t dy_row, const real *x, const int64_t *distances, int64_t count,
                            int64_t channels, int64_t places, real *to)
{
  const int64_t rows = (channels + MOST_RESULTS - 1) / MOST_RESULTS, most = channels > 2 ? 6 : VECTOR_BYTES < 64 ? 6 : 12;
  const int64_t columns = (count + most - 1) / most, to_row = count * LANES;
  for (int64_t i = 0; i < rows; i++) {
    const int64_t o = channels * i / rows;
    for (int64_t j = 0; j < columns; j++) {
      const int64_t k = count * j / columns, terms = count * (j + 1) / columns - k;
      real *const place = to + o * to_row + k * LANES;
      const real *const from = dy + o * dy_row;
      switch (channels * (i + 1) / rows - o) {
      case 1: weights_of_1(terms, from, dy_row, x, distances + k, places, place, to_row); break;
      case 2: weights_of_2(terms, from, dy_row, x, distances + k, places, place, to_row); break;
      case 3: weights_of_3(terms, from, dy_row, x, distances + k, places, place, to_row); break;
      default: weights_of_4(terms, from, dy_row, x, distances + k, places, place, to_row); break;
      }
    }
  }
}

// -- the passes -----------------------------------------------------------------------------------------------------

struct pass {
  const struct windows *w;
  struct laid l;
  int64_t *terms;   // distances of the terms of the result; those of the input's gradient, phase after phase
  int64_t *counts;  // of the terms of every phase's gradient
  real *weights;    // packed, of every group
  char *scratch;
  int64_t bytes;    // of a thread's scratch
};

// Weights of a group, tile after tile of channels, and in each term after term.
static void pack_forward(const struct pass *pass)
{
  const struct windows *const w = pass->w;
  const int64_t terms = w->in * w->tap_count, tile = pass->l.channels;
  real *to = pass->weights;
  for (int64_t g = 0; g < w->groups; g++)
    for (int64_t o = 0; o < w->out; o += tile)
      for (int64_t k = 0; k < terms; k++)
        for (int64_t i = o; i < o + tile; i++)
          *to++ = i < w->out ? read_data(w->weight + (g * w->out + i) * terms + k) : 0;
  for (int64_t c = 0, k = 0; c < w->in; c++)
    for (int64_t t = 0; t < w->tap_count; t++)
      pass->terms[k++] = c * pass->l.planes.phases * pass->l.planes.row + w->taps[2 * t] * pass->l.planes.row + w->taps[2 * t + 1];
}

static void pack_backward(const struct pass *pass)
{
  const struct windows *const w = pass->w;
  const int64_t terms = w->in * w->tap_count, tile = pass->l.dx_channels;
  real *to = pass->weights;
  int64_t *distance = pass->terms + terms;
  for (int64_t phase = 0; phase < pass->l.planes.phases; phase++) {
    pass->counts[phase] = 0;
    for (int64_t o = 0; o < w->out; o++)
      for (int64_t t = 0; t < w->tap_count; t++)
        if (w->taps[2 * t] == phase)
          *distance++ = o * pass->l.dy_row + pass->l.margin - w->taps[2 * t + 1], pass->counts[phase]++;
  }
  for (int64_t g = 0; g < w->groups; g++)
    for (int64_t phase = 0; phase < pass->l.planes.phases; phase++)
      for (int64_t c = 0; c < w->in; c += tile)
        for (int64_t o = 0; o < w->out; o++)
          for (int64_t t = 0; t < w->tap_count; t++)
            for (int64_t i = c; w->taps[2 * t] == phase && i < c + tile; i++)
              *to++ = i < w->in ? read_data(w->weight + ((g * w->out + o) * w->in + i) * w->tap_count + t) : 0;
}

INLINE int64_t rows_of_tiles(int64_t channels, int64_t tile) { return (channels + tile - 1) / tile * tile; }

static void forward_task(const void *context, int64_t task, int64_t worker)
{
  const struct pass *const pass = context;
  const struct windows *const w = pass->w;
  const struct laid *const l = &pass->l;
  const int64_t units = w->batch * w->groups, tasks = units < CHUNKS ? units : CHUNKS;
  const int64_t planes = w->in * l->planes.phases * l->planes.row, size = w->result[0] * w->result[1] * w->result[2];
  real *const in = (real *)(pass->scratch + worker * pass->bytes), *const out = in + planes + LANES;
  memset(in, 0, (size_t)(planes + LANES) * sizeof(real));
  for (int64_t unit = units * task / tasks; unit < units * (task + 1) / tasks; unit++) {
    const int64_t b = unit / w->groups, g = unit % w->groups;
    for (int64_t c = 0; c < w->in; c++)
      lay_input(w, &l->planes, channel_of(w, b, g, c), in + c * l->planes.phases * l->planes.row);
    sum_all(in, pass->terms, pass->weights + g * l->weights, w->in * w->tap_count, w->out, l->channels, l->vectors,
            l->planes.places, out, l->place_row);
    for (int64_t o = 0; o < w->out; o++)
      take_result(w, out + o * l->place_row, w->y + (unit * w->out + o) * size,
                  w->bias ? read_data(w->bias + g * w->out + o) : 0);
  }
}

static void backward_task(const void *context, int64_t task, int64_t worker)
{
  const struct pass *const pass = context;
  const struct windows *const w = pass->w;
  const struct laid *const l = &pass->l;
  const int64_t g = task / w->parts, part = task % w->parts, terms = w->in * w->tap_count;
  const int64_t planes = w->in * l->planes.phases * l->planes.row, size = w->result[0] * w->result[1] * w->result[2];
  const int64_t gradients = w->out * l->dy_row, input = w->size[0] * w->size[1] * w->size[2];
  real *const in = (real *)(pass->scratch + worker * pass->bytes), *const dy = in + planes + LANES;
  real *const dx = dy + gradients + LANES;
  real *const sums = dx + rows_of_tiles(w->in, l->dx_channels) * l->planes.phases * l->planes.row;
  real *const biases = sums + l->accumulators;
  memset(in, 0, (size_t)(planes + LANES + gradients + LANES) * sizeof(real));
  memset(sums, 0, (size_t)(l->accumulators + w->out * LANES) * sizeof(real));
  for (int64_t b = w->batch * part / w->parts; b < w->batch * (part + 1) / w->parts; b++) {
    for (int64_t o = 0; o < w->out; o++)
      lay_gradient(w, w->dy + ((b * w->groups + g) * w->out + o) * size, dy + o * l->dy_row + l->margin);
    if (w->dx) {
      const int64_t *distances = pass->terms + terms;
      const real *weights = pass->weights + g * l->dx_weights;
      for (int64_t phase = 0; phase < l->planes.phases; phase++) {
        const int64_t count = pass->counts[phase];
        sum_all(dy, distances, weights, count, w->in, l->dx_channels, l->dx_vectors, l->planes.entries, dx + phase * l->planes.row,
                l->planes.phases * l->planes.row);
        distances += count, weights += count * rows_of_tiles(w->in, l->dx_channels);
      }
      for (int64_t c = 0; c < w->in; c++)
        take_input(w, &l->planes, dx + c * l->planes.phases * l->planes.row, w->dx + ((b * w->groups + g) * w->in + c) * input);
    }
    if (w->dw) {
      for (int64_t c = 0; c < w->in; c++)
        lay_input(w, &l->planes, channel_of(w, b, g, c), in + c * l->planes.phases * l->planes.row);
      add_all_weights(dy + l->margin, l->dy_row, in, pass->terms, terms, w->out, l->planes.places, sums);
      for (int64_t o = 0; o < w->out; o++) {
        vec total = splat(0);
        for (int64_t p = 0; p < l->planes.places; p += LANES)
          total += load_real(dy + o * l->dy_row + l->margin + p);
        store_real(biases + o * LANES, load_real(biases + o * LANES) + total);
      }
    }
  }
  if (w->dw) {
    real *const to = w->dw + part * w->groups * w->out * (terms + 1);
    for (int64_t i = 0; i < w->out * terms; i++)
      to[g * w->out * terms + i] = sum(load_real(sums + i * LANES));
    for (int64_t o = 0; o < w->out; o++)
      to[w->groups * w->out * terms + g * w->out + o] = sum(load_real(biases + o * LANES));
  }
}

// Bytes of the work: what all threads read, and what each one has.
static void divide_work(const struct windows *w, struct pass *pass, int64_t *shared)
{
  const struct laid l = pass->l = laid_out(w);
  const int64_t terms = w->in * w->tap_count, planes = w->in * l.planes.phases * l.planes.row + LANES;
  const int64_t packed = l.weights > l.dx_weights ? l.weights : l.dx_weights;
  const int64_t lists = (terms + w->out * w->tap_count + l.planes.phases) * (int64_t)sizeof(int64_t);
  *shared = ROUNDED(lists) + ROUNDED(w->groups * packed * (int64_t)sizeof(real));
  const int64_t forward = rows_of_tiles(w->out, l.channels) * l.place_row;
  const int64_t backward = w->out * l.dy_row + LANES + l.accumulators + w->out * LANES +
                           rows_of_tiles(w->in, l.dx_channels) * l.planes.phases * l.planes.row;
  pass->bytes = ROUNDED((planes + (forward > backward ? forward : backward)) * (int64_t)sizeof(real));
  pass->terms = (int64_t *)w->work;
  pass->counts = pass->terms + terms + w->out * w->tap_count;
  pass->weights = (real *)(w->work + ROUNDED(lists));
  pass->scratch = w->work + *shared;
  pass->w = w;
}

void work_bytes(const struct windows *w, int64_t *shared_and_own)
{
  struct pass pass;
  divide_work(w, &pass, shared_and_own);
  shared_and_own[1] = pass.bytes;
}

void forward(const struct windows *w)
{
  struct pass pass;
  int64_t shared;
  divide_work(w, &pass, &shared);
  pack_forward(&pass);
  const int64_t units = w->batch * w->groups;
  share(&w->threads, forward_task, &pass, units < CHUNKS ? units : CHUNKS);
}

void backward(const struct windows *w)
{
  struct pass pass;
  int64_t shared;
  divide_work(w, &pass, &shared);
  pack_forward(&pass); // for its terms
  pack_backward(&pass);
  share(&w->threads, backward_task, &pass, w->groups * w->parts);
}
