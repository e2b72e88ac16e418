"""A program whose loops are fused, in whatever language: what is done before and behind them, and their memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pellucid.kernel import memory
from pellucid.kernel.language.layout import Layout, real_of
from pellucid.kernel.program import Program
from pellucid.kernel.recurrence.call import Call
from pellucid.kernel.recurrence.products import apart
from pellucid.kernel.recurrence.stepwise import (
    Values,
    after_loop,
    at_real_steps,
    given_values,
    gradients,
    no_gradients,
)


class Fused:
    """A program with fused loops: the same methods as `stepwise.Stepwise`.

    ``given_up`` says that its kernels turned out not to compile.
    """

    name: str
    given_up = False

    def __init__(self, program: Program, dtype: torch.dtype) -> None:
        self.program, self.dtype = program, dtype
        self._loading = threading.Lock()
        self._loops: dict[bool, Mapping[str, FusedLoop]] = {}
        self._before = apart(program.before)
        # Values of the loop are (time, batch, features).
        outputs = [name for name, value in program.back_step.results.items() if value.rows]
        self._by_step = frozenset((program.output_gradient, *program.saved_steps, *outputs))

    def loops(self, training: bool) -> Mapping[str, FusedLoop]:
        """The loops, of inference or of training, made when they are first asked for.

        Raises:
            Unsupported: an operation cannot be written.
            BuildError: they could not be compiled.
        """
        with self._loading:
            if training not in self._loops:
                self._loops[training] = self._build(training)
            return self._loops[training]

    def _build(self, training: bool) -> Mapping[str, FusedLoop]:
        raise NotImplementedError

    def forward(
        self, call: Call, states: Sequence[Tensor], save: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Run the whole sequence: as `stepwise.Stepwise.forward`."""
        program, x, time, batch = self.program, call.x, call.time, call.batch
        loop = self.loops(save)["forward"]
        values = given_values(program, call, program.per_input)
        values |= program.per_input.run(time * batch, values)
        saved = program.saved_steps if save else ()
        whole = {loop.state_of.get(name, name) for name in saved}
        output_state = loop.layout.output_is_state
        outputs = {}
        if output_state is not None:
            if call.lengths is None and (not save or loop.copies_output):
                whole.add(program.states[output_state])
            else:  # padded steps are 0 in the output alone; what backward reads is not the user's to change in place
                outputs["output"] = loop.empty((time, batch, states[output_state].shape[-1]), x.dtype, x.device)
        slots = [time + 1 if state in whole else 2 for state in program.states]
        history, last = loop.run(call, values, states, outputs, slots)
        output = outputs.get("output", outputs.get(program.output))  # its steps that are not real are 0, a state's stay
        if save and program.output_is_saved:
            output = at_real_steps(outputs[program.output], call.lengths)
        for state, new, kept in zip(program.states, program.new_states, history, strict=True):
            if kept.shape[0] == time + 1:
                older, newer = kept[:-1], kept[1:]
                outputs[state], outputs[new] = (newer, older) if call.reverse else (older, newer)
        if output is None:
            output = outputs[program.output].clone() if save and loop.copies_output else outputs[program.output]
        folded = [values[name] for name in program.saved_folded] if save else []
        return output, last, folded + [outputs[name] for name in saved]

    def backward(
        self,
        call: Call,
        saved: Sequence[Tensor],
        output_gradient: Tensor,
        state_gradients: Sequence[Tensor],
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor | None]]:
        """Return the gradients of input, initial state and parameters: as `stepwise.Stepwise.backward`."""
        program, rows = self.program, call.time * call.batch
        if call.time == 0:
            return no_gradients(call, state_gradients)
        loop = self.loops(True)["backward"]
        values = given_values(program, call, program.before, program.after)
        values |= zip((*program.saved_folded, *program.saved_steps), saved, strict=True)
        values[program.output_gradient] = at_real_steps(output_gradient, call.lengths)
        values |= self._before.run(rows, values, self._by_step)
        outputs: dict[str, Tensor] = {}
        slots = [2] * len(program.states)
        _, last = loop.run(call._replace(reverse=not call.reverse), values, state_gradients, outputs, slots)
        values |= outputs
        values |= apart(after_loop(program, call, needed)).run(rows, values, self._by_step)
        of_input, of_parameters = gradients(program, values, needed, call)
        return of_input, [g.to(call.x.dtype) for g in last], of_parameters


class FusedLoop:
    """One loop over time, and the memory that it is given.

    ``copies_output`` says that an output which is a state is copied behind the loop sooner than written twice in it.
    """

    copies_output = False

    def __init__(self, layout: Layout, program: Program, dtype: torch.dtype) -> None:
        self.layout = layout
        self.real = getattr(torch, real_of(dtype))
        self.state_dtype = getattr(torch, layout.state_storage)
        self.state_of = dict(zip(program.new_states, program.states, strict=True))
        self._outputs = [(name, axes, getattr(torch, kind)) for name, (axes, kind) in layout.outputs.items()]

    def run(
        self, call: Call, values: Values, states: Sequence[Tensor], outputs: dict[str, Tensor], slots: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Add the outputs to those that have their memory; return the slots of every state, and the last states.

        The order of the call is that of the loop: backward's is the other one.
        """
        device, time, batch = states[0].device, call.time, call.batch
        for name, axes, dtype in self._outputs:
            outputs[name] = self.empty((time, batch, *axes), dtype, device)
        history = [self.empty((n, *s.shape), self.state_dtype, device) for n, s in zip(slots, states, strict=True)]
        first, last = (time, 0) if call.reverse else (0, time)
        for kept, state, n in zip(history, states, slots, strict=True):
            kept[first % n].copy_(state)
        if time and batch:
            self._fill(call, values, history, outputs, slots)
        else:
            outputs |= {
                name: torch.zeros(meta.shape, dtype=meta.dtype, device=device)
                for name, meta in self.layout.totals.items()
            }
        return history, [kept[last % n].clone() for kept, n in zip(history, slots, strict=True)]

    def empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for what the loop writes."""
        return memory.empty(shape, dtype) if device.type == "cpu" else torch.empty(shape, dtype=dtype, device=device)

    def _fill(
        self, call: Call, values: Values, history: Sequence[Tensor], outputs: dict[str, Tensor], slots: Sequence[int]
    ) -> None:
        """Run all steps: write the outputs, and the states to their slots."""
        raise NotImplementedError

    def _parts(self, blocks: int, device: torch.device) -> dict[str, Tensor]:
        """Memory for the parts of the sums over all rows, one a block of rows."""
        return {
            name: torch.zeros((blocks, math.prod(meta.shape)), dtype=self.real, device=device)
            for name, meta in self.layout.totals.items()
        }

    def _add_totals(self, outputs: dict[str, Tensor], totals: Mapping[str, Tensor]) -> None:
        """Make the sums over all rows of their parts."""
        for name, parts in totals.items():
            total, meta = parts[0] if len(parts) == 1 else parts.sum(0), self.layout.totals[name]
            outputs[name] = total.to(meta.dtype).reshape(meta.shape)
