"""Renders a report as Markdown, as GitHub and notebooks show it; what the user wrote stays text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from pellucid.explanation.report import Picture, Report, Step, SymbolRow, Values
from pellucid.explanation.terminal import lines_of
from pellucid.explanation.typesetting import cost_rows, printable, symbol_rows

WIDTH = 100  # columns of the aligned values and drawings
MARKS = re.compile(r"([\\`*_\[\]<>#|~&$])")
STARTS = re.compile(r"^(?:([-+=])|(\d+)([.)]))")  # of a list, a heading


def markdown(report: Report) -> str:
    """Return the explanation as Markdown (CommonMark with GitHub's tables)."""
    return "\n\n".join(_blocks(report)) + "\n"


def escaped(text: str) -> str:
    """Write a text on one line so that no character of it means anything to Markdown or HTML."""
    one_line = MARKS.sub(r"\\\1", printable(" ".join(text.split())))
    return STARTS.sub(lambda start: f"\\{start[1]}" if start[1] else f"{start[2]}\\{start[3]}", one_line)


def fenced(lines: Sequence[str], language: str = "") -> str:
    """Put lines into a code block whose fence is longer than any run of backticks in them."""
    content = "\n".join(map(printable, lines))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", content)), default=0))
    return f"{fence}{language}\n{content}\n{fence}"


def table(rows: Sequence[Sequence[str]], sides: str) -> str:
    """Write rows, the first of them the heads, as a table; ``sides`` says "l" or "r" for every column."""
    head, *body = ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]
    rule = "|" + "|".join({"l": "---", "r": "--:"}[side] for side in sides) + "|"
    return "\n".join([head, rule, *body])


def listed(items: Sequence[str]) -> str:
    """Write sentences as a list."""
    return "\n".join(f"- {escaped(item)}" for item in items)


def _blocks(report: Report) -> Iterator[str]:
    words = {key: escaped(word) for key, word in report.words.items()}
    yield f"# {escaped(report.title)}"
    yield fenced([report.subject])
    yield f"## {words['idea']}"
    yield from map(escaped, report.idea)
    if report.formula:
        yield f"## {words['formula']}"
        yield fenced(report.formula)
        if report.notation:
            yield listed(report.notation)
        yield f"### {words['code']}"
        yield fenced(report.code, "python")
    if report.symbols:
        yield f"## {words['symbols']}"
        yield table(symbol_rows(report), "lllrl")
    if any(row.reasons for row in report.symbols):
        yield f"## {words['why']}"
        yield "\n".join(_reasons(row) for row in report.symbols if row.reasons)
    if report.totals:
        yield f"## {words['totals']}"
        yield "\n".join(f"- **{total.count:,}** {escaped(total.label)}" for total in report.totals)
    if report.cost is not None:
        yield f"## {words['cost']}"
        rows = [("", report.cost.scope), *cost_rows(report.cost, report.words)]
        yield table(rows, "rl")
        if report.cost.uncounted:
            names = report.words["comma"].join(report.cost.uncounted)
            yield escaped(report.words["uncounted"] + report.words["colon"] + names)
        yield escaped(report.cost.convention)
    if report.steps:
        yield f"## {words['steps']}"
        for step in report.steps:
            yield from _step(step, report)
    if report.check is not None:
        yield f"## {words['check']}"
        yield escaped(report.check.text)
    if report.notes:
        yield f"## {words['notes']}"
        yield listed(report.notes)


def _reasons(row: SymbolRow) -> str:
    first, *further = map(escaped, row.reasons)
    return "\n".join([f"- **{escaped(row.name)}** {first}", *(f"  - {reason}" for reason in further)])


def _step(step: Step, report: Report) -> Iterator[str]:
    """Sentences as paragraphs; values and drawings, aligned, as code."""
    yield f"### {escaped(step.title)}"
    for sentences, group in groupby(step.parts, lambda part: isinstance(part, str)):
        if sentences:
            yield from (escaped(part) for part in group if isinstance(part, str))
        else:
            parts: list[Values | Picture] = [part for part in group if not isinstance(part, str)]
            yield fenced(_flush(lines_of(parts, report, WIDTH)))


def _flush(lines: Sequence[str]) -> list[str]:
    """Take away the indentation that all lines share, and empty lines at the ends."""
    shared = min((len(line) - len(line.lstrip(" ")) for line in lines if line), default=0)
    return "\n".join(line[shared:] for line in lines).strip("\n").split("\n")
