"""What runs a recurrent program: the fastest backend that can, compiled for what is asked, or plain torch."""

from __future__ import annotations

import functools
import json
from typing import Any, Protocol

import torch

from pellucid.errors import Unsupported
from pellucid.formula.program import Program
from pellucid.kernel.backends import chosen_backend, give_up, warn_of_fallback, warn_once
from pellucid.kernel.build import BuildError
from pellucid.kernel.recurrence.compiled import Compiled
from pellucid.kernel.recurrence.fused import Fused
from pellucid.kernel.recurrence.jitted import Jitted
from pellucid.kernel.recurrence.stepwise import Stepwise
from pellucid.kernel.registry import program


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


def warn_of_unrolling(text: str) -> None:
    """Say once that a cell has no operator in a graph for ONNX, and how there may be one."""
    if chosen_backend() in ("auto", "c"):
        warn_once(
            f"{_cell(text)} is written out step by step for ONNX, which has no operator "
            f"for it: the file reads sequences of as many steps as the example has. pellucid.restore(model) first "
            f"makes it a layer of torch.nn where there is one; an LSTM of ONNX reads any length"
        )
