"""Text in columns: numbers with sensible digits, aligned tables, and lines broken where Chinese allows it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod

import numpy as np
from rich.cells import cell_len

from pellucid.explanation.report import Cost, Report, Values
from pellucid.explanation.texts import Noun

COLUMNS = 8  # numbers of a row that are shown; a few more where those are all
ROWS = 8
SLACK = 2
CLOSING = "，。；：！？、）】》」』”’…"
OPENING = "（【《「『“‘"
CONTROLS = {code: 0x2400 + code for code in range(32)}  # U+2400 and on are their pictures
WIDE = r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]"  # characters between which a line may break


def sizes_of(shape: Sequence[int]) -> str:
    """Write the size of every axis: ``3×4``; that of a single number is ``1``."""
    return "×".join(map(str, shape)) or "1"


def shape_of(shape: Sequence[int]) -> str:
    """Write a shape as on paper: ``256×128``; a vector is a row, ``1×128``; a single number is ``1``."""
    return sizes_of((1, *shape) if len(shape) == 1 else shape)


def layout(value: Values) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return a value's numbers and shape as they are laid out: of many axes, those of size 1 are left out."""
    if len(value.shape) < 3:
        return value.numbers, value.shape
    kept = [axis for axis, size in enumerate(value.shape) if size != 1]
    shape = tuple(value.shape[axis] for axis in kept)
    return value.numbers.reshape([value.numbers.shape[axis] for axis in kept]), shape


def numbers_of(value: Values) -> list[list[str]]:
    """Write a value's first numbers, aligned: as many decimals as give the greatest four significant digits."""
    array, shape = layout(value)
    table = array.reshape(1, 1) if array.ndim == 0 else array.reshape(prod(array.shape[:-1]), array.shape[-1])
    rows, columns = prod(shape[:-1]), shape[-1] if shape else 1
    table = table[: ROWS if rows > ROWS + SLACK else rows, : COLUMNS if columns > COLUMNS + SLACK else columns]
    places = decimals(table)
    return [[written(float(n), places) for n in row] for row in table]


def starts_block(value: Values, row: int) -> bool:
    """Whether a row of a value with more than two axes begins another of its matrices."""
    array, _ = layout(value)
    return array.ndim > 2 and row > 0 and row % array.shape[-2] == 0


def decimals(table: np.ndarray) -> int | None:
    """Return how many decimals to write: 0 for whole numbers, None where only powers of ten will do."""
    if table.dtype.kind in "iub":
        return 0
    finite = np.abs(table[np.isfinite(table)].astype(np.float64))
    greatest = float(finite.max(initial=0.0))
    if greatest == 0 or (np.all(finite == np.round(finite)) and greatest < 1e4):
        return 0
    if greatest >= 1e4 or greatest < 1e-2:
        return None
    return int(np.clip(3 - np.floor(np.log10(float(f"{greatest:.3e}"))), 0, 4))


def written(number: float, places: int | None) -> str:
    """Write one number."""
    if number == 0:
        return "0"
    if not np.isfinite(number):
        return str(number)
    written = f"{number:.2e}" if places is None else f"{number:.{places}f}"
    return written.lstrip("-") if float(written) == 0 else written


def pad(content: str, width: int) -> str:
    """Fill up with spaces to a width in columns."""
    return content + " " * max(0, width - cell_len(content))


def shortened(content: str, width: int) -> str:
    """Write a text on one line of at most ``width`` columns, its end replaced by an ellipsis where it is longer."""
    line = " ".join(content.split())
    if cell_len(line) <= width:
        return line
    while cell_len(line) >= width:
        line = line[: min(len(line) - 1, width)]
    return line + "…"


def columns(table: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Align the rows of a table; ``sides`` says "l" or "r" for every column."""
    widths = [max(cell_len(row[i]) for row in table) for i in range(len(sides))]
    lines = []
    for row in table:
        cells = [
            pad(cell, width) if side == "l" else " " * (width - cell_len(cell)) + cell
            for cell, width, side in zip(row, widths, sides, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def symbol_rows(report: Report) -> list[tuple[str, ...]]:
    """Return the table of the symbols, under the heads of its columns."""
    head = tuple(report.words[key] for key in ("symbol", "shape", "axes", "count", "role"))
    rows = [(r.name, r.shape_text, " × ".join(r.axes), f"{r.count:,}", r.role) for r in report.symbols]
    return [head, *rows]


def cost_rows(cost: Cost, words: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the numbers of a cost, written, and what each of them counts."""
    counts = {
        "flops": cost.flops,
        "macs": cost.macs,
        "other": cost.other_flops,
        "parameters": cost.parameters,
        "bytes_least": cost.bytes_least,
        "bytes_moved": cost.bytes_moved,
    }
    return [(f"{count:,}", words[key].format(n=Noun(count))) for key, count in counts.items()]


def portion(value: Values, table: Sequence[Sequence[str]], words: Mapping[str, str]) -> str:
    """Say what part of a value a table shows, and the value's own note."""
    notes = []
    _, shape = layout(value)
    if shape and table:
        parts = [("showing_rows", len(table), prod(shape[:-1])), ("showing", len(table[0]), shape[-1])]
        notes += [words[key].format(shown=f"{s:,}", total=f"{t:,}") for key, s, t in parts if s < t]
    return words["comma"].join([*notes, *([value.note] if value.note else [])])


def wrapped(content: str, width: float, first: str, rest: str, measure: Callable[[str], float] = cell_len) -> list[str]:
    """Break a text into lines: at spaces, and between Chinese characters, but not before a closing mark."""
    lines, line, free = [], first, True  # free: no space is due before the next piece
    for space, piece in _pieces(content):
        gap = "" if free else space
        if not free and measure(line + gap + piece) > width:
            lines.append(line)
            line, gap = rest, ""
        line += gap + piece
        free = False
    lines.append(line)
    return lines


def folded(code: str, width: int) -> list[str]:
    """Break a line of code behind spaces and opening brackets; what follows stands deeper by eight columns."""
    indent = " " * (len(code) - len(code.lstrip()) + 8)
    lines = []
    while cell_len(code) > width:
        ends = [match.end() for match in re.finditer(r"(?<=\S) +|[(\[]", code) if match.end() < len(code)]
        fitting = [end for end in ends if cell_len(code[:end].rstrip()) <= width]
        if not ends:
            break
        end = fitting[-1] if fitting else ends[0]
        lines.append(code[:end].rstrip())
        code = indent + code[end:]
    return [*lines, code]


def _pieces(content: str) -> Iterator[tuple[str, str]]:
    """Cut a text into (space before, unbreakable piece)."""
    opening, closing = re.escape(OPENING), re.escape(CLOSING)
    word = rf"(?:(?!{WIDE})[^\s{opening}])+"
    pattern = rf"(\s*)([{opening}]*(?:{WIDE}|{word}|[{opening}])[{closing}]*)"
    for match in re.finditer(pattern, content):
        yield match.group(1), match.group(2)


def printable(content: str) -> str:
    """Replace what is not to be written as it is: control characters and half surrogate pairs."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", content)


def upright(content: str) -> str:
    """Replace also what would turn the direction of the text behind it."""
    return unturned(printable(content))


def unturned(content: str) -> str:
    """Write the names of marks that turn the direction of the text behind them in their place: U+202E."""
    return re.sub("[\u202a-\u202e\u2066-\u2069]", _name, content)


def unbroken(content: str) -> str:
    """Write also what breaks a line or jumps along it as a picture or by its name: ␊, U+2028."""
    drawn = re.sub("[\t-\r\x1c-\x1e]", lambda mark: mark[0].translate(CONTROLS), unturned(content))
    return re.sub("[\x85\u2028\u2029]", _name, drawn)


def _name(mark: re.Match[str]) -> str:
    return f"U+{ord(mark[0]):04X}"
