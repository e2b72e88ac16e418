"""Windows that move over an input: how they lie, and how kernels that read through them are called (`c/window.h`).

One text serves every number of axes, stride, padding and dilation: a tap of the window is a distance in a padded plane
laid out flat.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pellucid.kernel import build, memory
from pellucid.kernel.backends import chosen_backend
from pellucid.kernel.language.layout import STORAGE
from pellucid.kernel.language.text_c import header, preamble
from pellucid.kernel.tensors import in_plain_python
from pellucid.kernel.threads import useful

AXES = 3
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}  # in which the channels of a place lie side by side
MOVING = ("convolve", "pool")  # headers that lay channels out in planes
MOST_SCRATCH = 2**23  # bytes of a thread; more would not stay in its caches
LEAST_ENTRIES = 2**13  # of an input; below, calling costs more than computing, and torch's call costs less
MOST_TAPS = 256  # of which the greatest is taken: a byte says which one it was
# Places in struct windows of c/window.h.
X, WEIGHT, BIAS, DY, Y, DX, DW, BEST, TAPS, PATCH, WORK = range(11)


class Geometry(NamedTuple):
    """How windows lie along up to three axes; what is added ahead of and behind the input is not there."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def margins(self) -> tuple[int, ...]:
        """What is added, as torch.nn.functional.pad takes it."""
        return tuple(n for pair in zip(reversed(self.before), reversed(self.after), strict=True) for n in pair)

    def results(self, size: Sequence[int]) -> tuple[int, ...]:
        """How many windows there are along every axis."""
        spans = zip(size, *self, strict=True)
        return tuple((n + before + after - d * (k - 1) - 1) // s + 1 for n, k, s, d, before, after in spans)


class Windows:
    """A kernel for an input of a certain shape.

    Args:
        x: (batch, channels, *size), whose last axis lies side by side.
        geometry: how the windows lie.
        groups: of channels, each of which is computed by itself.
        out: channels of the result that each group has.
        parts: of the batch, each with its own sums.
        name: of the kernel's header.
        lanes: samples that lie beside each other while they are computed: 1, or as many as a vector has lanes.
        patch: how windows over the result lie of which the greatest is taken, without margins.
        more: what the kernel is told beside.

    Raises:
        BuildError: there is no compiler.
    """

    def __init__(
        self,
        x: Tensor,
        geometry: Geometry,
        groups: int,
        out: int,
        parts: int,
        name: str,
        lanes: int = 1,
        patch: Geometry | None = None,
        more: Sequence[int] = (),
    ) -> None:
        batch, channels, *size = x.shape
        missing = AXES - len(size)
        ones, zeros = (1,) * missing, (0,) * missing
        kernel, stride, dilation = ((*ones, *given) for given in geometry[:3])
        before, results = (*zeros, *geometry.before), (*ones, *geometry.results(size))
        spans = zip(kernel, stride, dilation, results, strict=True)
        plane = tuple(-(-(s * (n - 1) + d * (k - 1) + 1) // s) for k, s, d, n in spans)
        self.geometry, self.dtype, self.groups, self.parts = geometry, x.dtype, groups, parts
        self.input, self.result = tuple(x.shape), (batch, groups * out, *results[missing:])
        self._taps = array("q")
        for place in itertools.product(*map(range, kernel)):
            at = [d * i for d, i in zip(dilation, place, strict=True)]
            phase = _folded([a % s for a, s in zip(at, stride, strict=True)], stride)
            distance = _folded([a // s for a, s in zip(at, stride, strict=True)], plane)
            self._taps += array("q", (phase, lanes * distance))
        outer = (*(0,) * (AXES - 1), *x.stride()[2:-1])[1 - AXES :]
        fixed = (batch, groups, channels // groups, out, len(self._taps) // 2, *x.stride()[:2], *outer)
        fixed += (*ones, *size, *results, *before, *stride, *plane, parts, lanes)
        self._patch, pooled, step = array("q", (0,)), (0,) * AXES, (0,) * AXES
        if patch is not None:
            span, step = (*ones, *patch.kernel), (*ones, *patch.stride)
            pooled = (*ones, *patch.results(results[missing:]))
            self._patch = array("q", (lanes * _folded(place, plane) for place in itertools.product(*map(range, span))))
            self.result = (batch, groups * out, *pooled[missing:])
        fixed += (0 if patch is None else len(self._patch), *pooled, *step)
        self._blank = (*(0,) * TAPS, self._taps.buffer_info()[0], self._patch.buffer_info()[0], 0, *fixed)
        self._more, self.taps = tuple(more), math.prod(kernel)
        self.operations = 2 * batch * channels * out * math.prod((*kernel, *results))
        self.text = text(x.dtype, name)
        kernels = library(x.dtype, name)
        self._run = {"forward": kernels.forward, "backward": kernels.backward}
        probe, found = array("q", (*self._blank, 1, 0, *more)), array("q", (0, 0))
        kernels.work_bytes(probe.buffer_info()[0], found.buffer_info()[0])
        self._shared, self._own = found
        self.fits = self._own <= MOST_SCRATCH

    def call(self, direction: str, tensors: Mapping[int, Tensor | None], passes: int = 1) -> None:
        """Run "forward" or "backward" on tensors at their places; each must have the layout that it was told of."""
        call = array("q", self._blank)
        for place, tensor in tensors.items():
            if tensor is not None:
                call[place] = tensor.data_ptr()
        threads = useful(self.operations * passes)
        work = memory.scratch(self._shared + threads.number * self._own)
        call[WORK] = memory.aligned(work)
        call.extend((*threads, *self._more))
        self._run[direction](call.buffer_info()[0])


def worthwhile(x: Tensor, axes: int, least: int = LEAST_ENTRIES) -> bool:
    """Whether a kernel is worth a thought: a batch on the CPU that is not tiny, unless the kernel is asked for."""
    if not isinstance(x, Tensor) or not in_plain_python(x) or x.dim() != axes + 2:
        return False
    return x.numel() >= least or chosen_backend() == "c"


def readable(x: Tensor, axes: int) -> bool:
    """Whether a kernel reads an input where it lies: (batch, channels, *size), the last axis side by side."""
    return (x.stride(-1) == 1 or x.shape[-1] == 1) and channels_last(x, axes) is None


def channels_last(x: Tensor, axes: int) -> torch.memory_format | None:
    """The format of an input whose channels lie side by side; None for any other, and where both hold."""
    last = FORMATS.get(axes)
    return last if last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last) else None


def side_by_side(x: Tensor) -> bool:
    """Whether the channels of an input lie side by side, along one axis too, for which torch has no format."""
    if x.dim() == 3:
        return x.stride(1) == 1 and not x.is_contiguous() and x.mT.is_contiguous()
    return channels_last(x, x.dim() - 2) is not None


def lanes(dtype: torch.dtype, name: str) -> int:
    """How many numbers a vector holds in a header's kernels for a type in memory."""
    return library(dtype, name).lanes()


def _folded(place: Sequence[int], sizes: Sequence[int]) -> int:
    """The number of a place in a block of such sizes, row after row."""
    return functools.reduce(lambda number, axis: number * axis[0] + axis[1], zip(sizes, place, strict=True), 0)


@functools.cache
def library(dtype: torch.dtype, name: str) -> ctypes.CDLL:
    """The compiled kernels of a header for a type in memory.

    Raises:
        BuildError: there is no compiler.
    """
    found = build.load(text(dtype, name))
    for function in ("forward", "backward"):
        getattr(found, function).argtypes, getattr(found, function).restype = [ctypes.c_void_p], None
    if name in MOVING:
        found.work_bytes.argtypes, found.work_bytes.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    return found


@functools.cache
def text(dtype: torch.dtype, name: str) -> str:
    """The C text of a header's kernels for a type in memory."""
    data = STORAGE[dtype]
    real = "float64" if dtype == torch.float64 else "float32"
    names = ("load", "store", "take", "put", "read", "write")
    return "\n".join(
        (
            f"// {name} of {data}, written by pellucid.",
            preamble(real),
            f"#define load_real load_{real}",
            f"#define data_storage {data}_storage",
            *(f"#define {name}_data {name}_{data}" for name in names),
            *([header("window.h")] if name in MOVING else []),
            header(f"{name}.h"),
        )
    )
