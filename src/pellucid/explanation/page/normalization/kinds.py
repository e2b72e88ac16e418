"""The members of the family as they would read one input: what each averages, where γ and β vary, its numbers."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import Unsupported
from pellucid.explanation.lines import Lines
from pellucid.explanation.page.normalization.layout import Layout
from pellucid.explanation.page.program import gradient, program
from pellucid.explanation.sites import Site
from pellucid.explanation.trace import recording
from pellucid.nn.normalization.averages import Grouped, Neighbours, Over, Remembered
from pellucid.nn.normalization.formula import normalize
from pellucid.nn.normalization.layer_norm import normalize_by_neighbours, normalize_by_root_mean_square

Average = Callable[[Tensor, Tensor | None], Callable[[Tensor], Tensor]]
FORMULAS: dict[str, Callable[..., Tensor]] = {"rms": normalize_by_root_mean_square, "lrn": normalize_by_neighbours}
MEANS = ("mu", "mean_square")


@dataclass(frozen=True)
class Kind:
    """One member.

    Attributes:
        name: ``batch``, ``layer``, ``instance``, ``group``, ``rms``, ``lrn``, or ``own``: any axes.
        axes: what is averaged; of groups of channels all channels count as averaged.
        affine: the axes along which γ and β vary.
        groups: how many groups of channels there are.
        window: how many neighbouring channels.
    """

    name: str
    axes: tuple[int, ...]
    affine: tuple[int, ...]
    groups: int = 1
    window: int = 0

    @property
    def formula(self) -> Callable[..., Tensor]:
        """The author's function."""
        return FORMULAS.get(self.name, normalize)

    @property
    def centred(self) -> bool:
        """Whether the mean is taken away."""
        return self.name not in FORMULAS

    def average(self, layout: Layout) -> Average:
        """Return what makes the formula's average of an input and its mask."""
        if self.name == "lrn":
            return lambda x, real: Neighbours(self.window)
        if self.name != "group":
            return lambda x, real: Over(self.axes, real)
        channel = layout.channel
        assert channel is not None
        return lambda x, real: Grouped(self.groups, None if real is None else real.movedim(channel, 1), channel)


def kinds_of(layout: Layout, layer: Any, own: str) -> Iterator[Kind]:
    """List the members that can read the input, one for each number of groups."""
    if own == "own":
        yield Kind("own", layer._average_over(layout.x), tuple(sorted(a % layout.x.ndim for a in layer.affine_axes)))
        return
    channel = layout.channel
    assert channel is not None
    last = channel == layout.x.ndim - 1 and layout.x.ndim > 2
    within = (channel,) if last else tuple(range(1, layout.x.ndim))
    yield Kind("batch", tuple(a for a in range(layout.x.ndim) if a != channel), (channel,))
    yield Kind("layer", within, within)
    if layout.space:
        yield Kind("instance", layout.space, (channel,))
    if layout.x.shape[channel] > 1:
        inside = tuple(range(1, layout.x.ndim))
        for groups in divisors(layout.x.shape[channel], getattr(layer, "num_groups", 1)):
            yield Kind("group", inside, (channel,), groups=groups)
    yield Kind("rms", within, within)
    if own == "lrn":
        yield Kind("lrn", (channel,), (), window=layer.size)


def divisors(number: int, own: int, most: int = 10) -> list[int]:
    """Return the divisors of a number, of many some, with 1, the number itself and the layer's own."""
    found = [d for d in range(1, number + 1) if number % d == 0]
    step = -(-len(found) // most)
    return sorted({*found[::step], number, own} if number % own == 0 else {*found[::step], number})


# -- numbers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """What the formula reads: its tensors by name, spread along the input, and the gradient of its result."""

    symbols: Mapping[str, Tensor]
    gradient: Tensor
    real: Tensor | None


class Recorded:
    """The author's lines of a formula, which keep the values of their last run that the page shows."""

    def __init__(self, formula: Callable[..., Tensor]) -> None:
        self.lines = Lines(formula)
        self.found: dict[str, Tensor] = {}
        self._function = recording(self.lines, self._record)

    def __call__(self, **symbols: Any) -> Tensor:
        """Run the lines."""
        self.found = {}
        return self._function(**symbols)

    def _record(self, index: int, value: Any) -> Any:
        key = _key(self.lines.sites[index])
        if key and isinstance(value, Tensor):
            self.found[key] = value
        return value


def numbers(
    kind: Kind, recorded: Recorded, layout: Layout, given: Given, remembered: tuple[Tensor, Tensor] | None = None
) -> dict[str, Any]:
    """Run the author's lines forward and backward; return what the page shows of their values.

    Args:
        kind: which member.
        recorded: its formula.
        layout: of the input.
        given: what the formula reads.
        remembered: mean and variance of training, in eval.
    """
    symbols = {name: value.detach().requires_grad_() for name, value in given.symbols.items()}
    average = _averaging(kind, layout, remembered)(symbols["x"], given.real)
    with torch.enable_grad():
        y = recorded(average=average, **symbols)
        found = recorded.found
        if given.real is not None:
            y = y * given.real
        gradients = torch.autograd.grad(y, list(symbols.values()), given.gradient, allow_unused=True)
    result = {"y": y, "x_hat": found.get("x_hat", y), "mean": found["mean"]}
    if "var" in found:
        result["var"] = found["var"]
    for name, value in zip(symbols, gradients, strict=True):
        if name == "x" or (name in ("gamma", "beta") and kind.name != "lrn"):
            result[f"d_{name}"] = torch.zeros_like(symbols[name]) if value is None else value
    if remembered is None and "gamma" in symbols:
        with torch.no_grad():
            of_normal = given.gradient * symbols["gamma"]
            result["mean_g"] = average(of_normal)
            result["mean_gx"] = average(of_normal * result["x_hat"])
    return {name: layout.part(value).float() for name, value in result.items()}


def _averaging(kind: Kind, layout: Layout, remembered: tuple[Tensor, Tensor] | None) -> Average:
    if remembered is None:
        return kind.average(layout)
    mean, var = remembered
    return lambda x, real: Remembered(x, mean, var)


def _key(site: Site) -> str | None:
    """What the page calls the value of an expression: the first quotient is x̂."""
    if site.name in MEANS:
        return "mean"
    if site.name == "var":
        return "var"
    return "x_hat" if isinstance(site.node, ast.BinOp) and isinstance(site.node.op, ast.Div) else None


# -- programs -----------------------------------------------------------------------------------------------------


def written(
    kind: Kind, lines: Lines, layout: Layout, symbols: Mapping[str, Tensor], real: Tensor | None, mode: str
) -> dict[str, Any]:
    """Write the formula as a program of the page.

    Args:
        kind: which member.
        lines: its formula's.
        layout: of the input.
        symbols: what the formula reads.
        real: what is no padding, an input of the program.
        mode: ``train``; ``eval``, which reads ``mean`` and ``variance``; or ``unbiased``, with the variance that is
            stored in the place of the one that normalizes.
    """
    inputs = dict(symbols) | ({} if real is None else {"real": real.double()})
    if mode == "eval":
        shape = [1 if axis != layout.channel else size for axis, size in enumerate(layout.x.shape)]
        inputs |= dict.fromkeys(("mean", "variance"), torch.ones(shape, dtype=torch.float64))

    def bind(values: dict[str, Tensor]) -> dict[str, Any]:
        values, x, marked = dict(values), values["x"], values.get("real")
        values.pop("real", None)
        if mode == "eval":
            return {"average": Remembered(x, values.pop("mean"), values.pop("variance")), **values}
        average = kind.average(layout)(x, None if marked is None else marked != 0)
        return {"average": Unbiased(x, average) if mode == "unbiased" else average, **values}

    forward = program(lines, inputs, {}, bind=bind)
    places = {key: index for index, site in enumerate(forward.sites) if (key := _key(site))}
    backward: Mapping[str, Any] | None = None
    if mode != "unbiased":
        try:
            backward = gradient(lines, inputs, {}, bind=bind).text
        except Unsupported:  # the page says so, and shows what Python computed
            backward = None
    return {"forward": forward.text, "gradient": backward, **places}


class Unbiased:
    """An average of which the second, the variance, is divided by one number less."""

    def __init__(self, x: Tensor, average: Any) -> None:
        self.x, self.average = x, average

    def __call__(self, values: Tensor) -> Tensor:
        """Average the values."""
        mean = self.average(values)
        if values is self.x:
            return mean
        count = self.average.count(values)
        return mean * count / (count - 1)
