"""Few steps, where calling a kernel may take longer than the author's function itself: which is faster is measured.

An agent that acts, a decoder or a stream reads one step at a time. The memory of a kernel, its arguments and a gradient
of its own are most of the work then, and plain torch needs none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel.choice import faster, remembered, rounded, unhooked
from pellucid.kernel.language.text_c import headers
from pellucid.kernel.recurrence.call import Call
from pellucid.kernel.registry import backend, chosen_backend, definition

MOST_STEPS = 8

States = Sequence[Sequence[Tensor]]  # of each call
Run = Callable[[str, bool, Sequence[Call], States], tuple[Sequence[tuple[Tensor, list[Tensor]]], str]]
_chosen: dict[Any, bool] = {}


def definition_is_faster(
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
    if (
        x.shape[0] > MOST_STEPS
        or not x.is_cpu
        or x.dtype not in (torch.float32, torch.float64)  # others would be rounded after each operation
        or x.numel() == 0
        or calls[0].lengths is not None
        or chosen_backend() != "auto"
    ):
        return False
    case = (text, training, x.shape, x.dtype, wanted, torch.get_num_threads())
    return remembered(_chosen, case, lambda: _is_faster(text, training, calls, states, any(wanted), run))


def _is_faster(
    text: str, training: bool, calls: Sequence[Call], states: States, differentiable: bool, run: Run
) -> bool:
    def copied(t: Tensor) -> Tensor:
        return t.detach().clone().requires_grad_(differentiable and t.requires_grad)

    x = copied(calls[0].x)
    calls = [call._replace(x=x, parameters=[copied(p) for p in call.parameters]) for call in calls]
    states = [[copied(state) for state in own] for own in states]
    given = [x, *[t for call, own in zip(calls, states, strict=True) for t in (*own, *call.parameters)]]

    def by(name: str) -> Callable[[], Tensor]:
        def compute() -> Tensor:
            with backend(name):
                outputs = [output for output, _ in run(text, training, calls, states)[0]]
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)

        return compute

    source, leaves = definition(text, training)[0], [t for t in given if t.requires_grad]
    mode = "training" if training else "eval"
    question = f"few steps of {source.name} in {mode} {rounded(x.shape)} {str(x.dtype)[6:]}, {len(leaves)} gradients"
    if not faster(question, headers() + source.text + text, by("c"), by("naive"), leaves):
        return False
    with torch.set_grad_enabled(differentiable), unhooked(), backend("naive"):
        found, _ = run(text, training, calls, states)
        return _lie_apart([state for _, last in found for state in last], given) and all(
            _reaches(result, leaves) for output, last in found for result in (output, *last)
        )


def _lie_apart(results: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    """Whether results have memory of their own, as those of kernels have: they may be written to."""
    places = [t.untyped_storage().data_ptr() for t in results]
    own = {*places} - {t.untyped_storage().data_ptr() for t in given}
    return len(own) == len(places) and not any(t._is_view() for t in results)


def _reaches(result: Tensor, leaves: Sequence[Tensor]) -> bool:
    """Whether a result's gradient comes to all leaves, as that of kernels does; some would have None in place of 0."""
    if not leaves:
        return True
    if not result.requires_grad:
        return False
    found = torch.autograd.grad(result, leaves, torch.ones_like(result), retain_graph=True, allow_unused=True)
    return all(gradient is not None for gradient in found)
