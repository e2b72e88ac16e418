"""Layers that stand side by side in the forward of a module, found on its graph and computed as one.

A module that holds such layers changes its class and nothing else: to one of the same name whose forward calls
`pellucid.nn.fused` where its own calls the layers one by one. Where that cannot be known to be the same, the module's
own forward runs.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.utils import parametrize

from pellucid.keeping import left_alone
from pellucid.models import report
from pellucid.models.forward import CONSTANT, Forward, Like, Untraceable, at, trace
from pellucid.nn.component import Component, watched
from pellucid.nn.dropout import Dropout
from pellucid.nn.exchange import kind_of, name_of, ours_of, runs_as
from pellucid.nn.fused import LAYERS, activation_of_call, convolve_and_normalize, normalize_in_company
from pellucid.nn.layer_norm import LocalResponseNorm
from pellucid.nn.normalization import NormalizationFamily
from pellucid.nn.reclassed import Reclassed, reclassed

MOST_TRACES = 16  # of one module, whose forward then runs as it is: what it reads changes at every call
CONVOLUTIONS: set[type[torch.nn.Module]] = {torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d}
CONVOLUTIONS |= {ours for ours in map(ours_of, CONVOLUTIONS) if ours is not None}
SUMS = {operator.add, torch.add}
SUMS_IN_PLACE = {operator.iadd, "add_"}
IN_PLACE = {getattr(operator, name) for name in ("setitem", "delitem", *(n for n in dir(operator) if n[0] == "i"))} - {
    operator.index,
    operator.indexOf,
    operator.inv,
    operator.invert,
    operator.is_,
    operator.is_not,
    operator.itemgetter,
}


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


@dataclass
class Found:
    """What a graph holds: groups, and what would be one but for a reason."""

    groups: list[Group] = field(default_factory=list)
    refused: list[tuple[fx.Node, str, str]] = field(default_factory=list)  # the norm, what it would be, why it is not


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
            if norm is None or not _is_norm(norm):
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
        return at(self.module, str(node.target)) if node.op == "call_module" else None

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
            return type(layer).__name__ if type(layer) in LAYERS else None
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
            return f"what {_called(shared)} gives is used elsewhere too"
        return self._between(group)

    def _last(self, group: Group) -> fx.Node:
        return max(group.members, key=self.order.__getitem__)

    def _between(self, group: Group) -> str | None:
        """Say what keeps a group from being computed where its last node stands."""
        members, last = set(group.members), self._last(group)
        first = min(members, key=self.order.__getitem__)
        early = {node for member in members - {last} for node in member.all_input_nodes} - members
        for node in list(self.graph.nodes)[self.order[first] : self.order[last]]:
            if node in members:
                continue
            layer = self.layer(node)
            if _writes(node, layer):
                return f"{_called(node)} works in place between them"
            own = layer is not None and not runs_as(kind_of(layer)).__module__.startswith(("torch.nn.", "pellucid.nn."))
            if own and early & set(node.all_input_nodes):
                return f"{_called(node)} between them reads the same, and may change it"
            if group.dropout is not None and layer is not None:
                return f"{_called(node)} between them might draw random numbers before the dropout does"
        return None


_BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
_NORMS = (
    NormalizationFamily,
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.LayerNorm,
    torch.nn.GroupNorm,
    torch.nn.RMSNorm,
)


def _is_norm(layer: torch.nn.Module) -> bool:
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


def _called(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return {"iadd": "+="}.get(name, name)


def _writes(node: fx.Node, layer: Any) -> bool:
    """Whether a node may change a tensor that it reads."""
    if getattr(layer, "inplace", False) or node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return True
    if node.op == "call_function":
        named = getattr(node.target, "__name__", "")
        positional = True in [a for a in node.args if isinstance(a, bool)] and node.target.__module__ == _FUNCTIONAL
        return node.target in IN_PLACE or positional or (named.endswith("_") and not named.endswith("__"))
    return node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")


_FUNCTIONAL = torch.nn.functional.__name__


def rewrite(forward: Forward, groups: Iterable[Group]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Put one call in the place of each group; return the forward, and what it takes behind the tensors."""
    graph, constants = forward.graph, list[Any]()
    order = {node: place for place, node in enumerate(graph.nodes)}
    first = next(node for node in graph.nodes if node.op != "placeholder")
    instead: dict[Any, fx.Node] = {}  # of what other groups gave

    def value(node: Any) -> Any:
        return instead.get(node, node)

    def layer(node: fx.Node | None) -> Any:
        return None if node is None else graph.create_node("get_attr", node.target)

    groups = list(groups)
    constant: dict[fx.Node, fx.Node] = {}
    with graph.inserting_before(first):
        for node in (group.activation for group in groups):
            if node is not None and node.op != "call_module":
                constant[node] = graph.placeholder(f"activation_{len(constants)}")
                constants.append(activation_of_call(node.target, node.args, node.kwargs))
    for group in groups:
        last = max(group.members, key=order.__getitem__)
        source = (group.convolution or group.norm).args[0] if group.sum is None else group.other
        with graph.inserting_before(last):
            function: Any = group.activation
            behind = {"residual": value(group.residual), "activation": constant.get(function) or layer(function)}
            if group.convolution is not None:
                given = (layer(group.convolution), layer(group.norm), value(source))
                made = graph.call_function(convolve_and_normalize, given, behind)
            else:
                before = {"sublayer": value(group.sublayer), "dropout": layer(group.dropout)}
                made = graph.call_function(normalize_in_company, (layer(group.norm), value(source)), before | behind)
        last.replace_all_uses_with(made)
        instead[last] = made
        for node in sorted(group.members, key=order.__getitem__, reverse=True):
            graph.erase_node(node)
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<fused forward>", "exec"), namespace)
    return namespace["forward"], tuple(constants)


# -- the module -------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """How a module's forward, ``plain``, runs for one kind of call; ``run`` is None where it runs as it is.

    ``by_shape`` says that there is a plan for each shape of the tensors.
    """

    plain: Callable[..., Any]
    forward: Forward | None = None
    run: Callable[..., Any] | None = None
    constants: tuple[Any, ...] = ()
    by_shape: bool = False


class Plans:
    """The plans of one module, made as calls come; copies share them, a pickle makes its own.

    Args:
        fused: what is meant, by paths in the module.
    """

    def __init__(self, fused: tuple[report.Fused, ...]) -> None:
        self.fused = fused
        self.norms = {path for group in fused for path in group.paths}
        self.known: dict[Any, Plan] = {}
        self.traces = 0

    def __reduce__(self) -> Any:
        return Plans, (self.fused,)

    def __deepcopy__(self, memo: Any) -> Plans:
        return self

    def run(self, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Compute the module's forward."""
        key: Any = (module.training, torch.is_grad_enabled(), *map(_sort, args))
        if named:
            key += tuple([(name, _sort(value)) for name, value in named.items()])
        plan = self.known.get(key)
        if plan is not None and plan.by_shape:
            key += tuple([value.shape for value in (*args, *named.values()) if isinstance(value, Tensor)])
            plan = self.known.get(key)
        if plan is None or plan.plain is not plain or (plan.forward is not None and not plan.forward.holds(module)):
            plan = self._plan(key, module, plain, args, named)
        if plan.run is None:
            return plain(module, *args, **named)
        given = [a for a in (*args, *named.values()) if isinstance(a, Tensor)]
        return plan.run(module, *given, *plan.constants)

    def _plan(
        self, key: Any, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]
    ) -> Plan:
        """Make a plan and remember it; of one shape where it depends on that."""
        if self.traces >= MOST_TRACES:
            return Plan(plain)
        self.traces += 1
        try:
            forward, shaped = traced(module, plain, args, named)
        except Untraceable:
            self.known[key] = Plan(plain)
            return self.known[key]
        groups = Finder(module, forward.graph, self.norms.__contains__).find().groups
        plan = Plan(plain, forward, *rewrite(forward, groups)) if groups else Plan(plain, forward)
        if shaped and not any(isinstance(part, torch.Size) for part in key):
            self.known[key] = Plan(plain, by_shape=True)
            key += tuple([value.shape for value in (*args, *named.values()) if isinstance(value, Tensor)])
        self.known[key] = plan
        return plan


def traced(
    module: torch.nn.Module,
    plain: Callable[..., Any],
    args: Sequence[Any],
    named: Mapping[str, Any],
    training: bool | None = None,
) -> tuple[Forward, bool]:
    """Trace a forward for arguments like these; return it, and whether it is that for tensors of these shapes only.

    Raises:
        Untraceable: it is more than a graph, or takes something that is no tensor and no constant.
    """
    values = (*args, *named.values())
    other = next((value for value in values if _sort(value) is OTHER), None)
    if other is not None:
        raise Untraceable(f"its forward takes a {type(other).__name__}")
    known = any(isinstance(value, Tensor) for value in values)

    def signs(shaped: bool) -> tuple[list[Any], dict[str, Any]]:
        def sign(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return Like(value.shape) if shaped else Tensor

        return [sign(value) for value in args], {name: sign(value) for name, value in named.items()}

    try:
        return trace(module, plain, *signs(False), training), False
    except Untraceable:
        if not known:
            raise
        return trace(module, plain, *signs(True), training), True


OTHER = "other"


def _sort(value: Any) -> Any:
    """What of an argument decides a plan."""
    if isinstance(value, Tensor):
        return Tensor
    return (type(value), value) if value is Tensor or isinstance(value, CONSTANT) else OTHER


class Fused(Reclassed):
    """A module of another class that computes some of its layers as one."""


def _rebuild(kind: Any) -> Any:
    return object.__new__(_fused(kind))


@functools.cache
def _fused(kind: Any) -> Any:
    """The class of the same name whose objects follow their plans."""

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **named: Any) -> Any:
        plans = None if torch.compiler.is_compiling() or torch._C._is_tracing() else self.__dict__.get("_fused_plans")
        if plans is None:
            return kind.forward(self, *args, **named)
        return plans.run(self, kind.forward, args, named)

    return reclassed(kind, (Fused, kind), _rebuild, forward=forward)


def follow(module: torch.nn.Module, plans: Plans) -> None:
    """Let a module follow plans."""
    kind: Any = type(module)
    module.__class__ = _fused(kind)
    module.__dict__["_fused_plans"] = plans


def unfuse(module: torch.nn.Module) -> Plans | None:
    """Give a module its own forward back; return what it followed."""
    if not isinstance(module, Fused):
        return None
    module.__class__ = module._own_kind
    return module.__dict__.pop("_fused_plans", None)


# -- a whole model ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A module that holds norms which may be computed with what is around them, by their paths inside."""

    module: torch.nn.Module
    paths: tuple[str, ...]
    found: Found
    obstacle: str | None = None  # why it cannot be looked into

    def plans(self) -> Plans:
        """The plans for what was found."""
        return Plans(
            tuple(
                report.Fused((str(group.norm.target),), group.paths, " → ".join(group.names), group.becomes)
                for group in self.found.groups
            )
        )


def everywhere(places: Iterable[str], inside: Iterable[str]) -> tuple[str, ...]:
    """The paths in a model of what has these paths in a module that has these places."""
    return tuple(f"{place}.{path}" if place else path for place in places for path in inside)


Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments


def candidates(
    found: Mapping[torch.nn.Module, list[str]],
    admits: Callable[[torch.nn.Module, list[str]], bool],
    calls: Mapping[torch.nn.Module, Call],
) -> Iterator[Candidate]:
    """Look for groups in all modules of a model.

    Args:
        found: the modules with their places.
        admits: takes a norm and its places.
        calls: what modules are called with, as far as that is known; else tensors are taken for what has no default.
    """
    for module, paths in found.items():
        if not may_hold(module):
            continue
        try:
            yield Candidate(module, tuple(paths), _look(module, found, admits, calls.get(module)))
        except Untraceable as error:
            if _tempts(module):
                yield Candidate(module, tuple(paths), Found(), str(error))


def _look(
    module: torch.nn.Module,
    places: Mapping[torch.nn.Module, list[str]],
    admits: Callable[[torch.nn.Module, list[str]], bool],
    call: Call | None,
) -> Found:
    """What there is in train and in eval mode, for tensors as its arguments; of a norm, the larger group.

    Raises:
        Untraceable: its forward is more than a graph.
    """
    if "forward" in vars(module):
        raise Untraceable("its forward was replaced on the object")
    plain: Any = module._own_kind.forward if isinstance(module, Fused) else type(module).forward
    args, named = call or _usual(plain)

    def admitted(path: str) -> bool:
        norm = at(module, path)
        return admits(norm, places.get(norm, [path]))

    groups: dict[Any, Group] = {}
    refused: dict[Any, tuple[fx.Node, str, str]] = {}
    for training in (True, False):
        graph = traced(module, plain, args, named, training)[0].graph
        found = Finder(module, graph, admitted).find()
        for group in found.groups:
            known = groups.get(group.norm.target)
            if known is None or len(known.members) < len(group.members):
                groups[group.norm.target] = group
        refused |= {refusal[0].target: refusal for refusal in found.refused}
    return Found(list(groups.values()), [r for path, r in refused.items() if path not in groups])


def _usual(forward: Callable[..., Any]) -> Call:
    """Tensors for all arguments that have no default."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    wanted = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (Tensor,) * len(wanted), {
        p.name: Tensor for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY
    }


def calls_of(model: torch.nn.Module, example: Call) -> dict[torch.nn.Module, Call]:
    """Run a model, which stays as it is, and return what the modules are called with that may hold groups.

    One that is called in several ways, with other constants, has the first.
    """
    calls: dict[torch.nn.Module, Call] = {}

    def note(module: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.setdefault(module, (args, named))

    with contextlib.ExitStack() as stack:
        stack.enter_context(left_alone(model))
        for module in filter(may_hold, model.modules()):
            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        stack.enter_context(torch.no_grad())
        model(*example[0], **example[1])
    return calls


def may_hold(module: torch.nn.Module) -> bool:
    """Whether a module's forward may call norms that it holds."""
    if isinstance(module, (Component, torch.jit.ScriptModule, fx.GraphModule)) or parametrize.is_parametrized(module):
        return False
    if type(module) in (torch.nn.ModuleList, torch.nn.ModuleDict) or type(module).__module__.startswith("pellucid."):
        return False
    return any(map(_is_norm, _held(module)))


def _tempts(module: torch.nn.Module) -> bool:
    """Whether there is more beside the norms that one might want to be fused."""
    kinds: tuple[Any, ...] = (torch.nn.Dropout, *LAYERS, *CONVOLUTIONS)
    return any(isinstance(layer, kinds) for layer in _held(module))


def _held(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The modules that one holds, by itself or in lists."""
    for child in module.children():
        if isinstance(child, (torch.nn.ModuleList, torch.nn.ModuleDict)):
            yield from _held(child)
        else:
            yield child
