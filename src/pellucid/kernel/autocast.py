"""Autocast: a layer casts its tensors once, at its door, and its program runs as it was traced."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

# Asked once: a compiler of torch 2.11 cannot ask.
_AVAILABLE = frozenset(name for name in ("cpu", "cuda", "xpu", "mps", "hpu") if torch.amp.is_autocast_available(name))


def no_autocast(x: Tensor) -> Any:
    """The layer has cast its tensors already; a traced program has no casts of its own inside."""
    return contextlib.nullcontext() if autocast_dtype(x) is None else torch.autocast(x.device.type, enabled=False)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that autocast asks for on the device of ``x``, None where it is off."""
    device = x.device.type
    if device not in _AVAILABLE or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
