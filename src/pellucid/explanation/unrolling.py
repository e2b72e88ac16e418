"""The unrolled network: which values enter the cell at every step, and by which weights each is multiplied there."""

from __future__ import annotations

import ast
from collections.abc import Callable

from pellucid.explanation.lines import Lines
from pellucid.explanation.paper import letter
from pellucid.explanation.reading import Reading
from pellucid.explanation.report import Arrow, Moment, Unrolled
from pellucid.explanation.texts import Texts
from pellucid.explanation.typesetting import shape_of

ALL = 5  # steps up to which all are drawn
FIRST = 3  # of more, these and the last


def unrolled(reading: Reading, steps: int, token: Callable[[int], str | None], texts: Texts) -> Unrolled:
    """Lay a network out along ``steps`` steps; ``token`` names what is read at one."""
    source, lines, solution = reading.source, reading.lines, reading.layer.solution()
    parameters = [symbol.name for symbol in source.symbols if symbol.role == "parameter"]
    inputs, states = ([symbol.name for symbol in symbols] for symbols in (source.inputs, source.states))
    shapes = {name: shape_of(symbol.shape) for name, symbol in solution.symbols.items()}
    weights = multiplied(lines, inputs, states, parameters)
    apart = _returns_output(lines, states)

    def arrow(name: str) -> Arrow:
        return Arrow(shapes[name], tuple(letter(weight) for weight in weights[name]))

    def moment(t: int) -> Moment:
        paper = lines.paper(t)
        before, after = ([str(paper.name(name, when)) for name in states] for when in ("before", "now"))
        output = str(paper.name(lines.output, "now")) if apart else after[0]
        now = tuple(str(paper.name(name, "now")) for name in inputs)
        return Moment(t, token(t) or "", now, tuple(before), tuple(after), output)

    drawn = range(1, steps + 1) if steps <= ALL else (*range(1, FIRST + 1), steps)
    key = "picture.unrolled" if len(reading.places) == 1 else "picture.unrolled_first"
    return Unrolled(
        title=texts(key, cell=source.name, steps=steps),
        cell=source.name,
        steps=steps,
        moments=tuple(map(moment, drawn)),
        inputs=tuple(map(arrow, inputs)),
        states=tuple(map(arrow, states)),
        output=Arrow(shape_of((solution.output,))),
        weights=tuple((letter(name), shapes[name]) for name in parameters),
        shared=texts("picture.shared") if parameters else "",
    )


def multiplied(lines: Lines, inputs: list[str], states: list[str], parameters: list[str]) -> dict[str, list[str]]:
    """Return, for every input and state, the parameters that stand right of it in the formula's matrix products."""
    found: dict[str, list[str]] = {name: [] for name in (*inputs, *states)}
    moments = dict.fromkeys(inputs, "now") | dict.fromkeys(states, "before")
    for node in _products(lines):
        left = {name.id for name in _names(node.left) if getattr(name, "moment", "") == moments.get(name.id)}
        right = [name.id for name in _names(node.right) if name.id in parameters]
        if len(left) == 1:
            known = found[left.pop()]
            known += [name for name in dict.fromkeys(right) if name not in known]
    return found


def _products(lines: Lines) -> list[ast.BinOp]:
    """Return the formula's matrix products in the order in which they are computed."""
    nodes = ast.walk(lines.tree) if lines.tree is not None else ()
    found = [node for node in nodes if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)]
    return sorted(found, key=lambda node: (node.end_lineno, node.end_col_offset))


def _names(node: ast.AST) -> list[ast.Name]:
    return [name for name in ast.walk(node) if isinstance(name, ast.Name)]


def _returns_output(lines: Lines, states: list[str]) -> bool:
    """Whether the formula returns an output beside the new state."""
    returns = [n for n in ast.walk(lines.tree) if isinstance(n, ast.Return)] if lines.tree is not None else []
    names = {name for statement in returns for _, name, _ in lines.named_results(statement.value)}
    return lines.output in names - set(states)
