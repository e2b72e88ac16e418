"""Explains convolution and pooling: the first positions of the window, where it lies and what it computes there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pellucid.explanation import request as shared
from pellucid.explanation.component import ComponentExplained, fact_text
from pellucid.explanation.report import Check, Picture, Step, SymbolRow, Values
from pellucid.explanation.request import Request
from pellucid.explanation.trace import Trace
from pellucid.explanation.typesetting import sizes_of
from pellucid.nn.axes import AXES
from pellucid.nn.component import SymbolShape
from pellucid.nn.pooling.pooling import Average, pool, rises_from_zero
from pellucid.nn.windowed import Windowed, WindowView

WORKED = 2  # positions that are worked out unless the caller says otherwise
LISTED = 9  # numbers that stand in a sentence at most
DRAWN = 12  # places of an axis that are drawn at most, beside those that a window touches
Marks = dict[tuple[int, ...], str]
WHOLE = 10**7  # entries under all windows up to which the whole formula is run for the check

LEFT_OUT = {"ceil_mode": False, "count_include_pad": True, "divisor_override": None}  # of an average pooling's text


class WindowedExplained(ComponentExplained):
    """The parts of the report on a layer that reads through windows."""

    layer: Any

    def __init__(self, request: Request) -> None:
        assert isinstance(request.layer, Windowed)
        super().__init__(request)
        self.x: Tensor = request.inputs[0]
        self.batched = self.x.ndim == self.layer.spatial + 2
        self.traces: list[tuple[tuple[int, ...], Trace]] = []
        self.named = {"input": "x"}

    @property
    def output(self) -> Tensor:
        """What the layer returned, without the places of the greatest entries."""
        return self.real[0] if isinstance(self.real, tuple) else self.real

    @property
    def counts(self) -> tuple[int, ...]:
        """How many outputs the worked sequence has along each axis."""
        *others, last = self.output.shape[-self.layer.spatial :]
        lengths = self.request.options.get("lengths")
        return *others, last if lengths is None else int(self.layer.output_lengths(lengths).flatten()[0])

    def positions(self) -> list[tuple[int, ...]]:
        """The first positions of the window, along the last axis and then on to the next row."""
        wanted = WORKED if self.request.steps is None else self.request.steps
        return list(itertools.islice(itertools.product(*map(range, self.counts)), max(wanted, 1)))

    def steps(self) -> Iterator[Step]:
        """One step for each position."""
        if not self.output.numel():
            return
        texts, total = self.texts, prod(self.counts)
        for number, position in enumerate(self.positions(), 1):
            view = self.layer.window_at(self.x, position, **self.request.options)
            bound = self.layer.bind(self.x, position=position, **self.request.options)
            trace = self.tracer(**bound)
            self.traces.append((view.output, trace))
            place = ", ".join(map(str, position))
            title = texts("step.position", number=number, total=total, place=place)
            parts: list[Any] = [] if number == 1 else [self.moved() if position[-1] else texts("step.moved_row")]
            given = list(self.entries(view, bound))
            output = shared.values(texts("picture.output", place=place), _result(trace))
            picture = replace(self.picture(view), beside=(*(v for v in given if v.name != "bias"), output))
            parts += [picture, *given, *self.recorded(trace), *self.said(view, trace)]
            yield Step(title, tuple(parts))
        total = prod(self.output.shape[-self.layer.spatial :])
        if total > len(self.traces):
            shape = sizes_of(self.output.shape)
            yield Step(texts("step.all_title"), (texts(f"step.all_{self.family}", total=total, shape=shape),))

    def notation(self) -> Iterator[str]:
        """What ``window`` stands for."""
        yield from super().notation()
        yield self.texts("notation.window")
        if self.layer.formula is not pool:
            yield self.texts("notation.window_axes")

    def row(self, symbol: SymbolShape) -> SymbolRow:
        """Translate one symbol; the size of the output may be decided by the call."""
        if symbol.name != "y":
            return super().row(symbol)
        row = super().row(replace(symbol, shape=tuple(self.output.shape)))
        return replace(row, reasons=(*row.reasons, *self.sized()))

    def sized(self) -> Iterator[str]:
        """What else decides the size of the output."""
        return iter(())

    def facts(self, symbol: SymbolShape) -> dict[str, Any]:
        """A size of the window that is one number holds along every axis."""
        found = dict(symbol.facts)
        for name in ("kernel_size", "reach", "output_size"):
            if isinstance(found.get(name), int):
                found[name] = (found[name],) * self.layer.spatial
        return found

    def moved(self) -> str:
        """How the window came here from the position before."""
        stride = getattr(self.layer, "stride", None)
        if stride is None:
            return self.texts("step.moved_on")
        if getattr(self.layer, "transposed", False):
            return self.texts("step.moved_spread")
        step = stride if isinstance(stride, int) else stride[-1]
        return self.texts("step.moved", stride=step)

    def entries(self, view: WindowView, bound: dict[str, Any]) -> Iterator[Values]:
        """What the formula starts from, where its lines do not show it."""
        for name, value in bound.items():
            if isinstance(value, Tensor) and name != "x":
                yield shared.values(self.paper.name(name), value)

    def said(self, view: WindowView, trace: Trace) -> Iterator[str]:
        """A sentence on the result."""
        return iter(())

    def listed(self, numbers: Sequence[float]) -> str:
        """Write the first numbers one after the other."""
        joined = self.texts("punctuation.list").join(map(shared.number, numbers[:LISTED]))
        return joined + ("…" if len(numbers) > LISTED else "")

    def check(self) -> Check | None:
        """The whole formula where that is small, else the worked windows, against the layer's real output."""
        window = self.bound["window"]
        inner = getattr(window, "window", window)
        entries = self.output.numel() * prod(line.coordinates.shape[-1] for line in inner.lines)
        if entries <= WHOLE:
            traced = self.tracer(**self.bound).result
            traced = traced[0] if isinstance(traced, tuple) else traced
            return shared.check(traced.reshape(self.output.shape), self.output, self.backend, self.texts)
        results = [_result(trace) for _, trace in self.traces]
        real = torch.stack([self.output[place] for place, _ in self.traces])
        return shared.check(torch.stack(results), real, self.backend, self.texts)

    def notes(self) -> Iterator[str]:
        """Which sample and channel are worked out."""
        yield from super().notes()
        if self.batched and self.x.shape[0] > 1:
            yield self.texts("note.first_sample", batch=self.x.shape[0])
        if self.output.ndim > self.layer.spatial and self.output.shape[-1 - self.layer.spatial] > 1:
            yield self.texts("note.first_channel", channels=self.output.shape[-1 - self.layer.spatial])

    # -- drawing ------------------------------------------------------------------------------------------------

    def drawn(self, view: WindowView) -> tuple[Marks, Tensor, tuple[str, ...]]:
        """Return the marked places, the numbers of the axes that are drawn, and the names of these axes."""
        return self.marks(view), self.sample[view.channels.start], AXES[self.layer.spatial]

    @property
    def sample(self) -> Tensor:
        """The first sample: (channels, *space)."""
        return self.x[0] if self.batched else self.x

    def picture(self, view: WindowView) -> Picture:
        """Draw which places of the input the window touches."""
        marks, plane, names = self.drawn(view)
        size = tuple(plane.shape)
        ranges = []
        for axis, extent in enumerate(size):
            low = min([0, *(place[axis] for place in marks)])
            high = max([0, *(place[axis] + 1 for place in marks)])
            ranges.append(range(low, max(high, min(extent, DRAWN))))
        *outer, rows, columns = [range(1), range(1), *ranges][-3:]
        blocks = []
        for block in outer[0]:
            places = [[(block, row, column)[3 - len(size) :] for column in columns] for row in rows]
            blocks.append(tuple(tuple(self.cell(marks, place, size) for place in row) for row in places))
        axes = [self.texts.axis(name) for name in names]
        tokens = self.request.tokens
        heads = [tokens[c] if tokens and 0 <= c < len(tokens) else "" for c in columns]
        return Picture(
            title=self.texts("picture.window", shape=sizes_of(size), axes=" × ".join(axes)),
            blocks=tuple(blocks),
            block_titles=tuple(f"{axes[0]} {block}" for block in outer[0]) if len(size) == 3 else (),
            across=axes[-1],
            down=axes[-2] if len(size) > 1 else "",
            legend=self.legend(),
            columns=tuple(heads) if tokens else (),
            numbers=tuple(self.numbers(view, plane, ranges).reshape(len(outer[0]), len(rows), len(columns))),
            note=self.texts("picture.channel", channels=len(view.channels)) if self.hides_channels(view, size) else "",
        )

    def hides_channels(self, view: WindowView, size: Sequence[int]) -> bool:
        """Whether the window reads more channels than the one that is drawn."""
        return len(view.channels) > 1 and len(size) == self.layer.spatial

    def numbers(self, view: WindowView, plane: Tensor, ranges: Sequence[range]) -> np.ndarray:
        """Return the number at every drawn place: of the input, and of the padding where the window reads it."""
        found = np.full([len(places) for places in ranges], np.nan)
        inside = plane[tuple(slice(places.stop) for places in ranges)].detach().cpu().double().numpy()
        found[tuple(slice(-r.start, n - r.start) for r, n in zip(ranges, inside.shape, strict=True))] = inside
        entries = view.entries.detach().cpu().double().numpy()
        entries = entries.reshape(len(view.channels), -1, view.padding.numel())[:, 0]  # kernels of a channel read alike
        axes = ranges[-self.layer.spatial :]
        if len(ranges) > len(axes):
            channels = found[view.channels.start : view.channels.stop]  # one after the other down the drawing
        else:
            channels, entries = found[np.newaxis], entries[:1]
        for place, entry in self.outside(view).items():
            at: list[Any] = [p - places.start for p, places in zip(place, axes, strict=True)]
            channels[(slice(None), *at)] = entries[:, entry]
        return found

    def cell(self, marks: Marks, place: tuple[int, ...], size: Sequence[int]) -> str:
        """What is drawn at a place."""
        inside = all(0 <= p < n for p, n in zip(place, size, strict=True))
        return marks.get(place, "free" if inside else "padding")

    def legend(self) -> dict[str, str]:
        """What the marks mean."""
        keys = ("touched", "greatest", "padding touched", "free", "padding")
        return {key: self.texts(f"legend.{key.replace(' ', '_')}") for key in keys}

    def marks(self, view: WindowView) -> Marks:
        """Return the places that a window touches; those in a padding of zeros where they can be told."""
        entries = view.coordinates.flatten(0, -2)
        padded = view.padding.flatten()
        found = {
            tuple(c.tolist()): "touched" for c, out in zip(entries, padded, strict=True) if not out and c.min() >= 0
        }
        for place in self.outside(view):
            found.setdefault(place, "padding touched")
        return found

    def outside(self, view: WindowView) -> dict[tuple[int, ...], int]:
        """Return the places outside the input, told from an entry inside it and the dilation, and what reads there."""
        if not bool(view.padding.any()) or getattr(self.layer, "transposed", False):
            return {}
        spatial, dilation = self.layer.spatial, getattr(self.layer, "dilation", 1)
        steps = (dilation,) * spatial if isinstance(dilation, int) else tuple(dilation)
        axes: list[list[int]] = []
        for axis, size in enumerate(view.padding.shape):
            inside = (~view.padding & (view.coordinates.min(-1).values >= 0)).movedim(axis, 0).reshape(size, -1).any(1)
            if not bool(inside.any()):
                return {}
            first = int(inside.nonzero()[0])
            row = view.coordinates[..., axis].movedim(axis, 0).reshape(size, -1)[first]
            anchor = int(row[row >= 0][0])
            axes.append([anchor + (k - first) * steps[axis % len(steps)] for k in range(size)])
        places = zip(itertools.product(*axes), view.padding.flatten().tolist(), strict=True)
        return {place: entry for entry, (place, out) in enumerate(places) if out}


class ConvolutionExplained(WindowedExplained):
    """Those of a convolution."""

    family = "convolution"

    def idea(self) -> tuple[str, ...]:
        """Convolution in general, and what is special about this one."""
        return (*self.texts.paragraphs("idea.convolution"), *self.special(self.layer))

    def special(self, layer: Any) -> list[str]:
        """What is special about a convolution."""
        keys = []
        if layer.transposed:
            keys.append("transposed")
        if max(layer.dilation) > 1:
            keys.append("dilated")
        if layer.groups > 1:
            keys.append("grouped")
        if layer.spatial == 1:
            keys.append("text" if layer.groups == 1 else "text_grouped")
        facts = {
            "kernel": fact_text("kernel_size", layer.kernel_size, self.texts),
            "dilation": fact_text("dilation", layer.dilation, self.texts),
            "reach": fact_text("reach", layer.reach, self.texts),
            "groups": layer.groups,
            "channels": layer.in_channels,
            "stride": fact_text("stride", layer.stride, self.texts),
        }
        return [part for key in keys for part in self.texts.paragraphs(f"idea.convolution_{key}", **facts)]

    def sized(self) -> Iterator[str]:
        """What picks one of the sizes that a transposed convolution may give."""
        if not getattr(self.layer, "transposed", False):
            return
        wanted, more = self.request.options.get("output_size"), self.layer.output_padding
        if wanted is not None:
            size = fact_text("output_size", tuple(wanted)[-self.layer.spatial :], self.texts)
            yield self.texts("why.conv.output.wanted", output_size=size)
        elif any(more):
            size = fact_text("output_padding", more, self.texts)
            yield self.texts("why.conv.output.more", output_padding=size)

    def said(self, view: WindowView, trace: Trace) -> Iterator[str]:
        """The sum written out."""
        assert view.kernel is not None
        entries, kernel = view.entries.flatten().tolist(), view.kernel.flatten().tolist()
        if len(entries) > LISTED:
            return
        terms = " + ".join(f"{_signed(e)}·{_signed(k)}" for e, k in zip(entries, kernel, strict=True))
        total = float(trace.result)
        bias = f" + {_signed(float(view.bias.detach()))}" if isinstance(view.bias, Tensor) else ""
        yield f"{terms}{bias} = {shared.number(total)}"

    def drawn(self, view: WindowView) -> tuple[Marks, Tensor, tuple[str, ...]]:
        """Along one axis, as over a text, the channels that the window spans are drawn one under the other."""
        marks, plane, names = super().drawn(view)
        if self.layer.spatial > 1 or self.layer.in_channels == 1:
            return marks, plane, names
        spread = {(channel, *place): mark for channel in view.channels for place, mark in marks.items()}
        return spread, self.sample, ("in channels", *names)


class SeparableExplained(ConvolutionExplained):
    """Those of a separable convolution."""

    def idea(self) -> tuple[str, ...]:
        """Convolution in general, and what the two halves of this one do."""
        layer, texts = self.layer, self.texts
        inner = layer.in_channels * layer.depth_multiplier
        kernel = prod(layer.kernel_size)
        facts = {
            "channels": layer.in_channels,
            "multiplier": layer.depth_multiplier,
            "inner": inner,
            "out_channels": layer.out_channels,
            "ours": inner * (kernel + layer.out_channels),
            "full": layer.in_channels * kernel * layer.out_channels,
        }
        return (*texts.paragraphs("idea.convolution"), *texts.paragraphs("idea.convolution_separable", **facts))

    def notation(self) -> Iterator[str]:
        """What ``channels`` stands for."""
        yield from super().notation()
        yield self.texts("notation.channels")

    def said(self, view: WindowView, trace: Trace) -> Iterator[str]:
        """The mixing of the channels written out."""
        z = next(record.value for record in trace.records if record.site.name == "z").tolist()
        mix = self.layer.pointwise.weight[view.output[-1 - self.layer.spatial]].flatten().tolist()
        if len(z) <= LISTED:
            terms = " + ".join(f"{_signed(a)}·{_signed(b)}" for a, b in zip(z, mix, strict=True))
            bias = "" if self.layer.bias is None else f" + {_signed(float(self.layer.bias[0].detach()))}"
            yield f"{terms}{bias} = {shared.number(float(trace.result))}"


class ConvPoolingExplained(ConvolutionExplained):
    """Those of a convolution with its pooling."""

    family = "conv_pool"

    def idea(self) -> tuple[str, ...]:
        """Convolution, what the greatest of a patch tells, and whether it may be taken before the activation."""
        keys = ["idea.conv_pool"]
        if rises_from_zero(self.layer.activation):
            keys.append("idea.conv_pool_rising")
        facts = {"activation": shared.function_name(self.layer.activation)}
        own = [part for key in keys for part in self.texts.paragraphs(key, **facts)]
        return (*self.texts.paragraphs("idea.convolution"), *self.special(self.layer.convolution), *own)

    def notation(self) -> Iterator[str]:
        """What the formula's functions stand for."""
        yield from super().notation()
        yield self.texts("notation.patch", size=sizes_of(self.layer.pool_size))
        yield self.texts("notation.activation", name=shared.function_name(self.layer.activation))

    def moved(self) -> str:
        """How the patch came here from the position before."""
        return self.texts("step.moved_patch", stride=self.layer.pool_stride[-1])

    def said(self, view: WindowView, trace: Trace) -> Iterator[str]:
        """Which feature is the greatest, how it came about, and that its place is lost."""
        features = next(record.value for record in trace.records if record.site.name == "features").flatten()
        entries = self.listed(features.tolist())
        place = self.layer.features_at(view.output[-self.layer.spatial :])[int(features.argmax())]
        yield self.texts("step.greatest", entries=entries, result=shared.number(float(trace.result)))
        yield self.texts("step.patch_winner", place=", ".join(map(str, place)))

    def marks(self, view: WindowView) -> Marks:
        """The windows of all features of the patch; that of the greatest one has a mark of its own."""
        found: Marks = {}
        for place in self.layer.features_at(view.output[-self.layer.spatial :]):
            found |= super().marks(self.layer.convolution.window_at(self.x, place))
        best = {place: "greatest" for place, mark in super().marks(view).items() if mark == "touched"}
        return found | best

    def legend(self) -> dict[str, str]:
        """Several windows are drawn at once here."""
        own = {"touched": "legend.patch", "greatest": "legend.greatest_window"}
        return super().legend() | {mark: self.texts(key) for mark, key in own.items()}


class PoolingExplained(WindowedExplained):
    """Those of a pooling."""

    family = "pooling"

    def subject(self) -> str:
        """The layer with what torch's own text of it leaves out."""
        text = super().subject()
        given = {name: getattr(self.layer, name, usual) for name, usual in LEFT_OUT.items()}
        more = [f", {n}={v}" for n, v in given.items() if v != LEFT_OUT[n] and f"{n}=" not in text]
        return "".join((text[:-1], *more, ")"))

    def idea(self) -> tuple[str, ...]:
        """Pooling in general, and by what this one reduces."""
        kind = "average" if isinstance(self.layer, Average) else "greatest"
        return (*self.texts.paragraphs("idea.pooling"), *self.texts.paragraphs(f"idea.pooling_{kind}"))

    def notation(self) -> Iterator[str]:
        """What ``reduce`` stands for."""
        yield from super().notation()
        yield self.texts(f"notation.{self.reduction()}", divisor=getattr(self.layer, "divisor_override", None))

    def reduction(self) -> str:
        """How one number is made of a window."""
        layer = self.layer
        if not isinstance(layer, Average):
            return "greatest"
        if getattr(layer, "divisor_override", None) is not None:
            return "mean_divided"
        if not any(pytree.tree_leaves(getattr(layer, "padding", 0))):
            return "mean"
        return "mean_padded" if layer.count_include_pad else "mean_unpadded"

    def sized(self) -> Iterator[str]:
        """Where the last window may lie."""
        if getattr(self.layer, "ceil_mode", False):
            yield self.texts("why.pool.output.ceil")

    def entries(self, view: WindowView, bound: dict[str, Any]) -> Iterator[Values]:
        """The lines show the window themselves."""
        return iter(())

    def said(self, view: WindowView, trace: Trace) -> Iterator[str]:
        """The result in a sentence."""
        read = view.entries[view.coordinates.min(-1).values >= 0].tolist()
        facts: dict[str, Any] = {"entries": self.listed(read), "result": shared.number(float(_result(trace)))}
        if not isinstance(self.layer, Average):
            yield self.texts("step.greatest", **facts)
            return
        position = view.output[-self.layer.spatial :]
        divisor = int(self.layer.bind(self.x, position=position)["reduce"].divisor)
        yield self.texts("step.mean", divisor=divisor, **facts)

    def marks(self, view: WindowView) -> Marks:
        """The greatest entry has a mark of its own."""
        found = super().marks(view)
        if not isinstance(self.layer, Average):
            best = int(view.entries.flatten().argmax())
            found[tuple(view.coordinates.flatten(0, -2)[best].tolist())] = "greatest"
        return found


class LengthPoolExplained(ComponentExplained):
    """Those of a pooling over the real steps of sequences."""

    layer: Any

    def notation(self) -> Iterator[str]:
        """What ``window`` and ``reduce`` stand for."""
        yield from super().notation()
        yield self.texts(f"notation.steps_{self.layer.mode}")


def _result(trace: Trace) -> Tensor:
    """What a window gives, without the place of the greatest entry."""
    return trace.result[0] if isinstance(trace.result, tuple) else trace.result


def _signed(number: float) -> str:
    text = shared.number(number)
    return f"({text})" if text.startswith("-") else text
