"""A formula written as on paper, printed from the syntax tree of the author's own lines."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any

SPELLED = "alpha beta gamma delta epsilon eps zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi omega"
GREEK = dict(zip(SPELLED.split(), "αβγδεεζηθκλμνξρστφχψω", strict=True))
LOW = str.maketrans("0123456789-", "₀₁₂₃₄₅₆₇₈₉₋")
HIGH = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
SUM, PRODUCT, SIGN, MATRIX, POWER, ATOM = range(1, 7)  # how tightly an expression binds
METHOD_WORDS = {"T": "ᵀ", "mT": "ᵀ", "H": "ᴴ"}
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


def superscript(text: str) -> str:
    """Write a whole number high, as an exponent."""
    return text.translate(HIGH)


def subscript(text: str) -> str:
    """Write a whole number low, as an index."""
    return text.translate(LOW)


def letter(name: str) -> str:
    """Return the letter that a name spells: Greek letters, ``x_hat`` with its hat, σ² for a variance."""
    if name == "var":
        return "σ²"
    if name.endswith("_hat") and len(name) > 4:
        return letter(name[:-4]) + "\N{COMBINING CIRCUMFLEX ACCENT}"
    stem, digits = re.fullmatch(r"(.*?)(\d*)_?", name, re.DOTALL).groups()  # type: ignore[union-attr]
    return GREEK[stem] + subscript(digits) if stem in GREEK else name


class Paper:
    """Prints expressions.

    Names carry the moment that `moments` wrote on them: "now" gets the index ``now``, "before" the index ``before``.
    ``numbers`` are the names that stand for plain numbers: a product with one is a ``·``, a product entry by entry of
    two tensors is a ``⊙``.
    """

    def __init__(
        self, modules: Collection[str] = (), numbers: Collection[str] = (), now: str = "ₜ", before: str = "ₜ₋₁"
    ) -> None:
        self.modules, self.numbers = modules, set(numbers)
        self.index = {"now": now, "before": before, "": ""}
        self.used: set[str] = set()  # the marks that a reader may want explained

    def name(self, name: str, moment: str = "") -> str:
        """Write a name with the index of its moment."""
        return letter(name) + self.index[moment]

    def expression(self, node: ast.AST) -> str:
        """Write an expression."""
        return self._write(node)[0]

    def target(self, node: ast.AST) -> str:
        """Write what an assignment assigns to."""
        if isinstance(node, (ast.Tuple, ast.List)):
            return ", ".join(self.target(e) for e in node.elts)
        return self.expression(node)

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

    def _within(self, node: ast.AST, strength: int) -> str:
        text, own = self._write(node)
        return text if own >= strength else f"({text})"

    def _write(self, node: ast.AST) -> tuple[str, int]:
        writer = getattr(self, f"_{type(node).__name__}", None)
        return writer(node) if writer else (ast.unparse(node), 0)

    # -- one method per kind of node; each returns the text and how tightly it binds ----------------------------

    def _Name(self, node: ast.Name) -> tuple[str, int]:
        return self.name(node.id, getattr(node, "moment", "")), ATOM

    def _Constant(self, node: ast.Constant) -> tuple[str, int]:
        return repr(node.value), ATOM

    def _Tuple(self, node: ast.Tuple | ast.List) -> tuple[str, int]:
        return "(" + ", ".join(self.expression(e) for e in node.elts) + ")", ATOM

    _List = _Tuple

    def _BinOp(self, node: ast.BinOp) -> tuple[str, int]:
        left, right, operator = node.left, node.right, type(node.op)
        if operator is ast.Add:
            return f"{self._within(left, SUM)} + {self._within(right, SUM)}", SUM
        if operator is ast.Sub:
            return f"{self._within(left, SUM)} − {self._within(right, PRODUCT)}", SUM
        if operator is ast.MatMult:
            self.used.add("product")
            return f"{self._within(left, MATRIX)} {self._within(right, POWER)}", MATRIX
        if operator is ast.Mult:
            mark = "·" if self.is_number(left) or self.is_number(right) else "⊙"
            self.used.add(mark)
            return f"{self._within(left, PRODUCT)} {mark} {self._within(right, SIGN)}", PRODUCT
        if operator is ast.Div:
            return f"{self._within(left, PRODUCT)} / {self._within(right, SIGN)}", PRODUCT
        if operator is ast.Pow:
            return self._power(node)
        return ast.unparse(node), 0

    def _power(self, node: ast.BinOp) -> tuple[str, int]:
        exponent = ast.unparse(node.right)
        if exponent == "0.5":
            return f"√({self.expression(node.left)})", ATOM
        if re.fullmatch(r"-?\d+", exponent):
            return self._within(node.left, ATOM) + superscript(exponent), POWER
        return f"{self._within(node.left, ATOM)}^{self._within(node.right, ATOM)}", POWER

    def _UnaryOp(self, node: ast.UnaryOp) -> tuple[str, int]:
        if isinstance(node.op, ast.USub):
            return f"−{self._within(node.operand, SIGN)}", SIGN
        mark = {ast.UAdd: "+", ast.Not: "not ", ast.Invert: "¬"}[type(node.op)]
        return mark + self._within(node.operand, SIGN), SIGN

    def _Compare(self, node: ast.Compare) -> tuple[str, int]:
        parts = [self._within(node.left, SUM)]
        for sign, right in zip(node.ops, node.comparators, strict=True):
            parts += [SIGNS[type(sign)], self._within(right, SUM)]
        return " ".join(parts), 0

    def _BoolOp(self, node: ast.BoolOp) -> tuple[str, int]:
        return SIGNS[type(node.op)].join(self._within(v, SUM) for v in node.values), 0

    def _IfExp(self, node: ast.IfExp) -> tuple[str, int]:
        parts = (self.expression(n) for n in (node.body, node.test, node.orelse))
        return "{} if {} else {}".format(*parts), 0

    def _Subscript(self, node: ast.Subscript) -> tuple[str, int]:
        index = ast.unparse(node.slice).strip("()")
        return f"{self._within(node.value, ATOM)}[{index}]", ATOM

    def _Attribute(self, node: ast.Attribute) -> tuple[str, int]:
        if self._is_module(node.value):
            return letter(node.attr), ATOM
        if node.attr in METHOD_WORDS:
            return self._within(node.value, ATOM) + METHOD_WORDS[node.attr], ATOM
        return f"{self._within(node.value, ATOM)}.{node.attr}", ATOM

    def _is_module(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            return self._is_module(node.value)
        return isinstance(node, ast.Name) and node.id in self.modules

    def _Call(self, node: ast.Call) -> tuple[str, int]:
        function, arguments = node.func, list(node.args)
        method = isinstance(function, ast.Attribute) and not self._is_module(function.value)
        if isinstance(function, ast.Attribute):
            name = function.attr
            if method:
                arguments.insert(0, function.value)
        elif isinstance(function, ast.Name):
            name = function.id
        else:
            name = self._within(function, ATOM)
        keywords = {k.arg: k.value for k in node.keywords if k.arg is not None and k.arg != "keepdim"}
        writer = CALLS.get(name) if arguments else None
        if writer is not None and not any(isinstance(a, ast.Starred) for a in arguments):
            written = writer(self, arguments, keywords)
            if written is not None:
                return written
        texts = [self.expression(a) for a in arguments]
        texts += [f"{key}={self.expression(value)}" for key, value in keywords.items()]
        return f"{letter(name)}({', '.join(texts)})", ATOM


# -- calls that paper writes in a way of its own; None where the arguments are others than expected -----------------

Arguments = list[ast.expr]
Keywords = dict[str, ast.expr]
Written = tuple[str, int] | None


def _sigmoid(paper: Paper, arguments: Arguments, keywords: Keywords) -> Written:
    paper.used.add("σ")
    return f"σ({paper.expression(arguments[0])})", ATOM


def _root(paper: Paper, arguments: Arguments, keywords: Keywords) -> Written:
    return f"√({paper.expression(arguments[0])})", ATOM


def _one_over_root(paper: Paper, arguments: Arguments, keywords: Keywords) -> Written:
    return f"1 / √({paper.expression(arguments[0])})", PRODUCT


def _absolute(paper: Paper, arguments: Arguments, keywords: Keywords) -> Written:
    return f"|{paper.expression(arguments[0])}|", ATOM


def _square(paper: Paper, arguments: Arguments, keywords: Keywords) -> Written:
    return paper._within(arguments[0], ATOM) + "²", POWER


def _transposed(paper: Paper, arguments: Arguments, keywords: Keywords) -> Written:
    return paper._within(arguments[0], ATOM) + "ᵀ", ATOM


def _chunk(paper: Paper, arguments: Arguments, keywords: Keywords) -> Written:
    parts = arguments[1] if len(arguments) > 1 else keywords.get("chunks")
    if not isinstance(parts, ast.Constant):
        return None
    paper.used.add("split")
    return f"split{subscript(str(parts.value))}({paper.expression(arguments[0])})", ATOM


def _reduction(word: str) -> Callable[[Paper, Arguments, Keywords], Written]:
    def write(paper: Paper, arguments: Arguments, keywords: Keywords) -> Written:
        axes = keywords.get("dim", arguments[1] if len(arguments) > 1 else None)
        texts = [paper.expression(arguments[0])]
        if axes is not None and ast.unparse(axes) not in ("-1", "(-1,)"):
            texts.append(paper.expression(axes))
        rest = [f"{key}={paper.expression(value)}" for key, value in keywords.items() if key != "dim"]
        return f"{word}({', '.join([*texts, *rest])})", ATOM

    return write


def _layer_norm(paper: Paper, arguments: Arguments, keywords: Keywords) -> Written:
    shown = [paper.expression(a) for a in (*arguments[:1], *arguments[2:])]
    shown += [f"{key}={paper.expression(value)}" for key, value in keywords.items() if key != "normalized_shape"]
    return f"layer_norm({', '.join(shown)})", ATOM


CALLS: dict[str, Callable[[Paper, Arguments, Keywords], Written]] = {
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
