"""What the axes of an input are called, by their number."""

from __future__ import annotations

import torch

AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}  # of space


def name_axes(x: torch.Tensor, count: int) -> tuple[str, ...]:
    """Name the axes of an input with ``count`` axes of space, batched or not; () if it has more or fewer."""
    axes = ("batch", "channels", *AXES[count])
    return axes[len(axes) - x.ndim :] if x.ndim in (count + 1, count + 2) else ()


def space_axes(count: int) -> tuple[str, ...]:
    """Name the ``count`` axes of (batch, channels, *space)."""
    space = AXES.get(count - 2, tuple(f"space {axis}" for axis in range(1, count - 1)))
    return ("batch", "channels", *space)[:count]


def axes_of_features(count: int) -> tuple[str, ...]:
    """Name the axes of an input of rows of features that has so many."""
    before = ("batch", "time") if count == 3 else ("batch", *(f"axis {axis}" for axis in range(1, count - 1)))
    return (*before[: count - 1], "features") if count else ()
