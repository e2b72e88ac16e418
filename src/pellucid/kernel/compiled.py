"""The C backend: a fused program whose loops are compiled, run and given their memory."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel import build, memory
from pellucid.kernel.emit_c import Loop, emit
from pellucid.kernel.program import Program
from pellucid.kernel.stepwise import Values, after_loop, before_loop, fixed_values, folded_inputs

ALIGNMENT = 64
BLOCK = 48  # rows that a thread takes through all steps together: their scratch stays in the second cache
AHEAD = 2**16  # numbers that a block of rows computes ahead: they stay in the second cache
AHEAD_TOGETHER = 2**22  # the same where all threads compute them
OPERATIONS_WITHOUT_A_PAUSE = 4e9  # about 50 ms: then Python looks after signals
OPERATIONS_FOR_A_THREAD = 2e6  # below that, waking another one costs more than it helps

_forked = False


def _in_child() -> None:
    """A fork has one thread; the OpenMP of its parent would wait for the others for ever."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class _Call(ctypes.Structure):
    """``struct call`` of c/call.h."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("time", "batch", "start", "begin", "end", "backwards", "block", "chunk", "together", "threads")
        ),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("lengths", "strides", "slots", "parallel", "work", "buffers")),
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
        values |= {name: value.flatten(0, 1) for name, value in outputs.items()}
        of_input, of_parameters = after_loop(program, values, needed, x)
        return of_input, [g.to(x.dtype) for g in last], of_parameters


class _Loop:
    """One compiled loop."""

    def __init__(self, layout: Loop, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.layout = layout
        self.state_dtype = getattr(torch, layout.state_storage)
        self._run = getattr(library, layout.name)
        self._run.argtypes, self._run.restype = [ctypes.c_void_p], None
        self._work = getattr(library, f"{layout.name}_work")
        self._work.argtypes, self._work.restype = [ctypes.c_int64] * 3, ctypes.c_int64

    def buffers(self, time: int, batch: int) -> dict[str, Tensor]:
        """Memory for the outputs."""
        return {
            name: memory.empty((time, batch, width), getattr(torch, storage))
            for name, (width, storage) in self.layout.outputs.items()
        }

    def run(
        self,
        values: Values,
        states: Sequence[Tensor],
        outputs: Mapping[str, Tensor],
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
        return history, [steps[(0 if backwards else time) % n].clone() for steps, n in zip(history, slots, strict=True)]

    def _fill(
        self,
        values: Values,
        history: Sequence[Tensor],
        outputs: Mapping[str, Tensor],
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
        places = [*inputs, *history, *(outputs[name] for name in layout.outputs), outputs.get("output"), *matrices]
        buffers = _array(ctypes.c_void_p, [None if place is None else place.data_ptr() for place in places])
        strides = _array(ctypes.c_int64, [stride for matrix in matrices for stride in matrix.stride()])
        kept = _array(ctypes.c_int64, slots)
        real = None if lengths is None else lengths.to("cpu", torch.int64).contiguous()
        threads, block = self._division(batch, time)
        steps = max(1, int(OPERATIONS_WITHOUT_A_PAUSE * threads / (batch * layout.operations)))
        together = bool(layout.ahead) and block == batch and threads > 1
        if together:
            steps = chunk = min(time, steps, max(1, AHEAD_TOGETHER // (batch * layout.ahead)))
        else:
            chunk = min(time, steps, max(1, AHEAD // max(1, block * layout.ahead)))
        work = memory.empty((self._work(block, chunk, min(threads, -(-batch // block))) + ALIGNMENT,), torch.uint8)
        call = _Call(
            *(time, batch, start, 0, 0, backwards, block, chunk, together, threads),
            0 if seed is None else int(seed) % 2**64,
            None if real is None else real.data_ptr(),
            ctypes.addressof(strides),
            ctypes.addressof(kept),
            _parallel() if threads > 1 else None,
            -(-work.data_ptr() // ALIGNMENT) * ALIGNMENT,
            ctypes.addressof(buffers),
        )
        for begin in range(0, time, steps):
            call.begin, call.end = begin, min(begin + steps, time)
            self._run(ctypes.addressof(call))

    def _division(self, batch: int, time: int) -> tuple[int, int]:
        """How many threads there are for the work, and how many rows one takes at a time."""
        useful = int(batch * time * self.layout.operations / OPERATIONS_FOR_A_THREAD)
        threads = 1 if _forked else max(1, min(torch.get_num_threads(), useful))
        share = -(-batch // min(threads, batch))
        return threads, -(-share // -(-share // BLOCK))


def _array(kind: Any, values: Sequence[Any]) -> Any:
    return (kind * max(len(values), 1))(*values)


@functools.cache
def _parallel() -> int | None:
    """The address of GOMP_parallel in the OpenMP that torch has loaded: one pool of threads in the process."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    paths = {line.split()[-1] for line in maps.read_text().splitlines() if "/" in line}
    for path in sorted(p for p in paths if Path(p).name.startswith(("libgomp", "libiomp", "libomp"))):
        function = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value
    return None
