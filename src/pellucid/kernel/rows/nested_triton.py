"""Programs of nested loops in Triton: cut into tiles for axes of certain sizes, launched on the current stream."""

from __future__ import annotations

import dataclasses
import math
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pellucid.errors import Unsupported
from pellucid.kernel import gpu
from pellucid.kernel.language.text_triton import power
from pellucid.kernel.language.values import Value
from pellucid.kernel.rows.direction import Direction, Draws
from pellucid.kernel.rows.emit_nest_triton import Text, emit
from pellucid.kernel.rows.nest import Form, Nest, ReadBack, along, lower
from pellucid.kernel.rows.nest_tiles import Tile, owned_axes

TARGET = 4096  # entries of a tile, where the axes let it be chosen
REGISTERS = 3 * 2**14  # numbers that a block keeps at most: of every operand, and of every sum over rows
MOST_SPLITS = 128  # programs that share what is reduced: each later one reads the parts of all of them
FEWEST_COLUMNS = 32  # of a tile: what one access to memory brings
ENOUGH_COLUMNS = 64  # a line of the second cache, 128 bytes, in 16 bits: of all that such rows may share
MOST_SUMS = 8  # over rows that a tile makes side by side, sooner than that the tiles of each are a loop of their own
ENTRIES_OF_A_WARP, MOST_WARPS = 512, 16
WARPS = 32  # of a multiprocessor, that a grid is to keep busy
STAGES = 3  # tiles of a loop that are on their way at a time
LEAST_TURNS = 2  # tiles that a program takes at least of what several share
INTERPRETED_PROCESSORS, INTERPRETED_CACHE = 2, 2**30  # what the interpreter stands for
CACHED = 0.75  # of the second cache, which what is read again may fill
MOST_COLUMNS = 2**15  # of a formula that cuts them: they are all in one tile
FARTHEST = 2**31 - 2**24  # place in memory that 32 bits reach


class Kernel(Direction):
    """One direction of a program in Triton: a kernel, and more where its sums over rows are made apart.

    Raises:
        Unsupported: there is no such kernel. BuildError: nor Triton.
    """

    def __init__(
        self,
        form: Form,
        name: str,
        number: int,
        sizes: Sequence[int],
        views: Mapping[str, Sequence[int]],
        device: torch.device,
    ) -> None:
        gpu.check(device.type)
        nest = lower(form).nests[number]
        super().__init__(nest, sizes, form.dtype, views, form.operands[0].name)
        self._title, self._device = name, device
        self._plans = _plans(nest, self.sizes, _Gpu.of(device))
        self._launches: list[_Launch] = []
        self._scratch = 0
        self._apart: dict[str, slice] = {}  # totals that lie there
        of = {f"{operand.name}_gradient": operand.dtype for operand in form.operands}
        wanted = {of[name] for name in self.starts}
        self.totals_type = wanted.pop() if len(wanted) == 1 else self.real

    def slots(self, placed: Mapping[str, int], starts: Mapping[str, int]) -> Any:
        """The kernels to be launched, whose arguments are known but for those of a call."""
        places: dict[str, tuple[str, int]] = {name: ("tensor", i) for name, i in placed.items()}
        places |= {name: ("rest", start) for name, start in starts.items()}
        strides = {**self.views, **{f"{name} to": of_output for name, of_output in self.strides.items()}}
        main, *others = self._plans
        for plan in others:  # what is made apart, and what the first kernel leaves for it
            for name in plan.nest.outputs:
                places[f"{name} to"] = ("scratch", self._scratch)
                self._apart[name] = slice(self._scratch, self._scratch + self.counts[name])
                self._scratch += self.counts[name]
            for name in main.nest.outputs.keys() & plan.nest.inputs.keys() - places.keys():
                value = main.nest.outputs[name]
                steps, count = self.contiguous(value)
                strides[name] = strides[f"{name} to"] = steps
                places[name] = places[f"{name} to"] = ("scratch", self._scratch)
                self._scratch += count
        for plan in self._plans:
            begins = {name: start for name, (kind, start) in places.items() if kind != "tensor"}
            reached = (begins.get(name, 0) + self.extent(strides[name]) for name in plan.nest.operands)
            wide = max(reached) > FARTHEST
            apart = frozenset(begins.keys() & set(plan.nest.operands))
            tile = dataclasses.replace(plan.tile, wide=wide, apart=apart, factors=self._factors(plan.nest, strides))
            text = emit(plan.nest, tile, str(self.real).split(".")[-1], self._title)
            self._launches.append(_Launch(plan, text, self, places, strides))
        self.text = "\n".join(launch.text.text for launch in self._launches)
        return self._launches

    def _factors(self, nest: Nest, strides: Mapping[str, Sequence[int]]) -> tuple[tuple[str, int], ...]:
        """What sizes and distances are multiples of, where Triton does not see it: it looks for multiples of 16."""
        numbers = {f"size_{axis}": size for axis, size in enumerate(self.sizes)}
        for operand in nest.operands:
            key = operand.replace(" to", "_to")
            numbers |= {f"{key}_{axis}": stride for axis, stride in enumerate(strides[operand])}
        factors = {key: math.gcd(number, 16) for key, number in numbers.items()}
        return tuple((key, factor) for key, factor in factors.items() if 1 < factor < 16 and numbers[key])

    def extent(self, strides: Sequence[int]) -> int:
        """The place of the last entry."""
        return sum((size - 1) * stride for size, stride in zip(self.sizes, strides, strict=True))

    def run(
        self, slots: Any, tensors: Sequence[Tensor], rest: Tensor, numbers: array[float], draws: Draws | None
    ) -> list[Tensor]:
        """Run on tensors, and on what lies in the rest; return the totals, flat."""
        scratch = torch.empty(self._scratch, dtype=self.real, device=self._device) if self._scratch else rest
        found = {name: scratch[place] for name, place in self._apart.items()}
        with gpu.on(self._device):
            for launch in slots:
                found |= launch(tensors, rest, scratch, numbers, draws)
        return [found[name] for name in self.starts]


# -- how a nest is cut ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """A nest, its tile, and its grid: blocks, programs that share a block, programs that share what is reduced."""

    nest: Nest
    tile: Tile
    owned: int  # blocks along the axes outside along which totals vary
    programs: int  # of each of them, which share the blocks along the other axes outside
    splits: int
    warps: int
    rows: int  # of parts of totals


class _Gpu(NamedTuple):
    """Multiprocessors, and bytes of their second cache."""

    processors: int
    cache: int

    @classmethod
    def of(cls, device: torch.device) -> _Gpu:
        """What a GPU has, or what the interpreter stands for."""
        if device.type != "cuda":
            return cls(INTERPRETED_PROCESSORS, INTERPRETED_CACHE)
        return cls(gpu.processors(device), torch.cuda.get_device_properties(device).L2_cache_size)


def _plans(nest: Nest, sizes: Sequence[int], gpu: _Gpu) -> list[_Plan]:
    """The kernels of a nest: the first, then those of sums over rows that it cannot have beside it."""
    first = _plan(nest, sizes, gpu)
    last = nest.axes - 1
    varying = frozenset().union(*(along(total, last) for total in nest.totals.values()))
    apart = []
    for name, total in nest.totals.items():
        if first.tile.whole or total.over & nest.inner:  # else it would be made for every row
            turns = _count(sizes, first.tile.blocks, nest.inner - varying)
            if first.splits == 1 or turns // LEAST_TURNS >= first.splits:
                continue
        elif first.splits == 1 and not along(total, last) & nest.inner:
            continue
        apart.append(name)
    if not apart:
        return [first]
    main, others = _divided(nest, apart)
    plans = [_plan(main, sizes, gpu)] if main.outputs else []
    return [*plans, *(_plan(other, sizes, gpu, absent) for other, absent in others)]


def _plan(nest: Nest, sizes: Sequence[int], gpu: _Gpu, absent: frozenset[int] = frozenset()) -> _Plan:
    """Choose the tile and the grid of a nest."""
    cut = _Cut(nest, sizes, gpu, absent)
    if cut.whole:
        cut.hold_rows()
    else:
        cut.share_rows()
    warps = max(1, min(MOST_WARPS, cut.entries // ENTRIES_OF_A_WARP))
    programs = gpu.processors * max(1, WARPS // warps)  # that the GPU runs at a time
    units, splits = cut.count(cut.outside), 1
    if not cut.whole and units < gpu.processors:
        splits = max(1, min(cut.count(cut.inner) // LEAST_TURNS, programs // units, MOST_SPLITS))
    owned = cut.count([axis for axis in cut.outside if axis in owned_axes(nest)]) if nest.totals else 1
    shares = rows = min(units // owned, max(1, programs // owned)) if nest.totals else units
    if splits > 1 or (not cut.whole and cut.summed & nest.inner):
        shares = rows = units // owned
    if cut.alone:
        shares = max(1, gpu.processors // owned)
    exact = frozenset(axis for axis in range(nest.axes) if cut.sizes[axis] % cut.blocks[axis] == 0)
    tile = Tile(tuple(cut.blocks), exact, absent, cut.whole, splits > 1, cut.alone)
    return _Plan(nest, tile, owned, shares, splits, warps, rows)


class _Cut:
    """The tile of a nest, which grows: ``blocks`` along every axis, ``entries`` altogether.

    ``whole``: it holds all that is reduced; ``alone``: one program at a time is to run on a multiprocessor; ``summed``:
    along which totals vary.
    """

    def __init__(self, nest: Nest, sizes: Sequence[int], gpu: _Gpu, absent: frozenset[int]) -> None:
        self.nest, self.gpu, self.last, self.fixed = nest, gpu, nest.axes - 1, nest.columns is not None
        if self.fixed and sizes[self.last] > MOST_COLUMNS:
            raise Unsupported(f"a formula that cuts {sizes[self.last]} columns")
        if self.fixed and nest.inner - {self.last}:  # no program has all rows
            raise Unsupported("a formula that computes with sums over rows")
        self.sizes = [1 if axis in absent else size for axis, size in enumerate(sizes)]
        present = [axis for axis in range(self.last, -1, -1) if axis not in absent]
        self.inner = [axis for axis in present if axis in nest.inner]
        self.outside = [axis for axis in present if axis not in nest.inner]
        # What lies between entries that are reduced; a row whose columns are cut has them together.
        between = [axis for axis in self.outside if not self.inner or axis > min(self.inner)]
        self.beside = [] if self.fixed else between
        self.summed = frozenset().union(*(along(total, self.last) for total in nest.totals.values()))
        self.blocks, self.entries, self.alone = [1] * nest.axes, 1, False
        self.least = min(self._power(self.beside), FEWEST_COLUMNS) if self.inner else 1  # rows of a tile
        self.whole = self.fixed or max(self._held(), 2 * self._power(self.inner)) * self.least <= REGISTERS

    def count(self, axes: Iterable[int]) -> int:
        """Blocks along some axes."""
        return _count(self.sizes, self.blocks, axes)

    def hold_rows(self) -> None:
        """Let the tile hold all that is reduced, and as many rows as are worth it."""
        for axis in self.inner:
            self.blocks[axis] = 1 if self.fixed and axis == self.last else power(self.sizes[axis])
        self.entries = self._power(self.inner)
        if self.fixed and self.last in self.outside:
            self.blocks[self.last] = self.entries = power(self.sizes[self.last])
        self._grow(self.beside, max(self.entries * self.least, TARGET if not self.inner else 0))
        self._grow(self.outside, TARGET, fewest=self.gpu.processors)

    def share_rows(self) -> None:
        """Let the tile be one of several that go over what is reduced."""
        processors = self.gpu.processors
        if self.last in self.inner:
            self._grow([self.last], FEWEST_COLUMNS)
        self._grow(self.beside, FEWEST_COLUMNS)
        self._grow(self.beside, ENOUGH_COLUMNS, fewest=processors * WARPS // MOST_SPLITS)
        self.alone = processors < self.count(self.outside) and self._reads_again()
        target = 2 * TARGET if self.alone else TARGET
        for axis in self.summed & {*self.inner}:
            while (
                2 * self.blocks[axis] <= MOST_SUMS
                and 2 * self.entries <= target
                and self.sizes[axis] % (2 * self.blocks[axis]) == 0
            ):
                self._double(axis)
        self._grow(self.inner, target)

    def _grow(self, axes: Iterable[int], target: int, fewest: int = 0) -> None:
        """Have more entries, as long as there are enough tiles."""
        for axis in axes:
            while self.blocks[axis] < power(self.sizes[axis]) and 2 * self.entries <= target:
                if fewest and self.count(self.outside) < 2 * fewest:
                    return
                self._double(axis)

    def _double(self, axis: int) -> None:
        self.blocks[axis], self.entries = 2 * self.blocks[axis], 2 * self.entries

    def _power(self, axes: Iterable[int]) -> int:
        """Entries of a tile that holds all along some axes."""
        return math.prod(power(self.sizes[axis]) for axis in axes)

    def _held(self) -> int:
        """Numbers that a tile keeps, were it to hold all that is reduced."""
        read = [v for v in self.nest.values if v.kind in ("memory", "draws")]
        values = [*read, *(total.values[0] for total in self.nest.totals.values())]
        return sum(self._power(along(value, self.last) & {*self.inner}) for value in values)

    def _reads_again(self) -> bool:
        """Whether what is reduced is read again out of the second cache: the operands of all that run fit that."""
        within, nest = frozenset(self.inner), self.nest
        again = any(value.kind == "reduce" for value in nest.values) and any(
            value.kind != "total" and along(value, self.last) & within for value in nest.outputs.values()
        )
        if not again or any(not along(total, self.last) & within for total in nest.totals.values()):
            return False
        bytes_read = 0
        for value in nest.values:
            axes = along(value, self.last)
            if value.kind == "memory" and axes & within:
                entries = math.prod(self.sizes[axis] if axis in within else self.blocks[axis] for axis in axes)
                storage = nest.storage[value.name]
                bytes_read += entries * (8 if storage == "real" else getattr(torch, storage).itemsize)
        return self.gpu.processors * bytes_read <= CACHED * self.gpu.cache


def _count(sizes: Sequence[int], blocks: Sequence[int], axes: Iterable[int]) -> int:
    """Blocks along some axes."""
    return math.prod(-(-sizes[axis] // blocks[axis]) for axis in axes)


def _divided(nest: Nest, apart: Sequence[str]) -> tuple[Nest, list[tuple[Nest, frozenset[int]]]]:
    """A nest without some of its totals, and nests of these, with the axes along which nothing in them varies.

    A total is a reduction there; the statistics that it is made of are further results of the first nest.
    """
    of_main = ReadBack(lambda value: value.kind == "reduce")
    groups: dict[tuple[frozenset[int], frozenset[int]], dict[str, Value]] = {}
    last = nest.axes - 1
    for name in apart:
        total = nest.outputs[name]
        operand = of_main(total.values[0])
        key = total.over, frozenset(range(nest.axes)) - along(operand, last) - total.over
        reduction = dataclasses.replace(total, kind="reduce", operands=(operand,))
        groups.setdefault(key, {})[name] = reduction
    outputs = {name: value for name, value in {**nest.outputs, **of_main.saved}.items() if name not in apart}
    storage = dict(nest.storage) | dict.fromkeys([*of_main.saved, *apart], "real")
    others = []
    for (over, absent), found in groups.items():
        name = f"{nest.name}_of_{'_'.join(found)}"
        others.append((dataclasses.replace(nest, name=name, outputs=found, storage=storage, inner=over), absent))
    return dataclasses.replace(nest, outputs=outputs, storage=storage), others


# -- launches ---------------------------------------------------------------------------------------------------------


class _Launch:
    """The stages of an emitted nest, and what they are given: numbers that do not change, and places for the rest."""

    def __init__(
        self,
        plan: _Plan,
        text: Text,
        direction: Kernel,
        places: Mapping[str, tuple[str, int]],
        strides: Mapping[str, Sequence[int]],
    ) -> None:
        self.plan, self.text = plan, text
        nest, tile, sizes = plan.nest, text.tile, direction.sizes
        module = gpu.load(text.text)
        units = plan.owned * plan.programs
        self._stages = [(getattr(module, name), units * (plan.splits if passes else 1)) for name, passes in text.stages]
        self._totals = {name: direction.counts[name] for name in nest.totals}
        outside = [axis for axis in range(nest.axes) if axis not in nest.inner | tile.absent]
        entries = math.prod(sizes[axis] for axis in outside)
        self._parts = text.parts * plan.splits * entries if tile.split else 0
        self._real, self._totals_type, self._device = direction.real, direction.totals_type, direction._device
        known: dict[str, int] = {f"size_{axis}": size for axis, size in enumerate(sizes)}
        known |= {"total_entries": sum(self._totals.values()), "programs": plan.programs}
        known |= {"units": entries, "splits": plan.splits}
        self._filled: dict[str, list[tuple[int, int]]] = {"tensor": [], "rest": [], "scratch": []}
        numbers = {key: place for place, key in enumerate(text.parameters)}
        begin = 0  # of a total among all
        for operand in nest.operands:
            key = operand.replace(" to", "_to")
            known |= {f"{key}_{axis}": stride for axis, stride in enumerate(strides[operand])}
            kind, start = places.get(operand, ("", 0))
            if operand[:-3] in self._totals:
                known[f"{key}_begin"], begin = begin, begin + self._totals[operand[:-3]]
            elif kind in ("rest", "scratch"):
                known[f"{key}_begin"] = start
            if key in numbers:
                self._filled[kind].append((numbers[key], start))
        for key, factor in tile.factors:
            known[key] //= factor
        self._blank = [known.get(key, 0) for key in text.parameters]
        self._numbers = [numbers[f"{name}_low"] for name in nest.numbers]
        draws = [value.name for value in nest.inputs.values() if value.kind == "draws"]
        self._begins = [(name, numbers[f"{name}_begin"], direction.extent(strides[name])) for name in draws]
        last = nest.axes - 1
        self._aligned = all(s % 4 == 0 for name in draws for axis, s in enumerate(strides[name]) if axis != last)
        self._seeds = [numbers[name] for name in ("seed", "seed_high", "stream", "stream_high") if name in numbers]
        self._memory = [numbers.get(name) for name in ("totals", "parts")]
        self._warps, self._constants = plan.warps, {}
        if tile.split:
            self._constants["SPLITS"] = power(plan.splits)
        if "STAGES" in text.options:
            self._constants["STAGES"] = STAGES

    def __call__(
        self,
        tensors: Sequence[Tensor],
        rest: Tensor,
        scratch: Tensor,
        numbers: array[float],
        draws: Draws | None,
    ) -> dict[str, Tensor]:
        """Launch all stages; return the totals."""
        given: list[Any] = self._blank.copy()
        for place, i in self._filled["tensor"]:
            given[place] = tensors[i]
        for kind, held in (("rest", rest), ("scratch", scratch)):
            for place, _ in self._filled[kind]:
                given[place] = held
        for place, number in zip(self._numbers, numbers, strict=True):
            if self._real == torch.float64:
                given[place], given[place + 1] = struct.unpack("<ii", struct.pack("<d", number))
            else:
                given[place] = float(number)
        constants = self._constants
        if self._seeds:
            assert draws is not None
            constants = constants | self._draw(given, draws)
        totals, parts = self._memory
        sums = None
        if totals is not None:
            shape = (self.plan.rows * self.plan.splits, sum(self._totals.values()))
            given[totals] = sums = torch.empty(shape, dtype=self._real, device=self._device)
        if parts is not None:
            given[parts] = torch.empty(self._parts, dtype=self._real, device=self._device)
        for function, blocks in self._stages:
            self._launch(function, blocks, given, constants)
        if sums is None:
            return {}
        whole = sums[0] if len(sums) == 1 else gpu.added(sums, self._totals_type)
        return dict(zip(self._totals, whole.split_with_sizes(list(self._totals.values())), strict=True))

    def _launch(self, function: Any, blocks: int, given: Sequence[Any], constants: Mapping[str, Any]) -> None:
        """Launch a kernel; where a multiprocessor has too little memory to read ahead, one that does not, for good."""
        try:
            gpu.launch(function, (blocks,), given, constants, num_warps=self._warps)
        except gpu.out_of_resources():
            if self._constants.get("STAGES", 1) == 1:
                raise
            self._constants["STAGES"] = 1
            gpu.launch(function, (blocks,), given, {**constants, "STAGES": 1}, num_warps=self._warps)

    def _draw(self, given: list[Any], draws: Draws) -> dict[str, bool]:
        """Say where random numbers come from; a seed on the GPU is read there."""
        aligned, far = self._aligned, False
        for name, place, extent in self._begins:
            given[place] = offset = draws.offsets[name]
            aligned, far = aligned and offset % 4 == 0, far or offset + extent > FARTHEST
        seed, seed_high, stream, stream_high = self._seeds
        lies = isinstance(draws.seed, Tensor)
        given[seed], given[seed_high] = (
            (draws.seed.to(self._device), 0) if isinstance(draws.seed, Tensor) else _halves(draws.seed)
        )
        given[stream], given[stream_high] = _halves(draws.stream)
        return {"SEED_LIES": lies, "ALIGNED": aligned, "FAR": far}


def _halves(number: int) -> tuple[int, int]:
    """The lower and the upper 32 bits, each as a number of 32 bits with a sign."""
    low, high = struct.unpack("<ii", struct.pack("<Q", number % 2**64))
    return low, high
