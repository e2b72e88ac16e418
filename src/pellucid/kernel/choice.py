"""Which of two ways is faster on this machine: measured once for every kind of work, and kept on disk.

The measurements stand beside the cache of kernels, in ``choices.json``: seconds of every way, by what was asked. They
are made anew for another processor, number of threads, version of torch or text of a kernel; and, a few times, by
the next process, where other programs had the processors meanwhile. Deleting the file is harmless.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pellucid.kernel.build import BuildError, processor, usable_cache, write
from pellucid.timing import LARGEST_KEPT, ROOM, settled

MOST_REMEMBERED = 1024  # shapes
LEAST_ROUNDS, MOST_ROUNDS = 3, 9
BUDGET = 0.1  # seconds after which no further round is begun
BYTES_BETWEEN = 2**24  # that pass by between two samples: as in a network, memory is not at hand, nor is code
MARGIN = 0.9  # of the time of the usual way; what is hardly faster is not taken
DISTURBED = "disturbed"  # beside the seconds of both ways: how many processes measured them that were
WORKING = 0.9  # processors that a process has at least when it is not disturbed: Python alone keeps one busy
MOST_ATTEMPTS = 3  # of processes that are disturbed

_lock = threading.Lock()
_measured: dict[str, dict[str, dict[str, float]]] = {}  # by kernel, then by question
_read: set[str] = set()
_asked: set[tuple[str, str]] = set()  # by this process


def faster(
    question: str, kernel: str, usual: Callable[[], Tensor], other: Callable[[], Tensor], leaves: Sequence[Tensor] = ()
) -> bool:
    """Whether the other way takes clearly less time than the usual one, with all that autograd and Python add to it.

    Args:
        question: what is asked: the kind of work, its sizes and types.
        kernel: the text of the other way's kernel.
        usual: computes the result once; so does ``other``.
        leaves: of what the gradient is computed too.
    """
    key = f"{question}; {torch.get_num_threads()} threads"
    place = _place(kernel)
    times = _right(_known(place).get(key))
    if not times or (times[DISTURBED] in range(1, MOST_ATTEMPTS) and (place, key) not in _asked):
        _asked.add((place, key))
        with torch.set_grad_enabled(bool(leaves)), unhooked(), settled():
            found, disturbed = _measure({"usual": _step(usual, leaves), "other": _step(other, leaves)})
        attempts = times.get(DISTURBED, 0) + 1 if disturbed else 0
        times = {way: min(seconds, times.get(way, seconds)) for way, seconds in found.items()} | {DISTURBED: attempts}
        _keep(place, key, times)
    return times["other"] < MARGIN * times["usual"]


def _right(times: Any) -> dict[str, Any]:
    """What is kept of a question; nothing where it is not what it should be."""
    right = isinstance(times, dict) and all(isinstance(times.get(way), float) for way in ("usual", "other"))
    return {DISTURBED: 0, **times} if right else {}


def remembered(kernels: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    """What was made for a key, which may be None; when too many keys are known, all are forgotten."""
    if key not in kernels:
        if len(kernels) >= MOST_REMEMBERED:
            kernels.clear()
        kernels[key] = make()
    return kernels[key]


def rounded(sizes: Sequence[int]) -> list[int]:
    """Sizes up to the next power of two: what is measured for one is taken to hold for its neighbours."""
    return [2 ** (n - 1).bit_length() for n in sizes]


def unhooked() -> contextlib.AbstractContextManager[Any]:
    """Keep what is saved for a gradient as it is, whatever the user's hooks do with it: checkpoints count them."""
    return saved_tensors_hooks(_as_it_is, _as_it_is)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _step(compute: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], None]:
    """Compute, and the gradients of leaves if there are any."""

    def step() -> None:
        y = compute()
        if leaves:
            torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)

    return step


def _measure(ways: Mapping[str, Callable[[], object]]) -> tuple[dict[str, float], bool]:
    """The least seconds of every way, which take turns; and whether other programs had the processors meanwhile."""
    least = {}
    for name, way in ways.items():  # what happens the first time only: memory is had, code is read
        way()
        least[name] = float("inf")
    begin, worked = time.perf_counter(), time.process_time()
    for count in range(MOST_ROUNDS):
        if count >= LEAST_ROUNDS and time.perf_counter() - begin > BUDGET:
            break
        for name, way in ways.items():
            _pass_other_data()
            _finish()
            start = time.perf_counter()
            way()
            _finish()
            least[name] = min(least[name], time.perf_counter() - start)
    return least, time.process_time() - worked < WORKING * (time.perf_counter() - begin)


def _pass_other_data() -> None:
    """Fill the caches of this core with something else, as the other layers of a network do between two calls."""
    data = _other_data()
    data += 1  # by this thread alone


@functools.cache
def _other_data() -> Any:
    return np.zeros(BYTES_BETWEEN // 4, np.float32)


def _finish() -> None:
    """Wait for what a GPU still computes."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@functools.lru_cache(maxsize=64)
def _place(kernel: str) -> str:
    """Where the measurements of a kernel stand: named by all that decides them, how they are made too."""
    decides = [kernel, torch.__version__, processor(), BYTES_BETWEEN, LARGEST_KEPT, ROOM]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]


def _known(place: str) -> dict[str, dict[str, float]]:
    """What has been measured, by question; read from disk once."""
    if place not in _read:
        with _lock:
            kept = _on_disk().get(place)
            _measured.setdefault(place, {}).update(kept if isinstance(kept, dict) else {})
            _read.add(place)
    return _measured[place]


def kept() -> dict[str, tuple[float, float]]:
    """What is kept on disk for the kernels of this machine: seconds of the usual and of the other way, by question."""
    found = {}
    for questions in _on_disk().values():
        for question, times in questions.items() if isinstance(questions, dict) else ():
            with contextlib.suppress(TypeError, KeyError, ValueError):
                found[question] = float(times["usual"]), float(times["other"])
    return found


def _on_disk() -> dict[str, Any]:
    """All that is kept, whatever somebody may have written there; nothing where it cannot be read."""
    with contextlib.suppress(OSError, BuildError, ValueError):
        kept = json.loads((usable_cache().parent / "choices.json").read_text())
        if isinstance(kept, dict):
            return kept
    return {}


def _keep(place: str, key: str, times: dict[str, float]) -> None:
    """Remember a measurement, on disk too where that is possible; what another process has kept meanwhile stays."""
    with _lock:
        kept = _on_disk()
        others = kept.get(place)
        _measured[place] = {**(others if isinstance(others, dict) else {}), **_measured[place], key: times}
        kept[place] = dict(_measured[place])
        with contextlib.suppress(OSError, BuildError):
            write(usable_cache().parent / "choices.json", json.dumps(kept, indent=1).encode())
