"""Static figures of an explanation: SVG, and PNG and PDF through a converter."""

from __future__ import annotations

from pellucid.explanation.figure import convert
from pellucid.explanation.figure.describe import described
from pellucid.explanation.figure.poster import Part, part_sheet, poster_sheet
from pellucid.explanation.report import Report
from pellucid.explanation.texts import Texts

__all__ = ["drawing", "pdf", "png", "svg", "thumbnail"]

MARGIN = 30
CARD = 480.0  # how wide a thumbnail may be, beside its margins


def svg(report: Report, scheme: str = "auto") -> str:
    """Draw the whole explanation as one picture: title, formula, drawings, the table of shapes, the check.

    ``scheme`` is "light", "dark", or "auto", which follows what the reader's system prefers.
    """
    description = Texts(report.lang)("alt.poster", subject=report.subject)
    return poster_sheet(report).svg(report.title, description, scheme, MARGIN) + "\n"


def png(report: Report) -> bytes:
    """Draw the same as PNG; see `convert.png`."""
    return convert.png(svg(report, "light"))


def pdf(report: Report) -> bytes:
    """Draw the same as PDF; see `convert.pdf`."""
    return convert.pdf(svg(report, "light"))


def thumbnail(report: Report) -> str:
    """Draw the first drawing alone, for a card that says the rest; the whole explanation where there is none."""
    if not report.figures:
        return svg(report)
    part = report.figures[0]
    return part_sheet(part, CARD, report).svg(*described(part, Texts(report.lang)), "auto", MARGIN / 2) + "\n"


def drawing(part: Part, report: Report, width: float = 720) -> str:
    """Draw one part of the tree as an inline ``<svg>`` with a title and a text alternative.

    Ink is ``currentColor``; a page changes the colors by the properties ``--figure-ink``, ``-muted``, ``-line``,
    ``-warm`` and ``-cool``. What is wider than ``width`` is shown in part where that is possible, and says
    so.
    """
    sheet = part_sheet(part, width, report)
    return sheet.svg(*described(part, Texts(report.lang)), "inline")
