"""A network small enough to look at all of its thinned networks: four hidden units between one input and one output."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pellucid import nn
from pellucid.explanation.lines import Lines
from pellucid.explanation.page.dropout.recomputed import SOME, names
from pellucid.explanation.page.program import program
from pellucid.formula.drop import drop_all, dropping
from pellucid.monte_carlo import monte_carlo

INPUT = 1.0
UNITS = 4
U = ((1.2, -0.8, 0.5, 2.0),)
V = ((1.5,), (1.0,), (-0.7,), (0.9,))
SAMPLES = 1000


def thinned(
    x: Tensor, draws: Tensor | None, U: Tensor, V: Tensor, p: Tensor | float, formula: Callable[..., Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Four hidden units, some of them dropped, and their sum: as it is, through tanh, and through relu."""
    h = torch.tanh(x @ U)
    kept = formula(h, draws, p)
    z = kept @ V
    return z, torch.tanh(z), torch.relu(z)


class Small(torch.nn.Module):
    """The same network as a module."""

    def __init__(self, p: float, seed: int) -> None:
        super().__init__()
        self.drop = nn.Dropout(p, seed=seed)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three outputs, each of one number."""
        return thinned(x, None, _weights(U), _weights(V), self.drop.p, lambda h, draws, p: self.drop(h))


def data(p: float, seed: int) -> dict[str, Any]:
    """Return the network, its 16 thinned networks at ``p``, and what many masks predict."""
    x = torch.full((1, 1), INPUT, dtype=torch.float64)
    masks = torch.tensor(list(itertools.product((1.0, 0.0), repeat=UNITS)), dtype=torch.float64)
    draws = 3 * masks - 1  # 2 is kept at every p, −1 dropped
    weights = {"U": _weights(U), "V": _weights(V)}
    outputs = torch.cat(thinned(x, draws, **weights, p=p, formula=dropping(p)), 1).expand(len(masks), -1)
    kept = masks.sum(1, keepdim=True)
    probabilities = (1 - p) ** kept * p ** (UNITS - kept)
    average = (probabilities * outputs).sum(0)
    model = Small(p, seed).eval()
    with torch.no_grad():
        scaled = torch.cat(model(x), 1)[0]
    predicted = monte_carlo(model.train(), x, SAMPLES) if p else None
    return {
        **weights,
        "input": INPUT,
        "masks": masks,
        "hidden": torch.tanh(x @ weights["U"])[0],
        "outputs": outputs,
        "probabilities": probabilities[:, 0],
        "average": average,
        "deviation": (probabilities * (outputs - average) ** 2).sum(0).sqrt(),
        "scaled": scaled,
        "mean": torch.cat(predicted.mean, 1)[0] if predicted else scaled,
        "spread": torch.cat(predicted.spread, 1)[0] if predicted else torch.zeros_like(scaled),
        "samples": SAMPLES,
        "some": _program(dropping(SOME)),
        "all": _program(drop_all),
    }


@functools.cache
def _program(formula: Callable[..., Tensor]) -> dict[str, Any]:
    x, p = torch.ones((1, 1), dtype=torch.float64), torch.tensor(SOME, dtype=torch.float64)
    draws = torch.ones((3, UNITS), dtype=torch.float64)
    inputs = {"x": x, "draws": draws, "U": _weights(U), "V": _weights(V), "p": p}
    made = program(Lines(thinned, numbers=["p"]), inputs, {"formula": formula})
    return {"forward": made.text, "names": names(made)}


def _weights(numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)
