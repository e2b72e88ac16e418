"""Affine maps, ``x W + b``, by the products of `matmul.py` where they take less time than torch's.

torch multiplies by the library that it was built with, and not every such library uses all of a processor: that of
torch 2.13 leaves half of the vectors of a Zen 5 unused in float32. Which of the two is faster is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel import matmul, threads
from pellucid.kernel.autocast import autocast_dtype
from pellucid.kernel.choice import faster
from pellucid.kernel.nested import differentiate, language, torch_has_to
from pellucid.kernel.registry import chosen_backend
from pellucid.kernel.window import remembered, rounded

LEAST_PRODUCTS = 2**21  # of two numbers, below which calling takes longer than what could be won
_chosen: dict[Any, bool] = {}


def run(
    x: Tensor, weight: Tensor, bias: Tensor | None, reference: Callable[..., Tensor], turned: bool = True
) -> Tensor | None:
    """Return ``x @ weight + bias``, differentiable in all three; None where torch's operator is faster or must do it.

    Which one is faster is measured when work of such a size is met for the first time; ``pellucid.backend("c")`` asks
    for the kernel whatever that says.

    Args:
        x: (..., in features).
        weight: (in features, out features); if it is ``turned``, (out features, in features).
        bias: (out features,) or None.
        reference: the same by torch's operator, of x, weight and bias if there is one.
        turned: how the weight lies.

    Returns:
        (..., out features).
    """
    given = (x, weight) if bias is None else (x, weight, bias)
    if language(*given) != "c" or autocast_dtype(x) is not None or not threads.shared():
        return None
    wanted_size = weight.shape[::-1] if turned else weight.shape
    forced = chosen_backend() == "c"
    if len(wanted_size) != 2 or x.dim() == 0 or x.shape[-1] != wanted_size[0]:
        return None  # of which torch tells
    if x.numel() * wanted_size[1] < LEAST_PRODUCTS and not forced:
        return None
    dtype = x.dtype
    if any(t.dtype != dtype for t in given) or (bias is not None and bias.shape != wanted_size[1:]):
        return None
    grad = torch.is_grad_enabled()
    wanted = tuple([grad and t.requires_grad for t in given])
    if not forced:
        rows = x.numel() // x.shape[-1]
        case = (rows, weight.shape, weight.stride(), x.stride(-1), turned, dtype, wanted, torch.get_num_threads())
        if not remembered(_chosen, case, lambda: _is_faster(given, reference, rows, turned)):
            return None
    elif not matmul.ready(dtype):
        return None
    return _by(given, reference, turned)


def _by(given: tuple[Tensor, ...], reference: Any, turned: bool) -> Tensor:
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        return _Linear.apply(reference, turned, *given)
    return _product(turned, *given)


def _product(turned: bool, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    y = matmul.multiply([((rows, False), (weight, turned))], None if bias is None else bias.contiguous())[0]
    return y.resize_(*x.shape[:-1], y.shape[-1])  # no view of anything: it may be written to


class _Linear(torch.autograd.Function):
    """The product with its gradients."""

    @staticmethod
    def forward(ctx: Any, reference: Any, turned: bool, *given: Tensor) -> Tensor:
        ctx.save_for_backward(*given)
        ctx.reference, ctx.turned = reference, turned
        return _product(turned, *given)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, *_ = given = ctx.saved_tensors
        if torch_has_to(dy):
            return None, None, *differentiate(ctx.reference, given, dy)
        needed, turned = ctx.needs_input_grad[2:], ctx.turned
        rows, of_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        pairs = []
        if needed[0]:
            pairs.append(((of_rows, False), (weight, not turned)))
        if needed[1]:
            pairs.append(((of_rows, True), (rows, False)) if turned else ((rows, True), (of_rows, False)))
        found = iter(matmul.multiply(pairs) if pairs else ())
        gradients = [next(found).view(x.shape) if needed[0] else None, next(found) if needed[1] else None]
        if len(given) == 3:
            gradients.append(of_rows.sum(0) if needed[2] else None)
        return None, None, *gradients


def _is_faster(given: tuple[Tensor, ...], reference: Callable[..., Tensor], rows: int, turned: bool) -> bool:
    """Measure both on copies of the tensors."""
    x, weight = given[:2]
    if not matmul.ready(x.dtype):
        return False
    grad = torch.is_grad_enabled()
    copies = tuple(t.detach().requires_grad_(grad and t.requires_grad) for t in given)
    names = [name for name, t in zip(("x", "weight", "bias"), copies, strict=False) if t.requires_grad]
    sizes = f"{rounded((rows,))[0]} rows, weight {rounded(weight.shape)} {'turned ' if turned else ''}{weight.stride()}"
    gradients = f"gradients of {', '.join(names)}" if names else "no gradient"
    question = f"linear {str(x.dtype)[6:]} {sizes}, {'bias' if len(given) == 3 else 'no bias'}, {gradients}"

    def usual() -> Tensor:
        return reference(*copies)

    def ours() -> Tensor:
        return _by(copies, reference, turned)

    return faster(question, matmul.text(x.dtype), usual, ours, [t for t in copies if t.requires_grad])
