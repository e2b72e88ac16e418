"""Convolution whose windows hold a single place, by matrix products: torch's operator for convolutions is slower.

Which of the two is taken is measured where it runs, as for every kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.kernel import linear
from pellucid.kernel.windows.by_torch import ByTorch
from pellucid.kernel.windows.window import Geometry, channels_last

LEAST_PRODUCTS = 2**11  # of two numbers; fewer are not worth a thought
FEW_PLACES = 16  # up to so many of a sample the batch is one product, for which it is copied; each sample is one beyond


def fits(x: Tensor, geometry: Geometry, groups: int) -> bool:
    """Whether a convolution is a matrix product: of all channels, at every place of an input without gaps."""
    if groups != 1 or math.prod(geometry.kernel) != 1 or math.prod(geometry.stride) != 1:
        return False
    real = x.dtype in (torch.float32, torch.float64)
    dense = x.is_contiguous() or channels_last(x, len(geometry.kernel)) is not None
    return real and dense and not any((*geometry.before, *geometry.after))


class Pointwise(ByTorch):
    """The passes for tensors of certain shapes.

    Args:
        x: (batch, in channels, *size).
        weight: (out channels, in channels, 1, ...).
        geometry: how the windows lie.

    Attributes:
        backend: the name of what took the product of the last result, which is measured as for every product.
    """

    text = "pointwise convolution: one product of the batch up to 16 places"  # its measurements are kept under it

    def __init__(self, x: Tensor, weight: Tensor, geometry: Geometry) -> None:
        super().__init__(geometry, 1)
        self._batch, self._in, *size = x.shape
        self._out, self._places = weight.shape[0], math.prod(size)
        self._input, self._weight, self._result = x.shape, weight.shape, (self._batch, self._out, *size)
        # One product of the whole batch, which torch differentiates.
        self.differentiable = self._places == 1 or channels_last(x, len(size)) is not None

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, save: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The result, (batch, out channels, *size), and the input as backward reads it, if it has been copied."""
        matrix = weight.reshape(self._out, self._in)
        if self.differentiable:
            rows = x.view(self._batch, self._in) if self._places == 1 else x.movedim(1, -1)
            found = linear.run(rows, matrix, bias, F.linear)
            self.backend = "torch" if found is None else "c"
            y = F.linear(rows, matrix, bias) if found is None else found
            return y.view(self._result) if self._places == 1 else y.movedim(-1, 1), None
        columns = self._columns(x, self._in) if self._places <= FEW_PLACES else None
        y, self.backend = self._product(matrix, x, columns, self._result)
        if bias is not None:
            y.add_(bias.view(-1, *(1,) * len(self._zeros)))
        return y, columns if save else None

    def backward(
        self, x: Tensor, weight: Tensor, dy: Tensor, needed: Sequence[bool], columns: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of input, weight and bias, as far as they are needed."""
        dy = dy.contiguous()
        of_dy = None if columns is None else self._columns(dy, self._out)
        matrix = weight.reshape(self._out, self._in)
        dx = self._product(matrix.t(), dy, of_dy, self._input)[0] if needed[0] else None
        dw = None
        if needed[1] and columns is not None and of_dy is not None:
            dw = linear.product(of_dy, columns.t())
        elif needed[1]:
            dw = torch.addbmm(matrix, self._flat(dy, self._out), self._flat(x, self._in).mT, beta=0)
        db = self._flat(dy, self._out).sum((0, 2)) if needed[2] else None
        return dx, None if dw is None else dw.view(self._weight), db

    def _product(self, matrix: Tensor, x: Tensor, columns: Tensor | None, shape: Sequence[int]) -> tuple[Tensor, str]:
        """A matrix times the channels at every place, and the name of what took it."""
        out, channels = matrix.shape
        given = self._flat(x, channels) if columns is None else columns
        found = linear.run_product(matrix, given)
        y, ran = (matrix @ given, "torch") if found is None else (found, "c")
        if columns is None:
            return y.resize_(shape), ran  # no view: it may be written to
        y = y.view(out, self._batch, *shape[2:]).transpose(0, 1)
        return y.clone(memory_format=torch.contiguous_format), ran

    def _flat(self, x: Tensor, channels: int) -> Tensor:
        return x.view(self._batch, channels, self._places)

    def _columns(self, x: Tensor, channels: int) -> Tensor:
        """The channels at every place of every sample side by side, (channels, batch · places)."""
        return self._flat(x, channels).transpose(0, 1).reshape(channels, -1)
