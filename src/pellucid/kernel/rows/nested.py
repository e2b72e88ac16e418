"""Programs of nested loops on tensors: bound to their axes, run, differentiated."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pellucid.errors import Unsupported
from pellucid.kernel import memory
from pellucid.kernel.backends import give_up, warn_of_fallback
from pellucid.kernel.build import BuildError
from pellucid.kernel.choice import remembered
from pellucid.kernel.rows import nested_c, nested_triton
from pellucid.kernel.rows.direction import Direction, Draws
from pellucid.kernel.rows.nest import GRADIENT, SIZES, Form, Operand, lower
from pellucid.kernel.tensors import language_for, stand_in, torch_has_to


class View(NamedTuple):
    """How an operand lies along the axes of a formula: its distance of entries, None where it does not vary."""

    strides: tuple[int | None, ...]
    columns: int | None = None  # along the last axis, where the formula fixes them


def spread(tensor: Tensor, axes: int, columns: int | None = None) -> View:
    """How a tensor lies along so many axes, to which it is spread as torch spreads operands."""
    steps = (None if size == 1 else step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return View((*(None,) * (axes - tensor.dim()), *steps), columns)


def spreads(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether a tensor of one shape can be spread to another one."""
    behind = whole[len(whole) - len(shape) :]
    return len(shape) <= len(whole) and all(a in (1, b) for a, b in zip(shape, behind, strict=True))


class Axes(NamedTuple):
    """The axes of a formula: their sizes, which of them are averaged, and how every operand lies along them."""

    sizes: tuple[int, ...]
    averaged: tuple[int, ...]
    views: tuple[View, ...]


@dataclass(frozen=True, eq=False)
class Recipe:
    """A formula as `run` takes it.

    ``function(averaged, *options, *operands)`` returns a tuple, of which the first result is differentiated;
    ``averaged`` are axes. Operands are the tensors, then the numbers, then what is random. A recipe is made once.
    """

    name: str
    function: Callable[..., tuple[Tensor, ...]]
    options: tuple[Any, ...]
    tensors: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    draws: tuple[str, ...] = ()
    results: tuple[str, ...] = ("y",)
    fixed: bool = False  # whether the formula cuts the last axis, whose size is then a part of the program


def run(
    recipe: Recipe,
    tensors: Sequence[Tensor],
    axes: Callable[..., Axes],
    reference: Callable[..., tuple[Tensor, ...]],
    numbers: Sequence[float] = (),
    draws: Draws | None = None,
    kind: Any = None,
) -> tuple[Tensor, ...] | None:
    """Run a formula as one kernel, differentiable in its tensors; None where it has none, of which a warning tells.

    Args:
        recipe: the formula.
        tensors: on which a kernel may compute (`tensors.language`); the first varies along all axes.
        axes: takes the tensors; asked when tensors of such shapes are met for the first time. The views of what is
            random stand behind those of the tensors, and their distances are those of the elements in the sequence.
        reference: takes the tensors, returns the results by plain torch, for a gradient that is differentiated again.
        numbers: what may change from call to call.
        draws: where the random numbers come from.
        kind: what ``axes`` depends on beside the tensors' shapes.

    Returns:
        The results. The first has the shape of the first tensor, and lies in memory as it does; the others have all
        axes, of size 1 where they do not vary, and no gradient.
    """
    bound = _bind(recipe, tensors, axes, kind)
    if not bound:
        return None
    x = tensors[0]
    if bound.copied:
        tensors = [t.contiguous() for t in tensors]
    try:
        if bound.wanted:
            results = _Nested.apply(bound, reference, array("d", numbers), draws, *tensors)
        else:
            results = bound.forward(tensors, array("d", numbers), draws)[0]
    except BuildError as error:
        give_up(bound, bound.recipe.name, error)
        return None
    if bound.copied and results[0].shape == x.shape and not x.is_contiguous():
        return (torch.empty_like(x, dtype=results[0].dtype).copy_(results[0]), *results[1:])  # laid out as the input is
    return results


def text_of(recipe: Recipe, tensors: Sequence[Tensor], axes: Callable[..., Axes], kind: Any = None) -> str | None:
    """The text of the kernel that `run` would run; None where it has none, of which a warning tells."""
    bound = _bind(recipe, tensors, axes, kind)
    return bound.text if bound else None


_bound: dict[Any, _Bound | None] = {}


def _bind(recipe: Recipe, tensors: Sequence[Tensor], axes: Callable[..., Axes], kind: Any) -> _Bound | None:
    """The recipe for tensors of these shapes, remembered."""
    grad = torch.is_grad_enabled()
    x = tensors[0]
    written = language_for(x)
    lie = [(t.shape, t.stride(), t.dtype, grad and t.requires_grad) for t in tensors]
    key = (recipe, kind, written, x.device, *lie)
    bound = remembered(_bound, key, lambda: _try_to_bind(recipe, tensors, axes, written))
    return None if bound is None or bound.given_up else bound


class _Nested(torch.autograd.Function):
    """A program with its derived gradient."""

    @staticmethod
    def forward(
        ctx: Any, bound: _Bound, reference: Any, numbers: array[float], draws: Draws | None, *tensors: Tensor
    ) -> Any:
        results, saved = bound.forward(tensors, numbers, draws)
        ctx.save_for_backward(*[tensors[i] for i in bound.read], saved)
        ctx.bound, ctx.reference, ctx.numbers, ctx.draws = bound, reference, numbers, draws
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> Any:
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        bound = ctx.bound
        *read, saved = ctx.saved_tensors
        if torch_has_to(gradient):
            return *(None,) * 4, *bound.differentiable_backward(read, gradient, ctx.reference)
        try:
            return *(None,) * 4, *bound.backward(read, saved, gradient, ctx.numbers, ctx.draws)
        except BuildError as error:
            give_up(bound, bound.recipe.name, error)
            return *(None,) * 4, *bound.differentiable_backward(read, gradient, ctx.reference)


# -- a formula's axes in the order of memory ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """One axis of the kernel: axes of the formula that lie one inside the other."""

    parts: tuple[int, ...]  # of the formula, outer ones first
    size: int
    averaged: bool
    strides: tuple[int | None, ...]  # of every view


def _order(axes: Axes, fixed: bool) -> list[_Axis] | None:
    """The axes in the order of memory, joined where all views allow it; None where the last entries do not lie side
    by side."""
    sizes, count = axes.sizes, len(axes.sizes)
    kept = [a for a in range(count) if sizes[a] != 1 or fixed]
    if axes.averaged and not set(kept) & set(axes.averaged):
        kept = sorted([*kept, axes.averaged[-1]])
    kept = kept or [count - 1]
    first = axes.views[0].strides
    if any(first[a] in (None, 0) and sizes[a] != 1 for a in kept):
        return None
    kept.sort(key=lambda a: (sizes[a] == 1, -first[a]) if not fixed else a)  # type: ignore[operator]
    found: list[_Axis] = []
    for a in kept:
        axis = _Axis((a,), sizes[a], a in axes.averaged, tuple(view.strides[a] for view in axes.views))
        if found and _continues(axis, found[-1]) and not (fixed and a == count - 1):
            last = found.pop()
            axis = _Axis((*last.parts, a), last.size * axis.size, axis.averaged, axis.strides)
        found.append(axis)
    innermost = found[-1]
    if any(s not in (None, 1) for s in innermost.strides) and innermost.size != 1:
        return None
    return found


def _continues(inner: _Axis, outer: _Axis) -> bool:
    """Whether an axis continues another one, inside it, in all views."""
    steps = zip(outer.strides, inner.strides, strict=True)
    return outer.averaged == inner.averaged and all(a == (b if b is None else b * inner.size) for a, b in steps)


# -- a program bound to shapes --------------------------------------------------------------------------------------


def _try_to_bind(recipe: Recipe, tensors: Sequence[Tensor], axes: Callable[..., Axes], written: str) -> _Bound | None:
    try:
        return _Bound(recipe, tensors, axes, written)
    except (Unsupported, BuildError, RecursionError) as error:
        warn_of_fallback(recipe.name, error, written)
        return None


class _Bound:
    """A recipe for tensors of certain shapes; ``given_up`` says that its kernels turned out not to compile."""

    given_up = False

    def __init__(
        self,
        recipe: Recipe,
        tensors: Sequence[Tensor],
        axes: Callable[..., Axes],
        written: str,
    ) -> None:
        wanted = [torch.is_grad_enabled() and t.requires_grad for t in tensors]
        given = axes(*tensors)
        order = _order(given, recipe.fixed) if all(t.is_contiguous() for t in tensors[1:]) else None
        self.copied = order is None
        if order is None:
            tensors = [t.contiguous() for t in tensors]
            given = axes(*tensors)
            order = _order(given, recipe.fixed)
        if order is None or len(order) > len(SIZES):
            raise Unsupported("an input whose axes cannot be brought into order")
        self.recipe, self.order, self.sizes = recipe, order, given.sizes
        self.templates = [(t.shape, t.dtype) for t in tensors]
        self.wanted = [i for i, want in enumerate(wanted) if want]
        form = self._form(given, tensors, wanted)
        self.real, self.device = form.dtype, tensors[0].device
        names = (*recipe.tensors, *recipe.draws)
        views: dict[str, Sequence[int]] = {
            name: [axis.strides[i] or 0 for axis in order] for i, name in enumerate(names)
        }
        sizes = [axis.size for axis in order]

        def direction(number: int) -> Direction:
            if written == "c":
                return nested_c.Kernel(form, recipe.name, number, sizes, views)
            return nested_triton.Kernel(form, recipe.name, number, sizes, views, self.device)

        saved = lower(form).saved
        self._forward = direction(0)
        starts = self._place_forward(tensors[0], saved)
        self.text = self._forward.text
        self.read: list[int] = []
        if self.wanted:
            views |= {name: self._forward.strides[name] for name in saved}
            views[GRADIENT] = self._forward.strides[recipe.results[0]]
            self._backward = direction(1)
            self._place_backward({name: starts[name] for name in saved})

    def _place_forward(self, x: Tensor, saved: Sequence[str]) -> dict[str, int]:
        """Say where forward writes; return where in the rest what is no tensor of its own begins, one after the other.

        That are further results, and what is saved.
        """
        recipe, kernel, result = self.recipe, self._forward, self.recipe.results[0]
        shape = (*x.shape[:-1], kernel.nest.outputs[result].width) if recipe.fixed else x.shape
        like = torch.empty(shape, device="meta") if recipe.fixed else torch.empty_like(x, device="meta")
        self._result = (tuple(shape), kernel.dtype(result), self.device, like.stride())
        self._input = (x.shape, x.dtype, self.device, torch.empty_like(x, device="meta").stride())
        starts, self._rest = {}, 0
        for name in dict.fromkeys((*recipe.results[1:], *saved)):
            starts[name], self._rest = self._rest, self._rest + kernel.counts[name]
        self._extras = [(self._along_all(name, starts[name]), kernel.dtype(name)) for name in recipe.results[1:]]
        placed = {name: i for i, name in enumerate((*recipe.tensors, f"{result} to"))}
        self._forward_slots = kernel.slots(placed, {f"{name} to": start for name, start in starts.items()})
        return starts

    def _place_backward(self, starts: Mapping[str, int]) -> None:
        """Say what backward reads, and which gradients it writes as a whole or as totals."""
        kernel, tensors = self._backward, self.recipe.tensors
        self.read = [i for i, name in enumerate(tensors) if name in kernel.nest.inputs]
        of = {f"{tensors[i]}_gradient": i for i in self.wanted}
        self._whole = [i for name, i in of.items() if name not in kernel.starts]
        self._totalled = [of[name] for name in kernel.starts]
        known = [*(tensors[i] for i in self.read), GRADIENT, *(f"{tensors[i]}_gradient to" for i in self._whole)]
        self._backward_slots = kernel.slots({name: i for i, name in enumerate(known)}, starts)

    def _form(self, given: Axes, tensors: Sequence[Tensor], wanted: Sequence[bool]) -> Form:
        recipe, order = self.recipe, self.order
        flags = [tuple(axis.strides[i] is not None for axis in order) for i in range(len(given.views))]
        columns = [view.columns or given.sizes[-1] if recipe.fixed else None for view in given.views]
        operands = [
            Operand(name, varies, t.dtype, "memory", want, width)
            for name, varies, t, want, width in zip(recipe.tensors, flags, tensors, wanted, columns, strict=False)
        ]
        operands += [Operand(name, (False,) * len(order), torch.float64, "number") for name in recipe.numbers]
        operands += [
            Operand(name, varies, torch.float32, "draws", columns=width)
            for name, varies, width in zip(recipe.draws, flags[len(tensors) :], columns[len(tensors) :], strict=True)
        ]
        averaged = tuple(i for i, axis in enumerate(order) if axis.averaged)
        fixed = given.sizes[-1] if recipe.fixed else None
        options = (averaged, *recipe.options)
        inner = frozenset({len(order) - 1}) if recipe.fixed else frozenset(averaged)
        return Form(recipe.function, options, len(order), tuple(operands), recipe.results, inner, fixed)

    def _along_all(self, name: str, start: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Shape, distances and beginning of a further result along all axes of the formula."""
        shape, steps = [1] * len(self.sizes), [0] * len(self.sizes)
        for axis, stride in zip(self.order, self._forward.strides[name], strict=True):
            for part in reversed(axis.parts):
                if stride:
                    shape[part], steps[part] = self.sizes[part], stride
                    stride *= self.sizes[part]
        return tuple(shape), tuple(steps), start

    def forward(
        self, tensors: Sequence[Tensor], numbers: array[float], draws: Draws | None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The results, and what backward reads of them, one after the other."""
        y, rest = memory.allocate(*self._result), torch.empty(self._rest, dtype=self.real, device=self.device)
        self._forward.run(self._forward_slots, (*tensors, y), rest, numbers, draws)
        if not self._extras:
            return (y,), rest
        return (y, *(rest.as_strided(*place).to(dtype) for place, dtype in self._extras)), rest

    def backward(
        self, read: Sequence[Tensor], saved: Tensor, gradient: Tensor, numbers: array[float], draws: Draws | None
    ) -> list[Tensor | None]:
        """The gradients of the tensors."""
        kernel = self._backward
        _, dtype, _, strides = self._result
        if gradient.stride() != strides or gradient.dtype != dtype:
            gradient = memory.allocate(*self._result).copy_(gradient)
        found: list[Tensor | None] = [None] * len(self.templates)
        places = [*read, gradient]
        for i in self._whole:
            found[i] = made = memory.allocate(*(self._input if i == 0 else (*self.templates[i], self.device)))
            places.append(made)
        totals = kernel.run(self._backward_slots, places, saved, numbers, draws)
        for i, total in zip(self._totalled, totals, strict=True):
            shape, dtype = self.templates[i]
            found[i] = total.view(shape).to(dtype, copy=kernel.lent)
        return found

    def differentiable_backward(
        self, read: Sequence[Tensor], gradient: Tensor, reference: Callable[..., tuple[Tensor, ...]]
    ) -> list[Tensor | None]:
        """The gradients where they will be differentiated again, or mapped: torch differentiates the formula's own.

        A tensor that no gradient depends on has not been kept; there any value does.
        """
        tensors = [torch.zeros((), dtype=dtype, device=self.device).expand(shape) for shape, dtype in self.templates]
        for i, tensor in zip(self.read, read, strict=True):
            tensors[i] = tensor
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            for i in self.wanted:
                tensors[i] = stand_in(tensors[i])
            y = reference(*tensors)[0]
        found: list[Tensor | None] = [None] * len(tensors)
        if not y.requires_grad:  # no gradient leads through the formula
            return found
        wanted = [tensors[i] for i in self.wanted]
        gradients = torch.autograd.grad(y, wanted, gradient, create_graph=again, allow_unused=True)
        for i, of_tensor in zip(self.wanted, gradients, strict=True):
            found[i] = of_tensor
        return found
