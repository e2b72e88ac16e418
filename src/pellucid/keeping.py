"""Leaves a model as it was: numbers that it keeps, attributes, modes, and everything that draws."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.nn.dropout.drawing import Drawing

HELD = ("_parameters", "_buffers", "_modules")  # what a module changes in place when one of these is assigned to
MISSING = object()


class Draws:
    """Where every source of random numbers stands, to be set back to it."""

    def __init__(self, model: torch.nn.Module) -> None:
        devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
        self._cuda = {device: torch.cuda.get_rng_state(device) for device in devices}
        self._state = torch.get_rng_state(), random.getstate(), np.random.get_state()
        generators = [value for module in model.modules() for value in vars(module).values()]
        self._own = {g: g.get_state() for g in generators if isinstance(g, torch.Generator)}

    def again(self) -> None:
        """Let what was drawn since be drawn again."""
        torch.set_rng_state(self._state[0])
        random.setstate(self._state[1])
        np.random.set_state(self._state[2])
        for device, state in self._cuda.items():
            torch.cuda.set_rng_state(state, device)
        for generator, state in self._own.items():
            generator.set_state(state)


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
def left_alone(model: torch.nn.Module, draws: Draws | None = None) -> Iterator[None]:
    """Run a model so that it is afterwards what it was: buffers, attributes, modes, and all that draws.

    Args:
        model: what runs.
        draws: where the draws inside start; by default where they stand.
    """
    here = Draws(model)
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    before += [(held[name], dict(held[name])) for held, _ in list(before) for name in HELD if name in held]
    kept = [(value, value.detach().clone()) for _, found in before for value in found.values() if _plain(value)]
    try:
        with contextlib.ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, Drawing):
                    stack.enter_context(module.rehearsal())
            if draws is not None:
                draws.again()
            yield
    finally:
        here.again()
        with torch.no_grad():
            for attributes, found in before:
                _restore(attributes, found)
            for value, numbers in kept:
                if not torch.equal(value.detach(), numbers):
                    value.copy_(numbers)


def _plain(value: Any) -> bool:
    """Whether a value is a tensor that a module keeps beside its parameters."""
    return isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter) and value.device.type != "meta"


def _restore(attributes: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [name for name in attributes if name not in before]:
        del attributes[name]
    for name, value in before.items():
        if attributes.get(name, MISSING) is not value:
            attributes[name] = value
