"""A layer of torch.nn becomes pellucid's of the same name, and back, as the object that it is.

Both classes keep the same attributes, but for a few that pellucid's add. So a layer changes its class and nothing else:
its parameters, buffers, hooks, parametrizations, mode and whatever its user has set stay as they are, and so does
everything that refers to it: the modules that hold it, optimizers, closures.

A subclass of torch.nn's that only builds itself otherwise computes what torch.nn's does. A layer of it becomes one of
its heir: a class of the same name that inherits from it and from pellucid's class.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from pellucid import nn
from pellucid.nn.component import Component
from pellucid.nn.parametrizations import copyable
from pellucid.nn.recurrence.sequence import SequenceLayer
from pellucid.nn.swapped.reclassed import Reclassed, reclassed

Kind = type[torch.nn.Module]

# What a class may define and compute as its base does: how its objects are built, how they are shown, and what Python
# notes of a class. How they are made (__new__) is not among it: copies are made otherwise.
INERT = {"__init__", "reset_parameters", "extra_repr", "__repr__", "_get_name", "__constants__"}
INERT |= {"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__"}
INERT |= {"__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"}
INERT |= {"__static_attributes__", "__type_params__"}


def ours_of(kind: Kind) -> Kind | None:
    """Return pellucid's class for one of torch.nn, the heir of one that runs torch.nn's code; None for any other."""
    theirs = runs_as(kind)
    ours: Any = _other(theirs, torch.nn, nn)
    own: Any = kind
    return ours if ours is None or theirs is kind else _heir(own, ours)


def torchs_of(kind: Any) -> Kind | None:
    """Return torch.nn's class for a class of pellucid.nn, of an heir the class that it is made out of; else None."""
    return kind._own_kind if _is_heir(kind) else _other(kind, nn, torch.nn)


def runs_as(kind: Kind) -> Kind:
    """Return the class of torch.nn or pellucid.nn whose code the objects of a class run; itself where it has its own.

    An heir runs that of pellucid's class, a class that only builds itself otherwise that of torch.nn's.
    """
    base = base_of(kind)
    if base is None or base is kind:
        return kind
    ours = _other(base, torch.nn, nn)
    inherits = _is_heir(kind) or (ours is not None and _only_builds(kind, base, ours))
    return base if inherits else kind


def base_of(kind: Kind) -> Kind | None:
    """Return the first class that one inherits from, or is, and that both libraries have under one name."""
    if _is_heir(kind):
        return next(base for base in kind.__mro__ if _other(base, nn, torch.nn))
    return next((base for base in kind.__mro__ if _other(base, nn, torch.nn) or _other(base, torch.nn, nn)), None)


def _only_builds(kind: Kind, theirs: Kind, ours: Any) -> bool:
    """Whether all that a class has of its own, beneath torch.nn's, is how it is built and shown."""
    between = [base for base in kind.__mro__ if base not in theirs.__mro__]
    own = [(name, value) for base in between for name, value in vars(base).items() if name not in INERT]
    return type(kind) is type and not any(_decides(name, value, theirs, ours) for name, value in own)


def _decides(name: str, value: Any, theirs: Kind, ours: Any) -> bool:
    """Whether a class that defines this may compute something else than its base, or than pellucid's class needs."""
    described = any(hasattr(type(value), method) for method in ("__get__", "__set__", "__delete__"))
    if name.startswith("__") or callable(value) or described or name in ours.added:
        return True
    return inspect.getattr_static(ours, name, None) is not inspect.getattr_static(theirs, name, None)


@functools.cache
def _heir(kind: Any, ours: Any) -> Any:
    """The class of the same name whose objects are those of ``kind`` and compute by pellucid's class."""
    theirs = torchs_of(ours)
    assert theirs is not None
    first = (kind, ours) if issubclass(ours, theirs) else (ours, kind)  # pellucid's forward before torch.nn's
    return reclassed(kind, (Heir, *first), _blank)


class Heir(Reclassed):
    """A layer of a class that only builds itself otherwise, and computes by pellucid's class."""


def _is_heir(kind: Any) -> bool:
    return Heir in kind.__bases__


def _blank(kind: Any) -> Any:
    """An empty object of a class's heir; of the class itself, if by now its own code decides."""
    return object.__new__(ours_of(kind) or kind)


def _other(kind: Kind, space: Any, other: Any) -> Kind | None:
    """The class of the same name in the other namespace, for a class that stands in the first."""
    name = kind.__name__
    found = vars(other).get(name)
    return found if vars(space).get(name) is kind and isinstance(found, type) and found is not kind else None


def kind_of(layer: torch.nn.Module) -> Kind:
    """Return the class of a layer, beneath the one that torch gives to a parametrized layer."""
    return type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)


def obstacle(layer: torch.nn.Module) -> str | None:
    """Say why a layer cannot become the other library's layer of its name; None if it can."""
    kind = kind_of(layer)
    ours, theirs = ours_of(kind), torchs_of(kind)
    if theirs is not None:
        beyond = layer.beyond_torch
        return f"{name_of(runs_as(theirs))} has no {beyond}" if beyond else _changed(layer, kind, theirs)
    if ours is not None:
        return _changed(layer, kind, ours)
    if isinstance(layer, torch.jit.ScriptModule):
        return "a TorchScript module, whose code is fixed"
    if isinstance(layer, LazyModuleMixin):
        return "its parameters have no shape yet: call the model once, then swap"
    base = base_of(kind)
    if base is not None:
        return f"a subclass of {name_of(base)}, whose own code decides what it does"
    if kind.__module__.startswith("torch.nn."):
        return "pellucid has no layer of its own for it"
    if kind.__module__.startswith("pellucid."):
        return "torch.nn has no such layer"
    return "not a layer of torch.nn"


def _changed(layer: torch.nn.Module, kind: Any, other: Any) -> str | None:
    """Say what its user has set on a layer that the other class needs for itself."""
    own = vars(layer).keys() - set(getattr(kind, "added", ()))
    methods = sorted(name for name in own if callable(getattr(kind, name, None)))
    if methods:
        return f"its method {methods[0]} was replaced on the object: the class no longer decides what it does"
    added = set(getattr(other, "added", ())) - set(getattr(kind, "added", ()))
    taken = sorted(own & (added | (set(dir(other)) - set(dir(kind)))))
    return f"its attribute {taken[0]!r}, set on the object, is one that {name_of(other)} needs" if taken else None


def exchange(layer: torch.nn.Module) -> None:
    """Let a layer without an `obstacle` become the other library's layer of its name."""
    kind: Any = kind_of(layer)
    ours = ours_of(kind)
    other: Any = ours or torchs_of(kind)
    computed = parametrize.is_parametrized(layer)
    layer.__class__ = parametrized(type(layer), other) if computed else other
    if ours:
        other._prepare(layer)
    else:
        for name in kind.added:
            layer.__dict__.pop(name, None)


def parametrized(kind: Kind, base: Kind) -> Kind:
    """Build the class of a parametrized layer, which has the computed weights as properties, on another base."""
    own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__", "__doc__")}
    return type(f"Parametrized{base.__name__}", (base,), own)


def has_twin(layer: torch.nn.Module) -> bool:
    """Whether a layer runs torch.nn's code and pellucid has its own for it, with a formula."""
    ours = ours_of(kind_of(layer))
    return ours is not None and issubclass(ours, (SequenceLayer, Component)) and obstacle(layer) is None


def twin_of(layer: torch.nn.Module) -> torch.nn.Module | None:
    """Copy a layer of torch.nn as pellucid's; None where there is none, or the layer is not quite torch.nn's."""
    if not has_twin(layer):
        return None
    twin = type(layer).__new__(type(layer))
    twin.__dict__ = dict(vars(layer))
    exchange(twin)
    if parametrize.is_parametrized(twin):
        copyable(twin)
    computed = [value for value in vars(layer).values() if isinstance(value, Tensor) and value.grad_fn is not None]
    return copy.deepcopy(twin, {id(value): value.detach().clone() for value in computed})  # deepcopy refuses these


def name_of(kind: Kind) -> str:
    """Write a class as its user knows it."""
    if vars(torch.nn).get(kind.__name__) is kind:
        return f"torch.nn.{kind.__name__}"
    if vars(nn).get(kind.__name__) is kind:
        return f"pellucid.nn.{kind.__name__}"
    own = f"{kind.__module__}.{kind.__qualname__}"
    return f"{own}, computed by {name_of(runs_as(kind))}" if _is_heir(kind) else own
