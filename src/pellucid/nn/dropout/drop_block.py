"""DropBlock: dropout whose coin flips drop squares of a picture's features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pellucid.nn.component import SymbolShape
from pellucid.nn.dropout.dropout import DropoutFamily


def drop_block(x: Tensor, draws: Tensor, gamma: float, block: tuple[int, int]) -> Tensor:
    """Drop the block at every place that drew less than ``gamma``, and scale the rest by its share.

    Ghiasi, Lin and Le, "DropBlock: a regularization method for convolutional networks", NeurIPS 2018, algorithm 1.
    ``draws`` stand for the upper left corners of the blocks that fit into the picture.
    """
    corners = (draws < gamma).to(draws.dtype)
    margin = (block[1] - 1, block[1] - 1, block[0] - 1, block[0] - 1)
    reached = torch.nn.functional.max_pool2d(torch.nn.functional.pad(corners, margin), block, stride=1)
    mask = reached == 0
    kept = mask.sum().clamp(min=1).to(torch.promote_types(x.dtype, draws.dtype))
    return x * mask / (kept / mask.numel())


class DropBlock2d(DropoutFamily):
    """Drop squares of each channel: neighbouring features say the same, so single ones are no loss.

    Input and output: (batch, channels, height, width) or (channels, height, width). A block larger than the picture
    covers it. ``p`` is about the share that is dropped (blocks may overlap, and drop less).

    Args:
        p: the share of features to drop.
        block_size: the side of a block; 1 makes it ``Dropout``, the picture's side ``Dropout2d``.
        inplace: write the result into the input.
        seed: see `DropoutFamily`.
        generator: see `DropoutFamily`.

    Raises:
        ValueError: p is no probability, or block_size is not positive.
        RuntimeError: the input has another number of axes.
    """

    formula = staticmethod(drop_block)
    entrywise = False  # blocks reach over entries

    def __init__(
        self,
        p: float = 0.5,
        block_size: int = 7,
        inplace: bool = False,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(p, inplace, seed=seed, generator=generator)
        if block_size < 1:
            raise ValueError(f"block_size is the side of a block and at least 1, but got {block_size}")
        self.block_size = block_size

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes."""
        return self._axes_of_space(x, 2)

    def drawn_shape(self, x: Tensor) -> tuple[int, ...]:
        """One draw for each place where a block fits."""
        (rows, columns), (high, wide) = x.shape[-2:], self._block(x)
        return (*x.shape[:-2], rows - high + 1, columns - wide + 1)

    def symbols(self, *inputs: Tensor) -> list[SymbolShape]:
        """Return the shapes of input and draws."""
        shapes = super().symbols(*inputs)
        if not shapes:
            return []
        x, draws = shapes
        return [x, replace(draws, reason="dropout.corners", facts={"p": self.p, "block": self._block(inputs[0])})]

    def extra_repr(self) -> str:
        """Write the arguments."""
        return f"p={self.p}, block_size={self.block_size}, inplace={self.inplace}{self._source_text()}"

    def _block(self, x: Tensor) -> tuple[int, int]:
        rows, columns = (
            self.block_size if size >= self.block_size else max(1, size)  # a case each: a graph has no minimum of sizes
            for size in x.shape[-2:]
        )
        return rows, columns

    def _symbol_values(self, x: Tensor, draws: Tensor, p: float) -> dict[str, Any]:
        (rows, columns), (high, wide) = x.shape[-2:], self._block(x)
        places = (rows - high + 1) * (columns - wide + 1)
        # Equation 1: each of the places drops a block, and together they drop the share p of the picture.
        gamma = p if p == 1 or x.numel() == 0 else p * rows * columns / (high * wide * places)
        return {"x": x, "draws": draws, "gamma": gamma, "block": (high, wide)}
