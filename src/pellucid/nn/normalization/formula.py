"""The family's formula, (x − μ)/√(σ² + ε)·γ + β, with what may stand around it, and how a kernel computes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pellucid.formula.drop import drop
from pellucid.kernel.rows import nested
from pellucid.nn.normalization.averages import Over, Remembered

AFFINE = ("gamma", "beta")


def normalize(
    x: Tensor, *, average: Callable[[Tensor], Tensor], gamma: Tensor | float, beta: Tensor | float, eps: float
) -> Tensor:
    """Bring ``x`` to mean 0 and variance 1 over what is averaged; then let γ and β take back what was good.

    Ioffe and Szegedy, "Batch normalization", ICML 2015, algorithm 1.
    """
    mu = average(x)
    var = average((x - mu) ** 2)
    x_hat = (x - mu) / torch.sqrt(var + eps)
    return x_hat * gamma + beta


@dataclass(frozen=True)
class Composed:
    """A formula of the family with what stands around it: ``activation(norm(x + dropout(sublayer)) + residual)``."""

    formula: Callable[..., Tensor]
    activation: Callable[[Tensor], Tensor] | None = None

    def __call__(
        self,
        x: Tensor,
        *,
        sublayer: Tensor | None = None,
        draws: Tensor | None = None,
        p: Tensor | float = 0.0,
        residual: Tensor | None = None,
        **symbols: Any,
    ) -> Tensor:
        """Compute it; the symbols are the formula's."""
        if sublayer is not None:
            added = sublayer.to(x.dtype)
            x = x + (added if draws is None else drop(added, draws, p))  # type: ignore[arg-type]
            if isinstance(average := symbols["average"], Remembered):
                symbols["average"] = replace(average, x=x)  # of this its mean is the average
        y = self.formula(x, **symbols)
        y = y if residual is None else y + residual
        return y if self.activation is None else self.activation(y)


class Company(NamedTuple):
    """What a layer is computed with in one pass, see `Composed`.

    Attributes:
        activation: a function, entry by entry; two that do the same are equal.
        tensors: "sublayer" and "residual", of the input's shape and type; neither, or any of them.
        p: the probability of dropping an entry of the sublayer.
        draws: where the numbers of that are; None where nothing is dropped.
    """

    activation: Callable[[Tensor], Tensor] | None = None
    tensors: Mapping[str, Tensor] = {}
    p: float = 0.0
    draws: nested.Draws | None = None


ALONE = Company()


def normalized(
    formula: Callable[..., Tensor],
    average: Callable[[Tensor], Any],
    x: Tensor,
    real: Tensor | None,
    symbols: Mapping[str, Tensor | float],
    centred: bool,
) -> tuple[Tensor, ...]:
    """Run a formula of the family; return its result, then, if it is ``centred``, its averages of x and deviation.

    The arithmetic is float32 for the half types. A formula that moves ``x`` by its mean gets it moved close to 0
    first, which changes nothing but the rounding: far from 0 the digits of a deviation would be lost.
    """
    bound = to_formula(x, real, symbols)
    exact: Tensor = bound["x"]
    taken = average(exact)
    if not centred:
        return (formula(average=taken, **bound).to(x.dtype),)
    near, seen = taken.near(exact.detach()), []

    def observed(values: Tensor) -> Tensor:
        seen.append(taken(values))
        return seen[-1]

    y = formula(average=observed, **bound | {"x": exact - near})
    mu, var = seen
    return y.to(x.dtype), near + mu.detach(), var.detach()


def to_formula(x: Tensor, real: Tensor | None, symbols: Mapping[str, Any]) -> dict[str, Any]:
    """What a formula's symbols stand for. Under a mask γ and β are 0 at padding, and so is the result."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    if real is not None:
        exact = exact.masked_fill(~real, 0)
        if "gamma" in symbols:  # without it a beta is another number
            symbols = {name: value * real if name in AFFINE else value for name, value in symbols.items()}
    return {"x": exact, **symbols}


def _along_axes(
    averaged: tuple[int, ...],
    formula: Callable[..., Tensor],
    names: Sequence[str],
    constants: Sequence[tuple[str, float]],
    centred: bool,
    observed: bool,
    *operands: Tensor,
) -> tuple[Tensor, ...]:
    """The formula as a kernel computes it: on the axes of memory, some of which are averaged."""
    given = dict(zip(names, operands, strict=True))
    x, real = given.pop("x"), given.pop("real", None)
    mean, var = given.pop("running_mean", None), given.pop("running_var", None)
    symbols = given | dict(constants)
    if mean is not None and var is not None:
        return normalized(formula, lambda exact: Remembered(exact, mean, var), x, real, symbols, centred)
    results = normalized(formula, lambda _: Over(averaged, real), x, real, symbols, centred)
    return results if observed else results[:1]


@functools.lru_cache(maxsize=256)
def recipe_of(
    name: str,
    formula: Callable[..., Tensor],
    tensors: tuple[str, ...],
    numbers: tuple[str, ...],
    constants: tuple[tuple[str, float], ...],
    centred: bool,
    observed: bool,
    drawn: bool,
) -> nested.Recipe:
    """What `nested` makes a kernel of; the same object for the same arguments, by which it is known again."""
    options = (formula, (*tensors, *numbers, *(("draws",) if drawn else ())), constants, centred, observed)
    results = ("y", "mu", "var") if centred and observed else ("y",)
    draws = ("draws",) if drawn else ()
    return nested.Recipe(f"nn.{name}", _along_axes, options, tensors, numbers, draws, results)
