"""The time of a call."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

ROOM = 8  # blocks, in which what is timed finds its memory
LARGEST_KEPT = 2**25 - 2**16  # bytes of a block, the largest that the C library of Linux may keep


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Let the process keep the memory that it frees, as one that trains a large network does.

    The C library of Linux gives memory back to the system where more is free at its end than twice the largest block
    that was ever freed, and what is taken anew costs a page fault for every 4 KiB: an LSTM of torch takes about twice
    as long by itself as in a network with larger tensors. So a large block is freed; and while something is timed
    inside, there is room between blocks that are held, to which nobody writes. What is larger than the largest that is
    kept finds none, and is taken from the system each time, as everywhere.
    """
    torch.UntypedStorage(LARGEST_KEPT, device="cpu")  # which torch fills in no mode
    blocks = []
    with contextlib.suppress(RuntimeError):  # of memory that there is not
        for _ in range(2 * ROOM):
            blocks.append(torch.UntypedStorage(LARGEST_KEPT, device="cpu"))
    del blocks[::2]
    yield


def clock(run: Callable[[], Any], device: str, calls: int = 1) -> float:
    """Seconds of one of several calls.

    On a GPU two events stand before and behind them: what it waits for the next launch counts as it does for a user,
    and what the host takes to begin and to hear of the end does not.
    """
    if torch.device(device).type == "cuda":
        return _between_events(run, calls)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def _between_events(run: Callable[[], Any], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / calls
