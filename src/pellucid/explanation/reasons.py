"""Why a symbol has its shape, as sentences: the chain of reasons that the solver kept, spelled out axis by axis."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pellucid.explanation.texts import Texts
from pellucid.explanation.typesetting import shape_of
from pellucid.formula.dims import Reason
from pellucid.formula.shapes import Solution, SolvedShape

OPERATIONS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "add"),
    ast.Sub: ("-", "subtract"),
    ast.Mult: ("*", "multiply"),
    ast.Div: ("/", "divide"),
    ast.MatMult: ("@", "product"),
}


@dataclass(frozen=True)
class AxisReason:
    """Why an axis of a symbol has its size: the clauses that lead there, and the sentence with its conclusion."""

    axis: int
    because: str
    sentence: str


def sentences(symbol: SolvedShape, solution: Solution, role: str, texts: Texts) -> tuple[str, ...]:
    """Say for every axis of a symbol why it has its size; the batch of an input needs no reason."""
    return tuple(dict.fromkeys(reason.sentence for reason in by_axis(symbol, solution, role, texts)))


def by_axis(symbol: SolvedShape, solution: Solution, role: str, texts: Texts) -> tuple[AxisReason, ...]:
    """Give the reason of every axis that has one."""
    rows = role in ("input", "state")
    found = []
    for axis, (reasons, size, dim) in enumerate(zip(symbol.reasons, symbol.shape, symbol.dims, strict=True)):
        if (rows and axis == 0) or not reasons:
            continue
        place = "entries" if rows or len(symbol.shape) == 1 else ("rows", "columns")[axis] if axis < 2 else "entries"
        conclusion = texts(f"axis_size.{place}", name=symbol.name, size=size)
        if not dim.isalnum():  # 4*hidden: show where the number comes from
            conclusion += texts("axis_size.made_of", dim=dim_text(dim, texts))
        clauses = [clause(reason, symbol.name, solution, texts, not i) for i, reason in enumerate(reasons)]
        because = texts.joined(clauses)
        if [reason.kind for reason in reasons] in (["given"], ["annotated"]):
            sentence = texts("reason.plain", because=because)
        else:
            sentence = texts("reason.because", because=because, conclusion=conclusion)
        found.append(AxisReason(axis, texts("reason.plain", because=because), sentence))
    return tuple(found)


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
    return texts("reason.annotated", name=name, dims=facts["dims"], shape=shape_of(solution.symbols[name].shape))


def _product(facts: Facts, name: str, solution: Solution, texts: Texts) -> str:
    expression = _short(facts["expression"])
    operation, left, right = _operands(expression)
    if operation != "product":
        return texts("reason.product.call", expression=expression)
    if facts["left"] and left != name:
        return texts("reason.product.right", left=left, shape=facts["left"], name=right, expression=expression)
    shape = shape_of(solution.symbols[right].shape) if right in solution.symbols else ""
    if shape:
        return texts("reason.product.left", right=right, shape=shape, name=left, expression=expression)
    return texts("reason.product.call", expression=expression)


def _agree(facts: Facts, name: str, solution: Solution, texts: Texts) -> str:
    expression = _short(facts["expression"])
    operation, left, right = _operands(expression)
    if operation in ("", "product"):
        return texts("reason.agree.other", expression=expression)
    return texts(f"reason.agree.{operation}", left=left, right=right)


def _returned(facts: Facts, name: str, solution: Solution, texts: Texts) -> str:
    state = facts["state"]
    return texts("reason.returned", state=state, shape=shape_of(solution.symbols[state].shape))


def _result(facts: Facts, name: str, solution: Solution, texts: Texts) -> str:
    return texts("reason.result", argument=facts["argument"], shape=shape_of((solution.output,)))


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
    "result": _result,
    "split": _split,
    "normalized": _normalized,
}


def _operands(expression: str) -> tuple[str, str, str]:
    """Return the operation of an expression and its two operands as they are written; ("", "", "") for others."""
    try:
        node = ast.parse(expression, mode="eval").body
    except SyntaxError:
        node = None
    if not isinstance(node, ast.BinOp) or type(node.op) not in OPERATIONS:
        return "", "", ""
    sign, operation = OPERATIONS[type(node.op)]
    text = expression.encode()
    place = text.index(sign.encode(), node.left.end_col_offset or 0)
    return operation, text[:place].decode().strip(), text[place + 1 :].decode().strip()


def _short(expression: str) -> str:
    """torch.tanh and F.tanh are tanh."""
    return re.sub(r"\b(torch|nn|functional|F|pellucid|math)\.(?=[A-Za-z])", "", expression)
