"""Few steps of a recurrence, which the author's function itself may take in less time than a kernel.

An agent that acts, a decoder or a stream reads one step at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pellucid.kernel.backends import backend
from pellucid.kernel.recurrence.call import Call, every
from pellucid.kernel.registry import definition
from pellucid.kernel.small import as_leaves, definition_is_faster, runs_definition

MOST_STEPS = 8

States = Sequence[Sequence[Tensor]]  # of each call
Run = Callable[[str, bool, Sequence[Call], States], tuple[Sequence[tuple[Tensor, list[Tensor]]], str]]
_chosen: dict[Any, bool] = {}


def by_definition(
    text: str, training: bool, calls: Sequence[Call], states: States, wanted: Sequence[bool], run: Run
) -> bool:
    """Whether the author's function is to run in the place of kernels.

    Args:
        text: the program's key.
        training: whether random draws take place.
        calls: what is read, one call for each direction.
        states: of each call.
        wanted: of which of all tensors a gradient is wanted.
        run: `launch.recurrence`, by the backend that is asked for.
    """
    x = calls[0].x
    if x.shape[0] > MOST_STEPS or calls[0].lengths is not None:
        return False
    return runs_definition(_chosen, text, training, x, wanted, lambda: _is_faster(text, training, calls, states, run))


def _is_faster(text: str, training: bool, calls: Sequence[Call], states: States, run: Run) -> bool:
    (x,) = as_leaves([calls[0].x])
    calls = [call._replace(x=x, parameters=as_leaves(call.parameters)) for call in calls]
    states = [as_leaves(own) for own in states]
    given = every(calls, states)

    def by(name: str) -> Callable[[], list[Tensor]]:
        def compute() -> list[Tensor]:
            with backend(name):
                return [t for output, last in run(text, training, calls, states)[0] for t in (output, *last)]

        return compute

    source = definition(text, training)[0]
    return definition_is_faster(f"steps of {source.name}", training, source.text + text, given, by("c"), by("naive"))
