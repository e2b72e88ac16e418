"""The author's function called step by step in a Python loop: what a cell means, written without pellucid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.formula.graph import apart, step
from pellucid.formula.source import Source
from pellucid.kernel.recurrence.stepwise import site_draws


def forward(
    source: Source,
    hyperparameters: Mapping[str, Any],
    sites: Sequence[tuple[int, str | None]],
    sizes: Sequence[int],
    x: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    lengths: Tensor | None = None,
    seed: Tensor | None = None,
    reverse: bool = False,
    start: int = 0,
) -> tuple[Tensor, list[Tensor]]:
    """Return output (time, batch, features) and last state; torch's autograd differentiates the loop.

    Nothing is derived here: no shapes, no schedule, no gradient. ``sites`` are the random draws that take place, none
    in eval; ``sizes`` are those of the inputs that stand side by side in ``x``. Used as the definition that every
    backend is compared with, and as its opponent in benchmarks.
    """
    draws = [site_draws(x, size, shared, seed, site, start) for site, (size, shared) in enumerate(sites)]
    outputs: list[Any] = [None] * x.shape[0]
    current = list(states)
    for t in reversed(range(x.shape[0])) if reverse else range(x.shape[0]):
        values = [*apart(x[t], sizes), *current, *parameters, *(drawn[t] for drawn in draws)]
        output, new = step(source, hyperparameters, bool(sites), values)
        if lengths is not None:
            real = (t < lengths).unsqueeze(-1)
            output = torch.where(real, output, 0)
            new = tuple(torch.where(real, n, o) for n, o in zip(new, current, strict=True))
        outputs[t], current = output, list(new)
    return torch.stack(outputs), current
