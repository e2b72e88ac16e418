"""Explains a temporal convolutional network: block by block, and which steps reach the last output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from pellucid.explanation import request as shared
from pellucid.explanation.component import ComponentExplained
from pellucid.explanation.report import Check, Picture, Report, Step
from pellucid.explanation.request import Request
from pellucid.explanation.trace import Trace
from pellucid.nn.convolution.tcn import TCN

WORKED = 2  # blocks that are worked out unless the caller says otherwise
DRAWN = 32  # steps that are drawn at most: the last ones


class TCNExplained(ComponentExplained):
    """The parts of the report on a TCN."""

    family = "tcn"
    layer: Any

    def report(self) -> Report:
        """Put everything together, in eval: what dropout draws would hide what the convolutions do."""
        with shared.in_eval(self.layer):
            return super().report()

    def __init__(self, request: Request) -> None:
        assert isinstance(request.layer, TCN)
        super().__init__(request)
        self.lengths = request.options.get("lengths")
        self.x: Tensor = request.inputs[0]
        self.batched = self.x.ndim == 3

    def notation(self) -> Iterator[str]:
        """What the formula's functions stand for."""
        yield from super().notation()
        yield self.texts("notation.tcn", p=shared.number(self.layer.dropout))
        yield self.texts("notation.activation", name=shared.function_name(self.layer.activation))

    def run(self) -> Trace:
        """Run the formula's lines on the real steps of the first sequence."""
        x = self.x[:1].squeeze(0) if self.batched and len(self.x) else self.x
        if self.lengths is not None:
            x = x[:, : int(self.lengths[0] if self.batched else self.lengths)]
        self.first, self.read = x, x.shape[-1]
        return self.tracer(**self.layer.bind(x)) if self.read else Trace((), x)

    def steps(self) -> Iterator[Step]:
        """Which steps reach the last output; then one step for each block."""
        self.trace = self.run()
        if not self.read:
            yield Step(self.texts("step.lines"), (self.texts("step.no_steps"),))
            return
        facts = {"reach": self.layer.receptive_field[0], "read": self.read}
        yield Step(self.texts("step.pyramid"), (self.picture(), self.texts("step.pyramid_reach", **facts)))
        dilations, inner = self.layer.dilations, self.layer.in_channels
        each = (len(self.trace.records) - 1) // len(dilations)  # the last one is real(x)
        worked = min(len(dilations), WORKED if self.request.steps is None else max(self.request.steps, 1))
        for index in range(worked):
            outer = self.layer.hidden_channels[index]
            own = Trace(self.trace.records[each * index : each * (index + 1)], None)
            facts = {"number": index + 1, "total": len(dilations), "dilation": dilations[index], "inner": inner}
            title = self.texts("step.block", **facts, outer=outer)
            given = [shared.values(self.paper.name("x"), self.first)] if index == 0 else []
            yield Step(title, (*given, *self.recorded(own)))
            inner = outer
        if worked < len(dilations):
            facts = {"first": worked + 1, "last": len(dilations)}
            key = "step.blocks" if worked + 1 < len(dilations) else "step.block_one"
            yield Step(self.texts("step.blocks_title"), (self.texts(key, **facts),))

    def picture(self) -> Picture:
        """Draw, one level under the other, the steps from which the last output is computed."""
        rows, reached = [], {self.read - 1}
        rows.append(reached)
        for dilation in reversed([d for d in self.layer.dilations for _ in range(2)]):
            reached = {step - k * dilation for step in reached for k in range(self.layer.kernel_size)}
            rows.append(reached)
        columns = range(max(0, self.read - DRAWN), self.read)
        tokens = self.request.tokens
        return Picture(
            title=self.texts("picture.pyramid"),
            blocks=(tuple(tuple("touched" if c in row else "free" for c in columns) for row in rows),),
            block_titles=(),
            across=self.texts.axis("time"),
            down=self.texts("picture.levels"),
            legend={"touched": self.texts("legend.reaches"), "free": self.texts("legend.reaches_not")},
            columns=tuple(tokens[c] for c in columns) if tokens else (),
        )

    def check(self) -> Check | None:
        """The first sequence's output against the layer's."""
        real = self.real[0] if self.batched and len(self.real) else self.real
        traced, real = (self.trace.result, real[..., : self.read]) if self.read else (real, real)
        return shared.check(traced, real, self.backend, self.texts)

    def notes(self) -> Iterator[str]:
        """Which sequence is worked out, and that nothing is dropped."""
        yield from super().notes()
        if self.batched and len(self.x) > 1:
            yield self.texts("note.first_sample", batch=len(self.x))
        if self.layer.dropout:
            yield self.texts("note.tcn_eval", p=shared.number(self.layer.dropout))
