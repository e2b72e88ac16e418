"""Programs of nested loops on tensors: bound to their axes, run, differentiated."""

from __future__ import annotations

import ctypes
import functools
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pellucid.kernel import build, memory
from pellucid.kernel.build import BuildError
from pellucid.kernel.emit_nest import Layout, emit
from pellucid.kernel.layout import STORAGE
from pellucid.kernel.nest import GRADIENT, SIZES, Form, Operand, lower
from pellucid.kernel.random import in_plain_python, uniform, unseen
from pellucid.kernel.registry import chosen_backend, warn_of_fallback
from pellucid.kernel.threads import useful
from pellucid.kernel.values import Unsupported

ENTRIES_OF_A_PART = 2**15  # of the work that a thread takes at a time
MOST_PARTS = 64
UNITS_OF_A_TOTAL = 1024  # as many are added up before their sum goes to a sum of sums
BYTES_OF_TOTALS = 2**24
ENTRIES_PAST_CACHES = 2**22  # of results that no cache holds
LEAST_TILE, TILE = 64, 1024  # columns of a row that is not reduced; a tile's scratch stays in the first cache
MOST_BOUND = 1024  # shapes that are remembered
# Places in struct nest of c/nest.h.
PLACES, NUMBERS, OFFSETS, SEED, STREAM, TOTALS, WORK, THREADS, PARALLEL = 2, 3, 4, 5, 6, 12, 15, 16, 17


class View(NamedTuple):
    """How an operand lies along the axes of a formula: its distance of entries, None where it does not vary."""

    strides: tuple[int | None, ...]
    columns: int | None = None  # along the last axis, where the formula fixes them


class Axes(NamedTuple):
    """The axes of a formula: their sizes, which of them are averaged, and how every operand lies along them."""

    sizes: tuple[int, ...]
    averaged: tuple[int, ...]
    views: tuple[View, ...]


class Draws(NamedTuple):
    """The sequence of a call's random numbers, and the first element of every random operand in it."""

    seed: int
    stream: int
    offsets: Mapping[str, int]

    def tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        """The numbers of one random operand."""
        return uniform(shape, self.seed, stream=self.stream, offset=self.offsets[name])


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


def runs(*tensors: Tensor) -> bool:
    """Whether C can compute on tensors as they are: plain ones, on the CPU, and seen by no transform or compiler."""
    if not in_plain_python(*tensors) or chosen_backend() not in ("auto", "c"):
        return False
    for t in tensors:  # noqa: SIM110 (a generator would take longer than the checks)
        if t.dtype not in STORAGE or t.numel() == 0:
            return False
    return True


def torch_has_to(gradient: Tensor) -> bool:
    """Whether torch has to compute with a gradient: it is differentiated again, mapped, or a compiler looks on."""
    batched = torch._C._functorch.is_legacy_batchedtensor(gradient)
    return torch.is_grad_enabled() or batched or not unseen(gradient)


def differentiate(reference: Callable[..., Tensor], tensors: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    """The gradients of what torch computes of tensors, which may be differentiated again."""
    again = torch.is_grad_enabled()
    given = [t if t.requires_grad else t.detach().requires_grad_() for t in tensors]
    with torch.enable_grad():
        y = reference(*given)
    return torch.autograd.grad(y, given, gradient, create_graph=again)


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
        tensors: those of which `runs` is true; the first varies along all axes.
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
    if bound.wanted:
        results = _Nested.apply(bound, reference, array("d", numbers), draws, *tensors)
    else:
        results = bound.forward(tensors, array("d", numbers), draws)[0]
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
    key = (recipe, kind, *[(t.shape, t.stride(), t.dtype, grad and t.requires_grad) for t in tensors])
    bound = _bound.get(key)
    if bound is None:
        if len(_bound) >= MOST_BOUND:
            _bound.clear()
        bound = _bound[key] = _try_to_bind(recipe, tensors, axes, tuple(k[-1] for k in key[2:]))
    return bound


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
        return *(None,) * 4, *bound.backward(read, saved, gradient, ctx.numbers, ctx.draws)


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
        strides = tuple(view.strides[a] for view in axes.views)
        axis = _Axis((a,), sizes[a], a in axes.averaged, strides)
        last = found[-1] if found else None
        joined = last is not None and last.averaged == axis.averaged and not (fixed and a == count - 1)
        if last is not None and joined and all(map(functools.partial(_follows, axis.size), last.strides, strides)):
            found[-1] = _Axis((*last.parts, a), last.size * axis.size, axis.averaged, strides)
        else:
            found.append(axis)
    innermost = found[-1]
    if any(s not in (None, 1) for s in innermost.strides) and innermost.size != 1:
        return None
    return found


def _follows(size: int, outer: int | None, inner: int | None) -> bool:
    """Whether an axis continues another one, inside it."""
    return (outer is None and inner is None) or (outer is not None and inner is not None and outer == inner * size)


# -- a program bound to shapes --------------------------------------------------------------------------------------


def _try_to_bind(
    recipe: Recipe, tensors: Sequence[Tensor], axes: Callable[..., Axes], wanted: Sequence[bool]
) -> _Bound | None:
    try:
        return _Bound(recipe, tensors, axes, wanted)
    except (Unsupported, BuildError) as error:
        warn_of_fallback(recipe.name, error)
        return None


@functools.lru_cache(maxsize=256)
def _compiled(form: Form, name: str) -> tuple[list[Layout], ctypes.CDLL, tuple[str, ...], str]:
    lowered = lower(form)
    written = emit(lowered, name, "float64" if form.dtype == torch.float64 else "float32")
    return list(written.layouts), build.load(written.text), lowered.saved, written.text


class _Bound:
    """A recipe for tensors of certain shapes."""

    def __init__(
        self, recipe: Recipe, tensors: Sequence[Tensor], axes: Callable[..., Axes], wanted: Sequence[bool]
    ) -> None:
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
        layouts, library, saved, self.text = _compiled(form, recipe.name)
        names = (*recipe.tensors, *recipe.draws)
        views: dict[str, Sequence[int]] = {
            name: [axis.strides[i] or 0 for axis in order] for i, name in enumerate(names)
        }
        x, result = tensors[0], recipe.results[0]
        sizes, self.real = [axis.size for axis in order], form.dtype
        kernel = self._forward = _Kernel(layouts[0], library, sizes, form.dtype, views, names[0])
        shape = (*x.shape[:-1], kernel.widths[result]) if recipe.fixed else x.shape
        like = torch.empty(shape, device="meta") if recipe.fixed else torch.empty_like(x, device="meta")
        self._result = (tuple(shape), like.stride(), getattr(torch, kernel.storage[result]))
        self._input = (x.shape, torch.empty_like(x, device="meta").stride(), x.dtype)
        # What is no tensor of its own stands in one, one after the other: further results, and what is saved.
        starts, self._rest = {}, 0
        for name in dict.fromkeys((*recipe.results[1:], *saved)):
            starts[name], self._rest = self._rest, self._rest + kernel.counts[name]
        self._extras = [(self._along_all(name, starts[name]), self._dtype(name)) for name in recipe.results[1:]]
        tensor_places = {name: i for i, name in enumerate(recipe.tensors)}
        placed = tensor_places | {f"{result} to": len(tensors)}
        self._forward_slots = kernel.slots(placed, {f"{name} to": start for name, start in starts.items()})
        self.read: list[int] = []
        if self.wanted:
            views |= {name: kernel.strides[name] for name in saved}
            views[GRADIENT] = kernel.strides[result]
            back = self._backward = _Kernel(layouts[1], library, sizes, form.dtype, views, names[0])
            self.read = [i for name, i in tensor_places.items() if name in back.layout.inputs]
            of = {f"{recipe.tensors[i]}_gradient": i for i in self.wanted}
            self._whole = [i for name, i in of.items() if name not in back.starts]
            self._totalled = [of[name] for name in back.starts]
            known = [recipe.tensors[i] for i in self.read] + [GRADIENT]
            known += [f"{recipe.tensors[i]}_gradient to" for i in self._whole]
            placed = {name: i for i, name in enumerate(known)}
            self._backward_slots = back.slots(placed, {name: starts[name] for name in saved})

    def _dtype(self, name: str) -> torch.dtype:
        return getattr(torch, self._forward.storage[name])

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
        y, rest = _allocate(*self._result), torch.empty(self._rest, dtype=self.real)
        self._forward(self._forward_slots, (*tensors, y), rest, numbers, draws)
        if not self._extras:
            return (y,), rest
        return (y, *(rest.as_strided(*place).to(dtype) for place, dtype in self._extras)), rest

    def backward(
        self, read: Sequence[Tensor], saved: Tensor, gradient: Tensor, numbers: array[float], draws: Draws | None
    ) -> list[Tensor | None]:
        """The gradients of the tensors."""
        kernel = self._backward
        shape, strides, dtype = self._result
        if gradient.stride() != strides or gradient.dtype != dtype:
            gradient = _allocate(shape, strides, dtype).copy_(gradient)
        found: list[Tensor | None] = [None] * len(self.templates)
        places = [*read, gradient]
        for i in self._whole:
            found[i] = made = _allocate(*self._input) if i == 0 else memory.empty(*self.templates[i])
            places.append(made)
        if not kernel.total:
            kernel(self._backward_slots, places, saved, numbers, draws)
            return found
        totals = torch.empty(kernel.parts * kernel.total, dtype=self.real)
        kernel(self._backward_slots, places, saved, numbers, draws, totals)
        pieces = totals.split_with_sizes(kernel.total_sizes)
        for i, piece in zip(self._totalled, pieces, strict=False):
            shape, dtype = self.templates[i]
            found[i] = piece.view(shape).to(dtype, copy=kernel.parts > 1)
        return found

    def differentiable_backward(
        self, read: Sequence[Tensor], gradient: Tensor, reference: Callable[..., tuple[Tensor, ...]]
    ) -> list[Tensor | None]:
        """The gradients where they will be differentiated again, or mapped: torch differentiates the formula's own.

        A tensor that no gradient depends on has not been kept; there any value does.
        """
        tensors = [torch.zeros((), dtype=dtype).expand(shape) for shape, dtype in self.templates]
        for i, tensor in zip(self.read, read, strict=True):
            tensors[i] = tensor
        for i in self.wanted:
            if not tensors[i].requires_grad:
                tensors[i] = tensors[i].detach().requires_grad_()
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            y = reference(*tensors)[0]
        wanted = [tensors[i] for i in self.wanted]
        gradients = torch.autograd.grad(y, wanted, gradient, create_graph=again, allow_unused=True)
        found: list[Tensor | None] = [None] * len(tensors)
        for i, of_tensor in zip(self.wanted, gradients, strict=True):
            found[i] = of_tensor
        return found


def _allocate(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for a tensor without gaps, whatever the order of its axes."""
    tensor = memory.empty(shape, dtype)
    return tensor if tensor.stride() == strides else tensor.as_strided_(shape, strides)


class _Kernel:
    """One direction of a program, for axes of certain sizes."""

    def __init__(
        self,
        layout: Layout,
        library: ctypes.CDLL,
        sizes: Sequence[int],
        real: torch.dtype,
        views: Mapping[str, Sequence[int]],
        first: str,
    ) -> None:
        self.layout = layout
        self._run = getattr(library, layout.name)
        self._run.argtypes, self._run.restype = [ctypes.c_void_p], None
        self.storage: dict[str, str] = {}
        self.widths: dict[str, int] = {}
        self.counts: dict[str, int] = {}  # entries of an output
        self.starts: dict[str, int] = {}  # of the totals, which stand one after the other
        self.strides: dict[str, Sequence[int]] = {}
        self.total, last = 0, len(sizes) - 1
        for name, axes, width, storage in (*layout.outputs, *((n, a, w, "real") for n, a, w in layout.totals)):
            self.storage[name] = str(real).split(".")[-1] if storage == "real" else storage
            self.widths[name] = width
            strides, count = [0] * len(sizes), 1
            for axis in sorted([*axes, last] if width > 1 else axes, reverse=True):
                strides[axis] = count
                count *= width if axis == last and layout.fixed else sizes[axis]
            of_tensor = name.removesuffix("_gradient")
            self.strides[name] = views[of_tensor] if of_tensor in views and of_tensor != first else strides
            self.counts[name] = count
        for name, _, _ in layout.totals:
            self.starts[name] = self.total
            self.total += self.counts[name]
        self._bytes = real.itemsize
        self._strides, self._sizes = array("q"), array("q", sizes)
        for operand in layout.operands:
            name = operand.removesuffix(" to")
            written = name != operand
            self._strides.extend(self.strides[name] if written else views[name])
            self._strides.append(self.total if written and name in self.starts else 0)
        self._divide(sizes, library)
        self.total_sizes = [*(self.counts[name] for name in self.starts), (self.parts - 1) * self.total]

    def _divide(self, sizes: Sequence[int], library: ctypes.CDLL) -> None:
        """Cut the work into parts: always the same ones, for any number of threads, so that sums are too."""
        layout, last = self.layout, len(sizes) - 1
        entries, columns = math.prod(sizes), sizes[-1]
        rows = math.prod(size for axis, size in enumerate(sizes[:-1]) if axis not in layout.inner)
        tile = columns
        if last not in layout.inner and not layout.fixed:
            shares = -(-torch.get_num_threads() // rows) if layout.inner else 1  # of few rows with loops inside
            tile = min(TILE, -(-columns // (shares * LEAST_TILE)) * LEAST_TILE)
        tile = min(tile, columns)
        tiles = -(-columns // tile)
        units = rows * tiles
        parts = max(min(entries // ENTRIES_OF_A_PART, MOST_PARTS), units // UNITS_OF_A_TOTAL)
        if self.total:
            parts = min(parts, max(1, BYTES_OF_TOTALS // (8 * self.total)))
        self.parts = max(1, min(units, parts))
        self._operations = entries * layout.operations
        scratch = getattr(library, f"{layout.name}_scratch")
        scratch.argtypes, scratch.restype = [ctypes.c_int64], ctypes.c_int64
        self._scratch = scratch(tile)
        past = entries * len(layout.outputs) >= ENTRIES_PAST_CACHES
        division = (rows, tiles, tile, self.parts, self.total, 0, int(past), self._scratch)
        sizes_at, strides_at = self._sizes.buffer_info()[0], self._strides.buffer_info()[0]
        self._blank = [0] * len(layout.operands)
        self._call = (sizes_at, strides_at, 0, 0, 0, 0, 0, *division, 0, 1, 0)  # struct nest of c/nest.h

    def slots(
        self, placed: Mapping[str, int], starts: Mapping[str, int]
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[tuple[int, int]]]:
        """Where the addresses of operands stand in a call: those of tensors, of what lies in the rest, of totals."""
        numbers = {name: i for i, name in enumerate(self.layout.operands)}
        return (
            [(numbers[name], i) for name, i in placed.items() if name in numbers],
            [(numbers[name], start * self._bytes) for name, start in starts.items() if name in numbers],
            [(numbers[f"{name} to"], start * self._bytes) for name, start in self.starts.items()],
        )

    def __call__(
        self,
        slots: Any,
        tensors: Sequence[Tensor],
        rest: Tensor,
        numbers: array[float],
        draws: Draws | None,
        totals: Tensor | None = None,
    ) -> None:
        """Run on tensors, and on what lies in the rest, at `slots`; totals are there for every part."""
        of_tensors, of_rest, of_totals = slots
        pointers = array("q", self._blank)
        for slot, i in of_tensors:
            pointers[slot] = tensors[i].data_ptr()
        if of_rest:
            begin = rest.data_ptr()
            for slot, start in of_rest:
                pointers[slot] = begin + start
        call = array("q", self._call)
        call[PLACES], call[NUMBERS] = pointers.buffer_info()[0], numbers.buffer_info()[0]
        if draws is not None:
            offsets = array("q", [draws.offsets.get(name, 0) for name in self.layout.operands])
            call[OFFSETS], call[SEED], call[STREAM] = offsets.buffer_info()[0], draws.seed, draws.stream
        if totals is not None:
            call[TOTALS] = begin = totals.data_ptr()
            for slot, start in of_totals:
                pointers[slot] = begin + start
        threads = useful(self._operations)
        call[THREADS], call[PARALLEL] = threads
        if self._scratch:
            buffer = memory.empty((self._scratch * threads.number + memory.ALIGNMENT,), torch.uint8)
            call[WORK] = memory.aligned(buffer)
        self._run(call.buffer_info()[0])
