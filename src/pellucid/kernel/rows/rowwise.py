"""A formula of rows, cut at its products: what lies between two of them is one kernel.

What depends on parameters alone is computed by torch. Every product's operand, and the result, is a kernel of the
products, inputs and parameters that it is made of.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pellucid.errors import Unsupported
from pellucid.formula.capture import free
from pellucid.formula.graph import in_plain_torch, trace_forward
from pellucid.formula.program import Abstract, placeholder
from pellucid.formula.shapes import Solution
from pellucid.formula.source import Source
from pellucid.kernel import linear
from pellucid.kernel.backends import warn_of_fallback
from pellucid.kernel.rows import nested
from pellucid.kernel.tensors import language

aten = torch.ops.aten
PRODUCTS: dict[Any, Any] = {aten.mm.default: linear.mm, aten.addmm.default: linear.addmm}


class RowProgram:
    """A formula for one mode and type, as steps that are run one after the other."""

    def __init__(
        self, source: Source, solution: Solution, hyperparameters: Mapping[str, Any], training: bool, dtype: torch.dtype
    ) -> None:
        self.name = source.title
        self._steps: list[fx.Node] | None = None  # what is computed, one after the other; None if nothing can be
        try:
            traced = in_plain_torch(lambda: trace_forward(source, solution, hyperparameters, training, dtype))
        except Unsupported as error:
            warn_of_fallback(self.name, error)
            return
        graph, self.constants = traced
        self.sites = solution.sites if training else ()
        nodes = list(graph.nodes)
        placeholders = [n for n in nodes if n.op == "placeholder"]
        symbols = [*source.inputs, *source.parameters]
        for node, symbol in zip(placeholders, symbols, strict=False):
            node._rename(free(symbol.name))
        self.drawn = placeholders[len(symbols) :]
        for node in self.drawn:
            node._rename("draws")
        self.given = placeholders[: len(symbols)]
        self.of_rows = set[fx.Node]({*placeholders[: len(source.inputs)], *self.drawn})
        for node in nodes:
            if any(n in self.of_rows for n in node.all_input_nodes) and node.op == "call_function" and not _size(node):
                self.of_rows.add(node)
        self.result = next(n for n in nodes if n.op == "output").args[0][0]
        self._parts: dict[fx.Node, _Part] = {}
        steps: list[fx.Node] = []
        try:
            self._plan(self.result, steps)
        except (RecursionError, Unsupported) as error:
            warn_of_fallback(self.name, error)
        else:
            self._steps = steps

    def _plan(self, node: fx.Node, steps: list[fx.Node]) -> None:
        """Put a node, and before it what it is made of, among the steps."""
        if node in steps or node in self.given or node in self.drawn:
            return
        if node in self.of_rows and not self.is_product(node):
            self._parts[node] = _Part(self, node)
        for operand in self._parts[node].leaves if node in self._parts else node.all_input_nodes:
            self._plan(operand, steps)
        steps.append(node)

    def is_product(self, node: fx.Node) -> bool:
        """Whether a node is a product of rows with a matrix of parameters."""
        return node.target in PRODUCTS and node.args[-2] in self.of_rows and node.args[-1] not in self.of_rows

    def run(self, values: Sequence[Tensor], draws: nested.Draws | None) -> Tensor | None:
        """The result of inputs, (rows, features) each, and parameters; None where a part has no kernel."""
        if self._steps is None:
            return None
        known: dict[fx.Node, Any] = dict(zip(self.given, values, strict=True))
        for node in self._steps:
            if node in self._parts:
                known[node] = self._parts[node].run([known[leaf] for leaf in self._parts[node].leaves], draws)
                if known[node] is None:
                    return None
            elif node.op == "get_attr":
                known[node] = self.constants[node.name]
            else:
                arguments, named = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = PRODUCTS.get(node.target, node.target)(*arguments, **named)
        return known[self.result]


class _Part:
    """One kernel: a value, made of inputs, parameters, products and draws."""

    def __init__(self, program: RowProgram, root: fx.Node) -> None:
        leaves: dict[fx.Node, None] = {}
        seen = set[fx.Node]()

        def visit(node: fx.Node) -> None:
            if node in seen:
                return
            seen.add(node)
            inner = node in program.of_rows and node.op == "call_function"
            if inner and (node is root or not program.is_product(node)):
                for operand in node.all_input_nodes:
                    visit(operand)
            elif not _size(node):
                leaves[node] = None

        visit(root)
        self.leaves = [n for n in leaves if n not in program.drawn]
        self.leaves.sort(key=lambda n: n not in program.of_rows)  # the first has rows
        self.draws = [n for n in program.drawn if n in leaves]
        graph = fx.Graph()
        copies = {n: placeholder(graph, n.name) for n in (*self.leaves, *self.draws)}

        def copy_of(node: fx.Node) -> fx.Node:
            if node not in copies:
                rows = node.target is aten.sym_size.int  # of the formula's first input, which may be no leaf
                first = copies[self.leaves[0]]
                copies[node] = (
                    graph.call_function(aten.sym_size.int, (first, 0)) if rows else graph.node_copy(node, copy_of)
                )
            return copies[node]

        graph.output((copy_of(root),))
        self.function = fx.GraphModule(torch.nn.Module(), graph).forward
        sites = [program.drawn.index(n) for n in self.draws]
        before = list(itertools.accumulate((size for size, _ in program.sites), initial=0))
        self.begins = {n.name: before[site] for n, site in zip(self.draws, sites, strict=True)}  # in the draws of a row
        self.columns = [program.sites[site][0] for site in sites]  # that are drawn at each
        self.of_rows = [n in program.of_rows for n in self.leaves]
        self.axes = [2 if rows else n.meta["val"].dim() for n, rows in zip(self.leaves, self.of_rows, strict=True)]
        for leaf, axes in zip(self.leaves, self.axes, strict=True):
            if axes > 2:
                raise Unsupported(f"a value of {axes} axes, {leaf.name},")
        names = tuple(n.name for n in (*self.leaves, *self.draws))
        count = len(self.leaves)
        self.recipe = nested.Recipe(
            program.name, self._compute, (), names[:count], draws=names[count:], results=(root.name,), fixed=True
        )

    def _compute(self, averaged: tuple[int, ...], *operands: Tensor) -> tuple[Tensor, ...]:
        """The value of operands that all have two axes; the formula may ask for a parameter of fewer."""
        own = [o.reshape(o.shape[2 - axes :]) if axes < 2 else o for o, axes in zip(operands, self.axes, strict=False)]
        return self.function(*own, *operands[len(own) :])

    def run(self, tensors: Sequence[Tensor], draws: nested.Draws | None) -> Tensor | None:
        """The part's value, None where it has no kernel."""
        if draws is not None and self.draws:
            rows = tensors[0].shape[0]
            draws = draws._replace(offsets={name: begin * rows for name, begin in self.begins.items()})
        if language(*tensors) is None:
            return None
        results = nested.run(self.recipe, tensors, self._axes, functools.partial(self._again, draws), draws=draws)
        return None if results is None else results[0]

    def _axes(self, *tensors: Tensor) -> nested.Axes:
        views = []
        for tensor, rows in zip(tensors, self.of_rows, strict=True):
            steps: list[int | None] = [None] * (2 - tensor.ndim)
            steps += [step if size != 1 else None for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
            if rows:
                steps[0] = tensor.stride(0)
            columns = tensor.shape[-1] if tensor.ndim and (tensor.ndim == 2 or not rows) else 1
            views.append(nested.View(tuple(steps), columns))
        views += [nested.View((columns, 1 if columns > 1 else None), columns) for columns in self.columns]
        first = tensors[0]
        return nested.Axes((first.shape[0], first.shape[-1]), (), tuple(views))

    def _again(self, draws: nested.Draws | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        rows = tensors[0].shape[0]
        sizes = zip(self.draws, self.columns, strict=True)
        device = tensors[0].device
        drawn = [] if draws is None else [draws.tensor(n.name, (rows, columns), device) for n, columns in sizes]
        return self.function(*tensors, *drawn)


def _size(node: fx.Node) -> bool:
    return not isinstance(node.meta.get("val"), (Abstract, tuple, list)) and node.op == "call_function"
