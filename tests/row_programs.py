"""Row programs under test: tensors that lie in memory in every way, trained layers, and how exact results are."""

from __future__ import annotations

import itertools
import math
import os

import torch
from hypothesis import HealthCheck, settings

few = settings(
    max_examples=int(os.environ.get("NESTED_EXAMPLES", "12")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def lay(x: torch.Tensor, layout: str, order: int) -> torch.Tensor:
    """The same values, lying in memory in another way."""
    if layout == "contiguous" or x.ndim < 2:
        return x.contiguous()
    if layout == "permuted":
        places = next(itertools.islice(itertools.permutations(range(x.ndim)), order % math.factorial(x.ndim), None))
        return x.permute(places).contiguous().permute([places.index(axis) for axis in range(x.ndim)])
    if layout == "gaps":
        wide = x.new_full(
            [size * 2 + 1 if axis % 2 == order % 2 else size + 1 for axis, size in enumerate(x.shape)], 7.0
        )
        places = [slice(1, 2 * n + 1, 2) if a % 2 == order % 2 else slice(0, n) for a, n in enumerate(x.shape)]
        wide[tuple(places)] = x
        return wide[tuple(places)]
    if layout == "rows":  # a slice of a wider tensor: rows without gaps
        wide = x.new_full((*x.shape[:-1], x.shape[-1] + 3), 7.0)
        wide[..., 1:-2] = x
        return wide[..., 1:-2]
    if layout == "channels last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    axis = order % x.ndim
    return x.narrow(axis, 0, 1).expand(x.shape)


LAYOUTS = ["contiguous", "permuted", "gaps", "rows", "channels last", "expanded"]


def close(found: torch.Tensor, wanted: torch.Tensor, terms: int = 1, what: str = "") -> None:
    """Compare with the float64 result; ``terms`` is how many entries of size 1 were added up."""
    bound = {torch.float64: 1e-11}.get(found.dtype, 2e-5)
    scale = max(1.0, math.sqrt(terms), float(wanted.detach().abs().max()))
    torch.testing.assert_close(
        found.double() / scale, wanted.reshape(found.shape) / scale, rtol=bound, atol=bound, msg=what or None
    )


def trained(layer: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) + 1)
    return layer


def rounded_once(found: torch.Tensor, exact: torch.Tensor, slack: float = 2e-5) -> None:
    """A value within ``slack`` of the exact one, rounded to the found one's type."""
    width = slack * exact.abs().clamp(min=1)
    low, high = ((exact + way * width).to(found.dtype) for way in (-1, 1))
    assert ((low <= found) & (found <= high)).all(), (found - exact).abs().max()
