// layernorm_lstm: written by pellucid from the cell's formula.
#define DOUBLE 0
#include <math.h>
#include <stdint.h>
#include <string.h>

// (the headers)

DEFINE_PACK(float32)

INLINE void forward_columns_0(int64_t j, int n, const real_storage *mm_kept_row, float32_storage *mm_to_row,
    vec *layer_norm_mean_sum_columns)
{
  const vec mm = take_real(mm_kept_row + j, n);
  put_float32(mm_to_row + j, mm, n);
  *layer_norm_mean_sum_columns = add_columns(*layer_norm_mean_sum_columns, mm, n);
}

INLINE void forward_columns_1(int64_t j, int n, const real_storage *mm_kept_row, vec layer_norm_mean,
    vec *layer_norm_variance_sum_columns)
{
  const vec mm = take_real(mm_kept_row + j, n);
  const vec layer_norm_centred = mm - layer_norm_mean;
  const vec layer_norm_square = layer_norm_centred * layer_norm_centred;
  *layer_norm_variance_sum_columns = add_columns(*layer_norm_variance_sum_columns, layer_norm_square, n);
}

INLINE void forward_columns_2(int64_t j, int n, const real_storage *mm_kept_row, vec layer_norm_mean,
    vec layer_norm_rstd, const float32_storage *gamma_x_all_row, const float32_storage *beta_x_all_row,
    real_storage *layer_norm_shifted_kept_row)
{
  const vec mm = take_real(mm_kept_row + j, n);
  const vec layer_norm_centred = mm - layer_norm_mean;
  const vec layer_norm_normalized = layer_norm_centred * layer_norm_rstd;
  const vec gamma_x = take_float32(gamma_x_all_row + j, n);
  const vec layer_norm_scaled = layer_norm_normalized * gamma_x;
  const vec beta_x = take_float32(beta_x_all_row + j, n);
  const vec layer_norm_shifted = layer_norm_scaled + beta_x;
  put_real(layer_norm_shifted_kept_row + j, layer_norm_shifted, n);
}

INLINE void forward_columns_3(int64_t j, int n, const real_storage *mm_1_kept_row, float32_storage *mm_1_to_row,
    vec *layer_norm_1_mean_sum_columns)
{
  const vec mm_1 = take_real(mm_1_kept_row + j, n);
  put_float32(mm_1_to_row + j, mm_1, n);
  *layer_norm_1_mean_sum_columns = add_columns(*layer_norm_1_mean_sum_columns, mm_1, n);
}

INLINE void forward_columns_4(int64_t j, int n, const real_storage *mm_1_kept_row, vec layer_norm_1_mean,
    vec *layer_norm_1_variance_sum_columns)
{
  const vec mm_1 = take_real(mm_1_kept_row + j, n);
  const vec layer_norm_1_centred = mm_1 - layer_norm_1_mean;
  const vec layer_norm_1_square = layer_norm_1_centred * layer_norm_1_centred;
  *layer_norm_1_variance_sum_columns = add_columns(*layer_norm_1_variance_sum_columns, layer_norm_1_square, n);
}

INLINE void forward_columns_5(int64_t j, int n, const real_storage *layer_norm_shifted_kept_row,
    const real_storage *mm_1_kept_row, vec layer_norm_1_mean, vec layer_norm_1_rstd,
    const float32_storage *gamma_h_all_row, const float32_storage *beta_h_all_row, const float32_storage *c_now_row,
    float32_storage *c_next_row, float32_storage *sigmoid_to_row, float32_storage *sigmoid_1_to_row,
    float32_storage *tanh_to_row, float32_storage *sigmoid_2_to_row, vec *layer_norm_2_mean_sum_columns)
{
  const vec layer_norm_shifted_24 = take_real(layer_norm_shifted_kept_row + 24 + j, n);
  const vec mm_1_24 = take_real(mm_1_kept_row + 24 + j, n);
  const vec layer_norm_1_centred_24 = mm_1_24 - layer_norm_1_mean;
  const vec layer_norm_1_normalized_24 = layer_norm_1_centred_24 * layer_norm_1_rstd;
  const vec gamma_h_24 = take_float32(gamma_h_all_row + 24 + j, n);
  const vec layer_norm_1_scaled_24 = layer_norm_1_normalized_24 * gamma_h_24;
  const vec beta_h_24 = take_float32(beta_h_all_row + 24 + j, n);
  const vec layer_norm_1_shifted_24 = layer_norm_1_scaled_24 + beta_h_24;
  const vec a_24 = layer_norm_shifted_24 + layer_norm_1_shifted_24;
  const vec sigmoid = vec_sigmoid(a_24);
  const vec c = take_float32(c_now_row + j, n);
  const vec mul = sigmoid * c;
  const vec layer_norm_shifted = take_real(layer_norm_shifted_kept_row + j, n);
  const vec mm_1 = take_real(mm_1_kept_row + j, n);
  const vec layer_norm_1_centred = mm_1 - layer_norm_1_mean;
  const vec layer_norm_1_normalized = layer_norm_1_centred * layer_norm_1_rstd;
  const vec gamma_h = take_float32(gamma_h_all_row + j, n);
  const vec layer_norm_1_scaled = layer_norm_1_normalized * gamma_h;
  const vec beta_h = take_float32(beta_h_all_row + j, n);
  const vec layer_norm_1_shifted = layer_norm_1_scaled + beta_h;
  const vec a = layer_norm_shifted + layer_norm_1_shifted;
  const vec sigmoid_1 = vec_sigmoid(a);
  const vec layer_norm_shifted_48 = take_real(layer_norm_shifted_kept_row + 48 + j, n);
  const vec mm_1_48 = take_real(mm_1_kept_row + 48 + j, n);
  const vec layer_norm_1_centred_48 = mm_1_48 - layer_norm_1_mean;
  const vec layer_norm_1_normalized_48 = layer_norm_1_centred_48 * layer_norm_1_rstd;
  const vec gamma_h_48 = take_float32(gamma_h_all_row + 48 + j, n);
  const vec layer_norm_1_scaled_48 = layer_norm_1_normalized_48 * gamma_h_48;
  const vec beta_h_48 = take_float32(beta_h_all_row + 48 + j, n);
  const vec layer_norm_1_shifted_48 = layer_norm_1_scaled_48 + beta_h_48;
  const vec a_48 = layer_norm_shifted_48 + layer_norm_1_shifted_48;
  const vec tanh = vec_tanh(a_48);
  const vec mul_1 = sigmoid_1 * tanh;
  const vec new_c = mul + mul_1;
  put_float32(c_next_row + j, new_c, n);
  put_float32(sigmoid_to_row + j, sigmoid, n);
  put_float32(sigmoid_1_to_row + j, sigmoid_1, n);
  put_float32(tanh_to_row + j, tanh, n);
  const vec layer_norm_shifted_72 = take_real(layer_norm_shifted_kept_row + 72 + j, n);
  const vec mm_1_72 = take_real(mm_1_kept_row + 72 + j, n);
  const vec layer_norm_1_centred_72 = mm_1_72 - layer_norm_1_mean;
  const vec layer_norm_1_normalized_72 = layer_norm_1_centred_72 * layer_norm_1_rstd;
  const vec gamma_h_72 = take_float32(gamma_h_all_row + 72 + j, n);
  const vec layer_norm_1_scaled_72 = layer_norm_1_normalized_72 * gamma_h_72;
  const vec beta_h_72 = take_float32(beta_h_all_row + 72 + j, n);
  const vec layer_norm_1_shifted_72 = layer_norm_1_scaled_72 + beta_h_72;
  const vec a_72 = layer_norm_shifted_72 + layer_norm_1_shifted_72;
  const vec sigmoid_2 = vec_sigmoid(a_72);
  put_float32(sigmoid_2_to_row + j, sigmoid_2, n);
  *layer_norm_2_mean_sum_columns = add_columns(*layer_norm_2_mean_sum_columns, new_c, n);
}

INLINE void forward_columns_6(int64_t j, int n, const float32_storage *c_next_row, vec layer_norm_2_mean,
    vec *layer_norm_2_variance_sum_columns)
{
  const vec new_c = take_float32(c_next_row + j, n);
  const vec layer_norm_2_centred = new_c - layer_norm_2_mean;
  const vec layer_norm_2_square = layer_norm_2_centred * layer_norm_2_centred;
  *layer_norm_2_variance_sum_columns = add_columns(*layer_norm_2_variance_sum_columns, layer_norm_2_square, n);
}

INLINE void forward_columns_7(int64_t j, int n, const float32_storage *sigmoid_2_to_row,
    const float32_storage *c_next_row, vec layer_norm_2_mean, vec layer_norm_2_rstd,
    const float32_storage *gamma_c_all_row, const float32_storage *beta_c_all_row, float32_storage *h_next_row,
    float32_storage *tanh_1_to_row)
{
  const vec sigmoid_2 = take_float32(sigmoid_2_to_row + j, n);
  const vec new_c = take_float32(c_next_row + j, n);
  const vec layer_norm_2_centred = new_c - layer_norm_2_mean;
  const vec layer_norm_2_normalized = layer_norm_2_centred * layer_norm_2_rstd;
  const vec gamma_c = take_float32(gamma_c_all_row + j, n);
  const vec layer_norm_2_scaled = layer_norm_2_normalized * gamma_c;
  const vec beta_c = take_float32(beta_c_all_row + j, n);
  const vec layer_norm_2_shifted = layer_norm_2_scaled + beta_c;
  const vec tanh_1 = vec_tanh(layer_norm_2_shifted);
  const vec new_h = sigmoid_2 * tanh_1;
  put_float32(h_next_row + j, new_h, n);
  put_float32(tanh_1_to_row + j, tanh_1, n);
}

// All steps of rows first to first + rows - 1, forward.
static void forward_block(const struct call *call, int64_t first, int64_t rows, char *scratch, UNUSED struct team *team)
{
  UNUSED const int64_t block = call->block, chunk = call->chunk;
  UNUSED real_storage *const layer_norm_shifted_kept = (void *)scratch;
  scratch += ROUNDED(block * PADDED(96) * (int64_t)sizeof(real_storage));
  UNUSED real_storage *const mm_1_kept = (void *)scratch;
  scratch += ROUNDED(block * PADDED(96) * (int64_t)sizeof(real_storage));
  UNUSED real_storage *const mm_chunk = (void *)scratch;
  scratch += ROUNDED(chunk * block * PADDED(96) * (int64_t)sizeof(real_storage));
  UNUSED const real *const packed_0 = (const real *)(call->work);
  UNUSED const struct matrix matrix_0 = {call->direct ? 0 : packed_0, call->buffers[23], call->strides[0],
      call->strides[1]};
  UNUSED const real *const packed_1 = (const real *)((const char *)(packed_0 + 40 * PADDED(96)));
  UNUSED const struct matrix matrix_1 = {call->direct ? 0 : packed_1, call->buffers[24], call->strides[2],
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
        (float32_storage *)call->buffers[7] + (now_0 * call->batch + first) * 24;
    UNUSED const float32_storage *const c_now =
        (float32_storage *)call->buffers[8] + (now_1 * call->batch + first) * 24;
    UNUSED const float32_storage *const x_at = (const float32_storage *)call->buffers[0] + at * 40;
    UNUSED const float32_storage *const gamma_x_all = (const float32_storage *)call->buffers[1];
    UNUSED const float32_storage *const beta_x_all = (const float32_storage *)call->buffers[2];
    UNUSED const float32_storage *const gamma_h_all = (const float32_storage *)call->buffers[3];
    UNUSED const float32_storage *const beta_h_all = (const float32_storage *)call->buffers[4];
    UNUSED const float32_storage *const gamma_c_all = (const float32_storage *)call->buffers[5];
    UNUSED const float32_storage *const beta_c_all = (const float32_storage *)call->buffers[6];
    UNUSED float32_storage *const h_next = (float32_storage *)call->buffers[7] + (next_0 * call->batch + first) * 24;
    UNUSED float32_storage *const c_next = (float32_storage *)call->buffers[8] + (next_1 * call->batch + first) * 24;
    UNUSED float32_storage *const mm_to = (float32_storage *)call->buffers[9] + at * 96;
    UNUSED float32_storage *const getitem_1_to = (float32_storage *)call->buffers[10] + at * 1;
    UNUSED float32_storage *const getitem_2_to = (float32_storage *)call->buffers[11] + at * 1;
    UNUSED float32_storage *const mm_1_to = (float32_storage *)call->buffers[12] + at * 96;
    UNUSED float32_storage *const getitem_4_to = (float32_storage *)call->buffers[13] + at * 1;
    UNUSED float32_storage *const getitem_5_to = (float32_storage *)call->buffers[14] + at * 1;
    UNUSED float32_storage *const sigmoid_to = (float32_storage *)call->buffers[15] + at * 24;
    UNUSED float32_storage *const sigmoid_1_to = (float32_storage *)call->buffers[16] + at * 24;
    UNUSED float32_storage *const tanh_to = (float32_storage *)call->buffers[17] + at * 24;
    UNUSED float32_storage *const sigmoid_2_to = (float32_storage *)call->buffers[18] + at * 24;
    UNUSED float32_storage *const getitem_11_to = (float32_storage *)call->buffers[19] + at * 1;
    UNUSED float32_storage *const getitem_12_to = (float32_storage *)call->buffers[20] + at * 1;
    UNUSED float32_storage *const tanh_1_to = (float32_storage *)call->buffers[21] + at * 24;
    UNUSED const real_storage *const mm_kept = mm_chunk + (t - ahead) * rows * PADDED(96);
    if (any_real(call, first, rows, t)) {
      for (int64_t r = 0; r < rows; r++) {
        const real_storage *const mm_kept_row = mm_kept + r * PADDED(96);
        float32_storage *const mm_to_row = mm_to + r * 96;
        float32_storage *const getitem_1_to_row = getitem_1_to + r * 1;
        const float32_storage *const gamma_x_all_row = gamma_x_all;
        const float32_storage *const beta_x_all_row = beta_x_all;
        real_storage *const layer_norm_shifted_kept_row = layer_norm_shifted_kept + r * PADDED(96);
        float32_storage *const getitem_2_to_row = getitem_2_to + r * 1;
        vec layer_norm_mean_sum_columns = splat(0);
        for (int64_t j = 0; j + LANES <= 96; j += LANES)
          forward_columns_0(j, LANES, mm_kept_row, mm_to_row, &layer_norm_mean_sum_columns);
        if (96 % LANES)
          forward_columns_0(96 / LANES * LANES, 96 % LANES, mm_kept_row, mm_to_row, &layer_norm_mean_sum_columns);
        const vec layer_norm_mean_sum = splat(sum(layer_norm_mean_sum_columns));
        vec layer_norm_variance_sum_columns = splat(0);
        const vec layer_norm_mean = layer_norm_mean_sum * splat(0.010416666666666666);
        for (int64_t j = 0; j + LANES <= 96; j += LANES)
          forward_columns_1(j, LANES, mm_kept_row, layer_norm_mean, &layer_norm_variance_sum_columns);
        if (96 % LANES)
          forward_columns_1(96 / LANES * LANES, 96 % LANES, mm_kept_row, layer_norm_mean,
              &layer_norm_variance_sum_columns);
        write_float32(getitem_1_to_row + 0, layer_norm_mean[0]);
        const vec layer_norm_variance_sum = splat(sum(layer_norm_variance_sum_columns));
        const vec layer_norm_variance = layer_norm_variance_sum * splat(0.010416666666666666);
        const vec layer_norm_stable = layer_norm_variance + splat(1e-05);
        const vec layer_norm_rstd = vec_rsqrt(layer_norm_stable);
        for (int64_t j = 0; j + LANES <= 96; j += LANES)
          forward_columns_2(j, LANES, mm_kept_row, layer_norm_mean, layer_norm_rstd, gamma_x_all_row, beta_x_all_row,
              layer_norm_shifted_kept_row);
        if (96 % LANES)
          forward_columns_2(96 / LANES * LANES, 96 % LANES, mm_kept_row, layer_norm_mean, layer_norm_rstd,
              gamma_x_all_row, beta_x_all_row, layer_norm_shifted_kept_row);
        write_float32(getitem_2_to_row + 0, layer_norm_rstd[0]);
      }
      // mm_1 = h @ W
      product(rows, 24, 96, h_now, 24, &matrix_1, mm_1_kept, team);
      for (int64_t r = 0; r < rows; r++) {
        const real_storage *const mm_1_kept_row = mm_1_kept + r * PADDED(96);
        float32_storage *const mm_1_to_row = mm_1_to + r * 96;
        float32_storage *const getitem_4_to_row = getitem_4_to + r * 1;
        const real_storage *const layer_norm_shifted_kept_row = layer_norm_shifted_kept + r * PADDED(96);
        const float32_storage *const gamma_h_all_row = gamma_h_all;
        const float32_storage *const beta_h_all_row = beta_h_all;
        const float32_storage *const c_now_row = c_now + r * 24;
        float32_storage *const c_next_row = c_next + r * 24;
        float32_storage *const sigmoid_to_row = sigmoid_to + r * 24;
        float32_storage *const sigmoid_1_to_row = sigmoid_1_to + r * 24;
        float32_storage *const tanh_to_row = tanh_to + r * 24;
        float32_storage *const sigmoid_2_to_row = sigmoid_2_to + r * 24;
        float32_storage *const getitem_5_to_row = getitem_5_to + r * 1;
        float32_storage *const getitem_11_to_row = getitem_11_to + r * 1;
        const float32_storage *const gamma_c_all_row = gamma_c_all;
        const float32_storage *const beta_c_all_row = beta_c_all;
        float32_storage *const h_next_row = h_next + r * 24;
        float32_storage *const tanh_1_to_row = tanh_1_to + r * 24;
        float32_storage *const getitem_12_to_row = getitem_12_to + r * 1;
        vec layer_norm_1_mean_sum_columns = splat(0);
        for (int64_t j = 0; j + LANES <= 96; j += LANES)
          forward_columns_3(j, LANES, mm_1_kept_row, mm_1_to_row, &layer_norm_1_mean_sum_columns);
        if (96 % LANES)
          forward_columns_3(96 / LANES * LANES, 96 % LANES, mm_1_kept_row, mm_1_to_row, &layer_norm_1_mean_sum_columns);
        const vec layer_norm_1_mean_sum = splat(sum(layer_norm_1_mean_sum_columns));
        vec layer_norm_1_variance_sum_columns = splat(0);
        const vec layer_norm_1_mean = layer_norm_1_mean_sum * splat(0.010416666666666666);
        for (int64_t j = 0; j + LANES <= 96; j += LANES)
          forward_columns_4(j, LANES, mm_1_kept_row, layer_norm_1_mean, &layer_norm_1_variance_sum_columns);
        if (96 % LANES)
          forward_columns_4(96 / LANES * LANES, 96 % LANES, mm_1_kept_row, layer_norm_1_mean,
              &layer_norm_1_variance_sum_columns);
        write_float32(getitem_4_to_row + 0, layer_norm_1_mean[0]);
        const vec layer_norm_1_variance_sum = splat(sum(layer_norm_1_variance_sum_columns));
        vec layer_norm_2_mean_sum_columns = splat(0);
        const vec layer_norm_1_variance = layer_norm_1_variance_sum * splat(0.010416666666666666);
        const vec layer_norm_1_stable = layer_norm_1_variance + splat(1e-05);
        const vec layer_norm_1_rstd = vec_rsqrt(layer_norm_1_stable);
        for (int64_t j = 0; j + LANES <= 24; j += LANES)
          forward_columns_5(j, LANES, layer_norm_shifted_kept_row, mm_1_kept_row, layer_norm_1_mean, layer_norm_1_rstd,
              gamma_h_all_row, beta_h_all_row, c_now_row, c_next_row, sigmoid_to_row, sigmoid_1_to_row, tanh_to_row,
              sigmoid_2_to_row, &layer_norm_2_mean_sum_columns);
        if (24 % LANES)
          forward_columns_5(24 / LANES * LANES, 24 % LANES, layer_norm_shifted_kept_row, mm_1_kept_row,
              layer_norm_1_mean, layer_norm_1_rstd, gamma_h_all_row, beta_h_all_row, c_now_row, c_next_row,
              sigmoid_to_row, sigmoid_1_to_row, tanh_to_row, sigmoid_2_to_row, &layer_norm_2_mean_sum_columns);
        write_float32(getitem_5_to_row + 0, layer_norm_1_rstd[0]);
        const vec layer_norm_2_mean_sum = splat(sum(layer_norm_2_mean_sum_columns));
        vec layer_norm_2_variance_sum_columns = splat(0);
        const vec layer_norm_2_mean = layer_norm_2_mean_sum * splat(0.041666666666666664);
        for (int64_t j = 0; j + LANES <= 24; j += LANES)
          forward_columns_6(j, LANES, c_next_row, layer_norm_2_mean, &layer_norm_2_variance_sum_columns);
        if (24 % LANES)
          forward_columns_6(24 / LANES * LANES, 24 % LANES, c_next_row, layer_norm_2_mean,
              &layer_norm_2_variance_sum_columns);
        write_float32(getitem_11_to_row + 0, layer_norm_2_mean[0]);
        const vec layer_norm_2_variance_sum = splat(sum(layer_norm_2_variance_sum_columns));
        const vec layer_norm_2_variance = layer_norm_2_variance_sum * splat(0.041666666666666664);
        const vec layer_norm_2_stable = layer_norm_2_variance + splat(1e-05);
        const vec layer_norm_2_rstd = vec_rsqrt(layer_norm_2_stable);
        for (int64_t j = 0; j + LANES <= 24; j += LANES)
          forward_columns_7(j, LANES, sigmoid_2_to_row, c_next_row, layer_norm_2_mean, layer_norm_2_rstd,
              gamma_c_all_row, beta_c_all_row, h_next_row, tanh_1_to_row);
        if (24 % LANES)
          forward_columns_7(24 / LANES * LANES, 24 % LANES, sigmoid_2_to_row, c_next_row, layer_norm_2_mean,
              layer_norm_2_rstd, gamma_c_all_row, beta_c_all_row, h_next_row, tanh_1_to_row);
        write_float32(getitem_12_to_row + 0, layer_norm_2_rstd[0]);
      }
    }
    float32_storage *const output_to = call->buffers[22];
    if (output_to)
      memcpy(output_to + at * 24, h_next, rows * 24 * sizeof(*output_to));
    if (call->lengths)
      for (int64_t r = 0; r < rows; r++) {
        if (t < call->lengths[first + r])
          continue;
        memcpy(h_next + r * 24, h_now + r * 24, 24 * sizeof(*h_next));
        memcpy(c_next + r * 24, c_now + r * 24, 24 * sizeof(*c_next));
        memset(mm_to + r * 96, 0, 96 * sizeof(*mm_to));
        memset(getitem_1_to + r * 1, 0, 1 * sizeof(*getitem_1_to));
        memset(getitem_2_to + r * 1, 0, 1 * sizeof(*getitem_2_to));
        memset(mm_1_to + r * 96, 0, 96 * sizeof(*mm_1_to));
        memset(getitem_4_to + r * 1, 0, 1 * sizeof(*getitem_4_to));
        memset(getitem_5_to + r * 1, 0, 1 * sizeof(*getitem_5_to));
        memset(sigmoid_to + r * 24, 0, 24 * sizeof(*sigmoid_to));
        memset(sigmoid_1_to + r * 24, 0, 24 * sizeof(*sigmoid_1_to));
        memset(tanh_to + r * 24, 0, 24 * sizeof(*tanh_to));
        memset(sigmoid_2_to + r * 24, 0, 24 * sizeof(*sigmoid_2_to));
        memset(getitem_11_to + r * 1, 0, 1 * sizeof(*getitem_11_to));
        memset(getitem_12_to + r * 1, 0, 1 * sizeof(*getitem_12_to));
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
      threads * (ROUNDED(block * PADDED(96) * (int64_t)sizeof(real_storage)) +
      ROUNDED(block * PADDED(96) * (int64_t)sizeof(real_storage)) +
      ROUNDED(chunk * block * PADDED(96) * (int64_t)sizeof(real_storage)));
}

static void forward_pack(const void *context, int64_t task, UNUSED int64_t worker)
{
  const int64_t panels = PADDED(96) / PANEL + PADDED(96) / PANEL;
  const struct call *const call = (const struct call *)context + task / panels;
  task %= panels;
  UNUSED const real *const packed_0 = (const real *)(call->work);
  UNUSED const struct matrix matrix_0 = {call->direct ? 0 : packed_0, call->buffers[23], call->strides[0],
      call->strides[1]};
  UNUSED const real *const packed_1 = (const real *)((const char *)(packed_0 + 40 * PADDED(96)));
  UNUSED const struct matrix matrix_1 = {call->direct ? 0 : packed_1, call->buffers[24], call->strides[2],
      call->strides[3]};
  if (task < PADDED(96) / PANEL) { // U
    pack_float32(call->buffers[23], call->strides[0], call->strides[1], 40, 96,
      (real *)packed_0, task);
    return;
  }
  task -= PADDED(96) / PANEL;
  if (task < PADDED(96) / PANEL) { // W
    pack_float32(call->buffers[24], call->strides[2], call->strides[3], 24, 96,
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

INLINE void backward_columns_0(int64_t j, int n, const float32_storage *sigmoid_2_at_row,
    const float32_storage *tanh_1_at_row, const float32_storage *output_gradient_at_row,
    const float32_storage *h_gradient_now_row, const float32_storage *gamma_c_all_row,
    real_storage *layer_norm_gradient_weighted_kept_row, real_storage *mul_33_kept_row,
    vec *layer_norm_gradient_level_sum_columns, const float32_storage *new_c_at_row, vec getitem_11, vec getitem_12,
    vec *layer_norm_gradient_along_mean_sum_columns, real_storage *sum_1_part_row, real_storage *sum_2_part_row)
{
  const vec sigmoid_2 = take_float32(sigmoid_2_at_row + j, n);
  const vec tanh_1 = take_float32(tanh_1_at_row + j, n);
  const vec mul_5 = tanh_1 * tanh_1;
  const vec sub = splat(1.0) - mul_5;
  const vec mul_25 = sigmoid_2 * sub;
  const vec output_gradient = take_float32(output_gradient_at_row + j, n);
  const vec h_gradient = take_float32(h_gradient_now_row + j, n);
  const vec add_2 = output_gradient + h_gradient;
  const vec mul_27 = mul_25 * add_2;
  const vec gamma_c = take_float32(gamma_c_all_row + j, n);
  const vec layer_norm_gradient_weighted = mul_27 * gamma_c;
  put_real(layer_norm_gradient_weighted_kept_row + j, layer_norm_gradient_weighted, n);
  const vec sub_2 = splat(1.0) - sigmoid_2;
  const vec mul_9 = sigmoid_2 * sub_2;
  const vec mul_31 = tanh_1 * mul_9;
  const vec mul_33 = mul_31 * add_2;
  put_real(mul_33_kept_row + j, mul_33, n);
  *layer_norm_gradient_level_sum_columns = add_columns(*layer_norm_gradient_level_sum_columns,
      layer_norm_gradient_weighted, n);
  const vec new_c = take_float32(new_c_at_row + j, n);
  const vec layer_norm_gradient_centred = new_c - getitem_11;
  const vec layer_norm_gradient_normalized = layer_norm_gradient_centred * getitem_12;
  const vec layer_norm_gradient_along = layer_norm_gradient_weighted * layer_norm_gradient_normalized;
  *layer_norm_gradient_along_mean_sum_columns = add_columns(*layer_norm_gradient_along_mean_sum_columns,
      layer_norm_gradient_along, n);
  const vec sub_1 = new_c - getitem_11;
  const vec mul_28 = sub_1 * getitem_12;
  const vec mul_30 = mul_28 * mul_27;
  put_real(sum_1_part_row + j, take_real(sum_1_part_row + j, n) + mul_30, n);
  put_real(sum_2_part_row + j, take_real(sum_2_part_row + j, n) + mul_27, n);
}

INLINE void backward_columns_1(int64_t j, int n, const float32_storage *c_gradient_now_row,
    const real_storage *layer_norm_gradient_weighted_kept_row, vec layer_norm_gradient_level,
    const float32_storage *new_c_at_row, vec getitem_11, vec getitem_12, vec layer_norm_gradient_along_mean,
    const float32_storage *sigmoid_at_row, float32_storage *c_gradient_next_row, const float32_storage *tanh_at_row,
    const float32_storage *sigmoid_1_at_row, const float32_storage *gamma_h_all_row,
    real_storage *layer_norm_gradient_1_weighted_kept_row, const float32_storage *c_at_row,
    const real_storage *mul_33_kept_row, const float32_storage *gamma_x_all_row,
    real_storage *layer_norm_gradient_2_weighted_kept_row, vec *layer_norm_gradient_1_level_sum_columns,
    const float32_storage *mm_1_at_row, vec getitem_4, vec getitem_5,
    vec *layer_norm_gradient_1_along_mean_sum_columns, vec *layer_norm_gradient_2_level_sum_columns,
    const float32_storage *mm_at_row, vec getitem_1, vec getitem_2, vec *layer_norm_gradient_2_along_mean_sum_columns,
    real_storage *sum_3_part_row, real_storage *sum_4_part_row, real_storage *sum_5_part_row,
    real_storage *sum_6_part_row)
{
  const vec c_gradient = take_float32(c_gradient_now_row + j, n);
  const vec layer_norm_gradient_weighted = take_real(layer_norm_gradient_weighted_kept_row + j, n);
  const vec layer_norm_gradient_level_free = layer_norm_gradient_weighted - layer_norm_gradient_level;
  const vec new_c = take_float32(new_c_at_row + j, n);
  const vec layer_norm_gradient_centred = new_c - getitem_11;
  const vec layer_norm_gradient_normalized = layer_norm_gradient_centred * getitem_12;
  const vec layer_norm_gradient = layer_norm_gradient_normalized * layer_norm_gradient_along_mean;
  const vec layer_norm_gradient_ = layer_norm_gradient_level_free - layer_norm_gradient;
  const vec layer_norm_gradient_input = layer_norm_gradient_ * getitem_12;
  const vec add_3 = c_gradient + layer_norm_gradient_input;
  const vec sigmoid = take_float32(sigmoid_at_row + j, n);
  const vec mul_17 = add_3 * sigmoid;
  put_float32(c_gradient_next_row + j, mul_17, n);
  const vec tanh = take_float32(tanh_at_row + j, n);
  const vec sigmoid_1 = take_float32(sigmoid_1_at_row + j, n);
  const vec sub_4 = splat(1.0) - sigmoid_1;
  const vec mul_15 = sigmoid_1 * sub_4;
  const vec mul_37 = tanh * mul_15;
  const vec mul_39 = mul_37 * add_3;
  const vec gamma_h = take_float32(gamma_h_all_row + j, n);
  const vec layer_norm_gradient_1_weighted = mul_39 * gamma_h;
  put_real(layer_norm_gradient_1_weighted_kept_row + j, layer_norm_gradient_1_weighted, n);
  const vec c = take_float32(c_at_row + j, n);
  const vec sub_5 = splat(1.0) - sigmoid;
  const vec mul_19 = sigmoid * sub_5;
  const vec mul_40 = c * mul_19;
  const vec mul_42 = mul_40 * add_3;
  const vec gamma_h_24 = take_float32(gamma_h_all_row + 24 + j, n);
  const vec layer_norm_gradient_1_weighted_24 = mul_42 * gamma_h_24;
  put_real(layer_norm_gradient_1_weighted_kept_row + 24 + j, layer_norm_gradient_1_weighted_24, n);
  const vec mul_13 = tanh * tanh;
  const vec sub_3 = splat(1.0) - mul_13;
  const vec mul_34 = sigmoid_1 * sub_3;
  const vec mul_36 = mul_34 * add_3;
  const vec gamma_h_48 = take_float32(gamma_h_all_row + 48 + j, n);
  const vec layer_norm_gradient_1_weighted_48 = mul_36 * gamma_h_48;
  put_real(layer_norm_gradient_1_weighted_kept_row + 48 + j, layer_norm_gradient_1_weighted_48, n);
  const vec mul_33 = take_real(mul_33_kept_row + j, n);
  const vec gamma_h_72 = take_float32(gamma_h_all_row + 72 + j, n);
  const vec layer_norm_gradient_1_weighted_72 = mul_33 * gamma_h_72;
  put_real(layer_norm_gradient_1_weighted_kept_row + 72 + j, layer_norm_gradient_1_weighted_72, n);
  const vec gamma_x = take_float32(gamma_x_all_row + j, n);
  const vec layer_norm_gradient_2_weighted = mul_39 * gamma_x;
  put_real(layer_norm_gradient_2_weighted_kept_row + j, layer_norm_gradient_2_weighted, n);
  const vec gamma_x_24 = take_float32(gamma_x_all_row + 24 + j, n);
  const vec layer_norm_gradient_2_weighted_24 = mul_42 * gamma_x_24;
  put_real(layer_norm_gradient_2_weighted_kept_row + 24 + j, layer_norm_gradient_2_weighted_24, n);
  const vec gamma_x_48 = take_float32(gamma_x_all_row + 48 + j, n);
  const vec layer_norm_gradient_2_weighted_48 = mul_36 * gamma_x_48;
  put_real(layer_norm_gradient_2_weighted_kept_row + 48 + j, layer_norm_gradient_2_weighted_48, n);
  const vec gamma_x_72 = take_float32(gamma_x_all_row + 72 + j, n);
  const vec layer_norm_gradient_2_weighted_72 = mul_33 * gamma_x_72;
  put_real(layer_norm_gradient_2_weighted_kept_row + 72 + j, layer_norm_gradient_2_weighted_72, n);
  *layer_norm_gradient_1_level_sum_columns = add_columns(*layer_norm_gradient_1_level_sum_columns,
      layer_norm_gradient_1_weighted, n);
  *layer_norm_gradient_1_level_sum_columns = add_columns(*layer_norm_gradient_1_level_sum_columns,
      layer_norm_gradient_1_weighted_24, n);
  *layer_norm_gradient_1_level_sum_columns = add_columns(*layer_norm_gradient_1_level_sum_columns,
      layer_norm_gradient_1_weighted_48, n);
  *layer_norm_gradient_1_level_sum_columns = add_columns(*layer_norm_gradient_1_level_sum_columns,
      layer_norm_gradient_1_weighted_72, n);
  const vec mm_1 = take_float32(mm_1_at_row + j, n);
  const vec layer_norm_gradient_1_centred = mm_1 - getitem_4;
  const vec layer_norm_gradient_1_normalized = layer_norm_gradient_1_centred * getitem_5;
  const vec layer_norm_gradient_1_along = layer_norm_gradient_1_weighted * layer_norm_gradient_1_normalized;
  *layer_norm_gradient_1_along_mean_sum_columns = add_columns(*layer_norm_gradient_1_along_mean_sum_columns,
      layer_norm_gradient_1_along, n);
  const vec mm_1_24 = take_float32(mm_1_at_row + 24 + j, n);
  const vec layer_norm_gradient_1_centred_24 = mm_1_24 - getitem_4;
  const vec layer_norm_gradient_1_normalized_24 = layer_norm_gradient_1_centred_24 * getitem_5;
  const vec layer_norm_gradient_1_along_24 = layer_norm_gradient_1_weighted_24 * layer_norm_gradient_1_normalized_24;
  *layer_norm_gradient_1_along_mean_sum_columns = add_columns(*layer_norm_gradient_1_along_mean_sum_columns,
      layer_norm_gradient_1_along_24, n);
  const vec mm_1_48 = take_float32(mm_1_at_row + 48 + j, n);
  const vec layer_norm_gradient_1_centred_48 = mm_1_48 - getitem_4;
  const vec layer_norm_gradient_1_normalized_48 = layer_norm_gradient_1_centred_48 * getitem_5;
  const vec layer_norm_gradient_1_along_48 = layer_norm_gradient_1_weighted_48 * layer_norm_gradient_1_normalized_48;
  *layer_norm_gradient_1_along_mean_sum_columns = add_columns(*layer_norm_gradient_1_along_mean_sum_columns,
      layer_norm_gradient_1_along_48, n);
  const vec mm_1_72 = take_float32(mm_1_at_row + 72 + j, n);
  const vec layer_norm_gradient_1_centred_72 = mm_1_72 - getitem_4;
  const vec layer_norm_gradient_1_normalized_72 = layer_norm_gradient_1_centred_72 * getitem_5;
  const vec layer_norm_gradient_1_along_72 = layer_norm_gradient_1_weighted_72 * layer_norm_gradient_1_normalized_72;
  *layer_norm_gradient_1_along_mean_sum_columns = add_columns(*layer_norm_gradient_1_along_mean_sum_columns,
      layer_norm_gradient_1_along_72, n);
  *layer_norm_gradient_2_level_sum_columns = add_columns(*layer_norm_gradient_2_level_sum_columns,
      layer_norm_gradient_2_weighted, n);
  *layer_norm_gradient_2_level_sum_columns = add_columns(*layer_norm_gradient_2_level_sum_columns,
      layer_norm_gradient_2_weighted_24, n);
  *layer_norm_gradient_2_level_sum_columns = add_columns(*layer_norm_gradient_2_level_sum_columns,
      layer_norm_gradient_2_weighted_48, n);
  *layer_norm_gradient_2_level_sum_columns = add_columns(*layer_norm_gradient_2_level_sum_columns,
      layer_norm_gradient_2_weighted_72, n);
  const vec mm = take_float32(mm_at_row + j, n);
  const vec layer_norm_gradient_2_centred = mm - getitem_1;
  const vec layer_norm_gradient_2_normalized = layer_norm_gradient_2_centred * getitem_2;
  const vec layer_norm_gradient_2_along = layer_norm_gradient_2_weighted * layer_norm_gradient_2_normalized;
  *layer_norm_gradient_2_along_mean_sum_columns = add_columns(*layer_norm_gradient_2_along_mean_sum_columns,
      layer_norm_gradient_2_along, n);
  const vec mm_24 = take_float32(mm_at_row + 24 + j, n);
  const vec layer_norm_gradient_2_centred_24 = mm_24 - getitem_1;
  const vec layer_norm_gradient_2_normalized_24 = layer_norm_gradient_2_centred_24 * getitem_2;
  const vec layer_norm_gradient_2_along_24 = layer_norm_gradient_2_weighted_24 * layer_norm_gradient_2_normalized_24;
  *layer_norm_gradient_2_along_mean_sum_columns = add_columns(*layer_norm_gradient_2_along_mean_sum_columns,
      layer_norm_gradient_2_along_24, n);
  const vec mm_48 = take_float32(mm_at_row + 48 + j, n);
  const vec layer_norm_gradient_2_centred_48 = mm_48 - getitem_1;
  const vec layer_norm_gradient_2_normalized_48 = layer_norm_gradient_2_centred_48 * getitem_2;
  const vec layer_norm_gradient_2_along_48 = layer_norm_gradient_2_weighted_48 * layer_norm_gradient_2_normalized_48;
  *layer_norm_gradient_2_along_mean_sum_columns = add_columns(*layer_norm_gradient_2_along_mean_sum_columns,
      layer_norm_gradient_2_along_48, n);
  const vec mm_72 = take_float32(mm_at_row + 72 + j, n);
  const vec layer_norm_gradient_2_centred_72 = mm_72 - getitem_1;
  const vec layer_norm_gradient_2_normalized_72 = layer_norm_gradient_2_centred_72 * getitem_2;
  const vec layer_norm_gradient_2_along_72 = layer_norm_gradient_2_weighted_72 * layer_norm_gradient_2_normalized_72;
  *layer_norm_gradient_2_along_mean_sum_columns = add_columns(*layer_norm_gradient_2_along_mean_sum_columns,
      layer_norm_gradient_2_along_72, n);
  const vec sub_6 = mm_1 - getitem_4;
  const vec mul_43 = sub_6 * getitem_5;
  const vec mul_45 = mul_43 * mul_39;
  put_real(sum_3_part_row + j, take_real(sum_3_part_row + j, n) + mul_45, n);
  const vec sub_6_24 = mm_1_24 - getitem_4;
  const vec mul_43_24 = sub_6_24 * getitem_5;
  const vec mul_45_24 = mul_43_24 * mul_42;
  put_real(sum_3_part_row + 24 + j, take_real(sum_3_part_row + 24 + j, n) + mul_45_24, n);
  const vec sub_6_48 = mm_1_48 - getitem_4;
  const vec mul_43_48 = sub_6_48 * getitem_5;
  const vec mul_45_48 = mul_43_48 * mul_36;
  put_real(sum_3_part_row + 48 + j, take_real(sum_3_part_row + 48 + j, n) + mul_45_48, n);
  const vec sub_6_72 = mm_1_72 - getitem_4;
  const vec mul_43_72 = sub_6_72 * getitem_5;
  const vec mul_45_72 = mul_43_72 * mul_33;
  put_real(sum_3_part_row + 72 + j, take_real(sum_3_part_row + 72 + j, n) + mul_45_72, n);
  put_real(sum_4_part_row + j, take_real(sum_4_part_row + j, n) + mul_39, n);
  put_real(sum_4_part_row + 24 + j, take_real(sum_4_part_row + 24 + j, n) + mul_42, n);
  put_real(sum_4_part_row + 48 + j, take_real(sum_4_part_row + 48 + j, n) + mul_36, n);
  put_real(sum_4_part_row + 72 + j, take_real(sum_4_part_row + 72 + j, n) + mul_33, n);
  const vec sub_7 = mm - getitem_1;
  const vec mul_46 = sub_7 * getitem_2;
  const vec mul_48 = mul_46 * mul_39;
  put_real(sum_5_part_row + j, take_real(sum_5_part_row + j, n) + mul_48, n);
  const vec sub_7_24 = mm_24 - getitem_1;
  const vec mul_46_24 = sub_7_24 * getitem_2;
  const vec mul_48_24 = mul_46_24 * mul_42;
  put_real(sum_5_part_row + 24 + j, take_real(sum_5_part_row + 24 + j, n) + mul_48_24, n);
  const vec sub_7_48 = mm_48 - getitem_1;
  const vec mul_46_48 = sub_7_48 * getitem_2;
  const vec mul_48_48 = mul_46_48 * mul_36;
  put_real(sum_5_part_row + 48 + j, take_real(sum_5_part_row + 48 + j, n) + mul_48_48, n);
  const vec sub_7_72 = mm_72 - getitem_1;
  const vec mul_46_72 = sub_7_72 * getitem_2;
  const vec mul_48_72 = mul_46_72 * mul_33;
  put_real(sum_5_part_row + 72 + j, take_real(sum_5_part_row + 72 + j, n) + mul_48_72, n);
  put_real(sum_6_part_row + j, take_real(sum_6_part_row + j, n) + mul_39, n);
  put_real(sum_6_part_row + 24 + j, take_real(sum_6_part_row + 24 + j, n) + mul_42, n);
  put_real(sum_6_part_row + 48 + j, take_real(sum_6_part_row + 48 + j, n) + mul_36, n);
  put_real(sum_6_part_row + 72 + j, take_real(sum_6_part_row + 72 + j, n) + mul_33, n);
}

INLINE void backward_columns_2(int64_t j, int n, const real_storage *layer_norm_gradient_1_weighted_kept_row,
    vec layer_norm_gradient_1_level, const float32_storage *mm_1_at_row, vec getitem_4, vec getitem_5,
    vec layer_norm_gradient_1_along_mean, float32_storage *getitem_16_to_row,
    const real_storage *layer_norm_gradient_2_weighted_kept_row, vec layer_norm_gradient_2_level,
    const float32_storage *mm_at_row, vec getitem_1, vec getitem_2, vec layer_norm_gradient_2_along_mean,
    float32_storage *getitem_19_to_row)
{
  const vec layer_norm_gradient_1_weighted = take_real(layer_norm_gradient_1_weighted_kept_row + j, n);
  const vec layer_norm_gradient_1_level_free = layer_norm_gradient_1_weighted - layer_norm_gradient_1_level;
  const vec mm_1 = take_float32(mm_1_at_row + j, n);
  const vec layer_norm_gradient_1_centred = mm_1 - getitem_4;
  const vec layer_norm_gradient_1_normalized = layer_norm_gradient_1_centred * getitem_5;
  const vec layer_norm_gradient_1 = layer_norm_gradient_1_normalized * layer_norm_gradient_1_along_mean;
  const vec layer_norm_gradient_1_ = layer_norm_gradient_1_level_free - layer_norm_gradient_1;
  const vec layer_norm_gradient_1_input = layer_norm_gradient_1_ * getitem_5;
  put_float32(getitem_16_to_row + j, layer_norm_gradient_1_input, n);
  const vec layer_norm_gradient_2_weighted = take_real(layer_norm_gradient_2_weighted_kept_row + j, n);
  const vec layer_norm_gradient_2_level_free = layer_norm_gradient_2_weighted - layer_norm_gradient_2_level;
  const vec mm = take_float32(mm_at_row + j, n);
  const vec layer_norm_gradient_2_centred = mm - getitem_1;
  const vec layer_norm_gradient_2_normalized = layer_norm_gradient_2_centred * getitem_2;
  const vec layer_norm_gradient_2 = layer_norm_gradient_2_normalized * layer_norm_gradient_2_along_mean;
  const vec layer_norm_gradient_2_ = layer_norm_gradient_2_level_free - layer_norm_gradient_2;
  const vec layer_norm_gradient_2_input = layer_norm_gradient_2_ * getitem_2;
  put_float32(getitem_19_to_row + j, layer_norm_gradient_2_input, n);
}

INLINE void backward_columns_3(int64_t j, int n, const real_storage *mm_3_kept_row,
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
  UNUSED real_storage *const layer_norm_gradient_1_weighted_kept = (void *)scratch;
  scratch += ROUNDED(block * PADDED(96) * (int64_t)sizeof(real_storage));
  UNUSED real_storage *const layer_norm_gradient_2_weighted_kept = (void *)scratch;
  scratch += ROUNDED(block * PADDED(96) * (int64_t)sizeof(real_storage));
  UNUSED real_storage *const layer_norm_gradient_weighted_kept = (void *)scratch;
  scratch += ROUNDED(block * PADDED(24) * (int64_t)sizeof(real_storage));
  UNUSED real_storage *const mul_33_kept = (void *)scratch;
  scratch += ROUNDED(block * PADDED(24) * (int64_t)sizeof(real_storage));
  real *const parts = (real *)scratch;
  memset(parts, 0,
      (PADDED(24) + PADDED(24) + PADDED(96) + PADDED(96) + PADDED(96) + PADDED(96) + PADDED(96)) * sizeof(real));
  real *const sum_1_part = parts;
  real *const sum_2_part = sum_1_part + PADDED(24);
  real *const sum_3_part = sum_2_part + PADDED(24);
  real *const sum_4_part = sum_3_part + PADDED(96);
  real *const sum_5_part = sum_4_part + PADDED(96);
  real *const sum_6_part = sum_5_part + PADDED(96);
  real *const uncounted = sum_6_part + PADDED(96);
  UNUSED const real *const packed_0 = (const real *)(call->work);
  UNUSED const struct matrix matrix_0 = {call->direct ? 0 : packed_0, call->buffers[33], call->strides[0],
      call->strides[1]};
  for (int64_t step = call->begin; step < call->end; step++) {
    const int64_t t = call->backwards ? call->time - 1 - step : step, at = t * call->batch + first;
    const int64_t now_0 = (t + call->backwards) % call->slots[0];
    const int64_t next_0 = (t + !call->backwards) % call->slots[0];
    const int64_t now_1 = (t + call->backwards) % call->slots[1];
    const int64_t next_1 = (t + !call->backwards) % call->slots[1];
    UNUSED const float32_storage *const h_gradient_now =
        (float32_storage *)call->buffers[22] + (now_0 * call->batch + first) * 24;
    UNUSED const float32_storage *const c_gradient_now =
        (float32_storage *)call->buffers[23] + (now_1 * call->batch + first) * 24;
    UNUSED const float32_storage *const output_gradient_at = (const float32_storage *)call->buffers[0] + at * 24;
    UNUSED const float32_storage *const tanh_1_at = (const float32_storage *)call->buffers[1] + at * 24;
    UNUSED const float32_storage *const sigmoid_2_at = (const float32_storage *)call->buffers[2] + at * 24;
    UNUSED const float32_storage *const new_c_at = (const float32_storage *)call->buffers[3] + at * 24;
    UNUSED const float32_storage *const getitem_11_at = (const float32_storage *)call->buffers[4] + at * 1;
    UNUSED const float32_storage *const getitem_12_at = (const float32_storage *)call->buffers[5] + at * 1;
    UNUSED const float32_storage *const gamma_c_all = (const float32_storage *)call->buffers[6];
    UNUSED const float32_storage *const beta_c_all = (const float32_storage *)call->buffers[7];
    UNUSED const float32_storage *const tanh_at = (const float32_storage *)call->buffers[8] + at * 24;
    UNUSED const float32_storage *const sigmoid_1_at = (const float32_storage *)call->buffers[9] + at * 24;
    UNUSED const float32_storage *const sigmoid_at = (const float32_storage *)call->buffers[10] + at * 24;
    UNUSED const float32_storage *const c_at = (const float32_storage *)call->buffers[11] + at * 24;
    UNUSED const float32_storage *const mm_1_at = (const float32_storage *)call->buffers[12] + at * 96;
    UNUSED const float32_storage *const getitem_4_at = (const float32_storage *)call->buffers[13] + at * 1;
    UNUSED const float32_storage *const getitem_5_at = (const float32_storage *)call->buffers[14] + at * 1;
    UNUSED const float32_storage *const gamma_h_all = (const float32_storage *)call->buffers[15];
    UNUSED const float32_storage *const beta_h_all = (const float32_storage *)call->buffers[16];
    UNUSED const float32_storage *const mm_at = (const float32_storage *)call->buffers[17] + at * 96;
    UNUSED const float32_storage *const getitem_1_at = (const float32_storage *)call->buffers[18] + at * 1;
    UNUSED const float32_storage *const getitem_2_at = (const float32_storage *)call->buffers[19] + at * 1;
    UNUSED const float32_storage *const gamma_x_all = (const float32_storage *)call->buffers[20];
    UNUSED const float32_storage *const beta_x_all = (const float32_storage *)call->buffers[21];
    UNUSED float32_storage *const h_gradient_next =
        (float32_storage *)call->buffers[22] + (next_0 * call->batch + first) * 24;
    UNUSED float32_storage *const c_gradient_next =
        (float32_storage *)call->buffers[23] + (next_1 * call->batch + first) * 24;
    UNUSED float32_storage *const getitem_16_to = (float32_storage *)call->buffers[24] + at * 96;
    UNUSED float32_storage *const getitem_19_to = (float32_storage *)call->buffers[25] + at * 96;
    if (any_real(call, first, rows, t)) {
      for (int64_t r = 0; r < rows; r++) {
        const int counted = !call->lengths || t < call->lengths[first + r];
        const float32_storage *const sigmoid_2_at_row = sigmoid_2_at + r * 24;
        const float32_storage *const tanh_1_at_row = tanh_1_at + r * 24;
        const float32_storage *const output_gradient_at_row = output_gradient_at + r * 24;
        const float32_storage *const h_gradient_now_row = h_gradient_now + r * 24;
        const float32_storage *const gamma_c_all_row = gamma_c_all;
        real_storage *const layer_norm_gradient_weighted_kept_row = layer_norm_gradient_weighted_kept + r * PADDED(24);
        real_storage *const mul_33_kept_row = mul_33_kept + r * PADDED(24);
        const float32_storage *const new_c_at_row = new_c_at + r * 24;
        const float32_storage *const getitem_11_at_row = getitem_11_at + r * 1;
        const float32_storage *const getitem_12_at_row = getitem_12_at + r * 1;
        real_storage *const sum_1_part_row = counted ? sum_1_part : uncounted;
        real_storage *const sum_2_part_row = counted ? sum_2_part : uncounted;
        const float32_storage *const c_gradient_now_row = c_gradient_now + r * 24;
        const float32_storage *const sigmoid_at_row = sigmoid_at + r * 24;
        float32_storage *const c_gradient_next_row = c_gradient_next + r * 24;
        const float32_storage *const tanh_at_row = tanh_at + r * 24;
        const float32_storage *const sigmoid_1_at_row = sigmoid_1_at + r * 24;
        const float32_storage *const gamma_h_all_row = gamma_h_all;
        real_storage *const layer_norm_gradient_1_weighted_kept_row =
            layer_norm_gradient_1_weighted_kept + r * PADDED(96);
        const float32_storage *const c_at_row = c_at + r * 24;
        const float32_storage *const gamma_x_all_row = gamma_x_all;
        real_storage *const layer_norm_gradient_2_weighted_kept_row =
            layer_norm_gradient_2_weighted_kept + r * PADDED(96);
        const float32_storage *const mm_1_at_row = mm_1_at + r * 96;
        const float32_storage *const getitem_4_at_row = getitem_4_at + r * 1;
        const float32_storage *const getitem_5_at_row = getitem_5_at + r * 1;
        const float32_storage *const mm_at_row = mm_at + r * 96;
        const float32_storage *const getitem_1_at_row = getitem_1_at + r * 1;
        const float32_storage *const getitem_2_at_row = getitem_2_at + r * 1;
        real_storage *const sum_3_part_row = counted ? sum_3_part : uncounted;
        real_storage *const sum_4_part_row = counted ? sum_4_part : uncounted;
        real_storage *const sum_5_part_row = counted ? sum_5_part : uncounted;
        real_storage *const sum_6_part_row = counted ? sum_6_part : uncounted;
        float32_storage *const getitem_16_to_row = getitem_16_to + r * 96;
        float32_storage *const getitem_19_to_row = getitem_19_to + r * 96;
        vec layer_norm_gradient_level_sum_columns = splat(0);
        vec layer_norm_gradient_along_mean_sum_columns = splat(0);
        const vec getitem_11 = splat(read_float32(getitem_11_at_row));
        const vec getitem_12 = splat(read_float32(getitem_12_at_row));
        for (int64_t j = 0; j + LANES <= 24; j += LANES)
          backward_columns_0(j, LANES, sigmoid_2_at_row, tanh_1_at_row, output_gradient_at_row, h_gradient_now_row,
              gamma_c_all_row, layer_norm_gradient_weighted_kept_row, mul_33_kept_row,
              &layer_norm_gradient_level_sum_columns, new_c_at_row, getitem_11, getitem_12,
              &layer_norm_gradient_along_mean_sum_columns, sum_1_part_row, sum_2_part_row);
        if (24 % LANES)
          backward_columns_0(24 / LANES * LANES, 24 % LANES, sigmoid_2_at_row, tanh_1_at_row, output_gradient_at_row,
              h_gradient_now_row, gamma_c_all_row, layer_norm_gradient_weighted_kept_row, mul_33_kept_row,
              &layer_norm_gradient_level_sum_columns, new_c_at_row, getitem_11, getitem_12,
              &layer_norm_gradient_along_mean_sum_columns, sum_1_part_row, sum_2_part_row);
        const vec layer_norm_gradient_level_sum = splat(sum(layer_norm_gradient_level_sum_columns));
        const vec layer_norm_gradient_along_mean_sum = splat(sum(layer_norm_gradient_along_mean_sum_columns));
        vec layer_norm_gradient_1_level_sum_columns = splat(0);
        vec layer_norm_gradient_1_along_mean_sum_columns = splat(0);
        vec layer_norm_gradient_2_level_sum_columns = splat(0);
        vec layer_norm_gradient_2_along_mean_sum_columns = splat(0);
        const vec layer_norm_gradient_level = layer_norm_gradient_level_sum * splat(0.041666666666666664);
        const vec layer_norm_gradient_along_mean = layer_norm_gradient_along_mean_sum * splat(0.041666666666666664);
        const vec getitem_4 = splat(read_float32(getitem_4_at_row));
        const vec getitem_5 = splat(read_float32(getitem_5_at_row));
        const vec getitem_1 = splat(read_float32(getitem_1_at_row));
        const vec getitem_2 = splat(read_float32(getitem_2_at_row));
        for (int64_t j = 0; j + LANES <= 24; j += LANES)
          backward_columns_1(j, LANES, c_gradient_now_row, layer_norm_gradient_weighted_kept_row,
              layer_norm_gradient_level, new_c_at_row, getitem_11, getitem_12, layer_norm_gradient_along_mean,
              sigmoid_at_row, c_gradient_next_row, tanh_at_row, sigmoid_1_at_row, gamma_h_all_row,
              layer_norm_gradient_1_weighted_kept_row, c_at_row, mul_33_kept_row, gamma_x_all_row,
              layer_norm_gradient_2_weighted_kept_row, &layer_norm_gradient_1_level_sum_columns, mm_1_at_row,
              getitem_4, getitem_5, &layer_norm_gradient_1_along_mean_sum_columns,
              &layer_norm_gradient_2_level_sum_columns, mm_at_row, getitem_1, getitem_2,
              &layer_norm_gradient_2_along_mean_sum_columns, sum_3_part_row, sum_4_part_row, sum_5_part_row,
              sum_6_part_row);
        if (24 % LANES)
          backward_columns_1(24 / LANES * LANES, 24 % LANES, c_gradient_now_row, layer_norm_gradient_weighted_kept_row,
              layer_norm_gradient_level, new_c_at_row, getitem_11, getitem_12, layer_norm_gradient_along_mean,
              sigmoid_at_row, c_gradient_next_row, tanh_at_row, sigmoid_1_at_row, gamma_h_all_row,
              layer_norm_gradient_1_weighted_kept_row, c_at_row, mul_33_kept_row, gamma_x_all_row,
              layer_norm_gradient_2_weighted_kept_row, &layer_norm_gradient_1_level_sum_columns, mm_1_at_row,
              getitem_4, getitem_5, &layer_norm_gradient_1_along_mean_sum_columns,
              &layer_norm_gradient_2_level_sum_columns, mm_at_row, getitem_1, getitem_2,
              &layer_norm_gradient_2_along_mean_sum_columns, sum_3_part_row, sum_4_part_row, sum_5_part_row,
              sum_6_part_row);
        const vec layer_norm_gradient_1_level_sum = splat(sum(layer_norm_gradient_1_level_sum_columns));
        const vec layer_norm_gradient_1_along_mean_sum = splat(sum(layer_norm_gradient_1_along_mean_sum_columns));
        const vec layer_norm_gradient_2_level_sum = splat(sum(layer_norm_gradient_2_level_sum_columns));
        const vec layer_norm_gradient_2_along_mean_sum = splat(sum(layer_norm_gradient_2_along_mean_sum_columns));
        const vec layer_norm_gradient_1_level = layer_norm_gradient_1_level_sum * splat(0.010416666666666666);
        const vec layer_norm_gradient_1_along_mean = layer_norm_gradient_1_along_mean_sum * splat(0.010416666666666666);
        const vec layer_norm_gradient_2_level = layer_norm_gradient_2_level_sum * splat(0.010416666666666666);
        const vec layer_norm_gradient_2_along_mean = layer_norm_gradient_2_along_mean_sum * splat(0.010416666666666666);
        for (int64_t j = 0; j + LANES <= 96; j += LANES)
          backward_columns_2(j, LANES, layer_norm_gradient_1_weighted_kept_row, layer_norm_gradient_1_level,
              mm_1_at_row, getitem_4, getitem_5, layer_norm_gradient_1_along_mean, getitem_16_to_row,
              layer_norm_gradient_2_weighted_kept_row, layer_norm_gradient_2_level, mm_at_row, getitem_1, getitem_2,
              layer_norm_gradient_2_along_mean, getitem_19_to_row);
        if (96 % LANES)
          backward_columns_2(96 / LANES * LANES, 96 % LANES, layer_norm_gradient_1_weighted_kept_row,
              layer_norm_gradient_1_level, mm_1_at_row, getitem_4, getitem_5, layer_norm_gradient_1_along_mean,
              getitem_16_to_row, layer_norm_gradient_2_weighted_kept_row, layer_norm_gradient_2_level, mm_at_row,
              getitem_1, getitem_2, layer_norm_gradient_2_along_mean, getitem_19_to_row);
      }
      // mm_3 = layer_norm_gradient_1_input @ permute_1
      product(rows, 96, 24, getitem_16_to, 96, &matrix_0, mm_3_kept, team);
      for (int64_t r = 0; r < rows; r++) {
        const real_storage *const mm_3_kept_row = mm_3_kept + r * PADDED(24);
        float32_storage *const h_gradient_next_row = h_gradient_next + r * 24;
        for (int64_t j = 0; j + LANES <= 24; j += LANES)
          backward_columns_3(j, LANES, mm_3_kept_row, h_gradient_next_row);
        if (24 % LANES)
          backward_columns_3(24 / LANES * LANES, 24 % LANES, mm_3_kept_row, h_gradient_next_row);
      }
    }
    if (call->lengths)
      for (int64_t r = 0; r < rows; r++) {
        if (t < call->lengths[first + r])
          continue;
        memcpy(h_gradient_next + r * 24, h_gradient_now + r * 24, 24 * sizeof(*h_gradient_next));
        memcpy(c_gradient_next + r * 24, c_gradient_now + r * 24, 24 * sizeof(*c_gradient_next));
        memset(getitem_16_to + r * 96, 0, 96 * sizeof(*getitem_16_to));
        memset(getitem_19_to + r * 96, 0, 96 * sizeof(*getitem_19_to));
      }
    if ((step - call->begin) % PART_STEPS == PART_STEPS - 1 || step + 1 == call->end) {
      add_part((real *)call->buffers[26] + first / call->block * 24, sum_1_part, 24);
      add_part((real *)call->buffers[27] + first / call->block * 24, sum_2_part, 24);
      add_part((real *)call->buffers[28] + first / call->block * 96, sum_3_part, 96);
      add_part((real *)call->buffers[29] + first / call->block * 96, sum_4_part, 96);
      add_part((real *)call->buffers[30] + first / call->block * 96, sum_5_part, 96);
      add_part((real *)call->buffers[31] + first / call->block * 96, sum_6_part, 96);
    }
  }
}

// Bytes of work space: the packed matrices, and scratch for blocks of rows on a number of threads.
int64_t backward_work(UNUSED int64_t block, UNUSED int64_t chunk, int64_t threads)
{
  return ROUNDED(96 * PADDED(24) * (int64_t)sizeof(real)) +
      threads * (ROUNDED(block * PADDED(24) * (int64_t)sizeof(real_storage)) +
      ROUNDED(block * PADDED(96) * (int64_t)sizeof(real_storage)) +
      ROUNDED(block * PADDED(96) * (int64_t)sizeof(real_storage)) +
      ROUNDED(block * PADDED(24) * (int64_t)sizeof(real_storage)) +
      ROUNDED(block * PADDED(24) * (int64_t)sizeof(real_storage)) + ROUNDED((PADDED(24) + PADDED(24) + PADDED(96) +
      PADDED(96) + PADDED(96) + PADDED(96) + PADDED(96)) * (int64_t)sizeof(real)));
}

static void backward_pack(const void *context, int64_t task, UNUSED int64_t worker)
{
  const int64_t panels = PADDED(24) / PANEL;
  const struct call *const call = (const struct call *)context + task / panels;
  task %= panels;
  UNUSED const real *const packed_0 = (const real *)(call->work);
  UNUSED const struct matrix matrix_0 = {call->direct ? 0 : packed_0, call->buffers[33], call->strides[0],
      call->strides[1]};
  if (task < PADDED(24) / PANEL) { // permute_1
    pack_float32(call->buffers[33], call->strides[0], call->strides[1], 96, 24,
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
