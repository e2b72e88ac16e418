"""The torch.library operators: one node in a compiled or exported graph, whatever the length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pellucid.kernel.autocast import no_autocast
from pellucid.kernel.recurrence.call import Call
from pellucid.kernel.recurrence.chunks import Division, divided
from pellucid.kernel.recurrence.runners import runner

Tensor = torch.Tensor
TENSORS = "Tensor x, Tensor[] states, Tensor[] parameters, Tensor? lengths, Tensor? seed"
ARGUMENTS = f"{TENSORS}, str text, bool training, bool reverse, int checkpoint_every, int truncate"


@torch.library.custom_op("pellucid::recurrence", mutates_args=(), schema=f"({ARGUMENTS}, bool save) -> Tensor[]")
def _operator(x, states, parameters, lengths, seed, text, training, reverse, checkpoint_every, truncate, save):
    run = divided(runner(text, training, x.dtype, x.device.type, save), Division(checkpoint_every, truncate))
    with no_autocast(x):
        output, last, saved = run.forward(Call(x, parameters, lengths, seed, reverse), states, save)
    return _apart([output, *last, *saved], [x, *states, *parameters])


@_operator.register_fake
def _(x, states, parameters, lengths, seed, text, training, reverse, checkpoint_every, truncate, save):
    built = runner(text, training, x.dtype, x.device.type, save).program
    time, batch = x.shape[:2]
    results = [x.new_empty((time, batch, *built.features[built.output][1:])), *(torch.empty_like(s) for s in states)]
    if save and checkpoint_every:
        results += [s.new_empty((-(-time // checkpoint_every), *s.shape)) for s in states]
    elif save:
        for name in (*built.saved_folded, *built.saved_steps):
            rows, *rest = built.features[name]
            lead = (time * batch * rows,) if name in built.saved_folded else (time, batch * rows)
            results.append(x.new_empty((*lead, *rest), dtype=built.dtypes[name]))
    return results


@torch.library.custom_op(
    "pellucid::recurrence_backward",
    mutates_args=(),
    schema=f"({ARGUMENTS}, Tensor[] saved, Tensor[] gradients) -> Tensor[]",
)
def _backward_operator(  # of the types in the schema, as all functions of an operator
    x, states, parameters, lengths, seed, text, training, reverse, checkpoint_every, truncate, saved, gradients
):
    run = divided(runner(text, training, x.dtype, x.device.type, True), Division(checkpoint_every, truncate))
    needed = [True] * (1 + len(parameters))
    with no_autocast(x):
        of_input, of_states, of_parameters = run.backward(
            Call(x, parameters, lengths, seed, reverse), saved, gradients[0], gradients[1:], needed
        )
    results = [g for g in (of_input, *of_states, *of_parameters) if g is not None]
    return _apart(results, [x, *states, *parameters, *saved, *gradients])


@_backward_operator.register_fake
def _(x, states, parameters, *_):
    return [t.new_empty(t.shape) for t in (x, *states, *parameters)]


def _apart(results: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Results of an operator share no memory with its arguments or each other, and fill theirs from its beginning."""
    taken = {t.untyped_storage()._cdata for t in others}
    apart = []
    for result in results:
        if not result.is_contiguous() or result.storage_offset() or result.untyped_storage()._cdata in taken:
            result = result.contiguous().clone()
        taken.add(result.untyped_storage()._cdata)
        apart.append(result)
    return apart


def _remember(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, states, parameters, lengths, seed, *ctx.options, _ = inputs
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
        *ctx.options,
        rest[states + parameters :],
        gradients[: 1 + states],
    )
    of_states, of_parameters = results[1 : 1 + states], results[1 + states :]
    return results[0], list(of_states), list(of_parameters), *(None,) * 8


_operator.register_autograd(_operator_backward, setup_context=_remember)
