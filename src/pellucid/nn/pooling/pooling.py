"""Pooling as one family: a window, as in convolution, and one number for what it reads: the greatest or the mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

from pellucid.errors import label
from pellucid.kernel.windows import pool as kernel
from pellucid.kernel.windows.window import Geometry, worthwhile
from pellucid.nn.axes import AXES
from pellucid.nn.component import LEFT, Running, SymbolShape
from pellucid.nn.windowed import Windowed, one_window, wrong_axes
from pellucid.nn.windows import Line, Window, share, slide


def pool(x, *, window, reduce):
    """Reduce what every window reads to one number; ``window(x)`` is (batch, channels, *positions, *kernel)."""
    return reduce(window(x))


@dataclass(frozen=True, eq=False)
class Maximum:
    """The greatest entry over the last ``count`` axes.

    With ``index``, (*positions, entries), also the place where it was read, counted through the input row by row.
    """

    count: int
    index: torch.Tensor | None = None

    def __call__(self, entries: torch.Tensor) -> Any:
        """Reduce."""
        values, best = entries.flatten(-self.count).max(-1)
        if self.index is None:
            return values
        return values, self.index.expand(*best.shape, -1).gather(-1, best.unsqueeze(-1)).squeeze(-1)

    def at(self, place: tuple[int, ...]) -> Maximum:
        """Keep what concerns one position."""
        return self if self.index is None else replace(self, index=self.index[place])


@dataclass(frozen=True, eq=False)
class Mean:
    """The sum over ``axes``, in float32 at least, divided by how many entries count at each position."""

    axes: tuple[int, ...]
    divisor: torch.Tensor

    def __call__(self, entries: torch.Tensor) -> torch.Tensor:
        """Reduce."""
        wide = torch.promote_types(entries.dtype, torch.float32)
        return (entries.sum(self.axes, dtype=wide) / self.divisor).to(entries.dtype)

    def at(self, place: tuple[int, ...]) -> Mean:
        """Keep what concerns one position."""
        return replace(self, divisor=self.divisor[place])


def lowest(dtype: torch.dtype) -> float:
    """Return a number that is never greater than another of this dtype."""
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


RISING = (torch.nn.ReLU, torch.nn.Tanh, torch.nn.Identity)


def rises_from_zero(activation: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether a function is known never to fall, and to be 0 at 0.

    Then the greatest feature is that of the greatest product, and what there is nothing to take it of is 0.
    """
    return activation in (F.relu, torch.relu, F.tanh, torch.tanh) or type(activation) in RISING


class Pooling(Running, Windowed, torch.nn.Module):
    """What all poolings share: the formula, its windows, and errors that name the layer."""

    formula = staticmethod(pool)

    def forward(self, input: torch.Tensor) -> Any:
        """Pool (batch, channels, *size), or (channels, *size) without a batch."""
        y = self._by_kernel(input)
        self._was_run_by("torch" if y is None else "c")
        if y is not None:
            return y
        try:
            return self._by_torch(input)
        except (RuntimeError, ValueError) as error:
            self._explain(error, input, self._kind_misfit(error, input))
            raise

    def _by_torch(self, x: torch.Tensor) -> Any:
        return super().forward(x)

    def _by_kernel(self, x: torch.Tensor) -> torch.Tensor | None:
        """Pool by the kernel; None where torch's operator is to do it."""
        return None

    def bind(
        self, input: torch.Tensor, *, position: int | Sequence[int] | None = None, channel: int = 0, sample: int = 0
    ) -> dict[str, Any]:
        """Return the formula's arguments for this input.

        Args:
            input: (batch, channels, *size), or (channels, *size) without a batch.
            position: bind the window of this one output; the formula then gives a single number.
            channel: its channel.
            sample: its place in the batch.
        """
        self._refuse_misfit(input)
        size = input.shape[-self.spatial :]
        window = Window(tuple(self._line(axis, n, input.device) for axis, n in enumerate(size)), self._fill(input))
        reduce = self._reduce(window, size)
        if position is None:
            return {"x": input, "window": window, "reduce": reduce}
        channels = input.shape[-1 - self.spatial]
        if not 0 <= channel < channels:
            raise IndexError(f"{label(self)}: there is no channel {channel}; the input has {channels}.")
        one = one_window(self, input, window, position, channel, channel, sample)
        return {"x": input, "window": one, "reduce": reduce.at(one.output[-self.spatial :])}

    def symbols(self, *inputs: torch.Tensor) -> list[SymbolShape]:
        """Return nothing, as pooling has no weights; given an input, it and the output."""
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "count_include_pad", "output_size")
        facts = {name: getattr(self, name) for name in names if hasattr(self, name)}
        reason = "pool.adaptive.output" if "output_size" in facts else "pool.output"
        if any(self._along("dilation", axis) > 1 for axis in range(self.spatial)):
            reason, facts["reach"] = "pool.output.dilated", self.receptive_field
        found = []
        for x in inputs:
            window: Window = self.bind(x)["window"]
            axes = ("batch", "channels", *AXES[self.spatial])[-x.ndim :]
            size = (*x.shape[: -self.spatial], *window.positions)
            own = facts | {"output_size": window.positions} if "output_size" in facts else facts
            found.append(SymbolShape("x", tuple(x.shape), axes, "pool.input", False, facts))
            found.append(SymbolShape("y", size, axes, reason, False, own))
        return found

    def _misfit(self, x: torch.Tensor) -> str | None:
        if x.ndim not in (self.spatial + 1, self.spatial + 2):
            return wrong_axes(x, self.spatial)
        texts = (self._size_misfit(axis, n) for axis, n in enumerate(x.shape[-self.spatial :]))
        return next((text for text in texts if text), None)

    def _kind_misfit(self, error: Exception, x: torch.Tensor) -> str | None:
        """Say which numbers torch does not pool, where it has no operator for them."""
        if not isinstance(error, NotImplementedError):
            return None
        cure = "Pool its parts, x.real and x.imag, or x.abs()." if x.is_complex() else "Pass x.float()."
        return f"of {x.dtype}, which torch does not pool. {cure}"

    def _size_misfit(self, axis: int, size: int) -> str | None:
        return f"but there is nothing to read along an empty {AXES[self.spatial][axis]}." if size == 0 else None

    def _line(self, axis: int, size: int, device: torch.device) -> Line:
        """Return what the windows read along one axis."""
        raise NotImplementedError

    def _fill(self, x: torch.Tensor) -> float:
        """Return what stands where nothing is read."""
        raise NotImplementedError

    def _reduce(self, window: Window, size: Sequence[int]) -> Any:
        """Return what makes one number of a window."""
        raise NotImplementedError

    def _along(self, name: str, axis: int) -> int:
        """Return an argument that is one number, or one for each axis, as it is for this axis."""
        value: Any = getattr(self, name, 1)
        value = self.kernel_size if value is None else value  # a stride that is left out
        each = (value,) if isinstance(value, int) else tuple(value)
        return each[axis if len(each) > 1 else 0]


class Sliding(Pooling):
    """A pooling whose window slides by a stride."""

    ceil_mode: bool

    def _by_kernel(self, x: torch.Tensor) -> torch.Tensor | None:
        if not worthwhile(x, self.spatial):
            return None
        met = self._circumstances(x)
        if met is LEFT:
            return None
        geometry = self._geometry(x.shape[2:])
        y = None if geometry is None else self._pool(x, geometry)
        if y is None:
            self._leave(x, met)
        return y

    def _geometry(self, size: Sequence[int]) -> Geometry | None:
        """How the windows lie, for the kernel; None where they do not lie in the input."""
        axes = range(self.spatial)
        kernel, stride, dilation, before = (
            tuple(self._along(name, axis) for axis in axes) for name in ("kernel_size", "stride", "dilation", "padding")
        )
        positions = [self._positions(axis, size[axis]) for axis in axes]
        if min(*size, *positions) <= 0 or any(2 * p > k for p, k in zip(before, kernel, strict=True)):
            return None
        ends = [(n - 1) * s + self._reach(axis) for axis, n, s in zip(axes, positions, stride, strict=True)]
        after = tuple(end - n - b for end, n, b in zip(ends, size, before, strict=True))
        return Geometry(kernel, stride, dilation, before, after)

    def _pool(self, x: torch.Tensor, geometry: Geometry) -> torch.Tensor | None:
        """Reduce what these windows read by the kernel."""
        raise NotImplementedError

    @property
    def receptive_field(self) -> tuple[int, ...]:
        """How many neighbouring entries of the input one output sees, along each axis."""
        return tuple(self._reach(axis) for axis in range(self.spatial))

    def _reach(self, axis: int) -> int:
        """Return how many places a window spans."""
        return self._along("dilation", axis) * (self._along("kernel_size", axis) - 1) + 1

    def _positions(self, axis: int, size: int) -> int:
        stride, padding = self._along("stride", axis), self._along("padding", axis)
        room = size + 2 * padding - self._reach(axis)
        if not self.ceil_mode:
            return room // stride + 1
        positions = -(-room // stride) + 1
        return positions - 1 if (positions - 1) * stride >= size + padding else positions  # none starts behind the end

    def _line(self, axis: int, size: int, device: torch.device) -> Line:
        return slide(
            size,
            self._positions(axis, size),
            self._along("kernel_size", axis),
            stride=self._along("stride", axis),
            dilation=self._along("dilation", axis),
            before=self._along("padding", axis),
            device=device,
        )

    def _size_misfit(self, axis: int, size: int) -> str | None:
        padding, name = self._along("padding", axis), AXES[self.spatial][axis]
        if size > 0 and self._positions(axis, size) <= 0:
            return (
                f"but the window spans {self._reach(axis)} places along the {name}, more than the {size + 2 * padding} "
                f"that the input has with its padding. Use a smaller kernel_size, or ceil_mode=True."
            )
        return super()._size_misfit(axis, size)


class Adaptive(Pooling):
    """A pooling whose windows share the input out among a given number of outputs."""

    output_size: Any

    def _line(self, axis: int, size: int, device: torch.device) -> Line:
        each = self.output_size if isinstance(self.output_size, Sequence) else (self.output_size,) * self.spatial
        return share(size, size if each[axis] is None else each[axis], device=device)


class Greatest(Pooling):
    """A pooling by the maximum."""

    return_indices: bool

    def _fill(self, x: torch.Tensor) -> float:
        return lowest(x.dtype)

    def _reduce(self, window: Window, size: Sequence[int]) -> Maximum:
        if not self.return_indices:
            return Maximum(self.spatial)
        rows = torch.tensor([prod(size[axis + 1 :]) for axis in range(self.spatial)], device=window.coordinates.device)
        return Maximum(self.spatial, (window.coordinates * rows).sum(-1).flatten(-self.spatial))


class Average(Pooling):
    """A pooling by the mean."""

    def _fill(self, x: torch.Tensor) -> float:
        return 0.0

    def _reduce(self, window: Window, size: Sequence[int]) -> Mean:
        return Mean(window.axes, self._divisor(window, size))

    def _divisor(self, window: Window, size: Sequence[int]) -> torch.Tensor:
        """Return how many entries count at each position: those that are read."""
        return window.coordinates.ge(0).all(-1).sum(window.axes)


class SlidingAverage(Average, Sliding):
    """A mean that counts the padding too, if so asked, or divides by a number of the user's choice."""

    count_include_pad: bool

    def _pool(self, x: torch.Tensor, geometry: Geometry) -> torch.Tensor | None:
        divisor = getattr(self, "divisor_override", None)
        if divisor is None:
            added = (*geometry.before, *geometry.after)
            within = all(a <= b for a, b in zip(geometry.after, geometry.before, strict=True))
            if max(added) > 0 and not (self.count_include_pad and within):
                return None  # windows at the border count fewer entries
            divisor = prod(geometry.kernel)
        return kernel.scaled_sum(x, geometry, 1 / divisor, self._by_torch) if divisor else None

    def _divisor(self, window: Window, size: Sequence[int]) -> torch.Tensor:
        read = super()._divisor(window, size)
        override = getattr(self, "divisor_override", None)
        if override is not None:
            return torch.full_like(read, override)
        if not self.count_include_pad:
            return read
        counted = torch.ones_like(read)
        for axis, entries in enumerate(size):  # a window of ceil_mode may go on beyond the padding: that is not counted
            starts = torch.arange(window.positions[axis], device=read.device) * self._along("stride", axis)
            inside = (entries + 2 * self._along("padding", axis) - starts).clamp(max=self._along("kernel_size", axis))
            counted = counted * inside.reshape([-1 if other == axis else 1 for other in range(self.spatial)])
        return counted


class SlidingMaximum(Greatest, Sliding):
    """A maximum under windows that slide."""

    def _pool(self, x: torch.Tensor, geometry: Geometry) -> torch.Tensor | None:
        return None if self.return_indices else kernel.greatest(x, geometry, self._by_torch)


class MaxPool1d(SlidingMaximum, torch.nn.MaxPool1d):
    """Keep the greatest entry under a window that slides along a sequence: a drop-in for ``torch.nn.MaxPool1d``."""

    spatial = 1


class MaxPool2d(SlidingMaximum, torch.nn.MaxPool2d):
    """Keep the greatest entry under a window that slides over a picture: a drop-in for ``torch.nn.MaxPool2d``."""

    spatial = 2


class MaxPool3d(SlidingMaximum, torch.nn.MaxPool3d):
    """Keep the greatest entry under a window that slides through a volume: a drop-in for ``torch.nn.MaxPool3d``."""

    spatial = 3


class AvgPool1d(SlidingAverage, torch.nn.AvgPool1d):
    """Take the mean under a window that slides along a sequence: a drop-in for ``torch.nn.AvgPool1d``."""

    spatial = 1


class AvgPool2d(SlidingAverage, torch.nn.AvgPool2d):
    """Take the mean under a window that slides over a picture: a drop-in for ``torch.nn.AvgPool2d``."""

    spatial = 2


class AvgPool3d(SlidingAverage, torch.nn.AvgPool3d):
    """Take the mean under a window that slides through a volume: a drop-in for ``torch.nn.AvgPool3d``."""

    spatial = 3


class AdaptiveMaxPool1d(Greatest, Adaptive, torch.nn.AdaptiveMaxPool1d):
    """Share a sequence out and keep the greatest entry of each part: a drop-in for ``torch.nn.AdaptiveMaxPool1d``."""

    spatial = 1


class AdaptiveMaxPool2d(Greatest, Adaptive, torch.nn.AdaptiveMaxPool2d):
    """Share a picture out and keep the greatest entry of each part: a drop-in for ``torch.nn.AdaptiveMaxPool2d``."""

    spatial = 2


class AdaptiveMaxPool3d(Greatest, Adaptive, torch.nn.AdaptiveMaxPool3d):
    """Share a volume out and keep the greatest entry of each part: a drop-in for ``torch.nn.AdaptiveMaxPool3d``."""

    spatial = 3


class AdaptiveAvgPool1d(Average, Adaptive, torch.nn.AdaptiveAvgPool1d):
    """Share a sequence out and take the mean of each part: a drop-in for ``torch.nn.AdaptiveAvgPool1d``."""

    spatial = 1


class AdaptiveAvgPool2d(Average, Adaptive, torch.nn.AdaptiveAvgPool2d):
    """Share a picture out and take the mean of each part: a drop-in for ``torch.nn.AdaptiveAvgPool2d``."""

    spatial = 2


class AdaptiveAvgPool3d(Average, Adaptive, torch.nn.AdaptiveAvgPool3d):
    """Share a volume out and take the mean of each part: a drop-in for ``torch.nn.AdaptiveAvgPool3d``."""

    spatial = 3
