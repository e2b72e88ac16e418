"""How each torch operation acts on shapes while some sizes are open; one table, by the operation's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from pellucid.formula.dims import Conflict, Dim, Reason
from pellucid.formula.shapes import ROWS, Shape, Traced, _Solver

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}

REFLECTED = {
    "radd": "add",
    "rsub": "rsub",
    "rmul": "mul",
    "rtruediv": "div",
    "rdiv": "div",
    "rpow": "pow",
    "truediv": "div",
    "mod": "remainder",
}
POINTWISE_EXTRA = {
    "rsub",
    "pow",
    "and",
    "or",
    "xor",
    "invert",
    "float",
    "double",
    "half",
    "bfloat16",
    "to",
    "type_as",
    "detach",
}
POINTWISE_EXTRA |= {
    "clone",
    "contiguous",
    "zeros_like",
    "ones_like",
    "empty_like",
    "softmin",
    "relu6",
    "softsign",
    "tanhshrink",
}
POINTWISE_EXTRA |= {
    "floordiv",
    "where",
    "masked_fill",
    "lerp",
    "logsigmoid",
    "hardshrink",
    "requires_grad_",
    "full_like",
    "swiglu",
}


@cache
def is_pointwise(name: str) -> bool:
    """Whether torch itself tags the operation as acting on each entry alone."""
    if name in POINTWISE_EXTRA:
        return True
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads())


def apply(solver: _Solver, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give the shape of an operation's result, noting what it says about open sizes."""
    name = kwargs.pop("property", None) or getattr(function, "__name__", str(function))
    if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
        solver.fail(
            f"{name} changes a tensor in place. A formula makes new values: use {name[:-1]} and assign its result"
        )
    name = name.strip("_")
    name = REFLECTED.get(name, name)
    rule = RULES.get(name)
    if rule is not None:
        return rule(solver, *args, **kwargs)
    if is_pointwise(name):
        return pointwise(solver, name, args, kwargs)
    return solver.by_torch(function, args, kwargs)


def pointwise(solver: _Solver, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Traced:
    """Each entry alone; several operands are broadcast and must agree."""
    values = [v for v in (*args, *kwargs.values()) if isinstance(v, (Traced, torch.Tensor))]
    unknown = [v for v in values if isinstance(v, Traced) and v.shape_.dims is None]
    rows = any((solver.dims_of(v) or (None,))[0] == ROWS for v in values)
    if not unknown or rows:
        return Traced(solver, Shape(solver.agree(values, name)))
    for other in unknown[1:]:  # parameters of open shape among themselves share one shape
        other.shape_.join(unknown[0].shape_)
    if len(unknown) < len(values):
        solver.deferred.append((values, name))
    return Traced(solver, unknown[0].shape_)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule into the table under these names."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


@rule("matmul", "mm")
def _matmul(solver: _Solver, left: Any, right: Any) -> Traced:
    return solver.product(left, right)


@rule("rmatmul")
def _rmatmul(solver: _Solver, right: Any, left: Any) -> Traced:
    return solver.product(left, right)


@rule("addmm")
def _addmm(solver: _Solver, bias: Any, left: Any, right: Any, **_: Any) -> Traced:
    return pointwise(solver, "addmm", (solver.product(left, right), bias), {})


@rule("linear")
def _linear(solver: _Solver, x: Any, weight: Any, bias: Any = None) -> Traced:
    result = solver.product(x, _transpose(solver, weight))
    return result if bias is None else pointwise(solver, "linear", (result, bias), {})


@rule("t", "T", "mT", "transpose", "swapaxes", "permute")
def _transpose(solver: _Solver, value: Any, *axes: Any) -> Any:
    dims = solver.dims_of(value)
    if dims is None:
        dims = (solver.unifier.fresh(), solver.unifier.fresh())
        value.shape_.set(dims)
    if len(dims) != 2:
        solver.fail(f"a transpose of {solver.text(value)}; only matrices have one here")
    if ROWS in dims:
        solver.fail("a transpose of rows would swap the batch with the features; the batch is invisible to a cell")
    flat = axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
    if tuple(a % 2 for a in flat) == (0, 1) and len(flat) == 2 and flat != (0, 1):
        flat = ()
    return Traced(solver, Shape((dims[1], dims[0])))


@rule(
    "softmax",
    "log_softmax",
    "cumsum",
    "cumprod",
    "layer_norm",
    "rms_norm",
    "normalize",
    "dropout",
    "flip",
    "roll",
    "sort_values",
    "gumbel_softmax",
)
def _same_shape(solver: _Solver, value: Any, *args: Any, **kwargs: Any) -> Traced:
    dims = solver.dims_of(value)
    if dims is None:
        return Traced(solver, value.shape_)
    parameters = [v for v in (*args, *kwargs.values()) if isinstance(v, Traced)]
    for parameter in parameters:  # the weight and bias of a norm run along what is normalised
        own = parameter.shape_
        if own.dims is None:
            own.set((dims[-1],), ((Reason("normalized", {"expression": solver.expression()}),),))
        else:
            solver.agree([value, parameter], "normalization")
    axis = kwargs.get("dim", args[0] if args and isinstance(args[0], int) else None)
    if isinstance(axis, int):
        _feature_axes(solver, dims, (axis,))
    return Traced(solver, Shape(dims))


@rule(
    "sum", "mean", "amax", "amin", "prod", "std", "var", "logsumexp", "norm", "any", "all", "argmax", "argmin",
    "nansum", "median", "max", "min", "aminmax",
)  # fmt: skip
def _reduce(solver: _Solver, value: Any, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    if isinstance(dim, Traced):  # torch.max(a, b) of two values
        return pointwise(solver, "maximum", (value, dim), {})
    if isinstance(kwargs.get("p"), (int, float)):
        kwargs.pop("p")
    dims = solver.dims_of(value)
    if dims is None:
        solver.fail('a reduction of a parameter of open shape; annotate its axes, as in W: "hidden hidden"')
    if dim is None:
        if ROWS in dims:
            solver.fail(
                "a reduction over everything would mix the samples of the batch, which is invisible to a cell; reduce "
                "over the features: dim=-1, keepdim=True"
            )
        return Traced(solver, Shape(()))
    axes = _feature_axes(solver, dims, (dim,) if isinstance(dim, int) else tuple(dim))
    one = Dim((), 1)
    kept = [one if i in axes else d for i, d in enumerate(dims) if keepdim or i not in axes]
    return Traced(solver, Shape(kept))


def _feature_axes(solver: _Solver, dims: Sequence[Dim], axes: Sequence[int]) -> set[int]:
    found = set()
    for axis in axes:
        if not -len(dims) <= axis < len(dims):
            solver.fail(f"axis {axis} does not exist in {len(dims)} axes")
        if dims[axis] == ROWS:
            solver.fail(
                f"dim={axis} is the batch, which is invisible to a cell; vectors are rows (batch × features), so "
                "reduce over the features with dim=-1"
            )
        found.add(axis % len(dims))
    return found


@rule("chunk", "tensor_split")
def _chunk(solver: _Solver, value: Any, parts: int, dim: int = 0) -> tuple[Traced, ...]:
    dims, axis = _split_axis(solver, value, dim)
    whole, part = dims[axis], solver.unifier.fresh()
    facts = {"expression": solver.expression(), "parts": str(parts)}
    try:
        solver.unifier.unify(whole, part.times(parts), Reason("split", facts))
    except Conflict:
        solver.fail(f"{solver.text(value)} cannot be split into {parts} equal parts")
    piece = [*dims[:axis], part, *dims[axis + 1 :]]
    return tuple(Traced(solver, Shape(piece)) for _ in range(parts))


@rule("split", "split_with_sizes")
def _split(solver: _Solver, value: Any, sizes: Any, dim: int = 0) -> tuple[Traced, ...]:
    dims, axis = _split_axis(solver, value, dim)
    if isinstance(sizes, int):
        whole = solver.size_of(dims[axis])
        sizes = [min(sizes, whole - start) for start in range(0, whole, sizes)]
    total = Dim((), sum(sizes))
    try:
        solver.unifier.unify(
            dims[axis], total, Reason("split", {"expression": solver.expression(), "parts": str(len(sizes))})
        )
    except Conflict:
        solver.fail(f"{solver.text(value)} cannot be split into {list(sizes)}: they sum to {sum(sizes)}")
    return tuple(Traced(solver, Shape([*dims[:axis], Dim((), n), *dims[axis + 1 :]])) for n in sizes)


def _split_axis(solver: _Solver, value: Any, dim: int) -> tuple[tuple[Dim, ...], int]:
    dims = solver.dims_of(value)
    if dims is None:
        solver.fail('a split of a parameter of open shape; annotate its axes, as in W: "hidden 4*hidden"')
    return dims, next(iter(_feature_axes(solver, dims, (dim,))))


@rule("cat", "concat", "concatenate", "hstack")
def _cat(solver: _Solver, values: Sequence[Any], dim: int = 0, **_: Any) -> Traced:
    shapes = [solver.dims_of(v) for v in values]
    if any(s is None for s in shapes):
        solver.fail('cat of a parameter of open shape; annotate its axes, as in W: "hidden hidden"')
    known = [s for s in shapes if s is not None]
    axis = next(iter(_feature_axes(solver, known[0], (dim,))))
    total = Dim()
    for shape in known:
        if len(shape) != len(known[0]):
            solver.fail("cat of values with different numbers of axes: " + ", ".join(solver.text(v) for v in values))
        total = total + shape[axis]
    return Traced(solver, Shape([*known[0][:axis], total, *known[0][axis + 1 :]]))


@rule("unbind")
def _unbind(solver: _Solver, value: Any, dim: int = 0) -> tuple[Traced, ...]:
    dims, axis = _split_axis(solver, value, dim)
    rest = [*dims[:axis], *dims[axis + 1 :]]
    return tuple(Traced(solver, Shape(rest)) for _ in range(solver.size_of(dims[axis])))


@rule("unsqueeze")
def _unsqueeze(solver: _Solver, value: Any, dim: int) -> Traced:
    dims = list(solver.dims_of(value) or ())
    dims.insert(dim % (len(dims) + 1), Dim((), 1))
    return Traced(solver, Shape(dims))


@rule("squeeze")
def _squeeze(solver: _Solver, value: Any, dim: int = -1) -> Traced:
    dims = list(solver.dims_of(value) or ())
    if solver.unifier.value(dims[dim]) == 1:
        dims.pop(dim)
    return Traced(solver, Shape(dims))


@rule("getitem")
def _getitem(solver: _Solver, value: Any, index: Any) -> Traced:
    dims = solver.dims_of(value)
    if dims is None:
        solver.fail('an index into a parameter of open shape; annotate its axes, as in W: "2 hidden"')
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in items:
        place = items.index(Ellipsis)
        real = sum(item is not None for item in items) - 1
        items[place : place + 1] = [slice(None)] * (len(dims) - real)
    rest = list(dims)
    result: list[Dim] = []
    for item in items:
        if item is None:
            result.append(Dim((), 1))
            continue
        dim = rest.pop(0)
        whole = isinstance(item, slice) and item == slice(None)
        if not whole and dim == ROWS:
            solver.fail(
                "this index picks samples out of the batch, which is invisible to a cell; index features: z[:, a:b]"
            )
        if whole:
            result.append(dim)
        elif isinstance(item, slice):
            result.append(Dim((), len(range(*item.indices(solver.size_of(dim))))))
        elif not isinstance(item, int):
            solver.fail("an index must be made of numbers and slices here")
    return Traced(solver, Shape(result + rest))
