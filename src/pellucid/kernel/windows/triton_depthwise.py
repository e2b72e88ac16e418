"""Convolution of every channel by itself along one axis, by the Triton kernels of `depthwise_kernels.py`.

It moves numbers and computes little, so the kernels are laid out for the memory: forward reads x and writes y once;
backward reads x and dy once and writes dx, and leaves sums of parts for the gradients of weight and bias, which are
added up in a fixed order. A dense convolution stays with torch.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pellucid.kernel import gpu
from pellucid.kernel.backends import warn_of_fallback
from pellucid.kernel.build import BuildError
from pellucid.kernel.choice import remembered
from pellucid.kernel.language.text_triton import power
from pellucid.kernel.tensors import language
from pellucid.kernel.windows.by_torch import ByTorch
from pellucid.kernel.windows.window import Geometry

TITLE = "a depthwise convolution"  # of a warning
VECTOR = 16  # bytes that a thread reads at once
WARP, MOST_WARPS = 32, 4
MOST_UNROLLED = 32  # taps; more are a loop
CHUNK = 8  # taps of a turn of that loop: a multiple of every vector's entries
REGISTERS, MOST_EACH = 96, 8  # of a thread: numbers, and groups
SIDE, SIDE_WITH_SUMS = 4, 4  # steps of a group of few taps where channels lie side by side; fewer of many
ENOUGH = 528  # programs: four for every multiprocessor of a large GPU
PARTED = 8192  # programs with sums, which go on with the next unit until their share is done
LEAST_SHARE = 4  # units, so that the sums at the end are little beside them
PART_OF_INPUT = 32  # all parts take no more than such a part of the input's bytes
ADDED_ROWS, ADDED_COLUMNS = 16, 64


def asked(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether the kernels are to convolve: every channel by itself along one axis, on a GPU or where Triton is forced.

    Args:
        x: (batch, channels, length).
        weight: (out channels, 1, kernel).
        groups: of channels.
    """
    return isinstance(x, Tensor) and language(x, weight) == "triton" and suits(x, weight, groups)


def suits(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether every channel is convolved by itself along one axis."""
    return x.dim() == weight.dim() == 3 and 1 < groups == x.shape[1] and weight.shape[1] == 1


def bound(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Depthwise | None:
    """The kernels for tensors of these shapes, remembered; None, perhaps with a warning, where torch has to do it."""
    if weight.dtype != x.dtype or (bias is not None and (bias.dtype != x.dtype or bias.device != x.device)):
        return None
    key = (x.shape, x.stride(), x.dtype, x.device, x.data_ptr() % VECTOR, weight.shape, geometry)
    kernel = remembered(_bound, key, lambda: _try_to_bind(x, weight, geometry))
    return None if kernel is None or kernel.given_up else kernel


_bound: dict[Any, Depthwise | None] = {}


def _try_to_bind(x: Tensor, weight: Tensor, geometry: Geometry) -> Depthwise | None:
    if min(geometry.results(x.shape[2:])) <= 0:
        return None
    if weight.shape[0] % x.shape[1] or weight.shape[2] != geometry.kernel[0]:
        return None
    try:
        gpu.check(x.device.type)
    except BuildError as error:
        warn_of_fallback(TITLE, error)
        return None
    return Depthwise(x, weight, geometry)


class Tile(NamedTuple):
    """How work is cut: a program has some channels and some groups of neighbouring steps.

    Attributes:
        side: steps of a group.
        rows: channels.
        steps: groups.
        warps: of a program.
        tiles: of channels.
        spans: tiles along time.
    """

    side: int
    rows: int
    steps: int
    warps: int
    tiles: int
    spans: int


class Call(NamedTuple):
    """What a launch has beside tensors: the kernel, its programs, the numbers behind the tensors, constants, warps."""

    name: str
    grid: tuple[int, ...]
    numbers: tuple[int, ...]
    constants: dict[str, Any]
    warps: int


class Depthwise(ByTorch):
    """The kernels for tensors of certain shapes.

    Args:
        x: (batch, channels, length). Time or the channels lie side by side; any other layout is copied.
        weight: (out channels, 1, kernel); the out channels of a channel follow each other.
        geometry: how the windows lie.
    """

    given_up = False  # they turned out not to compile

    def __init__(self, x: Tensor, weight: Tensor, geometry: Geometry) -> None:
        self.batch, self.channels, self.length = x.shape
        super().__init__(geometry, self.channels)
        self.dtype, self.device, self._weight = x.dtype, x.device, weight.shape
        self.real = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.out, self.kernel, (self.results,) = weight.shape[0], geometry.kernel[0], geometry.results(x.shape[2:])
        self.stride, self.last = geometry.stride[0], x.stride(2) != 1 and x.stride(1) == 1
        self._copied = not self.last and x.stride(2) != 1
        self._input, self._result = self._dense(self.channels, self.length), self._dense(self.out, self.results)
        strides = self._input if self._copied else x.stride()
        self._distances = [self._two(s) for s in (strides, self._input, self._result)]
        aligned = self._copied or x.data_ptr() % VECTOR == 0
        self.unit = self._largest_unit(self._distances) if aligned else 1
        fixed = {"KERNEL": self.kernel, "DILATION": geometry.dilation[0], "LEFT": geometry.before[0]}
        fixed |= {"STRIDE": self.stride, "MULTIPLIER": self.out // self.channels}
        self._fixed = fixed | {"LAST": self.last, "UNIT": self.unit}
        many = self.kernel > MOST_UNROLLED
        taps = CHUNK if many else self.kernel
        self._forward = self._tile(self.out, self.results, self._side(SIDE if taps <= CHUNK else SIDE // 2), taps)
        self._of_input = self._tile(self.channels, self.length, self._forward.side, taps)
        most = CHUNK if many or self.last else MOST_UNROLLED
        self._taps = min(self.kernel, most)  # of a program with sums
        self._at_once = self.kernel <= most and self.out == self.channels
        side = self._side(SIDE_WITH_SUMS if self._taps <= CHUNK // 2 else 1)
        self._of_weight = self._tile(self.out, max(self.length, self.results), side, self._taps)
        self._units = self.batch * self._of_weight.spans
        self._share = -(-self._units // self._most_parts())
        self._parts = -(-self._units // self._share)
        self._forward_call, self._backward_call = functools.cache(self._of_forward), functools.cache(self._of_backward)

    def _most_parts(self) -> int:
        """Into how many parts the sums are cut: always the same for a shape, so that they are too."""
        tiles, size = self._of_weight.tiles, self.real.itemsize * self.out * (self.kernel + 1)
        least = -(-ENOUGH // tiles)
        small = self.batch * self.channels * self.length * self.dtype.itemsize // (PART_OF_INPUT * size)
        return min(self._units, -(-PARTED // tiles), max(self._units // LEAST_SHARE, least), max(small, least))

    def _dense(self, channels: int, length: int) -> tuple[int, int, int]:
        """The distances of a tensor without gaps, laid out as the input is."""
        return (channels * length, 1, channels) if self.last else (channels * length, length, 1)

    def _two(self, strides: Sequence[int]) -> tuple[int, int]:
        """The distances of samples, and of what does not lie side by side."""
        return (strides[0] if self.batch > 1 else 0), strides[2 if self.last else 1]

    def _largest_unit(self, distances: Sequence[tuple[int, int]]) -> int:
        """How many entries, up to a vector's, divide every distance and what lies side by side."""
        sizes = (self.channels, self.out) if self.last else (self.length, self.results)
        return math.gcd(VECTOR // self.dtype.itemsize, *sizes, *(n for pair in distances for n in pair))

    def _side(self, most: int) -> int:
        """How many neighbouring steps a thread computes: with channels side by side up to so many."""
        if self.stride > 1:
            return 1
        return min(most, power(self.results)) if self.last else self.unit

    def _tile(self, channels: int, length: int, side: int, taps: int) -> Tile:
        """Cut channels and steps so that threads have enough to do and registers suffice, and there are programs.

        Where channels lie side by side a thread has a vector of them and one group; else it has so many groups that
        its numbers fill about REGISTERS.
        """
        groups, each, lanes = -(-length // side), 1, 1
        if self.last:
            lanes = self.unit
            rows = min(power(channels), max(8 * lanes, WARP))
            steps = min(power(groups), WARP * MOST_WARPS * lanes // rows)
        else:
            numbers = self.real.itemsize // 4 * (taps + 3 * side)  # of a group
            while each < MOST_EACH and 2 * each * numbers <= REGISTERS:
                each *= 2
            steps = min(power(groups), WARP * MOST_WARPS * each)
            rows = min(power(channels), WARP * MOST_WARPS * each // steps)
        while rows * steps > WARP * lanes and self.batch * -(-channels // rows) * -(-groups // steps) < ENOUGH:
            if steps > 1 and (self.last or rows == 1):
                steps //= 2
            elif rows > 1:
                rows //= 2
        warps = max(1, min(MOST_WARPS, rows * steps // (WARP * each * lanes)))
        return Tile(side, rows, steps, warps, -(-channels // rows), -(-groups // steps))

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, save: bool = False) -> tuple[Tensor, None]:
        """The result, (batch, out channels, positions), laid out as the input is; nothing else is saved."""
        y = self._empty(self.out, self.results, self._result)
        call = self._forward_call(bias is not None)
        self._launch(call, self._read(x), self._weights(weight), y if bias is None else bias.contiguous(), y)
        return y, None

    def backward(
        self, x: Tensor, weight: Tensor, dy: Tensor, needed: Sequence[bool], best: None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of input, weight and bias, as far as they are needed."""
        x, weight = self._read(x), self._weights(weight)
        if dy.stride() != self._result or dy.data_ptr() % VECTOR:
            dy = self._empty(self.out, self.results, self._result).copy_(dy)
        sums = needed[1] or needed[2]
        at_once = sums and self._at_once
        dx = self._empty(self.channels, self.length, self._input) if needed[0] else None
        if dx is not None and not at_once:
            self._launch(self._backward_call(True, False, False), x, weight, dy, dx, weight)
        if not sums:
            return dx, None, None
        parts = torch.empty((self._parts, self.out * (self.kernel + 1)), dtype=self.real, device=self.device)
        call = self._backward_call(at_once and needed[0], True, needed[2])
        self._launch(call, x, weight, dy, x if dx is None else dx, parts)
        dw = torch.empty(self._weight, dtype=self.dtype, device=self.device)
        db = torch.empty(self.out, dtype=self.dtype, device=self.device) if needed[2] else None
        self._launch(self._added(needed[2]), parts, dw, dw if db is None else db)
        return dx, dw, db

    def _of_forward(self, bias: bool) -> Call:
        tile, (given, _, result) = self._forward, self._distances
        numbers = (*self._in_units(given, result), *self._sizes(self.out), tile.tiles, tile.spans)
        grid = (self.batch * tile.tiles * tile.spans,)
        return Call("forward", grid, numbers, {"BIAS": bias} | self._constants(tile), tile.warps)

    def _of_backward(self, input: bool, weight: bool, bias: bool) -> Call:
        """The gradient of the input, sums of parts, or both."""
        tile, share, taps, channels = self._of_input, 1, self.kernel, self.channels
        if weight:
            tile, share, taps, channels = self._of_weight, self._share, self._taps, self.out
        units, (given, dense, result) = self.batch * tile.spans, self._distances
        numbers = (*self._in_units(given, result, dense), *self._sizes(channels), tile.tiles, tile.spans, units, share)
        options = {"INPUT": input, "WEIGHT": weight, "BIAS": bias, "TAPS": taps, "GROUPED": taps < self.kernel}
        grid = (-(-units // share) * tile.tiles, -(-self.kernel // taps))
        return Call("backward", grid, numbers, options | self._constants(tile), tile.warps)

    def _added(self, bias: bool) -> Call:
        columns = self.out * (self.kernel + 1)
        constants = {"KERNEL": self.kernel, "BIAS": bias, "ROWS": ADDED_ROWS, "COLUMNS": ADDED_COLUMNS}
        grid = (-(-columns // ADDED_COLUMNS),)
        return Call("add_parts", grid, (self._parts, columns), constants, MOST_WARPS)

    def _constants(self, tile: Tile) -> dict[str, Any]:
        tl = _kernels().tl
        real = tl.float64 if self.real == torch.float64 else tl.float32
        of_tile = {
            "SIDE": tile.side,
            "ROWS": tile.rows,
            "STEPS": tile.steps,
            "REAL": real,
        }
        return self._fixed | of_tile

    def _launch(self, call: Call, *tensors: Tensor) -> None:
        with gpu.on(self.device):
            function = getattr(_kernels(), call.name)
            gpu.launch(function, call.grid, (*tensors, *call.numbers), call.constants, num_warps=call.warps)

    def _read(self, x: Tensor) -> Tensor:
        return x.contiguous() if self._copied else x

    def _weights(self, weight: Tensor) -> Tensor:
        """What is read together lies side by side: the taps of a channel, or the channels of a tap."""
        return weight.flatten(1).t().contiguous() if self.last else weight.contiguous()

    def _empty(self, channels: int, length: int, strides: tuple[int, int, int]) -> Tensor:
        return torch.empty_strided((self.batch, channels, length), strides, dtype=self.dtype, device=self.device)

    def _in_units(self, *distances: tuple[int, int]) -> list[int]:
        return [n // self.unit for pair in distances for n in pair]

    def _sizes(self, channels: int) -> tuple[int, int, int]:
        """Channels, length and positions; what lies side by side is in units."""
        if self.last:
            return channels // self.unit, self.length, self.results
        return channels, self.length // self.unit, self.results // self.unit


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("pellucid.kernel.windows.depthwise_kernels")
