"""Variable lengths: how many steps of each sequence of a batch are real, checked once and made a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pellucid.errors import label

Lengths = torch.Tensor | Sequence[int] | int


def check(
    lengths: Lengths, batch: int, time: int, owner: torch.nn.Module, device: torch.device | str | None = None
) -> torch.Tensor:
    """Return the lengths as an int64 tensor of shape (batch,), or say what is wrong with them.

    Values are read (one comparison, one synchronisation on an accelerator) only where they exist: not while
    compiling or exporting, under ``vmap``, on the meta device, or while a CUDA graph is captured.

    Args:
        lengths: a tensor of any integer dtype on any device, a list, or one number for a batch of one.
        batch: how many sequences there are.
        time: how many steps the longest may have.
        owner: the layer that is named in an error.
        device: where the result is needed, usually that of the input; by default where the lengths are.

    Raises:
        TypeError: the lengths are no whole numbers.
        RuntimeError: there are not ``batch`` of them, or one is negative or greater than ``time``.
    """
    given = whole(lengths, owner)
    given = given if device is None else given.to(device)
    if given.ndim == 0 and batch == 1:
        given = given.reshape(1)
    if given.ndim != 1 or given.shape[0] != batch:
        raise RuntimeError(
            f"{label(owner)}: lengths are of shape {tuple(given.shape)}, the input is a batch of {batch}. "
            f"Pass one for each sequence, shape ({batch},). Does the layer find the batch on its right axis?"
        )
    if known_any((given < 0) | (given > time)):
        place = int(((given < 0) | (given > time)).nonzero()[0])
        value = int(given[place])
        fault = "is negative" if value < 0 else f"exceeds the {time} steps of the input"
        raise RuntimeError(
            f"{label(owner)}: lengths[{place}] is {value}, which {fault}. "
            f"A length counts the real steps of its sequence, from 0 to {time}."
        )
    return given


def mask(lengths: torch.Tensor, time: int) -> torch.Tensor:
    """Mark the real steps: a bool tensor of shape (batch, time) for lengths of shape (batch,)."""
    return torch.arange(time, device=lengths.device) < lengths.unsqueeze(-1)


def known_any(condition: torch.Tensor) -> bool:
    """Tell whether a condition holds anywhere, as far as its values can be read: see ``check``."""
    if torch.compiler.is_compiling() or (condition.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    try:
        return bool(condition.any())
    except RuntimeError:  # vmap, the meta device, fake tensors and symbolic tracing have no values to read
        return False


def fill(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Put real steps where padding is: x (time, batch, features) with each sequence's last step repeated to the end.

    What a formula computes at padding is thrown away, but its gradient there is 0 times a slope, and log(0) has none.
    At a real step it has one. An empty sequence borrows from another; zeros stand where there is no real step at all.
    """
    time, batch = x.shape[:2]
    if time == 0 or batch == 0:
        return x
    filled = lengths > 0
    donor = torch.where(filled, torch.arange(batch, device=x.device), filled.int().argmax())
    step = (lengths[donor] - 1).clamp(min=0)
    real = torch.where(filled.any(), x.detach()[step, donor], 0)
    return torch.where(mask(lengths, time).t().unsqueeze(-1), x, real)


def whole(lengths: Lengths, owner: torch.nn.Module) -> torch.Tensor:
    """Return lengths as an int64 tensor, or raise a TypeError that says that they are no whole numbers."""
    try:
        given = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{label(owner)}: lengths are {lengths!r}; pass an integer tensor or a list of integers, "
            f"one for each sequence of the batch."
        ) from error
    if given.numel() and (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool):
        raise TypeError(
            f"{label(owner)}: lengths are of {given.dtype}, but a length is a whole number of steps. "
            f"Pass integers, as in lengths.long()."
        )
    return given.long()  # an empty list has no dtype of its own
