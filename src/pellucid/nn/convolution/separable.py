"""Depthwise separable convolution: every channel by kernels of its own, then the channels of each place mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pellucid.errors import label, mismatch, refuse_proxies
from pellucid.nn import lengths as real
from pellucid.nn.axes import AXES
from pellucid.nn.component import SymbolShape, ran_by, written
from pellucid.nn.convolution import streaming
from pellucid.nn.convolution.conv1d import Conv1d
from pellucid.nn.convolution.conv2d import Conv2d, Conv3d
from pellucid.nn.convolution.convolution import bias_at
from pellucid.nn.windowed import OneWindow, Windowed, one_window
from pellucid.nn.windows import Mode, Window


def convolve_separably(x, *, window, depthwise, channels, pointwise, bias):
    """Convolve every channel by itself, then mix the channels at each place.

    ``window(x)`` lays out what every kernel reads of its one channel: (batch, in channels · multiplier, *positions,
    *kernel); ``channels(z)`` what every out channel reads at each place: (batch, 1, *positions, channels).
    """
    products = window(x) * depthwise
    z = products.sum(window.axes)
    mixed = channels(z) * pointwise
    return mixed.sum(channels.axes) + bias


@dataclass(frozen=True, eq=False)
class ChannelWindow(Window):
    """Lay out what every kernel reads: its own channel, which ``multiplier`` kernels share.

    (..., channels, *size) becomes (..., channels · multiplier, *positions, *kernel).
    """

    multiplier: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """Read the windows."""
        return super().__call__(x).repeat_interleave(self.multiplier, -1 - 2 * len(self.lines))


@dataclass(frozen=True, eq=False)
class OneChannelWindow(OneWindow):
    """The windows of all kernels at a single position: (channels · multiplier, *kernel)."""

    multiplier: int = 1

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the entries under one kernel."""
        return self.window.axes

    def __call__(self, x: Tensor) -> Tensor:
        """Read the windows."""
        return super().__call__(x).repeat_interleave(self.multiplier, 0)


@dataclass(frozen=True, eq=False)
class Channels:
    """Lay out the channels at each place: (..., channels, *positions) → (..., 1, *positions, channels).

    At a single place, of ``spatial`` 0, they are laid out already.
    """

    spatial: int
    axes: tuple[int, ...] = (-1,)

    def __call__(self, z: Tensor) -> Tensor:
        """Read them."""
        return z.movedim(-1 - self.spatial, -1).unsqueeze(-2 - self.spatial) if self.spatial else z


class SeparableConvolution(Windowed, torch.nn.Module):
    """What the separable convolutions share: the two convolutions, and the one formula of both.

    Chollet, "Xception: deep learning with depthwise separable convolutions", CVPR 2017; Howard et al., "MobileNets",
    arXiv:1704.04861, 2017. The first, ``depthwise``, has ``depth_multiplier`` kernels for each channel, which read no
    other; the second, ``pointwise``, mixes the channels at each place. Nothing stands between them, as in Xception,
    so one bias, that of the second, is enough.

    Args:
        in_channels: the channels of the input.
        out_channels: the channels of the output.
        kernel_size: of the depthwise convolution, as are stride, padding and dilation: see ``Conv1d`` to ``Conv3d``.
        stride: by how much the window moves.
        padding: numbers, "valid", "same" or, in 1-D, "causal".
        dilation: how far apart the entries of a kernel read.
        depth_multiplier: how many kernels each channel has.
        bias: whether the result has a bias.
        padding_mode: how the input goes on beyond its ends.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        input (batch, in channels, *size), output (batch, out channels, *positions); or both without a batch.

    Raises:
        ValueError: an argument is unknown or contradicts another.
        RuntimeError: the input does not fit the layer.
    """

    formula = staticmethod(convolve_separably)
    convolution: ClassVar[Any]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        depth_multiplier: int = 1,
        bias: bool = True,
        padding_mode: Mode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if depth_multiplier < 1:
            raise ValueError(
                f"{label(self)}: depth_multiplier is {depth_multiplier}; each channel has a kernel or more."
            )
        self.in_channels, self.out_channels, self.depth_multiplier = in_channels, out_channels, depth_multiplier
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        inner, groups = in_channels * depth_multiplier, in_channels
        window = (kernel_size, stride, padding, dilation, groups, False, padding_mode)
        self.depthwise = self.convolution(in_channels, inner, *window, **made)
        self.pointwise = self.convolution(inner, out_channels, 1, bias=bias, **made)

    @property
    def bias(self) -> Tensor | None:
        """The bias, that of the pointwise convolution."""
        return self.pointwise.bias

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """How many entries a kernel has along each axis."""
        return self.depthwise.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        """By how much the window moves along each axis."""
        return self.depthwise.stride

    @property
    def padding(self) -> str | tuple[int, ...]:
        """How far the input is continued."""
        return self.depthwise.padding

    @property
    def dilation(self) -> tuple[int, ...]:
        """How far apart the entries of a kernel read, along each axis."""
        return self.depthwise.dilation

    @property
    def reach(self) -> tuple[int, ...]:
        """How many places a window spans along each axis, from its first entry to its last."""
        return self.depthwise.reach

    @property
    def backend(self) -> str:
        """What ran the two convolutions last."""
        return ran_by((self.depthwise, self.pointwise))

    @property
    def receptive_field(self) -> tuple[int, ...]:
        """How many neighbouring entries of the input one output sees, along each axis."""
        return self.depthwise.receptive_field

    def extra_repr(self) -> str:
        """Write the arguments that are not their defaults."""
        window = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return written(
            window,
            padding=(self.padding, (0,) * self.spatial),
            dilation=(self.dilation, (1,) * self.spatial),
            depth_multiplier=(self.depth_multiplier, 1),
            bias=(self.bias is not None, True),
            padding_mode=(self.depthwise.padding_mode, "zeros"),
        )

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (batch, in channels, *size), or (in channels, *size) without a batch."""
        return self._checked(input, lambda: self.pointwise(self.depthwise(input)))

    def _checked(self, x: Tensor, call: Any) -> Any:
        """Run, and name this layer where the input does not fit it."""
        refuse_proxies(self, x)
        self._refuse_misfit(x)
        try:
            return call()
        except RuntimeError as error:
            if text := mismatch(x, self.depthwise.weight):
                raise self._refusal(x, text) from error
            raise

    def _misfit(self, x: Tensor) -> str | None:
        return self.depthwise._misfit(x)

    def _biases(self, x: Tensor, **call: Any) -> Tensor | float:
        """Return the bias of every output: (out channels, 1, ...), 0 without one."""
        return self.pointwise._biases(x)

    def bind(
        self,
        input: Tensor,
        *,
        position: int | Sequence[int] | None = None,
        channel: int = 0,
        sample: int = 0,
        **call: Any,
    ) -> dict[str, Any]:
        """Return the formula's arguments for this input; see ``Convolution.bind``."""
        self._refuse_misfit(input)
        count, multiplier, spread = self.spatial, self.depth_multiplier, (1,) * self.spatial
        window, biases = Window(self.depthwise._lines(input, **call)), self._biases(input, **call)
        depthwise, pointwise = self.depthwise.weight.squeeze(1), self.pointwise.weight.flatten(1)
        if position is None:
            laid: Window | OneWindow = ChannelWindow(window.lines, multiplier=multiplier)
            channels = Channels(count)
            depthwise = depthwise.reshape(len(depthwise), *spread, *depthwise.shape[1:])
            pointwise = pointwise.reshape(len(pointwise), *spread, -1)
        else:
            self._refuse_channel(channel)
            one = one_window(self, input, window, position, range(self.in_channels), channel, sample)
            laid = OneChannelWindow(one.window, one.channels, one.output, multiplier)
            channels = Channels(0)
            pointwise = pointwise[channel]
            biases = bias_at(biases, window, one.output)
        mixing = {"channels": channels, "pointwise": pointwise, "bias": biases}
        return {"x": input, "window": laid, "depthwise": depthwise, **mixing}

    def symbols(self, *inputs: Tensor) -> list[SymbolShape]:
        """Return the weights with the reasons of their shapes; given an input, it and the output too."""
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode", "reach")
        facts = {name: getattr(self.depthwise, name) for name in names}
        facts |= {name: getattr(self, name) for name in ("in_channels", "out_channels", "depth_multiplier")}
        ones = tuple(f"kernel {name}" for name in AXES[self.spatial])
        inner = ("depthwise channels", "in channels per group", *ones)
        outer = ("out channels", "depthwise channels", *ones)
        found = []
        for name, axes_of in (("depthwise", inner), ("pointwise", outer)):
            half = getattr(self, name)
            found.append(SymbolShape.of_weight(half, "weight", name, axes_of, f"separable.{name}", **facts))
        if self.bias is not None:
            found.append(SymbolShape.of_weight(self.pointwise, "bias", "bias", ("out channels",), "conv.bias", **facts))
        for x in inputs:
            self._refuse_misfit(x)
            positions = Window(self.depthwise._lines(x)).positions
            given, result = self._input_and_output(x, positions, "conv.output", facts)
            found = [given, *found, result]
        return found


class SeparableConv1d(SeparableConvolution):
    """Convolve every channel along one axis by itself, then mix the channels: see `SeparableConvolution`."""

    spatial = 1
    convolution = Conv1d

    def forward(self, input: Tensor, lengths: real.Lengths | None = None, state: Tensor | None = None) -> Any:
        """Convolve; with ``lengths``, every sequence as if it stood alone; with ``state``, the next piece of one.

        Args:
            input: (batch, in channels, length) or (in channels, length).
            lengths: (batch,) integers: how many entries of each sequence are real; see ``Conv1d.forward``.
            state: what the call on the piece before has returned, or ``initial_state``; for padding="causal".

        Returns:
            The output; with ``state`` the pair of the output and the next state.
        """
        refuse_proxies(self, input, lengths, state)
        if state is not None:
            if input.shape[-1:] != (0,):  # a piece may be empty
                self._refuse_misfit(input)
            z, following = self.depthwise(input, lengths, state)
            return streaming.pointwise(self.pointwise, z), following
        if lengths is None:
            return super().forward(input)
        return self._checked(input, lambda: self._of_lengths(input, lengths))

    def _of_lengths(self, x: Tensor, lengths: real.Lengths) -> Tensor:
        z = self.depthwise(x, lengths)
        return torch.where(self.depthwise._sizes(x, lengths)[1], self.pointwise(z), 0)

    def initial_state(self, batch_size: int | None = None) -> Tensor:
        """Return the state of a layer that has read nothing, for a batch or for input without one."""
        return self.depthwise.initial_state(batch_size)

    def output_lengths(self, lengths: real.Lengths) -> Tensor:
        """Return how many outputs belong to sequences of these lengths, as int64: none to an empty one."""
        return self.depthwise.output_lengths(lengths)

    def bind(self, input: Tensor, lengths: real.Lengths | None = None, **which: Any) -> dict[str, Any]:
        """Return the formula's arguments for this input; see ``SeparableConvolution.bind``."""
        return super().bind(input, lengths=lengths, **which)

    def _biases(self, x: Tensor, lengths: real.Lengths | None = None, **call: Any) -> Tensor | float:
        return self.depthwise._kept(super()._biases(x), x, lengths)


class SeparableConv2d(SeparableConvolution):
    """Convolve every channel of a picture by itself, then mix the channels: see `SeparableConvolution`."""

    spatial = 2
    convolution = Conv2d


class SeparableConv3d(SeparableConvolution):
    """Convolve every channel of a volume by itself, then mix the channels: see `SeparableConvolution`."""

    spatial = 3
    convolution = Conv3d
