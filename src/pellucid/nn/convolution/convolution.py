"""Convolution as one family: a windowed dot product; the members differ in how the window lies and moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.nn.modules.conv import _ConvNd

from pellucid.errors import label, mismatch, refuse_proxies
from pellucid.kernel.windows import convolve as kernel
from pellucid.kernel.windows import pointwise, triton_depthwise
from pellucid.kernel.windows.window import LEAST_ENTRIES, Geometry, worthwhile
from pellucid.nn.axes import AXES
from pellucid.nn.component import LEFT, Running, SymbolShape
from pellucid.nn.windowed import Windowed, one_window, wrong_axes
from pellucid.nn.windows import Line, Mode, Window, at_least_zero, extend, slide

ALONG_AXES = ("stride", "padding", "dilation", "output_padding")
CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def convolve(x, *, window, weight, bias):
    """Convolve, which in a neural network means correlate: the kernel is not turned round.

    ``window(x)`` lays out what every output reads: (batch, out channels, *positions, in channels per group, *kernel).
    ``window.axes`` are the axes of what stands under one window: channels and kernel.
    """
    products = window(x) * weight
    return products.sum(window.axes) + bias


@dataclass(frozen=True, eq=False)
class GroupedWindow:
    """Lay out what every output reads: the in channels of its own group, under the window at its own position.

    (..., in channels, *size) becomes (..., out channels, *positions, in channels per group, *kernel).
    """

    window: Window
    groups: int
    out_channels: int

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the entries under one window: channels and kernel."""
        return tuple(range(-1 - len(self.window.lines), 0))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Read the windows."""
        count = len(self.window.lines)
        entries = self.window(x)  # (..., in channels, *positions, *kernel)
        channels = entries.shape[-1 - 2 * count]
        grouped = entries.unflatten(-1 - 2 * count, (self.groups, channels // self.groups))
        grouped = grouped.movedim(-1 - 2 * count, -1 - count)  # (..., groups, *positions, channels, *kernel)
        return grouped.repeat_interleave(self.out_channels // self.groups, -2 - 2 * count)


def bias_at(biases: torch.Tensor | float, window: Window, place: tuple[int, ...]) -> torch.Tensor | float:
    """Return the bias of one output, of those of all windows."""
    if not isinstance(biases, torch.Tensor):
        return biases
    biases = biases.expand(*biases.shape[: -len(window.lines)], *window.positions)
    return biases[place[-biases.ndim :]]


class Convolution(Running, Windowed, _ConvNd):
    """What all convolutions share: the formula, its windows, and the paddings that torch.nn does not have."""

    formula = staticmethod(convolve)
    paddings: tuple[str, ...] = ("valid", "same")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Mode = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        self._check_padding(padding, padding_mode)
        strides = (stride,) if isinstance(stride, int) else tuple(stride)
        ours = padding == "causal" or (padding == "same" and any(s != 1 for s in strides))
        first = (in_channels, out_channels, kernel_size, stride, 0 if ours else padding, dilation, groups, bias)
        super().__init__(*first, padding_mode, device=device, dtype=dtype)  # type: ignore[call-arg, arg-type]
        if ours:
            self.padding = cast(str, padding)

    def __setattr__(self, name: str, value: Any) -> None:
        """Let one number stand for all axes after the constructor too, as torch's operator does."""
        if name in ALONG_AXES and isinstance(value, int):
            value = (value,)
        if name in ALONG_AXES and isinstance(value, tuple) and len(value) == 1:
            value *= self.spatial
        if name in ("padding", "padding_mode"):
            known = {"padding": 0, "padding_mode": "zeros", **vars(self), name: value}
            self._check_padding(known["padding"], known["padding_mode"])
        super().__setattr__(name, value)

    def _prepare(self) -> None:
        for name in ALONG_AXES:
            setattr(self, name, getattr(self, name))

    def _check_padding(self, padding: Any, mode: Mode) -> None:
        if not isinstance(padding, str):
            return
        if padding == "causal" and padding not in self.paddings:
            raise ValueError(
                f"{label(self)}: padding='causal' exists in 1-D only, for nn.Conv1d, whose one axis can be time. "
                f"Pad the axis of time with F.pad, and use padding=0."
            )
        if padding not in self.paddings:
            raise ValueError(f"{label(self)}: padding is {padding!r}; give numbers or one of {self.paddings}.")
        if padding == "causal" and mode in ("reflect", "circular"):
            raise ValueError(
                f"{label(self)}: padding='causal' with padding_mode={mode!r} would read later entries ahead of the "
                f"first one. Use padding_mode='zeros' or 'replicate'."
            )

    @property
    def beyond_torch(self) -> str | None:
        """A padding that torch.nn does not have."""
        if self.padding == "causal" or (self.padding == "same" and (self.transposed or max(self.stride) > 1)):
            strided = f" with stride={self.stride}" if self.padding == "same" and not self.transposed else ""
            return f"padding={self.padding!r}{strided}"
        return f"padding_mode={self.padding_mode!r}" if self.transposed and self.padding_mode != "zeros" else None

    @property
    def reach(self) -> tuple[int, ...]:
        """How many places a window spans along each axis, from its first entry to its last."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True))

    @property
    def receptive_field(self) -> tuple[int, ...]:
        """How many neighbouring entries of the input one output sees, along each axis."""
        return self.reach

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve (batch, in channels, *size), or (in channels, *size) without a batch."""
        try:
            return self._conv_forward(input, self.weight, self.bias)
        except RuntimeError as error:
            self._explain(error, input, mismatch(input, self.weight))
            raise

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        met = self._circumstances(input, weight.requires_grad, bias is not None and bias.requires_grad)
        if met is LEFT:
            self.__dict__["_ran"] = "torch"
            return super()._conv_forward(input, weight, bias)
        if self._kernel_may_read(input, weight):
            margins = self._margins(input.shape[2:])
            if self.padding_mode != "zeros":
                return self.convolve_padded(extend(input, margins, self.padding_mode), weight, bias)
            y = self._by_kernel(input, weight, bias, margins)
            if y is not None:
                return y
        self._was_run_by("torch")
        if self.padding != "causal" and (self.padding != "same" or max(self.stride) == 1):
            y = super()._conv_forward(input, weight, bias)
            self._leave(input, met)
            return y
        return self.convolve_padded(
            extend(input, self._margins(input.shape[-self.spatial :]), self.padding_mode), weight, bias
        )

    def convolve_padded(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Convolve what has its padding already."""
        y = None
        if self._kernel_may_read(x, weight):
            y = self._by_kernel(x, weight, bias, ((0, 0),) * self.spatial)
        if y is None:
            self._was_run_by("torch")
            y = CONVOLVE[self.spatial](x, weight, bias, self.stride, 0, self.dilation, self.groups)
        return y

    def _kernel_may_read(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        """Whether a kernel, or a matrix product, is worth a thought."""
        least = LEAST_ENTRIES
        if self.groups == 1 and prod((*self.kernel_size, *self.stride)) == 1:  # torch is slow on small ones, too
            least = -(-pointwise.LEAST_PRODUCTS // self.out_channels)
        return worthwhile(x, self.spatial, least) or triton_depthwise.asked(x, weight, self.groups)

    def convolve_and_pool(self, x: torch.Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor | None:
        """Return the greatest of every patch of features by the kernel, in one pass; None where torch is to do it."""
        margins = self._margins(x.shape[2:])
        if self.padding_mode != "zeros":
            x, margins = extend(x, margins, self.padding_mode), [(0, 0)] * self.spatial
        none = (0,) * self.spatial
        patch = Geometry(size, stride, (1,) * self.spatial, none, none)
        return self._by_kernel(x, self.weight, self.bias, margins, patch)

    def _by_kernel(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        margins: Sequence[tuple[int, int]],
        patch: Geometry | None = None,
    ) -> torch.Tensor | None:
        """Convolve by the kernel, with zeros around; None where torch's operator is to do it."""
        before, after = zip(*margins, strict=True)
        geometry = Geometry(self.kernel_size, self.stride, self.dilation, before, after)
        return self._run_kernel(x, weight, bias, kernel.Lies(geometry, self.groups, patch))

    def _run_kernel(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, lies: kernel.Lies
    ) -> torch.Tensor | None:
        found = kernel.run(x, weight, bias, lies)
        if found is None:
            return None
        self._was_run_by(found[1])
        return found[0]

    def _placement(self, axis: int, size: Any) -> tuple[Any, Any]:
        """Return how far ahead of the input the first window starts, and how many windows there are.

        ``size`` is the input's along this axis, a number or a tensor of them.
        """
        stride, reach = self.stride[axis], self.reach[axis]
        if self.padding == "same":
            return self._around(axis, size) // 2, -(-size // stride)  # rounded up
        if self.padding == "causal":
            return reach - 1, -(-size // stride)
        before = 0 if isinstance(self.padding, str) else self.padding[axis]
        return before, (size + 2 * before - reach) // stride + 1

    def _around(self, axis: int, size: Any) -> Any:
        """Return by how many entries ``padding="same"`` continues the input, before and after together."""
        stride, reach = self.stride[axis], self.reach[axis]
        if stride == 1:
            return reach - 1  # for inputs of every size
        missing = (-(-size // stride) - 1) * stride + reach - size
        return missing if reach >= stride else at_least_zero(missing)  # it is at least reach - stride

    def _margins(self, size: Sequence[int]) -> list[tuple[int, int]]:
        """Return by how many entries the input is continued before and after, along each axis."""
        if not isinstance(self.padding, str):
            return [(p, p) for p in self.padding]
        refuse_proxies(self, size)
        margins = []
        for axis, entries in enumerate(size):
            before = self._placement(axis, entries)[0]
            margins.append((before, self._around(axis, entries) - before if self.padding == "same" else 0))
        return margins

    def _line(self, x: torch.Tensor, axis: int, size: Any, positions: int) -> Line:
        return slide(
            size,
            positions,
            self.kernel_size[axis],
            stride=self.stride[axis],
            dilation=self.dilation[axis],
            before=self._placement(axis, size)[0],
            mode=self.padding_mode,
            device=x.device,
        )

    def _lines(self, x: torch.Tensor, **call: Any) -> tuple[Line, ...]:
        """Return what the windows read along each axis."""
        sizes = enumerate(x.shape[-self.spatial :])
        return tuple(self._line(x, axis, size, self._placement(axis, size)[1]) for axis, size in sizes)

    def _kernels(self) -> torch.Tensor:
        """Return the kernels as the formula reads them: (out channels, in channels per group, *kernel)."""
        return self.weight

    def _biases(self, x: torch.Tensor, **call: Any) -> torch.Tensor | float:
        """Return the bias of every output: (out channels, 1, ...) where all positions have the same, 0 without one."""
        return 0.0 if self.bias is None else self.bias.reshape(-1, *(1 for _ in self.kernel_size))

    def bind(
        self,
        input: torch.Tensor,
        *,
        position: int | Sequence[int] | None = None,
        channel: int = 0,
        sample: int = 0,
        **call: Any,
    ) -> dict[str, Any]:
        """Return the formula's arguments for this input.

        Args:
            input: (batch, in channels, *size), or (in channels, *size) without a batch.
            position: bind the window of this one output; the formula then gives a single number.
            channel: the out channel of that output.
            sample: its place in the batch.
            **call: forward's further arguments.
        """
        self._refuse_misfit(input)
        window = Window(self._lines(input, **call))
        kernels, biases = self._kernels(), self._biases(input, **call)
        if position is None:
            grouped = GroupedWindow(window, self.groups, self.out_channels)
            weight = kernels.reshape(len(kernels), *(1 for _ in self.kernel_size), *kernels.shape[1:])
            return {"x": input, "window": grouped, "weight": weight, "bias": biases}
        one = one_window(self, input, window, position, self._reads(channel), channel, sample)
        return {"x": input, "window": one, "weight": kernels[channel], "bias": bias_at(biases, window, one.output)}

    def _reads(self, channel: int) -> range:
        """Return the in channels that an out channel reads: those of its group."""
        self._refuse_channel(channel)
        each = self.in_channels // self.groups
        start = channel // (self.out_channels // self.groups) * each
        return range(start, start + each)

    def symbols(self, *inputs: torch.Tensor) -> list[SymbolShape]:
        """Return weight and bias with the reasons of their shapes; given an input, it and the output too."""
        names = ("in_channels", "out_channels", "groups", "kernel_size", "stride", "padding", "dilation")
        facts = {name: getattr(self, name) for name in (*names, "padding_mode", "reach")}
        facts |= {"reads": self.in_channels // self.groups, "reaches": self.out_channels // self.groups}
        kernel = tuple(f"kernel {name}" for name in AXES[self.spatial])
        outer = ("out channels", "in channels per group")
        reason = "conv.weight"
        if self.transposed:
            outer, reason = ("in channels", "out channels per group"), "conv.weight.transposed"
        reason += ".grouped" if self.groups > 1 else ""
        found = [SymbolShape.of_weight(self, "weight", "weight", (*outer, *kernel), reason, **facts)]
        if self.bias is not None:
            found.append(SymbolShape.of_weight(self, "bias", "bias", ("out channels",), "conv.bias", **facts))
        for x in inputs:
            self._refuse_misfit(x)
            output = "conv.output.transposed" if self.transposed else "conv.output"
            given, result = self._input_and_output(x, Window(self._lines(x)).positions, output, facts)
            found = [given, *found, result]
        return found

    def _misfit(self, x: torch.Tensor) -> str | None:
        """Say how the shape of an input does not fit; None if it does."""
        count = self.spatial
        if x.ndim not in (count + 1, count + 2):
            return wrong_axes(x, count, f"channels {self.in_channels}")
        channels = x.shape[-1 - count]
        if channels == self.in_channels:
            for axis in range(count):
                if text := self._size_misfit(axis, x.shape[-count:]):
                    return text
            return None
        cure = f"Build it with in_channels={channels}, or check which axis of the input holds the channels."
        if x.shape[-1] == self.in_channels:
            cure = f"Are the channels last? Then pass x.movedim(-1, {-1 - count})."
        return f"but in_channels is {self.in_channels}. {cure}"

    def _size_misfit(self, axis: int, size: Sequence[int]) -> str | None:
        entries, margins, name = size[axis], self._margins(size)[axis], AXES[len(size)][axis]
        if entries == 0:
            return f"but there is nothing to read along an empty {name}."
        most = {"reflect": entries - 1, "circular": entries}.get(self.padding_mode)
        if most is not None and max(margins) > most:
            return (
                f"but padding_mode={self.padding_mode!r} can continue a {name} of {entries} by {most} at most, and "
                f"padding={self.padding!r} asks for {max(margins)}. Pad less, or use 'zeros' or 'replicate'."
            )
        if self._placement(axis, entries)[1] <= 0:
            return (
                f"but the kernel spans {self.reach[axis]} places along the {name} (kernel_size "
                f"{self.kernel_size[axis]}, dilation {self.dilation[axis]}), more than the {entries + sum(margins)} "
                f"that the input has with its padding. Pad more, or use padding='same'."
            )
        return None
