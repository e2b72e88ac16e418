"""The C backend: a fused program whose loops are compiled, run and given their memory."""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pellucid.formula.program import Program
from pellucid.kernel import build, matmul, memory
from pellucid.kernel.recurrence.emit_c import emit
from pellucid.kernel.recurrence.fused import Fused, FusedLoop, Job
from pellucid.kernel.recurrence.plan import LoopLayout
from pellucid.kernel.threads import Threads, useful

BLOCK = 48  # rows that a thread takes through all steps together: their scratch stays in the second cache
AHEAD = 2**16  # numbers that a block of rows computes ahead: they stay in the second cache
AHEAD_TOGETHER = 2**22  # the same where all threads compute them
OPERATIONS_WITHOUT_A_PAUSE = 2e9  # about 25 ms: then Python looks after signals
MEETING = 5e4  # operations that a thread does while another one is told what to do
FEW_ROWS = 2  # of a thread: reading the matrices takes longer than what it does with them
DIRECT = 2  # rows of all steps for which a matrix is not packed
BEGIN, END = 3, 4  # their places in struct call


class Compiled(Fused):
    """A program as C."""

    name = "c"

    def _build(self, training: bool) -> Mapping[str, _Loop]:
        written = emit(self.program, self.dtype, training)
        if training:
            matmul.prepare(self.dtype)
        library = build.load(written.text)
        return {name: _Loop(loop, library, self.program, self.dtype) for name, loop in written.loops.items()}


class _Loop(FusedLoop):
    """One compiled loop."""

    layout: LoopLayout

    def __init__(self, layout: LoopLayout, library: ctypes.CDLL, program: Program, dtype: torch.dtype) -> None:
        super().__init__(layout, program, dtype)
        self._run = getattr(library, layout.name)
        self._run.argtypes, self._run.restype = [ctypes.c_void_p, ctypes.c_int64], None
        self._work = getattr(library, f"{layout.name}_work")
        self._work.argtypes, self._work.restype = [ctypes.c_int64] * 3, ctypes.c_int64

    def _fill(self, jobs: Sequence[Job], histories: Sequence[Sequence[Tensor]]) -> None:
        layout, call = self.layout, jobs[0].call
        time, batch, several = call.time, call.batch, len(jobs)
        matrices = [[job.values[name] for name in layout.matrices] for job in jobs]
        real = None if call.lengths is None else call.lengths.to("cpu", torch.int64).contiguous()
        threads, block, together = self._division(batch, time, several)
        blocks = -(-batch // block)
        direct = layout.direct and time * batch <= DIRECT and all(1 in m.stride() for own in matrices for m in own)
        count = max(1, int(OPERATIONS_WITHOUT_A_PAUSE * threads.number / (several * batch * layout.operations)))
        chunk = min(time, count, max(1, (AHEAD_TOGETHER if together else AHEAD) // max(1, block * layout.ahead)))
        workers, totals, kept = min(threads.number, several * blocks), [], []
        structs = array("q")
        for job, history, own in zip(jobs, histories, matrices, strict=True):
            work = memory.empty((self._work(block, chunk, workers) + memory.ALIGNMENT,), torch.uint8)
            workers = int(together)  # the others have the scratch of the first
            places = [job.values[name].contiguous() for name in layout.inputs]
            places += history
            places += [job.outputs[name] for name in layout.outputs]
            totals.append(self._parts(blocks, history[0].device))
            places += totals[-1].values()
            buffers = array("q", [place.data_ptr() for place in places])
            buffers.append(job.outputs["output"].data_ptr() if "output" in job.outputs else 0)
            buffers.extend([matrix.data_ptr() for matrix in own])
            strides, slots = array("q", [stride for matrix in own for stride in matrix.stride()]), array("q", job.slots)
            structs.extend(  # struct call of c/call.h
                (
                    *(time, batch, job.call.start, 0, min(count, time)),
                    *(job.call.reverse, block, chunk, direct, together),
                    0 if job.call.seed is None else int(job.call.seed),
                    0 if real is None else real.data_ptr(),
                    *(strides.buffer_info()[0], slots.buffer_info()[0]),
                    *(memory.aligned(work), buffers.buffer_info()[0]),
                    *threads,
                )
            )
            kept.append((work, places, buffers, strides, slots))
        address, size = structs.buffer_info()[0], len(structs) // several
        self._run(address, several)
        for begin in range(count, time, count):
            for first in range(0, len(structs), size):
                structs[first + BEGIN], structs[first + END] = begin, min(begin + count, time)
            self._run(address, several)
        for job, parts in zip(jobs, totals, strict=True):
            self._add_totals(job.outputs, parts)

    def _division(self, batch: int, time: int, several: int) -> tuple[Threads, int, bool]:
        """The threads for so many calls, how many rows one takes at a time, and whether all work on one block of rows.

        Every thread has as many blocks as the others.
        """
        operations = self.layout.operations
        threads = useful(several * batch * time * operations)
        number = threads.number
        if number == 1:
            return threads, -(-batch // -(-batch // BLOCK)), False
        share, idle = -(-batch // number), several == 1 or number > several * batch
        # The more rows a thread has, the less of its time goes into reading the matrices, which is what can be shared.
        if idle and share <= FEW_ROWS and operations * batch > MEETING * number * share**3:
            return threads, batch, True
        share = -(-batch * math.gcd(number, several) // number)
        return threads._replace(number=min(number, several * batch)), -(-share // -(-share // BLOCK)), False
