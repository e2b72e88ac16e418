"""Pooling by `c/pool.h`: the greatest entry under every window, or their sum times a scale."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pellucid.kernel import memory
from pellucid.kernel.autocast import autocast_dtype
from pellucid.kernel.backends import chosen_backend, warn_of_fallback
from pellucid.kernel.build import BuildError
from pellucid.kernel.choice import faster, remembered, rounded
from pellucid.kernel.tensors import differentiate, runs, torch_has_to
from pellucid.kernel.windows.window import BEST, DX, DY, MOST_TAPS, Geometry, Windows, X, Y, readable

Reference = Callable[[Tensor], Tensor]
NAME = "pool"
OPERATIONS_OF_AN_ENTRY = 20  # of the input, in the time that they take: most of it is the way into a plane and back


def greatest(x: Tensor, geometry: Geometry, reference: Reference) -> Tensor | None:
    """Return the greatest entry under every window, differentiable; None where torch's operator is to do it.

    Which of the two is faster is measured once, as for `convolve.run`.

    Args:
        x: (batch, channels, *size).
        geometry: how the windows lie; what is added to the input is less than anything.
        reference: the same by torch, of ``x``; it is differentiated where a gradient is differentiated again.

    Returns:
        (batch, channels, *positions). Of equal entries the first one gets the gradient, as in torch.
    """
    return _run(x, geometry, None, reference)


def scaled_sum(x: Tensor, geometry: Geometry, scale: float, reference: Reference) -> Tensor | None:
    """Return the sum under every window times a scale, as `greatest` does; what is added to the input is 0."""
    return _run(x, geometry, scale, reference)


def _run(x: Tensor, geometry: Geometry, scale: float | None, reference: Reference) -> Tensor | None:
    if not runs(x) or (len(geometry.kernel) == 3 and autocast_dtype(x) is not None):
        return None  # torch's autocast has windows over three axes computed in float32
    wanted, forced = torch.is_grad_enabled() and x.requires_grad, chosen_backend() == "c"
    key = (x.shape, x.stride(), x.dtype, geometry, scale, wanted, forced, torch.get_num_threads())
    kernel = remembered(_bound, key, lambda: _try_to_bind(x, geometry, scale, wanted, forced, reference))
    if not kernel:
        return None
    return _Pool.apply(kernel, reference, x) if wanted else kernel.forward(x, False)[0]


_bound: dict[Any, Pool | None] = {}


def _try_to_bind(
    x: Tensor, geometry: Geometry, scale: float | None, wanted: bool, forced: bool, reference: Reference
) -> Pool | None:
    if not readable(x, len(geometry.kernel)) or min(geometry.results(x.shape[2:])) <= 0:
        return None
    try:
        kernel = Pool(x, geometry, scale)
    except BuildError as error:
        warn_of_fallback("a pooling", error)
        return None
    if kernel.taps > MOST_TAPS:
        return None
    return kernel if forced or (kernel.fits and _is_faster(kernel, x.detach(), wanted, reference)) else None


def _is_faster(kernel: Pool, x: Tensor, wanted: bool, reference: Reference) -> bool:
    """Measure the kernel beside torch's operators."""
    x = x.requires_grad_(wanted)

    def ours() -> Tensor:
        return _Pool.apply(kernel, reference, x) if wanted else kernel.forward(x, False)[0]

    kind, work = "sum" if kernel.sums else "maximum", "with gradient" if wanted else "without gradient"
    shapes = f"{rounded((x.shape[0] * x.shape[1], *x.shape[2:]))} {list(kernel.geometry)}"
    return faster(
        f"pooling {kind} {str(x.dtype)[6:]} {shapes} {work}",
        kernel.text,
        lambda: reference(x),
        ours,
        [x] * wanted,
    )


class _Pool(torch.autograd.Function):
    """The kernel with its gradient."""

    @staticmethod
    def forward(ctx: Any, kernel: Pool, reference: Any, x: Tensor) -> Tensor:
        y, best = kernel.forward(x, True)
        # The input is read only where the gradient is differentiated again; it is its own, so that costs no memory.
        ctx.save_for_backward(x, best)
        ctx.kernel, ctx.reference = kernel, reference
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, best = ctx.saved_tensors
        if torch_has_to(dy):
            return None, None, *differentiate(ctx.reference, [x], dy)
        return None, None, ctx.kernel.backward(dy, best)


class Pool(Windows):
    """The passes for an input of a certain shape.

    Args:
        x: (batch, channels, *size).
        geometry: how the windows lie.
        scale: of the sum; None for the greatest entry.

    Raises:
        BuildError: there is no compiler.
    """

    def __init__(self, x: Tensor, geometry: Geometry, scale: float | None) -> None:
        largest = scale is None
        bits = struct.unpack("q", struct.pack("d", 0 if scale is None else scale))[0]
        ends = zip(geometry.results(x.shape[2:]), geometry.stride, x.shape[2:], strict=True)
        tiles = geometry.kernel == geometry.stride and geometry.kernel[-1] == 2 and not any(geometry.before)
        tiles = tiles and set(geometry.dilation) == {1} and all(n * s <= size for n, s, size in ends)
        super().__init__(x, geometry, x.shape[1], 1, 1, NAME, more=(bits, int(largest), int(tiles)))
        self.sums = not largest
        self.operations = OPERATIONS_OF_AN_ENTRY * x.numel()

    def forward(self, x: Tensor, save: bool) -> tuple[Tensor, Tensor | None]:
        """The result, (batch, channels, *positions), and which tap was the greatest, uint8."""
        y = memory.empty(self.result, self.dtype)
        best = memory.empty(self.result, torch.uint8) if save and not self.sums else None
        self.call("forward", {X: x, Y: y, BEST: best})
        return y, best

    def backward(self, dy: Tensor, best: Tensor | None) -> Tensor:
        """The gradient of the input."""
        dx = memory.empty(self.input, self.dtype)
        self.call("backward", {DY: dy.contiguous(), BEST: best, DX: dx})
        return dx
