"""The page of one layer: every section of its report, and the places of its exhibits."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from pellucid.explanation.figure import drawing
from pellucid.explanation.page.frame import Frame, paragraphs, text, totals_of
from pellucid.explanation.report import Picture, Report, Rows, Step, SymbolRow, Unrolled, Values
from pellucid.explanation.typesetting import cost_rows, numbers_of, portion, starts_block


class Document(Frame[Report]):
    """The page of one layer."""

    def sections(self) -> str:
        """The parts of the explanation."""
        return "".join(
            (
                self.section("idea", self.spoken(lambda report: paragraphs(report.idea))),
                self.section("formula", self.formula()),
                self.figures(),
                self.explore(),
                self.section("symbols", self.spoken(_symbols) if self.first.symbols else ""),
                self.section("why", self.spoken(_reasons) if any(s.reasons for s in self.first.symbols) else ""),
                self.section("totals", self.spoken(totals_of) if self.first.totals else ""),
                self.section("cost", self.spoken(_cost) if self.first.cost else ""),
                self.section("steps", self.spoken(_steps) if self.first.steps else ""),
                self.section("notes", self.spoken(_notes) if self.first.notes else ""),
            )
        )

    def badge(self) -> str:
        """Whether the numbers were checked against the layer, and how much they differ."""
        check = self.first.check
        if check is None:
            return ""
        kind = "badge" if check.agrees else "badge differs"
        mark = "✓" if check.agrees else "✗"

        def written(report: Report) -> str:
            return text(report.check.text if report.check else "")

        figure = f'<span class="figure">max |Δ| = {check.difference:.2g}</span>'
        return f'<p class="{kind}"{self.anchor("check")}>{mark} {figure} · {self.spoken(written, "span")}</p>\n'

    def formula(self) -> str:
        """The formula's lines, what its marks mean, and the lines as the file has them."""
        report = self.first
        if not report.formula:
            return ""
        lines = report.mathml or tuple(f"<p><code>{text(line)}</code></p>" for line in report.formula)
        notation = self.spoken(lambda r: paragraphs(r.notation, "notation"))
        code = self.spoken(lambda r: text(r.words["code"]), "span")
        written = f"<p>{code}</p><pre>{text(chr(10).join(report.code))}</pre>\n"
        return f'<div class="lines" tabindex="0">{"".join(lines)}</div>{notation}{written}'

    def figures(self) -> str:
        """The pictures, which stand still; with JavaScript an exhibit takes their place."""
        drawn = self.spoken(_figures)
        return f'<div class="{"replaced" if self.exhibits else "still"}">{drawn}</div>\n' if drawn else ""

    def explore(self) -> str:
        """The places of the exhibits."""
        if not self.exhibits:
            return ""
        places = "".join(
            f'<div class="exhibit" id="exhibit-{index}" data-kind="{exhibit.kind}"></div>\n'
            for index, exhibit in enumerate(self.exhibits)
        )
        keys = f'<p class="muted keys">{self.word("keys")}</p>'
        return self.under("explore", self.word("explore"), f"{places}{keys}")


def breakable(name: str) -> str:
    """Write a name or a shape so that a narrow column breaks it between its parts."""
    return re.sub("([×_.])", r"\1<wbr>", text(name))


def _symbols(report: Report) -> str:
    words = report.words
    head = "".join(f'<th scope="col">{text(words[k])}</th>' for k in ("symbol", "shape", "axes", "count", "role"))
    rows = "".join(map(_symbol, report.symbols))
    return (
        f'<div class="scroll"><table class="facts symbols"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div>"
    )


def _symbol(row: SymbolRow) -> str:
    name = text(row.name)
    cells = f"<td>{breakable(row.shape_text)}</td><td>{text(' × '.join(row.axes))}</td>"
    return (
        f'<tr data-symbol="{name}"><th scope="row" tabindex="0" data-symbol="{name}">{breakable(row.name)}</th>{cells}'
        f'<td class="number">{row.count:,}</td><td>{text(row.role)}</td></tr>'
    )


def _reasons(report: Report) -> str:
    rows = "".join(
        f'<tr data-symbol="{text(row.name)}"><th scope="row">{breakable(row.name)}</th><td>'
        f"{paragraphs(row.reasons)}</td></tr>"
        for row in report.symbols
        if row.reasons
    )
    return f'<div class="scroll"><table class="facts plain reasons">{rows}</table></div>'


def _cost(report: Report) -> str:
    cost, words = report.cost, report.words
    if cost is None:
        return ""
    rows = "".join(
        f'<tr><td class="number">{number}</td><td>{text(word)}</td></tr>' for number, word in cost_rows(cost, words)
    )
    said = [cost.convention]
    if cost.uncounted:
        said.insert(0, words["uncounted"] + words["colon"] + words["comma"].join(cost.uncounted))
    return f'{paragraphs([cost.scope])}<table class="facts plain">{rows}</table>{paragraphs(said, "muted")}'


def _notes(report: Report) -> str:
    return "<ul>" + "".join(f"<li>{text(note)}</li>" for note in report.notes) + "</ul>"


def _steps(report: Report) -> str:
    return "".join(
        f'<details class="worked" open><summary>{text(step.title)}</summary>{_step(step, report)}</details>'
        for step in report.steps
    )


def _step(step: Step, report: Report) -> str:
    written = ""
    group: Any
    for kind, group in groupby(step.parts, type):
        if kind is Values:
            written += f'<dl class="values">{"".join(_values(part, report) for part in group)}</dl>'
        else:
            written += "".join(_drawn(p, report) if kind is Picture else f"<p>{text(p)}</p>" for p in group)
    return written


def _values(value: Values, report: Report) -> str:
    table = numbers_of(value)
    rows = []
    for index, row in enumerate(table):
        kind = ' class="block"' if starts_block(value, index) else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{text(number)}</td>" for number in row) + "</tr>")
    note = portion(value, table, report.words)
    said = f'<p class="muted">{text(note)}</p>' if note else ""
    name = value.mathml or text(value.name)
    return f'<dt>{name}</dt><dd><div class="scroll"><table class="numbers">{"".join(rows)}</table></div>{said}</dd>'


def _drawn(part: Picture | Unrolled | Rows, report: Report) -> str:
    return f'<figure class="scroll drawn">{drawing(part, report)}</figure>'


def _figures(report: Report) -> str:
    """Draw the pictures that do not stand among the worked steps."""
    worked = {id(part) for step in report.steps for part in step.parts}
    return "".join(_drawn(part, report) for part in report.figures if id(part) not in worked)
