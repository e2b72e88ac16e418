"""One direction of a nest's program, bound to axes of certain sizes: what its outputs are, in whatever language."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pellucid.kernel.language.values import Value
from pellucid.kernel.random import uniform
from pellucid.kernel.rows.nest import Nest, along


class Draws(NamedTuple):
    """The sequence of a call's random numbers, and the first element of every random operand in it."""

    seed: int | Tensor
    stream: int
    offsets: Mapping[str, int]

    @classmethod
    def of(cls, seed: int | Tensor, stream: int | Tensor, offsets: Mapping[str, int]) -> Draws:
        """The draws of a seed and a stream; a seed on a GPU stays there, for to fetch it is to wait."""
        on_gpu = isinstance(seed, Tensor) and seed.is_cuda
        return cls(seed if on_gpu else int(seed), int(stream), offsets)

    def tensor(self, name: str, shape: Sequence[int], device: torch.device | None = None) -> Tensor:
        """The numbers of one random operand."""
        return uniform(shape, self.seed, stream=self.stream, offset=self.offsets[name], device=device)


class Direction:
    """One direction of a program, for axes of certain sizes.

    ``views`` are the distances of an operand's entries along every axis, ``first`` is the operand of all axes. Totals
    that are ``lent`` lie in more memory than their own.
    """

    lent = False
    text: str  # of the kernel, once its slots are known

    def __init__(
        self, nest: Nest, sizes: Sequence[int], real: torch.dtype, views: Mapping[str, Sequence[int]], first: str
    ) -> None:
        self.nest, self.sizes, self.real, self.views = nest, tuple(sizes), real, views
        self.counts: dict[str, int] = {}  # entries of an output
        self.starts: dict[str, int] = {}  # of the totals, which stand one after the other
        self.strides: dict[str, Sequence[int]] = {}
        self.total = 0
        for name, value in nest.outputs.items():
            strides, self.counts[name] = self.contiguous(value)
            of_tensor = name.removesuffix("_gradient")
            self.strides[name] = views[of_tensor] if of_tensor in views and of_tensor != first else strides
        for name in nest.totals:
            self.starts[name] = self.total
            self.total += self.counts[name]

    def dtype(self, name: str) -> torch.dtype:
        """The type of an output in memory."""
        storage = self.nest.storage[name]
        return self.real if storage == "real" else getattr(torch, storage)

    def contiguous(self, value: Value) -> tuple[list[int], int]:
        """The distances of a value's entries, side by side, and how many there are."""
        sizes, last = self.sizes, len(self.sizes) - 1
        strides, count = [0] * len(sizes), 1
        for axis in sorted(along(value, last), reverse=True):
            strides[axis] = count
            count *= sizes[axis] if axis != last or self.nest.columns is None else value.width
        return strides, count

    def slots(self, placed: Mapping[str, int], starts: Mapping[str, int]) -> Any:
        """What `run` is given: where operands lie, in which tensors of a call, or from where in the rest."""
        raise NotImplementedError

    def run(
        self, slots: Any, tensors: Sequence[Tensor], rest: Tensor, numbers: array[float], draws: Draws | None
    ) -> list[Tensor]:
        """Run on tensors, and on what lies in the rest; return the totals, flat."""
        raise NotImplementedError
