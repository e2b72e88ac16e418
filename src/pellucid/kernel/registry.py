"""Programs by their keys: formulas by name, and what determines a program as text."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from pellucid.formula.graph import in_plain_torch, output_size, trace
from pellucid.formula.program import Program
from pellucid.formula.record import recording
from pellucid.formula.schedule import nowhere, schedule
from pellucid.formula.shapes import Solution, solve
from pellucid.formula.source import Source
from pellucid.kernel.language.lower import lowerable

_sources: dict[str, Source] = {}
_building = threading.RLock()


def register(name: str, source: Source) -> str:
    """Make a formula known, and return the name that keys carry: ``module:function``, numbered if it is not the first.

    A function that is defined again (in a notebook, by a factory) is another formula; layers of the first keep theirs.
    """
    count = 1
    unique = name
    while unique in _sources:
        count += 1
        unique = f"{name}#{count}"
    _sources[unique] = source
    return unique


def renew(name: str, version: int) -> str:
    """The name of a formula that reads something else from outside than it did, and so is another one."""
    _sources[renewed := f"{name}@{version}"] = _sources[name]
    return renewed


def key(name: str, sizes: Mapping[str, int], hyperparameters: Mapping[str, Any]) -> str:
    """Write what determines a program as text: it stands in compiled and exported graphs."""
    return json.dumps([name, dict(sizes), dict(hyperparameters), []], sort_keys=True)


def recording_keys(text: str, names: tuple[str, ...]) -> tuple[str, list[int]]:
    """The key of the same program whose output is followed by the values of these names, and their columns."""
    *cell, _ = json.loads(text)
    keys = [json.dumps([*cell, names[:count]], sort_keys=True) for count in range(len(names) + 1)]
    whole = [_solved(key)[2].output for key in keys]
    return keys[-1], [whole[0], *(after - before for before, after in itertools.pairwise(whole))]


# What torch.compiler.assume_constant_result does, which imports torch._dynamo: 1.3 s of every import of pellucid.
recording_keys._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=512)
def program(
    text: str, training: bool, dtype: torch.dtype, device: str, fused: bool = False, products: bool = True
) -> Program:
    """Build the program of a key, once; ``fused``: its loop is one kernel; `schedule` says what ``products`` are."""

    def build() -> Program:
        source, hyperparameters, solution = _solved(text)
        joint = trace(source, solution, hyperparameters, training, dtype, device)
        return schedule(source, joint, lowerable if fused else nowhere, products)

    with _building:
        return in_plain_torch(build)


def trained(text: str) -> set[str]:
    """The parameters of a formula that have a gradient: not those that it detaches."""
    source, parts = _solved(text)[0], program(text, True, torch.float32, "cpu").trained
    return {symbol.name for symbol, part in zip(source.parameters, parts, strict=True) if part}


def definition(
    text: str, training: bool
) -> tuple[Source, dict[str, Any], Sequence[tuple[int, str | None]], Sequence[int]]:
    """Return the formula of a key, its hyperparameters, the random draws that take place, and its inputs' sizes."""
    source, hyperparameters, solution = _solved(text)
    return source, hyperparameters, solution.sites if training else (), solution.input_sizes(source)


@functools.lru_cache(maxsize=512)
def _solved(text: str) -> tuple[Source, dict[str, Any], Solution]:
    """The formula of a key, its hyperparameters and its solved shapes."""
    name, sizes, hyperparameters, recorded = json.loads(text)
    source = _find(name)
    solution = solve(source, sizes, hyperparameters)
    if recorded:
        source = recording(source, recorded)
        solution = replace(solution, output=in_plain_torch(lambda: output_size(source, solution, hyperparameters)))
    return source, hyperparameters, solution


def _find(name: str) -> Source:
    """Find a formula, importing its module where an exported graph is loaded into a new process."""
    name = name if name in _sources else name.partition("@")[0]  # another process has its own versions
    if name not in _sources:
        importlib.import_module(name.split(":")[0])
    if name not in _sources:
        raise RuntimeError(
            f"the formula {name} is unknown in this process; import the module that defines it with @pellucid.cell or "
            "@pellucid.layer before loading a graph that uses it"
        )
    return _sources[name]
