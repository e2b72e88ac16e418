"""The window: which entries of its input every output reads, as one table of coordinates per axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F

NOWHERE = -1  # the coordinate of an entry that is not read from the input
Mode = Literal["zeros", "reflect", "replicate", "circular"]

# What is read at a place outside a line of `size` entries, by padding mode. `places` and `size` are int64 tensors.
BEYOND: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "zeros": lambda places, size: torch.full_like(places, NOWHERE),
    "reflect": lambda places, size: size - 1 - (size - 1 - places.abs()).abs(),
    "replicate": lambda places, size: places,
    "circular": lambda places, size: places.remainder(size.clamp(min=1)),
}


def continued(places: torch.Tensor, size: torch.Tensor, mode: Mode) -> torch.Tensor:
    """Return the coordinate that is read at every place of a line that goes on beyond its ``size`` entries.

    A line without entries is read nowhere. One reflection and one turn of a circle are followed, as in torch.
    """
    beyond = BEYOND[mode](places, size)
    if mode != "zeros":
        beyond = torch.minimum(beyond.clamp(min=0), size - 1)
    return torch.where((places >= 0) & (places < size), places, beyond)


@dataclass(frozen=True, eq=False)
class Line:
    """What the windows read along one axis.

    Attributes:
        coordinates: int64 (positions, entries): the input coordinate of every entry of every window, -1 where nothing
            is read. Sequences of different lengths have tables of their own: (batch, 1, positions, entries).
        padding: bool, same shape: whether the entry lies outside the input.
    """

    coordinates: torch.Tensor
    padding: torch.Tensor

    @property
    def positions(self) -> int:
        """How many windows there are."""
        return self.coordinates.shape[-2]

    def read(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """Replace the axis of ``x`` by positions × entries; what stands at -1 is left to the caller."""
        places = self.coordinates.clamp(min=0).flatten(-2)
        if not x.shape[axis]:  # there is nothing to read anywhere
            x = F.pad(x.movedim(axis, -1), (0, 1)).movedim(-1, axis)
        laid = x.index_select(axis, places) if places.ndim == 1 else x.gather(-1, places.expand(*x.shape[:-1], -1))
        return laid.unflatten(axis, self.coordinates.shape[-2:])

    def at(self, position: int, sample: int) -> Line:
        """Keep the window at one position, of one sample where they differ."""
        tables = (self.coordinates, self.padding)
        own = [table[sample, 0] if table.ndim == 4 else table for table in tables]
        return Line(*(table[position : position + 1] for table in own))


def slide(
    size: int | torch.Tensor,
    positions: int,
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    before: int | torch.Tensor = 0,
    spread: int = 1,
    mode: Mode = "zeros",
    device: torch.device | None = None,
) -> Line:
    """Slide a window of ``kernel`` entries, ``dilation`` apart, along a line in steps of ``stride``.

    The first window starts ``before`` places ahead of the line. A ``spread`` above 1 puts the input's entries that
    far apart, with holes between them that read nothing: the line of a transposed convolution.
    """
    starts = torch.arange(positions, device=device)[:, None] * stride - before
    places = starts + torch.arange(kernel, device=device) * dilation
    held = places.div(spread, rounding_mode="floor")
    extent = torch.as_tensor(size, device=device)
    coordinates = torch.where(places.remainder(spread) == 0, continued(held, extent, mode), NOWHERE)
    return Line(coordinates, (held < 0) | (held >= extent))


def share(size: int, positions: int, *, device: torch.device | None = None) -> Line:
    """Share a line out among ``positions`` windows, nearly equal: adaptive pooling.

    Window i reads from floor(i·size/positions) to before ceil((i + 1)·size/positions).
    """
    index = torch.arange(positions, device=device)
    starts = (index * size).div(max(positions, 1), rounding_mode="floor")
    ends = ((index + 1) * size + positions - 1).div(max(positions, 1), rounding_mode="floor")
    longest = int((ends - starts).max()) if positions else 0
    places = starts[:, None] + torch.arange(longest, device=device)
    coordinates = torch.where(places < ends[:, None], places, NOWHERE)
    return Line(coordinates, torch.zeros_like(coordinates, dtype=torch.bool))


@dataclass(frozen=True, eq=False)
class Window:
    """Lay out what every window reads: (..., *size) becomes (..., *positions, *entries).

    ``fill`` stands where nothing is read. The entries' axes are the last ones, ``axes``.
    """

    lines: tuple[Line, ...]
    fill: float = 0.0

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of one window's entries."""
        return tuple(range(-len(self.lines), 0))

    @property
    def positions(self) -> tuple[int, ...]:
        """How many windows there are along each axis."""
        return tuple(line.positions for line in self.lines)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Read the windows."""
        count = len(self.lines)
        for index in reversed(range(count)):
            x = self.lines[index].read(x, 2 * (index - count) + 1)  # those read before have two axes each
        x = x.movedim(tuple(range(1 - 2 * count, 0, 2)), self.axes)  # (..., *positions, *entries)
        return torch.where(self.coordinates.ge(0).all(-1), x, self.fill)

    @property
    def coordinates(self) -> torch.Tensor:
        """The input coordinates of every entry of every window: (*positions, *entries, axes)."""
        return torch.stack(self._over_all_axes([line.coordinates for line in self.lines]), -1)

    @property
    def padding(self) -> torch.Tensor:
        """Which entries lie outside the input: (*positions, *entries)."""
        return torch.stack(self._over_all_axes([line.padding for line in self.lines])).any(0)

    def at(self, position: Sequence[int], sample: int = 0) -> Window:
        """Keep one window only."""
        return replace(self, lines=tuple(line.at(p, sample) for line, p in zip(self.lines, position, strict=True)))

    def _over_all_axes(self, tables: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Expand the tables of single axes, (positions, entries), to (*positions, *entries)."""
        shaped = []
        for index, table in enumerate(tables):
            shape = [1] * (2 * len(tables))
            shape[index], shape[len(tables) + index] = table.shape[-2:]
            shaped.append(table.reshape(*table.shape[:-2], *shape))
        return torch.broadcast_tensors(*shaped)


def extend(x: torch.Tensor, margins: Sequence[tuple[int, int]], mode: Mode) -> torch.Tensor:
    """Continue the last axes of ``x`` by (before, after) entries each, as ``continued`` says."""
    flat = [entries for pair in reversed(margins) for entries in pair]
    return F.pad(x, flat, mode="constant" if mode == "zeros" else mode)


def at_least_zero(value: Any) -> Any:
    """Return the greater of 0 and a number, a symbolic one too, or of 0 and each entry of a tensor."""
    if isinstance(value, torch.Tensor):
        return value.clamp(min=0)
    return max(value, 0) if isinstance(value, int) else torch.sym_max(value, 0)
