"""From a layer's call to a backend: which one runs, autograd, transforms and autocast."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch._C import _TorchDispatchModeKey as _ModeKey
from torch._subclasses.fake_tensor import FakeTensor

from pellucid.kernel.autocast import no_autocast
from pellucid.kernel.build import BuildError
from pellucid.kernel.random import in_memory
from pellucid.kernel.recurrence import naive, operators  # noqa: F401 (operators registers torch.ops.pellucid)
from pellucid.kernel.recurrence.call import Call
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
    text: str, training: bool, call: Call, states: Sequence[Tensor], division: Division = WHOLE
) -> tuple[Tensor, list[Tensor], str]:
    """Run a cell over a sequence, differentiable in input, states and parameters.

    Args:
        text: the program's `key`.
        training: whether random draws take place.
        call: what is read; its seed is None where nothing is drawn.
        states: (batch, features) each.
        division: whether the sequence is taken in chunks.

    Returns:
        Output (time, batch, features), the last state, and the name of the backend that ran ("" where none ran: a
        compiler asks, an exporter or a tracer).
    """
    x, parameters, lengths, seed, reverse, _ = call
    tensors = [x, *states, *parameters]
    differentiable = (torch.is_grad_enabled() or _traced()) and any(t.requires_grad for t in tensors)
    if _recorded(tensors):
        if _has_no_operator(text, x.is_complex()):
            return *_unrolled(x, list(states), list(parameters), lengths, seed, text, training, reverse, *division), ""
        results = torch.ops.pellucid.recurrence(
            x, list(states), list(parameters), lengths, seed, text, training, reverse, *division, differentiable
        )
        return results[0], list(results[1 : 1 + len(states)]), ""
    # A kernel reads memory, in which z.conj().imag, say, has other numbers.
    x, *rest = tensors = [t.resolve_neg() for t in tensors]
    states, call = rest[: len(states)], call._replace(x=x, parameters=rest[len(states) :])
    with no_autocast(x):
        if chosen_backend() == "naive" or x.is_complex():
            return *_defined(text, training, division, call, states), "naive"
        if _transformed() or not in_memory(*tensors):  # these differentiate, map, dualise or answer plain operations
            return *_differentiable(text, training, division, call, states), _reference(text, training, call).name

        def compute(run: Runner) -> tuple[Tensor, list[Tensor], str]:
            if not differentiable:
                return *plainly(run.forward, division, call, states), run.name
            way = _Way(run, text, training, division, reverse, len(states))
            output, *last = _Recurrence.apply(way, lengths, seed, *tensors)
            return output, last, run.name

        run = runner(text, training, x.dtype, x.device.type, differentiable)
        try:
            return compute(run)
        except BuildError as error:
            give_up_program(text, run, error)
            return compute(_reference(text, training, call))


def _defined(
    text: str, training: bool, division: Division, call: Call, states: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Output and last state by the author's function; of no steps, which it says nothing of, by the reference."""
    if not call.time:
        return plainly(_reference(text, training, call).forward, division, call, states)
    return plainly(functools.partial(naive.forward, *definition(text, training)), division, call, states)


def _differentiable(
    text: str, training: bool, division: Division, call: Call, states: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Output and last state by operations that torch may differentiate: the reference's own, or the author's.

    Gradients are derived for real numbers; those of complex ones are torch's.
    """
    if call.x.is_complex():
        return _defined(text, training, division, call, states)
    run = _reference(text, training, call)
    if run.program.own_gradient:
        return _defined(text, training, division, call, states)
    return plainly(run.forward, division, call, states)


def _reference(text: str, training: bool, call: Call) -> Runner:
    return reference(text, training, call.x.dtype, call.x.device.type)


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


def _has_no_operator(text: str, of_complex: bool) -> bool:
    """Whether a graph cannot have the operator: complex numbers, a transform is compiled too, or it is for ONNX."""
    for_onnx = torch.onnx.is_in_onnx_export()
    if for_onnx:
        warn_of_unrolling(text)
    if not (for_onnx or of_complex or _transformed()):
        return False
    if "torch._dynamo" in sys.modules:  # to import it takes 1.3 s; where it is not loaded, nothing compiles
        torch._dynamo.allow_in_graph(_unrolled)
    return True


_has_no_operator._dynamo_marked_constant = True  # type: ignore[attr-defined]  # it is called, not compiled


def _unrolled(
    x: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    text: str,
    training: bool,
    reverse: bool,
    checkpoint_every: int,
    truncate: int,
) -> tuple[Tensor, list[Tensor]]:
    """The steps one by one, in plain torch; a compiler looks inside with all transforms around it."""
    call = Call(x, parameters, lengths, seed, reverse)
    return _differentiable(text, training, Division(checkpoint_every, truncate), call, states)


def _transformed() -> bool:
    """Whether torch.func or forward-mode differentiation surrounds the call."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


class _Way(NamedTuple):
    """How a recurrence is run; the state has so many ``entries``."""

    run: Runner
    text: str
    training: bool
    division: Division
    reverse: bool
    entries: int

    def call(self, lengths: Tensor | None, seed: Tensor | None, tensors: Sequence[Tensor]) -> Call:
        """The call, its tensors in the order in which autograd has them."""
        return Call(tensors[0], tensors[1 + self.entries :], lengths, seed, self.reverse)

    def states(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The states of the same."""
        return tensors[1 : 1 + self.entries]


class _Recurrence(torch.autograd.Function):
    """The program with its derived gradient."""

    @staticmethod
    def forward(ctx: Any, way: _Way, lengths: Any, seed: Any, *tensors: Tensor) -> Any:
        run = divided(way.run, way.division)
        output, last, saved = run.forward(way.call(lengths, seed, tensors), way.states(tensors), save=True)
        ctx.run, ctx.way = run, way
        ctx.save_for_backward(lengths, seed, *tensors, *saved)
        return (output, *last)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        way = ctx.way
        lengths, seed, *rest = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        tensors, saved = rest[: len(needed)], rest[len(needed) :]
        gradients = tuple([gradient.resolve_neg() for gradient in gradients])
        mapped = any(map(torch._C._functorch.is_legacy_batchedtensor, gradients))
        if not torch.is_grad_enabled() and not mapped and in_memory(*gradients):
            call, wanted = way.call(lengths, seed, tensors), (needed[0], *needed[1 + way.entries :])
            try:
                of_input, of_states, of_parameters = ctx.run.backward(call, saved, gradients[0], gradients[1:], wanted)
            except BuildError as error:
                give_up_program(way.text, way.run, error)
            else:
                return (None, None, None, of_input, *of_states, *of_parameters)
        return (None, None, None, *_differentiable_backward(way, lengths, seed, tensors, gradients, needed))


def _differentiable_backward(
    way: _Way, lengths: Tensor | None, seed: Tensor | None, tensors: Any, gradients: Any, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradient of the reference's own operations, or the author's, by torch, which may be differentiated again."""
    once_more = torch.is_grad_enabled()
    with torch.enable_grad():
        tensors = [stand_in(t) if need else t for t, need in zip(tensors, needed, strict=True)]
        call = way.call(lengths, seed, tensors)
        output, last = _differentiable(way.text, way.training, way.division, call, way.states(tensors))
    wanted = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
    pairs = [(r, g) for r, g in zip((output, *last), gradients, strict=True) if r.requires_grad]
    of, by = [r for r, _ in pairs], [g for _, g in pairs]
    found = iter(torch.autograd.grad(of, wanted, by, create_graph=once_more, allow_unused=True))
    return tuple(next(found) if need else None for need in needed)
