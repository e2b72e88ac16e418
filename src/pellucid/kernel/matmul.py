"""Matrix products of all steps at once, such as the gradients of the weights, by the tile of `c/product.h`.

Why not ``torch.mm``: all products behind an LSTM, GRU or RNN at once took 0.85 to 1.03 of its time on two Zen 4 cores
(168 to 188 of 234 GFLOP/s), for several share the threads in one call, and each is written in the layout that its
reader wants.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import threading
from array import array
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pellucid.kernel import build, memory
from pellucid.kernel.language.text_c import header, preamble
from pellucid.kernel.threads import shared, useful

LEAST_PRODUCTS = 2**21  # of two numbers, below which calling takes longer than what could be won
DEPTH = 6  # its place in struct matmul
_Operand = tuple[Tensor, bool]  # a matrix, and whether it is taken transposed


def multiply(pairs: Sequence[tuple[_Operand, _Operand]], bias: Tensor | None = None) -> list[Tensor]:
    """Return a @ b of every pair: contiguous CPU tensors of their dtype, float32 or float64, all of one.

    Args:
        pairs: (*batch, rows, depth) and (*batch, depth, width) each, of any strides, as they are taken; an operand
            without batch serves all matrices of the other.
        bias: (width,), contiguous, of the same dtype: it is added to every row of every product.

    Raises:
        BuildError: it is not `ready`.
    """
    dtype = pairs[0][0][0].dtype
    run, packed, padded = _library(dtype)
    outs, jobs, kept = [], [], []
    operations = 0
    for (a, a_turned), (b, b_turned) in pairs:
        if 1 not in a.stride()[-2:]:
            kept.append(a := a.contiguous())  # until it has been read
        rows, depth, *a_strides = _lies(a, a_turned)
        _, width, *b_strides = _lies(b, b_turned)
        batch = a.shape[:-2] or b.shape[:-2]
        out = memory.empty((*batch, rows, width), dtype)
        outs.append(out)
        if rows and width:  # struct matmul of c/matmul.h
            count, begin = math.prod(batch), 0 if bias is None else bias.data_ptr()
            panels, apart = 0, 0
            if b_strides[1] != 1:
                apart = depth * padded(width) * dtype.itemsize
                kept.append(memory.empty((count * apart + memory.ALIGNMENT,), torch.uint8))
                panels = memory.aligned(kept[-1])
            places = zip(_places(a, count), _places(b, count), _places(out, count), strict=True)
            for i, (of_a, of_b, of_out) in enumerate(places):
                job = (of_a, of_b, of_out, begin, panels + i * apart, rows, depth, width, *a_strides, *b_strides)
                jobs.append(job)
            operations += 2 * count * rows * depth * width
    jobs.sort(key=lambda job: -job[DEPTH])
    team = useful(operations)
    work = memory.scratch(team.number * packed * dtype.itemsize)
    every = array("q", itertools.chain.from_iterable(jobs))
    matmuls = array("q", (every.buffer_info()[0], len(jobs), 0, 0, memory.aligned(work), *team))  # struct matmuls
    run(matmuls.buffer_info()[0])
    return outs


def _lies(operand: Tensor, turned: bool) -> tuple[int, ...]:
    """Sizes and strides of the two axes of its matrices, as they are taken."""
    sizes, strides = operand.shape[-2:], operand.stride()[-2:]
    return (*sizes[::-1], *strides[::-1]) if turned else (*sizes, *strides)


def _places(operand: Tensor, count: int) -> list[int]:
    """Where so many matrices begin, which is one place if there is no batch."""
    places, size = [operand.data_ptr()], operand.element_size()
    for n, step in zip(operand.shape[:-2], operand.stride()[:-2], strict=True):
        places = [place + i * step * size for place in places for i in range(n)]
    return places if operand.dim() > 2 else places * count


@functools.cache
def ready(dtype: torch.dtype) -> bool:
    """Whether `multiply` can be had for a type; it is compiled where it is not yet."""
    if dtype not in (torch.float32, torch.float64):
        return False
    try:
        _library(dtype)
    except build.BuildError:
        return False
    return True


def usable(dtype: torch.dtype) -> bool:
    """Whether it is `ready`, and has torch's number of threads."""
    return shared() and ready(dtype)


def prepare(dtype: torch.dtype) -> None:
    """Begin to compile it, beside whatever is compiled meanwhile."""
    threading.Thread(target=ready, args=(dtype,), daemon=True).start()


@functools.cache
def _library(dtype: torch.dtype) -> tuple[Callable[[int], None], int, Callable[[int], int]]:
    """The compiled function, how many numbers a thread packs, and the columns that a width is filled up to."""
    library = build.load(text(dtype))
    library.multiply.argtypes, library.multiply.restype = [ctypes.c_void_p], None
    library.packed.restype = library.padded.restype = ctypes.c_int64
    library.padded.argtypes = [ctypes.c_int64]
    return library.multiply, library.packed(), library.padded


def text(dtype: torch.dtype) -> str:
    """The C text for float32 or float64."""
    real = "float64" if dtype == torch.float64 else "float32"
    return "\n".join(
        (
            "// Matrix products, written by pellucid.",
            preamble(real),
            f"DEFINE_PACK({real})",
            f"#define pack_real pack_{real}",
            f"#define load_real load_{real}",
            header("matmul.h"),
        )
    )
