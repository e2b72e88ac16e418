"""Sites: the expressions of a formula whose values are worth showing, and the moments of its names."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pellucid.explanation.paper import Paper, joined
from pellucid.explanation.pieces import Piece

Results = Callable[[ast.expr | None], list[tuple[ast.expr, str, str]]]  # what is returned: (expression, name, moment)


@dataclass(frozen=True)
class Site:
    """One expression whose value is worth showing.

    ``name`` is what it is assigned to or returned as (None for a part of a larger expression) and ``moment`` the
    moment of that name; ``constant`` tells that it depends on parameters alone.
    """

    node: ast.expr
    name: str | None
    moment: str
    constant: bool

    def label(self, paper: Paper) -> Piece:
        """Write ``name = expression``, or the expression alone."""
        value = paper.expression(self.node)
        if self.name is None:
            return value
        name = paper.name(self.name, self.moment)
        same = isinstance(self.node, ast.Name) and str(value) == str(name)
        return name if same else joined(" = ", (name, value))


def spelled_out(statement: ast.AugAssign) -> ast.BinOp:
    """Return ``z + b`` for ``z += b``."""
    target = ast.copy_location(ast.Name(statement.target.id, ast.Load()), statement.target)  # type: ignore[union-attr]
    target.moment = getattr(statement.target, "moment_before", "")  # type: ignore[attr-defined]
    return ast.copy_location(ast.BinOp(target, statement.op, statement.value), statement)


class Marker:
    """Walks the statements in order, marks names with their moment and collects the sites."""

    def __init__(self, now: Sequence[str], before: Sequence[str], named_results: Results) -> None:
        self.before, self.named_results = before, named_results
        self.moment: dict[str, str] = dict.fromkeys(now, "now") | dict.fromkeys(before, "before")
        self.sites: list[Site] = []

    def block(self, statements: Sequence[ast.stmt]) -> None:
        """Walk statements in order."""
        for statement in statements:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            self._mark(node.value)
            self._assign(targets, node.value)
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            self._mark(node.value)
            before = self.moment.get(node.target.id, "")
            node.target.moment_before = before  # type: ignore[attr-defined]
            self._parts(node.value)
            self._bind(node.target, before or self._moment_of(node.value))
            self._after(node.target, spelled_out(node))
        elif isinstance(node, ast.Return):
            self._mark(node.value)
            for value, name, moment in self.named_results(node.value):
                if not isinstance(value, ast.Name):
                    self._site(value, name, moment)
        elif isinstance(node, (ast.If, ast.While)):
            self._mark(node.test)
            self.block(node.body)
            self.block(node.orelse)
        elif isinstance(node, ast.For):
            self._mark(node.iter)
            self._bind(node.target, self._moment_of(node.iter))
            self.block(node.body)
            self.block(node.orelse)
        elif isinstance(node, ast.With):
            self.block(node.body)
        elif isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            self._mark(node.value)
            self._parts(node.value)

    def _assign(self, targets: Sequence[ast.expr], value: ast.expr) -> None:
        moment = self._moment_of(value)
        for target in targets:
            self._bind(target, moment)
        if len(targets) == 1 and isinstance(targets[0], ast.Name):
            self._site(value, targets[0].id, getattr(targets[0], "moment", ""))
            return
        self._parts(value)
        for name in (n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)):
            self._after(name, name)

    def _bind(self, target: ast.expr, moment: str) -> None:
        for name in (n for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)):
            own = "now" if moment or name.id in self.before else ""
            self.moment[name.id] = own
            name.moment = own  # type: ignore[attr-defined]

    def _mark(self, node: ast.expr | None) -> None:
        for name in (n for n in ast.walk(node) if isinstance(n, ast.Name)) if node is not None else ():
            name.moment = self.moment.get(name.id, "")  # type: ignore[attr-defined]

    def _moment_of(self, node: ast.AST) -> str:
        return "now" if any(getattr(n, "moment", "") for n in ast.walk(node)) else ""

    # -- sites --------------------------------------------------------------------------------------------------

    def _site(self, node: ast.expr, name: str | None = None, moment: str = "") -> None:
        """Mark an expression and, inside it, its parts."""
        constant = bool(self.before) and not self._moment_of(node)
        node.site = len(self.sites)  # type: ignore[attr-defined]
        self.sites.append(Site(node, name, moment, constant))
        self._parts(node)

    def _after(self, name: ast.Name, shown: ast.expr) -> None:
        """Mark a name whose value is to be read after its assignment."""
        moment = getattr(name, "moment", "")
        name.site = len(self.sites)  # type: ignore[attr-defined]
        constant = bool(self.before) and not moment
        self.sites.append(Site(shown, name.id, moment, constant))

    def _parts(self, node: ast.expr) -> None:
        """Mark the parts of an expression that are worth showing."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.keyword):
                child = child.value
            if isinstance(child, (ast.Lambda, ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp, ast.Slice)):
                continue
            if isinstance(child, ast.expr) and _worth_showing(child, node):
                self._site(child)
            elif isinstance(child, ast.expr):
                self._parts(child)


def _worth_showing(node: ast.expr, parent: ast.AST) -> bool:
    """Calls and arithmetic; of a chain such as a + b + c only the whole."""
    if isinstance(node, ast.Call):
        return True
    if not isinstance(node, ast.BinOp):
        return False
    if isinstance(node.op, ast.MatMult) or not isinstance(parent, ast.BinOp):
        return True
    return _kind(node.op) != _kind(parent.op)


def _kind(operator: ast.operator) -> str:
    return "sum" if isinstance(operator, (ast.Add, ast.Sub)) else type(operator).__name__
