"""How a report shows itself: in a notebook, in IPython's terminal, and where there is neither."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

from pellucid.explanation import figure, page
from pellucid.explanation.model.terminal import write as write_model
from pellucid.explanation.model.tree import ModelReport
from pellucid.explanation.report import Report
from pellucid.explanation.saving import opened
from pellucid.explanation.terminal import write
from pellucid.explanation.texts import Texts

HEIGHT = 640  # pixels of the frame, until the page has said how high it is
# A page posts its height whenever that changes. One listener serves all frames: it takes a number, from a frame's own
# window, and sets that frame's height with it.
LISTEN = """<script>
if (!window.pellucidFrames) {
  window.pellucidFrames = true;
  addEventListener("message", ({ data, source }) => {
    const height = data ? Number(data.pellucidHeight) : NaN;
    if (!(height >= 0)) return;
    for (const frame of document.querySelectorAll("iframe.pellucid"))
      if (frame.contentWindow === source) frame.style.height = `${Math.min(Math.max(height, 100), 30000)}px`;
  });
}
</script>
"""

AnyReport = Report | ModelReport
_shown: list[AnyReport] = []  # what `explain` has shown in the cell that is running


def shell() -> Any:
    """Return the running IPython, None without one."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def in_notebook() -> bool:
    """Whether a front end of Jupyter shows what is displayed; IPython's terminal is none."""
    return hasattr(shell(), "kernel")


def explained(report: AnyReport, width: int | None = None, depth: int | None = None) -> None:
    """Show a report that ``explain`` has made: the page in a notebook, text elsewhere, of a model to a depth."""
    if in_notebook():
        display(report)
    elif isinstance(report, ModelReport):
        write_model(report, Console(width=width, highlight=False), depth)
    else:
        write(report, Console(width=width, highlight=False))
    if (running := shell()) is not None:
        running.events.register("post_execute", _forget)  # once, however often
        _shown.append(report)


def _forget() -> None:
    _shown.clear()


def show(report: AnyReport) -> Path | None:
    """Display a report in a notebook; elsewhere open its page in the browser and return the file."""
    if in_notebook():
        display(report)
        return None
    path, found = opened(report)
    if not found:
        print(Texts(report.lang)("show.no_browser", path=path))
    return path


def display(report: AnyReport) -> None:
    """Send a report to the notebook."""
    from IPython.display import display as send

    send(bundle(report), raw=True)


def value_of_cell(
    report: AnyReport, include: Collection[str] | None, exclude: Collection[str] | None
) -> dict[str, str]:
    """Return what IPython shows of a report that it displays; of one that `explain` has just shown, its name only."""
    if any(shown is report for shown in _shown):
        _shown[:] = [shown for shown in _shown if shown is not report]
        return {"text/plain": repr(report)}
    if include is None and not in_notebook():
        include = ("text/plain",)
    return bundle(report, include, exclude)


def bundle(
    report: AnyReport, include: Collection[str] | None = None, exclude: Collection[str] | None = None
) -> dict[str, str]:
    """Return a report as text, static drawing and page, by MIME type."""
    kinds: dict[str, Callable[[Any], str]] = {"text/plain": str, "image/svg+xml": figure.svg, "text/html": framed}
    if isinstance(report, ModelReport):
        del kinds["image/svg+xml"]
    wanted = [kind for kind in kinds if (include is None or kind in include) and kind not in (exclude or ())]
    return {kind: kinds[kind](report) for kind in wanted}


def framed(report: AnyReport) -> str:
    """Return the page in a frame of its own: its script runs, but reaches nothing of the notebook.

    The frame grows to the page's height. Where the notebook runs no scripts it keeps its height, and scrolls.
    """
    style = f"width: 100%; height: {HEIGHT}px; border: 0;"
    missing = escape(Texts(report.lang)("show.no_frame"))
    return (
        f'{LISTEN}<iframe class="pellucid" title="{escape(report.title)}" sandbox="allow-scripts" style="{style}" '
        f'srcdoc="{escape(page.html(report))}">{missing}</iframe>\n'
    )
