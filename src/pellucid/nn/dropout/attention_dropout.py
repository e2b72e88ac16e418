"""Scaled dot-product attention with dropout: mask, softmax and dropout of the weights in one pass."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.formula.drop import drop
from pellucid.kernel import linear
from pellucid.kernel.backends import chosen_backend
from pellucid.kernel.choice import faster, remembered, rounded
from pellucid.kernel.random import draw_seed
from pellucid.kernel.rows import nested
from pellucid.kernel.tensors import language

LEAST = 2**15  # weights below which torch's function is the faster one: Python takes longer than the work


def weights(scores: Tensor, mask: Tensor | None, draws: Tensor, p: Any, scale: Any, axis: int = -1) -> Tensor:
    """The weights of attention, from the products of queries and keys: ``drop(softmax(scores · scale + mask))``.

    A query that may look at nothing has weights of 0. Vaswani et al., "Attention is all you need", NeurIPS 2017.

    Args:
        scores: (..., queries, keys).
        mask: what is added to them, or, of bool, True where a query may look; it is spread to their shape.
        draws: uniform numbers in [0, 1) of the same shape.
        p: the probability of a weight to be dropped.
        scale: of the scores.
        axis: that of the keys.
    """
    scores = scores * scale
    if mask is not None:
        scores = torch.where(mask, scores, -math.inf) if mask.dtype == torch.bool else scores + mask
    largest = scores.detach().amax(axis, keepdim=True)  # the softmax is the same whatever is subtracted
    powers = torch.exp(scores - torch.where(largest == -math.inf, 0.0, largest))
    total = powers.sum(axis, keepdim=True)
    return drop(powers / torch.where(total == 0, 1.0, total), draws, p)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute ``dropout(softmax(query keyᵀ · scale + mask)) value``, as torch.nn.functional's function of this name.

    Where weights are dropped on the CPU, torch computes that step by step and draws the mask in one thread. Here mask,
    softmax and dropout are one pass over the weights, which draws again in backward instead of keeping the mask; the
    products are those that take less time. Everywhere else, and where it is the faster one, torch's function runs.
    Arguments, shapes and errors are torch's.
    """
    alone = not enable_gqa and not (is_causal and attn_mask is not None)
    if 0 < dropout_p < 1 and alone and _fits(query, key, value, attn_mask):
        mask = _causal(query.shape[-2], key.shape[-2]) if is_causal else attn_mask
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        usual = functools.partial(F.scaled_dot_product_attention, dropout_p=dropout_p, scale=factor)
        options: dict[str, Any] = {"is_causal": True} if is_causal else {"attn_mask": mask}
        if _is_faster((query, key, value), mask, dropout_p, factor, functools.partial(usual, **options)):
            return _attend((query, key, value), mask, dropout_p, factor)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _attend(tensors: Sequence[Tensor], mask: Tensor | None, p: float, scale: float) -> Tensor:
    """Two products, and between them the weights by one kernel, or by torch where there is none."""
    query, key, value = tensors
    scores = linear.product(query, key.mT)
    draws = nested.Draws.of(draw_seed(None), 0, {"draws": 0})
    beside = [] if mask is None else [mask]

    def again(scores: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return (weights(scores, mask, draws.tensor("draws", scores.shape, scores.device), p, scale),)

    results = nested.run(_recipe(len(beside)), (scores, *beside), _axes, again, (p, scale), draws)
    return linear.product((again(scores) if results is None else results)[0], value)


@functools.cache
def _recipe(masks: int) -> nested.Recipe:
    return nested.Recipe(
        "attention", _by_axis, (), ("scores", "mask")[: 1 + masks], ("p", "scale"), ("draws",), ("weights",)
    )


def _by_axis(averaged: tuple[int, ...], scores: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """The weights as a kernel computes them: on the axes of memory, of which one is that of the keys."""
    *mask, p, scale, draws = others
    return (weights(scores, mask[0] if mask else None, draws, p, scale, averaged[0]),)


def _axes(scores: Tensor, *mask: Tensor) -> nested.Axes:
    beside = [nested.spread(t, scores.dim()) for t in mask]
    drawn = nested.View(torch.empty(scores.shape, device="meta").stride())
    return nested.Axes(tuple(scores.shape), (scores.dim() - 1,), (nested.View(scores.stride()), *beside, drawn))


@functools.lru_cache(maxsize=16)
def _causal(queries: int, keys: int) -> Tensor:
    """Which keys a query may look at: those up to its own place."""
    with torch.inference_mode(False):  # it is kept
        return torch.ones(queries, keys, dtype=torch.bool).tril()


def _fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether the kernel can compute with these, and torch would."""
    beside = [] if mask is None else [mask]
    if language(query, key, value, *beside) != "c" or torch.is_autocast_enabled("cpu"):
        return False
    if query.dim() < 3 or key.dim() != query.dim():
        return False
    batch, keys = query.shape[:-2], key.shape[-2]
    shape = (*query.shape[:-1], keys)
    return (
        query.dtype in (torch.float32, torch.float64)
        and key.dtype == value.dtype == query.dtype
        and key.shape == (*batch, keys, query.shape[-1])
        and value.shape[:-1] == (*batch, keys)
        and all(
            m.dtype in (torch.bool, query.dtype) and not m.requires_grad and nested.spreads(m.shape, shape)
            for m in beside
        )
    )


_chosen: dict[Any, bool] = {}


def _is_faster(
    tensors: Sequence[Tensor], mask: Tensor | None, p: float, scale: float, usual: functools.partial[Tensor]
) -> bool:
    """Whether one pass over the weights takes less time than torch's function, or is asked for."""
    query, key, _ = tensors
    shape, beside = (*query.shape[:-1], key.shape[-2]), [] if mask is None else [mask]
    forced = chosen_backend() == "c"
    if math.prod(shape) < LEAST and not forced:
        return False
    wanted = tuple([torch.is_grad_enabled() and t.requires_grad for t in tensors])
    lie = tuple([(t.shape, t.stride()) for t in (*tensors, *beside)])
    case = (
        lie,
        query.dtype,
        tuple(m.dtype for m in beside),
        tuple(usual.keywords),
        wanted,
        torch.get_num_threads(),
        forced,
    )

    def measure() -> bool:
        """Draws of this are nobody's."""
        with torch.set_grad_enabled(any(wanted)):
            scores = torch.empty(shape, dtype=query.dtype, requires_grad=any(wanted))
            text = nested.text_of(_recipe(len(beside)), (scores, *beside), _axes)
        if text is None or forced:
            return text is not None
        copies = [t.detach().requires_grad_(want) for t, want in zip(tensors, wanted, strict=True)]
        sizes = ", ".join(str(rounded(t.shape)) for t in (*tensors, *beside))
        gradients = "with" if any(wanted) else "without"
        question = f"attention {str(query.dtype)[6:]} {sizes} {gradients} gradient"
        state = torch.get_rng_state()
        try:
            other = functools.partial(_attend, copies, mask, p, scale)
            return faster(
                question, text, functools.partial(usual, *copies), other, [t for t in copies if t.requires_grad]
            )
        finally:
            torch.set_rng_state(state)

    return remembered(_chosen, case, measure)
