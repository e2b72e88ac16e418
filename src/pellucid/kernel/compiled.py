"""The C backend: a fused program whose loops are compiled, run and given their memory."""

from __future__ import annotations

import ctypes
import math
import threading
from array import array
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pellucid.kernel import build, matmul, memory
from pellucid.kernel.emit_c import emit
from pellucid.kernel.plan import Loop
from pellucid.kernel.products import apart
from pellucid.kernel.program import Program
from pellucid.kernel.stepwise import Values, after_loop, fixed_values, folded_inputs, gradients, real_gradient
from pellucid.kernel.threads import Threads, useful

BLOCK = 48  # rows that a thread takes through all steps together: their scratch stays in the second cache
AHEAD = 2**16  # numbers that a block of rows computes ahead: they stay in the second cache
AHEAD_TOGETHER = 2**22  # the same where all threads compute them
OPERATIONS_WITHOUT_A_PAUSE = 2e9  # about 25 ms: then Python looks after signals
MEETING = 5e4  # operations that a thread does while another one is told what to do
DIRECT = 2  # rows of all steps for which a matrix is not packed
BEGIN, END = 3, 4  # their places in struct call


class Compiled:
    """A program as C: the same methods as `stepwise.Stepwise`."""

    name = "c"

    def __init__(self, program: Program, dtype: torch.dtype) -> None:
        self.program, self.dtype = program, dtype
        self._loading = threading.Lock()
        self._loops: dict[bool, dict[str, _Loop]] = {}
        self._before = apart(program.before)
        # Values of the loop are (time, batch, features).
        outputs = [name for name, value in program.back_step.results.items() if value.rows]
        self._by_step = frozenset((program.output_gradient, *program.saved_steps, *outputs))

    def loops(self, training: bool) -> Mapping[str, _Loop]:
        """The compiled loops, of inference or of training, compiled when they are first asked for.

        Raises:
            Unsupported: an operation has no C.
            BuildError: they could not be compiled.
        """
        with self._loading:
            if training not in self._loops:
                written = emit(self.program, self.dtype, training)
                if training:
                    matmul.prepare(self.dtype)
                library = build.load(written.text)
                self._loops[training] = {
                    name: _Loop(loop, library, self.program, self.dtype) for name, loop in written.loops.items()
                }
            return self._loops[training]

    def forward(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        lengths: Tensor | None = None,
        seed: Tensor | None = None,
        reverse: bool = False,
        save: bool = False,
        start: int = 0,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Run the whole sequence: as `stepwise.Stepwise.forward`."""
        program, (time, batch, _) = self.program, x.shape
        loop = self.loops(save)["forward"]
        values = fixed_values(program, parameters, x.device)
        values |= folded_inputs(program, x, seed, (program.per_input,), start)
        values |= program.per_input.run(time * batch, values)
        saved = program.saved_steps if save else ()
        whole = {loop.state_of.get(name, name) for name in saved}
        output_state = loop.layout.output_is_state
        outputs = {}
        if output_state is not None:
            if lengths is None and not save:
                whole.add(program.states[output_state])
            else:  # padded steps are 0 in the output alone; what backward reads is not the user's to change in place
                outputs["output"] = memory.empty((time, batch, states[output_state].shape[-1]), x.dtype)
        slots = [time + 1 if state in whole else 2 for state in program.states]
        history, last = loop.run(values, states, outputs, slots, time, batch, reverse, lengths, seed, start)
        output = outputs.get("output", outputs.get(program.output))  # its steps that are not real are 0, a state's stay
        for state, new, steps in zip(program.states, program.new_states, history, strict=True):
            if steps.shape[0] == time + 1:
                older, newer = steps[:-1], steps[1:]
                outputs[state], outputs[new] = (newer, older) if reverse else (older, newer)
        if output is None:
            output = outputs[program.output]
        folded = [values[name] for name in program.saved_folded] if save else []
        return output, last, folded + [outputs[name] for name in saved]

    def backward(
        self,
        x: Tensor,
        parameters: Sequence[Tensor],
        lengths: Tensor | None,
        seed: Tensor | None,
        reverse: bool,
        saved: Sequence[Tensor],
        output_gradient: Tensor,
        state_gradients: Sequence[Tensor],
        needed: Sequence[bool],
        start: int = 0,
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor | None]]:
        """Return the gradients of input, initial state and parameters: as `stepwise.Stepwise.backward`."""
        program, (time, batch, _) = self.program, x.shape
        if time == 0:
            return torch.zeros_like(x), list(state_gradients), [torch.zeros_like(p) for p in parameters]
        loop = self.loops(True)["backward"]
        values = fixed_values(program, parameters, x.device)
        values |= folded_inputs(program, x, seed, (program.before, program.after), start)
        values |= zip((*program.saved_folded, *program.saved_steps), saved, strict=True)
        values[program.output_gradient] = real_gradient(output_gradient, lengths)
        values |= self._before.run(time * batch, values, self._by_step)
        outputs: dict[str, Tensor] = {}
        slots = [2] * len(program.states)
        _, last = loop.run(values, state_gradients, outputs, slots, time, batch, not reverse, lengths, seed, start)
        values |= outputs
        values |= apart(after_loop(program, parameters, needed)).run(time * batch, values, self._by_step)
        of_input, of_parameters = gradients(program, values, needed, x)
        return of_input, [g.to(x.dtype) for g in last], of_parameters


class _Loop:
    """One compiled loop."""

    def __init__(self, layout: Loop, library: ctypes.CDLL, program: Program, dtype: torch.dtype) -> None:
        self.layout = layout
        self.real = torch.float64 if dtype == torch.float64 else torch.float32
        self.state_dtype = getattr(torch, layout.state_storage)
        self.state_of = dict(zip(program.new_states, program.states, strict=True))
        self._outputs = [(name, axes, getattr(torch, kind)) for name, (axes, kind) in layout.outputs.items()]
        self._run = getattr(library, layout.name)
        self._run.argtypes, self._run.restype = [ctypes.c_void_p], None
        self._work = getattr(library, f"{layout.name}_work")
        self._work.argtypes, self._work.restype = [ctypes.c_int64] * 3, ctypes.c_int64

    def run(
        self,
        values: Values,
        states: Sequence[Tensor],
        outputs: dict[str, Tensor],
        slots: Sequence[int],
        time: int,
        batch: int,
        backwards: bool,
        lengths: Tensor | None,
        seed: Tensor | None,
        start: int,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Add the outputs to those that have their memory; return the slots of every state, and the last states."""
        for name, axes, dtype in self._outputs:
            outputs[name] = memory.empty((time, batch, *axes), dtype)
        history = [memory.empty((n, *s.shape), self.state_dtype) for n, s in zip(slots, states, strict=True)]
        first, last = (time, 0) if backwards else (0, time)
        for steps, state, n in zip(history, states, slots, strict=True):
            steps[first % n].copy_(state)
        if time and batch:
            self._fill(values, history, outputs, slots, time, batch, backwards, lengths, seed, start)
        else:
            outputs |= {name: torch.zeros(meta.shape, dtype=meta.dtype) for name, meta in self.layout.totals.items()}
        return history, [steps[last % n].clone() for steps, n in zip(history, slots, strict=True)]

    def _fill(
        self,
        values: Values,
        history: Sequence[Tensor],
        outputs: dict[str, Tensor],
        slots: Sequence[int],
        time: int,
        batch: int,
        backwards: bool,
        lengths: Tensor | None,
        seed: Tensor | None,
        start: int,
    ) -> None:
        layout = self.layout
        matrices = [values[name] for name in layout.matrices]
        real = None if lengths is None else lengths.to("cpu", torch.int64).contiguous()
        threads, block, together = self._division(batch, time)
        blocks = -(-batch // block)
        totals = {
            name: torch.zeros((blocks, math.prod(meta.shape)), dtype=self.real) for name, meta in layout.totals.items()
        }
        direct = layout.direct and time * batch <= DIRECT and all(1 in matrix.stride() for matrix in matrices)
        steps = max(1, int(OPERATIONS_WITHOUT_A_PAUSE * threads.number / (batch * layout.operations)))
        chunk = min(time, steps, max(1, (AHEAD_TOGETHER if together else AHEAD) // max(1, block * layout.ahead)))
        size = self._work(block, chunk, min(threads.number, blocks))
        work = memory.empty((size + memory.ALIGNMENT,), torch.uint8)
        places = [values[name].contiguous() for name in layout.inputs]
        places += history
        places += [outputs[name] for name in layout.outputs]
        places += totals.values()
        buffers = array("q", [place.data_ptr() for place in places])
        buffers.append(outputs["output"].data_ptr() if "output" in outputs else 0)
        buffers.extend([matrix.data_ptr() for matrix in matrices])
        strides, kept = array("q", [stride for matrix in matrices for stride in matrix.stride()]), array("q", slots)
        call = array(  # struct call of c/call.h
            "q",
            (
                *(time, batch, start, 0, time, backwards, block, chunk, direct, together),
                0 if seed is None else int(seed),
                0 if real is None else real.data_ptr(),
                *(strides.buffer_info()[0], kept.buffer_info()[0]),
                *(memory.aligned(work), buffers.buffer_info()[0]),
                *threads,
            ),
        )
        address = call.buffer_info()[0]
        for begin in range(0, time, steps):
            call[BEGIN], call[END] = begin, min(begin + steps, time)
            self._run(address)
        for name, parts in totals.items():
            total, meta = parts[0] if blocks == 1 else parts.sum(0), layout.totals[name]
            outputs[name] = total.to(meta.dtype).reshape(meta.shape)

    def _division(self, batch: int, time: int) -> tuple[Threads, int, bool]:
        """The threads for the work, how many rows one takes at a time, and whether all work on one block of rows."""
        operations = self.layout.operations
        threads = useful(batch * time * operations)
        if threads.number > batch:
            if batch * operations > MEETING * threads.number:
                return threads, batch, True
            threads = threads._replace(number=batch)
        share = -(-batch // threads.number)
        return threads, -(-share // -(-share // BLOCK)), False
