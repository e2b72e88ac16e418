"""The reference backend: the program in plain torch, on any dtype, device and transform."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pellucid.formula.program import Program, Stage, placeholder
from pellucid.kernel import random
from pellucid.kernel.recurrence.call import Call, OneByOne

Tensor = torch.Tensor
Values = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Stepwise(OneByOne):
    """A program run by torch's own operations."""

    program: Program
    name = "stepwise"

    def forward(
        self, call: Call, states: Sequence[Tensor], save: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Run the whole sequence.

        Args:
            call: what is read.
            states: every entry (batch, features), before the first step.
            save: whether to return what `backward` reads.

        Returns:
            The output (time, batch, features), the last state, and the saved values.
        """
        program = self.program
        values = given_values(program, call, program.per_input, program.step)
        folded = program.per_input.run(call.time * call.batch, values)
        masks = _masks(call)
        loop = _loop(program.step, program.states, program.new_states, program.fixed)
        order = range(call.time - 1, -1, -1) if call.reverse else range(call.time)
        wanted = (program.output, *(program.saved_steps if save else ()))
        last, kept = loop.run(order, call.batch, list(states), values | folded, masks, wanted)
        output, *saved = (_stack(kept[name], call.x, program.features[name]) for name in wanted)
        if masks is not None:
            output = output.masked_fill(~masks, 0)
        return output, last, [folded[name] for name in program.saved_folded if save] + saved

    def backward(
        self,
        call: Call,
        saved: Sequence[Tensor],
        output_gradient: Tensor,
        state_gradients: Sequence[Tensor],
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor | None]]:
        """Return the gradients of input, initial state and parameters, None where ``needed`` (input first) is False."""
        program, rows = self.program, call.time * call.batch
        if call.time == 0:
            return no_gradients(program, call, state_gradients)
        values = given_values(program, call, program.before, program.back_step, program.after)
        for name, value in zip((*program.saved_folded, *program.saved_steps), saved, strict=True):
            values[name] = value if name in program.saved_folded else value.flatten(0, 1)
        values[program.output_gradient] = at_real_steps(output_gradient, call.lengths).flatten(0, 1)
        values |= program.before.run(rows, values)
        loop = _loop(program.back_step, program.state_gradients, program.old_state_gradients, program.fixed)
        order = range(call.time) if call.reverse else range(call.time - 1, -1, -1)
        wanted = tuple(name for name in program.back_step.outputs if name in program.after.inputs)
        last, kept = loop.run(order, call.batch, list(state_gradients), values, _masks(call), wanted, zero_masked=True)
        for name in wanted:
            values[name] = torch.cat(kept[name])
        values |= after_loop(program, call, needed).run(rows, values)
        of_input, of_parameters = gradients(program, values, needed, call)
        return of_input, last, of_parameters


def no_gradients(
    program: Program, call: Call, state_gradients: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """The gradients of a sequence of no steps."""
    of_parameters = [
        torch.zeros_like(p) if trained else None for p, trained in zip(call.parameters, program.trained, strict=True)
    ]
    return torch.zeros_like(call.x), list(state_gradients), of_parameters


def at_real_steps(output: Tensor, lengths: Tensor | None) -> Tensor:
    """The output or its gradient, 0 at steps that are not real."""
    if lengths is None:
        return output
    return output.masked_fill(~_mask(output.shape[0], lengths).unsqueeze(-1), 0)


def after_loop(program: Program, call: Call, needed: Sequence[bool]) -> Stage:
    """What is done behind backward's loop, as far as it is needed."""
    names = _gradient_names(program, needed)
    wanted = tuple(dict.fromkeys(filter(None, names)))
    # The gradient of a parameter that is a transposed view (torch's weights) gets its layout: nobody has to copy it.
    turned = tuple(n for n, p in zip(names[1:], call.parameters, strict=True) if n and _is_transposed(p))
    return program.after.only(wanted, turned)


def _gradient_names(program: Program, needed: Sequence[bool]) -> list[str | None]:
    """The names of the gradients of input and parameters; None where nobody needs it, or there is none."""
    names = (program.input_gradient, *program.parameter_gradients)
    wanted = zip(names, needed, (True, *program.trained), strict=True)
    return [name if need and there else None for name, need, there in wanted]


def gradients(
    program: Program, results: Values, needed: Sequence[bool], call: Call
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of input and parameters, of the values behind the loop."""
    of_input, *of_parameters = (results[name] if name else None for name in _gradient_names(program, needed))
    return None if of_input is None else of_input.reshape(call.x.shape), of_parameters


def _is_transposed(matrix: Tensor) -> bool:
    return matrix.dim() == 2 and not matrix.is_contiguous() and matrix.stride(0) == 1


@dataclass(frozen=True)
class _Loop:
    """A stage that is run at every step; its function takes rows, states, what changes by step, what does not."""

    function: Callable[..., tuple[Tensor, ...]]
    states: tuple[str, ...]
    by_step: tuple[str, ...]
    fixed: tuple[str, ...]
    outputs: tuple[str, ...]  # the new states first

    def run(
        self,
        order: Sequence[int],
        rows: int,
        states: list[Tensor],
        values: Values,
        masks: Tensor | None,
        wanted: Sequence[str],
        zero_masked: bool = False,
    ) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """Return the last states, and the wanted values (results, or states before the step) in order of time.

        Where a mask is False a state stays; with ``zero_masked`` the step itself sees zeros there.
        """
        steps = [_unfold(values[name], len(order)).unbind() for name in self.by_step]
        fixed = [values[name] for name in self.fixed]
        real = None if masks is None else masks.unbind()
        count, function = len(states), self.function
        places = [(*self.outputs, *self.states).index(name) for name in wanted]
        seen: list[Any] = [None] * len(order)
        for t in order:
            given = states
            if real is not None and zero_masked:
                given = [torch.where(real[t], state, 0) for state in states]
            produced = function(rows, *given, *[step[t] for step in steps], *fixed)
            every = (*produced, *given)
            seen[t] = [every[place] for place in places]
            new = produced[:count]
            states = [torch.where(real[t], n, o) for n, o in zip(new, states, strict=True)] if real else list(new)
        return states, {name: [values[i] for values in seen] for i, name in enumerate(wanted)}


@functools.cache
def _loop(stage: Stage, states: tuple[str, ...], new: tuple[str, ...], fixed: frozenset[str]) -> _Loop:
    """Order a stage for the loop, and write it in as few torch calls as it takes."""
    by_step = tuple(n for n in stage.inputs if n not in states and n not in fixed)
    same = tuple(n for n in stage.inputs if n in fixed)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    placeholders = stage.placeholders
    for name in ("rows", *states, *by_step, *same):
        made = placeholder(graph, name)
        if name in placeholders:
            copies[placeholders[name]] = made
    returned = next(n for n in stage.graph.nodes if n.op == "output").args[0]
    for node in stage.graph.nodes:
        if node.op not in ("placeholder", "output"):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    results = dict(zip(stage.outputs, returned, strict=True))
    outputs = (*new, *(name for name in stage.outputs if name not in new))
    graph.output(tuple(copies[results[name]] for name in outputs))
    _shorten(graph)
    return _Loop(fx.GraphModule(torch.nn.Module(), graph).forward, states, by_step, same, outputs)


_AS_TORCH = {
    getattr(getattr(torch.ops.aten, name), overload): getattr(torch, name)
    for overload, names in {
        "default": "mm addmm tanh sigmoid relu exp log neg abs sqrt rsqrt reciprocal cat erf sin cos",
        "Tensor": "add sub mul div",
    }.items()
    for name in names.split()
}


def _shorten(graph: fx.Graph) -> None:
    """Make a product and a sum one call, and call torch's own functions, which cost half of an overload's call."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.add.Tensor and not node.kwargs:
            products = [a for a in node.args if isinstance(a, fx.Node) and a.target is torch.ops.aten.mm.default]
            whole = (a for a in reversed(products) if a.meta["val"].shape == node.meta["val"].shape)
            product = next((a for a in whole if len(a.users) == 1), None)
            other = next((a for a in node.args if a is not product), None)
            if product is not None and isinstance(other, fx.Node):
                node.target, node.args = torch.ops.aten.addmm.default, (other, *product.args)
                graph.erase_node(product)
    for node in graph.nodes:
        first = node.args[0] if node.args else None
        if node.target in _AS_TORCH and (isinstance(first, fx.Node) or node.target is torch.ops.aten.cat.default):
            node.target = _AS_TORCH[node.target]


def given_values(program: Program, call: Call, *stages: Stage) -> Values:
    """What stages read that is there before any of them runs.

    That is parameters, constants, and what depends on them alone; and with time folded into the rows the input, and the
    random draws that the stages read.
    """
    values: Values = dict(zip(program.parameters, call.parameters, strict=True))
    for name, constant in program.constants.items():
        values[name] = constant.to(call.x.device)
    if program.once.outputs:
        values |= program.once.run(0, values)
    values[program.input] = call.x.flatten(0, 1)
    for site, (name, (size, shared)) in enumerate(zip(program.draws, program.sites, strict=True)):
        if any(name in stage.inputs for stage in stages):
            values[name] = site_draws(call, size, shared, site).flatten(0, 1)
    return values


def site_draws(call: Call, size: int, shared: str | None, site: int) -> Tensor:
    """The numbers of a random site of the formula at every step, float32 (time, batch, size)."""
    if call.seed is None:
        raise ValueError("a formula that draws random numbers needs a seed")
    shape = (1 if shared == "time" else call.time, call.batch, size)
    before = 0 if shared == "time" else call.start * call.batch * size
    drawn = random.uniform(shape, call.seed, device=call.x.device, stream=site, offset=before)
    return drawn.expand(call.time, *shape[1:])


def _unfold(value: Tensor, time: int) -> Tensor:
    """(time·rows, ...) to (time, rows, ...), for no steps and no rows too."""
    return value.reshape(time, value.shape[0] // time if time else 0, *value.shape[1:])


def _stack(values: list[Any], x: Tensor, features: tuple[int, ...]) -> Tensor:
    """Stack the values of all steps; (0, rows, features) for a sequence of none, with a gradient as of any other."""
    if values:
        return torch.stack(values)
    return x.new_empty((0, x.shape[1] * features[0], *features[1:])) + x.sum()


def _masks(call: Call) -> Tensor | None:
    """(time, batch, 1), True at real steps; None where all are."""
    return None if call.lengths is None else _mask(call.time, call.lengths).unsqueeze(-1)


def _mask(time: int, lengths: Tensor) -> Tensor:
    """(time, batch), True at real steps."""
    return torch.arange(time, device=lengths.device).unsqueeze(1) < lengths
