"""A lowered form as C text: rows shared among threads, loops over what is reduced, sweeps over the columns.

Between two reductions the data of a row is read once: what one level computes and a later one needs is computed
again, unless that is dear. Where the columns are not reduced themselves, what is reduced is a vector of columns; it
lies in scratch, as does what is made of it before a level reads it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pellucid.errors import Unsupported
from pellucid.kernel.language.columns import REDUCTIONS, Columns, Scope, by_length, even, sweep_text, whole_sweep
from pellucid.kernel.language.recomputing import AS_CHEAP_AS_READING, compared, cost_of
from pellucid.kernel.language.text_c import broken, identifier, indented, preamble
from pellucid.kernel.language.values import Value
from pellucid.kernel.rows.nest import Lowered, Nest, along

IN_MEMORY = ("memory", "draws", "number", "size", "first")
UNROLLED = 4  # vectors of a sweep that adds up: as many sums, so that none waits for the one before
# What a sweep is given that takes several rows, and its type.
ROWS_GIVEN = {"first_row": "int64_t ", "last_row": "int64_t ", "call": "const struct nest *", "from": "int64_t "}
ROWS_TOGETHER = 64  # of a loop around the columns: sums of so many rows stay in registers, and sums of those are short
MOST_COLUMNS = 2**13  # of a row that is kept in scratch


def emit(lowered: Lowered, title: str, real: str) -> str:
    """Write all of a form's nests."""
    functions = [_Function(nest, real) for nest in lowered.nests]
    body = "\n".join(function.text() for function in functions)
    return f"// {title}: written by pellucid from the formula.\n{preamble(real)}\n{broken(body)}"


_Task = tuple[Value, Any]  # what is computed; a reduction, a total or None for a store


class _Function(Columns):
    """The C of one nest."""

    def __init__(self, nest: Nest, real: str) -> None:
        self.nest, self.real, self.last = nest, real, nest.axes - 1
        self.values = nest.values
        self.compared = compared(nest.outputs.values())
        self.across = self.last in nest.inner  # a row's columns are reduced
        self.loops = [axis for axis in sorted(nest.inner) if axis != self.last]
        self.rows = [axis for axis in range(nest.axes - 1) if axis not in nest.inner]
        self.operands = nest.operands
        self.names = {identifier(v.name) for v in self.values} | {identifier(n) for n in self.operands}
        self.names |= {f"i_{axis}" for axis in range(nest.axes)}
        self.targets: dict[Value, list[str]] = defaultdict(list)  # the outputs that a value is
        self.kept: dict[Value, str] = {}  # scratch that a value is read from, where it is there already
        self.scratch: list[tuple[str, str, int]] = []  # its pointers, what they point to, and its columns
        self.levels = nest.levels({})  # how many reductions a value takes
        self.stores: dict[int, list[Value]] = defaultdict(list)
        self.reduces: dict[int, list[Value]] = defaultdict(list)
        self.totals: dict[int, list[Value]] = defaultdict(list)
        self.made: dict[int, list[Value]] = defaultdict(list)  # vectors of columns that a level makes before it begins
        self.sweeps: list[str] = []
        self.seen: set[tuple[Value, int, bool]] = set()
        self._plan()
        self.row = Scope(taken=set(self.names))
        self.inside: list[Scope] = []
        self.fixed: Scope | None = None  # of a sweep inside a loop: what is the same in all turns of the innermost one
        wide = [v for v in self.values if v.width > 1]
        self.vectors = {v: self._scratch(v, "real") for v in wide if v.kind == "reduce"}
        self.drawn = {v: self._scratch(v, "float32") for v in wide if v.kind == "draws"}
        # What is written already, at this point of the text.
        self.pointers: dict[tuple[str, int, frozenset[int], bool], str] = {}
        self.ready: set[Value] = set()
        self.filled: set[tuple[Value, int]] = set()

    # -- the plan -------------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        for value in self.values:
            if value.kind == "reduce":
                self.reduces[self.levels[value.values[0]]].append(value)
        for name, value in self.nest.outputs.items():
            if value.kind == "total":
                if value.values[0].width == 1 and not self.across and self.nest.columns is None:
                    raise Unsupported("a sum over rows of what all columns have in common")
                self.totals[self.levels[value.values[0]]].append(value)
            elif value not in self.stores[self.levels[value]]:
                self.stores[self.levels[value]].append(value)
            self.targets[value].append(name)
        most = max([*self.stores, *self.reduces, *self.totals], default=0)
        for level in range(most, -1, -1):
            for value in list(self.stores[level]):
                self._visit(value, level, self._is_wide(value), top=True)
            for value in (*self.reduces[level], *self.totals[level]):
                self._visit(value.values[0], level, True)

    def _visit(self, value: Value, level: int, inside: bool, top: bool = False) -> None:
        """See to it that a value can be had at a level, in its loops or before them."""
        if (value, level, inside) in self.seen or value.kind in (*IN_MEMORY, "reduce"):
            return
        self.seen.add((value, level, inside))
        if self._is_wide(value):
            dear = (
                value.kind == "math"
                and self.levels[value] < level
                and cost_of(value, (), self.compared) > AS_CHEAP_AS_READING
            )
            if dear and self._fits_in_scratch(value):
                if value not in self.kept:
                    self._keep(value)
                    self.stores[self.levels[value]].append(value)
                return
        elif inside and not top and value.width > 1 and self.loops and value.kind == "math":
            for later in list(self.made):
                if later > level and value in self.made[later]:
                    self.made[later].remove(value)
            if value not in self.made[level]:
                self._keep(value)
                self.made[level].append(value)
            inside = False
        for operand in value.values:
            self._visit(operand, level, inside)

    def _fits_in_scratch(self, value: Value) -> bool:
        columns = self.nest.columns
        return self.across and not self.loops and columns is not None and columns <= MOST_COLUMNS

    def _is_wide(self, value: Value) -> bool:
        """Whether a value changes inside a row."""
        return not self.nest.inner or bool(along(value, self.last) & self.nest.inner)

    def _keep(self, value: Value) -> None:
        if value not in self.kept:
            self.kept[value] = self._scratch(value, "bool" if value.mask else "real")

    def _scratch(self, value: Value, storage: str) -> str:
        name = self._own(f"{value.name}_kept")
        self.scratch.append((name, storage, value.width))
        return name

    def _own(self, name: str) -> str:
        """A name of the function's that no value has."""
        name = identifier(name)
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    # -- the text -------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """The C of this nest: its sweeps, one part of the work, and the entry."""
        for level in sorted({*self.stores, *self.reduces, *self.totals, *self.made}):
            self._level(level)
        name = self.nest.name
        summed = bool(self.nest.totals)
        size = " + ".join(self._size(storage, width, "columns") for _, storage, width in self.scratch)
        lines = [
            "// One part of the rows.",
            f"static void {name}_part(const void *context, int64_t part, UNUSED int64_t worker)",
            "{",
            "  const struct nest *const call = context;",
            "  const int64_t *const sizes = call->sizes;",
            "  UNUSED const int64_t *const strides = call->strides;",
            "  UNUSED const int past = (int)call->past;",
            *(["  start_part(call, part);"] if summed else []),
            *indented(self._scratches()),
            "  const int64_t units = call->rows * call->tiles, end = units * (part + 1) / call->parts;",
            "  for (int64_t unit = units * part / call->parts; unit < end; unit++) {",
            *indented(self._indices(), 2),
            *indented(self.row.lines, 2),
            "  }",
            "  if (past)",
            "    FINISH_STREAMS;",
            "}",
            "",
            "// Bytes of a thread's scratch for so many columns at a time.",
            f"int64_t {name}_scratch(UNUSED int64_t columns)",
            "{",
            f"  return {size or '0'};",
            "}",
            "",
            f"void {name}(const struct nest *call)",
            "{",
            f"  share(&call->threads, {name}_part, call, call->parts);",
            *(["  add_up_parts(call);"] if summed else []),
            "}",
            "",
        ]
        return "\n".join([*self.sweeps, *lines])

    def _scratches(self) -> Iterator[str]:
        if self.scratch:
            yield "UNUSED char *scratch = call->work + worker * call->scratch;"
        for name, storage, width in self.scratch:
            yield f"UNUSED {storage}_storage *const {name} = (void *)scratch;"
            yield f"scratch += {self._size(storage, width, 'call->tile')};"

    def _size(self, storage: str, width: int, columns: str) -> str:
        count = columns if self.nest.columns is None else str(width)
        return f"ROUNDED({count} * (int64_t)sizeof({storage}_storage))"

    def _indices(self) -> Iterator[str]:
        """The unit as an index along every axis outside, and the columns that it takes."""
        if self.across or self.nest.columns is not None:
            yield f"UNUSED const int64_t columns = sizes[{self.last}], from = 0;"
            rest = "unit"
        else:
            yield "const int64_t from = unit % call->tiles * call->tile;"
            yield f"const int64_t left = sizes[{self.last}] - from, columns = left < call->tile ? left : call->tile;"
            rest = "unit / call->tiles"
        if len(self.rows) == 1:
            yield f"const int64_t i_{self.rows[0]} = {rest};"
        elif self.rows:
            yield f"int64_t rest = {rest};"
            for axis in self.rows[:0:-1]:
                yield f"const int64_t i_{axis} = rest % sizes[{axis}];"
                yield f"rest /= sizes[{axis}];"
            yield f"const int64_t i_{self.rows[0]} = rest;"

    def _level(self, level: int) -> None:
        """What is computed between two reductions."""
        self.first_level = level == 0  # which reads what no cache holds yet
        stores, self.inside = self.stores[level], []
        single = [v for v in self.totals[level] if self._is_single(v)]
        self._row_level(level, [v for v in stores if not self._is_wide(v)], single)
        wide, reduces = [v for v in stores if self._is_wide(v)], self.reduces[level]
        totals = [v for v in self.totals[level] if v not in single]
        if not (wide or reduces or totals):
            return
        for depth in range(len(self.loops)):
            self.inside.append(Scope(taken=set(self._scope(depth - 1).taken)))
        sums = self._start_sums(reduces, totals)
        tasks: list[_Task] = [(v, None) for v in wide]
        tasks += [(v.values[0], (v, sums.get(v))) for v in (*reduces, *totals)]
        for value, reduction in (task for task in tasks if task[0].width == 1):
            self._point(value, reduction, 0, self._home(value) if reduction is None else self._deepest())
        columns = [task for task in tasks if task[0].width > 1]
        if columns:
            self._sweeps(columns)
        self._close_loops([v for v in totals if v.width == 1], sums)
        for value in reduces:
            if value not in self.vectors:
                self._end_sum(self.row, value, sums[value])
        self.ready |= {v for v in wide if v in self.kept}

    def _is_single(self, total: Value) -> bool:
        """Whether a total takes one term from each row, of what the loops have reduced."""
        return bool(self.loops) and not self._is_wide(total.values[0]) and not total.over & self.nest.inner

    def _row_level(self, level: int, narrow: Sequence[Value], totals: Sequence[Value]) -> None:
        """What a level computes once for a row, before its loops."""
        sums = {value: self._start_sum(self.row, value, "splat(0)") for value in totals if value.width == 1}
        tasks: list[_Task] = [(v, None) for v in (*self.made[level], *narrow) if self.loops or v.width == 1]
        tasks += [(v.values[0], (v, sums.get(v))) for v in totals]
        vectors = [task for task in tasks if task[0].width > 1]
        if vectors:
            self._sweeps(vectors)
        self.ready |= set(self.made[level])
        for value, reduction in tasks:
            if value.width == 1:
                self._point(value, reduction, 0, self.row)
        self.row.lines += [self._add_to_part(value, total) for value, total in sums.items()]

    def _start_sums(self, reduces: Sequence[Value], totals: Sequence[Value]) -> dict[Value, str]:
        """The vectors that reductions are added up in; a total of a loop's axis has its own there."""
        sums: dict[Value, str] = {}
        for value in reduces:
            start = REDUCTIONS[value.operation][0]
            if value in self.vectors:
                self.row.lines.append("for (int64_t j = 0; j < columns; j++)")
                self.row.lines.append(f"  {self.vectors[value]}[j] = {start}[0];")
            else:
                sums[value] = self._start_sum(self.row, value, start)
        for value in totals:
            if value.width == 1:
                sums[value] = self._start_sum(self._home(value), value, "splat(0)")
        return sums

    def _close_loops(self, totals: Sequence[Value], sums: Mapping[Value, str]) -> None:
        """Put the loops into each other, totals behind those inside; forget what stands in them."""
        for depth in range(len(self.loops) - 1, -2, -1):
            scope = self._scope(depth)
            for value in totals:
                if self._depth(value.axes) == depth:
                    scope.lines.append(self._add_to_part(value, sums[value]))
            if depth >= 0 and scope.lines:
                axis = self.loops[depth]
                loop = f"for (int64_t i_{axis} = 0; i_{axis} < sizes[{axis}]; i_{axis}++) {{"
                self._scope(depth - 1).lines += [loop, *indented(scope.lines), "}"]
        self.inside = []
        self.pointers = {key: name for key, name in self.pointers.items() if key[1] < 0}
        self.filled = {key for key in self.filled if key[1] < 0}

    def _add_to_part(self, value: Value, total: str) -> str:
        return f"*{self._part_of(value)} += sum({total});"

    def _part_of(self, total: Value) -> str:
        """The pointer to a part's sum."""
        (name,) = self.targets[total]
        return self._pointer_to(f"{name} to", total)

    def _depth(self, axes: Iterable[int]) -> int:
        """The innermost loop of these axes, -1 for the row."""
        return max((self.loops.index(axis) for axis in axes if axis in self.loops), default=-1)

    def _scope(self, depth: int) -> Scope:
        """What stands inside a loop, or at -1 in the row."""
        return self.inside[depth] if depth >= 0 else self.row

    def _deepest(self) -> Scope:
        return self._scope(len(self.inside) - 1)

    def _home(self, value: Value) -> Scope:
        return self._scope(self._depth(value.axes))

    def _is_sweep(self, scope: Scope) -> bool:
        return not any(scope is other for other in (self.row, *self.inside))

    # -- reading and writing --------------------------------------------------------------------------------------

    def _lies(self, value: Value) -> bool:
        if value.kind in IN_MEMORY:
            return True
        return value in self.ready or (value in self.vectors and value not in self.row.names)

    def _read(self, value: Value, start: int, scope: Scope) -> str:
        shift = f" + {start}" if start else ""
        sweeping = value.width > 1 and self._is_sweep(scope)
        if value.kind == "number":
            return f"splat((real)call->numbers[{self.nest.numbers.index(value.name)}])"
        if value.kind == "size":
            return f"splat((real)({' * '.join(f'sizes[{axis}]' for axis in sorted(value.over))}))"
        if value.kind == "draws" and value.width == 1:
            return f"splat(philox_number(call->seed, call->stream, {self._element(value)}))"
        if value.kind == "draws":
            pointer, storage = self._filled(value), "float32"
        elif value in self.vectors or (value in self.kept and value in self.ready):
            pointer = self.vectors.get(value) or self.kept[value]
            storage = "bool" if value.mask else "real"
        else:
            name = (value.values[0] if value.kind == "first" else value).name
            storage = self.nest.storage[name]
            pointer = self._pointer_to(name, value)
            if sweeping and self._is_wide(value):
                if self.fixed is not None:
                    self.fetched[f"{pointer}{shift} + j"] = self._stride(name, self.loops[-1])
                elif self.first_level:
                    scope.lines.append(f"FETCH({pointer}{shift} + j);")
        if not sweeping:
            return f"splat{'_bool' if value.mask else ''}(read_{storage}({pointer}{shift}))"
        self.shared |= scope is self.fixed
        scope.give(pointer, storage, written=False)
        return f"take_{storage}({pointer}{shift} + j, n)"

    def _stride(self, operand: str, axis: int) -> str:
        """The distance of an operand's entries along an axis; behind the last axis, that of a total's parts."""
        return f"strides[{self.operands.index(operand) * (self.nest.axes + 1) + axis}]"

    def _index(self, operand: str, axes: Iterable[int], columns: bool) -> str:
        terms = [f"i_{axis} * {self._stride(operand, axis)}" for axis in sorted(axes)]
        return " + ".join([*terms, *(["from"] if columns else [])]) or "0"

    def _filled(self, value: Value) -> str:
        """The scratch of random columns, filled where it is not."""
        depth, name = self._depth(value.axes), self.drawn[value]
        if (value, depth) not in self.filled:
            self.filled.add((value, depth))
            count = "columns" if self.nest.columns is None else str(value.width)
            fill = f"philox_uniform({name}, {count}, call->seed, call->stream, {self._element(value)});"
            self._home(value).lines.append(fill)
        return name

    def _element(self, draws: Value) -> str:
        """Which number of the call's sequence comes first."""
        index = self._index(draws.name, draws.axes, draws.width > 1)
        return f"(uint64_t)(call->offsets[{self.operands.index(draws.name)}] + {index})"

    def _pointer_to(self, operand: str, value: Value) -> str:
        """The pointer to an operand where a value is read from it or written to it."""
        axes, depth, columns = value.axes, self._depth(value.axes), value.width > 1
        key = (operand, depth, axes, columns)  # the first entry along an axis is the same operand at other indices
        if key not in self.pointers:
            scope = self._scope(depth)
            name = self._own(operand.replace(" to", "_to") + ("_at" if depth < 0 else f"_at_{self.loops[depth]}"))
            if depth < 0:  # names of a level's loops may be taken again by the next
                scope.taken.add(name)
            output = operand.endswith(" to")
            total = output and operand[:-3] in self.nest.totals
            storage = "real" if total else self.nest.storage[operand.removesuffix(" to")]
            index = self._index(operand, axes, columns)
            if total:
                index += f" + part * {self._stride(operand, self.nest.axes)}"
            const = "" if output else "const "
            made = f"({const}{storage}_storage *)call->places[{self.operands.index(operand)}] + {index}"
            scope.lines.append(f"{const}{storage}_storage *const {name} = {made};")
            self.pointers[key] = name
        return self.pointers[key]

    def _places(self, value: Value) -> Iterator[tuple[str, str]]:
        """Where a value is to be written, and how it is stored."""
        if value in self.kept and value not in self.ready:
            yield self.kept[value], "bool" if value.mask else "real"
        for name in self.targets.get(value, ()):
            yield self._pointer_to(f"{name} to", value), self.nest.storage[name]

    # -- sweeps over the columns ----------------------------------------------------------------------------------

    def _sweeps(self, tasks: Sequence[_Task]) -> None:
        """Sweep over the columns of the deepest loop that is open."""
        scope = self._deepest()
        pieces = [(v, r, start, length) for v, r in tasks for start, length in self._pieces(v)]
        if self.nest.columns is not None:
            pieces = even(pieces)
        groups = by_length(pieces)
        for length, group in groups:
            if length == 1:
                for value, reduction, start in group:
                    self._point(value, reduction, start, scope)
            else:
                written = str(length) if self.nest.columns is not None else "columns"
                self._sweep(written, group, scope, len(groups) == 1)

    def _sweep(self, length: str, pieces: Sequence[tuple[Value, Any, int]], outer: Scope, alone: bool) -> None:
        scope = Scope(taken={*self.names, *outer.taken, "j", "n", "strides", *ROWS_GIVEN})
        self.fixed = Scope(taken=scope.taken, own=scope.own, given=scope.given) if self.inside else None
        self.fetched: dict[str, str] = {}
        self.shared = False  # whether columns are read that all turns of the innermost loop have in common
        sums: list[tuple[str, str]] = []  # totals of the row, and their operations
        added: list[tuple[str, str, str]] = []  # where vectors of columns are added up, their operations, and the terms
        for value, reduction, start in pieces:
            result = self._evaluate(value, start, scope)
            shift = f" + {start}" if start else ""
            if reduction is None:
                self._put(value, shift, result, scope)
                continue
            into, total = reduction
            operation = REDUCTIONS[into.operation][1]
            if total is not None:
                scope.take_in(total, operation, result)
                if (total, operation) not in sums:
                    sums.append((total, operation))
                continue
            pointer = self.vectors.get(into) or self._part_of(into)
            scope.give(pointer, "real", written=True)
            added.append((f"{pointer}{shift} + j", operation, result))
        fixed, self.fixed = self.fixed, None
        name = f"{self.nest.name}_columns_{len(self.sweeps)}"
        if fixed is not None and (added or self.shared) and alone and not sums and self._is_bare(outer, added):
            rows = self._over_rows(scope, fixed, outer, added)
            self.sweeps.append(sweep_text(name, rows))
            self._scope(len(self.inside) - 2).lines += self._rows_loop(whole_sweep(name, length, rows))
            outer.lines.clear()
            return
        for at, operation, result in added:
            scope.lines.append(f"put_real({at}, {operation}(take_real({at}, n), {result}, LANES), n);")
        ahead = [f"FETCH({place});" for place in self.fetched] if self.first_level else []
        scope.lines = [*ahead, *(fixed.lines if fixed is not None else ()), *scope.lines]
        self.sweeps.append(sweep_text(name, scope))
        outer.lines += self._loop(name, length, scope, sums)

    def _put(self, value: Value, shift: str, columns: str, scope: Scope) -> None:
        """Write columns of a value; results of all entries may go past the caches."""
        for pointer, storage in self._places(value):
            scope.give(pointer, storage, written=True)
            at = f"{pointer}{shift} + j, {columns}, n"
            result = self._is_wide(value) and pointer != self.kept.get(value)
            if result and storage in (self.real, "bfloat16", "float16"):
                scope.lines.append(f"result_{storage}({at}, past);")
                scope.given["past"] = "int "
            else:
                scope.lines.append(f"put_{storage}({at});")

    def _is_bare(self, loop: Scope, added: Sequence[tuple[str, str, str]]) -> bool:
        """Whether nothing but pointers stands in a loop, none of them to what is added up in it."""
        depth = len(self.inside) - 1
        pointers = {name for key, name in self.pointers.items() if key[1] == depth}
        return len(loop.lines) == len(pointers) and not any(at.split(" ")[0] in pointers for at, _, _ in added)

    def _over_rows(self, scope: Scope, fixed: Scope, loop: Scope, added: Sequence[tuple[str, str, str]]) -> Scope:
        """A sweep that takes some rows of the innermost loop before it goes on to the next columns."""
        depth, axis = len(self.inside) - 1, f"i_{self.loops[-1]}"
        made = {name for key, name in self.pointers.items() if key[1] == depth}  # in the loop itself
        given = ROWS_GIVEN | {f"i_{outer}": "int64_t " for outer in (*self.rows, *self.loops[:-1])}
        given |= {name: kind for name, kind in scope.given.items() if name not in {*made, "past"}}
        start = {operation: identity for identity, operation, _ in REDUCTIONS.values()}
        sums = [(self._fresh(scope, "rows_sum"), *add) for add in added]
        ahead = [f"FETCH_PLACE({place} + {ROWS_TOGETHER} * {step});" for place, step in self.fetched.items()]
        of_row = [f"{total} = {add}({total}, {term}, LANES);" for total, _, add, term in sums]
        lines = [
            "UNUSED const int64_t *const sizes = call->sizes;",
            "UNUSED const int64_t *const strides = call->strides;",
            *(["const int past = call->past ? WHOLE_LINES : 0;"] if "past" in scope.given else []),
            *fixed.lines,
            *(f"vec {total} = {start[add]};" for total, _, add, _ in sums),
            f"for (int64_t {axis} = first_row; {axis} < last_row; {axis}++) {{",
            *indented([*loop.lines, *ahead, *scope.lines, *of_row]),
            "}",
            *(f"put_real({at}, {add}(take_real({at}, n), {total}, LANES), n);" for total, at, add, _ in sums),
        ]
        return Scope(lines=lines, given=given)

    def _rows_loop(self, sweep: Sequence[str]) -> list[str]:
        """The innermost loop, some rows at a time."""
        size = f"sizes[{self.loops[-1]}]"
        return [
            f"for (int64_t first_row = 0; first_row < {size}; first_row += {ROWS_TOGETHER}) {{",
            f"  const int64_t left = {size} - first_row;",
            f"  const int64_t last_row = first_row + (left < {ROWS_TOGETHER} ? left : {ROWS_TOGETHER});",
            *indented(sweep),
            "}",
        ]

    def _evaluate(self, value: Value, start: int, scope: Scope) -> str:
        """The name of a value's columns in a scope; what is the same in all turns of a loop stands ahead of it."""
        if self.fixed is not None and self._is_sweep(scope) and self.loops[-1] not in value.axes:
            scope = self.fixed
        return super()._evaluate(value, start, scope)

    def _loop(self, name: str, length: str, scope: Scope, sums: list[tuple[str, str]]) -> Iterator[str]:
        """The loop over the columns; sums are added up by several vectors, and by chunks."""

        def call(j: str, n: str, number: str = "") -> str:
            of = {total: f"{total}_parts{number}" for total, _ in sums} if number else {}
            given = (f"&{of.get(g, g)}" if kind == "vec *" else g for g, kind in scope.given.items())
            return f"{name}({', '.join((j, n, *given))});"

        if not sums:
            yield from whole_sweep(name, length, scope)
            return
        yield f"for (int64_t chunk = 0; chunk < {length}; chunk += CHUNK) {{"
        yield f"  const int64_t end = {length} - chunk < CHUNK ? {length} : chunk + CHUNK;"
        for total, operation in sums:
            identity = next(r[0] for r in REDUCTIONS.values() if r[1] == operation)
            yield f"  vec {total}_parts[{UNROLLED}] = {{{', '.join([identity] * UNROLLED)}}};"
        yield "  int64_t j = chunk;"
        yield f"  for (; j + {UNROLLED} * LANES <= end; j += {UNROLLED} * LANES) {{"
        for i in range(UNROLLED):
            yield f"    {call(f'j + {i} * LANES' if i else 'j', 'LANES', f'[{i}]')}"
        yield "  }"
        yield "  for (; j + LANES <= end; j += LANES)"
        yield f"    {call('j', 'LANES', '[0]')}"
        yield "  if (j < end)"
        yield f"    {call('j', '(int)(end - j)', '[0]')}"
        for total, operation in sums:
            parts = [f"{total}_parts[{i}]" for i in range(UNROLLED)]
            while len(parts) > 1:
                parts = [f"{operation}({a}, {b}, LANES)" for a, b in zip(parts[::2], parts[1::2], strict=True)]
            yield f"  {total} = {operation}({total}, {parts[0]}, LANES);"
        yield "}"

    def _point(self, value: Value, reduction: Any, start: int, scope: Scope) -> None:
        """One column alone."""
        result = self._evaluate(value, start, scope)
        if reduction is None:
            for pointer, storage in self._places(value):
                number = f"{result}[0] != 0" if storage == "bool" else f"{result}[0]"
                scope.lines.append(f"write_{storage}({pointer} + {start}, {number});")
            return
        into, total = reduction
        operation = REDUCTIONS[into.operation][1]
        if total is not None:
            scope.lines.append(f"{total} = {operation}({total}, {result}, 1);")
        elif into in self.vectors:
            raise Unsupported("a column alone that is reduced with others")
        else:
            scope.lines.append(f"{self._part_of(into)}[{start}] += {result}[0];")
