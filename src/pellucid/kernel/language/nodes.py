"""Values made of the nodes of a graph, one after the other."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from pellucid.errors import Unsupported
from pellucid.formula.program import Abstract
from pellucid.kernel.language.rules import OPERATIONS, WITH_MATRIX
from pellucid.kernel.language.values import Lowering, Value


class Nodes(Lowering):
    """Values made of one node of a graph after the other."""

    def fits(self, value: Abstract) -> bool:
        """Whether a result can be a value, as far as its axes tell."""
        raise NotImplementedError

    def arguments(self, node: fx.Node) -> Any:
        """The values of the arguments of a node."""
        return self.value(node.args)

    def call(self, node: fx.Node) -> None:
        """Make the result of an operation."""
        self.node = node
        if node.target is operator.getitem:
            self.made[node] = self.value(node.args[0])[node.args[1]]
            return
        value: Any = node.meta.get("val")
        rule = OPERATIONS.get(node.target)
        if rule is None:
            raise Unsupported(str(node.target))
        if isinstance(value, Abstract) and not self.fits(value):
            raise Unsupported(f"{node.target} with a result of {value.dim()} axes")
        arguments = node.args if node.target in WITH_MATRIX else self.arguments(node)
        made = self.made[node] = rule(self, *arguments, **{k: self.value(v) for k, v in node.kwargs.items()})
        parts, metas = ([made], [value]) if isinstance(value, Abstract) else (made, value)
        for part, meta in zip(parts, metas, strict=True):  # another width would write beside the memory
            if isinstance(part, Value) and part.width != self.width_of(meta):
                raise Unsupported(f"{node.target} of {part.width} columns instead of {self.width_of(meta)}")
