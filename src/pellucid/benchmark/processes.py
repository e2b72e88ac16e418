"""Rows that need a process of their own: the time to a first result, and the peak of memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pellucid
from pellucid.benchmark.comparison import Agreement, Failed, Figure, Run, Skipped

SCRIPTS = Path(__file__).parent / "scripts"
PACKAGES = Path(pellucid.__file__).parents[1]
PAIRS = 3  # cold and warm starts
MINUTES = 5  # that a process may take


@dataclass(frozen=True)
class FirstResult(Figure):
    """Medians in seconds, from ``@pellucid.cell`` to the result of a training step; imports are counted apart."""

    cold_s: float
    warm_s: float
    import_torch_s: float
    import_pellucid_s: float
    ceiling_s: float

    def shortfall(self) -> str | None:
        """Say what is missing to the floor: that a cell runs within a second of being written."""
        slow = {name: s for name, s in (("cold", self.cold_s), ("warm", self.warm_s)) if s > self.ceiling_s}
        parts = [f"{seconds:.2f} s with a {name} cache" for name, seconds in slow.items()]
        return f"{', '.join(parts)}, at most {self.ceiling_s:g} s is promised" if parts else None


@dataclass(frozen=True)
class FirstResultRow:
    """The cell of ``scripts/first_result.py``, in fresh processes; cold: the cache of kernels is empty."""

    section: ClassVar[str] = "first result"
    name: str = "a new cell 32, 128, 256→128"
    ceiling_s: float = 1.0

    def measure(self, run: Run) -> FirstResult:
        """Start the script several times, each time on a new folder and then once more on the same."""
        _only_cpu(run)
        cold, warm = [], []
        for _ in range(PAIRS):
            with tempfile.TemporaryDirectory(prefix="pellucid-bench-") as folder:
                cold.append(_process("first_result.py", folder, run.threads))
                warm.append(_process("first_result.py", folder, run.threads))

        def median(found: list[dict[str, Any]], key: str) -> float:
            return statistics.median(one[key] for one in found)

        agreement = Agreement(**cold[0]["agreement"])
        seconds = (median(cold, "first_s"), median(warm, "first_s"))
        imports = (median(warm, "import_torch_s"), median(warm, "import_pellucid_s"))
        return FirstResult(self.name, cold[0]["backend"], agreement, *seconds, *imports, self.ceiling_s)


@dataclass(frozen=True)
class Memory(Figure):
    """Peak of a training step above what the process held before, in MiB, and the seconds that the step took."""

    ours_mib: float
    torch_nn_mib: float
    ours_s: float
    torch_nn_s: float


@dataclass(frozen=True)
class MemoryRow:
    """A layer of torch.nn's and ours, by its name and arguments, and its input's shape.

    ``options`` are arguments of our layer's call. ``p`` is the probability with which a dropout drops; it gets dy from
    outside, as in `LayerRow`, a layer without coins gets it from a loss.
    """

    section: ClassVar[str] = "memory"
    name: str
    kind: str
    arguments: Sequence[float]
    shape: Sequence[int]
    options: Mapping[str, Any] = field(default_factory=dict)
    p: float = 0.0

    def measure(self, run: Run) -> Memory:
        """Train once in a process of pellucid's layer and in one of torch.nn's."""
        _only_cpu(run)
        if not Path("/proc/self/status").exists():
            raise Skipped("the peak of a process is read from /proc, which this system lacks")
        arguments = (run.threads, json.dumps(asdict(self)))
        with tempfile.TemporaryDirectory(prefix="pellucid-bench-") as folder:
            ours = _process("memory.py", folder, "pellucid", *arguments)
            theirs = _process("memory.py", folder, "torch.nn", *arguments)
        peaks, seconds = ((ours[key], theirs[key]) for key in ("peak_mib", "seconds"))
        return Memory(self.name, ours["backend"], Agreement(**ours["agreement"]), *peaks, *seconds)


def _only_cpu(run: Run) -> None:
    if run.device != "cpu":
        raise Skipped("measured on the CPU only")


def _process(script: str, cache: str, *arguments: Any) -> dict[str, Any]:
    """Run a script with this Python, this pellucid and a cache of its own; it prints JSON."""
    paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PELLUCID_CACHE": cache, "PYTHONPATH": os.pathsep.join(paths)}
    # -P: the folder of the script holds no modules for it.
    command = [sys.executable, "-P", str(SCRIPTS / script), *map(str, arguments)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60 * MINUTES)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{script} took more than {MINUTES} minutes") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise Failed(f"{script} ended with exit status {done.returncode}: {last}")
    return json.loads(done.stdout)


def long_lstm(batch: int, steps: int, size: int, **options: int) -> MemoryRow:
    """An LSTM on a long sequence."""
    called = "".join(f", {name}={value}" for name, value in options.items())
    name = f"LSTM {batch}, {steps}, {size}→{size}{called}"
    return MemoryRow(name, "LSTM", (size, size), (steps, batch, size), options)


def wide_dropout(rows: int, features: int, p: float = 0.5) -> MemoryRow:
    """A dropout of a large matrix."""
    return MemoryRow(f"Dropout {rows}×{features}", "Dropout", (p,), (rows, features), p=p)


FIRST_RESULT = [FirstResultRow()]
MEMORY = [long_lstm(8, 10_000, 64), long_lstm(8, 10_000, 64, checkpoint_every=100)]
ROWS_MEMORY = [wide_dropout(16384, 768)]
