"""Whether padding reaches results: a padded sample is run alone without padding, and batches are padded further."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from pellucid.errors import in_one_line
from pellucid.keeping import Inputs
from pellucid.models.checks.comparison import LOOSER, changed, origins, relative, zip_shaped
from pellucid.models.checks.mistakes import Found, Given
from pellucid.models.checks.samples import Samples, axis_of, first_input, is_recurrent
from pellucid.models.checks.trial import Call, Mode, Run, Trial
from pellucid.models.structures import mapped


@dataclass(frozen=True)
class Padded:
    """A padded sample: its place among how many, its real steps, and those of the padded input."""

    place: int
    samples: Samples
    real: int
    time: int


def mistakes(trial: Trial, samples: Samples | None, given: Given, base: Run) -> Iterator[Found]:
    """Tell of padding that changes results at real steps."""
    if given.lengths is None:
        if any(is_recurrent(call.layer) and call.read[0].ndim == 3 for call in base.calls if call.read):
            given.miss("lengths")
        return
    if given.mixed:
        given.miss("mixed")
        return
    padded = _shortest(trial, samples, given.lengths)
    if padded is None:
        given.miss("no-padding")
        return
    experiments: tuple[tuple[Callable[[Inputs, Padded], Inputs], Mode], ...] = ((_alone, "eval"), (_further, "norms"))
    for cut, mode in experiments:
        if mode == "norms" and not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in trial.paths):
            continue
        inputs = cut(trial.inputs, padded)
        run = trial.run(mode, inputs=inputs, record=True, suppress=True)
        if run.error is not None:
            given.miss("padding-fails", error=in_one_line(run.error, trial.model))
            continue
        plain = base if mode == "eval" else trial.run(mode, record=True)
        if not any(real_part(a, b, padded) for a, b in zip_shaped(plain.outputs, run.outputs)):
            given.miss("padding-unrelated")
            continue
        found = _leak(trial, plain, run, padded, mode == "eval")
        if found is None:
            continue
        if given.guessed:
            found.severity = "suspect"
        found.known = "guessed" if given.guessed else ""
        yield found


def guessed(inputs: Inputs, samples: Samples | None) -> list[int] | None:
    """Read lengths off the input: steps at the ends of samples that are all of the same number; None if there are none.

    At least one sample has none of them, and at least one has two or more.
    """
    x = first_input(inputs)
    if (
        x is None
        or samples is None
        or samples.axis > 1
        or not 2 <= x.ndim <= 3
        or (x.ndim == 2 and x.is_floating_point())
    ):
        return None
    rows = x.detach().movedim(samples.axis, 0)
    if rows.shape[1] < 2:
        return None
    last = rows[:, -1].flatten()
    values, counts = last.unique(return_counts=True)
    value = values[counts.argmax()]
    padding = (rows == value).flatten(2).all(2) if x.ndim == 3 else rows == value
    tail = padding.flip(1).long().cumprod(1).sum(1)
    found = (rows.shape[1] - tail).tolist()
    return found if int(tail.min()) == 0 and int(tail.max()) > 1 and min(found) > 0 else None


def _shortest(trial: Trial, samples: Samples | None, lengths: list[int]) -> Padded | None:
    """The sample with the most padding, two steps of it real if one has so many."""
    x = first_input(trial.inputs)
    if x is None or samples is None or samples.count != len(lengths):
        return None
    longest = max(lengths)
    others = [axis for axis in range(x.ndim) if axis != samples.axis]
    sizes = [x.shape[axis] for axis in others]
    time = longest if longest in sizes else next((size for size in sizes if size > longest), None)
    fitting = [length for length in lengths if time is not None and 0 < length < time]
    if time is None or not fitting:
        return None
    real = min((length for length in fitting if length > 1), default=fitting[0])
    return Padded(lengths.index(real), samples, real, time)


# -- other padding -----------------------------------------------------------------------------------------------------


def _axes(tensor: Tensor, padded: Padded) -> tuple[int | None, list[int]]:
    """The axis of the samples of an input, and those of time; only a mask of steps by steps has two."""
    batch = axis_of(tensor, padded.samples)
    time = [axis for axis in range(tensor.ndim) if axis != batch and tensor.shape[axis] == padded.time]
    first = time[:1] if batch is not None or tensor.ndim < 2 else time
    return batch, first


def _alone(inputs: Inputs, padded: Padded) -> Inputs:
    """Return the inputs of the padded sample, without its padding."""

    def cut(tensor: Tensor) -> Tensor:
        batch, time = _axes(tensor, padded)
        if batch is not None:
            tensor = tensor.narrow(batch, padded.place, 1)
        for axis in time:
            tensor = tensor.narrow(axis, 0, padded.real)
        return tensor

    def is_lengths(value: Any) -> bool:
        """Whether a value is a list of whole numbers, one for every sample."""
        return isinstance(value, list) and len(value) == padded.samples.count and all(type(n) is int for n in value)

    return pytree.tree_map(
        lambda value: [value[padded.place]] if is_lengths(value) else value, mapped(cut, inputs), is_leaf=is_lengths
    )


def _further(inputs: Inputs, padded: Padded) -> Inputs:
    """Return inputs with as much padding again: the padded sample's last step, repeated for all."""

    def pad(tensor: Tensor) -> Tensor:
        batch, time = _axes(tensor, padded)
        if batch is None or not time or tensor.ndim < 2:
            return tensor
        last = tensor.narrow(batch, padded.place, 1).narrow(time[0], padded.time - 1, 1)
        shape = list(tensor.shape)
        shape[time[0]] = padded.time
        return torch.cat([tensor, last.expand(shape)], time[0])

    return mapped(pad, inputs)


# -- what it changes ---------------------------------------------------------------------------------------------------


def real_part(tensor: Tensor, other: Tensor, padded: Padded) -> tuple[Tensor, Tensor] | None:
    """Return the padded sample's real steps in a tensor and in that of the other run; None if they do not correspond.

    In the other run the sample is alone, and time is another.
    """
    one, two, batch_found = tensor, other, False
    for axis in range(tensor.ndim):
        size, size_there = tensor.shape[axis], other.shape[axis]
        is_batch = size_there == 1 or (size_there == size and axis == axis_of(tensor, padded.samples))
        if size == padded.samples.count and is_batch and not batch_found:
            batch_found = True
            one = one.narrow(axis, padded.place, 1)
            two = two.narrow(axis, padded.place if size_there == size else 0, 1)
        elif size == padded.time and size_there in (padded.real, 2 * padded.time):
            one, two = one.narrow(axis, 0, padded.real), two.narrow(axis, 0, padded.real)
        elif size != size_there:
            return None
    return (one, two) if batch_found else None


def _leak(trial: Trial, base: Run, run: Run, padded: Padded, alone: bool) -> Found | None:
    def fine(one: Tensor, other: Tensor) -> bool | None:
        pair = real_part(one, other, padded)
        return None if pair is None else not changed(*pair, LOOSER).any()

    pairs = zip_shaped(base.outputs, run.outputs)
    leaking = [(a, b) for a, b in pairs if fine(a, b) is False]
    if not leaking:
        return None
    worst = max(relative(*part) for a, b in leaking if (part := real_part(a, b, padded)) is not None)
    numbers = {"sample": padded.place, "real": padded.real, "time": padded.time, "difference": worst}
    for call, other in origins(base, run, fine):
        kind = _kind(trial, base, call, other, fine)
        if kind is not None:
            variant = "" if alone else "further"
            return Found(kind, call.layer, call.path, "wrong", numbers, variant=variant)
    return Found("padding-in-result", trial.model, "", "wrong", numbers)


def _kind(
    trial: Trial, base: Run, call: Call, other: Call, fine: Callable[[Tensor, Tensor], bool | None]
) -> str | None:
    """Which mistake a layer makes that is the first to return what padding has changed; None if nobody reads it."""
    if isinstance(call.layer, (_NormBase, nn.GroupNorm)):
        return "padding-in-norm"
    if not is_recurrent(call.layer):
        return "padding-in-result"
    output = zip_shaped(call.given, other.given)[0]
    if fine(*output) is False:
        return "padding-in-recurrence"
    return "state-after-padding" if _is_read(trial, base, call) else None


def _is_read(trial: Trial, base: Run, call: Call) -> bool:
    """Whether results change with the last state of a recurrent layer."""

    def without(result: Any) -> Any:
        output, state = result[0], result[1]
        return (output, mapped(torch.zeros_like, state), *result[2:])

    run = trial.run(replaced={call.layer: without})
    return any(bool(changed(a, b).any()) for a, b in zip_shaped(base.outputs, run.outputs) if a.shape == b.shape)
