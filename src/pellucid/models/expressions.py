"""Arithmetic in the graph of a forward: operations that follow each other and have one result, as one expression."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pellucid.models.rewriting import Layer, Rewriting, between, called, compiled, layer_of, writes
from pellucid.nn.swapped.expression import Expression
from pellucid.nn.swapped.fused import FUNCTIONS, LAYERS
from pellucid.nn.swapped.reclassed import made_of

# Operations on single entries; of those named "costly" one alone may be worth a pass.
COSTLY = "exp expm1 log log1p tanh sigmoid erf pow sin cos".split()
CHEAP = "neg abs relu sqrt rsqrt reciprocal square sign add sub mul div true_divide maximum minimum".split()
CHEAP += "clamp clamp_min clamp_max where eq ne lt le gt ge".split()
ROWS = "sum mean amax amin softmax log_softmax".split()  # of the last axis
WHOLE_ROWS = {"softmax", "log_softmax"}  # whose result is a row too
CASTS = "to float double half bfloat16 type_as".split()
OPERATORS = "add sub mul truediv pow neg abs eq ne lt le gt ge".split()
ACTIVATIONS = {*FUNCTIONS, F.hardsigmoid, F.softsign, F.logsigmoid, F.tanhshrink}
CHEAP_ACTIVATIONS = {F.relu, F.relu6, F.hardtanh, F.leaky_relu, torch.relu, F.hardsigmoid, "relu"}


def _functions(names: Iterable[str]) -> set[Any]:
    """The functions and methods of tensors of these names."""
    return {getattr(torch, name) for name in names if hasattr(torch, name)} | {n for n in names if hasattr(Tensor, n)}


ROW_FUNCTIONS = _functions(ROWS) | {F.softmax, F.log_softmax}
COSTLY_FUNCTIONS = _functions(COSTLY) | (ACTIVATIONS - CHEAP_ACTIVATIONS)
ENTRYWISE = _functions([*COSTLY, *CHEAP]) | ACTIVATIONS | {getattr(operator, name) for name in OPERATORS}
LAST_AXIS = ((-1,), [-1], -1)


@dataclass(frozen=True)
class Piece:
    """Operations to be computed as one, as nodes of a forward's graph in its order; the last one is the result."""

    nodes: tuple[fx.Node, ...]

    @property
    def layers(self) -> list[fx.Node]:
        """The activation layers among them."""
        return [node for node in self.nodes if node.op == "call_module"]

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of these, in the module that holds them."""
        return tuple(str(node.target) for node in self.layers)

    @property
    def inputs(self) -> list[fx.Node]:
        """What they read."""
        return list(dict.fromkeys(n for node in self.nodes for n in node.all_input_nodes if n not in self.nodes))

    def names(self, module: torch.nn.Module) -> list[str]:
        """What they are called."""
        shown = [node for node in self.nodes if not _is_type(node)]
        return [made_of(layer_of(module, n)).__name__ if n.op == "call_module" else called(n) for n in shown]

    def write(self, rewriting: Rewriting, module: torch.nn.Module) -> None:
        """Put one call in its place."""
        expression = rewriting.constant(_expression(self, self.names(module)))
        rewriting.put(self.nodes, _call, (expression, *map(Layer, self.layers), *self.inputs), {})


def _call(function: Any, *given: Any) -> Any:
    return function(*given)


def pieces(module: torch.nn.Module, graph: fx.Graph, taken: set[fx.Node]) -> Iterator[Piece]:
    """Find the largest pieces of a forward's graph among the nodes that are not taken."""
    nodes = list(graph.nodes)
    free = {node for node in nodes if node not in taken and _joins(node, layer_of(module, node))}
    for place in reversed(range(len(nodes))):
        result = nodes[place]
        if result not in free or _is_type(result):
            continue
        found = {result}
        for node in reversed(nodes[:place]):  # before all that use it
            if node in free and all(user in found for user in node.users):
                found.add(node)
        free -= found
        piece = Piece(tuple(node for node in nodes if node in found))
        if _is_worth_it(piece) and between(module, graph, piece.nodes) is None:
            yield piece


def _joins(node: fx.Node, layer: Any) -> bool:
    """Whether a node may be a part of an expression."""
    if not node.users or writes(node, layer):
        return False
    if layer is not None:
        return made_of(layer) in LAYERS and len(node.args) == 1 and not node.kwargs
    if _is_type(node):
        return True
    given = [*node.args, *node.kwargs.values()]
    if node.op == "call_method" and node.target in CASTS:
        return len(given) == 1 or (len(given) == 2 and (isinstance(given[1], torch.dtype) or _is_node(given[1])))
    if node.target in ROW_FUNCTIONS:
        options = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
        options = {name: value for name, value in options.items() if name != "_stacklevel" and value is not None}
        wanted = {"dim"} if called(node) in WHOLE_ROWS else {"dim", "keepdim"}
        known = options.keys() == wanted and options.get("keepdim", True) is True
        return known and _is_node(node.args[0]) and options["dim"] in LAST_AXIS
    return node.target in ENTRYWISE and all(_is_node(a) or _is_number(a) for a in given)


def _is_worth_it(piece: Piece) -> bool:
    """Whether one pass could be faster than the operations, that is whether it saves one, or computes a costly one."""
    works = [node for node in piece.nodes if not _is_type(node) and node.target not in CASTS]
    costly = any(node.target in COSTLY_FUNCTIONS for node in works)  # a single layer sees to itself
    return (len(works) > 1 or costly) and bool(piece.inputs)


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _is_type(node: fx.Node) -> bool:
    """Whether a node asks a tensor for its type."""
    return node.target is getattr and node.args[1] == "dtype"


_known: dict[Any, Expression] = {}


def _expression(piece: Piece, names: list[str]) -> Expression:
    """The expression of a piece; one for all that are alike."""
    graph = fx.Graph()
    of_layers = {node: graph.placeholder(f"layer_{i}") for i, node in enumerate(piece.layers)}
    copies = {node: graph.placeholder(f"given_{i}") for i, node in enumerate(piece.inputs)}
    for node in piece.nodes:
        args = fx.node.map_arg(node.args, copies.__getitem__)
        named = fx.node.map_arg(node.kwargs, copies.__getitem__)
        if node in of_layers:
            copies[node] = graph.call_function(_call, (of_layers[node], *args))
        else:
            copies[node] = graph.create_node(node.op, node.target, args, named)
    graph.output(copies[piece.nodes[-1]])
    code = graph.python_code("self")
    key = (code.src, tuple(sorted((name, id(value)) for name, value in code.globals.items())))
    if key not in _known:
        function = functools.partial(compiled(graph), None)
        along_rows = any(node.target in ROW_FUNCTIONS for node in piece.nodes)
        _known[key] = Expression(function, len(of_layers), names, along_rows)
    return _known[key]
