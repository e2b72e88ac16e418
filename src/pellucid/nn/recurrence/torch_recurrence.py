"""torch's own operator in the place of a recurrent layer's kernels, where it may be faster.

On the CPU that is so for few rows: with a row or two the products of a step read the whole recurrent matrix for little
arithmetic, and torch's LSTM of oneDNN is sometimes ahead; and for few steps, where the call costs the most. On a GPU
it may be so for any number: cuDNN has kernels of its own for float32. Which one is faster is measured when such work is
met for the first time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel import gpu
from pellucid.kernel.autocast import autocast_dtype
from pellucid.kernel.backends import chosen_backend
from pellucid.kernel.choice import faster, remembered, rounded
from pellucid.kernel.language.text_c import headers
from pellucid.kernel.recurrence.jitted import sources as triton_sources
from pellucid.kernel.tensors import stand_in, unseen
from pellucid.nn.component import LEFT, undisturbed

MOST_STEPS, MOST_PRODUCTS = 64, 2**28  # of them all: a call of more takes longer than what Python adds to it
MOST_ROWS = 8
LEAST_WEIGHTS = 2**16  # entries of a layer; less is in the first caches whoever computes
MEASURED_STEPS = {"cpu": 64, "cuda": 512}  # on a GPU a short sequence is over before Python has launched the next call

Results = tuple[Tensor, ...]
_chosen: dict[Any, bool] = {}


def _usable(layer: Any, tensors: Sequence[Tensor]) -> bool:
    """Whether torch's operator can do a layer's work, and may be faster.

    Args:
        layer: of the layout of torch.nn.
        tensors: input (time, batch, features), states and weights.
    """
    x = tensors[0]
    return (
        unseen(*tensors)  # first: a compiler would keep to the sizes that it sees compared
        and (x.is_cuda or _is_little(layer, tensors))
        and chosen_backend() == "auto"
        and x.numel() > 0
        and not (layer.training and layer.dropout > 0 and layer.num_layers > 1)  # other masks would be drawn
        and autocast_dtype(x) is None
    )


def _is_little(layer: Any, tensors: Sequence[Tensor]) -> bool:
    """Whether there are few steps, or few rows of which oneDNN may take less time."""
    x = tensors[0]
    if x.dtype != torch.float32 or layer.proj_size:  # which oneDNN has not
        return False
    (time, batch, _), weights = x.shape, sum([w.numel() for w in tensors[2:]])
    return (time <= MOST_STEPS and time * batch * weights <= MOST_PRODUCTS) or (
        batch <= MOST_ROWS and weights >= LEAST_WEIGHTS
    )


def run(layer: Any, ours: Callable[..., Results], x: Tensor, states: Sequence[Tensor]) -> Results | None:
    """Output and last state by torch's operator, differentiable as often as ours; None where ours is to run.

    Args:
        layer: of the layout of torch.nn.
        ours: the same of pellucid, of x, the states and the weights.
        x: (time, batch, features).
        states: (layers · directions, batch, size) each.
    """
    known, names = layer._parameters, layer._weights
    if any(known.get(name) is None for name in names):  # some are computed
        return None
    tensors = (x, *states, *[known[name] for name in names])
    count = len(states)

    def by_torch(x: Tensor, *rest: Tensor) -> Results:
        return layer._by_torch(x, rest[:count], rest[count:])

    grad = torch.is_grad_enabled()
    wanted = tuple([grad and t.requires_grad for t in tensors])
    met = layer._circumstances(x, layer.training, layer.dropout > 0, *wanted)
    if met is not LEFT or not undisturbed(x):  # autocast may want another type than the operator's
        if not _usable(layer, tensors) or not _is_chosen(layer, by_torch, ours, tensors, wanted):
            return None
        layer._leave(x, met)
    if not any(wanted) or not (x.is_cuda or layer.mode == "LSTM"):  # others are made of operations that have gradients
        return by_torch(*tensors)
    return _differentiable(by_torch, ours, tensors)


def _is_chosen(
    layer: Any,
    by_torch: Callable[..., Results],
    ours: Callable[..., Results],
    tensors: Sequence[Tensor],
    wanted: tuple[bool, ...],
) -> bool:
    """Whether torch's operator was found to be faster for such tensors, or is now."""
    x = tensors[0]
    options: tuple[Any, ...] = (layer.mode, layer.hidden_size, layer.num_layers, layer.bidirectional, layer.bias)
    if x.is_cuda:
        options = (*options, layer.proj_size, str(x.dtype), torch.cuda.get_device_name(x.device), f"TF32 {gpu.tf32()}")
    key = (options, layer.training, x.shape, wanted, torch.get_num_threads())
    if key not in _chosen and x.is_cuda and torch.cuda.is_current_stream_capturing():
        return False  # a graph takes no measurements
    return remembered(_chosen, key, lambda: _is_faster(by_torch, ours, tensors, wanted, options))


def _is_faster(
    by_torch: Callable[..., Results],
    ours: Callable[..., Results],
    tensors: Sequence[Tensor],
    wanted: Sequence[bool],
    options: Sequence[Any],
) -> bool:
    x, *rest = (t.detach() for t in tensors)
    steps = x[: MEASURED_STEPS[x.device.type]].clone()
    given = [t.requires_grad_(w) for t, w in zip((steps, *rest), wanted, strict=True)]
    leaves = [t for t in given if t.requires_grad]
    question = f"recurrence {' '.join(map(str, options))} {rounded(given[0].shape)} {len(leaves)} gradients"

    def usual() -> Tensor:
        return ours(*given)[0]

    def other() -> Tensor:
        return _differentiable(by_torch, ours, given)[0] if leaves else by_torch(*given)[0]

    return faster(question, triton_sources() if x.is_cuda else headers(), usual, other, leaves)


def _differentiable(
    by_torch: Callable[..., Results], ours: Callable[..., Results], tensors: Sequence[Tensor]
) -> Results:
    """torch's results, differentiable as often as ours: torch's own gradient cannot always be differentiated again."""
    results = by_torch(*tensors)
    return tuple(_Again.apply(ours, len(results), *results, *tensors))


class _Again(torch.autograd.Function):
    """Results as they are, whose gradient goes on to what computed them; one that is differentiated again is ours."""

    @staticmethod
    def forward(ctx: Any, ours: Callable[..., Results], count: int, *tensors: Tensor) -> Any:
        ctx.ours, ctx.count = ours, count
        ctx.save_for_backward(*tensors[count:])
        ctx.set_materialize_grads(False)
        return tuple([result.detach() for result in tensors[:count]])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        count, needed = ctx.count, ctx.needs_input_grad[2 + ctx.count :]
        if not torch.is_grad_enabled() or all(gradient is None for gradient in gradients):
            return None, None, *gradients, *(None for _ in needed)
        tensors = [stand_in(t) if n else t for t, n in zip(ctx.saved_tensors, needed, strict=True)]
        results = zip(ctx.ours(*tensors), gradients, strict=True)
        known = [(result, gradient) for result, gradient in results if gradient is not None]
        wanted = [t for t, n in zip(tensors, needed, strict=True) if n]
        of, by = zip(*known, strict=True)
        found = iter(torch.autograd.grad(of, wanted, by, create_graph=True, allow_unused=True))
        return None, None, *(None,) * count, *(next(found) if n else None for n in needed)
