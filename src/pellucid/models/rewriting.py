"""The graph of a forward, with one call in the place of several nodes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
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
KEEPING_STATISTICS = {F.batch_norm, F.instance_norm, torch.batch_norm, torch.instance_norm}
# Layers, and operations that torch does not say it of, whose result may be their input, or a view of it.
HANDING_ON = (
    torch.nn.Sequential,
    torch.nn.Identity,
    torch.nn.Flatten,
    torch.nn.Unflatten,
    torch.nn.modules.dropout._DropoutNd,
)
UNSAID_VIEWS = {"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "einsum", "type_as"}


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
    if _works_in_place(layer) or node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return True
    if node.op == "call_function":
        named = getattr(node.target, "__name__", "")
        positional = True in [a for a in node.args if isinstance(a, bool)] and node.target.__module__ == FUNCTIONAL
        in_place = node.target in IN_PLACE or node.target in KEEPING_STATISTICS
        return in_place or positional or (named.endswith("_") and not named.endswith("__"))
    return node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")


def _works_in_place(layer: Any) -> bool:
    """Whether a layer changes its input, itself or by a layer that it hands it on to."""
    if not isinstance(layer, torch.nn.Sequential):
        return bool(getattr(layer, "inplace", False))
    for inner in layer:
        if _works_in_place(inner):
            return True
        if not isinstance(inner, HANDING_ON):
            return False
    return False


def between(module: torch.nn.Module, graph: fx.Graph, members: Collection[fx.Node], draws: bool = False) -> str | None:
    """Say what keeps nodes from being computed where the last of them stands; ``draws`` where they draw at random.

    What they read is kept for their gradient, of which the values between them may have no need: so it must not change
    behind them either.
    """
    nodes = list(graph.nodes)
    places = [place for place, node in enumerate(nodes) if node in members]
    first, last = places[0], places[-1]
    early = {node for member in members if member is not nodes[last] for node in member.all_input_nodes} - {*members}
    read = _memory(module, early)
    for node in nodes[first:last]:
        if node in members:
            continue
        layer = layer_of(module, node)
        if writes(node, layer):
            return f"{called(node)} works in place between them"
        if layer is not None and any(known.op == "get_attr" and _is_of(known, node) for known in early):
            return f"{called(node)} between them may change what they read of it"
        if _has_code_of_its_own(layer) and read & _memory(module, node.all_input_nodes):
            return f"{called(node)} between them reads the same, and may change it"
        if draws and layer is not None:
            return f"{called(node)} between them might draw random numbers before the dropout does"
    read = _memory(module, {node for member in members for node in member.all_input_nodes} - {*members})
    for node in nodes[last + 1 :]:
        if writes(node, layer_of(module, node)) and read & _memory(module, node.all_input_nodes[:1]):
            return f"{called(node)} behind them works in place on what they read"
    return None


def _is_of(read: fx.Node, call: fx.Node) -> bool:
    """Whether a parameter or buffer is one of the layer that is called."""
    return str(read.target).startswith(f"{call.target}.")


def _has_code_of_its_own(layer: Any) -> bool:
    """Whether a user's own code decides what a layer, or one inside, does with its input."""
    inside = () if layer is None else layer.modules()
    return any(not runs_as(kind_of(m)).__module__.startswith(("torch.nn.", "pellucid.nn.")) for m in inside)


def _memory(module: torch.nn.Module, given: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes in whose memory these may lie: themselves, and those that they may be views of."""
    found: set[fx.Node] = set()
    waiting = list(given)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            layer = layer_of(module, node)
            if not _makes_memory(node, layer):
                waiting += node.all_input_nodes[: 1 if writes(node, layer) else None]
    return found


def _makes_memory(node: fx.Node, layer: Any) -> bool:
    """Whether the value of a node is sure to be no view of what it reads."""
    if layer is not None:
        known = not _has_code_of_its_own(layer) and not any(layer.children())
        return known and not isinstance(layer, HANDING_ON) and not _works_in_place(layer)
    return not writes(node, None) and _makes(called(node))


@functools.cache
def _makes(name: str) -> bool:
    """Whether torch's operation of a name gives memory of its own, by what torch says of it."""
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{name.replace('truediv', 'true_divide')}")
    results = [result.alias_info for schema in schemas for result in schema.returns]
    views = any(alias is not None and not alias.is_write for alias in results)  # what is written to is an out=
    return bool(results) and not views and name not in UNSAID_VIEWS
