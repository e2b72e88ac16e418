"""The time of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


LARGEST_KEPT = 2**25 - 2**16  # bytes; the C library of Linux keeps no larger block that is freed


def settle() -> None:
    """Let the process keep the memory that it frees, as one that has trained for a while does.

    Until a block has been freed, the C library of Linux takes each as large anew from the system, and a page fault for
    every 4 KiB of it: an LSTM of torch then took 2.3 times as long as it does in a network that has larger tensors.
    """
    torch.empty(LARGEST_KEPT, dtype=torch.uint8, device="cpu")


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
