"""The threads of kernels: those of the OpenMP that torch has loaded, so that there is one pool in the process."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import NamedTuple

import torch

OPERATIONS_FOR_A_THREAD = 2e6  # below that, waking another one costs more than it helps

_forked = False


def _in_child() -> None:
    """A fork has one thread; the OpenMP of its parent would wait for the others for ever."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class Threads(NamedTuple):
    """``struct threads`` of c/call.h."""

    number: int
    parallel: int  # the address of GOMP_parallel, 0 for one thread


def useful(operations: float) -> Threads:
    """As many threads as repay waking them, at most torch's number."""
    wanted = int(operations / OPERATIONS_FOR_A_THREAD)
    if wanted > 1 and not _forked:
        wanted = min(wanted, torch.get_num_threads())
        parallel = _openmp() if wanted > 1 else None
        if parallel is not None:
            return Threads(wanted, parallel)
    return Threads(1, 0)


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
