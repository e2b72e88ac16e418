"""Which exhibits a page has; each is a folder beside this file: its numbers (data.py), picture (view.js) and words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pellucid.explanation.dropout import DropoutExplained
from pellucid.explanation.normalization import NormalizationExplained
from pellucid.explanation.page.dropout import data as dropout
from pellucid.explanation.page.normalization.data import exhibit as normalization
from pellucid.explanation.page.recurrence.data import recurrence
from pellucid.explanation.recurrent import RecurrentExplained
from pellucid.explanation.report import Exhibit

# What makes the exhibit of each kind of explanation; None where there is nothing to play with, as for an empty input.
EXHIBITS: dict[type, Callable[[Any], Exhibit | None]] = {
    RecurrentExplained: recurrence,
    NormalizationExplained: normalization,
    DropoutExplained: dropout.exhibit,
}


def exhibits_of(explained: Any) -> tuple[Exhibit, ...]:
    """Work out the interactive pictures of what has been explained: those of the nearest class in the table."""
    for kind in type(explained).__mro__:
        if kind in EXHIBITS:
            exhibit = EXHIBITS[kind](explained)
            return () if exhibit is None else (exhibit,)
    return ()
