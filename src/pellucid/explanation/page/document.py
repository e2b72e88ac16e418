"""The HTML around the exhibits: every section of the report, in every language, one of which is shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from html import escape

from pellucid.explanation.figure import drawing
from pellucid.explanation.page.arrays import as_json
from pellucid.explanation.page.script import script, style
from pellucid.explanation.page.words import words
from pellucid.explanation.report import Exhibit, Picture, Report, Rows, Step, SymbolRow, Unrolled, Values
from pellucid.explanation.typesetting import cost_rows, numbers_of, portion, starts_block

Renderer = Callable[[Report], str]


class Document:
    """One page.

    Args:
        reports: the same report in every language, the one that is shown first in front.
        exhibits: its interactive pictures.
    """

    def __init__(self, reports: Sequence[Report], exhibits: Sequence[Exhibit]) -> None:
        self.reports, self.exhibits = reports, exhibits
        self.first = reports[0]
        self.kinds = list(dict.fromkeys(exhibit.kind for exhibit in exhibits))

    def html(self) -> str:
        """Write the page."""
        lang = self.first.lang
        return (
            f'<!doctype html>\n<html lang="{lang}" data-lang="{lang}">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{_text(self.first.title)}</title>\n<style>\n{style(self.kinds)}</style>\n</head>\n"
            f"<body>\n{self.bar()}<main>\n{self.body()}</main>\n"
            f'<script type="application/json" id="page-data">{as_json(self.data())}</script>\n'
            f'<script type="module">\n{script(self.kinds)}</script>\n</body>\n</html>\n'
        )

    def data(self) -> dict[str, object]:
        """What the script reads."""
        langs = [report.lang for report in self.reports]
        own = {lang: {kind: words(kind, lang) for kind in self.kinds} | {"page": words("core", lang)} for lang in langs}
        exhibits = [{"kind": exhibit.kind, "data": exhibit.data} for exhibit in self.exhibits]
        titles = {report.lang: report.title for report in self.reports}
        return {"lang": langs[0], "languages": langs, "titles": titles, "words": own, "exhibits": exhibits}

    # -- languages ----------------------------------------------------------------------------------------------

    def spoken(self, render: Renderer, tag: str = "div") -> str:
        """Write something in every language; once where all say the same."""
        parts = {report.lang: render(report) for report in self.reports}
        if len(set(parts.values())) == 1:
            return next(iter(parts.values()))
        return "".join(f'<{tag} class="spoken" lang="{lang}">{part}</{tag}>' for lang, part in parts.items())

    def word(self, key: str, tag: str = "span") -> str:
        """Write one of the page's own words in every language."""
        return self.spoken(lambda report: _text(words("core", report.lang)[key]), tag)

    def section(self, key: str, content: str) -> str:
        """Put content under the heading of a word; nothing where there is no content."""
        heading = self.spoken(lambda report: _text(report.words[key]), "span")
        return f"<section{self.anchor(key)}><h2>{heading}</h2>\n{content}</section>\n" if content else ""

    def anchor(self, key: str) -> str:
        """Name an element of the page, as an attribute."""
        return f' id="{key}"'

    # -- the page's parts ---------------------------------------------------------------------------------------

    def bar(self) -> str:
        """The choice of language and colours."""
        speak = "".join(
            f'<button type="button" data-speak="{report.lang}" lang="{report.lang}">'
            f"{_text(words('core', report.lang)['language'])}</button>"
            for report in self.reports
        )
        colours = "".join(
            f'<button type="button" data-colour="{theme}">{self.word(theme)}</button>'
            for theme in ("auto", "light", "dark")
        )
        choose = f'<div role="group" aria-label="中文 / English">{speak}</div>\n' if len(self.reports) > 1 else ""
        return f'<header class="top">\n{choose}<div role="group" aria-label="◐">{colours}</div>\n</header>\n'

    def body(self) -> str:
        """Everything that is read, from the title to the notes."""
        no_script = f'<noscript><p class="muted">{self.word("no_script")}</p></noscript>\n'
        return f"{self.title()}{self.badge()}{no_script}{self.sections()}{self.footer()}"

    def title(self) -> str:
        """What is explained."""
        title = self.spoken(lambda report: _text(report.title), "span")
        return f'<h1>{title}</h1>\n<p class="subject">{_text(self.first.subject)}</p>\n'

    def sections(self) -> str:
        """The parts of the explanation."""
        return "".join(
            (
                self.section("idea", self.spoken(lambda report: _paragraphs(report.idea))),
                self.section("formula", self.formula()),
                self.figures(),
                self.explore(),
                self.section("symbols", self.spoken(_symbols) if self.first.symbols else ""),
                self.section("why", self.spoken(_reasons) if any(s.reasons for s in self.first.symbols) else ""),
                self.section("totals", self.spoken(_totals) if self.first.totals else ""),
                self.section("cost", self.spoken(_cost) if self.first.cost else ""),
                self.section("steps", self.spoken(_steps) if self.first.steps else ""),
                self.section("notes", self.spoken(_notes) if self.first.notes else ""),
            )
        )

    def badge(self) -> str:
        """Whether the numbers were checked against the layer, and how much they differ."""
        check = self.first.check
        if check is None:
            return ""
        kind = "badge" if check.agrees else "badge differs"
        mark = "✓" if check.agrees else "✗"

        def written(report: Report) -> str:
            return _text(report.check.text if report.check else "")

        figure = f'<span class="figure">max |Δ| = {check.difference:.2g}</span>'
        return f'<p class="{kind}"{self.anchor("check")}>{mark} {figure} · {self.spoken(written, "span")}</p>\n'

    def formula(self) -> str:
        """The formula's lines, what its marks mean, and the lines as the file has them."""
        report = self.first
        if not report.formula:
            return ""
        lines = report.mathml or tuple(f"<p><code>{_text(line)}</code></p>" for line in report.formula)
        notation = self.spoken(lambda r: _paragraphs(r.notation, "notation"))
        code = self.spoken(lambda r: _text(r.words["code"]), "span")
        written = f"<p>{code}</p><pre>{_text(chr(10).join(report.code))}</pre>\n"
        return f'<div class="lines" tabindex="0">{"".join(lines)}</div>{notation}{written}'

    def figures(self) -> str:
        """The pictures, which stand still; with JavaScript an exhibit takes their place."""
        drawn = self.spoken(_figures)
        return f'<div class="{"replaced" if self.exhibits else "still"}">{drawn}</div>\n' if drawn else ""

    def explore(self) -> str:
        """The places of the exhibits."""
        if not self.exhibits:
            return ""
        places = "".join(
            f'<div class="exhibit" id="exhibit-{index}" data-kind="{exhibit.kind}"></div>\n'
            for index, exhibit in enumerate(self.exhibits)
        )
        keys = f'<p class="muted keys">{self.word("keys")}</p>'
        return f'<section id="explore"><h2>{self.word("explore")}</h2>\n{places}{keys}</section>\n'

    def footer(self) -> str:
        """Who made the page."""
        from pellucid import __version__

        def made(report: Report) -> str:
            return _text(words("core", report.lang)["made"].format(version=__version__))

        return f'<footer class="muted">{self.spoken(made, "p")}</footer>\n'


def _text(content: str) -> str:
    """Write text that a user may have given, without what HTML has no room for and what turns a line round."""
    return escape("".join("\N{REPLACEMENT CHARACTER}" if _unfit(c) else c for c in content))


def _unfit(character: str) -> bool:
    """Whether a character is a control, a lone half of a pair, or one that changes the direction of what follows."""
    kind = unicodedata.category(character)
    turns = unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "LRI", "RLI", "FSI")
    return turns or kind == "Cs" or (kind == "Cc" and character not in "\n\t")


def _paragraphs(parts: Sequence[str], kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return "".join(f"<p{attribute}>{_text(part)}</p>" for part in parts)


def _symbols(report: Report) -> str:
    words = report.words
    head = "".join(f'<th scope="col">{_text(words[k])}</th>' for k in ("symbol", "shape", "axes", "count", "role"))
    rows = "".join(map(_symbol, report.symbols))
    return (
        f'<div class="scroll"><table class="facts symbols"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div>"
    )


def _symbol(row: SymbolRow) -> str:
    name = _text(row.name)
    cells = (
        f'<td>{_text(row.shape_text)}</td><td>{_text(" × ".join(row.axes))}</td><td class="number">{row.count:,}</td>'
    )
    return (
        f'<tr data-symbol="{name}"><th scope="row" tabindex="0" data-symbol="{name}">{name}</th>{cells}'
        f"<td>{_text(row.role)}</td></tr>"
    )


def _reasons(report: Report) -> str:
    rows = "".join(
        f'<tr data-symbol="{_text(row.name)}"><th scope="row">{_text(row.name)}</th><td>'
        f"{_paragraphs(row.reasons)}</td></tr>"
        for row in report.symbols
        if row.reasons
    )
    return f'<table class="facts plain reasons">{rows}</table>'


def _totals(report: Report) -> str:
    rows = "".join(f'<tr><td class="number">{t.count:,}</td><td>{_text(t.label)}</td></tr>' for t in report.totals)
    return f'<table class="facts plain">{rows}</table>'


def _cost(report: Report) -> str:
    cost, words = report.cost, report.words
    if cost is None:
        return ""
    rows = "".join(
        f'<tr><td class="number">{number}</td><td>{_text(word)}</td></tr>' for number, word in cost_rows(cost, words)
    )
    said = [cost.convention]
    if cost.uncounted:
        said.insert(0, f"{words['uncounted']}: {', '.join(cost.uncounted)}")
    return f'{_paragraphs([cost.scope])}<table class="facts plain">{rows}</table>{_paragraphs(said, "muted")}'


def _notes(report: Report) -> str:
    return "<ul>" + "".join(f"<li>{_text(note)}</li>" for note in report.notes) + "</ul>"


def _steps(report: Report) -> str:
    return "".join(
        f'<details class="worked" open><summary>{_text(step.title)}</summary>{_step(step, report)}</details>'
        for step in report.steps
    )


def _step(step: Step, report: Report) -> str:
    written: list[str] = []
    group = ""
    for part in (*step.parts, None):
        if isinstance(part, Values):
            group += _values(part, report)
            continue
        if group:
            written.append(f'<dl class="values">{group}</dl>')
            group = ""
        if isinstance(part, Picture):
            written.append(_drawn(part, report))
        elif part is not None:
            written.append(f"<p>{_text(part)}</p>")
    return "".join(written)


def _values(value: Values, report: Report) -> str:
    table = numbers_of(value)
    rows = []
    for index, row in enumerate(table):
        kind = ' class="block"' if starts_block(value, index) else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{_text(number)}</td>" for number in row) + "</tr>")
    note = portion(value, table, report.words)
    said = f'<p class="muted">{_text(note)}</p>' if note else ""
    name = value.mathml or _text(value.name)
    return f'<dt>{name}</dt><dd><div class="scroll"><table class="numbers">{"".join(rows)}</table></div>{said}</dd>'


def _drawn(part: Picture | Unrolled | Rows, report: Report) -> str:
    return f'<figure class="scroll drawn">{drawing(part, report)}</figure>'


def _figures(report: Report) -> str:
    """Draw the pictures that do not stand among the worked steps."""
    worked = {id(part) for step in report.steps for part in step.parts}
    return "".join(_drawn(part, report) for part in report.figures if id(part) not in worked)
