"""The files that a report is saved as: one ending, one renderer."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pellucid.explanation import figure, page
from pellucid.explanation.markdown import markdown
from pellucid.explanation.model.markdown import markdown as model_markdown
from pellucid.explanation.model.tree import ModelReport
from pellucid.explanation.report import Report
from pellucid.explanation.serialization import dumps
from pellucid.files import write_whole


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # half a surrogate pair is no character


def _page(report: Report | ModelReport) -> bytes:
    return _encoded(page.html(report))


def _json(report: Report | ModelReport) -> bytes:
    return dumps(report).encode("utf-8", "backslashreplace")  # half a surrogate pair: JSON's own \uXXXX


RENDERERS: dict[str, Callable[[Report], bytes]] = {
    ".html": _page,
    ".svg": lambda report: _encoded(figure.svg(report)),
    ".png": lambda report: figure.png(report),
    ".pdf": lambda report: figure.pdf(report),
    ".md": lambda report: _encoded(markdown(report)),
    ".json": _json,
    ".txt": lambda report: _encoded(report.text()),
}
OF_MODELS: dict[str, Callable[[ModelReport], bytes]] = {
    ".html": _page,
    ".md": lambda report: _encoded(model_markdown(report)),
    ".json": _json,
    ".txt": lambda report: _encoded(report.text(depth=len(report.rows()))),
}


def endings(report: Report | ModelReport) -> tuple[str, ...]:
    """Return the endings of the files that a report can be saved as."""
    return tuple(OF_MODELS if isinstance(report, ModelReport) else RENDERERS)


def save(report: Report | ModelReport, path: str | os.PathLike[str]) -> Path:
    """Write a report as the kind of file that the path's ending names; see `Report.save`."""
    path = destination(path, endings(report))
    write(path, rendered(report, path))
    return path


def destination(path: str | os.PathLike[str], known: Sequence[str] = tuple(RENDERERS)) -> Path:
    """Return the path of a file to be written, with ``~`` expanded; nothing is computed or written yet.

    Raises:
        ValueError: no report is saved with this ending. OSError: nothing can be written there.
    """
    path = Path(path).expanduser()
    with _named(path):
        if path.is_dir():
            inside = path / f"report{path.suffix or '.html'}"
            raise IsADirectoryError(f"save: {path} is a folder; name a file in it, {inside}")
        if path.suffix.lower() not in known:
            ending = f"ends in {path.suffix!r}" if path.suffix else "has no ending"
            raise ValueError(
                f"save: {str(path)!r} {ending}, but the ending says what to write: {', '.join(known)}. "
                f"For a page write {str(path.with_suffix('.html'))!r}."
            )
        if not path.parent.is_dir():
            raise FileNotFoundError(f"save: there is no folder {path.parent}; make it first, or name another")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(f"save: {path} is there and may not be written; name another file")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"save: the folder {path.parent} may not be written; name another")
    return path


def rendered(report: Report | ModelReport, path: Path) -> bytes:
    """Return what a file of this ending holds."""
    if isinstance(report, ModelReport):
        return OF_MODELS[destination(path, endings(report)).suffix.lower()](report)
    return RENDERERS[path.suffix.lower()](report)


def write(path: Path, content: bytes) -> None:
    """Write a file that is whole or, where that fails, as it was."""
    with _named(path):
        write_whole(path, lambda file: file.write(content))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an error of the system say which file could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(f"save: {path} cannot be written: {error.strerror}") from error


def opened(report: Report | ModelReport) -> tuple[Path, bool]:
    """Write the page of a report to a temporary folder and open it in the browser.

    Returns:
        The file, and whether a browser was found for it.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", report.subject.partition("(")[0]).strip("-").lower()[:60] or "report"
    content = _page(report)
    folder = Path(tempfile.mkdtemp(prefix="pellucid-"))
    path = folder / f"{name}.html"
    try:
        write(path, content)
    except BaseException:
        folder.rmdir()
        raise
    try:
        return path, webbrowser.open(path.as_uri())
    except webbrowser.Error:
        return path, False
