"""What a recurrence is called with: forward and backward of every backend read the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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


def every(calls: Sequence[Call], states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """All tensors of calls that have their input in common: it, and states and parameters of each."""
    return [calls[0].x, *[t for call, own in zip(calls, states, strict=True) for t in (*own, *call.parameters)]]


class Backward(NamedTuple):
    """What a backward pass reads: the arguments of `stepwise.Stepwise.backward`."""

    call: Call
    saved: Sequence[Tensor]
    output_gradient: Tensor
    state_gradients: Sequence[Tensor]
    needed: Sequence[bool]


class OneByOne:
    """What runs several calls, which differ in nothing but parameters, seed and direction, one after the other."""

    def forward(self, call: Call, states: Sequence[Tensor], save: bool = False) -> Any:
        """Run the whole sequence: as `stepwise.Stepwise.forward`."""
        raise NotImplementedError

    def backward(self, *given: Any) -> Any:
        """Return the gradients: as `stepwise.Stepwise.backward`."""
        raise NotImplementedError

    def forward_all(
        self, calls: Sequence[Call], states: Sequence[Sequence[Tensor]], save: bool = False
    ) -> list[tuple[Tensor, list[Tensor], list[Tensor]]]:
        """Run each call."""
        return [self.forward(*given, save) for given in zip(calls, states, strict=True)]

    def backward_all(self, given: Sequence[Backward]) -> list[tuple[Tensor | None, list[Tensor], list[Tensor | None]]]:
        """Return the gradients of each call."""
        return [self.backward(*back) for back in given]
