"""Programs by their keys: cells by name, what determines a program as text, and the backend that is asked for."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from pellucid.formula.graph import in_plain_torch, trace
from pellucid.formula.schedule import schedule
from pellucid.formula.shapes import solve
from pellucid.formula.source import Source
from pellucid.kernel.program import Program

BACKENDS = ("auto", "stepwise", "naive")
_sources: dict[str, Source] = {}
_backend: contextvars.ContextVar[str] = contextvars.ContextVar("backend", default="auto")
_building = threading.RLock()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Run recurrent layers by this backend inside a ``with`` block.

    "stepwise" is the scheduled program in plain torch; "naive" is the author's function in a Python loop, the
    definition itself; "auto" picks the fastest that can run the program.

    Raises:
        ValueError: an unknown name.
    """
    if name not in BACKENDS:
        raise ValueError(f"pellucid.backend: the backends are {', '.join(BACKENDS)}, not {name!r}")
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


def chosen_backend() -> str:
    """The name of the backend that runs now."""
    name = _backend.get()
    return "stepwise" if name == "auto" else name


def register(name: str, source: Source) -> str:
    """Make a cell known, and return the name that keys carry: ``module:function``, numbered when it is not the first.

    A function that is defined again (in a notebook, by a factory) is another cell; layers of the first keep theirs.
    """
    count = 1
    unique = name
    while unique in _sources:
        count += 1
        unique = f"{name}#{count}"
    _sources[unique] = source
    return unique


def key(name: str, sizes: Mapping[str, int], hyperparameters: Mapping[str, Any]) -> str:
    """Write what determines a program as text: it stands in compiled and exported graphs."""
    return json.dumps([name, dict(sizes), dict(hyperparameters)], sort_keys=True)


@functools.lru_cache(maxsize=512)
def program(text: str, training: bool, dtype: torch.dtype, device: str, fused: bool = False) -> Program:
    """Build the program of a key, once."""
    name, sizes, hyperparameters = json.loads(text)

    def build() -> Program:
        source = _find(name)
        solution = solve(source, sizes, hyperparameters)
        return schedule(source, trace(source, solution, hyperparameters, training, dtype, device), fused)

    with _building:
        return in_plain_torch(build)


def definition(text: str, training: bool) -> tuple[Source, dict[str, Any], Sequence[tuple[int, str | None]]]:
    """Return the cell of a key, its hyperparameters, and the random draws that take place."""
    name, sizes, hyperparameters = json.loads(text)
    source = _find(name)
    return source, hyperparameters, solve(source, sizes, hyperparameters).sites if training else ()


def _find(name: str) -> Source:
    """Find a cell, importing its module where an exported graph is loaded into a new process."""
    if name not in _sources:
        importlib.import_module(name.split(":")[0])
    if name not in _sources:
        raise RuntimeError(
            f"the cell {name} is unknown in this process; import the module that defines it with @pellucid.cell "
            "before loading a graph that uses it"
        )
    return _sources[name]
