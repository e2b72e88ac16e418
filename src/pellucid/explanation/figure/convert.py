"""PNG and PDF of a figure, by vl-convert, which needs neither a browser nor a library of the system."""

from __future__ import annotations

import functools
from types import ModuleType

from pellucid.explanation.figure.measure import has_chinese

SCALE = 2  # pixels of a PNG for each pixel of the SVG
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


def png(svg: str) -> bytes:
    """Return a figure as PNG, two pixels for each pixel of the SVG.

    Raises:
        ImportError: the converter is not installed. RuntimeError: the figure has Chinese in it, and no typeface on
            this machine does.
    """
    return converter().svg_to_png(legible(svg), scale=SCALE)


def pdf(svg: str) -> bytes:
    """Return a figure as PDF; its text is text, to be searched and copied. It raises what `png` raises."""
    return converter().svg_to_pdf(legible(svg))


def legible(svg: str) -> str:
    """Return a figure whose characters the typefaces of this machine have; see `png`."""
    if has_chinese(svg) and not shows_chinese():
        raise RuntimeError(NO_CHINESE)
    return svg


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
