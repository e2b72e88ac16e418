"""Convolution and its gradients by `c/convolve.h`.

The windowed product is linear in the input and in the weights, so its three passes are one contraction whose roles
change places; the kernel knows nothing else. What a library does at the speed of the machine (many channels) is left to
torch: which of the two is faster is measured. Windows of a single place may be taken by matrix products, too
(`pointwise.py`). In a transposed convolution input and result change places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pellucid.kernel import memory
from pellucid.kernel.autocast import autocast_dtype
from pellucid.kernel.backends import chosen_backend, give_up, warn_of_fallback
from pellucid.kernel.build import BuildError
from pellucid.kernel.choice import faster, remembered, rounded
from pellucid.kernel.tensors import language, torch_has_to
from pellucid.kernel.windows import pointwise, triton_depthwise
from pellucid.kernel.windows.by_torch import ByTorch, TransposedByTorch
from pellucid.kernel.windows.depthwise import Depthwise
from pellucid.kernel.windows.pointwise import Pointwise
from pellucid.kernel.windows.window import (
    BEST,
    BIAS,
    DW,
    DX,
    DY,
    LEAST_ENTRIES,
    MOST_TAPS,
    WEIGHT,
    Geometry,
    Windows,
    X,
    Y,
    channels_last,
    readable,
    side_by_side,
)
from pellucid.kernel.windows.window import lanes as vector_lanes

LEAST_TASKS = 16  # of a backward pass: groups times parts of the batch
MOST_IN_ROW = 40  # entries; a longer row fills its vectors by itself
MOST_BESIDE = 2**18  # entries of samples that lie beside each other; more would not stay in the second cache
NAME = "convolve"


class Lies(NamedTuple):
    """How a convolution lies.

    Attributes:
        geometry: of the windows.
        groups: of channels.
        patch: of windows over the result; then the greatest of each is the result, as of max pooling.
        spread: the size of the result of a transposed convolution, over which the windows lie; None for another.
    """

    geometry: Geometry
    groups: int
    patch: Geometry | None = None
    spread: tuple[int, ...] | None = None


def run(x: Tensor, weight: Tensor, bias: Tensor | None, lies: Lies) -> tuple[Tensor, str] | None:
    """Convolve by the kernel, differentiable in all three; None where torch's own operator is faster or must do it.

    Windows of a single place may also be taken by a matrix product.

    Which one is faster is measured when work of such a size is met for the first time; ``pellucid.backend("c")`` asks
    for the kernel whatever that says.

    Args:
        x: (batch, in channels, *size).
        weight: (out channels, in channels per group, *kernel); of a transposed convolution (in channels, out channels
            per group, *kernel).
        bias: (out channels,) or None.
        lies: how the convolution does.

    Returns:
        The result, and the name of what ran.
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    spoken = language(*tensors)
    if spoken == "triton" and lies.patch is lies.spread is None and triton_depthwise.suits(x, weight, lies.groups):
        y = _run_depthwise(x, weight, bias, lies.geometry)
        return None if y is None else (y, spoken)
    if spoken != "c" or autocast_dtype(x) is not None:
        return None
    wanted = _wanted(tensors)
    forced = chosen_backend() == "c"
    shapes = x.shape, x.stride(), weight.shape, None if bias is None else bias.shape
    key = (*shapes, x.dtype, lies, wanted, forced, torch.get_num_threads())
    kernel = remembered(_bound, key, lambda: _try_to_bind(x, weight, bias, lies, wanted, forced))
    if not kernel or weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        return None
    bias = None if bias is None else bias.contiguous()
    y = _by(kernel, x, weight, bias, any(wanted))
    return y, kernel.backend if isinstance(kernel, Pointwise) else spoken


def _by(
    kernel: Kernel | triton_depthwise.Depthwise,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    wanted: bool,
) -> Tensor:
    """The result of a kernel, differentiable if gradients are wanted."""
    if not wanted or (isinstance(kernel, Pointwise) and kernel.differentiable):
        return kernel.forward(x, weight, bias)[0]
    return _Convolution.apply(kernel, x, weight) if bias is None else _Convolution.apply(kernel, x, weight, bias)


def _wanted(tensors: Sequence[Tensor]) -> tuple[bool, ...]:
    grad = torch.is_grad_enabled()
    return tuple([grad and t.requires_grad for t in tensors])


def _run_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor | None:
    """The same in Triton; tensors are cast as autocast does."""
    cast = autocast_dtype(x)
    if cast is not None:
        x, weight = (t if t.dtype == torch.float64 else t.to(cast) for t in (x, weight))
        bias = bias if bias is None or bias.dtype == torch.float64 else bias.to(cast)
    kernel = triton_depthwise.bound(x, weight, bias, geometry)
    if kernel is None:
        return None
    tensors = (x, weight) if bias is None else (x, weight, bias)
    try:
        return _by(kernel, x, weight, bias, any(_wanted(tensors)))
    except BuildError as error:
        give_up(kernel, triton_depthwise.TITLE, error)
        return None


_bound: dict[Any, Kernel | None] = {}


def _try_to_bind(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lies: Lies,
    wanted: Sequence[bool],
    forced: bool,
) -> Kernel | None:
    geometry, groups, patch, spread = lies
    axes = weight.dim() - 2
    if not (readable(x, axes) or side_by_side(x)) or weight.dtype != x.dtype:
        return None
    out = groups * weight.shape[1] if spread else weight.shape[0]
    if weight.shape[2:] != geometry.kernel or (bias is not None and bias.shape != (out,)):
        return None  # somebody has put others in their place: torch goes by their shapes, or refuses them
    results = geometry.results(spread or x.shape[2:])
    if min(results) <= 0 or (spread is not None and results != x.shape[2:]):
        return None
    if x.shape[1] != (weight.shape[0] if spread else weight.shape[1] * groups) or weight.shape[0] % groups:
        return None
    needed = (wanted[0], wanted[1], bias is not None and wanted[2])
    product = None
    if patch is spread is None and not forced and pointwise.fits(x, geometry, groups):
        product = Pointwise(x, weight, geometry)
        product = product if _is_faster(product, x, weight, bias, needed) else None
    if (x.numel() < LEAST_ENTRIES and not forced) or (product is not None and product.differentiable):
        return product
    try:
        kernel = _kernel(x, weight, lies)
    except BuildError as error:
        warn_of_fallback("a convolution", error)
        return product
    if kernel is None or forced:
        return kernel
    return kernel if kernel.fits and _is_faster(kernel, x, weight, bias, needed, product) else product


def _kernel(x: Tensor, weight: Tensor, lies: Lies) -> Convolution | Depthwise | Transposed | None:
    geometry, groups, patch, spread = lies
    if spread is not None:
        return None if channels_last(x, len(spread)) else Transposed(x, weight, lies)
    if patch is None and Depthwise.suits(x, weight, geometry, groups):
        return Depthwise(x, weight, geometry)
    kernel = Convolution(x, weight, geometry, groups, patch)
    if min(kernel.result) <= 0 or (patch is not None and math.prod(patch.kernel) > MOST_TAPS):
        return None
    return kernel


def _is_faster(
    kernel: Kernel,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    needed: Sequence[bool],
    product: Pointwise | None = None,
) -> bool:
    """Measure the kernel beside torch's operators, or beside a product that is faster than those."""
    given = [t if t is None else t.detach().requires_grad_(n) for t, n in zip((x, weight, bias), needed, strict=True)]
    tensors = [t for t in given if t is not None]

    def by(kernel: Kernel) -> Tensor:
        return _by(kernel, given[0], given[1], given[2], any(needed))  # type: ignore[arg-type]

    def usual() -> Tensor:
        return kernel.forward_by_torch(*given)[0] if product is None else by(product)  # type: ignore[arg-type]

    names = [name for name, need in zip(("input", "weight", "bias"), needed, strict=True) if need]
    work = f"with gradients of {', '.join(names)}" if names else "without gradient"
    shapes = (
        f"{rounded((x.shape[0], *x.shape[2:]))} {list(weight.shape)} {kernel.groups} groups {list(kernel.geometry)}"
    )
    if kernel.patch is not None:
        shapes += f" greatest of {list(kernel.patch)}"
    if isinstance(kernel, Transposed):
        shapes += " transposed"
    if side_by_side(x):
        shapes += " channels last"
    if product is not None:
        shapes += " beside a product"
    leaves = [t for t in tensors if t.requires_grad]
    return faster(f"convolution {str(x.dtype)[6:]} {shapes} {work}", kernel.text, usual, lambda: by(kernel), leaves)


class _Convolution(torch.autograd.Function):
    """The kernel with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Kernel | triton_depthwise.Depthwise,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        y, best = kernel.forward(x, weight, bias, save=True)
        ctx.save_for_backward(x, weight, bias, best)
        ctx.kernel = kernel
        return y.data if y._is_view() else y  # no view: it may be written to

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, bias, best = ctx.saved_tensors
        needed = (*ctx.needs_input_grad[1:], False)[:3]
        if torch_has_to(dy):
            found = None if ctx.kernel.patch is None else ctx.kernel.forward_by_torch(x, weight, bias)
            gradients = ctx.kernel.backward_by_torch(x, weight, dy, needed, found)
        else:
            try:
                gradients = ctx.kernel.backward(x, weight, dy, needed, best)
            except BuildError as error:
                give_up(ctx.kernel, triton_depthwise.TITLE, error)
                gradients = ctx.kernel.backward_by_torch(x, weight, dy, needed)
        return None, *gradients[: len(ctx.needs_input_grad) - 1]


def _samples_beside(x: Tensor, weight: Tensor, geometry: Geometry, groups: int) -> int:
    """How many samples lie beside each other: a vector's, where rows are short and a place takes many products."""
    channels, out = weight.shape[1], weight.shape[0] // groups
    lanes = vector_lanes(x.dtype, NAME)
    row = x.shape[-1] + geometry.before[-1] + geometry.after[-1]
    entries = math.prod((*x.shape[2:-1], row)) * lanes * (channels + out)
    few = len(x) < lanes or channels * out == 1
    return 1 if few or row > MOST_IN_ROW or entries > MOST_BESIDE else lanes


class Convolution(ByTorch, Windows):
    """The passes for tensors of certain shapes.

    An input whose channels lie side by side is brought into planes and, along more than one axis, its result back: two
    copies are little beside the products of windows.

    Args:
        x: (batch, in channels, *size).
        weight: (out channels, in channels per group, *kernel).
        geometry: how the windows lie.
        groups: of channels.
        patch: how windows over the result lie, of which the greatest is taken; None for the result itself.

    Raises:
        BuildError: there is no compiler.
    """

    def __init__(
        self, x: Tensor, weight: Tensor, geometry: Geometry, groups: int, patch: Geometry | None = None
    ) -> None:
        lanes = _samples_beside(x, weight, geometry, groups)
        parts = min(-(-x.shape[0] // lanes), max(1, -(-LEAST_TASKS // groups)))
        self._last = channels_last(x, len(geometry.kernel))
        self._copied = side_by_side(x)
        x = x.contiguous() if self._copied else x
        ByTorch.__init__(self, geometry, groups, patch)
        Windows.__init__(self, x, geometry, groups, weight.shape[0] // groups, parts, NAME, lanes, patch)
        self._weight = weight.shape

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, save: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The result, (batch, out channels, *positions), and of a patch which of its entries it was, uint8."""
        x = x.contiguous() if self._copied else x
        y = memory.empty(self.result, self.dtype)
        best = memory.empty(self.result, torch.uint8) if save and self.patch is not None else None
        self.call("forward", {X: x, WEIGHT: weight.contiguous(), BIAS: bias, Y: y, BEST: best})
        return self.laid_out(y), best

    def laid_out(self, y: Tensor) -> Tensor:
        """A result or the gradient of the input, laid out as the input is."""
        return y.contiguous(memory_format=self._last) if self._last else y

    def backward(
        self, x: Tensor, weight: Tensor, dy: Tensor, needed: Sequence[bool], best: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of input, weight and bias, as far as they are needed."""
        x = x.contiguous() if self._copied else x
        dx = memory.empty(self.input, self.dtype) if needed[0] else None
        size, dw = math.prod(self._weight), None
        if needed[1] or needed[2]:
            real = torch.float64 if self.dtype == torch.float64 else torch.float32
            dw = torch.empty(self.parts, size + self._weight[0], dtype=real)
        places = {X: x, WEIGHT: weight.contiguous(), DY: dy.contiguous(), BEST: best, DX: dx, DW: dw}
        self.call("backward", places, (dx is not None) + (dw is not None))
        dx = None if dx is None else self.laid_out(dx)
        if dw is None:
            return dx, None, None
        total = (dw.sum(0) if self.parts > 1 else dw[0]).to(self.dtype)
        return dx, total[:size].view(self._weight), total[size:]


class Transposed(TransposedByTorch):
    """The passes of a transposed convolution: those of a convolution, whose input is the result, change places.

    Args:
        x: (batch, in channels, *size).
        weight: (in channels, out channels per group, *kernel).
        lies: how it does, with the size of the result.

    Raises:
        BuildError: there is no compiler.
    """

    def __init__(self, x: Tensor, weight: Tensor, lies: Lies) -> None:
        geometry, groups, _, spread = lies
        assert spread is not None
        super().__init__(geometry, groups, x.shape[2:], spread)
        like = torch.empty((len(x), groups * weight.shape[1], *spread), dtype=x.dtype, device="meta")
        self._back = Convolution(like, weight, geometry, groups)
        self.text, self.fits = self._back.text, self._back.fits

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, save: bool = False) -> tuple[Tensor, None]:
        """The result, (batch, out channels, *size), and nothing that backward would read beside."""
        y = cast(Tensor, self._back.backward(x, weight, x, (True, False, False))[0])
        return y if bias is None else y.add_(bias.view(-1, *(1,) * (x.dim() - 2))), None

    def backward(
        self, x: Tensor, weight: Tensor, dy: Tensor, needed: Sequence[bool], best: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of input, weight and bias, as far as they are needed."""
        dy = dy.contiguous()
        dx = self._back.forward(dy, weight, None)[0] if needed[0] else None
        dw = self._back.backward(dy, weight, x, (False, True, False))[1] if needed[1] else None
        return dx, dw, dy.sum((0, *range(2, dy.dim()))) if needed[2] else None


Kernel = Convolution | Depthwise | Pointwise | Transposed
