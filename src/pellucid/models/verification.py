"""A model run with torch.nn's layers and with pellucid's: the same results, in which time."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.rnn import PackedSequence

from pellucid.errors import VerificationError
from pellucid.keeping import Draws, seed_all
from pellucid.models.fusions import Plans, follow, unfuse
from pellucid.models.report import Verification
from pellucid.nn.exchange import exchange
from pellucid.timing import clock

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
ROUNDING = 10  # times as far from float64 as torch.nn's layers those of pellucid may be, where rounding is large
TIMED_SECONDS = 1.0  # samples are taken until so much time has gone by
SAMPLES = 5  # of each side at least
SEED = 0  # of what the model itself draws


def verified(
    model: torch.nn.Module,
    layers: Sequence[torch.nn.Module],
    example: Any,
    plans: Mapping[torch.nn.Module, Plans] | None = None,
) -> Verification:
    """Compare and time a model whose layers have just become pellucid's.

    Args:
        model: stays as it is, its state, gradients, mode and the random generators too.
        layers: those that were exchanged.
        example: a tensor, a tuple of positional or a dict of keyword arguments.
        plans: of the modules that compute layers as one.

    Raises:
        VerificationError: the model does not compute the same, or fails; its layers are torch.nn's again.
    """
    trial = Trial(model, layers, arguments(example), plans)
    try:
        with _kept(model):
            return trial.verification()
    except BaseException:
        trial.turn(False)
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


class Trial:
    """A model that runs on an example, with either kind of layers."""

    def __init__(
        self,
        model: torch.nn.Module,
        layers: Sequence[torch.nn.Module],
        example: Any,
        plans: Mapping[torch.nn.Module, Plans] | None = None,
    ) -> None:
        self.model, self.layers, self.plans, self.ours = model, layers, plans or {}, True
        self.positional, self.named = example
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = "cuda" if any(t.is_cuda for t in (*model.parameters(), *tensors(example))) else "cpu"

    def turn(self, ours: bool) -> None:
        """Take pellucid's layers, or torch.nn's."""
        if ours is not self.ours:
            for layer in self.layers:
                exchange(layer)
            for module, followed in self.plans.items():
                if ours:
                    follow(module, followed)
                else:
                    unfuse(module)
            self.ours = ours

    def verification(self) -> Verification:
        """Compare in both modes, then time in the model's own mode.

        Raises:
            VerificationError: they differ.
        """
        found, modes, notes, trains = Differences(), [], [], False
        dtype, tolerance = self._tolerance()
        for mode, name in ((False, "eval"), (True, "train")):
            self.turn(False)
            try:
                before = self.results(mode)
            except Exception as error:
                if not mode:
                    raise
                notes.append(f"Not compared in train mode, where the model itself fails: {error}")
                continue
            self.turn(True)
            try:
                after = self.results(mode)
            except Exception as error:
                raise VerificationError(
                    f"swap: with pellucid's layers the model fails in {name} mode, where it ran with torch.nn's: "
                    f"{error}\nIt has torch.nn's layers again. {self._cure()}"
                ) from error
            modes.append(name)
            trains = mode and bool(self.parameters and before.gradients)
            differences = after.differences(before)
            if not differences.largest <= tolerance:
                notes.append(self._rounding(mode, name, differences, before, after))
            found = found.and_also(differences)
        differentiable = self.model.training and trains
        milliseconds = self._times(differentiable)
        timed = "forward + backward" if differentiable else "forward"
        return Verification(
            found.outputs, found.gradients, tolerance, dtype, tuple(modes), tuple(notes), timed, *milliseconds
        )

    def _tolerance(self) -> tuple[str, float]:
        """The coarsest type that takes part, and what may differ in it."""
        dtypes = {t.dtype for t in (*self.model.parameters(), *tensors((self.positional, self.named)))}
        dtype = max((d for d in dtypes if d in TOLERANCE), key=TOLERANCE.__getitem__, default=torch.float32)
        return str(dtype).removeprefix("torch."), TOLERANCE[dtype]

    def _rounding(self, mode: bool, name: str, differences: Differences, before: Results, after: Results) -> str:
        """Say that differences beyond the tolerance are rounding: torch.nn's layers, too, are as far from float64.

        Raises:
            VerificationError: they are not.
        """
        dtype, tolerance = self._tolerance()
        complaint = (
            f"swap: with pellucid's layers the model differs in {name} mode, {differences}, relative to the largest "
            f"entry; {dtype} may differ by {tolerance:.0e}"
        )
        exact = None if dtype == "float64" else self._in_double(mode)
        if exact is not None:
            ours, theirs = after.differences(exact), before.differences(exact)
            if math.isfinite(theirs.largest) and ours.largest <= ROUNDING * theirs.largest:
                return (
                    f"Rounding is large in {name} mode: from float64 torch.nn's layers differ, {theirs}, and "
                    f"pellucid's, {ours}."
                )
            complaint += f". From float64 pellucid's layers differ, {ours}, and torch.nn's, {theirs}"
        raise VerificationError(f"{complaint}. The model has torch.nn's layers again. {self._cure()}")

    def _cure(self) -> str:
        return "only= leaves a layer out" + ("; without fuse= all run one by one." if self.plans else ".")

    def _in_double(self, mode: bool) -> Results | None:
        """The results of a copy in float64, with torch.nn's layers; None for a model that cannot be had in float64."""
        self.turn(False)
        example = mapped(lambda x: x.double() if x.is_floating_point() else x, (self.positional, self.named))
        try:
            return Trial(copy.deepcopy(self.model).double(), (), example).results(mode)
        except Exception:
            return None
        finally:
            self.turn(True)

    def results(self, training: bool) -> Results:
        """Return the outputs, and the gradients of their sum along a ramp; no dropout acts."""
        with _kept(self.model), _calm(self.model, training), torch.enable_grad():
            seed_all(SEED)
            leaves: list[Tensor] = list(self.parameters)
            outputs = self._run(leaves)
            loss = ramp(outputs)
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True) if loss is not None and leaves else ()
        return Results([y.detach() for y in outputs], [g.detach() for g in gradients if g is not None])

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
        return list(tensors(self.model(*positional, **named)))

    def _times(self, differentiable: bool) -> tuple[float, float]:
        """Median milliseconds before and after: of forward and backward in train mode, or of forward in eval mode."""

        def step() -> None:
            with torch.set_grad_enabled(differentiable):
                outputs = self._run()
                loss = ramp(outputs) if differentiable else None
                if loss is not None:
                    torch.autograd.grad(loss, self.parameters, allow_unused=True)

        seconds: dict[bool, list[float]] = {False: [], True: []}
        with _calm(self.model, differentiable, dropout=True):
            for ours in seconds:
                self.turn(ours)
                step()
                step()  # the first may have compiled and chosen kernels
            begin = time.perf_counter()
            while len(seconds[True]) < SAMPLES or time.perf_counter() - begin < TIMED_SECONDS:
                for ours in (False, True) if len(seconds[True]) % 2 else (True, False):
                    self.turn(ours)
                    seconds[ours].append(clock(step, self.device))
        self.turn(True)
        return 1e3 * statistics.median(seconds[False]), 1e3 * statistics.median(seconds[True])


# -- values of any structure ----------------------------------------------------------------------------------------


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return an example as positional and keyword arguments."""
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple) and not isinstance(example, PackedSequence):
        return example, {}
    return (example,), {}


def tensors(value: Any) -> Iterator[Tensor]:
    """Find the tensors in tuples, lists, mappings, packed sequences and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to the tensors in tuples, lists, dicts and packed sequences."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, PackedSequence):
        return value._replace(data=function(value.data))
    if isinstance(value, dict):
        return {key: mapped(function, part) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(mapped(function, part) for part in value)
    return value


def largest(x: Tensor) -> float:
    """Return the largest finite magnitude."""
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def difference(a: Tensor, b: Tensor, scale: float | None = None) -> float:
    """Return the largest difference relative to the scale, b's largest entry by default; infinite where only one is."""
    if a.shape != b.shape:
        return float("inf")
    if not b.is_floating_point() and not b.is_complex():
        return 0.0 if torch.equal(a, b) else float("inf")
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite) or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return float("inf")
    wide = torch.complex128 if b.is_complex() else torch.float64
    worst = largest(a[finite].to(wide) - b[finite].to(wide))
    scale = largest(b) if scale is None else scale
    return worst / scale if scale else worst


def ramp(outputs: Sequence[Tensor]) -> Tensor | None:
    """Return the sum along a ramp of all that has a gradient; None where nothing has."""
    total = None
    for y in outputs:
        if y.requires_grad:
            y = torch.view_as_real(y) if y.is_complex() else y
            wide = torch.promote_types(y.dtype, torch.float32)
            along = torch.linspace(-1, 1, y.shape[-1] if y.ndim else 1, dtype=wide, device=y.device)
            part = (y.to(wide) * along).sum()
            total = part if total is None else total + part
    return total


# -- nothing is left changed ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _kept(model: torch.nn.Module) -> Iterator[None]:
    """Bring buffers, modes and random generators back to what they are now."""
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module._buffers, name, buffer, buffer.detach().clone())
        for module in modes
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    draws = Draws(model)
    try:
        yield
    finally:
        draws.again()
        with torch.no_grad():
            for held, name, buffer, value in buffers:
                held[name] = buffer
                buffer.copy_(value)
        _set_modes(model, modes)


@contextlib.contextmanager
def _calm(model: torch.nn.Module, training: bool, dropout: bool = False) -> Iterator[None]:
    """Put a model into a mode, without its dropouts, which draw other masks with other layers."""
    modes = {module: module.training for module in model.modules()}
    within = [m for m in modes if isinstance(m, (torch.nn.RNNBase, torch.nn.MultiheadAttention))]
    rates = [m.dropout for m in within]
    try:
        if training is not model.training:
            model.train(training)
        if not dropout:
            for module in modes:
                if isinstance(module, _DropoutNd):
                    module.training = False
            for module in within:
                module.dropout = 0.0
        yield
    finally:
        for module, rate in zip(within, rates, strict=True):
            module.dropout = rate
        _set_modes(model, modes)


def _set_modes(model: torch.nn.Module, modes: Mapping[torch.nn.Module, bool]) -> None:
    if model.training is not modes[model]:
        model.train(modes[model])  # which a model may have a method of its own for
    for module, mode in modes.items():
        module.training = mode
