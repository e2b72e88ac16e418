"""A stage in a few kinds of values that every emitter can write: columns of a row, and what crosses them.

A row is a sample's vector. Arithmetic goes column by column; slices and concatenations only say where a column is
read; products with a matrix and reductions need the whole row. Every aten operation has one line in `OPERATIONS`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from pellucid.kernel.program import Abstract, Stage

aten = torch.ops.aten


class Unsupported(Exception):
    """An operation, or its use, that has no lowering; the text names it."""


@dataclass(eq=False)
class Value:
    """A value of one row: ``width`` columns; one of width 1 goes with every column of another.

    ``kind`` is "memory" (an input of the stage), "draws" (random numbers of a site), "math" (``operation`` column by
    column on ``operands``, values or numbers), "slice" (of one operand, from ``start``), "cat" (of the operands),
    "spread" (one column repeated), "product" (the operand times the matrix ``operation``), "reduce" (``operation``,
    "sum", "largest" or "smallest", over the columns) or "total" (the sum over all rows of all steps).
    """

    kind: str
    name: str
    width: int
    operands: tuple[Any, ...] = ()
    operation: str = ""
    start: int = 0
    mask: bool = False  # true or false
    rows: bool = True  # memory only: whether every row has its own
    values: tuple[Value, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.values = tuple(o for o in self.operands if isinstance(o, Value))


@dataclass(frozen=True)
class Lowered:
    """A lowered stage: the inputs that it reads as memory, the matrices of its products, and its outputs."""

    inputs: Mapping[str, Value]
    matrices: Mapping[str, tuple[int, int]]  # depth × width
    outputs: Mapping[str, Value]
    names: frozenset[str]  # of all values, each its own


def lower(stage: Stage, draws: tuple[str, ...]) -> Lowered:
    """Lower a stage whose rows are those of one step; ``draws`` are the inputs that are random.

    Raises:
        Unsupported: an operation without a line in the table, or used in a way that has none.
    """
    lowering = _Lowering(draws, {node.name for node in stage.graph.nodes} | set(stage.inputs))
    for name, node in stage.placeholders.items():
        lowering.placeholder(name, node)
    for node in stage.graph.nodes:
        if node.op == "output":
            results = [lowering.value(a) for a in node.args[0]]
        elif node.op != "placeholder":
            lowering.call(node)
    outputs = dict(zip(stage.outputs, results, strict=True))
    return Lowered(lowering.inputs, lowering.matrices, outputs, frozenset(lowering.names))


def lowerable(node: fx.Node) -> bool:
    """Whether a value with rows can be computed in a loop of rows, as far as its operation and axes tell."""
    value = node.meta.get("val")
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and lowerable(node.args[0])
    if node.target not in OPERATIONS:
        return False
    axes = value if isinstance(value, (tuple, list)) else (value,)
    return all(v is None or not v.rows or v.dim() <= 2 for v in axes)


class _Lowering:
    def __init__(self, draws: tuple[str, ...], names: set[str]) -> None:
        self.draws, self.names = draws, names
        self.inputs: dict[str, Value] = {}
        self.matrices: dict[str, tuple[int, int]] = {}
        self.matrix_names: dict[fx.Node, str] = {}
        self.made: dict[fx.Node, Any] = {}
        self.results: set[str] = set()  # names of nodes that a value has got
        self.node: fx.Node

    # -- nodes ----------------------------------------------------------------------------------------------------

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

    def placeholder(self, name: str, node: fx.Node) -> None:
        meta = node.meta.get("val")
        if not isinstance(meta, Abstract):
            self.made[node] = "rows"
            return
        rows = meta.rows
        if not rows and meta.dim() == 2:
            self.matrix_names[node] = name
            if meta.shape[0] != 1:  # one row is a vector too
                self.made[node] = None
                return
        if not (meta.dtype.is_floating_point or meta.dtype == torch.bool):
            raise Unsupported(f"a value of {meta.dtype}")
        if meta.dim() > 2 or (rows and not _plain_rows(meta)):
            raise Unsupported(f"a value of {meta.dim()} axes, {name}")
        width = _width(meta)
        kind = "draws" if name in self.draws else "memory"
        made = Value(kind, name, width, mask=meta.dtype == torch.bool, rows=rows)
        self.made[node] = self.inputs[name] = made

    def call(self, node: fx.Node) -> None:
        self.node = node
        if node.target is operator.getitem:
            self.made[node] = self.value(node.args[0])[node.args[1]]
            return
        value = node.meta.get("val")
        if not isinstance(value, (Abstract, tuple, list)):
            self.made[node] = "rows"
            return
        rule = OPERATIONS.get(node.target)
        if rule is None:
            raise Unsupported(str(node.target))
        if isinstance(value, Abstract) and value.rows and (value.dim() > 2 or not _plain_rows(value)):
            raise Unsupported(f"{node.target} with a result of {value.dim()} axes")
        arguments = node.args if node.target in _WITH_MATRIX else self.value(node.args)
        made = self.made[node] = rule(self, *arguments, **{k: self.value(v) for k, v in node.kwargs.items()})
        parts, metas = ([made], [value]) if isinstance(value, Abstract) else (made, value)
        for part, meta in zip(parts, metas, strict=True):  # another width would write beside the memory
            if isinstance(part, Value) and part.width != _width(meta):
                raise Unsupported(f"{node.target} of {part.width} columns instead of {_width(meta)}")

    # -- making values --------------------------------------------------------------------------------------------

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
        widths = [o.width for o in operands if isinstance(o, Value)]
        return Value(
            "math", self.name(name), max(widths, default=1) if width is None else width, operands, operation, mask=mask
        )

    def reduce(self, operation: str, x: Value, name: str = "") -> Value:
        return Value("reduce", self.name(name), 1, (self.real(x),), operation)

    def mean(self, x: Value, name: str) -> Value:
        return self.math("mul", self.reduce("sum", x, f"{name}_sum"), 1 / x.width, name=name)

    def real(self, x: Any) -> Any:
        """A mask as a number, anything else as it is."""
        return self.math("from_mask", x, name="number") if isinstance(x, Value) and x.mask else x

    def slice(self, x: Value, start: int, width: int, name: str = "") -> Value:
        if start == 0 and width == x.width:
            return x
        return Value("slice", self.name(name), width, (x,), start=start, mask=x.mask)

    def cat(self, parts: list[Value]) -> Value:
        parts = [p for p in parts if p.width]
        if len(parts) == 1:
            return parts[0]
        if any(p.mask for p in parts) and not all(p.mask for p in parts):
            parts = [self.real(p) for p in parts]
        return Value("cat", self.name(), sum(p.width for p in parts), tuple(parts), mask=parts[0].mask)

    def constant(self, number: float, width: int) -> Value:
        return self.math("constant", float(number), width=width, name="constant")

    def spread(self, x: Any, width: int) -> Value:
        if not isinstance(x, Value):
            return self.constant(x, width)
        return x if x.width == width else Value("spread", self.name(), width, (x,), mask=x.mask)

    @property
    def result(self) -> Any:
        return self.node.meta["val"]


def _width(meta: Abstract) -> int:
    """How many columns a row has."""
    return int(math.prod(meta.shape[1:] if meta.rows else meta.shape))


def _plain_rows(meta: Abstract) -> bool:
    """Whether there is one row for each row of the batch."""
    return meta.shape[0] == 1


# -- the table -----------------------------------------------------------------------------------------------------

Rule = Callable[..., Any]


def _elementwise(operation: str) -> Rule:
    return lambda low, *operands: low.math(operation, *map(low.real, operands))


def _comparison(operation: str) -> Rule:
    return lambda low, a, b: low.math(operation, low.real(a), low.real(b), mask=True)


def _logical(operation: str) -> Rule:
    def rule(low: _Lowering, *operands: Any) -> Value:
        if not all(isinstance(o, Value) and o.mask for o in operands):
            raise Unsupported(f"{low.node.target} of numbers")
        return low.math(operation, *operands, mask=True)

    return rule


def _scaled(operation: str) -> Rule:
    def rule(low: _Lowering, a: Any, b: Any, alpha: float = 1) -> Value:
        a, b = low.real(a), low.real(b)
        return low.math(operation, a, b if alpha == 1 else low.math("mul", b, alpha, name="scaled"))

    return rule


def _divide(low: _Lowering, a: Any, b: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode is not None:
        quotient = low.math("div", low.real(a), low.real(b), name="quotient")
        return low.math(rounding_mode, quotient)
    return low.math("div", low.real(a), low.real(b))


def _where(low: _Lowering, mask: Value, a: Any, b: Any) -> Value:
    if not mask.mask:
        raise Unsupported("aten.where by numbers")
    return low.math("where", mask, low.real(a), low.real(b))


def _clamp(low: _Lowering, x: Value, low_end: Any = None, high_end: Any = None, **named: Any) -> Value:
    low_end, high_end = named.get("min", low_end), named.get("max", high_end)
    if low_end is not None:
        x = low.math("maximum", x, low_end, name="floor")
    return x if high_end is None else low.math("minimum", x, high_end)


def _power(low: _Lowering, x: Any, exponent: Any) -> Value:
    special = {0.5: "sqrt", 1.0: "", 2.0: "square", -1.0: "reciprocal", -0.5: "rsqrt"}
    if isinstance(exponent, (int, float)) and float(exponent) in special:
        name = special[float(exponent)]
        return low.math(name, x) if name else x
    if exponent == 3:
        return low.math("mul", low.math("square", x, name="square"), x)
    return low.math("pow", x, exponent)


def _copy(low: _Lowering, x: Value, *_: Any, dtype: Any = None, **__: Any) -> Value:
    if dtype == torch.bool and not x.mask:
        return low.math("ne", x, 0.0, mask=True)
    if dtype is not None and dtype != torch.bool:
        if not dtype.is_floating_point:
            raise Unsupported(f"{low.node.target} to {dtype}")
        return low.real(x)
    return x


def _same(low: _Lowering, x: Any, *_: Any, **__: Any) -> Any:
    return x


def _filled(number: float | None) -> Rule:
    def rule(low: _Lowering, *arguments: Any, **_: Any) -> Value:
        value = low.result
        fill = arguments[1] if number is None else number
        if value.dtype == torch.bool:
            raise Unsupported(f"{low.node.target} of truth values")
        return low.spread(fill, _width(value))

    return rule


def _split(low: _Lowering, x: Value, sizes: list[int], dim: int = 0) -> list[Value]:
    if dim not in (1, -1):
        raise Unsupported(f"{low.node.target} along axis {dim}")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [low.slice(x, start, size, f"part{i}") for i, (start, size) in enumerate(zip(starts, sizes, strict=True))]


def _slice(low: _Lowering, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    if dim == 0 and not start and (end is None or not isinstance(end, int) or end > 1 << 60):
        return x
    if dim not in (1, -1) or step != 1:
        raise Unsupported(f"{low.node.target} along axis {dim} with step {step}")
    first, last, _ = slice(start, end).indices(x.width)
    return low.slice(x, first, max(last - first, 0))


def _select(low: _Lowering, x: Value, dim: int, index: int) -> Value:
    if dim not in (1, -1):
        raise Unsupported(f"{low.node.target} along axis {dim}")
    return low.slice(x, index % x.width, 1)


def _cat(low: _Lowering, parts: list[Value], dim: int = 0) -> Value:
    if dim not in (1, -1):
        raise Unsupported(f"{low.node.target} along axis {dim}")
    return low.cat(parts)


def _pad(low: _Lowering, x: Value, amounts: list[int], value: float = 0) -> Value:
    if len(amounts) != 2:
        raise Unsupported(f"{low.node.target} of more than the columns")
    left, right = amounts
    inner = low.slice(low.real(x), max(-left, 0), x.width + min(left, 0) + min(right, 0), "inner")
    before, behind = ([low.constant(value, count)] if count > 0 else [] for count in (left, right))
    return low.cat([*before, inner, *behind])


def _slice_scatter(
    low: _Lowering, x: Value, piece: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    if dim == 0 and not start and (end is None or not isinstance(end, int) or end > 1 << 60):
        return piece
    if dim not in (1, -1) or step != 1:
        raise Unsupported(f"{low.node.target} along axis {dim} with step {step}")
    first, last, _ = slice(start, end).indices(x.width)
    before, behind = low.slice(x, 0, first, "before"), low.slice(x, last, x.width - last, "behind")
    return low.cat([before, piece, behind])


def _select_scatter(low: _Lowering, x: Value, piece: Value, dim: int, index: int) -> Value:
    index %= x.width
    return _slice_scatter(low, x, piece, dim, index, index + 1)


def _repeat(low: _Lowering, x: Value, times: list[Any]) -> Value:
    if len(times) != 2 or times[0] != 1:
        raise Unsupported(f"{low.node.target} of rows")
    return low.cat([x] * times[1])


def _expand(low: _Lowering, x: Any, *_: Any, **__: Any) -> Value:
    return low.spread(x, _width(low.result))


def _reshape(low: _Lowering, x: Value, *_: Any) -> Value:
    if isinstance(low.result, Abstract) and low.result.rows:
        if x.width == _width(low.result):
            return x
    elif isinstance(x, Value) and not x.rows:
        return x
    raise Unsupported(f"{low.node.target} to {tuple(low.result.shape)}")


def _over_columns(low: _Lowering, x: Value, dim: Any) -> None:
    axes = [dim] if isinstance(dim, int) else list(dim or [])
    if axes not in ([1], [-1]):
        raise Unsupported(f"{low.node.target} over axes {axes}")


def _reduction(operation: str) -> Rule:
    def rule(low: _Lowering, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
        if operation == "sum" and dim == [0]:
            return Value("total", low.name(), x.width, (low.real(x),), rows=False)
        _over_columns(low, x, dim)
        return low.reduce(operation, x)

    return rule


def _mean(low: _Lowering, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    _over_columns(low, x, dim)
    return low.mean(low.real(x), "mean")


def _centred(low: _Lowering, x: Value) -> tuple[Value, Value]:
    mean = low.mean(x, "mean")
    return mean, low.math("sub", x, mean, name="centred")


def _variance(low: _Lowering, x: Value, dim: Any = None, correction: float | None = None, keepdim: bool = False) -> Any:
    _over_columns(low, x, dim)
    _, centred = _centred(low, x)
    squares = low.reduce("sum", low.math("square", centred, name="square"), "squares")
    return low.math("div", squares, float(x.width - (1 if correction is None else correction)))


def _norm(low: _Lowering, x: Value, order: float = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    _over_columns(low, x, dim)
    if order != 2:
        raise Unsupported(f"{low.node.target} of order {order}")
    return low.math("sqrt", low.reduce("sum", low.math("square", x, name="square"), "squares"))


def _layer_norm(low: _Lowering, x: Value, shape: list[int], weight: Any, bias: Any, eps: float) -> list[Value]:
    mean, centred = _centred(low, x)
    variance = low.mean(low.math("square", centred, name="square"), "variance")
    rstd = low.math("rsqrt", low.math("add", variance, eps, name="stable"), name="rstd")
    y = low.math("mul", centred, rstd, name="normalized")
    if weight is not None:
        y = low.math("mul", y, weight, name="scaled")
    return [y if bias is None else low.math("add", y, bias, name="shifted"), mean, rstd]


def _layer_norm_backward(
    low: _Lowering, gradient: Value, x: Value, shape: Any, mean: Value, rstd: Value, weight: Any, bias: Any, mask: Any
) -> list[Any]:
    if mask[1] or mask[2]:
        raise Unsupported(f"{low.node.target} of weight and bias")
    normalized = low.math("mul", low.math("sub", x, mean, name="centred"), rstd, name="normalized")
    g = gradient if weight is None else low.math("mul", gradient, weight, name="weighted")
    along = low.mean(low.math("mul", g, normalized, name="along"), "along_mean")
    level = low.mean(g, "level")
    inner = low.math("sub", low.math("sub", g, level, name="level_free"), low.math("mul", normalized, along))
    return [low.math("mul", inner, rstd, name="input"), None, None]


def _softmax(logarithm: bool) -> Rule:
    def rule(low: _Lowering, x: Value, dim: int, half_to_float: bool = False) -> Value:
        _over_columns(low, x, dim)
        shifted = low.math("sub", x, low.reduce("largest", x, "largest"), name="shifted")
        power = low.math("exp", shifted, name="power")
        total = low.reduce("sum", power, "total")
        if logarithm:
            return low.math("sub", shifted, low.math("log", total, name="log_total"))
        return low.math("div", power, total)

    return rule


def _softmax_backward(logarithm: bool) -> Rule:
    def rule(low: _Lowering, gradient: Value, y: Value, dim: int, dtype: Any) -> Value:
        _over_columns(low, y, dim)
        if logarithm:
            total = low.reduce("sum", gradient, "total")
            return low.math("sub", gradient, low.math("mul", low.math("exp", y, name="softmax"), total, name="part"))
        product = low.math("mul", gradient, y, name="weighted")
        return low.math("sub", product, low.math("mul", y, low.reduce("sum", product, "total"), name="part"))

    return rule


def _softplus(low: _Lowering, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    if beta != 1:
        scaled = low.math("mul", x, beta, name="scaled")
        return low.math("div", low.math("softplus", scaled, name="plus"), beta)
    return low.math("softplus", x)


def _softplus_backward(low: _Lowering, gradient: Value, x: Value, beta: float, threshold: float) -> Value:
    scaled = x if beta == 1 else low.math("mul", x, beta, name="scaled")
    return low.math("mul", gradient, low.math("sigmoid", scaled, name="slope"))


def _gelu(low: _Lowering, x: Value, approximate: str = "none") -> Value:
    half = low.math("mul", x, 0.5, name="half")
    return low.math("mul", half, low.math("add", _gelu_inner(low, x, approximate), 1.0, name="weight"))


def _gelu_inner(low: _Lowering, x: Value, approximate: str) -> Value:
    if approximate == "none":
        return low.math("erf", low.math("mul", x, math.sqrt(0.5), name="scaled"), name="erf")
    cube = low.math("mul", low.math("square", x, name="square"), x, name="cube")
    inner = low.math("add", x, low.math("mul", cube, 0.044715, name="cubic"), name="sum")
    return low.math("tanh", low.math("mul", inner, math.sqrt(2 / math.pi), name="scaled"), name="tanh")


def _gelu_backward(low: _Lowering, gradient: Value, x: Value, approximate: str = "none") -> Value:
    if approximate != "none":
        raise Unsupported(f"{low.node.target} with approximate={approximate!r}")
    weight = low.math("mul", low.math("add", _gelu_inner(low, x, "none"), 1.0, name="twice"), 0.5, name="weight")
    exponent = low.math("mul", low.math("square", x, name="square"), -0.5, name="exponent")
    density = low.math("mul", low.math("exp", exponent, name="bell"), 1 / math.sqrt(2 * math.pi), name="density")
    slope = low.math("add", weight, low.math("mul", x, density, name="part"), name="slope")
    return low.math("mul", gradient, slope)


def _matrix_product(low: _Lowering, a: fx.Node, matrix: fx.Node) -> Value:
    return _product(low, a, matrix)


def _product(low: _Lowering, a: fx.Node, matrix: fx.Node, name: str = "") -> Value:
    if matrix not in low.matrix_names:
        raise Unsupported(f"{low.node.target} of two values of the loop")
    depth, width = matrix.meta["val"].shape
    low.matrices[low.matrix_names[matrix]] = (depth, width)
    return Value("product", low.name(name), width, (low.real(low.value(a)),), low.matrix_names[matrix])


def _added_product(
    low: _Lowering, bias: fx.Node, a: fx.Node, matrix: fx.Node, beta: float = 1, alpha: float = 1
) -> Any:
    if beta != 1 or alpha != 1:
        raise Unsupported(f"{low.node.target} with beta or alpha")
    return low.math("add", low.value(bias), _product(low, a, matrix, "product"))


_UNARY = (
    "neg abs exp expm1 log log1p log2 log10 exp2 tanh sigmoid relu erf erfc sqrt rsqrt reciprocal sin cos tan asin "
    "acos atan sinh cosh asinh acosh atanh floor ceil round trunc sign square"
)
_COMPARISONS = "eq ne lt le gt ge"
_WITH_MATRIX = {aten.mm.default, aten.addmm.default}

OPERATIONS: dict[Any, Rule] = {
    **{getattr(aten, name).default: _elementwise(name) for name in _UNARY.split()},
    **{
        getattr(getattr(aten, name), o): _comparison(name)
        for name in _COMPARISONS.split()
        for o in ("Tensor", "Scalar")
    },
    **{aten.add.Tensor: _scaled("add"), aten.sub.Tensor: _scaled("sub")},
    **{aten.add.Scalar: _scaled("add"), aten.sub.Scalar: _scaled("sub")},
    **{aten.mul.Tensor: _elementwise("mul"), aten.mul.Scalar: _elementwise("mul")},
    **{aten.div.Tensor: _divide, aten.div.Scalar: _divide, aten.div.Tensor_mode: _divide},
    **{aten.maximum.default: _elementwise("maximum"), aten.minimum.default: _elementwise("minimum")},
    **{aten.atan2.default: _elementwise("atan2"), aten.fmod.Tensor: _elementwise("fmod")},
    **{aten.fmod.Scalar: _elementwise("fmod")},
    **{aten.pow.Tensor_Scalar: _power, aten.pow.Tensor_Tensor: _power, aten.pow.Scalar: _power},
    **{aten.logical_and.default: _logical("and"), aten.bitwise_and.Tensor: _logical("and")},
    **{aten.logical_or.default: _logical("or"), aten.bitwise_or.Tensor: _logical("or")},
    **{aten.logical_not.default: _logical("not"), aten.bitwise_not.default: _logical("not")},
    aten.where.self: _where,
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.clamp_min.default: lambda low, x, end: _clamp(low, x, end),
    aten.clamp_max.default: lambda low, x, end: _clamp(low, x, None, end),
    aten._to_copy.default: _copy,
    **dict.fromkeys((aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default), _same),
    **{aten.full.default: _filled(None), aten.full_like.default: _filled(None), aten.zeros.default: _filled(0)},
    **{aten.zeros_like.default: _filled(0), aten.ones_like.default: _filled(1), aten.new_zeros.default: _filled(0)},
    aten.scalar_tensor.default: lambda low, number, **_: low.constant(number, 1),
    aten.split_with_sizes.default: _split,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.cat.default: _cat,
    aten.constant_pad_nd.default: _pad,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.repeat.default: _repeat,
    aten.expand.default: _expand,
    **dict.fromkeys((aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default), _reshape),
    **dict.fromkeys((aten.squeeze.dim, aten.squeeze.dims, aten.reshape.default), _reshape),
    **{aten.sum.dim_IntList: _reduction("sum"), aten.mean.dim: _mean, aten.var.correction: _variance},
    **{aten.amax.default: _reduction("largest"), aten.amin.default: _reduction("smallest")},
    aten.linalg_vector_norm.default: _norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    **{aten._softmax.default: _softmax(False), aten._log_softmax.default: _softmax(True)},
    **{aten._softmax_backward_data.default: _softmax_backward(False)},
    **{aten._log_softmax_backward_data.default: _softmax_backward(True)},
    **{aten.softplus.default: _softplus, aten.softplus_backward.default: _softplus_backward},
    **{aten.gelu.default: _gelu, aten.gelu_backward.default: _gelu_backward},
    aten.mm.default: _matrix_product,
    aten.addmm.default: _added_product,
}
