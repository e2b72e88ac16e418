"""What precedes a figure: values and gradients compared; and how opponents are timed, in turns."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

import pellucid
from pellucid.benchmark.limit import Rates
from pellucid.timing import clock, settled

EXACT = 1e-10  # largest difference in float64, relative to the largest entry
ROUNDING = 1e-4  # the same in float32; a cell that is chaotic may round as badly as its opponent, up to tenfold
TIMED_SECONDS = 0.5  # a short run is repeated until so much time has gone by
SAMPLE_SECONDS = {"cpu": 5e-4, "cuda": 1e-2}  # what the timer is started and stopped for, in so many calls
WARM_SECONDS = 0.02  # in which the length of a call is found


class Skipped(Exception):
    """A row that cannot be measured here; the text says why."""


class Failed(Exception):
    """A row that should have been measured and broke; the text says how."""


def reason(error: BaseException) -> str:
    """What went wrong, in a line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


@dataclass(frozen=True)
class Agreement:
    """The largest differences from the opponent in float64, relative to the largest entry of a tensor.

    ``difference`` is pellucid's in float64, ``rounding`` and ``opponent_rounding`` are both sides' in the type that is
    measured, float32 unless the row says otherwise.
    """

    difference: float
    rounding: float
    opponent_rounding: float

    @property
    def passed(self) -> bool:
        """Whether both sides compute the same; a row where they do not has no figure."""
        return self.difference <= EXACT and self.rounding <= max(ROUNDING, 10 * self.opponent_rounding)

    def differing(self) -> str:
        """By how much both sides differ."""
        return (
            f"values or gradients differ: {self.difference:.0e} in float64, {self.rounding:.0e} in the measured type "
            f"(the opponent's {self.opponent_rounding:.0e})"
        )


@dataclass(frozen=True)
class Figure:
    """What a row measured."""

    row: str
    backend: str
    agreement: Agreement

    @property
    def agreements(self) -> Sequence[Agreement]:
        """All comparisons that the row made; it fails where one of them does."""
        return (self.agreement,)

    def shortfall(self) -> str | None:
        """Say what is missing to the floor; None where it is reached or there is none."""
        return None


@dataclass(frozen=True)
class Run:
    """What all rows of a run share."""

    rounds: int
    threads: int
    device: str
    rates: Rates


class Row(Protocol):
    """What is measured for one line of a table. ``measure`` raises `Skipped` or `Failed` where it is not."""

    @property
    def section(self) -> str:
        """The table it stands in."""

    @property
    def name(self) -> str:
        """How the line is called."""

    def measure(self, run: Run) -> Figure:
        """Compare, then measure."""


def train(
    layer: torch.nn.Module, *inputs: Tensor, by: str = "auto", dy: Tensor | None = None, **options: Any
) -> list[Tensor]:
    """One step of forward and backward: the output, and the gradients of inputs and parameters.

    Args:
        layer: returns its output, or a tuple that begins with it.
        inputs: all of them are trained.
        by: the backend.
        dy: the output's gradient; without it that of a loss, the sum of the output along a ramp.
        options: the layer's own.
    """
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    with pellucid.backend(by):
        result = layer(*inputs, **options)
    output = loss = result[0] if isinstance(result, tuple) else result
    if dy is None:
        loss = (output * torch.linspace(-1, 1, output.shape[-1], dtype=output.dtype, device=output.device)).sum()
    gradients = torch.autograd.grad(loss, [*inputs, *layer.parameters()], dy)
    return [output.detach(), *gradients]


def agree(
    compute: Callable[..., list[Tensor]],
    ours: torch.nn.Module,
    theirs: torch.nn.Module,
    *inputs: Tensor,
    by: str = "auto",
    **options: Any,
) -> Agreement:
    """Compare what ``compute(layer, *inputs, by=...)`` gives for two layers of the same weights.

    Args:
        compute: `train`, or something like it.
        ours: pellucid's layer, which gets the ``options`` too.
        theirs: torch.nn's layer, or a copy of ours.
        inputs: of the type that is measured.
        by: the backend of theirs: "naive" runs a formula in the Python loop.
    """
    doubled = [x.double() for x in inputs]
    exact = compute(copy.deepcopy(theirs).double(), *doubled, by=by)
    in_double = compute(copy.deepcopy(ours).double(), *doubled, **options)
    rounded, opponent = compute(ours, *inputs, **options), compute(theirs, *inputs, by=by)
    return Agreement(*(difference(results, exact) for results in (in_double, rounded, opponent)))


def difference(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference of any tensor, relative to its largest entry; NaN, which no bound admits, stays."""
    pairs = zip(results, exact, strict=True)
    return float(torch.stack([(a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30) for a, b in pairs]).max())


def times(runs: Mapping[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of a call of each, after a warm-up, from at least ``rounds`` samples.

    They take turns, in either order. A sample is so many calls that the timer's own time does not matter, nor, on a
    GPU, that nothing is launched ahead of the first.
    """
    with settled():
        for run in runs.values():
            run()
        calls = {name: _calls(run, device) for name, run in runs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        order = list(runs)
        begin, done = time.perf_counter(), 0
        while done < rounds or time.perf_counter() - begin < TIMED_SECONDS:
            for name in reversed(order) if done % 2 else order:
                seconds[name].append(clock(runs[name], device, calls[name]))
            done += 1
    return {name: statistics.median(values) for name, values in seconds.items()}


def _calls(run: Callable[[], Any], device: str) -> int:
    """How many calls make a sample: the fastest tells, for others may use the machine too."""
    begin, fastest = time.perf_counter(), clock(run, device)
    while time.perf_counter() - begin < WARM_SECONDS:
        fastest = min(fastest, clock(run, device))
    return max(1, round(SAMPLE_SECONDS[device] / fastest))
