"""Every aten operation that has a kernel, as a few kinds of values: a line for each in `OPERATIONS`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from pellucid.errors import Unsupported
from pellucid.kernel.language.values import Lowering, Value

aten = torch.ops.aten
Rule = Callable[..., Any]


def _elementwise(operation: str) -> Rule:
    def rule(low: Lowering, *operands: Any) -> Value:
        if low.result.dtype == torch.bool and operation in OF_MASKS:
            return low.math(OF_MASKS[operation], *operands, mask=True)
        return low.math(operation, *map(low.real, operands))

    return rule


def _comparison(operation: str) -> Rule:
    return lambda low, a, b: low.math(operation, low.real(a), low.real(b), mask=True)


def _logical(operation: str) -> Rule:
    return lambda low, *operands: low.math(operation, *(_truth(low, o) for o in operands), mask=True)


def _truth(low: Lowering, x: Value) -> Value:
    return x if x.mask else low.math("ne", x, 0.0, name="truth", mask=True)


def _bitwise(operation: str) -> Rule:
    def rule(low: Lowering, *operands: Any) -> Value:
        if low.result.dtype != torch.bool:
            raise Unsupported(f"{low.node.target} of numbers")
        return low.math(operation, *operands, mask=True)

    return rule


def _scaled(operation: str) -> Rule:
    def rule(low: Lowering, a: Any, b: Any, alpha: float = 1) -> Value:
        if low.result.dtype == torch.bool:  # torch has no difference of two
            return low.math("or", a, b, mask=True)
        a, b = low.real(a), low.real(b)
        return low.math(operation, a, b if alpha == 1 else low.math("mul", b, alpha, name="scaled"))

    return rule


def _divide(low: Lowering, a: Any, b: Any, rounding_mode: str | None = None) -> Value:
    a, b = low.real(a), low.real(b)
    if rounding_mode is None:
        return low.math("div", a, b)
    quotient = low.math("div", a, b, name="quotient")
    return low.math("trunc", quotient) if rounding_mode == "trunc" else _floor_divided(low, a, b, quotient)


def _floor_divided(low: Lowering, a: Any, b: Any, quotient: Value) -> Value:
    """What is floor(a / b) but where a / b rounds up to a whole number: by the remainder, as in torch."""
    rest, other_sign = _truncated_rest(low, a, b)
    whole = low.math("div", low.math("sub", a, rest, name="multiple"), b, name="whole")
    whole = low.math("where", other_sign, low.math("sub", whole, 1.0, name="below"), whole, name="whole_below")
    floor = low.math("floor", whole, name="floor")
    far = low.math("gt", low.math("sub", whole, floor, name="fraction"), 0.5, name="far", mask=True)
    floor = low.math("where", far, low.math("add", floor, 1.0, name="above"), floor, name="nearest")
    zero = low.math("copysign", 0.0, quotient, name="zero")
    signed = low.math("where", low.math("ne", whole, 0.0, name="some", mask=True), floor, zero, name="signed")
    return low.math("where", low.math("eq", b, 0.0, name="by_zero", mask=True), quotient, signed)


def _remainder(low: Lowering, a: Any, b: Any) -> Value:
    a, b = low.real(a), low.real(b)
    rest, other_sign = _truncated_rest(low, a, b)
    return low.math("where", other_sign, low.math("add", rest, b, name="shifted"), rest)


def _truncated_rest(low: Lowering, a: Any, b: Any) -> tuple[Value, Value]:
    """The rest of a division towards zero, and whether it is one of another sign than the divisor."""
    rest = low.math("fmod", a, b, name="rest")
    signs = (low.math("lt", x, 0.0, name="negative", mask=True) for x in (b, rest))
    some = low.math("ne", rest, 0.0, name="some_rest", mask=True)
    return rest, low.math("and", some, low.math("xor", *signs, name="signs", mask=True), name="other_sign", mask=True)


def _where(low: Lowering, mask: Value, a: Any, b: Any) -> Value:
    if not mask.mask:
        raise Unsupported("aten.where by numbers")
    return low.math("where", mask, low.real(a), low.real(b))


def _clamp(low: Lowering, x: Value, low_end: Any = None, high_end: Any = None, **named: Any) -> Value:
    low_end, high_end = named.get("min", low_end), named.get("max", high_end)
    if low_end is not None:
        x = low.math("maximum", x, low_end, name="floor")
    return x if high_end is None else low.math("minimum", x, high_end)


def _without_nan(comparison: str) -> Rule:
    def rule(low: Lowering, a: Value, b: Value) -> Value:
        unknown = low.math("ne", b, b, name="unknown", mask=True)
        first = low.math("or", low.math(comparison, a, b, name="beyond", mask=True), unknown, name="first", mask=True)
        return low.math("where", first, a, b)

    return rule


def _is_infinite(low: Lowering, x: Value) -> Value:
    return low.math("eq", low.math("abs", low.real(x), name="magnitude"), math.inf, mask=True)


def _power(low: Lowering, x: Any, exponent: Any) -> Value:
    special = {0.5: "sqrt", 1.0: "", 2.0: "square", -1.0: "reciprocal", -0.5: "rsqrt"}
    if isinstance(exponent, (int, float)) and float(exponent) in special:
        name = special[float(exponent)]
        return low.math(name, x) if name else x
    if exponent == 3:
        return low.math("mul", low.math("square", x, name="square"), x)
    return low.math("pow", x, exponent)


def _copy(low: Lowering, x: Value, *_: Any, dtype: Any = None, **__: Any) -> Value:
    if dtype == torch.bool and not x.mask:
        return low.math("ne", x, 0.0, mask=True)
    if dtype is not None and dtype != torch.bool:
        if not dtype.is_floating_point:
            raise Unsupported(f"{low.node.target} to {dtype}")
        return low.real(x)
    return x


def _same(low: Lowering, x: Any, *_: Any, **__: Any) -> Any:
    return x


def _filled(number: float | None) -> Rule:
    def rule(low: Lowering, *arguments: Any, **_: Any) -> Value:
        value = low.result
        fill = arguments[1] if number is None else number
        if value.dtype == torch.bool:
            raise Unsupported(f"{low.node.target} of truth values")
        return low.spread(fill, low.width_of(value))

    return rule


def _split(low: Lowering, x: Value, sizes: list[int], dim: int = 0) -> list[Value]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    if not low.along_columns(dim):
        return [low.cut(x, dim, slice(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    return [low.slice(x, start, size, f"part{i}") for i, (start, size) in enumerate(zip(starts, sizes, strict=True))]


def _slice(low: Lowering, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    if dim == 0 and not start and (end is None or not isinstance(end, int) or end > 1 << 60):
        return x
    if not low.along_columns(dim) or step != 1:
        return low.part(x, dim, start, end, step)
    first, last, _ = slice(start, end).indices(x.width)
    return low.slice(x, first, max(last - first, 0))


def _select(low: Lowering, x: Value, dim: int, index: int) -> Value:
    if not low.along_columns(dim):
        return low.cut(x, dim, slice(index, index + 1 or None))
    return low.slice(x, index % x.width, 1)


def _cat(low: Lowering, parts: list[Value], dim: int = 0) -> Value:
    return low.cat(parts) if low.along_columns(dim) else low.joined(parts, dim)


def _pad(low: Lowering, x: Value, amounts: list[int], value: float = 0) -> Value:
    if len(amounts) != 2:
        raise Unsupported(f"{low.node.target} of more than the columns")
    left, right = amounts
    inner = low.slice(low.real(x), max(-left, 0), x.width + min(left, 0) + min(right, 0), "inner")
    before, behind = ([low.constant(value, count)] if count > 0 else [] for count in (left, right))
    return low.cat([*before, inner, *behind])


def _slice_scatter(
    low: Lowering, x: Value, piece: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    if dim == 0 and not start and (end is None or not isinstance(end, int) or end > 1 << 60):
        return piece
    if not low.along_columns(dim) or step != 1:
        return low.replaced(x, piece, dim, slice(start, end, step))
    first, last, _ = slice(start, end).indices(x.width)
    before, behind = low.slice(x, 0, first, "before"), low.slice(x, last, x.width - last, "behind")
    return low.cat([before, piece, behind])


def _select_scatter(low: Lowering, x: Value, piece: Value, dim: int, index: int) -> Value:
    return _slice_scatter(low, x, piece, dim, index, index + 1 or None)


def _repeat(low: Lowering, x: Value, times: list[Any]) -> Value:
    if len(times) != 2 or times[0] != 1:
        raise Unsupported(f"{low.node.target} of rows")
    return low.cat([x] * times[1])


def _expand(low: Lowering, x: Any, *_: Any, **__: Any) -> Value:
    return low.spread(x, low.width_of(low.result))


def _permute(low: Lowering, x: Value, axes: list[int]) -> Value:
    order = [axis % len(axes) for axis in axes]
    return x if order == list(range(len(axes))) else low.turned(x, order)


def _reshape(low: Lowering, x: Value, *_: Any) -> Value:
    if isinstance(x, Value) and low.keeps_order(x):
        return x
    raise Unsupported(f"{low.node.target} to {tuple(low.result.shape)}")


def _reduction(operation: str) -> Rule:
    def rule(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
        if operation == "sum" and dim == [0]:
            return low.total(x)
        return low.reduce(operation, x, low.over(dim))

    return rule


def _any(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    return low.math("gt", low.reduce("largest", _truth(low, x), low.over(dim), "largest"), 0.0, mask=True)


def _mean(low: Lowering, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return low.mean(low.real(x), low.over(dim), "mean")


def _centred(low: Lowering, x: Value, over: frozenset[int]) -> tuple[Value, Value]:
    mean = low.mean(x, over, "mean")
    return mean, low.math("sub", x, mean, name="centred")


def _variance(low: Lowering, x: Value, dim: Any = None, correction: float | None = None, keepdim: bool = False) -> Any:
    over, lost = low.over(dim), 1 if correction is None else correction
    _, centred = _centred(low, x, over)
    squares = low.reduce("sum", low.math("square", centred, name="square"), over, "squares")
    count = low.count(x, over)
    free = low.math("sub", count, float(lost), name="free") if isinstance(count, Value) else float(count - lost)
    return low.math("div", squares, free)


def _norm(low: Lowering, x: Value, order: float = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    over = low.over(dim)
    if order == 2:
        return low.math("sqrt", low.reduce("sum", low.math("square", x, name="square"), over, "squares"))
    magnitude = low.math("abs", x, name="magnitude")
    if order == 1:
        return low.reduce("sum", magnitude, over)
    if math.isinf(order):
        return low.reduce("largest" if order > 0 else "smallest", magnitude, over)
    raise Unsupported(f"{low.node.target} of order {order}")


def _layer_norm(low: Lowering, x: Value, shape: list[int], weight: Any, bias: Any, eps: float) -> list[Value]:
    over = low.over(-1 if len(shape) == 1 else None)
    mean, centred = _centred(low, x, over)
    variance = low.mean(low.math("square", centred, name="square"), over, "variance")
    rstd = low.math("rsqrt", low.math("add", variance, eps, name="stable"), name="rstd")
    y = low.math("mul", centred, rstd, name="normalized")
    if weight is not None:
        y = low.math("mul", y, weight, name="scaled")
    return [y if bias is None else low.math("add", y, bias, name="shifted"), mean, rstd]


def _layer_norm_backward(
    low: Lowering, gradient: Value, x: Value, shape: Any, mean: Value, rstd: Value, weight: Any, bias: Any, mask: Any
) -> list[Any]:
    if mask[1] or mask[2]:
        raise Unsupported(f"{low.node.target} of weight and bias")
    over = low.over(-1 if len(shape) == 1 else None)
    normalized = low.math("mul", low.math("sub", x, mean, name="centred"), rstd, name="normalized")
    g = gradient if weight is None else low.math("mul", gradient, weight, name="weighted")
    along = low.mean(low.math("mul", g, normalized, name="along"), over, "along_mean")
    level = low.mean(g, over, "level")
    inner = low.math("sub", low.math("sub", g, level, name="level_free"), low.math("mul", normalized, along))
    return [low.math("mul", inner, rstd, name="input"), None, None]


def _softmax(logarithm: bool) -> Rule:
    def rule(low: Lowering, x: Value, dim: int, half_to_float: bool = False) -> Value:
        over = low.over(dim)
        shifted = low.math("sub", x, low.reduce("largest", x, over, "largest"), name="shifted")
        power = low.math("exp", shifted, name="power")
        total = low.reduce("sum", power, over, "total")
        if logarithm:
            return low.math("sub", shifted, low.math("log", total, name="log_total"))
        return low.math("div", power, total)

    return rule


def _softmax_backward(logarithm: bool) -> Rule:
    def rule(low: Lowering, gradient: Value, y: Value, dim: int, dtype: Any) -> Value:
        over = low.over(dim)
        if logarithm:
            total = low.reduce("sum", gradient, over, "total")
            return low.math("sub", gradient, low.math("mul", low.math("exp", y, name="softmax"), total, name="part"))
        product = low.math("mul", gradient, y, name="weighted")
        return low.math("sub", product, low.math("mul", y, low.reduce("sum", product, over, "total"), name="part"))

    return rule


def _elu(low: Lowering, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    curve = low.math("expm1", _times(low, x, input_scale, "input"), name="curve")
    below, above = _times(low, curve, alpha * scale, "below"), _times(low, x, scale, "above")
    return low.math("where", low.math("gt", x, 0.0, name="positive", mask=True), above, below)


def _leaky_relu(low: Lowering, x: Value, slope: float = 0.01) -> Value:
    below = low.math("mul", x, slope, name="below")
    return low.math("where", low.math("gt", x, 0.0, name="positive", mask=True), x, below)


def _shrink_backward(low: Lowering, gradient: Value, x: Value, bound: float) -> Value:
    ends = low.math("ge", x, -bound, name="above", mask=True), low.math("le", x, bound, name="below", mask=True)
    return low.math("where", low.math("and", *ends, name="within", mask=True), 0.0, gradient)


def _times(low: Lowering, x: Value, factor: float, name: str) -> Value:
    return x if factor == 1 else low.math("mul", x, factor, name=name)


def _softplus(low: Lowering, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    if beta != 1:
        scaled = low.math("mul", x, beta, name="scaled")
        return low.math("div", low.math("softplus", scaled, name="plus"), beta)
    return low.math("softplus", x)


def _softplus_backward(low: Lowering, gradient: Value, x: Value, beta: float, threshold: float) -> Value:
    scaled = x if beta == 1 else low.math("mul", x, beta, name="scaled")
    return low.math("mul", gradient, low.math("sigmoid", scaled, name="slope"))


def _gelu(low: Lowering, x: Value, approximate: str = "none") -> Value:
    if approximate == "none":
        return low.math("gelu", x)
    cube = low.math("mul", low.math("square", x, name="square"), x, name="cube")
    inner = low.math("add", x, low.math("mul", cube, 0.044715, name="cubic"), name="sum")
    tanh = low.math("tanh", low.math("mul", inner, math.sqrt(2 / math.pi), name="scaled"), name="tanh")
    return low.math("mul", low.math("mul", x, 0.5, name="half"), low.math("add", tanh, 1.0, name="weight"))


def _gelu_backward(low: Lowering, gradient: Value, x: Value, approximate: str = "none") -> Value:
    if approximate != "none":  # decomposed where a formula is traced
        raise Unsupported(f"{low.node.target} with approximate={approximate!r}")
    return low.math("mul", gradient, low.math("gelu_slope", x, name="slope"))


def _product(low: Lowering, a: fx.Node, matrix: fx.Node, name: str = "") -> Value:
    if matrix not in low.matrix_names:
        raise Unsupported(f"{low.node.target} of two values of the loop")
    depth, width = matrix.meta["val"].shape
    low.matrices[low.matrix_names[matrix]] = (depth, width)
    return Value("product", low.name(name), width, (low.real(low.value(a)),), low.matrix_names[matrix])


def _added_product(low: Lowering, bias: fx.Node, a: fx.Node, matrix: fx.Node, beta: float = 1, alpha: float = 1) -> Any:
    product = _times(low, _product(low, a, matrix, "product"), alpha, "scaled")
    if beta == 0:  # then nothing of the bias counts, not even NaN
        return product
    return low.math("add", _times(low, low.value(bias), beta, "bias"), product)


_UNARY = (
    "neg abs exp expm1 log log1p log2 log10 exp2 tanh sigmoid relu erf erfc sqrt rsqrt reciprocal sin cos tan asin "
    "acos atan sinh cosh asinh acosh atanh floor ceil round trunc sign square "
)
_BINARY = "maximum minimum atan2 hypot"
_COMPARISONS = "eq ne lt le gt ge"
OF_MASKS = {"mul": "and", "maximum": "or", "minimum": "and"}
WITH_MATRIX = {aten.mm.default, aten.addmm.default}

OPERATIONS: dict[Any, Rule] = {
    **{getattr(aten, name).default: _elementwise(name) for name in (_UNARY + _BINARY).split()},
    **{
        getattr(getattr(aten, name), o): _comparison(name)
        for name in _COMPARISONS.split()
        for o in ("Tensor", "Scalar")
    },
    **{aten.add.Tensor: _scaled("add"), aten.sub.Tensor: _scaled("sub")},
    **{aten.add.Scalar: _scaled("add"), aten.sub.Scalar: _scaled("sub")},
    **{aten.mul.Tensor: _elementwise("mul"), aten.mul.Scalar: _elementwise("mul")},
    **{aten.div.Tensor: _divide, aten.div.Scalar: _divide, aten.div.Tensor_mode: _divide},
    **{aten.fmod.Tensor: _elementwise("fmod"), aten.fmod.Scalar: _elementwise("fmod")},
    **{aten.remainder.Tensor: _remainder, aten.remainder.Scalar: _remainder},
    **{aten.copysign.Tensor: _elementwise("copysign"), aten.copysign.Scalar: _elementwise("copysign")},
    **{aten.fmax.default: _without_nan("gt"), aten.fmin.default: _without_nan("lt")},
    **{aten.isnan.default: lambda low, x: low.math("ne", low.real(x), low.real(x), mask=True)},
    aten.isinf.default: _is_infinite,
    **{aten.pow.Tensor_Scalar: _power, aten.pow.Tensor_Tensor: _power, aten.pow.Scalar: _power},
    **{getattr(aten, f"logical_{name}").default: _logical(name) for name in ("and", "or", "xor", "not")},
    **{getattr(aten, f"bitwise_{name}").Tensor: _bitwise(name) for name in ("and", "or", "xor")},
    aten.bitwise_not.default: _bitwise("not"),
    aten.where.self: _where,
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.clamp_min.default: lambda low, x, end: _clamp(low, x, end),
    aten.clamp_max.default: lambda low, x, end: _clamp(low, x, None, end),
    **{aten.clamp_min.Tensor: _elementwise("maximum"), aten.clamp_max.Tensor: _elementwise("minimum")},
    aten.hardtanh.default: lambda low, x, low_end=-1, high_end=1: _clamp(low, x, low_end, high_end),
    **{aten.elu.default: _elu, aten.leaky_relu.default: _leaky_relu},
    **{aten.hardshrink_backward.default: _shrink_backward, aten.softshrink_backward.default: _shrink_backward},
    aten._to_copy.default: _copy,
    **dict.fromkeys((aten.clone.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default), _same),
    **{aten.full.default: _filled(None), aten.full_like.default: _filled(None), aten.zeros.default: _filled(0)},
    **{aten.empty_permuted.default: _filled(0), aten.empty_like.default: _filled(0)},
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
    aten.permute.default: _permute,
    **dict.fromkeys((aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default), _reshape),
    **dict.fromkeys((aten.squeeze.dim, aten.squeeze.dims, aten.reshape.default), _reshape),
    **{aten.sum.dim_IntList: _reduction("sum"), aten.mean.dim: _mean, aten.var.correction: _variance},
    **{aten.amax.default: _reduction("largest"), aten.amin.default: _reduction("smallest")},
    **{aten.prod.dim_int: _reduction("product"), aten.any.dim: _any},
    aten.linalg_vector_norm.default: _norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    **{aten._softmax.default: _softmax(False), aten._log_softmax.default: _softmax(True)},
    **{aten._softmax_backward_data.default: _softmax_backward(False)},
    **{aten._log_softmax_backward_data.default: _softmax_backward(True)},
    **{aten.softplus.default: _softplus, aten.softplus_backward.default: _softplus_backward},
    **{aten.gelu.default: _gelu, aten.gelu_backward.default: _gelu_backward},
    aten.mm.default: _product,
    aten.addmm.default: _added_product,
}
