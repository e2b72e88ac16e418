"""Tables that the recipes print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

WIDTH = 20  # columns of a bar that stands for certainty


def confusion_table(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> Table:
    """Lay out how often each class, a row, was taken for each class, a column."""
    table = Table(box=None, padding=(0, 1))
    table.add_column("", style="bold", justify="right")
    for name in classes:
        table.add_column(name, justify="right")
    for row, (name, counts) in enumerate(zip(classes, confusion, strict=True)):
        styles = ["green" if column == row else "red" for column in range(len(counts))]
        cells = [Text(str(n), style) if n else Text("·", "dim") for n, style in zip(counts, styles, strict=True)]
        table.add_row(name, *cells)
    return table


def probability_table(names: Sequence[str], probabilities: Sequence[float]) -> Table:
    """Lay out the probability of each class, as a bar and as a number."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    greatest = max(probabilities)
    for name, probability in zip(names, probabilities, strict=True):
        bar = Text("█" * round(probability * WIDTH), "green" if probability == greatest else "dim")
        table.add_row(name, f"{probability:.3f}", bar)
    return table
