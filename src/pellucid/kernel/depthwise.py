"""Depthwise convolution of pictures whose channels lie side by side, and its gradients, by `c/depthwise.h`."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.kernel import memory
from pellucid.kernel.by_torch import ByTorch
from pellucid.kernel.threads import useful
from pellucid.kernel.window import Geometry, channels_last, lanes, library, text

NAME = "depthwise"
AXES = 2
MOST_TAPS_OF_A_ROW = 32  # TAPS_OF_A_ROW in the header
MOVED = 16  # products in whose time an entry is read and written
LEAST_TASKS = 16  # of the gradient of the weights: blocks of channels times parts of the batch
VECTORS = 4  # of a block


def fits(x: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> bool:
    """Whether these kernels can do a convolution."""
    if x.dim() != AXES + 2 or not channels_last(x, AXES) or max(geometry.kernel) > MOST_TAPS_OF_A_ROW:
        return False
    return groups == x.shape[1] == weight.shape[0]


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

    def __init__(self, x: Tensor, weight: Tensor, geometry: Geometry) -> None:
        batch, channels, *size = x.shape
        super().__init__(geometry, channels)
        self.dtype, self.taps = x.dtype, math.prod(geometry.kernel)
        self.input, self.result = tuple(x.shape), (batch, channels, *geometry.results(size))
        self._weight = weight.shape
        self.text, self._run = text(x.dtype, NAME), library(x.dtype, NAME)
        vector = lanes(x.dtype, NAME)
        self._width = -(-channels // vector) * vector
        blocks = -(-self._width // (vector * VECTORS))
        self._parts = max(1, min(batch, -(-LEAST_TASKS // blocks)))
        self._fixed = (batch, channels, *size, *self.result[2:], *geometry.kernel, *geometry.stride)
        self._fixed += (*geometry.dilation, *geometry.before, self._parts, blocks)
        self._real = torch.float64 if x.dtype == torch.float64 else torch.float32
        self._operations = 2 * math.prod(self.result) * (self.taps + MOVED)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, save: bool = False) -> tuple[Tensor, None]:
        """The result, (batch, channels, *positions)."""
        y = self._empty(self.result)
        self._call(self._run.forward, x, weight, bias, None, y, None, None)
        return y, None

    def backward(
        self, x: Tensor, weight: Tensor, dy: Tensor, needed: Sequence[bool], saved: None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of input, weight and bias, as far as they are needed."""
        dx = self._empty(self.input) if needed[0] else None
        dw = None
        if needed[1] or needed[2]:
            dw = memory.empty((self._parts, self.taps + 1, self._width), self._real)
        dy = dy.contiguous(memory_format=torch.channels_last)
        self._call(self._run.backward, x, weight, None, dy, None, dx, dw)
        if dw is None:
            return dx, None, None
        total = (dw.sum(0) if self._parts > 1 else dw[0])[:, : self._weight[0]].to(self.dtype)
        return dx, total[:-1].t().reshape(self._weight), total[-1]

    def _empty(self, shape: Sequence[int]) -> Tensor:
        batch, channels, height, width = shape
        return memory.empty((batch, height, width, channels), self.dtype).permute(0, 3, 1, 2)

    def _call(self, run, x, weight, bias, dy, y, dx, dw) -> None:
        work = torch.empty((self.taps + 1) * self._width, dtype=self._real)
        weight = weight.contiguous()
        tensors = (x, weight, bias, dy, y, dx, dw, work)
        places = [0 if t is None else t.data_ptr() for t in tensors]
        call = array("q", (*places, *self._fixed, *useful(self._operations * ((dx is not None) + (dw is not None) or 1))))
        run(call.buffer_info()[0])
