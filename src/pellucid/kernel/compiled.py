"""The C backend: a fused program whose loops are compiled, run and given their memory."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel import build, memory
from pellucid.kernel.emit_c import Loop, emit
from pellucid.kernel.products import apart
from pellucid.kernel.program import Program
from pellucid.kernel.stepwise import Values, after_loop, before_loop, fixed_values, folded_inputs
from pellucid.kernel.threads import Threads, useful

ALIGNMENT = 64
BLOCK = 48  # rows that a thread takes through all steps together: their scratch stays in the second cache
AHEAD = 2**16  # numbers that a block of rows computes ahead: they stay in the second cache
AHEAD_TOGETHER = 2**22  # the same where all threads compute them
OPERATIONS_WITHOUT_A_PAUSE = 4e9  # about 50 ms: then Python looks after signals
MEETING = 5e4  # operations that a thread could do while it meets the others


class _Call(ctypes.Structure):
    """``struct call`` of c/call.h."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("time", "batch", "start", "begin", "end", "backwards", "block", "chunk", "together")
        ),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("lengths", "strides", "slots", "work", "buffers")),
        ("threads", Threads),
    )


class Compiled:
    """A program as C: the same methods as `stepwise.Stepwise`."""

    name = "c"

    def __init__(self, program: Program, dtype: torch.dtype) -> None:
        self.program, self.dtype = program, dtype
        self._loading = threading.Lock()
        self._loops: dict[bool, dict[str, _Loop]] = {}

    def loops(self, training: bool) -> Mapping[str, _Loop]:
        """The compiled loops, of inference or of training, compiled when they are first asked for.

        Raises:
            Unsupported: an operation has no C.
            BuildError: they could not be compiled.
        """
        with self._loading:
            if training not in self._loops:
                written = emit(self.program, self.dtype, training)
                library = build.load(written.text)
                self._loops[training] = {n: _Loop(loop, library, self.dtype) for n, loop in written.loops.items()}
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
        program, (time, batch) = self.program, x.shape[:2]
        loop = self.loops(save)["forward"]
        values = fixed_values(program, parameters, x.device) | folded_inputs(
            program, x, seed, (program.per_input,), start
        )
        values |= program.per_input.run(time * batch, values)
        saved = program.saved_steps if save else ()
        kept = {new: state for state, new in zip(program.states, program.new_states, strict=True)}
        whole = {kept.get(name, name) for name in saved}
        output_state = loop.layout.output_is_state
        if output_state is not None and lengths is None:
            whole.add(program.states[output_state])
        slots = [time + 1 if state in whole else 2 for state in program.states]
        outputs = loop.buffers(time, batch)
        if output_state is not None and lengths is not None:
            outputs["output"] = memory.empty((time, batch, states[output_state].shape[-1]), x.dtype)
        history, last = loop.run(values, states, outputs, slots, time, batch, reverse, lengths, seed, start)
        output = outputs.get("output", outputs.get(program.output))
        before, after = (slice(1, None), slice(0, time)) if reverse else (slice(0, time), slice(1, None))
        for state, new, steps in zip(program.states, program.new_states, history, strict=True):
            if steps.shape[0] == time + 1:
                outputs[state], outputs[new] = steps[before], steps[after]
        if output is None:
            output = outputs[program.output]
        folded = [values[name] for name in program.saved_folded if save]
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
        program, (time, batch) = self.program, x.shape[:2]
        if time == 0:
            return torch.zeros_like(x), list(state_gradients), [torch.zeros_like(p) for p in parameters]
        loop = self.loops(True)["backward"]
        values = before_loop(
            program, (program.before, program.after), x, parameters, lengths, seed, saved, output_gradient, start
        )
        outputs = loop.buffers(time, batch)
        slots = [2] * len(program.states)
        _, last = loop.run(values, state_gradients, outputs, slots, time, batch, not reverse, lengths, seed, start)
        values |= {n: value if n in loop.layout.totals else value.flatten(0, 1) for n, value in outputs.items()}
        of_input, of_parameters = after_loop(program, values, needed, x, apart)
        return of_input, [g.to(x.dtype) for g in last], of_parameters


class _Loop:
    """One compiled loop."""

    def __init__(self, layout: Loop, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.layout = layout
        self.real = torch.float64 if dtype == torch.float64 else torch.float32
        self.state_dtype = getattr(torch, layout.state_storage)
        self._run = getattr(library, layout.name)
        self._run.argtypes, self._run.restype = [ctypes.c_void_p], None
        self._work = getattr(library, f"{layout.name}_work")
        self._work.argtypes, self._work.restype = [ctypes.c_int64] * 3, ctypes.c_int64

    def buffers(self, time: int, batch: int) -> dict[str, Tensor]:
        """Memory for the outputs."""
        return {
            name: memory.empty((time, batch, *axes), getattr(torch, storage))
            for name, (axes, storage) in self.layout.outputs.items()
        }

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
        """Fill the outputs; return the slots of every state, and the last states."""
        history = [memory.empty((n, *s.shape), self.state_dtype) for n, s in zip(slots, states, strict=True)]
        first = time if backwards else 0
        for steps, state, n in zip(history, states, slots, strict=True):
            steps[first % n].copy_(state)
        if time and batch:
            self._fill(values, history, outputs, slots, time, batch, backwards, lengths, seed, start)
        else:
            outputs |= {name: torch.zeros(meta.shape, dtype=meta.dtype) for name, meta in self.layout.totals.items()}
        return history, [steps[(0 if backwards else time) % n].clone() for steps, n in zip(history, slots, strict=True)]

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
        inputs = [values[name].contiguous() for name in layout.inputs]
        matrices = [values[name] for name in layout.matrices]
        real = None if lengths is None else lengths.to("cpu", torch.int64).contiguous()
        threads, block, together = self._division(batch, time)
        blocks = -(-batch // block)
        totals = {
            name: torch.zeros((blocks, math.prod(meta.shape)), dtype=self.real) for name, meta in layout.totals.items()
        }
        written = [*(outputs[name] for name in layout.outputs), *totals.values(), outputs.get("output")]
        places = [*inputs, *history, *written, *matrices]
        buffers = _array(ctypes.c_void_p, [None if place is None else place.data_ptr() for place in places])
        strides = _array(ctypes.c_int64, [stride for matrix in matrices for stride in matrix.stride()])
        kept = _array(ctypes.c_int64, slots)
        steps = max(1, int(OPERATIONS_WITHOUT_A_PAUSE * threads.count / (batch * layout.operations)))
        ahead = AHEAD_TOGETHER if together else AHEAD
        chunk = min(time, steps, max(1, ahead // max(1, block * layout.ahead)))
        size = self._work(block, chunk, min(threads.count, blocks))
        work = memory.empty((size + ALIGNMENT,), torch.uint8)
        call = _Call(
            *(time, batch, start, 0, 0, backwards, block, chunk, together),
            0 if seed is None else int(seed) % 2**64,
            None if real is None else real.data_ptr(),
            ctypes.addressof(strides),
            ctypes.addressof(kept),
            -(-work.data_ptr() // ALIGNMENT) * ALIGNMENT,
            ctypes.addressof(buffers),
            threads,
        )
        for begin in range(0, time, steps):
            call.begin, call.end = begin, min(begin + steps, time)
            self._run(ctypes.addressof(call))
        for name, parts in totals.items():
            total, meta = parts[0] if blocks == 1 else parts.sum(0), layout.totals[name]
            outputs[name] = total.to(meta.dtype).reshape(meta.shape)

    def _division(self, batch: int, time: int) -> tuple[Threads, int, bool]:
        """The threads for the work, how many rows one takes at a time, and whether all take all rows together."""
        operations = self.layout.operations
        threads = useful(batch * time * operations)
        if threads.count > batch:
            if batch * operations > MEETING * threads.count:
                return threads, batch, True
            threads.count = batch
        share = -(-batch // threads.count)
        return threads, -(-share // -(-share // BLOCK)), False


def _array(kind: Any, values: Sequence[Any]) -> Any:
    return (kind * max(len(values), 1))(*values)
