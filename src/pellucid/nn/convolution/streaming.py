"""A causal convolution piece by piece: what it must remember of a sequence between two of its pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.errors import label, shape_text
from pellucid.nn.windows import extend

if TYPE_CHECKING:
    from pellucid.nn.convolution.conv1d import Conv1d


def initial_state(layer: Conv1d, batch_size: int | None = None) -> Tensor:
    """Return the state of a layer that has read nothing: (batch, in channels, 0), or (in channels, 0)."""
    batch = () if batch_size is None else (batch_size,)
    return layer.weight.new_zeros((*batch, layer.in_channels, 0))


def advance(layer: Conv1d, x: Tensor, state: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Convolve the next piece of a sequence, and return the state for the piece after it.

    The state is what the next windows will read again: the last ``reach`` − 1 entries, the padding ahead of the
    sequence among them, and those since the last output where the stride is above 1, by whose number the stride
    goes on. Before the first entry it is empty, so that a padding that repeats the first one is made when there is one.

    Args:
        layer: a convolution with padding="causal".
        x: (batch, in channels, length) or (in channels, length); the length may be 0.
        state: (batch, in channels, entries) or (in channels, entries), from the piece before.
        reach: how many places a window spans.
    """
    stride, before = layer.stride[0], reach - 1
    if state.shape[-1] == 0 and x.shape[-1] > 0:
        history = extend(x, [(before, 0)], layer.padding_mode)
    else:
        history = torch.cat((state, x), -1)
    ahead = max(state.shape[-1] - before, 0)  # entries that were read since the last output, which it reads last
    seen = ahead + x.shape[-1]
    first = stride if ahead else 0
    outputs = max(-(-(seen - first) // stride), 0)
    windows = history[..., first:]
    if outputs == 0:
        windows = F.pad(windows, (0, max(reach - windows.shape[-1], 0)))
    y = layer.convolve_padded(windows, layer.weight, layer.bias)
    kept = before + seen % stride if history.shape[-1] else 0
    return y[..., :outputs], history[..., history.shape[-1] - kept :].clone()


def pointwise(layer: Conv1d, x: Tensor) -> Tensor:
    """Apply a convolution of one entry, which needs no state, to a piece that may be empty."""
    return advance(layer, x, x[..., :0], 1)[0]


def refuse_misfit(layer: Conv1d, x: Tensor, state: Tensor, reach: int) -> None:
    """Raise a RuntimeError if a state does not fit the layer or the piece."""
    before = reach - 1
    most = before + layer.stride[0] - 1
    fits = state.ndim == x.ndim and state.shape[:-1] == x.shape[:-1]
    if not fits or not (state.shape[-1] == 0 or before <= state.shape[-1] <= most):
        axes = ("batch", "in channels", "entries")
        wanted = shape_text(x.shape[:-1], axes[3 - x.ndim : -1]).removesuffix(")")
        entries = str(before) if before == most else f"{before} to {most}"
        size = "None" if x.ndim == 2 else str(x.shape[0])
        raise RuntimeError(
            f"{label(layer)}: the state is {shape_text(state.shape, axes[-state.ndim :])}, but for this input it is "
            f"{wanted}, entries {entries}), or of 0 entries before the first one. Pass what the call on the piece "
            f"before returned; the first one is layer.initial_state({size})."
        )
    if state.shape[-1] > 0 and (state.dtype != x.dtype or state.device != x.device):  # else it says nothing
        raise RuntimeError(
            f"{label(layer)}: the state is of {state.dtype} on {state.device}, the input of {x.dtype} on {x.device}. "
            f"Convert the state: state.to(x)."
        )
