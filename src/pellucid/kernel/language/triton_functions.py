"""What emitted Triton calls: the functions that the language lacks, products, random numbers.

Imported by emitted modules only: it needs Triton. All of it runs in Triton's interpreter too.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def nothing(place):
    """The smallest kernel: where it runs, others do."""
    tl.store(place, 0.0)


@triton.jit
def add_parts(parts, place, count, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Add so many parts, each of so many columns, in an order that is always the same."""
    row, column = tl.arange(0, ROWS), tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < columns
    total = tl.zeros([ROWS, COLUMNS], parts.dtype.element_ty)
    for begin in range(0, count, ROWS):
        lies = (begin + row).to(tl.int64)[:, None] * columns + column[None, :]
        total += tl.load(parts + lies, mask=(begin + row < count)[:, None] & there[None, :], other=0.0)
    tl.store(place + column, tl.sum(total, 0).to(place.dtype.element_ty), mask=there)


@triton.jit
def expm1(x):
    """Kahan's way: the rounding of exp(x) cancels."""
    e = tl.exp(x)
    safe = tl.where((e == 1.0) | (e <= 0.0) | (e - 1.0 == e), 2.0, e)
    near = (safe - 1.0) * x / tl.log(safe)
    return tl.where(e == 1.0, x, tl.where(safe == e, near, e - 1.0))


@triton.jit
def log1p(x):
    """Kahan's way: the rounding of 1 + x cancels."""
    u = 1.0 + x
    safe = tl.where((u == 1.0) | (u - 1.0 == u), 2.0, u)
    near = tl.log(safe) * x / (safe - 1.0)
    return tl.where(u == 1.0, x, tl.where(safe == u, near, tl.log(u)))


@triton.jit
def tanh(x):
    """By an exponential that does not overflow; near 0, where that cancels, in float64 by expm1, else by its series."""
    if x.dtype == tl.float64:
        t = expm1(-2.0 * tl.abs(x))
        y = -t / (t + 2.0)
    else:
        e = tl.exp(-2.0 * tl.abs(x))
        y = (1.0 - e) / (1.0 + e)
        s = x * x
        series = 1.0 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835 - s * (1382 / 155925)))))
        y = tl.where(s < 0.09, tl.abs(x) * series, y)
    return tl.where(x < 0, -y, y)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), by the exponential that does not overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def softplus(x):
    """log(1 + exp(x))."""
    above = tl.where(x > 0, x, 0.0)
    return tl.where(x != x, x, above + log1p(tl.exp(-tl.abs(x))))


@triton.jit
def share_below(x):
    """The share of the normal distribution below x."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu(x):
    """x times the share of the normal distribution below it."""
    return x * share_below(x)


@triton.jit
def gelu_slope(x):
    """The slope of gelu, by the normal distribution's density."""
    return share_below(x) + x * (tl.exp(-0.5 * x * x) * 0.3989422804014327)


@triton.jit
def relu(x):
    """The larger of x and 0; NaN stays."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def sign(x):
    """-1, 0 or 1 in x's type: numbers alone would be of float32, and so what is made of them."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0)).to(x.dtype)


@triton.jit
def trunc(x):
    """Towards zero."""
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def nearest(x):
    """The nearest whole number, an even one where two are as near."""
    low = tl.floor(x)
    rest = x - low
    odd = low - 2.0 * tl.floor(low * 0.5)
    return tl.where((rest > 0.5) | ((rest == 0.5) & (odd != 0.0)), low + 1.0, low)


@triton.jit
def sinh(x):
    """Of expm1: nothing cancels near 0."""
    e = expm1(tl.abs(x))
    y = 0.5 * (e + e / (e + 1.0))
    y = tl.where(e < float("inf"), y, e)
    return tl.where(x < 0, -y, y)


@triton.jit
def cosh(x):
    """The mean of exp(x) and exp(-x)."""
    e = tl.exp(tl.abs(x))
    return 0.5 * (e + 1.0 / e)


@triton.jit
def asinh(x):
    """Of log1p: nothing cancels near 0."""
    a = tl.abs(x)
    large = a > 1e6
    s = tl.where(large, 1.0, a)
    y = tl.where(large, tl.log(a) + 0.6931471805599453, log1p(s + s * s / (1.0 + tl.sqrt(s * s + 1.0))))
    return tl.where(x < 0, -y, y)


@triton.jit
def acosh(x):
    """Of log1p: nothing cancels near 1."""
    large = x > 1e6
    t = tl.where(large, 1.0, x) - 1.0
    return tl.where(large, tl.log(x) + 0.6931471805599453, log1p(t + tl.sqrt(2.0 * t + t * t)))


@triton.jit
def atanh(x):
    """Of log1p: nothing cancels near 0."""
    a = tl.abs(x)
    y = 0.5 * log1p(2.0 * a / (1.0 - a))
    return tl.where(x < 0, -y, y)


@triton.jit
def hypot(a, b):
    """The length of (a, b), whose squares may be too large or too small."""
    a, b = tl.abs(a), tl.abs(b)
    most = tl.maximum(a, b)
    scale = tl.where((most == 0) | (most == float("inf")), 1.0, most)
    a, b = a / scale, b / scale
    return scale * tl.sqrt(a * a + b * b)


@triton.jit
def copysign(a, b):
    """The magnitude of a with the sign of b, of a zero too."""
    return tl.where((b < 0) | (1.0 / b < 0), -tl.abs(a), tl.abs(a))


@triton.jit
def maximum(a, b):
    """The larger; NaN where one of them is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    """The smaller; NaN where one of them is."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def multiplied(a, b):
    """What a product over columns does with two of them."""
    return a * b


@triton.jit
def square(x):
    """x times x."""
    return x * x


@triton.jit
def squares_of_all(squares, sums, counts):
    """Sums of squared deviations of parts, each from its mean, as one from the mean of all, along the first axis."""
    centre = tl.sum(sums, 0, keep_dims=True) / tl.sum(counts, 0, keep_dims=True)
    means = sums / tl.where(counts == 0, 1.0, counts)
    return tl.sum(squares + counts * square(means - centre), 0, keep_dims=True)


@triton.jit
def words(low, high, LIES: tl.constexpr):
    """The two halves of a number of 64 bits: given apart, or, where it ``LIES`` in memory, read from the first."""
    if LIES:
        whole = tl.load(low)
        return whole.to(tl.uint32), (whole >> 32).to(tl.uint32)
    else:
        return low.to(tl.uint32), high.to(tl.uint32)


@triton.jit
def number(low, high, REAL: tl.constexpr):
    """A number of each call: that of float64 comes as the halves of its bits, any other as ``low``."""
    if tl.float64 == REAL:
        return ((high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)).to(tl.float64, bitcast=True)
    else:
        return low


@triton.jit
def philox(key, key_high, stream, stream_high, block):
    """The four words of blocks of Philox-4x32-10, as in `random`."""
    zero = (block * 0).to(tl.uint32)
    high = zero if block.dtype == tl.int32 else (block >> 32).to(tl.uint32)
    return tl.philox_impl(block.to(tl.uint32), high, zero + stream, zero + stream_high, key, key_high)


@triton.jit
def fraction(word):
    """A word as a number in [0, 1)."""
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def uniform_of(key, key_high, stream, stream_high, element):
    """The numbers of elements of a stream, the same bits as `random.uniform` on any device."""
    place = element % 4
    a, b, c, d = philox(key, key_high, stream, stream_high, element // 4)
    return fraction(tl.where(place == 0, a, tl.where(place == 1, b, tl.where(place == 2, c, d))))


@triton.jit
def uniform_in_fours(key, key_high, stream, stream_high, element):
    """The numbers of elements and of the three behind each, side by side; elements are multiples of four."""
    a, b, c, d = philox(key, key_high, stream, stream_high, element // 4)
    return tl.interleave(tl.interleave(fraction(a), fraction(c)), tl.interleave(fraction(b), fraction(d)))


@triton.jit
def uniform(seed, site: tl.constexpr, element):
    """The numbers of elements of a site's stream."""
    return uniform_of(seed.to(tl.uint32), (seed >> 32).to(tl.uint32), site, 0, element)


@triton.jit
def product(matrix, tile, INTERPRETED: tl.constexpr, TF32: tl.constexpr):
    """matrix @ tile in the matrix's type, added up in float32 (float64 for float64).

    Without TF32 float32 is exact: matrix units multiply 11 bits of it, so what is left of a factor beyond these is
    multiplied apart. The interpreter multiplies the bits of bfloat16, so there both are float32, rounded before.
    """
    tile = tile.to(matrix.dtype)
    if INTERPRETED and matrix.dtype != tl.float64:
        return tl.dot(matrix.to(tl.float32), tile.to(tl.float32), input_precision="ieee")
    if matrix.dtype == tl.float64:
        return tl.dot(matrix, tile, out_dtype=tl.float64)
    if matrix.dtype == tl.float32 and not TF32:
        high, high_tile = leading_bits(matrix), leading_bits(tile)
        rest = tl.dot(high, trailing_bits(tile, high_tile), input_precision="tf32")
        rest = tl.dot(trailing_bits(matrix, high), high_tile, rest, input_precision="tf32")
        return tl.dot(high, high_tile, rest, input_precision="tf32")
    return tl.dot(matrix, tile, input_precision="tf32")


@triton.jit
def spread(tile, SIDE: tl.constexpr):
    """The numbers of a row, (depth, 1), as (1, SIDE, pieces): those of a piece are neighbours.

    Without `gather`, which changes nothing, the compiler would cut matrices among the threads as the row is cut.
    """
    DEPTH: tl.constexpr = tile.shape[0]
    row = tl.gather(tl.reshape(tile, [DEPTH]), tl.arange(0, DEPTH), 0)
    return tl.reshape(tl.trans(tl.reshape(row, [DEPTH // SIDE, SIDE])), [1, SIDE, DEPTH // SIDE])


@triton.jit
def halves(pieces):
    """The pieces of even and those of odd number."""
    SIDE: tl.constexpr = pieces.shape[1]
    return tl.split(tl.reshape(pieces, [1, SIDE, pieces.shape[2] // 2, 2]))


@triton.jit
def leading_bits(x):
    """float32 rounded to TF32."""
    return ((x.to(tl.uint32, bitcast=True) + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)


@triton.jit
def trailing_bits(x, leading):
    """What is left of x; nothing of an infinite one. (x - x would not be 0 where x is a product: it is fused.)"""
    return leading_bits(tl.where(tl.abs(x) < float("inf"), x - leading, 0.0))


@triton.jit
def product_from_memory(
    tile,
    depth,
    matrix,
    stride_in,
    stride_out,
    within,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH_BLOCK: tl.constexpr,
    REAL: tl.constexpr,
    INTERPRETED: tl.constexpr,
    TF32: tl.constexpr,
):
    """Some ``columns`` of the product with a matrix too large to be held, a block of its rows at a time."""
    total = tl.zeros([COLUMNS, ROWS], REAL)
    for begin in range(0, depth, DEPTH_BLOCK):
        along = begin + tl.arange(0, DEPTH_BLOCK)
        rows = tl.load(tile + along[:, None], mask=along[:, None] < depth, other=0.0, cache_modifier=".cg")
        place = matrix + along[None, :].to(tl.int64) * stride_in + columns.to(tl.int64) * stride_out
        part = tl.load(place, mask=(along[None, :] < depth) & within, other=0.0)
        total += product(part, rows, INTERPRETED, TF32)
    return total


@triton.jit
def meet(counter, expected):
    """Wait until the blocks of a group have counted up to a number: what they wrote before can be read then."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release")
    while tl.atomic_add(counter, 0, sem="acquire") < expected:
        pass
    tl.debug_barrier()
