"""The part of a tensor that the page shows: rows of entries, those that share a coin side by side."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from torch import Tensor

SHOWN, SLACK = 8, 2  # rows and columns; a few more where those are all


class Sheet:
    """The first entries of a tensor as a matrix.

    Args:
        shape: the tensor's.
        drawn: that of its draws, 1 along the axes that share a coin.
    """

    def __init__(self, shape: Sequence[int], drawn: Sequence[int]) -> None:
        start, width = len(shape), 1
        while start and (width == 1 or set(drawn[start:]) == {1} == {drawn[start - 1]}):
            start -= 1
            width *= shape[start]
        self.width, self.height = width, prod(shape[:start])
        self.rows, self.columns = shown(self.height), shown(self.width)
        entries = np.arange(self.rows)[:, None] * width + np.arange(self.columns)
        places = np.unravel_index(entries, shape) if shape else ()
        own = [place * (extent > 1) for place, extent in zip(places, drawn, strict=True)]
        self.coins = np.ravel_multi_index(own, drawn) if own else np.zeros_like(entries)

    def of(self, value: Tensor) -> Tensor:
        """Return this part of a tensor of the same shape, or of one that is broadcast to it."""
        return value.reshape(self.height, self.width)[: self.rows, : self.columns]


def shown(extent: int) -> int:
    """Return how many of so many rows or columns are shown."""
    return SHOWN if extent > SHOWN + SLACK else extent
