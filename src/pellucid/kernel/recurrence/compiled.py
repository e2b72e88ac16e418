"""The C backend: a fused program whose loops are compiled, run and given their memory."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pellucid.kernel import build, matmul, memory
from pellucid.kernel.program import Program
from pellucid.kernel.recurrence.call import Call
from pellucid.kernel.recurrence.emit_c import emit
from pellucid.kernel.recurrence.fused import Fused, FusedLoop
from pellucid.kernel.recurrence.plan import Loop
from pellucid.kernel.recurrence.stepwise import Values
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

    layout: Loop

    def __init__(self, layout: Loop, library: ctypes.CDLL, program: Program, dtype: torch.dtype) -> None:
        super().__init__(layout, program, dtype)
        self._run = getattr(library, layout.name)
        self._run.argtypes, self._run.restype = [ctypes.c_void_p], None
        self._work = getattr(library, f"{layout.name}_work")
        self._work.argtypes, self._work.restype = [ctypes.c_int64] * 3, ctypes.c_int64

    def _fill(
        self, call: Call, values: Values, history: Sequence[Tensor], outputs: dict[str, Tensor], slots: Sequence[int]
    ) -> None:
        layout, time, batch = self.layout, call.time, call.batch
        matrices = [values[name] for name in layout.matrices]
        real = None if call.lengths is None else call.lengths.to("cpu", torch.int64).contiguous()
        threads, block, together = self._division(batch, time)
        blocks = -(-batch // block)
        totals = self._parts(blocks, history[0].device)
        direct = layout.direct and time * batch <= DIRECT and all(1 in matrix.stride() for matrix in matrices)
        count = max(1, int(OPERATIONS_WITHOUT_A_PAUSE * threads.number / (batch * layout.operations)))
        chunk = min(time, count, max(1, (AHEAD_TOGETHER if together else AHEAD) // max(1, block * layout.ahead)))
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
        struct = array(  # struct call of c/call.h
            "q",
            (
                *(time, batch, call.start, 0, time, call.reverse, block, chunk, direct, together),
                0 if call.seed is None else int(call.seed),
                0 if real is None else real.data_ptr(),
                *(strides.buffer_info()[0], kept.buffer_info()[0]),
                *(memory.aligned(work), buffers.buffer_info()[0]),
                *threads,
            ),
        )
        address = struct.buffer_info()[0]
        for begin in range(0, time, count):
            struct[BEGIN], struct[END] = begin, min(begin + count, time)
            self._run(address)
        self._add_totals(outputs, totals)

    def _division(self, batch: int, time: int) -> tuple[Threads, int, bool]:
        """The threads for the work, how many rows one takes at a time, and whether all work on one block of rows."""
        operations = self.layout.operations
        threads = useful(batch * time * operations)
        share = -(-batch // threads.number)
        # The more rows a thread has, the less of its time goes into reading the matrices, which is what can be shared.
        if threads.number > 1 and share <= FEW_ROWS and operations * batch > MEETING * threads.number * share**3:
            return threads, batch, True
        threads = threads._replace(number=min(threads.number, batch))
        return threads, -(-share // -(-share // BLOCK)), False
