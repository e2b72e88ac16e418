"""Dropout for SELU networks: what is dropped saturates, and an affine correction keeps mean and variance."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.nn.dropout import DropoutFamily

# SELU's value at minus infinity, −λα, with the constants of the paper's fixed point (mean 0, variance 1).
SATURATED = -1.0507009873554804934193349852946 * 1.6732632423543772848170429916717


def drop_alpha(x: Tensor, draws: Tensor, p: float, saturated: float = SATURATED) -> Tensor:
    """Set what drew less than ``p`` to SELU's lower limit; then restore mean 0 and variance 1.

    Klambauer, Unterthiner, Mayr and Hochreiter, "Self-normalizing neural networks", NeurIPS 2017, section 3.
    """
    mask = draws >= p
    a = ((1 - p) * (1 + p * saturated**2) or 1) ** -0.5  # with p = 1 all is one constant, brought to 0 by any a
    b = -a * p * saturated
    return a * torch.where(mask, x, saturated) + b


class AlphaDropout(DropoutFamily, torch.nn.AlphaDropout):
    """Drop entries to SELU's lower limit. Input and output: any shape. Arguments: see `DropoutFamily`."""

    formula = staticmethod(drop_alpha)


class FeatureAlphaDropout(DropoutFamily, torch.nn.FeatureAlphaDropout):
    """Drop whole channels to SELU's lower limit. Input and output: (batch, channels, ...).

    Arguments: see `DropoutFamily`.

    Raises:
        RuntimeError: the input has fewer than two axes.
    """

    formula = staticmethod(drop_alpha)

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes."""
        if x.ndim < 2:
            raise self._wrong_axes(x, "(batch, channels, ...)", "For other shapes: nn.AlphaDropout.")
        return ()

    def shared_axes(self, x: Tensor) -> tuple[int, ...]:
        """Space."""
        return tuple(range(2, x.ndim))
