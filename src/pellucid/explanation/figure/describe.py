"""What a drawing shows, in words: its title and its text alternative, in the report's language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pellucid.explanation.figure.poster import Part
from pellucid.explanation.report import Arrow, Picture, Rows, Unrolled, Values
from pellucid.explanation.texts import Texts
from pellucid.explanation.typesetting import numbers_of, portion, sizes_of

SAID = 12  # numbers and entries that are said at most


def described(part: Part, texts: Texts) -> tuple[str, str]:
    """Return the title and the description of a drawing."""
    if isinstance(part, Unrolled):
        return part.title.rstrip(":："), _network(part, texts)
    if isinstance(part, Rows):
        return part.title.rstrip(":："), _rows(part, texts)
    if isinstance(part, Picture):
        return part.title.rstrip(":："), _picture(part, texts)
    return part.name, _value(part, texts)


def _network(network: Unrolled, texts: Texts) -> str:
    weights = dict(network.weights)
    first = network.moments[0]
    listed = [texts("alt.part", name=name, shape=shape) for name, shape in weights.items()]
    return texts(
        "alt.unrolled" if weights else "alt.unrolled_bare",
        steps=network.steps,
        cell=network.cell,
        inputs=_entering(first.inputs, network.inputs, weights, texts),
        states=_entering(first.before, network.states, weights, texts),
        output=texts("alt.part", name=first.output, shape=network.output.shape_text),
        weights=texts("word.comma").join(listed),
    )


def _entering(names: Sequence[str], arrows: Sequence[Arrow], weights: dict[str, str], texts: Texts) -> str:
    said = []
    for name, arrow in zip(names, arrows, strict=True):
        by = texts("word.comma").join(texts("alt.part", name=w, shape=weights[w]) for w in arrow.weights)
        key = "alt.multiplied" if by else "alt.part"
        said.append(texts(key, name=name, shape=arrow.shape_text, weights=by))
    return texts("word.comma").join(said)


def _picture(picture: Picture, texts: Texts) -> str:
    counts = Counter(cell for block in picture.blocks for row in block for cell in row)
    counted = [
        texts("alt.counted", count=counts[cell], meaning=meaning)
        for cell, meaning in picture.legend.items()
        if counts[cell]
    ]
    rows = len(picture.blocks[0]) if picture.blocks else 0
    said = texts(
        "alt.picture",
        title=picture.title,
        blocks=len(picture.blocks),
        rows=rows,
        columns=len(picture.blocks[0][0]) if rows else 0,
        counts=texts("word.comma").join(counted),
    )
    beside = texts("punctuation.semicolon").join(_value(value, texts).rstrip(".。") for value in picture.beside)
    return said + (texts("alt.beside", values=beside) if beside else "")


def _value(value: Values, texts: Texts) -> str:
    table = numbers_of(value)
    numbers = [number for row in table for number in row]
    said = texts("word.comma").join(numbers[:SAID]) + ("…" if len(numbers) > SAID else "")
    note = portion(value, table, texts.group("word"))
    return texts("alt.value", name=value.name, shape=sizes_of(value.shape), numbers=said) + (
        f" ({note})" if note else ""
    )


def _rows(rows: Rows, texts: Texts) -> str:
    dropped = int((~rows.mask.numbers.astype(bool)).sum())
    entries = zip(*(_said(value) for value in (rows.values, rows.draws, rows.result)), strict=True)
    changes = [texts("alt.change", value=value, draw=draw, result=result) for value, draw, result in entries]
    said = texts("punctuation.semicolon").join(changes[:SAID]) + ("…" if len(changes) > SAID else "")
    return texts("alt.rows", title=rows.title, count=rows.values.numbers.size, dropped=dropped, changes=said)


def _said(value: Values) -> list[str]:
    return [f"{float(number):.4g}" for number in value.numbers.ravel()]
