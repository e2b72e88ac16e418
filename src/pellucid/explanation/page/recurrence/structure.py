"""What the author's lines say of one unit: which sums hold matrix products, and which values act as valves."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from pellucid.explanation.lines import Lines
from pellucid.explanation.paper import Paper
from pellucid.explanation.pieces import Name
from pellucid.explanation.sites import Site

Source = list[
    Any
]  # where a value is found: ["value", 3], ["state", 0], ["input", 0], ["parameter", "U"], ["number", 2]
ACTIVATIONS = frozenset(
    """tanh sigmoid relu relu6 elu selu celu gelu silu mish softplus softsign hardtanh hardsigmoid hardswish leaky_relu
    logsigmoid exp sin cos square abs""".split()
)
GATES = frozenset("sigmoid hardsigmoid softmax".split())
CUTS = frozenset("chunk split tensor_split".split())
NO_GATES = ACTIVATIONS - GATES - {"exp"}


def one_row(value: Tensor) -> bool:
    """Whether a recorded value, with the axis of the steps, is one row at each of them."""
    return math.prod(value.shape[1:]) == value.shape[-1] or value.ndim == 1


class Structure:
    """The lines of a formula that ran straight through, every value recorded once.

    Args:
        lines: the author's.
        sites: what was recorded at a step, in order.
        names: inputs, states and parameters, each a list of names.
        numbers: hyperparameters by name.
        paper: writes labels.
        series: the values of a recorded site at all steps.
    """

    def __init__(
        self,
        lines: Lines,
        sites: Sequence[Site],
        names: Mapping[str, Sequence[str]],
        numbers: Mapping[str, Any],
        paper: Paper,
        series: Callable[[int], Tensor],
    ) -> None:
        self.lines, self.sites, self.names, self.numbers = lines, sites, names, numbers
        self.paper, self.series = paper, series
        self.position = {id(site): place for place, site in enumerate(sites)}
        nodes = list(ast.walk(lines.tree)) if lines.tree is not None else []
        loops = (ast.For, ast.While, ast.AsyncFor)
        self.plain = len(self.position) == len(sites) and not any(isinstance(node, loops) for node in nodes)
        self.parents = {id(child): node for node in nodes for child in ast.iter_child_nodes(node)}
        self.unpacked: dict[int, list[ast.Name]] = {}
        self.made_of: dict[int, ast.expr] = {}  # by position: what a name was cut out of
        for node in nodes:
            if isinstance(node, ast.Assign):
                self._unpack(node)

    # -- finding values -----------------------------------------------------------------------------------------

    def place(self, node: ast.AST) -> int | None:
        """The recorded value of an expression."""
        site = getattr(node, "site", None)
        return None if site is None else self.position.get(id(self.lines.sites[site]))

    def source(self, node: ast.expr, at: int) -> Source | None:
        """Where the value of an expression is found, as it stands inside the recorded value ``at``."""
        place = self.place(node)
        if place is not None:
            return ["value", place]
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            return ["number", node.value]
        if not isinstance(node, ast.Name):
            return None
        if node.id in self.names["state"] and getattr(node, "moment", "") == "before":
            return ["state", list(self.names["state"]).index(node.id)]
        place = self.defined(node.id, at)
        if place is not None:
            return ["value", place]
        if node.id in self.names["input"]:
            return ["input", list(self.names["input"]).index(node.id)]
        if node.id in self.names["parameter"]:
            return ["parameter", node.id]
        number = self.numbers.get(node.id)
        return ["number", number] if isinstance(number, (int, float)) else None

    def defined(self, name: str, at: int) -> int | None:
        """The last recorded value of a name before another."""
        return next((place for place in range(at - 1, -1, -1) if self.sites[place].name == name), None)

    def _unpack(self, node: ast.Assign) -> None:
        """``i, f = (…).chunk(2, -1)``: note the parts under what they are cut from."""
        target, value = node.targets[0], node.value
        if not isinstance(target, ast.Tuple) or not isinstance(value, ast.Call):
            return
        names = [name for name in target.elts if isinstance(name, ast.Name)]
        function = value.func
        if len(names) != len(target.elts) or not isinstance(function, ast.Attribute):
            return
        if function.attr not in CUTS:
            return
        whole = self.operand(value)
        if whole is None:
            return
        places = [self.place(name) for name in names]
        if None in places or len({tuple(self.sites_shape(place)) for place in places if place is not None}) != 1:
            return
        self.unpacked[id(whole)] = names
        for place in places:
            assert place is not None
            self.made_of[place] = whole

    def sites_shape(self, place: int) -> tuple[int, ...]:
        """The shape of a recorded value at one step."""
        return tuple(self.series(place).shape[1:])

    # -- sums of products ---------------------------------------------------------------------------------------

    def sums(self) -> Iterator[dict[str, Any]]:
        """Every sum that holds a matrix product: its terms, and what becomes of it."""
        if not self.plain:
            return
        inside: set[int] = set()
        for place, site in sorted(enumerate(self.sites), key=lambda pair: -_size(pair[1].node)):
            node = site.node
            if not isinstance(node, ast.BinOp) or place in inside:
                continue
            terms = list(_summands(node))
            if not any(_is_product(term) for _, term in terms):
                continue
            inside |= {p for _, term in terms if (p := self.place(term)) is not None}
            found = self._sum(place, site, node, terms)
            if found is not None:
                yield found

    def _sum(self, place: int, site: Site, node: ast.expr, terms: list[tuple[int, ast.expr]]) -> dict[str, Any] | None:
        written = []
        for sign, term in terms:
            label = str(self.paper.expression(term))
            of = self.source(term, place)
            if isinstance(term, ast.BinOp) and _is_product(term):
                left, right = self.source(term.left, place), self.source(term.right, place)
                if left is not None and right is not None and left[0] != "parameter":
                    names = [str(self.paper.expression(side)) for side in (term.left, term.right)]
                    written.append(
                        {"sign": sign, "label": label, "left": left, "right": right, "names": names, "of": of}
                    )
                    continue
            if of is None:
                return None
            written.append({"sign": sign, "label": label, "of": of})
        return {
            "at": place,
            "label": str(site.label(self.paper)),
            "terms": written,
            "parts": self._parts_of(place, node),
        }

    def _parts_of(self, place: int, node: ast.expr) -> list[dict[str, Any]]:
        """The parts that a sum is cut into, and the activation of each: positions, ``whole`` where it is not cut."""
        whole, function, after = node, None, None
        parent = self.parents.get(id(node))
        if isinstance(parent, ast.Call) and self._acts_on(parent, node):
            whole, function, after = parent, _name(parent), self.place(parent)
        if id(whole) in self.unpacked:
            parts = []
            for name in self.unpacked[id(whole)]:
                own = self.place(name)
                assert own is not None
                label = str(self.sites[own].label(self.paper))
                called = (function, after, True) if after is not None else (*self._activated(name.id, own), False)
                parts.append({"label": label, "function": called[0], "after": called[1], "whole": called[2]})
            return parts
        if after is None and self.sites[place].name is not None:
            function, after = self._activated(str(self.sites[place].name), place)
        return [{"label": "", "function": function, "after": after, "whole": True}]

    def operand(self, call: ast.Call) -> ast.expr | None:
        """What a call is applied to: ``v`` of torch.tanh(v), F.relu(v) and v.tanh()."""
        function = call.func
        if isinstance(function, ast.Attribute):
            root = function.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if not isinstance(root, ast.Name) or root.id not in self.lines.modules:
                return function.value
        return call.args[0] if call.args else None

    def _acts_on(self, call: ast.Call, node: ast.AST) -> bool:
        """Whether a call is an activation of an expression."""
        return _name(call) in ACTIVATIONS and self.operand(call) is node and self.place(call) is not None

    def _activated(self, name: str, defined: int) -> tuple[str | None, int | None]:
        """The activation that reads a name, as its value was defined there."""
        for place, site in enumerate(self.sites):
            for call in ast.walk(site.node):
                if not isinstance(call, ast.Call) or _name(call) not in ACTIVATIONS or self.place(call) != place:
                    continue
                operand = self.operand(call)
                if isinstance(operand, ast.Name) and operand.id == name and self.defined(name, place) == defined:
                    return _name(call), place
        return None, None

    # -- valves -------------------------------------------------------------------------------------------------

    def valves(self) -> Iterator[dict[str, Any]]:
        """Every sum or product in which a value between 0 and 1 decides how much of another passes."""
        if not self.plain:
            return
        inside: set[int] = set()
        for place, site in sorted(enumerate(self.sites), key=lambda pair: -_size(pair[1].node)):
            node = site.node
            if place in inside or not isinstance(node, ast.BinOp):
                continue
            terms = [self._gated(sign, term, place) for sign, term in _summands(node)]
            if any(term is None for term in terms) or not any(term and "gate" in term for term in terms):
                continue
            for _, term in _summands(node):
                inside |= {p for part in ast.walk(term) if (p := self.place(part)) is not None and p != place}
            yield {"at": place, "label": str(site.label(self.paper)), "terms": terms}

    def _gated(self, sign: int, term: ast.expr, at: int) -> dict[str, Any] | None:
        label, of = str(self.paper.expression(term)), self.source(term, at)
        factors = list(_factors(term))
        if len(factors) > 1:
            gates = [n for operator, n in factors if operator == "*" and self.is_gate(n, at)]
            gate = next((n for n in gates if self.known_gate(n, at)), gates[0] if gates else None)
            if gate is not None:
                rest = [(operator, n) for operator, n in factors if n is not gate]
                others = [[operator, self.source(n, at), str(self.paper.expression(n))] for operator, n in rest]
                if all(source is not None and self.is_row(source) for _, source, _ in others):
                    own = {
                        "gate": self.source(gate, at),
                        "gate_label": str(self.paper.expression(gate)),
                        "others": others,
                    }
                    return {"sign": sign, "label": label, "of": of or ["value", at], **own}
        return None if of is None else {"sign": sign, "label": label, "of": of}

    def is_row(self, source: Any) -> bool:
        """Whether what is found there is one row, and no matrix of each sample."""
        return source[0] != "value" or one_row(self.series(source[1]))

    def is_gate(self, node: ast.expr, at: int) -> bool:
        """Whether an expression was computed, and its values lie from 0 to 1 at all steps."""
        source = self.source(node, at)
        if source is None or source[0] != "value" or not self.is_row(source) or self.function(node, at) in NO_GATES:
            return False
        values = self.series(source[1])
        return bool(((values >= 0) & (values <= 1)).all())

    def known_gate(self, node: ast.expr, at: int) -> bool:
        """Whether a sigmoid made it, or it is 1 minus such a value."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and isinstance(node.left, ast.Constant):
            return self.known_gate(node.right, at)
        return self.function(node, at) in GATES

    def function(self, node: ast.expr, at: int, depth: int = 8) -> str | None:
        """The function that a value came out of, through names and cuts."""
        if isinstance(node, ast.Call):
            inner = self.operand(node) if _name(node) in CUTS else None
            return _name(node) if inner is None else self.function(inner, at, depth - 1)
        if not isinstance(node, ast.Name) or not depth:
            return None
        place = self.defined(node.id, at) if self.place(node) is None else self.place(node)
        if place is None:
            return None
        return self.function(self.made_of.get(place, self.sites[place].node), place, depth - 1)


class Shapes(Paper):
    """Writes an expression with the shape of every name in its place."""

    def __init__(self, lines: Lines, shape: Callable[[str, str], str | None]) -> None:
        super().__init__(lines.modules, lines.numbers)
        self.shape = shape

    def name(self, name: str, moment: str = "") -> Name:
        """Write a shape in brackets; a number stays a name."""
        found = None if name in self.numbers else self.shape(name, moment)
        return super().name(name, moment) if found is None else Name(f"[{found}]", "")


def _size(node: ast.AST) -> int:
    return sum(1 for _ in ast.walk(node))


def _is_product(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)


def _summands(node: ast.expr, sign: int = 1) -> Iterator[tuple[int, ast.expr]]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
        yield from _summands(node.left, sign)
        yield from _summands(node.right, sign if isinstance(node.op, ast.Add) else -sign)
    else:
        yield sign, node


def _factors(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        yield from _factors(node.left)
        yield from _factors(node.right)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        yield from _factors(node.left)
        yield "/", node.right
    else:
        yield "*", node


def _name(call: ast.Call) -> str | None:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
