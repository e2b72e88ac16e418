"""Matrix products of all steps at once, such as the gradients of the weights, by the tile of `c/product.h`.

Why not ``torch.mm``: on two Zen 4 cores its library reaches 85 to 93 of 117 GFLOP/s a core for these shapes, this 95 to
104; several products share the threads in one call; and a product is written in the layout that its reader wants.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.kernel import build, memory
from pellucid.kernel.emit_c import header, preamble
from pellucid.kernel.threads import Threads, useful

ALIGNMENT = 64
_Pair = tuple[Tensor, Tensor]


class _Matmul(ctypes.Structure):
    """``struct matmul`` of c/matmul.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "out")),
        *((name, ctypes.c_int64) for name in ("rows", "depth", "width", "a_row", "a_column", "b_row", "b_column")),
    )


class _Matmuls(ctypes.Structure):
    """``struct matmuls``."""

    _fields_ = (
        ("all", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "height", "width")),
        ("work", ctypes.c_void_p),
        ("threads", Threads),
    )


def multiply(pairs: Sequence[_Pair]) -> list[Tensor]:
    """Return a @ b of every pair: contiguous CPU tensors of their dtype, float32 or float64, all of one.

    Args:
        pairs: (rows, depth) and (depth, width) each, of any strides.

    Raises:
        BuildError: there is no compiler.
    """
    pairs = [(a if 1 in a.stride() else a.contiguous(), b) for a, b in pairs]
    dtype = pairs[0][0].dtype
    outs = [memory.empty((a.shape[0], b.shape[1]), dtype) for a, b in pairs]
    jobs = [
        _Matmul(*(t.data_ptr() for t in (a, b, out)), *a.shape, b.shape[1], *a.stride(), *b.stride())
        for (a, b), out in zip(pairs, outs, strict=True)
        if out.numel()
    ]
    jobs.sort(key=lambda job: -job.depth)
    run, packed = _library(dtype)
    threads = useful(sum(2 * job.rows * job.depth * job.width for job in jobs))
    work = memory.empty((threads.count * packed * dtype.itemsize + ALIGNMENT,), torch.uint8)
    aligned = -(-work.data_ptr() // ALIGNMENT) * ALIGNMENT
    array = (_Matmul * max(len(jobs), 1))(*jobs)
    run(ctypes.byref(_Matmuls(ctypes.addressof(array), len(jobs), 0, 0, aligned, threads)))
    return outs


@functools.cache
def _library(dtype: torch.dtype) -> tuple[ctypes._CFuncPtr, int]:  # type: ignore[name-defined]
    """The compiled function, and how many numbers a thread packs."""
    library = build.load(text(dtype))
    library.multiply.argtypes, library.multiply.restype = [ctypes.c_void_p], None
    library.packed.restype = ctypes.c_int64
    return library.multiply, library.packed()


def text(dtype: torch.dtype) -> str:
    """The C text for float32 or float64."""
    real = "float64" if dtype == torch.float64 else "float32"
    return "\n".join(
        (
            "// Matrix products, written by pellucid.",
            preamble(real),
            f"DEFINE_PACK({real})",
            f"#define pack_real pack_{real}",
            header("matmul.h"),
        )
    )
