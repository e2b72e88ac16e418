"""The reference backend: the program in plain torch, on any dtype, device and transform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pellucid.kernel import random
from pellucid.kernel.program import Program

Tensor = torch.Tensor
Values = dict[str, Any]


def forward(
    program: Program,
    x: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    lengths: Tensor | None = None,
    seed: Tensor | None = None,
    reverse: bool = False,
    save: bool = False,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Run the whole sequence.

    Args:
        program: the scheduled cell.
        x: (time, batch, features).
        states: every entry (batch, features), before the first step.
        parameters: in the order of the formula, in its row convention.
        lengths: (batch,) int64: steps at or beyond a sample's length keep its state and give 0; None: all are real.
        seed: int64 scalar, keys the random draws; needed where the program has draws.
        reverse: from the last step to the first.
        save: whether to return what `backward` reads.

    Returns:
        The output (time, batch, features), the last state, and the saved values.
    """
    time, batch = x.shape[:2]
    fixed = _fixed(program, parameters, x.device)
    values: Values = {**fixed, **_folded_inputs(program, x, seed)}
    folded = program.per_input.run(time * batch, values)
    steps = _by_step({**values, **folded}, program.step.inputs, program, time)
    masks = None if lengths is None else _mask(time, lengths).unsqueeze(-1).unbind()
    run, names, outputs = program.step.function, program.step.inputs, program.step.outputs
    current: dict[str, Tensor] = dict(zip(program.states, states, strict=True))
    kept: dict[str, list[Any]] = {name: [None] * time for name in (program.output, *program.saved_steps)}
    for t in range(time - 1, -1, -1) if reverse else range(time):
        arguments = [current[n] if n in current else steps[n][t] for n in names]
        produced = dict(zip(outputs, run(batch, *arguments), strict=True))
        for name, values_of in kept.items():
            values_of[t] = current[name] if name in current else produced[name]
        new = [produced[name] for name in program.new_states]
        if masks is not None:
            new = [torch.where(masks[t], n, o) for n, o in zip(new, current.values(), strict=True)]
        current = dict(zip(program.states, new, strict=True))
    shape = {program.output: (1, program.output_size)} | dict(program.features)
    shape |= {name: (1, size) for name, size in zip(program.states, program.state_sizes, strict=True)}
    output = _stack(kept[program.output], x, shape[program.output])
    if lengths is not None:
        output = output.masked_fill(~_mask(time, lengths).unsqueeze(-1), 0)
    saved = [folded[name] for name in program.saved_folded] if save else []
    saved += [_stack(kept[name], x, shape[name]) for name in program.saved_steps] if save else []
    return output, list(current.values()), saved


def backward(
    program: Program,
    x: Tensor,
    parameters: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    reverse: bool,
    saved: Sequence[Tensor],
    output_gradient: Tensor,
    state_gradients: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor], list[Tensor | None]]:
    """Return the gradients of input, initial state and parameters (None where ``needed``, input first, says no)."""
    time, batch = x.shape[:2]
    if lengths is not None:
        output_gradient = output_gradient.masked_fill(~_mask(time, lengths).unsqueeze(-1), 0)
    fixed = _fixed(program, parameters, x.device)
    values: Values = {**fixed, **_folded_inputs(program, x, seed)}
    for name, value in zip((*program.saved_folded, *program.saved_steps), saved, strict=True):
        values[name] = value if name in program.saved_folded else value.flatten(0, 1)
    values[program.output_gradient] = output_gradient.flatten(0, 1)
    values |= program.before.run(time * batch, values)
    steps = _by_step(values, program.back_step.inputs, program, time)
    masks = None if lengths is None else _mask(time, lengths).unsqueeze(-1).unbind()
    run, names, outputs = program.back_step.function, program.back_step.inputs, program.back_step.outputs
    left = [name for name in outputs if name in program.after.inputs]
    kept: dict[str, list[Any]] = {name: [None] * time for name in left}
    current = dict(zip(program.state_gradients, state_gradients, strict=True))
    for t in range(time) if reverse else range(time - 1, -1, -1):
        given = current
        if masks is not None:
            given = {name: torch.where(masks[t], gradient, 0) for name, gradient in current.items()}
        arguments = [given[n] if n in given else steps[n][t] for n in names]
        produced = dict(zip(outputs, run(batch, *arguments), strict=True))
        for name, values_of in kept.items():
            values_of[t] = produced[name]
        old = [produced[name] for name in program.old_state_gradients]
        if masks is not None:
            old = [torch.where(masks[t], n, o) for n, o in zip(old, current.values(), strict=True)]
        current = dict(zip(program.state_gradients, old, strict=True))
    for name, values_of in kept.items():
        values[name] = torch.cat(values_of) if values_of else output_gradient.new_empty((0, 0))
    wanted = (program.input_gradient, *program.parameter_gradients)
    after = program.after.only(tuple(dict.fromkeys(n for n, need in zip(wanted, needed, strict=True) if need)))
    results = values | after.run(time * batch, values)
    gradients = [results[name] if need else None for name, need in zip(wanted, needed, strict=True)]
    of_input = gradients[0]
    return None if of_input is None else of_input.reshape(x.shape), list(current.values()), gradients[1:]


def _fixed(program: Program, parameters: Sequence[Tensor], device: torch.device) -> Values:
    """Parameters, constants, and what depends on them alone."""
    values: Values = dict(zip(program.parameters, parameters, strict=True))
    values |= {name: constant.to(device) for name, constant in program.constants.items()}
    return values | program.once.run(0, values)


def _folded_inputs(program: Program, x: Tensor, seed: Tensor | None) -> Values:
    """The input and the random draws of all steps, time folded into the rows."""
    values: Values = {program.input: x.flatten(0, 1)}
    for site, (name, (size, shared)) in enumerate(zip(program.draws, program.sites, strict=True)):
        if seed is None:
            raise ValueError(f"cell {program.name} draws random numbers and needs a seed")
        shape = (1 if shared == "time" else x.shape[0], x.shape[1], size)
        drawn = random.uniform(shape, seed, device=x.device, dtype=x.dtype, stream=site)
        values[name] = drawn.expand(x.shape[0], *shape[1:]).flatten(0, 1)
    return values


def _by_step(
    values: Mapping[str, Any], names: Sequence[str], program: Program, time: int
) -> dict[str, Sequence[Tensor]]:
    """Cut folded values into steps; values without rows are the same at every step."""
    return {
        name: (values[name],) * time if name in program.fixed else _unfold(values[name], time).unbind()
        for name in names
        if name in values
    }


def _unfold(value: Tensor, time: int) -> Tensor:
    """(time·rows, ...) to (time, rows, ...), for no steps and no rows too."""
    return value.reshape(time, value.shape[0] // time if time else 0, *value.shape[1:])


def _stack(values: list[Any], x: Tensor, features: tuple[int, ...]) -> Tensor:
    """Stack the values of all steps; (0, rows, features) for a sequence of none."""
    if values:
        return torch.stack(values)
    return x.new_empty((0, x.shape[1] * features[0], *features[1:]))


def _mask(time: int, lengths: Tensor) -> Tensor:
    """(time, batch), True at real steps."""
    return torch.arange(time, device=lengths.device).unsqueeze(1) < lengths
