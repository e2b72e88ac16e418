"""Conv2d and Conv3d, over pictures and volumes, which may be brought into another memory format."""

from __future__ import annotations

from itertools import pairwise

import torch

from pellucid.errors import label
from pellucid.kernel.windows.window import FORMATS
from pellucid.nn.convolution.convolution import Convolution
from pellucid.nn.windows import extend


class FormattedConvolution(Convolution):
    """What convolutions share whose input may be brought into a memory format: that of torch for so many axes."""

    added = (*Convolution.added, "_memory_format")
    _memory_format: torch.memory_format | None = None

    @property
    def memory_format(self) -> torch.memory_format | None:
        """The format that a batch is brought into before it is convolved, and its result has; None leaves both alone.

        Only strides differ, and the format spreads: other layers answer in that of their input. Many networks are
        faster so, above all those of depthwise and grouped convolutions; others are not. `pellucid.swap` measures it.
        Parameters stay as they are, and so does input without a batch.

        Raises:
            ValueError: it is set to what is no such format, or to that of another number of axes.
        """
        return self._memory_format

    @memory_format.setter
    def memory_format(self, value: torch.memory_format | None) -> None:
        own = FORMATS[self.spatial]
        if value is None:
            self.__dict__.pop("_memory_format", None)
        elif value is own:
            self.__dict__["_memory_format"] = value
        else:
            raise ValueError(
                f"{label(self)}: memory_format is {value!r}; set it to {own}, or to None, which leaves the input as it "
                f"comes."
            )

    def extra_repr(self) -> str:
        """Write the arguments that are not their defaults."""
        given = super().extra_repr()
        return given if self._memory_format is None else f"{given}, memory_format={self._memory_format}"

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self._memory_format is None:
            return super()._conv_forward(input, weight, bias)
        if self.padding_mode == "circular":  # whose padding torch writes in the usual format
            margins = self._margins(input.shape[-self.spatial :])
            return self.convolve_padded(extend(input, margins, self.padding_mode), weight, bias)
        return self._formatted(super()._conv_forward(self._formatted(input), weight, bias))

    def convolve_padded(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Convolve what has its padding already."""
        return self._formatted(super().convolve_padded(self._formatted(x), weight, bias))

    def convolve_and_pool(self, x: torch.Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor | None:
        """Return the greatest of every patch of features by the kernel, in one pass; None where torch is to do it."""
        y = super().convolve_and_pool(self._formatted(x), size, stride)
        return None if y is None else self._formatted(y)

    def _formatted(self, x: torch.Tensor) -> torch.Tensor:
        """Bring a batch into the memory format, if there is one.

        Not by ``contiguous(memory_format=)``, which vmap does not have, and which lets a single channel stand as it is:
        torch would answer in the usual format.
        """
        if self._memory_format is None or x.dim() != self.spatial + 2:
            return x
        _, channel, *places = x.stride()
        if channel == 1 and all(outer >= inner for outer, inner in pairwise((*places, channel))):
            return x
        return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


class Conv2d(FormattedConvolution, torch.nn.Conv2d):
    """Convolve along height and width: pictures.

    A drop-in for ``torch.nn.Conv2d``, whose arguments, weights, results and errors it shares. In addition,
    ``padding="same"`` holds for every stride: ceil(size / stride) outputs along each axis, an odd entry of padding at
    the end; and ``layer.memory_format = torch.channels_last`` lets it work on pictures whose channels stand last.

    Shapes:
        input (batch, in channels, height, width), output (batch, out channels, *positions); or both without a batch.

    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998.
    """

    spatial = 2


class Conv3d(FormattedConvolution, torch.nn.Conv3d):
    """Convolve along depth, height and width: volumes, and video with time as depth.

    A drop-in for ``torch.nn.Conv3d``, whose arguments, weights, results and errors it shares; ``padding="same"`` as
    in ``Conv2d``, and ``layer.memory_format = torch.channels_last_3d`` as ``torch.channels_last`` there.

    Shapes:
        input (batch, in channels, depth, height, width), output (batch, out channels, *positions); or both without a
        batch.
    """

    spatial = 3
