"""An input of the normalization family as the page lays it out: samples, channels and space, or steps, by letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from pellucid.nn.normalization.general import Normalization
from pellucid.nn.normalization.layer_norm import LastAxes

SPACE = {0: "", 1: "L", 2: "HW", 3: "DHW"}
OTHERS = "IJKMOPQRSUVXYZ"  # axes of which nothing is known but their number
WHOLE = 512  # as many numbers are in the page, all of them, and may be changed there
PART = {1: (64,), 2: (8, 16), 3: (3, 8, 8), 4: (3, 4, 3, 3), 5: (2, 3, 2, 4, 4)}  # of a larger input


@dataclass(frozen=True)
class Layout:
    """An input with a letter for each axis.

    Attributes:
        x: the input in float64, always with a batch; axes that the page has no letters for are joined.
        real: bool, (batch, 1, *space) or with the 1 where the channels are, True at what is no padding; or None.
        letters: ``NCHW``, ``NTC``; `OTHERS` for the general member.
        channel: the axis of the channels; None for the general member.
    """

    x: Tensor
    real: Tensor | None
    letters: str
    channel: int | None

    @property
    def space(self) -> tuple[int, ...]:
        """The axes of space, or of time."""
        return tuple(a for a in range(1, self.x.ndim) if a != self.channel)

    @property
    def time(self) -> int | None:
        """The axis along which lengths count."""
        return self.space[0] if self.x.ndim == 3 and self.channel is not None else None

    @property
    def whole(self) -> bool:
        """Whether all numbers are in the page."""
        return self.x.numel() <= WHOLE

    @property
    def shown(self) -> tuple[int, ...]:
        """The shape of what is in the page: the first entries along every axis."""
        if self.whole:
            return tuple(self.x.shape)
        least = PART.get(self.x.ndim, (2,) * self.x.ndim)
        return tuple(min(size, most) for size, most in zip(self.x.shape, least, strict=True))

    def part(self, value: Tensor) -> Tensor:
        """Cut what the page shows from something that broadcasts to the input."""
        for axis, size in enumerate(self.shown):
            if value.shape[axis] > size:
                value = value.narrow(axis, 0, size)
        return value.detach()

    def along(self, value: Tensor, axes: Sequence[int]) -> Tensor:
        """Lay a parameter along axes of the input."""
        return value.reshape([size if axis in axes else 1 for axis, size in enumerate(self.x.shape)])


def layout_of(explained: Any) -> Layout:
    """Lay out what a layer of the family has read."""
    layer, x = explained.layer, explained.x.detach().cpu().double()
    real = None if explained.marked is None else explained.marked.cpu().expand(x.shape)
    if isinstance(layer, Normalization):
        return Layout(x, real, OTHERS[: x.ndim], None)
    shape, letters = _shape(layer, x)
    channel = letters.index("C")
    if real is not None:
        real = real.reshape(shape).narrow(channel, 0, 1)
    return Layout(x.reshape(shape), real, letters, channel)


def _shape(layer: Any, x: Tensor) -> tuple[tuple[int, ...], str]:
    """Choose a shape of at most five axes, and their letters."""
    shape = tuple(x.shape)
    if isinstance(layer, LastAxes) and len(layer.normalized_shape) == 1:
        if len(shape) == 1:
            return (1, *shape), "NC"
        if len(shape) > 5:
            shape = (prod(shape[:-2]), *shape[-2:])
        return shape, "N" + ("T" if len(shape) == 3 else SPACE[len(shape) - 2]) + "C"
    if isinstance(layer, LastAxes):
        last = len(layer.normalized_shape)
        shape = (prod(shape[:-last]), *shape[-last:])
    if len(shape) > 5:
        shape = (*shape[:2], prod(shape[2:]))
    return shape, "NC" + SPACE[len(shape) - 2]
