"""What every report can do to reach its reader.

A renderer imports the tree that it draws, so that a report imports a renderer only where that is asked for.
"""

from __future__ import annotations

from collections.abc import Collection
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pellucid.explanation.model.tree import ModelReport
    from pellucid.explanation.report import Report


class Presented:
    """A report that can be printed, saved, opened in the browser and shown in a notebook."""

    subject: str

    def text(self, width: int = 100) -> str:
        """Return the explanation as plain text of at most ``width`` columns."""
        from pellucid.explanation.terminal import text

        return text(cast("Report", self), width)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the explanation to a file; its ending says as what.

        ``.html`` is the page, one file that needs nothing else; ``.md`` is Markdown, ``.txt`` the text, of a model the
        whole tree; ``.json`` is this tree with all numbers, which ``pellucid.explanation.load`` reads again; of a
        single layer ``.svg``, ``.png`` and ``.pdf`` are a drawing. The file is whole or, where something fails, as it
        was before.

        Returns:
            The file.

        Raises:
            ValueError: an ending that there is no kind of file for. OSError: a folder that is not there, a path that
                cannot be written.
        """
        from pellucid.explanation.saving import save

        return save(cast("Report | ModelReport", self), path)

    def show(self) -> Path | None:
        """Show the page: in a notebook where the cell stands, elsewhere in the browser.

        Returns:
            Outside a notebook the file that the browser was given; it says where that is if no browser was found.
        """
        from pellucid.explanation.notebook import show

        return show(cast("Report | ModelReport", self))

    def _repr_mimebundle_(
        self, include: Collection[str] | None = None, exclude: Collection[str] | None = None
    ) -> dict[str, Any]:
        from pellucid.explanation.notebook import value_of_cell

        return value_of_cell(cast("Report | ModelReport", self), include, exclude)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<Report on {self.subject}>"
