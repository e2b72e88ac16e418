"""What the machine can do, measured, and the least time that it needs for a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pellucid
from pellucid.explanation.cost import count
from pellucid.timing import clock

PRODUCT = 2048  # rows and columns of the matrices whose product is timed
ON_GPU = 4  # times as many there: fewer leave multiprocessors idle
COPIED = 2**28  # bytes of the buffer whose copy is timed: 256 MiB, more than any cache
CALLS = {"cpu": 1, "cuda": 10}  # of a sample: on a GPU the next call is launched while one runs
REPEATS = 20  # the best counts: a rate is what the machine can do, not what it did beside something else


@dataclass(frozen=True)
class Rates:
    """Measured with the threads of the run: FLOPs of ``torch.mm`` in a type and bytes of a copy, a second.

    A copy of N bytes reads N and writes N: 2·N bytes.
    """

    flops: float
    bytes: float
    dtype: str = "float32"


@dataclass(frozen=True)
class Work:
    """What a training step cannot do without."""

    flops: int
    bytes: int

    def seconds(self, rates: Rates) -> float:
        """The limit: the larger of FLOPs over the matrix-product rate and bytes over the copy rate."""
        return max(self.flops / rates.flops, self.bytes / rates.bytes)


def measure_rates(device: str, dtype: torch.dtype = torch.float32) -> Rates:
    """Time a large matrix product and a copy between two buffers that have been touched."""
    size = PRODUCT * (ON_GPU if device == "cuda" else 1)
    a, b = torch.randn((2, size, size), device=device, dtype=dtype)
    product = torch.empty_like(a)
    copied = COPIED // dtype.itemsize
    source, target = (fill(copied, device=device, dtype=dtype) for fill in (torch.ones, torch.zeros))

    def best(run: Callable[[], Any]) -> float:
        run()
        return min(clock(run, device, CALLS[device]) for _ in range(REPEATS))

    return Rates(
        flops=2 * size**3 / best(lambda: torch.mm(a, b, out=product)),
        bytes=2 * source.nbytes / best(lambda: target.copy_(source)),
        dtype=str(dtype).removeprefix("torch."),
    )


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
