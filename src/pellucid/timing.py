"""The time of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def clock(run: Callable[[], Any], device: str, calls: int = 1) -> float:
    """Seconds of one of several calls."""
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _synchronise(device)
    return (time.perf_counter() - start) / calls


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
