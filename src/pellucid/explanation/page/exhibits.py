"""Which exhibits a page has; each is a folder beside this file: its numbers (data.py), picture (view.js) and words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pellucid.explanation.dropout import DropoutExplained
from pellucid.explanation.normalization import NormalizationExplained
from pellucid.explanation.page.convolution import data as convolution
from pellucid.explanation.page.dropout import data as dropout
from pellucid.explanation.page.normalization import data as normalization
from pellucid.explanation.page.recurrence import data as recurrence
from pellucid.explanation.recurrent import RecurrentExplained
from pellucid.explanation.report import Exhibit, Report
from pellucid.explanation.tcn import TCNExplained
from pellucid.explanation.text_convolution import TextConvExplained
from pellucid.explanation.windowed import ConvolutionExplained, PoolingExplained

# What makes the exhibit of each kind of explanation; None where there is nothing to play with, as for an empty input.
EXHIBITS: dict[type, Callable[[Any], Exhibit | None]] = {
    RecurrentExplained: recurrence.recurrence,
    NormalizationExplained: normalization.exhibit,
    DropoutExplained: dropout.exhibit,
    ConvolutionExplained: convolution.convolution,
    PoolingExplained: convolution.pooling,
    TextConvExplained: convolution.text,
    TCNExplained: convolution.network,
}


def exhibits_of(report: Report) -> tuple[Exhibit, ...]:
    """Work out the interactive pictures of a report; one without its origin has none.

    Raises:
        RuntimeError: the layer or its input has changed since it was explained.
    """
    return () if report.origin is None else report.origin.ask(_exhibits)


def _exhibits(explained: Any) -> tuple[Exhibit, ...]:
    """Those of the nearest class in the table."""
    for kind in type(explained).__mro__:
        if kind in EXHIBITS:
            exhibit = EXHIBITS[kind](explained)
            return () if exhibit is None else (exhibit,)
    return ()
