"""The receptive field of a stack: which entries of the input one output sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules import activation as activations
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from pellucid.errors import below, labelled
from pellucid.nn.convolution.conv_pool import ConvPooling
from pellucid.nn.convolution.separable import SeparableConvolution
from pellucid.nn.convolution.tcn import TCN
from pellucid.nn.dropout.drop_connect import DropConnect
from pellucid.nn.dropout.dropout import DropoutFamily
from pellucid.nn.rows.row_wise import RowWise

# What computes every entry from those at its own place alone. The softmaxes over all of a line are none of these.
ENTRYWISE = tuple(
    kind
    for name in activations.__all__
    if isinstance(kind := getattr(activations, name), type)
    and name not in ("GLU", "MultiheadAttention", "Softmax", "Softmin", "LogSoftmax")
)
IN_PLACE = (torch.nn.Identity, torch.nn.Softmax2d, _DropoutNd, DropoutFamily, torch.nn.LocalResponseNorm, *ENTRYWISE)
SLIDING: dict[int, Any] = {
    1: (torch.nn.MaxPool1d, torch.nn.AvgPool1d),
    2: (torch.nn.MaxPool2d, torch.nn.AvgPool2d),
    3: (torch.nn.MaxPool3d, torch.nn.AvgPool3d),
}
Move = tuple[int, int, int]  # the places that a window spans, its stride, and how far ahead of the input it starts


@dataclass(frozen=True)
class ReceptiveField:
    """Which entries of the input an output sees, along each axis: output p sees ``size`` places from
    ``offset + p · stride`` on.

    Attributes:
        size: how many places, from the first to the last; a dilated kernel leaves out some between them.
        stride: how far apart the fields of neighbouring outputs lie.
        offset: where the field of the first output begins; negative where it begins in the padding.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: tuple[int, ...]


def receptive_field(stack: torch.nn.Module) -> ReceptiveField:
    """Return which entries of the input one output of a stack sees.

    Araujo, Norris and Sim, "Computing receptive fields of convolutional neural networks", Distill, 2019.

    It follows convolutions, separable ones, those with a pooling behind them and TCNs, poolings with a window, and what
    works at each place by itself: activations, dropouts, normalizations over the samples of a batch as they are in
    eval; those of torch.nn too.

    Args:
        stack: a layer, or a ``torch.nn.Sequential`` of them, which may hold others.

    Raises:
        ValueError: a module reads places in a way that has no fixed window, such as a normalization over places, a
            pooling to a given output size, or a recurrent layer; or two modules move along different numbers of axes.
    """
    moves: list[Move] | None = None
    size: list[int] = []
    jump: list[int] = []
    offset: list[int] = []
    for path, module in _leaves(stack, ""):
        moves = _moves(path, module)
        if moves is None:
            continue
        if not size:
            size, jump, offset = [1] * len(moves), [1] * len(moves), [0] * len(moves)
        if len(moves) != len(size):
            raise _fault(path, module, f"moves along {len(moves)} axes, those before it along {len(size)}.")
        for axis, (reach, stride, before) in enumerate(moves):
            size[axis] += (reach - 1) * jump[axis]
            offset[axis] -= before * jump[axis]
            jump[axis] *= stride
    if not size:
        raise ValueError("nn.receptive_field: no module of the stack has a window, so an output sees its own place.")
    return ReceptiveField(tuple(size), tuple(jump), tuple(offset))


def _leaves(module: torch.nn.Module, path: str) -> Iterable[tuple[str, torch.nn.Module]]:
    """Go through the modules in the order in which they are called, those of a Sequential too, with their paths."""
    if isinstance(module, DropConnect):  # another layer, with fewer weights
        yield from _leaves(module.module, below(path, "module"))
    elif isinstance(module, ConvPooling) or (
        isinstance(module, torch.nn.Sequential) and type(module).forward is torch.nn.Sequential.forward
    ):
        for name, child in module.named_children():
            yield from _leaves(child, below(path, name))
    else:
        yield path, module


def _moves(path: str, module: Any) -> list[Move] | None:
    """Return how a module's window lies and moves along each axis; None where it stays at each place."""
    if isinstance(module, IN_PLACE):
        return None
    if isinstance(module, (_BatchNorm, _InstanceNorm)):
        if isinstance(module, _BatchNorm) or module.track_running_stats:
            return None
        raise _fault(path, module, "averages over all places, so every output sees the whole input.")
    if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.RMSNorm, RowWise)):
        raise _fault(path, module, "works on several places together, so every output sees more than a window.")
    if isinstance(module, TCN):
        (reach,) = module.receptive_field
        return [(reach, 1, reach - 1)]
    if isinstance(module, SeparableConvolution):
        return _moves(f"{path}.depthwise", module.depthwise)
    if isinstance(module, _ConvTransposeNd):
        raise _fault(path, module, "spreads its input out: its outputs see windows of different sizes.")
    if isinstance(module, _ConvNd):
        return _of_convolution(path, module)
    if isinstance(module, tuple(kind for kinds in SLIDING.values() for kind in kinds)):
        return _of_pooling(module)
    raise _fault(
        path, module, "has no fixed window that could be followed. Leave it out, as in nn.receptive_field(model[:3])."
    )


def _of_convolution(path: str, module: Any) -> list[Move]:
    """Follow a convolution."""
    reach = [dilation * (kernel - 1) + 1 for kernel, dilation in zip(module.kernel_size, module.dilation, strict=True)]
    if module.padding == "same" and max(module.stride) > 1:
        raise _fault(
            path,
            module,
            "has padding='same' and a stride, so the size of the input decides where it begins. Give numbers.",
        )
    named = {"valid": [0] * len(reach), "same": [(r - 1) // 2 for r in reach], "causal": [r - 1 for r in reach]}
    before = named[module.padding] if isinstance(module.padding, str) else module.padding
    return list(zip(reach, module.stride, before, strict=True))


def _of_pooling(module: Any) -> list[Move]:
    """Follow a pooling whose window slides."""
    count = next(n for n, kinds in SLIDING.items() if isinstance(module, kinds))

    def along(name: str) -> tuple[int, ...]:
        value = getattr(module, name, 1)
        return (value,) * count if isinstance(value, int) else tuple(value)

    sizes = zip(along("kernel_size"), along("dilation"), along("stride"), along("padding"), strict=True)
    return [(dilation * (kernel - 1) + 1, stride, padding) for kernel, dilation, stride, padding in sizes]


def _fault(path: str, module: torch.nn.Module, text: str) -> ValueError:
    return ValueError(f"nn.receptive_field: {labelled(type(module).__name__, path)} {text}")
