"""The best match of every filter in a sentence, by `c/best.h`: windows of several widths, multiplied and compared.

The windows of all sentences, laid end to end, are the rows of one matrix that overlaps itself in memory: nothing is
copied, and the products of all widths share the threads in one call. Backward reads one window for every filter and
sentence, the best one: a convolution's gradient would read all of them, to multiply most by zero.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.kernel import matmul, memory, threads
from pellucid.kernel.autocast import autocast_dtype
from pellucid.kernel.tensors import differentiate, runs, torch_has_to
from pellucid.kernel.windows.window import library

NAME = "best"


def greatest_over_time(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] | None,
    lengths: Tensor | None,
    reference: Callable[..., Tensor],
) -> Tensor | None:
    """Return the greatest product of every filter, plus its bias, differentiable; None where no kernel runs.

    Args:
        x: (batch, time, features), zero beyond the lengths.
        weights: (filters, width, features) for every width.
        biases: (filters,) for every width, or None.
        lengths: (batch,) int64; a sentence shorter than a width is continued with zeros to one window, an empty one
            gives zeros.
        reference: the same by torch, of x, weights and biases; differentiated where a gradient is differentiated again.

    Returns:
        (batch, filters of all widths).
    """
    tensors = [x, *weights, *(biases or ())]
    if not runs(*tensors) or autocast_dtype(x) is not None or any(t.dtype != x.dtype for t in tensors):
        return None
    if not matmul.usable(x.dtype):
        return None
    if any(w.shape[2] != x.shape[2] for w in weights) or any(
        b.shape != w.shape[:1] for w, b in zip(weights, biases or (), strict=False)
    ):
        return None  # somebody has put others in their place, which torch refuses
    longest, time = max(w.shape[1] for w in weights), x.shape[1]

    def as_given(x: Tensor, *parameters: Tensor) -> Tensor:
        """The reference, which would take what a sentence is continued with for words."""
        return reference(x[:, :time], *parameters)

    if time < longest:
        lengths = torch.full((len(x),), time) if lengths is None else lengths
        x = F.pad(x, (0, 0, 0, longest - time))
    x = x.contiguous()
    weights, biases = [w.contiguous() for w in weights], biases and [b.contiguous() for b in biases]
    counts = None if lengths is None else lengths.to(torch.int64).contiguous()
    return _Best.apply(as_given, counts, len(weights), x, *weights, *(biases or ()))


class _Best(torch.autograd.Function):
    """The kernel with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, reference: Any, lengths: Tensor | None, widths: int, x: Tensor, *parameters: Tensor
    ) -> Tensor:
        weights, biases = parameters[:widths], parameters[widths:]
        batch, time, features = x.shape
        windows = [x.as_strided((batch * time - w.shape[1] + 1, w[0].numel()), (features, 1)) for w in weights]
        products = matmul.multiply([((a, False), (w.flatten(1), True)) for a, w in zip(windows, weights, strict=True)])
        results = sum(len(w) for w in weights)
        y, at = memory.empty((batch, results), x.dtype), torch.empty(batch, results, dtype=x.dtype)
        _run("forward", lengths, x, weights, {"products": products, "biases": biases, "y": y, "at": at})
        ctx.save_for_backward(lengths, at, x, *parameters)
        ctx.reference, ctx.widths = reference, widths
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        lengths, at, x, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        if torch_has_to(dy):
            return None, None, None, *differentiate(ctx.reference, [x, *parameters], dy)
        weights, biases = parameters[: ctx.widths], parameters[ctx.widths :]
        dx = torch.zeros_like(x) if needed[0] else None
        dw = [torch.empty_like(w) for w in weights] if any(needed[1 : 1 + len(weights)]) else []
        db = [torch.empty_like(b) for b in biases]
        _run("backward", lengths, x, weights, {"at": at, "dy": dy.contiguous(), "dx": dx, "dw": dw, "db": db})
        return None, None, None, dx, *(dw or (None,) * len(weights)), *db


def _run(direction: str, lengths: Tensor | None, x: Tensor, weights: Sequence[Tensor], tensors: dict[str, Any]) -> None:
    batch, time, features = x.shape
    filters, first, operations = array("q"), 0, 0
    for i, weight in enumerate(weights):
        count, width, _ = weight.shape
        places = (_at(tensors, name, i) for name in ("biases", "dw", "db"))
        filters.extend((_at(tensors, "products", i), weight.data_ptr(), *places, count, width, first))
        first += count
        operations += batch * count * (time if direction == "forward" else 4 * width * features)
    at = (0 if t is None else t.data_ptr() for t in (lengths, x, *(tensors.get(n) for n in ("dy", "y", "at", "dx"))))
    sizes = (len(weights), batch, time, features, first)
    call = array("q", (filters.buffer_info()[0], *at, *sizes, *threads.useful(operations)))  # struct best
    getattr(library(x.dtype, NAME), direction)(call.buffer_info()[0])


def _at(tensors: dict[str, Any], name: str, i: int) -> int:
    """The address of the tensor of a width; 0 where there is none."""
    return tensors[name][i].data_ptr() if tensors.get(name) else 0
