"""A sheet that is drawn on: texts, boxes, lines and hatching as SVG, with the colors of a scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from pellucid.explanation.figure.measure import KINDS, has_chinese, plain, width

Box = tuple[float, float, float, float]  # x, y, width, height

SANS = 'system-ui,"Segoe UI","Noto Sans","DejaVu Sans"'
MONO = 'ui-monospace,Menlo,Consolas,"DejaVu Sans Mono"'
CHINESE = '"PingFang SC","Microsoft YaHei","Noto Sans CJK SC","Source Han Sans SC"'
LIGHT = {
    "ink": "#1f2328", "muted": "#59636e", "paper": "#ffffff", "line": "#8c959f",
    "warm": "#d9730d", "cool": "#2166ac",
}  # fmt: skip
DARK = {
    "ink": "#e8eaed", "muted": "#a6afba", "paper": "#14171c", "line": "#76808c",
    "warm": "#f0a04b", "cool": "#6cb0ee",
}  # fmt: skip
INLINE = {name: f"var(--figure-{name},{color})" for name, color in LIGHT.items()} | {
    "ink": "var(--figure-ink,currentColor)",
    "muted": "var(--figure-muted,currentColor)",
}
SCHEMES = ("auto", "light", "dark", "inline")
BOXES = {
    "plain": "fill:none;stroke:{line};stroke-width:.75",
    "dashed": "fill:none;stroke:{line};stroke-dasharray:3 2",
    "cool": "fill:{cool};fill-opacity:.22;stroke:{cool}",
    "warm": "fill:{warm};fill-opacity:.3;stroke:{warm};stroke-width:2",
    "panel": "fill:{line};fill-opacity:.14",
    "paper": "fill:{paper}",
    "cell": "fill:{cool};fill-opacity:.14;stroke:{cool};stroke-width:1.5",
    "tint-warm": "fill:{warm};stroke:{line};stroke-width:.75",
    "tint-cool": "fill:{cool};stroke:{line};stroke-width:.75",
}
LINES = {
    "arrow": "fill:none;stroke:{ink};stroke-width:1.25",
    "head": "fill:{ink}",
    "thin": "fill:none;stroke:{line};stroke-dasharray:2 3",
    "rule": "fill:none;stroke:{line};stroke-width:.75",
    "hatch": "fill:none;stroke:{cool};stroke-opacity:.5",
    "cross": "fill:none;stroke:{warm};stroke-opacity:.6",
}


class Sheet:
    """Marks on a plane that grows with them; y points downwards and texts stand on their baseline."""

    def __init__(self) -> None:
        self.width = self.height = 0.0
        self.marks: list[str] = []

    def grow(self, right: float, bottom: float) -> None:
        """Be at least this large."""
        self.width, self.height = max(self.width, right), max(self.height, bottom)

    def text(self, x: float, y: float, content: str, kind: str = "text", anchor: str = "start") -> None:
        """Write one line; ``anchor`` says which part of it stands at x: start, middle or end."""
        content = plain(content)
        if not content.strip():
            return
        share = {"start": 1.0, "middle": 0.5, "end": 0.0}[anchor]
        self.grow(x + share * width(content, kind), y + 0.3 * KINDS[kind].size)
        classes = f"pf-{kind}" + (" pf-zh" if has_chinese(content) else "")
        place = "" if anchor == "start" else f' text-anchor="{anchor}"'
        written = escape(content, quote=False)
        self.marks.append(f'<text class="{classes}" x="{short(x)}" y="{short(y)}"{place}>{written}</text>')

    def box(self, kind: str, *boxes: Box, opacity: float | None = None, radius: float = 0) -> None:
        """Draw boxes of one kind."""
        if not boxes:
            return
        self.grow(max(x + w for x, _, w, _ in boxes), max(y + h for _, y, _, h in boxes))
        tint = "" if opacity is None else f' fill-opacity="{short(opacity)}"'
        if radius:
            for x, y, w, h in boxes:
                size = f'width="{short(w)}" height="{short(h)}" rx="{short(radius)}"'
                self.marks.append(f'<rect class="pf-{kind}"{tint} x="{short(x)}" y="{short(y)}" {size}/>')
            return
        path = "".join(f"M{short(x)} {short(y)}h{short(w)}v{short(h)}h{short(-w)}z" for x, y, w, h in boxes)
        self.marks.append(f'<path class="pf-{kind}"{tint} d="{path}"/>')

    def hatch(self, kind: str, *boxes: Box, step: float = 6) -> None:
        """Hatch boxes: "hatch" in one direction, "cross" in both."""
        path = ""
        for x, y, w, h in boxes:
            for falling in (False, True)[: 1 + (kind == "cross")]:
                path += "".join(
                    f"M{short(a)} {short(b)}L{short(c)} {short(d)}"
                    for a, b, c, d in _strokes(x, y, w, h, step, falling)
                )
        if path:
            self.marks.append(f'<path class="pf-{kind}" d="{path}"/>')

    def line(self, *points: tuple[float, float], kind: str = "rule") -> None:
        """Draw a line through points."""
        self.grow(max(x for x, _ in points), max(y for _, y in points))
        path = "M" + "L".join(f"{short(x)} {short(y)}" for x, y in points)
        self.marks.append(f'<path class="pf-{kind}" d="{path}"/>')

    def arrow(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw an arrow along one axis."""
        (x0, y0), (x1, y1) = start, end
        dx, dy = ((x1 > x0) - (x1 < x0)) * 6.0, ((y1 > y0) - (y1 < y0)) * 6.0
        self.line(start, (x1 - dx, y1 - dy), kind="arrow")
        left, right = (x1 - dx - dy / 2, y1 - dy - dx / 2), (x1 - dx + dy / 2, y1 - dy + dx / 2)
        points = "L".join(f"{short(x)} {short(y)}" for x, y in ((x1, y1), left, right))
        self.marks.append(f'<path class="pf-head" d="M{points}z"/>')

    def put(self, x: float, y: float, other: Sheet) -> None:
        """Lay another sheet on this one, its corner at (x, y)."""
        self.grow(x + other.width, y + other.height)
        if other.marks:
            self.marks.append(f'<g transform="translate({short(x)} {short(y)})">{"".join(other.marks)}</g>')

    def svg(self, title: str, description: str, scheme: str, margin: float = 2) -> str:
        """Write the sheet as one SVG element with a title and a description."""
        wide, high = short(self.width + 2 * margin), short(self.height + 2 * margin)
        size = f'viewBox="{short(-margin)} {short(-margin)} {wide} {high}" width="{wide}" height="{high}"'
        words = (
            f"<title>{escape(plain(title), quote=False)}</title><desc>{escape(plain(description), quote=False)}</desc>"
        )
        paper = (
            ""
            if scheme == "inline"
            else f'<path class="pf-paper" d="M{short(-margin)} {short(-margin)}h{wide}v{high}H{short(-margin)}z"/>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="pellucid-figure" role="img" {size}>{words}'
            f"<style>{style(scheme)}</style>{paper}{''.join(self.marks)}</svg>"
        )


def stacked(sheets: Sequence[Sheet], gap: float = 14) -> Sheet:
    """Lay sheets under one another."""
    found = Sheet()
    for sheet in sheets:
        found.put(0, found.height + gap if found.height else 0, sheet)
    return found


def flowing(sheets: Sequence[Sheet], room: float, gap: float = 24) -> Sheet:
    """Lay sheets beside one another, in bands that fit the room; a band's sheets stand on one top line."""
    found, band = Sheet(), Sheet()
    for sheet in sheets:
        if band.width and band.width + gap + sheet.width > room:
            found.put(0, found.height + gap * 0.7 if found.height else 0, band)
            band = Sheet()
        band.put(band.width + gap if band.width else 0, 0, sheet)
    found.put(0, found.height + gap * 0.7 if found.height else 0, band)
    return found


def style(scheme: str) -> str:
    """Write the rules of a scheme: "auto" follows the reader's preference, "inline" the page's own colors."""
    if scheme not in SCHEMES:
        raise ValueError(f"scheme={scheme!r}: a figure is drawn in one of {', '.join(map(repr, SCHEMES))}")
    colors: Mapping[str, str] = {"dark": DARK, "inline": INLINE}.get(scheme, LIGHT)
    dark = f"@media (prefers-color-scheme:dark){{{_colored(DARK)}}}" if scheme == "auto" else ""
    return _typefaces() + _colored(colors) + dark


def _colored(colors: Mapping[str, str]) -> str:
    texts = "".join(f".pf-{kind}{{fill:{{{'muted' if k.muted else 'ink'}}}}}" for kind, k in KINDS.items())
    shapes = "".join(f".pf-{kind}{{{rule}}}" for kind, rule in (BOXES | LINES).items())
    for name, color in colors.items():
        texts, shapes = (part.replace(f"{{{name}}}", color) for part in (texts, shapes))
    return texts + shapes


def _typefaces() -> str:
    rules = ""
    for kind, k in KINDS.items():
        family, generic = (MONO, "monospace") if k.mono else (SANS, "sans-serif")
        weight = ";font-weight:700" if k.bold else ""
        rules += f".pf-{kind}{{font-family:{family},{CHINESE},{generic};font-size:{short(k.size)}px{weight}}}"
    return rules + f".pf-zh{{font-family:{CHINESE},sans-serif}}"


def _strokes(x: float, y: float, w: float, h: float, step: float, falling: bool) -> list[Box]:
    """Return the diagonal strokes of a box as (x, y) to (x, y)."""
    found = []
    for offset in range(int(step / 2), int(w + h), int(step)):
        a, b = max(0.0, offset - h), min(float(offset), w)  # from (a, offset − a) up to (b, offset − b)
        start, end = (a, offset - a), (b, offset - b)
        if falling:
            start, end = (a, h - start[1]), (b, h - end[1])
        found.append((x + start[0], y + start[1], x + end[0], y + end[1]))
    return found


def short(number: float) -> str:
    """Write a coordinate with at most one decimal."""
    return f"{number:.1f}".removesuffix(".0").replace("-0.0", "0") if abs(number) >= 0.05 else "0"
