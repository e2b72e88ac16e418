"""A model run with torch.nn's layers and with pellucid's: the same results, in which time."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import enum
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from pellucid.errors import VerificationError, in_one_line, naming_layer
from pellucid.keeping import left_alone, seed_all
from pellucid.models.formats import FASTEST, RESHAPE, Formats
from pellucid.models.functions import WithoutDropout
from pellucid.models.fusions import Plans, follow, unfuse
from pellucid.models.report import Verification
from pellucid.models.structures import arguments, difference, largest, mapped, ramp, tensors
from pellucid.nn.swapped.exchange import exchange
from pellucid.timing import clock, settled

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
ROUNDING = 10  # times as far from float64 as torch.nn's layers those of pellucid may be, where rounding is large
NEARBY = 8  # models are tried at most whose weights differ in their last bit, which tells how large rounding may be
TIMED_SECONDS = 1.0  # samples are taken until so much time has gone by
SAMPLES = 5  # of each side at least
SEED = 0  # of what the model itself draws


def verified(
    model: torch.nn.Module,
    layers: Sequence[torch.nn.Module],
    example: Any,
    plans: Mapping[torch.nn.Module, Plans],
    formats: Formats,
) -> Verification:
    """Compare and time a model whose layers have just become pellucid's.

    Args:
        model: stays as it is, its state, gradients, mode and the random generators too.
        layers: those that were exchanged.
        example: a tensor, a tuple of positional or a dict of keyword arguments.
        plans: of the modules that compute layers as one.
        formats: the convolutions that may work in another memory format; they do afterwards where it is kept, and
            ``formats`` knows why and the times.

    Raises:
        VerificationError: the model does not compute the same, or fails; it is as it was.
    """
    trial = SwapTrial(model, layers, arguments(example), plans, formats)
    try:
        return trial.verification()
    except BaseException:
        trial.turn(Way.BEFORE)
        raise


@dataclasses.dataclass(frozen=True)
class Differences:
    """The largest differences of outputs and gradients; None where nothing has a gradient."""

    outputs: float = 0.0
    gradients: float | None = None

    @property
    def largest(self) -> float:
        """The larger of both."""
        return max(self.outputs, self.gradients or 0.0)

    def and_also(self, other: Differences) -> Differences:
        """Return the larger ones of two."""
        known = [d for d in (self.gradients, other.gradients) if d is not None]
        return Differences(max(self.outputs, other.outputs), max(known) if known else None)

    def __str__(self) -> str:
        gradients = "" if self.gradients is None else f" and a gradient by {self.gradients:.1e}"
        return f"an output by {self.outputs:.1e}{gradients}"


@dataclasses.dataclass(frozen=True)
class Results:
    """What a model gave, and the gradients."""

    outputs: list[Tensor]
    gradients: list[Tensor]

    def differences(self, exact: Results) -> Differences:
        """Compare: an output relative to its largest entry, gradients relative to the largest entry of all."""
        outputs = max((difference(a, b) for a, b in zip(self.outputs, exact.outputs, strict=True)), default=0.0)
        if not exact.gradients:
            return Differences(outputs)
        scale = max(map(largest, exact.gradients))
        pairs = zip(self.gradients, exact.gradients, strict=True)
        return Differences(outputs, max(difference(a, b, scale) for a, b in pairs))


class Way(enum.Enum):
    """How a model runs."""

    BEFORE = "as it was"
    OURS = "with pellucid's layers"
    FORMATTED = "with pellucid's layers, convolutions in another memory format"


class _Unfit(Exception):
    """What is wrong with a way to run the model, in words."""


class SwapTrial:
    """A model that runs on an example, with either kind of layers."""

    def __init__(
        self,
        model: torch.nn.Module,
        layers: Sequence[torch.nn.Module],
        example: Any,
        plans: Mapping[torch.nn.Module, Plans] | None = None,
        formats: Formats | None = None,
    ) -> None:
        self.model, self.layers, self.plans, self.way = model, layers, plans or {}, Way.OURS
        self.graded = True  # whether gradients are compared
        self.formats = formats if formats is not None and formats.layers else None
        self.positional, self.named = example
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = "cuda" if any(t.is_cuda for t in (*model.parameters(), *tensors(example))) else "cpu"

    def turn(self, way: Way) -> None:
        """Take the layers, and the memory format, of a way to run."""
        ours = way is not Way.BEFORE
        if ours is (self.way is Way.BEFORE):
            for layer in self.layers:
                exchange(layer)
            for module, followed in self.plans.items():
                if ours:
                    follow(module, followed)
                else:
                    unfuse(module)
        if self.formats is not None:
            if ours:
                self.formats.turn(way is Way.FORMATTED)
            else:
                self.formats.undo()
        self.way = way

    def verification(self) -> Verification:
        """Compare in both modes, then time in the model's own mode; a memory format stays where it is to.

        Raises:
            VerificationError: they differ.
        """
        ways = [Way.OURS, *([] if self.formats is None else [Way.FORMATTED])]
        found = dict.fromkeys(ways, Differences())
        notes: dict[Way, list[str]] = {way: [] for way in ways}
        modes, trains = [], False
        dtype, tolerance = self._tolerance()
        for mode, name in ((False, "eval"), (True, "train")):
            before = self._before(mode, notes)
            if before is None:
                continue
            modes.append(name)
            trains = mode and bool(self.parameters and before.gradients)
            for way in list(found):
                try:
                    differences = self._compared(way, mode, name, before, notes[way])
                except _Unfit as unfit:
                    self._refuse(way, unfit)
                    del found[way]
                else:
                    found[way] = found[way].and_also(differences)
            self.graded = True
        differentiable = self.model.training and trains
        times = self._times(differentiable, [Way.BEFORE, *found])
        way = self._decide(times)
        self.turn(way)
        timed = "forward + backward" if differentiable else "forward"
        compared = (found[way].outputs, found[way].gradients, tolerance, dtype, tuple(modes), tuple(notes[way]))
        return Verification(*compared, timed, times[Way.BEFORE], times[way])

    def _before(self, mode: bool, notes: Mapping[Way, list[str]]) -> Results | None:
        """Run the model as it was: without gradients where it has none in eval mode; None where it fails training."""
        self.turn(Way.BEFORE)
        try:
            return self.results(mode)
        except Exception as error:
            what = "Not compared in train mode" if mode else "Gradients are not compared in eval mode"
            for said in notes.values():
                said.append(f"{what}, where the model itself fails: {in_one_line(error, self.model)}")
        if mode:
            return None
        self.graded = False
        return self.results(mode)  # what an example that does not fit raises is told once

    def _compared(self, way: Way, mode: bool, name: str, before: Results, notes: list[str]) -> Differences:
        """Run the model in one way, and compare.

        Raises:
            _Unfit: it fails, or differs by more than rounding.
        """
        self.turn(way)
        try:
            after = self.results(mode)
        except Exception as error:
            said = _ended(in_one_line(error, self.model))
            raise _Unfit(f"the model fails in {name} mode, where it ran before: {said}") from error
        differences = after.differences(before)
        if not differences.largest <= self._tolerance()[1]:
            notes.append(self._rounding(mode, name, differences, before, after))
        return differences

    def _refuse(self, way: Way, unfit: _Unfit) -> None:
        """Remember why a memory format is not for the model, if it may go without.

        Raises:
            VerificationError: it may not.
        """
        formats = self.formats if way is Way.FORMATTED else None
        if formats is not None and formats.wish == FASTEST:
            formats.refused = f"with it {_ended(str(unfit))} {RESHAPE}"
            return
        state = "The model has torch.nn's layers again." if self.layers else "The model is as it was."
        if formats is None:
            said, cure = Way.OURS.value, "only= leaves a layer out"
        else:
            said = f"with convolutions in {formats.name}"
            cure = f"{RESHAPE}; memory_format={FASTEST!r} goes on without it, and only= leaves a layer out"
        cure += "; without fuse= all run one by one." if self.plans else "."
        raise VerificationError(f"swap: {said} {_ended(str(unfit))} {state} {cure}") from unfit.__cause__

    def _decide(self, times: Mapping[Way, float]) -> Way:
        """Return the way in which the model is to run from now on."""
        if self.formats is None:
            return Way.OURS
        if Way.FORMATTED in times:
            self.formats.with_ms, self.formats.without_ms = times[Way.FORMATTED], times[Way.OURS]
        self.formats.decide()
        return Way.FORMATTED if self.formats.kept else Way.OURS

    def _tolerance(self) -> tuple[str, float]:
        """The coarsest type that takes part, and what may differ in it."""
        dtypes = {t.dtype for t in (*self.model.parameters(), *tensors((self.positional, self.named)))}
        dtype = max((d for d in dtypes if d in TOLERANCE), key=TOLERANCE.__getitem__, default=torch.float32)
        return str(dtype).removeprefix("torch."), TOLERANCE[dtype]

    def _rounding(self, mode: bool, name: str, differences: Differences, before: Results, after: Results) -> str:
        """Say that differences beyond the tolerance are rounding: torch.nn's layers, too, are as far from float64.

        A unit near zero may be on the other side of it by one bit, and with it go whole gradients. Whether one is, is
        chance: so torch.nn's layers may also be as far with weights of which the last bit is another one.

        Raises:
            _Unfit: they are not.
        """
        dtype, tolerance = self._tolerance()
        complaint = (
            f"the model differs in {name} mode, {differences}, relative to the largest entry; {dtype} may differ by "
            f"{tolerance:.0e}"
        )
        exact = None if dtype == "float64" else self._in_double(mode)
        if exact is not None:
            ours, theirs = after.differences(exact), before.differences(exact)
            farthest, whose = theirs, "torch.nn's layers differ"
            for attempt in range(NEARBY + 1):
                if math.isfinite(farthest.largest) and ours.largest <= ROUNDING * farthest.largest:
                    return (
                        f"Rounding is large in {name} mode: from float64 {whose}, {farthest}, and pellucid's, {ours}."
                    )
                nearby = self._nearby(mode, attempt) if attempt < NEARBY else None
                if nearby is None:
                    break
                farthest = farthest.and_also(nearby.differences(exact))
                whose = "torch.nn's layers, also with another last bit in their weights, differ"
            complaint += f". From float64 pellucid's layers differ, {ours}, and torch.nn's, {theirs}"
        raise _Unfit(complaint)

    def _in_double(self, mode: bool) -> Results | None:
        """The results of a copy in float64, with torch.nn's layers; None for a model that cannot be had in float64."""
        example = mapped(lambda x: x.double() if x.is_floating_point() else x, (self.positional, self.named))
        return self._of_a_copy(mode, lambda model: model.double(), example)

    def _nearby(self, mode: bool, seed: int) -> Results | None:
        """The results of a copy with torch.nn's layers and weights of which the last bit may be another one."""

        def change(model: torch.nn.Module) -> torch.nn.Module:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for p in model.parameters():
                    if p.is_floating_point():
                        steps = torch.randint(-1, 2, p.shape, generator=generator).to(p)
                        p.add_(p * torch.finfo(p.dtype).eps * steps)
            return model

        return self._of_a_copy(mode, change, (self.positional, self.named))

    def _of_a_copy(
        self, mode: bool, change: Callable[[torch.nn.Module], torch.nn.Module], example: Any
    ) -> Results | None:
        """The results of a changed copy with torch.nn's layers; None where it cannot be copied or does not run."""
        way = self.way
        self.turn(Way.BEFORE)
        try:
            copied = SwapTrial(change(copy.deepcopy(self.model)), (), example)
            copied.graded = self.graded
            return copied.results(mode)
        except Exception:
            return None
        finally:
            self.turn(way)

    def results(self, training: bool) -> Results:
        """Return the outputs, and the gradients of their sum along a ramp; no dropout acts."""
        with left_alone(self.model), WithoutDropout(), torch.enable_grad():  # nor is what a run keeps used
            self._take_mode(training)
            for layer in self.model.modules():  # which draw other masks with other layers
                if isinstance(layer, _DropoutNd):
                    layer.training = False
                elif isinstance(layer, (torch.nn.RNNBase, torch.nn.MultiheadAttention)):
                    layer.dropout = 0.0
            seed_all(SEED)
            leaves: list[Tensor] = list(self.parameters)
            outputs = self._run(leaves)
            loss = ramp(outputs) if self.graded else None
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True) if loss is not None and leaves else ()
        return Results([y.detach() for y in outputs], [g.detach() for g in gradients if g is not None])

    def _take_mode(self, training: bool) -> None:
        if training is not self.model.training:
            self.model.train(training)

    def _run(self, leaves: list[Tensor] | None = None) -> list[Tensor]:
        """Run the model on a copy of the example, which it may write to.

        ``leaves`` are what has gradients: the parameters; where there are none, it receives the inputs.
        """

        def fresh(x: Tensor) -> Tensor:
            if leaves is None or self.parameters or not x.is_floating_point():
                return x.detach().clone()
            leaves.append(x.detach().requires_grad_())
            return leaves[-1].clone()

        positional, named = mapped(fresh, (self.positional, self.named))
        with naming_layer(self.model, "swap"):
            return list(tensors(self.model(*positional, **named)))

    def _times(self, differentiable: bool, ways: Sequence[Way]) -> dict[Way, float]:
        """Median milliseconds of every way: of forward and backward in train mode, or of forward in eval mode."""

        def step() -> None:
            with torch.set_grad_enabled(differentiable):
                outputs = self._run()
                loss = ramp(outputs) if differentiable else None
                if loss is not None:
                    torch.autograd.grad(loss, self.parameters, allow_unused=True)

        seconds: dict[Way, list[float]] = {way: [] for way in ways}
        order = list(ways)
        with settled(), left_alone(self.model), contextlib.ExitStack() as stack:
            stack.callback(self.turn, self.way)
            self._take_mode(differentiable)
            for way in order:
                self.turn(way)
                step()
                step()  # the first may have compiled and chosen kernels
            begin = time.perf_counter()
            while len(seconds[order[-1]]) < SAMPLES or time.perf_counter() - begin < TIMED_SECONDS * len(ways) / 2:
                for way in order:
                    self.turn(way)
                    seconds[way].append(clock(step, self.device))
                order.append(order.pop(0))
        return {way: 1e3 * statistics.median(samples) for way, samples in seconds.items()}


def _ended(text: str) -> str:
    """A text with one full stop."""
    return f"{text.rstrip('. ')}."
