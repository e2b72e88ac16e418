"""The Triton backend: a fused program whose loops run on a GPU, or on the CPU in Triton's interpreter."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.formula.program import Program
from pellucid.kernel import gpu
from pellucid.kernel.language.layout import Work, works
from pellucid.kernel.language.lower import lower
from pellucid.kernel.language.text_triton import power
from pellucid.kernel.recurrence.emit_triton import (
    Division,
    Kernel,
    Text,
    bytes_of_matrices,
    emit,
    packed,
)
from pellucid.kernel.recurrence.fused import Fused, FusedLoop, Job

HELD_BYTES = 128 * 2**10  # of matrices that a block keeps for all steps: shared memory has 163 KiB (A100) to 227 (H100)
LEAST_SHARE = 16  # columns of a product that a block has at least
MOST_SPLITS = 64  # blocks that share the columns of some rows
LEAST_ROWS, MOST_ROWS = 8, 64  # of a block
MOST_ENTRIES = 4096  # of a tile, in registers
REGISTERS, MOST_OF_A_THREAD = 2**16, 255  # of a multiprocessor, 32 bits each
MOST_TURNS, MOST_TURNS_OF_SPLIT = 2, 4  # of blocks with a single row, one after the other on a multiprocessor
MOST_SPILLS = 64  # registers of a thread that lie in memory; with more, twice as many threads share the work


class Jitted(Fused):
    """A program as Triton."""

    name = "triton"

    def __init__(self, program: Program, dtype: torch.dtype, device: str) -> None:
        super().__init__(program, dtype)
        self.device = device

    def _build(self, training: bool) -> Mapping[str, _Loop]:
        gpu.check(self.device)
        return {work.name: _Loop(self.program, work, self.dtype) for work in works(self.program, self.dtype, training)}


def divisions(program: Program, work: Work, dtype: torch.dtype) -> list[Division]:
    """How a loop may be divided, from the division with the fewest blocks that can hold its matrices.

    The last of them needs no shared memory to hold them. Triton's interpreter runs one block after the other.
    """
    widths = [width for _, width in lower(work.stage, program.draws).matrices.values()]
    together = 1 if gpu.interpreted() else gpu.processors(torch.device("cuda", torch.cuda.current_device()))
    most = min(MOST_SPLITS, together, *(max(1, width // LEAST_SHARE) for width in widths)) if widths else 1
    splits = [1 << i for i in range(most.bit_length())]
    parts = 2 if dtype == torch.float32 and not gpu.tf32() else 1  # of exact products: see `triton_functions.product`
    able = [Division(n, held=True) for n in splits if parts * bytes_of_matrices(program, work, n) <= HELD_BYTES]
    return [*able, Division(splits[-1], held=False)]


class _Written:
    """A loop as Triton text that was loaded, and with how many warps it is launched for so many rows a block."""

    def __init__(self, text: Text, entries: int) -> None:
        self.kernel = text.kernel
        self._function = getattr(gpu.load(text.text), text.kernel.layout.name)
        self._entries = entries  # of the matrices
        self._warps: dict[int, int] = {}

    def launch(self, blocks: int, given: Sequence[Any], constants: Mapping[str, Any]) -> None:
        """Launch so many blocks, or groups of those that share the columns."""
        rows, division = constants["ROWS"], self.kernel.division
        many = self._warps.get(rows) or (
            warps_of_row(self.kernel, self._entries) if division.single else warps(self.kernel, rows)
        )
        options: dict[str, Any] = {"num_warps": many}
        if division.single:
            options["maxnreg"] = min(MOST_OF_A_THREAD, REGISTERS // (32 * many))
        if division.splits > 1:
            options["launch_cooperative_grid"] = True
        compiled = gpu.launch(self._function, (blocks, division.splits), given, constants, **options)
        if rows not in self._warps and not gpu.interpreted():
            spilled = compiled.n_spills > MOST_SPILLS and not division.single
            self._warps[rows] = 2 * many if spilled else many


class _Loop(FusedLoop):
    """One loop as a kernel, divided in the first way for which a GPU has the shared memory.

    Where there are few rows, and the registers of a multiprocessor hold the matrices, every block has a single row.
    """

    copies_output = True

    def __init__(self, program: Program, work: Work, dtype: torch.dtype) -> None:
        self._divisions = iter(divisions(program, work, dtype))
        self._entries = bytes_of_matrices(program, work, 1, itemsize=1)
        self._write = functools.partial(emit, program, work, dtype)
        self._next()
        super().__init__(self._many.kernel.layout, program, dtype)

    def _next(self) -> None:
        self._many = _Written(self._write(next(self._divisions)), self._entries)

    @functools.cached_property
    def _single(self) -> _Written | None:
        """The kernel of blocks with a single row, written when it is first asked for; None where there is none."""
        if not 0 < self._entries * self.real.itemsize <= 4 * REGISTERS:
            return None
        return _Written(self._write(Division(1, held=True, single=True)), self._entries)

    def _suited(self, batch: int, together: int) -> _Written:
        """The kernel for so many rows, on a GPU where so many blocks run together."""
        division = self._many.kernel.division
        turns = MOST_TURNS if division.splits == 1 and division.held else MOST_TURNS_OF_SPLIT
        single = self._single if batch <= turns * together else None
        return single or self._many

    def _fill(self, jobs: Sequence[Job], histories: Sequence[Sequence[Tensor]]) -> None:
        for job, history in zip(jobs, histories, strict=True):
            self._fill_one(job, history)

    def _fill_one(self, job: Job, history: Sequence[Tensor]) -> None:
        call, values, outputs = job.call, job.values, job.outputs
        layout, device = self.layout, history[0].device
        together = gpu.processors(device)
        written = self._suited(call.batch, together)
        kernel, division = written.kernel, written.kernel.division
        splits = division.splits
        rows = 1 if division.single else rows_of_a_block(call.batch, kernel, together, self.real)
        blocks = -(-call.batch // rows)
        totals = self._parts(blocks, device)
        given: list[Any] = [values[name].contiguous() for name in layout.inputs]
        given += [*history, *(outputs[name] for name in layout.outputs), *totals.values()]
        given.append(outputs.get("output", history[0]))
        for name in layout.matrices:
            matrix = packed(values[name]) if division.single else values[name]
            given += [matrix, *matrix.stride()]
        given += job.slots
        given += self._shared(kernel, blocks, rows, history[0])
        given += [history[0] if other is None else other.to(device, torch.int64) for other in (call.lengths, call.seed)]
        given += [call.time, call.batch, call.start]
        constants: dict[str, Any] = {
            "BACKWARDS": call.reverse,
            "LENGTHS": call.lengths is not None,
            "OUTPUT": "output" in outputs,
        }
        constants["WIDE"] = max(t.numel() for t in given if isinstance(t, Tensor)) >= 2**31
        constants |= {"ROWS": rows, "EXCHANGED": kernel.exchanged, "INTERPRETED": gpu.interpreted(), "TF32": gpu.tf32()}
        at_once = max(1, together // splits) if splits > 1 else blocks  # blocks that wait for each other run together
        with gpu.on(device):
            try:
                for first in range(0, blocks, at_once):
                    written.launch(min(at_once, blocks - first), [*given, first, 0], constants)
            except gpu.out_of_resources():
                if not division.held:
                    raise
                if division.single:
                    self._single = None
                else:
                    self._next()
                self._fill_one(job, history)
            else:
                self._add_totals(outputs, totals)

    def _shared(self, kernel: Kernel, blocks: int, rows: int, unused: Tensor) -> list[Tensor]:
        """Memory in which blocks pass on and exchange what they have, and count who has come, as far as they do."""
        device = unused.device
        splits = kernel.division.splits
        dtype = getattr(torch, kernel.passed_storage) if kernel.passed_storage else self.real
        passed, exchanged = blocks * rows * 2 * kernel.passed, blocks * rows * 2 * kernel.exchanged * splits
        return [
            torch.empty(passed, dtype=dtype, device=device) if passed else unused,
            torch.empty(exchanged, dtype=self.real, device=device) if splits > 1 and exchanged else unused,
            torch.zeros(blocks, dtype=torch.int32, device=device) if splits > 1 else unused,
        ]


@functools.cache
def sources() -> str:
    """What kernels of the recurrence are made by: with other sources they are other kernels."""
    folder = Path(__file__).parents[1]
    names = ("recurrence/emit_triton.py", "recurrence/jitted.py", "language/triton_functions.py")
    return "".join((folder / name).read_text() for name in names)


def rows_of_a_block(batch: int, kernel: Kernel, together: int, real: torch.dtype) -> int:
    """The fewest rows with which all blocks run together, as far as a tile stays in registers."""
    rows = LEAST_ROWS if gpu.multiplies_few_rows() and real != torch.float64 else 2 * LEAST_ROWS
    while (
        -(-batch // rows) * kernel.division.splits > together
        and 2 * rows <= MOST_ROWS
        and 2 * rows * kernel.columns <= MOST_ENTRIES
        and not gpu.interpreted()
    ):
        rows *= 2
    return rows


def warps(kernel: Kernel, rows: int) -> int:
    """How many groups of 32 threads share a tile: 8 numbers a thread, and few registers spilled.

    Of few columns of a large matrix as many as there are units for products.
    """
    return max(4 if kernel.division.splits > 1 else 1, min(8, kernel.columns * rows // 256))


def warps_of_row(kernel: Kernel, entries: int) -> int:
    """How many groups of 32 threads share a single row: four threads a column, and registers for all entries."""
    return min(16, power(max(1, kernel.columns // 8, entries // 4096)))
