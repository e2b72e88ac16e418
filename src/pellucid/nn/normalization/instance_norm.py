"""Instance normalization: averages over the space of each channel of each sample."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import label, refuse_others, shape_text
from pellucid.nn import lengths as real_lengths
from pellucid.nn.axes import AXES, name_axes
from pellucid.nn.normalization.averages import Over
from pellucid.nn.normalization.batch_norm import Remembering, unbiased_of
from pellucid.nn.normalization.by_torch import by_group_norm
from pellucid.nn.normalization.formula import ALONE, Company
from pellucid.nn.normalization.normalization import wrong_channels


class InstanceNormFamily(Remembering):
    """What InstanceNorm1d, 2d and 3d share.

    Ulyanov, Vedaldi and Lempitsky, "Instance normalization: the missing ingredient for fast stylization", 2016.
    Arguments, parameters and buffers: those of torch.nn's layer of the same name. The batch may be missing.

    Raises:
        ValueError: the input has a wrong number of axes; another number of channels than ``num_features`` of an
            affine layer; or a single position of space, where all would become 0.
        RuntimeError: another number of channels than the running statistics.
    """

    space: int  # how many axes of space there are

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes."""
        names = name_axes(x, self.space)
        wanted = f"(batch, channels {self.num_features}, {', '.join(AXES[self.space])}), or without the batch"
        if not names:
            raise self._misfit(x, wanted, "Is it another of InstanceNorm1d, 2d and 3d?", ValueError)
        if x.shape[-1 - self.space] != self.num_features and (self.affine or self.track_running_stats):
            kind = ValueError if self.affine else RuntimeError
            batched = x if x.ndim == self.space + 2 else x.unsqueeze(0)
            raise self._misfit(x, wanted, wrong_channels(batched, self.num_features), kind, names)
        return names

    def forward(self, input: Tensor, lengths: real_lengths.Lengths | None = None, mask: Tensor | None = None) -> Tensor:
        """Normalize; see `NormalizationFamily` for lengths and mask."""
        if lengths is not None or mask is not None:
            refuse_others(self, input)
            if input.ndim == self.space + 1:
                return super().forward(input.unsqueeze(0), lengths, mask).squeeze(0)
        return super().forward(input, lengths, mask)

    def bind(
        self, input: Tensor, lengths: real_lengths.Lengths | None = None, mask: Tensor | None = None
    ) -> dict[str, Any]:
        """Return what the formula's symbols stand for; a batch of one for an input without batch."""
        return super().bind(input.unsqueeze(0) if input.ndim == self.space + 1 else input, lengths, mask)

    def with_company(self, input: Tensor, company: Company) -> Tensor | None:
        """Compute in one pass what stands around the layer too; None where that has no kernel."""
        self._refuse_single_element(input)
        return super().with_company(input, company)

    def _plain(self, input: Tensor) -> Tensor:
        self._refuse_single_element(input)
        return super()._plain(input)

    def _refuse_single_element(self, input: Tensor) -> None:
        if self._reads_batch() and math.prod(input.shape[-self.space :]) == 1:
            raise ValueError(
                f"{label(self)}: Expected more than 1 spatial element when training, but the input has the shape "
                f"{shape_text(input.shape, name_axes(input, self.space))}. One value has no deviation from its mean."
            )

    def _by_operator(self, input: Tensor) -> Tensor | None:
        alone = self._reads_batch() and not self._observes()
        if input.ndim != self.space + 2 or not alone or input.shape[1] != self.num_features:
            return None
        return by_group_norm(input, input.shape[1], self.weight, self.bias, self.eps)

    def _by_kernel(self, input: Tensor, real: Tensor | None, company: Company = ALONE) -> Tensor | None:
        if input.shape[-1 - self.space] != self.num_features:
            return None  # torch's operator warns of that
        if input.ndim == self.space + 2:
            return super()._by_kernel(input, real, company)
        if company.tensors:
            return None
        y = super()._by_kernel(input.unsqueeze(0), real, company)
        return None if y is None else y.squeeze(0)

    def _average_over(self, x: Tensor) -> tuple[int, ...]:
        return tuple(range(x.ndim - self.space, x.ndim))

    def _affine_shape(self, x: Tensor) -> tuple[int, ...]:
        return (x.shape[-1 - self.space],)

    def _reads_batch(self) -> bool:
        return self.training or not self.track_running_stats

    def _observes(self) -> bool:
        return self._reads_batch() and self.running_mean is not None  # whatever track_running_stats has become

    def _remember(self, average: Any, x: Tensor, mu: Tensor, var: Tensor) -> None:
        if not self._observes() or self.momentum is None:
            return
        count = average.count(x).expand(x.shape[0], x.shape[1], *(1,) * self.space)
        unbiased = unbiased_of(var, count)
        # A sample without steps has no mean, one with a single step no unbiased variance.
        for running, value, least in ((self.running_mean, mu, 1), (self.running_var, unbiased, 2)):
            seen = count >= least
            self._update(running, Over((0,), seen)(value).flatten(), seen.any(0).flatten(), self.momentum)


class InstanceNorm1d(InstanceNormFamily, torch.nn.InstanceNorm1d):
    """Normalize each channel of each sample. Input and output: (batch, channels, length) or (channels, length).

    Arguments: those of ``torch.nn.InstanceNorm1d``; ``lengths`` count along the last axis. See `InstanceNormFamily`.
    """

    space = 1


class InstanceNorm2d(InstanceNormFamily, torch.nn.InstanceNorm2d):
    """Normalize each channel of each sample. Input and output: (batch, channels, height, width), or unbatched.

    Arguments: those of ``torch.nn.InstanceNorm2d``; ``mask`` is (batch, height, width). See `InstanceNormFamily`.
    """

    space = 2


class InstanceNorm3d(InstanceNormFamily, torch.nn.InstanceNorm3d):
    """Normalize each channel of each sample. Input and output: (batch, channels, depth, height, width), or unbatched.

    Arguments: those of ``torch.nn.InstanceNorm3d``; ``mask`` is (batch, depth, height, width). See
    `InstanceNormFamily`.
    """

    space = 3
