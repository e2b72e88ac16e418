// The greatest product of every filter over the windows of a sentence, and its gradients: of every filter and sentence
// one window has them, so that nothing else is read.

struct filters {
  const real *products;    // (batch · time − width + 1 × filters), of the windows of all sentences laid end to end
  const real *weight;      // (filters × width · features)
  const real *bias;        // or NULL
  real *dw, *db;           // or NULL
  int64_t count, width;    // how many filters there are, and how many steps they read
  int64_t first;           // where they stand in a row of the result
};

struct best {
  const struct filters *filters; // of every width
  const int64_t *lengths;        // of the sentences, or NULL
  const real *x, *dy;            // (batch × time × features), (batch × results)
  real *y, *at, *dx;             // at: the first step of the best window, −1 where there is none; dx is zero, or NULL
  int64_t widths, batch, time, features, results;
  struct threads threads;
};

static void forward_task(const void *context, int64_t b, UNUSED int64_t worker)
{
  const struct best *const call = context;
  const int64_t length = call->lengths ? call->lengths[b] : call->time;
  for (const struct filters *f = call->filters; f < call->filters + call->widths; f++) {
    const int64_t windows = length >= f->width ? length - f->width + 1 : length > 0;
    const real *const products = f->products + b * call->time * f->count;
    real *const y = call->y + b * call->results + f->first, *const at = call->at + b * call->results + f->first;
    for (int64_t c = 0; c < f->count; c += LANES) {
      const int n = PART(f->count - c);
      vec greatest = windows ? take_real(products + c, n) : splat(0), place = splat(windows ? 0 : -1);
      for (int64_t p = 1; p < windows; p++) {
        const vec product = take_real(products + p * f->count + c, n);
        const ivec better = (product > greatest) | ((product != product) & (greatest == greatest));
        greatest = choose(better, product, greatest), place = choose(better, splat((real)p), place);
      }
      put_real(y + c, f->bias && windows ? greatest + take_real(f->bias + c, n) : greatest, n);
      put_real(at + c, place, n);
    }
  }
}

INLINE void add_scaled(real *to, const real *from, real scale, int64_t count)
{
  for (int64_t i = 0; i < count; i += LANES) {
    const int n = PART(count - i);
    put_real(to + i, take_real(to + i, n) + scale * take_real(from + i, n), n);
  }
}

// Tasks are filters, width after width, and then sentences.
static void backward_task(const void *context, int64_t task, UNUSED int64_t worker)
{
  const struct best *const call = context;
  for (const struct filters *f = call->filters; f < call->filters + call->widths; task -= f->count, f++) {
    if (task >= f->count)
      continue;
    const int64_t row = f->width * call->features;
    real total = 0;
    if (f->dw)
      memset(f->dw + task * row, 0, (size_t)row * sizeof(real));
    for (int64_t b = 0; b < call->batch; b++) {
      const int64_t place = b * call->results + f->first + task, step = (int64_t)call->at[place];
      if (step < 0)
        continue;
      total += call->dy[place];
      if (f->dw)
        add_scaled(f->dw + task * row, call->x + (b * call->time + step) * call->features, call->dy[place], row);
    }
    if (f->db)
      f->db[task] = total;
    return;
  }
  for (const struct filters *f = call->filters; f < call->filters + call->widths; f++)
    for (int64_t c = 0; c < f->count; c++) {
      const int64_t place = task * call->results + f->first + c, step = (int64_t)call->at[place];
      if (step >= 0 && call->dy[place] != 0)
        add_scaled(call->dx + (task * call->time + step) * call->features, f->weight + c * f->width * call->features,
                   call->dy[place], f->width * call->features);
    }
}

void forward(const struct best *call) { share(&call->threads, forward_task, call, call->batch); }

void backward(const struct best *call)
{
  int64_t tasks = call->dx ? call->batch : 0;
  for (int64_t i = 0; i < call->widths; i++)
    tasks += call->filters[i].count;
  share(&call->threads, backward_task, call, tasks);
}
