// Products of two matrices: out (rows × width) = a (rows × depth) b (depth × width), plus a bias of every column.
//
// A task is a rectangle of the result. Of DEPTH of the depth at a time it packs its part of b into panels, as in
// product.h, and its part of a, if that lies column by column, into strips of TILE rows: a tile reads both from front
// to end, and both stay in the second cache. While tiles are multiplied, what will be packed next is fetched. A matrix
// b that does not lie row by row is packed once, before all tasks.

#define DEPTH 256
#define HEIGHT (24 * TILE)               // rows of the largest rectangle
#define WIDTH (2048 / (int)sizeof(real)) // and its columns
// Strips and panels lie a little apart, or they would compete for the same few places of the first cache.
#define APART (int)(64 / sizeof(real))
#define STRIP(depth) ((depth) * TILE + APART)
#define OWN_PANEL(depth) ((depth) * PANEL + APART)
#define STRIPS (WIDTH / PANEL * OWN_PANEL(DEPTH))      // where they begin in the memory of a thread, behind the panels
#define PACKED (STRIPS + HEIGHT / TILE * STRIP(DEPTH)) // numbers

struct matmul {
  const real *a, *b;
  real *out;        // contiguous
  const real *bias; // of every column, or NULL
  real *panels;     // memory for all of b, or NULL where b's columns lie side by side
  int64_t rows, depth, width;
  int64_t a_row, a_column, b_row, b_column; // strides; one of a's is 1
};

// Columns of a, which lie side by side: TILE of them at a time in a strip, the last one filled up with zeros.
static void pack_strips(const real *a, int64_t a_column, int64_t rows, int64_t depth, real *to)
{
  for (int64_t k = 0; k < depth; k += 4)
    for (int64_t r = 0; r < rows; r += TILE)
      for (int64_t i = k; i < k + 4 && i < depth; i++) {
        real *const strip = to + r / TILE * STRIP(depth) + i * TILE;
        if (r + TILE <= rows)
          memcpy(strip, a + i * a_column + r, TILE * sizeof(real));
        else
          for (int64_t j = 0; j < TILE; j++)
            strip[j] = r + j < rows ? a[i * a_column + r + j] : 0;
      }
}

// The same of fewer than TILE rows of a, whose columns may lie anywhere.
static void pack_strip(const real *a, int64_t a_row, int64_t a_column, int64_t rows, int64_t depth, real *to)
{
  for (int64_t k = 0; k < depth; k++)
    for (int64_t j = 0; j < TILE; j++)
      to[k * TILE + j] = j < rows ? a[j * a_row + k * a_column] : 0;
}

// Rows of b, whose columns lie side by side: PANEL of them at a time in a panel.
static void pack_panels(const real *b, int64_t b_row, int64_t width, int64_t depth, real *to)
{
  for (int64_t k = 0; k < depth; k++, b += b_row, to += PANEL)
    for (int64_t column = 0; column < width; column += PANEL) {
      real *const panel = to + column / PANEL * OWN_PANEL(depth);
      for (int64_t c = column; c < column + PANEL; c += LANES)
        store_real(panel + c - column, c < width ? take_real(b + c, PART(width - c)) : splat(0));
    }
}

// Memory that will be read soon: what is left of rows, from an offset in the first of them.
struct soon {
  const char *row;
  int64_t stride, bytes, rows, offset;
};

INLINE void fetch(struct soon *soon)
{
  for (int line = 0; line < 32 && soon->rows > 0; line++) {
    __builtin_prefetch(soon->row + soon->offset, 0, 2);
    soon->offset += 64;
    if (soon->offset >= soon->bytes)
      soon->offset = 0, soon->row += soon->stride, soon->rows--;
  }
}

// A tile of the result, added to what it begins with: a row for all its rows, its own ones, or, without any, zeros.
INLINE void add_tile(const real *a, int64_t a_row, int64_t a_column, const real *panel, int64_t depth, real *out,
                     int64_t out_row, const real *begin, int64_t begin_row)
{
  vec sums[TILE][2 * VECTORS];
  add_products(sums, TILE, 1, a, a_row, a_column, depth, panel);
  for (int r = 0; r < TILE; r++)
    for (int v = 0; v < VECTORS; v++) {
      const int64_t column = v * LANES;
      store_real(out + r * out_row + column,
                 begin ? sums[r][v] + load_real(begin + r * begin_row + column) : sums[r][v]);
    }
}

static void add_strip(const real *strip, const real *panel, int64_t depth, real *out, int64_t out_row,
                      const real *begin, int64_t begin_row)
{
  add_tile(strip, 1, TILE, panel, depth, out, out_row, begin, begin_row);
}

static void add_rows(const real *a, int64_t a_row, const real *panel, int64_t depth, real *out, int64_t out_row,
                     const real *begin, int64_t begin_row)
{
  add_tile(a, a_row, 1, panel, depth, out, out_row, begin, begin_row);
}

// A tile at the border, of fewer rows or columns.
static void add_border(const real *a, int64_t a_row, int strip, const real *panel, int64_t depth, real *out,
                       int64_t out_row, int64_t rows, int64_t columns, const real *begin, int64_t begin_row)
{
  real whole[TILE * PANEL];
  if (strip)
    add_strip(a, panel, depth, whole, PANEL, NULL, 0);
  else
    add_rows(a, a_row, panel, depth, whole, PANEL, NULL, 0);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < columns; c += LANES) {
      const int n = PART(columns - c);
      const vec sum = take_real(whole + r * PANEL + c, n);
      put_real(out + r * out_row + c, begin ? sum + take_real(begin + r * begin_row + c, n) : sum, n);
    }
}

static void multiply_rectangle(const struct matmul *m, int64_t top, int64_t rows, int64_t left, int64_t width,
                               real *packed)
{
  for (int64_t k = 0; k < m->depth || k == 0; k += DEPTH) {
    const int64_t depth = m->depth - k < DEPTH ? m->depth - k : DEPTH, behind = m->depth - k - depth;
    const real *const a = m->a + top * m->a_row + k * m->a_column, *const b = m->b + k * m->b_row + left * m->b_column;
    const int64_t size = sizeof(real), next = behind < DEPTH ? behind : DEPTH;
    struct soon soon[2] = {
      {(const char *)(a + DEPTH * m->a_column), m->a_column * size, rows * size, m->a_row == 1 ? next : 0, 0},
      {(const char *)(b + DEPTH * m->b_row), m->b_row * size, width * size, m->panels ? 0 : next, 0}};
    if (!m->panels)
      pack_panels(b, m->b_row, width, depth, packed);
    // Where the rows of a lie side by side only those of the last tile, if they are fewer, are packed.
    const int64_t unpacked = m->a_row == 1 ? 0 : rows / TILE * TILE;
    if (m->a_row == 1)
      pack_strips(a, m->a_column, rows, depth, packed + STRIPS);
    else if (unpacked < rows)
      pack_strip(a + unpacked * m->a_row, m->a_row, m->a_column, rows - unpacked, depth, packed + STRIPS);
    for (int64_t column = 0; column < width; column += PANEL) {
      const real *const panel = m->panels ? m->panels + (left + column) * m->depth + k * PANEL
                                          : packed + column / PANEL * OWN_PANEL(depth);
      real *const out = m->out + top * m->width + left + column;
      const int64_t columns = width - column < PANEL ? width - column : PANEL;
      for (int64_t r = 0; r < rows; r += TILE) {
        const int strip = r >= unpacked;
        const real *const tile = strip ? packed + STRIPS + (r - unpacked) / TILE * STRIP(depth) : a + r * m->a_row;
        real *const to = out + r * m->width;
        const real *const begin = k > 0 ? to : m->bias ? m->bias + left + column : NULL;
        const int64_t begin_row = k > 0 ? m->width : 0;
        fetch(soon), fetch(soon + 1);
        if (rows - r < TILE || columns < PANEL)
          add_border(tile, m->a_row, strip, panel, depth, to, m->width, rows - r < TILE ? rows - r : TILE, columns,
                     begin, begin_row);
        else if (strip)
          add_strip(tile, panel, depth, to, m->width, begin, begin_row);
        else
          add_rows(tile, m->a_row, panel, depth, to, m->width, begin, begin_row);
      }
    }
  }
}

struct matmuls {
  const struct matmul *all; // the longest tasks first
  int64_t count;
  int64_t height, width; // of a rectangle
  real *work;            // PACKED numbers for each thread
  struct threads threads;
};

static int64_t panels(const struct matmul *m) { return m->panels ? PADDED(m->width) / PANEL : 0; }

static void pack_task(const void *context, int64_t task, UNUSED int64_t worker)
{
  const struct matmuls *matmuls = context;
  const struct matmul *m = matmuls->all;
  for (; task >= panels(m); m++)
    task -= panels(m);
  pack_real(m->b, m->b_row, m->b_column, m->depth, m->width, m->panels, task);
}

static int64_t columns_of_rectangles(const struct matmuls *matmuls, const struct matmul *m)
{
  return (m->width + matmuls->width - 1) / matmuls->width;
}
static int64_t rectangles(const struct matmuls *matmuls, const struct matmul *m)
{
  return (m->rows + matmuls->height - 1) / matmuls->height * columns_of_rectangles(matmuls, m);
}

static void multiply_task(const void *context, int64_t task, int64_t worker)
{
  const struct matmuls *matmuls = context;
  const struct matmul *m = matmuls->all;
  for (; task >= rectangles(matmuls, m); m++)
    task -= rectangles(matmuls, m);
  const int64_t across = columns_of_rectangles(matmuls, m);
  const int64_t top = task / across * matmuls->height, left = task % across * matmuls->width;
  multiply_rectangle(m, top, m->rows - top < matmuls->height ? m->rows - top : matmuls->height, left,
                     m->width - left < matmuls->width ? m->width - left : matmuls->width,
                     matmuls->work + worker * PACKED);
}

int64_t packed(void) { return PACKED; }
int64_t padded(int64_t width) { return PADDED(width); }

void multiply(struct matmuls *matmuls)
{
  int64_t tasks, packs = 0;
  for (int64_t i = 0; i < matmuls->count; i++)
    packs += panels(matmuls->all + i);
  share(&matmuls->threads, pack_task, matmuls, packs);
  matmuls->height = HEIGHT, matmuls->width = WIDTH;
  for (;;) {
    tasks = 0;
    for (int64_t i = 0; i < matmuls->count; i++)
      tasks += rectangles(matmuls, matmuls->all + i);
    if (tasks >= 4 * matmuls->threads.count || (matmuls->height <= 4 * TILE && matmuls->width <= PANEL))
      break;
    // Of two rectangles of one area the one nearer to a square packs less.
    if (matmuls->width > PANEL && (matmuls->width > matmuls->height || matmuls->height <= 4 * TILE))
      matmuls->width /= 2;
    else
      matmuls->height = matmuls->height / 2 / TILE * TILE;
  }
  share(&matmuls->threads, multiply_task, matmuls, tasks);
}
