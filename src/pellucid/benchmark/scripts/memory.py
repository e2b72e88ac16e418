"""Measure what a training step of a layer adds to the memory of its process.

Usage: memory.py pellucid|torch.nn THREADS ROW, where ROW is a `MemoryRow` as JSON
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pellucid import nn
from pellucid.benchmark.comparison import Agreement, agree, train
from pellucid.benchmark.processes import MemoryRow
from pellucid.benchmark.rows import agree_given_the_mask
from pellucid.benchmark.twins import ran, step


def held(name: str) -> int:
    """KiB of this process now (VmRSS) or at its highest (VmHWM).

    ru_maxrss of `resource` would not do: a process inherits the peak of the one that starts it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))


def main() -> None:
    """Train a step after a short one, which compiles; then compare pellucid's with torch.nn's, and print JSON."""
    who, threads, written = sys.argv[1:]
    row = MemoryRow(**json.loads(written))
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    ours, theirs = (getattr(space, row.kind)(*row.arguments) for space in (nn, torch.nn))
    theirs.load_state_dict(ours.state_dict())
    layer, options = (ours, row.options) if who == "pellucid" else (theirs, {})
    given = [torch.randn(row.shape)]
    run: Callable[..., Any] = train
    compare: Callable[..., Agreement] = partial(agree, train)
    if row.p:
        given.append(torch.randn(row.shape))
        run, compare = step, partial(agree_given_the_mask, p=row.p)
    first = 2 * row.options.get("checkpoint_every", 0) + 10
    run(layer, *(value[:first] for value in given), **options)
    before, start = held("VmRSS"), time.perf_counter()
    run(layer, *given, **options)
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, "peak_mib": (held("VmHWM") - before) / 1024}
    if who == "pellucid":
        found |= {"backend": ran(ours), "agreement": asdict(compare(ours, theirs, *given, **options))}
    print(json.dumps(found))


main()
