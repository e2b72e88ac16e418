"""The stage behind the backward loop, its products of all steps apart from what torch does."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pellucid.kernel import matmul, threads
from pellucid.kernel.program import Stage

aten = torch.ops.aten
_Operand = tuple[str, bool]  # an input of the stage, and whether it is transposed


@dataclass(frozen=True)
class Behind:
    """Products of inputs of a stage, by the names of their results, and the rest of the stage, which may read them."""

    products: Mapping[str, tuple[_Operand, _Operand]]
    rest: Stage

    def run(self, rows: int, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """Take the inputs by name from ``values`` and return the outputs by name: as `Stage.run`."""
        if not self.products:
            return self.rest.run(rows, values)
        pairs = [tuple(_operand(values, o) for o in operands) for operands in self.products.values()]
        compiled = threads.shared() and all(t.dtype in (torch.float32, torch.float64) for pair in pairs for t in pair)
        results = matmul.multiply(pairs) if compiled else [torch.mm(a, b) for a, b in pairs]  # type: ignore[arg-type]
        return self.rest.run(rows, {**values, **dict(zip(self.products, results, strict=True))})


@functools.lru_cache(maxsize=512)
def apart(stage: Stage) -> Behind:
    """Cut a stage."""
    products: dict[str, tuple[_Operand, _Operand]] = {}
    names = dict(zip(stage.placeholders.values(), ("rows", *stage.inputs), strict=True))
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in stage.graph.nodes:
        operands = [_source(a, names) for a in node.args] if node.target is aten.mm.default else [None]
        if None not in operands:
            products[node.name] = tuple(operands)  # type: ignore[assignment]
    for node in stage.graph.nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node)
    for node in stage.graph.nodes:
        if node.name in products:
            copies[node] = graph.placeholder(node.name)
    for node in stage.graph.nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.eliminate_dead_code()
    return Behind(products, Stage(graph, (*stage.inputs, *products), stage.outputs))


def _source(node: Any, names: Mapping[fx.Node, str]) -> _Operand | None:
    if node in names:
        return names[node], False
    if node.target in (torch.t, aten.permute.default) and node.args[0] in names:
        return names[node.args[0]], True
    return None


def _operand(values: Mapping[str, Tensor], operand: _Operand) -> Tensor:
    name, transposed = operand
    return values[name].t() if transposed else values[name]
