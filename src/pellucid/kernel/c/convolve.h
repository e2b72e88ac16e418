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
#define ENTRIES_TOGETHER 1024  // places of the samples whose products are added up in registers
#define BYTES_TOGETHER 262144 // of these samples

// A vector that is read once: a load in every product that it stands in would read across two lines of the cache again and
// again.
#if defined(__x86_64__)
#define STAY(v) __asm__("" : "+v"(v))
#else
#define STAY(v) (void)0
#endif

// What follows from the sizes.
struct laid {
  struct planes planes;
  int64_t place_row;               // what the results of a channel take
  int64_t margin, dy_row;          // ahead of the gradient of the result, and what a channel of it takes
  int64_t channels, vectors;       // of a tile of the result
  int64_t dx_channels, dx_vectors; // and of the input's gradient
  int64_t weights, dx_weights;     // packed
  int64_t accumulators;
  int64_t in_sample, dy_sample, dx_planes; // what a sample takes
  int64_t samples;                         // that are laid out together for the gradient of the weights
};

INLINE int64_t rows_of_tiles(int64_t channels, int64_t tile) { return (channels + tile - 1) / tile * tile; }
static int64_t tile_channels(int64_t channels)
{
  static const int64_t sizes[] = {8, 6, 4, 2, 1};
  int64_t best = 1, least = INT64_MAX;
  for (int i = 0; i < 5; i++) {
    const int64_t computed = rows_of_tiles(channels, sizes[i]);
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
  l.weights = rows_of_tiles(w->out, l.channels) * w->in * w->tap_count;
  l.dx_weights = rows_of_tiles(w->in, l.dx_channels) * w->out * w->tap_count;
  l.accumulators = w->out * w->in * w->tap_count * LANES;
  l.in_sample = w->in * l.planes.phases * l.planes.row, l.dy_sample = w->out * l.dy_row;
  l.dx_planes = rows_of_tiles(w->in, l.dx_channels) * l.planes.phases * l.planes.row;
  const int64_t wanted = ENTRIES_TOGETHER / l.planes.places + 1;
  const int64_t most = BYTES_TOGETHER / ((l.in_sample + l.dy_sample) * (int64_t)sizeof(real)) + 1;
  const int64_t part = (w->batch + w->parts - 1) / w->parts, fitting = wanted < most ? wanted : most;
  l.samples = fitting < part ? fitting : part;
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
    for (int v = 0; v < vectors; v++) {
      entries[v] = load_real(from + v * LANES);
      STAY(entries[v]);
    }
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

// Some samples, as they lie one behind the other: the gradient of the result, and the input.
struct samples {
  const real *dy, *x;
  int64_t dy_row, dy_sample, x_sample, count, places;
};

// Products of the result's gradient with what every term reads, added up over all places and samples, a sum for every
// lane.
INLINE void add_weights(const int results, const int terms, const struct samples *s, int64_t first,
                        const int64_t *distances, real *to, int64_t to_row)
{
  vec sums[MOST_RESULTS][MOST_TERMS];
  for (int o = 0; o < results; o++)
    for (int k = 0; k < terms; k++)
      sums[o][k] = splat(0);
  for (int64_t b = 0; b < s->count; b++) {
    const real *const dy = s->dy + b * s->dy_sample + first * s->dy_row, *const x = s->x + b * s->x_sample;
    for (int64_t p = 0; p < s->places; p += LANES) {
      vec given[MOST_RESULTS];
      for (int o = 0; o < results; o++)
        given[o] = load_real(dy + o * s->dy_row + p);
      for (int k = 0; k < terms; k++) {
        vec read = load_real(x + distances[k] + p);
        STAY(read);
        for (int o = 0; o < results; o++)
          sums[o][k] += given[o] * read;
      }
    }
  }
  for (int o = 0; o < results; o++)
    for (int k = 0; k < terms; k++) {
      real *const place = to + o * to_row + k * LANES;
      store_real(place, load_real(place) + sums[o][k]);
    }
}

#define CASE_OF_TERMS(results, n)                                                                                      \
  case n: add_weights(results, n, samples, first, distances, to, to_row); break;
#define DEFINE_WEIGHTS(results, CASES)                                                                                 \
  static void weights_of_##results(int64_t terms, const struct samples *samples, int64_t first,                        \
                                   const int64_t *distances, real *to, int64_t to_row)                                 \
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

static void add_all_weights(const struct samples *samples, const int64_t *distances, int64_t count, int64_t channels,
                            real *to)
{
  const int64_t rows = (channels + MOST_RESULTS - 1) / MOST_RESULTS, to_row = count * LANES;
  const int64_t most = channels > 2 || VECTOR_BYTES < 64 ? MOST_TERMS / 2 : MOST_TERMS;
  const int64_t columns = (count + most - 1) / most;
  for (int64_t i = 0; i < rows; i++) {
    const int64_t o = channels * i / rows;
    for (int64_t j = 0; j < columns; j++) {
      const int64_t k = count * j / columns, terms = count * (j + 1) / columns - k;
      real *const place = to + o * to_row + k * LANES;
      switch (channels * (i + 1) / rows - o) {
      case 1: weights_of_1(terms, samples, o, distances + k, place, to_row); break;
      case 2: weights_of_2(terms, samples, o, distances + k, place, to_row); break;
      case 3: weights_of_3(terms, samples, o, distances + k, place, to_row); break;
      default: weights_of_4(terms, samples, o, distances + k, place, to_row); break;
      }
    }
  }
}

// Sums of the lanes of every vector.
static void add_lanes(const real *vectors, int64_t count, real *to)
{
  for (int64_t i = 0; i < count; i += LANES) {
    const int n = PART(count - i);
    vec square[LANES], total = splat(0);
    for (int j = 0; j < LANES; j++)
      square[j] = j < n ? load_real(vectors + (i + j) * LANES) : splat(0);
    transpose(square);
    for (int j = 0; j < LANES; j++)
      total += square[j];
    put_real(to + i, total, n);
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


static void forward_task(const void *context, int64_t task, int64_t worker)
{
  const struct pass *const pass = context;
  const struct windows *const w = pass->w;
  const struct laid *const l = &pass->l;
  const int64_t units = w->batch * w->groups, tasks = units < CHUNKS ? units : CHUNKS;
  const int64_t size = w->result[0] * w->result[1] * w->result[2];
  real *const in = (real *)(pass->scratch + worker * pass->bytes), *const out = in + l->in_sample;
  memset(in, 0, (size_t)l->in_sample * sizeof(real));
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

static void gradient_of_input(const struct pass *pass, int64_t b, int64_t g, const real *dy, real *planes)
{
  const struct windows *const w = pass->w;
  const struct laid *const l = &pass->l;
  const int64_t *distances = pass->terms + w->in * w->tap_count;
  const real *weights = pass->weights + g * l->dx_weights;
  const int64_t channel = l->planes.phases * l->planes.row, size = w->size[0] * w->size[1] * w->size[2];
  for (int64_t phase = 0; phase < l->planes.phases; phase++) {
    const int64_t count = pass->counts[phase];
    sum_all(dy, distances, weights, count, w->in, l->dx_channels, l->dx_vectors, l->planes.entries,
            planes + phase * l->planes.row, channel);
    distances += count, weights += count * rows_of_tiles(w->in, l->dx_channels);
  }
  for (int64_t c = 0; c < w->in; c++)
    take_input(w, &l->planes, planes + c * channel, w->dx + ((b * w->groups + g) * w->in + c) * size);
}

static void add_biases(const struct samples *samples, int64_t channels, real *biases)
{
  for (int64_t o = 0; o < channels; o++) {
    vec total = splat(0);
    for (int64_t b = 0; b < samples->count; b++)
      for (int64_t p = 0; p < samples->places; p += LANES)
        total += load_real(samples->dy + b * samples->dy_sample + o * samples->dy_row + p);
    store_real(biases + o * LANES, load_real(biases + o * LANES) + total);
  }
}

// A part of the batch, some samples at a time.
static void backward_task(const void *context, int64_t task, int64_t worker)
{
  const struct pass *const pass = context;
  const struct windows *const w = pass->w;
  const struct laid *const l = &pass->l;
  const int64_t g = task / w->parts, part = task % w->parts, end = w->batch * (part + 1) / w->parts;
  const int64_t terms = w->in * w->tap_count, size = w->result[0] * w->result[1] * w->result[2];
  const int64_t channel = l->planes.phases * l->planes.row;
  real *const in = (real *)(pass->scratch + worker * pass->bytes), *const dy = in + l->samples * l->in_sample;
  real *const planes = dy + l->samples * l->dy_sample, *const sums = planes + l->dx_planes;
  real *const biases = sums + l->accumulators;
  memset(in, 0, (size_t)(planes - in) * sizeof(real));
  memset(sums, 0, (size_t)(l->accumulators + w->out * LANES) * sizeof(real));
  for (int64_t b = w->batch * part / w->parts; b < end; b += l->samples) {
    const int64_t count = end - b < l->samples ? end - b : l->samples;
    const struct samples samples = {dy + l->margin, in, l->dy_row, l->dy_sample, l->in_sample, count, l->planes.places};
    for (int64_t i = 0; i < count; i++) {
      for (int64_t o = 0; o < w->out; o++)
        lay_gradient(w, w->dy + (((b + i) * w->groups + g) * w->out + o) * size,
                     dy + i * l->dy_sample + o * l->dy_row + l->margin);
      if (w->dx)
        gradient_of_input(pass, b + i, g, dy + i * l->dy_sample, planes);
      for (int64_t c = 0; w->dw && c < w->in; c++)
        lay_input(w, &l->planes, channel_of(w, b + i, g, c), in + i * l->in_sample + c * channel);
    }
    if (w->dw) {
      add_all_weights(&samples, pass->terms, terms, w->out, sums);
      add_biases(&samples, w->out, biases);
    }
  }
  if (w->dw) {
    real *const to = w->dw + part * w->groups * w->out * (terms + 1);
    add_lanes(sums, w->out * terms, to + g * w->out * terms);
    add_lanes(biases, w->out, to + w->groups * w->out * terms + g * w->out);
  }
}

// Bytes of the work: what all threads read, and what each one has.
static void divide_work(const struct windows *w, struct pass *pass, int64_t *shared)
{
  const struct laid l = pass->l = laid_out(w);
  const int64_t terms = w->in * w->tap_count;
  const int64_t packed = l.weights > l.dx_weights ? l.weights : l.dx_weights;
  const int64_t lists = (terms + w->out * w->tap_count + l.planes.phases) * (int64_t)sizeof(int64_t);
  *shared = ROUNDED(lists) + ROUNDED(w->groups * packed * (int64_t)sizeof(real));
  const int64_t forward = l.in_sample + rows_of_tiles(w->out, l.channels) * l.place_row;
  const int64_t together = l.samples * (l.in_sample + l.dy_sample);
  const int64_t backward = together + l.dx_planes + l.accumulators + w->out * LANES;
  pass->bytes = ROUNDED((forward > backward ? forward : backward) * (int64_t)sizeof(real));
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
