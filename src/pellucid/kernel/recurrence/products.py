"""A stage outside the loop, its transposed matrices and products of all steps apart from what torch does."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pellucid.formula.program import Stage, placeholder
from pellucid.kernel import matmul
from pellucid.kernel.matmul import LEAST_PRODUCTS

aten = torch.ops.aten
_Operand = tuple[str, bool]  # an input of the stage, and whether it is transposed
_Pair = tuple[tuple[Tensor, bool], tuple[Tensor, bool]]  # what is multiplied, and whether it is transposed


@dataclass(frozen=True)
class Apart:
    """A stage in three parts: transposed inputs, products of inputs, and the rest, if any, which may read both."""

    transposed: Mapping[str, str]
    products: Mapping[str, tuple[_Operand, _Operand]]
    rest: Stage | None

    def pairs(self, values: Mapping[str, Any], by_step: Container[str]) -> list[_Pair]:
        """The operands of the products."""
        return [
            ((_folded(values, a, by_step), a_turned), (_folded(values, b, by_step), b_turned))
            for (a, a_turned), (b, b_turned) in self.products.values()
        ]

    def results(
        self, rows: int, values: Mapping[str, Any], by_step: Container[str], products: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The results by name, of the products."""
        results = {name: values[source].t() for name, source in self.transposed.items()}
        results |= zip(self.products, products, strict=True)
        if self.rest is None:
            return results
        given = {
            name: results[name] if name in results else _folded(values, name, by_step) for name in self.rest.inputs
        }
        return results | self.rest.run(rows, given)


def run(
    stages: Sequence[Apart], rows: int, values: Sequence[Mapping[str, Any]], by_step: Container[str]
) -> list[dict[str, Tensor]]:
    """Take the inputs of each stage by name from its ``values`` and return its results by name.

    The values ``by_step`` are (time, batch, features), all others have time folded into the rows.
    """
    pairs = [stage.pairs(own, by_step) for stage, own in zip(stages, values, strict=True)]
    found = iter(_multiplied([pair for own in pairs for pair in own]))
    return [
        stage.results(rows, own, by_step, list(itertools.islice(found, len(of_stage))))
        for stage, own, of_stage in zip(stages, values, pairs, strict=True)
    ]


def _multiplied(pairs: Sequence[_Pair]) -> Sequence[Tensor]:
    if not pairs:
        return []
    products = sum([a.numel() * b.shape[0 if turned else 1] for (a, _), (b, turned) in pairs])
    dtypes = {operand.dtype for pair in pairs for operand, _ in pair}
    on_cpu = all(operand.is_cpu for pair in pairs for operand, _ in pair)
    if products >= LEAST_PRODUCTS and len(dtypes) == 1 and on_cpu and matmul.usable(*dtypes):
        return matmul.multiply(pairs)
    return [torch.mm(_turned(a), _turned(b)) for a, b in pairs]


@functools.lru_cache(maxsize=512)
def apart(stage: Stage) -> Apart:
    """Cut a stage."""
    names = dict(zip(stage.placeholders.values(), ("rows", *stage.inputs), strict=True))
    transposed: dict[str, str] = {}
    products: dict[str, tuple[_Operand, _Operand]] = {}
    for node in stage.graph.nodes:
        source = _source(node, names)
        if node.target is aten.mm.default:
            left, right = (_source(a, names) for a in node.args)
            if left is not None and right is not None:
                products[node.name] = left, right
        elif source is not None and source[1] and node.name in stage.outputs:
            transposed[node.name] = source[0]
    apart = tuple(node.name for node in stage.graph.nodes if node.name in transposed or node.name in products)
    returned = next(n for n in stage.graph.nodes if n.op == "output").args[0]
    if all(node.name == name and name in apart for node, name in zip(returned, stage.outputs, strict=True)):
        return Apart(transposed, products, None)
    graph = fx.Graph()
    copies = {node: graph.node_copy(node) for node in stage.graph.nodes if node.op == "placeholder"}
    copies |= {node: placeholder(graph, node.name) for node in stage.graph.nodes if node.name in apart}
    for node in stage.graph.nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.eliminate_dead_code()
    return Apart(transposed, products, Stage(graph, (*stage.inputs, *apart), stage.outputs))


def _source(node: Any, names: Mapping[fx.Node, str]) -> _Operand | None:
    """The input that a node is, and whether it is transposed."""
    if node in names:
        return names[node], False
    turned = node.target is torch.t or (node.target is aten.permute.default and node.args[1] == [1, 0])
    return (names[node.args[0]], True) if turned and node.args[0] in names else None


def _folded(values: Mapping[str, Tensor], name: str, by_step: Container[str]) -> Tensor:
    return values[name].flatten(0, 1) if name in by_step else values[name]


def _turned(operand: tuple[Tensor, bool]) -> Tensor:
    matrix, transposed = operand
    return matrix.t() if transposed else matrix
