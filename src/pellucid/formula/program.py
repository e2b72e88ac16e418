"""The scheduled program of a cell: what every backend receives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class Abstract:
    """A traced value without its numbers: its axes for a batch of one, and its dtype.

    ``rows`` says whether the first axis is the batch: then ``shape[0]`` is the number of its rows for one sample.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: bool

    def dim(self) -> int:
        """The number of axes."""
        return len(self.shape)


def placeholder(graph: fx.Graph, name: str) -> fx.Node:
    """An input of a graph, called as in its code: of B and b fx makes ``b = B; b_1 = b``, and reads B twice."""
    return graph.create_node("placeholder", name, name=name)


@dataclass(frozen=True, eq=False)
class Stage:
    """A straight piece of the program: named values in, named values out.

    The graph's first placeholder is the number of rows, then come ``inputs``; it returns ``outputs`` as a tuple.
    """

    graph: fx.Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def placeholders(self) -> dict[str, fx.Node]:
        """The graph's placeholders by the names of the inputs, and "rows"."""
        nodes = [n for n in self.graph.nodes if n.op == "placeholder"]
        return dict(zip(("rows", *self.inputs), nodes, strict=True))

    @property
    def results(self) -> dict[str, Abstract]:
        """What the outputs are, by their names."""
        returned = next(n for n in self.graph.nodes if n.op == "output").args[0]
        return {name: node.meta["val"] for name, node in zip(self.outputs, returned, strict=True)}

    @functools.cached_property
    def function(self) -> Callable[..., tuple[torch.Tensor, ...]]:
        """The stage as a Python function ``(rows, *inputs) -> outputs``."""
        return fx.GraphModule(torch.nn.Module(), self.graph).forward

    def run(self, rows: int, values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Take the inputs by name from ``values`` and return the outputs by name."""
        if not self.outputs:
            return {}
        results = self.function(rows, *(values[name] for name in self.inputs))
        return dict(zip(self.outputs, results, strict=True))

    @functools.lru_cache(maxsize=8)  # noqa: B019 (programs live as long as the process)
    def only(self, outputs: tuple[str, ...], transposed: tuple[str, ...] = ()) -> Stage:
        """The same stage for fewer outputs, without the work that only the others need.

        Products in ``transposed`` come as the transposed view of a product that is contiguous.
        """
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        results: Any = graph.graph_copy(self.graph, copied)
        for name in transposed:
            node = results[self.outputs.index(name)]
            if node.target is torch.ops.aten.mm.default:
                with graph.inserting_before(node):
                    turned = graph.call_function(node.target, tuple(_transposed(graph, a) for a in node.args[::-1]))
                    node.replace_all_uses_with(copy := graph.call_function(torch.t, (turned,)))
                results = tuple(copy if result is node else result for result in results)
        graph.output(tuple(results[self.outputs.index(name)] for name in outputs))
        graph.eliminate_dead_code()
        return Stage(graph, self.inputs, outputs)


def _transposed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    if node.target is torch.ops.aten.permute.default:
        return node.args[0]  # type: ignore[return-value]
    return graph.call_function(torch.t, (node,))


@dataclass(frozen=True, eq=False)
class Program:
    """A cell, scheduled.

    Forward: ``once`` (parameters alone), ``per_input`` (the input of every step, time folded into the rows), ``step``
    (the loop). Backward: ``before`` (folded, what the loop needs and does not depend on the state's gradient),
    ``back_step`` (the loop, last step first) and ``after`` (folded: the gradients of input and parameters).

    Values have the names of the graph's nodes. ``saved_folded`` and ``saved_steps`` are what backward reads of
    forward: whole tensors with time folded into the rows, and values of the loop, one a step; what depends on
    parameters alone is computed again.

    Where backward is the formula's ``own_gradient``, and not the one of its operations, only the author's function can
    be differentiated.
    """

    name: str
    input: str
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    draws: tuple[str, ...]
    sites: tuple[tuple[int, str | None], ...]
    own_gradient: bool
    trained: tuple[bool, ...]  # of every parameter: whether it has a gradient
    constants: Mapping[str, torch.Tensor]
    once: Stage
    per_input: Stage
    step: Stage
    output: str
    new_states: tuple[str, ...]
    saved_folded: tuple[str, ...]
    saved_steps: tuple[str, ...]
    output_gradient: str
    state_gradients: tuple[str, ...]
    before: Stage
    back_step: Stage
    after: Stage
    input_gradient: str
    old_state_gradients: tuple[str, ...]
    parameter_gradients: tuple[str, ...]
    fixed: frozenset[str]  # values without rows: what depends on parameters alone
    features: Mapping[str, tuple[int, ...]]  # output, states, saved values: rows per row of the batch, other axes
    dtypes: Mapping[str, torch.dtype]  # of the same

    @property
    def output_is_saved(self) -> bool:
        """Whether backward reads the output itself, of steps that are not real too; states have memory of their own."""
        return self.output in self.saved_steps and self.output not in (*self.states, *self.new_states)
