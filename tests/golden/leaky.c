// leaky: written by pellucid from the cell's formula.
#define DOUBLE 0
#include <math.h>
#include <stdint.h>
#include <string.h>

// (the headers)

DEFINE_PACK(float32)

INLINE void forward_columns_0(int64_t j, int n, const float32_storage *h_now_row, const float32_storage *b_all_row,
    const real_storage *mm_kept_row, const real_storage *mm_1_kept_row, float32_storage *h_next_row,
    float32_storage *tanh_to_row)
{
  const vec h = take_float32(h_now_row + j, n);
  const vec b = take_float32(b_all_row + j, n);
  const vec mm = take_real(mm_kept_row + j, n);
  const vec add_6 = b + mm;
  const vec mm_1 = take_real(mm_1_kept_row + j, n);
  const vec add_8 = add_6 + mm_1;
  const vec tanh = vec_tanh(add_8);
  const vec sub = tanh - h;
  const vec div = sub / splat(10.0);
  const vec add_2 = h + div;
  put_float32(h_next_row + j, add_2, n);
  put_float32(tanh_to_row + j, tanh, n);
}

// All steps of rows first to first + rows - 1, forward.
static void forward_block(const struct call *call, int64_t first, int64_t rows, char *scratch, UNUSED struct team *team)
{
  UNUSED const int64_t block = call->block, chunk = call->chunk;
  UNUSED real_storage *const mm_chunk = (void *)scratch;
  scratch += ROUNDED(chunk * block * PADDED(24) * (int64_t)sizeof(real_storage));
  UNUSED real_storage *const mm_1_kept = (void *)scratch;
  scratch += ROUNDED(block * PADDED(24) * (int64_t)sizeof(real_storage));
  UNUSED const real *const packed_0 = (const real *)(call->work);
  UNUSED const struct matrix matrix_0 = {call->direct ? 0 : packed_0, call->buffers[5], call->strides[0],
      call->strides[1]};
  UNUSED const real *const packed_1 = (const real *)((const char *)(packed_0 + 40 * PADDED(24)));
  UNUSED const struct matrix matrix_1 = {call->direct ? 0 : packed_1, call->buffers[6], call->strides[2],
      call->strides[3]};
  int64_t ahead = 0; // the first step of the chunk whose input products are there
  for (int64_t step = call->begin; step < call->end; step++) {
    const int64_t t = call->backwards ? call->time - 1 - step : step, at = t * call->batch + first;
    if ((step - call->begin) % call->chunk == 0) {
      const int64_t left = call->end - step, steps = left < call->chunk ? left : call->chunk;
      ahead = call->backwards ? t - steps + 1 : t;
      if (any_real(call, first, rows, ahead)) {
        // mm = x @ U
        products(steps, call->batch, rows, 40, 24, (const real *)call->buffers[0] + (ahead * call->batch + first) * 40,
            40, &matrix_0, mm_chunk, team);
      }
    }
    const int64_t now_0 = (t + call->backwards) % call->slots[0];
    const int64_t next_0 = (t + !call->backwards) % call->slots[0];
    UNUSED const float32_storage *const h_now =
        (float32_storage *)call->buffers[2] + (now_0 * call->batch + first) * 24;
    UNUSED const float32_storage *const x_at = (const float32_storage *)call->buffers[0] + at * 40;
    UNUSED const float32_storage *const b_all = (const float32_storage *)call->buffers[1];
    UNUSED float32_storage *const h_next = (float32_storage *)call->buffers[2] + (next_0 * call->batch + first) * 24;
    UNUSED float32_storage *const tanh_to = (float32_storage *)call->buffers[3] + at * 24;
    UNUSED const real_storage *const mm_kept = mm_chunk + (t - ahead) * rows * PADDED(24);
    if (any_real(call, first, rows, t)) {
      // mm_1 = h @ W
      product(rows, 24, 24, h_now, 24, &matrix_1, mm_1_kept, team);
      for (int64_t r = 0; r < rows; r++) {
        const float32_storage *const h_now_row = h_now + r * 24;
        const float32_storage *const b_all_row = b_all;
        const real_storage *const mm_kept_row = mm_kept + r * PADDED(24);
        const real_storage *const mm_1_kept_row = mm_1_kept + r * PADDED(24);
        float32_storage *const h_next_row = h_next + r * 24;
        float32_storage *const tanh_to_row = tanh_to + r * 24;
        for (int64_t j = 0; j + LANES <= 24; j += LANES)
          forward_columns_0(j, LANES, h_now_row, b_all_row, mm_kept_row, mm_1_kept_row, h_next_row, tanh_to_row);
        if (24 % LANES)
          forward_columns_0(24 / LANES * LANES, 24 % LANES, h_now_row, b_all_row, mm_kept_row, mm_1_kept_row,
              h_next_row, tanh_to_row);
      }
    }
    float32_storage *const output_to = call->buffers[4];
    if (output_to)
      memcpy(output_to + at * 24, h_next, rows * 24 * sizeof(*output_to));
    if (call->lengths)
      for (int64_t r = 0; r < rows; r++) {
        if (t < call->lengths[first + r])
          continue;
        memcpy(h_next + r * 24, h_now + r * 24, 24 * sizeof(*h_next));
        memset(tanh_to + r * 24, 0, 24 * sizeof(*tanh_to));
        if (output_to)
          memset(output_to + (at + r) * 24, 0, 24 * sizeof(*output_to));
      }
  }
}

// Bytes of work space: the packed matrices, and scratch for blocks of rows on a number of threads.
int64_t forward_work(UNUSED int64_t block, UNUSED int64_t chunk, int64_t threads)
{
  return ROUNDED(40 * PADDED(24) * (int64_t)sizeof(real)) + ROUNDED(24 * PADDED(24) * (int64_t)sizeof(real)) +
      threads * (ROUNDED(chunk * block * PADDED(24) * (int64_t)sizeof(real_storage)) +
      ROUNDED(block * PADDED(24) * (int64_t)sizeof(real_storage)));
}

static void forward_pack(const void *context, int64_t task, UNUSED int64_t worker)
{
  const int64_t panels = PADDED(24) / PANEL + PADDED(24) / PANEL;
  const struct call *const call = (const struct call *)context + task / panels;
  task %= panels;
  UNUSED const real *const packed_0 = (const real *)(call->work);
  UNUSED const struct matrix matrix_0 = {call->direct ? 0 : packed_0, call->buffers[5], call->strides[0],
      call->strides[1]};
  UNUSED const real *const packed_1 = (const real *)((const char *)(packed_0 + 40 * PADDED(24)));
  UNUSED const struct matrix matrix_1 = {call->direct ? 0 : packed_1, call->buffers[6], call->strides[2],
      call->strides[3]};
  if (task < PADDED(24) / PANEL) { // U
    pack_float32(call->buffers[5], call->strides[0], call->strides[1], 40, 24,
      (real *)packed_0, task);
    return;
  }
  task -= PADDED(24) / PANEL;
  if (task < PADDED(24) / PANEL) { // W
    pack_float32(call->buffers[6], call->strides[2], call->strides[3], 24, 24,
      (real *)packed_1, task);
    return;
  }
  task -= PADDED(24) / PANEL;
}

static void forward_task(const void *context, int64_t task, int64_t worker)
{
  const struct call *const calls = context, *const call = calls + task / blocks_of(calls);
  const int64_t first = task % blocks_of(calls) * call->block, rest = call->batch - first;
  char *scratch = calls->work + forward_work(call->block, call->chunk, worker);
  forward_block(call, first, rest < call->block ? rest : call->block, scratch, 0);
}

static void forward_together(const void *context, struct team *team)
{
  const struct call *const call = context;
  char *scratch = call->work + forward_work(call->block, call->chunk, 0);
  forward_block(call, 0, call->batch, scratch, team);
}

// Calls of the same sizes side by side: their blocks of rows have the scratch of the first.
void forward(const struct call *calls, int64_t count)
{
  if (calls->begin == 0 && !calls->direct)
    share(&calls->threads, forward_pack, calls, count * (PADDED(24) / PANEL + PADDED(24) / PANEL));
  if (!calls->together)
    share(&calls->threads, forward_task, calls, count * blocks_of(calls));
  for (int64_t i = 0; calls->together && i < count; i++)
    gather(&calls->threads, forward_together, calls + i);
}

INLINE void backward_columns_0(int64_t j, int n, const float32_storage *output_gradient_at_row,
    const float32_storage *h_gradient_now_row, const float32_storage *tanh_at_row, float32_storage *mul_1_to_row,
    real_storage *add_4_kept_row, real_storage *sum_1_part_row)
{
  const vec output_gradient = take_float32(output_gradient_at_row + j, n);
  const vec h_gradient = take_float32(h_gradient_now_row + j, n);
  const vec add_3 = output_gradient + h_gradient;
  const vec div_1 = add_3 / splat(10.0);
  const vec tanh = take_float32(tanh_at_row + j, n);
  const vec mul = tanh * tanh;
  const vec sub_1 = splat(1.0) - mul;
  const vec mul_1 = div_1 * sub_1;
  put_float32(mul_1_to_row + j, mul_1, n);
  const vec neg = -div_1;
  const vec add_4 = add_3 + neg;
  put_real(add_4_kept_row + j, add_4, n);
  put_real(sum_1_part_row + j, take_real(sum_1_part_row + j, n) + mul_1, n);
}

INLINE void backward_columns_1(int64_t j, int n, const real_storage *add_4_kept_row, const real_storage *mm_3_kept_row,
    float32_storage *h_gradient_next_row)
{
  const vec add_4 = take_real(add_4_kept_row + j, n);
  const vec mm_3 = take_real(mm_3_kept_row + j, n);
  const vec add_5 = add_4 + mm_3;
  put_float32(h_gradient_next_row + j, add_5, n);
}

// All steps of rows first to first + rows - 1, backward.
static void backward_block(const struct call *call, int64_t first, int64_t rows, char *scratch,
    UNUSED struct team *team)
{
  UNUSED const int64_t block = call->block, chunk = call->chunk;
  UNUSED real_storage *const add_4_kept = (void *)scratch;
  scratch += ROUNDED(block * PADDED(24) * (int64_t)sizeof(real_storage));
  UNUSED real_storage *const mm_3_kept = (void *)scratch;
  scratch += ROUNDED(block * PADDED(24) * (int64_t)sizeof(real_storage));
  real *const parts = (real *)scratch;
  memset(parts, 0, (PADDED(24) + PADDED(24)) * sizeof(real));
  real *const sum_1_part = parts;
  real *const uncounted = sum_1_part + PADDED(24);
  UNUSED const real *const packed_0 = (const real *)(call->work);
  UNUSED const struct matrix matrix_0 = {call->direct ? 0 : packed_0, call->buffers[6], call->strides[0],
      call->strides[1]};
  for (int64_t step = call->begin; step < call->end; step++) {
    const int64_t t = call->backwards ? call->time - 1 - step : step, at = t * call->batch + first;
    const int64_t now_0 = (t + call->backwards) % call->slots[0];
    const int64_t next_0 = (t + !call->backwards) % call->slots[0];
    UNUSED const float32_storage *const h_gradient_now =
        (float32_storage *)call->buffers[2] + (now_0 * call->batch + first) * 24;
    UNUSED const float32_storage *const output_gradient_at = (const float32_storage *)call->buffers[0] + at * 24;
    UNUSED const float32_storage *const tanh_at = (const float32_storage *)call->buffers[1] + at * 24;
    UNUSED float32_storage *const h_gradient_next =
        (float32_storage *)call->buffers[2] + (next_0 * call->batch + first) * 24;
    UNUSED float32_storage *const mul_1_to = (float32_storage *)call->buffers[3] + at * 24;
    if (any_real(call, first, rows, t)) {
      for (int64_t r = 0; r < rows; r++) {
        const int counted = !call->lengths || t < call->lengths[first + r];
        const float32_storage *const output_gradient_at_row = output_gradient_at + r * 24;
        const float32_storage *const h_gradient_now_row = h_gradient_now + r * 24;
        const float32_storage *const tanh_at_row = tanh_at + r * 24;
        float32_storage *const mul_1_to_row = mul_1_to + r * 24;
        real_storage *const add_4_kept_row = add_4_kept + r * PADDED(24);
        real_storage *const sum_1_part_row = counted ? sum_1_part : uncounted;
        for (int64_t j = 0; j + LANES <= 24; j += LANES)
          backward_columns_0(j, LANES, output_gradient_at_row, h_gradient_now_row, tanh_at_row, mul_1_to_row,
              add_4_kept_row, sum_1_part_row);
        if (24 % LANES)
          backward_columns_0(24 / LANES * LANES, 24 % LANES, output_gradient_at_row, h_gradient_now_row, tanh_at_row,
              mul_1_to_row, add_4_kept_row, sum_1_part_row);
      }
      // mm_3 = mul_1 @ permute_1
      product(rows, 24, 24, mul_1_to, 24, &matrix_0, mm_3_kept, team);
      for (int64_t r = 0; r < rows; r++) {
        const real_storage *const add_4_kept_row = add_4_kept + r * PADDED(24);
        const real_storage *const mm_3_kept_row = mm_3_kept + r * PADDED(24);
        float32_storage *const h_gradient_next_row = h_gradient_next + r * 24;
        for (int64_t j = 0; j + LANES <= 24; j += LANES)
          backward_columns_1(j, LANES, add_4_kept_row, mm_3_kept_row, h_gradient_next_row);
        if (24 % LANES)
          backward_columns_1(24 / LANES * LANES, 24 % LANES, add_4_kept_row, mm_3_kept_row, h_gradient_next_row);
      }
    }
    if (call->lengths)
      for (int64_t r = 0; r < rows; r++) {
        if (t < call->lengths[first + r])
          continue;
        memcpy(h_gradient_next + r * 24, h_gradient_now + r * 24, 24 * sizeof(*h_gradient_next));
        memset(mul_1_to + r * 24, 0, 24 * sizeof(*mul_1_to));
      }
    if ((step - call->begin) % PART_STEPS == PART_STEPS - 1 || step + 1 == call->end) {
      add_part((real *)call->buffers[4] + first / call->block * 24, sum_1_part, 24);
    }
  }
}

// Bytes of work space: the packed matrices, and scratch for blocks of rows on a number of threads.
int64_t backward_work(UNUSED int64_t block, UNUSED int64_t chunk, int64_t threads)
{
  return ROUNDED(24 * PADDED(24) * (int64_t)sizeof(real)) +
      threads * (ROUNDED(block * PADDED(24) * (int64_t)sizeof(real_storage)) +
      ROUNDED(block * PADDED(24) * (int64_t)sizeof(real_storage)) + ROUNDED((PADDED(24) +
      PADDED(24)) * (int64_t)sizeof(real)));
}

static void backward_pack(const void *context, int64_t task, UNUSED int64_t worker)
{
  const int64_t panels = PADDED(24) / PANEL;
  const struct call *const call = (const struct call *)context + task / panels;
  task %= panels;
  UNUSED const real *const packed_0 = (const real *)(call->work);
  UNUSED const struct matrix matrix_0 = {call->direct ? 0 : packed_0, call->buffers[6], call->strides[0],
      call->strides[1]};
  if (task < PADDED(24) / PANEL) { // permute_1
    pack_float32(call->buffers[6], call->strides[0], call->strides[1], 24, 24,
      (real *)packed_0, task);
    return;
  }
  task -= PADDED(24) / PANEL;
}

static void backward_task(const void *context, int64_t task, int64_t worker)
{
  const struct call *const calls = context, *const call = calls + task / blocks_of(calls);
  const int64_t first = task % blocks_of(calls) * call->block, rest = call->batch - first;
  char *scratch = calls->work + backward_work(call->block, call->chunk, worker);
  backward_block(call, first, rest < call->block ? rest : call->block, scratch, 0);
}

static void backward_together(const void *context, struct team *team)
{
  const struct call *const call = context;
  char *scratch = call->work + backward_work(call->block, call->chunk, 0);
  backward_block(call, 0, call->batch, scratch, team);
}

// Calls of the same sizes side by side: their blocks of rows have the scratch of the first.
void backward(const struct call *calls, int64_t count)
{
  if (calls->begin == 0 && !calls->direct)
    share(&calls->threads, backward_pack, calls, count * (PADDED(24) / PANEL));
  if (!calls->together)
    share(&calls->threads, backward_task, calls, count * blocks_of(calls));
  for (int64_t i = 0; calls->together && i < count; i++)
    gather(&calls->threads, backward_together, calls + i);
}
