"""A formula over several axes and its gradient, lowered: loops in loops, where a recurrence is a loop over time.

Axes stand in the order of memory. The last ones are the columns, whose entries lie side by side; those that a formula
averages over are loops inside, the others are rows and shared among threads. Statistics that forward has are saved for
backward; what varies along all axes is computed again.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pellucid.errors import Unsupported
from pellucid.formula.capture import DependsOnRows, capture
from pellucid.formula.graph import Graded, decompositions, in_plain_torch
from pellucid.formula.program import Abstract
from pellucid.kernel.language.layout import storage_name
from pellucid.kernel.language.nodes import Nodes
from pellucid.kernel.language.values import Value

aten = torch.ops.aten
# Operations that take many instructions.
FUNCTIONS = frozenset(
    "exp expm1 exp2 log log1p log2 log10 tanh sigmoid softplus gelu gelu_slope erf erfc sin cos tan asin acos atan "
    "sinh cosh asinh acosh atanh atan2 hypot fmod pow".split()
)
SIZES = ((2, 3), (3, 5), (5, 7), (7, 11), (11, 13), (13, 17))  # of the axes, in the two runs of a capture


@dataclass(frozen=True)
class Operand:
    """What a formula reads.

    ``axes`` says of each axis whether the operand varies along it; ``kind`` is "memory", "draws" or "number" (a number
    of each call, without axes). ``columns`` are its columns where they are fixed. ``wanted`` asks for its gradient.
    """

    name: str
    axes: tuple[bool, ...]
    dtype: torch.dtype
    kind: str = "memory"
    wanted: bool = False
    columns: int | None = None


@dataclass(frozen=True)
class Form:
    """What determines a program of nested loops: ``function(*options, *operands)`` returns its results as a tuple.

    The first operand varies along all axes, and the first result alone is differentiated. ``averaged`` are the axes
    that the formula reduces. ``columns`` is the number of columns where the formula cuts them, None where any number
    will do.
    """

    function: Callable[..., tuple[torch.Tensor, ...]]
    options: tuple[Any, ...]
    axes: int
    operands: tuple[Operand, ...]
    results: tuple[str, ...]
    averaged: frozenset[int]
    columns: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return torch.float64 if self.operands[0].dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Nest:
    """One lowered direction of a form: what it writes, how that and what it reads is stored, and the loops inside."""

    name: str
    axes: int
    columns: int | None
    numbers: tuple[str, ...]  # in the order in which every call gives them
    outputs: Mapping[str, Value]
    storage: Mapping[str, str]
    inner: frozenset[int]  # the axes that are reduced

    @functools.cached_property
    def values(self) -> list[Value]:
        """All that is computed and read, operands first."""
        return all_values(self.outputs.values())

    @functools.cached_property
    def inputs(self) -> dict[str, Value]:
        """What is read."""
        return {value.name: value for value in self.values if value.kind in ("memory", "draws", "number")}

    @functools.cached_property
    def totals(self) -> dict[str, Value]:
        """Outputs that are sums over rows."""
        return {name: value for name, value in self.outputs.items() if value.kind == "total"}

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Inputs that lie in memory or are random, then outputs: the order of their places in a call."""
        inputs = (name for name, value in self.inputs.items() if value.kind != "number")
        return (*inputs, *(f"{name} to" for name in self.outputs))

    @property
    def operations(self) -> int:
        """About how many an entry takes."""
        return sum(map(_instructions, self.values))

    def levels(self, beside: Mapping[Value, Value]) -> dict[Value, int]:
        """How many reductions each value takes; one that is made ``beside`` another takes as many as that."""
        found: dict[Value, int] = {}
        for value in self.values:
            before = max((found[v] for v in value.values), default=0)
            found[value] = found[beside[value]] if value in beside else before + (value.kind == "reduce")
        return found


@dataclass(frozen=True)
class Lowered:
    """A form, lowered: "inference", or, if it has a gradient, "forward" and "backward".

    ``saved`` are results of forward that backward reads.
    """

    nests: tuple[Nest, ...]
    saved: tuple[str, ...]


def _instructions(value: Value) -> int:
    """About how many an entry of a value takes."""
    if value.kind == "draws" or value.operation in FUNCTIONS:
        return 20
    return value.kind in ("math", "reduce", "total")


GRADIENT = "gradient"  # the placeholder of the first result's


@functools.lru_cache(maxsize=256)
def lower(form: Form) -> Lowered:
    """Trace and lower a form.

    Raises:
        Unsupported: something in it has no kernel.
    """
    try:
        graph = in_plain_torch(lambda: _trace(form))
    except DependsOnRows as error:
        raise Unsupported(str(error)) from error
    lowering = _Axes(form)
    results = lowering.run(graph)
    names = [*form.results, *(f"{o.name}_gradient" for o in form.operands if o.wanted)]
    metas = [node.meta["val"] for node in next(n for n in graph.nodes if n.op == "output").args[0]]
    values = dict(zip(names, results, strict=True))
    storage = {n: storage_name(meta.dtype) for n, meta in zip(names, metas, strict=True)}
    storage |= {o.name: storage_name(o.dtype) for o in form.operands if o.kind == "memory"}
    storage[GRADIENT] = storage[form.results[0]]
    outputs = {name: values[name] for name in form.results}
    if len(names) == len(form.results):
        return Lowered((_nest("inference", form, outputs, storage),), ())
    of_forward = ReadBack(lambda v: v.kind == "reduce" and not lowering.depends(v) and not lowering.is_over_rows(v))
    gradients = {name: of_forward(values[name]) for name in names[len(form.results) :]}
    storage |= dict.fromkeys(of_forward.saved, "real")
    forward = _nest("forward", form, outputs | of_forward.saved, storage)
    return Lowered((forward, _nest("backward", form, gradients, storage)), tuple(of_forward.saved))


def _trace(form: Form) -> fx.Graph:
    """The graph of the results and of the gradients that are wanted."""
    count = len(form.operands)

    def arguments(*sizes: int) -> list[torch.Tensor]:
        sizes = sizes if form.columns is None else (*sizes, form.columns)
        given = []
        for operand in form.operands:
            if operand.kind == "number":
                given.append(torch.tensor(0.5, dtype=torch.float64))
                continue
            shape = [size if varies else 1 for size, varies in zip(sizes, operand.axes, strict=True)]
            if operand.axes[-1] and operand.columns is not None:
                shape[-1] = operand.columns
            values = torch.full(shape, 0.5, dtype=torch.float64)  # random ones would move the user's generator
            given.append(values.to(operand.dtype).requires_grad_(operand.wanted))
        result = form.function(*form.options, *given)[0]
        return [*given, torch.ones_like(result.detach())]

    def joint(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outcome = form.function(*form.options, *values[:count])
        of = [value for value, operand in zip(values, form.operands, strict=False) if operand.wanted]
        if not of:
            return outcome
        graded = Graded.apply(outcome[0], values[count])
        found = torch.autograd.grad(graded, of, allow_unused=True) if graded.requires_grad else [None] * len(of)
        return (*outcome, *(torch.zeros_like(v) if g is None else g for v, g in zip(of, found, strict=True)))

    opened = SIZES[: form.axes - (form.columns is not None)]
    graph, constants = capture(joint, arguments, decompositions(), opened)
    if constants:
        raise Unsupported("a tensor from outside")
    return graph


class _Axes(Nodes):
    """The values of a form."""

    def __init__(self, form: Form) -> None:
        super().__init__((), {o.name for o in form.operands} | {GRADIENT, *form.results})
        self.form, self.last = form, form.axes - 1
        self.sizes = [size for size, _ in SIZES[: form.axes]]
        # What was found out of values; of those that many share it would be asked without end.
        self._varying: dict[Value, frozenset[int]] = {}
        self._depending: dict[Value, bool] = {}
        self._lateness: dict[Value, bool] = {}
        self._narrowed: dict[Value, Any] = {}
        self._means: dict[tuple[Value, frozenset[int]], Value] = {}
        self._same: dict[Any, Value] = {}  # values by what they are made of: none is made twice

    def run(self, graph: fx.Graph) -> list[Value]:
        """Lower all of a graph; return its results."""
        self._name_apart(graph)
        self.names |= {node.name for node in graph.nodes}
        placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        for operand, node in zip(self.form.operands, placeholders, strict=False):
            axes, width = (frozenset[int](), 1) if operand.kind == "number" else self.variation(node.meta["val"])
            mask = operand.dtype == torch.bool
            made = Value(operand.kind, operand.name, width, mask=mask, axes=axes)
            self.made[node] = self.inputs[operand.name] = made
        axes, width = self.variation(placeholders[-1].meta["val"])
        self.made[placeholders[-1]] = self.inputs[GRADIENT] = Value("memory", GRADIENT, width, axes=axes)
        for node in graph.nodes:
            if node.op == "output":
                return [self.spread_result(self.value(a), a.meta["val"]) for a in node.args[0]]
            if node.op != "placeholder":
                self.call(node)
        raise AssertionError("a graph has an output")

    def _name_apart(self, graph: fx.Graph) -> None:
        """Let no value on the way have the name of what the form reads or returns, which are names of its author's."""
        taken = {operand.name for operand in self.form.operands} | {GRADIENT, *self.form.results}
        *nodes, output = graph.nodes
        results = dict(zip(output.args[0], self.form.results, strict=False))
        for node in nodes:
            while node.name in taken and results.get(node) != node.name:
                node._rename(f"{node.name}_of_kernel")

    def spread_result(self, value: Value, meta: Abstract) -> Value:
        """A result varies along the axes of its shape, though it be the same everywhere."""
        axes, width = self.variation(meta)
        if value.width != width:
            self.names.add(name := f"{value.name}_everywhere")
            value = Value("spread", name, width, (value,), mask=value.mask)
        if not value.axes >= axes:
            value = dataclasses.replace(value, name=f"{value.name}_along")
            value.axes = value.axes | axes
        return value

    def call(self, node: fx.Node) -> None:
        """Make the result of an operation; of a number of entries that of its axes."""
        if node.target is aten.sym_size.int:
            self.made[node] = Value("size", node.name, 1, over=frozenset({node.args[1]}))  # type: ignore[arg-type]
        elif node.target is operator.mul:
            self.node = node
            self.made[node] = self.math("mul", *self.value(node.args))
        else:
            super().call(node)

    def variation(self, meta: Abstract) -> tuple[frozenset[int], int]:
        """The axes along which a value varies, and its columns."""
        shape = self._aligned(meta)
        axes = set()
        for axis, size in enumerate(shape[:-1]):
            if size not in (1, self.sizes[axis]):
                raise Unsupported(f"a value of shape {meta.shape}")
            if size != 1:
                axes.add(axis)
        if self.form.columns is None and shape[-1] not in (1, self.sizes[-1]):
            raise Unsupported(f"a value of shape {meta.shape}")
        return frozenset(axes), shape[-1]

    def _shift(self, meta: Abstract) -> int:
        """Which axis of the form a value's first is: as in broadcasting, unless it is the rows of the form's first."""
        shift = self.form.axes - meta.dim()
        if shift < 0:
            raise Unsupported(f"a value of {meta.dim()} axes")
        fixed = self.form.columns is not None
        rows = meta.rows if fixed else meta.dim() > 0 and meta.shape[0] not in (1, self.sizes[shift])
        return 0 if rows else shift

    def _aligned(self, meta: Abstract) -> tuple[int, ...]:
        before = self._shift(meta)
        return (*(1,) * before, *meta.shape, *(1,) * (self.form.axes - meta.dim() - before))

    def fits(self, value: Abstract) -> bool:
        """Every value varies along axes of the form; `variation` raises otherwise."""
        self.variation(value)
        return True

    def width_of(self, meta: Abstract) -> int:
        """The columns of a value."""
        return self.variation(meta)[1]

    def over(self, dim: Any) -> frozenset[int]:
        """The axes of the form, of those of the node's argument."""
        meta = self.node.args[0].meta["val"]  # type: ignore[union-attr]
        shift = self._shift(meta)
        axes = [dim] if isinstance(dim, int) else list(dim or range(meta.dim()))
        return frozenset(axis % meta.dim() + shift for axis in axes)

    def along_columns(self, dim: int) -> bool:
        """Whether an axis of the node's first argument is that of the columns."""
        argument = self.node.args[0]
        first = argument[0] if isinstance(argument, (tuple, list)) else argument
        meta = first.meta["val"]  # type: ignore[union-attr]
        return dim % meta.dim() + self._shift(meta) == self.last and self.form.columns is not None

    def part(self, x: Value, dim: int, start: Any, end: Any, step: int) -> Value:
        """The first entry along an axis."""
        (axis,) = self.over(dim)
        of, over = (x.values[0], x.over | {axis}) if x.kind == "first" else (x, frozenset({axis}))
        if (start or 0, end, step) != (0, 1, 1) or of.kind != "memory":
            raise Unsupported(f"{self.node.target} from {start} to {end}")
        return Value("first", self.name(), 1 if self.last in over else of.width, (of,), over=over)

    def keeps_order(self, x: Value) -> bool:
        """Whether another shape of a value varies along the same axes."""
        axes, width = self.variation(self.result)
        return width == x.width and x.axes <= axes

    def along(self, x: Any) -> frozenset[int]:
        """The axes along which a value really varies, the columns too."""
        if not isinstance(x, Value):
            return frozenset()
        if x not in self._varying:
            if x.kind in ("spread", "math"):
                self._varying[x] = frozenset().union(*map(self.along, x.values))
            else:
                self._varying[x] = along(x, self.last)
        return self._varying[x]

    def count(self, x: Value, over: frozenset[int]) -> Any:
        """How many entries a reduction takes together: a number where it is fixed."""
        if over == {self.last} and self.form.columns is not None:
            return x.width
        return Value("size", self.name("count"), 1, over=over)

    def mean(self, x: Value, over: frozenset[int], name: str) -> Value:
        """The mean, and from now on the knowledge that deviations from it add up to 0."""
        mean = self._means[x, over] = super().mean(x, over, name)
        return mean

    def math(self, operation: str, *operands: Any, name: str = "", mask: bool = False, width: int | None = None) -> Any:
        """Column by column an operation; a division by what varies less is a product with its reciprocal.

        Of sums over rows, which are gradients, it is made row by row where it can be: the result is such a sum again.
        """
        whole = self._sum_over_rows(operation, operands, name)
        if whole is not None:
            return whole
        if operation == "div" and isinstance(operands[1], Value) and self.along(operands[1]) < self.along(operands[0]):
            operands = operands[0], self.math("reciprocal", operands[1], name="reciprocal")
            operation = "mul"
        told = tuple(o if isinstance(o, Value) else repr(float(o)) for o in operands)  # 0.0 and -0.0 are equal
        key = (operation, told, mask, width)
        if key not in self._same:
            self._same[key] = super().math(operation, *operands, name=name, mask=mask, width=width)
        return self._same[key]

    def is_over_rows(self, value: Any) -> bool:
        """Whether a value is a sum over rows whose columns are cut: a gradient, and of no use to anything else."""
        rows = self.form.columns is not None and isinstance(value, Value) and value.over - {self.last}
        return bool(rows) and value.operation == "sum"

    def _sum_over_rows(self, operation: str, operands: Sequence[Any], name: str) -> Value | None:
        """A sum of two sums over rows, or a multiple of one, as one sum; None of anything else."""
        sums = [o for o in operands if self.is_over_rows(o)]
        others = [o for o in operands if isinstance(o, Value) and o not in sums]
        if operation == "add" and len(sums) == len(others) == 1 and _is_zero(others[0]):
            return sums[0]
        alike = operation in ("add", "sub") and len(sums) == 2
        multiple = operation == "neg" or (operation == "mul" and len(operands) > len(sums))
        if others or not sums or not (alike or multiple):
            return None
        over = functools.reduce(frozenset.intersection, (s.over for s in sums))
        terms = [o if o not in sums else self._sum(o.values[0], o.over - over, "part") for o in operands]
        return self._sum(self.math(operation, *terms, name="term"), over, name)

    def depends(self, value: Any) -> bool:
        """Whether a value depends on the gradient of the result."""
        if not isinstance(value, Value):
            return False
        if value not in self._depending:
            self._depending[value] = value is self.inputs.get(GRADIENT) or any(map(self.depends, value.values))
        return self._depending[value]

    def _late(self, value: Any) -> bool:
        """Whether a value depends on a reduction that depends on the gradient."""
        if not isinstance(value, Value):
            return False
        if value not in self._lateness:
            after = value.kind == "reduce" or any(map(self._late, value.values))
            self._lateness[value] = self.depends(value) and after
        return self._lateness[value]

    def total(self, x: Value) -> Value:
        """The sum over the first axis of the node's argument."""
        return self.reduce("sum", x, self.over([0]))

    def reduce(self, operation: str, x: Value, over: frozenset[int], name: str = "") -> Value:
        """Entries along some axes taken together."""
        x = self.real(x)
        if operation == "sum":
            return self._sum(x, over, name)
        varying = over & self.along(x)
        if not varying:
            if operation == "product":
                raise Unsupported("a product of equal entries")
            return self._narrow(x) if self.last in over else x
        return self._reduction(operation, x, varying, name)

    def _reduction(self, operation: str, x: Value, over: frozenset[int], name: str) -> Value:
        key = (operation, x, over)
        if key not in self._same:
            width = 1 if self.last in over else x.width
            self._same[key] = Value("reduce", self.name(name), width, (x,), operation, over=over)
        return self._same[key]

    def _sum(self, x: Value, over: frozenset[int], name: str) -> Value:
        """A sum. Statistics of forward keep the order of their operations; in backward what is the same for all terms
        stands before the sum, and where that spares a pass over the data a sum of sums is added up apart."""
        if not over:
            return x
        if _is_zero(x):
            return self.math("constant", 0.0, width=1 if self.last in over else x.width, name="nothing")
        varying = over & self.along(x)
        same = over if not varying else over & {self.last} - varying  # equal terms; those of loops are met in the loops
        if same:
            term = self._narrow(x) if self.last in same else x
            total = self._sum(term, over - same, name or "part") if varying else term
            count = self.count(x, same)
            return total if count == 1 else self.math("mul", total, count, name=name)
        if x.operation == "sub" and self._means.get((x.operands[0], over)) is x.operands[1]:
            return self.math("constant", 0.0, width=1 if self.last in over else x.width, name="nothing")
        if self.depends(x):
            whole = self._one_sum(x, over, name)
            if whole is not None:
                return whole
        if not self.depends(x) or over != self.form.averaged - ({self.last} if x.width == 1 else set()):
            return self._reduction("sum", x, over, name)  # a result over rows is nothing but a sum
        if x.operation in ("add", "sub") and self._late(x) and all(isinstance(o, Value) for o in x.operands):
            parts = (self._sum(o, over, "part") for o in x.operands)
            return self.math(x.operation, *parts, name=name)
        outer: list[Any] = []
        inner: list[Any] = []
        for factor in self._factors(x):
            (inner if self.along(factor) & over else outer).append(factor)
        if not outer:
            return self._reduction("sum", x, over, name)
        total = self._sum(functools.reduce(lambda a, b: self.math("mul", a, b, name="term"), inner), over, "part")
        for factor in outer:
            total = self.math("mul", total, self._narrow(factor) if self.last in over else factor, name="times")
        return total

    def _one_sum(self, x: Value, over: frozenset[int], name: str) -> Value | None:
        """A sum of a sum over other axes, times what is the same along these, as one sum; None where there is none."""
        factors = self._factors(x)
        sums = [f for f in factors if isinstance(f, Value) and f.kind == "reduce" and f.operation == "sum"]
        if len(sums) != 1 or sums[0].over & over:
            return None
        terms = [sums[0].values[0] if factor is sums[0] else factor for factor in factors]
        whole = functools.reduce(lambda a, b: self.math("mul", a, b, name="term"), terms)
        return self._sum(whole, over | sums[0].over, name)

    def _factors(self, x: Any) -> list[Any]:
        """What a value is the product of."""
        if isinstance(x, Value) and x.kind == "math" and x.operation in ("mul", "neg"):
            factors = [factor for operand in x.operands for factor in self._factors(operand)]
            return [*factors, -1.0] if x.operation == "neg" else factors
        return [x]

    def _narrow(self, x: Any) -> Any:
        """One column of what is the same in all."""
        if not isinstance(x, Value) or x.width == 1:
            return x
        if x.kind == "spread":
            return x.values[0]
        if x not in self._narrowed:
            assert x.kind == "math"
            operands = map(self._narrow, x.operands)
            self._narrowed[x] = self.math(x.operation, *operands, name="one", mask=x.mask, width=1)
        return self._narrowed[x]


def _is_zero(value: Value) -> bool:
    """Whether all entries are 0, as the gradient of a step is."""
    if value.operation == "neg":
        return _is_zero(value.operands[0])
    return value.operation == "constant" and value.operands[0] == 0


class ReadBack:
    """Copies of values, in which what another nest has computed and ``saved`` is read from memory."""

    def __init__(self, is_saved: Callable[[Value], bool]) -> None:
        self._is_saved = is_saved
        self.saved: dict[str, Value] = {}
        self._copies: dict[Value, Value] = {}

    def __call__(self, value: Value) -> Value:
        """A value's copy; the value itself where nothing in it is saved."""
        if value not in self._copies:
            self._copies[value] = self._copy(value)
        return self._copies[value]

    def _copy(self, value: Value) -> Value:
        if self._is_saved(value):
            self.saved[value.name] = value
            return Value("memory", value.name, value.width, axes=value.axes)
        operands = tuple(self(o) if isinstance(o, Value) else o for o in value.operands)
        if operands == value.operands:
            return value
        copy = dataclasses.replace(value, operands=operands)
        copy.axes = value.axes
        return copy


def _nest(name: str, form: Form, outputs: Mapping[str, Value], storage: Mapping[str, str]) -> Nest:
    """One direction: reductions that nothing but the caller reads may be over rows too, and are totals then.

    Those over the columns alone are not, where a row has them together.
    """
    found = all_values(outputs.values())
    inner = frozenset().union(*(o.over for value in found for o in value.values if o.kind == "reduce"))
    columns = frozenset({form.axes - 1})
    if form.columns is not None and any(v.kind == "reduce" and v.over == columns for v in outputs.values()):
        inner |= columns
    made: dict[str, Value] = {}
    for output, value in outputs.items():
        if value.kind == "reduce" and not _is_inside(value, inner, form.axes - 1):
            if value.operation != "sum":
                raise Unsupported(f"the {value.operation} over rows")
            value = dataclasses.replace(value, kind="total")
        made[output] = value
    for value in all_values(made.values()):
        if value.kind == "reduce" and not _is_inside(value, inner, form.axes - 1):
            raise Unsupported("a formula that reduces over several sets of axes")
    numbers = tuple(operand.name for operand in form.operands if operand.kind == "number")
    return Nest(name, form.axes, form.columns, numbers, made, storage, inner)


def _is_inside(value: Value, inner: frozenset[int], last: int) -> bool:
    """Whether a reduction is over all that is reduced; of a single column over what is not the columns."""
    return value.over == (inner - {last} if value.values[0].width == 1 else inner)


def along(value: Value, last: int) -> frozenset[int]:
    """The axes along which a value varies, the columns too."""
    return value.axes | {last} if value.width > 1 else value.axes


def all_values(values: Iterable[Value]) -> list[Value]:
    """Values and all that they are made of, each once, operands first."""
    found: dict[Value, None] = {}

    def visit(value: Value) -> None:
        if value not in found:
            for operand in value.values:
                visit(operand)
            found[value] = None

    for value in values:
        visit(value)
    return list(found)
