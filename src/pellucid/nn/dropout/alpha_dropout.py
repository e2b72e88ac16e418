"""Dropout for SELU networks: what is dropped saturates, and an affine correction keeps mean and variance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pellucid.formula.drop import drop_all
from pellucid.nn.dropout.dropout import DropoutFamily

# SELU's value at minus infinity, −λα, with the constants of the paper's fixed point (mean 0, variance 1).
SATURATED = -1.0507009873554804934193349852946 * 1.6732632423543772848170429916717


def drop_alpha(x: Tensor, draws: Tensor, p: float, saturated: float = SATURATED) -> Tensor:
    """Set what drew less than ``p`` to SELU's lower limit; then restore mean 0 and variance 1.

    Klambauer, Unterthiner, Mayr and Hochreiter, "Self-normalizing neural networks", NeurIPS 2017, section 3.
    """
    mask = draws >= p
    a = ((1 - p) * (1 + p * saturated**2)) ** -0.5
    b = -a * p * saturated
    return a * torch.where(mask, x, saturated) + b


class SaturatingFamily(DropoutFamily):
    """What the two members share: their formula."""

    @property
    def formula(self) -> Callable[..., Tensor]:  # type: ignore[override]
        """The formula; where all is dropped, one constant would be brought to 0."""
        return drop_all if self.training and self.p == 1 else drop_alpha


class AlphaDropout(SaturatingFamily, torch.nn.AlphaDropout):
    """Drop entries to SELU's lower limit. Input and output: any shape. Arguments: see `DropoutFamily`."""


class FeatureAlphaDropout(SaturatingFamily, torch.nn.FeatureAlphaDropout):
    """Drop whole channels to SELU's lower limit. Input and output: (batch, channels, ...).

    Arguments: see `DropoutFamily`.

    Raises:
        RuntimeError: the input has fewer than two axes.
    """

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes."""
        if x.ndim < 2:
            raise self._wrong_axes(x, "(batch, channels, ...)", "For other shapes: nn.AlphaDropout.")
        return ()

    def shared_axes(self, x: Tensor) -> tuple[int, ...]:
        """Space."""
        return tuple(range(2, x.ndim))
