"""Training steps of whole models that `pellucid.swap` has given pellucid's layers, beside the models as they were."""

from __future__ import annotations

import copy
import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pellucid.benchmark.comparison import Agreement, Failed, Run, Skipped, times
from pellucid.benchmark.limit import Work
from pellucid.benchmark.networks import sgd
from pellucid.benchmark.twins import RowSpeed
from pellucid.benchmark.zoo import ZOO, ZooModel
from pellucid.errors import VerificationError
from pellucid.explanation.model.run import Recording
from pellucid.models import swap
from pellucid.models.formats import FASTEST
from pellucid.models.report import Report
from pellucid.models.structures import mapped, ramp, tensors
from pellucid.models.verification import SwapTrial
from pellucid.nn.component import Running

FLOOR = 1.0  # of every model
MEAN_FLOOR = 1.5  # of the geometric mean of all
RATE = 1e-7  # of learning: the loss is a sum, by which 0.01 brings parameters of BERT to 2,000 in two steps
COPIES = 3  # of each model: where one lies in memory, which is chance, changes its time by up to a tenth


@dataclass(frozen=True)
class ModelSpeed(RowSpeed):
    """A model before and after.

    ``layers`` is how many of its layers were replaced, "12 of 31"; ``fused`` how many groups of layers, operations and
    functions may be computed as one; ``memory_format`` that of its convolutions, where it was measured to be faster:
    "channels_last".
    """

    layers: str
    fused: int
    memory_format: str | None = None


@dataclass(frozen=True)
class ModelRow:
    """A model and the floor of its training step, for two CPU threads."""

    section: ClassVar[str] = "models"
    model: ZooModel
    floor: float = FLOOR

    @property
    def name(self) -> str:
        """How the line is called."""
        return self.model.name

    def measure(self, run: Run) -> ModelSpeed:
        """Compare outputs and gradients, then time zero_grad, forward, loss, backward and SGD, both taking turns."""
        if not self.model.is_here:
            raise Skipped(f"needs {self.model.needs}: pip install {self.model.needs}")
        theirs, inputs = self.model.make()
        theirs, inputs = theirs.to(run.device), mapped(lambda x: x.to(run.device), inputs)
        ours = copy.deepcopy(theirs)
        report = exchanged(ours, inputs)
        agreement = agree(ours, theirs, inputs)
        limit = work_of(theirs, inputs).seconds(run.rates)
        found = times_of_copies({"ours": ours, "torch": theirs}, inputs, run)
        figures = (1e3 * limit, 1e3 * found["ours"], self.floor, 1e3 * found["torch"])
        ran = ", ".join(sorted({layer.backend for layer in ours.modules() if isinstance(layer, Running)} - {"auto"}))
        layers = f"{len(report.replaced)} of {len(report.replaced) + len(report.left)}"
        form = report.formatted.name if report.formatted is not None and report.formatted.kept else None
        return ModelSpeed(self.name, ran, agreement, *figures, layers, len(report.fused), form)


def exchanged(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Report:
    """Let a model's layers become pellucid's, computed as one where that is faster, its convolutions in that format.

    Raises:
        Failed: it does not compute the same.
    """
    convolves = any(isinstance(layer, (torch.nn.Conv2d, torch.nn.Conv3d)) for layer in model.modules())
    try:
        return swap(model, verify=inputs, fuse=True, memory_format=FASTEST if convolves else None)
    except VerificationError as error:
        raise Failed(str(error)) from error


def agree(ours: torch.nn.Module, theirs: torch.nn.Module, inputs: dict[str, Tensor]) -> Agreement:
    """Compare all outputs and gradients in train mode, dropouts off; gradients relative to the largest entry of all."""
    exact, in_double = (
        SwapTrial(copy.deepcopy(model).double(), (), ((), _double(inputs))).results(training=True)
        for model in (theirs, ours)
    )
    opponent, rounded = (SwapTrial(model, (), ((), inputs)).results(training=True) for model in (theirs, ours))
    return Agreement(*(results.differences(exact).largest for results in (in_double, rounded, opponent)))


def work_of(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Work:
    """Count what a training step cannot do without: torch's counter knows neither recurrent layers nor groups.

    FLOPs: 6 × the multiply-accumulates of forward, as `pellucid.explain` counts them: each product needs two more in
    backward. The gradient of the inputs, which nobody asks for, is among them.

    Bytes: 4 × those of the parameters. Backward writes the gradient; SGD reads it and the parameter, and writes.
    """
    macs = Recording(model, ((), inputs), runs=0).of(model).tally.macs
    return Work(flops=6 * macs, bytes=4 * sum(w.nbytes for w in model.parameters()))


def times_of_copies(models: Mapping[str, torch.nn.Module], inputs: dict[str, Tensor], run: Run) -> dict[str, float]:
    """Mean of the median seconds of a training step of several copies of each, which share the rounds."""
    rounds, found = -(-run.rounds // COPIES), []
    for _ in range(COPIES):
        copies = {name: copy.deepcopy(model) for name, model in models.items()}
        sides = {name: functools.partial(step, inputs, model, sgd(model, RATE)) for name, model in copies.items()}
        found.append(times(sides, rounds, run.device))
    return {name: statistics.mean(seconds[name] for seconds in found) for name in models}


def step(inputs: dict[str, Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Train once."""
    optimizer.zero_grad()
    loss = ramp(list(tensors(model(**inputs))))
    assert loss is not None
    loss.backward()
    optimizer.step()


def geometric_mean(figures: Sequence[ModelSpeed]) -> float:
    """How many times as fast the models are, as the geometric mean."""
    return math.exp(sum(math.log(figure.factor) for figure in figures) / len(figures))


def _double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}


MODELS = [ModelRow(model) for model in ZOO]
