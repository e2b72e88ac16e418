"""Small work, for which a kernel may take longer than the author's function itself: which is faster is measured.

The memory of a kernel, its arguments and a gradient of its own are most of such work, and plain torch needs none of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel.backends import chosen_backend
from pellucid.kernel.choice import faster, remembered, rounded, unhooked
from pellucid.kernel.language.text_c import headers

Way = Callable[[], Sequence[Tensor]]


def runs_definition(
    chosen: dict[Any, bool], key: Any, training: bool, x: Tensor, wanted: Sequence[bool], is_faster: Callable[[], bool]
) -> bool:
    """Whether the author's function reads an input in the place of kernels, because that was measured to be faster.

    Numbers of 16 bits it would round after each operation. ``wanted`` says of which tensors a gradient is wanted.
    """
    if not x.is_cpu or x.dtype not in (torch.float32, torch.float64) or not x.numel() or chosen_backend() != "auto":
        return False
    return remembered(chosen, (key, training, x.shape, x.dtype, wanted, torch.get_num_threads()), is_faster)


def definition_is_faster(
    work: str, training: bool, formula: str, given: Sequence[Tensor], usual: Way, definition: Way
) -> bool:
    """Whether the author's function takes clearly less time than kernels, and gives what may stand in their place.

    Args:
        work: what it computes.
        training: whether random draws take place.
        formula: all that decides the kernels.
        given: what both ways read, `as_leaves`, the input first.
        usual: computes the results by kernels.
        definition: computes them by the author's function.
    """
    x, leaves = given[0], [t for t in given if t.requires_grad]
    mode = "training" if training else "eval"
    question = f"small {work} in {mode} {rounded(x.shape)} {str(x.dtype)[6:]}, {len(leaves)} gradients"
    if not faster(question, headers() + formula, lambda: usual()[0], lambda: definition()[0], leaves):
        return False
    with torch.set_grad_enabled(bool(leaves)), unhooked():
        results = definition()
        return _lie_apart(results, given) and all(_reaches(result, leaves) for result in results)


def as_leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies, of which a gradient is wanted where it is now."""
    grad = torch.is_grad_enabled()
    return [t.detach().clone().requires_grad_(grad and t.requires_grad) for t in tensors]


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
