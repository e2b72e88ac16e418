"""Arithmetic that somebody's code does entry by entry, or along rows, computed in one pass where that is faster."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.kernel.backends import chosen_backend
from pellucid.kernel.choice import faster, remembered, rounded, unhooked
from pellucid.kernel.rows import nested
from pellucid.kernel.tensors import language, unseen
from pellucid.nn.swapped.fused import LEAST, Activation, activation_of, slower


class Expression:
    """Operations on tensors as one function: ``function(*layers, *tensors)`` returns a tensor.

    Args:
        function: plain torch operations, each on single entries or along the last axis, and calls of the layers.
        layers: how many activation layers it takes.
        operations: their names, in order.
        along_rows: whether some of them take the entries of the last axis together.
    """

    def __init__(
        self, function: Callable[..., Tensor], layers: int, operations: Sequence[str], along_rows: bool
    ) -> None:
        self.function, self.layers, self.along_rows = function, layers, along_rows
        self.name = " → ".join(operations)
        self._kernels: dict[Any, _Kernel] = {}
        self._ways: dict[_Case, _Kernel | None] = {}

    def __call__(self, *given: Any) -> Any:
        """Compute it of layers and tensors."""
        y = self._in_one_pass(given[: self.layers], given[self.layers :])
        return self.function(*given) if y is None else y

    def _in_one_pass(self, layers: Sequence[torch.nn.Module], tensors: Sequence[Any]) -> Tensor | None:
        """The same by one kernel; None where that is not possible, or not faster."""
        if not all(isinstance(t, Tensor) for t in tensors) or not unseen(*tensors):
            return None
        if any(getattr(layer, "inplace", False) for layer in layers):
            return None
        case = _Case(
            tuple(map(activation_of, layers)) if layers else (),
            tuple([(t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in tensors]),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            chosen_backend(),
            torch.is_autocast_enabled(tensors[0].device.type),
        )
        kernel = remembered(self._ways, case, lambda: self._way(case, tensors))
        if kernel is None:
            slower.parts += 1
            return None
        return kernel.run(tensors)

    def _way(self, case: _Case, tensors: Sequence[Tensor]) -> _Kernel | None:
        """The kernel that is to compute what is alike; None where the operations are to run one by one."""
        x = max(tensors, key=lambda t: (t.numel(), t.dtype == torch.float64))
        forced = case.backend in ("c", "triton")
        if (x.numel() < LEAST and not forced) or None in case.functions or not self._fits(x, tensors):
            return None
        first = next(i for i, t in enumerate(tensors) if t is x)
        copies = [t.detach().requires_grad_(case.grad and t.requires_grad) for t in tensors]
        with torch.set_grad_enabled(case.grad), unhooked():
            with _Types() as types:
                y = self.function(*case.functions, *copies)
            if not isinstance(y, Tensor) or y.shape != x.shape or not y.is_floating_point():
                return None
            if torch.float64 in types.found and x.dtype != torch.float64:  # a kernel computes all as wide as that
                return None
            compared = _without_gradient(y, copies)
            key = (case.functions, first, compared)
            kernel = remembered(
                self._kernels, key, lambda: _Kernel(self, case.functions, first, len(tensors), compared)
            )
            text = kernel.text(copies)
        if text is None:
            return None
        leaves = [t for i, t in enumerate(copies) if t.requires_grad and i not in compared]
        usual, other = (functools.partial(way, copies) for way in (kernel.one_by_one, kernel.run))
        return kernel if forced or faster(f"{self.name} {case}", text, usual, other, leaves) else None

    def _fits(self, x: Tensor, tensors: Sequence[Tensor]) -> bool:
        """Whether one kernel can compute it: all vary along the axes of x at most."""
        if (
            not x.dim()
            or not x.is_floating_point()
            or torch.is_autocast_enabled(x.device.type)
            or language(*tensors) is None
        ):
            return False
        if any(t.dim() == 0 and t.dtype != x.dtype for t in tensors):  # whose type does not count for torch
            return False
        if self.along_rows:
            return x.is_contiguous() and all(_in_rows(t.shape, x.shape) for t in tensors)
        return all(nested.spreads(t.shape, x.shape) for t in tensors)


class _Types(TorchDispatchMode):
    """Notes the types of all that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.found = set[torch.dtype]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), named: Any = None) -> Any:
        """Call an operation."""
        y = function(*args, **(named or {}))
        self.found |= {y.dtype} if isinstance(y, Tensor) else set()
        return y


class _Case(NamedTuple):
    """All that decides how an expression is computed."""

    functions: tuple[Activation | None, ...]
    tensors: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device, bool], ...]
    grad: bool
    threads: int
    backend: str
    autocast: bool

    def __str__(self) -> str:
        """The case of all tensors of about these sizes, in words."""
        said = []
        for shape, strides, dtype, _, requires_grad in self.tensors:
            layout = "" if sorted(strides, reverse=True) == list(strides) else " channels last"
            gradient = " with gradient" if requires_grad and self.grad else ""
            said.append(f"{str(dtype)[6:]} {rounded(shape)}{layout}{gradient}")
        return ", ".join([*map(str, self.functions), *said])


class _Kernel:
    """An expression for certain activations, of so many tensors, of which one varies along all axes, the ``first``.

    Those that are only ``compared`` have no gradient.
    """

    def __init__(
        self, expression: Expression, functions: tuple[Any, ...], first: int, count: int, compared: tuple[int, ...]
    ) -> None:
        self.expression, self.functions, self.first, self.compared = expression, functions, first, compared
        names = tuple(f"t{i}" for i in range(count))
        self.recipe = nested.Recipe("an expression", self._by_axis, (), names, fixed=expression.along_rows)

    def run(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """The result; None where there is no kernel, of which a warning tells."""
        given = self._ordered(tensors)
        results = nested.run(self.recipe, given, self._axes, self._results)
        if results is None:
            return None
        return results[0].view(tensors[self.first].shape) if self.expression.along_rows else results[0]

    def one_by_one(self, tensors: Sequence[Tensor]) -> Tensor:
        """The same by the operations."""
        return self.expression.function(*self.functions, *tensors)

    def text(self, tensors: Sequence[Tensor]) -> str | None:
        """The text of the kernel; None where there is none."""
        given = self._ordered(tensors)
        return nested.text_of(self.recipe, given, self._axes)

    def _ordered(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors, first the one that varies along all axes; as rows where entries of these are taken together."""
        if self.compared:
            tensors = [t.detach() if i in self.compared else t for i, t in enumerate(tensors)]
        given = [tensors[self.first], *tensors[: self.first], *tensors[self.first + 1 :]]
        if self.expression.along_rows:
            given = [t.reshape(-1, t.shape[-1] if t.dim() else 1) for t in given]
        return given

    def _results(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The expression's value, of tensors in the order of `_ordered`."""
        tensors = [*given[1 : self.first + 1], given[0], *given[self.first + 1 :]]
        return (self.expression.function(*self.functions, *tensors),)

    def _by_axis(self, averaged: tuple[int, ...], *given: Tensor) -> tuple[Tensor, ...]:
        """The same as a kernel computes it; nothing is averaged."""
        return self._results(*given)

    def _axes(self, *tensors: Tensor) -> nested.Axes:
        x = tensors[0]
        rows = self.expression.along_rows
        views = [nested.View(x.stride(), x.shape[-1] if rows else None)]
        views += [nested.spread(t, x.dim(), t.shape[-1] if rows else None) for t in tensors[1:]]
        return nested.Axes(tuple(x.shape), (), tuple(views))


def _without_gradient(y: Tensor, tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """The places of the tensors that ask for a gradient and have none, such as what is only compared with another."""
    wanted = [i for i, t in enumerate(tensors) if t.requires_grad]
    if not y.requires_grad:
        return tuple(wanted)
    found = torch.autograd.grad(y, [tensors[i] for i in wanted], torch.ones_like(y), allow_unused=True)
    return tuple([i for i, gradient in zip(wanted, found, strict=True) if gradient is None])


def _in_rows(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether a tensor has one row for each of the whole, or one for all."""
    rows = tuple(shape[:-1])
    return nested.spreads(shape, whole) and (rows == tuple(whole[:-1]) or all(size == 1 for size in rows))
