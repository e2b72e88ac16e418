"""C of the rows between two products: sweeps over the columns, in vector registers, between reductions."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pellucid.kernel.plan import PART, Level, Place, Plan
from pellucid.kernel.text_c import identifier, indented, number_text
from pellucid.kernel.values import Value

_FUNCTIONS = (
    "exp expm1 log log1p log2 log10 exp2 tanh sigmoid relu erf erfc sqrt rsqrt reciprocal sin cos tan asin acos atan "
    "sinh cosh asinh acosh atanh floor ceil round trunc sign abs softplus"
)
# How each operation on columns is written.
ARITHMETIC: dict[str, str] = {
    **{name: f"vec_{name}({{0}})" for name in _FUNCTIONS.split()},
    **{name: f"vec_{name}({{0}}, {{1}})" for name in ("maximum", "minimum", "atan2", "hypot", "fmod", "pow")},
    **{"add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}"},
    **{"neg": "-{0}", "square": "{0} * {0}", "constant": "{0}", "copysign": "with_sign({0}, {1})"},
    **{"eq": "{0} == {1}", "ne": "{0} != {1}", "lt": "{0} < {1}"},
    **{"le": "{0} <= {1}", "gt": "{0} > {1}", "ge": "{0} >= {1}"},
    **{"and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "not": "~{0}"},
    **{"where": "choose({0}, {1}, {2})", "from_mask": "from_mask({0})"},
}
REDUCTIONS = {
    "sum": ("splat(0)", "add_columns", "sum"),
    "product": ("splat(1)", "multiply_columns", "multiplied"),
    "largest": ("splat(-INFINITY)", "larger_columns", "largest"),
    "smallest": ("splat(INFINITY)", "smaller_columns", "smallest"),
}

_Task = tuple[Value, "tuple[str, Any] | None", int]  # stored, or added to a reduction's total; from which column


@dataclass
class Scope:
    """A piece of C: lines, and the names of the values at their offsets that stand in it."""

    lines: list[str] = field(default_factory=list)
    names: dict[tuple[Value, int], str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)
    given: dict[str, str] = field(default_factory=dict)  # of a sweep: parameters and their types


class Sweeps(Plan):
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
        totals = {value: self._fresh(self.row, f"{identifier(value.name)}_columns") for value in reduces}
        self.row.lines += [f"vec {total} = {REDUCTIONS[value.operation][0]};" for value, total in totals.items()]
        pieces: list[tuple[Value, Any, int, int]] = [
            (value, None, start, length) for value in stores for start, length in self._pieces(value)
        ]
        for operand, reduction in (*((v.values[0], (v.operation, total)) for v, total in totals.items()), *added):
            pieces += [(operand, reduction, start, length) for start, length in self._pieces(operand)]
        groups: dict[int, list[_Task]] = defaultdict(list)
        for value, reduction, start, length in _even(pieces):
            groups[length].append((value, reduction, start))
        for length in sorted(groups, reverse=True):
            if length == 1:
                for task in groups[1]:
                    self._point(*task)
            else:
                self._sweep(length, groups[length])
            left = {value for n in groups if n < length for value, *_ in groups[n]}
            self.ready |= {value for value, reduction, _ in groups[length] if reduction is None} - left
        for value, total in totals.items():
            name = self._fresh(self.row, identifier(value.name), own=True)
            self.row.lines.append(f"const vec {name} = splat({REDUCTIONS[value.operation][2]}({total}));")
            self.row.names[(value, 0)] = name

    def _pieces(self, value: Value) -> list[tuple[int, int]]:
        cuts = sorted({0, value.width, *self._cuts(value, 0, value.width)})
        return [(a, b - a) for a, b in itertools.pairwise(cuts)]

    def _cuts(self, value: Value, start: int, stop: int) -> set[int]:
        """Columns of a value between start and stop where another part of a concatenation begins."""
        if value.width == 1 or value in self.ready or value.kind in ("memory", "draws", "product", "reduce", "spread"):
            return set()
        if value.kind == "slice":
            inner = self._cuts(value.values[0], start + value.start, stop + value.start)
            return {cut - value.start for cut in inner}
        if value.kind == "cat":
            cuts, place = set(), 0
            for part in value.values:
                begin, end = max(start, place), min(stop, place + part.width)
                if begin < end:
                    cuts |= {begin, end} | {c + place for c in self._cuts(part, begin - place, end - place)}
                place += part.width
            return {cut for cut in cuts if start < cut < stop}
        return set().union(*(self._cuts(v, start, stop) for v in value.values))

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
                scope.given[total] = "vec *"
                scope.lines.append(f"*{total} = {REDUCTIONS[operation][1]}(*{total}, {result}, n);")
                continue
            for place in self.targets[value]:
                self._use(place, scope)
                scope.lines.append(f"put_{place.storage}({place.row}{shift} + j, {result}, n);")
        name = f"{self.name}_columns_{len(self.sweeps)}"
        parameters = ["int64_t j", "int n", *(f"{kind}{n}" for n, kind in scope.given.items())]
        arguments = "".join(f", {'&' if kind == 'vec *' else ''}{n}" for n, kind in scope.given.items())
        self.sweeps.append(
            "\n".join([f"INLINE void {name}({', '.join(parameters)})", "{", *indented(scope.lines), "}", ""])
        )
        self.row.lines += [
            f"for (int64_t j = 0; j + LANES <= {length}; j += LANES)",
            f"  {name}(j, LANES{arguments});",
            f"if ({length} % LANES)",
            f"  {name}({length} / LANES * LANES, {length} % LANES{arguments});",
        ]

    def _use(self, place: Place, scope: Scope, reading: bool = False) -> None:
        """Make a pointer to the row known where it is read or written."""
        self.used[place] = reading and self.used.get(place, True)
        if scope is not self.row:
            const = "const " if reading and scope.given.get(place.row, "const ").startswith("const ") else ""
            scope.given[place.row] = f"{const}{place.storage}_storage *"

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

    def _evaluate(self, value: Value, start: int, scope: Scope) -> str:
        """The name of a value's columns from ``start`` in a scope, written there where it is new."""
        if value.width == 1 and scope is not self.row:
            name = self._evaluate(value, 0, self.row)
            scope.given[name] = "ivec " if value.mask else "vec "
            return name
        name = scope.names.get((value, start), "")
        if not name:
            name = text = self._expression(value, start, scope)
            if not text.isidentifier():
                name = self._fresh(scope, identifier(value.name) + (f"_{start}" if start else ""), own=not start)
                scope.lines.append(f"const {'ivec' if value.mask else 'vec'} {name} = {text};")
            scope.names[(value, start)] = name
        return name

    def _expression(self, value: Value, start: int, scope: Scope) -> str:
        if value in self.places or value in self.ready:
            place = self.places.get(value) or self._best(self.targets[value])
            self._use(place, scope, reading=True)
            shift = f" + {start}" if start else ""
            if scope is self.row:
                return f"splat{'_bool' if value.mask else ''}(read_{place.storage}({place.row}{shift}))"
            return f"take_{place.storage}({place.row}{shift} + j, n)"
        if value.kind == "slice":
            return self._evaluate(value.values[0], start + value.start, scope)
        if value.kind == "spread":
            return self._evaluate(value.values[0], 0, scope)
        if value.kind == "cat":
            for part in value.values:
                if start < part.width:
                    return self._evaluate(part, start, scope)
                start -= part.width
        operands = [
            self._evaluate(o, start if o.width > 1 else 0, scope) if isinstance(o, Value) else number_text(o)
            for o in value.operands
        ]
        return ARITHMETIC[value.operation].format(*operands)

    def _best(self, places: Sequence[Place]) -> Place:
        """The place that holds a value unrounded, if there is one."""
        return next((p for p in places if p.storage in ("real", self.real)), places[0])

    def _fresh(self, scope: Scope, name: str, own: bool = False) -> str:
        """A name that is not taken; a value's own name is its own where it stands first."""
        while name in scope.taken and not (own and name not in scope.own):
            name += "_"
        scope.taken.add(name)
        scope.own.add(name)
        return name


def _even(pieces: list[tuple[Value, Any, int, int]]) -> list[tuple[Value, Any, int, int]]:
    """Cut long pieces to the length of the short ones, so that one sweep takes them all, if that is few cuts."""
    lengths = {length for *_, length in pieces if length > 1}
    unit = math.gcd(*lengths) if lengths else 0
    if len(lengths) < 2 or unit < 8 or max(lengths) // unit > 8:
        return pieces
    return [
        (value, reduction, place, min(unit, length))
        for value, reduction, start, length in pieces
        for place in range(start, start + length, unit)
    ]
