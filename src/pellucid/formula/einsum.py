"""torch.einsum as sums of products, two operands at a time, rows first: torch's own puts another axis before the batch.

A letter stands for an axis, as in the equation; those of an ellipsis are made up. A product of a matrix of each sample
with a vector of each is such a sum too: what it is made of has a kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ELLIPSIS = "αβγδεζηθ"  # the axes that an ellipsis stands for


MATRIX_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)


class RowsFirst(TorchFunctionMode):
    """Within it torch.einsum is the one of this module, and so are products with a vector of each sample."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in MATRIX_PRODUCTS and not kwargs and _has_vector(*args):
            return _with_vector(*args)
        return (einsum if func is torch.einsum else func)(*args, **(kwargs or {}))


def _has_vector(left: Any, right: Any) -> bool:
    """Whether a product is one of a vector and a matrix of each sample, or of two vectors."""
    several = isinstance(left, Tensor) and isinstance(right, Tensor) and left.dim() == right.dim() > 2
    return several and left.shape[-1] == right.shape[-2] and 1 in (*left.shape[-2:], right.shape[-1])


def _with_vector(left: Tensor, right: Tensor) -> Tensor:
    if left.shape[-1] == 1:
        return left * right
    if left.shape[-2] == 1:
        return (left.squeeze(-2).unsqueeze(-1) * right).sum(-2, keepdim=True)
    return (left * right.squeeze(-1).unsqueeze(-2)).sum(-1, keepdim=True)


def parse(equation: Any, axes: Sequence[int | None]) -> tuple[list[str], str] | None:
    """The letters of every operand and of the result; None where torch's own einsum is to do it, or to refuse it.

    Args:
        equation: as torch.einsum takes it.
        axes: how many every operand has; None where any number will do.
    """
    if not isinstance(equation, str):
        return None
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(axes):
        return None
    wide = ""
    for i, (term, count) in enumerate(zip(terms, axes, strict=True)):
        missing = 0 if count is None else count - len(term.replace("...", ""))
        if "..." in term and 0 <= missing <= len(ELLIPSIS):
            letters = ELLIPSIS[len(ELLIPSIS) - missing :]
            terms[i], wide = term.replace("...", letters), max(wide, letters, key=len)
        elif missing:
            return None
    every = "".join(terms)
    once = sorted(c for c in set(every) - set(wide) if every.count(c) == 1)
    result = result.replace("...", wide) if arrow else wide + "".join(once)
    if not set(result) <= set(every) or any(len(set(t)) < len(t) or not t.isalpha() for t in (*terms, result) if t):
        return None
    return terms, result


def einsum(equation: Any, *operands: Any) -> Tensor:
    """What torch.einsum returns, without an axis before those of the result on the way."""
    axes = [value.dim() for value in operands if isinstance(value, Tensor)]
    found = parse(equation, axes)
    if found is None or len(axes) < len(operands):
        return torch.einsum(equation, *operands)
    terms, result = found
    value, letters = operands[0], terms[0]
    for i, (operand, term) in enumerate(zip(operands[1:], terms[1:], strict=True), 2):
        kept = set(result).union(*terms[i:])
        left = _without((value, letters), {*kept, *term})
        right = _without((operand, term), {*kept, *letters})
        if result[:1] in right[1] and result[:1] not in left[1]:
            left, right = right, left  # rows stand left
        value, letters = _product(left, right, kept)
    value, letters = _without((value, letters), set(result))
    return _ordered(value, letters, result)


Term = tuple[Tensor, str]


def _without(term: Term, kept: Collection[str]) -> Term:
    """Sum over the axes that nothing else needs."""
    value, letters = term
    axes = [i for i, letter in enumerate(letters) if letter not in kept]
    return (value.sum(axes) if axes else value), "".join(c for c in letters if c in kept)


def _product(left: Term, right: Term, kept: Collection[str]) -> Term:
    """The product of two operands, summed over the axes of both that are not kept."""
    (a, of_a), (b, of_b) = left, right
    shared = "".join(c for c in of_a if c in of_b)
    sizes = dict(zip(of_a, a.shape, strict=True)), dict(zip(of_b, b.shape, strict=True))
    summed = "".join(c for c in shared if c not in kept)
    if len(shared) == 1 and summed and len(of_b) <= 2 and sizes[0][shared] == sizes[1][shared]:
        first, last = of_a.replace(shared, ""), of_b.replace(shared, "")
        return _ordered(a, of_a, first + shared) @ _ordered(b, of_b, shared + last), first + last
    letters = of_a + "".join(c for c in of_b if c not in of_a)
    return _without((_spread(a, of_a, letters) * _spread(b, of_b, letters), letters), {*letters} - {*summed})


def _spread(value: Tensor, letters: str, to: str) -> Tensor:
    """Bring axes into an order, with one of size 1 for every other letter."""
    value = _ordered(value, letters, "".join(c for c in to if c in letters))
    for axis, letter in enumerate(to):
        if letter not in letters:
            value = value.unsqueeze(axis)
    return value


def _ordered(value: Tensor, letters: str, to: str) -> Tensor:
    return value if letters == to else value.permute([letters.index(letter) for letter in to])
