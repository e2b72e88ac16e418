"""Transposed convolution: the same formula over the input spread out by its stride, with the kernel turned round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.nn.modules.conv import _ConvTransposeNd

from pellucid.errors import label, mismatch, refuse_others
from pellucid.kernel.windows import convolve as kernel
from pellucid.kernel.windows.window import Geometry, worthwhile
from pellucid.nn.axes import AXES
from pellucid.nn.component import LEFT
from pellucid.nn.convolution.convolution import Convolution
from pellucid.nn.windows import BEYOND, Line, Mode, at_least_zero, extend, slide

CONVOLVE: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class TransposedConvolution(Convolution, _ConvTransposeNd):
    """What the transposed convolutions share: an output place reads the inputs that were spread onto its window."""

    paddings = ("same",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, ...] = 1,
        padding_mode: Mode = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        self._check_padding(padding, padding_mode)
        if padding_mode not in BEYOND:
            raise ValueError(f"{label(self)}: padding_mode is {padding_mode!r}; it is one of {tuple(BEYOND)}.")
        numbers = 0 if padding == "same" else padding
        torch_init = super(Convolution, self).__init__  # that of the class of torch.nn, in its order of arguments
        first = (in_channels, out_channels, kernel_size, stride, numbers, output_padding, groups, bias, dilation)
        torch_init(*first, device=device, dtype=dtype)  # type: ignore[call-arg]
        self.padding_mode = padding_mode
        if padding == "same":
            if any(self.output_padding):
                raise ValueError(
                    f"{label(self)}: padding='same' fixes the output size, so output_padding={output_padding} cannot "
                    f"add to it. Leave output_padding out."
                )
            self.padding = padding

    @property
    def receptive_field(self) -> tuple[int, ...]:
        """How many neighbouring entries of the input one output sees, along each axis."""
        return tuple(-(-reach // stride) for reach, stride in zip(self.reach, self.stride, strict=True))

    def forward(self, input: torch.Tensor, output_size: Sequence[int] | None = None) -> torch.Tensor:
        """Convolve (batch, in channels, *size), or (in channels, *size) without a batch.

        ``output_size`` picks one of the output sizes that a stride above 1 leaves open, as in torch.nn.
        """
        refuse_others(self, input)
        try:
            return self._spread(input, self.weight, self.bias, output_size)
        except RuntimeError as error:
            self._explain(error, input, mismatch(input, self.weight))
            raise

    def _spread(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, output_size: Sequence[int] | None
    ) -> torch.Tensor:
        """Convolve with weight and bias, which a parametrization computes anew whenever they are asked for."""
        count = self.spatial
        size, margins = x.shape[-count:], self._margins(x.shape[-count:])
        wanted = self._output_size(x, output_size)
        crops, extras, rest = [], [], []
        for axis, (before, after) in enumerate(margins):
            crop = self._crop(axis) + before * self.stride[axis]  # cut off before the first output
            whole = (size[axis] + before + after - 1) * self.stride[axis] + self.reach[axis]
            excess = whole - 2 * crop - wanted[axis]
            crops.append(crop)
            extras.append(at_least_zero(-excess))
            rest.append((0, -at_least_zero(excess)))
        if self.padding_mode != "zeros":
            x = extend(x, margins, self.padding_mode)
        y = self._by_transposed_kernel(x, weight, bias, crops, extras)
        if y is None:
            self._was_run_by("torch")
            y = CONVOLVE[count](x, weight, bias, self.stride, crops, extras, self.groups, self.dilation)
        return extend(y, rest, "zeros") if any(after for _, after in rest) else y

    def _by_transposed_kernel(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        crops: Sequence[int],
        extras: Sequence[int],
    ) -> torch.Tensor | None:
        """Convolve by the kernel; None where torch's operator is to do it."""
        met = self._circumstances(x, weight.requires_grad, bias is not None and bias.requires_grad)
        if met is LEFT or not worthwhile(x, self.spatial):
            return None
        axes = zip(x.shape[2:], self.stride, self.reach, crops, extras, strict=True)
        spread = tuple((n - 1) * stride + reach - 2 * crop + extra for n, stride, reach, crop, extra in axes)
        after = tuple(at_least_zero(crop - extra) for crop, extra in zip(crops, extras, strict=True))
        geometry = Geometry(self.kernel_size, self.stride, self.dilation, tuple(crops), after)
        y = self._run_kernel(x, weight, bias, kernel.Lies(geometry, self.groups, spread=spread))
        if y is None:
            self._leave(x, met)
        return y

    def _output_size(self, x: torch.Tensor, output_size: Sequence[int] | None) -> list[int]:
        """Return how many outputs there are along each axis."""
        count = self.spatial
        sizes = [self._placement(axis, size)[1] for axis, size in enumerate(x.shape[-count:])]
        if output_size is None:
            return sizes
        wanted = list(output_size)[-count:]
        if self.padding == "same" and wanted != sizes:
            raise ValueError(
                f"{label(self)}: output_size is {wanted}, but padding='same' makes it {sizes}: input size × stride. "
                f"Leave output_size out, or give padding as numbers."
            )
        if self.padding != "same":
            geometry = (self.stride, self.padding, self.kernel_size, count, self.dilation)
            self._output_padding(x, output_size, *geometry)  # type: ignore[arg-type]
        return wanted

    def _crop(self, axis: int) -> int:
        """Return how many of the first outputs are left out: what torch.nn calls the padding."""
        if self.padding == "same":
            return max(self.reach[axis] - self.stride[axis], 0) // 2
        return cast("tuple[int, ...]", self.padding)[axis]

    def _placement(self, axis: int, size: Any) -> tuple[Any, Any]:
        crop, reach, stride = self._crop(axis), self.reach[axis], self.stride[axis]
        if self.padding == "same":
            return reach - 1 - crop, size * stride
        return reach - 1 - crop, (size - 1) * stride - 2 * crop + reach + self.output_padding[axis]

    def _margins(self, size: Sequence[int]) -> list[tuple[int, int]]:
        if self.padding_mode == "zeros":
            return [(0, 0) for _ in size]
        margins = []
        for axis, entries in enumerate(size):
            before, positions = self._placement(axis, entries)
            last = (positions - 1 + self._crop(axis)) // self.stride[axis]  # the entry that the last output reads first
            margins.append((at_least_zero(before // self.stride[axis]), at_least_zero(last - entries + 1)))
        return margins

    def _size_misfit(self, axis: int, size: Sequence[int]) -> str | None:
        if size[axis] > 0 and self._placement(axis, size[axis])[1] <= 0:
            return (
                f"but padding={self.padding!r} cuts off every output along the {AXES[len(size)][axis]}: a kernel that "
                f"spans {self.reach[axis]} places leaves no more of it. Use less padding."
            )
        return super()._size_misfit(axis, size)

    def _lines(self, x: torch.Tensor, output_size: Sequence[int] | None = None, **call: Any) -> tuple[Line, ...]:
        sizes, positions = x.shape[-self.spatial :], self._output_size(x, output_size)
        return tuple(
            slide(
                size,
                positions[axis],
                self.kernel_size[axis],
                dilation=self.dilation[axis],
                before=self._placement(axis, size)[0],
                spread=self.stride[axis],
                mode=self.padding_mode,
                device=x.device,
            )
            for axis, size in enumerate(sizes)
        )

    def _kernels(self) -> torch.Tensor:
        space = tuple(range(-self.spatial, 0))
        each = self.weight.unflatten(0, (self.groups, -1))  # (groups, in per group, out per group, *kernel)
        return each.transpose(1, 2).flatten(0, 1).flip(space)


class ConvTranspose1d(TransposedConvolution, torch.nn.ConvTranspose1d):
    """Convolve a sequence spread out by its stride: the way back up from ``Conv1d``.

    A drop-in for ``torch.nn.ConvTranspose1d``, whose arguments, weights, results and errors it shares. In addition:

    Args:
        padding: besides numbers, "same": size · stride outputs along each axis, the adjoint of a convolution with
            the same stride and ``padding="same"``.
        padding_mode: besides "zeros", "reflect", "replicate" and "circular": how the input goes on beyond its ends,
            before it is spread out.

    Shapes:
        input (batch, in channels, length), output (batch, out channels, positions); or both without a batch.

    Raises:
        ValueError: an argument is unknown or contradicts another.
        RuntimeError: the input does not fit the layer.

    Source: Zeiler et al., "Deconvolutional networks", 2010.
    """

    spatial = 1


class ConvTranspose2d(TransposedConvolution, torch.nn.ConvTranspose2d):
    """Convolve a picture spread out by its stride: the way back up from ``Conv2d``.

    A drop-in for ``torch.nn.ConvTranspose2d``, with the further paddings of ``ConvTranspose1d``.

    Shapes:
        input (batch, in channels, height, width), output (batch, out channels, *positions); or both without a batch.
    """

    spatial = 2


class ConvTranspose3d(TransposedConvolution, torch.nn.ConvTranspose3d):
    """Convolve a volume spread out by its stride: the way back up from ``Conv3d``.

    A drop-in for ``torch.nn.ConvTranspose3d``, with the further paddings of ``ConvTranspose1d``.

    Shapes:
        input (batch, in channels, depth, height, width), output (batch, out channels, *positions); or both without a
        batch.
    """

    spatial = 3
