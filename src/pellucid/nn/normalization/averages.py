"""The averages of the normalization family: over which axes, over which entries, over whose batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Over:
    """The mean over some axes, which keep size 1; only of the real entries where a mask marks them.

    Attributes:
        axes: what is averaged.
        real: bool, broadcasts to the values: which entries count. Where none does, the mean is 0.
    """

    axes: tuple[int, ...]
    real: Tensor | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Average the values."""
        if self.real is None:
            return values.mean(self.axes, keepdim=True)
        return self.total(values) / self.count(values).clamp(min=1)

    def near(self, values: Tensor) -> Tensor:
        """Return something near the mean, of its shape: a first entry, or with padding the mean itself."""
        if self.real is not None or values.numel() == 0:
            return self(values)
        for axis in self.axes:
            values = values.narrow(axis, 0, 1)
        return values

    def total(self, values: Tensor) -> Tensor:
        """Add up the real entries."""
        values = values if self.real is None else torch.where(self.real, values, 0)
        return values.sum(self.axes, keepdim=True)

    def count(self, values: Tensor) -> Tensor:
        """Count the real entries; broadcasts to the mean."""
        real = values.new_ones((1,) * values.ndim, dtype=torch.bool) if self.real is None else self.real
        sizes = [values.shape[axis] if axis in self.axes else real.shape[axis] for axis in range(values.ndim)]
        return real.expand(sizes).sum(self.axes, keepdim=True)


@dataclass(frozen=True, eq=False)
class Synchronized(Over):
    """The mean over the batches of all processes of a group, each with as many entries as it has."""

    group: Any = None

    def __call__(self, values: Tensor) -> Tensor:
        """Average the values of all processes; the gradient flows back to all."""
        return self.total(values) / self.count(values).clamp(min=1)

    def near(self, values: Tensor) -> Tensor:
        """Return the mean, the same in all processes."""
        return self(values)

    def total(self, values: Tensor) -> Tensor:
        """Add up the entries of all processes."""
        from torch.distributed.nn import functional as differentiable  # absent where torch is built without processes

        return differentiable.all_reduce(super().total(values), group=self.group or dist.group.WORLD)

    def count(self, values: Tensor) -> Tensor:
        """Count the entries of all processes."""
        count = super().count(values)
        dist.all_reduce(count, group=self.group)
        return count


@dataclass(frozen=True, eq=False)
class Grouped:
    """The mean over each group of channels and over space; every channel receives its group's.

    Attributes:
        groups: how many there are.
        real: as in `Over`.
        axis: that of the channels, 1 or 0; the other one is that of the batch.
    """

    groups: int
    real: Tensor | None = None
    axis: int = 1

    def __call__(self, values: Tensor) -> Tensor:
        """Average values of shape (batch, channels, *space)."""
        values = values.movedim(self.axis, 1)
        channels = values.shape[1]
        grouped = values.unflatten(1, (self.groups, channels // self.groups))
        real = None if self.real is None else self.real.unsqueeze(1)
        mean = Over(tuple(range(2, grouped.ndim)), real)(grouped)  # (batch, groups, 1, ..., 1)
        return mean.expand(-1, -1, channels // self.groups, *mean.shape[3:]).flatten(1, 2).movedim(1, self.axis)

    def near(self, values: Tensor) -> Tensor:
        """Return the mean."""
        return self(values)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The mean over a window of channels around each; beyond the first and the last there are zeros."""

    size: int

    def __call__(self, values: Tensor) -> Tensor:
        """Average values of shape (batch, channels, *space)."""
        padded = F.pad(values.movedim(1, -1), (self.size // 2, (self.size - 1) // 2))
        return padded.unfold(-1, self.size, 1).mean(-1).movedim(-1, 1)


@dataclass(frozen=True, eq=False)
class Remembered:
    """The average over what was seen in training: of the input it is ``mean``, of its squared deviation ``var``."""

    x: Tensor
    mean: Tensor
    var: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Recall the average."""
        return self.mean if values is self.x else self.var


Average = Over | Grouped | Neighbours | Remembered
