"""The author's function: its names, lines, defaults and initialisers, and carets under its expressions."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch

from pellucid.errors import FormulaError


@dataclass(frozen=True)
class Symbol:
    """One name of a formula.

    ``role`` is "input", "state", "parameter" or "hyperparameter". ``initializer`` fills a parameter in place (None:
    the default of the layer). ``default`` is a hyperparameter's value. ``dims`` are the axes that the author named
    in an annotation (``M: "hidden rank"``), None where they are to be solved.
    """

    name: str
    role: str
    initializer: Callable[[torch.Tensor], Any] | None = None
    default: Any = inspect.Parameter.empty
    dims: tuple[str, ...] | None = None

    @property
    def required(self) -> bool:
        """Whether a hyperparameter must be given by the user."""
        return self.role == "hyperparameter" and self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Source:
    """A formula as its author wrote it.

    ``text`` is the source of the function, dedented (empty where Python keeps none, as for code typed into
    ``python -c``); ``first_line`` is the number of its first line in ``filename``. ``kind`` says what it is a formula
    of: "cell", the step of a recurrence, or "layer", rows without a state.
    """

    function: Callable[..., Any]
    name: str
    symbols: tuple[Symbol, ...]
    text: str
    filename: str
    first_line: int
    kind: str = "cell"

    @property
    def title(self) -> str:
        """What an error calls the formula."""
        return f"{self.kind} {self.name}"

    @property
    def always_given(self) -> tuple[str, str]:
        """The sizes that every constructor takes, each as an argument ``..._size``."""
        return ("input", "hidden") if self.kind == "cell" else ("input", "output")

    @functools.cached_property
    def inputs(self) -> tuple[Symbol, ...]:
        """The inputs of a step, or of a layer's rows; every backend reads them as one, side by side."""
        return self._of("input")

    @functools.cached_property
    def states(self) -> tuple[Symbol, ...]:
        """The state entries, in order."""
        return self._of("state")

    @functools.cached_property
    def parameters(self) -> tuple[Symbol, ...]:
        """What is trained, in the order of the signature."""
        return self._of("parameter")

    @functools.cached_property
    def hyperparameters(self) -> tuple[Symbol, ...]:
        """Numbers that the constructor sets."""
        return self._of("hyperparameter")

    def _of(self, role: str) -> tuple[Symbol, ...]:
        return tuple(symbol for symbol in self.symbols if symbol.role == role)

    @functools.cached_property
    def tree(self) -> ast.FunctionDef | None:
        """The syntax tree of the function, its line numbers counted in ``text``; a lambda has no text of its own."""
        if not self.text or self.function.__code__.co_name == "<lambda>":
            return None
        nodes = ast.walk(ast.parse(self.text))
        return next((node for node in nodes if isinstance(node, ast.FunctionDef)), None)

    @property
    def body(self) -> list[str]:
        """The formula's own lines: the body without docstring and comments, dedented."""
        if self.tree is None:
            return []
        lines = self.text.splitlines()
        statements = self.tree.body[1:] if ast.get_docstring(self.tree) is not None else self.tree.body
        picked = [line for node in statements for line in lines[node.lineno - 1 : node.end_lineno]]
        return _dedented("\n".join(picked)).splitlines()

    @property
    def doc(self) -> str:
        """The author's docstring."""
        return inspect.getdoc(self.function) or ""

    @property
    def where(self) -> str:
        """File and line, as Python writes them."""
        return f"{self.filename}:{self.first_line}"

    def caret(self, line: int, column: int, end: int) -> str:
        """Quote a line (counted in ``text`` from 1) with carets under the columns from ``column`` to ``end``."""
        lines = self.text.splitlines()
        if not 1 <= line <= len(lines):
            return f"  in {self.name}, {self.where}"
        number = self.first_line + line - 1
        text = lines[line - 1]
        indent = len(text) - len(text.lstrip())
        end = len(text.rstrip()) if end <= column else end
        marks = " " * (column - indent) + "^" * max(1, end - column)
        return f'  File "{self.filename}", line {number}, in {self.name}\n    {text.strip()}\n    {marks}'

    def caret_at_name(self, name: str) -> str:
        """Quote the line of the signature that declares ``name``."""
        if self.tree is None:
            return f"  in {self.name}, {self.where}"
        arguments = self.tree.args
        for node in arguments.posonlyargs + arguments.args + arguments.kwonlyargs:
            if node.arg == name:
                return self.caret(node.lineno, node.col_offset, node.end_col_offset or 0)
        return self.caret(self.tree.lineno, self.tree.col_offset, 0)

    def caret_at(self, traceback: TracebackType | None) -> str:
        """Quote the author's expression that was running when an exception was raised."""
        return self._quote(next(self._positions(traceback), None))

    def caret_here(self) -> str:
        """Quote the author's expression that is running now, seen from inside a function that it called."""
        return self._quote(self._here())

    def _quote(self, position: tuple[int, int, int, int] | None) -> str:
        """Quote an expression; of one over several lines the first."""
        if position is None:
            return f"  in {self.name}, {self.where}"
        line, end_line, column, end = position
        return self.caret(line, column, end if end_line == line else 0)

    def segment_here(self) -> str:
        """The text of the author's expression that is running now."""
        position = self._here()
        if position is None or not self.text:
            return self.name
        line, end_line, column, end = position
        lines = [text.encode() for text in self.text.splitlines()[line - 1 : end_line]]
        lines[-1] = lines[-1][:end]
        lines[0] = lines[0][column:]
        return " ".join(text.decode().strip() for text in lines)

    def _here(self) -> tuple[int, int, int, int] | None:
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code is self.function.__code__:
                return self._in_text(list(frame.f_code.co_positions())[frame.f_lasti // 2])
            frame = frame.f_back
        return None

    def _positions(self, traceback: TracebackType | None) -> Iterator[tuple[int, int, int, int]]:
        while traceback is not None:
            code = traceback.tb_frame.f_code
            if code is self.function.__code__:
                position = self._in_text(list(code.co_positions())[traceback.tb_lasti // 2])
                if position is not None:
                    yield position
            traceback = traceback.tb_next

    def _in_text(self, position: tuple[int | None, ...]) -> tuple[int, int, int, int] | None:
        line, end_line, column, end = position
        if not self.text or line is None or end_line is None or column is None or end is None:
            return None
        shift = self.first_line - 1
        removed = self._removed_indent
        return line - shift, end_line - shift, column - removed, end - removed

    @functools.cached_property
    def _removed_indent(self) -> int:
        return _indent(source_of(self.function)[0])


def _dedented(text: str) -> str:
    """Without the indentation of the first line; what is indented less stands inside a string."""
    return re.sub(rf"(?m)^[ \t]{{1,{indent}}}", "", text) if (indent := _indent(text)) else text


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip(" \t"))


def source_of(function: Any) -> tuple[str, int]:
    """The text of a function as it stands in its file, and the number of its first line there; "" where it is unknown.

    What `exec` makes is of no file, and may be taken for a part of a text that has its number of lines: of a command
    given to Python by ``-c``, since 3.13.
    """
    code = function.__code__
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):
        return "", code.co_firstlineno
    text = "".join(lines)
    names = "|".join(map(re.escape, (code.co_name, function.__name__)))
    begins = r"\blambda\b" if code.co_name == "<lambda>" else rf"\bdef\s+({names})\b"
    return (text, first) if re.search(begins, text) else ("", code.co_firstlineno)


def read(function: Callable[..., Any], kind: str = "cell") -> Source:
    """Read a formula: sort its arguments into inputs, states, parameters and hyperparameters, and keep its text.

    Raises:
        FormulaError: the signature does not follow the contract of a cell, or of a layer.
        TypeError: it is no function that is written in Python.
    """
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        raise TypeError(
            f"pellucid.{kind} takes a function that is written in Python, by def or lambda, not {function!r}"
        )
    source = quote(function, kind)
    return replace(source, symbols=tuple(_symbols(source)))


def quote(function: Callable[..., Any], kind: str = "cell") -> Source:
    """A function with its lines; unlike for `read` it need not be a formula of a cell or layer."""
    text, first_line = source_of(function)
    return Source(function, function.__name__, (), _dedented(text), function.__code__.co_filename, first_line, kind)


def _symbols(source: Source) -> Iterator[Symbol]:
    parameters = inspect.signature(source.function).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    before_slash = [p for p in positional if p.kind is p.POSITIONAL_ONLY]
    if source.kind == "layer":
        inputs, least, needed = len(positional), 1, "at least one input must be a positional argument"
        example = f"def {source.name}(x, *, gamma, beta)"
    else:
        inputs, least = len(before_slash) if 0 < len(before_slash) < len(positional) else 1, 2
        needed = "the input of a step and at least one state entry must be positional arguments"
        example = f"def {source.name}(x, h, *, U, W)"
    if len(positional) < least:
        raise FormulaError(
            f"{source.title}: {needed}, as in {example}; parameters come after the *.\n"
            + source.caret_at_name(positional[0].name if positional else "")
        )
    for index, parameter in enumerate(parameters):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise FormulaError(
                f"{source.title}: *{parameter.name} has no names for parameters; write each one out.\n"
                + source.caret_at_name(parameter.name)
            )
        if parameter.kind is parameter.KEYWORD_ONLY:
            yield _keyword(source, parameter)
        elif parameter.default is not parameter.empty:
            role = "an input" if index < inputs else "a state"
            raise FormulaError(
                f"{source.title}: {parameter.name} is {role} and cannot have a default. If it is a parameter or a "
                "hyperparameter, move it behind the *.\n" + source.caret_at_name(parameter.name)
            )
        else:
            yield Symbol(parameter.name, "input" if index < inputs else "state", dims=_dims(parameter.annotation))


def _keyword(source: Source, parameter: inspect.Parameter) -> Symbol:
    name, default, annotation = parameter.name, parameter.default, parameter.annotation
    if annotation in (float, int, bool, "float", "int", "bool") or isinstance(default, (int, float, str)):
        return Symbol(name, "hyperparameter", default=default)
    if default is parameter.empty or default is None:
        return Symbol(name, "parameter", dims=_dims(annotation))
    if callable(default):
        return Symbol(name, "parameter", initializer=default, dims=_dims(annotation))
    raise FormulaError(
        f"{source.title}: the default of {name} is {default!r}. A parameter's default is an initialiser "
        f"(pellucid.zeros, pellucid.constant(0.5), or any function that fills a tensor in place); a "
        f"hyperparameter's is a number.\n" + source.caret_at_name(name)
    )


def _dims(annotation: Any) -> tuple[str, ...] | None:
    """Read ``"hidden rank"`` as named axes; any other annotation (torch.Tensor, none at all) leaves them open."""
    if not isinstance(annotation, str):
        return None
    text = annotation.strip().strip("\"'")
    if text.split(".")[-1] == "Tensor":
        return None
    return tuple(text.split())
