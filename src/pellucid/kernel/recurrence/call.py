"""What a recurrence is called with: forward and backward of every backend read the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """What a recurrence reads, but for its states.

    Attributes:
        x: the input, (time, batch, features); several inputs stand side by side.
        parameters: in the order of the formula, in its row convention.
        lengths: (batch,) int64: steps at or beyond a sample's length keep its state and give 0; None: all are real.
        seed: int64 scalar, keys the random draws; needed where the program has draws.
        reverse: from the last step to the first.
        start: the number of the first step, where this is a chunk of a longer sequence: it decides the draws.
    """

    x: Tensor
    parameters: Sequence[Tensor]
    lengths: Tensor | None = None
    seed: Tensor | None = None
    reverse: bool = False
    start: int = 0

    @property
    def time(self) -> int:
        """The number of steps."""
        return self.x.shape[0]

    @property
    def batch(self) -> int:
        """The number of sequences."""
        return self.x.shape[1]
