"""From a layer's call to a backend: the program by its key, autograd, transforms, and the torch.library operators."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from pellucid.formula.graph import in_plain_torch, trace
from pellucid.formula.schedule import schedule
from pellucid.formula.shapes import solve
from pellucid.formula.source import Source
from pellucid.kernel import naive, stepwise
from pellucid.kernel.program import Program

Tensor = torch.Tensor
BACKENDS = ("auto", "stepwise", "naive")
_sources: dict[str, Source] = {}
_backend: contextvars.ContextVar[str] = contextvars.ContextVar("backend", default="auto")
_building = threading.RLock()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Run recurrent layers by this backend inside a ``with`` block.

    "stepwise" is the scheduled program in plain torch; "naive" is the author's function in a Python loop, the
    definition itself; "auto" picks the fastest that can run the program.

    Raises:
        ValueError: an unknown name.
    """
    if name not in BACKENDS:
        raise ValueError(f"pellucid.backend: the backends are {', '.join(BACKENDS)}, not {name!r}")
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


def chosen_backend() -> str:
    """The name of the backend that runs now."""
    name = _backend.get()
    return "stepwise" if name == "auto" else name


def register(name: str, source: Source) -> str:
    """Make a cell known, and return the name that keys carry: ``module:function``, numbered when it is not the first.

    A function that is defined again (in a notebook, by a factory) is another cell; layers of the first keep theirs.
    """
    count = 1
    unique = name
    while unique in _sources:
        count += 1
        unique = f"{name}#{count}"
    _sources[unique] = source
    return unique


def key(name: str, sizes: Mapping[str, int], hyperparameters: Mapping[str, Any]) -> str:
    """Write what determines a program as text: it stands in compiled and exported graphs."""
    return json.dumps([name, dict(sizes), dict(hyperparameters)], sort_keys=True)


@functools.lru_cache(maxsize=512)
def program(text: str, training: bool, dtype: torch.dtype, device: str) -> Program:
    """Build the program of a key, once."""
    name, sizes, hyperparameters = json.loads(text)

    def build() -> Program:
        source = _find(name)
        solution = solve(source, sizes, hyperparameters)
        return schedule(source, solution, trace(source, solution, hyperparameters, training, dtype, device))

    with _building:
        return in_plain_torch(build)


def _find(name: str) -> Source:
    """Find a cell, importing its module where an exported graph is loaded into a new process."""
    if name not in _sources:
        importlib.import_module(name.split(":")[0])
    if name not in _sources:
        raise RuntimeError(
            f"the cell {name} is unknown in this process; import the module that defines it with @pellucid.cell "
            "before loading a graph that uses it"
        )
    return _sources[name]


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
    with _no_autocast(x):
        if chosen_backend() == "naive":
            return _naive(text, training, reverse, x, states, parameters, lengths, seed)
        built = program(text, training, x.dtype, x.device.type)
        if not differentiable or _transformed():
            # A transform differentiates, maps or dualises the reference itself: plain operations all the way.
            output, last, _ = stepwise.forward(built, x, states, parameters, lengths, seed, reverse)
            return output, last
        output, *last = _Recurrence.apply(built, reverse, lengths, seed, len(states), *tensors)
        return output, last


def _naive(
    text: str,
    training: bool,
    reverse: bool,
    x: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    name, sizes, hyperparameters = json.loads(text)
    source = _find(name)
    sites = solve(source, sizes, hyperparameters).sites if training else ()
    return naive.forward(source, hyperparameters, sites, x, states, parameters, lengths, seed, reverse)


def _no_autocast(x: Tensor) -> Any:
    """The layer has cast its tensors already; a traced program has no casts of its own inside."""
    return contextlib.nullcontext() if autocast_dtype(x) is None else torch.autocast(x.device.type, enabled=False)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that autocast asks for on the device of ``x``, None where it is off."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


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


# -- operators: one node in a compiled or exported graph, whatever the length ------------------------------------


@torch.library.custom_op("pellucid::recurrence", mutates_args=())
def _operator(
    x: Tensor,
    states: list[Tensor],
    parameters: list[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    text: str,
    training: bool,
    reverse: bool,
    save: bool,
) -> list[Tensor]:
    built = program(text, training, x.dtype, x.device.type)
    with _no_autocast(x):
        output, last, saved = stepwise.forward(built, x, states, parameters, lengths, seed, reverse, save)
    return _apart([output, *last, *saved], [x, *states, *parameters])


@_operator.register_fake
def _(
    x: Tensor,
    states: list[Tensor],
    parameters: list[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    text: str,
    training: bool,
    reverse: bool,
    save: bool,
) -> list[Tensor]:
    built = program(text, training, x.dtype, x.device.type)
    time, batch = x.shape[:2]
    results = [x.new_empty((time, batch, built.output_size)), *(torch.empty_like(s) for s in states)]
    if save:
        results += [
            x.new_empty((time * batch * rows, *rest)) for rows, *rest in _saved_shapes(built, built.saved_folded)
        ]
        results += [x.new_empty((time, batch * rows, *rest)) for rows, *rest in _saved_shapes(built, built.saved_steps)]
    return results


def _saved_shapes(built: Program, names: Sequence[str]) -> list[tuple[int, ...]]:
    states = {name: (1, size) for name, size in zip(built.states, built.state_sizes, strict=True)}
    return [(states | dict(built.features))[name] for name in names]


@torch.library.custom_op("pellucid::recurrence_backward", mutates_args=())
def _backward_operator(
    x: Tensor,
    states: list[Tensor],
    parameters: list[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    text: str,
    training: bool,
    reverse: bool,
    saved: list[Tensor],
    gradients: list[Tensor],
) -> list[Tensor]:
    built = program(text, training, x.dtype, x.device.type)
    needed = [True] * (1 + len(parameters))
    with _no_autocast(x):
        of_input, of_states, of_parameters = stepwise.backward(
            built, x, parameters, lengths, seed, reverse, saved, gradients[0], gradients[1:], needed
        )
    results = [g for g in (of_input, *of_states, *of_parameters) if g is not None]
    return _apart(results, [x, *states, *parameters, *saved, *gradients])


@_backward_operator.register_fake
def _(
    x: Tensor,
    states: list[Tensor],
    parameters: list[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    text: str,
    training: bool,
    reverse: bool,
    saved: list[Tensor],
    gradients: list[Tensor],
) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (x, *states, *parameters)]


def _apart(results: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Results of an operator share no memory with its arguments or with each other, and are contiguous."""
    taken = {t.untyped_storage()._cdata for t in others}
    apart = []
    for result in results:
        if not result.is_contiguous() or result.untyped_storage()._cdata in taken:
            result = result.contiguous().clone()
        taken.add(result.untyped_storage()._cdata)
        apart.append(result)
    return apart


def _remember(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, states, parameters, lengths, seed, ctx.text, ctx.training, ctx.reverse, _ = inputs
    ctx.counts = (len(states), len(parameters))
    ctx.save_for_backward(lengths, seed, x, *states, *parameters, *output[1 + len(states) :])


def _operator_backward(ctx: Any, gradients: list[Tensor]) -> Any:
    lengths, seed, x, *rest = ctx.saved_tensors
    states, parameters = ctx.counts
    results = torch.ops.pellucid.recurrence_backward(
        x,
        rest[:states],
        rest[states : states + parameters],
        lengths,
        seed,
        ctx.text,
        ctx.training,
        ctx.reverse,
        rest[states + parameters :],
        gradients[: 1 + states],
    )
    of_states, of_parameters = results[1 : 1 + states], results[1 + states :]
    return results[0], list(of_states), list(of_parameters), None, None, None, None, None, None


_operator.register_autograd(_operator_backward, setup_context=_remember)
