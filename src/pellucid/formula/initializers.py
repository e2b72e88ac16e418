"""How a parameter starts: functions that fill a tensor in place, in the form of ``torch.nn.init``."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.nn import init

zeros: Callable[[torch.Tensor], torch.Tensor] = init.zeros_
ones: Callable[[torch.Tensor], torch.Tensor] = init.ones_
orthogonal: Callable[[torch.Tensor], torch.Tensor] = init.orthogonal_


def constant(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Start every entry at ``value``."""
    return functools.partial(init.constant_, val=value)


def uniform(tensor: torch.Tensor) -> torch.Tensor:
    """Start uniformly between -1/√n and 1/√n, n the size of the first axis (what a matrix takes in)."""
    bound = 1 / max(1, tensor.shape[0] if tensor.dim() else 1) ** 0.5
    return init.uniform_(tensor, -bound, bound)
