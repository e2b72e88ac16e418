"""C of the rows between two products: sweeps over the columns, in vector registers, between reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pellucid.kernel.language.columns import REDUCTIONS, Columns, Scope, by_length, even, sweep_text, whole_sweep
from pellucid.kernel.language.text_c import indented
from pellucid.kernel.language.values import Value
from pellucid.kernel.recurrence.plan import PART, Level, Place, Plan

_Task = tuple[Value, "tuple[str, Any] | None", int]  # stored, or added to a reduction's total; from which column


class Sweeps(Plan, Columns):
    """A plan that writes the C of its rows."""

    sweeps: list[str]  # functions, written before what calls them

    def _rows(self, stage: int) -> list[str]:
        """What is done to one row after another between two products."""
        self.row = Scope(taken=set(self.identifiers))
        self.used: dict[Place, bool] = {}  # the places of a row, and whether they are only read
        for level in sorted(level for level in {*self.stores, *self.reduces, *self.totals} if level[0] == stage):
            self._level(level)
        if not self.row.lines:
            return []
        real_row = "const int counted = !call->lengths || t < call->lengths[first + r];"
        pointers = [real_row] if any(place.stride == PART for place in self.used) else []
        for place, reading in self.used.items():
            shift = {"0": "", PART: ""}.get(place.stride, f" + r * {place.stride}")
            where = f"counted ? {place.pointer} : uncounted" if place.stride == PART else f"{place.pointer}{shift}"
            pointers.append(f"{'const ' if reading else ''}{place.storage}_storage *const {place.row} = {where};")
        return ["for (int64_t r = 0; r < rows; r++) {", *indented([*pointers, *self.row.lines]), "}"]

    # -- one level: sweeps over the columns -----------------------------------------------------------------------

    def _level(self, level: Level) -> None:
        stores, reduces = self.stores.get(level, []), self.reduces.get(level, [])
        added = [(value.values[0], ("total", value)) for value in self.totals.get(level, ())]
        totals = {value: self._start_sum(self.row, value, REDUCTIONS[value.operation][0]) for value in reduces}
        pieces: list[tuple[Value, Any, int, int]] = [
            (value, None, start, length) for value in stores for start, length in self._pieces(value)
        ]
        for operand, reduction in (*((v.values[0], (v.operation, total)) for v, total in totals.items()), *added):
            pieces += [(operand, reduction, start, length) for start, length in self._pieces(operand)]
        groups = by_length(even(pieces))
        for number, (length, group) in enumerate(groups, start=1):
            if length == 1:
                for task in group:
                    self._point(*task)
            else:
                self._sweep(length, group)
            left = {value for _, others in groups[number:] for value, *_ in others}
            self.ready |= {value for value, reduction, _ in group if reduction is None} - left
        for value, total in totals.items():
            self._end_sum(self.row, value, total)

    def _sweep(self, length: int, tasks: Sequence[_Task]) -> None:
        scope = Scope(taken={*self.identifiers, "j", "n"})
        for value, reduction, start in tasks:
            result = self._evaluate(value, start, scope)
            shift = f" + {start}" if start else ""
            if reduction is not None and reduction[0] == "total":
                place = self.parts[reduction[1]]
                self._use(place, scope)
                at = f"{place.row}{shift} + j"
                scope.lines.append(f"put_real({at}, take_real({at}, n) + {result}, n);")
                continue
            if reduction is not None:
                operation, total = reduction
                scope.take_in(total, REDUCTIONS[operation][1], result)
                continue
            for place in self.targets[value]:
                self._use(place, scope)
                scope.lines.append(f"put_{place.storage}({place.row}{shift} + j, {result}, n);")
        name = f"{self.name}_columns_{len(self.sweeps)}"
        self.sweeps.append(sweep_text(name, scope))
        self.row.lines += whole_sweep(name, str(length), scope)

    def _use(self, place: Place, scope: Scope, reading: bool = False) -> None:
        """Make a pointer to the row known where it is read or written."""
        self.used[place] = reading and self.used.get(place, True)
        if scope is not self.row:
            scope.give(place.row, place.storage, written=not reading)

    def _point(self, value: Value, reduction: tuple[str, Any] | None, start: int) -> None:
        """One column alone."""
        result = self._evaluate(value, start, self.row)
        if reduction is not None and reduction[0] == "total":
            place = self.parts[reduction[1]]
            self._use(place, self.row)
            self.row.lines.append(f"{place.row}[{start}] += {result}[0];")
            return
        if reduction is not None:
            operation, total = reduction
            self.row.lines.append(f"{total} = {REDUCTIONS[operation][1]}({total}, {result}, 1);")
            return
        for place in self.targets[value]:
            self._use(place, self.row)
            number = f"{result}[0] != 0" if place.storage == "bool" else f"{result}[0]"
            self.row.lines.append(f"write_{place.storage}({place.row} + {start}, {number});")

    def _home(self, value: Value) -> Scope:
        return self.row

    def _lies(self, value: Value) -> bool:
        return value in self.places or value in self.ready

    def _read(self, value: Value, start: int, scope: Scope) -> str:
        place = self.places.get(value) or self._best(self.targets[value])
        self._use(place, scope, reading=True)
        shift = f" + {start}" if start else ""
        if scope is self.row:
            return f"splat{'_bool' if value.mask else ''}(read_{place.storage}({place.row}{shift}))"
        return f"take_{place.storage}({place.row}{shift} + j, n)"

    def _best(self, places: Sequence[Place]) -> Place:
        """The place that holds a value unrounded, if there is one."""
        return next((p for p in places if p.storage in ("real", self.real)), places[0])
