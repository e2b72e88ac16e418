"""Explains text convolution: for each width the features at every position, and the window that wins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from pellucid.explanation import request as shared
from pellucid.explanation.component import ComponentExplained
from pellucid.explanation.report import Check, Picture, Step
from pellucid.explanation.request import Request
from pellucid.explanation.trace import Trace
from pellucid.nn.convolution.text_convolution import TextConv

DRAWN = 16  # words, and entries of their vectors, that are drawn at most


class TextConvExplained(ComponentExplained):
    """The parts of the report on a text convolution."""

    family = "text_convolution"
    layer: Any

    def __init__(self, request: Request) -> None:
        assert isinstance(request.layer, TextConv)
        super().__init__(request)
        self.x: Tensor = request.inputs[0]
        self.batched = self.x.ndim == 3

    def notation(self) -> Iterator[str]:
        """What the formula's functions stand for."""
        yield from super().notation()
        yield self.texts("notation.window")
        yield self.texts("notation.over_time")
        yield self.texts("notation.activation", name=shared.function_name(self.layer.activation))
        if not self.layer.bias:
            yield self.texts("notation.hyperparameter", name="bias", value="0")

    def run(self) -> Trace:
        """Run the formula's lines on the first sentence."""
        options = dict(self.request.options)
        if self.batched and options.get("lengths") is not None:
            options["lengths"] = self.layer._steps(self.x, options["lengths"])[:1]
        self.first = self.layer.bind(self.x[:1] if self.batched else self.x, **options)
        return self.tracer(**self.first)

    def steps(self) -> Iterator[Step]:
        """One step for each width, and the one that joins them."""
        if not self.real.numel():
            return
        self.trace = self.run()
        *records, joined = self.trace.records
        each = len(records) // len(self.layer.widths)
        wanted = len(self.layer.widths) if self.request.steps is None else max(self.request.steps, 1)
        for index, width in enumerate(self.layer.widths[:wanted]):
            own = Trace(tuple(records[each * index : each * (index + 1)]), None)
            weight, bias = self.first["weights"][index].squeeze(1), self.first["biases"][index]
            read = {"weight": weight, "bias": bias.flatten()} if isinstance(bias, Tensor) else {"weight": weight}
            given = [shared.values(self.paper.name(f"{name}_{width}"), value) for name, value in read.items()]
            parts = (*given, *self.recorded(own), *self.winner(index, own))
            positions = int(self.first["pools"][index].kept.sum())
            yield Step(self.texts("step.width", width=width, positions=positions), parts)
        values = shared.values(joined.site.label(self.paper), joined.value, joined.shape)
        yield Step(self.texts("step.joined"), (values,))

    def winner(self, index: int, trace: Trace) -> Iterator[str | Picture]:
        """The window at which the first filter is greatest, and what it reads."""
        kept = self.first["pools"][index].kept.flatten()
        if not bool(kept.any()):
            yield self.texts("step.no_words")
            return
        values = next(record.value for record in trace.records if record.site.name == "features").flatten(0, -2)[0]
        best = int(values.masked_fill(~kept[: len(values)], float("-inf")).argmax())
        width, tokens = self.layer.widths[index], self.request.tokens
        yield self.picture(best, width)
        facts = {"number": best + 1, "windows": int(kept.sum()), "result": shared.number(float(values[best]))}
        yield self.texts("step.winner", **facts)
        if tokens:
            yield self.texts("step.winner_words", words=" ".join(tokens[best : best + width]))

    def picture(self, start: int, width: int) -> Picture:
        """Draw the words of one window."""
        time, size = self.x.shape[-2:]
        columns = range(max(0, start + width - DRAWN), max(min(time, DRAWN), start + width))
        row = tuple(self.cell(column, start, width, time) for column in columns)
        tokens = self.request.tokens
        names = [self.texts.axis(name) for name in ("embedding", "time")]
        return Picture(
            title=self.texts("picture.window", shape=f"{size}×{time}", axes=" × ".join(names)),
            blocks=((row,) * min(size, DRAWN),),
            block_titles=(),
            across=names[1],
            down=names[0],
            legend={
                key: self.texts(f"legend.{key.replace(' ', '_')}") for key in ("touched", "padding touched", "free")
            },
            columns=tuple(tokens[c] if c < len(tokens) else "" for c in columns) if tokens else (),
            numbers=(self.numbers(columns),),
        )

    def numbers(self, columns: range) -> np.ndarray:
        """The numbers of the drawn words, one word a column; the padding holds zeros."""
        x = self.x[0] if self.batched else self.x
        words = shared.values("", x[columns.start : columns.stop, :DRAWN]).numbers
        return np.pad(words.astype(np.float64), ((0, len(columns) - len(words)), (0, 0))).T

    def cell(self, column: int, start: int, width: int, time: int) -> str:
        """What is drawn at a word."""
        if not start <= column < start + width:
            return "free"
        return "touched" if column < time else "padding touched"

    def check(self) -> Check | None:
        """The first sentence's features against the layer's."""
        if not self.real.numel():
            return shared.check(self.real, self.real, None, self.texts)
        real = self.real[:1] if self.batched else self.real
        return shared.check(self.trace.result, real, self.backend, self.texts)

    def notes(self) -> Iterator[str]:
        """Which sentence and filter are worked out."""
        yield from super().notes()
        if self.batched and len(self.x) > 1:
            yield self.texts("note.first_sample", batch=len(self.x))
