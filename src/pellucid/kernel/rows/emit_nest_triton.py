"""A lowered form as Triton text: every axis of the nest is one of a tile's, so that a block holds some entries of each.

Where a block can hold all that is reduced, the data is read once and every statistic is made of what stands in
registers. Otherwise a block goes over what is reduced once for every level, the number of reductions before a value;
where there are fewer blocks than the GPU can run, several share what is reduced: each level is then a kernel of its
own, which leaves parts of its sums in memory for the next. A sum of squared deviations from a mean needs no pass of its
own: it is made beside the mean (Welford, "Note on a method for calculating corrected sums of squares and products",
Technometrics 1962), and its parts are put together as in Chan, Golub and LeVeque, "Updating formulae and a pairwise
algorithm for computing sample variances", 1979. Sums over rows are added up by a fixed number of programs, each of
which takes its share of the rows and stores a part: no order depends on chance.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pellucid.kernel.language.text_c import indented
from pellucid.kernel.language.text_triton import HEADER, JOINED, REDUCTIONS, number_text
from pellucid.kernel.language.values import Value
from pellucid.kernel.rows.nest import Nest
from pellucid.kernel.rows.nest_tiles import PASS, PROGRAM, STEP, TURN, NestTiles, Scope, Tile

Sums = list[tuple[tuple[int, int], str]]  # the tiles of a reduction: each piece of columns, and its name


@dataclass(frozen=True)
class Text:
    """The Triton text of a nest, a Python module, and what a caller must know.

    Attributes:
        text: the module.
        tile: how it is cut.
        stages: its functions in the order in which they run, and whether each goes over what is reduced.
        parameters: what they all take, in this order.
        options: what they take of what is known when they are compiled.
        parts: how many statistics leave their parts in memory.
    """

    text: str
    tile: Tile
    stages: tuple[tuple[str, bool], ...]
    parameters: tuple[str, ...]
    options: tuple[str, ...]
    parts: int


def emit(nest: Nest, tile: Tile, real: str, title: str) -> Text:
    """Write a nest.

    Raises:
        Unsupported: an operation has no Triton.
    """
    first = _Function(nest, tile, real, 0 if tile.split else None)
    later = range(1, first.most + 1) if tile.split else ()
    functions = [first, *(_Function(nest, tile, real, stage) for stage in later)]
    header = HEADER.format(title=f"{title}: written by pellucid from the formula.", real=real)
    return Text(
        "\n\n".join([header, *(function.text() for function in functions)]) + "\n",
        tile,
        tuple((function.name, bool(function.passes)) for function in functions),
        tuple(first.parameters),
        tuple(first.options),
        len(first.reduces) + len(first.deviations),
    )


def _deviations(nest: Nest) -> dict[Value, Value]:
    """The sums of squared deviations from a mean, and the sum that the mean is made of."""
    found: dict[Value, Value] = {}
    for value in nest.values:
        square = value.operands[0] if value.kind == "reduce" and value.operation == "sum" else None
        if square is None or square.operation != "square" or square.operands[0].operation != "sub":
            continue
        entry, mean = square.operands[0].operands
        if not isinstance(mean, Value) or mean.operation != "mul":
            continue
        total, reciprocal = mean.operands
        if not (isinstance(total, Value) and total.kind == "reduce" and total.operation == "sum"):
            continue
        counts = isinstance(reciprocal, Value) and reciprocal.operation == "reciprocal"
        size = reciprocal.operands[0] if counts else None
        if size is None or size.kind != "size" or total.operands[0] is not entry or total in found.values():
            continue
        if total.over == value.over == size.over:
            found[value] = total
    return found


class _Function(NestTiles):
    """The Triton of one nest, or of one stage of it."""

    def __init__(self, nest: Nest, tile: Tile, real: str, stage: int | None) -> None:
        super().__init__(nest, tile, real)
        self.stage, self.name = stage, nest.name if stage is None else f"{nest.name}_{stage}"
        self.deviations = {} if tile.whole else _deviations(nest)
        self.levels = nest.levels(self.deviations)
        self.reduces = [value for value in self.values if value.kind == "reduce"]
        self.outputs = {name: value for name, value in nest.outputs.items() if name not in nest.totals}
        self.most = max(self.levels.values())
        levels = range(self.most + 1) if stage is None else [stage]
        self.passes = [] if tile.whole else [level for level in levels if self._of_level(level)]
        self.options = ["SEED_LIES", "ALIGNED", "FAR"] if self.draws else []
        self.options += ["SPLITS"] if tile.split else []
        self.options += ["STAGES"] if self.totals or not tile.whole else []
        self.behind: list[str] = []  # all tiles
        self._write()

    def text(self) -> str:
        """The kernel, a function of Python."""
        p = self.parameters
        given = [f"{name}," for name in p.values()] + [f"{name}: tl.constexpr," for name in self.options]
        changing = [
            p[f"{name}_{half}"] for name in self.nest.numbers for half in ("low", "high") if f"{name}_{half}" in p
        ]
        changing += [p[name] for name in ("seed", "seed_high", "stream", "stream_high") if self.draws]
        lines = self.scopes[STEP].lines
        if self.turns:
            blocks = " * ".join(map(self._blocks, self.shared)) or "1"
            steps = f"program, {blocks}, {p['programs']}"
            steps = f"range({steps})" if self.passes else f"tl.range({steps}, num_stages=STAGES)"
            lines = [f"for step in {steps}:", *indented(lines)]
        return "\n".join(
            [
                f"@triton.jit(do_not_specialize={changing})" if changing else "@triton.jit",
                f"def {self.name}(",
                *indented(given, 2),
                "):",
                *indented(["program = tl.program_id(0)", *self.scopes[PROGRAM].lines, *lines, *self.behind], 2),
            ]
        )

    def _write(self) -> None:
        program, step = self.scopes[PROGRAM].lines, self.scopes[STEP].lines
        if self.tile.split and self.passes:
            blocks = " * ".join(map(self._blocks, self.outside)) or "1"
            program += [f"split = program // ({blocks})", f"program = program % ({blocks})"]
        self._start(self.owned, "program", program, behind=True)
        if self.draws:
            program += [
                f"{key}, {key}_high = functions.words({self.parameters[g]}, {self.parameters[f'{g}_high']}, {lies})"
                for key, g, lies in (("key", "seed", "SEED_LIES"), ("series", "stream", "False"))
            ]
        if self.turns:
            step.append("rest = step")
        self._start(self.shared, "rest" if self.turns else "program", step)
        here = {n: t for n, t in self.totals.items() if self.stage in (None, self.levels[t.values[0]])}
        sums = {name: self._sums(total, program) for name, total in here.items() if not self._is_wide(total)}
        for level in self.passes:
            self._pass(level, sums)
        if self.stage in (None, self.most):
            self._store_all([name for name, value in self.outputs.items() if not self._is_wide(value)])
        for name, total in here.items():
            if not self._goes_over(total):
                self._add(total, sums[name], STEP)
        for name, of_total in sums.items():
            self.behind += self._parts_of_total(name, self.totals[name], of_total)

    def _store_all(self, names: Sequence[str]) -> None:
        """Write what is the same for all that is reduced, or all results of a tile that holds it."""
        lines = self.scopes[STEP].lines
        stores = [store for name in names for store in self._stores(name, self.outputs[name])]
        first = self.tile.split and self.passes and stores
        lines += ["if split == 0:", *indented(stores)] if first else stores

    def _start(self, axes: Sequence[int], counter: str, lines: list[str], behind: bool = False) -> None:
        """Where the tile begins along some axes, of which the last changes fastest; something may count ``behind``."""
        for place, axis in reversed(list(enumerate(axes))):
            block, final = self.tile.blocks[axis], place == 0 and not behind
            start = counter if final else f"{counter} % {self._blocks(axis)}"
            start = f"tl.cast({start}, tl.int64)" if self.tile.wide else start
            lines.append(f"start_{axis} = {start}" + (f" * {block}" if block > 1 else ""))
            if not final:
                lines.append(f"{counter} = {counter} // {self._blocks(axis)}")

    # -- reductions -----------------------------------------------------------------------------------------------

    def _span(self, value: Value) -> frozenset[int]:
        """The axes of what a reduction takes together: equal entries, too, as often as they are met."""
        return self._along(value.values[0]) | (value.over - self.tile.absent)

    def _is_wide(self, value: Value) -> bool:
        """Whether a value changes along what is reduced, and a tile does not hold all of that."""
        return not self.tile.whole and bool(self._along(value) & self.nest.inner)

    def _goes_over(self, total: Value) -> bool:
        """Whether a total is made of what changes along what is reduced."""
        return not self.tile.whole and bool(self._span(total) & self.nest.inner)

    def _of_level(self, level: int) -> list[Value]:
        """What a pass over what is reduced is for."""
        found = [value for value in self.reduces if self.levels[value] == level + 1]
        found += [v for v in self.totals.values() if self.levels[v.values[0]] == level and self._goes_over(v)]
        found += [v for v in self.outputs.values() if self.levels[v] == level and self._is_wide(v)]
        return found

    def _pass(self, level: int, sums_of_totals: Mapping[str, Sums]) -> None:
        """Go once over what is reduced, in turns where totals vary along a part of it: one for each of their tiles.

        A pass goes the other way than the one before it, whose last tiles are in the second cache.
        """
        step, found = self.scopes[STEP].lines, self._of_level(level)
        slow = {name: total for name, total in self.totals.items() if total in found and self._is_wide(total)}
        varying = frozenset().union(*(self._along(total) for total in slow.values()))
        self.slow = [axis for axis in self.inner if axis in varying]
        fast = [axis for axis in self.inner if axis not in varying]
        self.homes = {}
        turn, inside = self.scopes[TURN:] = Scope(), Scope()
        self._start(self.slow, "turn", turn.lines)
        count = " * ".join(map(self._blocks, fast)) or "1"
        if level % 2:
            inside.lines.append(f"part = {count} - 1 - part")
        self._start(fast, "part", inside.lines)
        beside = {self.deviations[value]: value for value in found if value in self.deviations}
        moments = {value: self._moments(value, step) for value in beside}
        apart = (*moments, *beside.values())
        sums = {value: self._sums(value, step) for value in found if value.kind == "reduce" and value not in apart}
        parts = {name: self._sums(total, turn.lines) for name, total in slow.items()}
        for value, of_value in sums.items():
            self._add(value, of_value, PASS)
        for value, names in moments.items():
            self._add_to_moments(value, *names)
        for name, value in self.outputs.items():
            if value in found and self._is_wide(value):
                inside.lines += self._stores(name, value)
        for name, total in self.totals.items():
            if total in found:
                self._add(total, parts[name] if name in slow else sums_of_totals[name], PASS)
        behind = [store for name, total in slow.items() for store in self._parts_of_total(name, total, parts[name])]
        count = f"split, {count}, {self.parameters['splits']}" if self.tile.split else f"0, {count}"
        adds = bool(sums or moments or any(total in found for total in self.totals.values()))
        parts_of = f"tl.range({count}, num_stages=STAGES)" if adds else f"range({count})"
        lines = [*turn.lines, f"for part in {parts_of}:", *indented(inside.lines), *behind]
        if self.slow:
            lines = [f"for turn in range(0, {' * '.join(map(self._blocks, self.slow))}):", *indented(lines)]
        step += lines
        for value, of_value in sums.items():
            self._keep(value, self._together(value, [name for _, name in of_value]))
        for value, (count, mean, squares) in moments.items():
            self._keep_moments(value, beside[value], count, mean, squares)

    def _keep(self, value: Value, result: str) -> str:
        """Name the result of a reduction, and store it where it is a part."""
        step = self.scopes[STEP]
        name = step.names[value, 0, value.width] = self._fresh(value.name)
        step.lines.append(f"{name} = {result}")
        self._store_part(self.reduces.index(value), name)
        return name

    def _store_part(self, slot: int, tile: str) -> None:
        """Leave a part of the statistic of this number in memory, where several programs make parts of it."""
        if self.tile.split:
            place, mask = self._part(slot, "split", self.outside)
            store = f"tl.store({place}, tl.broadcast_to({tile}, {self._shape(self.outside)}){mask})"
            self.scopes[STEP].lines.append(store)

    def _moments(self, total: Value, lines: list[str]) -> tuple[str, str, str]:
        """The tiles of a mean and a sum of squared deviations, each entry of its own: count, mean and squares.

        The count is one number where all tiles are full.
        """
        count, mean, squares = (self._fresh(f"{total.name}_{what}") for what in ("count", "mean", "squares"))
        shape = self._shape(self._span(total))
        lines.append(f"{count} = tl.full({shape if self._masks_of(total) else self.ones}, 0.0, REAL)")
        lines += [f"{name} = tl.full({shape}, 0.0, REAL)" for name in (mean, squares)]
        return count, mean, squares

    def _masks_of(self, total: Value) -> str:
        """Which entries of a tile are new to a sum."""
        return " & ".join([*self._once(total, PASS), *self._masks(total.over - self.tile.absent)])

    def _add_to_moments(self, total: Value, count: str, mean: str, squares: str) -> None:
        """Take a tile of entries in; one that is not there is the mean, and moves nothing."""
        inside, masks = self.scopes[PASS].lines, self._masks_of(total)
        tile = self._evaluate(total.values[0], 0, total.values[0].width)
        tile = f"tl.broadcast_to({tile}, {self._shape(self._span(total))})"
        entry, moved = self._fresh(f"{total.name}_entry"), self._fresh(f"{total.name}_moved")
        inside += [
            f"{entry} = " + (f"tl.where({masks}, {tile}, {mean})" if masks else tile),
            f"{count} = {count} + " + (f"tl.where({masks}, 1.0, 0.0).to(REAL)" if masks else "1.0"),
            f"{moved} = {entry} - {mean}",
            f"{mean} = {mean} + {moved} * (1.0 / tl.where({count} == 0, 1.0, {count}))",
            f"{squares} = {squares} + {moved} * ({entry} - {mean})",
        ]

    def _keep_moments(self, total: Value, deviation: Value, count: str, mean: str, squares: str) -> None:
        """Put together what was counted entry by entry."""
        step = self.scopes[STEP].lines
        whole = self._keep(total, self._together(total, [f"{count} * {mean}"]))
        all_of_them = self._fresh(f"{total.name}_counted")
        counts = f"tl.broadcast_to({count}, {self._shape(self._span(total))})"
        step.append(f"{all_of_them} = {self._together(total, [counts])}")
        centre = f"{whole} / tl.where({all_of_them} == 0, 1.0, {all_of_them})"
        squares = f"{squares} + {count} * functions.square({mean} - {centre})"
        self._keep(deviation, self._together(deviation, [squares]))
        self._store_part(self._slot_of_count(deviation), all_of_them)

    def _slot_of_count(self, deviation: Value) -> int:
        return len(self.reduces) + list(self.deviations).index(deviation)

    def _sums(self, value: Value, lines: list[str]) -> Sums:
        """The tiles in which a reduction is taken together, one for each piece of columns."""
        operand, found = value.values[0], []
        neutral = number_text(REDUCTIONS[value.operation][0])
        for start, length in self._pieces(operand):
            name = self._fresh(f"{value.name}_sum", start)
            lines.append(f"{name} = tl.full({self._shape(self._span(value), length)}, {neutral}, REAL)")
            found.append(((start, length), name))
        return found

    def _add(self, value: Value, sums: Sums, scope: int) -> None:
        """Take a tile of the operand into a reduction; once where it is the same for several tiles."""
        once = self._once(value, scope)
        for piece, name in sums:
            tile = self._masked(value, piece, once)
            self.scopes[scope].lines.append(f"{name} = {JOINED[value.operation].format(name, tile)}")

    def _once(self, value: Value, scope: int) -> list[str]:
        """What is true for one of the tiles that have the same entries of a reduction."""
        looped = [*(self.shared if value.kind == "total" else []), *(self.inner if scope == PASS else [])]
        return [f"(start_{axis} == 0)" for axis in looped if axis not in self._span(value)]

    def _masked(self, value: Value, piece: tuple[int, int], once: Sequence[str] = ()) -> str:
        """A tile of a reduction's operand, with what is neutral where there are no entries to take."""
        tile = self._evaluate(value.values[0], *piece)
        tile = f"tl.broadcast_to({tile}, {self._shape(self._span(value), piece[1])})"
        masks = [*once, *self._masks(value.over - self.tile.absent, piece[1])]
        neutral = number_text(REDUCTIONS[value.operation][0])
        return f"tl.where({' & '.join(masks)}, {tile}, {neutral})" if masks else tile

    def _together(self, value: Value, tiles: Sequence[str]) -> str:
        """The result of a reduction, of its tiles."""
        text, found = REDUCTIONS[value.operation][1], list(tiles)
        for axis in sorted(value.over, reverse=True):
            if axis in self.tiled:
                found = [text.format(tile, self.tiled.index(axis)) for tile in found]
        return functools.reduce(JOINED[value.operation].format, found)

    def _parts_of_total(self, name: str, total: Value, sums: Sums) -> list[str]:
        """The lines that store a program's part of a sum over rows."""
        axes, lines = self._along(total), []
        pieces = [(piece, self._together(total, [tile])) for piece, tile in sums]
        if self.last in total.over:
            pieces = [((0, 1), self._together(total, [tile for _, tile in sums]))]
        for (start, length), text in pieces:
            lines.append(self._store(name, axes, start, length, text))
        return lines

    # -- what is left in memory -----------------------------------------------------------------------------------

    def _part(self, slot: int, split: str, axes: Collection[int]) -> tuple[str, str]:
        """The place of a part of the statistic of this number, which varies along some axes outside, and its mask."""
        scope, p, key = self.scopes[STEP], self.parameters, ("unit", tuple(sorted(axes)))
        if key not in scope.names:
            unit = self._hoisted("origin", f"tl.zeros({self.ones}, tl.int32)")
            for axis in self.outside:
                unit = f"({unit}) * {self._number(f'size_{axis}')}" + (
                    f" + {self._index(axis)}" if axis in axes else ""
                )
            scope.names[key] = self._fresh("unit")
            scope.lines.append(f"{scope.names[key]} = {unit}")
        masks = self._masks(axes)
        begin = f"({slot} * {p['splits']} + {split}) * {p['units']}"
        return f"{p['parts']} + {begin} + {scope.names[key]}", f", mask={' & '.join(masks)}" if masks else ""

    def _reduced(self, value: Value) -> str:
        """A reduction of a tile that holds all of it, or of its parts in memory."""
        if self.tile.whole:
            return self._together(value, [self._masked(value, piece) for piece in self._pieces(value.values[0])])
        neutral, text = REDUCTIONS[value.operation]
        axes = self._along(value)
        shape = self._shape(axes)
        parts = self._all_parts(self.reduces.index(value), neutral, axes)
        if value in self.deviations:
            counts = self._all_parts(self._slot_of_count(value), 0.0, axes)
            sums = self._all_parts(self.reduces.index(self.deviations[value]), 0.0, axes)
            return f"tl.reshape(functions.squares_of_all({parts}, {sums}, {counts}), {shape})"
        return f"tl.reshape({text.format(parts, 0)}, {shape})"

    def _all_parts(self, slot: int, neutral: float, axes: Collection[int]) -> str:
        """The parts of a statistic, along an axis before the tile's own."""
        splits = f"tl.reshape(tl.arange(0, SPLITS), [{', '.join(['SPLITS', *['1'] * len(self.tiled)])}])"
        splits = self._hoisted("all_splits", splits)
        place, mask = self._part(slot, splits, axes)
        masks = [f"({splits} < {self.parameters['splits']})", *([mask.removeprefix(", mask=")] if mask else [])]
        return f"tl.load({place}, mask={' & '.join(masks)}, other={number_text(neutral)})"
