"""PNG and PDF of a figure, by vl-convert, which needs neither a browser nor a library of the system."""

from __future__ import annotations

import functools
from types import ModuleType

from pellucid.explanation.figure.measure import has_chinese
from pellucid.explanation.report import Report

PROBE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40">'
    '<text x="4" y="30" font-size="24" font-family="sans-serif">{}</text></svg>'
)
MISSING = "figures: PNG and PDF need the converter vl-convert: pip install 'pellucid[figures]'. An SVG needs nothing."
NO_CHINESE = (
    "figures: the text is Chinese, but no typeface on this machine has its characters, so the picture would show empty "
    "boxes. Debian and Ubuntu: apt-get install fonts-noto-cjk; Fedora: dnf install google-noto-sans-cjk-fonts; macOS "
    "and Windows come with one. An SVG uses the typefaces of whoever opens it."
)


def png(report: Report, scale: float = 2, scheme: str = "light") -> bytes:
    """Return the figure as PNG, ``scale`` pixels for each pixel of the SVG.

    Raises:
        ImportError: the converter is not installed. RuntimeError: the figure has Chinese in it, and no typeface on
            this machine does.
    """
    return converter().svg_to_png(drawn(report, scheme), scale=scale)


def pdf(report: Report, scheme: str = "light") -> bytes:
    """Return the figure as PDF; its text is text, to be searched and copied. It raises what `png` raises."""
    return converter().svg_to_pdf(drawn(report, scheme))


def drawn(report: Report, scheme: str) -> str:
    """Return the SVG for the converter, which knows one scheme only."""
    from pellucid.explanation.figure import svg  # the package itself

    if scheme not in ("light", "dark"):
        raise ValueError(f"scheme={scheme!r}: a PNG or PDF has the scheme 'light' or 'dark'")
    content = svg(report, scheme)
    if has_chinese(content) and not shows_chinese():
        raise RuntimeError(NO_CHINESE)
    return content


def converter() -> ModuleType:
    """Return the converter's module."""
    try:
        import vl_convert
    except ImportError as error:
        raise ImportError(MISSING) from error
    return vl_convert


@functools.cache
def shows_chinese() -> bool:
    """Whether a typeface has Chinese: without one, different characters are drawn as the same empty box."""
    one, other = (converter().svg_to_png(PROBE.format(character)) for character in "你个")
    return one != other
