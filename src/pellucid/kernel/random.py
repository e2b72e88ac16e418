"""Counter-based random numbers: Philox-4x32-10, the same bits on every device, for any split and in any order.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The counter is two words of
the block and two of the stream, the key is the seed; a block gives the four numbers of elements 4b to 4b + 3.
"""

from __future__ import annotations

import ctypes
import functools
import math
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.kernel import build, memory
from pellucid.kernel.language.text_c import preamble
from pellucid.kernel.tensors import in_plain_python
from pellucid.kernel.threads import useful

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

# The work of a chunk stays in a core's second cache. Below 2^15 elements torch keeps an operation on one thread: two or
# three threads gain less than waiting for each other at every operation costs, as soon as one of them is held up.
_COUNTERS_PER_THREAD = 1 << 15
_COUNTERS_ON_DEVICE = 1 << 22  # elsewhere only the memory of the intermediate words is bounded


def draw_seed(generator: torch.Generator | None = None) -> Tensor:
    """Draw a 64-bit seed, a tensor without axes on the CPU, from torch's CPU generator or from the given one."""
    device = torch.device("cpu") if generator is None else generator.device
    limit = 2**63 - 1
    return torch.randint(-limit, limit, (), dtype=torch.int64, device=device, generator=generator)


def uniform(
    shape: Sequence[int],
    seed: Tensor | int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    stream: Tensor | int = 0,
    offset: int = 0,
) -> Tensor:
    """Return numbers in [0, 1), each decided by the seed, the stream and the index of its element alone.

    Elements are counted in the order of a contiguous tensor, from ``offset``: ``uniform((10,), seed)`` is
    ``uniform((4,), seed)`` followed by ``uniform((6,), seed, offset=4)``.

    Arguments:
        shape: the shape of the result.
        seed: 64 bits, an integer or an int64 tensor without axes (which ``torch.func.vmap`` may batch).
        device: where the numbers are made; the CPU by default.
        dtype: a floating type. The upper bits of one 32-bit word become the number: 24 in float32, 32 in float64,
            11 in float16, 8 in bfloat16; so the same draw in two types differs by its rounding down only.
        stream: an independent sequence of the same seed; 64 bits, like the seed.
        offset: the index of the first element.

    Raises:
        TypeError: ``dtype`` is not floating.
        ValueError: ``offset`` is negative.
    """
    if not dtype.is_floating_point:
        raise TypeError(f"uniform numbers are fractions: dtype must be floating, but it is {dtype}")
    if offset < 0:
        raise ValueError(f"offset is the index of the first element and cannot be negative, but it is {offset}")
    device = torch.device("cpu") if device is None else torch.device(device)
    if device.type == "cpu" and dtype == torch.float32 and in_plain_python(seed, stream):
        library = _library()
        if library is not None:
            return _filled(library, shape, int(seed), int(stream), offset)
    seed, stream = _words64(seed, device), _words64(stream, device)
    keys = round_keys(seed & WORD, (seed >> 32) & WORD)
    bits = min(32, 1 - round(math.log2(torch.finfo(dtype).eps)))
    count = math.prod(shape)
    known = isinstance(count, int)
    # Of an unknown size one block more: a number of blocks that is 1 in an example would be 1 in a graph for ever.
    first, last = offset // 4, (offset + count + (3 if known else 7)) // 4

    def words(start: int, stop: int) -> tuple[Tensor, ...]:
        block = torch.arange(start, stop, device=device)
        drawn = philox((block & WORD, block >> 32, stream & WORD, (stream >> 32) & WORD), keys)
        return tuple(word >> (32 - bits) for word in drawn)

    # A compiler fuses the whole of it; a trace would have as many chunks as its example for ever.
    if torch.compiler.is_compiling() or torch._C._is_tracing() or last - first <= (step := _chunk(device)):
        drawn = torch.stack(words(first, last), dim=-1).to(dtype)  # (blocks, 4)
    else:
        drawn = (seed ^ stream).new_empty((last - first, 4), dtype=dtype)  # batched where one of them is
        for start in range(first, last, step):
            for lane, word in enumerate(words(start, min(start + step, last))):
                drawn[start - first : start - first + step, lane] = word
    drawn, begin = drawn.mul_(2.0**-bits).flatten(), offset - 4 * first
    if not known:  # torch.export cannot see that a slice ends where there are numbers
        return drawn[begin + torch.arange(count, device=device)].reshape(tuple(shape))
    return drawn[begin:][:count].reshape(tuple(shape))


_UNIFORM = """
struct wanted { float *out; int64_t count; uint64_t seed, stream, first; };
// What is kept gets a scale, what drew less than p a zero.
void kept(float *out, int64_t count, uint64_t seed, uint64_t stream, float p, float scale)
{
  philox_uniform(out, count, seed, stream, 0);
  for (int64_t i = 0; i < count; i++)
    out[i] = out[i] >= p ? scale : 0;
}
static void part(const void *context, int64_t task, UNUSED int64_t worker)
{
  const struct wanted *const w = context;
  const int64_t begin = task * 16384, left = w->count - begin;
  philox_uniform(w->out + begin, left < 16384 ? left : 16384, w->seed, w->stream, w->first + (uint64_t)begin);
}
void uniform(float *out, int64_t count, uint64_t seed, uint64_t stream, uint64_t first, const struct threads *threads)
{
  const struct wanted wanted = {out, count, seed, stream, first};
  share(threads, part, &wanted, (count + 16383) / 16384);
}
"""


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The same numbers by C; None without a compiler, of which the layers that draw tell."""
    try:
        library = build.load(preamble("float32") + _UNIFORM)
    except build.BuildError:
        return None
    pointer, count, word, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64, ctypes.c_float
    library.uniform.argtypes, library.uniform.restype = [pointer, count, word, word, word, pointer], None
    library.kept.argtypes, library.kept.restype = [pointer, count, word, word, real, real], None
    return library


def _filled(library: ctypes.CDLL, shape: Sequence[int], seed: int, stream: int, first: int) -> Tensor:
    drawn = memory.empty(tuple(shape), torch.float32)
    threads = array("q", useful(OPERATIONS_FOR_A_NUMBER * drawn.numel()))
    library.uniform(drawn.data_ptr(), drawn.numel(), seed & _64, stream & _64, first, threads.buffer_info()[0])
    return drawn


def kept(shape: Sequence[int], seed: Tensor | int, stream: Tensor | int, p: float, scale: float) -> Tensor | None:
    """Return ``scale`` where `uniform` is at least ``p``, else 0, in one call of C; None without a compiler."""
    library = _library()
    if library is None:
        return None
    scales = torch.empty(shape)
    library.kept(scales.data_ptr(), scales.numel(), int(seed) & _64, int(stream) & _64, p, scale)
    return scales


_64 = 2**64 - 1
OPERATIONS_FOR_A_NUMBER = 20  # about


def philox(counter: Sequence[Tensor], keys: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """Mix four counter words (tensors that broadcast) with the keys of the rounds into four random words.

    A word is the low half of an int64; the product of two words wraps around, but its 64 bits are the right ones.
    """
    c0, c1, c2, c3 = counter
    for k0, k1 in keys:
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) ^ c1 ^ k0) & WORD, p1, ((p0 >> 32) ^ c3 ^ k1) & WORD, p0
    return c0, c1 & WORD, c2, c3 & WORD


def round_keys(k0: Tensor, k1: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the two key words of every round."""
    rounds = torch.arange(ROUNDS, device=k0.device)
    schedule = [((k + rounds * step) & WORD).unbind(-1) for k, step in zip((k0, k1), WEYL, strict=True)]
    return list(zip(*schedule, strict=True))


def _words64(value: Tensor | int, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device, torch.int64, non_blocking=True)
    signed = (int(value) + 2**63) % 2**64 - 2**63
    return torch.tensor(signed, dtype=torch.int64, device=device)


def _chunk(device: torch.device) -> int:
    if device.type != "cpu":
        return _COUNTERS_ON_DEVICE
    threads = torch.get_num_threads()
    return _COUNTERS_PER_THREAD * threads if threads > 3 else _COUNTERS_PER_THREAD - 1
