// The mean or the greatest of every feature over the real steps of a sequence, and the gradient of the input.
//
// Equal greatest entries share the gradient, as of torch.amax; steps that are not real have none and are not read.

struct steps {
  const data_storage *x, *dy; // features lie side by side; dy is (batch × features)
  data_storage *y, *dx;       // dx lies as x does, without gaps
  const int64_t *lengths;
  int64_t time, batch, features;
  int64_t x_time, x_batch, dx_time, dx_batch; // strides
  int64_t largest;                            // 1: the greatest, 0: the mean
  struct threads threads;
};

#define MOST_ENTRIES 65536 // that a task takes

INLINE int64_t columns_of(const struct steps *s)
{
  const int64_t columns = MOST_ENTRIES / (s->time + 1) / LANES * LANES;
  return columns < LANES ? LANES : columns;
}
INLINE int64_t tasks_of(const struct steps *s)
{
  return s->batch * ((s->features + columns_of(s) - 1) / columns_of(s));
}
// The sequence of a task, and its columns.
INLINE int64_t part_of(const struct steps *s, int64_t task, int64_t *first, int64_t *end)
{
  const int64_t columns = columns_of(s), parts = (s->features + columns - 1) / columns;
  *first = task % parts * columns;
  *end = *first + columns < s->features ? *first + columns : s->features;
  return task / parts;
}

static void forward_task(const void *context, int64_t task, UNUSED int64_t worker)
{
  const struct steps *const s = context;
  int64_t first, end;
  const int64_t b = part_of(s, task, &first, &end), length = s->lengths[b];
  for (int64_t c = first; c < end; c += LANES) {
    const int n = PART(end - c);
    const data_storage *const x = s->x + b * s->x_batch + c;
    vec total = splat(0), greatest = length > 0 ? take_data(x, n) : splat(0);
    for (int64_t t = 0; t < length; t++) {
      const vec entry = take_data(x + t * s->x_time, n);
      total += entry;
      greatest = choose((entry > greatest) | (entry != entry), entry, greatest);
    }
    put_data(s->y + b * s->features + c, s->largest ? greatest : total / splat((real)(length > 0 ? length : 1)), n);
  }
}

static void backward_task(const void *context, int64_t task, UNUSED int64_t worker)
{
  const struct steps *const s = context;
  int64_t first, end;
  const int64_t b = part_of(s, task, &first, &end), length = s->lengths[b];
  for (int64_t c = first; c < end; c += LANES) {
    const int n = PART(end - c);
    const data_storage *const x = s->x + b * s->x_batch + c;
    data_storage *const dx = s->dx + b * s->dx_batch + c;
    const vec given = take_data(s->dy + b * s->features + c, n), greatest = take_data(s->y + b * s->features + c, n);
    vec equal = splat(0);
    for (int64_t t = 0; s->largest && t < length; t++)
      equal += from_mask(take_data(x + t * s->x_time, n) == greatest);
    const vec share = given / (s->largest ? equal : splat((real)length));
    for (int64_t t = 0; t < s->time; t++) {
      vec own = splat(0);
      if (t < length)
        own = s->largest ? choose(take_data(x + t * s->x_time, n) == greatest, share, splat(0)) : share;
      put_data(dx + t * s->dx_time, own, n);
    }
  }
}

void forward(const struct steps *s) { share(&s->threads, forward_task, s, tasks_of(s)); }
void backward(const struct steps *s) { share(&s->threads, backward_task, s, tasks_of(s)); }
