"""What a formula costs: floating-point operations and bytes, counted from the operations that it really runs."""

from __future__ import annotations

import contextlib
import logging
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def _grouped(tensors: list[torch.Tensor], out: torch.Tensor) -> int:
    """Multiply-accumulates of a product whose rows, or whose depth, belong to several matrices, as of experts."""
    a, b = tensors[:2]
    whole = math.prod(out.shape[-2:]) if a.dim() == b.dim() == 2 else out.numel()
    return whole * a.shape[-1]


# Multiply-accumulates of a matrix product, from its tensor operands and its result.
MATRIX: dict[str, Callable[[list[torch.Tensor], torch.Tensor], int]] = {
    "mm": lambda tensors, out: out.numel() * tensors[0].shape[-1],
    "bmm": lambda tensors, out: out.numel() * tensors[0].shape[-1],
    "mv": lambda tensors, out: tensors[0].numel(),
    "dot": lambda tensors, out: tensors[0].numel(),
    "addmm": lambda tensors, out: out.numel() * tensors[1].shape[-1],
    "baddbmm": lambda tensors, out: out.numel() * tensors[1].shape[-1],
    "addmv": lambda tensors, out: tensors[1].numel(),
    "_grouped_mm": _grouped,
    "convolution": lambda tensors, out: out.numel() * math.prod(tensors[1].shape[1:]),
}
PRIMS = {f"prims::{name}" for name in "add sub mul div neg sqrt rsqrt exp log pow maximum minimum".split()}
# Attention in one operation: of query, key and value. Beside the two products every score is scaled, and the softmax
# takes its largest, a difference, an exponential, a sum and a quotient.
ATTENTION = {
    f"_scaled_dot_product_{kind}"
    for kind in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
} | {"_scaled_dot_product_fused_attention_overrideable"}
OF_A_SCORE = 6
WITH_SUMMAND = {"addmm", "baddbmm", "addmv"}
# FLOPs of a reduction per entry read; a variance is a mean, a difference, a square and a sum.
REDUCTIONS = dict.fromkeys(
    "sum mean amax amin max min prod any all argmax argmin nansum cumsum cumprod linalg_vector_norm".split(), 1
) | dict.fromkeys("var std var_mean std_mean".split(), 4)
# A pooling reads kernel entries for every entry of its result; the number is that of its axes.
POOLS = {"max_pool2d_with_indices": 2, "max_pool3d_with_indices": 3, "avg_pool2d": 2, "avg_pool3d": 3}
MOVES = set(
    """
    cat copy_ copy clone _to_copy index index_select gather repeat constant_pad_nd flip pad roll arange full
    full_like zeros zeros_like ones ones_like empty empty_like rand rand_like bernoulli fill_ zero_ new_zeros
    new_ones new_full new_empty scalar_tensor lift_fresh_copy reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d stack index_put scatter empty_strided randn random_
    uniform_ bernoulli_ where masked_fill repeat_interleave sort topk slice_scatter nonzero masked_select _unique2
    unique_dim unique_consecutive
    """.split()
)
RULED = {*MATRIX, *ATTENTION, *REDUCTIONS, *POOLS, *MOVES}


@dataclass(frozen=True)
class Tally:
    """``macs`` multiply-accumulates, ``other`` FLOPs beside them, ``moved`` bytes, and operations without a rule."""

    macs: int
    other: int
    moved: int
    uncounted: tuple[str, ...]

    def times(self, factor: int) -> Tally:
        """Return the tally of ``factor`` such runs."""
        return Tally(self.macs * factor, self.other * factor, self.moved * factor, self.uncounted)

    def __add__(self, other: Tally) -> Tally:
        uncounted = tuple(dict.fromkeys((*self.uncounted, *other.uncounted)))
        return Tally(self.macs + other.macs, self.other + other.other, self.moved + other.moved, uncounted)


NOTHING = Tally(0, 0, 0, ())


def count(
    function: Callable[..., Any], arguments: Iterable[Any] = (), keywords: Mapping[str, Any] | None = None
) -> Tally:
    """Run a function on tensors without storage and count what its operations cost.

    A matrix product of m×k and k×n is m·k·n multiply-accumulates (MACs), two FLOPs each; a product entry by entry
    whose entries are then summed is counted likewise. Any other operation entry by entry is one FLOP per entry of the
    result, a reduction one per entry read (a variance four); choosing and moving data is none. Every operation reads
    its operands and writes its result; a view moves nothing.
    """
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as fake:

        def faked(value: Any) -> Any:
            return fake.from_tensor(value.detach()) if isinstance(value, torch.Tensor) else value

        arguments, keywords = pytree.tree_map(faked, (tuple(arguments), dict(keywords or {})))
        with _Counter() as counter:
            function(*arguments, **keywords)
    return Tally(counter.macs, counter.other, counter.moved, tuple(dict.fromkeys(counter.uncounted)))


def bytes_of(values: Any) -> int:
    """Return the bytes of all tensors in a structure; entries that a broadcast repeats are counted once."""
    tensors = [v for v in pytree.tree_leaves(values) if isinstance(v, torch.Tensor)]
    return sum(_entries(t) * t.element_size() for t in tensors)


def _entries(tensor: torch.Tensor) -> int:
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) if tensor.numel() else 0


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.macs = self.other = self.moved = 0
        self.uncounted: list[str] = []
        self.products: list[weakref.ref[torch.Tensor]] = []  # of entry-by-entry products, which a sum may consume

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _moves_nothing(function):
            return function(*args, **kwargs)
        if _ruled(function):
            result = function(*args, **kwargs)
            self.tally(function._overloadpacket.__name__, args, kwargs, result)
            return result
        with self:
            result = decomposition_table.get(function, function.decompose)(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = function(*args, **kwargs)
        if not any(isinstance(value, torch.Tensor) for value in pytree.tree_leaves(result)):
            return result
        if _floating((args, kwargs, result)):
            self.uncounted.append(function._overloadpacket.__name__)
        self.moved += bytes_of((args, kwargs)) + bytes_of(result)
        return result

    def tally(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        tensors = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        out = next(v for v in pytree.tree_leaves(result) if isinstance(v, torch.Tensor))
        self.moved += bytes_of(tensors) + bytes_of(result)
        if not _floating((tensors, out)):
            return  # arithmetic of indices
        if name in MATRIX:
            transposed = name == "convolution" and args[6]
            # A transposed convolution lays its kernel at every entry of the input.
            self.macs += MATRIX[name](tensors, tensors[0] if transposed else out)
            biased = name == "convolution" and isinstance(args[2], torch.Tensor)
            self.other += out.numel() * (name in WITH_SUMMAND or biased)
        elif name in ATTENTION:
            query, key, value = tensors[:3]
            scores = query.numel() // query.shape[-1] * key.shape[-2]
            self.macs += scores * (query.shape[-1] + value.shape[-1])
            self.other += scores * OF_A_SCORE
        elif name in REDUCTIONS:
            self.reduce(name, tensors[0])
        elif name in POOLS:
            kernel = args[1] if len(args[1]) > 1 else args[1] * POOLS[name]
            self.other += out.numel() * math.prod(kernel)
        elif name not in MOVES:
            self.other += out.numel()
            if name == "mul":
                self.products.append(weakref.ref(out))

    def reduce(self, name: str, summed: torch.Tensor) -> None:
        self.products = [product for product in self.products if product() is not None]
        place = next((i for i, product in enumerate(self.products) if product() is summed), None)
        if name == "sum" and place is not None:
            del self.products[place]
            self.macs += summed.numel()
            self.other -= summed.numel()
        else:
            self.other += REDUCTIONS[name] * summed.numel()

    def taken(self) -> Tally:
        """Return what has been counted since the last time."""
        tally = Tally(self.macs, self.other, self.moved, tuple(dict.fromkeys(self.uncounted)))
        self.macs = self.other = self.moved = 0
        self.uncounted = []
        return tally


class Meter:
    """Says of operations that have run on real tensors what each of them cost, by the rules of `count`."""

    def __init__(self) -> None:
        self._counter = _Counter()
        self._known: dict[str, Tally] = {}  # of operations that are counted by what they are made of

    def __call__(self, function: Any, args: Any, kwargs: Any, result: Any) -> Tally:
        """Return the tally of one operation; of one that nothing is known of, its bytes and its name."""
        if _moves_nothing(function) or not any(isinstance(v, torch.Tensor) for v in pytree.tree_leaves(result)):
            return NOTHING
        if _ruled(function):
            self._counter.tally(function._overloadpacket.__name__, args, kwargs, result)
            return self._counter.taken()
        key = f"{function}{pytree.tree_map(_outline, (args, kwargs))}"
        if key not in self._known:
            try:
                with _quiet():
                    self._known[key] = count(function, args, kwargs)
            except Exception:  # what comes out depends on the numbers, or the operation is for real tensors only
                name = (function._overloadpacket.__name__,) if _floating((args, kwargs, result)) else ()
                self._known[key] = Tally(0, 0, bytes_of((args, kwargs)) + bytes_of(result), name)
        return self._known[key]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let torch not write that an operation has no result for tensors without storage."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _outline(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value


def _moves_nothing(function: Any) -> bool:
    """Whether an operation is a question or a view."""
    returns = function._schema.returns
    return function.namespace == "prim" or any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _ruled(function: Any) -> bool:
    return function._overloadpacket.__name__ in RULED or entry_by_entry(function)


def _floating(values: Any) -> bool:
    tensors = [v for v in pytree.tree_leaves(values) if isinstance(v, torch.Tensor)]
    return any(t.is_floating_point() or t.is_complex() for t in tensors)


def entry_by_entry(function: Any) -> bool:
    """Whether an operation computes every entry of its result from the entries at that place."""
    return torch.Tag.pointwise in function.tags or (function.namespace == "prims" and function._schema.name in PRIMS)
