"""The few kinds of values that a stage is made of, and what makes them of an operation's arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from pellucid.errors import Unsupported
from pellucid.formula.program import Abstract


@dataclass(eq=False)
class Value:
    """A value of one row: ``width`` columns; one of width 1 goes with every column of another.

    ``kind`` is "memory" (an input of the stage), "draws" (random numbers of a site), "math" (``operation`` column by
    column on ``operands``, values or numbers), "slice" (of one operand, from ``start``), "cat" (of the operands),
    "spread" (one column repeated), "product" (the operand times the matrix ``operation``), "reduce" (``operation``,
    "sum", "product", "largest" or "smallest", over the columns), "total" (the sum over all rows of all steps), "number"
    (given by every call), "size" (how many entries stand along the axes ``over``) or "first" (of an operand in memory,
    where it begins along the axes ``over``).

    In a nest of loops (see `nest`) a value varies along ``axes`` too, and a reduction may be over any of them.
    """

    kind: str
    name: str
    width: int
    operands: tuple[Any, ...] = field(default=(), repr=False)  # shared by many, they would be written many times
    operation: str = ""
    start: int = 0
    mask: bool = False  # true or false
    rows: bool = True  # memory only: whether every row has its own
    axes: frozenset[int] = frozenset()  # of a nest, beside the columns
    over: frozenset[int] = frozenset()  # of a nest: what a reduction runs over, the columns too
    values: tuple[Value, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.values = tuple(o for o in self.operands if isinstance(o, Value))
        if self.values:
            self.axes = frozenset().union(*(value.axes for value in self.values)) - self.over


class Lowering:
    """The values of a stage so far, and the node of its graph that is being lowered."""

    def __init__(self, draws: tuple[str, ...], names: set[str]) -> None:
        self.draws, self.names = draws, names
        self.inputs: dict[str, Value] = {}
        self.matrices: dict[str, tuple[int, int]] = {}
        self.matrix_names: dict[fx.Node, str] = {}
        self.made: dict[fx.Node, Any] = {}
        self.results: set[str] = set()  # names of nodes that a value has got
        self.node: fx.Node

    def value(self, argument: Any) -> Any:
        """What an argument of a node is: a value, a number, or a list of them."""
        if isinstance(argument, fx.Node):
            found = self.made[argument]
            if found is None:
                raise Unsupported(f"{self.node.target} of a matrix of parameters")
            return found
        if isinstance(argument, (tuple, list)):
            return [self.value(a) for a in argument]
        return argument

    def name(self, text: str = "") -> str:
        """A name of its own: that of the node for its result, with ``text`` for what it needs on the way."""
        name = f"{self.node.name}_{text}" if text else self.node.name
        if not text and name not in self.results:
            self.results.add(name)
            return name
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def math(self, operation: str, *operands: Any, name: str = "", mask: bool = False, width: int | None = None) -> Any:
        """Column by column an operation on values and numbers."""
        widths = {o.width for o in operands if isinstance(o, Value)} - {1}
        if len(widths) > 1:  # one would be read beyond its columns
            raise Unsupported(f"{self.node.target} of {' and '.join(map(str, sorted(widths)))} columns")
        return Value(
            "math", self.name(name), max(widths, default=1) if width is None else width, operands, operation, mask=mask
        )

    def over(self, dim: Any) -> frozenset[int]:
        """What an operation over the axes ``dim`` of its argument runs over; Unsupported if that has no kernel."""
        axes = [dim] if isinstance(dim, int) else list(dim or [])
        if not (len(axes) == 1 and self.along_columns(axes[0])):
            raise Unsupported(f"{self.node.target} over axes {axes}")
        return frozenset({1})

    def along_columns(self, dim: int) -> bool:
        """Whether an axis of the node's argument is that of the columns."""
        return dim in (1, -1)

    def reduce(self, operation: str, x: Value, over: frozenset[int], name: str = "") -> Value:
        """One column of all."""
        return Value("reduce", self.name(name), 1, (self.real(x),), operation)

    def count(self, x: Value, over: frozenset[int]) -> Any:
        """How many entries a reduction takes together."""
        return x.width

    def mean(self, x: Value, over: frozenset[int], name: str) -> Value:
        """The mean of the columns."""
        total, count = self.reduce("sum", x, over, f"{name}_sum"), self.count(x, over)
        if isinstance(count, Value):
            return self.math("div", total, count, name=name)
        return self.math("mul", total, 1 / count, name=name)

    def width_of(self, meta: Abstract) -> int:
        """How many columns a value has."""
        return int(math.prod(meta.shape[1:] if meta.rows else meta.shape))

    def keeps_order(self, x: Value) -> bool:
        """Whether the node's result, another shape of its argument, is the same columns."""
        if isinstance(self.result, Abstract) and self.result.rows:
            return x.width == self.width_of(self.result)
        return not x.rows

    def part(self, x: Value, dim: int, start: Any, end: Any, step: int) -> Value:
        """Some entries along another axis than the columns."""
        raise Unsupported(f"{self.node.target} along axis {dim} with step {step}")

    def turned(self, x: Value, order: list[int]) -> Value:
        """The axes in another order."""
        raise Unsupported(f"{self.node.target} to {order}")

    def cut(self, x: Value, dim: int, entries: slice) -> Value:
        """Some entries along another axis than the columns, in a result that may be without it."""
        raise Unsupported(f"{self.node.target} along axis {dim}")

    def joined(self, parts: list[Value], dim: int) -> Value:
        """Values one behind the other along another axis than the columns."""
        raise Unsupported(f"{self.node.target} along axis {dim}")

    def replaced(self, x: Value, piece: Value, dim: int, entries: slice) -> Value:
        """A value with others in place of some entries along another axis than the columns."""
        raise Unsupported(f"{self.node.target} along axis {dim}")

    def total(self, x: Value) -> Value:
        """The sum over all rows."""
        return Value("total", self.name(), x.width, (self.real(x),), rows=False)

    def real(self, x: Any) -> Any:
        """A mask as a number, anything else as it is."""
        return self.math("from_mask", x, name="number") if isinstance(x, Value) and x.mask else x

    def slice(self, x: Value, start: int, width: int, name: str = "") -> Value:
        """Some columns that stand together."""
        if start == 0 and width == x.width:
            return x
        return Value("slice", self.name(name), width, (x,), start=start, mask=x.mask)

    def cat(self, parts: list[Value]) -> Value:
        """Columns side by side."""
        parts = [p for p in parts if p.width]
        if len(parts) == 1:
            return parts[0]
        if any(p.mask for p in parts) and not all(p.mask for p in parts):
            parts = [self.real(p) for p in parts]
        return Value("cat", self.name(), sum(p.width for p in parts), tuple(parts), mask=parts[0].mask)

    def constant(self, number: float, width: int) -> Value:
        """A number in every column."""
        return self.math("constant", float(number), width=width, name="constant")

    def spread(self, x: Any, width: int) -> Value:
        """A number or one column in every column; what is as wide already as it is."""
        if not isinstance(x, Value):
            return self.constant(x, width)
        return x if x.width == width else Value("spread", self.name(), width, (x,), mask=x.mask)

    @property
    def result(self) -> Any:
        """What is known of the result of the node."""
        return self.node.meta["val"]
