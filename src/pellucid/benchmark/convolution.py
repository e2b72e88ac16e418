"""Layers that read their input through windows, convolution and pooling: forward + backward, and step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import pellucid
from pellucid import nn
from pellucid.benchmark.comparison import Run, agree, times
from pellucid.benchmark.limit import Work
from pellucid.benchmark.streaming import STEPS
from pellucid.benchmark.twins import SEED, RowSpeed, TwinRow, makers, ran, twins
from pellucid.explanation.cost import count

PICTURE, SERIES = (32, 64, 56, 56), (8, 512, 1024)


@dataclass(frozen=True)
class WindowedRow(TwinRow):
    """A convolution or a pooling."""

    def work(self, layer: torch.nn.Module, *given: Tensor) -> Work:
        """Count forward and backward.

        FLOPs: 3 × 2 × the multiply-accumulates of forward. The gradient of the input takes as many as forward, and so
        does that of the kernels. A pooling has none.

        Bytes: x read and y written; dy read and dx written. Kernels and biases are read in forward and again in
        backward, and their gradient, for which x is read again, is written.
        """
        x, dy = given
        weights = list(layer.parameters())
        reads_again = x.nbytes if weights else 0
        moved = 2 * (x.nbytes + dy.nbytes) + reads_again + 3 * sum(w.nbytes for w in weights)
        return Work(flops=3 * 2 * count(layer, [x]).macs, bytes=moved)


class StepSpeed(RowSpeed):
    """A step of a sequence that comes entry by entry."""


class ByHand(torch.nn.Module):
    """torch.nn's causal convolution as one streams with it: the last entries are kept, and read with the next one."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.layer = torch.nn.Conv1d(in_channels, out_channels, kernel_size)

    def initial_state(self, batch_size: int) -> Tensor:
        """Zeros ahead of the sequence."""
        return self.layer.weight.new_zeros(batch_size, self.layer.in_channels, self.layer.kernel_size[0] - 1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next output, and the entries for the one after it."""
        window = torch.cat((state, x), -1)
        return self.layer(window), window[..., 1:]


@dataclass(frozen=True)
class CausalRow:
    """A causal convolution along time, with a batch of one."""

    section: ClassVar[str] = "streaming"
    in_channels: int
    out_channels: int
    kernel_size: int

    @property
    def name(self) -> str:
        """How the line is called."""
        return f"Conv1d {self.in_channels}→{self.out_channels}, kernel {self.kernel_size}, causal"

    def measure(self, run: Run) -> StepSpeed:
        """Compare the outputs of all steps, then time them, both taking turns."""
        torch.manual_seed(SEED)
        sizes = (self.in_channels, self.out_channels, self.kernel_size)
        layer, theirs = twins(lambda: nn.Conv1d(*sizes, padding="causal"), lambda: ByHand(*sizes), run.device)
        x = torch.randn((STEPS, 1, self.in_channels, 1), device=run.device)
        agreement = agree(_stream, layer, theirs, x)
        weights = sum(w.nbytes for w in layer.parameters())
        entries = self.in_channels + self.out_channels
        limit = Work(2 * math.prod(sizes), bytes=weights + entries * x.element_size()).seconds(run.rates)
        sides = {"ours": lambda: _stream(layer, x), "torch": lambda: _stream(theirs, x)}
        found = {name: seconds / STEPS for name, seconds in times(sides, run.rounds, run.device).items()}
        return StepSpeed(self.name, ran(layer), agreement, 1e3 * limit, 1e3 * found["ours"], None, 1e3 * found["torch"])


def _stream(layer: Any, x: Tensor, by: str = "auto") -> list[Tensor]:
    """Read (time, batch, in channels, 1) entry by entry; the outputs."""
    with torch.inference_mode(), pellucid.backend(by):
        outputs, state = [], layer.initial_state(x.shape[1])
        for entry in x:
            y, state = layer(entry, state=state)
            outputs.append(y)
        return [torch.cat(outputs, -1)]


def _row(
    kind: str,
    shape: tuple[int, ...],
    note: str,
    *arguments: Any,
    section: str = "speed",
    floor: float | None = None,
    layout: torch.memory_format = torch.contiguous_format,
    **options: Any,
) -> WindowedRow:
    """A layer of torch.nn's and ours of the same name, made with these ``arguments`` and ``options``."""
    both = makers(kind, *arguments, **options)
    dtype = options.get("dtype", torch.float32)
    return WindowedRow(kind, shape, *both, f", {note}", section, floor, dtype=dtype, layout=layout)


def _depthwise(note: str = "", shape: tuple[int, ...] = PICTURE, kernel: int = 3, **options: Any) -> WindowedRow:
    """A picture's convolution whose every channel has a kernel of its own."""
    channels, size = shape[1], f"{kernel}×{kernel}"
    given = (channels, channels, kernel, 1, kernel // 2)  # stride, padding
    return _row("Conv2d", shape, f"depthwise, {size}{note}", *given, groups=channels, **options)


def _depthwise_series(note: str = "", **options: Any) -> WindowedRow:
    """The same of a series, with the kernel of a state space model's convolution: Gu and Dao, arXiv:2312.00752."""
    channels = SERIES[1]
    return _row("Conv1d", SERIES, f"depthwise, kernel 4{note}", channels, channels, 4, groups=channels, **options)


CONVOLUTION = [
    _depthwise_series(floor=4),
    _depthwise(floor=2.5),
    _row("Conv2d", (64, 1, 28, 28), "1→6, 5×5", 1, 6, 5, floor=2),
    _row("Conv2d", (64, 6, 14, 14), "6→16, 5×5", 6, 16, 5, floor=1.2),
    _row("Conv1d", (16, 64, 1024), "64→64, kernel 3, dilation 8", 64, 64, 3, dilation=8, floor=1.2),
    _row("Conv2d", PICTURE, "64→64, 3×3, padding 1", 64, 64, 3, padding=1, floor=0.97),
    _row("Conv1d", (32, 300, 60), "300→100, kernel 3", 300, 100, 3, floor=0.97),
]
POOLING = [
    _row("MaxPool2d", PICTURE, "2×2", 2, section="pooling"),
    _row("MaxPool2d", PICTURE, "3×3, stride 2", 3, 2, section="pooling"),
    _row("AvgPool2d", PICTURE, "2×2", 2, section="pooling"),
    _row("AdaptiveAvgPool2d", PICTURE, "global", 1, section="pooling"),
]
FORMATS = [
    _depthwise(", channels_last", section="formats", layout=torch.channels_last),
    _depthwise(", channels_last", (8, 672, 14, 14), 5, section="formats", layout=torch.channels_last),
    _depthwise(", channels_last", (8, 96, 28, 28), 7, section="formats", layout=torch.channels_last),
    _depthwise(", bfloat16", section="formats", dtype=torch.bfloat16),
    _depthwise_series(", bfloat16", section="formats", dtype=torch.bfloat16),
]
CAUSAL = [CausalRow(64, 64, 3)]
