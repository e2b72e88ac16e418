"""Convolution, bias, activation and max pooling as one layer: whether a pattern is somewhere in a patch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.errors import label, mismatch
from pellucid.kernel.windows.window import worthwhile
from pellucid.nn.axes import AXES
from pellucid.nn.component import Running, SymbolShape, watched, written
from pellucid.nn.convolution.conv1d import Conv1d
from pellucid.nn.convolution.conv2d import Conv2d, Conv3d
from pellucid.nn.pooling.pooling import Maximum, MaxPool1d, MaxPool2d, MaxPool3d, rises_from_zero
from pellucid.nn.windowed import OneWindow, Windowed, WindowView, one_window
from pellucid.nn.windows import Line, Mode, Window


def convolve_and_pool(x, *, window, weight, bias, activation, patch, reduce):
    """Convolve, add the bias, activate, and keep the greatest feature of every patch.

    ``window(x)`` lays out what every feature reads: (batch, out channels, *positions, in channels per group, *kernel);
    ``patch(features)`` which features lie under every window of the pooling: (batch, out channels, *patches, *entries).
    """
    products = window(x) * weight
    features = activation(products.sum(window.axes) + bias)
    return reduce(patch(features))


@dataclass(frozen=True, eq=False)
class Patch:
    """Lay out the features of every patch: (..., *positions) → (..., *patches, *entries).

    Without a ``window`` the features are those of a single patch, laid out already.
    """

    window: Window | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """Read them."""
        return features if self.window is None else self.window(features)


@dataclass(frozen=True, eq=False)
class PatchWindow(OneWindow):
    """The windows of all features of a single patch: (*entries of the patch, channels, *kernel).

    ``window`` holds their positions alone; ``output`` is the coordinate of the patch.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Read the windows."""
        return self.window(self.own(x)).movedim(0, len(self.window.lines))


class ConvPooling(Running, Windowed, torch.nn.Module):
    """What convolutions with a pooling behind them share: the two layers, and the one formula of both.

    LeCun et al., "Gradient-based learning applied to document recognition", 1998: LeNet stacks two of these. Of all
    features in a patch only the greatest is kept, so the output says whether a pattern is there, not where.

    ``convolution`` holds weight and bias; ``pool`` slides over its features, without padding, and leaves out what is
    too little for one more patch at the end.

    Args:
        in_channels: the channels of the input.
        out_channels: the channels of the output.
        kernel_size: of the convolution, as are stride, padding, dilation, groups, bias and padding_mode: see ``Conv1d``
            to ``Conv3d``.
        stride: by how much the window moves.
        padding: numbers, "valid", "same" or, in 1-D, "causal".
        dilation: how far apart the entries of a kernel read.
        groups: into how many groups the channels are divided.
        bias: whether the features have a bias.
        padding_mode: how the input goes on beyond its ends.
        activation: works entry by entry: a function, or a module such as ``nn.Tanh()``; None for none.
        pool_size: how many features a patch has along each axis.
        pool_stride: by how many features the patch moves; by its size where not given.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        input (batch, in channels, *size), output (batch, out channels, *patches); or both without a batch.

    Raises:
        ValueError: an argument is unknown or contradicts another.
        RuntimeError: the input does not fit the layer.
    """

    formula = staticmethod(convolve_and_pool)
    layers: ClassVar[tuple[Any, Any]]

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
        *,
        activation: Callable[[Tensor], Tensor] | None = F.relu,
        pool_size: int | tuple[int, ...] = 2,
        pool_stride: int | tuple[int, ...] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        convolution, pool = self.layers
        window = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        self.convolution = convolution(in_channels, out_channels, *window, device=device, dtype=dtype)
        self.activation = torch.nn.Identity() if activation is None else activation
        size = self._each("pool_size", pool_size)
        self.pool = pool(size, size if pool_stride is None else self._each("pool_stride", pool_stride))

    def _each(self, name: str, value: int | tuple[int, ...]) -> tuple[int, ...]:
        """Return an argument of the pooling as one number for each axis."""
        each = (value,) * self.spatial if isinstance(value, int) else tuple(value)
        if len(each) != self.spatial or min(each) < 1:
            axes = ", ".join(AXES[self.spatial])
            raise ValueError(
                f"{label(self)}: {name} is {value}; give one number of features, from 1 on, or one for each axis "
                f"({axes})."
            )
        return each

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """How many entries a kernel has along each axis."""
        return self.convolution.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        """By how much the window of the convolution moves along each axis."""
        return self.convolution.stride

    @property
    def dilation(self) -> tuple[int, ...]:
        """How far apart the entries of a kernel read, along each axis."""
        return self.convolution.dilation

    @property
    def pool_size(self) -> tuple[int, ...]:
        """How many features a patch has along each axis."""
        return self.pool.kernel_size

    @property
    def pool_stride(self) -> tuple[int, ...]:
        """By how many features the patch moves along each axis."""
        return self.pool.stride

    @property
    def receptive_field(self) -> tuple[int, ...]:
        """How many neighbouring entries of the input one output sees, along each axis."""
        each = zip(self.convolution.reach, self.stride, self.pool_size, strict=True)
        return tuple(reach + (size - 1) * stride for reach, stride, size in each)

    def extra_repr(self) -> str:
        """Write the arguments that are not their defaults."""
        own, count = self.convolution, self.spatial
        window = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return written(
            window,
            padding=(own.padding, (0,) * count),
            dilation=(own.dilation, (1,) * count),
            groups=(own.groups, 1),
            bias=(own.bias is not None, True),
            padding_mode=(own.padding_mode, "zeros"),
            activation=(getattr(self.activation, "__name__", "relu"), "relu"),
            pool_size=(self.pool_size, None),
            pool_stride=(self.pool_stride, self.pool_size),
        )

    def forward(self, input: Tensor) -> Tensor:
        """Convolve and pool (batch, in channels, *size), or (in channels, *size) without a batch."""
        try:
            y = self._by_kernel(input)
            ran = "c"
            if y is None:
                y = self.pool(self.activation(self.convolution(input)))
                ran = self.convolution.__dict__.get("_ran", "torch")  # none is there where a compiler looks on
        except (RuntimeError, ValueError) as error:
            self._explain(error, input, mismatch(input, self.convolution.weight))
            raise
        self._was_run_by(ran)
        return y

    def _by_kernel(self, x: Tensor) -> Tensor | None:
        """Convolve and pool in one pass; None where the two layers are to do it, one after the other.

        The maximum is taken before the activation, which never falls: that one has fewer entries to compute then.
        """
        own = self.convolution
        if not worthwhile(x, self.spatial) or not rises_from_zero(self.activation) or watched(own, self.pool):
            return None
        y = own.convolve_and_pool(x, self.pool_size, self.pool_stride)
        return None if y is None else self.activation(y)

    def _patches(self, x: Tensor) -> Window:
        """Return which features lie under every window of the pooling."""
        positions = Window(self.convolution._lines(x)).positions
        return Window(tuple(self.pool._line(axis, size, x.device) for axis, size in enumerate(positions)))

    def _misfit(self, x: Tensor) -> str | None:
        if text := self.convolution._misfit(x):
            return text
        for axis, size in enumerate(x.shape[-self.spatial :]):
            features, patch = self.convolution._placement(axis, size)[1], self.pool_size[axis]
            if features < patch:
                name = AXES[self.spatial][axis]
                return (
                    f"but the patch spans {patch} features along the {name}, more than the {features} that the "
                    f"convolution makes of it. Use a smaller pool_size, or pad more."
                )
        return None

    def bind(
        self, input: Tensor, *, position: int | Sequence[int] | None = None, channel: int = 0, sample: int = 0
    ) -> dict[str, Any]:
        """Return the formula's arguments for this input.

        Args:
            input: (batch, in channels, *size), or (in channels, *size) without a batch.
            position: bind the patch of this one output; the formula then gives a single number.
            channel: the out channel of that output.
            sample: its place in the batch.
        """
        self._refuse_misfit(input)
        own, patches, reduce = self.convolution, self._patches(input), Maximum(self.spatial)
        if position is None:
            bound = own.bind(input)
            return bound | {"activation": self.activation, "patch": Patch(patches), "reduce": reduce}
        self._refuse_channel(channel)
        one = one_window(self, input, patches, position, own._reads(channel), channel, sample)
        lines = zip(own._lines(input), one.window.lines, strict=True)
        inside = Window(tuple(_of_positions(line, patch.coordinates[0]) for line, patch in lines))
        return {
            "x": input,
            "window": PatchWindow(inside, one.channels, one.output),
            "weight": own.weight[channel],
            "bias": 0.0 if own.bias is None else own.bias[channel],
            "activation": self.activation,
            "patch": Patch(),
            "reduce": reduce,
        }

    def window_at(
        self, input: Tensor, position: int | Sequence[int], channel: int = 0, sample: int = 0, **call: Any
    ) -> WindowView:
        """Lay the window open whose feature is the greatest of a patch; of equal ones, the first.

        See ``Windowed.window_at``; ``position`` and ``output`` are those of the patch.
        """
        bound = self.bind(input, position=position, channel=channel, sample=sample, **call)
        with torch.no_grad():
            features = self.formula(**{**bound, "reduce": torch.flatten})
        best = self.features_at(position)[int(features.argmax())]
        return replace(self.convolution.window_at(input, best, channel, sample), output=bound["window"].output)

    def features_at(self, position: int | Sequence[int]) -> list[tuple[int, ...]]:
        """Return the positions, row by row, of the features that the patch at a position holds."""
        place = (position,) if isinstance(position, int) else position
        each = zip(place, self.pool_stride, self.pool_size, strict=True)
        return list(itertools.product(*(range(p * stride, p * stride + size) for p, stride, size in each)))

    def symbols(self, *inputs: Tensor) -> list[SymbolShape]:
        """Return weight and bias with the reasons of their shapes; given an input, it, features and output too."""
        for x in inputs:
            self._refuse_misfit(x)
        facts = {"pool_size": self.pool_size, "pool_stride": self.pool_stride}
        found = [replace(s, name="features") if s.name == "y" else s for s in self.convolution.symbols(*inputs)]
        for x in inputs:
            features = found[-1]
            size = (*features.shape[: -self.spatial], *self._patches(x).positions)
            found.append(SymbolShape("y", size, features.axes, "convpool.output", False, {**features.facts, **facts}))
        return found


def _of_positions(line: Line, positions: Tensor) -> Line:
    """Keep the windows at these positions."""
    return Line(line.coordinates[positions], line.padding[positions])


class ConvPool1d(ConvPooling):
    """Convolve along one axis and keep the greatest feature of every stretch: see `ConvPooling`."""

    spatial = 1
    layers = (Conv1d, MaxPool1d)


class ConvPool2d(ConvPooling):
    """Convolve a picture and keep the greatest feature of every patch: see `ConvPooling`."""

    spatial = 2
    layers = (Conv2d, MaxPool2d)


class ConvPool3d(ConvPooling):
    """Convolve a volume and keep the greatest feature of every block: see `ConvPooling`."""

    spatial = 3
    layers = (Conv3d, MaxPool3d)
