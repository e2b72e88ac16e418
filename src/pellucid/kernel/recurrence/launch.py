"""From a layer's call to a backend: which one runs, autograd, transforms and autocast."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch._C import _TorchDispatchModeKey as _ModeKey
from torch._subclasses.fake_tensor import FakeTensor

from pellucid.kernel.autocast import no_autocast
from pellucid.kernel.build import BuildError
from pellucid.kernel.recurrence import naive, operators  # noqa: F401 (operators registers torch.ops.pellucid)
from pellucid.kernel.recurrence.chunks import WHOLE, Division, divided, plainly
from pellucid.kernel.registry import (
    Runner,
    chosen_backend,
    definition,
    give_up_program,
    reference,
    runner,
    warn_of_unrolling,
)
from pellucid.kernel.rows.nested import stand_in

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
    division: Division = WHOLE,
) -> tuple[Tensor, list[Tensor], str]:
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
        division: whether the sequence is taken in chunks.

    Returns:
        Output (time, batch, features), the last state, and the name of the backend that ran ("" where none ran: a
        compiler asks, an exporter or a tracer).
    """
    tensors = [x, *states, *parameters]
    differentiable = (torch.is_grad_enabled() or _traced()) and any(t.requires_grad for t in tensors)
    if _recorded(tensors):
        if _has_no_operator(text):
            return *_unrolled(text, training, reverse, x, list(states), list(parameters), lengths, seed, *division), ""
        results = torch.ops.pellucid.recurrence(
            x, list(states), list(parameters), lengths, seed, text, training, reverse, *division, differentiable
        )
        return results[0], list(results[1 : 1 + len(states)]), ""
    # A kernel reads memory, in which z.conj().imag, say, has other numbers.
    x, *rest = tensors = [t.resolve_neg() for t in tensors]
    states, parameters = rest[: len(states)], rest[len(states) :]
    with no_autocast(x):
        if chosen_backend() == "naive":
            cell = definition(text, training)

            def define(x: Tensor, states: Any, lengths: Tensor | None, start: int) -> Any:
                return naive.forward(*cell, x, states, parameters, lengths, seed, reverse, start)

            return *plainly(define, division, x, states, lengths, reverse), "naive"
        plain = _transformed()
        place = (text, training, x.dtype, x.device.type)
        again = functools.partial(reference, *place)

        def compute(run: Runner) -> tuple[Tensor, list[Tensor], str]:
            if plain or not differentiable:
                # A transform differentiates, maps or dualises the reference itself: plain operations all the way.
                return *_plain(run, division, x, states, parameters, lengths, seed, reverse), run.name
            output, *last = _Recurrence.apply(run, again, division, reverse, lengths, seed, len(states), text, *tensors)
            return output, last, run.name

        run = again() if plain else runner(*place, differentiable)
        try:
            return compute(run)
        except BuildError as error:
            give_up_program(text, run, error)
            return compute(again())


def _plain(
    run: Runner,
    division: Division,
    x: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Output and last state by a runner's own operations."""

    def forward(x: Tensor, states: Sequence[Tensor], lengths: Tensor | None, start: int) -> Any:
        return run.forward(x, states, parameters, lengths, seed, reverse, start=start)

    return plainly(forward, division, x, states, lengths, reverse)


def _recorded(tensors: Sequence[Tensor]) -> bool:
    """Whether a call becomes a node of a graph: a compiler, an exporter or a tracer asks, or the tensors are fake.

    With fake tensors a backend of plain operations that is asked for shows them.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return True
    if chosen_backend() in ("naive", "stepwise"):
        return False
    return (
        torch._C._get_dispatch_mode(_ModeKey.PROXY) is not None
        or torch._C._get_dispatch_mode(_ModeKey.FAKE) is not None
        or FakeTensor in map(type, tensors)
    )


def _traced() -> bool:
    """Whether torch.jit traces, which a compiler cannot be asked."""
    return not torch.compiler.is_compiling() and torch._C._is_tracing()


def _has_no_operator(text: str) -> bool:
    """Whether a graph cannot have the operator: a transform is compiled too, or the graph is for ONNX."""
    for_onnx = torch.onnx.is_in_onnx_export()
    if for_onnx:
        warn_of_unrolling(text)
    if not (for_onnx or _transformed()):
        return False
    if "torch._dynamo" in sys.modules:  # to import it takes 1.3 s; where it is not loaded, nothing compiles
        torch._dynamo.allow_in_graph(_unrolled)
    return True


_has_no_operator._dynamo_marked_constant = True  # type: ignore[attr-defined]  # it is called, not compiled


def _unrolled(
    text: str,
    training: bool,
    reverse: bool,
    x: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    checkpoint_every: int,
    truncate: int,
) -> tuple[Tensor, list[Tensor]]:
    """The steps one by one, in plain torch; a compiler looks inside with all transforms around it."""
    run = reference(text, training, x.dtype, x.device.type)
    return _plain(run, Division(checkpoint_every, truncate), x, states, parameters, lengths, seed, reverse)


def _transformed() -> bool:
    """Whether torch.func or forward-mode differentiation surrounds the call."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


class _Recurrence(torch.autograd.Function):
    """The program with its derived gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Runner,
        again: Any,
        division: Division,
        reverse: bool,
        lengths: Any,
        seed: Any,
        count: int,
        text: str,
        *tensors: Tensor,
    ) -> Any:
        x, states, parameters = tensors[0], tensors[1 : 1 + count], tensors[1 + count :]
        ctx.whole, ctx.text = run, text
        run = divided(run, division)
        output, last, saved = run.forward(x, states, parameters, lengths, seed, reverse, save=True)
        ctx.run, ctx.again, ctx.division, ctx.reverse, ctx.count = run, again, division, reverse, count
        ctx.save_for_backward(lengths, seed, *tensors, *saved)
        return (output, *last)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        lengths, seed, *rest = ctx.saved_tensors
        split = 1 + ctx.count + len(ctx.run.program.parameters)
        tensors, saved = rest[:split], rest[split:]
        needed = ctx.needs_input_grad[8:]
        gradients = tuple([gradient.resolve_neg() for gradient in gradients])
        if torch.is_grad_enabled():
            return (None,) * 8 + _differentiable_backward(ctx, lengths, seed, tensors, gradients, needed)
        try:
            of_input, of_states, of_parameters = ctx.run.backward(
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
        except BuildError as error:
            give_up_program(ctx.text, ctx.whole, error)
            return (None,) * 8 + _differentiable_backward(ctx, lengths, seed, tensors, gradients, needed)
        return (*(None,) * 8, of_input, *of_states, *of_parameters)


def _differentiable_backward(
    ctx: Any, lengths: Tensor | None, seed: Tensor | None, tensors: Any, gradients: Any, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradient of the reference's own operations by torch, which may be differentiated again."""
    once_more = torch.is_grad_enabled()
    with torch.enable_grad():
        tensors = [stand_in(t) if need else t for t, need in zip(tensors, needed, strict=True)]
        states, parameters = tensors[1 : 1 + ctx.count], tensors[1 + ctx.count :]
        output, last = _plain(ctx.again(), ctx.division, tensors[0], states, parameters, lengths, seed, ctx.reverse)
    wanted = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
    pairs = [(r, g) for r, g in zip((output, *last), gradients, strict=True) if r.requires_grad]
    of, by = [r for r, _ in pairs], [g for _, g in pairs]
    found = iter(torch.autograd.grad(of, wanted, by, create_graph=once_more, allow_unused=True))
    return tuple(next(found) if need else None for need in needed)
