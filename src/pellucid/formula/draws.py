"""Random numbers inside a formula: every call is a site, and whoever runs the formula says what is drawn there."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from pellucid.errors import FormulaError
from pellucid.formula.drop import dropping

INSTEAD = (
    "which could not be drawn again in backward. Use pellucid.dropout(x, p), pellucid.zoneout(new, old, p) or "
    "pellucid.noise(x, sigma)"
)  # of random numbers that a formula draws by torch


class Provider(Protocol):
    """Whoever runs a formula: gives each site its uniform numbers in [0, 1)."""

    training: bool

    def draw(self, like: Any, shared: str | None) -> Any:
        """Return numbers of the shape of ``like``; ``shared="time"`` means the same ones at every step."""
        ...


_provider: contextvars.ContextVar[Provider | None] = contextvars.ContextVar("provider", default=None)
_followed: list[Provider | None] = [None]  # the same while torch.compile follows, which cannot set a context variable


@contextlib.contextmanager
def provided_by(provider: Provider) -> Iterator[None]:
    """Let ``provider`` answer the draws of the formulas that run inside."""
    if torch.compiler.is_dynamo_compiling():
        _followed.append(provider)
        try:
            yield
        finally:
            _followed.pop()
        return
    token = _provider.set(provider)
    try:
        yield
    finally:
        _provider.reset(token)


def dropout(x: torch.Tensor, p: float = 0.5, shared: str | None = None) -> torch.Tensor:
    """Drop entries of ``x`` inside a formula, each with probability ``p``, and scale the others by 1/(1 − p).

    In training only; in eval, and for p = 0, ``x`` is returned as it is. A new mask is drawn at every call of a layer,
    and at every step of a cell; there ``shared="time"`` draws one mask for the whole sequence (Gal & Ghahramani 2016,
    variational dropout).

    Args:
        x: (batch, features), anything that the formula computes.
        p: the probability of an entry to be dropped.
        shared: None, or "time" in a cell.

    Raises:
        FormulaError: outside a formula (use ``pellucid.nn.Dropout`` there), or for another ``shared``.
        ValueError: p is not a probability.
    """
    _check_probability("dropout", p, "dropping an entry")
    provider = _asked("dropout", shared, "pellucid.nn.Dropout or torch.nn.functional.dropout")
    if not provider.training or p == 0:
        return x
    return dropping(p)(x, provider.draw(x, shared), p)


def zoneout(new: torch.Tensor, old: torch.Tensor, p: float = 0.1) -> torch.Tensor:
    """Keep entries of the old state inside a cell, each with probability ``p``: ``pellucid.zoneout(new_h, h)``.

    In training each entry of each sample draws anew at every step; in eval the result is the expectation
    ``p * old + (1 - p) * new``. In a layer's formula ``old`` is any value of the same shape, its input above all.
    Krueger et al. 2016, Zoneout, arXiv:1606.01305.

    Args:
        new: (batch, features), the state that the step has computed.
        old: (batch, features), the state before the step.
        p: the probability of an entry to stay as it was.

    Returns:
        (batch, features), the state to return.

    Raises:
        FormulaError: outside a formula.
        ValueError: p is not a probability.
    """
    _check_probability("zoneout", p, "keeping an old entry")
    provider = _asked("zoneout", None, "torch.where with a mask of your own")
    if p == 0:
        return new
    if not provider.training:
        return p * old + (1 - p) * new
    return torch.where(provider.draw(new, None) < p, old, new)


def noise(like: torch.Tensor, sigma: float = 1.0, shared: str | None = None) -> torch.Tensor:
    """Gaussian noise inside a formula: mean 0, standard deviation ``sigma``, to be added to what it computes.

    In training only; in eval it is 0. ``h + pellucid.noise(h, 0.1)`` draws anew at every step, every entry of every
    sample for itself; ``shared="time"`` draws once for the whole sequence. The numbers come from two uniform ones
    (Box & Muller 1958), and stay within 5.8 ``sigma``.

    Args:
        like: (batch, features), what has the shape and type of the noise.
        sigma: the standard deviation, not negative. One that is learned is a factor: ``s * pellucid.noise(h)``.
        shared: None, or "time" in a cell.

    Returns:
        (batch, features).

    Raises:
        FormulaError: outside a formula, or for another ``shared``.
        TypeError: sigma is a tensor.
        ValueError: sigma is negative.
    """
    if not isinstance(sigma, (int, float)):
        raise TypeError("pellucid.noise: sigma is a number; one that is learned is a factor: s * pellucid.noise(h)")
    if not sigma >= 0:
        raise ValueError(f"pellucid.noise: sigma is a standard deviation, a number from 0, not {sigma}")
    provider = _asked("noise", shared, "torch.randn_like")
    if not provider.training or sigma == 0:
        return torch.zeros_like(like)
    exact = torch.promote_types(like.dtype, torch.float32)  # 1 − radius in bfloat16 could be 0
    radius, turn = (provider.draw(like, shared).to(exact) for _ in range(2))
    normal = torch.sqrt(-2 * torch.log(1 - radius)) * torch.cos(2 * math.pi * turn)
    return sigma * normal.to(like.dtype)


def _check_probability(name: str, p: float, of: str) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"pellucid.{name}: p is the probability of {of}, from 0 to 1, not {p}")


def _asked(name: str, shared: str | None, elsewhere: str) -> Provider:
    """Who answers the draws of the function ``name``; what takes its place elsewhere than in a formula."""
    if shared not in (None, "time"):
        raise FormulaError(f'pellucid.{name}: shared is None or "time", not {shared!r}')
    provider = _followed[-1] if torch.compiler.is_dynamo_compiling() else _provider.get()
    if provider is None:
        raise FormulaError(
            f"pellucid.{name} stands inside a cell or a layer's formula, whose module draws its numbers and knows "
            f"whether it trains; elsewhere use {elsewhere}"
        )
    return provider
