"""Leaves a model, and what it is given, as it was: numbers that it keeps, attributes, modes, and all that draws."""

from __future__ import annotations

import contextlib
import copy
import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

HELD = ("_parameters", "_buffers", "_modules")  # what a module changes in place when one of these is assigned to
MISSING = object()
Inputs = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of a forward


class RandomState:
    """Where every source of random numbers stands, to be set back to it."""

    def __init__(self, model: torch.nn.Module) -> None:
        devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
        values = [value for module in model.modules() for value in vars(module).values()]
        generators = {value for value in values if isinstance(value, torch.Generator)}
        sources: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
            (torch.get_rng_state, torch.set_rng_state),
            (random.getstate, random.setstate),
            (np.random.get_state, np.random.set_state),
            *((partial(torch.cuda.get_rng_state, d), partial(torch.cuda.set_rng_state, device=d)) for d in devices),
            *((g.get_state, g.set_state) for g in generators),
        ]
        self._sources = [(get, put, get()) for get, put in sources]

    def moved(self) -> bool:
        """Whether anything was drawn since."""
        return not all(_equal(get(), state) for get, _, state in self._sources)

    def again(self) -> None:
        """Let what was drawn since be drawn again."""
        for _, put, state in self._sources:
            put(state)


def _equal(now: Any, before: Any) -> bool:
    """Whether two states, made of tuples of numbers and arrays, are the same."""
    return all(map(_equal, now, before)) if isinstance(now, tuple) else np.array_equal(now, before)


def seed_all(seed: int) -> None:
    """Let torch, NumPy and Python draw from a seed."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextlib.contextmanager
def layer_by_layer() -> Iterator[None]:
    """Let every layer be called eagerly, and attention with the layers inside it, so that hooks see them all."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it computes whole blocks without calling their layers
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def left_alone(model: torch.nn.Module, draws: RandomState | None = None) -> Iterator[None]:
    """Run a model so that it is afterwards what it was: buffers, attributes, modes, and all that draws.

    Args:
        model: what runs.
        draws: where the draws inside start; by default where they stand.
    """
    here, training = RandomState(model), model.training
    before: list[tuple[Any, Any]] = [(vars(module), dict(vars(module))) for module in model.modules()]
    # hooks too, which a model may give itself when it first runs, together with an attribute that says so
    before += [(value, copy.copy(value)) for _, held in list(before) for value in held.values() if _collects(value)]
    tables = [found for _, found in before if isinstance(found, dict)]
    kept = [(value, value.detach().clone()) for found in tables for value in found.values() if _plain(value)]
    try:
        if draws is not None:
            draws.again()
        yield
    finally:
        here.again()
        if model.training is not training:
            model.train(training)  # which a model may have a method of its own for
        with torch.no_grad():
            for now, found in before:
                _restore(now, found)
            for value, numbers in kept:
                if not torch.equal(value.detach(), numbers):
                    value.copy_(numbers)


def _plain(value: Any) -> bool:
    """Whether a value is a tensor that a module keeps beside its parameters."""
    return isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter) and value.device.type != "meta"


def _collects(value: Any) -> bool:
    """Whether a value of a module's is one of Python's collections that change in place."""
    return type(value) in (dict, OrderedDict, defaultdict, list)


def _restore(now: Any, before: Any) -> None:
    if isinstance(now, list):
        if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
            now[:] = before
        return
    for name in [name for name in now if name not in before]:
        del now[name]
    for name, value in before.items():
        if now.get(name, MISSING) is not value:
            now[name] = value


def copied(value: Any) -> Any:
    """Copy the tensors of a structure, one that occurs twice once, so that a model may write into them."""
    made: dict[int, Tensor] = {}

    def copy(inner: Any) -> Any:
        if not isinstance(inner, Tensor):
            return inner
        if id(inner) not in made:
            made[id(inner)] = inner.detach().clone().requires_grad_(inner.requires_grad)
        return made[id(inner)]

    return pytree.tree_map(copy, value)


def refuse_lazy(model: torch.nn.Module, function: str) -> None:
    """Refuse a model whose parameters have no shape yet.

    Raises:
        TypeError: it has such parameters.
    """
    lazy = (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(value, lazy):
            raise TypeError(
                f"{function}: {name!r} of {type(model).__name__} has no shape yet, and the run "
                f"that gives it one would change the model. Run the model once, model(x), then {function} it."
            )
