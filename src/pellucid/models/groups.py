"""Layers that stand side by side in the graph of a forward, and that may be computed as one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from pellucid.models.expressions import Piece
from pellucid.models.rewriting import Layer, Rewriting, between, called, layer_of
from pellucid.nn.component import watched
from pellucid.nn.dropout.dropout import Dropout
from pellucid.nn.normalization.layer_norm import LocalResponseNorm
from pellucid.nn.normalization.normalization import NormalizationFamily
from pellucid.nn.swapped.exchange import kind_of, name_of, ours_of, runs_as
from pellucid.nn.swapped.fused import LAYERS, activation_of_call, convolve_and_normalize, normalize_in_company
from pellucid.nn.swapped.reclassed import made_of

CONVOLUTIONS: set[type[torch.nn.Module]] = {torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d}
CONVOLUTIONS |= {ours for ours in map(ours_of, CONVOLUTIONS) if ours is not None}
SUMS = {operator.add, torch.add}
SUMS_IN_PLACE = {operator.iadd, "add_"}


@dataclass(frozen=True)
class Group:
    """Layers to be computed as one, as nodes of a forward's graph in its order; ``names`` says what they are."""

    norm: fx.Node
    names: tuple[str, ...]
    convolution: fx.Node | None = None
    sublayer: fx.Node | None = None
    dropout: fx.Node | None = None
    sum: fx.Node | None = None
    other: fx.Node | None = None  # what the sublayer is added to
    residual: fx.Node | None = None
    sum_behind: fx.Node | None = None
    activation: fx.Node | None = None

    @property
    def members(self) -> list[fx.Node]:
        """The nodes that one call takes the place of."""
        found = (self.dropout, self.sum, self.convolution, self.norm, self.sum_behind, self.activation)
        return [node for node in found if node is not None]

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of its layers, in the module that holds them."""
        return tuple(str(node.target) for node in self.members if node.op == "call_module")

    @property
    def becomes(self) -> str:
        """What it is computed as."""
        if self.convolution is None:
            return "one pass"
        return "eval: one convolution" + ("; training: one pass behind it" if len(self.members) > 2 else "")

    def write(self, rewriting: Rewriting) -> None:
        """Put one call in its place."""

        def layer(node: fx.Node | None) -> Layer | None:
            return None if node is None else Layer(node)

        function: Any = self.activation
        if function is not None and function.op != "call_module":
            function = rewriting.constant(activation_of_call(function.target, function.args, function.kwargs))
        else:
            function = layer(function)
        behind = {"residual": self.residual, "activation": function}
        if self.sum_behind is not None and self.sum_behind.target in SUMS_IN_PLACE:
            behind["in_place"] = True
        source = (self.convolution or self.norm).args[0] if self.sum is None else self.other
        if self.convolution is not None:
            given = (Layer(self.convolution), Layer(self.norm), source)
            rewriting.put(self.members, convolve_and_normalize, given, behind)
        else:
            before = {"sublayer": self.sublayer, "dropout": layer(self.dropout)}
            rewriting.put(self.members, normalize_in_company, (Layer(self.norm), source), before | behind)


@dataclass
class Found:
    """What a graph holds: groups, and what would be one but for a reason."""

    groups: list[Group] = field(default_factory=list)
    refused: list[tuple[fx.Node, str, str]] = field(default_factory=list)  # the norm, what it would be, why it is not
    pieces: list[Piece] = field(default_factory=list)  # of arithmetic

    @property
    def layers(self) -> list[str]:
        """The paths of all layers that are a part of something."""
        found = [*(group.paths for group in self.groups), *(piece.paths for piece in self.pieces)]
        return [path for paths in found for path in paths]


# -- on the graph -----------------------------------------------------------------------------------------------------


class Finder:
    """Looks for groups in the graph of a module's forward; ``admits`` says which norms are meant."""

    def __init__(self, module: torch.nn.Module, graph: fx.Graph, admits: Callable[[str], bool]) -> None:
        self.module, self.graph, self.admits = module, graph, admits
        self.order = {node: place for place, node in enumerate(graph.nodes)}
        self.taken = set[fx.Node]()

    def find(self) -> Found:
        """Return the groups in the order of their norms."""
        found = Found()
        for node in self.graph.nodes:
            norm = self.layer(node)
            if norm is None or not is_norm(norm):
                continue
            group = self._around(node, norm)
            if len(group.members) < 2:
                continue
            reason = self._obstacle(group)
            if reason:
                found.refused.append((node, " → ".join(group.names), reason))
            else:
                found.groups.append(group)
                self.taken |= set(group.members)
        return found

    def layer(self, node: fx.Node) -> Any:
        """The module that a node calls; None for any other node."""
        return layer_of(self.module, node)

    def _around(self, node: fx.Node, norm: torch.nn.Module) -> Group:
        """All that could be computed with a norm."""
        behind, names_behind = self._behind(node)
        source = node.args[0] if node.args else None
        before: dict[str, Any] = {}
        names_before: list[str] = []
        # Of several users one is told to be the reason, unless there is something to be fused without.
        if isinstance(source, fx.Node) and source not in self.taken and (_only_user(source) is node or not behind):
            layer = self.layer(source)
            if layer is not None and runs_as(kind_of(layer)) in CONVOLUTIONS and isinstance(norm, _BATCH_NORMS):
                before, names_before = {"convolution": source}, [kind_of(layer).__name__]
            elif _is_sum(source) and isinstance(norm, (torch.nn.LayerNorm, torch.nn.RMSNorm)):
                before = self._summands(source)
                names_before = ["Dropout", "add"] if "dropout" in before else ["add"]
        return Group(node, (*names_before, kind_of(norm).__name__, *names_behind), **before, **behind)

    def _behind(self, node: fx.Node) -> tuple[dict[str, Any], list[str]]:
        """The sum and the activation behind a norm, and their names."""
        parts: dict[str, Any] = {}
        names = []
        last = node
        following = _only_user(last)
        if following is not None and following not in self.taken and _is_sum(following, in_place_of=last):
            first, second = following.args
            parts = {"sum_behind": following, "residual": second if first is last else first}
            names.append("add")
            last = following
            following = _only_user(last)
        elif following is None:  # of several, one that could be: the reason is told
            following = next((user for user in node.users if self._activation(user)), None)
        if following is not None and (name := self._activation(following)):
            parts["activation"] = following
            names.append(name)
        return parts, names

    def _summands(self, total: fx.Node) -> dict[str, Any]:
        first, second = total.all_input_nodes
        for sublayer, other in ((second, first), (first, second)):
            if isinstance(self.layer(sublayer), torch.nn.Dropout) and sublayer.args:
                return {"sum": total, "dropout": sublayer, "sublayer": sublayer.args[0], "other": other}
        return {"sum": total, "sublayer": second, "other": first}

    def _activation(self, node: fx.Node) -> str | None:
        """The name of what a node computes, if it is an activation."""
        layer = self.layer(node)
        if layer is not None:
            return type(layer).__name__ if made_of(layer) in LAYERS else None
        if node.op not in ("call_function", "call_method"):
            return None
        function = activation_of_call(node.target, node.args, node.kwargs)
        return None if function is None else function.function.__name__

    def _obstacle(self, group: Group) -> str | None:
        """Say why layers have to run one by one; None if they need not."""
        path = str(group.norm.target)
        norm = self.layer(group.norm)
        if not isinstance(norm, NormalizationFamily) or _is_derived(norm):
            return f"the norm is {name_of(kind_of(norm))}, not pellucid's layer of that name"
        if not self.admits(path):
            return "only= leaves it out"
        calls = [node for node in group.members if node.op == "call_module"]
        if any(len(node.args) != 1 or node.kwargs for node in calls):
            return "a layer is called with more than its input"
        layers = [self.layer(node) for node in calls]
        for layer, node in zip(layers, calls, strict=True):
            if watched(layer) or "forward" in vars(layer):
                return f"{node.target} has a hook or a forward of its own"
        if group.dropout is not None and runs_as(type(self.layer(group.dropout))) is not Dropout:
            return f"{group.dropout.target} is not pellucid's Dropout"
        members = group.members
        inner = [node for node in members if node is not self._last(group)]
        shared = next((node for node in inner if len(node.users) > 1), None)
        if shared is not None:
            return f"what {called(shared)} gives is used elsewhere too"
        return between(self.module, self.graph, members, draws=group.dropout is not None)

    def _last(self, group: Group) -> fx.Node:
        return max(group.members, key=self.order.__getitem__)


_BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
_NORMS = (
    NormalizationFamily,
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.LayerNorm,
    torch.nn.GroupNorm,
    torch.nn.RMSNorm,
)


def is_norm(layer: torch.nn.Module) -> bool:
    """Whether a layer is a norm, of either library."""
    return isinstance(layer, _NORMS) and not isinstance(layer, LocalResponseNorm)


def _is_derived(layer: torch.nn.Module) -> bool:
    """Whether a user's own code decides what a norm computes."""
    return not runs_as(kind_of(layer)).__module__.startswith("pellucid.nn.")


def _is_sum(node: fx.Node, in_place_of: fx.Node | None = None) -> bool:
    """Whether a node adds two tensors; in place only where it changes that one."""
    if len(node.args) != 2 or node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
        return False
    if node.args[0] is node.args[1]:
        return False
    in_place = node.target in SUMS_IN_PLACE and in_place_of is not None and node.args[0] is in_place_of
    return node.target in SUMS or (node.op == "call_method" and node.target == "add") or in_place


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None
