"""What training keeps for eval: the running statistics, batch after batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pellucid import nn
from pellucid.explanation.page.normalization.layout import Layout
from pellucid.nn.normalization.batch_norm import Remembering

BATCHES = 6


def kept_statistics(layout: Layout, layer: Any, own: str) -> dict[str, Any] | None:
    """Train on some batches and return what the running statistics were before and after each.

    The first batch is the input, the others are drawn about its mean and deviation. A layer without running statistics
    of its own lends its place to a new BatchNorm. There are no batches where none can be learned from, with a single
    number per channel; nothing is kept by the general member, and by a BatchNorm that was told so.
    """
    tracks = isinstance(layer, Remembering) and layer.running_mean is not None
    if layout.channel is None or (own == "batch" and not tracks):
        return None
    instance = own == "instance" and tracks
    shown = layout.shown[layout.channel]
    rows = _rows(layout, instance)[..., :shown, :]
    stays = rows.shape[-1] < 2 or (instance and (layout.real is not None or layer.momentum is None))
    kept = (_new(nn.InstanceNorm1d, shown) if instance else _new(nn.BatchNorm1d, shown)).train()
    if tracks:
        kept.momentum = layer.momentum
        for name in ("running_mean", "running_var"):
            value = getattr(layer, name)
            if value is not None:
                setattr(kept, name, value.detach().cpu().double()[:shown].clone())
        if layer.num_batches_tracked is not None:
            kept.num_batches_tracked = layer.num_batches_tracked.cpu().clone()
    start = int(kept.num_batches_tracked)
    found: dict[str, list[Tensor]] = {"mean": [], "var": [], "means": [kept.running_mean.clone()]}
    found["vars"] = [kept.running_var.clone()]
    generator = torch.Generator().manual_seed(0)
    for batch in () if stays else (rows, *(_about(rows, generator) for _ in range(BATCHES - 1))):
        kept(batch if instance else batch[0].T)
        found["mean"].append(batch.mean(-1).mean(0))
        found["var"].append(batch.var(-1).mean(0))
        found["means"].append(kept.running_mean.clone())
        found["vars"].append(kept.running_var.clone())
    facts = {"kind": "instance" if instance else "batch", "momentum": kept.momentum, "tracked": start, "own": tracks}
    return facts | {name: torch.stack(values) if values else rows.new_zeros(0, shown) for name, values in found.items()}


def _rows(layout: Layout, instance: bool) -> Tensor:
    """The real numbers of every channel that one average takes: (samples, channels, numbers), one sample of a batch."""
    channel = layout.channel
    assert channel is not None
    moved = layout.x.movedim(channel, 1)
    if instance:
        return moved.flatten(2)
    moved = moved.transpose(0, 1).flatten(1)
    if layout.real is not None:
        real = layout.real.movedim(channel, 1).flatten()
        moved = moved[:, real]
    return moved[None]


def _about(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Draw another batch of the same kind, its mean somewhat apart."""
    deviation = rows.std(-1, keepdim=True)
    drawn = torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
    moved = torch.randn((rows.shape[1], 1), generator=generator, dtype=rows.dtype)
    return rows.mean(-1, keepdim=True) + deviation * (drawn + moved / 2)


def _new(kind: Any, channels: int) -> Any:
    return kind(channels, affine=False, track_running_stats=True).double()
