"""The threads of kernels: those of the OpenMP that torch has loaded, so that there is one pool in the process."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

OPERATIONS_FOR_A_THREAD = 2e6  # below that, waking another one costs more than it helps

_forked = False


def _in_child() -> None:
    """A fork has one thread; the OpenMP of its parent would wait for the others for ever."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class Threads(ctypes.Structure):
    """``struct threads`` of c/call.h."""

    _fields_ = (("count", ctypes.c_int64), ("parallel", ctypes.c_void_p))


def useful(operations: float) -> Threads:
    """As many threads as repay waking them, at most torch's number."""
    wanted = 1 if _forked else min(torch.get_num_threads(), int(operations / OPERATIONS_FOR_A_THREAD))
    parallel = _openmp() if wanted > 1 else None
    return Threads(wanted, parallel) if parallel else Threads(1, None)


def shared() -> bool:
    """Whether kernels have torch's number of threads."""
    return torch.get_num_threads() == 1 or _openmp() is not None


@functools.cache
def _openmp() -> int | None:
    """The address of GOMP_parallel in the library that torch has loaded."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    paths = {line.split()[-1] for line in maps.read_text().splitlines() if "/" in line}
    for path in sorted(p for p in paths if Path(p).name.startswith(("libgomp", "libiomp", "libomp"))):
        function = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value
    return None
