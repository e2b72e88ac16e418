"""Dropout's formula, the one text that every layer and every cell which drops anything refers to."""

from __future__ import annotations

from torch import Tensor


def drop(x: Tensor, draws: Tensor, p: float) -> Tensor:
    """Drop what drew less than ``p`` and scale the rest, so that the mean stays.

    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout", JMLR 2014. ``draws`` are uniform in
    [0, 1); where they have size 1, one coin flip is shared.
    """
    mask = draws >= p
    return x * mask / (1 - p or 1)  # with p = 1 nothing is kept, and any divisor but 0 will do
