"""A nest in tiles: which entries of its axes stand in a tile, where they lie in memory, and where a line is written.

Every axis of the nest is one of a tile's. What a tile is made of is written in the scope in which it is the same, once:
for all tiles, for all that is reduced, for a turn, or for every tile of a pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pellucid.kernel.language.text_triton import power
from pellucid.kernel.language.tiles import Home, Tiles
from pellucid.kernel.language.values import Value
from pellucid.kernel.rows.nest import Nest, along

TAKEN = set("triton tl functions REAL range program split rest step turn part key key_high series series_high".split())


@dataclass(frozen=True)
class Tile:
    """How a nest is cut into tiles.

    Attributes:
        blocks: entries of a tile along every axis, powers of two; along columns that the formula cuts, any.
        exact: the axes that consist of whole blocks.
        absent: the axes along which nothing varies.
        whole: whether a tile holds all that is reduced.
        split: whether several programs share what is reduced.
        turns: whether programs do one block after another where no totals make them, which then has its own part of
            every total.
        wide: whether places in memory are numbers of 64 bits.
        apart: operands of which several lie in one piece of memory, each with its beginning.
        factors: of sizes and distances; the compiler cannot see of a number that it is a multiple of 8.
    """

    blocks: tuple[int, ...]
    exact: frozenset[int]
    absent: frozenset[int] = frozenset()
    whole: bool = True
    split: bool = False
    turns: bool = False
    wide: bool = False
    apart: frozenset[str] = frozenset()
    factors: tuple[tuple[str, int], ...] = ()


def owned_axes(nest: Nest) -> frozenset[int]:
    """The axes outside along which totals vary."""
    return frozenset().union(*(along(total, nest.axes - 1) for total in nest.totals.values())) - nest.inner


@dataclass
class Scope:
    """Lines, and the names that stand in them."""

    names: dict[Any, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


PROGRAM, STEP, TURN, PASS = range(4)  # what is the same for all tiles, for all that is reduced, for a sum, for nothing


class NestTiles(Tiles):
    """Writes the values of a nest, a tile at a time, and reads and writes the memory in which they lie."""

    def __init__(self, nest: Nest, tile: Tile, real: str) -> None:
        self.nest, self.tile, self.last = nest, tile, nest.axes - 1
        self.float64 = real == "float64"
        self.values, self.totals = nest.values, nest.totals
        self.turns = tile.turns or bool(self.totals)
        self.draws = [value for value in self.values if value.kind == "draws"]
        owned = owned_axes(nest)
        self.outside = [axis for axis in range(nest.axes) if axis not in nest.inner | tile.absent]
        self.owned = [axis for axis in self.outside if axis in owned]
        self.shared = [axis for axis in self.outside if axis not in owned]
        self.inner = sorted(nest.inner - tile.absent)
        self.tiled = [axis for axis in range(nest.axes) if tile.blocks[axis] > 1 or axis == self.last]
        self.ones = str([1] * len(self.tiled))
        self.taken = {*TAKEN, *(f"{name}_{a}" for name in ("i", "start", "within") for a in range(nest.axes))}
        self.homes: dict[Value, int] = {}
        self.factors = dict(tile.factors)
        self.parameters = {key: self._fresh(key) for key in self._parameters()}
        self.scopes = [Scope(), Scope(), Scope(), Scope()]
        self.slow: list[int] = []  # what is reduced, but not by the totals of a pass

    def _parameters(self) -> Iterator[str]:
        """What a call gives, in this order."""
        for operand in self.nest.operands:
            output = operand.endswith(" to")
            key = operand.replace(" to", "_to")
            value = self.nest.outputs[operand[:-3]] if output else self.nest.inputs[operand]
            lies = value.kind not in ("draws", "total")
            yield from (key,) if lies else ()
            if not lies or operand in self.tile.apart:
                yield f"{key}_begin"
            yield from (f"{key}_{axis}" for axis in sorted(self._along(value) - {self.last}))  # of columns it is 1
        yield from (f"size_{axis}" for axis in range(self.nest.axes))
        for name in self.nest.numbers:
            yield f"{name}_low"
            yield from (f"{name}_high",) if self.float64 else ()
        yield from ("seed", "seed_high", "stream", "stream_high") if self.draws else ()
        yield from ("totals", "total_entries") if self.totals else ()
        yield from ("programs",) if self.turns else ()
        yield from ("parts", "units", "splits") if self.tile.split else ()

    def _number(self, key: str) -> str:
        """A size or a distance."""
        factor = self.factors.get(key)
        return f"({self.parameters[key]} * {factor})" if factor else self.parameters[key]

    def _blocks(self, axis: int) -> str:
        """How many blocks there are along an axis."""
        block, size = self.tile.blocks[axis], self._number(f"size_{axis}")
        return size if block == 1 else f"tl.cdiv({size}, {block})"

    def _along(self, value: Value) -> frozenset[int]:
        return along(value, self.last) - self.tile.absent

    def _reduced(self, value: Value) -> str:
        """The tile of a reduction."""
        raise NotImplementedError

    # -- memory ---------------------------------------------------------------------------------------------------

    def _home_of(self, axes: Iterable[int]) -> int:
        """Where the indices of axes stand."""

        def home(axis: int) -> int:
            if axis in self.owned or (self.tile.whole and axis in self.inner):
                return PROGRAM
            return STEP if axis in self.shared else TURN if axis in self.slow else PASS

        return max(map(home, axes), default=PROGRAM)

    def _index(self, axis: int) -> str:
        """The indices of a tile along an axis."""
        scope, name, block = self.scopes[self._home_of([axis])], f"i_{axis}", self.tile.blocks[axis]
        if name not in scope.names:
            scope.names[name] = name
            held = axis in self.nest.inner and self.tile.whole
            text = "0" if held else f"start_{axis}"
            if axis in self.tiled:
                cast = ".to(tl.int64)" if self.tile.wide else ""
                text = ("" if held else f"{text} + ") + f"tl.arange(0, {block}){cast}"
                text = f"({text}){self._along_axis(axis)}"
            scope.lines.append(f"{name} = {text}")
        return name

    def _along_axis(self, axis: int) -> str:
        """What makes a list a tile along an axis."""
        if len(self.tiled) == 1:
            return ""
        return f"[{', '.join(':' if a == axis else 'None' for a in self.tiled)}]"

    def _columns(self, start: int, length: int) -> str:
        """The columns of a piece."""
        if self.nest.columns is None:
            return self._index(self.last)
        size = power(length)
        name = self._hoisted(f"columns_{size}", f"tl.arange(0, {size}){self._along_axis(self.last)}")
        return f"{name} + {start}" if start else name

    def _masks(self, axes: Iterable[int], length: int = 1) -> list[str]:
        """Which entries of a tile there are, along some axes."""
        found = []
        for axis in sorted(axes):
            if axis == self.last and self.nest.columns is not None:
                if length != power(length):
                    found.append(self._hoisted(f"within_{length}_columns", f"{self._columns(0, length)} < {length}"))
            elif axis not in self.tile.exact and self.tile.blocks[axis] > 1:
                index, name = self._index(axis), f"within_{axis}"
                scope = self.scopes[self._home_of([axis])]
                if name not in scope.names:
                    scope.names[name] = name
                    scope.lines.append(f"{name} = {index} < {self._number(f'size_{axis}')}")
                found.append(name)
        return found

    def _shape(self, axes: Collection[int], length: int = 1) -> str:
        """The shape of a tile that varies along some axes."""
        sizes = {axis: self.tile.blocks[axis] for axis in self.tiled}
        if self.nest.columns is not None:
            sizes[self.last] = power(length)
        return str([sizes[axis] if axis in axes else 1 for axis in self.tiled])

    def _hoisted(self, name: str, text: str) -> str:
        """A name for what is the same for all tiles."""
        names = self.scopes[PROGRAM].names
        if name not in names:
            names[name] = self._fresh(name)
            self.scopes[PROGRAM].lines.append(f"{names[name]} = {text}")
        return names[name]

    def _offset(self, key: str, axes: Collection[int], start: int, length: int) -> str:
        """The distance of a tile's entries from the beginning of an operand."""
        begin = self.parameters.get(f"{key}_begin")
        if begin and self.nest.inputs.get(key) in self.draws:
            begin = f"(tl.cast({begin}, tl.int64) if FAR else {begin})"
        terms = [begin] if begin else []
        terms += [
            f"{self._index(axis)} * {self._number(f'{key}_{axis}')}" for axis in sorted(axes) if axis != self.last
        ]
        if self.last in axes:
            terms.append(self._columns(start, length))
        if not set(axes) & set(self.tiled):
            terms.append(self._hoisted("origin", f"tl.zeros({self.ones}, tl.int32)"))
        return " + ".join(terms)

    def _place(self, key: str, axes: Collection[int], start: int, length: int) -> tuple[str, str]:
        """The pointers of a tile of an operand, and their mask."""
        pointer = self.parameters.get(key)
        if pointer is None:
            part = f"(program * {self.parameters['splits']} + split)" if self.tile.split else "program"
            part = "step" if self.tile.turns else part
            pointer = f"{self.parameters['totals']} + {part} * {self.parameters['total_entries']}"
        masks = self._masks(axes, length)
        return f"{pointer} + {self._offset(key, axes, start, length)}", f", mask={' & '.join(masks)}" if masks else ""

    def _stores(self, name: str, value: Value) -> list[str]:
        """The lines that write a result."""
        axes, lines = self._along(value), []
        for start, length in self._pieces(value):
            lines.append(self._store(name, axes, start, length, self._evaluate(value, start, length)))
        return lines

    def _store(self, name: str, axes: Collection[int], start: int, length: int, tile: str) -> str:
        """The line that writes a tile of an output."""
        place, mask = self._place(f"{name}_to", axes, start, length)
        return f"tl.store({place}, tl.broadcast_to({tile}, {self._shape(axes, length)}){mask})"

    # -- values ---------------------------------------------------------------------------------------------------

    def _lies(self, value: Value) -> bool:
        return value.kind in ("first", "number", "size")

    def _home(self, value: Value) -> Home:
        scope = self.scopes[self._level_of_scope(value)]
        return scope.names, scope.lines

    def _level_of_scope(self, value: Value) -> int:
        if value not in self.homes:
            if value.kind in ("memory", "first", "draws"):
                home = self._home_of(self._along(value))
            elif value.kind == "reduce" and not self.tile.whole:
                home = STEP
            else:
                home = max(map(self._level_of_scope, value.values), default=PROGRAM)
            self.homes[value] = home
        return self.homes[value]

    def _read(self, value: Value, start: int, length: int) -> str:
        if value.kind == "number":
            low = self.parameters[f"{value.name}_low"]
            high = self.parameters.get(f"{value.name}_high", low)
            return f"tl.full({self.ones}, functions.number({low}, {high}, REAL), REAL)"
        if value.kind == "size":
            sizes = (self._number(f"size_{axis}") for axis in sorted(value.over))
            return " * ".join(f"tl.full({self.ones}, {size}, REAL)" for size in sizes)
        if value.kind == "draws":
            return self._drawn(value, start, length)
        if value.kind == "reduce":
            return self._reduced(value)
        name = (value.values[0] if value.kind == "first" else value).name
        place, mask = self._place(name, self._along(value), start, length)
        text = f"tl.load({place}{mask}{', other=0' if mask else ''})"
        return f"{text} != 0" if value.mask else f"{text}.to(REAL)"

    def _drawn(self, value: Value, start: int, length: int) -> str:
        """Random numbers: a block of them for four columns where these begin together."""
        axes = self._along(value)
        given = "key, key_high, series, series_high"
        alone = f"functions.uniform_of({given}, {self._offset(value.name, axes, start, length)}).to(REAL)"
        fixed = self.nest.columns is not None
        count = power(length) if fixed else self.tile.blocks[self.last]
        if self.last not in axes or count < 4 or start % 4:
            return alone
        fourth = f"tl.arange(0, {count // 4}){self._along_axis(self.last)} * 4"
        if fixed:
            columns = f"{fourth} + {start}"
        elif self.last in self.nest.inner and self.tile.whole:
            columns = fourth
        else:
            columns = f"start_{self.last} + {fourth}"
        others = self._offset(value.name, axes - {self.last}, 0, 1)
        return f"functions.uniform_in_fours({given}, {others} + {columns}).to(REAL) if ALIGNED else {alone}"
