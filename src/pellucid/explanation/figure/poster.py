"""The whole explanation as one picture: title, formula, drawings, shapes, check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pellucid.explanation.figure.grid import picture_sheet, value_sheet
from pellucid.explanation.figure.measure import cut, lines, widest, width
from pellucid.explanation.figure.network import network_sheet
from pellucid.explanation.figure.rows import rows_sheet
from pellucid.explanation.figure.sheet import Sheet, flowing, stacked
from pellucid.explanation.report import Picture, Report, Rows, SymbolRow, Unrolled, Values

ROOM = 960.0  # of the content
VALUES = 6  # that stand for a layer without drawings
FORMULA_LINES = 24
CAPTION = 440.0  # how wide a caption is at least

Part = Unrolled | Rows | Picture | Values
DRAWINGS: dict[type, Callable[..., Sheet]] = {
    Unrolled: network_sheet,
    Rows: rows_sheet,
    Picture: picture_sheet,
    Values: value_sheet,
}


@dataclass(frozen=True)
class Column:
    """A column of the table of symbols: its head's key, what it says of a symbol, and how wide it may be."""

    key: str
    entry: Callable[[SymbolRow], str]
    most: float
    kind: str = "text"
    anchor: str = "start"

    def width(self, report: Report) -> float:
        """How wide its entries are."""
        return min(self.most, widest([self.entry(row) for row in report.symbols], self.kind))


COLUMNS = (
    Column("symbol", lambda row: row.name, 170, "name"),
    Column("shape", lambda row: row.shape_text, 190, "name"),
    Column("axes", lambda row: " × ".join(row.axes), 640),
    Column("count", lambda row: f"{row.count:,}", 110, "number", "end"),
    Column("role", lambda row: row.role, 110),
)


def part_sheet(part: Part, room: float, report: Report) -> Sheet:
    """Draw one part of the tree."""
    draw = DRAWINGS.get(type(part))
    if draw is not None:
        return draw(part, room, report.words)
    raise TypeError(
        f"figure.drawing: a {type(part).__name__} has no drawing; it draws Unrolled, Rows, Picture and Values, "
        f"as they stand in report.figures and in the parts of report.steps."
    )


def poster_sheet(report: Report) -> Sheet:
    """Lay out everything."""
    parts = [_heading(report), _formula(report), _figures(report), _symbols(report), _check(report)]
    return stacked([part for part in parts if part.height], 26)


def written(content: str, kind: str, room: float, leading: float, most: int | None = None) -> Sheet:
    """Write a text over as many lines as it needs."""
    sheet = Sheet()
    for index, line in enumerate(lines(content, room, kind, most)):
        sheet.text(0, leading * (index + 0.8), line, kind)
    return sheet


def _heading(report: Report) -> Sheet:
    return stacked([written(report.title, "title", ROOM, 30, 3), written(report.subject, "size", ROOM, 16, 4)], 4)


def _formula(report: Report) -> Sheet:
    sheet = Sheet()
    y = 12.0
    for line in report.formula[:FORMULA_LINES]:
        indent = 16 + 10.0 * (len(line) - len(line.lstrip()))
        for index, piece in enumerate(lines(line.strip(), ROOM - indent - 40, "formula", 4)):
            sheet.text(indent + (24 if index else 0), y + 16, piece, "formula")
            y += 26
    if len(report.formula) > FORMULA_LINES:
        sheet.text(16, y + 16, "…", "formula")
        y += 26
    panel = Sheet()
    if report.formula:
        panel.box("panel", (0, 0, max(ROOM, sheet.width + 16), y + 8), radius=8)
        panel.put(0, 0, sheet)
    return panel


def _figures(report: Report) -> Sheet:
    """Draw the figures, each under its caption; for a layer without any, the first values and the result."""
    found = [_captioned(part, report) for part in report.figures]
    if not found:
        values = [part for step in report.steps[:1] for part in step.parts if isinstance(part, Values)]
        shown = values if len(values) <= VALUES else [*values[: VALUES - 1], values[-1]]
        found = [value_sheet(value, ROOM, report.words) for value in shown]
    return flowing(found, ROOM, 40)


def _captioned(part: Unrolled | Rows | Picture, report: Report) -> Sheet:
    """Draw a figure under its title, and under that of its step where it is the step's only drawing."""
    drawn = part_sheet(part, ROOM, report)
    room = min(ROOM, max(drawn.width, CAPTION))
    captions = [written(part.title, "text", room, 18, 3)]
    for step in report.steps:
        pictures = [other for other in step.parts if isinstance(other, Picture)]
        if len(pictures) == 1 and pictures[0] is part:
            captions.insert(0, written(step.title, "head", room, 20, 2))
    return stacked([*captions, drawn], 8)


def _symbols(report: Report) -> Sheet:
    """Write the table of shapes, and under it the counts."""
    totals, counts = Sheet(), [f"{total.count:,}" for total in report.totals]
    margin = widest(counts, "name")
    for total, count in zip(report.totals, counts, strict=True):
        y = totals.height + 2 if totals.height else 0.0
        totals.text(margin, y + 14, count, "name", "end")
        totals.put(margin + 14, y, written(total.label, "text", ROOM - margin - 14, 18, 3))
    return stacked([part for part in (_table(report), totals) if part.height], 12)


def _table(report: Report) -> Sheet:
    """Write the symbols in columns, without the axes where no symbol names them."""
    sheet = Sheet()
    if not report.symbols:
        return sheet
    columns = [column for column in COLUMNS if column.key != "axes" or any(row.axes for row in report.symbols)]
    widths = {c.key: max(c.width(report), width(report.words[c.key], "small")) for c in columns}
    over = sum(widths.values()) + 24 * (len(columns) - 1) - ROOM
    if over > 0 and "axes" in widths:
        widths["axes"] = max(160.0, widths["axes"] - over)
    x, y = 0.0, 0.0
    for column in columns:
        wide = widths[column.key]
        entries = [cut(column.entry(row), wide, column.kind) for row in report.symbols]
        head = report.words[column.key]
        at = x + wide if column.anchor == "end" else x
        sheet.text(at, 12, head, "small", column.anchor)
        for index, entry in enumerate(entries):
            y = 38 + 22.0 * index
            sheet.text(at, y, entry, column.kind, column.anchor)
        x += wide + 24
    sheet.line((0, 20), (ROOM, 20))
    sheet.line((0, y + 9), (ROOM, y + 9))
    return sheet


def _check(report: Report) -> Sheet:
    if report.check is None:
        return Sheet()
    mark = "✓ " if report.check.agrees else "✗ "
    return written(mark + report.check.text, "text", ROOM, 18)
