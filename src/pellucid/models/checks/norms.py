"""Norms that average one value, or two: whatever they read, what they return says nothing of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from pellucid.models.checks.findings import Severity
from pellucid.models.checks.mistakes import Found
from pellucid.models.checks.trial import Call, Run


def mistakes(train: Run) -> Iterator[Found]:
    """Tell of norms over one value, and over two, in the order in which they were called."""
    seen: set[nn.Module] = set()
    for call in train.begun:
        if call.layer in seen or not call.read:
            continue
        found = averaged(call, call.read[0])
        if found is not None and found[0] <= 2:
            seen.add(call.layer)
            count, kind = found
            severity: Severity = "wrong" if count == 1 else "suspect"
            numbers = {"values": count}
            yield Found(
                "norm-of-one" if count == 1 else "norm-of-two",
                call.layer,
                call.path,
                severity,
                numbers,
                variant=kind,
                shape=tuple(call.read[0].shape),
            )


def averaged(call: Call, x: Tensor) -> tuple[int, str] | None:
    """Return over how many values a norm averages, and its kind; None for another layer, or in eval."""
    layer, sizes = call.layer, x.shape
    if isinstance(layer, _BatchNorm):
        channels = sizes[1] if x.ndim > 1 else 0
        return (x.numel() // channels, "batch") if channels and (call.training or layer.running_mean is None) else None
    if isinstance(layer, _InstanceNorm):
        kind = type(layer).__name__
        count = int(kind[-2]) if kind.endswith(("1d", "2d", "3d")) else x.ndim - 2
        uses = call.training or not layer.track_running_stats
        return (math.prod(sizes[-count:]), "instance") if uses else None
    if isinstance(layer, nn.GroupNorm):
        return (math.prod(sizes[1:]) // layer.num_groups, "group") if x.ndim > 1 else None
    if isinstance(layer, nn.LayerNorm):
        return math.prod(layer.normalized_shape), "layer"
    return None
