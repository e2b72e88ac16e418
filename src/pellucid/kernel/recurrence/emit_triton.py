"""Triton text of a fused program: every loop over time is one kernel, whose blocks each take some rows through it.

The rows of a block are tiles in registers, with columns from top to bottom and rows side by side, so that few rows
make small products. The state stays there from step to step, and so does every value of a step. A tile has as many
columns as the next power of two; what lies beyond the real ones is never stored, and is 0 where columns are added up.

A matrix stays in shared memory for all steps. One that is too large is shared among ``splits`` blocks: each has the
columns of its own share of every value, and what whole rows are needed for, products and reductions, the blocks
exchange through memory, where they wait for each other. One that is too large even so is read at every step, out of
the second cache.

A block of a ``single`` row has no use for the units that multiply matrices: its threads have the matrix in their
registers, a few threads a column, and multiply number by number.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import Unsupported
from pellucid.formula.program import Program
from pellucid.kernel.language.layout import Layout, Work, layout, real_of
from pellucid.kernel.language.lower import lower
from pellucid.kernel.language.pieces import part_of
from pellucid.kernel.language.text_c import indented
from pellucid.kernel.language.text_triton import (
    GIVEN,
    HEADER,
    JOINED,
    LEAST,
    OPTIONS,
    REDUCTIONS,
    number_text,
    padded,
    power,
)
from pellucid.kernel.language.tiles import Home, Tiles
from pellucid.kernel.language.values import Value

DEPTH_BLOCK = 64  # rows of a matrix that are read at a time where it is not held, at most
BLOCK_BYTES = 64 * 2**10  # of them; two such blocks are on their way at a time, in shared memory
MOST_PIECES = 32  # of a value, each of them written: in twice as many a product is written four times as often
ALIGNED = 16  # what divides a stride that Triton takes for one of whole vectors
SIDE_BYTES = 64  # of a column that lie side by side: four threads read them, 16 bytes each


@dataclass(frozen=True)
class Division:
    """How a loop is divided: among how many blocks the columns, and whether these hold their part of the matrices.

    With a ``single`` row a block holds them in registers; they are to lie as `packed` lays them.
    """

    splits: int
    held: bool
    single: bool = False


@dataclass(frozen=True)
class Kernel:
    """An emitted loop: what its caller must know.

    ``columns`` are those of the widest tile of a block's own columns. ``passed`` is how many columns of its rows a
    block writes for its products to read, in ``passed_storage``; ``exchanged`` how many numbers of a row the blocks
    exchange.
    """

    layout: Layout
    division: Division
    columns: int
    passed: int
    passed_storage: str
    exchanged: int


@dataclass(frozen=True)
class Text:
    """The Triton text of a loop, a Python module, and what is in it."""

    text: str
    kernel: Kernel


def emit(program: Program, work: Work, dtype: torch.dtype, division: Division) -> Text:
    """Write one loop of a fused program, of which `works` tells.

    Args:
        program: what the loop is of.
        work: the loop.
        dtype: the type of the input.
        division: how the loop is divided.

    Raises:
        Unsupported: an operation has no Triton.
    """
    function = _Function(work, program, division)
    title = f"{program.name}: written by pellucid from the cell's formula."
    return Text(f"{HEADER.format(title=title, real=real_of(dtype))}\n\n{function.text()}\n", function.kernel())


def packed(matrix: Tensor) -> Tensor:
    """A matrix as a block with a single row reads it: the numbers of a column side by side, columns aligned."""
    if matrix.stride(0) == 1 and matrix.stride(1) % ALIGNED == 0:
        return matrix
    depth, width = matrix.shape
    return matrix.new_empty(width, -(-depth // ALIGNED) * ALIGNED)[:, :depth].copy_(matrix.t()).t()


def bytes_of_matrices(program: Program, work: Work, splits: int, itemsize: int | None = None) -> int:
    """How much memory a block's part of the matrices of a loop takes, with an entry of their own size or of another."""
    sizes = {n: p.meta["val"].dtype.itemsize for n, p in work.stage.placeholders.items() if n != "rows"}
    matrices = lower(work.stage, program.draws).matrices
    return sum(padded(d) * padded(-(-w // splits)) * (itemsize or sizes[name]) for name, (d, w) in matrices.items())


class _Function(Tiles):
    """The Triton of one loop."""

    def __init__(self, work: Work, program: Program, division: Division) -> None:
        self.work, self.division, self.splits = work, division, division.splits
        self.lowered = lower(work.stage, program.draws)
        self.layout = layout(work, self.lowered)
        self.sites = {d: (i, *site) for i, (d, site) in enumerate(zip(program.draws, program.sites, strict=True))}
        outputs, inputs = self.lowered.outputs, self.lowered.inputs
        self.new = {s: outputs[n] for s, n in zip(work.states, work.new_states, strict=True)}
        self.old = {s: inputs[s] for s in work.states if s in inputs}
        self.known: dict[Value, set[int]] = defaultdict(set)  # where states and products are cut
        self.passed: dict[Value, int] = {}  # operands of products, and where their columns begin in scratch
        self._cut_everything()
        self.spread: dict[Any, list[str]] = {}  # pieces of single rows
        self.exchanged: dict[Value, int] = {}  # reductions, and the places where blocks exchange their parts
        self.widest = 1  # columns of a tile
        self.taken: set[str] = set()
        self.parameters = {name: self._fresh(name) for name in self._parameters()}
        self.carried = {(s, start): self._fresh(f"{s}_{start}") for s in work.states for start, _ in self._tiles(s)}
        self.names: dict[Any, str] = {
            (old, start, length): self.carried[state, start]
            for state, old in self.old.items()
            for start, length in self._tiles(state)
        }
        self.before: list[str] = []  # the loop
        self.lines: list[str] = []  # of a step
        self.behind: list[str] = []  # the loop
        self._write()

    def _parameters(self) -> Iterator[str]:
        """What tells the pointers and strides apart that a call gives, in their order."""
        yield from (f"{name}_all" for name in self.layout.inputs)
        yield from (f"{name}_slots" for name in self.layout.states)
        yield from (f"{name}_to" for name in (*self.layout.outputs, *self.layout.totals))
        yield "output_to"
        yield from (f"{name}_{what}" for name in self.layout.matrices for what in ("matrix", "in", "out"))
        yield from (f"{name}_count" for name in self.layout.states)

    # -- where values are cut -------------------------------------------------------------------------------------

    def _lies(self, value: Value) -> bool:
        return False

    def _own_cuts(self, value: Value) -> Collection[int]:
        return self.known.get(value, ())

    def _cut_everything(self) -> None:
        """Cut states and products wherever somebody reads a part of them: no column is computed twice."""
        cuts = -1
        while cuts != (cuts := sum(map(len, self.known.values()))):
            self.visited: set[tuple[Value, int, int]] = set()
            for state, old in self.old.items():
                self.known[old] |= self._cuts(self.new[state], 0, old.width)
            for state, new in self.new.items():
                for start, length in self._tiles(state):
                    self._visit(new, start, length)
            for value in self.lowered.outputs.values():
                self._visit_whole(value.values[0] if value.kind == "total" else value)
            if any(len(cut) >= MOST_PIECES for cut in self.known.values()):  # a state moves by a column at every step
                raise Unsupported(f"a value in more than {MOST_PIECES} pieces")

    def _visit_whole(self, value: Value) -> None:
        for start, length in self._pieces(value):
            self._visit(value, start, length)

    def _visit(self, value: Value, start: int, length: int) -> None:
        if (value, start, length) in self.visited:
            return
        self.visited.add((value, start, length))
        if value.kind in ("product", "memory") or value in self.old.values():
            self.known[value] |= {start, start + length} - {0, value.width}
        if value.kind == "product":
            self.passed.setdefault(value.values[0], sum(operand.width for operand in self.passed))
        if value.kind in ("product", "reduce"):
            self._visit_whole(value.values[0])
        elif value.kind == "slice":
            self._visit(value.values[0], start + value.start, length)
        elif value.kind == "cat":
            self._visit(*part_of(value, start), length)
        else:
            for operand in value.values:
                self._visit(operand, *((start, length) if operand.width > 1 else (0, 1)))

    def _tiles(self, state: str) -> list[tuple[int, int]]:
        """The pieces in which a state is carried from step to step."""
        return self._pieces(self.old.get(state, self.new[state]))

    # -- the text -------------------------------------------------------------------------------------------------

    def kernel(self) -> Kernel:
        """What a caller must know."""
        storages = {
            str(p.meta["val"].dtype)[6:] for n, p in self.work.stage.placeholders.items() if n in self.layout.matrices
        }
        return Kernel(
            layout=self.layout,
            division=self.division,
            columns=self.widest,
            passed=self._all_passed() if self._passes() else 0,
            passed_storage=storages.pop() if len(storages) == 1 else "",
            exchanged=len(self.exchanged),
        )

    def _passes(self) -> bool:
        """Whether products read their operands from memory, where whole rows of them are."""
        return self.splits > 1 or not self.division.held

    def _all_passed(self) -> int:
        return sum(operand.width for operand in self.passed)

    def text(self) -> str:
        """The kernel, a function of Python."""
        return "\n".join(
            [
                '@triton.jit(do_not_specialize=["time", "begin", "first_block", "first_split"])',
                f"def {self.work.name}(",
                *(f"    {name}," for name in (*self.parameters.values(), *GIVEN)),
                *(f"    {option}: tl.constexpr," for option in OPTIONS),
                "):",
                *indented(self.before, 2),
                "    for step in range(time):",
                "        t = time - 1 - step if BACKWARDS else step",
                "        at = (origin + t) * batch",
                "        ahead = tl.maximum(t - 1, 0) if BACKWARDS else tl.minimum(t + 1, time - 1)",
                "        ahead = (origin + ahead) * batch",
                *(["        turn = step % 2"] if self._passes() else []),
                "        counted = inside",
                "        if LENGTHS:",
                "            counted = inside & (t < ends)",
                *indented(self.lines, 4),
                *indented(self.behind, 2),
            ]
        )

    def _write(self) -> None:
        self.before += [
            "block = first_block + tl.program_id(0)",
            "rows = (block * ROWS + tl.arange(0, ROWS))[None, :].to(tl.int64 if WIDE else tl.int32)",
            "origin = tl.full([], 0, tl.int64)",
            "inside = rows < batch",
            "ends = tl.load(lengths + rows, mask=inside, other=0) if LENGTHS else rows",
        ]
        if self.splits > 1:
            self.before += ["split = first_split + tl.program_id(1)", "meeting = 0"]
        if any(value.kind == "draws" for value in self.lowered.inputs.values()):
            self.before.append("key = tl.load(seed)")
        for state in self.layout.states:
            count, first = self.parameters[f"{state}_count"], self._fresh(f"{state}_first")
            self.before.append(f"{first} = (origin + (time % {count} if BACKWARDS else 0)) * batch")
            for start, length in self._tiles(state):
                tile = f"{self._load(f'{state}_slots', first, self.new[state].width, start, length)}.to(REAL)"
                self.before.append(
                    f"{self.carried[state, start]} = tl.broadcast_to({tile}, [{self._size(length)}, ROWS])"
                )
        for name in self.layout.outputs:
            value = self.lowered.outputs[name]
            zeros = self.work.name == "backward" or name == self.work.output  # what is saved stays as it was computed
            for start, length in self._pieces(value):
                tile = self._counted(value, start, length) if zeros else self._computed(value, start, length)
                self._store(f"{name}_to", "at", value, start, length, tile)
        for name in self.layout.totals:
            self._add_up(name, self.lowered.outputs[name])
        self._advance()

    def _add_up(self, name: str, total: Value) -> None:
        operand = total.values[0]
        for start, length in self._pieces(operand):
            sums = self._fresh(f"{name}_sum_{start}")
            self.before.append(f"{sums} = tl.zeros([{self._size(length)}, 1], REAL)")
            self.lines.append(f"{sums} += tl.sum({self._counted(operand, start, length)}, 1, keep_dims=True)")
            place, mask = self._place(f"{name}_to", "block", operand.width, start, length, "")
            self.behind.append(f"tl.store({place}, {sums}{mask})")

    def _advance(self) -> None:
        """Let the new states be the old ones, but for rows past their end, and keep them."""
        tiles = {
            (state, start): self._evaluate(self.new[state], start, length)
            for state in self.layout.states
            for start, length in self._tiles(state)
        }
        carried = set(self.carried.values())
        for key, tile in tiles.items():
            if tile in carried:  # an old state is another's new one, and the first to be overwritten
                tiles[key] = self._fresh(f"{tile}_old")
                self.lines.append(f"{tiles[key]} = {tile}")
        shared = self.layout.output_is_state
        if shared is not None:
            state = self.layout.states[shared]
            self.lines.append("if OUTPUT:")
            for start, length in self._tiles(state):
                place, mask = self._place("output_to", "at", self.new[state].width, start, length)
                self.lines.append(f"  tl.store({place}, {self._wide(tiles[state, start], length, '0.0')}{mask})")
        for (state, start), tile in tiles.items():
            self.lines.append(f"{self.carried[state, start]} = tl.where(counted, {tile}, {self.carried[state, start]})")
        for state in self.layout.states:
            count, width = self.parameters[f"{state}_count"], self.new[state].width
            every = f"(origin + (t if BACKWARDS else t + 1) % {count}) * batch"
            last = f"(origin + (0 if BACKWARDS else time) % {count}) * batch"
            self.lines.append(f"if {count} > 2:")
            for lines, indent, slot in ((self.lines, "  ", every), (self.behind, "", last)):
                for start, length in self._tiles(state):
                    place, mask = self._place(f"{state}_slots", f"({slot})", width, start, length)
                    lines.append(f"{indent}tl.store({place}, {self.carried[state, start]}{mask})")

    # -- memory ---------------------------------------------------------------------------------------------------

    def _place(
        self, parameter: str, row: str, width: int, start: int, length: int, inside: str = "inside"
    ) -> tuple[str, str]:
        """The pointers of a tile in memory, in a row or, where they are ``inside``, in rows from it; and their mask."""
        shift = f" + {start}" if start else ""
        masks = [mask for mask in (inside, self._within(length) if self._partial(length) else "") if mask]
        name = self.parameters[parameter]
        of_rows = f"rows * {width} + " if inside else ""
        place = f"{name} + {row} * {width}{shift} + ({of_rows}{self._columns(length)})"
        return place, f", mask={' & '.join(masks)}" if masks else ""

    def _load(self, parameter: str, row: str, width: int, start: int, length: int, inside: str = "inside") -> str:
        place, mask = self._place(parameter, row, width, start, length, inside)
        return f"tl.load({place}{mask}{', other=0' if mask else ''})"

    def _store(self, parameter: str, row: str, value: Value, start: int, length: int, tile: str) -> None:
        place, mask = self._place(parameter, row, value.width, start, length)
        self.lines.append(f"tl.store({place}, {tile}{mask})")

    def _computed(self, value: Value, start: int, length: int) -> str:
        """A tile in its full size."""
        return self._wide(self._evaluate(value, start, length), length)

    def _counted(self, value: Value, start: int, length: int) -> str:
        """A tile that is 0 in rows past their end."""
        tile = self._evaluate(value, start, length)
        return self._wide(f"({tile} & counted)", length) if value.mask else self._wide(tile, length, "0.0")

    def _wide(self, tile: str, length: int, beyond: str = "") -> str:
        """A tile in its full size, which one that is the same for all rows or columns has not."""
        tile = f"tl.where(counted, {tile}, {beyond})" if beyond else tile
        return f"tl.broadcast_to({tile}, [{self._size(length)}, ROWS])"

    def _share(self, length: int) -> int:
        """How many of a piece's columns a block has."""
        return -(-length // self.splits)

    def _size(self, length: int) -> int:
        """The columns of the tile of a block's share of a piece."""
        return padded(self._share(length)) if length > 1 else 1

    def _partial(self, length: int) -> bool:
        """Whether tiles have columns beyond those of their share."""
        return length > 1 and self._size(length) * self.splits != length

    def _along(self, size: int) -> str:
        return self._hoisted(("along", size), f"along_{size}", f"tl.arange(0, {size})[:, None]")

    def _columns(self, length: int) -> str:
        """Which columns of a piece a block has."""
        self.widest = max(self.widest, self._size(length))
        along = self._along(self._size(length))
        if self.splits == 1 or length == 1:
            return along
        share = self._share(length)
        return self._hoisted(("columns", length), f"columns_{length}", f"split * {share} + {along}")

    def _within(self, length: int) -> str:
        """Which of a tile's columns are real."""
        columns = self._columns(length)
        text = f"{columns} < {length}"
        if self.splits > 1:
            text = f"({text}) & ({self._along(self._size(length))} < {self._share(length)})"
        return self._hoisted(("within", length), f"within_{length}", text)

    def _hoisted(self, key: Any, name: str, text: str) -> str:
        """A name for what is the same at every step."""
        if key not in self.names:
            self.names[key] = self._fresh(name)
            self.before.append(f"{self.names[key]} = {text}")
        return self.names[key]

    # -- values ---------------------------------------------------------------------------------------------------

    def _home(self, value: Value) -> Home:
        return self.names, self.before if _is_fixed(value) else self.lines

    def _read(self, value: Value, start: int, length: int) -> str:
        if value.kind == "memory":
            return f"{self._input(value, start, length)}{' != 0' if value.mask else '.to(REAL)'}"
        if value.kind == "draws":
            site, width, shared = self.sites[value.name]
            row = "(origin + rows)" if shared else "((origin + begin) * batch + at + rows)"
            element = f"{row} * {width} + {start} + {self._columns(length)}"
            return f"functions.uniform(key, {site}, {element}).to(REAL)"
        if value.kind == "product":
            return self._product(value, start, length)
        return self._reduced(value)

    def _input(self, value: Value, start: int, length: int) -> str:
        """A tile of an input. It was asked for a step before: memory takes as long as a step."""
        if not value.rows:
            return self._load(f"{value.name}_all", "0", value.width, start, length, "")
        name = self._fresh(f"{value.name}_next", start)
        first = self._hoisted("first", "first", "(origin + (time - 1 if BACKWARDS else 0)) * batch")
        self.before.append(f"{name} = {self._load(f'{value.name}_all', first, value.width, start, length)}")
        now = self._fresh(f"{value.name}_now", start)
        self.lines.append(f"{now} = {name}")
        self.lines.append(f"{name} = {self._load(f'{value.name}_all', 'ahead', value.width, start, length)}")
        return now

    def _masked(self, value: Value, start: int, length: int, neutral: float) -> str:
        """A tile with what is neutral beyond its real columns."""
        tile = self._wide(self._evaluate(value, start, length), length)
        return f"tl.where({self._within(length)}, {tile}, {number_text(neutral)})" if self._partial(length) else tile

    def _reduced(self, value: Value) -> str:
        operand = value.values[0]
        neutral, text = REDUCTIONS[value.operation]
        tiles = defaultdict(list)  # of a size: they are taken together before threads have to exchange anything
        for start, length in self._pieces(operand):
            tile = self._masked(operand, start, length, neutral)
            if self.splits > 1 and length == 1 < operand.width:  # a single column is every block's, and counts once
                tile = f"tl.where(split == 0, {tile}, {number_text(neutral)})"
            tiles[self._size(length)].append(tile)
        parts = [text.format(functools.reduce(JOINED[value.operation].format, same), 0) for same in tiles.values()]
        whole = functools.reduce(JOINED[value.operation].format, parts)
        if self.splits == 1 or operand.width == 1:
            return whole
        number = self.exchanged.setdefault(value, len(self.exchanged))
        place = f"exchange + (((rows * EXCHANGED + {number}) * 2 + turn) * {self.splits}"
        self.lines.append(f"tl.store({place} + split), {whole})")
        self._meet()
        others = f"tl.load({place} + {self._along(self.splits)}), cache_modifier='.cg')"
        return text.format(others, 0)

    def _meet(self) -> None:
        """Wait until all that take part have written what is to be read now."""
        if self.splits == 1:
            self.lines.append("tl.debug_barrier()")
        else:
            self.lines += [f"meeting += {self.splits}", "functions.meet(meetings + block, meeting)"]

    def _passed_on(self, operand: Value) -> str:
        """Where whole rows of an operand of products are, written there."""
        place = f"scratch + (rows * 2 + turn) * {self._all_passed()} + {self.passed[operand]}"
        if ("passed", operand) not in self.names:
            self.names["passed", operand] = place
            for start, length in self._pieces(operand):
                tile = self._wide(self._evaluate(operand, start, length), length)
                mask = f", mask={self._within(length)}" if self._partial(length) else ""
                self.lines.append(f"tl.store({place} + {start} + {self._columns(length)}, {tile}{mask})")
            self._meet()
        return place

    def _whole(self, operand: Value, start: int, length: int) -> str:
        """A tile of all columns of a piece of an operand, whoever has them."""
        if self.splits == 1 or length == 1:
            return self._masked(operand, start, length, 0.0)
        key, size = ("whole", operand, start, length), padded(length)
        if key not in self.names:
            along, place = self._along(size), self._passed_on(operand)
            mask = f", mask={along} < {length}, other=0" if size != length else ""
            name = self.names[key] = self._fresh(f"{operand.name}_whole", start)
            self.lines.append(f"{name} = tl.load({place} + {start} + {along}{mask}, cache_modifier='.cg')")
        return self.names[key]

    def _product(self, value: Value, start: int, length: int) -> str:
        """Some columns of a product: of tiles that are held, or of rows of the matrix that are read at every step."""
        operand, matrix = value.values[0], value.operation
        if self.division.held or length == 1:
            pieces = self._pieces(operand)
            return " + ".join(self._product_held(operand, matrix, piece, (start, length)) for piece in pieces)
        place = self._passed_on(operand)
        pointer, inner, outer = (self.parameters[f"{matrix}_{what}"] for what in ("matrix", "in", "out"))
        depth = self.lowered.matrices[matrix][0]
        columns = f"{self._within(length)}, {self._columns(length)}"
        size, itemsize = self._size(length), self.work.stage.placeholders[matrix].meta["val"].dtype.itemsize
        block = max(LEAST, min(DEPTH_BLOCK, power(BLOCK_BYTES // (size * itemsize) + 1) // 2))
        return (
            f"functions.product_from_memory({place}, {depth}, {pointer} + {start} * {outer}, {inner}, {outer}, "
            f"{columns}, ROWS, {size}, {block}, REAL, INTERPRETED, TF32)"
        )

    def _product_held(self, operand: Value, matrix: str, rows: tuple[int, int], columns: tuple[int, int]) -> str:
        """Some columns of the product of a piece of the operand."""
        tile = self._whole(operand, *rows)
        (first, depth), (start, length) = rows, columns
        pointer, inner, outer = (self.parameters[f"{matrix}_{what}"] for what in ("matrix", "in", "out"))
        begin = f"{pointer} + {first} * {inner} + {start} * {outer}"
        if length == 1:
            along = self._along(padded(depth))
            mask = "" if padded(depth) == depth else f", mask={along} < {depth}, other=0"
            text = f"tl.load({begin} + {along} * {inner}{mask}).to(REAL)"
            column = self._hoisted((matrix, rows, columns), f"{matrix}_column_{first}_{start}", text)
            return f"tl.sum({tile} * {column}, 0, keep_dims=True)"
        within = [self._within(length)] if self._partial(length) else []
        if depth == 1:
            mask = f", mask={within[0]}, other=0" if within else ""
            text = f"tl.load({begin} + {self._columns(length)} * {outer}{mask}).to(REAL)"
            row = self._hoisted((matrix, rows, columns), f"{matrix}_row_{first}_{start}", text)
            return f"{row} * {tile}"
        if self.division.single:
            return self._product_of_row(operand, matrix, rows, columns)
        along = f"tl.arange(0, {padded(depth)})[None, :]"
        masks = [f"({along} < {depth})"] if padded(depth) != depth else []
        masks += [f"({mask})" for mask in within]
        mask = f", mask={' & '.join(masks)}, other=0" if masks else ""
        text = f"tl.load({begin} + {along} * {inner} + {self._columns(length)} * {outer}{mask})"
        held = self._hoisted((matrix, rows, columns), f"{matrix}_{first}_{start}", text)
        return f"functions.product({held}, {tile}, INTERPRETED, TF32)"

    def _product_of_row(self, operand: Value, matrix: str, rows: tuple[int, int], columns: tuple[int, int]) -> str:
        """Some columns of the product of a piece of a single row: pieces of a column by pieces of the row."""
        (first, depth), (start, length) = rows, columns
        pointer, inner, outer = (self.parameters[f"{matrix}_{what}"] for what in ("matrix", "in", "out"))
        side = min(padded(depth), SIDE_BYTES // self.work.stage.placeholders[matrix].meta["val"].dtype.itemsize)
        total = ""
        for number, piece in enumerate(self._spread(operand, rows, side)[: -(-depth // side)]):
            begin = number * side
            along, left = f"tl.arange(0, {side})[None, :]", depth - begin
            masks = [f"({along} < {left})"] if left < side else []
            masks += [f"({self._within(length)})"] if self._partial(length) else []
            mask = f", mask={' & '.join(masks)}, other=0" if masks else ""
            place = f"{pointer} + ({first + begin} + {along}) * {inner} + ({start} + {self._columns(length)}) * {outer}"
            key, name = (matrix, rows, columns, begin), f"{matrix}_{first + begin}_{start}"
            held = self._hoisted(key, name, f"tl.load({place}{mask}).to(REAL)")
            total = f"tl.fma({held}, {piece}, {total})" if total else f"{held} * {piece}"
        return f"tl.sum({total}, 1, keep_dims=True)"

    def _spread(self, operand: Value, rows: tuple[int, int], side: int) -> list[str]:
        """The pieces of a piece of a single row, of so many numbers each."""
        key = operand, rows, side
        if key not in self.spread:
            name = self._fresh(f"{operand.name}_row", rows[0])
            self.lines.append(f"{name} = functions.spread({self._whole(operand, *rows)}, {side})")
            self.spread[key] = self._split(name, padded(rows[1]) // side, side)
        return self.spread[key]

    def _split(self, name: str, count: int, side: int) -> list[str]:
        """The names of pieces, of which there are a power of two."""
        if count == 1:
            piece = self._fresh(f"{name}_piece")
            self.lines.append(f"{piece} = tl.reshape({name}, [1, {side}])")
            return [piece]
        even, odd = self._fresh(f"{name}_even"), self._fresh(f"{name}_odd")
        self.lines.append(f"{even}, {odd} = functions.halves({name})")
        both = (self._split(half, count // 2, side) for half in (even, odd))
        return [piece for pair in zip(*both, strict=True) for piece in pair]


def _is_fixed(value: Value) -> bool:
    """Whether a value is the same at every step and in every row."""
    if value.kind == "memory":
        return not value.rows
    return value.kind == "math" and all(map(_is_fixed, value.values))
