"""Renders a report as text for a terminal; alignment, not color, carries the meaning."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pellucid.explanation.report import Moment, Picture, Report, Step, Total, Unrolled, Values
from pellucid.explanation.typesetting import (
    columns,
    cost_rows,
    folded,
    numbers_of,
    pad,
    portion,
    shortened,
    starts_block,
    symbol_rows,
    upright,
    wrapped,
)

WIDEST = 120
CELLS = {
    "free": "·",
    "touched": "■",
    "greatest": "▲",
    "padding": "○",
    "padding touched": "□",
    "averaged": "■",
    "other": "·",
}


def text(report: Report, width: int = 100) -> str:
    """Return the report as plain text of at most ``width`` columns."""
    return "\n".join(written(width, lambda console: write(report, console))) + "\n"


def lines_of(parts: Sequence[str | Values | Picture], report: Report, width: int) -> list[str]:
    """Return some parts of a worked step as lines of plain text, values and drawings aligned."""
    return written(width, lambda console: _Page(console, width, report).parts(parts))


def written(width: int, write_to: Callable[[Console], None]) -> list[str]:
    """Return the lines that something writes to a console that knows neither colors nor styles."""
    file = io.StringIO()
    console = Console(
        file=file, width=width, color_system=None, force_terminal=False, force_jupyter=False, legacy_windows=False
    )
    write_to(console)
    return [line.rstrip() for line in file.getvalue().split("\n")[:-1]]


def write(report: Report, console: Console) -> None:
    """Write the report to a console."""
    page = _Page(console, min(console.width, WIDEST), report)
    page.all()


class Sheet:
    """What a text is made of: lines, paragraphs and headings of at most ``width`` columns."""

    def __init__(self, console: Console, width: int, words: Mapping[str, str]) -> None:
        self.console, self.width, self.words = console, width, words

    def line(self, content: str | Text = "", style: str = "") -> None:
        """Write one line as it is."""
        text = content if isinstance(content, Text) else Text(upright(content), style=style)
        self.console.print(text, no_wrap=True, overflow="ignore", crop=False)

    def paragraph(self, content: str, first: str = "", rest: str | None = None, style: str = "") -> None:
        """Write a text, broken into lines; ``first`` stands before the first one, ``rest`` before the others."""
        for line in wrapped(content, self.width, first, first if rest is None else rest):
            self.line(line, style)

    def title(self, content: str) -> None:
        """Write a title."""
        self.paragraph(content, "", "  ", "bold")

    def heading(self, key: str) -> None:
        """Write a word as a heading."""
        self.line()
        self.line(self.words[key], "bold")
        self.line("─" * cell_len(self.words[key]))

    def totals(self, totals: Sequence[Total]) -> None:
        """Write numbers of weights, and what they count."""
        if not totals:
            return
        self.heading("totals")
        longest = max(len(f"{total.count:,}") for total in totals)
        for total in totals:
            lead = "  " + f"{total.count:,}".rjust(longest) + "  "
            self.paragraph(total.label, lead, " " * len(lead))


class _Page(Sheet):
    def __init__(self, console: Console, width: int, report: Report) -> None:
        super().__init__(console, width, report.words)
        self.report = report

    def all(self) -> None:
        report = self.report
        self.title(report.title)
        self.line("═" * min(self.width, cell_len(report.title)))
        self.paragraph(report.subject)
        self.ideas()
        self.formula()
        self.symbols()
        self.totals(report.totals)
        self.cost()
        if report.steps:
            self.heading("steps")
            for figure in report.figures:
                if isinstance(figure, Unrolled):
                    self.network(figure)
            for index, step in enumerate(report.steps):
                if index:
                    self.line()
                self.step(step)
        if report.check is not None:
            self.heading("check")
            self.paragraph(report.check.text)
        if report.notes:
            self.heading("notes")
            for note in report.notes:
                self.paragraph(note, "• ", "  ")

    def ideas(self) -> None:
        self.heading("idea")
        for index, part in enumerate(self.report.idea):
            if index:
                self.line()
            self.paragraph(part)

    def formula(self) -> None:
        if not self.report.formula:
            return
        self.heading("formula")
        for line in self.report.formula:
            indent = "    " + " " * (len(line) - len(line.lstrip()))
            self.paragraph(line, indent, indent + "    ")
        if self.report.notation:
            self.line()
            for line in self.report.notation:
                self.paragraph(line, "  ", "    ")
        self.line()
        self.line("  " + self.words["code"])
        for line in self.report.code:
            for part in folded("    " + line, self.width):
                self.line(part)

    def symbols(self) -> None:
        rows = self.report.symbols
        if not rows:
            return
        self.heading("symbols")
        table = symbol_rows(self.report)
        lines = columns(table, "lllrl")
        named = any(row.axes for row in rows)
        beside = named and max(map(cell_len, lines)) + 2 <= self.width
        if not beside:
            lines = columns([(*row[:2], *row[3:]) for row in table], "llrl")
        for line, row in zip(lines, table, strict=True):
            self.line("  " + line)
            if named and not beside:
                self.paragraph(row[2], "      ", "      ")
        if any(row.reasons for row in rows):
            self.heading("why")
            longest = max(cell_len(row.name) for row in rows)
            for symbol in rows:
                for index, reason in enumerate(symbol.reasons):
                    name = pad(symbol.name if index == 0 else "", longest)
                    self.paragraph(reason, f"  {name}  ", " " * (longest + 4))

    def cost(self) -> None:
        cost = self.report.cost
        if cost is None:
            return
        self.heading("cost")
        self.paragraph(cost.scope, "  ", "  ")
        table = cost_rows(cost, self.words)
        longest = max(len(number) for number, _ in table)
        for number, word in table:
            self.paragraph(word, "  " + number.rjust(longest) + "  ", " " * (longest + 4))
        if cost.uncounted:
            names = self.words["comma"].join(cost.uncounted)
            self.paragraph(self.words["uncounted"] + self.words["colon"] + names, "  ", "  ")
        self.paragraph(cost.convention, "  ", "  ")

    # -- worked steps -------------------------------------------------------------------------------------------

    def step(self, step: Step) -> None:
        self.title(step.title)
        self.parts(step.parts)

    def parts(self, parts: Sequence[str | Values | Picture]) -> None:
        group: Any
        for kind, group in groupby(parts, type):
            if kind is Values:
                self.values([*group])
                continue
            for part in group:
                self.picture(part) if kind is Picture else self.paragraph(part, "  ", "  ")

    def values(self, group: Sequence[Values]) -> None:
        """Write values one under the other: beside their names where they fit, else under them."""
        tables = self.aligned(group)
        notes = [portion(v, t, self.words) for v, t in zip(group, tables, strict=True)]
        sizes = [
            max((cell_len("  ".join(row)) for row in table), default=0) + (cell_len(note) + 2 if note else 0)
            for table, note in zip(tables, notes, strict=True)
        ]
        label = self.label_width([cell_len(v.name) for v in group], sizes)
        for value, table, note, size in zip(group, tables, notes, sizes, strict=True):
            if label and label + 4 + size <= self.width:
                self.beside(value, table, note, label)
            else:
                self.under(value, table, note)

    def label_width(self, names: Sequence[int], sizes: Sequence[int]) -> int:
        """Return the width of a column of names beside which the most values find room; 0 if few do."""
        best, most = 0, len(names) // 2
        for width in sorted(set(names)):
            fitting = sum(n <= width and width + 4 + size <= self.width for n, size in zip(names, sizes, strict=True))
            if fitting >= most:
                best, most = width, fitting
        return best

    def aligned(self, group: Sequence[Values]) -> list[list[list[str]]]:
        """Write the numbers so that values of as many columns stand under one another."""
        tables = [numbers_of(v) for v in group]
        widths: dict[int, int] = {}
        for table in tables:
            for row in table:
                widths[len(row)] = max([widths.get(len(row), 0), *map(cell_len, row)])
        found = []
        for table in tables:
            fit = [max(1, (self.width - 6 + 2) // (widths[len(row)] + 2)) for row in table]
            found.append([[n.rjust(widths[len(row)]) for n in row[:f]] for row, f in zip(table, fit, strict=True)])
        return found

    def beside(self, value: Values, table: Sequence[Sequence[str]], note: str, label: int) -> None:
        name = value.name
        if cell_len(name) > label:
            self.paragraph(name, "  ", "      ")
            name = ""
        for index, row in enumerate(table):
            if starts_block(value, index):
                self.line()
            tail = f"  {note}" if note and index == len(table) - 1 else ""
            self.line(f"  {pad(name if index == 0 else '', label)}  {'  '.join(row)}{tail}")

    def under(self, value: Values, table: Sequence[Sequence[str]], note: str) -> None:
        name = value.name
        if cell_len(name) + cell_len(note) + 4 <= self.width:
            self.line(f"  {pad(name, self.width - 4 - cell_len(note))}  {note}".rstrip())
        else:
            self.paragraph(name, "  ", "      ")
            self.paragraph(note, "      ", "      ")
        for index, row in enumerate(table):
            if starts_block(value, index):
                self.line()
            self.line("      " + "  ".join(row))

    def network(self, network: Unrolled) -> None:
        """Draw the unrolled network, as many steps as fit."""
        self.title(network.title)
        moments = list(network.moments)
        lines = _network(network, moments, self.words["left_out"])
        while len(moments) > 1 and max(map(cell_len, lines)) + 4 > self.width:
            del moments[max(0, len(moments) - 2)]
            lines = _network(network, moments, self.words["left_out"])
        for line in lines if max(map(cell_len, lines)) + 4 <= self.width else ():
            self.line("    " + line)
        if network.weights:
            weights = self.words["comma"].join(f"{name} {shape}" for name, shape in network.weights)
            self.paragraph(f"{weights}{self.words['colon']}{network.shared}", "  ", "  ")
        self.line()

    def picture(self, picture: Picture) -> None:
        if picture.title:
            self.paragraph(picture.title, "  ", "  ")
        blocks = [_drawn(block, picture.columns) for block in picture.blocks]
        titles = picture.block_titles or ("",) * len(blocks)
        widths = [max(map(cell_len, (title, *block))) for title, block in zip(titles, blocks, strict=True)]
        for band in _bands(widths, self.width - 4):
            rows = [titles, *zip(*blocks, strict=True)] if picture.block_titles else list(zip(*blocks, strict=True))
            for row in rows:
                self.line("    " + "    ".join(pad(row[i], widths[i]) for i in band).rstrip())
        line = ""
        for item in [*picture.axes, *(f"{CELLS.get(key, key)} {said}" for key, said in picture.meanings.items())]:
            if line and cell_len(f"    {line}   {item}") > self.width:
                self.line("    " + line)
                line = ""
            line += ("   " if line else "") + item
        self.line("    " + line)


def _network(network: Unrolled, moments: Sequence[Moment], left_out: str) -> list[str]:
    """Draw steps side by side: what comes out above, the state along time, what goes in below."""
    table: list[list[str]] = []  # one column each
    rows = len(network.states)
    for index, moment in enumerate(moments):
        missing = network.steps - len(moments)
        if missing and index == len(moments) - 1:
            table.append(["", "", "… " + left_out.format(count=f"{missing:,}"), *[""] * (rows + 2)])
        into = [
            f"{name} {shape}".rstrip() + "→"
            for name, shape in zip(moment.before, (" ".join(arrow.weights) for arrow in network.states), strict=True)
        ]
        table.append(["", "", *into, "", "", ""])
        cells = [f"[{network.cell if not row else ' ' * cell_len(network.cell)}]" for row in range(rows)]
        weights = [" ".join(arrow.weights) for arrow in network.inputs]
        arrows = "  ".join(f"↑ {names}".rstrip() for names in weights)
        table.append([moment.output, "↑", *cells, arrows, "  ".join(moment.inputs), shortened(moment.token, 16)])
    table.append(["", "", *(f"→ {name}" for name in moments[-1].after), "", "", ""])
    widths = [max(map(cell_len, column)) for column in table]
    lines = (
        " ".join(_centered(cell, width) for cell, width in zip(row, widths, strict=True))
        for row in zip(*table, strict=True)
    )
    return [line.rstrip() for line in lines if line.strip()]


def _centered(content: str, width: int) -> str:
    return pad(" " * ((width - cell_len(content)) // 2) + content, width)


def _drawn(block: Sequence[Sequence[str]], heads: Sequence[str]) -> list[str]:
    """Draw a block of cells, under the heads of its columns if it has any."""
    rows = [[CELLS.get(cell, cell) for cell in row] for row in block]
    table = [list(heads), *rows] if heads else rows
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    return [" ".join(pad(cell, width) for cell, width in zip(row, widths, strict=True)) for row in table]


def _bands(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Share blocks out over bands that fit the width."""
    band: list[int] = []
    for index in range(len(widths)):
        if band and sum(widths[i] + 4 for i in [*band, index]) - 4 > room:
            yield band
            band = []
        band.append(index)
    if band:
        yield band
