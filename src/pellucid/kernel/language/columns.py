"""C of values, a vector of columns at a time: what every loop of rows is written with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pellucid.kernel.language.pieces import Pieces, part_of
from pellucid.kernel.language.text_c import identifier, indented, number_text
from pellucid.kernel.language.values import Value

_FUNCTIONS = (
    "exp expm1 log log1p log2 log10 exp2 tanh sigmoid relu erf erfc sqrt rsqrt reciprocal sin cos tan asin acos atan "
    "sinh cosh asinh acosh atanh floor ceil round trunc sign abs softplus gelu gelu_slope"
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


@dataclass
class Scope:
    """A piece of C: lines, and the names of the values at their offsets that stand in it."""

    lines: list[str] = field(default_factory=list)
    names: dict[tuple[Value, int], str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)
    given: dict[str, str] = field(default_factory=dict)  # of a sweep: parameters and their types

    def give(self, pointer: str, storage: str, written: bool) -> None:
        """Let a sweep be given a pointer, to what is constant as long as nobody says that it is written."""
        constant = not written and self.given.get(pointer, "const ").startswith("const ")
        self.given[pointer] = f"{'const ' if constant else ''}{storage}_storage *"

    def take_in(self, total: str, operation: str, columns: str) -> None:
        """Let a sweep take its columns into what is reduced."""
        self.given[total] = "vec *"
        self.lines.append(f"*{total} = {operation}(*{total}, {columns}, n);")


def sweep_text(name: str, scope: Scope) -> str:
    """The function of a sweep, for columns ``j`` to ``j + n``."""
    parameters = ["int64_t j", "int n", *(f"{kind}{given}" for given, kind in scope.given.items())]
    return "\n".join([f"INLINE void {name}({', '.join(parameters)})", "{", *indented(scope.lines), "}", ""])


def whole_sweep(name: str, length: str, scope: Scope) -> list[str]:
    """The calls of a sweep for all columns."""
    given = "".join(f", {'&' if kind == 'vec *' else ''}{given}" for given, kind in scope.given.items())
    return [
        f"for (int64_t j = 0; j + LANES <= {length}; j += LANES)",
        f"  {name}(j, LANES{given});",
        f"if ({length} % LANES)",
        f"  {name}({length} / LANES * LANES, {length} % LANES{given});",
    ]


class Columns(Pieces):
    """Writes values where they are asked for, each once in a scope.

    A value of one column is the same for a whole row and stands in the scope of the row, others in the scope of a
    sweep, for columns ``j`` to ``j + n``.
    """

    real: str  # in which it is computed: "float32" or "float64"

    def _home(self, value: Value) -> Scope:
        """The scope of a value of one column."""
        raise NotImplementedError

    def _read(self, value: Value, start: int, scope: Scope) -> str:
        """The expression that reads a value from memory."""
        raise NotImplementedError

    def _evaluate(self, value: Value, start: int, scope: Scope) -> str:
        """The name of a value's columns from ``start`` in a scope, written there where it is new."""
        if value.width == 1 and scope is not self._home(value):
            name = self._evaluate(value, 0, self._home(value))
            scope.given[name] = "ivec " if value.mask else "vec "
            return name
        name = scope.names.get((value, start), "")
        if not name:
            name = text = self._expression(value, start, scope)
            if not text.isidentifier():
                single = value.width > 1 and scope is self._home(value)  # a sweep has the column too
                place = f"_at_{start}" if single else f"_{start}" if start else ""
                name = self._fresh(scope, identifier(value.name) + place, own=not place)
                scope.lines.append(f"const {'ivec' if value.mask else 'vec'} {name} = {text};")
            scope.names[(value, start)] = name
        return name

    def _expression(self, value: Value, start: int, scope: Scope) -> str:
        if self._lies(value):
            return self._read(value, start, scope)
        if value.kind == "slice":
            return self._evaluate(value.values[0], start + value.start, scope)
        if value.kind == "spread":
            return self._evaluate(value.values[0], 0, scope)
        if value.kind == "cat":
            return self._evaluate(*part_of(value, start), scope)
        operands = [
            self._evaluate(o, start if o.width > 1 else 0, scope) if isinstance(o, Value) else number_text(o, self.real)
            for o in value.operands
        ]
        return ARITHMETIC[value.operation].format(*operands)

    def _start_sum(self, scope: Scope, value: Value, start: str) -> str:
        """The vector of columns that a reduction, or a total, is taken together in."""
        name = self._fresh(scope, f"{identifier(value.name)}_columns")
        scope.lines.append(f"vec {name} = {start};")
        return name

    def _end_sum(self, row: Scope, value: Value, columns: str) -> None:
        """Make the result of a reduction of its vector of columns."""
        name = row.names[(value, 0)] = self._fresh(row, identifier(value.name), own=True)
        row.lines.append(f"const vec {name} = splat({REDUCTIONS[value.operation][2]}({columns}));")

    def _fresh(self, scope: Scope, name: str, own: bool = False) -> str:
        """A name that is not taken; a value's own name is its own where it stands first."""
        while name in scope.taken and not (own and name not in scope.own):
            name += "_"
        scope.taken.add(name)
        scope.own.add(name)
        return name


def by_length(pieces: Iterable[tuple[Value, Any, int, int]]) -> list[tuple[int, list[tuple[Value, Any, int]]]]:
    """Pieces of one length together, which one sweep takes, the longest first."""
    groups: dict[int, list[tuple[Value, Any, int]]] = defaultdict(list)
    for value, reduction, start, length in pieces:
        groups[length].append((value, reduction, start))
    return [(length, groups[length]) for length in sorted(groups, reverse=True)]


def even(pieces: list[tuple[Value, Any, int, int]]) -> list[tuple[Value, Any, int, int]]:
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
