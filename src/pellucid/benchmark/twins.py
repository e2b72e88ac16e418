"""Forward + backward of a layer beside that of torch's with the same weights, and beside the limit of the machine."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid import nn
from pellucid.benchmark.comparison import Agreement, Run, agree, times, train
from pellucid.benchmark.limit import Work
from pellucid.benchmark.speed import Timed

SEED = 0


@dataclass(frozen=True)
class RowSpeed(Timed):
    """A layer beside torch's: torch.nn's, or the same function called eagerly."""

    torch_ms: float

    @property
    def opponent(self) -> tuple[str, float]:
        """torch."""
        return "torch", self.torch_ms


@dataclass(frozen=True)
class TwinRow:
    """A layer, its opponent and the shape of each input; floors are for two CPU threads.

    A kind of row says in `work` what its step cannot do without, and in `agree` what else it compares.
    """

    kind: str
    shape: tuple[int, ...]
    make: Callable[[], torch.nn.Module]
    opponent: Callable[[], torch.nn.Module]
    note: str = ""
    section: str = "speed"
    floor: float | None = None
    inputs: int = 1
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format

    @property
    def name(self) -> str:
        """How the line is called."""
        return f"{self.kind} {'×'.join(map(str, self.shape))}{self.note}"

    def work(self, layer: torch.nn.Module, *given: Tensor) -> Work:
        """Count what forward + backward cannot do without, for torch's layer, the inputs and the output's gradient."""
        raise NotImplementedError

    def agree(self, ours: torch.nn.Module, theirs: torch.nn.Module, *given: Tensor) -> Agreement:
        """Compare values and gradients."""
        return agree(step, ours, theirs, *given)

    def measure(self, run: Run) -> RowSpeed:
        """Compare, then time forward + backward, both taking turns."""
        layer, theirs, given = self.prepare(run.device)
        agreement = self.agree(layer, theirs, *given)
        limit = self.work(theirs, *given).seconds(run.rates)
        sides = {"ours": lambda: step(layer, *given), "torch": lambda: step(theirs, *given)}
        found = times(sides, run.rounds, run.device)
        figures = (1e3 * limit, 1e3 * found["ours"], self.floor, 1e3 * found["torch"])
        return RowSpeed(self.name, ran(layer), agreement, *figures)

    def prepare(self, device: str) -> tuple[torch.nn.Module, torch.nn.Module, list[Tensor]]:
        """Make pellucid's layer, torch's, the inputs and, last, the gradient of the output."""
        torch.manual_seed(SEED)
        layer, theirs = twins(self.make, self.opponent, device)
        given = [self._random(self.shape, device) for _ in range(self.inputs)]
        with torch.no_grad():
            output = copy.deepcopy(theirs)(*given)
        return layer, theirs, [*given, self._random(output.shape, device)]

    def _random(self, shape: tuple[int, ...], device: str) -> Tensor:
        """Far from 0 on average: the relative error of a mean says something."""
        drawn = (1 + torch.randn(shape, device=device)).to(self.dtype)
        if len(shape) == 3:  # a sequence is a picture one pixel high
            return drawn.unsqueeze(2).contiguous(memory_format=self.layout).squeeze(2)
        return drawn.contiguous(memory_format=self.layout)


def twins(
    make: Callable[[], torch.nn.Module], opponent: Callable[[], torch.nn.Module], device: str = "cpu"
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Two layers whose parameters have, in their order, the same values; random, so that none of them is neutral."""
    layer, theirs = make().to(device), opponent().to(device)
    with torch.no_grad():
        for ours, other in zip(layer.parameters(), theirs.parameters(), strict=True):
            other.copy_(ours.uniform_(0.5, 1.5))
    return layer, theirs


def step(layer: torch.nn.Module, *given: Tensor, by: str = "auto") -> list[Tensor]:
    """Forward + backward, given the inputs and, last, the gradient of the output."""
    *inputs, dy = given
    return train(layer, *inputs, by=by, dy=dy)


def ran(layer: Any) -> str:
    """The backend that a layer says it ran on; one that says nothing runs torch's operators."""
    return str(getattr(layer, "backend", "torch"))


def makers(kind: str, *arguments: Any, **options: Any) -> tuple[functools.partial[Any], functools.partial[Any]]:
    """Two ways to make a layer, of pellucid.nn and of torch.nn, by its name there and its arguments."""
    ours, theirs = (functools.partial(getattr(space, kind), *arguments, **options) for space in (nn, torch.nn))
    return ours, theirs
