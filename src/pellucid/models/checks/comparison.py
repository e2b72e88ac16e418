"""Where two runs of a model part: entries that changed, and the layer in which it began."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pellucid.models.checks.trial import Call, Run
from pellucid.models.structures import largest

SAME = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
LOOSER = 100  # where matrix products of other shapes round otherwise


def changed(one: Tensor, other: Tensor, looser: float = 1.0) -> Tensor:
    """Mark the entries of two tensors of a shape that differ by more than rounding, relative to the largest."""
    if not one.is_floating_point():
        return one != other
    bound = looser * SAME.get(one.dtype, 1e-2) * max(largest(one), largest(other))
    same = ((one - other).abs() <= bound) | (one == other) | (one.isnan() & other.isnan())
    return ~same


def relative(one: Tensor, other: Tensor) -> float:
    """Return the largest difference relative to the largest entry of the first."""
    if not one.numel():
        return 0.0
    scale = largest(one)
    return largest(one.double() - other.double()) / scale if scale else largest(other)


def together(one: Run, other: Run) -> Iterator[tuple[Call, Call]]:
    """Pair the calls of two runs, as long as they are of the same layers."""
    for first, second in zip(one.calls, other.calls, strict=False):
        if first.layer is not second.layer:
            return
        yield first, second


Judge = Callable[[Tensor, Tensor], bool | None]  # whether a tensor is as it should be; None where it cannot be said


def origins(one: Run, other: Run, fine: Judge) -> Iterator[tuple[Call, Call]]:
    """Find the calls that read what is fine and return what is not, the innermost and earliest first.

    Args:
        one: a run.
        other: the same under other conditions.
        fine: judges a tensor of both.
    """
    for first, second in together(one, other):
        read, given = zip_shaped(first.read, second.read), zip_shaped(first.given, second.given)
        if all(fine(a, b) is not False for a, b in read) and any(fine(a, b) is False for a, b in given):
            yield first, second


def zip_shaped(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pair tensors that have as many axes and the same type."""
    pairs = zip(one, other, strict=False)
    return [(a, b) for a, b in pairs if a.ndim == b.ndim and a.dtype == b.dtype]
