"""The author's function compiled once more from a changed syntax tree, with its own globals and closure."""

from __future__ import annotations
import __future__

import ast
import types
from collections.abc import Callable
from typing import Any

from pellucid.formula.source import Source

OUTER = "__pellucid_outer__"


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
