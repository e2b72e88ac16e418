"""Depthwise convolution of pictures whose channels lie side by side, and its gradients, by `c/depthwise.h`."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.kernel import memory
from pellucid.kernel.threads import useful
from pellucid.kernel.windows.by_torch import ByTorch
from pellucid.kernel.windows.window import Geometry, channels_last, lanes, library, text

NAME = "depthwise"
AXES = 2
MOST_TAPS_OF_A_ROW = 32  # TAPS_OF_A_ROW of the header
MOVED = 16  # products in whose time an entry is read and written
VECTORS = 4  # of channels, whose weights have their gradients computed together
LEAST_TASKS = 16  # of the gradient of the weights: such blocks of channels, times parts of the batch
TENSORS = ("x", "weight", "bias", "dy", "y", "dx", "dw", "work")  # of struct depthwise


class Depthwise(ByTorch):
    """The passes for tensors of certain shapes.

    Args:
        x: (batch, channels, height, width) in channels-last format.
        weight: (channels, 1, height, width) of the kernels.
        geometry: how the windows lie.

    Raises:
        BuildError: there is no compiler.
    """

    fits = True  # its work stays in the caches whatever the sizes

    @staticmethod
    def suits(x: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> bool:
        """Whether these kernels can do a convolution."""
        if x.dim() != AXES + 2 or not channels_last(x, AXES) or max(geometry.kernel) > MOST_TAPS_OF_A_ROW:
            return False
        return groups == x.shape[1] == weight.shape[0]

    def __init__(self, x: Tensor, weight: Tensor, geometry: Geometry) -> None:
        batch, channels, *size = x.shape
        super().__init__(geometry, channels)
        self.text, self._kernels = text(x.dtype, NAME), library(x.dtype, NAME)
        self.input, self.result = tuple(x.shape), (batch, channels, *geometry.results(size))
        self._weight, self._dtype = weight.shape, x.dtype
        self._real = torch.float64 if x.dtype == torch.float64 else torch.float32
        vector, taps = lanes(x.dtype, NAME), math.prod(geometry.kernel)
        width = -(-channels // vector) * vector
        blocks = -(-width // (VECTORS * vector))
        parts = min(batch, -(-LEAST_TASKS // blocks))
        self._sums = (parts, taps + 1, width)
        self._operations = 2 * math.prod(self.result) * (taps + MOVED)
        self._fixed = (batch, channels, *size, *self.result[2:], *geometry.kernel, *geometry.stride)
        self._fixed += (*geometry.dilation, *geometry.before, parts, blocks)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, save: bool = False) -> tuple[Tensor, None]:
        """The result, (batch, channels, *positions), and nothing that backward would read beside."""
        y = self._empty(self.result)
        self._call("forward", 1, x=x, weight=weight.contiguous(), bias=bias, y=y)
        return y, None

    def backward(
        self, x: Tensor, weight: Tensor, dy: Tensor, needed: Sequence[bool], saved: None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of input, weight and bias, as far as they are needed."""
        dx = self._empty(self.input) if needed[0] else None
        dw = memory.empty(self._sums, self._real) if needed[1] or needed[2] else None
        dy = dy.contiguous(memory_format=torch.channels_last)
        passes = (dx is not None) + (dw is not None)
        self._call("backward", passes, x=x, weight=weight.contiguous(), dy=dy, dx=dx, dw=dw)
        if dw is None:
            return dx, None, None
        total = (dw.sum(0) if len(dw) > 1 else dw[0])[:, : self._weight[0]].to(self._dtype)
        return dx, total[:-1].t().reshape(self._weight), total[-1]

    def _empty(self, shape: Sequence[int]) -> Tensor:
        batch, channels, height, width = shape
        return memory.empty((batch, height, width, channels), self._dtype).permute(0, 3, 1, 2)

    def _call(self, direction: str, passes: int, **tensors: Tensor | None) -> None:
        """Run "forward" or "backward" on tensors by their names; those that are missing are not wanted."""
        given: dict[str, Tensor | None] = {**tensors, "work": torch.empty(self._sums[1:], dtype=self._real)}
        places = [0 if (t := given.get(name)) is None else t.data_ptr() for name in TENSORS]
        call = array("q", (*places, *self._fixed, *useful(self._operations * passes)))
        getattr(self._kernels, direction)(call.buffer_info()[0])
