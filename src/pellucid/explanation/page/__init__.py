"""The page: one self-contained HTML file that shows a report in every language, with pictures to play with."""

from __future__ import annotations

from pellucid.explanation.model.tree import ModelReport
from pellucid.explanation.page.document import Document
from pellucid.explanation.page.exhibits import exhibits_of
from pellucid.explanation.page.model.document import ModelDocument
from pellucid.explanation.report import Report

__all__ = ["html"]


def html(report: Report | ModelReport) -> str:
    """Write a report as a page: no network, no script but its own; readable without JavaScript.

    Raises:
        RuntimeError: the layer or its input has changed since it was explained.
    """
    if isinstance(report, ModelReport):
        return ModelDocument(report.translations()).html()
    return Document(report.translations(), exhibits_of(report)).html()
