"""Programs by their keys: formulas by name, what determines a program as text, and the backend that is asked for."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import itertools
import json
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from pellucid.errors import PellucidWarning, Unsupported
from pellucid.formula.graph import in_plain_torch, output_size, trace
from pellucid.formula.program import Program
from pellucid.formula.record import recording
from pellucid.formula.schedule import nowhere, schedule
from pellucid.formula.shapes import Solution, solve
from pellucid.formula.source import Source
from pellucid.kernel.build import BuildError
from pellucid.kernel.language.lower import lowerable
from pellucid.kernel.recurrence.compiled import Compiled
from pellucid.kernel.recurrence.fused import Fused
from pellucid.kernel.recurrence.jitted import Jitted
from pellucid.kernel.recurrence.stepwise import Stepwise

BACKENDS = ("auto", "c", "triton", "stepwise", "naive")
_sources: dict[str, Source] = {}
_backend: contextvars.ContextVar[str] = contextvars.ContextVar("backend", default="auto")
_building = threading.RLock()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Run layers by this backend inside a ``with`` block.

    "c" is the formula compiled for the CPU; "triton" is the formula as a kernel for the GPU; "stepwise" is the
    scheduled program in plain torch; "naive" is the author's function in a Python loop, the definition itself; "auto"
    picks the fastest that can run the program. What "c" or "triton" cannot run, "stepwise" runs, with one warning that
    says why.

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
    """The name of the backend that is asked for."""
    return _backend.get()


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


class Runner(Protocol):
    """What runs a program: `stepwise.Stepwise` says what the methods take and return."""

    @property
    def name(self) -> str:
        """The name of the backend."""
        ...

    @property
    def program(self) -> Program:
        """What it runs."""
        ...

    def forward(self, *arguments: Any, **options: Any) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Run the whole sequence: output, last state, and what backward reads."""
        ...

    def backward(self, *arguments: Any) -> tuple[Any, list[torch.Tensor], list[Any]]:
        """Return the gradients of input, initial state and parameters."""
        ...

    def forward_all(self, *arguments: Any, **options: Any) -> list[tuple[Any, list[Any], list[Any]]]:
        """Run several calls: see `call.OneByOne`."""
        ...

    def backward_all(self, *arguments: Any) -> list[tuple[Any, list[Any], list[Any]]]:
        """Return the gradients of several calls."""
        ...


def runner(text: str, training: bool, dtype: torch.dtype, device: str, save: bool) -> Runner:
    """The fastest backend for a program, as far as `backend` lets it be chosen; with ``save``, for backward too."""
    wanted = chosen_backend()
    language = {"cpu": "c", "cuda": "triton"}.get(device, "") if wanted == "auto" else wanted
    if language == "triton" or (language == "c" and device == "cpu"):
        fused = _ready(text, training, dtype, device, save, language)
        if fused is not None and not fused.given_up:
            return fused
    return reference(text, training, dtype, device)


def give_up_program(text: str, run: Runner, error: BuildError) -> None:
    """Let a program run stepwise from now on: see `give_up`.

    Raises:
        BuildError: it ran stepwise already.
    """
    if not isinstance(run, Fused):
        raise error
    give_up(run, _cell(text), error)


def give_up(kernels: Any, what: str, error: BuildError) -> None:
    """Let kernels not be asked again, with a warning: compiled when they are needed, they do not compile."""
    kernels.given_up = True
    warn_of_fallback(what, error)


@functools.lru_cache(maxsize=512)
def reference(text: str, training: bool, dtype: torch.dtype, device: str) -> Runner:
    """The program in plain torch: any device, any transform."""
    return Stepwise(program(text, training, dtype, device))


@functools.lru_cache(maxsize=512)
def _fused(text: str, training: bool, dtype: torch.dtype, device: str, language: str) -> Fused:
    if language == "triton":  # its products of all steps are torch's
        return Jitted(program(text, training, dtype, device, fused=True, products=False), dtype, device)
    return Compiled(program(text, training, dtype, device, fused=True), dtype)


@functools.lru_cache(maxsize=1024)
def _ready(text: str, training: bool, dtype: torch.dtype, device: str, save: bool, language: str) -> Fused | None:
    """The program in a language, compiled for what is asked; None, with a warning, where that cannot be."""
    try:
        fused = _fused(text, training, dtype, device, language)
        fused.loops(save)
        return fused
    except (Unsupported, BuildError, RecursionError) as error:
        warn_of_fallback(_cell(text), error, language)
        return None


def _cell(text: str) -> str:
    """How a warning calls the formula of a key."""
    return f"cell {json.loads(text)[0].split(':')[-1]}"


def warn_of_fallback(what: str, error: Unsupported | BuildError | RecursionError, language: str = "c") -> None:
    """Say once that something runs stepwise, and why."""
    if isinstance(error, RecursionError):
        error = Unsupported("a chain of hundreds of operations")
    reason = f"{error} has no {language.capitalize()} kernel" if isinstance(error, Unsupported) else str(error)
    _warn_once(f"{what} runs stepwise, in plain torch and slower, because {reason}")


def warn_of_unrolling(text: str) -> None:
    """Say once that a cell has no operator in a graph for ONNX, and how there may be one."""
    if chosen_backend() in ("auto", "c"):
        _warn_once(
            f"{_cell(text)} is written out step by step for ONNX, which has no operator "
            f"for it: the file reads sequences of as many steps as the example has. pellucid.restore(model) first "
            f"makes it a layer of torch.nn where there is one; an LSTM of ONNX reads any length"
        )


@functools.cache
def _warn_once(message: str) -> None:
    cure = 'Nothing is wrong with the result; with pellucid.backend("stepwise"): asks for it without this warning.'
    warnings.warn(f"{message}. {cure}", PellucidWarning, stacklevel=2)


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
    if name not in _sources:
        importlib.import_module(name.split(":")[0])
    if name not in _sources:
        raise RuntimeError(
            f"the formula {name} is unknown in this process; import the module that defines it with @pellucid.cell or "
            "@pellucid.layer before loading a graph that uses it"
        )
    return _sources[name]
