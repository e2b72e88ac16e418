"""From a layer's call to a backend: which one runs, autograd, transforms and autocast."""

from __future__ import annotations

import functools
import itertools
import operator
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch._C import _TorchDispatchModeKey as _ModeKey
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from pellucid.kernel.autocast import no_autocast
from pellucid.kernel.backends import chosen_backend
from pellucid.kernel.build import BuildError
from pellucid.kernel.recurrence import naive, operators  # noqa: F401 (operators registers torch.ops.pellucid)
from pellucid.kernel.recurrence.call import Backward, Call, every
from pellucid.kernel.recurrence.chunks import WHOLE, Division, divided, plainly
from pellucid.kernel.recurrence.few_steps import by_definition
from pellucid.kernel.recurrence.runners import Runner, give_up_program, reference, runner, warn_of_unrolling
from pellucid.kernel.registry import definition
from pellucid.kernel.tensors import in_memory, stand_in, unseen

Tensor = torch.Tensor
Result = tuple[Tensor, list[Tensor]]  # output (time, batch, features), and the last state


def recurrence(
    text: str, training: bool, calls: Sequence[Call], states: Sequence[Sequence[Tensor]], division: Division = WHOLE
) -> tuple[list[Result], str]:
    """Run a cell over a sequence in one direction or several, differentiable in input, states and parameters.

    Args:
        text: the program's `key`.
        training: whether random draws take place.
        calls: what is read, one call for each direction; their input and lengths are the same. A seed is None where
            nothing is drawn.
        states: of each call, (batch, features) each.
        division: whether the sequence is taken in chunks.

    Returns:
        The result of each call, and the name of the backend that ran ("" where none ran: a compiler asks, an exporter
        or a tracer).
    """
    tensors = every(calls, states)
    each = [(text, training, division, *given) for given in zip(calls, states, strict=True)]
    differentiable = (torch.is_grad_enabled() or _traced()) and any(t.requires_grad for t in tensors)
    plain = unseen(*tensors) and not has_torch_function(tensors)
    if not plain:
        if _recorded(tensors):
            return [_noted(*given, differentiable) for given in each], ""
        if has_torch_function(tensors):  # of a class that keeps itself, say, or that writes down what is called
            return handle_torch_function(recurrence, tensors, text, training, calls, states, division)
        if True in [t.is_neg() for t in tensors]:  # z.conj().imag, say: in memory, that a kernel reads, are others
            calls = [c._replace(x=c.x.resolve_neg(), parameters=[p.resolve_neg() for p in c.parameters]) for c in calls]
            states = [[s.resolve_neg() for s in own] for own in states]
            return recurrence(text, training, calls, states, division)
    x = tensors[0]
    with no_autocast(x):
        if chosen_backend() == "naive" or x.is_complex():
            return [_defined(*given) for given in each], "naive"
        # These differentiate, map, dualise, count or answer plain operations.
        if not plain and (_transformed() or _counted() or not in_memory(*tensors)):
            return [_differentiable(*given) for given in each], _reference(text, training, calls[0]).name
        wanted = tuple([t.requires_grad for t in tensors]) if differentiable else ()
        if plain and division == WHOLE and by_definition(text, training, calls, states, wanted, recurrence):
            return [_defined(*given) for given in each], "naive"

        def compute(run: Runner) -> tuple[list[Result], str]:
            if not differentiable:
                return [found[:2] for found in divided(run, division).forward_all(calls, states)], run.name
            directions = tuple([(c.reverse, len(c.parameters)) for c in calls])
            way = _Way(run, text, training, division, directions, len(states[0]))
            results = _Recurrence.apply(way, calls[0].lengths, [c.seed for c in calls], *tensors)
            return [(output, list(last)) for output, *last in _groups(results, 1 + way.entries)], run.name

        run = runner(text, training, x.dtype, x.device.type, differentiable)
        try:
            return compute(run)
        except BuildError as error:
            give_up_program(text, run, error)
            return compute(_reference(text, training, calls[0]))


def _of_each(way: _Way, values: Sequence[Any]) -> list[Sequence[Any]]:
    """What belongs to states and parameters of each direction, of values in the order in which autograd has them."""
    ends = list(itertools.accumulate([way.entries + count for _, count in way.directions], initial=0))
    return [values[first:end] for first, end in itertools.pairwise(ends)]


def _given(
    way: _Way, lengths: Tensor | None, seeds: Sequence[Tensor | None], tensors: Sequence[Tensor]
) -> tuple[list[Call], list[Sequence[Tensor]]]:
    """The calls and their states, of the input and what belongs to each direction."""
    x, *rest = tensors
    parts = _of_each(way, rest)
    calls = [
        Call(x, own[way.entries :], lengths, seed, reverse)
        for (reverse, _), seed, own in zip(way.directions, seeds, parts, strict=True)
    ]
    return calls, [own[: way.entries] for own in parts]


def _groups(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Values in groups of a size."""
    return [values[i : i + size] for i in range(0, len(values), size)]


def _noted(
    text: str, training: bool, division: Division, call: Call, states: Sequence[Tensor], differentiable: bool
) -> Result:
    """A call as a node of a graph."""
    x, parameters, lengths, seed, reverse, _ = call
    given = (x, list(states), list(parameters), lengths, seed, text, training, reverse, *division)
    if _has_no_operator(text, x.is_complex()):
        return _unrolled(*given)
    results = torch.ops.pellucid.recurrence(*given, differentiable)
    return results[0], list(results[1 : 1 + len(states)])


def _defined(text: str, training: bool, division: Division, call: Call, states: Sequence[Tensor]) -> Result:
    """Output and last state by the author's function; of no steps, which it says nothing of, by the reference."""
    if not call.time:
        return plainly(_reference(text, training, call).forward, division, call, states)
    return plainly(functools.partial(naive.forward, *definition(text, training)), division, call, states)


def _differentiable(text: str, training: bool, division: Division, call: Call, states: Sequence[Tensor]) -> Result:
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


def _unrolled(x, states, parameters, lengths, seed, text, training, reverse, checkpoint_every, truncate):
    """What the operator computes step by step, in plain torch; a compiler looks inside with all transforms around."""
    call = Call(x, parameters, lengths, seed, reverse)
    return _differentiable(text, training, Division(checkpoint_every, truncate), call, states)


def _transformed() -> bool:
    """Whether torch.func or forward-mode differentiation surrounds the call."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _counted() -> bool:
    """Whether torch counts the operations of the call (torch.utils.flop_counter), which no kernel shows it."""
    modes = _get_current_dispatch_mode_stack()
    return any(type(mode).__module__ == "torch.utils.flop_counter" for mode in modes)


class _Way(NamedTuple):
    """How calls are run.

    ``directions`` say of each whether it is reversed and how many parameters it has; its state has so many ``entries``.
    """

    run: Runner
    text: str
    training: bool
    division: Division
    directions: Sequence[tuple[bool, int]]
    entries: int


class _Recurrence(torch.autograd.Function):
    """The program with its derived gradient."""

    @staticmethod
    def forward(ctx: Any, way: _Way, lengths: Any, seeds: Any, *tensors: Tensor) -> Any:
        results = divided(way.run, way.division).forward_all(*_given(way, lengths, seeds, tensors), save=True)
        ctx.way, ctx.count = way, len(tensors)
        ctx.save_for_backward(lengths, *seeds, *tensors, *[t for _, _, saved in results for t in saved])
        return tuple([t for output, last, _ in results for t in (output, *last)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        way = ctx.way
        lengths, *rest = ctx.saved_tensors
        seeds, rest = rest[: len(way.directions)], rest[len(way.directions) :]
        tensors, saved = rest[: ctx.count], rest[ctx.count :]
        needed = ctx.needs_input_grad[3:]
        gradients = tuple([gradient.resolve_neg() for gradient in gradients])
        calls, _ = _given(way, lengths, seeds, tensors)
        mapped = any(map(torch._C._functorch.is_legacy_batchedtensor, gradients))
        if not torch.is_grad_enabled() and not mapped and in_memory(*gradients):
            try:
                return None, None, None, *_backward(way, calls, saved, gradients, needed)
            except BuildError as error:
                give_up_program(way.text, way.run, error)
        return None, None, None, *_differentiable_backward(way, lengths, seeds, tensors, gradients, needed)


def _backward(
    way: _Way, calls: Sequence[Call], saved: Sequence[Tensor], gradients: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of all tensors by the runner's backward."""
    size = len(saved) // len(calls)
    given = [
        Backward(
            call,
            saved[i * size : (i + 1) * size],
            output_gradient,
            state_gradients,
            (needed[0], *of_own[way.entries :]),
        )
        for i, (call, (output_gradient, *state_gradients), of_own) in enumerate(
            zip(calls, _groups(gradients, 1 + way.entries), _of_each(way, needed[1:]), strict=True)
        )
    ]
    results = divided(way.run, way.division).backward_all(given)
    of_input = [found for found, _, _ in results]
    total = functools.reduce(operator.add, of_input) if needed[0] else None
    return [total, *[g for _, of_states, of_parameters in results for g in (*of_states, *of_parameters)]]


def _differentiable_backward(
    way: _Way,
    lengths: Tensor | None,
    seeds: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    gradients: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradient of the reference's own operations, or the author's, by torch, which may be differentiated again."""
    once_more = torch.is_grad_enabled()
    results: list[Tensor] = []
    with torch.enable_grad():
        tensors = [stand_in(t) if need else t for t, need in zip(tensors, needed, strict=True)]
        for given in zip(*_given(way, lengths, seeds, tensors), strict=True):
            output, last = _differentiable(way.text, way.training, way.division, *given)
            results += (output, *last)
    wanted = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
    pairs = [(r, g) for r, g in zip(results, gradients, strict=True) if r.requires_grad]
    of, by = [r for r, _ in pairs], [g for _, g in pairs]
    found = iter(torch.autograd.grad(of, wanted, by, create_graph=once_more, allow_unused=True))
    return [next(found) if need else None for need in needed]
