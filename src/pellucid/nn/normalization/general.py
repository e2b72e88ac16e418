"""The general member: any axes averaged, γ and β along any axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.nn import lengths as real_lengths
from pellucid.nn.normalization.formula import ALONE, Company
from pellucid.nn.normalization.normalization import NormalizationFamily
from pellucid.nn.padding import real_entries


class Normalization(NormalizationFamily):
    """The general member: any axes averaged, γ and β along any axes, statistics of the input itself.

    ``Normalization(axes=-1, affine_axes=-1, shape=64)`` is ``LayerNorm(64)``; ``Normalization(axes=(0, 2),
    affine_axes=1, shape=16)`` is what ``BatchNorm1d(16)`` computes in training.

    Input and output: any shape that has these axes. ``mask`` broadcasts to the input itself (its last axes first).
    Where ``affine_axes`` do not ascend, the formula runs in plain torch.

    Args:
        axes: the axes that are averaged.
        affine_axes: the axes along which γ and β vary; none by default: no γ, no β.
        shape: the sizes of ``affine_axes``.
        eps: added to the variance.
        bias: whether there is a β.
        time_axis: where ``lengths`` count.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: ``axes`` is empty, or ``shape`` has not as many sizes as there are ``affine_axes``.
        RuntimeError: an input has not these axes, or another size along ``affine_axes``.
    """

    def __init__(
        self,
        axes: int | Sequence[int],
        affine_axes: int | Sequence[int] = (),
        shape: int | Sequence[int] = (),
        eps: float = 1e-5,
        *,
        bias: bool = True,
        time_axis: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.averaged, self.affine_axes, self.shape = _tuple(axes), _tuple(affine_axes), _tuple(shape)
        self.eps, self.time_axis = eps, time_axis
        if not self.averaged:
            raise ValueError("nn.Normalization: axes is empty; name at least one axis to average over.")
        if len(self.affine_axes) != len(self.shape):
            raise ValueError(
                f"nn.Normalization: affine_axes={self.affine_axes} and shape={self.shape} must have equal lengths: one "
                f"size for each axis along which γ and β vary."
            )
        affine = bool(self.affine_axes)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = torch.nn.Parameter(torch.ones(self.shape, **options)) if affine else None
        self.bias = torch.nn.Parameter(torch.zeros(self.shape, **options)) if affine and bias else None

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes by their numbers."""
        names = tuple(f"axis {axis}" for axis in range(x.ndim))
        used = (*self.averaged, *self.affine_axes)
        if not all(-x.ndim <= axis < x.ndim for axis in used):
            raise self._misfit(x, f"inputs with the axes {sorted(set(used))}", "Add axes to it.", RuntimeError, names)
        if len(sizes := {axis % x.ndim for axis in self.averaged}) != len(self.averaged):
            raise self._misfit(x, f"axes={self.averaged} as {len(sizes)}", "Name each once.", RuntimeError, names)
        for axis, size in zip(self.affine_axes, self.shape, strict=True):
            if x.shape[axis] != size:
                wanted = f"size {size} along axis {axis % x.ndim}"
                raise self._misfit(x, wanted, f"Build it with shape {x.shape[axis]} there.", RuntimeError, names)
        return names

    def extra_repr(self) -> str:
        """Write the arguments."""
        affine = f", affine_axes={self.affine_axes}, shape={self.shape}" if self.affine_axes else ""
        return f"axes={self.averaged}{affine}, eps={self.eps}, bias={self.bias is not None}"

    def _real(
        self, x: Tensor, axes: Sequence[str], lengths: real_lengths.Lengths | None, mask: Tensor | None
    ) -> Tensor | None:
        time = self.time_axis if x.ndim > self.time_axis else None
        real = real_entries(self, x.unsqueeze(-1), (*axes, "1"), lengths, mask, -1, time)
        return None if real is None else real.squeeze(-1)

    def _plain(self, input: Tensor) -> Tensor:
        y = self._by_kernel(input, None)
        return self._by_formula(input, None) if y is None else y

    def _by_kernel(self, input: Tensor, real: Tensor | None, company: Company = ALONE) -> Tensor | None:
        places = [axis % input.ndim for axis in self.affine_axes]
        return super()._by_kernel(input, real, company) if places == sorted(places) else None

    def _kind(self) -> tuple[Any, ...]:
        return (Normalization, self.averaged, self.affine_axes)

    def _average_over(self, x: Tensor) -> tuple[int, ...]:
        return tuple(axis % x.ndim for axis in self.averaged)

    def _affine_axes(self) -> tuple[str, ...]:
        return tuple(f"axis {axis}" for axis in self.affine_axes)

    def _affine_shape(self, x: Tensor) -> tuple[int, ...]:
        return self.shape

    def _spread(self, parameter: Tensor, x: Tensor) -> Tensor:
        places = [axis % x.ndim for axis in self.affine_axes]
        order = sorted(range(len(places)), key=places.__getitem__)
        sizes = [x.shape[axis] if axis in places else 1 for axis in range(x.ndim)]
        return parameter.permute(order).reshape(sizes)


def _tuple(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
