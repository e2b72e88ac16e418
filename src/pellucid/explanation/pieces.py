"""The pieces that a formula on paper is made of: ``str`` writes them as text, `mathml` draws them."""

from __future__ import annotations

from dataclasses import dataclass

CHOICE, LOOSE, SUM, PRODUCT, SIGN, MATRIX, POWER, ATOM = range(-1, 7)  # how tightly an expression binds
LOW = str.maketrans("0123456789-t", "₀₁₂₃₄₅₆₇₈₉₋ₜ")
HIGH = str.maketrans("0123456789-TH", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻ᵀᴴ")
PLAIN = {shown: written for table in (LOW, HIGH) for written, shown in table.items()}


def superscript(text: str) -> str:
    """Write a whole number high, as an exponent."""
    return text.translate(HIGH)


def subscript(text: str) -> str:
    """Write a whole number, or a moment such as t-1, low, as an index."""
    return text.translate(LOW)


def plain(text: str) -> str:
    """Write what stands high or low on the line."""
    return text.translate(PLAIN)


class Piece:
    """A part of a formula; an operand whose ``strength`` is less than its operator needs stands in parentheses."""

    strength: int = ATOM


@dataclass(frozen=True)
class Token(Piece):
    """A mark, a number or a word that is no symbol; ``kind`` is its element in MathML: mo, mn or mi."""

    kind: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Name(Piece):
    """A symbol, named as `letter` names it, with the index of its moment, such as t-1."""

    symbol: str
    index: str = ""

    def __str__(self) -> str:
        return self.symbol + subscript(self.index)


@dataclass(frozen=True)
class Code(Piece):
    """What paper has no other way to write than Python; ``names`` are the symbols in it."""

    text: str
    names: frozenset[str] = frozenset()
    strength: int = ATOM

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Row(Piece):
    """Pieces side by side."""

    parts: tuple[Piece, ...]
    strength: int = ATOM

    def __str__(self) -> str:
        return "".join(map(str, self.parts))


@dataclass(frozen=True)
class Group(Piece):
    """An operand that binds less tightly than the ``needed`` strength of its operator."""

    inside: Piece
    needed: int

    def __str__(self) -> str:
        return f"({self.inside})"


@dataclass(frozen=True)
class Fenced(Piece):
    """Entries between fences: arguments, a tuple, an absolute value."""

    entries: tuple[Piece, ...]
    fences: str = "()"

    def __str__(self) -> str:
        return self.fences[0] + ", ".join(map(str, self.entries)) + self.fences[1]


@dataclass(frozen=True)
class Call(Piece):
    """A function of its arguments."""

    function: Piece
    arguments: Fenced

    def __str__(self) -> str:
        return f"{self.function}{self.arguments}"


@dataclass(frozen=True)
class Power(Piece):
    """A base with an exponent; ``high`` is the exponent as text where there are characters for it."""

    base: Piece
    exponent: Piece
    high: str = ""
    strength: int = POWER

    def __str__(self) -> str:
        return f"{self.base}{self.high or f'^{self.exponent}'}"


@dataclass(frozen=True)
class Fraction(Piece):
    """A division."""

    over: Piece
    under: Piece
    strength: int = PRODUCT

    def __str__(self) -> str:
        return f"{self.over} / {self.under}"


@dataclass(frozen=True)
class Root(Piece):
    """A square root."""

    inside: Piece

    def __str__(self) -> str:
        return f"√({self.inside})"


@dataclass(frozen=True)
class Line(Piece):
    """A line of a formula, ``depth`` blocks deep."""

    inside: Piece
    depth: int = 0

    def __str__(self) -> str:
        return "    " * self.depth + str(self.inside)
