"""A cell of one's own: a formula that makes layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pellucid.nn.factory import Factory
from pellucid.nn.recurrence.layer import Recurrent


class Cell(Factory):
    """A formula of one step, and the factory of its layers; made by `cell`.

    ``cell(input_size, hidden_size, ...)`` returns a `pellucid.nn.Recurrent`, whose arguments it takes. ``source``
    holds the author's names and lines, ``function`` is the undecorated function.
    """

    kind = "cell"
    beside = "input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, device and dtype"

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function, Recurrent)

    def __call__(self, input_size: int, hidden_size: int, num_layers: int = 1, **options: Any) -> Recurrent:
        """Make a layer; the arguments are those of `pellucid.nn.Recurrent`."""
        return Recurrent(self, input_size, hidden_size, num_layers, **options)


def cell(function: Callable[..., Any]) -> Cell:
    """Make a recurrent layer of a formula.

    Positional arguments are the input of a step, then the state entries; where there are several inputs, a slash ends
    them, ``def cfc(x, dt: "1", /, h, *, U, W)``, and the layer is called ``layer(x, dt=gaps)``. Keyword-only arguments
    are parameters
    (a default says how they start: ``pellucid.zeros``, ``pellucid.constant(0.5)``, any function that fills a tensor
    in place) and hyperparameters (a number as default, or annotated ``float`` or ``int``). The function returns the
    new state in the order of the arguments, or ``y, (h, c)`` where the output is not the first state entry. Vectors
    are rows, the batch is invisible, shapes are solved; an annotation names a size that the formula leaves open:
    ``M: "hidden rank"``.

    ::

        @pellucid.cell
        def leaky(x, h, *, U, W, b=pellucid.zeros, tau: float = 10.0):
            return h + (torch.tanh(x @ U + h @ W + b) - h) / tau

        layer = leaky(256, 128, tau=5.0)  # a torch.nn.Module: U 256×128, W 128×128, b 128
        output, state = layer(torch.randn(50, 32, 256))  # (time, batch, features)

    Raises:
        FormulaError: the signature does not follow this contract.
    """
    return Cell(function)
