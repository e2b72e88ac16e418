"""A layer of torch.nn becomes pellucid's of the same name, and back, as the object that it is.

Both classes keep the same attributes, but for a few that pellucid's add. So a layer changes its class and nothing else:
its parameters, buffers, hooks, parametrizations, mode and whatever its user has set stay as they are, and so does
everything that refers to it: the modules that hold it, optimizers, closures.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from pellucid import nn
from pellucid.nn.parametrizations import copyable

Kind = type[torch.nn.Module]


def ours_of(kind: Kind) -> Kind | None:
    """Return pellucid's class for a class of torch.nn; None where there is none."""
    return _other(kind, torch.nn, nn)


def torchs_of(kind: Kind) -> Kind | None:
    """Return torch.nn's class for a class of pellucid.nn; None where there is none."""
    return _other(kind, nn, torch.nn)


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
        return f"torch.nn.{theirs.__name__} has no {beyond}" if beyond else _changed(layer, kind, theirs)
    if ours is not None:
        return _changed(layer, kind, ours)
    if isinstance(layer, torch.jit.ScriptModule):
        return "a TorchScript module, whose code is fixed"
    if isinstance(layer, LazyModuleMixin):
        return "its parameters have no shape yet: call the model once, then swap"
    base = next((base for base in kind.__mro__[1:] if ours_of(base) or torchs_of(base)), None)
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
    layer.__class__ = _parametrized(type(layer), other) if computed else other
    if ours:
        other._prepare(layer)
    else:
        for name in kind.added:
            layer.__dict__.pop(name, None)


def _parametrized(kind: Kind, base: Kind) -> Kind:
    """Build the class of a parametrized layer, which has the computed weights as properties, on another base."""
    own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__", "__doc__")}
    return type(f"Parametrized{base.__name__}", (base,), own)


def has_twin(layer: torch.nn.Module) -> bool:
    """Whether a layer is torch.nn's and pellucid has one of its own for it."""
    return ours_of(kind_of(layer)) is not None and obstacle(layer) is None


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
    return f"{kind.__module__}.{kind.__qualname__}"
