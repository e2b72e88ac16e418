"""Real numbers: the author's own lines run one by one, the value of every expression worth showing recorded."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pellucid.explanation.lines import Lines
from pellucid.explanation.report import KEPT, KEPT_AXIS
from pellucid.explanation.sites import Site
from pellucid.formula.rewrite import rewritten

RECORD = "__pellucid_record__"


@dataclass(frozen=True)
class Record:
    """A value that an expression had: its first entries where it is large, and its full shape."""

    site: Site
    value: torch.Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """What the lines computed on the way, in order, and what they returned."""

    records: tuple[Record, ...]
    result: Any


class Tracer:
    """Runs a formula's own lines and records the values of its sites.

    The function that runs is the author's, compiled once more from its lines with a recorder around every site;
    globals and closure are its own, so static control flow and helper functions work as they do in the layer.
    """

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self._records: list[Record] = []
        self._function = recording(lines, self._record)

    def __call__(self, /, *arguments: Any, **keywords: Any) -> Trace:
        """Run the function on these arguments."""
        self._records = []
        with torch.no_grad():
            result = self._function(*arguments, **keywords)
        return Trace(tuple(self._records), result)

    def _record(self, index: int, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            self._records.append(Record(self.lines.sites[index], kept(value), tuple(value.shape)))
        return value


def kept(value: torch.Tensor) -> torch.Tensor:
    """Copy a value; of a large one the first entries along every axis."""
    value = value.detach()
    if value.numel() > KEPT:
        value = value[tuple(slice(0, KEPT_AXIS) for _ in range(value.ndim))]
    return value.clone()


def recording(lines: Lines, record: Callable[[int, Any], Any]) -> Callable[..., Any]:
    """Compile the author's function anew, every site passing its value through ``record``.

    One whose source Python does not keep stays as it is, and records nothing.
    """
    source = lines.source
    tree = copy.deepcopy(source.tree)
    if tree is None:
        return lines.function
    tree.body = [statement for node in tree.body for statement in _recorded(node)]
    return rewritten(source, tree, {RECORD: record})


def _recorded(statement: ast.stmt) -> list[ast.stmt]:
    """Wrap the sites of a statement; names assigned by it are recorded after it."""
    for name, value in ast.iter_fields(statement):
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            setattr(statement, name, [new for node in value for new in _recorded(node)])
    after = [n for n in _own(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and _site(n)]
    wrapped = _Wrapper().visit(statement)
    return [wrapped, *(ast.Expr(_call(n.site, ast.Name(n.id, ast.Load()))) for n in after)]  # type: ignore[attr-defined]


def _own(statement: ast.stmt) -> list[ast.AST]:
    """Return the nodes of a statement without those of statements inside it."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop(0)
        found.append(node)
        waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)]
    return found


def _site(node: ast.AST) -> bool:
    return hasattr(node, "site")


def _call(site: int, value: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(RECORD, ast.Load()), [ast.Constant(site), value], [])


class _Wrapper(ast.NodeTransformer):
    """Puts the recorder around marked expressions; statements inside the visited one have had theirs."""

    def __init__(self) -> None:
        self.depth = 0

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.stmt):
            if self.depth:
                return node
            self.depth += 1
        self.generic_visit(node)
        if isinstance(node, ast.expr) and _site(node) and not isinstance(getattr(node, "ctx", None), ast.Store):
            return ast.copy_location(_call(node.site, node), node)  # type: ignore[attr-defined]
        return node
