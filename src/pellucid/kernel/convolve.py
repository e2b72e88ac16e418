"""Convolution and its gradients by `c/convolve.h`.

The windowed product is linear in the input and in the weights, so its three passes are one contraction whose roles
change places; the kernel knows nothing else. What a library does at the speed of the machine (many channels) is left to
torch: which of the two is faster is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.kernel import memory
from pellucid.kernel.autocast import autocast_dtype
from pellucid.kernel.build import BuildError
from pellucid.kernel.choice import faster
from pellucid.kernel.nested import runs
from pellucid.kernel.random import in_plain_python
from pellucid.kernel.registry import chosen_backend, warn_of_fallback
from pellucid.kernel.window import (
    BIAS,
    DW,
    DX,
    DY,
    WEIGHT,
    Geometry,
    Windows,
    X,
    Y,
    readable,
    remembered,
    rounded,
    text,
)
from pellucid.kernel.window import lanes as vector_lanes

aten = torch.ops.aten
LEAST_TASKS = 16  # of a backward pass: groups times parts of the batch
MOST_IN_ROW = 40  # entries; a longer row fills its vectors by itself
MOST_BESIDE = 2**18  # entries of samples that lie beside each other; more would not stay in the second cache
NAME = "convolve"


def run(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, groups: int) -> Tensor | None:
    """Convolve by the kernel, differentiable in all three; None where torch's own operator is faster or must do it.

    Which one is faster is measured when work of such a size is met for the first time; ``pellucid.backend("c")`` asks
    for the kernel whatever that says.

    Args:
        x: (batch, in channels, *size).
        weight: (out channels, in channels per group, *kernel).
        bias: (out channels,) or None.
        geometry: how the windows lie.
        groups: of channels.
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if not runs(*tensors) or autocast_dtype(x) is not None:
        return None
    grad = torch.is_grad_enabled()
    wanted = tuple([grad and t.requires_grad for t in tensors])
    forced = chosen_backend() == "c"
    key = (x.shape, x.stride(), x.dtype, weight.shape, geometry, groups, wanted, forced, torch.get_num_threads())
    kernel = remembered(_bound, key, lambda: _try_to_bind(x, weight, bias, geometry, groups, wanted, forced))
    if not kernel or weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        return None
    return _Convolution.apply(kernel, *tensors) if any(wanted) else kernel.forward(x, weight, bias)


_bound: dict[Any, Convolution | None] = {}


def _try_to_bind(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    groups: int,
    wanted: Sequence[bool],
    forced: bool,
) -> Convolution | None:
    if not readable(x, weight.dim() - 2) or weight.dtype != x.dtype or min(geometry.results(x.shape[2:])) <= 0:
        return None
    if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        return None
    try:
        kernel = Convolution(x, weight, geometry, groups)
    except BuildError as error:
        warn_of_fallback("a convolution", error)
        return None
    if forced:
        return kernel
    needed = (wanted[0], wanted[1], bias is not None and wanted[2])
    return kernel if kernel.fits and _is_faster(kernel, x, weight, bias, needed) else None


@torch.no_grad()
def _is_faster(kernel: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None, needed: Sequence[bool]) -> bool:
    """Measure the kernel beside torch's operators."""
    dy = torch.ones(kernel.result, dtype=x.dtype)

    def ours() -> None:
        kernel.forward(x, weight, bias)
        if any(needed):
            kernel.backward(x, weight, dy, needed)

    def usual() -> None:
        kernel.forward_by_torch(x, weight, bias)
        if any(needed):
            kernel.backward_by_torch(x, weight, dy, needed)

    names = [name for name, need in zip(("input", "weight", "bias"), needed, strict=True) if need]
    work = f"gradients of {', '.join(names)}" if names else "no gradient"
    shapes = (
        f"{rounded((x.shape[0], *x.shape[2:]))} {list(weight.shape)} {kernel.groups} groups {list(kernel.geometry)}"
    )
    return faster(f"convolution {str(x.dtype)[6:]} {shapes} {work}", text(x.dtype, NAME), usual, ours)


class _Convolution(torch.autograd.Function):
    """The kernel with its gradient."""

    @staticmethod
    def forward(ctx: Any, kernel: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.kernel = kernel
        return kernel.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needed = (*ctx.needs_input_grad[1:], False)[:3]
        batched = torch._C._functorch.is_legacy_batchedtensor(dy)
        again = torch.is_grad_enabled() or batched or not in_plain_python(dy)
        backward = ctx.kernel.backward_by_torch if again else ctx.kernel.backward
        return None, *backward(x, weight, dy, needed)[: len(ctx.needs_input_grad) - 1]


def _samples_beside(x: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> int:
    """How many samples lie beside each other: a vector's, where rows are short and a place takes many products."""
    channels, out = weight.shape[1], weight.shape[0] // groups
    lanes = vector_lanes(x.dtype, NAME)
    row = x.shape[-1] + geometry.before[-1] + geometry.after[-1]
    entries = math.prod((*x.shape[2:-1], row)) * lanes * (channels + out)
    few = len(x) < lanes or channels * out == 1
    return 1 if few or row > MOST_IN_ROW or entries > MOST_BESIDE else lanes


class Convolution(Windows):
    """The passes for tensors of certain shapes.

    Args:
        x: (batch, in channels, *size).
        weight: (out channels, in channels per group, *kernel).
        geometry: how the windows lie.
        groups: of channels.

    Raises:
        BuildError: there is no compiler.
    """

    def __init__(self, x: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> None:
        lanes = _samples_beside(x, weight, geometry, groups)
        parts = min(-(-x.shape[0] // lanes), max(1, -(-LEAST_TASKS // groups)))
        super().__init__(x, geometry, groups, weight.shape[0] // groups, parts, NAME, lanes)
        self._weight, self._zeros = weight.shape, (0,) * len(geometry.kernel)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The result, (batch, out channels, *positions)."""
        y = memory.empty(self.result, self.dtype)
        self.call("forward", {X: x, WEIGHT: weight.contiguous(), BIAS: bias, Y: y})
        return y

    def backward(
        self, x: Tensor, weight: Tensor, dy: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of input, weight and bias, as far as they are needed."""
        dx = memory.empty(self.input, self.dtype) if needed[0] else None
        size, dw = math.prod(self._weight), None
        if needed[1] or needed[2]:
            real = torch.float64 if self.dtype == torch.float64 else torch.float32
            dw = torch.empty(self.parts, size + self._weight[0], dtype=real)
        places = {X: x, WEIGHT: weight.contiguous(), DY: dy.contiguous(), DX: dx, DW: dw}
        self.call("backward", places, (dx is not None) + (dw is not None))
        if dw is None:
            return dx, None, None
        total = (dw.sum(0) if self.parts > 1 else dw[0]).to(self.dtype)
        return dx, total[:size].view(self._weight), total[size:]

    def forward_by_torch(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same by torch's operator."""
        padded, padding = self._padded(x)
        stride, dilation = self.geometry.stride, self.geometry.dilation
        return aten.convolution(padded, weight, bias, stride, padding, dilation, False, self._zeros, self.groups)

    def backward_by_torch(self, x: Tensor, weight: Tensor, dy: Tensor, needed: Sequence[bool]) -> Any:
        """The gradients by torch's operator, which may be differentiated again."""
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
