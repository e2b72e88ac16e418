"""Triton text of a fused program: every loop over time is one kernel, whose blocks each take some rows through it.

The rows of a block are tiles in registers: the state stays there from step to step, and so does every value of a step.
A tile has as many columns as the next power of two; what lies beyond the real ones is never stored, and is 0 where
columns are added up. A matrix whose tiles fit into shared memory is loaded once for all steps; of a larger one a block
of rows after the other is read at every step, out of the second cache.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pellucid.kernel.layout import Layout, Work, layout, real_of, works
from pellucid.kernel.lower import lower
from pellucid.kernel.program import Program
from pellucid.kernel.text_c import indented
from pellucid.kernel.text_triton import GIVEN, HEADER, JOINED, OPTIONS, REDUCTIONS, number_text, padded
from pellucid.kernel.tiles import Home, Tiles, part_of
from pellucid.kernel.values import Value

HELD_BYTES = 128 * 2**10  # of matrices that a block keeps for all steps: shared memory has 163 KiB (A100) to 227 (H100)
DEPTH_BLOCK = 32  # rows of a larger matrix that are read at a time


@dataclass(frozen=True)
class Kernel:
    """An emitted loop: what its caller must know.

    ``scratch`` is how many columns of its rows a block writes for itself, ``columns`` those of the widest tile.
    """

    layout: Layout
    scratch: int
    columns: int


@dataclass(frozen=True)
class Text:
    """The Triton text of a program, a Python module, and the loops in it."""

    text: str
    loops: Mapping[str, Kernel]


def emit(program: Program, dtype: torch.dtype, training: bool, most_held: int = HELD_BYTES) -> Text:
    """Write a fused program: the loop "forward", and with ``training`` what it saves and the loop "backward".

    Args:
        program: what is written.
        dtype: the type of the input.
        training: whether backward follows.
        most_held: bytes of matrices that a block may keep for all steps.

    Raises:
        Unsupported: an operation has no Triton.
    """
    functions = [_Function(work, program, most_held) for work in works(program, dtype, training)]
    title = f"{program.name}: written by pellucid from the cell's formula."
    header = HEADER.format(title=title, real=real_of(dtype))
    text = "\n\n".join([header, *(function.text() for function in functions)])
    return Text(text + "\n", {function.work.name: function.kernel() for function in functions})


class _Function(Tiles):
    """The Triton of one loop."""

    def __init__(self, work: Work, program: Program, most_held: int) -> None:
        self.work = work
        self.lowered = lower(work.stage, program.draws)
        self.layout = layout(work, self.lowered)
        self.sites = {d: (i, *site) for i, (d, site) in enumerate(zip(program.draws, program.sites, strict=True))}
        outputs, inputs = self.lowered.outputs, self.lowered.inputs
        self.new = {s: outputs[n] for s, n in zip(work.states, work.new_states, strict=True)}
        self.old = {s: inputs[s] for s in work.states if s in inputs}
        self.known: dict[Value, set[int]] = defaultdict(set)  # where states and products are cut
        self.passed: dict[Value, int] = {}  # operands of products, and where their columns begin in scratch
        self._cut_everything()
        self.held = self._bytes_of_matrices(work) <= most_held
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

    def _bytes_of_matrices(self, work: Work) -> int:
        sizes = {n: p.meta["val"].dtype.itemsize for n, p in work.stage.placeholders.items() if n != "rows"}
        return sum(padded(d) * padded(w) * sizes[matrix] for matrix, (d, w) in self.lowered.matrices.items())

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
            for state, old in self.old.items():
                self.known[old] |= self._cuts(self.new[state], 0, old.width)
            for value in self.lowered.outputs.values():
                self._visit_whole(value.values[0] if value.kind == "total" else value)

    def _visit_whole(self, value: Value) -> None:
        for start, length in self._pieces(value):
            self._visit(value, start, length)

    def _visit(self, value: Value, start: int, length: int) -> None:
        if value.kind == "product" or value in self.old.values():
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
        sizes = [key[1] for key in self.names if isinstance(key, tuple) and key[0] == "columns"]
        return Kernel(self.layout, 0 if self.held else sum(operand.width for operand in self.passed), max(sizes))

    def text(self) -> str:
        """The kernel, a function of Python."""
        return "\n".join(
            [
                '@triton.jit(do_not_specialize=["time", "begin"])',
                f"def {self.work.name}(",
                *(f"    {name}," for name in (*self.parameters.values(), *GIVEN)),
                *(f"    {option}: tl.constexpr," for option in OPTIONS),
                "):",
                *indented(self.before, 2),
                "    for step in range(time):",
                "        t = time - 1 - step if BACKWARDS else step",
                "        at = t * batch + rows",
                "        counted = inside",
                "        if LENGTHS:",
                "            counted = inside & (t < ends)",
                *indented(self.lines, 4),
                *indented(self.behind, 2),
            ]
        )

    def _write(self) -> None:
        self.before += [
            "rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)",
            "inside = rows < batch",
            "ends = tl.load(lengths + rows, mask=inside, other=0) if LENGTHS else rows",
        ]
        if any(value.kind == "draws" for value in self.lowered.inputs.values()):
            self.before.append("key = tl.load(seed)")
        for state in self.layout.states:
            count, first = self.parameters[f"{state}_count"], self._fresh(f"{state}_first")
            self.before.append(f"{first} = (time % {count} if BACKWARDS else 0) * batch + rows")
            for start, length in self._tiles(state):
                tile = self._load(f"{state}_slots", first, self.new[state].width, start, length)
                wide = f"tl.broadcast_to({tile}, [ROWS, {padded(length)}])"
                self.before.append(f"{self.carried[state, start]} = {wide}")
        for name in self.layout.outputs:
            value = self.lowered.outputs[name]
            for start, length in self._pieces(value):
                self._store(f"{name}_to", "at", value, start, length, self._counted(value, start, length))
        for name in self.layout.totals:
            self._add_up(name, self.lowered.outputs[name])
        self._advance()

    def _add_up(self, name: str, total: Value) -> None:
        operand = total.values[0]
        for start, length in self._pieces(operand):
            sums = self._fresh(f"{name}_sum_{start}")
            self.before.append(f"{sums} = tl.zeros([1, {padded(length)}], REAL)")
            self.lines.append(f"{sums} += tl.sum({self._counted(operand, start, length)}, 0, keep_dims=True)")
            place, mask = self._place(f"{name}_to", "tl.program_id(0)", operand.width, start, length, "")
            self.behind.append(f"tl.store({place}, {sums}{mask})")

    def _advance(self) -> None:
        """Let the new states be the old ones, but for rows past their end, and keep them."""
        tiles = {
            (state, start): self._evaluate(self.new[state], start, length)
            for state in self.layout.states
            for start, length in self._tiles(state)
        }
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
            count = self.parameters[f"{state}_count"]
            slot = f"((t if BACKWARDS else t + 1) % {count} * batch + rows)"
            for start, length in self._tiles(state):
                place, mask = self._place(f"{state}_slots", slot, self.new[state].width, start, length)
                self.lines.append(f"tl.store({place}, {self.carried[state, start]}{mask})")

    # -- memory ---------------------------------------------------------------------------------------------------

    def _place(
        self, parameter: str, row: str, width: int, start: int, length: int, inside: str = "inside"
    ) -> tuple[str, str]:
        """The pointers of a tile in rows of memory, and their mask."""
        size = padded(length)
        columns = self._columns(size)
        shift = f" + {start}" if start else ""
        masks = [mask for mask in (inside, self._within(length) if size != length else "") if mask]
        name = self.parameters[parameter]
        return f"{name} + {row} * {width}{shift} + {columns}", f", mask={' & '.join(masks)}" if masks else ""

    def _load(self, parameter: str, row: str, width: int, start: int, length: int, inside: str = "inside") -> str:
        place, mask = self._place(parameter, row, width, start, length, inside)
        return f"tl.load({place}{mask}{', other=0' if mask else ''}).to(REAL)"

    def _store(self, parameter: str, row: str, value: Value, start: int, length: int, tile: str) -> None:
        place, mask = self._place(parameter, row, value.width, start, length)
        self.lines.append(f"tl.store({place}, {tile}{mask})")

    def _counted(self, value: Value, start: int, length: int) -> str:
        """A tile that is 0 in rows past their end."""
        tile = self._evaluate(value, start, length)
        return self._wide(f"({tile} & counted)", length) if value.mask else self._wide(tile, length, "0.0")

    def _wide(self, tile: str, length: int, beyond: str = "") -> str:
        """A tile in its full size, which one that is the same for all rows or columns has not."""
        tile = f"tl.where(counted, {tile}, {beyond})" if beyond else tile
        return f"tl.broadcast_to({tile}, [ROWS, {padded(length)}])"

    def _columns(self, size: int) -> str:
        return self._hoisted(("columns", size), f"columns_{size}", f"tl.arange(0, {size})[None, :]")

    def _within(self, length: int) -> str:
        columns = self._columns(padded(length))
        return self._hoisted(("within", length), f"within_{length}", f"{columns} < {length}")

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
            row, inside = ("at", "inside") if value.rows else ("0", "")
            text = self._load(f"{value.name}_all", row, value.width, start, length, inside)
            return f"{text} != 0" if value.mask else text
        if value.kind == "draws":
            site, width, shared = self.sites[value.name]
            row = "rows" if shared else "(begin * batch + at)"
            element = f"{row} * {width} + {start} + {self._columns(padded(length))}"
            return f"functions.uniform(key, {site}, {element}).to(REAL)"
        if value.kind == "product":
            return self._product(value, start, length)
        return self._reduced(value)

    def _masked(self, value: Value, start: int, length: int, neutral: float) -> str:
        """A tile with what is neutral beyond its real columns."""
        tile = self._wide(self._evaluate(value, start, length), length)
        return tile if padded(length) == length else f"tl.where({self._within(length)}, {tile}, {number_text(neutral)})"

    def _reduced(self, value: Value) -> str:
        operand = value.values[0]
        neutral, text = REDUCTIONS[value.operation]
        parts = [text.format(self._masked(operand, *piece, neutral), 1) for piece in self._pieces(operand)]
        return functools.reduce(JOINED[value.operation].format, parts)

    def _product(self, value: Value, start: int, length: int) -> str:
        """Some columns of a product: of tiles that are held, or of rows of the matrix that are read at every step."""
        operand, matrix = value.values[0], value.operation
        pieces = self._pieces(operand)
        if self.held or length == 1:
            return " + ".join(self._product_held(operand, matrix, piece, (start, length)) for piece in pieces)
        place = f"scratch + rows * {sum(v.width for v in self.passed)} + {self.passed[operand]}"
        if ("passed", operand) not in self.names:
            self.names["passed", operand] = place
            tiles = [(at, n, self._wide(self._evaluate(operand, at, n), n)) for at, n in pieces]
            self.lines.append("tl.debug_barrier()")
            for at, n, tile in tiles:
                mask = "" if padded(n) == n else f", mask={self._within(n)}"
                self.lines.append(f"tl.store({place} + {at} + {self._columns(padded(n))}, {tile}{mask})")
            self.lines.append("tl.debug_barrier()")
        pointer, inner, outer = (self.parameters[f"{matrix}_{what}"] for what in ("matrix", "in", "out"))
        depth = self.lowered.matrices[matrix][0]
        columns = f"{self._within(length)}, {self._columns(padded(length))}"
        return (
            f"functions.product_from_memory({place}, {depth}, {pointer} + {start} * {outer}, {inner}, {outer}, "
            f"{columns}, ROWS, {padded(length)}, {DEPTH_BLOCK}, REAL, INTERPRETED, TF32)"
        )

    def _product_held(self, operand: Value, matrix: str, rows: tuple[int, int], columns: tuple[int, int]) -> str:
        """Some columns of the product of a piece of the operand."""
        tile = self._masked(operand, *rows, 0.0)
        (first, depth), (start, length) = rows, columns
        pointer, inner, outer = (self.parameters[f"{matrix}_{what}"] for what in ("matrix", "in", "out"))
        begin = f"{pointer} + {first} * {inner} + {start} * {outer}"
        if length == 1:
            mask = "" if padded(depth) == depth else f", mask={self._within(depth)}, other=0"
            text = f"tl.load({begin} + {self._columns(padded(depth))} * {inner}{mask}).to(REAL)"
            row = self._hoisted((matrix, rows, columns), f"{matrix}_column_{first}_{start}", text)
            return f"tl.sum({tile} * {row}, 1, keep_dims=True)"
        if depth == 1:
            mask = "" if padded(length) == length else f", mask={self._within(length)}, other=0"
            text = f"tl.load({begin} + {self._columns(padded(length))} * {outer}{mask}).to(REAL)"
            row = self._hoisted((matrix, rows, columns), f"{matrix}_row_{first}_{start}", text)
            return f"{tile} * {row}"
        along = f"tl.arange(0, {padded(depth)})[:, None]"
        masks = [f"({along} < {depth})"] if padded(depth) != depth else []
        masks += [f"({self._within(length)})"] if padded(length) != length else []
        mask = f", mask={' & '.join(masks)}, other=0" if masks else ""
        text = f"tl.load({begin} + {along} * {inner} + {self._columns(padded(length))} * {outer}{mask})"
        held = self._hoisted((matrix, rows, columns), f"{matrix}_{first}_{start}", text)
        return f"functions.product({tile}, {held}, INTERPRETED, TF32)"


def _is_fixed(value: Value) -> bool:
    """Whether a value is the same at every step and in every row."""
    if value.kind == "memory":
        return not value.rows
    return value.kind == "math" and all(map(_is_fixed, value.values))
