"""Measure what a training step of an LSTM on a long sequence adds to the memory of its process.

Usage: memory.py pellucid|torch.nn THREADS BATCH STEPS SIZE CHECKPOINT_EVERY (0: none)
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pellucid import nn
from pellucid.benchmark.comparison import agree, train


def held(name: str) -> int:
    """KiB of this process now (VmRSS) or at its highest (VmHWM).

    ru_maxrss of `resource` would not do: a process inherits the peak of the one that starts it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))


def main() -> None:
    """Train a step after a short one, which compiles; then compare pellucid's with torch.nn's, and print JSON."""
    who, *numbers = sys.argv[1:]
    threads, batch, steps, size, checkpoint_every = map(int, numbers)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ours, theirs = nn.LSTM(size, size), torch.nn.LSTM(size, size)
    theirs.load_state_dict(ours.state_dict())
    options: dict[str, Any] = {"checkpoint_every": checkpoint_every} if checkpoint_every else {}
    layer, given = (ours, options) if who == "pellucid" else (theirs, {})
    x = torch.randn((steps, batch, size))
    train(layer, x[: 2 * checkpoint_every + 10], **given)
    before, start = held("VmRSS"), time.perf_counter()
    train(layer, x, **given)
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, "peak_mib": (held("VmHWM") - before) / 1024}
    if who == "pellucid":
        found |= {"backend": ours.backend, "agreement": asdict(agree(train, ours, theirs, x, **options))}
    print(json.dumps(found))


main()
