"""A program whose loops are fused, in whatever language: what is done before and behind them, and their memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pellucid.formula.program import Program
from pellucid.kernel import memory
from pellucid.kernel.language.layout import Layout, real_of
from pellucid.kernel.recurrence.call import Backward, Call
from pellucid.kernel.recurrence.products import apart, run
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
        return self.forward_all([call], [states], save)[0]

    def forward_all(
        self, calls: Sequence[Call], states: Sequence[Sequence[Tensor]], save: bool = False
    ) -> list[tuple[Tensor, list[Tensor], list[Tensor]]]:
        """The same of several calls, which differ in nothing but parameters, seed and direction, side by side."""
        loop = self.loops(save)["forward"]
        jobs = [self._forward_job(loop, *given, save) for given in zip(calls, states, strict=True)]
        runs = loop.run(jobs)
        return [self._after_forward(loop, job, *run, save) for job, run in zip(jobs, runs, strict=True)]

    def _forward_job(self, loop: FusedLoop, call: Call, states: Sequence[Tensor], save: bool) -> Job:
        program, x, time = self.program, call.x, call.time
        values = given_values(program, call, program.per_input)
        values |= program.per_input.run(time * call.batch, values)
        whole = {loop.state_of.get(name, name) for name in (program.saved_steps if save else ())}
        output_state = loop.layout.output_is_state
        outputs = {}
        if output_state is not None:
            if call.lengths is None and (not save or loop.copies_output):
                whole.add(program.states[output_state])
            else:  # padded steps are 0 in the output alone; what backward reads is not the user's to change in place
                shape = (time, call.batch, states[output_state].shape[-1])
                outputs["output"] = memory.allocate(shape, x.dtype, x.device)
        return Job(call, values, states, outputs, [time + 1 if state in whole else 2 for state in program.states])

    def _after_forward(
        self, loop: FusedLoop, job: Job, history: Sequence[Tensor], last: list[Tensor], save: bool
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        program, call, outputs = self.program, job.call, job.outputs
        output = outputs.get("output", outputs.get(program.output))  # its steps that are not real are 0, a state's stay
        if save and program.output_is_saved:
            output = at_real_steps(outputs[program.output], call.lengths)
        for state, new, kept in zip(program.states, program.new_states, history, strict=True):
            if kept.shape[0] == call.time + 1:
                older, newer = kept[:-1], kept[1:]
                outputs[state], outputs[new] = (newer, older) if call.reverse else (older, newer)
        if output is None:
            output = outputs[program.output].clone() if save and loop.copies_output else outputs[program.output]
        if not save:
            return output, last, []
        folded = [job.values[name] for name in program.saved_folded]
        return output, last, folded + [outputs[name] for name in program.saved_steps]

    def backward(
        self,
        call: Call,
        saved: Sequence[Tensor],
        output_gradient: Tensor,
        state_gradients: Sequence[Tensor],
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor | None]]:
        """Return the gradients of input, initial state and parameters: as `stepwise.Stepwise.backward`."""
        return self.backward_all([Backward(call, saved, output_gradient, state_gradients, needed)])[0]

    def backward_all(self, given: Sequence[Backward]) -> list[tuple[Tensor | None, list[Tensor], list[Tensor | None]]]:
        """The same of several calls, side by side."""
        time, batch = given[0].call.time, given[0].call.batch
        if time == 0:
            return [no_gradients(self.program, back.call, back.state_gradients) for back in given]
        program, loop = self.program, self.loops(True)["backward"]
        values = [self._before_backward(back) for back in given]
        before = run([self._before] * len(given), time * batch, values, self._by_step)
        jobs = [
            Job(
                back.call._replace(reverse=not back.call.reverse),
                own | more,
                back.state_gradients,
                {},
                [2] * len(program.states),
            )
            for back, own, more in zip(given, values, before, strict=True)
        ]
        runs = loop.run(jobs)
        behind = [apart(after_loop(program, back.call, back.needed)) for back in given]
        values = [job.values | job.outputs for job in jobs]
        after = run(behind, time * batch, values, self._by_step)
        results = []
        for back, (_, last), own, more in zip(given, runs, values, after, strict=True):
            of_input, of_parameters = gradients(program, own | more, back.needed, back.call)
            results.append((of_input, [g.to(back.call.x.dtype) for g in last], of_parameters))
        return results

    def _before_backward(self, back: Backward) -> Values:
        program, call = self.program, back.call
        values = given_values(program, call, program.before, program.after)
        values |= zip((*program.saved_folded, *program.saved_steps), back.saved, strict=True)
        values[program.output_gradient] = at_real_steps(back.output_gradient, call.lengths)
        return values


class Job(NamedTuple):
    """What a loop over time is to do.

    Attributes:
        call: its order is that of the loop; backward's is the other one.
        values: what the loop reads, by name.
        states: before the first step.
        outputs: those that have their memory; the others are added.
        slots: how many steps of each state are kept.
    """

    call: Call
    values: Values
    states: Sequence[Tensor]
    outputs: dict[str, Tensor]
    slots: Sequence[int]


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

    def run(self, jobs: Sequence[Job]) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Run jobs of the same sizes side by side; return the slots of every state, and the last states, of each."""
        (call, _, states, _, _), histories = jobs[0], []
        device, time, batch = states[0].device, call.time, call.batch
        for job in jobs:
            for name, axes, dtype in self._outputs:
                job.outputs[name] = memory.allocate((time, batch, *axes), dtype, device)
            history, first = [], time if job.call.reverse else 0
            for state, n in zip(job.states, job.slots, strict=True):
                kept = memory.allocate((n, *state.shape), self.state_dtype, device)
                kept[first % n].copy_(state)
                history.append(kept)
            histories.append(history)
        if time and batch:
            self._fill(jobs, histories)
        else:
            for job in jobs:
                for name, meta in self.layout.totals.items():
                    job.outputs[name] = torch.zeros(meta.shape, dtype=meta.dtype, device=device)
        results = []
        for job, history in zip(jobs, histories, strict=True):
            last = 0 if job.call.reverse else time
            results.append((history, [kept[last % n].clone() for kept, n in zip(history, job.slots, strict=True)]))
        return results

    def _fill(self, jobs: Sequence[Job], histories: Sequence[Sequence[Tensor]]) -> None:
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
