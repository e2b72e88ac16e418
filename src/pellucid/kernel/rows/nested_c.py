"""Programs of nested loops in C: compiled, bound to sizes, called on the threads of torch."""

from __future__ import annotations

import ctypes
import functools
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel import build, memory
from pellucid.kernel.language.layout import STORAGE
from pellucid.kernel.rows.direction import Direction, Draws
from pellucid.kernel.rows.emit_nest import emit
from pellucid.kernel.rows.nest import Form, lower
from pellucid.kernel.threads import useful

ENTRIES_OF_A_PART = 2**15  # of the work that a thread takes at a time
MOST_PARTS = 64
UNITS_OF_A_TOTAL = 1024  # as many are added up before their sum goes to a sum of sums
BYTES_OF_TOTALS = 2**24
ENTRIES_PAST_CACHES = 2**22  # of results that no cache holds
TILE = 1024  # columns of a row that is not reduced; a tile's scratch stays in the first cache
LINE = 64  # bytes; what lies in one is one thread's
# Places in struct nest of c/nest.h.
PLACES, NUMBERS, OFFSETS, SEED, STREAM, TOTALS, WORK, THREADS, PARALLEL = 2, 3, 4, 5, 6, 12, 15, 16, 17


@functools.lru_cache(maxsize=256)
def _compiled(form: Form, name: str) -> tuple[ctypes.CDLL, str]:
    text = emit(lower(form), name, STORAGE[form.dtype])
    return build.load(text), text


class Kernel(Direction):
    """One direction of a program in C.

    Raises:
        Unsupported: there is no such kernel. BuildError: nor a compiler.
    """

    def __init__(
        self, form: Form, name: str, number: int, sizes: Sequence[int], views: Mapping[str, Sequence[int]]
    ) -> None:
        nest = lower(form).nests[number]
        super().__init__(nest, sizes, form.dtype, views, form.operands[0].name)
        library, self.text = _compiled(form, name)
        self._run = getattr(library, nest.name)
        self._run.argtypes, self._run.restype = [ctypes.c_void_p], None
        self._strides, self._sizes = array("q"), array("q", sizes)
        for operand in nest.operands:
            name = operand.removesuffix(" to")
            written = name != operand
            self._strides.extend(self.strides[name] if written else views[name])
            self._strides.append(self.total if written and name in self.starts else 0)
        self._divide(sizes, library)
        self._total_sizes = [*(self.counts[name] for name in self.starts), (self.parts - 1) * self.total]

    def _divide(self, sizes: Sequence[int], library: ctypes.CDLL) -> None:
        """Cut the work into parts: always the same ones, for any number of threads, so that sums are too."""
        nest, last = self.nest, len(sizes) - 1
        entries, columns = math.prod(sizes), sizes[-1]
        rows = math.prod(size for axis, size in enumerate(sizes[:-1]) if axis not in nest.inner)
        tile = columns
        if last not in nest.inner and nest.columns is None:
            shares = -(-torch.get_num_threads() // rows) if nest.inner else 1  # of few rows with loops inside
            least = LINE // self.real.itemsize
            tile = min(TILE, -(-columns // (shares * least)) * least)
        tile = min(tile, columns)
        tiles = -(-columns // tile)
        units = rows * tiles
        parts = max(min(entries // ENTRIES_OF_A_PART, MOST_PARTS), units // UNITS_OF_A_TOTAL)
        if self.total:
            parts = min(parts, max(1, BYTES_OF_TOTALS // (8 * self.total)))
        self.parts = max(1, min(units, parts))
        self.lent = self.parts > 1
        self._operations = entries * nest.operations
        scratch = getattr(library, f"{nest.name}_scratch")
        scratch.argtypes, scratch.restype = [ctypes.c_int64], ctypes.c_int64
        self._scratch = scratch(tile)
        past = entries * (len(nest.outputs) - len(nest.totals)) >= ENTRIES_PAST_CACHES
        division = (rows, tiles, tile, self.parts, self.total, 0, int(past), self._scratch)
        sizes_at, strides_at = self._sizes.buffer_info()[0], self._strides.buffer_info()[0]
        self._blank = [0] * len(nest.operands)
        self._call = (sizes_at, strides_at, 0, 0, 0, 0, 0, *division, 0, 1, 0)  # struct nest of c/nest.h

    def slots(self, placed: Mapping[str, int], starts: Mapping[str, int]) -> Any:
        """Where the addresses of operands stand in a call: those of tensors, of what lies in the rest, of totals."""
        numbers, size = {name: i for i, name in enumerate(self.nest.operands)}, self.real.itemsize
        return (
            [(numbers[name], i) for name, i in placed.items() if name in numbers],
            [(numbers[name], start * size) for name, start in starts.items() if name in numbers],
            [(numbers[f"{name} to"], start * size) for name, start in self.starts.items()],
        )

    def run(
        self, slots: Any, tensors: Sequence[Tensor], rest: Tensor, numbers: array[float], draws: Draws | None
    ) -> list[Tensor]:
        """Run on tensors, and on what lies in the rest; return the totals, flat."""
        of_tensors, of_rest, of_totals = slots
        pointers = array("q", self._blank)
        for slot, i in of_tensors:
            pointers[slot] = tensors[i].data_ptr()
        if of_rest:
            begin = rest.data_ptr()
            for slot, start in of_rest:
                pointers[slot] = begin + start
        call = array("q", self._call)
        call[PLACES], call[NUMBERS] = pointers.buffer_info()[0], numbers.buffer_info()[0]
        if draws is not None:
            offsets = array("q", [draws.offsets.get(name, 0) for name in self.nest.operands])
            call[OFFSETS], call[SEED], call[STREAM] = offsets.buffer_info()[0], int(draws.seed), draws.stream
        totals = None
        if self.total:
            totals = torch.empty(self.parts * self.total, dtype=self.real)
            call[TOTALS] = begin = totals.data_ptr()
            for slot, start in of_totals:
                pointers[slot] = begin + start
        threads = useful(self._operations)
        call[THREADS], call[PARALLEL] = threads
        if self._scratch:
            work = memory.scratch(self._scratch * threads.number)
            call[WORK] = memory.aligned(work)
        self._run(call.buffer_info()[0])
        return [] if totals is None else list(totals.split_with_sizes(self._total_sizes)[:-1])
