"""The author's function called step by step in a Python loop: what a cell means, written without pellucid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.formula.graph import apart, step
from pellucid.formula.source import Source
from pellucid.kernel.recurrence.call import Call
from pellucid.kernel.recurrence.stepwise import site_draws


def forward(
    source: Source,
    hyperparameters: Mapping[str, Any],
    sites: Sequence[tuple[int, str | None]],
    sizes: Sequence[int],
    call: Call,
    states: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Return output (time, batch, features) and last state; torch's autograd differentiates the loop.

    Nothing is derived here: no shapes, no schedule, no gradient. ``sites`` are the random draws that take place, none
    in eval; ``sizes`` are those of the inputs that stand side by side. Used as the definition that every
    backend is compared with, and as its opponent in benchmarks.
    """
    draws = [site_draws(call, size, shared, site) for site, (size, shared) in enumerate(sites)]
    outputs: list[Any] = [None] * call.time
    current = list(states)
    for t in reversed(range(call.time)) if call.reverse else range(call.time):
        values = [*apart(call.x[t], sizes), *current, *call.parameters, *(drawn[t] for drawn in draws)]
        output, new = step(source, hyperparameters, bool(sites), values)
        if call.lengths is not None:
            real = (t < call.lengths).unsqueeze(-1)
            output = torch.where(real, output, 0)
            new = tuple(torch.where(real, n, o) for n, o in zip(new, current, strict=True))
        outputs[t], current = output, list(new)
    return torch.stack(outputs), current
