"""What the machine can do, measured, and the least time that it needs for a training step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pellucid
from pellucid.explanation.cost import count

PRODUCT = 2048  # rows and columns of the matrices whose product is timed
COPIED = 2**26  # entries of the buffer whose copy is timed: 256 MiB, more than any cache
REPEATS = 20  # the best counts: a rate is what the machine can do, not what it did beside something else


@dataclass(frozen=True)
class Rates:
    """Measured in float32 with the threads of the run: FLOPs of ``torch.mm`` and bytes of a copy, a second.

    A copy of N bytes reads N and writes N: 2·N bytes.
    """

    flops: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """What a training step cannot do without."""

    flops: int
    bytes: int

    def seconds(self, rates: Rates) -> float:
        """The limit: the larger of FLOPs over the matrix-product rate and bytes over the copy rate."""
        return max(self.flops / rates.flops, self.bytes / rates.bytes)


def measure_rates(device: str) -> Rates:
    """Time a large matrix product and a copy between two buffers that have been touched."""
    a, b = torch.randn(2, PRODUCT, PRODUCT, device=device)
    product = torch.empty_like(a)
    source, target = torch.ones(COPIED, device=device), torch.zeros(COPIED, device=device)
    return Rates(
        flops=2 * PRODUCT**3 / _best(lambda: torch.mm(a, b, out=product), device),
        bytes=2 * 4 * COPIED / _best(lambda: target.copy_(source), device),
    )


def _best(run: Callable[[], Any], device: str) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return min(once() for _ in range(REPEATS))


def work(layer: Any, x: Tensor) -> Work:
    """Count forward and backward of a recurrent layer of pellucid's.

    FLOPs: 3 × 2 × the multiply-accumulates of forward's matrix products. Each product A·B of forward needs two of
    the same size in backward, for the gradients of A and of B. What is done entry by entry is not counted.

    Bytes: 3 × the entries of the input, of the output of every level and of the parameters: each is read or written
    in forward, read again in backward, and has a gradient.

    Args:
        layer: one input or several, any number of levels and directions.
        x: (time, batch, features).
    """
    with torch.no_grad(), pellucid.backend("naive"):
        macs = count(layer, [x[:1, :1]]).macs * x.shape[0] * x.shape[1]
        width = layer(x[:1, :1])[0].shape[-1]
    entries = x.numel() + layer.num_layers * x.shape[0] * x.shape[1] * width
    entries += sum(p.numel() for p in layer.parameters())
    return Work(flops=3 * 2 * macs, bytes=3 * entries * x.element_size())
