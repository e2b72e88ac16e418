"""How wide a text is, told without a browser: generously, for the widest of the common typefaces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from pellucid.explanation.typesetting import CONTROLS, WIDE, unturned, wrapped

MONO = 0.63  # of the size, for every column
NARROW, BROAD = set("iIjltfr.,;:'|!()[]/ "), set("mwMW@%—…⊙√−≥≤×→↓")
ELLIPSIS = "…"
FORBIDDEN = re.compile("[\x7f-\x9f\u061c\u200e\u200f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


@dataclass(frozen=True)
class Kind:
    """A kind of text: its size in pixels, and whether it is monospaced, bold or muted."""

    size: float
    mono: bool = False
    bold: bool = False
    muted: bool = False


KINDS = {
    "title": Kind(22, bold=True),
    "head": Kind(14, bold=True),
    "text": Kind(13),
    "small": Kind(11, muted=True),
    "formula": Kind(16, mono=True),
    "name": Kind(13, mono=True),
    "number": Kind(12, mono=True),
    "size": Kind(11, mono=True, muted=True),
}


def plain(content: str) -> str:
    """Make control characters and what turns the direction of a text visible, and drop what is no character."""
    return FORBIDDEN.sub("\ufffd", unturned(content).translate(CONTROLS))


def visible(token: str) -> str:
    """Show a token that is nothing but blanks as the mark of a blank."""
    return token if token.strip() or not token else "␣" * len(token[:8])


def width(content: str, kind: str) -> float:
    """Return the width of a text in pixels, rather too much than too little."""
    style = KINDS[kind]
    return sum(_em(character, style.mono) for character in plain(content)) * style.size * (1.08 if style.bold else 1)


def _em(character: str, mono: bool) -> float:
    cells = cell_len(character)
    if ord(character) > 0xFFFF:
        return 1.4
    if cells != 1:
        return cells / 2 * (2 * MONO if mono else 1.02)
    if mono:
        return MONO
    return 0.42 if character in NARROW else 1.0 if character in BROAD else 0.8 if character.isupper() else MONO


def cut(content: str, room: float, kind: str) -> str:
    """Shorten a text to a width, the rest replaced by an ellipsis."""
    content = plain(content)
    if width(content[:2000], kind) <= room and len(content) <= 2000:
        return content
    room -= width(ELLIPSIS, kind)
    used, end = 0.0, 0
    for character in content:
        used += width(character, kind)
        if used > room:
            break
        end += 1
    return content[:end] + ELLIPSIS


def lines(content: str, room: float, kind: str, most: int | None = None) -> list[str]:
    """Break a text into lines of a width; of more than ``most`` the last one that stays ends in an ellipsis."""
    found = []
    for line in wrapped(plain(content), room, "", "", lambda text: width(text, kind)):
        while width(line, kind) > room:
            head = cut(line, room, kind).removesuffix(ELLIPSIS) or line[:1]
            found.append(head)
            line = line[len(head) :]
        found.append(line)
    if most is not None and len(found) > most:
        found = [*found[: most - 1], cut(found[most - 1] + ELLIPSIS * 2, room, kind)]
    return found


def widest(contents: Sequence[str], kind: str) -> float:
    """Return the width of the widest of several texts."""
    return max((width(content, kind) for content in contents), default=0.0)


def has_chinese(content: str) -> bool:
    """Whether a text holds characters of Chinese."""
    return re.search(WIDE, content) is not None
