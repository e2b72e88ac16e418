"""The author's function compiled once more from a changed syntax tree, with its own globals and closure."""

from __future__ import annotations
import __future__

import ast
import copy
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pellucid.formula.source import Source

OUTER = "__pellucid_outer__"
RESULT = "__pellucid_result__"
LOCALS = "__pellucid_locals__"


def rewritten(source: Source, tree: ast.FunctionDef, added: dict[str, Any]) -> Callable[..., Any]:
    """Compile a changed copy of a source's tree; ``added`` are further names that it uses."""
    function = source.function
    tree.decorator_list, tree.returns = [], None
    outer = ast.parse(f"def {OUTER}({', '.join((*added, *function.__code__.co_freevars))}): pass").body[0]
    assert isinstance(outer, ast.FunctionDef)
    outer.body = [tree]
    module = ast.increment_lineno(ast.Module([outer], []), source.first_line - 1)
    flags = function.__code__.co_flags & __future__.annotations.compiler_flag
    code = compile(ast.fix_missing_locations(module), source.filename, "exec", flags=flags, dont_inherit=True)
    inner = _code(_code(code, OUTER), tree.name)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells |= {name: types.CellType(value) for name, value in added.items()}
    closure = tuple(cells[name] for name in inner.co_freevars)
    twin = types.FunctionType(inner, function.__globals__, function.__name__, function.__defaults__, closure)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _code(code: types.CodeType, name: str) -> types.CodeType:
    return next(c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == name)


def returning(source: Source, function: Callable[[Any, Mapping[str, Any]], Any]) -> Source:
    """The formula that returns what ``function`` makes of its result and its variables; it must have a tree."""
    tree = copy.deepcopy(source.tree)
    assert tree is not None
    tree.body = [_Returns().visit(node) for node in tree.body]
    return replace(source, function=rewritten(source, tree, {RESULT: function, LOCALS: locals}))


def is_returning(source: Source) -> bool:
    """Whether a formula is one that `returning` made."""
    return RESULT in source.function.__code__.co_freevars


class _Returns(ast.NodeTransformer):
    """Passes what the function returns through another; functions inside it keep theirs."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        values = ast.Call(ast.Name(LOCALS, ast.Load()), [], [])
        call = ast.Call(ast.Name(RESULT, ast.Load()), [node.value or ast.Constant(None), values], [])
        return ast.copy_location(ast.Return(ast.copy_location(call, node.value or node)), node)
