"""Matrix products of all steps at once, such as the gradients of the weights, by the tile of `c/product.h`.

Why not ``torch.mm``: all products behind an LSTM, GRU or RNN at once took 0.85 to 1.03 of its time on two Zen 4 cores
(168 to 188 of 234 GFLOP/s), for several share the threads in one call, and each is written in the layout that its
reader wants.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import threading
from array import array
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pellucid.kernel import build, memory
from pellucid.kernel.text_c import header, preamble
from pellucid.kernel.threads import useful

DEPTH = 6  # its place in struct matmul
_kept = threading.local()
_Operand = tuple[Tensor, bool]  # a matrix, and whether it is taken transposed


def multiply(pairs: Sequence[tuple[_Operand, _Operand]], bias: Tensor | None = None) -> list[Tensor]:
    """Return a @ b of every pair: contiguous CPU tensors of their dtype, float32 or float64, all of one.

    Args:
        pairs: (rows, depth) and (depth, width) each, of any strides, as they are taken.
        bias: (width,), contiguous, of the same dtype: it is added to every row of every product.

    Raises:
        BuildError: it is not `ready`.
    """
    dtype = pairs[0][0][0].dtype
    run, packed, padded = _library(dtype)
    outs, jobs, kept = [], [], []
    operations = 0
    for (a, a_turned), (b, b_turned) in pairs:
        if 1 not in a.stride():
            kept.append(a := a.contiguous())  # until it has been read
        rows, depth, *a_strides = (*a.shape[::-1], *a.stride()[::-1]) if a_turned else (*a.shape, *a.stride())
        _, width, *b_strides = (*b.shape[::-1], *b.stride()[::-1]) if b_turned else (*b.shape, *b.stride())
        out = memory.empty((rows, width), dtype)
        outs.append(out)
        if rows and width:  # struct matmul of c/matmul.h
            panels = 0
            if b_strides[1] != 1:
                kept.append(memory.empty((depth * padded(width) + memory.ALIGNMENT // dtype.itemsize,), dtype))
                panels = memory.aligned(kept[-1])
            places = (a.data_ptr(), b.data_ptr(), out.data_ptr(), 0 if bias is None else bias.data_ptr(), panels)
            jobs.append((*places, rows, depth, width, *a_strides, *b_strides))
            operations += 2 * rows * depth * width
    jobs.sort(key=lambda job: -job[DEPTH])
    team = useful(operations)
    work = _work(team.number * packed * dtype.itemsize + memory.ALIGNMENT)
    every = array("q", itertools.chain.from_iterable(jobs))
    matmuls = array("q", (every.buffer_info()[0], len(jobs), 0, 0, memory.aligned(work), *team))  # struct matmuls
    run(matmuls.buffer_info()[0])
    return outs


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


def prepare(dtype: torch.dtype) -> None:
    """Begin to compile it, beside whatever is compiled meanwhile."""
    threading.Thread(target=ready, args=(dtype,), daemon=True).start()


def _work(size: int) -> Tensor:
    """Memory for what is packed, kept by every Python thread: half a MiB for each thread that it shares work with."""
    work = getattr(_kept, "work", None)
    if work is None or work.numel() < size:
        work = _kept.work = torch.empty((size,), dtype=torch.uint8, device="cpu")
    return work


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
