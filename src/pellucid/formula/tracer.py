"""Running a formula on shapes alone: values of which only the axes are known, and what is said about open sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch.utils import _pytree as pytree

from pellucid.errors import FormulaError
from pellucid.formula.dims import Conflict, Dim, Reason, Unifier
from pellucid.formula.source import Source

ROWS = Dim.named("batch")
ROWS_VALUE = 7919  # a size that no layer has, to recognise the batch axis where torch itself works out a shape


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


class Tracer:
    """What the rules of `shape_rules` work with: the axes of values, and the sizes that are to be made one.

    ``apply`` is the table of rules: it gives the shape of an operation's result.
    """

    def __init__(self, source: Source, sizes: Mapping[str, int], apply: Callable[..., Any]) -> None:
        self.source = source
        self.call = functools.partial(apply, self)
        self.unifier = Unifier({"batch": ROWS_VALUE, **sizes})
        self.deferred: list[tuple[Sequence[Any], str]] = []  # parameters combined before any of their axes is known

    @property
    def invisible(self) -> str:
        """What an error says of the batch."""
        return f"the batch is invisible to a {self.source.kind}"

    def dims_of(self, value: Any) -> tuple[Dim, ...] | None:
        """The axes of a value; () for a number, None for a parameter of unknown shape."""
        if isinstance(value, Traced):
            return value.shape_.dims
        if isinstance(value, torch.Tensor):
            return tuple(ROWS if n == ROWS_VALUE else Dim((), n) for n in value.shape)
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
        """Raise an error that points to the author's expression that is running now."""
        raise FormulaError(f"{self.source.title}: {text}\n" + self.source.caret_here())

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
            merged.append(self.one_size(a, b, Reason("agree", {"expression": self.expression()}), operation, values))
        return tuple(merged)

    def one_size(self, a: Dim, b: Dim, reason: Reason, operation: str, values: Sequence[Any]) -> Dim:
        """Unify two sizes of axes that go together; one goes with any."""
        one = Dim((), 1)
        if one in map(self.unifier.resolve, (a, b)):
            return b if self.unifier.resolve(a) == one else a
        try:
            if (self.unifier.resolve(a) == ROWS) != (self.unifier.resolve(b) == ROWS):
                raise Conflict
            return self.unifier.unify(a, b, reason)
        except Conflict:
            shapes = " and ".join(self.text(v) for v in values if self.dims_of(v) != ())
            lost = ROWS in map(self.unifier.resolve, (a, b))
            cure = ". What has one number for each sample keeps an axis for it: .unsqueeze(-1)" if lost else ""
            self.fail(f"{operation}: {shapes} cannot agree: {self._size(a)} against {self._size(b)}{cure}")

    def _size(self, dim: Dim) -> str:
        value = self.unifier.value(dim)
        name = str(self.unifier.resolve(dim))
        if name == str(ROWS):
            return "the batch"
        if value is None:
            return "an open size" if "?" in name else name
        return name if name == str(value) else f"{name} {value}"

    def _why_not_right(self, left: tuple[Dim, ...]) -> str:
        """Say why what is right of a product, rows, cannot stand there: it may have been meant for a matrix."""
        if len(left) > 2 and left[0] == ROWS:
            return "a matrix of each sample takes a column of each: write (M @ v.unsqueeze(-1)).squeeze(-1)"
        right = self.expression().rpartition("@")[2].strip()
        given = [symbol.name for symbol in self.source.symbols if symbol.role in ("input", "state")]
        if right in given[1:]:
            role = "a state" if self.source.kind == "cell" else "an input"
            return f"{right} stands before the *, so it is {role}, a row. If it is a parameter, move it behind the *"
        return "vectors are rows here, and rows stand left of a matrix: write x @ U, not U @ x"

    def product(self, left: Any, right: Any) -> Traced:
        """The matrix product: rows or a matrix, times a matrix or a vector."""
        a, b = self.dims_of(left), self.dims_of(right)
        if a is None and b is None:
            self.fail('a product of two parameters: annotate the axes of one of them, as in U: "input rank"')
        if b and b[0] == ROWS:
            self.fail(self._why_not_right(a or ()))
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
        """A size as a number, where a rule cannot do without."""
        value = self.unifier.value(dim)
        if value is None:
            self.fail(
                "this needs a size that is still open at this point. Name it in an annotation of what it comes from, "
                'as in U: "input rank" or c: "hidden"'
            )
        return value

    def by_torch(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Let torch work out a shape on the meta device, where every size is known."""

        def lower(value: Any) -> Any:
            return torch.empty(value.shape, device="meta") if isinstance(value, Traced) else value

        def lift(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            if any(n != ROWS_VALUE and n % ROWS_VALUE == 0 and n for n in value.shape):
                self.fail(f"this merges the batch axis with another; {self.invisible}")
            return Traced(self, Shape([ROWS if n == ROWS_VALUE else Dim((), n) for n in value.shape]))

        args, kwargs = pytree.tree_map(lower, (args, kwargs))
        try:
            result = function(*args, **kwargs)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            self.fail(f"{getattr(function, '__name__', function)}: {error}")
        return pytree.tree_map(lift, result)


class Traced:
    """A value of which only the shape is known; every torch operation on it goes through the rules."""

    def __init__(self, tracer: Tracer, shape: Shape) -> None:
        self.tracer = tracer
        self.shape_ = shape

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The axes; only for values whose number of axes is known."""
        assert self.shape_.dims is not None
        return self.shape_.dims

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        owner = next(v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Traced))
        return owner.tracer.call(func, args, kwargs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes as numbers; an error where they are still open."""
        if self.shape_.dims is None:
            self.tracer.fail('the shape of a parameter is open here; annotate its axes, as in W: "input rank"')
        return tuple(self.tracer.size_of(dim) for dim in self.shape_.dims)

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
            return self.tracer.call(method.__get__, (self,), {"property": name})
        return functools.partial(self._method, method)

    def _method(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.tracer.call(method, (self, *args), kwargs)

    def _no_value(self, *_: Any) -> NoReturn:
        self.tracer.fail(
            "Python control flow or a conversion here depends on the values of a tensor. A formula is traced once for "
            "all values: use torch.where(condition, a, b) instead of if, and torch operations instead of float()"
        )

    def __iter__(self) -> NoReturn:
        source = self.tracer.source
        several = ", ".join(s.name for s in source.inputs) + ", h, c" if source.kind == "cell" else "x, y"
        self.tracer.fail(
            f"a tensor is unpacked, or gone through, here. What comes as several values has an argument for each, def "
            f"{source.name}({several}, *, U, W); columns come apart by z.chunk(2, -1)"
        )

    def __array_ufunc__(self, function: Any, *_: Any, **__: Any) -> NoReturn:
        name = getattr(function, "__name__", function)
        self.tracer.fail(f"numpy's {name} takes no tensors that have a gradient: use torch.{name}")

    __bool__ = __float__ = __int__ = __index__ = __len__ = _no_value
    item = tolist = numpy = _no_value


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: Traced, *args: Any) -> Any:
        return self.tracer.call(getattr(torch.Tensor, name), (self, *args), {})

    return operate


for _name in (
    "add radd sub rsub mul rmul truediv rtruediv pow rpow matmul rmatmul neg abs lt le gt ge eq ne and or xor invert "
    "mod floordiv getitem"
).split():
    setattr(Traced, f"__{_name}__", _operator(f"__{_name}__"))


def _in_place(self: Traced, *_: Any) -> NoReturn:
    self.tracer.fail("this changes a tensor in place. A formula makes new values: write c = c + i * g, not c += i * g")


for _name in "iadd isub imul itruediv ipow imatmul imod ifloordiv iand ior ixor setitem".split():
    setattr(Traced, f"__{_name}__", _in_place)
