"""Affine maps, ``x W + b``, and matrix products, by `matmul.py` where it takes less time than torch.

torch multiplies by the library that it was built with, and not every such library uses all of a processor: that of
torch 2.13 leaves half of the vectors of a Zen 5 unused in float32. Which of the two is faster is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.kernel import matmul
from pellucid.kernel.autocast import autocast_dtype
from pellucid.kernel.backends import chosen_backend
from pellucid.kernel.choice import faster, remembered, rounded
from pellucid.kernel.matmul import LEAST_PRODUCTS
from pellucid.kernel.tensors import differentiate, runs, torch_has_to

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
    if not runs(*given) or autocast_dtype(x) is not None:
        return None
    wanted_size = weight.shape[::-1] if turned else weight.shape
    if len(wanted_size) != 2 or x.dim() == 0 or x.shape[-1] != wanted_size[0]:
        return None  # of which torch tells
    if bias is not None and bias.shape != wanted_size[1:]:
        return None

    def ours(*given: Tensor) -> Tensor:
        if not _wanted(given):
            return _affine(turned, *given)
        return _Linear.apply(reference, turned, _in_line(given[0]), *given[1:])

    def question() -> str:
        lies = f"{rounded(weight.shape)} {weight.stride()}{' turned' if turned else ''}"
        return f"linear {rounded((rows,))[0]} rows, weight {lies}"

    rows = x.numel() // x.shape[-1]
    layout = ("linear", rows, weight.shape, weight.stride(), x.stride(-1), turned)
    return ours(*given) if _takes(given, layout, question, x.numel() * wanted_size[1], reference, ours) else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute torch.nn.functional.linear by whichever way takes less time."""
    y = run(x, weight, bias, F.linear)
    return F.linear(x, weight, bias) if y is None else y


def mm(x: Tensor, weight: Tensor) -> Tensor:
    """Compute torch.mm of rows of features and a weight by whichever way takes less time."""
    y = run(x, weight, None, torch.mm, turned=False)
    return torch.mm(x, weight) if y is None else y


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, **options: Any) -> Tensor:
    """Compute torch.addmm, of a bias that all rows share by whichever way takes less time."""
    alike = not options and isinstance(input, Tensor) and input.dim() == 1 and mat1.dim() == 2
    y = run(mat1, mat2, input, _bias_last, turned=False) if alike else None
    return torch.addmm(input, mat1, mat2, **options) if y is None else y


def _bias_last(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x, weight)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Compute ``a @ b`` as `run_product` does, by whichever way takes less time."""
    y = run_product(a, b)
    return a @ b if y is None else y


def run_product(a: Tensor, b: Tensor) -> Tensor | None:
    """Return ``a @ b``, differentiable; None where torch's operator is faster or must do it.

    Args:
        a: (*batch, rows, depth); without batch it serves all matrices of b, unless a gradient is wanted, which is
            left to torch.
        b: (*batch, depth, width).
    """
    given = (a, b)
    if not runs(*given) or autocast_dtype(a) is not None:
        return None
    alike = a.shape[:-2] == b.shape[:-2] or (a.dim() == 2 and not _wanted(given))
    if a.dim() < 2 or b.dim() < 2 or not alike or a.shape[-1] != b.shape[-2]:
        return None

    def question() -> str:
        return f"product {rounded(a.shape)} {a.stride()[-2:]} {rounded(b.shape)} {b.stride()[-2:]}"

    layout = ("product", a.shape, a.stride(), b.shape, b.stride())
    return (
        _multiply(a, b) if _takes(given, layout, question, b.numel() * a.shape[-2], torch.matmul, _multiply) else None
    )


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    return _Product.apply(a, b) if _wanted((a, b)) else matmul.multiply([((a, False), (b, False))])[0]


def _wanted(given: tuple[Tensor, ...]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in given)


def _takes(
    given: tuple[Tensor, ...],
    layout: tuple[Any, ...],
    question: Callable[[], str],
    products: int,
    usual: Callable[..., Tensor],
    ours: Callable[..., Tensor],
) -> bool:
    """Whether the kernel is to compute ``usual`` of some tensors, as ``ours`` does.

    Args:
        given: the tensors.
        layout: what is computed, and how they lie, as far as it matters.
        question: the same in words, for all of about these sizes; asked once for each layout.
        products: of two numbers.
        usual: torch's way.
        ours: the other way.
    """
    dtype, forced = given[0].dtype, chosen_backend() == "c"
    if (products < LEAST_PRODUCTS and not forced) or any(t.dtype != dtype for t in given):
        return False
    if forced:
        return matmul.usable(dtype)
    grad = torch.is_grad_enabled()
    wanted = tuple([grad and t.requires_grad for t in given])
    case = (layout, dtype, wanted, torch.get_num_threads())

    def measured() -> bool:
        if not matmul.usable(dtype):
            return False
        copies = tuple(t.detach().requires_grad_(want) for t, want in zip(given, wanted, strict=True))
        gradients = [i for i, want in enumerate(wanted) if want]
        whole = f"{question()} {str(dtype)[6:]}, gradients of {gradients} of {len(given)}"
        leaves = [t for t in copies if t.requires_grad]
        return faster(whole, matmul.text(dtype), lambda: usual(*copies), lambda: ours(*copies), leaves)

    return remembered(_chosen, case, measured)


def _affine(turned: bool, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    y = matmul.multiply([((rows, False), (weight, turned))], None if bias is None else bias.contiguous())[0]
    return y.resize_(*x.shape[:-1], y.shape[-1])  # no view of anything: it may be written to


def _in_line(x: Tensor) -> Tensor:
    """A tensor whose rows can be counted through; a copy where they lie otherwise, as it is multiplied.

    So the copy is kept for the gradient, as torch keeps it, and x may be written to.
    """
    rows = x.reshape(-1, x.shape[-1])
    return x if rows.data_ptr() == x.data_ptr() else rows.view(x.shape)


class _Linear(torch.autograd.Function):
    """The product with its gradients."""

    @staticmethod
    def forward(ctx: Any, reference: Any, turned: bool, *given: Tensor) -> Tensor:
        ctx.save_for_backward(*given)
        ctx.reference, ctx.turned = reference, turned
        return _affine(turned, *given)

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


class _Product(torch.autograd.Function):
    """The product of batches of matrices with its gradients."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return matmul.multiply([((a, False), (b, False))])[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        a, b = ctx.saved_tensors
        if torch_has_to(dy):
            return differentiate(torch.matmul, (a, b), dy)
        pairs = [((dy, False), (b, True)), ((a, True), (dy, False))]
        found = iter(matmul.multiply([pair for pair, need in zip(pairs, ctx.needs_input_grad, strict=True) if need]))
        return tuple([next(found) if need else None for need in ctx.needs_input_grad])
