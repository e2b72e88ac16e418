"""The author's lines: every name marked with its moment, every expression worth showing marked as a site."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from pellucid.explanation.paper import Paper, joined, modules_of
from pellucid.explanation.pieces import Code, Line, Piece
from pellucid.explanation.sites import Marker, Site, spelled_out
from pellucid.formula.source import quote


class Lines:
    """The lines of one formula.

    Args:
        function: a plain function.
        now: arguments that are new at this step (``xₜ``).
        before: arguments that come from the step before (``hₜ₋₁``), in the order in which they are returned.
        result: the names of what is returned; by default those in ``before``, and `output`.
        numbers: arguments that are plain numbers.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        now: Collection[str] = (),
        before: Sequence[str] = (),
        result: Sequence[str] = (),
        numbers: Collection[str] = (),
    ) -> None:
        self.function = function
        self.source = quote(function)
        self.now, self.before = tuple(now), tuple(before)
        self.result = tuple(result)
        self.modules = modules_of(function)
        self.tree = self.source.tree
        self.sites: list[Site] = []
        self.numbers = {*numbers, *_number_defaults(function)}
        self.output = _output(self.tree)
        if self.tree is not None:
            self.numbers |= _numbers_in(self.tree, self.numbers)
            marker = Marker(self.now, self.before, self.named_results)
            marker.block(self.tree.body)
            self.sites = marker.sites

    @property
    def known(self) -> bool:
        """Whether Python keeps the source of the function."""
        return self.tree is not None

    def paper(self, step: int | None = None) -> Paper:
        """Return a printer; with a step's number t, times are written as numbers, ``x₁`` and ``h₀``."""
        if step is None:
            return Paper(self.modules, self.numbers)
        return Paper(self.modules, self.numbers, str(step), str(step - 1))

    def on_paper(self, paper: Paper | None = None) -> list[Line]:
        """Write the lines as on paper."""
        return list(self._write(self._statements(), paper or self.paper())) if self.tree else []

    @property
    def code(self) -> list[str]:
        """The lines as they stand in the file, without comments."""
        return [line for line in map(_without_comment, self.source.body) if line.strip()]

    def _statements(self) -> list[ast.stmt]:
        assert self.tree is not None
        return self.tree.body[1:] if ast.get_docstring(self.tree) is not None else self.tree.body

    def _write(self, statements: Sequence[ast.stmt], paper: Paper, depth: int = 0) -> Iterator[Line]:
        for statement in statements:
            if isinstance(statement, (ast.Pass, ast.Assert, ast.Import, ast.ImportFrom)):
                continue
            if isinstance(statement, (ast.Assign, ast.AnnAssign)):
                if statement.value is None:
                    continue
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                sides = (*map(paper.target, targets), paper.expression(statement.value))
                yield Line(joined(" = ", sides), depth)
            elif isinstance(statement, ast.AugAssign):
                sides = (paper.target(statement.target), paper.expression(spelled_out(statement)))
                yield Line(joined(" = ", sides), depth)
            elif isinstance(statement, ast.Return):
                yield from (Line(piece, depth) for piece in self._returned(statement, paper))
            elif isinstance(statement, (ast.For, ast.If, ast.While, ast.With)):
                yield from self._block(statement, paper, depth)
            else:
                yield Line(paper.code(statement), depth)

    def _block(self, statement: ast.For | ast.If | ast.While | ast.With, paper: Paper, depth: int) -> Iterator[Line]:
        yield Line(paper.code(statement, ast.unparse(statement).splitlines()[0]), depth)
        yield from self._write(statement.body, paper, depth + 1)
        if getattr(statement, "orelse", None):
            yield Line(Code("else:"), depth)
            yield from self._write(statement.orelse, paper, depth + 1)  # type: ignore[union-attr]

    def _returned(self, statement: ast.Return, paper: Paper) -> Iterator[Piece]:
        for node, name, moment in self.named_results(statement.value):
            value, label = paper.expression(node), paper.name(name, moment)
            if str(value) != str(label):
                yield joined(" = ", (label, value))

    def named_results(self, value: ast.expr | None) -> list[tuple[ast.expr, str, str]]:
        """Pair what is returned with its names: (expression, name, moment)."""
        if value is None:
            return []
        moment = "now" if self.now else ""
        nodes = list(value.elts) if isinstance(value, ast.Tuple) else [value]
        states = list(self.before)
        if not states:
            names = list(self.result) if len(self.result) == len(nodes) else []
            names = names or (
                [self.output] if len(nodes) == 1 else [f"{self.output}{i}" for i in range(1, len(nodes) + 1)]
            )
            return [(n, name, moment) for n, name in zip(nodes, names, strict=True)]
        if len(nodes) == 2 and isinstance(nodes[1], (ast.Tuple, ast.List)):
            nodes, states = [nodes[0], *nodes[1].elts], [self.output, *states]
        elif len(nodes) == len(states) + 1:
            states = [self.output, *states]
        if len(nodes) != len(states):
            return [(value, "(" + ", ".join(states) + ")", "")]
        return [(n, name, moment) for n, name in zip(nodes, states, strict=True)]


def _output(tree: ast.FunctionDef | None) -> str:
    """What the result of a formula is called: y, unless that is a name of something else in it."""
    nodes = list(ast.walk(tree)) if tree is not None else []
    used = {node.id for node in nodes if isinstance(node, ast.Name)} | {n.arg for n in nodes if isinstance(n, ast.arg)}
    values = [node.value for node in nodes if isinstance(node, ast.Return)]
    firsts = [value.elts[0] if isinstance(value, ast.Tuple) and value.elts else value for value in values]
    if "y" not in used or all(isinstance(first, ast.Name) and first.id == "y" for first in firsts):
        return "y"
    name = "result"
    while name in used:
        name += "_"
    return name


def _number_defaults(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if isinstance(p.default, (int, float))}


def _numbers_in(tree: ast.FunctionDef, numbers: set[str]) -> set[str]:
    """Return the local names that are computed from numbers alone."""
    paper = Paper(numbers=set(numbers))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if paper.is_number(node.value):
                paper.numbers.add(name)
            else:
                paper.numbers.discard(name)
    return paper.numbers


def _without_comment(line: str) -> str:
    """Cut off what follows a # that is not inside a string."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(line.lstrip()).readline))
    except (tokenize.TokenError, IndentationError):  # a part of a statement over several lines
        return line
    indent = len(line) - len(line.lstrip())
    start = next((t.start[1] + indent for t in tokens if t.type == tokenize.COMMENT), len(line))
    return line[:start].rstrip()
