"""Why a symbol has its shape, as sentences: the chain of reasons that the solver kept, spelled out axis by axis."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence

from pellucid.explanation.texts import Texts
from pellucid.formula.dims import Reason
from pellucid.formula.shapes import Solution, SolvedShape

OPERATIONS: dict[type[ast.operator], str] = {
    ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide",
}  # fmt: skip


def shape_of(shape: Sequence[int]) -> str:
    """Write a shape as on paper: ``256×128``; a vector is a row, ``1×128``; a single number is ``1``."""
    return "×".join(map(str, (1, *shape) if len(shape) == 1 else shape)) or "1"


def sentences(symbol: SolvedShape, solution: Solution, role: str, texts: Texts) -> tuple[str, ...]:
    """Say for every axis of a symbol why it has its size; the batch of an input needs no reason."""
    rows = role in ("input", "state")
    found = []
    for axis, (reasons, size, dim) in enumerate(zip(symbol.reasons, symbol.shape, symbol.dims, strict=True)):
        if rows and axis == 0:
            continue
        place = "entries" if rows or len(symbol.shape) == 1 else ("rows", "columns")[axis] if axis < 2 else "entries"
        conclusion = texts(f"axis_size.{place}", name=symbol.name, size=size)
        if not dim.isalnum():  # 4*hidden: show where the number comes from
            conclusion += texts("axis_size.made_of", dim=dim_text(dim, texts))
        clauses = [clause(reason, symbol.name, solution, texts, not i) for i, reason in enumerate(reasons)]
        if [reason.kind for reason in reasons] in (["given"], ["annotated"]):
            found.append(texts("reason.plain", because=clauses[0]))
        elif clauses:
            found.append(texts("reason.because", because=texts.joined(clauses), conclusion=conclusion))
    return tuple(dict.fromkeys(found))


def dim_text(dim: str, texts: Texts) -> str:
    """Write a solved size in the language's names: ``4*hidden`` is ``4·hidden``."""
    parts = [part.split("*") for part in dim.split("+")]
    return " + ".join("·".join(texts.axis(unit) for unit in part) for part in parts)


def clause(reason: Reason, name: str, solution: Solution, texts: Texts, first: bool = False) -> str:
    """Spell out one reason; the first of a sentence has nothing to refer back to."""
    if first and reason.kind == "returned":
        state = reason.facts["state"]
        return texts("reason.first.returned", state=state, shape=shape_of(solution.symbols[state].shape))
    return CLAUSES[reason.kind](reason.facts, name, solution, texts)


Facts = Mapping[str, str]


def _given(facts: Facts, name: str, solution: Solution, texts: Texts) -> str:
    symbol = solution.symbols[name]
    return texts("reason.given", name=name, argument=facts["argument"], shape=shape_of(symbol.shape))


def _annotated(facts: Facts, name: str, solution: Solution, texts: Texts) -> str:
    return texts("reason.annotated", name=name, dims=facts["dims"])


def _product(facts: Facts, name: str, solution: Solution, texts: Texts) -> str:
    expression = _short(facts["expression"])
    pair = _operands(expression, ast.MatMult)
    if pair is None:
        return texts("reason.product.call", expression=expression)
    left, right = pair
    if facts["left"] and left != name:
        return texts("reason.product.right", left=left, shape=facts["left"], name=right, expression=expression)
    shape = shape_of(solution.symbols[right].shape) if right in solution.symbols else ""
    if shape:
        return texts("reason.product.left", right=right, shape=shape, name=left, expression=expression)
    return texts("reason.product.call", expression=expression)


def _agree(facts: Facts, name: str, solution: Solution, texts: Texts) -> str:
    expression = _short(facts["expression"])
    node = _parsed(expression)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        left, right = ast.unparse(node.left), ast.unparse(node.right)
        return texts(f"reason.agree.{OPERATIONS[type(node.op)]}", left=left, right=right)
    return texts("reason.agree.other", expression=expression)


def _returned(facts: Facts, name: str, solution: Solution, texts: Texts) -> str:
    state = facts["state"]
    return texts("reason.returned", state=state, shape=shape_of(solution.symbols[state].shape))


def _split(facts: Facts, name: str, solution: Solution, texts: Texts) -> str:
    return texts("reason.split", expression=_short(facts["expression"]), parts=facts["parts"])


def _normalized(facts: Facts, name: str, solution: Solution, texts: Texts) -> str:
    return texts("reason.normalized", expression=_short(facts["expression"]), name=name)


CLAUSES: dict[str, Callable[[Facts, str, Solution, Texts], str]] = {
    "given": _given,
    "annotated": _annotated,
    "product": _product,
    "agree": _agree,
    "returned": _returned,
    "split": _split,
    "normalized": _normalized,
}


def _parsed(expression: str) -> ast.expr | None:
    try:
        return ast.parse(expression, mode="eval").body
    except SyntaxError:
        return None


def _operands(expression: str, operator: type[ast.operator]) -> tuple[str, str] | None:
    node = _parsed(expression)
    if isinstance(node, ast.BinOp) and isinstance(node.op, operator):
        return ast.unparse(node.left), ast.unparse(node.right)
    return None


class _Shortened(ast.NodeTransformer):
    """torch.tanh and F.tanh are tanh."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        root = node.value
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and root.id in ("torch", "F", "pellucid", "math", "nn"):
            return ast.copy_location(ast.Name(node.attr, node.ctx), node)
        return node


def _short(expression: str) -> str:
    node = _parsed(expression)
    return expression if node is None else ast.unparse(_Shortened().visit(node))
