"""Samples of several axes beside the batch, a matrix say, as the columns of a row: all entries, the last axis first.

What is broadcast along one of the axes, or reduced over one, is made part by part: a part is all that differs in
nothing but the last axis, and stands in the columns side by side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from pellucid.errors import Unsupported
from pellucid.formula.program import Abstract
from pellucid.kernel.language.nodes import Nodes
from pellucid.kernel.language.values import Value

aten = torch.ops.aten
MOST_PARTS = 64  # each is written by itself
JOINED = {"sum": "add", "product": "mul", "largest": "maximum", "smallest": "minimum"}  # what two parts are reduced by
NORMS = {aten.native_layer_norm.default, aten.native_layer_norm_backward.default}
PART_BY_PART = {
    *(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.clone.default, aten.expand.default),
    *(aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten._to_copy.default, aten.alias.default),
    *(aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.prod.dim_int, aten.any.dim),
    *(aten.full.default, aten.full_like.default, aten.zeros.default, aten.zeros_like.default, aten.ones_like.default),
    *(aten.new_zeros.default, aten.empty_like.default, aten.detach.default, aten.linalg_vector_norm.default),
    *(aten._softmax.default, aten._log_softmax.default, aten.var.correction, *NORMS),
    *(aten._softmax_backward_data.default, aten._log_softmax_backward_data.default),
    *(aten.split_with_sizes.default, aten.slice.Tensor, aten.select.int, aten.cat.default, aten.permute.default),
    *(aten.slice_scatter.default, aten.select_scatter.default),
}


def of_sample(value: Abstract) -> tuple[int, ...]:
    """The axes of a sample, without the batch."""
    return value.shape[1:] if value.rows else value.shape


def _of_samples(values: Iterable[Any]) -> list[tuple[int, ...]]:
    return [of_sample(v) for v in values if isinstance(v, Abstract) and v.rows]


def why_not(target: Any, values: Iterable[Any]) -> str | None:
    """Why an operation has no kernel for arguments and results of these axes; None where they do not hinder it."""
    axes = _of_samples(values)
    most = max(map(len, axes), default=0)
    if most <= 1:
        return None
    if not (_is_pointwise(target) or target in PART_BY_PART):
        return f"{target} of samples of {most} axes"
    parts = max(_parts(target, a) for a in axes)
    if parts <= MOST_PARTS:
        return None
    return f"a sample in {parts} parts (up to {MOST_PARTS} can be; let the longest axis be the last)"


def _parts(target: Any, axes: Sequence[int]) -> int:
    """In how many parts a sample is written; of one that is transposed every entry is one."""
    return math.prod(axes if target is aten.permute.default else axes[:-1])


def _has_rows(node: fx.Node) -> bool:
    return bool(node.meta["val"].rows)


def _is_pointwise(target: Any) -> bool:
    return torch.Tag.pointwise in getattr(target, "tags", ())


class Axes(Nodes):
    """Values of samples of any number of axes."""

    reduced: frozenset[int] = frozenset()  # axes of a sample that the node reduces

    def read(self, name: str, node: fx.Node) -> Value:
        """A matrix as columns."""
        raise NotImplementedError

    def arguments(self, node: fx.Node) -> Any:
        """The values of the arguments; where a sample has several axes, along all of them."""
        self.reduced = frozenset()
        result, target = node.meta["val"], node.target
        values = [result, *(a.meta.get("val") for a in node.all_input_nodes)]
        if all(len(axes) <= 1 for axes in _of_samples(values)):
            return self.value(node.args)
        if reason := why_not(target, values):
            raise Unsupported(reason)
        if _is_pointwise(target) or target is aten.expand.default:
            return fx.map_arg(node.args, lambda a: self._along(a, of_sample(result)))
        if target in NORMS:
            return fx.map_arg(node.args, lambda a: self.value(a) if _has_rows(a) else self._along(a, self._axes(node)))
        return self.value(node.args)

    def _along(self, node: fx.Node, axes: tuple[int, ...]) -> Any:
        """An argument along all axes."""
        if self.made[node] is None:  # a matrix that is not multiplied by, but read entry by entry
            self.read(self.matrix_names[node], node)
        value = self.value(node)
        if not isinstance(value, Value):
            return value
        own = of_sample(node.meta["val"])[-len(axes) :]
        return self._spread_along(value, (1,) * (len(axes) - len(own)) + own, axes)

    def _spread_along(self, x: Value, own: tuple[int, ...], axes: tuple[int, ...]) -> Value:
        """A value along all axes, of which its own are as long or of size 1."""
        if own == axes or math.prod(own) == 1:  # one column goes with every other
            return x
        if own[1:] == axes[1:]:
            return self.cat([x] * axes[0])
        width = math.prod(axes[1:])
        parts = [self.spread(self._spread_along(p, own[1:], axes[1:]), width) for p in self._chunks(x, own[0])]
        return self.cat(parts if own[0] == axes[0] else parts * axes[0])

    def _axes(self, node: fx.Node | None = None) -> tuple[int, ...]:
        """The axes of a sample in the first argument of a node, that which is being lowered."""
        return of_sample((node or self.node).all_input_nodes[0].meta["val"])

    def _axis(self, dim: int) -> int:
        """Which axis of a sample an axis of the node's first argument is."""
        count = len(self._axes())
        if dim % (count + 1) == 0:
            raise Unsupported(f"{self.node.target} along the batch")
        return dim % (count + 1) - 1

    def along_columns(self, dim: int) -> bool:
        """Whether an axis of the node's first argument is the only one of a sample."""
        return len(self._axes()) <= 1 and super().along_columns(dim)

    def over(self, dim: Any) -> frozenset[int]:
        """Of a sample of several axes any of them can be reduced."""
        axes = self._axes()
        if len(axes) <= 1:
            return super().over(dim)
        self.reduced = frozenset(map(self._axis, [dim] if isinstance(dim, int) else dim or range(len(axes) + 1)))
        return self.reduced

    def math(self, operation: str, *operands: Any, **options: Any) -> Any:
        """What was reduced goes along the axes that it was reduced over."""
        if self.reduced:
            axes = self._axes()
            kept = tuple(1 if axis in self.reduced else size for axis, size in enumerate(axes))
            if any(isinstance(o, Value) and o.width == math.prod(axes) for o in operands):
                operands = tuple(
                    self._spread_along(o, kept, axes) if isinstance(o, Value) and o.width == math.prod(kept) else o
                    for o in operands
                )
        return super().math(operation, *operands, **options)

    def _chunks(self, x: Value, outer: int, first: int = 0, last: int = 1, size: int = 1) -> list[Value]:
        """What a value has at each place along its first axes: of an axis of a size the entries from first to last."""
        width, unit = x.width // outer, x.width // outer // size
        return [self.slice(x, i * width + first * unit, (last - first) * unit, f"part{i}") for i in range(outer)]

    def turned(self, x: Value, order: list[int]) -> Value:
        """The axes of a sample in another order, entry by entry."""
        axes = self._axes()
        if order[0] != 0 or len(axes) < 2:
            return super().turned(x, order)
        places = torch.arange(x.width).view(axes).permute([axis - 1 for axis in order[1:]]).flatten().tolist()
        return self.cat([self.slice(x, place, 1, "entry") for place in places])

    def cut(self, x: Value, dim: int, entries: slice) -> Value:
        """Some entries along an axis of a sample."""
        axes, axis = self._axes(), self._axis(dim)
        first, last, step = entries.indices(axes[axis])
        if step != 1 or last <= first:
            raise Unsupported(f"{self.node.target} of entries {first} to {last} with step {step}")
        return self.cat(self._chunks(x, math.prod(axes[:axis]), first, last, axes[axis]))

    def part(self, x: Value, dim: int, start: Any, end: Any, step: int) -> Value:
        """Some entries along an axis of a sample, with that axis."""
        return self.cut(x, dim, slice(start, end, step))

    def joined(self, parts: list[Value], dim: int) -> Value:
        """Values one behind the other along an axis of a sample."""
        outer = math.prod(self._axes()[: self._axis(dim)])
        return self.cat([chunk for own in zip(*(self._chunks(p, outer) for p in parts), strict=True) for chunk in own])

    def replaced(self, x: Value, piece: Value, dim: int, entries: slice) -> Value:
        """A value with others in place of some entries along an axis of a sample."""
        size = self._axes()[self._axis(dim)]
        first, last, step = entries.indices(size)
        if step != 1:
            raise Unsupported(f"{self.node.target} with step {step}")
        before = [self.cut(x, dim, slice(0, first))] if first else []
        behind = [self.cut(x, dim, slice(last, size))] if last < size else []
        return self.joined([*before, piece, *behind], dim)

    def reduce(self, operation: str, x: Value, over: frozenset[int], name: str = "") -> Value:
        """One column of all, or of all along some axes."""
        axes = self._axes()
        if len(axes) <= 1:
            return super().reduce(operation, x, over, name)
        return self._reduced(operation, self.real(x), axes, over, name)

    def _reduced(self, operation: str, x: Value, axes: Sequence[int], over: frozenset[int], name: str) -> Value:
        if not over:
            return x
        if over >= {i for i, size in enumerate(axes) if size > 1}:
            return super().reduce(operation, x, over, name)
        inner = frozenset(a - 1 for a in over if a)
        parts = [self._reduced(operation, part, axes[1:], inner, name) for part in self._chunks(x, axes[0])]
        if 0 not in over:
            return self.cat(parts)
        while len(parts) > 1:  # two by two: the fewest digits are lost
            pairs = itertools.zip_longest(parts[::2], parts[1::2])
            parts = [a if b is None else self.math(JOINED[operation], a, b, name=name) for a, b in pairs]
        return parts[0]

    def count(self, x: Value, over: frozenset[int]) -> Any:
        """How many entries a reduction takes together."""
        axes = self._axes()
        return super().count(x, over) if len(axes) <= 1 else math.prod(axes[a] for a in over)
