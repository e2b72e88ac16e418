"""Convolution of every channel by itself along one axis, in Triton.

Imported only where it runs: it needs Triton. All of it runs in Triton's interpreter too.

A tile has some channels and some groups of SIDE neighbouring steps; the axis whose entries lie side by side in memory
is its last one: time, or with LAST the channels. A group is a tuple of SIDE tiles, one for each of its steps. Along
time its entries are read together, in blocks that begin at multiples of SIDE, and what is shifted is put together of
two neighbouring blocks; with LAST every step of a group is a read of its own. Either way a thread reads and writes
whole vectors, and what several taps read alike is read once.

The channels of a tile in a sample are a tuple: where each begins, which there are, the distance between two entries
along time, and how many entries there are.

Distances and sizes along the axis that lies side by side are passed in units of UNIT entries, so that the compiler
knows how they are aligned.
"""

# ruff: noqa: RUF005 (Triton unpacks no tuples)
# mypy: disable-error-code="assignment"
from __future__ import annotations

import triton
import triton.language as tl

from pellucid.kernel.windows import triton_depthwise

MOST_UNROLLED = tl.constexpr(triton_depthwise.MOST_UNROLLED)
CHUNK = tl.constexpr(triton_depthwise.CHUNK)
DISTANCES = ["x_batch", "x_row", "y_batch", "y_row", "dy_batch", "dy_row", "dx_batch", "dx_row"]
# UNIT says what there is to know of them: no number needs a kernel of its own.
NUMBERS = [*DISTANCES, "channels", "length", "results", "tiles", "spans", "units", "share"]


@triton.jit
def along_channels(values, LAST: tl.constexpr):
    """Numbers of channels as a tile."""
    return values[None, :] if LAST else values[:, None]


@triton.jit
def along_time(values, LAST: tl.constexpr):
    """Numbers of steps as a tile."""
    return values[:, None] if LAST else values[None, :]


@triton.jit
def halves(block):
    """The even and the odd columns."""
    return tl.split(tl.reshape(block, [block.shape[0], block.shape[1] // 2, 2]))


@triton.jit
def quarters(block):
    """Every fourth column, from each of the first four."""
    even, odd = halves(block)
    a, c = halves(even)
    b, d = halves(odd)
    return a, b, c, d


@triton.jit
def parted(block, SIDE: tl.constexpr):
    """The steps of all groups in a block of channels times groups · SIDE."""
    if SIDE == 2:
        found = halves(block)
    elif SIDE == 4:
        found = quarters(block)
    else:
        tl.static_assert(SIDE == 8)
        even, odd = halves(block)
        a, c, e, g = quarters(even)
        b, d, f, h = quarters(odd)
        found = a, b, c, d, e, f, g, h
    return found


@triton.jit
def whole(steps, SIDE: tl.constexpr):
    """The block whose groups have these steps."""
    if SIDE == 2:
        block = tl.interleave(steps[0], steps[1])
    elif SIDE == 4:
        block = tl.interleave(tl.interleave(steps[0], steps[2]), tl.interleave(steps[1], steps[3]))
    else:
        tl.static_assert(SIDE == 8)
        even = tl.interleave(tl.interleave(steps[0], steps[4]), tl.interleave(steps[2], steps[6]))
        odd = tl.interleave(tl.interleave(steps[1], steps[5]), tl.interleave(steps[3], steps[7]))
        block = tl.interleave(even, odd)
    return block


@triton.jit
def read_at(channels, place, DIVISOR: tl.constexpr, REAL: tl.constexpr):
    """The entries at places along time, 0 beyond the ends and, of a divided place, where a rest is left."""
    begin, real, distance, length = channels
    real = real & (place >= 0)
    if DIVISOR > 1:
        real = real & (place % DIVISOR == 0)
        place = place // DIVISOR
    return tl.load(begin + place.to(tl.int64) * distance, mask=real & (place < length), other=0.0).to(REAL)


@triton.jit
def read(
    channels,
    first,
    origin,
    shift,
    MULTIPLE: tl.constexpr,
    DIVISOR: tl.constexpr,
    STEPS: tl.constexpr,
    SIDE: tl.constexpr,
    LAST: tl.constexpr,
    REAL: tl.constexpr,
):
    """The groups of a tile, shifted along time: step i is the entry at (i · MULTIPLE + origin + shift) / DIVISOR.

    Args:
        channels: those of the tile.
        first: the first step of the tile.
        origin: a shift by a multiple of CHUNK.
        shift: a further one, which the compiler knows.
    """
    if SIDE == 1:
        place = along_time((first + tl.arange(0, STEPS)) * MULTIPLE + origin, LAST) + shift
        found = (read_at(channels, place, DIVISOR, REAL),)
    elif LAST:
        place = along_time(first + origin + tl.arange(0, STEPS) * SIDE, LAST)
        found = ()
        for i in tl.static_range(SIDE):
            found = found + (read_at(channels, place + (shift + i), 1, REAL),)
    else:
        place = along_time(first + origin + tl.arange(0, STEPS * SIDE), LAST)
        block = read_at(channels, place + shift // SIDE * SIDE, 1, REAL)
        found = parted(block, SIDE)
        if shift % SIDE != 0:
            block = read_at(channels, place + (shift // SIDE + 1) * SIDE, 1, REAL)
            both = found + parted(block, SIDE)
            found = ()
            for i in tl.static_range(SIDE):
                found = found + (both[shift % SIDE + i],)
    return found


@triton.jit
def write(channels, first, steps, STEPS: tl.constexpr, SIDE: tl.constexpr, LAST: tl.constexpr):
    """Write the groups of a tile where they lie."""
    begin, real, distance, length = channels
    kind = begin.dtype.element_ty
    if SIDE == 1 or LAST:
        place = along_time(first + tl.arange(0, STEPS) * SIDE, LAST)
        for i in tl.static_range(SIDE):
            at = place + i
            tl.store(begin + at.to(tl.int64) * distance, steps[i].to(kind), mask=real & (at < length))
    else:
        found = ()
        for i in tl.static_range(SIDE):
            found = found + (steps[i].to(kind),)
        at = along_time(first + tl.arange(0, STEPS * SIDE), LAST)
        tl.store(begin + at.to(tl.int64) * distance, whole(found, SIDE), mask=real & (at < length))


@triton.jit
def added(totals, factor, steps, SIDE: tl.constexpr):
    """totals + factor · steps."""
    found = ()
    for i in tl.static_range(SIDE):
        found = found + (totals[i] + factor * steps[i],)
    return found


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr, COUNT: tl.constexpr, LAST: tl.constexpr, REAL: tl.constexpr):
    """A tuple of tiles of zeros, of ROWS channels and COLUMNS groups."""
    zero = tl.zeros([COLUMNS, ROWS], REAL) if LAST else tl.zeros([ROWS, COLUMNS], REAL)
    found = ()
    for _ in tl.static_range(COUNT):
        found = found + (zero,)
    return found


@triton.jit
def channels_of(tensor, sample, batch, channel, real, row, length, UNIT: tl.constexpr, LAST: tl.constexpr):
    """The channels of a tile in a sample; distances are those of samples and of what does not lie side by side."""
    begin = tensor + tl.cast(sample, tl.int64) * batch * UNIT
    begin += channel if LAST else channel.to(tl.int64) * row * UNIT
    return begin, real, tl.cast(row, tl.int64) * UNIT if LAST else 1, length


@triton.jit
def weight_of(w, k, channel, real, channels, KERNEL: tl.constexpr, LAST: tl.constexpr, REAL: tl.constexpr):
    """The weights of a tap: of (channels, KERNEL), with LAST of (KERNEL, channels)."""
    at = k * channels + channel if LAST else channel * KERNEL + k
    return tl.load(w + at, mask=real, other=0.0).to(REAL)


@triton.jit(do_not_specialize=NUMBERS)
def forward(
    x,
    w,
    b,
    y,
    x_batch,
    x_row,
    y_batch,
    y_row,
    channels,
    length,
    results,
    tiles,
    spans,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    LEFT: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    BIAS: tl.constexpr,
    LAST: tl.constexpr,
    UNIT: tl.constexpr,
    SIDE: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    REAL: tl.constexpr,
):
    """y[c, t] = b[c] + the sum over k of w[c, k] · x[c // MULTIPLIER, t · STRIDE + k · DILATION - LEFT].

    Args:
        x: (batch, channels, length); x_row is the distance between two channels, with LAST between two steps.
        w: (out channels, KERNEL), with LAST (KERNEL, out channels).
        b: (out channels,).
        y: (batch, out channels, results).
        channels: how many out channels there are.
        tiles: of channels.
        spans: tiles along time.
    """
    number = tl.program_id(0)
    if LAST:
        channels *= UNIT
        tile, span, sample = number % tiles, number // tiles % spans, number // tiles // spans
    else:
        length *= UNIT
        results *= UNIT
        span, tile, sample = number % spans, number // spans % tiles, number // spans // tiles
    channel = along_channels(tile * ROWS + tl.arange(0, ROWS), LAST)
    real, first = channel < channels, span * STEPS * SIDE
    source = channel // MULTIPLIER if MULTIPLIER > 1 else channel
    given = channels_of(x, sample, x_batch, source, real, x_row, length, UNIT, LAST)
    result = channels_of(y, sample, y_batch, channel, real, y_row, results, UNIT, LAST)
    totals = zeros(ROWS, STEPS, SIDE, LAST, REAL)
    if BIAS:
        totals = added(totals, tl.load(b + channel, mask=real, other=0.0).to(REAL), (1.0,) * SIDE, SIDE)
    LOOPED: tl.constexpr = 0 if KERNEL <= MOST_UNROLLED else KERNEL // CHUNK * CHUNK
    for chunk in range(0, LOOPED, CHUNK):
        for i in tl.static_range(CHUNK):
            weight = weight_of(w, chunk + i, channel, real, channels, KERNEL, LAST, REAL)
            steps = read(given, first, chunk * DILATION, i * DILATION - LEFT, STRIDE, 1, STEPS, SIDE, LAST, REAL)
            totals = added(totals, weight, steps, SIDE)
    for k in tl.static_range(LOOPED, KERNEL):
        weight = weight_of(w, k, channel, real, channels, KERNEL, LAST, REAL)
        steps = read(given, first, 0, k * DILATION - LEFT, STRIDE, 1, STEPS, SIDE, LAST, REAL)
        totals = added(totals, weight, steps, SIDE)
    write(result, first, totals, STEPS, SIDE, LAST)


@triton.jit(do_not_specialize=NUMBERS)
def backward(
    x,
    w,
    dy,
    dx,
    parts,
    x_batch,
    x_row,
    dy_batch,
    dy_row,
    dx_batch,
    dx_row,
    channels,
    length,
    results,
    tiles,
    spans,
    units,
    share,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    LEFT: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    INPUT: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    TAPS: tl.constexpr,
    GROUPED: tl.constexpr,
    LAST: tl.constexpr,
    UNIT: tl.constexpr,
    SIDE: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    REAL: tl.constexpr,
):
    """The gradients of the input and, as sums of every part, of weight and bias, from the same entries of dy.

    Both read dy at u + LEFT - k · DILATION for a place u of the input: dx[u] sums w[k] · dy over the taps, dw[k] sums
    x[u] · dy over the places. A program has a tile of channels and a share of the units, which are tiles along time of
    all samples.

    Args:
        parts: (parts, out channels, KERNEL + 1), the bias behind the taps.
        channels: how many there are: in channels if only INPUT is asked for, else out channels.
        units: spans times samples.
        share: units of a part.
        INPUT: write dx; with WEIGHT too there is one out channel for each in channel.
        WEIGHT: write parts.
        TAPS: of a program; with GROUPED further ones are those of other programs, along the second axis.
    """
    part, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    skipped = tl.program_id(1) * TAPS if GROUPED else 0
    if LAST:
        channels *= UNIT
    else:
        length *= UNIT
        results *= UNIT
    # A program with sums has few taps and knows them.
    LOOPED: tl.constexpr = 0 if WEIGHT or KERNEL <= MOST_UNROLLED else KERNEL // CHUNK * CHUNK
    EACH: tl.constexpr = MULTIPLIER if not WEIGHT else 1  # out channels of a channel of the tile
    SHARED: tl.constexpr = MULTIPLIER if WEIGHT else 1  # channels of the tile that read one in channel
    channel = along_channels(tile * ROWS + tl.arange(0, ROWS), LAST)
    real = channel < channels
    sums = zeros(ROWS, STEPS, TAPS + 1 if WEIGHT else 0, LAST, REAL)
    for unit in range(part * share, tl.minimum(part * share + share, units)):
        sample, first = unit // spans, unit % spans * STEPS * SIDE
        if WEIGHT:
            source = channel // SHARED if SHARED > 1 else channel
            given = channels_of(x, sample, x_batch, source, real, x_row, length, UNIT, LAST)
            entries = read(given, first, 0, 0, 1, 1, STEPS, SIDE, LAST, REAL)
        totals = zeros(ROWS, STEPS, SIDE, LAST, REAL)
        for j in tl.static_range(EACH):
            out = channel * EACH + j
            gradient = channels_of(dy, sample, dy_batch, out, real, dy_row, results, UNIT, LAST)
            for chunk in range(0, LOOPED, CHUNK):
                for i in tl.static_range(CHUNK):
                    weight = weight_of(w, chunk + i, out, real, channels * EACH, KERNEL, LAST, REAL)
                    steps = read(
                        gradient, first, -chunk * DILATION, LEFT - i * DILATION, 1, STRIDE, STEPS, SIDE, LAST, REAL
                    )
                    totals = added(totals, weight, steps, SIDE)
            found = ()
            for i in tl.static_range(LOOPED, TAPS):
                steps = read(
                    gradient, first, -skipped * DILATION, LEFT - i * DILATION, 1, STRIDE, STEPS, SIDE, LAST, REAL
                )
                if INPUT:
                    weight = weight_of(w, i, out, real, channels * EACH, KERNEL, LAST, REAL)
                    totals = added(totals, weight, steps, SIDE)
                if WEIGHT:
                    total = sums[i]
                    for s in tl.static_range(SIDE):
                        total += entries[s] * steps[s]
                    found = found + (total,)
            if WEIGHT:
                total = sums[TAPS]
                if BIAS:
                    steps = read(gradient, first, 0, 0, 1, 1, STEPS, SIDE, LAST, REAL)
                    for s in tl.static_range(SIDE):
                        total += steps[s]
                sums = found + (total,)
        if INPUT:
            result = channels_of(dx, sample, dx_batch, channel, real, dx_row, length, UNIT, LAST)
            write(result, first, totals, STEPS, SIDE, LAST)
    if WEIGHT:
        channel = tile * ROWS + tl.arange(0, ROWS)
        at = parts + (tl.cast(part, tl.int64) * channels + channel) * (KERNEL + 1)
        for i in tl.static_range(TAPS):
            count = tl.where(skipped + i < KERNEL, channels, 0) if GROUPED else channels
            tl.store(at + skipped + i, tl.sum(sums[i], 0 if LAST else 1), mask=channel < count)
        if BIAS:
            count = tl.where(skipped == 0, channels, 0) if GROUPED else channels
            tl.store(at + KERNEL, tl.sum(sums[TAPS], 0 if LAST else 1), mask=channel < count)


@triton.jit(do_not_specialize=["count", "columns"])
def add_parts(
    parts, dw, db, count, columns, KERNEL: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The gradients of weight and bias: the sums of all parts, (count, columns), always in the same order."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row, real = tl.arange(0, ROWS)[:, None], column < columns
    totals = tl.zeros([ROWS, COLUMNS], parts.dtype.element_ty)
    for start in range(0, count, ROWS):
        place = (start + row).to(tl.int64) * columns + column[None, :]
        totals += tl.load(parts + place, mask=(start + row < count) & real[None, :], other=0.0)
    total = tl.sum(totals, 0)
    out, tap = column // (KERNEL + 1), column % (KERNEL + 1)
    tl.store(dw + out * KERNEL + tap, total.to(dw.dtype.element_ty), mask=real & (tap < KERNEL))
    if BIAS:
        tl.store(db + out, total.to(db.dtype.element_ty), mask=real & (tap == KERNEL))
