"""Cells with numbers: the grid under a window, the cells that share a mean, a matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pellucid.explanation.figure.measure import cut, lines, visible, widest, width
from pellucid.explanation.figure.sheet import Box, Sheet, flowing, stacked
from pellucid.explanation.report import Picture, Values
from pellucid.explanation.typesetting import decimals, layout, numbers_of, portion, shape_of, starts_block, written

HIGH = 24.0  # of a cell
NARROWEST, WIDEST_HEAD = 26.0, 96.0
LEGEND = 420.0  # how wide a legend is at least
ROWS = 14  # of a block that are drawn at most
STYLES = {
    "touched": ("cool", "hatch"),
    "averaged": ("cool", "hatch"),
    "greatest": ("warm", "cross"),
    "padding touched": ("dashed", "hatch"),
    "padding": ("dashed", ""),
}


def number_text(number: float, places: int | None) -> str:
    """Write a number as in print."""
    return in_print(written(number, places))


def in_print(number: str) -> str:
    """Write a number that has been written for a terminal with the signs of print."""
    return number.replace("-", "−").replace("inf", "∞")


def picture_sheet(picture: Picture, room: float, words: Mapping[str, str]) -> Sheet:
    """Draw the blocks of a picture, what belongs beside them, and the legend."""
    heads = [visible(head) for head in picture.columns]
    numbers = [_texts(n, cells, picture.numbers) for n, cells in zip(picture.numbers, picture.blocks, strict=False)]
    wide = max(NARROWEST, widest([n for block in numbers for row in block for n in row], "number") + 8)
    wide = max(wide, min(WIDEST_HEAD, widest(heads, "name") + 8))
    columns = max(1, int(room // wide))
    blocks = []
    for index, cells in enumerate(picture.blocks):
        sheet, top = Sheet(), 0.0
        if picture.block_titles:
            sheet.text(0, 12, cut(picture.block_titles[index], max(wide * len(cells[0]), 90), "small"), "small")
            top = 18
        if picture.columns:
            for column, head in enumerate(heads[:columns]):
                sheet.text((column + 0.5) * wide, top + 14, cut(head, wide - 4, "name"), "name", "middle")
            top += 20
        shown = [row[:columns] for row in cells[:ROWS]]
        sheet.put(0, top, _cells(shown, numbers[index] if numbers else [], wide))
        blocks.append(sheet)
    gaps = 18 if picture.block_titles else 24
    drawn = _beside(flowing(blocks, room, gaps), picture, room, words)
    rows, across = len(picture.blocks[0]), len(picture.blocks[0][0]) if picture.blocks[0] else 0
    notes = [words["showing_rows"].format(shown=ROWS, total=rows)] if rows > ROWS else []
    notes += [words["showing"].format(shown=columns, total=across)] if across > columns else []
    notes += [picture.note] if picture.note else []
    parts = [
        drawn,
        _legend(picture, min(room, max(drawn.width, LEGEND))),
        *(_note(note, max(drawn.width, min(room, 320))) for note in notes),
    ]
    return stacked([part for part in parts if part.height], 10)


def _texts(block: np.ndarray, cells: Sequence[Sequence[str]], blocks: Sequence[np.ndarray]) -> list[list[str]]:
    """Write the numbers of a block; in padding that nothing reads there is none."""
    places = decimals(np.concatenate([np.asarray(b, np.float64).ravel() for b in blocks]))
    rows = zip(block, cells, strict=True)
    return [
        ["" if c == "padding" else number_text(float(n), places) for n, c in zip(row, kinds, strict=True)]
        for row, kinds in rows
    ]


def _cells(cells: Sequence[Sequence[str]], numbers: Sequence[Sequence[str]], wide: float) -> Sheet:
    """Draw one block; cells of one kind are one path."""
    sheet = Sheet()
    places: dict[str, list[Box]] = {}
    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            places.setdefault(cell, []).append((column * wide, row * HIGH, wide, HIGH))
    marked = sorted(places, key=lambda cell: list(STYLES).index(cell) + 1 if cell in STYLES else 0)
    for cell in reversed(marked) if "padding" in marked else marked:
        _styled(sheet, cell, *places[cell])
    for row, line in enumerate(numbers[: len(cells)]):
        for column, number in enumerate(line[: len(cells[row])]):
            sheet.text((column + 0.5) * wide, row * HIGH + 16, number, "number", "middle")
    return sheet


def _beside(blocks: Sheet, picture: Picture, room: float, words: Mapping[str, str]) -> Sheet:
    """Put the values that belong to a picture at its side, or under it: what is multiplied, and the result."""
    if not picture.beside:
        return blocks
    *given, result = picture.beside
    factors = stacked([value_sheet(value, room - 40, words, sizes=False) for value in given], 12)
    output = value_sheet(result, max(160.0, room * 0.3), words, sizes=False, kind="warm")
    found = Sheet()
    if blocks.width + 40 + factors.width + 46 + output.width <= room:
        parts, high = [blocks], max(blocks.height, factors.height)
    else:
        parts, high = [], max(factors.height, output.height)
        found.put(0, 0, blocks)
    top, x = (found.height + 12 if found.height else 0.0), 0.0
    for part in [*parts, *([factors] if given else [])]:
        if part is factors:
            found.text(x + 20, top + high / 2 + 5, "⊙", "formula", "middle")
            x += 40
        found.put(x, top + (high - part.height) / 2 if part is factors else top, part)
        x += part.width
    found.arrow((x + 10, top + high / 2), (x + 36, top + high / 2))
    found.put(x + 46, top + max(0.0, high / 2 - output.height / 2 - 8), output)
    return found


def _legend(picture: Picture, room: float) -> Sheet:
    """Explain axes and cells; only what is drawn."""
    items = []
    for axis in picture.axes:
        items.append(Sheet())
        items[-1].text(0, 12, cut(axis, room, "small"), "small")
    items += [swatch(cell, cut(meaning, room - 24, "small")) for cell, meaning in picture.meanings.items()]
    return flowing(items, room, 16)


def swatch(cell: str, meaning: str) -> Sheet:
    """Show a kind of cell beside what it means."""
    sheet = Sheet()
    _styled(sheet, cell, (1.0, 1.0, 14.0, 14.0))
    sheet.text(20, 12, meaning, "small")
    return sheet


def _styled(sheet: Sheet, cell: str, *boxes: Box) -> None:
    """Draw boxes as cells of a kind are."""
    kind, hatch = STYLES.get(cell, ("plain", ""))
    sheet.box(kind, *boxes)
    if hatch:
        sheet.hatch(hatch, *boxes)


def _note(content: str, room: float) -> Sheet:
    sheet = Sheet()
    for index, line in enumerate(lines(content, room, "small", 4)):
        sheet.text(0, 12 + 15 * index, line, "small")
    return sheet


def value_sheet(
    value: Values, room: float, words: Mapping[str, str], sizes: bool = True, kind: str | None = None
) -> Sheet:
    """Draw a value: its name, its shape, and its first numbers, tinted by sign and size (or all of one ``kind``)."""
    table = [[in_print(n) for n in row] for row in numbers_of(value)]
    sheet, y = Sheet(), 0.0
    shape = shape_of(value.shape) if sizes and value.shape else ""
    name = cut(value.name, max(80.0, room - width(shape, "size") - 10), "name")
    if name:
        sheet.text(0, 13, name, "name")
        sheet.text(width(name, "name") + 10, 13, shape, "size")
        y = 20
    if not table or not table[0]:
        return sheet
    wide = max(NARROWEST, widest([n for row in table for n in row], "number") + 8)
    table = [row[: max(1, int(room // wide))] for row in table]
    array, _ = layout(value)
    numbers = np.asarray(array, np.float64).reshape(-1, array.shape[-1] if array.ndim else 1)
    numbers = numbers[: len(table), : len(table[0])]
    finite = np.abs(numbers[np.isfinite(numbers)])
    greatest = float(finite.max(initial=0.0))
    for row, line in enumerate(table):
        y += 6 if starts_block(value, row) else 0
        for column, text in enumerate(line):
            box = (column * wide, y, wide, HIGH)
            number = float(numbers[row, column])
            share = abs(number) / greatest if greatest and np.isfinite(number) else 0.0
            if kind is not None:
                sheet.box(kind, box)
            elif share:
                level = max(1, round(share * 5)) / 5
                sheet.box("tint-cool" if number < 0 else "tint-warm", box, opacity=0.5 * level)
            else:
                sheet.box("plain", box)
            sheet.text((column + 0.5) * wide, y + 16, text, "number", "middle")
        y += HIGH
    note = portion(value, table, words)
    for line_ in lines(note, max(sheet.width, min(room, 200)), "small", 3) if note else ():
        sheet.text(0, y + 13, line_, "small")
        y += 15
    return sheet
