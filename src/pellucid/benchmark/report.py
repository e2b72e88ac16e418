"""What a run of the benchmark has found so far: on paper after every row, so that a run that is stopped leaves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pellucid.benchmark.comparison import Failed, Figure, Row, Skipped
from pellucid.benchmark.gpu import Beside
from pellucid.benchmark.limit import Rates
from pellucid.benchmark.table import markdown
from pellucid.files import write_json, write_whole


@dataclass
class Report:
    """Figures by section; why a row was left out, and how one broke, by its section and name.

    ``path`` and ``table`` are files for JSON and Markdown.
    """

    machine: Mapping[str, Any]
    rates: Rates
    path: Path | None = None
    table: Path | None = None
    figures: dict[str, list[Figure]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def measure(
        self,
        rows: Sequence[Row],
        measure: Callable[[Row], Figure],
        late: Callable[[], str | None],
        begin: Callable[[str], Any],
    ) -> None:
        """Measure rows one after the other, and write what is known after each.

        Args:
            rows: they come in tables by their sections.
            measure: what measures a row; it raises `Skipped` or `Failed` where that cannot be.
            late: why no further row is begun; None while one is.
            begin: is told every row that begins.
        """
        self.figures = {row.section: [] for row in rows}
        for row in rows:
            called = f"{row.section}: {row.name}"
            begin(called)
            try:
                reason = late()
                if reason:
                    raise Skipped(reason)
                self.figures[row.section].append(measure(row))
            except Skipped as skipped:
                self.left_out[called] = str(skipped)
            except Failed as failure:
                self.failed[called] = str(failure)
            self.write()

    def write(self) -> None:
        """Put the files in place, each whole."""
        if self.path:
            figures = {section: [asdict(f) for f in found] for section, found in self.figures.items()}
            content = {"machine": self.machine, "rates": asdict(self.rates), "figures": figures}
            write_json(self.path, {**content, "left out": self.left_out, "failed": self.failed})
        if self.table:
            notes = "".join(f"- {line}\n" for line in [*self.notes(), *self.complaints(), self.where()])
            text = f"{markdown(self.figures)}\n{notes}"
            write_whole(self.table, lambda file: file.write(text.encode()))

    def notes(self) -> list[str]:
        """What was left out, and which opponents, with the reasons."""
        missing = [
            f"left out: {section}: {figure.row}: {opponent}: {reason}"
            for section, found in self.figures.items()
            for figure in found
            if isinstance(figure, Beside)
            for opponent, reason in figure.missing.items()
        ]
        return [*(f"left out: {called}: {reason}" for called, reason in self.left_out.items()), *missing]

    def complaints(self, check: bool = False) -> list[str]:
        """The rows that fail: those that broke or differ, and with ``check`` those that miss a floor."""
        found = [f"{called}: {failure}" for called, failure in self.failed.items()]
        for section, figures in self.figures.items():
            for figure in figures:
                differing = [a for a in figure.agreements if not a.passed]
                shortfall = figure.shortfall() if check else None
                if differing:
                    shortfall = differing[0].differing()
                if shortfall:
                    found.append(f"{section}: {figure.row}: {shortfall}")
        return found

    def where(self) -> str:
        """The machine and its rates in a line."""
        return (
            f"measured limit: {self.rates.flops / 1e9:.0f} GFLOP/s in a matrix product, {self.rates.bytes / 1e9:.1f} "
            f"GB/s in a copy, {self.rates.dtype}\n"
            f"{', '.join(f'{name} {value}' for name, value in self.machine.items())}"
        )
