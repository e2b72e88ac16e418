"""The frame of every page: languages and colours, headings, the data and the script; readable without either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Generic, TypeVar

from pellucid.explanation.model.tree import ModelReport
from pellucid.explanation.page.arrays import as_json
from pellucid.explanation.page.script import script, style
from pellucid.explanation.page.words import words
from pellucid.explanation.report import Exhibit, Report
from pellucid.explanation.typesetting import upright
from pellucid.version import __version__

AnyReport = TypeVar("AnyReport", bound=Report | ModelReport)


class Frame(Generic[AnyReport]):
    """One page.

    Args:
        reports: the same report in every language, the one that is shown first in front.
        exhibits: its interactive pictures.
        kinds: the folders whose script and style it needs; by default those of the exhibits.
    """

    def __init__(
        self, reports: Sequence[AnyReport], exhibits: Sequence[Exhibit] = (), kinds: Sequence[str] = ()
    ) -> None:
        self.reports, self.exhibits = reports, exhibits
        self.first = reports[0]
        self.kinds = list(dict.fromkeys([*kinds, *(exhibit.kind for exhibit in exhibits)]))
        self._headings: dict[str, str] = {}  # by the names of their sections

    def html(self) -> str:
        """Write the page."""
        lang = self.first.lang
        return (
            f'<!doctype html>\n<html lang="{lang}" data-lang="{lang}">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{text(self.first.title)}</title>\n<style>\n{style(self.kinds)}</style>\n</head>\n"
            f"<body>\n{self.bar()}<main>\n{self.body()}</main>\n"
            f'<script type="application/json" id="page-data">{as_json(self.data())}</script>\n'
            f'<script type="module">\n{script(self.kinds)}</script>\n</body>\n</html>\n'
        )

    def data(self) -> dict[str, object]:
        """What the script reads."""
        langs = [report.lang for report in self.reports]
        shown = {exhibit.kind for exhibit in self.exhibits}
        own = {lang: {kind: words(kind, lang) for kind in shown} | {"page": words("core", lang)} for lang in langs}
        exhibits = [{"kind": exhibit.kind, "data": exhibit.data} for exhibit in self.exhibits]
        titles = {report.lang: report.title for report in self.reports}
        return {"lang": langs[0], "languages": langs, "titles": titles, "words": own, "exhibits": exhibits}

    # -- languages ----------------------------------------------------------------------------------------------

    def spoken(self, render: Callable[[AnyReport], str], tag: str = "div") -> str:
        """Write something in every language; once where all say the same."""
        parts = {report.lang: render(report) for report in self.reports}
        if len(set(parts.values())) == 1:
            return next(iter(parts.values()))
        return "".join(f'<{tag} class="spoken" lang="{lang}">{part}</{tag}>' for lang, part in parts.items())

    def word(self, key: str) -> str:
        """Write one of the page's own words in every language."""
        return self.spoken(lambda report: text(words("core", report.lang)[key]), "span")

    def section(self, key: str, content: str) -> str:
        """Put content under the heading of a word; nothing where there is no content."""
        return self.under(key, self.spoken(lambda report: text(report.words[key]), "span"), content)

    def under(self, key: str, heading: str, content: str) -> str:
        """Put content under a heading that the contents list; nothing where there is no content."""
        if not content:
            return ""
        self._headings[key] = heading
        return f"<section{self.anchor(key)}><h2>{heading}</h2>\n{content}</section>\n"

    def anchor(self, key: str) -> str:
        """Name an element of the page, as an attribute."""
        return f' id="{key}"'

    # -- the page's parts ---------------------------------------------------------------------------------------

    def bar(self) -> str:
        """The choice of language and colours."""
        speak = "".join(
            f'<button type="button" data-speak="{report.lang}" lang="{report.lang}">'
            f"{text(words('core', report.lang)['language'])}</button>"
            for report in self.reports
        )
        colours = "".join(
            f'<button type="button" data-colour="{theme}">{self.word(theme)}</button>'
            for theme in ("auto", "light", "dark")
        )
        choose = f'<div role="group" {self.label("languages")}>{speak}</div>\n' if len(self.reports) > 1 else ""
        return f'<header class="top">\n{choose}<div role="group" {self.label("colours")}>{colours}</div>\n</header>\n'

    def label(self, key: str) -> str:
        """Say what an element is to those who do not see it, in every language, as an attribute."""
        said = " / ".join(text(words("core", report.lang)[key]) for report in self.reports)
        return f'aria-label="{said}"'

    def body(self) -> str:
        """Everything that is read, from the title to the notes."""
        no_script = f'<noscript><p class="muted">{self.word("no_script")}</p></noscript>\n'
        sections = self.sections()
        return f"{self.title()}{self.badge()}{no_script}{self.contents()}{sections}{self.footer()}"

    def contents(self) -> str:
        """Links to the sections, which stay in view; the sections have been written."""
        links = "".join(f'<a href="#{key}">{heading}</a>' for key, heading in self._headings.items())
        return f'<nav class="contents" {self.label("contents")}>{links}</nav>\n'

    def title(self) -> str:
        """What is explained."""
        title = self.spoken(lambda report: text(report.title), "span")
        return f'<h1>{title}</h1>\n<p class="subject">{text(self.first.subject)}</p>\n'

    def badge(self) -> str:
        """What is known of all numbers together."""
        return ""

    def sections(self) -> str:
        """The parts of the explanation."""
        raise NotImplementedError

    def footer(self) -> str:
        """Who made the page."""

        def made(report: AnyReport) -> str:
            return text(words("core", report.lang)["made"].format(version=__version__))

        return f'<footer class="muted">{self.spoken(made, "p")}</footer>\n'


def text(content: str) -> str:
    """Write text that a user may have given, without what HTML has no room for and what turns a line round."""
    return escape(upright(content))


def paragraphs(parts: Sequence[str], kind: str = "") -> str:
    """Write sentences, one paragraph each."""
    attribute = f' class="{kind}"' if kind else ""
    return "".join(f"<p{attribute}>{text(part)}</p>" for part in parts)


def totals_of(report: Report | ModelReport) -> str:
    """Write the numbers of weights, and what they count."""
    rows = "".join(f'<tr><td class="number">{t.count:,}</td><td>{text(t.label)}</td></tr>' for t in report.totals)
    return f'<table class="facts plain">{rows}</table>'
