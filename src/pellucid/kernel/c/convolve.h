// out[o][p] = Σ over channels c and taps t of weight[o][c][t] · in[c][stride · p + dilation · t − before], and its
// gradients.
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
  if (VECTOR_BYTES < 64) // and half as many of them
    return channels > 4 ? 1 : channels > 2 ? 2 : 4;
  return channels > 6 ? 3 : channels > 4 ? 4 : channels > 2 ? 6 : 8;
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
  l.samples = w->lanes > 1 ? 1 : fitting < part ? fitting : part;
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

// Some places of all channels, and of count terms those from first to last; weights are packed by tiles of channels, and
// out has a row for each of those.
static void sum_places(const real *in, const int64_t *distances, const real *weights, int64_t count, int64_t first_term,
                       int64_t last_term, int64_t channels, int64_t tile, int64_t most, int64_t places, real *out,
                       int64_t out_row)
{
  const int64_t terms = last_term - first_term;
  distances += first_term, weights += first_term * tile;
  const int64_t vectors = (places + LANES - 1) / LANES, steps = (vectors + most - 1) / most;
  for (int64_t i = 0; i < steps; i++) {
    const int64_t first = vectors * i / steps, width = vectors * (i + 1) / steps - first, at = first * LANES;
    for (int64_t c = 0; c < channels; c += tile) {
      const real *const of_tile = weights + c * count;
      real *const to = out + c * out_row + at;
      switch (tile) {
      case 1: sums_of_1(width, in + at, distances, of_tile, terms, to, out_row); break;
      case 2: sums_of_2(width, in + at, distances, of_tile, terms, to, out_row); break;
      case 4: sums_of_4(width, in + at, distances, of_tile, terms, to, out_row); break;
      case 6: sums_of_6(width, in + at, distances, of_tile, terms, to, out_row); break;
      default: sums_of_8(width, in + at, distances, of_tile, terms, to, out_row); break;
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

// -- patches of results ---------------------------------------------------------------------------------------------

// Where the patches of a row of the pooled result begin, in the flat result.
INLINE int64_t patches_at(const struct windows *w, int64_t d, int64_t h)
{
  const int64_t depth = d * w->patch_stride[0], height = h * w->patch_stride[1];
  return (depth * w->plane[1] + height) * w->plane[2] * w->lanes;
}
INLINE int64_t pooled_size(const struct windows *w) { return w->pooled[0] * w->pooled[1] * w->pooled[2]; }

// Whether a patch is two columns wide, and the next one begins behind it.
INLINE int in_pairs(const struct windows *w)
{
  int paired = w->patch_stride[2] == 2 && w->patch_count % 2 == 0;
  for (int64_t t = 0; paired && t < w->patch_count; t += 2)
    paired = w->patch[t + 1] == w->patch[t] + 1;
  return paired;
}

// n patches that lie one behind the other: the greatest of each, and which it was.
INLINE void pool_row(const struct windows *w, const real *flat, int paired, int n, vec *value, vec *tap)
{
  *value = *tap = splat(0);
  if (paired) {
    for (int64_t t = 0; t < w->patch_count; t += 2) {
      vec even, odd;
      apart(load_real(flat + w->patch[t]), load_real(flat + w->patch[t] + LANES), &even, &odd);
      compete(even, t, value, tap), compete(odd, t + 1, value, tap);
    }
    return;
  }
  for (int64_t t = 0; t < w->patch_count; t++) {
    vec entry = splat(0);
    for (int i = 0; i < n; i++)
      entry[i] = flat[w->patch[t] + i * w->patch_stride[2]];
    compete(entry, t, value, tap);
  }
}

static void take_pooled(const struct windows *w, const real *flat, int samples, data_storage *y, uint8_t *best,
                        real bias)
{
  const int paired = in_pairs(w);
  const int64_t width = w->pooled[2], sample = w->groups * w->out * pooled_size(w);
  for (int64_t d = 0; d < w->pooled[0]; d++)
    for (int64_t h = 0; h < w->pooled[1]; h++, y += width, best = best ? best + width : best) {
      const real *const row = flat + patches_at(w, d, h);
      for (int64_t i = 0; i < width; i += LANES) {
        const int n = PART(width - i);
        if (w->lanes == 1) {
          vec value, tap;
          pool_row(w, row + i * w->patch_stride[2], paired, n, &value, &tap);
          put_data(y + i, value + splat(bias), n);
          if (best)
            put_taps(best + i, tap, n);
          continue;
        }
        vec values[LANES], taps[LANES];
        for (int j = 0; j < LANES; j++) {
          values[j] = taps[j] = splat(0);
          for (int64_t t = 0; j < n && t < w->patch_count; t++)
            compete(load_real(row + (i + j) * w->patch_stride[2] * LANES + w->patch[t]), t, values + j, taps + j);
          values[j] += splat(bias);
        }
        turn_out(values, y + i, sample, samples, n);
        if (!best)
          continue;
        transpose(taps);
        for (int s = 0; s < samples; s++)
          put_taps(best + s * sample + i, taps[s], n);
      }
    }
}

// The gradient of the pooled result goes to the greatest of every patch; the flat gradient is zero before.
static void lay_pooled(const struct windows *w, const data_storage *dy, const uint8_t *best, int samples, real *flat)
{
  const int64_t width = w->pooled[2], sample = w->groups * w->out * pooled_size(w);
  for (int64_t d = 0; d < w->pooled[0]; d++)
    for (int64_t h = 0; h < w->pooled[1]; h++, dy += width, best += width) {
      real *const row = flat + patches_at(w, d, h);
      for (int64_t i = 0; w->lanes == 1 && i < width; i++)
        row[i * w->patch_stride[2] + w->patch[best[i]]] += read_data(dy + i);
      for (int64_t i = 0; w->lanes > 1 && i < width; i += LANES) {
        vec given[LANES], taps[LANES];
        const int n = PART(width - i);
        turn_in(dy + i, sample, samples, n, given);
        for (int s = 0; s < LANES; s++)
          taps[s] = s < samples ? get_taps(best + s * sample + i, n) : splat(0);
        transpose(taps);
        for (int j = 0; j < n; j++)
          for (int64_t t = 0; t < w->patch_count; t++) {
            real *const place = row + (i + j) * w->patch_stride[2] * LANES + w->patch[t];
            store_real(place, load_real(place) + choose(taps[j] == splat((real)t), given[j], splat(0)));
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
  int64_t *places;  // where the weights of a tap begin among those of the input's gradient
  real *weights;    // packed, of every group
  char *scratch;
  int64_t bytes;    // of a thread's scratch
};

// What the terms of the result read.
static void list_forward(const struct pass *pass)
{
  const struct windows *const w = pass->w;
  for (int64_t c = 0, k = 0; c < w->in; c++)
    for (int64_t t = 0; t < w->tap_count; t++)
      pass->terms[k++] = (c * pass->l.planes.phases + w->taps[2 * t]) * pass->l.planes.row + w->taps[2 * t + 1];
}

// What those of the input's gradient read, phase after phase, and where their weights are.
static void list_backward(const struct pass *pass)
{
  const struct windows *const w = pass->w;
  const int64_t tile = pass->l.dx_channels;
  int64_t *distance = pass->terms + w->in * w->tap_count, begin = 0;
  for (int64_t phase = 0; phase < pass->l.planes.phases; phase++) {
    pass->counts[phase] = 0;
    for (int64_t t = 0; t < w->tap_count; t++) {
      if (w->taps[2 * t] != phase)
        continue;
      pass->places[t] = begin + pass->counts[phase] * tile;
      for (int64_t o = 0; o < w->out; o++)
        *distance++ = o * pass->l.dy_row + pass->l.margin - w->taps[2 * t + 1];
      pass->counts[phase] += w->out;
    }
    begin += pass->counts[phase] * rows_of_tiles(w->in, tile);
  }
}

// Weights of a group for a tile of channels: of each term those of all its channels.
static void pack_forward_task(const void *context, int64_t task, UNUSED int64_t worker)
{
  const struct pass *const pass = context;
  const struct windows *const w = pass->w;
  const int64_t terms = w->in * w->tap_count, tile = pass->l.channels, tiles = (w->out + tile - 1) / tile;
  const int64_t g = task / tiles, o = task % tiles * tile;
  real *to = pass->weights + g * pass->l.weights + o * terms;
  for (int64_t k = 0; k < terms; k++)
    for (int64_t i = o; i < o + tile; i++)
      *to++ = i < w->out ? read_data(w->weight + (g * w->out + i) * terms + k) : 0;
}

// A line of the cache holds the weights of some taps, which go to as many places.
static void pack_backward_task(const void *context, int64_t task, UNUSED int64_t worker)
{
  const struct pass *const pass = context;
  const struct windows *const w = pass->w;
  const int64_t taps = w->tap_count, tile = pass->l.dx_channels, tiles = (w->in + tile - 1) / tile;
  const int64_t g = task / tiles, c = task % tiles * tile;
  real *const to = pass->weights + g * pass->l.dx_weights;
  for (int64_t some = 0; some < taps; some += LANES)
    for (int64_t o = 0; o < w->out; o++)
      for (int64_t i = 0; i < tile; i++) {
        const data_storage *const from = w->weight + ((g * w->out + o) * w->in + c + i) * taps;
        for (int64_t t = some; t < some + LANES && t < taps; t++) {
          real *const place = to + pass->places[t] + c * pass->counts[w->taps[2 * t]];
          place[o * tile + i] = c + i < w->in ? read_data(from + t) : 0;
        }
      }
}

// Samples that lie beside each other from one on; units of work; and rows that are computed each by itself.
INLINE int samples_from(const struct windows *w, int64_t b)
{
  return (int)(w->batch - b < w->lanes ? w->batch - b : w->lanes);
}
INLINE int64_t units_of(const struct windows *w) { return (w->batch + w->lanes - 1) / w->lanes * w->groups; }
INLINE int64_t rows_of_result(const struct windows *w) { return w->lanes == 1 ? 1 : w->result[0] * w->result[1]; }
INLINE int64_t row_of_result(const struct windows *w, int64_t r)
{
  return (r / w->result[1] * w->plane[1] + r % w->result[1]) * w->plane[2] * w->lanes;
}

static void lay_channels(const struct windows *w, const struct planes *l, int64_t b, int64_t g, real *in)
{
  for (int64_t c = 0; c < w->in; c++)
    if (w->lanes == 1)
      lay_input(w, l, channel_of(w, b, g, c), in + c * l->phases * l->row);
    else
      lay_inputs(w, l, channel_of(w, b, g, c), samples_from(w, b), in + c * l->phases * l->row);
}

static void forward_task(const void *context, int64_t task, int64_t worker)
{
  const struct pass *const pass = context;
  const struct windows *const w = pass->w;
  const struct laid *const l = &pass->l;
  const int64_t units = units_of(w), tasks = units < CHUNKS ? units : CHUNKS, terms = w->in * w->tap_count;
  const int64_t size = w->result[0] * w->result[1] * w->result[2], rows = rows_of_result(w);
  const int64_t row = w->lanes == 1 ? l->planes.places : w->result[2] * w->lanes;
  real *const in = (real *)(pass->scratch + worker * pass->bytes), *const out = in + l->in_sample;
  memset(in, 0, (size_t)l->in_sample * sizeof(real));
  for (int64_t unit = units * task / tasks; unit < units * (task + 1) / tasks; unit++) {
    const int64_t b = unit / w->groups * w->lanes, g = unit % w->groups;
    lay_channels(w, &l->planes, b, g, in);
    for (int64_t r = 0; r < rows; r++) {
      const int64_t at = row_of_result(w, r);
      sum_places(in + at, pass->terms, pass->weights + g * l->weights, terms, 0, terms, w->out, l->channels, l->vectors,
                 row, out + at, l->place_row);
    }
    for (int64_t o = 0; o < w->out; o++) {
      const real bias = w->bias ? read_data(w->bias + g * w->out + o) : 0;
      if (w->patch_count) {
        const int64_t at = ((b * w->groups + g) * w->out + o) * pooled_size(w);
        take_pooled(w, out + o * l->place_row, samples_from(w, b), w->y + at, w->best ? w->best + at : 0, bias);
        continue;
      }
      data_storage *const y = w->y + ((b * w->groups + g) * w->out + o) * size;
      if (w->lanes == 1)
        take_result(w, out + o * l->place_row, y, bias);
      else
        take_results(w, out + o * l->place_row, samples_from(w, b), y, bias);
    }
  }
}

// The terms of a phase that read a row of the result for a row of the input's plane; taps lie row after row.
INLINE void terms_of_row(const struct windows *w, int64_t phase, int64_t row, int64_t *first, int64_t *last)
{
  int64_t count = 0;
  *first = *last = 0;
  for (int64_t t = 0; t < w->tap_count; t++) {
    if (w->taps[2 * t] != phase)
      continue;
    const int64_t ahead = w->taps[2 * t + 1] / w->lanes / w->plane[2];
    count += w->out;
    if (ahead > row - w->result[1] && ahead <= row)
      *last = count;
    else if (*last == 0)
      *first = count;
  }
  if (*last == 0)
    *first = 0;
}

// The place in a phase's plane of an entry of the input, or of one near it that is in the plane.
INLINE int64_t place_of_input(const struct windows *w, int64_t d, int64_t h, int64_t i)
{
  const int64_t entry[AXES] = {d, h, i};
  int64_t flat = 0;
  for (int axis = 0; axis < AXES; axis++) {
    const int64_t place = (entry[axis] + w->before[axis]) / w->stride[axis], last = w->plane[axis] - 1;
    flat = flat * w->plane[axis] + (place < last ? place : last);
  }
  return flat;
}

static void gradient_of_input(const struct pass *pass, int64_t b, int64_t g, const real *dy, real *planes)
{
  const struct windows *const w = pass->w;
  const struct laid *const l = &pass->l;
  const int64_t *distances = pass->terms + w->in * w->tap_count;
  const real *weights = pass->weights + g * l->dx_weights;
  const int64_t channel = l->planes.phases * l->planes.row, size = w->size[0] * w->size[1] * w->size[2];
  const int64_t rows = w->lanes == 1 ? 1 : w->plane[0] * w->plane[1], row = l->planes.entries / rows;
  int64_t begin = 0, end = row;
  if (rows == 1) { // what lies ahead of the input and behind it, which is long where windows are, has no reader
    begin = place_of_input(w, 0, 0, 0) * w->lanes / LANES * LANES;
    end = (place_of_input(w, w->size[0] - 1, w->size[1] - 1, w->size[2] - 1) + 1) * w->lanes;
  }
  for (int64_t phase = 0; phase < l->planes.phases; phase++) {
    const int64_t count = pass->counts[phase];
    for (int64_t r = 0; r < rows; r++) {
      int64_t first = 0, last = count;
      if (w->lanes > 1 && w->plane[0] == 1)
        terms_of_row(w, phase, r, &first, &last);
      sum_places(dy + r * row + begin, distances, weights, count, first, last, w->in, l->dx_channels, l->dx_vectors,
                 end - begin, planes + phase * l->planes.row + r * row + begin, channel);
    }
    distances += count, weights += count * rows_of_tiles(w->in, l->dx_channels);
  }
  for (int64_t c = 0; c < w->in; c++) {
    data_storage *const dx = w->dx + ((b * w->groups + g) * w->in + c) * size;
    if (w->lanes == 1)
      take_input(w, &l->planes, planes + c * channel, dx);
    else
      take_inputs(w, &l->planes, planes + c * channel, samples_from(w, b), dx);
  }
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

// A part of the batch, some samples at a time: one behind the other, or beside each other.
static void backward_task(const void *context, int64_t task, int64_t worker)
{
  const struct pass *const pass = context;
  const struct windows *const w = pass->w;
  const struct laid *const l = &pass->l;
  const int64_t g = task / w->parts, part = task % w->parts, units = units_of(w) / w->groups, rows = rows_of_result(w);
  const int64_t terms = w->in * w->tap_count, size = w->result[0] * w->result[1] * w->result[2];
  const int64_t end = units * (part + 1) / w->parts;
  real *const in = (real *)(pass->scratch + worker * pass->bytes), *const dy = in + l->samples * l->in_sample;
  real *const planes = dy + l->samples * l->dy_sample, *const sums = planes + l->dx_planes;
  real *const biases = sums + l->accumulators;
  memset(in, 0, (size_t)(planes - in) * sizeof(real));
  memset(sums, 0, (size_t)(l->accumulators + w->out * LANES) * sizeof(real));
  for (int64_t unit = units * part / w->parts; unit < end; unit += l->samples) {
    const int64_t count = end - unit < l->samples ? end - unit : l->samples;
    for (int64_t i = 0; i < count; i++) {
      const int64_t b = (unit + i) * w->lanes;
      real *const own = dy + i * l->dy_sample;
      for (int64_t o = 0; o < w->out; o++) {
        if (w->patch_count) {
          const int64_t at = ((b * w->groups + g) * w->out + o) * pooled_size(w);
          memset(own + o * l->dy_row + l->margin, 0, (size_t)l->planes.places * sizeof(real));
          lay_pooled(w, w->dy + at, w->best + at, samples_from(w, b), own + o * l->dy_row + l->margin);
          continue;
        }
        const data_storage *const given = w->dy + ((b * w->groups + g) * w->out + o) * size;
        if (w->lanes == 1)
          lay_gradient(w, given, own + o * l->dy_row + l->margin);
        else
          lay_gradients(w, given, samples_from(w, b), own + o * l->dy_row + l->margin);
      }
      if (w->dx)
        gradient_of_input(pass, b, g, own, planes);
      if (w->dw)
        lay_channels(w, &l->planes, b, g, in + i * l->in_sample);
    }
    if (!w->dw)
      continue;
    struct samples samples = {dy + l->margin, in, l->dy_row, l->dy_sample, l->in_sample, count, l->planes.places};
    if (w->lanes == 1) {
      add_all_weights(&samples, pass->terms, terms, w->out, sums);
      add_biases(&samples, w->out, biases);
      continue;
    }
    // Rows are what samples are above: they lie one behind the other.
    samples.dy_sample = samples.x_sample = w->plane[2] * w->lanes;
    samples.count = w->result[1], samples.places = w->result[2] * w->lanes;
    for (int64_t d = 0; d < rows / w->result[1]; d++) {
      add_all_weights(&samples, pass->terms, terms, w->out, sums);
      add_biases(&samples, w->out, biases);
      samples.dy += w->plane[1] * samples.dy_sample, samples.x += w->plane[1] * samples.x_sample;
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
  const int64_t lists = (terms + (w->out + 1) * w->tap_count + l.planes.phases) * (int64_t)sizeof(int64_t);
  *shared = ROUNDED(lists) + ROUNDED(w->groups * packed * (int64_t)sizeof(real));
  // Pairs of a patch are read up to two vectors behind the last place.
  const int64_t forward = l.in_sample + rows_of_tiles(w->out, l.channels) * l.place_row + 2 * LANES;
  const int64_t together = l.samples * (l.in_sample + l.dy_sample);
  const int64_t backward = together + l.dx_planes + l.accumulators + w->out * LANES;
  pass->bytes = ROUNDED((forward > backward ? forward : backward) * (int64_t)sizeof(real));
  pass->terms = (int64_t *)w->work;
  pass->counts = pass->terms + terms + w->out * w->tap_count;
  pass->places = pass->counts + l.planes.phases;
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
  list_forward(&pass);
  share(&w->threads, pack_forward_task, &pass, w->groups * rows_of_tiles(w->out, pass.l.channels) / pass.l.channels);
  const int64_t units = units_of(w);
  share(&w->threads, forward_task, &pass, units < CHUNKS ? units : CHUNKS);
}

void backward(const struct windows *w)
{
  struct pass pass;
  int64_t shared;
  divide_work(w, &pass, &shared);
  list_forward(&pass);
  list_backward(&pass);
  const int64_t tile = pass.l.dx_channels;
  if (w->dx)
    share(&w->threads, pack_backward_task, &pass, w->groups * rows_of_tiles(w->in, tile) / tile);
  share(&w->threads, backward_task, &pass, w->groups * w->parts);
}
