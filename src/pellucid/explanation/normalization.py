"""Explains normalization: its formulas one after the other, and the direction of the average, drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pellucid.explanation import request as shared
from pellucid.explanation.component import ComponentExplained
from pellucid.explanation.paper import joined, letter
from pellucid.explanation.report import Picture, Step
from pellucid.explanation.request import Request
from pellucid.explanation.typesetting import sizes_of
from pellucid.nn.normalization.averages import Neighbours, Over, Remembered
from pellucid.nn.normalization.formula import AFFINE
from pellucid.nn.normalization.instance_norm import InstanceNormFamily
from pellucid.nn.normalization.normalization import ChannelFirst, NormalizationFamily

DRAWN = 8  # places of an axis that are drawn at most
CELLS = ("averaged", "other", "padding")


class NormalizationExplained(ComponentExplained):
    """The parts of the report on a layer of the normalization family."""

    family = "normalization"
    layer: Any

    def __init__(self, request: Request) -> None:
        assert isinstance(request.layer, NormalizationFamily)
        super().__init__(request)
        self.x: Tensor = self.bound["x"]
        self.average: Any = self.bound["average"]
        self.remembered = isinstance(self.average, Remembered)

    def bind(self) -> dict[str, Any]:
        """What the formula's symbols stand for; γ and β as they are learned, for padding has a step of its own."""
        bound, (given, *_) = super().bind(), self.request.inputs
        axes = self.layer.axes(given if given.ndim == bound["x"].ndim else bound["x"])
        told = map(self.request.options.get, ("lengths", "mask"))
        self.marked: Tensor | None = self.layer._real(bound["x"], axes, *told)  # what is no padding
        return bound if self.marked is None else {**self.layer.bind(given), **_without_affine(bound)}

    def idea(self) -> tuple[str, ...]:
        """Normalization in general, the formulas that take a mean away if these do, and what this kind does."""
        kind = "".join(c for c in self.kind.lower() if not c.isdigit()).removesuffix("d")
        keys = ["idea.normalization", *(["idea.normalization_centred"] * self.layer.centred)]
        keys.append(f"idea.normalization_{kind}")
        return tuple(part for key in keys if key in self.texts for part in self.texts.paragraphs(key))

    def notation(self) -> Iterator[str]:
        """What ``average`` stands for."""
        yield from super().notation()
        if isinstance(self.average, Neighbours):
            yield self.texts("notation.neighbours", size=self.average.size)
        else:
            yield self.texts("notation.remembered" if self.remembered else "notation.average", axes=self.direction())
        if getattr(self.average, "real", None) is not None:
            yield self.texts("notation.padding_average")
        if self.marked is not None:
            yield self.texts("notation.padding")

    def direction(self) -> str:
        """Name the axes that are averaged."""
        symbols = self.layer.symbols(self.request.inputs[0])
        averaged = next(symbol.facts["averaged"] for symbol in symbols if "averaged" in symbol.facts)
        return " × ".join(self.texts.axis(name) for name in averaged)

    def notes(self) -> Iterator[str]:
        """What training keeps for eval."""
        yield from super().notes()
        if getattr(self.layer, "running_mean", None) is None:
            return
        if self.remembered:
            yield self.texts("note.running_eval")
        elif self.layer.training:
            count = int(self.averaged(self.average).sum())
            if count > 1:
                yield self.remembering(count)

    def remembering(self, count: int) -> str:
        """How far the running statistics move towards those of a batch, whose means are of ``count`` numbers each."""
        momentum, facts = self.layer.momentum, {"n": count, "factor": shared.number(count / (count - 1))}
        if momentum is not None:
            return self.texts("note.running", momentum=shared.number(momentum), **facts)
        if isinstance(self.layer, InstanceNormFamily):
            return self.texts("note.running_still")
        return self.texts("note.running_cumulative", batch=int(self.layer.num_batches_tracked) + 1, **facts)

    # -- steps --------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:
        """The direction; then every formula with its numbers."""
        self.trace = self.tracer(**self.bound)
        yield from self.directions()
        parts: list[Any] = [shared.values(self.paper.name("x"), self.x)]
        for name in ("gamma", "beta"):
            if isinstance(self.bound.get(name), Tensor):
                parts.append(shared.values(self.paper.name(name), self.bound[name]))
        number = 0
        shown: set[str] = set()
        for record in self.trace.records:
            label = record.site.label(self.paper)
            if str(label) not in shown:
                parts.append(shared.values(label, record.value, record.shape))
            shown.add(str(label))
            if record.site.name is None:
                continue
            number += 1
            key = f"step.norm_{record.site.name}"
            own = f"{key}_{self.kind.lower()}"
            key = own if own in self.texts else key
            title = self.texts(key) if key in self.texts else letter(record.site.name)
            if record.site.name == "x_hat" and not self.remembered:
                parts += self.outcome(record.value)
            yield Step(self.texts("step.norm_title", number=number, title=title), tuple(parts))
            parts = []
        if self.marked is not None:
            yield self.padding(self.marked)

    def padding(self, marked: Tensor) -> Step:
        """Set the result to 0 at padding."""
        y, m = (self.paper.name(name) for name in "ym")
        self.trace = replace(self.trace, result=self.trace.result.masked_fill(~marked, 0))
        masked = shared.values(joined(" ⊙ ", (y, m)), self.trace.result)
        return Step(self.texts("step.norm_padding"), (shared.values(m, marked.int()), masked))

    def outcome(self, x_hat: Tensor) -> Iterator[Any]:
        """The mean and variance of what has been normalized."""
        if x_hat.shape != self.x.shape:  # a part of a large value
            return
        with torch.no_grad():
            mean = self.average(x_hat)
            variance = self.average((x_hat - mean) ** 2)
        if mean.numel() and bool(torch.isfinite(mean).all() & torch.isfinite(variance).all()):
            facts = {"mean": f"{float(mean.abs().max()):.3f}", "low": f"{float(variance.min()):.3f}"}
            yield self.texts("step.norm_outcome", high=f"{float(variance.max()):.3f}", **facts)

    def directions(self) -> Iterator[Step]:
        """Draw which numbers one average takes, and which another kind of normalization would take."""
        texts = self.texts
        if not self.x.numel():
            yield Step(texts("step.norm_direction"), (texts("step.norm_nothing"),))
        if not self.x.numel() or self.x.ndim == 0:
            return
        parts: list[str | Picture] = []
        if self.remembered:
            parts.append(texts("step.norm_remembered"))
        own = self.average
        if self.remembered:
            own = Over(tuple(axis for axis, _ in self.layer.averaged_axes(self.x)), self.marked)
        mask = self.averaged(own)
        facts = {"count": int(mask.sum()), "total": mask.numel()}
        parts.append(self.picture(mask, texts("picture.average", axes=self.direction(), **facts)))
        if self.x.ndim > 1:
            within = not isinstance(own, Over) or 0 not in own.axes
            other = texts("picture.other_batch" if within else "picture.other_layer")
            parts.append(self.picture(self.averaged(self.contrast(within)), other))
        yield Step(texts("step.norm_direction"), tuple(parts))

    def contrast(self, within: bool) -> Over:
        """The average of the other direction: over the batch for one within a sample, and the reverse."""
        axes = set(range(self.x.ndim))
        kept = (1 if isinstance(self.layer, ChannelFirst) else self.x.ndim - 1) if within else 0
        return Over(tuple(sorted(axes - {kept})), self.marked)

    def averaged(self, average: Any) -> Tensor:
        """Return which entries the first average depends on, told by its gradient."""
        with torch.enable_grad():
            ones = torch.ones_like(self.x, dtype=torch.float64, requires_grad=True)
            first = average(ones).flatten()[0]
            (gradient,) = torch.autograd.grad(first, ones)
        return gradient != 0

    def block_title(self, axis: str, number: int) -> str:
        """Name one place along the axis that the blocks of a drawing stand along."""
        texts = self.texts
        return texts.axis(f"batch {number}") if axis == "batch" else f"{texts.axis(axis)}{texts('word.colon')}{number}"

    def picture(self, mask: Tensor, title: str) -> Picture:
        """Draw up to three axes: blocks of rows; all axes of space are one."""
        numbers, padding = self.x, torch.zeros_like(mask)
        if self.marked is not None:
            padding |= ~self.marked
        kinds = torch.where(padding, 2, torch.where(mask, 0, 1))
        axes = self.layer.axes(self.request.inputs[0])
        axes = axes if len(axes) == mask.ndim else ("", *axes)  # the formula sees a batch of one
        lead, names = axes[0] if mask.ndim > 2 else "", [self.texts.axis(name) for name in axes]
        if mask.ndim > 3:
            names = [*names[:2], " × ".join(names[2:])]
            kinds, numbers = kinds.flatten(2), numbers.flatten(2)
        shape = kinds.shape
        kinds, numbers = (value[tuple(slice(DRAWN) for _ in shape)] for value in (kinds, numbers))
        if kinds.shape != shape:
            title += self.texts("picture.cut", shown=sizes_of(kinds.shape), total=sizes_of(shape))
        *outer, rows, columns = [1, 1, *kinds.shape][-3:]
        cells = kinds.reshape(outer[0], rows, columns).tolist()
        blocks = tuple(tuple(tuple(CELLS[kind] for kind in row) for row in block) for block in cells)
        return Picture(
            title=title,
            blocks=blocks,
            block_titles=tuple(self.block_title(lead, i + 1) for i in range(outer[0])) if lead else (),
            across=names[-1],
            down=names[-2] if len(names) > 1 else "",
            legend={key: self.texts(f"legend.{key}") for key in CELLS},
            numbers=tuple(shared.values("", numbers.reshape(outer[0], rows, columns)).numbers),
        )


def _without_affine(bound: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in bound.items() if name not in AFFINE}
