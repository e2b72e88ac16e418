"""How each torch operation acts on shapes while some sizes are open; one table, by the operation's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NoReturn

import torch

from pellucid.formula import draws
from pellucid.formula.dims import Conflict, Dim, Reason
from pellucid.formula.einsum import parse
from pellucid.formula.tracer import ROWS, Shape, Traced, Tracer

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
    *"rsub pow and or xor invert float double half bfloat16 to type_as detach clone contiguous".split(),
    *"zeros_like ones_like empty_like full_like softmin relu6 softsign tanhshrink log_sigmoid hardshrink".split(),
    *"floordiv where masked_fill lerp requires_grad_ swiglu view_as".split(),
    *"leaky_relu ldexp".split(),  # which torch tags since 2.12
}


# What torch calls an argument, and what the rules do; then the names of operands, by which they may be given too.
KEYWORDS = {
    **{"axis": "dim", "keepdims": "keepdim"},
    **dict.fromkeys(("chunks", "sections", "indices", "indices_or_sections"), "parts"),
    **dict.fromkeys(("split_size", "split_size_or_sections", "split_sizes"), "sizes"),
}
FIRST, SECOND = ("input", "mat1", "tensors"), ("other", "mat2")


@cache
def is_pointwise(name: str) -> bool:
    """Whether torch itself tags the operation as acting on each entry alone."""
    if name in POINTWISE_EXTRA:
        return True
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads())


def apply(tracer: Tracer, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give the shape of an operation's result, noting what it says about open sizes."""
    name = kwargs.pop("property", None) or getattr(function, "__name__", str(function))
    if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
        tracer.fail(
            f"{name} changes a tensor in place. A formula makes new values: use {name[:-1]} and assign its result"
        )
    name = name.strip("_")
    name = REFLECTED.get(name, name)
    rule = RULES.get(name)
    if rule is not None:
        first, second = ([kwargs.pop(key) for key in keys if key in kwargs] for keys in (FIRST, SECOND))
        return rule(tracer, *first, *args, *second, **{KEYWORDS.get(key, key): v for key, v in kwargs.items()})
    if is_pointwise(name):
        return pointwise(tracer, name, args, kwargs)
    return tracer.by_torch(function, args, kwargs)


def pointwise(tracer: Tracer, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Traced:
    """Each entry alone; several operands are broadcast and must agree."""
    values = [v for v in (*args, *kwargs.values()) if isinstance(v, (Traced, torch.Tensor))]
    unknown = [v for v in values if isinstance(v, Traced) and v.shape_.dims is None]
    rows = any((tracer.dims_of(v) or (None,))[0] == ROWS for v in values)
    if not unknown or rows:
        return Traced(tracer, Shape(tracer.agree(values, name)))
    for other in unknown[1:]:  # parameters of open shape among themselves share one shape
        other.shape_.join(unknown[0].shape_)
    if len(unknown) < len(values):
        tracer.deferred.append((values, name))
    return Traced(tracer, unknown[0].shape_)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule into the table under these names."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


@rule("matmul", "mm")
def _matmul(tracer: Tracer, left: Any, right: Any) -> Any:
    of_each = tracer.dims_of(left) is not None and len(tracer.dims_of(right) or ()) > 2  # a matrix of each sample
    return tracer.by_torch(torch.matmul, (left, right), {}) if of_each else tracer.product(left, right)


@rule("rmatmul")
def _rmatmul(tracer: Tracer, right: Any, left: Any) -> Traced:
    return tracer.product(left, right)


@rule("addmm")
def _addmm(tracer: Tracer, bias: Any, left: Any, right: Any, **_: Any) -> Traced:
    return pointwise(tracer, "addmm", (tracer.product(left, right), bias), {})


@rule("linear")
def _linear(tracer: Tracer, x: Any, weight: Any, bias: Any = None) -> Traced:
    result = tracer.product(x, _turn(tracer, weight))
    return result if bias is None else pointwise(tracer, "linear", (result, bias), {})


@rule("einsum")
def _einsum(tracer: Tracer, equation: Any, *operands: Any) -> Any:
    shapes = map(tracer.dims_of, operands)
    found = parse(equation, [None if dims is None else len(dims) for dims in shapes])
    if found is None:
        return tracer.by_torch(torch.einsum, (equation, *operands), {})
    terms, result = found
    reason = Reason("product", {"expression": tracer.expression(), "left": ""})
    sizes: dict[str, Dim] = {}
    for value, term in sorted(zip(operands, terms, strict=True), key=lambda pair: tracer.dims_of(pair[0]) is None):
        dims = tracer.dims_of(value)
        if dims is None:
            dims = tuple(sizes.get(letter) or tracer.unifier.fresh() for letter in term)
            value.shape_.set(dims, [(reason,) if letter in sizes else () for letter in term])
        for letter, dim in zip(term, dims, strict=True):
            sizes[letter] = tracer.one_size(sizes.get(letter, dim), dim, reason, f"{equation}, {letter}", operands)
    rows = [letter for letter, dim in sizes.items() if tracer.unifier.resolve(dim) == ROWS]
    if any(result[:1] != letter for letter in rows):
        tracer.fail(
            f"{equation} does not keep the batch, {rows[0]}, as the first axis of its result: samples would be mixed. "
            f"{tracer.invisible.capitalize()}: sum over the features only"
        )
    return Traced(tracer, Shape([sizes[letter] for letter in result]))


@rule("t", "T")
def _turn(tracer: Tracer, value: Any) -> Any:
    return _permute(tracer, value, (1, 0))


@rule("transpose", "swapaxes", "swapdims", "mT")
def _transpose(tracer: Tracer, value: Any, dim0: int = -2, dim1: int = -1) -> Any:
    axes = len(tracer.dims_of(value) or (0, 0))
    order = list(range(axes))
    order[dim0 % axes], order[dim1 % axes] = order[dim1 % axes], order[dim0 % axes]
    return _permute(tracer, value, order)


@rule("permute")
def _permute(tracer: Tracer, value: Any, *order: Any, dims: Sequence[int] = ()) -> Any:
    sizes = tracer.dims_of(value)
    if sizes is None:
        sizes = (tracer.unifier.fresh(), tracer.unifier.fresh())
        value.shape_.set(sizes)
    order = tuple(dims) or (tuple(order[0]) if len(order) == 1 else order)
    if sorted(axis % len(sizes) for axis in order) != [*range(len(sizes))]:
        tracer.fail(f"a transpose of {tracer.text(value)} in the order {order}, which is not that of its axes")
    turned = tuple(sizes[axis] for axis in order)
    if ROWS in sizes and turned[0] != ROWS:
        tracer.fail(f"a transpose of rows would swap the batch with the features; {tracer.invisible}")
    return Traced(tracer, Shape(turned))


@rule(*"softmax log_softmax gumbel_softmax cumsum cumprod layer_norm rms_norm normalize dropout flip prelu".split())
def _same_shape(tracer: Tracer, value: Any, *args: Any, **kwargs: Any) -> Traced:
    dims = tracer.dims_of(value)
    if dims is None:
        return Traced(tracer, value.shape_)
    parameters = [v for v in (*args, *kwargs.values()) if isinstance(v, Traced)]
    for parameter in parameters:  # the weight and bias of a norm run along what is normalised
        own = parameter.shape_
        if own.dims is None:
            own.set((dims[-1],), ((Reason("normalized", {"expression": tracer.expression()}),),))
        else:
            tracer.agree([value, parameter], "normalization")
    axis = kwargs.get("dim", args[0] if args and isinstance(args[0], int) else None)
    if isinstance(axis, int):
        _feature_axes(tracer, dims, (axis,))
    return Traced(tracer, Shape(dims))


@rule("roll")
def _roll(tracer: Tracer, value: Any, shifts: Any, dims: Any = ()) -> Traced:
    own = tracer.dims_of(value) or ()
    _feature_axes(tracer, own, (dims,) if isinstance(dims, int) else dims)
    return Traced(tracer, Shape(own))


@rule("one_hot")
def _one_hot(tracer: Tracer, value: Any, num_classes: Any = "n") -> NoReturn:
    tracer.fail(
        "one_hot looks at values, of which a formula that is traced has none: write (index.unsqueeze(-1) == "
        f"torch.arange({num_classes})).to(h.dtype)"
    )


@rule(*"bernoulli multinomial normal poisson rand_like randn_like randint_like".split())
def _random(tracer: Tracer, *_: Any, **__: Any) -> NoReturn:
    tracer.fail(f"this draws random numbers by torch, {draws.INSTEAD}")


@rule("std", "var")
def _spread(
    tracer: Tracer, value: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, correction: Any = 1
) -> Any:
    return _reduce(tracer, value, None if isinstance(dim, bool) else dim, keepdim)


@rule(*"sum mean amax amin prod logsumexp any all argmax argmin nansum".split())
def _reduce(tracer: Tracer, value: Any, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    dims = tracer.dims_of(value)
    if dims is None:
        tracer.fail('a reduction of a parameter of open shape; annotate its axes, as in W: "input rank"')
    if dim is None:
        if ROWS in dims:
            tracer.fail(
                f"a reduction over everything would mix the samples, but {tracer.invisible}; reduce over the features: "
                f"dim=-1, keepdim=True"
            )
        return Traced(tracer, Shape(()))
    axes = _feature_axes(tracer, dims, (dim,) if isinstance(dim, int) else tuple(dim))
    one = Dim((), 1)
    kept = [one if i in axes else d for i, d in enumerate(dims) if keepdim or i not in axes]
    return Traced(tracer, Shape(kept))


@rule("max", "min", "median")
def _pick(tracer: Tracer, value: Any, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    if isinstance(dim, Traced):  # torch.max(a, b) of two values
        return pointwise(tracer, "maximum", (value, dim), {})
    picked = _reduce(tracer, value, dim, keepdim, **kwargs)
    return picked if dim is None else torch.return_types.max((picked, picked))  # with its place


@rule("norm")
def _norm(tracer: Tracer, value: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    return _reduce(tracer, value, dim, keepdim, **kwargs)


def _feature_axes(tracer: Tracer, dims: Sequence[Dim], axes: Sequence[int]) -> set[int]:
    found = set()
    for axis in axes:
        if not -len(dims) <= axis < len(dims):
            tracer.fail(f"axis {axis} does not exist in {len(dims)} axes")
        if dims[axis] == ROWS:
            tracer.fail(
                f"dim={axis} is the batch, and {tracer.invisible}; vectors are rows (batch × features), so reduce over "
                f"the features with dim=-1"
            )
        found.add(axis % len(dims))
    return found


@rule("chunk", "tensor_split")
def _chunk(tracer: Tracer, value: Any, parts: Any, dim: int = 0) -> tuple[Traced, ...]:
    dims, axis = _split_axis(tracer, value, dim)
    if not isinstance(parts, int):
        ends = [*parts, tracer.size_of(dims[axis])]
        return _split(tracer, value, [end - start for start, end in zip([0, *parts], ends, strict=True)], dim)
    whole, part = dims[axis], tracer.unifier.fresh()
    facts = {"expression": tracer.expression(), "parts": str(parts)}
    try:
        tracer.unifier.unify(whole, part.times(parts), Reason("split", facts))
    except Conflict:
        tracer.fail(f"{tracer.text(value)} cannot be split into {parts} equal parts")
    piece = [*dims[:axis], part, *dims[axis + 1 :]]
    return tuple(Traced(tracer, Shape(piece)) for _ in range(parts))


@rule("split", "split_with_sizes")
def _split(tracer: Tracer, value: Any, sizes: Any, dim: int = 0) -> tuple[Traced, ...]:
    dims, axis = _split_axis(tracer, value, dim)
    if isinstance(sizes, int):
        whole = tracer.size_of(dims[axis])
        sizes = [min(sizes, whole - start) for start in range(0, whole, sizes)]
    total = Dim((), sum(sizes))
    try:
        tracer.unifier.unify(
            dims[axis], total, Reason("split", {"expression": tracer.expression(), "parts": str(len(sizes))})
        )
    except Conflict:
        tracer.fail(f"{tracer.text(value)} cannot be split into {list(sizes)}: they sum to {sum(sizes)}")
    return tuple(Traced(tracer, Shape([*dims[:axis], Dim((), n), *dims[axis + 1 :]])) for n in sizes)


def _split_axis(tracer: Tracer, value: Any, dim: int) -> tuple[tuple[Dim, ...], int]:
    dims = tracer.dims_of(value)
    if dims is None:
        tracer.fail('a split of a parameter of open shape; annotate its axes, as in W: "input 4*rank"')
    return dims, next(iter(_feature_axes(tracer, dims, (dim,))))


@rule("hstack")
def _hstack(tracer: Tracer, values: Sequence[Any]) -> Traced:
    return _cat(tracer, values, 1)


@rule("cat", "concat", "concatenate")
def _cat(tracer: Tracer, values: Sequence[Any], dim: int = 0, **_: Any) -> Traced:
    shapes = [tracer.dims_of(v) for v in values]
    if any(s is None for s in shapes):
        tracer.fail('cat of a parameter of open shape; annotate its axes, as in W: "input rank"')
    known = [s for s in shapes if s is not None]
    axis = next(iter(_feature_axes(tracer, known[0], (dim,))))
    total = Dim()
    for shape in known:
        if len(shape) != len(known[0]):
            tracer.fail("cat of values with different numbers of axes: " + ", ".join(tracer.text(v) for v in values))
        total = total + shape[axis]
    return Traced(tracer, Shape([*known[0][:axis], total, *known[0][axis + 1 :]]))


@rule("unbind")
def _unbind(tracer: Tracer, value: Any, dim: int = 0) -> tuple[Traced, ...]:
    dims, axis = _split_axis(tracer, value, dim)
    rest = [*dims[:axis], *dims[axis + 1 :]]
    return tuple(Traced(tracer, Shape(rest)) for _ in range(tracer.size_of(dims[axis])))


@rule("unsqueeze")
def _unsqueeze(tracer: Tracer, value: Any, dim: int) -> Traced:
    dims = list(tracer.dims_of(value) or ())
    dims.insert(dim % (len(dims) + 1), Dim((), 1))
    return Traced(tracer, Shape(dims))


@rule("squeeze")
def _squeeze(tracer: Tracer, value: Any, dim: int = -1) -> Traced:
    dims = list(tracer.dims_of(value) or ())
    if tracer.unifier.value(dims[dim]) == 1:
        dims.pop(dim)
    return Traced(tracer, Shape(dims))


@rule("getitem")
def _getitem(tracer: Tracer, value: Any, index: Any) -> Traced:
    dims = tracer.dims_of(value)
    if dims is None:
        tracer.fail('an index into a parameter of open shape; annotate its axes, as in W: "2 rank"')
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in items:
        place = items.index(Ellipsis)
        real = sum(item is not None for item in items) - 1
        items[place : place + 1] = [slice(None)] * (len(dims) - real)
    if sum(item is not None for item in items) > len(dims):
        tracer.fail(f"{len(items)} indices into {tracer.text(value)}, which has {len(dims)} axes")
    rest = list(dims)
    result: list[Dim] = []
    for item in items:
        if item is None:
            result.append(Dim((), 1))
            continue
        dim = rest.pop(0)
        whole = isinstance(item, slice) and item == slice(None)
        if not whole and dim == ROWS:
            tracer.fail(f"this index picks samples out of the batch, but {tracer.invisible}; index features: z[:, a:b]")
        if whole:
            result.append(dim)
        elif isinstance(item, slice):
            result.append(Dim((), len(range(*item.indices(tracer.size_of(dim))))))
        elif not isinstance(item, int):
            tracer.fail("an index must be made of numbers and slices here")
    return Traced(tracer, Shape(result + rest))
