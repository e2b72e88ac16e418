"""Values of any structure: the tensors in what a model takes and gives, and how far two of them are apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return an example as positional and keyword arguments."""
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple) and not isinstance(example, PackedSequence):
        return example, {}
    return (example,), {}


def tensors(value: Any) -> Iterator[Tensor]:
    """Find the tensors in tuples, lists, mappings, packed sequences and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to the tensors in tuples, lists, dicts and packed sequences."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, PackedSequence):
        return value._replace(data=function(value.data))
    if isinstance(value, dict):
        return {key: mapped(function, part) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(mapped(function, part) for part in value)
    return value


def largest(x: Tensor) -> float:
    """Return the largest finite magnitude."""
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def difference(a: Tensor, b: Tensor, scale: float | None = None) -> float:
    """Return the largest difference relative to the scale, b's largest entry by default; infinite where only one is."""
    if a.shape != b.shape:
        return float("inf")
    if not b.is_floating_point() and not b.is_complex():
        return 0.0 if torch.equal(a, b) else float("inf")
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite) or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return float("inf")
    wide = torch.complex128 if b.is_complex() else torch.float64
    worst = largest(a[finite].to(wide) - b[finite].to(wide))
    scale = largest(b) if scale is None else scale
    return worst / scale if scale else worst


def ramp(outputs: Sequence[Tensor]) -> Tensor | None:
    """Return the sum along a ramp of all that has a gradient; None where nothing has."""
    total = None
    for y in outputs:
        if y.requires_grad:
            y = torch.view_as_real(y) if y.is_complex() else y
            wide = torch.promote_types(y.dtype, torch.float32)
            along = torch.linspace(-1, 1, y.shape[-1] if y.ndim else 1, dtype=wide, device=y.device)
            part = (y.to(wide) * along).sum()
            total = part if total is None else total + part
    return total
