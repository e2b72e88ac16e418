"""A stage in a few kinds of values that every emitter can write: columns of a row, and what crosses them.

A row is a sample's vector. Arithmetic goes column by column; slices and concatenations only say where a column is
read; products with a matrix and reductions need the whole row. `rules` says what each operation is made of, `axes` how
that is where a sample is a matrix, or has more axes still.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from pellucid.errors import Unsupported
from pellucid.formula.program import Abstract, Stage
from pellucid.kernel.language import axes
from pellucid.kernel.language.rules import OPERATIONS
from pellucid.kernel.language.values import Value


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
    lowering = _Rows(draws, {node.name for node in stage.graph.nodes} | set(stage.inputs))
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
    results = value if isinstance(value, (tuple, list)) else (value,)
    return axes.why_not(node.target, [*results, *(a.meta.get("val") for a in node.all_input_nodes)]) is None


class _Rows(axes.Axes):
    """The values of a stage."""

    def placeholder(self, name: str, node: fx.Node) -> None:
        """Make a value of an input."""
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
        if rows and not _plain_rows(meta):
            raise Unsupported(f"a value of {meta.dim()} axes, {name}")
        self.read(name, node, "draws" if name in self.draws else "memory")

    def read(self, name: str, node: fx.Node, kind: str = "memory") -> Value:
        """An input, or a matrix, as columns."""
        meta = node.meta["val"]
        made = Value(kind, name, self.width_of(meta), mask=meta.dtype == torch.bool, rows=meta.rows)
        self.made[node] = self.inputs[name] = made
        return made

    def call(self, node: fx.Node) -> None:
        """Make the result of an operation; what is no tensor is the number of rows."""
        if node.target is not operator.getitem and not isinstance(node.meta.get("val"), (Abstract, tuple, list)):
            self.made[node] = "rows"
            return
        super().call(node)

    def fits(self, value: Abstract) -> bool:
        """One row of columns for each row of the batch, or a value without rows."""
        return not value.rows or _plain_rows(value)


def _plain_rows(meta: Abstract) -> bool:
    """Whether there is one row for each row of the batch."""
    return meta.shape[0] == 1
