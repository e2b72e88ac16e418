"""Pooling over the real steps of sequences, by `c/steps.h`: one pass over the input, which is read where it lies."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel import memory
from pellucid.kernel.backends import warn_of_fallback
from pellucid.kernel.build import BuildError
from pellucid.kernel.tensors import differentiate, runs, torch_has_to
from pellucid.kernel.threads import useful
from pellucid.kernel.windows.window import library

OPERATIONS_OF_AN_ENTRY = 4  # in the time that they take
NAME = "steps"


def pool_steps(x: Tensor, lengths: Tensor, largest: bool, reference: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Return the mean or the greatest of every feature over the real steps, differentiable; None where no kernel runs.

    Args:
        x: (time, batch, features), features side by side; steps beyond the lengths may hold anything.
        lengths: (batch,) int64; a sequence without steps gives zeros.
        largest: whether the greatest entry is taken; equal ones share its gradient.
        reference: the same by torch, of ``x``; it is differentiated where a gradient is differentiated again.

    Returns:
        (batch, features).
    """
    if not runs(x) or x.stride(-1) != 1:
        return None
    try:
        library(x.dtype, NAME)
    except BuildError as error:
        warn_of_fallback("a pooling over steps", error)
        return None
    return _Steps.apply(reference, lengths.contiguous(), largest, x)


class _Steps(torch.autograd.Function):
    """The kernel with its gradient."""

    @staticmethod
    def forward(ctx: Any, reference: Any, lengths: Tensor, largest: bool, x: Tensor) -> Tensor:
        y = memory.empty(x.shape[1:], x.dtype)
        _run("forward", x, lengths, largest, y=y)
        ctx.save_for_backward(lengths, x, y)
        ctx.reference, ctx.largest = reference, largest
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        lengths, x, y = ctx.saved_tensors
        if torch_has_to(dy):
            return None, None, None, *differentiate(ctx.reference, [x], dy)
        dx = memory.allocate(x.shape, x.dtype, x.device, torch.empty_like(x, device="meta").stride())
        _run("backward", x, lengths, ctx.largest, y=y, dy=dy.contiguous(), dx=dx)
        return None, None, None, dx


def _run(direction: str, x: Tensor, lengths: Tensor, largest: bool, y: Tensor, **tensors: Tensor) -> None:
    dy, dx = tensors.get("dy"), tensors.get("dx")
    places = (0 if t is None else t.data_ptr() for t in (x, dy, y, dx, lengths))
    strides = (*x.stride()[:2], *((0, 0) if dx is None else dx.stride()[:2]))
    threads = useful(OPERATIONS_OF_AN_ENTRY * x.numel())
    call = array("q", (*places, *x.shape, *strides, int(largest), *threads))  # struct steps of c/steps.h
    getattr(library(x.dtype, NAME), direction)(call.buffer_info()[0])
