"""The tree of a model as Markdown: a table of the layers, indented by depth."""

from __future__ import annotations

from collections.abc import Iterator

from pellucid.explanation.markdown import escaped, fenced, listed, table
from pellucid.explanation.model.terminal import flow, label, numbers, weight_text
from pellucid.explanation.model.tree import LayerRow, ModelReport


def markdown(report: ModelReport) -> str:
    """Return the explanation as Markdown (CommonMark with GitHub's tables)."""
    return "\n\n".join(_blocks(report)) + "\n"


def _blocks(report: ModelReport) -> Iterator[str]:
    words = report.words
    yield f"# {escaped(report.title)}"
    yield fenced([report.subject])
    yield f"## {escaped(words['layers'])}"
    head = [
        words[key] for key in ("layer", "reads", "gives", "weights", "parameters", "macs", "flops", "bytes", "time")
    ]
    yield table([head, *_rows(report, report.root, 0)], "llllrrrrr")
    yield f"## {escaped(words['totals'])}"
    yield "\n".join(f"- **{total.count:,}** {escaped(total.label)}" for total in report.totals)
    for key, sentences in (("counted", report.counted), ("notes", report.notes)):
        if sentences:
            yield f"## {escaped(words[key])}"
            yield listed(sentences)


def _rows(report: ModelReport, row: LayerRow, depth: int) -> Iterator[tuple[str, ...]]:
    """Write a layer and those inside it; a note takes the place of what goes in."""
    reads, gives = flow(row, report.words)
    note = reads or row.note
    weights = report.words["list"].join(weight_text(weight, report.words) for weight in row.weights)
    yield ("\N{EM SPACE}" * depth + label(row), note, gives, weights, *numbers(row))
    for layer in row.layers:
        yield from _rows(report, layer, depth + 1)
