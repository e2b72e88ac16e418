"""Units that no input wakes, and units that have reached the ends of their activation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.explanation.model.axes import CHANNEL_FIRST, SPATIAL
from pellucid.models.checks.mistakes import Found
from pellucid.models.checks.samples import is_recurrent
from pellucid.models.checks.trial import Operation, Run

RELU = frozenset({F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
TANH = frozenset({torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_})
SIGMOID = frozenset({torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_})
ACTIVATIONS = RELU | TANH | SIGMOID
OBSERVED = 32  # values of a unit from which on it is judged
FLAT = 0.99  # of tanh; its slope is below 0.02 there. For a sigmoid, as near to its ends, below 0.01
MOST, HALF = 0.9, 0.5  # shares from which on it is wrong, and suspect


def mistakes(base: Run) -> Iterator[Found]:
    """Tell of ReLUs that are 0 for all inputs, and of tanh and sigmoid where they are flat."""
    seen: set[tuple[str, Any]] = set()
    for operation in base.operations:
        y = operation.result
        kind = _kind(operation.function)
        if kind is None or not isinstance(y, Tensor) or not y.is_floating_point() or (operation.path, kind) in seen:
            continue
        found = _dead(operation, y) if kind == "relu" else _flat(operation.layer, operation.path, [y], kind, base)
        if found is not None:
            seen.add((operation.path, kind))
            yield found
    for call in base.calls:
        if is_recurrent(call.layer) and getattr(call.layer, "mode", "") in ("RNN_TANH", "LSTM", "GRU"):
            found = _flat(call.layer, call.path, call.given[:1], "recurrence", base)
            if found is not None and (call.path, "recurrence") not in seen:
                seen.add((call.path, "recurrence"))
                yield found


def _kind(function: Any) -> str | None:
    kinds = (("relu", RELU), ("tanh", TANH), ("sigmoid", SIGMOID))
    return next((name for name, functions in kinds if function in functions), None)


def _dead(operation: Operation, y: Tensor) -> Found | None:
    if y.ndim < 2:
        return None
    axis = 1 if y.ndim > 3 or _channel_first(operation, y) else -1
    units = y.movedim(axis, 0).flatten(1)
    if units.shape[1] < OBSERVED:
        return None
    dead = int((units == 0).all(1).sum())
    share = dead / len(units)
    if share < HALF:
        return None
    severity: Any = "wrong" if share >= MOST else "suspect"
    numbers = {"dead": dead, "units": len(units), "share": share, "observed": units.shape[1]}
    return Found("dead-units", operation.layer, operation.path, severity, numbers)


def _channel_first(operation: Operation, y: Tensor) -> bool:
    """Whether a convolution or the like has just made a tensor of this shape."""
    after = operation.after
    return (
        after is not None
        and isinstance(after.layer, (*SPATIAL, *CHANNEL_FIRST))
        and any(t.shape == y.shape for t in after.given)
    )


def _flat(layer: nn.Module, path: str, found: Sequence[Tensor], kind: str, base: Run) -> Found | None:
    if not found or found[0].numel() < OBSERVED:
        return None
    y = found[0].float()
    low, high = (1 - FLAT, FLAT) if kind == "sigmoid" else (-FLAT, FLAT)
    share = float(((y < low) | (y > high)).double().mean())
    if share < HALF:
        return None
    is_result = any(t.shape == y.shape and torch.equal(t.detach().float(), y) for t in base.outputs)
    severity: Any = "suspect" if share < MOST or kind == "sigmoid" or is_result else "wrong"
    return Found("saturated-units", layer, path, severity, {"share": share, "entries": y.numel()}, variant=kind)
