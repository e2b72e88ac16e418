"""Draws the pieces of a formula as MathML Core; the element of a symbol names it in ``data-symbol``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import singledispatch
from xml.etree.ElementTree import Element, tostring

from pellucid.explanation.paper import letter
from pellucid.explanation.pieces import (
    POWER,
    Call,
    Code,
    Fenced,
    Fraction,
    Group,
    Line,
    Name,
    Piece,
    Power,
    Root,
    Row,
    Token,
    plain,
)

APPLIED, TIMES = "\N{FUNCTION APPLICATION}", "\N{INVISIBLE TIMES}"
SYMBOL = re.compile(r"(.+?)([₀-₉]*)(²?)(\N{COMBINING CIRCUMFLEX ACCENT}*)", re.DOTALL)  # as `letter` writes it


def block(line: Line) -> str:
    """Write a line of a formula as an element that stands by itself."""
    return tostring(_element("math", draw(line), display="block"), encoding="unicode")


def inline(piece: Piece) -> str:
    """Write a piece as an element inside a text."""
    return tostring(_element("math", draw(piece)), encoding="unicode")


@singledispatch
def draw(piece: Piece) -> Element:
    """Return the element of a piece."""
    raise TypeError(
        f"mathml.draw: expected a piece of a known kind, got a {type(piece).__name__}; register its drawing here"
    )


@draw.register
def _(piece: Token) -> Element:
    if piece.kind == "mi":
        return _letters(piece.text, upright=True)
    if piece.text.strip():
        return _element(piece.kind, piece.text.strip())
    return _element("mo", TIMES, lspace="0", rspace="0.22em")  # matrices stand side by side


@draw.register
def _(piece: Name) -> Element:
    drawn = _letters(piece.symbol, piece.index)
    drawn.set("data-symbol", piece.symbol)
    return drawn


@draw.register
def _(piece: Code) -> Element:
    names = "|".join(map(re.escape, sorted(piece.names)))
    parts = re.split(rf"(?<![\w.])({names})(?!\w)", piece.text) if names else [piece.text]
    drawn = [_element("mtext", part.replace(" ", "\N{NO-BREAK SPACE}")) for part in parts]
    for name, found in zip(parts[1::2], drawn[1::2], strict=True):
        found.set("data-symbol", letter(name))
    return _row(found for found in drawn if found.text)


@draw.register
def _(piece: Row) -> Element:
    return _row(map(draw, piece.parts))


@draw.register
def _(piece: Group) -> Element:
    return draw(piece.inside) if _holds(piece.inside) >= piece.needed else _fenced([draw(piece.inside)])


@draw.register
def _(piece: Fenced) -> Element:
    return _fenced(map(draw, piece.entries), piece.fences)


@draw.register
def _(piece: Call) -> Element:
    return _row((draw(piece.function), _element("mo", APPLIED), draw(piece.arguments)))


@draw.register
def _(piece: Power) -> Element:
    base = draw(piece.base)
    raised = base.tag in ("msup", "msubsup")
    return _element("msup", _fenced([base]) if raised else base, draw(_bare(piece.exponent)))


@draw.register
def _(piece: Fraction) -> Element:
    return _element("mfrac", draw(_bare(piece.over)), draw(_bare(piece.under)))


@draw.register
def _(piece: Root) -> Element:
    return _element("msqrt", draw(piece.inside))


@draw.register
def _(piece: Line) -> Element:
    if not piece.depth:
        return draw(piece.inside)
    return _row((_element("mspace", width=f"{2 * piece.depth}em"), draw(piece.inside)))


def _holds(piece: Piece) -> int:
    """Return how tightly a drawn piece binds: a bar holds a fraction together, but not under an exponent."""
    return POWER if isinstance(piece, Fraction) else piece.strength


def _bare(piece: Piece) -> Piece:
    """Return what stands over or under a bar or as an exponent, which needs no parentheses there."""
    return piece.inside if isinstance(piece, Group) else piece


# -- elements -------------------------------------------------------------------------------------------------------


def _letters(symbol: str, index: str = "", upright: bool = False) -> Element:
    """Draw a word as `letter` writes it; what follows the underscore of a single letter stands low."""
    base, low, high, hats = SYMBOL.fullmatch(symbol).groups()  # type: ignore[union-attr]
    head, tail = (letter(part) for part in (*base.split("_", 1), "")[:2])
    if not tail or len(head) != 1:
        head, tail = base, ""
    drawn = _word(head, upright)
    for _ in hats:
        drawn = _element("mover", drawn, _element("mo", "^", stretchy="false"), accent="true")
    lows = [_word(tail)] * bool(tail)
    lows += [_row(map(_word, re.findall(r"\d+|\D", part))) for part in (plain(low), index) if part]
    corners = [_row(_listed(lows))] * bool(lows) + [_word(plain(high))] * bool(high)
    return _element(f"m{'sub' * bool(lows)}{'sup' * bool(high)}", drawn, *corners) if corners else drawn


def _word(text: str, upright: bool = False) -> Element:
    """Draw a number, a minus, or a word; a single letter leans unless it is ``upright``."""
    if text == "-":
        return _element("mo", "−")
    if text.isdecimal():
        return _element("mn", text)
    return _element("mi", text, **({"mathvariant": "normal"} if upright and len(text) == 1 else {}))


def _fenced(entries: Iterable[Element], fences: str = "()") -> Element:
    """Put fences round entries; they grow with a fraction only, not with every index."""
    found = list(entries)
    tall = any(next(entry.iter("mfrac"), None) is not None for entry in found)
    opening, closing = (_element("mo", fence, **({} if tall else {"stretchy": "false"})) for fence in fences)
    return _row((opening, *_listed(found), closing))


def _listed(entries: Iterable[Element]) -> list[Element]:
    """Put commas between elements."""
    return [part for entry in entries for part in (_element("mo", ","), entry)][1:]


def _row(elements: Iterable[Element]) -> Element:
    """Put elements side by side."""
    found = list(elements)
    return found[0] if len(found) == 1 else _element("mrow", *found)


def _element(tag: str, *inside: Element | str, **attributes: str) -> Element:
    element = Element(tag, attributes)
    for part in inside:
        if isinstance(part, str):
            element.text = part
        else:
            element.append(part)
    return element
