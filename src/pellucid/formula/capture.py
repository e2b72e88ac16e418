"""A function of tensors as a graph of torch's operations, the number of rows left open.

torch's own tracer, make_fx, keeps a size open as a symbol, and its symbols bring sympy and torch._dynamo: 1.3 seconds
of imports before the first result. Here the function runs twice, with two numbers of rows; a size that differs
between the two is one of the rows. The sizes of several axes are left open in the same way.
"""

from __future__ import annotations

import contextvars
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from pellucid.errors import Unsupported
from pellucid.formula.program import Abstract
from pellucid.formula.source import Source

ROWS = (11, 18)  # without a common factor, and so that no simple arithmetic takes both to one number
Sizes = Sequence[tuple[int, int]]  # of every open axis, in the two runs
aten = torch.ops.aten
Decompositions = Mapping[Any, Callable[..., Any]]


_capturing: contextvars.ContextVar[_Capture | None] = contextvars.ContextVar("capturing", default=None)


class DependsOnRows(Exception):
    """What is computed depends on the number of rows; the text says where."""


def capture(
    function: Callable[..., tuple[Tensor, ...]],
    arguments: Callable[..., Sequence[Tensor]],
    decompositions: Decompositions,
    sizes: Sizes | None = None,
    differentiated: bool = False,
    detached: bool = False,
) -> tuple[fx.Graph, dict[str, Tensor]]:
    """Return the graph of a function, and the tensors from outside that it reads.

    Every node of a tensor has its `Abstract` in ``meta["val"]``; where an operation takes the number of rows, a node
    stands that computes it.

    Args:
        function: takes the arguments, returns a tuple of tensors.
        arguments: gives them for a number of rows, or for a size of every open axis; these are the first axes of the
            first argument.
        decompositions: what is recorded in place of an operation.
        sizes: of the open axes, one after the other. None: the rows, and shapes tell how many there are for one sample.
        differentiated: whether the gradient is derived from the graph, in which the function's detach has to stay then.
        detached: whether it stays, although the gradient is in the graph already.

    Raises:
        DependsOnRows: the function does something else for another number of rows.
        Unsupported: the gradient is to be derived, and the function's own is another than that of its operations.
    """
    opened = (ROWS,) if sizes is None else sizes
    first, second = (
        _Capture(decompositions, differentiated, detached or differentiated).run(function, arguments(*run))
        for run in zip(*opened, strict=True)
    )
    _open_sizes(first, second, opened, by_row=sizes is None)
    return first.graph, first.constants


def free(name: str) -> str:
    """A name of the formula as it stands in a graph, where three are taken, and those of gradients."""
    return f"{name}_" if name in ("rows", "output", "self") or name.endswith("gradient") else name


def call_by_variables(source: Source, variables: Mapping[str, Any]) -> None:
    """Give the nodes of tensors that are being captured the names of the formula's variables."""
    capturing, given = _capturing.get(), {symbol.name for symbol in source.symbols}
    if capturing is None:
        return
    for variable, value in variables.items():
        node = capturing._known.get(value) if isinstance(value, Tensor) else None
        if node is not None and node.op == "call_function":
            node._rename(f"new_{variable}" if variable in given else free(variable))


def out_of_sight() -> bool:
    """Whether the function that is being captured has computed something, up to here, that autograd did not see."""
    capturing = _capturing.get()
    return capturing is not None and capturing.out_of_sight


class _Capture(TorchDispatchMode):
    """Writes down what reaches torch's kernels: below autograd and the transforms of torch.func."""

    def __init__(self, decompositions: Decompositions, differentiated: bool, detached: bool) -> None:
        super().__init__()
        self.decompositions, self.differentiated, self.detached = decompositions, differentiated, detached
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.out_of_sight = False
        self._known = WeakTensorKeyDictionary()  # the nodes of the tensors that are still alive

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to be skipped it would have to be imported, and it is not at work where a formula is traced."""
        return False

    def run(self, function: Callable[..., tuple[Tensor, ...]], arguments: Sequence[Tensor]) -> _Capture:
        """Call the function, and keep what its results need."""
        for i, argument in enumerate(arguments):
            self._remember(argument, self.graph.placeholder(f"argument_{i}"))
        token = _capturing.set(self)
        try:
            with self:
                results = function(*arguments)
        finally:
            _capturing.reset(token)
        self.graph.output(self._nodes(results))
        self.graph.eliminate_dead_code()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable and self._is_alone(args[0]):
            return self._renewed(func, args, kwargs)
        if not func._schema.returns and not func._schema.is_mutable:
            return func(*args, **kwargs)  # a check, which gives nothing to go on with
        if func in (aten.detach.default, aten.alias.default):
            node = self._node(args[0])
            if self.detached and func is aten.detach.default:
                node = self.graph.call_function(func, (node,))
            return self._remember(func(*args), node)
        if not torch.is_grad_enabled() and any(map(self._is_given, pytree.tree_leaves(args))):
            if self.differentiated:
                raise Unsupported("what is computed under torch.no_grad, or by a torch.autograd.Function,")
            self.out_of_sight = True
        with self:
            result = self.decompositions.get(func, func.decompose)(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if torch.Tag.data_dependent_output in func.tags and any(self._is_given(value) for value in args):
            raise RuntimeError(
                f"the formula asks for a number ({func}), but is read before there are any. A choice by value is "
                f"torch.where(condition, a, b)"
            )
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__.removeprefix("native_").replace("_backward", "_gradient")
        node = self.graph.create_node("call_function", func, self._nodes(args), self._nodes(kwargs), name)
        return self._remember(result, node)

    def _is_given(self, value: Any) -> bool:
        """Whether a tensor depends on the arguments, and so has no value of its own."""
        return isinstance(value, Tensor) and value in self._known and self._known[value].meta["given"]

    def _is_alone(self, value: Tensor) -> bool:
        """Whether a tensor is recorded and no other has its memory."""
        place = value.untyped_storage()._cdata
        sharing = [other for other in self._known if other.untyped_storage()._cdata == place]
        return len(sharing) == 1 and sharing[0] is value

    def _renewed(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """Record a new value for what changes in place, as torch's own gradients do here and there."""
        packet = getattr(aten, func.overloadpacket.__name__.removesuffix("_"))
        with self:
            result = getattr(packet, func._overloadname)(*args, **kwargs)
        self._known[args[0]] = self._node(result)
        return func(*args, **kwargs)

    def _remember(self, value: Any, node: fx.Node) -> Any:
        """Note that a node gives a value, or the parts of one; return the value."""
        if isinstance(value, Tensor):
            self._known[value] = node
            node.meta["given"] = node.op == "placeholder" or any(n.meta["given"] for n in node.all_input_nodes)
            node.meta.setdefault("val", _seen(value))
        elif isinstance(value, (tuple, list)):
            node.meta["val"] = pytree.tree_map_only(Tensor, _seen, value)
            node.meta["given"] = any(n.meta["given"] for n in node.all_input_nodes)
            for i, part in enumerate(value):
                self._remember(part, self.graph.call_function(operator.getitem, (node, i)))
        return value

    def _nodes(self, values: Any) -> Any:
        return pytree.tree_map_only(Tensor, self._node, values)

    def _node(self, value: Tensor) -> fx.Node:
        """The node of a tensor; one from outside is a constant."""
        if value not in self._known:
            name = f"_tensor_constant{len(self.constants)}"
            node = self.graph.create_node("get_attr", name, name=name)
            self.constants[node.name] = value
            self._remember(value, node)
        return self._known[value]


def _open_sizes(first: _Capture, second: _Capture, sizes: Sizes, by_row: bool) -> None:
    """Compare two recordings; make of each size that differs one of an open axis in the graph of the first."""
    graph, count = first.graph, len(first.graph.nodes)
    if count != len(second.graph.nodes):
        raise DependsOnRows("other operations for another number of samples")
    nodes = list(graph.nodes)
    placeholders = [n for n in nodes if n.op == "placeholder"]
    with graph.inserting_after(placeholders[-1]):
        lengths = [graph.call_function(aten.sym_size.int, (placeholders[0], axis)) for axis in range(len(sizes))]
    twins: dict[fx.Node, fx.Node] = {}
    for node, twin in zip(nodes, second.graph.nodes, strict=True):
        twins[twin] = node

        def argument(one: Any, other: Any, node: fx.Node = node) -> Any:
            if isinstance(other, fx.Node):
                same = twins[other] is one
            elif type(one) is int and type(other) is int and one != other:
                found = _factors(one, other, sizes)
                if found:
                    multiple, axes = found
                    product, *others = [lengths[axis] for axis in axes]
                    with graph.inserting_before(node):
                        for factor in (*others, *([multiple] if multiple > 1 else ())):
                            product = graph.call_function(operator.mul, (product, factor))
                    return product
                same = False
            else:
                same = one == other or one != one  # NaN is another than itself
            if not same:
                raise DependsOnRows(
                    f"{node.target} takes {one} for {_run(sizes, 0)} samples, {other} for {_run(sizes, 1)}"
                )
            return one

        if node.target != twin.target:
            raise DependsOnRows(f"{node.target} or {twin.target}, as the number of samples is")
        node.args, node.kwargs = pytree.tree_map(argument, (node.args, node.kwargs), (twin.args, twin.kwargs))
        node.meta["val"] = pytree.tree_map(
            lambda one, other: _abstract(one, other, sizes, by_row), node.meta.get("val"), twin.meta.get("val")
        )
    for name, constant in first.constants.items():
        if not torch.equal(constant, second.constants[name]):
            raise DependsOnRows("a tensor made of the number of samples")
    graph.eliminate_dead_code()


def _run(sizes: Sizes, run: int) -> str:
    return " × ".join(str(pair[run]) for pair in sizes)


def _factors(one: int, other: int, sizes: Sizes) -> tuple[int, tuple[int, ...]] | None:
    """The multiple of which axes' sizes a number is that was met in both runs."""
    for count in range(1, len(sizes) + 1):
        for axes in itertools.combinations(range(len(sizes)), count):
            a, b = (math.prod(sizes[axis][run] for axis in axes) for run in (0, 1))
            if one % a == 0 and one // a * b == other and one:
                return one // a, axes
    return None


def _seen(value: Tensor) -> Abstract:
    return Abstract(tuple(value.shape), value.dtype, False)


def _abstract(one: Any, other: Any, sizes: Sizes, by_row: bool) -> Any:
    """What is common to a value met in both runs; an open axis is as in the first, or the number of rows of a row."""
    if not isinstance(one, Abstract):
        return None
    shape = []
    for a, b in zip(one.shape, other.shape, strict=True):
        found = (a, ()) if a == b else _factors(a, b, sizes)
        if found is None:
            raise DependsOnRows(
                f"a value of shape {one.shape} for {_run(sizes, 0)} samples, {other.shape} for {_run(sizes, 1)}"
            )
        shape.append(found[0] if by_row else a)
    return Abstract(tuple(shape), one.dtype, len(shape) > 0 and one.shape[0] != other.shape[0])
