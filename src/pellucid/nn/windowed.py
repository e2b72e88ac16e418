"""Layers that read their input through windows: one window laid open, and what is said of a wrong input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch

from pellucid.errors import label, shape_text
from pellucid.nn.axes import AXES, name_axes
from pellucid.nn.component import Component, SymbolShape
from pellucid.nn.windows import Window

LEAST = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}


@dataclass(frozen=True, eq=False)
class WindowView:
    """One window laid open.

    Attributes:
        entries: what it reads: (channels, *kernel) for a convolution, (*kernel) for a pooling.
        coordinates: int64 (*kernel, axes): the input coordinate of every entry, -1 where nothing is read.
        padding: bool (*kernel): which entries lie outside the input. A reflecting, replicating or circular padding
            still reads a real coordinate there.
        kernel: (channels, *kernel): what the entries are multiplied with; None for a pooling.
        bias: what is added, a number in a tensor; 0.0 for a convolution without a bias, None for a pooling.
        channels: the input channels that are read.
        output: the coordinate of the result: (sample, channel, *position), or (channel, *position) if unbatched.
    """

    entries: torch.Tensor
    coordinates: torch.Tensor
    padding: torch.Tensor
    kernel: torch.Tensor | None
    bias: torch.Tensor | float | None
    channels: range
    output: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class OneWindow:
    """The window of a single output: reads (channels, *entries), or (*entries) of a single channel.

    ``window`` holds that position alone; ``output`` is its coordinate, as in ``WindowView``.
    """

    window: Window
    channels: range | int
    output: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the window's entries, channels among them."""
        return tuple(range(-len(self.window.lines) - isinstance(self.channels, range), 0))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Read the window."""
        count = len(self.window.lines)
        entries = self.window(self.own(x))  # (channels, 1, ..., *entries)
        return entries.reshape(entries.shape[: -2 * count] + entries.shape[-count:])

    def own(self, x: torch.Tensor) -> torch.Tensor:
        """Return the part of an input that this output's channel may read: (channels, *size) or (*size)."""
        channels = slice(self.channels.start, self.channels.stop) if isinstance(self.channels, range) else self.channels
        return x[self.output[0], channels] if x.ndim == len(self.window.lines) + 2 else x[channels]


class Windowed(Component):
    """A layer whose every output is computed from what one window reads; ``spatial`` counts the axes it moves along."""

    spatial: ClassVar[int]
    out_channels: int  # of a convolution

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a number by which no window lies anywhere, which a kernel would take for granted."""
        if name in LEAST:
            each = value if isinstance(value, (tuple, list)) else (value,)
            if any(isinstance(n, int) and n < LEAST[name] for n in each):
                layer = cast(torch.nn.Module, self)
                raise RuntimeError(f"{label(layer)}: {name} is {value}, but it is at least {LEAST[name]}.")
        super().__setattr__(name, value)

    def _misfit(self, x: torch.Tensor) -> str | None:
        """Say how the shape of an input does not fit; None if it does."""
        raise NotImplementedError

    def _refuse_misfit(self, x: torch.Tensor) -> None:
        """Raise if the shape of an input does not fit."""
        if text := self._misfit(x):
            raise self._refusal(x, text)

    def _explain(self, error: Exception, x: torch.Tensor, otherwise: str | None = None) -> None:
        """Raise what torch raised in words that name the layer, and the reason where it is known."""
        known = (RuntimeError, ValueError, NotImplementedError)  # any other is not ours to put in words
        kind = type(error) if type(error) in known else None
        if kind and (text := self._misfit(x) or otherwise):
            raise self._refusal(x, text, kind) from error
        if kind:
            raise kind(f"{label(cast(torch.nn.Module, self))}: {error}") from error

    def _refusal(self, x: torch.Tensor, text: str, kind: type[Exception] = RuntimeError) -> Exception:
        shape = shape_text(x.shape, name_axes(x, self.spatial))
        return kind(f"{label(cast(torch.nn.Module, self))}: the input is {shape}, {text}")

    def _refuse_channel(self, channel: int) -> None:
        """Raise unless there is such an out channel."""
        if not 0 <= channel < self.out_channels:
            name = label(cast(torch.nn.Module, self))
            raise IndexError(f"{name}: there is no out channel {channel}; there are {self.out_channels}.")

    def _input_and_output(
        self, x: torch.Tensor, positions: Sequence[int], reason: str, facts: Mapping[str, Any]
    ) -> tuple[SymbolShape, SymbolShape]:
        """The symbols x and y of a convolution, and why y has its shape."""
        axes = AXES[self.spatial]
        lead = ("batch",) if x.ndim == len(axes) + 2 else ()
        size = (*x.shape[: len(lead)], self.out_channels, *positions)
        given = SymbolShape("x", tuple(x.shape), (*lead, "in channels", *axes), "conv.input", False, facts)
        return given, SymbolShape("y", size, (*lead, "out channels", *axes), reason, False, facts)

    def window_at(
        self, input: torch.Tensor, position: int | Sequence[int], channel: int = 0, sample: int = 0, **call: Any
    ) -> WindowView:
        """Lay one window open.

        Args:
            input: what ``forward`` reads.
            position: the output position whose window is wanted, one number for each axis of space.
            channel: the output channel.
            sample: the place in the batch; without meaning for an unbatched input.
            **call: forward's further arguments.

        Raises:
            IndexError: there is no such position, channel or sample.
        """
        bound = self.bind(input, position=position, channel=channel, sample=sample, **call)
        one: OneWindow = bound["window"]
        first = (0,) * len(one.window.lines)
        return WindowView(
            entries=one(bound["x"]),
            coordinates=one.window.coordinates[first],
            padding=one.window.padding[first],
            kernel=bound.get("weight"),
            bias=bound.get("bias"),
            channels=one.channels if isinstance(one.channels, range) else range(one.channels, one.channels + 1),
            output=one.output,
        )


def one_window(
    owner: torch.nn.Module,
    x: torch.Tensor,
    window: Window,
    position: int | Sequence[int],
    channels: range | int,
    channel: int,
    sample: int,
) -> OneWindow:
    """Keep the window of one output, which reads these channels of ``x``."""
    counts = window.positions
    place = (position,) if isinstance(position, int) else tuple(position)
    if len(place) != len(counts) or not all(0 <= p < n for p, n in zip(place, counts, strict=True)):
        raise IndexError(
            f"{label(owner)}: there is no output at position {place}; the positions are "
            f"{shape_text(counts, AXES[len(counts)])}, counted from 0."
        )
    if x.ndim < len(counts) + 2:
        return OneWindow(window.at(place), channels, (channel, *place))
    if not 0 <= sample < x.shape[0]:
        raise IndexError(f"{label(owner)}: there is no sample {sample} in a batch of {x.shape[0]}.")
    return OneWindow(window.at(place, sample), channels, (sample, channel, *place))


def wrong_axes(x: torch.Tensor, count: int, channels: str = "channels") -> str:
    """Say that an input has too few or too many axes."""
    wanted = f"{channels}, {', '.join(AXES[count])}"
    cure = f"If it lacks the channels, x.unsqueeze({-1 - count}) adds one."
    if x.ndim > count + 2:
        cure = "If its first axes all count samples, x.flatten(0, 1) joins two of them."
    return f"but the layer reads (batch, {wanted}), or ({wanted}) without a batch. {cure}"
