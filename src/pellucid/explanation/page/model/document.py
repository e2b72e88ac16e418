"""The page of a model: a tree of folded layers in the frame that the pages of single layers have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pellucid.explanation.model.terminal import label, numbers, shown_depth, tensor_text, weight_text
from pellucid.explanation.model.tree import LayerRow, ModelReport, TensorRow
from pellucid.explanation.page.document import Document
from pellucid.explanation.page.frame import Frame, paragraphs, text, totals_of
from pellucid.explanation.report import Report
from pellucid.explanation.texts import Texts

OPENED = 8  # layers whose full explanation stands in the page
NUMBERS = ("parameters", "macs", "flops", "bytes", "time")
Written = Callable[[LayerRow, ModelReport], str]


class Part(Document):
    """The full explanation of one layer, inside the page of its model: without pictures to play with."""

    def under(self, key: str, heading: str, content: str) -> str:
        """Put content under a smaller heading."""
        return f"<section><h3>{heading}</h3>\n{content}</section>\n" if content else ""

    def anchor(self, key: str) -> str:
        """Several parts stand in one page, so none of their elements has a name."""
        return ""

    def part(self) -> str:
        """Write the explanation without the frame."""
        return f"{self.badge()}{self.sections()}"


class ModelDocument(Frame[ModelReport]):
    """The page of a model."""

    def __init__(self, reports: Sequence[ModelReport]) -> None:
        super().__init__(reports, kinds=["model"])
        self.depth = shown_depth(self.first.root)
        self.opened: dict[str, Report | str] = {}
        if (origin := self.first.origin) is not None:
            rows = chosen(self.first.root)
            reports_on = origin.layers(rows, self.first.lang)
            self.opened = {row.path: report for row, report in zip(rows, reports_on, strict=True)}

    def sections(self) -> str:
        """The tree; then the totals, how they were counted, and notes."""
        tree = f'<div class="tree">{self.head()}{"".join(self.layer([r.root for r in self.reports], 0))}</div>'
        counted = self.spoken(lambda report: paragraphs(report.counted))
        notes = self.spoken(lambda report: paragraphs(report.notes))
        return "".join(
            (
                self.section("layers", f"{self.buttons()}{tree}"),
                self.section("totals", self.spoken(totals_of)),
                self.section("counted", counted),
                self.section("notes", notes),
            )
        )

    def buttons(self) -> str:
        """What opens and folds all of the tree."""
        both = "".join(
            f'<button type="button" class="button" data-tree="{act}">{self.of_words(f"{act}_all")}</button>'
            for act in ("open", "fold")
        )
        return f'<p class="tree-buttons">{both}</p>\n'

    def head(self) -> str:
        """The names of the columns."""
        cells = "".join(f"<span>{self.of_words(key)}</span>" for key in NUMBERS)
        return f'<div class="line head" aria-hidden="true"><span>{self.of_words("layer")}</span>{cells}</div>\n'

    def of_words(self, key: str) -> str:
        """Write a word of the report in every language."""
        return self.spoken(lambda report: text(report.words[key]), "span")

    def each(self, rows: Sequence[LayerRow], write: Written, tag: str = "span") -> str:
        """Write something of a layer in every language; ``rows`` are its rows, one a language."""
        found = {report.lang: row for report, row in zip(self.reports, rows, strict=True)}
        return self.spoken(lambda report: write(found[report.lang], report), tag)

    def layer(self, rows: Sequence[LayerRow], depth: int) -> Iterator[str]:
        """Write a layer and those inside it."""
        row = rows[0]
        unfolded = " open" if depth < self.depth and row.layers else ""
        cells = "".join(
            f'<span class="number"><span class="column">{self.of_words(key)} </span>{text(number)}</span>'
            if number
            else "<span></span>"
            for key, number in zip(NUMBERS, numbers(row), strict=True)
        )
        why = self.each(rows, lambda r, _: text(r.note)) if row.note and not row.calls else ""
        name = f'{text(label(row))}<span class="why"> {why}</span>' if why else text(label(row))
        yield f'<details class="layer" data-path="{text(row.path)}"{unfolded}>'
        yield f'<summary><span class="line"><span class="name">{name}</span>{cells}</span></summary>\n'
        yield f'<div class="within">{self.facts(rows)}{self.explained(row)}'
        for index in range(len(row.layers)):
            yield from self.layer([r.layers[index] for r in rows], depth + 1)
        yield "</div></details>\n"

    def facts(self, rows: Sequence[LayerRow]) -> str:
        """What goes in and comes out, the weights and the formula."""
        row = rows[0]
        found = []
        if row.inputs:
            found.append(("reads", self.each(rows, lambda r, _: _list(r.inputs), "div")))
        if row.outputs:
            found.append(("gives", self.each(rows, lambda r, _: _list(r.outputs), "div")))
        if row.weights:
            found.append(("weights", self.each(rows, _weights, "div")))
        if row.formula:
            found.append(("formula", f"<code>{text(row.formula)}</code>"))
        table = "".join(f"<dt>{self.of_words(key)}</dt><dd>{content}</dd>" for key, content in found)
        calls = (
            self.each(rows, lambda r, report: text(report.words["calls"].format(n=r.calls))) if row.calls > 1 else ""
        )
        note = self.each(rows, lambda r, _: text(r.note)) if row.note and row.calls else ""
        said = f'<p class="note">{calls} {note}</p>' if calls or note else ""
        arguments = f'<p class="subject">{text(f"{row.class_name}({row.arguments})")}</p>' if row.arguments else ""
        return f'{arguments}{said}<dl class="facts">{table}</dl>' if table or said or arguments else ""

    def explained(self, row: LayerRow) -> str:
        """The full explanation of a layer that opens, folded, or how it is to be had."""
        if not row.opens:
            return ""
        report = self.opened.get(row.path)
        if report is None:
            said = self.spoken(lambda r: text(Texts(r.lang)("model.only_opened", path=repr(row.path))), "span")
            return f'<p class="muted">{said}</p>'
        content = f"<p>{text(report)}</p>" if isinstance(report, str) else Part(report.translations()).part()
        return f'<details class="full"><summary>{self.of_words("full")}</summary>{content}</details>'


def chosen(root: LayerRow) -> list[LayerRow]:
    """Choose the layers that are explained in full: all if they are few, else those of different kinds first."""
    found = [row for row in root.walk() if row.opens]
    if len(found) <= OPENED:
        return found
    kinds: dict[str, LayerRow] = {}
    forms: dict[tuple[str, str], LayerRow] = {}
    for row in found:
        kinds.setdefault(row.class_name, row)
        forms.setdefault((row.class_name, row.arguments), row)
    return list({row.path: row for row in (*kinds.values(), *forms.values())}.values())[:OPENED]


def _list(tensors: Sequence[TensorRow]) -> str:
    alone = len(tensors) == 1
    return "".join(f"<div>{text(tensor.text if alone else tensor_text(tensor))}</div>" for tensor in tensors)


def _weights(row: LayerRow, report: ModelReport) -> str:
    return "".join(f"<div>{text(weight_text(weight, report.words))}</div>" for weight in row.weights)
