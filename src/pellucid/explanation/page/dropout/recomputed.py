"""The layer's formula at any p, as programs of the page."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import Unsupported
from pellucid.explanation.lines import Lines
from pellucid.explanation.page.program import Program, gradient, program
from pellucid.nn.dropout.dropout import DropoutFamily

Formula = Callable[..., Any]
SOME = 0.5  # a p at which something is dropped and something stays


@contextlib.contextmanager
def posed(layer: DropoutFamily, p: float) -> Iterator[Formula]:
    """Give the formula that a layer has in training at a p."""
    before = layer.training, layer.p
    layer.training, layer.p = True, p
    try:
        yield layer.formula
    finally:
        layer.training, layer.p = before


def of_layer(layer: DropoutFamily) -> dict[str, Any]:
    """Return the programs of a layer whose formula works entry by entry: at any p, and where all is dropped.

    Raises:
        Unsupported: an operation that the page does not know, or one that holds for tensors of one shape only.
    """
    with posed(layer, SOME) as formula:
        some = entrywise(formula)
    with posed(layer, 1.0) as formula:
        return {"some": some, "all": entrywise(formula)}


@functools.lru_cache(maxsize=16)
def entrywise(formula: Formula) -> dict[str, Any]:
    """Trace a formula of x, draws and p, forward and backward, for tensors of any shape."""
    lines = Lines(formula, numbers=["p"])
    found = []
    for extent in (2, 3):
        values = torch.linspace(0, 1, extent, dtype=torch.float64)
        inputs = {"x": values, "draws": values, "p": torch.tensor(SOME, dtype=torch.float64)}
        found.append(both(lines, inputs, {}))
    if json.dumps(found[0]) != json.dumps(found[1]):
        raise Unsupported("a fixed shape")
    return found[0]


def both(lines: Lines, inputs: Mapping[str, Tensor], others: Mapping[str, Any]) -> dict[str, Any]:
    """Trace a formula forward and backward; ``names`` says where its named values stand among the recorded ones."""
    forward = program(lines, inputs, others)
    return {"forward": forward.text, "backward": gradient(lines, inputs, others).text, "names": names(forward)}


def names(made: Program) -> dict[str, int]:
    """Find the recorded values that have a name."""
    return {site.name: index for index, site in enumerate(made.sites) if site.name}
