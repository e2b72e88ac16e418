"""Random numbers inside a formula: every call is a site, and whoever runs the formula says what is drawn there."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from pellucid.errors import FormulaError
from pellucid.formula.drop import dropping


class Provider(Protocol):
    """Whoever runs a formula: gives each site its uniform numbers in [0, 1)."""

    training: bool

    def draw(self, like: Any, shared: str | None) -> Any:
        """Return numbers of the shape of ``like``; ``shared="time"`` means the same ones at every step."""
        ...


_provider: contextvars.ContextVar[Provider | None] = contextvars.ContextVar("provider", default=None)


@contextlib.contextmanager
def provided_by(provider: Provider) -> Iterator[None]:
    """Let ``provider`` answer the draws of the formulas that run inside."""
    token = _provider.set(provider)
    try:
        yield
    finally:
        _provider.reset(token)


def dropout(x: torch.Tensor, p: float = 0.5, shared: str | None = None) -> torch.Tensor:
    """Drop entries of ``x`` inside a cell, each with probability ``p``, and scale the others by 1/(1 − p).

    In training only; in eval, and for p = 0, ``x`` is returned as it is. A new mask is drawn at every step;
    ``shared="time"`` draws one mask for the whole sequence (Gal & Ghahramani 2016, variational dropout).

    Args:
        x: (batch, features), anything that the cell computes.
        p: the probability of an entry to be dropped.
        shared: None or "time".

    Raises:
        FormulaError: outside a cell (use ``pellucid.nn.Dropout`` there), or for another ``shared``.
        ValueError: p is not a probability.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"pellucid.dropout: p is the probability of dropping an entry, from 0 to 1, not {p}")
    if shared not in (None, "time"):
        raise FormulaError(f'pellucid.dropout: shared is None or "time", not {shared!r}')
    provider = _provider.get()
    if provider is None:
        raise FormulaError(
            "pellucid.dropout stands inside a cell, whose layer draws its masks and knows whether it trains; "
            "elsewhere use pellucid.nn.Dropout or torch.nn.functional.dropout"
        )
    if not provider.training or p == 0:
        return x
    return dropping(p)(x, provider.draw(x, shared), p)
