"""Dropout's formula, the one text that every layer and every cell which drops anything refers to."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def drop(x: Tensor, draws: Tensor, p: float) -> Tensor:
    """Drop what drew less than ``p`` and scale the rest, so that the mean stays.

    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout", JMLR 2014. ``draws`` are uniform in
    [0, 1); where they have size 1, one coin flip is shared.
    """
    mask = draws >= p
    return x * mask / (1 - p)


def drop_all(x: Tensor, draws: Tensor, p: float) -> Tensor:
    """Keep nothing: what dropping with ``p = 1`` means, where the formula would divide by 0."""
    return x * 0


def dropping(p: float) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Return the formula that drops with probability ``p``."""
    return drop_all if p == 1 else drop
