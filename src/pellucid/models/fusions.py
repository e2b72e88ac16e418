"""Layers that stand side by side in the forward of a module, and its arithmetic: found on its graph, computed as one.

A module that has such changes its class and nothing else: to one of the same name whose forward calls
`pellucid.nn.swapped.fused` where its own calls the layers one by one, and a `pellucid.nn.swapped.expression` for its
arithmetic. Where that cannot be known to be the same, the module's own forward runs.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn.utils import parametrize

from pellucid.errors import naming_layer
from pellucid.keeping import Inputs, left_alone
from pellucid.kernel.backends import chosen_backend
from pellucid.models import functions, report
from pellucid.models.expressions import Piece, pieces
from pellucid.models.forward import CONSTANT, Forward, Like, Untraceable, at, is_saving_watched, modes, trace
from pellucid.models.groups import CONVOLUTIONS, Finder, Found, Group, is_norm
from pellucid.models.rewriting import Rewriting
from pellucid.nn.component import Component, watched
from pellucid.nn.swapped.exchange import parametrized
from pellucid.nn.swapped.fused import LAYERS, slower
from pellucid.nn.swapped.reclassed import Reclassed, made_of, reclassed

ITSELF = ""  # the path of a module's own arithmetic
MOST_CALLS = 256  # that are known to be faster one by one
MOST_TRACES = 16  # of one module, whose forward then runs as it is: what it reads changes at every call


# -- the module -------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """How a module's forward, ``plain``, runs for one kind of call; ``run`` is None where it runs as it is.

    ``by_shape`` says that there is a plan for each shape of the tensors; ``parts`` are its groups and expressions, and
    ``layers`` the paths of their layers.
    """

    plain: Callable[..., Any]
    forward: Forward | None = None
    run: Callable[..., Any] | None = None
    constants: tuple[Any, ...] = ()
    parts: int = 0
    layers: tuple[str, ...] = ()
    by_shape: bool = False


class Plans:
    """The plans of one module, made as calls come; copies share them, a pickle makes its own.

    Args:
        fused: what is meant, by paths in the module.
    """

    def __init__(self, fused: tuple[report.Fused, ...]) -> None:
        self.fused = fused
        self.norms = {path for group in fused if group.kind == "layers" for path in group.paths}
        self.arithmetic = any(group.kind == "operations" for group in fused)
        named = {group.before for group in fused if group.kind == "functions"}
        self.functions = bool(named)
        self.in_eval = any(instead.always for f, instead in functions.INSTEAD.items() if f.__name__ in named)
        self.known: dict[Any, Plan] = {}
        self.traces = 0
        self.one_by_one: set[Any] = set()  # calls of which every part is faster so, whatever the forward reads

    def __reduce__(self) -> Any:
        return Plans, (self.fused,)

    def __deepcopy__(self, memo: Any) -> Plans:
        return self

    def run(self, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Compute the module's forward."""
        if not self.functions or not (module.training or self.in_eval):
            return self._run(module, plain, args, named)
        with functions.Exchanged():
            return self._run(module, plain, args, named)

    def _run(self, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if (not self.norms and not self.arithmetic) or torch.nn.modules.module._has_any_global_hook():
            return plain(module, *args, **named)
        call = (plain, module.training, *_circumstances(), *map(_face, args), *map(_face, named.values()), *named)
        if call in self.one_by_one:
            return plain(module, *args, **named)
        key: Any = (module.training, modes(), *map(_sort, args))
        if named:
            key += tuple([(name, _sort(value)) for name, value in named.items()])
        plan = self.known.get(key)
        if plan is not None and plan.by_shape:
            key += _shapes(args, named)
            plan = self.known.get(key)
        if plan is None or plan.plain is not plain or (plan.forward is not None and not plan.forward.holds(module)):
            plan = self._plan(key, module, plain, args, named)
        if plan.run is None or watched(*[at(module, path) for path in plan.layers]):  # in the order of the forward
            return plain(module, *args, **named)
        given = [a for a in (*args, *named.values()) if isinstance(a, Tensor)]
        outside, slower.parts = slower.parts, 0
        try:
            result = plan.run(module, *given, *plan.constants)
            # a checkpoint's second run must keep the same as its first
            if slower.parts == plan.parts and not is_saving_watched():
                if len(self.one_by_one) >= MOST_CALLS:
                    self.one_by_one.clear()
                self.one_by_one.add(call)
            return result
        finally:
            slower.parts = outside

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
        found = look(module, forward.graph, self.norms.__contains__, self.arithmetic)
        plan = Plan(plain, forward)
        if found.groups or found.pieces:
            rewriting = Rewriting(forward.graph)
            for group in found.groups:
                group.write(rewriting)
            for piece in found.pieces:
                piece.write(rewriting, module)
            plan.run, plan.constants = rewriting.compiled(), tuple(rewriting.constants)
            plan.parts, plan.layers = len(found.groups) + len(found.pieces), tuple(found.layers)
        if shaped and not any(isinstance(part, torch.Size) for part in key):
            self.known[key] = Plan(plain, by_shape=True)
            key += _shapes(args, named)
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
        raise Untraceable(f"its forward takes an argument of type {type(other).__name__}")
    known = any(isinstance(value, (Tensor, Like)) for value in values)

    def signs(shaped: bool) -> tuple[list[Any], dict[str, Any]]:
        def sign(value: Any) -> Any:
            if not isinstance(value, (Tensor, Like)):
                return value
            return Like(value.shape) if shaped else Tensor

        return [sign(value) for value in args], {name: sign(value) for name, value in named.items()}

    try:
        return trace(module, plain, *signs(False), training), False
    except Untraceable:
        if not known:
            raise
        return trace(module, plain, *signs(True), training), True


def _shapes(args: Sequence[Any], named: Mapping[str, Any]) -> tuple[torch.Size, ...]:
    """The shapes of the tensors that a forward is called with."""
    return tuple([value.shape for value in (*args, *named.values()) if isinstance(value, Tensor)])


def _circumstances() -> tuple[Any, ...]:
    """What decides which way is faster, beside a module and what it is called with."""
    return torch.is_grad_enabled(), chosen_backend(), torch.get_num_threads(), torch.is_autocast_enabled("cpu")


def _face(value: Any) -> Any:
    """What of an argument does."""
    if type(value) in (Tensor, torch.nn.Parameter) and value.layout is torch.strided:
        return value.shape, value.stride(), value.dtype, value.device, value.requires_grad
    return _sort(value)


OTHER = "other"


def _sort(value: Any) -> Any:
    """What of an argument decides a plan."""
    if isinstance(value, (Tensor, Like)):
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
    kind: Any = module._own_kind
    if parametrize.is_parametrized(module):
        kind = parametrized(type(module), kind)
    module.__class__ = kind
    return module.__dict__.pop("_fused_plans", None)


# -- a whole model ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A module whose forward holds what may be computed as one; ``functions`` are those of torch that it calls."""

    module: torch.nn.Module
    paths: tuple[str, ...]
    found: Found
    functions: frozenset[Any] = frozenset()
    obstacle: str | None = None  # why it cannot be looked into

    def plans(self) -> Plans:
        """The plans for what was found."""
        groups = [
            report.Fused((str(group.norm.target),), group.paths, " → ".join(group.names), group.becomes)
            for group in self.found.groups
        ]
        arithmetic = [
            report.Fused((ITSELF,), piece.paths, " → ".join(piece.names(self.module)), "one pass", "operations")
            for piece in self.found.pieces
        ]
        called = [
            report.Fused((ITSELF,), (), function.__name__, functions.INSTEAD[function].becomes, "functions")
            for function in functions.INSTEAD
            if function in self.functions
        ]
        return Plans((*groups, *arithmetic, *called))


def everywhere(places: Iterable[str], inside: Iterable[str]) -> tuple[str, ...]:
    """The paths in a model of what has these paths in a module that has these places."""
    return tuple(".".join(filter(None, (place, path))) for place in places for path in inside)


def plain_of(module: torch.nn.Module) -> Any:
    """The forward of a module as it is written; None where it is not in Python."""
    return getattr(module._own_kind if isinstance(module, Fused) else type(module), "forward", None)


class Observed(NamedTuple):
    """What modules were called with, and the functions of torch that they called which pellucid would compute."""

    calls: Mapping[torch.nn.Module, Inputs]
    functions: Mapping[torch.nn.Module, set[Any]]


def candidates(
    found: Mapping[torch.nn.Module, list[str]],
    admits: Callable[[torch.nn.Module, list[str]], bool],
    observed: Observed,
) -> Iterator[Candidate]:
    """Look for what may be computed as one in all modules of a model.

    Args:
        found: the modules with their places.
        admits: takes a norm, or a module that does arithmetic itself, and its places.
        observed: what modules are called with, as far as that is known; else tensors are taken for what has no default.
    """
    for module, paths in found.items():
        plain = plain_of(module)
        called = frozenset(observed.functions.get(module, ())) | functions.named_by(plain)
        called = called if called and admits(module, paths) else frozenset()
        if not may_be_fused(module):
            if called:
                yield Candidate(module, tuple(paths), Found(), called)
            continue
        call = observed.calls.get(module)
        try:
            yield Candidate(module, tuple(paths), _look(module, found, admits, call), called)
        except Untraceable as error:
            if called or _tempts(module):
                reason = (None if call else _left_out(plain, error)) or str(error)
                yield Candidate(module, tuple(paths), Found(), called, reason if _tempts(module) else None)


def _look(
    module: torch.nn.Module,
    places: Mapping[torch.nn.Module, list[str]],
    admits: Callable[[torch.nn.Module, list[str]], bool],
    call: Inputs | None,
) -> Found:
    """What there is in train and in eval mode, for tensors as its arguments; of a norm, the larger group.

    Raises:
        Untraceable: its forward is more than a graph.
    """
    if "forward" in vars(module):
        raise Untraceable("its forward was replaced on the object")
    plain = plain_of(module)
    args, named = call or _usual(plain)

    def admitted(path: str) -> bool:
        norm = at(module, path)
        return admits(norm, places.get(norm, [path]))

    itself = admits(module, places.get(module, [ITSELF]))
    groups: dict[Any, Group] = {}
    refused: dict[Any, tuple[fx.Node, str, str]] = {}
    arithmetic: list[Piece] = []
    for training in (True, False):
        graph = traced(module, plain, args, named, training)[0].graph
        found = look(module, graph, admitted, itself)
        for group in found.groups:
            known = groups.get(group.norm.target)
            if known is None or len(known.members) < len(group.members):
                groups[group.norm.target] = group
        refused |= {refusal[0].target: refusal for refusal in found.refused}
        arithmetic = max(arithmetic, found.pieces, key=len)
    return Found(list(groups.values()), [r for path, r in refused.items() if path not in groups], arithmetic)


def look(module: torch.nn.Module, graph: fx.Graph, admits: Callable[[str], bool], arithmetic: bool) -> Found:
    """What the graph of a forward holds: groups around the norms that are meant, and arithmetic where that is."""
    finder = Finder(module, graph, admits)
    found = finder.find()
    found.pieces += pieces(module, graph, finder.taken) if arithmetic else ()
    return found


def _usual(forward: Callable[..., Any]) -> Inputs:
    """Tensors for all arguments that have no default."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    wanted = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (Tensor,) * len(wanted), {
        p.name: Tensor for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY
    }


def _left_out(forward: Callable[..., Any], error: Untraceable) -> str | None:
    """Say that a forward was run without some of its arguments, if it was and failed by itself."""
    names = [p.name for p in inspect.signature(forward).parameters.values() if p.default is None]
    if not names or error.__cause__ is None:
        return None
    return (
        f"its forward fails when it is called without {', '.join(names)}, as it was here for want of an example: "
        f"{error.__cause__}. Give swap one, verify=example"
    )


def observed(model: torch.nn.Module, example: Inputs) -> Observed:
    """Run a model, which stays as it is, and tell what those modules are called with, and call, that may be fused.

    One that is called in several ways, with other constants, has the first.
    """
    calls: dict[torch.nn.Module, Inputs] = {}
    noting = functions.Noting()

    def like(value: Any) -> Any:
        return Like(value.shape) if isinstance(value, Tensor) else value

    def begin(module: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        noting.running.append(module)
        if module not in calls:
            calls[module] = tuple(map(like, args)), {name: like(value) for name, value in named.items()}

    def end(*_: Any) -> None:
        noting.running.pop()

    with contextlib.ExitStack() as stack:
        stack.enter_context(left_alone(model))
        for module in (m for m in model.modules() if may_be_fused(m) or functions.named_by(plain_of(m))):
            stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(end, always_call=True).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(noting)
        with naming_layer(model, "swap"):
            model(*example[0], **example[1])
    return Observed(calls, noting.found)


def may_be_fused(module: torch.nn.Module) -> bool:
    """Whether a module's forward may hold what can be computed as one: norms, or arithmetic of its own."""
    if isinstance(module, (Component, torch.jit.ScriptModule, fx.GraphModule)) or parametrize.is_parametrized(module):
        return False
    if type(module).forward is torch.nn.Module.forward or type(module).__module__.startswith("pellucid."):
        return False  # what only holds others, such as a ModuleList, has no forward
    own = not type(module).__module__.startswith("torch.nn.") or made_of(module) in LAYERS
    return own or any(map(is_norm, _held(module)))


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
