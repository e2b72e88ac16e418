// Products of rows with a packed matrix.
//
// A matrix (depth × width) is packed into panels of PANEL columns, filled up with zeros: panel after panel, row after
// row, so that a tile of the result reads it from front to end. A tile of TILE rows and VECTORS vectors of columns
// stays in registers while the depth runs.

#if defined(__AVX512F__)
#define VECTORS 4
#else
#define VECTORS 2
#endif
#define TILE 6
#define PANEL (VECTORS * LANES)
#define PADDED(width) (((width) + PANEL - 1) / PANEL * PANEL)

#define PART(left) ((left) < LANES ? (int)(left) : LANES) // how many of the columns that are left a vector takes

// LANES rows of LANES numbers become columns.
INLINE void transpose(vec *rows)
{
  vec shuffled[LANES];
#if defined(__clang__)
  for (int i = 0; i < LANES; i++)
    for (int j = 0; j < LANES; j++)
      shuffled[j][i] = rows[i][j];
  memcpy(rows, shuffled, sizeof(shuffled));
#else
  ivec low, high; // the first halves of two rows in turn, the second halves
  for (int i = 0; i < LANES; i++) {
    low[i] = i / 2 + i % 2 * LANES;
    high[i] = low[i] + LANES / 2;
  }
  for (int done = 1; done < LANES; done *= 2) {
    for (int i = 0; i < LANES / 2; i++) {
      shuffled[2 * i] = __builtin_shuffle(rows[i], rows[i + LANES / 2], low);
      shuffled[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + LANES / 2], high);
    }
    memcpy(rows, shuffled, sizeof(shuffled));
  }
#endif
}

// One panel of a matrix of any strides.
#define DEFINE_PACK(type)                                                                                              \
  UNUSED static void pack_##type(const type##_storage *matrix, int64_t row_stride, int64_t column_stride,              \
                                 int64_t depth, int64_t width, real *packed, int64_t panel)                            \
  {                                                                                                                    \
    real *to = packed + panel * depth * PANEL;                                                                         \
    const type##_storage *from = matrix + panel * PANEL * column_stride;                                               \
    const int64_t columns = width - panel * PANEL < PANEL ? width - panel * PANEL : PANEL;                             \
    const int64_t turned = row_stride == 1 && columns == PANEL ? depth / LANES * LANES : 0;                            \
    for (int64_t k = 0; k < turned; k += LANES)                                                                        \
      for (int64_t c = 0; c < PANEL; c += LANES) {                                                                     \
        vec square[LANES];                                                                                             \
        for (int i = 0; i < LANES; i++)                                                                                \
          square[i] = load_##type(from + (c + i) * column_stride + k);                                                 \
        transpose(square);                                                                                             \
        for (int i = 0; i < LANES; i++)                                                                                \
          store_real(to + (k + i) * PANEL + c, square[i]);                                                             \
      }                                                                                                                \
    for (int64_t block = turned; block < depth; block += 16) {                                                         \
      const int64_t end = block + 16 < depth ? block + 16 : depth;                                                     \
      if (column_stride == 1) {                                                                                        \
        for (int64_t k = block; k < end; k++)                                                                          \
          for (int64_t c = 0; c < columns; c += LANES) {                                                               \
            const int n = PART(columns - c);                                                                           \
            put_real(to + k * PANEL + c, take_##type(from + k * row_stride + c, n), n);                                \
          }                                                                                                            \
      } else {                                                                                                         \
        for (int64_t c = 0; c < columns; c++)                                                                          \
          for (int64_t k = block; k < end; k++)                                                                        \
            to[k * PANEL + c] = read_##type(from + k * row_stride + c * column_stride);                                \
      }                                                                                                                \
      for (int64_t k = block; k < end; k++)                                                                            \
        for (int64_t c = columns; c < PANEL; c++)                                                                      \
          to[k * PANEL + c] = 0;                                                                                       \
    }                                                                                                                  \
  }

// Sums over the depth, of some rows of a (of any strides) and count panels side by side (more than one only for a
// single row, whose few sums would wait for each other).
INLINE void add_products(vec sums[TILE][2 * VECTORS], const int rows, const int count, const real *a, int64_t a_row,
                         int64_t a_column, int64_t depth, const real *panels)
{
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < count * VECTORS; v++)
      sums[r][v] = splat(0);
  for (int64_t k = 0; k < depth; k++) {
    vec b[2 * VECTORS];
    for (int v = 0; v < count * VECTORS; v++) {
      b[v] = *(const vec *)(panels + (v / VECTORS * depth + k) * PANEL + v % VECTORS * LANES);
      if (rows > 1)
        STAY(b[v]);
    }
    for (int r = 0; r < rows; r++)
      for (int v = 0; v < count * VECTORS; v++)
        sums[r][v] += a[r * a_row + k * a_column] * b[v];
  }
}

INLINE void tile(const int rows, const int count, const real *a, int64_t a_stride, int64_t depth, const real *panels,
                 real *out, int64_t out_stride)
{
  vec sums[TILE][2 * VECTORS];
  add_products(sums, rows, count, a, a_stride, 1, depth, panels);
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < count * VECTORS; v++)
      *(vec *)(out + r * out_stride + v * LANES) = sums[r][v];
}

// Rows of one panel.
UNUSED static void panel_product(int64_t rows, int64_t depth, const real *a, int64_t a_stride, const real *panel,
                                 real *out, int64_t out_stride)
{
  // Tiles of about the same height: a low one has too few sums under way.
  const int64_t tiles = (rows + TILE - 1) / TILE;
  for (int64_t i = 0; i < tiles; i++) {
    const int64_t r = rows * i / tiles;
    const real *from = a + r * a_stride;
    real *to = out + r * out_stride;
    switch (rows * (i + 1) / tiles - r) {
    case 1: tile(1, 1, from, a_stride, depth, panel, to, out_stride); break;
    case 2: tile(2, 1, from, a_stride, depth, panel, to, out_stride); break;
    case 3: tile(3, 1, from, a_stride, depth, panel, to, out_stride); break;
    case 4: tile(4, 1, from, a_stride, depth, panel, to, out_stride); break;
    case 5: tile(5, 1, from, a_stride, depth, panel, to, out_stride); break;
    default: tile(6, 1, from, a_stride, depth, panel, to, out_stride);
    }
  }
}

// A matrix, packed, or where it lies: for a few rows it is not worth packing.
struct matrix {
  const real *packed; // or NULL
  const real *at;
  int64_t row, column; // strides, one of which is 1
};

// One row times some columns, at most PANEL, of a matrix where it lies.
UNUSED static void row_product(int64_t depth, const real *a, const struct matrix *matrix, int64_t first,
                               int64_t columns, real *out)
{
  const real *const at = matrix->at + first * matrix->column;
  if (matrix->column == 1) {
    for (int64_t c = 0; c < columns; c += 2 * LANES) {
      const int n = PART(columns - c), rest = (int)(columns - c) - n, m = PART(rest);
      vec sum = splat(0), next = splat(0);
      for (int64_t k = 0; k < depth; k++) {
        sum += a[k] * take_real(at + k * matrix->row + c, n);
        if (m > 0)
          next += a[k] * take_real(at + k * matrix->row + c + LANES, m);
      }
      put_real(out + c, sum, n);
      if (m > 0)
        put_real(out + c + LANES, next, m);
    }
    return;
  }
  for (int64_t c = 0; c < columns; c += 4) {
    vec sums[4] = {{0}};
    for (int64_t k = 0; k < depth; k += LANES) {
      const int n = PART(depth - k);
      const vec x = take_real(a + k, n);
      for (int i = 0; i < 4; i++)
        if (c + i < columns)
          sums[i] += x * take_real(at + (c + i) * matrix->column + k, n);
    }
    for (int i = 0; i < 4 && c + i < columns; i++)
      out[c + i] = sum(sums[i]);
  }
}

// out (rows × PADDED(width)) = a (rows × depth) times a matrix.
struct product {
  int64_t rows, depth, width;
  const real *a;
  int64_t a_stride;
  const struct matrix *matrix;
  real *out;
};

static void product_share(const void *context, int64_t share, int64_t shares)
{
  const struct product *const p = context;
  const int64_t panels = PADDED(p->width) / PANEL, out_stride = PADDED(p->width), end = panels * (share + 1) / shares;
  const real *const packed = p->matrix->packed;
  int64_t i = panels * share / shares;
  for (; !packed && i < end; i++)
    for (int64_t r = 0; r < p->rows; r++)
      row_product(p->depth, p->a + r * p->a_stride, p->matrix, i * PANEL,
                  p->width - i * PANEL < PANEL ? p->width - i * PANEL : PANEL, p->out + r * out_stride + i * PANEL);
  for (; p->rows == 1 && i + 2 <= end; i += 2)
    tile(1, 2, p->a, p->a_stride, p->depth, packed + i * p->depth * PANEL, p->out + i * PANEL, out_stride);
  for (; i < end; i++)
    panel_product(p->rows, p->depth, p->a, p->a_stride, packed + i * p->depth * PANEL, p->out + i * PANEL,
                  out_stride);
}

INLINE void product(int64_t rows, int64_t depth, int64_t width, const real *a, int64_t a_stride,
                    const struct matrix *matrix, real *out, struct team *team)
{
  const struct product product = {rows, depth, width, a, a_stride, matrix, out};
  with_help(team, product_share, &product);
}

// The same for steps, each of which takes its rows from a batch; out is contiguous.
UNUSED static void products(int64_t steps, int64_t batch, int64_t rows, int64_t depth, int64_t width, const real *a,
                            int64_t a_stride, const struct matrix *matrix, real *out, struct team *team)
{
  if (rows == batch || steps == 1) {
    product(steps * rows, depth, width, a, a_stride, matrix, out, team);
    return;
  }
  const int64_t panels = PADDED(width) / PANEL, out_stride = PADDED(width);
  for (int64_t p = 0; p < panels; p++)
    for (int64_t s = 0; s < steps; s++)
      panel_product(rows, depth, a + s * batch * a_stride, a_stride, matrix->packed + p * depth * PANEL,
                    out + s * rows * out_stride + p * PANEL, out_stride);
}
