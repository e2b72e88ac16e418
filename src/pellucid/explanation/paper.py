"""A formula as on paper: pieces made from the syntax tree of the author's own lines."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Iterable
from types import ModuleType
from typing import Any

from pellucid.explanation.pieces import (
    ATOM,
    CHOICE,
    LOOSE,
    MATRIX,
    POWER,
    PRODUCT,
    SIGN,
    SUM,
    Call,
    Code,
    Fenced,
    Fraction,
    Group,
    Name,
    Piece,
    Power,
    Root,
    Row,
    Token,
    subscript,
    superscript,
)

SPELLED = "alpha beta gamma delta epsilon eps zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi omega"
GREEK = dict(zip(SPELLED.split(), "αβγδεεζηθκλμνξρστφχψω", strict=True))
TRANSPOSED = {"T": "T", "mT": "T", "H": "H"}
SIGNS: dict[type[ast.AST], str] = {
    ast.Lt: "<", ast.LtE: "≤", ast.Gt: ">", ast.GtE: "≥", ast.Eq: "==", ast.NotEq: "≠", ast.In: "∈", ast.Is: "is",
    ast.IsNot: "is not", ast.NotIn: "∉", ast.And: " and ", ast.Or: " or ",
}  # fmt: skip


def modules_of(function: Callable[..., Any]) -> set[str]:
    """Return the names by which a function knows modules (torch, F): prefixes that paper leaves out."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    known = dict(function.__globals__)
    for name, cell in cells:
        try:
            known[name] = cell.cell_contents
        except ValueError:  # a variable of the outer function that is not yet assigned
            continue
    return {name for name, value in known.items() if isinstance(value, ModuleType)}


def letter(name: str) -> str:
    """Return the letter that a name spells: Greek letters, ``x_hat`` with its hat, σ² for a variance."""
    if name == "var":
        return "σ²"
    if name.endswith("_hat") and len(name) > 4:
        return letter(name[:-4]) + "\N{COMBINING CIRCUMFLEX ACCENT}"
    stem, digits = re.fullmatch(r"(.*?)(\d*)_?", name, re.DOTALL).groups()  # type: ignore[union-attr]
    return GREEK[stem] + subscript(digits) if stem in GREEK else name


SAID = ("dropout", "zoneout", "noise", "normalize", "unsqueeze", "unflatten", "flatten")  # functions that are explained


class Paper:
    """Writes expressions as pieces.

    Names carry the moment that `moments` wrote on them: "now" gets the index ``now``, "before" the index ``before``.
    ``numbers`` are the names that stand for plain numbers: a product with one is a ``·``, a product entry by entry of
    two tensors is a ``⊙``.
    """

    def __init__(
        self, modules: Collection[str] = (), numbers: Collection[str] = (), now: str = "t", before: str = "t-1"
    ) -> None:
        self.modules, self.numbers = modules, set(numbers)
        self.index = {"now": now, "before": before, "": ""}
        self.used: set[str] = set()  # the marks that a reader may want explained

    def name(self, name: str, moment: str = "") -> Name:
        """Write a name with the index of its moment."""
        return Name(letter(name), self.index[moment])

    def expression(self, node: ast.AST) -> Piece:
        """Write an expression."""
        writer = getattr(self, f"_{type(node).__name__}", None)
        return writer(node) if writer else self.code(node)

    def target(self, node: ast.AST) -> Piece:
        """Write what an assignment assigns to."""
        if isinstance(node, (ast.Tuple, ast.List)):
            return joined(", ", map(self.target, node.elts))
        return self.expression(node)

    def within(self, node: ast.AST, needed: int) -> Piece:
        """Write an operand, in parentheses where it binds less tightly than its operator needs."""
        piece = self.expression(node)
        return piece if piece.strength >= needed else Group(piece, needed)

    def code(self, node: ast.AST, text: str | None = None) -> Code:
        """Write a node, or its first line ``text``, as Python does."""
        called = {id(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and id(n) not in called}
        return Code(ast.unparse(node) if text is None else text, frozenset(names.difference(self.modules)), LOOSE)

    def is_number(self, node: ast.AST) -> bool:
        """Whether an expression is a plain number, as far as the text tells."""
        if isinstance(node, ast.Constant):
            return True
        if isinstance(node, ast.Name):
            return node.id in self.numbers
        if isinstance(node, ast.BinOp):
            return self.is_number(node.left) and self.is_number(node.right)
        if isinstance(node, ast.BoolOp):
            return all(self.is_number(value) for value in node.values)
        if isinstance(node, ast.UnaryOp):
            return self.is_number(node.operand)
        if isinstance(node, ast.Subscript):
            return isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
        return False

    # -- one method per kind of node ----------------------------------------------------------------------------

    def _Name(self, node: ast.Name) -> Piece:
        return self.name(node.id, getattr(node, "moment", ""))

    def _Constant(self, node: ast.Constant) -> Piece:
        number = isinstance(node.value, (int, float, complex)) and not isinstance(node.value, bool)
        return Token("mn", repr(node.value)) if number else Code(repr(node.value))

    def _Tuple(self, node: ast.Tuple | ast.List) -> Piece:
        return Fenced(tuple(map(self.expression, node.elts)))

    _List = _Tuple

    def _BinOp(self, node: ast.BinOp) -> Piece:
        left, right, operator = node.left, node.right, type(node.op)
        if operator is ast.Add:
            return self._infix(left, " + ", right, SUM, SUM)
        if operator is ast.Sub:
            return self._infix(left, " − ", right, SUM, PRODUCT)
        if operator is ast.MatMult:
            self.used.add("product")
            return self._infix(left, " ", right, MATRIX, POWER)
        if operator is ast.Mult:
            mark = "·" if self.is_number(left) or self.is_number(right) else "⊙"
            self.used.add(mark)
            return self._infix(left, f" {mark} ", right, PRODUCT, SIGN)
        if operator is ast.Div:
            return Fraction(self.within(left, PRODUCT), self.within(right, SIGN))
        if operator is ast.Pow:
            return self._power(node)
        return self.code(node)

    def _infix(self, left: ast.expr, mark: str, right: ast.expr, strength: int, needed: int) -> Piece:
        return joined(mark, (self.within(left, strength), self.within(right, needed)), strength)

    def _power(self, node: ast.BinOp) -> Piece:
        exponent = ast.unparse(node.right)
        if exponent == "0.5":
            return Root(self.expression(node.left))
        base = self.within(node.left, ATOM)
        if re.fullmatch(r"-?\d+", exponent):
            return Power(base, self.expression(node.right), superscript(exponent))
        return Power(base, self.within(node.right, ATOM))

    def _UnaryOp(self, node: ast.UnaryOp) -> Piece:
        mark = {ast.USub: "−", ast.UAdd: "+", ast.Not: "not ", ast.Invert: "¬"}[type(node.op)]
        return Row((Token("mo", mark), self.within(node.operand, SIGN)), SIGN)

    def _Compare(self, node: ast.Compare) -> Piece:
        parts = [self.within(node.left, SUM)]
        for sign, right in zip(node.ops, node.comparators, strict=True):
            parts += [Token("mo", f" {SIGNS[type(sign)]} "), self.within(right, SUM)]
        return Row(tuple(parts), LOOSE)

    def _BoolOp(self, node: ast.BoolOp) -> Piece:
        return joined(SIGNS[type(node.op)], (self.within(value, SUM) for value in node.values))

    def _IfExp(self, node: ast.IfExp) -> Piece:
        body, test = (self.within(part, LOOSE) for part in (node.body, node.test))
        return Row((body, Token("mo", " if "), test, Token("mo", " else "), self.expression(node.orelse)), CHOICE)

    def _Subscript(self, node: ast.Subscript) -> Piece:
        index = ast.unparse(node.slice).strip("()")
        return Row((self.within(node.value, ATOM), self.code(node.slice, f"[{index}]")))

    def _Attribute(self, node: ast.Attribute) -> Piece:
        if self._is_module(node.value):
            return Token("mi", letter(node.attr))
        if node.attr in TRANSPOSED:
            return raised(self.within(node.value, ATOM), TRANSPOSED[node.attr])
        return Row((self.within(node.value, ATOM), Code(f".{node.attr}")))

    def _is_module(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            return self._is_module(node.value)
        return isinstance(node, ast.Name) and node.id in self.modules

    def _Call(self, node: ast.Call) -> Piece:
        function, arguments = node.func, list(node.args)
        name = ""
        if isinstance(function, ast.Attribute):
            name = function.attr
            if not self._is_module(function.value):
                arguments.insert(0, function.value)
        elif isinstance(function, ast.Name):
            name = function.id
        keywords = {k.arg: k.value for k in node.keywords if k.arg is not None and k.arg != "keepdim"}
        writer = CALLS.get(name) if arguments else None
        if writer is not None and not any(isinstance(a, ast.Starred) for a in arguments):
            written = writer(self, arguments, keywords)
            if written is not None:
                return written
        if name in SAID:
            self.used.add(name)
        called = Token("mi", letter(name)) if name else self.within(function, ATOM)
        return self.call(called, arguments, keywords)

    def call(self, function: Piece, arguments: Iterable[ast.expr], keywords: Keywords) -> Call:
        """Write a function of its arguments."""
        entries = [self.expression(argument) for argument in arguments]
        entries += [Row((Code(f"{key}="), self.expression(value))) for key, value in keywords.items()]
        return Call(function, Fenced(tuple(entries)))


def joined(mark: str, pieces: Iterable[Piece], strength: int = LOOSE) -> Row:
    """Put a mark between pieces."""
    marked = [part for piece in pieces for part in (Token("mo", mark), piece)]
    return Row(tuple(marked[1:]), strength)


def raised(base: Piece, word: str) -> Power:
    """Write a transposition: an exponent that stays with its base."""
    return Power(base, Token("mi", word), superscript(word), ATOM)


# -- calls that paper writes in a way of its own; None where the arguments are others than expected -----------------

Arguments = list[ast.expr]
Keywords = dict[str, ast.expr]


def _sigmoid(paper: Paper, arguments: Arguments, keywords: Keywords) -> Piece:
    paper.used.add("σ")
    return paper.call(Token("mi", "σ"), arguments[:1], {})


def _root(paper: Paper, arguments: Arguments, keywords: Keywords) -> Piece:
    return Root(paper.expression(arguments[0]))


def _one_over_root(paper: Paper, arguments: Arguments, keywords: Keywords) -> Piece:
    return Fraction(Token("mn", "1"), Root(paper.expression(arguments[0])))


def _absolute(paper: Paper, arguments: Arguments, keywords: Keywords) -> Piece:
    return Fenced((paper.expression(arguments[0]),), "||")


def _square(paper: Paper, arguments: Arguments, keywords: Keywords) -> Piece:
    return Power(paper.within(arguments[0], ATOM), Token("mn", "2"), superscript("2"))


def _transposed(paper: Paper, arguments: Arguments, keywords: Keywords) -> Piece:
    return raised(paper.within(arguments[0], ATOM), "T")


def _chunk(paper: Paper, arguments: Arguments, keywords: Keywords) -> Piece | None:
    parts = arguments[1] if len(arguments) > 1 else keywords.get("chunks")
    if not isinstance(parts, ast.Constant):
        return None
    paper.used.add("split")
    return paper.call(Token("mi", f"split{subscript(str(parts.value))}"), arguments[:1], {})


def _reduction(word: str) -> Callable[[Paper, Arguments, Keywords], Piece]:
    def write(paper: Paper, arguments: Arguments, keywords: Keywords) -> Piece:
        axes = keywords.get("dim", arguments[1] if len(arguments) > 1 else None)
        shown = [] if axes is None or ast.unparse(axes) in ("-1", "(-1,)") else [axes]
        rest = {key: value for key, value in keywords.items() if key != "dim"}
        return paper.call(Token("mi", word), (arguments[0], *shown), rest)

    return write


def _layer_norm(paper: Paper, arguments: Arguments, keywords: Keywords) -> Piece:
    rest = {key: value for key, value in keywords.items() if key != "normalized_shape"}
    return paper.call(Token("mi", "layer_norm"), (*arguments[:1], *arguments[2:]), rest)


CALLS: dict[str, Callable[[Paper, Arguments, Keywords], Piece | None]] = {
    "sigmoid": _sigmoid,
    "sqrt": _root,
    "rsqrt": _one_over_root,
    "abs": _absolute,
    "square": _square,
    "t": _transposed,
    "chunk": _chunk,
    "layer_norm": _layer_norm,
    **{word: _reduction(word) for word in ("sum", "mean", "var", "std", "prod", "amax", "amin", "softmax")},
}
