"""Which axis counts the samples, and whether they influence one another: one is changed, others are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pellucid.keeping import Inputs
from pellucid.models.checks.comparison import changed, origins
from pellucid.models.checks.mistakes import Found, Given
from pellucid.models.checks.trial import Run, Trial
from pellucid.nn.recurrence.sequence import SequenceLayer

WINDOWED = (nn.modules.conv._ConvNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd)
CERTAIN = ("given", "lengths")


@dataclass(frozen=True)
class Samples:
    """The axis of the first input that counts the samples, how many there are, and how that is known.

    ``known`` is "given", "lengths", "inputs" (another input has so many rows), "apart" (what is at one place of this
    axis is never read for another), "outputs" (the model returns a row for each) or "unsure" (as many rows as two
    axes have).
    """

    axis: int
    count: int
    known: str


def first_input(inputs: Inputs) -> Tensor | None:
    """Return the tensor that is read: the first of floating point, else the first of whole numbers."""
    found = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    whole = [t for t in found if t.dtype in (torch.int64, torch.int32) and t.ndim > 1]
    return next(iter([*(t for t in found if t.is_floating_point()), *whole]), None)


def samples_of(trial: Trial, base: Run, given: Given) -> Samples | None:
    """Find the axis that counts the samples; None where nothing tells."""
    x = first_input(trial.inputs)
    if x is None:
        return None
    if given.batch_axis is not None:
        if not -x.ndim <= given.batch_axis < x.ndim:
            raise ValueError(
                f"check: batch_axis is {given.batch_axis}, but the first input has {x.ndim} axes: its shape is "
                f"{tuple(x.shape)}"
            )
        axis = given.batch_axis % x.ndim
        return Samples(axis, x.shape[axis], "given")
    axes = list(range(min(2, x.ndim - x.is_floating_point()))) if x.ndim > 1 else [0]
    if given.lengths is not None:
        fitting = [axis for axis in axes if x.shape[axis] == len(given.lengths)]
        if len(fitting) == 1:
            return Samples(fitting[0], len(given.lengths), "lengths")
        if not fitting and given.explicit:
            raise ValueError(
                f"check: there are lengths of {len(given.lengths)} samples, but neither the first nor the second axis "
                f"of the first input, of shape {tuple(x.shape)}, has that size. Give one length for each sample."
            )
        axes = fitting or axes
    voted = _by_other_inputs(trial.inputs, x)
    for axis in axes:
        if x.shape[axis] > 1 and influence(trial, base, Samples(axis, x.shape[axis], "apart")) is False:
            contradicted = axis == 1 and voted == 0
            return Samples(0, x.shape[0], "inputs") if contradicted else Samples(axis, x.shape[axis], "apart")
    return _by_results(x, axes, base, voted)


def _by_results(x: Tensor, axes: Sequence[int], base: Run, voted: int | None) -> Samples | None:
    """Find the axis for each place of which the model returns a row."""
    rows = [t.shape[:2] for t in base.outputs if t.ndim]
    for axis in axes:
        if x.shape[axis] == 1 and any(1 in shape for shape in rows):
            return Samples(axis, 1, "outputs")
    for axis in axes:
        if any(shape[0] == x.shape[axis] for shape in rows):
            others = [x.shape[other] for other in axes if other != axis]
            if not any(size in shape for size in others for shape in rows):
                return Samples(axis, x.shape[axis], "outputs")
            axis = axis if voted is None else voted
            return Samples(axis, x.shape[axis], "unsure" if voted is None else "inputs")
    return None


def _by_other_inputs(inputs: Inputs, x: Tensor) -> int | None:
    """Return the axis that has as many places as all other inputs have rows, if only one has."""
    others = [t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor) and t.ndim and t is not x]
    others = [t for t in others if t.shape[:2] != x.shape[:2]]
    if x.ndim < 3 or not others:
        return None
    fitting = [axis for axis in (0, 1) if all(t.shape[0] == x.shape[axis] for t in others)]
    return fitting[0] if len(fitting) == 1 and x.shape[0] != x.shape[1] else None


def axis_of(tensor: Tensor, samples: Samples) -> int | None:
    """Return the axis of another tensor that counts the samples."""
    if samples.axis < tensor.ndim and tensor.shape[samples.axis] == samples.count:
        return samples.axis
    return 0 if tensor.ndim and tensor.shape[0] == samples.count else None


def redrawn(inputs: Inputs, samples: Samples, place: int) -> Inputs:
    """Draw one sample anew, from the entries that its input has: of floating point, else of whole numbers."""
    first = first_input(inputs)
    assert first is not None
    generator = torch.Generator().manual_seed(place + 1)

    def draw(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != first.dtype or value.ndim < first.ndim - 1:
            return value
        axis = axis_of(value, samples)
        if axis is None or not value.numel() or (not value.is_floating_point() and value.ndim < 2):
            return value
        new = value.detach().clone()
        sample = new.select(axis, place)
        flat = value.detach().reshape(-1)
        drawn = flat[torch.randint(flat.numel(), sample.shape, generator=generator).to(flat.device)]
        if value.is_floating_point() and torch.equal(drawn, sample):
            drawn = drawn + 1
        sample.copy_(drawn)
        return new

    return pytree.tree_map(draw, inputs)


def influence(trial: Trial, base: Run, samples: Samples) -> bool | None:
    """Whether changing the first or the last sample changes results of others; None where no result shows it."""
    found: list[bool] = []
    for place in dict.fromkeys((0, samples.count - 1)):
        run = trial.run(inputs=redrawn(trial.inputs, samples, place), suppress=True)
        known = [verdict for _, verdict in _verdicts(base, run, samples, place) if verdict is not None]
        if False in known:
            return True
        found += known
    return False if found else None


def _verdicts(base: Run, run: Run, samples: Samples, place: int) -> Iterator[tuple[tuple[Tensor, Tensor], bool | None]]:
    """Pair the results of two runs, and say of each whether only the changed sample's has changed."""
    for pair in zip(base.outputs, run.outputs, strict=False):
        yield pair, _apart(*pair, samples.count, place)


def _apart(base: Tensor, other: Tensor, count: int, place: int) -> bool | None:
    """Whether two tensors differ at one place of an axis of this size alone; None where there is none or no change."""
    if base.shape != other.shape or count not in base.shape:
        return None
    differs = changed(base, other)
    if not differs.any():
        return None
    return _axis_of_change(differs, count, place) is not None


def _axis_of_change(differs: Tensor, count: int, place: int) -> int | None:
    for axis in (axis for axis in range(differs.ndim) if differs.shape[axis] == count):
        if _changed_places(differs, axis) == [place]:
            return axis
    return None


def _changed_places(differs: Tensor, axis: int) -> list[int]:
    return differs.movedim(axis, 0).reshape(differs.shape[axis], -1).any(1).nonzero().flatten().tolist()


def mistakes(trial: Trial, samples: Samples | None, given: Given, base: Run) -> Iterator[Found]:
    """Tell of samples that influence one another, and of the axis that a layer takes for another one."""
    if samples is None or samples.count < 2:
        given.miss("samples" if samples is None else "one-sample")
        return
    if samples.known == "apart":
        if samples.axis == 1 and any(_sequential(call.layer) for call in base.calls):
            yield _second_axis(trial, samples)
        return
    for place in (0, samples.count - 1):
        run = trial.run(inputs=redrawn(trial.inputs, samples, place), record=True)
        if any(apart is False for _, apart in _verdicts(base, run, samples, place)):
            given.mixed = True
            yield _mixed(base, run, samples, place)
            return


def _second_axis(trial: Trial, samples: Samples) -> Found:
    x = first_input(trial.inputs)
    assert x is not None
    return Found(
        "batch-is-second",
        trial.model,
        "",
        "note",
        {"samples": samples.count, "steps": x.shape[0]},
        shape=tuple(x.shape),
    )


def _mixed(base: Run, run: Run, samples: Samples, place: int) -> Found:
    """Say in which layer one sample reaches others."""

    def fine(one: Tensor, other: Tensor) -> bool | None:
        if one.shape != other.shape or one.numel() < samples.count:
            return None
        differs = changed(one, other)
        if axis_of(one, samples) is None:  # samples and steps side by side, say: of every sample as many entries
            return int(differs.sum()) * samples.count <= one.numel()
        return not differs.any() or _axis_of_change(differs, samples.count, place) is not None

    call, other = next(origins(base, run, fine), (base.calls[-1], run.calls[-1]))
    result = next(pair for pair, apart in _verdicts(base, run, samples, place) if apart is False)
    numbers: dict[str, Any] = {
        "samples": samples.count,
        "changed": place,
        "others": _others(result, samples.count, place),
    }
    layer, read = call.layer, call.read[0] if call.read else None
    differs = changed(call.read[0], other.read[0]) if read is not None and read.shape == other.read[0].shape else None
    axis = None if differs is None or not differs.any() else _axis_of_change(differs, samples.count, place)
    severity: Any = "suspect" if samples.known in ("unsure", "inputs") else "wrong"
    about: dict[str, Any] = {"known": samples.known, "shape": () if read is None else tuple(read.shape)}
    if read is not None and _sequential(layer):
        if read.ndim == 2 and axis == 0:
            if samples.known == "outputs" and read.shape[0] == base.begun[0].read[0].shape[0] and _is_input(base, read):
                severity = "suspect"
            return Found("read-as-unbatched", layer, call.path, severity, numbers, **about)
        time = 1 if getattr(layer, "batch_first", False) else 0
        if read.ndim == 3 and axis == time:
            numbers |= {"read_as_time": read.shape[time], "read_as_batch": read.shape[1 - time]}
            variant = "first" if time else "second"
            return Found("batch-time-swapped", layer, call.path, severity, numbers, variant=variant, **about)
    if read is not None and isinstance(layer, WINDOWED) and read.ndim == _window_axes(layer) + 1:
        return Found("read-as-unbatched", layer, call.path, "suspect", numbers, **about)
    severity = "wrong" if samples.known in CERTAIN else "suspect"
    return Found("samples-mixed", layer, call.path, severity, numbers, **about)


def _others(pair: tuple[Tensor, Tensor], count: int, place: int) -> int:
    """How many samples but the changed one have other results."""
    differs = changed(*pair)
    return len({*_changed_places(differs, differs.shape.index(count))} - {place})


def _is_input(base: Run, read: Tensor) -> bool:
    """Whether a layer reads an input of the model as it came."""
    return any(torch.equal(read, t) for t in base.begun[0].read if t.shape == read.shape)


def is_recurrent(layer: nn.Module) -> bool:
    """Whether a layer reads whole sequences, step by step."""
    return isinstance(layer, (nn.RNNBase, SequenceLayer)) and not isinstance(layer, nn.RNNCellBase)


def _sequential(layer: nn.Module) -> bool:
    """Whether a layer has an axis of time."""
    return is_recurrent(layer) or isinstance(layer, nn.MultiheadAttention)


def _window_axes(layer: nn.Module) -> int:
    return int(next(kind.__name__[-2] for kind in type(layer).__mro__ if kind.__name__[-2:] in ("1d", "2d", "3d")))
