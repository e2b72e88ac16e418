"""Normalization within a sample: over its last axes, over groups of channels, over neighbouring channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import label, shape_text
from pellucid.nn import lengths as real_lengths
from pellucid.nn.axes import axes_of_features, space_axes
from pellucid.nn.normalization.averages import Average, Grouped, Neighbours
from pellucid.nn.normalization.by_torch import by_group_norm, is_far
from pellucid.nn.normalization.formula import ALONE, Company
from pellucid.nn.normalization.normalization import ChannelFirst, NormalizationFamily, wrong_channels


def normalize_by_root_mean_square(
    x: Tensor, *, average: Callable[[Tensor], Tensor], gamma: Tensor | float, eps: float
) -> Tensor:
    """Bring ``x`` to mean square 1, without moving it: Zhang and Sennrich, NeurIPS 2019."""
    mean_square = average(x**2)
    return x / torch.sqrt(mean_square + eps) * gamma


def normalize_by_neighbours(
    x: Tensor, *, average: Callable[[Tensor], Tensor], alpha: float, beta: float, k: float
) -> Tensor:
    """Damp what has strong neighbours: Krizhevsky, Sutskever and Hinton, NeurIPS 2012, section 3.3."""
    mean_square = average(x**2)
    return x / (k + alpha * mean_square) ** beta


TINY = 2**12  # entries of an input below which even torch's RMSNorm, of several operations, is as fast as a kernel
FEW = 16  # channels of a group that lie side by side: fewer than a vector holds


class LastAxes(NormalizationFamily):
    """A member that averages over the last axes, along which γ and β vary."""

    normalized_shape: tuple[int, ...]

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes."""
        last = len(self.normalized_shape)
        first = max(0, x.ndim - last)
        names = (*axes_of_features(first + 1)[:-1], *self._affine_axes())
        if tuple(x.shape[first:]) != tuple(self.normalized_shape):
            wanted = f"(..., {', '.join(map(str, self.normalized_shape))}), its normalized_shape"
            places = [axis for axis in range(x.ndim) if last == 1 and x.shape[axis] == self.normalized_shape[0]]
            cure = f"Pass normalized_shape={tuple(x.shape[first:])}, or change what comes before."
            if places:
                cure = f"Axis {places[-1]} has that size: if it holds the features, pass x.movedim({places[-1]}, -1)."
            raise self._misfit(x, wanted, cure, RuntimeError, names)
        return names

    def _kind(self) -> tuple[Any, ...]:
        return (LastAxes, len(self.normalized_shape))

    def _average_over(self, x: Tensor) -> tuple[int, ...]:
        return tuple(range(x.ndim - len(self.normalized_shape), x.ndim))

    def _affine_axes(self) -> tuple[str, ...]:
        last = len(self.normalized_shape)
        return ("features",) if last == 1 else tuple(f"feature axis {axis}" for axis in range(1, last + 1))

    def _affine_shape(self, x: Tensor) -> tuple[int, ...]:
        return tuple(self.normalized_shape)

    def _spread(self, parameter: Tensor, x: Tensor) -> Tensor:
        return parameter

    def _feature_axis(self, x: Tensor) -> int:
        return -1

    def _time_axis(self, x: Tensor) -> int | None:
        return 1 if x.ndim >= 3 else None


class LayerNorm(LastAxes, torch.nn.LayerNorm):
    """Normalize each sample, or each step of it, over its last axes. Input and output: (..., *normalized_shape).

    Ba, Kiros and Hinton, "Layer normalization", 2016. Arguments: those of ``torch.nn.LayerNorm``. ``lengths`` count
    along axis 1 of (batch, time, ..., features), ``mask`` is (batch, time, ...); see `NormalizationFamily`.

    Raises:
        RuntimeError: the last axes of the input are not of ``normalized_shape``.
    """

    def _by_operator(self, input: Tensor) -> Tensor | None:
        y, mean, rstd = torch.native_layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        alone = math.prod(self.normalized_shape) == 1  # one entry has no deviation, and nothing is lost
        return y if alone or not is_far(mean, rstd) else None


class RMSNorm(LastAxes, torch.nn.RMSNorm):
    """Bring the last axes to mean square 1. Input and output: (..., *normalized_shape).

    Zhang and Sennrich, "Root mean square layer normalization", NeurIPS 2019. Arguments: those of
    ``torch.nn.RMSNorm``. ``lengths`` count along axis 1 of (batch, time, ..., features), ``mask`` is (batch, time,
    ...); see `NormalizationFamily`.

    Raises:
        RuntimeError: the last axes of the input are not of ``normalized_shape``.
    """

    formula = staticmethod(normalize_by_root_mean_square)  # type: ignore[assignment]
    centred = False
    bias = None

    def forward(self, x: Tensor, lengths: real_lengths.Lengths | None = None, mask: Tensor | None = None) -> Tensor:
        """Normalize; torch.nn calls the input of this layer x."""
        return super().forward(x, lengths, mask)

    def _suits_operator(self, x: Tensor) -> bool:
        return x.numel() < TINY and super()._suits_operator(x)

    def _by_operator(self, input: Tensor) -> Tensor | None:
        return torch.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def _symbols(self, x: Tensor) -> dict[str, Tensor | float]:
        exact = torch.promote_types(x.dtype, torch.float32)
        eps = torch.finfo(exact).eps if self.eps is None else self.eps
        weight = self.weight  # a parametrization computes it anew whenever it is asked for
        return {"gamma": 1.0 if weight is None else weight, "eps": eps}

    def _typed(self) -> None:
        """torch's operator takes any."""

    def _averages(self) -> tuple[str, ...]:
        return ("mean_square",)


class GroupNorm(ChannelFirst, torch.nn.GroupNorm):
    """Normalize each group of channels of each sample. Input and output: (batch, channels, *space).

    Wu and He, "Group normalization", ECCV 2018. Arguments: those of ``torch.nn.GroupNorm``. ``lengths`` count along
    the last axis of (batch, channels, length), ``mask`` is (batch, *space); see `NormalizationFamily`.

    Raises:
        RuntimeError: the input has fewer than two axes, or another number of channels.
        ValueError: a single value is to be normalized.
    """

    num_groups: int
    num_channels: int

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes."""
        names, wanted = space_axes(x.ndim), f"(batch, channels {self.num_channels}, *space)"
        if x.ndim < 2:
            raise self._misfit(x, wanted, "If it is one sample, x.unsqueeze(0) makes it a batch.", RuntimeError)
        if (self.weight is not None and x.shape[1] != len(self.weight)) or x.shape[1] % self.num_groups:
            cure = wrong_channels(x, self.num_channels, "num_channels")
            raise self._misfit(x, wanted, cure, RuntimeError, names)
        if math.prod((x.shape[0], x.shape[1] // self.num_groups, *x.shape[2:])) == 1:
            raise ValueError(
                f"{label(self)}: Expected more than 1 value per channel when training, but the input has the shape "
                f"{shape_text(x.shape, names)}. One value has no deviation from its mean."
            )
        return names

    def average(self, x: Tensor, real: Tensor | None = None) -> Average:
        """Average each group of channels and its space."""
        return Grouped(self.num_groups, real)

    def _suits_operator(self, x: Tensor) -> bool:
        side_by_side = x.stride(1) == 1 and x.shape[1] // self.num_groups < FEW
        return super()._suits_operator(x) or side_by_side

    def _by_operator(self, input: Tensor) -> Tensor | None:
        return by_group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def _average_over(self, x: Tensor) -> tuple[int, ...]:
        return tuple(range(1, x.ndim))

    def _kind(self) -> tuple[Any, ...]:
        return (GroupNorm, self.num_groups)

    def _grouped(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1) if x.shape[1] == 1 else x.unflatten(1, (self.num_groups, -1))

    def _averaged_when_grouped(self, x: Tensor) -> tuple[int, ...]:
        return tuple(range(2, x.ndim + 1))

    def _average_shape(self, x: Tensor) -> tuple[int, ...]:
        return (x.shape[0], x.shape[1], *(1,) * (x.ndim - 2))

    def _facts(self, x: Tensor) -> dict[str, Any]:
        _, *space = super()._facts(x)["averaged"]
        averages = (x.shape[0], self.num_groups)
        return {"averaged": ["channels of a group", *space], "groups": self.num_groups, "averages": averages}

    def _reason(self, name: str) -> str:
        return "norm.mu.grouped" if name == "mu" else super()._reason(name)


class LocalResponseNorm(ChannelFirst, torch.nn.LocalResponseNorm):
    """Divide by the strength of the neighbouring channels. Input and output: (batch, channels, *space).

    Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks", NeurIPS
    2012. Arguments: those of ``torch.nn.LocalResponseNorm``. ``lengths`` count along the last axis of (batch,
    channels, length), ``mask`` is (batch, *space): what is masked comes out as 0; see `NormalizationFamily`.

    Raises:
        ValueError: the input has fewer than three axes.
    """

    formula = staticmethod(normalize_by_neighbours)  # type: ignore[assignment]
    centred = False
    weight = bias = None
    size: int

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes."""
        if x.ndim < 3:
            cure = "If space is missing, x.unsqueeze(-1) adds it."
            raise self._misfit(x, "(batch, channels, *space)", cure, ValueError)
        return space_axes(x.ndim)

    def average(self, x: Tensor, real: Tensor | None = None) -> Average:
        """Average the channels around each."""
        return Neighbours(self.size)

    def _symbols(self, x: Tensor) -> dict[str, Tensor | float]:
        return {"alpha": self.alpha, "beta": self.beta, "k": self.k}

    def _by_kernel(self, input: Tensor, real: Tensor | None, company: Company = ALONE) -> Tensor | None:
        return None  # what is averaged are windows, not axes

    def _average_over(self, x: Tensor) -> tuple[int, ...]:
        return (1,)

    def _average_shape(self, x: Tensor) -> tuple[int, ...]:
        return tuple(x.shape)

    def _facts(self, x: Tensor) -> dict[str, Any]:
        return {"averaged": ["neighbouring channels"], "window": self.size}

    def _reason(self, name: str) -> str:
        return "norm.mean_square.window"

    def _averages(self) -> tuple[str, ...]:
        return ("mean_square",)
