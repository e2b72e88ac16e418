"""Torch's operators in the place of kernels: where they lose digits, and the one of GroupNorm and InstanceNorm."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pellucid.kernel.largest import largest_product

# From so many deviations away from 0 torch's operator loses digits, for it multiplies the input before it moves it.
FAR = 64.0


def is_far(mean: Tensor, reciprocal_deviation: Tensor) -> bool:
    """Whether torch's operator, which had these statistics, may have lost digits."""
    return not largest_product(mean, reciprocal_deviation) < FAR


def lies_as_picture(x: Tensor) -> bool:
    """Whether a sequence's channels lie side by side: torch knows that format of pictures, one pixel high or more."""
    return x.ndim == 3 and x.stride(1) == 1 and not x.is_contiguous()


def by_group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor | None:
    """Normalize each group of channels of each sample by torch's operator; None where it may have lost digits."""
    batch, channels, *space = x.shape
    if channels == groups and math.prod(space) == 1:  # of one entry it loses digits of β as soon as that is not 0
        return None
    if not x.is_contiguous():  # the operator, unlike F.group_norm, refuses what has not the suggested format
        # Where channels lie side by side its gradient of the parameters alone (torch 2.13) ends the process.
        alone = torch.is_grad_enabled() and not x.requires_grad
        x = x.contiguous(memory_format=torch.contiguous_format if alone else suggest_memory_format(x))
    weight, bias = (t if t is None else t.contiguous() for t in (weight, bias))  # it takes for granted that they are
    y, mean, rstd = torch.native_group_norm(x, weight, bias, batch, channels, math.prod(space), groups, eps)
    return None if is_far(mean, rstd) else y
