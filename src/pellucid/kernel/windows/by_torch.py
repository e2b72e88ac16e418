"""Convolutions by torch's operators: what kernels are measured against, and what differentiates their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.kernel.windows.window import Geometry

aten = torch.ops.aten
MAXIMA: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class ByTorch:
    """How torch computes what a kernel does.

    Args:
        geometry: how the windows lie.
        groups: of channels.
        patch: how windows over the result lie, of which the greatest is taken; None for the result itself.
    """

    def __init__(self, geometry: Geometry, groups: int, patch: Geometry | None = None) -> None:
        self.geometry, self.groups, self.patch = geometry, groups, patch
        self._zeros = (0,) * len(geometry.kernel)

    def forward_by_torch(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The same by torch's operators, and of a patch where its greatest entry is, as torch counts."""
        padded, padding = self._padded(x)
        stride, dilation = self.geometry.stride, self.geometry.dilation
        y = aten.convolution(padded, weight, bias, stride, padding, dilation, False, self._zeros, self.groups)
        if self.patch is None:
            return y, None
        return MAXIMA[len(self._zeros)](y, self.patch.kernel, self.patch.stride, return_indices=True)

    def backward_by_torch(
        self,
        x: Tensor,
        weight: Tensor,
        dy: Tensor,
        needed: Sequence[bool],
        found: tuple[Tensor, Tensor | None] | None = None,
    ) -> Any:
        """The gradients by torch's operator, which may be differentiated again; ``found`` is what forward gave."""
        if found is not None and found[1] is not None:
            whole = self.geometry.results(x.shape[2:])
            flat = dy.new_zeros(*dy.shape[:2], math.prod(whole))
            at = found[1].flatten(2)
            dy = flat.scatter_add(-1, at, dy.reshape(at.shape)).reshape(*dy.shape[:2], *whole)
        padded, padding = self._padded(x)
        geometry = self.geometry
        options = (geometry.stride, padding, geometry.dilation, False, self._zeros, self.groups, list(needed))
        dx, dw, db = aten.convolution_backward(dy, padded, weight, weight.shape[:1], *options)
        uneven = geometry.before != geometry.after
        return F.pad(dx, [-n for n in geometry.margins]) if uneven and needed[0] else dx, dw, db

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The input, and the padding that torch is to add: the same on both sides, or what is there already."""
        geometry = self.geometry
        if geometry.before == geometry.after:
            return x, geometry.before
        return F.pad(x, geometry.margins), self._zeros


class TransposedByTorch:
    """How torch computes a transposed convolution.

    Args:
        geometry: how the windows lie over the result.
        groups: of channels.
        size: of the input, along every axis of windows.
        spread: of the result.
    """

    patch = None

    def __init__(self, geometry: Geometry, groups: int, size: Sequence[int], spread: Sequence[int]) -> None:
        self.geometry, self.groups = geometry, groups
        axes = zip(size, spread, *geometry, strict=True)
        more = [n - (s * (m - 1) + d * (k - 1) + 1 - 2 * before) for m, n, k, s, d, before, _ in axes]
        self._options = (geometry.stride, geometry.before, geometry.dilation, True, more, groups)

    def forward_by_torch(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, None]:
        """The same by torch's operator."""
        return aten.convolution(x, weight, bias, *self._options), None

    def backward_by_torch(
        self, x: Tensor, weight: Tensor, dy: Tensor, needed: Sequence[bool], found: object = None
    ) -> Any:
        """The gradients by torch's operator, which may be differentiated again."""
        sizes = [weight.shape[1] * self.groups]
        return aten.convolution_backward(dy, x, weight, sizes, *self._options, list(needed))
