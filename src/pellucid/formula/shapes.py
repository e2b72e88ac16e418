"""The shape of every symbol, solved from the formula by running it on shapes alone, with the reason of each size."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from pellucid.errors import FormulaError
from pellucid.formula import draws
from pellucid.formula.dims import Conflict, Dim, Reason, Unifier
from pellucid.formula.source import Source

ROWS = Dim.named("batch")
ROWS_VALUE = 7919  # a size that no layer has, to recognise the batch axis where torch itself works out a shape


@dataclass(frozen=True)
class SolvedShape:
    """The shape of one symbol: names (``("input", "4*hidden")``), sizes, and per axis the reasons."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    reasons: tuple[tuple[Reason, ...], ...]


@dataclass(frozen=True)
class Solution:
    """Everything that the shapes of a formula say.

    ``symbols`` holds inputs, states and parameters; ``output`` is the size of what the layer returns at each step;
    ``sites`` are the random draws, each with its size and "time" or None; ``separate`` tells whether the formula
    returns an output of its own, ``return y, (h, c)``.
    """

    sizes: Mapping[str, int]
    symbols: Mapping[str, SolvedShape]
    output: int
    sites: tuple[tuple[int, str | None], ...]
    separate: bool

    def state_sizes(self, source: Source) -> tuple[int, ...]:
        """The size of every state entry."""
        return tuple(self.symbols[state.name].shape[-1] for state in source.states)


class Shape:
    """The axes of a value; None while it is not known how many there are.

    Parameters of unknown shape that are combined entry by entry are made one: solving one solves all.
    """

    def __init__(self, dims: Sequence[Dim] | None) -> None:
        self._dims = None if dims is None else tuple(dims)
        self._reasons: tuple[tuple[Reason, ...], ...] = ()
        self._one_with: Shape | None = None

    def _root(self) -> Shape:
        return self if self._one_with is None else self._one_with._root()

    def join(self, other: Shape) -> None:
        """Make two unknown shapes one."""
        if self._root() is not other._root():
            self._root()._one_with = other._root()

    @property
    def dims(self) -> tuple[Dim, ...] | None:
        """The axes, or None."""
        return self._root()._dims

    @property
    def reasons(self) -> tuple[tuple[Reason, ...], ...]:
        """What gave each axis, as far as it was given directly."""
        return self._root()._reasons

    def set(self, dims: Sequence[Dim], reasons: Sequence[tuple[Reason, ...]] = ()) -> None:
        """Say what the axes are and why."""
        self._root()._dims, self._root()._reasons = tuple(dims), tuple(reasons)


def solve(source: Source, sizes: Mapping[str, int], hyperparameters: Mapping[str, Any]) -> Solution:
    """Solve every shape of a cell for given sizes ("input", "hidden", and the names of its annotations).

    Raises:
        FormulaError: with a caret under the author's line, where shapes cannot agree, a size stays open, a name is
            unknown, Python control flow depends on values, or a state is not returned.
    """
    return _Solver(source, sizes).run(hyperparameters)


def split_result(source: Source, result: Any) -> tuple[Any, tuple[Any, ...]]:
    """Sort what a cell returned into output and new state, both in the order of the arguments."""
    names = [state.name for state in source.states]
    expected = names[0] if len(names) == 1 else ", ".join(names)
    values = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    if len(values) == 2 and isinstance(values[1], (tuple, list)):
        output, states = values[0], tuple(values[1])
    elif len(names) == 1 and len(values) == 2:
        output, states = values[0], values[1:]
    else:
        output, states = (values[0] if values else None), values
    if len(states) != len(names) or any(value is None for value in (output, *states)):
        missing = names[len(states) :]
        what = f"{', '.join(missing)} is not returned" if missing else f"{len(states)} values came back"
        raise FormulaError(
            f"cell {source.name}: the state is ({', '.join(names)}), and every entry must be returned in that order, "
            f"but {what}. Write return {expected}, or return y, ({', '.join(names)},) with an output of its own.\n"
            + _caret_at_return(source)
        )
    return output, states


def _caret_at_return(source: Source) -> str:
    import ast

    nodes = ast.walk(source.tree) if source.tree else ()
    returns = [node for node in nodes if isinstance(node, ast.Return)]
    if not returns:
        return source.caret_at_name(source.states[0].name)
    node = returns[-1]
    return source.caret(
        node.lineno, node.col_offset, (node.end_col_offset or 0) if node.lineno == node.end_lineno else 0
    )


class _Solver:
    training = True

    def __init__(self, source: Source, sizes: Mapping[str, int]) -> None:
        self.source = source
        self.unifier = Unifier({"batch": ROWS_VALUE, **sizes})
        self.sizes = dict(sizes)
        self.sites: list[tuple[Dim, str | None]] = []
        self.deferred: list[tuple[Sequence[Any], str]] = []  # parameters combined before any of their axes is known

    # -- running the formula ------------------------------------------------------------------------------------

    def run(self, hyperparameters: Mapping[str, Any]) -> Solution:
        values = {symbol.name: self._start(symbol) for symbol in self.source.symbols if symbol.role != "hyperparameter"}
        first = [values[s.name] for s in (*self.source.inputs, *self.source.states)]
        keywords = {s.name: values[s.name] for s in self.source.parameters} | dict(hyperparameters)
        try:
            with draws.provided_by(self):
                result = self.source.function(*first, **keywords)
        except FormulaError:
            raise
        except Exception as error:
            raise FormulaError(
                f"cell {self.source.name}: {type(error).__name__}: {error}\n"
                + self.source.caret_at(error.__traceback__)
            ) from error
        output, states = split_result(self.source, result)
        for symbol, new in zip(self.source.states, states, strict=True):
            self._return(symbol.name, values[symbol.name], new)
        for operands, operation in self.deferred:
            if all(self.dims_of(v) is not None for v in operands):
                self.agree(operands, operation)
        size = self._row_size(output, "the output")
        symbols = {name: self._solved(name, value) for name, value in values.items()}
        sites = tuple((self._number(dim), shared) for dim, shared in self.sites)
        return Solution(dict(self.sizes), symbols, size, sites, output is not states[0])

    def draw(self, like: Any, shared: str | None) -> Any:
        """Note a random site; its numbers have the shape of what they act on."""
        dims = self.dims_of(like)
        if dims is None or len(dims) != 2 or dims[0] != ROWS:
            self.fail("pellucid.dropout acts on rows (batch × features), not on a parameter")
        self.sites.append((dims[1], shared))
        return Traced(self, Shape(dims))

    def _start(self, symbol: Any) -> Traced:
        if symbol.dims is not None:
            reason = Reason("annotated", {"name": symbol.name, "dims": " ".join(symbol.dims) or "scalar"})
            dims = [self._annotated(symbol, text) for text in symbol.dims]
            dims = dims if symbol.role == "parameter" else [ROWS, *dims]
            shape = Shape(None)
            shape.set(dims, ((reason,),) * len(dims))
            return Traced(self, shape)
        if symbol.role == "parameter":
            return Traced(self, Shape(None))
        known = {self.source.inputs[0].name: "input", self.source.states[0].name: "hidden"}.get(symbol.name)
        if not known:
            return Traced(self, Shape([ROWS, self.unifier.fresh()]))
        shape = Shape(None)
        reason = Reason("given", {"name": symbol.name, "argument": f"{known}_size"})
        shape.set([ROWS, Dim.named(known)], ((), (reason,)))
        return Traced(self, shape)

    def _annotated(self, symbol: Any, text: str) -> Dim:
        """Read one axis of an annotation: ``hidden``, ``4*hidden``, ``16``, ``input+hidden``."""
        total = Dim()
        for part in text.split("+"):
            *factors, last = part.split("*")
            if not all(f.isdigit() for f in factors) or not (last.isdigit() or last.isidentifier()):
                raise FormulaError(
                    f"cell {self.source.name}: the annotation of {symbol.name} has the axis {text!r}; an axis is a "
                    f"name, a number, or a sum of multiples such as 4*hidden.\n"
                    + self.source.caret_at_name(symbol.name)
                )
            if last.isidentifier() and last not in self.sizes:
                raise FormulaError(
                    f"cell {self.source.name}: the annotation of {symbol.name} names the size {last!r}; give it to the "
                    f"constructor: {self.source.name}(..., {last}=16)\n" + self.source.caret_at_name(symbol.name)
                )
            unit = Dim((), int(last)) if last.isdigit() else Dim.named(last)
            total = total + unit.times(math.prod(map(int, factors)))
        return total

    def _return(self, name: str, old: Traced, new: Any) -> None:
        dims = self.dims_of(new)
        if dims is None or len(dims) != 2:
            self._returned_wrong(name, old, new)
        reason = Reason("returned", {"state": name})
        try:
            self.unifier.unify(dims[0], ROWS, reason)
            self.unifier.unify(dims[1], old.dims[1], reason)
        except Conflict:
            self._returned_wrong(name, old, new)

    def _returned_wrong(self, name: str, old: Traced, new: Any) -> NoReturn:
        raise FormulaError(
            f"cell {self.source.name}: the state {name} is {self.text(old)}, but what is returned for it is "
            f"{self.text(new)}; a state entry keeps its shape from step to step.\n" + _caret_at_return(self.source)
        )

    def _row_size(self, value: Any, what: str) -> int:
        dims = self.dims_of(value)
        if dims is None or len(dims) != 2 or self.unifier.resolve(dims[0]) != ROWS:
            raise FormulaError(
                f"cell {self.source.name}: {what} must be rows (batch × features), but it is {self.text(value)}.\n"
                + _caret_at_return(self.source)
            )
        return self._number(dims[1])

    def _number(self, dim: Dim) -> int:
        value = self.unifier.value(dim)
        if value is None:
            raise FormulaError(
                f"cell {self.source.name}: the size {self.unifier.resolve(dim)} stays open: nothing in the formula "
                f"ties it to the input or the state. Name it in an annotation.\n  in {self.source.where}"
            )
        return value

    def _solved(self, name: str, value: Traced) -> SolvedShape:
        if value.shape_.dims is None:
            raise FormulaError(
                f"cell {self.source.name}: the shape of {name} stays open: the formula never uses it together with the "
                f'input or the state. Remove it, or annotate its axes: {name}: "hidden hidden"\n'
                + self.source.caret_at_name(name)
            )
        dims = value.shape_.dims
        numbers = [1 if dim == ROWS else self.unifier.value(dim) for dim in dims]
        if None in numbers:
            axis = numbers.index(None)
            example = " ".join(
                "rank" if n is None else str(self.unifier.resolve(d)) for n, d in zip(numbers, dims, strict=True)
            )
            raise FormulaError(
                f"cell {self.source.name}: the size of axis {axis} of {name} stays open: nothing ties it to the input "
                f'or the state. Name it in an annotation, {name}: "{example}", and give the constructor rank=16.\n'
                + self.source.caret_at_name(name)
            )
        own = value.shape_.reasons or ((),) * len(dims)
        reasons = tuple((*r, *self.unifier.reasons(d)) for r, d in zip(own, dims, strict=True))
        texts = tuple("1" if dim == ROWS else str(self.unifier.resolve(dim)) for dim in dims)
        return SolvedShape(name, texts, tuple(n for n in numbers if n is not None), reasons)

    # -- what the rules below use -------------------------------------------------------------------------------

    def dims_of(self, value: Any) -> tuple[Dim, ...] | None:
        if isinstance(value, Traced):
            return value.shape_.dims
        if isinstance(value, torch.Tensor):
            return tuple(Dim((), n) for n in value.shape)
        return ()

    def text(self, value: Any) -> str:
        """Write a shape as on paper: rows are 1×n, open sizes a question mark."""
        dims = self.dims_of(value)
        if dims is None:
            return "a parameter of open shape"
        if not dims:
            return "a number"
        numbers = [1 if self.unifier.resolve(d) == ROWS else self.unifier.value(d) for d in dims]
        return ("1×" if len(dims) == 1 else "") + "×".join("?" if n is None else str(n) for n in numbers)

    def expression(self) -> str:
        """The author's expression that is running now."""
        return self.source.segment_here()

    def fail(self, text: str) -> NoReturn:
        raise FormulaError(f"cell {self.source.name}: {text}\n" + self.source.caret_here())

    def agree(self, values: Sequence[Any], operation: str) -> tuple[Dim, ...]:
        """Broadcast values together, unifying their axes from the last one."""
        known = [v for v in values if self.dims_of(v) is not None]
        features = next((d[1:] for d in map(self.dims_of, known) if d and d[0] == ROWS), None)
        for value in values:
            if isinstance(value, Traced) and value.shape_.dims is None and features is not None:
                reason = Reason("agree", {"expression": self.expression()})
                value.shape_.set(features, ((reason,),) * len(features))
                known.append(value)
        result: tuple[Dim, ...] = ()
        for value in known:
            result = self._broadcast(result, self.dims_of(value) or (), values, operation)
        return result

    def _broadcast(
        self, left: tuple[Dim, ...], right: tuple[Dim, ...], values: Sequence[Any], operation: str
    ) -> tuple[Dim, ...]:
        longest = max(len(left), len(right))
        pad = Dim((), 1)
        merged: list[Dim] = []
        for a, b in zip(
            [pad] * (longest - len(left)) + list(left),
            [pad] * (longest - len(right)) + list(right),
            strict=True,
        ):
            if a == pad or b == pad:
                merged.append(b if a == pad else a)
                continue
            reason = Reason("agree", {"expression": self.expression()})
            try:
                if (self.unifier.resolve(a) == ROWS) != (self.unifier.resolve(b) == ROWS):
                    raise Conflict
                merged.append(self.unifier.unify(a, b, reason))
            except Conflict:
                shapes = " and ".join(self.text(v) for v in values if self.dims_of(v) != ())
                self.fail(f"{operation}: {shapes} cannot agree: {self._size(a)} against {self._size(b)}")
        return tuple(merged)

    def _size(self, dim: Dim) -> str:
        value = self.unifier.value(dim)
        name = str(self.unifier.resolve(dim))
        if name == str(ROWS):
            return "the batch"
        return name if value is None or name == str(value) else f"{name} {value}"

    def product(self, left: Any, right: Any) -> Traced:
        """The matrix product: rows or a matrix, times a matrix or a vector."""
        a, b = self.dims_of(left), self.dims_of(right)
        if a is None and b is None:
            self.fail('a product of two parameters: annotate the axes of one of them, as in U: "input rank"')
        if b and b[0] == ROWS:
            self.fail("vectors are rows here, and rows stand left of a matrix: write x @ U, not U @ x")
        facts = {"expression": self.expression(), "left": "" if a is None else self.text(left)}
        if a is None:
            a = self._matrix(left, 1, Dim() if b is None else b[0], facts)
        elif b is None:
            b = self._matrix(right, 0, a[-1], facts)
        assert b is not None
        if not a or not b:
            self.fail("the matrix product needs rows and a matrix, not a number; use * to scale")
        inner = b[0] if len(b) == 1 else b[-2]
        try:
            self.unifier.unify(a[-1], inner, Reason("product", facts))
        except Conflict:
            self.fail(
                f"the matrix product of {self.text(left)} and {self.text(right)} does not fit: the left has "
                f"{self._size(a[-1])} columns, the right has {self._size(inner)} rows"
            )
        return Traced(self, Shape((*a[:-1], *(b[:-2] if len(b) > 2 else ()), *(b[-1:] if len(b) > 1 else ()))))

    def _matrix(self, value: Traced, axis: int, known: Dim, facts: Mapping[str, str]) -> tuple[Dim, ...]:
        dims = [self.unifier.fresh(), self.unifier.fresh()]
        dims[axis] = known
        reasons: list[tuple[Reason, ...]] = [(), ()]
        reasons[axis] = (Reason("product", facts),)
        value.shape_.set(dims, reasons)
        return tuple(dims)

    def size_of(self, dim: Dim) -> int:
        value = self.unifier.value(dim)
        if value is None:
            self.fail(
                "this needs a size that is still open at this point. Name it in an annotation of the parameter that "
                'it comes from, as in U: "input rank"'
            )
        return value

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from pellucid.formula.shape_rules import apply

        return apply(self, function, args, kwargs)

    def by_torch(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Let torch work out a shape on the meta device, where every size is known."""
        from torch.utils import _pytree as pytree

        def lower(value: Any) -> Any:
            if not isinstance(value, Traced):
                return value
            if value.shape_.dims is None:
                self.fail('the shape of a parameter is open here; annotate its axes, as in W: "hidden hidden"')
            return torch.empty([self.size_of(d) for d in value.shape_.dims], device="meta")

        def lift(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            if any(n != ROWS_VALUE and n % ROWS_VALUE == 0 and n for n in value.shape):
                self.fail("this merges the batch axis with another; the batch is invisible to a cell")
            return Traced(self, Shape([ROWS if n == ROWS_VALUE else Dim((), n) for n in value.shape]))

        args, kwargs = pytree.tree_map(lower, (args, kwargs))
        try:
            result = function(*args, **kwargs)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            self.fail(f"{getattr(function, '__name__', function)}: {error}")
        return pytree.tree_map(lift, result)


class Traced:
    """A value of which only the shape is known; every torch operation on it goes through the rules."""

    def __init__(self, solver: _Solver, shape: Shape) -> None:
        self.solver = solver
        self.shape_ = shape

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The axes; only for values whose number of axes is known."""
        assert self.shape_.dims is not None
        return self.shape_.dims

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils import _pytree as pytree

        kwargs = kwargs or {}
        owner = next(v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Traced))
        return owner.solver.call(func, args, kwargs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes as numbers; an error where they are still open."""
        if self.shape_.dims is None:
            self.solver.fail('the shape of a parameter is open here; annotate its axes, as in W: "hidden hidden"')
        return tuple(self.solver.size_of(dim) for dim in self.shape_.dims)

    def size(self, dim: int | None = None) -> Any:
        """As ``torch.Tensor.size``."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """As ``torch.Tensor.dim``."""
        return len(self.shape)

    ndim = property(dim)
    dtype = torch.float32
    device = torch.device("cpu")
    requires_grad = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(torch.Tensor, name)
        if not callable(method):  # a property such as .T
            return self.solver.call(method.__get__, (self,), {"property": name})
        return functools.partial(self._method, method)

    def _method(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.solver.call(method, (self, *args), kwargs)

    def _no_value(self, *_: Any) -> NoReturn:
        self.solver.fail(
            "Python control flow or a conversion here depends on the values of a tensor. A formula is traced once for "
            "all values: use torch.where(condition, a, b) instead of if, and torch operations instead of float()"
        )

    __bool__ = __float__ = __int__ = __index__ = __len__ = __iter__ = _no_value
    item = tolist = numpy = _no_value


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: Traced, *args: Any) -> Any:
        return self.solver.call(getattr(torch.Tensor, name), (self, *args), {})

    return operate


for _name in (
    "add radd sub rsub mul rmul truediv rtruediv pow rpow matmul rmatmul neg abs lt le gt ge eq ne and or xor invert "
    "mod floordiv getitem"
).split():
    setattr(Traced, f"__{_name}__", _operator(f"__{_name}__"))


def _in_place(self: Traced, *_: Any) -> NoReturn:
    self.solver.fail("this changes a tensor in place. A formula makes new values: write c = c + i * g, not c += i * g")


for _name in "iadd isub imul itruediv ipow imatmul imod ifloordiv iand ior ixor setitem".split():
    setattr(Traced, f"__{_name}__", _in_place)
