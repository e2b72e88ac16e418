"""A formula as a program that the page runs: torch's operations one by one, as JSON.

The author's lines are run once, every value that an explanation shows recorded on the way; what torch did is the
program, and ``core/tensor.js`` has one line for each of its operations.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pellucid.errors import Unsupported
from pellucid.explanation.lines import Lines
from pellucid.explanation.page.arrays import packed
from pellucid.explanation.reading import Provider
from pellucid.explanation.sites import Site
from pellucid.explanation.trace import recording
from pellucid.formula.capture import capture
from pellucid.formula.draws import provided_by
from pellucid.formula.graph import Graded, decompositions, in_plain_torch

# Makes what a formula receives of what its program reads: both by name.
Bind = Callable[[dict[str, Tensor]], Mapping[str, Any]]

KNOWN = frozenset(
    """abs acos add addmm alias amax amin any asin atan atan2 bitwise_and bitwise_not bitwise_or bmm cat ceil clamp
    clamp_max clamp_min clone constant_pad_nd copy cos cosh cumsum detach div elu eq erf exp expand expm1 floor full
    full_like ge gelu gelu_backward gt hardtanh index_select le leaky_relu linalg_vector_norm log log1p log2
    log_softmax logical_and logical_not logical_or lt max max_pool2d_with_indices maximum mean minimum mm mul
    native_layer_norm native_layer_norm_backward ne neg ones_like permute pow prod reciprocal relu round rsqrt
    scalar_tensor select select_scatter sgn sigmoid sign sin sinh slice slice_scatter softmax softplus
    split_with_sizes sqrt squeeze sub sum tan tanh to_copy unbind unfold unsafe_view unsqueeze var view where
    zeros_like""".split()
)


@dataclass(frozen=True)
class Program:
    """A program of the page.

    ``text`` is what the page reads; ``sites`` are the recorded expressions in the order of their values in it.
    """

    text: Mapping[str, Any]
    sites: tuple[Site, ...]


def program(
    lines: Lines, inputs: Mapping[str, Tensor], others: Mapping[str, Any], positional: int = 0, bind: Bind = dict
) -> Program:
    """Trace a formula's lines.

    Args:
        lines: the author's.
        inputs: what the program reads, by the names of the formula's arguments, in their order; of the first
            ``positional`` only the order counts.
        others: arguments that stay as they are.
        positional: how many inputs the formula takes by position.
        bind: makes the formula's arguments of the other inputs, where they are not the inputs themselves: an average
            over what an input marks as real.

    Returns:
        ``text``: ``inputs``, names; ``constants``, tensors by name; ``nodes``, each ``[name, operation, arguments,
        keywords]`` where a string ``"%name"`` is a value; ``values``, the recorded values; ``results``, what the
        function returned, entries of tuples one after the other.

    Raises:
        Unsupported: an operation that the page does not know.
        FormulaError: torch cannot trace the formula.
    """
    sites: list[Site] = []
    names = list(inputs)

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        sites.clear()
        recorded: list[Tensor] = []

        def record(index: int, value: Any) -> Any:
            if isinstance(value, Tensor):
                sites.append(lines.sites[index])
                recorded.append(value)
            return value

        results = _results(recording(lines, record), names, values, others, positional, bind)
        return (*recorded, *results)

    traced = [value.detach() for value in inputs.values()]
    graph, constants = in_plain_torch(lambda: capture(run, lambda *sizes: traced, decompositions()))
    return Program(_text(graph, constants, names, len(sites)), tuple(sites))


def gradient(
    lines: Lines,
    inputs: Mapping[str, Tensor],
    others: Mapping[str, Any],
    positional: int = 0,
    bind: Bind = dict,
    wanted: Sequence[str] | None = None,
) -> Program:
    """Trace the product of the formula's Jacobian with gradients.

    The program reads ``inputs`` and then the gradient of every result, named ``grad_0``, ``grad_1``, …; its results
    are the gradients of the ``wanted`` inputs, by default of all. It records no values.
    """
    names = list(inputs)
    places = [names.index(name) for name in (names if wanted is None else wanted)]
    primals = [value.detach() for value in inputs.values()]
    with torch.no_grad():
        given = [torch.ones_like(v) for v in _results(lines.function, names, primals, others, positional, bind)]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        of = values[: len(names)]
        results = _results(lines.function, names, of, others, positional, bind)
        pairs = [(r, g) for r, g in zip(results, values[len(names) :], strict=True) if r.requires_grad]
        asked = [of[place] for place in places]
        found: Sequence[Tensor | None] = [None] * len(asked)
        if pairs:
            graded = Graded.apply(*(r for r, _ in pairs), *(g for _, g in pairs))
            found = torch.autograd.grad(graded, asked, allow_unused=True)
        return tuple(torch.zeros_like(v) if g is None else g for v, g in zip(asked, found, strict=True))

    def arguments(*sizes: int) -> Sequence[Tensor]:
        return [*(value.detach().requires_grad_(value.is_floating_point()) for value in primals), *given]

    graph, constants = in_plain_torch(lambda: capture(run, arguments, decompositions()))
    grads = [f"grad_{index}" for index in range(len(given))]
    return Program(_text(graph, constants, [*names, *grads], 0), ())


def _results(
    function: Callable[..., Any],
    names: list[str],
    values: Sequence[Tensor],
    others: Mapping[str, Any],
    positional: int,
    bind: Bind,
) -> list[Tensor]:
    """Call a formula, which draws nothing, by the names of its arguments."""
    keywords = bind(dict(zip(names[positional:], values[positional:], strict=True)))
    with provided_by(Provider(False)):
        return flat(function(*values[:positional], **keywords, **others))


def flat(result: Any) -> list[Tensor]:
    """List the tensors of a result, entries of tuples one after the other."""
    if isinstance(result, (tuple, list)):
        return [tensor for part in result for tensor in flat(part)]
    return [result]


def _text(graph: fx.Graph, constants: Mapping[str, Tensor], inputs: list[str], recorded: int) -> dict[str, Any]:
    nodes: list[list[Any]] = []
    read: list[str] = []
    results: list[Any] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            read.append(node.name)
        elif node.op == "get_attr":
            nodes.append([node.name, "constant", [str(node.target)], {}])
        elif node.op == "output":
            results = [_written(value) for value in node.args[0]]
        else:
            nodes.append([node.name, _operation(node), _written(list(node.args)), _keywords(node.kwargs)])
    return {
        "inputs": inputs,
        "read": read,
        "constants": {name: packed(value) for name, value in constants.items()},
        "nodes": nodes,
        "values": results[:recorded],
        "results": results[recorded:],
    }


def _operation(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    name = str(getattr(node.target, "_schema", node.target)).split("(")[0].removeprefix("aten::").split(".")[0]
    name = name.strip("_")
    if name not in KNOWN:
        raise Unsupported(name)
    return name


def _keywords(keywords: Mapping[str, Any]) -> dict[str, Any]:
    about_storage = ("dtype", "layout", "device", "pin_memory", "memory_format")
    return {name: _written(value) for name, value in keywords.items() if name not in about_storage}


def _written(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return [_written(part) for part in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "inf" if value > 0 else "-inf"
    return value if isinstance(value, (int, float, str, bool, type(None))) else None
