"""Which entries of a padded input are real, told by lengths or by a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.errors import label, shape_text
from pellucid.nn import lengths as real


def real_entries(
    owner: torch.nn.Module,
    x: Tensor,
    axes: Sequence[str],
    lengths: real.Lengths | None,
    mask: Tensor | None,
    feature_axis: int,
    time_axis: int | None,
) -> Tensor | None:
    """Return a bool tensor that broadcasts to ``x``, True at real entries; None if all are.

    Args:
        owner: the layer that is named in an error.
        x: the padded input, (batch, ...).
        axes: the meaning of its axes.
        lengths: how many steps of each sample are real.
        mask: bool, broadcasts to ``x`` without its feature axis.
        feature_axis: the axis along which all entries are real or none is.
        time_axis: where lengths count; None if the input has no such axis.

    Raises:
        ValueError: both are given, or there is no time axis.
        TypeError: the mask is not bool, or lengths are no whole numbers.
        RuntimeError: their shapes or values do not belong to the input.
    """
    if lengths is None and mask is None:
        return None
    rest = [axis for axis in range(x.ndim) if axis != feature_axis % x.ndim]
    sizes = [x.shape[axis] for axis in rest]
    if lengths is not None:
        if mask is not None:
            raise ValueError(f"{label(owner)}: lengths and mask both say what is real; pass one of them.")
        if time_axis is None:
            raise ValueError(
                f"{label(owner)}: lengths count steps, but in an input of shape {shape_text(x.shape, axes)} no axis "
                f"is known to be time. Pass mask=, True at real entries, of shape {shape_text(sizes)}."
            )
        counted = real.check(lengths, x.shape[0], x.shape[time_axis], owner, x.device)
        shape = [x.shape[axis] if axis in (0, time_axis) else 1 for axis in range(x.ndim)]
        return real.mask(counted, x.shape[time_axis]).reshape(shape)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{label(owner)}: mask is of {kind}; pass a bool tensor, True at real entries (mask.bool()).")
    if mask.ndim > len(sizes) or any(m not in (1, s) for m, s in zip(mask.shape[::-1], sizes[::-1], strict=False)):
        names = [axes[axis] for axis in rest] if axes else ()
        raise RuntimeError(
            f"{label(owner)}: mask has the shape {shape_text(mask.shape)}, but it must broadcast to the input without "
            f"its features, {shape_text(sizes, names)}."
        )
    mask = mask.to(x.device).reshape((1,) * (len(sizes) - mask.ndim) + tuple(mask.shape))
    return mask.unsqueeze(feature_axis)
