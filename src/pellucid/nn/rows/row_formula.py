"""A layer of one's own without a state: a formula of a row of features that makes modules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from pellucid.formula import graph
from pellucid.kernel.rows.rowwise import RowProgram
from pellucid.nn.factory import Factory
from pellucid.nn.rows.row_wise import RowWise


class Layer(Factory):
    """A formula of rows, and the factory of its modules; made by `layer`.

    ``layer(input_size, output_size=None, ...)`` returns a `pellucid.nn.RowWise`, whose arguments it takes. ``source``
    holds the author's names and lines, ``function`` is the undecorated function.
    """

    kind = "layer"
    beside = "output_size, seed, generator, device and dtype"
    attributes = ("hyperparameter", "parameter")

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function, RowWise)
        self.check_rows = functools.lru_cache(maxsize=64)(self._check_rows)
        self.program = functools.lru_cache(maxsize=64)(self._program)
        self.left: dict[Any, bool] = {}  # which small work is left to the function, by its sizes

    def __call__(self, input_size: int, output_size: int | None = None, **options: Any) -> RowWise:
        """Make a module; the arguments are those of `pellucid.nn.RowWise`."""
        return RowWise(self, input_size, output_size, **options)

    def _program(
        self,
        sizes: tuple[tuple[str, int], ...],
        hyperparameters: tuple[tuple[str, Any], ...],
        version: int,
        training: bool,
        dtype: torch.dtype,
    ) -> RowProgram:
        solution = self.solve(sizes, hyperparameters, version)
        return RowProgram(self.source, solution, dict(hyperparameters), training, dtype)

    def _check_rows(
        self, sizes: tuple[tuple[str, int], ...], hyperparameters: tuple[tuple[str, Any], ...], version: int
    ) -> None:
        solution = self.solve(sizes, hyperparameters, version)
        graph.in_plain_torch(lambda: graph.check_rows(self.source, solution, dict(hyperparameters)))


def layer(function: Callable[..., Any]) -> Layer:
    """Make a layer of a formula without a state: each row of features by itself.

    Positional arguments are the inputs, (..., features) of the same axes. Keyword-only arguments are parameters (a
    default says how they start: ``pellucid.zeros``, ``pellucid.constant(0.5)``, any function that fills a tensor in
    place) and hyperparameters (a number as default, or annotated ``float`` or ``int``). The function sees rows ×
    features and returns one such tensor; rows do not know of each other. Shapes are solved: what is combined with
    features entry by entry is a vector of them. An annotation says otherwise: ``alpha: ""`` is one number, without
    axes; ``W: "input rank"`` names a size that the constructor takes, ``rank=16``; "input" and "output" are the
    constructor's input_size and output_size, which is needed only where the formula leaves it open (``x @ W``).
    ``pellucid.dropout`` and ``pellucid.noise`` draw in training.

    ::

        @pellucid.layer
        def dyt(x, *, alpha: "" = pellucid.constant(0.5), gamma=pellucid.ones, beta=pellucid.zeros):
            return torch.tanh(alpha * x) * gamma + beta

        layer = dyt(768)  # a torch.nn.Module: alpha one number, gamma 768, beta 768
        y = layer(torch.randn(32, 50, 768))  # any axes before the features

    Raises:
        FormulaError: the signature does not follow this contract.
    """
    return Layer(function)
