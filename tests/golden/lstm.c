// lstm: written by pellucid from the cell's formula.
#define DOUBLE 0
#include <math.h>
#include <stdint.h>
#include <string.h>

// (the headers)

DEFINE_PACK(float32)

INLINE void forward_columns_0(int64_t j, int n, const float32_storage *b_all_row, const real_storage *mm_kept_row,
    const real_storage *mm_1_kept_row, const float32_storage *c_now_row, float32_storage *h_next_row,
    float32_storage *c_next_row, float32_storage *sigmoid_to_row, float32_storage *sigmoid_1_to_row,
    float32_storage *tanh_to_row, float32_storage *sigmoid_2_to_row, float32_storage *tanh_1_to_row)
{
  const vec b_72 = take_float32(b_all_row + 72 + j, n);
  const vec mm_72 = take_real(mm_kept_row + 72 + j, n);
  const vec add_5_72 = b_72 + mm_72;
  const vec mm_1_72 = take_real(mm_1_kept_row + 72 + j, n);
  const vec add_7_72 = add_5_72 + mm_1_72;
  const vec sigmoid_2 = vec_sigmoid(add_7_72);
  const vec b_24 = take_float32(b_all_row + 24 + j, n);
  const vec mm_24 = take_real(mm_kept_row + 24 + j, n);
  const vec add_5_24 = b_24 + mm_24;
  const vec mm_1_24 = take_real(mm_1_kept_row + 24 + j, n);
  const vec add_7_24 = add_5_24 + mm_1_24;
  const vec sigmoid = vec_sigmoid(add_7_24);
  const vec c = take_float32(c_now_row + j, n);
  const vec mul = sigmoid * c;
  const vec b = take_float32(b_all_row + j, n);
  const vec mm = take_real(mm_kept_row + j, n);
  const vec add_5 = b + mm;
  const vec mm_1 = take_real(mm_1_kept_row + j, n);
  const vec add_7 = add_5 + mm_1;
  const vec sigmoid_1 = vec_sigmoid(add_7);
  const vec b_48 = take_float32(b_all_row + 48 + j, n);
  const vec mm_48 = take_real(mm_kept_row + 48 + j, n);
  const vec add_5_48 = b_48 + mm_48;
  const vec mm_1_48 = take_real(mm_1_kept_row + 48 + j, n);
  const vec add_7_48 = add_5_48 + mm_1_48;
  const vec tanh = vec_tanh(add_7_48);
  const vec mul_1 = sigmoid_1 * tanh;
  const vec new_c = mul + mul_1;
  const vec tanh_1 = vec_tanh(new_c);
  const vec new_h = sigmoid_2 * tanh_1;
  put_float32(h_next_row + j, new_h, n);
  put_float32(c_next_row + j, new_c, n);
  put_float32(sigmoid_to_row + j, sigmoid, n);
  put_float32(sigmoid_1_to_row + j, sigmoid_1, n);
  put_float32(tanh_to_row + j, tanh, n);
  put_float32(sigmoid_2_to_row + j, sigmoid_2, n);
  put_float32(tanh_1_to_row + j, tanh_1, n);
}

// All steps of rows first to first + rows - 1, forward.
static void forward_block(const struct call *call, int64_t first, int64_t rows, char *scratch, UNUSED struct team *team)
{
  UNUSED const int64_t block = call->block, chunk = call->chunk;
  UNUSED real_storage *const mm_chunk = (void *)scratch;
  scratch += ROUNDED(chunk * block * PADDED(96) * (int64_t)sizeof(real_storage));
  UNUSED real_storage *const mm_1_kept = (void *)scratch;
  scratch += ROUNDED(block * PADDED(96) * (int64_t)sizeof(real_storage));
  UNUSED const real *const packed_0 = (const real *)(call->work);
  UNUSED const struct matrix matrix_0 = {call->direct ? 0 : packed_0, call->buffers[10], call->strides[0],
      call->strides[1]};
  UNUSED const real *const packed_1 = (const real *)((const char *)(packed_0 + 40 * PADDED(96)));
  UNUSED const struct matrix matrix_1 = {call->direct ? 0 : packed_1, call->buffers[11], call->strides[2],
      call->strides[3]};
  int64_t ahead = 0; // the first step of the chunk whose input products are there
  for (int64_t step = call->begin; step < call->end; step++) {
    const int64_t t = call->backwards ? call->time - 1 - step : step, at = t * call->batch + first;
    if ((step - call->begin) % call->chunk == 0) {
      const int64_t left = call->end - step, steps = left < call->chunk ? left : call->chunk;
      ahead = call->backwards ? t - steps + 1 : t;
      if (any_real(call, first, rows, ahead)) {
        // mm = x @ U
        products(steps, call->batch, rows, 40, 96, (const real *)call->buffers[0] + (ahead * call->batch + first) * 40,
            40, &matrix_0, mm_chunk, team);
      }
    }
    const int64_t now_0 = (t + call->backwards) % call->slots[0];
    const int64_t next_0 = (t + !call->backwards) % call->slots[0];
    const int64_t now_1 = (t + call->backwards) % call->slots[1];
    const int64_t next_1 = (t + !call->backwards) % call->slots[1];
    UNUSED const float32_storage *const h_now =
        (float32_storage *)call->buffers[2] + (now_0 * call->batch + first) * 24;
    UNUSED const float32_storage *const c_now =
        (float32_storage *)call->buffers[3] + (now_1 * call->batch + first) * 24;
    UNUSED const float32_storage *const x_at = (const float32_storage *)call->buffers[0] + at * 40;
    UNUSED const float32_storage *const b_all = (const float32_storage *)call->buffers[1];
    UNUSED float32_storage *const h_next = (float32_storage *)call->buffers[2] + (next_0 * call->batch + first) * 24;
    UNUSED float32_storage *const c_next = (float32_storage *)call->buffers[3] + (next_1 * call->batch + first) * 24;
    UNUSED float32_storage *const sigmoid_to = (float32_storage *)call->buffers[4] + at * 24;
    UNUSED float32_storage *const sigmoid_1_to = (float32_storage *)call->buffers[5] + at * 24;
    UNUSED float32_storage *const tanh_to = (float32_storage *)call->buffers[6] + at * 24;
    UNUSED float32_storage *const sigmoid_2_to = (float32_storage *)call->buffers[7] + at * 24;
    UNUSED float32_storage *const tanh_1_to = (float32_storage *)call->buffers[8] + at * 24;
    UNUSED const real_storage *const mm_kept = mm_chunk + (t - ahead) * rows * PADDED(96);
    if (any_real(call, first, rows, t)) {
      // mm_1 = h @ W
      product(rows, 24, 96, h_now, 24, &matrix_1, mm_1_kept, team);
      for (int64_t r = 0; r < rows; r++) {
        const float32_storage *const b_all_row = b_all;
        const real_storage *const mm_kept_row = mm_kept + r * PADDED(96);
        const real_storage *const mm_1_kept_row = mm_1_kept + r * PADDED(96);
        const float32_storage *const c_now_row = c_now + r * 24;
        float32_storage *const h_next_row = h_next + r * 24;
        float32_storage *const c_next_row = c_next + r * 24;
        float32_storage *const sigmoid_to_row = sigmoid_to + r * 24;
        float32_storage *const sigmoid_1_to_row = sigmoid_1_to + r * 24;
        float32_storage *const tanh_to_row = tanh_to + r * 24;
        float32_storage *const sigmoid_2_to_row = sigmoid_2_to + r * 24;
        float32_storage *const tanh_1_to_row = tanh_1_to + r * 24;
        for (int64_t j = 0; j + LANES <= 24; j += LANES)
          forward_columns_0(j, LANES, b_all_row, mm_kept_row, mm_1_kept_row, c_now_row, h_next_row, c_next_row,
              sigmoid_to_row, sigmoid_1_to_row, tanh_to_row, sigmoid_2_to_row, tanh_1_to_row);
        if (24 % LANES)
          forward_columns_0(24 / LANES * LANES, 24 % LANES, b_all_row, mm_kept_row, mm_1_kept_row, c_now_row,
              h_next_row, c_next_row, sigmoid_to_row, sigmoid_1_to_row, tanh_to_row, sigmoid_2_to_row, tanh_1_to_row);
      }
    }
    float32_storage *const output_to = call->buffers[9];
    if (output_to)
      memcpy(output_to + at * 24, h_next, rows * 24 * sizeof(*output_to));
    if (call->lengths)
      for (int64_t r = 0; r < rows; r++) {
        if (t < call->lengths[first + r])
          continue;
        memcpy(h_next + r * 24, h_now + r * 24, 24 * sizeof(*h_next));
        memcpy(c_next + r * 24, c_now + r * 24, 24 * sizeof(*c_next));
        memset(sigmoid_to + r * 24, 0, 24 * sizeof(*sigmoid_to));
        memset(sigmoid_1_to + r * 24, 0, 24 * sizeof(*sigmoid_1_to));
        memset(tanh_to + r * 24, 0, 24 * sizeof(*tanh_to));
        memset(sigmoid_2_to + r * 24, 0, 24 * sizeof(*sigmoid_2_to));
        memset(tanh_1_to + r * 24, 0, 24 * sizeof(*tanh_1_to));
        if (output_to)
          memset(output_to + (at + r) * 24, 0, 24 * sizeof(*output_to));
      }
  }
}

// Bytes of work space: the packed matrices, and scratch for blocks of rows on a number of threads.
int64_t forward_work(UNUSED int64_t block, UNUSED int64_t chunk, int64_t threads)
{
  return ROUNDED(40 * PADDED(96) * (int64_t)sizeof(real)) + ROUNDED(24 * PADDED(96) * (int64_t)sizeof(real)) +
      threads * (ROUNDED(chunk * block * PADDED(96) * (int64_t)sizeof(real_storage)) +
      ROUNDED(block * PADDED(96) * (int64_t)sizeof(real_storage)));
}

static void forward_pack(const void *context, int64_t task, UNUSED int64_t worker)
{
  const int64_t panels = PADDED(96) / PANEL + PADDED(96) / PANEL;
  const struct call *const call = (const struct call *)context + task / panels;
  task %= panels;
  UNUSED const real *const packed_0 = (const real *)(call->work);
  UNUSED const struct matrix matrix_0 = {call->direct ? 0 : packed_0, call->buffers[10], call->strides[0],
      call->strides[1]};
  UNUSED const real *const packed_1 = (const real *)((const char *)(packed_0 + 40 * PADDED(96)));
  UNUSED const struct matrix matrix_1 = {call->direct ? 0 : packed_1, call->buffers[11], call->strides[2],
      call->strides[3]};
  if (task < PADDED(96) / PANEL) { // U
    pack_float32(call->buffers[10], call->strides[0], call->strides[1], 40, 96,
      (real *)packed_0, task);
    return;
  }
  task -= PADDED(96) / PANEL;
  if (task < PADDED(96) / PANEL) { // W
    pack_float32(call->buffers[11], call->strides[2], call->strides[3], 24, 96,
      (real *)packed_1, task);
    return;
  }
  task -= PADDED(96) / PANEL;
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
    share(&calls->threads, forward_pack, calls, count * (PADDED(96) / PANEL + PADDED(96) / PANEL));
  if (!calls->together)
    share(&calls->threads, forward_task, calls, count * blocks_of(calls));
  for (int64_t i = 0; calls->together && i < count; i++)
    gather(&calls->threads, forward_together, calls + i);
}

INLINE void backward_columns_0(int64_t j, int n, const float32_storage *c_gradient_now_row,
    const float32_storage *sigmoid_2_at_row, const float32_storage *tanh_1_at_row,
    const float32_storage *output_gradient_at_row, const float32_storage *h_gradient_now_row,
    const float32_storage *sigmoid_at_row, float32_storage *c_gradient_next_row, const float32_storage *tanh_at_row,
    const float32_storage *sigmoid_1_at_row, float32_storage *cat_to_row, const float32_storage *c_at_row,
    real_storage *sum_1_part_row)
{
  const vec c_gradient = take_float32(c_gradient_now_row + j, n);
  const vec sigmoid_2 = take_float32(sigmoid_2_at_row + j, n);
  const vec tanh_1 = take_float32(tanh_1_at_row + j, n);
  const vec mul_5 = tanh_1 * tanh_1;
  const vec sub = splat(1.0) - mul_5;
  const vec mul_19 = sigmoid_2 * sub;
  const vec output_gradient = take_float32(output_gradient_at_row + j, n);
  const vec h_gradient = take_float32(h_gradient_now_row + j, n);
  const vec add_3 = output_gradient + h_gradient;
  const vec mul_21 = mul_19 * add_3;
  const vec add_4 = c_gradient + mul_21;
  const vec sigmoid = take_float32(sigmoid_at_row + j, n);
  const vec mul_15 = add_4 * sigmoid;
  put_float32(c_gradient_next_row + j, mul_15, n);
  const vec tanh = take_float32(tanh_at_row + j, n);
  const vec sigmoid_1 = take_float32(sigmoid_1_at_row + j, n);
  const vec sub_3 = splat(1.0) - sigmoid_1;
  const vec mul_13 = sigmoid_1 * sub_3;
  const vec mul_28 = tanh * mul_13;
  const vec mul_30 = mul_28 * add_4;
  put_float32(cat_to_row + j, mul_30, n);
  const vec c = take_float32(c_at_row + j, n);
  const vec sub_4 = splat(1.0) - sigmoid;
  const vec mul_17 = sigmoid * sub_4;
  const vec mul_31 = c * mul_17;
  const vec mul_33 = mul_31 * add_4;
  put_float32(cat_to_row + 24 + j, mul_33, n);
  const vec mul_11 = tanh * tanh;
  const vec sub_2 = splat(1.0) - mul_11;
  const vec mul_25 = sigmoid_1 * sub_2;
  const vec mul_27 = mul_25 * add_4;
  put_float32(cat_to_row + 48 + j, mul_27, n);
  const vec sub_1 = splat(1.0) - sigmoid_2;
  const vec mul_7 = sigmoid_2 * sub_1;
  const vec mul_22 = tanh_1 * mul_7;
  const vec mul_24 = mul_22 * add_3;
  put_float32(cat_to_row + 72 + j, mul_24, n);
  put_real(sum_1_part_row + j, take_real(sum_1_part_row + j, n) + mul_30, n);
  put_real(sum_1_part_row + 24 + j, take_real(sum_1_part_row + 24 + j, n) + mul_33, n);
  put_real(sum_1_part_row + 48 + j, take_real(sum_1_part_row + 48 + j, n) + mul_27, n);
  put_real(sum_1_part_row + 72 + j, take_real(sum_1_part_row + 72 + j, n) + mul_24, n);
}

INLINE void backward_columns_1(int64_t j, int n, const real_storage *mm_3_kept_row,
    float32_storage *h_gradient_next_row)
{
  const vec mm_3 = take_real(mm_3_kept_row + j, n);
  put_float32(h_gradient_next_row + j, mm_3, n);
}

// All steps of rows first to first + rows - 1, backward.
static void backward_block(const struct call *call, int64_t first, int64_t rows, char *scratch,
    UNUSED struct team *team)
{
  UNUSED const int64_t block = call->block, chunk = call->chunk;
  UNUSED real_storage *const mm_3_kept = (void *)scratch;
  scratch += ROUNDED(block * PADDED(24) * (int64_t)sizeof(real_storage));
  real *const parts = (real *)scratch;
  memset(parts, 0, (PADDED(96) + PADDED(96)) * sizeof(real));
  real *const sum_1_part = parts;
  real *const uncounted = sum_1_part + PADDED(96);
  UNUSED const real *const packed_0 = (const real *)(call->work);
  UNUSED const struct matrix matrix_0 = {call->direct ? 0 : packed_0, call->buffers[12], call->strides[0],
      call->strides[1]};
  for (int64_t step = call->begin; step < call->end; step++) {
    const int64_t t = call->backwards ? call->time - 1 - step : step, at = t * call->batch + first;
    const int64_t now_0 = (t + call->backwards) % call->slots[0];
    const int64_t next_0 = (t + !call->backwards) % call->slots[0];
    const int64_t now_1 = (t + call->backwards) % call->slots[1];
    const int64_t next_1 = (t + !call->backwards) % call->slots[1];
    UNUSED const float32_storage *const h_gradient_now =
        (float32_storage *)call->buffers[7] + (now_0 * call->batch + first) * 24;
    UNUSED const float32_storage *const c_gradient_now =
        (float32_storage *)call->buffers[8] + (now_1 * call->batch + first) * 24;
    UNUSED const float32_storage *const output_gradient_at = (const float32_storage *)call->buffers[0] + at * 24;
    UNUSED const float32_storage *const tanh_1_at = (const float32_storage *)call->buffers[1] + at * 24;
    UNUSED const float32_storage *const sigmoid_2_at = (const float32_storage *)call->buffers[2] + at * 24;
    UNUSED const float32_storage *const tanh_at = (const float32_storage *)call->buffers[3] + at * 24;
    UNUSED const float32_storage *const sigmoid_1_at = (const float32_storage *)call->buffers[4] + at * 24;
    UNUSED const float32_storage *const sigmoid_at = (const float32_storage *)call->buffers[5] + at * 24;
    UNUSED const float32_storage *const c_at = (const float32_storage *)call->buffers[6] + at * 24;
    UNUSED float32_storage *const h_gradient_next =
        (float32_storage *)call->buffers[7] + (next_0 * call->batch + first) * 24;
    UNUSED float32_storage *const c_gradient_next =
        (float32_storage *)call->buffers[8] + (next_1 * call->batch + first) * 24;
    UNUSED float32_storage *const cat_to = (float32_storage *)call->buffers[9] + at * 96;
    if (any_real(call, first, rows, t)) {
      for (int64_t r = 0; r < rows; r++) {
        const int counted = !call->lengths || t < call->lengths[first + r];
        const float32_storage *const c_gradient_now_row = c_gradient_now + r * 24;
        const float32_storage *const sigmoid_2_at_row = sigmoid_2_at + r * 24;
        const float32_storage *const tanh_1_at_row = tanh_1_at + r * 24;
        const float32_storage *const output_gradient_at_row = output_gradient_at + r * 24;
        const float32_storage *const h_gradient_now_row = h_gradient_now + r * 24;
        const float32_storage *const sigmoid_at_row = sigmoid_at + r * 24;
        float32_storage *const c_gradient_next_row = c_gradient_next + r * 24;
        const float32_storage *const tanh_at_row = tanh_at + r * 24;
        const float32_storage *const sigmoid_1_at_row = sigmoid_1_at + r * 24;
        float32_storage *const cat_to_row = cat_to + r * 96;
        const float32_storage *const c_at_row = c_at + r * 24;
        real_storage *const sum_1_part_row = counted ? sum_1_part : uncounted;
        for (int64_t j = 0; j + LANES <= 24; j += LANES)
          backward_columns_0(j, LANES, c_gradient_now_row, sigmoid_2_at_row, tanh_1_at_row, output_gradient_at_row,
              h_gradient_now_row, sigmoid_at_row, c_gradient_next_row, tanh_at_row, sigmoid_1_at_row, cat_to_row,
              c_at_row, sum_1_part_row);
        if (24 % LANES)
          backward_columns_0(24 / LANES * LANES, 24 % LANES, c_gradient_now_row, sigmoid_2_at_row, tanh_1_at_row,
              output_gradient_at_row, h_gradient_now_row, sigmoid_at_row, c_gradient_next_row, tanh_at_row,
              sigmoid_1_at_row, cat_to_row, c_at_row, sum_1_part_row);
      }
      // mm_3 = cat @ permute_1
      product(rows, 96, 24, cat_to, 96, &matrix_0, mm_3_kept, team);
      for (int64_t r = 0; r < rows; r++) {
        const real_storage *const mm_3_kept_row = mm_3_kept + r * PADDED(24);
        float32_storage *const h_gradient_next_row = h_gradient_next + r * 24;
        for (int64_t j = 0; j + LANES <= 24; j += LANES)
          backward_columns_1(j, LANES, mm_3_kept_row, h_gradient_next_row);
        if (24 % LANES)
          backward_columns_1(24 / LANES * LANES, 24 % LANES, mm_3_kept_row, h_gradient_next_row);
      }
    }
    if (call->lengths)
      for (int64_t r = 0; r < rows; r++) {
        if (t < call->lengths[first + r])
          continue;
        memcpy(h_gradient_next + r * 24, h_gradient_now + r * 24, 24 * sizeof(*h_gradient_next));
        memcpy(c_gradient_next + r * 24, c_gradient_now + r * 24, 24 * sizeof(*c_gradient_next));
        memset(cat_to + r * 96, 0, 96 * sizeof(*cat_to));
      }
    if ((step - call->begin) % PART_STEPS == PART_STEPS - 1 || step + 1 == call->end) {
      add_part((real *)call->buffers[10] + first / call->block * 96, sum_1_part, 96);
    }
  }
}

// Bytes of work space: the packed matrices, and scratch for blocks of rows on a number of threads.
int64_t backward_work(UNUSED int64_t block, UNUSED int64_t chunk, int64_t threads)
{
  return ROUNDED(96 * PADDED(24) * (int64_t)sizeof(real)) +
      threads * (ROUNDED(block * PADDED(24) * (int64_t)sizeof(real_storage)) + ROUNDED((PADDED(96) +
      PADDED(96)) * (int64_t)sizeof(real)));
}

static void backward_pack(const void *context, int64_t task, UNUSED int64_t worker)
{
  const int64_t panels = PADDED(24) / PANEL;
  const struct call *const call = (const struct call *)context + task / panels;
  task %= panels;
  UNUSED const real *const packed_0 = (const real *)(call->work);
  UNUSED const struct matrix matrix_0 = {call->direct ? 0 : packed_0, call->buffers[12], call->strides[0],
      call->strides[1]};
  if (task < PADDED(24) / PANEL) { // permute_1
    pack_float32(call->buffers[12], call->strides[0], call->strides[1], 96, 24,
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
