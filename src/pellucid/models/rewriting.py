"""The graph of a forward, with one call in the place of several nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from pellucid.models.forward import at
from pellucid.nn.swapped.exchange import kind_of, runs_as

IN_PLACE = {getattr(operator, name) for name in ("setitem", "delitem", *(n for n in dir(operator) if n[0] == "i"))} - {
    operator.index,
    operator.indexOf,
    operator.inv,
    operator.invert,
    operator.is_,
    operator.is_not,
    operator.itemgetter,
}
FUNCTIONAL = torch.nn.functional.__name__


class Rewriting:
    """A graph that is being changed. Nodes that have been replaced stand for what replaces them."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.constants: list[Any] = []  # what the forward takes behind the tensors
        self._order = {node: place for place, node in enumerate(graph.nodes)}
        self._first = next(node for node in graph.nodes if node.op != "placeholder")
        self._instead: dict[Any, fx.Node] = {}

    def constant(self, value: Any) -> fx.Node:
        """Any object, as a node."""
        with self.graph.inserting_before(self._first):
            node = self.graph.placeholder(f"constant_{len(self.constants)}")
        self.constants.append(value)
        return node

    def put(
        self, members: Collection[fx.Node], function: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any]
    ) -> None:
        """Let one call stand for nodes, of which the last one gives the value; a `Layer` is given as the module."""
        nodes = sorted(members, key=self._order.__getitem__)
        with self.graph.inserting_before(nodes[-1]):
            given = [self._value(a) for a in args]
            options = {name: self._value(a) for name, a in named.items()}
            made = self.graph.call_function(function, tuple(given), options)
        nodes[-1].replace_all_uses_with(made)
        self._instead[nodes[-1]] = made
        for node in reversed(nodes):
            self.graph.erase_node(node)

    def _value(self, given: Any) -> Any:
        if isinstance(given, Layer):
            return self.graph.create_node("get_attr", given.node.target)
        return self._instead.get(given, given) if isinstance(given, fx.Node) else given

    def compiled(self) -> Callable[..., Any]:
        """The forward: a function of the module, the tensors and the constants."""
        return compiled(self.graph)


class Layer:
    """The module that a node calls, as an argument."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node


def compiled(graph: fx.Graph) -> Callable[..., Any]:
    """The function of a graph; its first argument is the module."""
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<fused forward>", "exec"), namespace)
    return namespace["forward"]


# -- what a graph says ------------------------------------------------------------------------------------------------


def layer_of(module: torch.nn.Module, node: fx.Node) -> Any:
    """The module that a node of a forward calls; None for any other node."""
    return at(module, str(node.target)) if node.op == "call_module" else None


def called(node: fx.Node) -> str:
    """What a node calls, by its name."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return {"iadd": "+="}.get(name, name)


def writes(node: fx.Node, layer: Any) -> bool:
    """Whether a node may change a tensor that it reads."""
    if getattr(layer, "inplace", False) or node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return True
    if node.op == "call_function":
        named = getattr(node.target, "__name__", "")
        positional = True in [a for a in node.args if isinstance(a, bool)] and node.target.__module__ == FUNCTIONAL
        return node.target in IN_PLACE or positional or (named.endswith("_") and not named.endswith("__"))
    return node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")


def between(module: torch.nn.Module, graph: fx.Graph, members: Collection[fx.Node], draws: bool = False) -> str | None:
    """Say what keeps nodes from being computed where the last of them stands; ``draws`` where they draw at random."""
    nodes = list(graph.nodes)
    places = [place for place, node in enumerate(nodes) if node in members]
    first, last = places[0], places[-1]
    early = {node for member in members if member is not nodes[last] for node in member.all_input_nodes} - {*members}
    for node in nodes[first:last]:
        if node in members:
            continue
        layer = layer_of(module, node)
        if writes(node, layer):
            return f"{called(node)} works in place between them"
        own = layer is not None and not runs_as(kind_of(layer)).__module__.startswith(("torch.nn.", "pellucid.nn."))
        if own and early & set(node.all_input_nodes):
            return f"{called(node)} between them reads the same, and may change it"
        if draws and layer is not None:
            return f"{called(node)} between them might draw random numbers before the dropout does"
    return None
