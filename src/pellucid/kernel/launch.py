"""From a layer's call to a backend: which one runs, autograd, transforms and autocast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pellucid.kernel import naive, operators, stepwise  # noqa: F401 (operators registers torch.ops.pellucid)
from pellucid.kernel.autocast import no_autocast
from pellucid.kernel.program import Program
from pellucid.kernel.registry import chosen_backend, definition, program

Tensor = torch.Tensor


def recurrence(
    text: str,
    training: bool,
    reverse: bool,
    x: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """Run a cell over a sequence, differentiable in input, states and parameters.

    Args:
        text: the program's `key`.
        training: whether random draws take place.
        reverse: from the last step to the first.
        x: (time, batch, features).
        states: (batch, features) each.
        parameters: in the formula's order and row convention.
        lengths: (batch,) int64 or None.
        seed: int64 scalar, None where nothing is drawn.

    Returns:
        Output (time, batch, features) and the last state.
    """
    tensors = [x, *states, *parameters]
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if torch.compiler.is_compiling():
        results = torch.ops.pellucid.recurrence(
            x, list(states), list(parameters), lengths, seed, text, training, reverse, differentiable
        )
        return results[0], list(results[1 : 1 + len(states)])
    with no_autocast(x):
        if chosen_backend() == "naive":
            source, hyperparameters, sites = definition(text, training)
            return naive.forward(source, hyperparameters, sites, x, states, parameters, lengths, seed, reverse)
        built = program(text, training, x.dtype, x.device.type)
        if not differentiable or _transformed():
            # A transform differentiates, maps or dualises the reference itself: plain operations all the way.
            output, last, _ = stepwise.forward(built, x, states, parameters, lengths, seed, reverse)
            return output, last
        output, *last = _Recurrence.apply(built, reverse, lengths, seed, len(states), *tensors)
        return output, last


def _transformed() -> bool:
    """Whether torch.func or forward-mode differentiation surrounds the call."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


class _Recurrence(torch.autograd.Function):
    """The program with its derived gradient."""

    @staticmethod
    def forward(ctx: Any, built: Program, reverse: bool, lengths: Any, seed: Any, count: int, *tensors: Tensor) -> Any:
        x, states, parameters = tensors[0], tensors[1 : 1 + count], tensors[1 + count :]
        output, last, saved = stepwise.forward(built, x, states, parameters, lengths, seed, reverse, save=True)
        ctx.built, ctx.reverse, ctx.count = built, reverse, count
        ctx.save_for_backward(lengths, seed, *tensors, *saved)
        return (output, *last)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        lengths, seed, *rest = ctx.saved_tensors
        split = 1 + ctx.count + len(ctx.built.parameters)
        tensors, saved = rest[:split], rest[split:]
        needed = ctx.needs_input_grad[5:]
        if torch.is_grad_enabled():
            return (None,) * 5 + _differentiable_backward(ctx, lengths, seed, tensors, gradients, needed)
        of_input, of_states, of_parameters = stepwise.backward(
            ctx.built,
            tensors[0],
            tensors[1 + ctx.count :],
            lengths,
            seed,
            ctx.reverse,
            saved,
            gradients[0],
            gradients[1:],
            (needed[0], *needed[1 + ctx.count :]),
        )
        return (None, None, None, None, None, of_input, *of_states, *of_parameters)


def _differentiable_backward(
    ctx: Any, lengths: Tensor | None, seed: Tensor | None, tensors: Any, gradients: Any, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradient where it will be differentiated again: torch differentiates the reference's own operations."""
    states, parameters = tensors[1 : 1 + ctx.count], tensors[1 + ctx.count :]
    output, last, _ = stepwise.forward(ctx.built, tensors[0], states, parameters, lengths, seed, ctx.reverse)
    wanted = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
    pairs = [(r, g) for r, g in zip((output, *last), gradients, strict=True) if r.requires_grad]
    found = iter(
        torch.autograd.grad([r for r, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True)
    )
    return tuple(next(found) if need else None for need in needed)
