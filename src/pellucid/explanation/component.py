"""Explains a layer that is one formula, by running the formula's lines on what its symbols stand for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from pellucid.explanation import request as shared
from pellucid.explanation.cost import Tally, bytes_of, count
from pellucid.explanation.lines import Lines
from pellucid.explanation.mathml import block
from pellucid.explanation.paper import letter
from pellucid.explanation.report import Check, Cost, Picture, Report, Rows, Step, SymbolRow, Total, Values
from pellucid.explanation.request import Request
from pellucid.explanation.texts import Sizes, Texts
from pellucid.explanation.trace import Trace, Tracer
from pellucid.explanation.typesetting import sizes_of
from pellucid.keeping import copied, left_alone
from pellucid.nn.component import Component, SymbolShape
from pellucid.nn.swapped.exchange import kind_of, runs_as

DRAWN_STEPS = 2  # steps whose pictures stand for the layer
EACH = ("stride", "padding", "output_padding", "dilation", "pool_stride")


class ComponentExplained:
    """The parts of the report on one component; families say more about their own."""

    family = "component"

    def __init__(self, request: Request) -> None:
        assert isinstance(request.layer, Component)
        self.request, self.texts, self.layer = request, request.texts, request.layer
        self.kind = runs_as(kind_of(request.layer)).__name__
        with torch.no_grad():
            self.bound = self.bind()
        self.lines = self.read_lines()
        self.tracer = Tracer(self.lines)
        self.paper = self.lines.paper()

    def bind(self) -> dict[str, Any]:
        """What the formula's symbols stand for."""
        return self.layer.bind(*self.request.inputs, **self.request.options)

    def read_lines(self) -> Lines:
        """The formula's lines."""
        numbers = [name for name, value in self.bound.items() if isinstance(value, (int, float))]
        return Lines(self.layer.formula, numbers=numbers)

    def report(self) -> Report:
        """Put everything together."""
        return replace(self.without_cost(), cost=self.cost())

    @parametrize.cached()
    def without_cost(self) -> Report:
        """All but the cost, to which computing the weights belongs; what is shown reads them once."""
        texts = self.texts
        lines = self.lines.on_paper(self.paper)
        with torch.no_grad(), left_alone(self.layer):
            self.real = self.layer(*copied(self.request.inputs), **self.request.options)
            self.backend = getattr(self.layer, "backend", None)
        steps = tuple(self.steps())
        return Report(
            lang=texts.lang,
            title=self.title(),
            subject=self.subject(),
            idea=self.idea(),
            formula=tuple(map(str, lines)),
            mathml=tuple(map(block, lines)),
            code=tuple(self.lines.code),
            notation=tuple(self.notation()),
            symbols=tuple(self.row(symbol) for symbol in self.layer.symbols(*self.request.inputs)),
            totals=tuple(self.totals()),
            cost=None,
            steps=steps,
            check=self.check(),
            notes=(*self.request.notes, *shared.unknown_source(self.lines, texts), *self.notes()),
            figures=tuple(self.figures(steps)),
            words=shared.words(texts),
        )

    # -- words --------------------------------------------------------------------------------------------------

    def title(self) -> str:
        """Name the layer and what kind it is."""
        key = f"title.{self.family}"
        return self.texts(key if key in self.texts else "title.component", layer=self.kind)

    def subject(self) -> str:
        """The layer as Python writes it, without the layers that it holds."""
        layer = self.request.layer
        inside = any(True for _ in layer.children())
        return f"{layer._get_name()}({layer.extra_repr()})" if inside else str(layer).splitlines()[0]

    def idea(self) -> tuple[str, ...]:
        """What the family is for, and what this member of it does."""
        keys = [f"idea.{self.family}", f"idea.{self.family}_{self.kind.lower()}"]
        return tuple(part for key in keys if key in self.texts for part in self.texts.paragraphs(key))

    def notation(self) -> Iterator[str]:
        """The marks of the formula, and the numbers that are chosen and not learned."""
        yield from shared.notation(self.paper, self.texts)
        for name, value in self.bound.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                number = shared.number(value) if isinstance(value, float) else str(value)
                own: Any = getattr(self.layer, name, value) if name == "p" else value
                if own != value:
                    yield self.texts("notation.p_eval", p=shared.number(own))
                    continue
                yield self.texts("notation.hyperparameter", name=letter(name), value=number)
        for name, parameter in inspect.signature(self.layer.formula).parameters.items():
            if name not in self.bound and isinstance(parameter.default, (int, float)):
                yield self.texts("notation.constant", name=letter(name), value=shared.number(parameter.default))

    def notes(self) -> Iterator[str]:
        """What else the reader should know."""
        for name, value in self.request.options.items():
            yield self.texts("note.option", name=name, value=str(value))

    # -- symbols and counts -------------------------------------------------------------------------------------

    def row(self, symbol: SymbolShape) -> SymbolRow:
        """Translate one symbol."""
        texts, key = self.texts, f"why.{symbol.reason}"
        facts = {name: fact_text(name, fact, texts) for name, fact in self.facts(symbol).items()}
        shape = sizes_of(symbol.shape)
        axes = tuple(texts.axis(axis) for axis in symbol.axes)
        facts |= {"name": letter(symbol.name), "shape": shape, "axes": " × ".join(axes)}
        reasons = (texts(key, **facts),) if key in texts else ()
        role = {"x": "input", "y": "output"}.get(symbol.name, "given")
        if symbol.trainable or symbol.fixed:
            role = "parameter" if symbol.trainable else "fixed"
        own = f"role.{symbol.name}"
        return SymbolRow(
            name=letter(symbol.name),
            shape=symbol.shape,
            shape_text=shape,
            axes=axes,
            count=prod(symbol.shape),
            role=texts(own if own in texts else f"role.{role}"),
            trainable=symbol.trainable,
            reasons=reasons,
        )

    def facts(self, symbol: SymbolShape) -> dict[str, Any]:
        """The facts that the reason of a symbol may quote."""
        return dict(symbol.facts)

    def totals(self) -> Iterator[Total]:
        """The weights that are learned."""
        learned = [s for s in self.layer.symbols() if s.trainable]
        terms = " + ".join(f"{letter(s.name)} {prod(s.shape):,}" for s in learned)
        key = "total.component" if learned else "total.none"
        total = Total(self.texts(key, terms=terms), sum(prod(s.shape) for s in learned))
        yield from (total, *shared.registered(self.layer, [total], self.texts))

    def cost(self) -> Cost:
        """One pass of the formula, which reads what its symbols stand for, and what layers among these hold."""
        leaves = pytree.tree_leaves(list(self.bound.values()))
        tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}
        for layer in leaves:
            if isinstance(layer, torch.nn.Module):
                tensors |= {id(held): held for held in layer.parameters()}
        result = self.real[0] if isinstance(self.real, tuple) else self.real
        tally = self.tally()
        x = self.request.inputs[0]
        facts = {"shape": sizes_of(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
        scope = self.texts("cost.component", **facts)
        return shared.cost(
            tally, bytes_of(list(tensors.values())) + bytes_of(result), shared.trainable(self.layer), scope, self.texts
        )

    def tally(self) -> Tally:
        """What the formula's operations cost."""
        return count(self.layer.formula, (), self.bound)

    # -- running ------------------------------------------------------------------------------------------------

    def run(self) -> Trace:
        """Run the formula's lines on what its symbols stand for."""
        return self.tracer(**self.bound)

    def steps(self) -> Iterator[Step]:
        """The formula's lines with the real numbers."""
        self.trace = self.run()
        given = [(name, v) for name, v in self.bound.items() if isinstance(v, Tensor) and v.numel()]
        values = [shared.values(self.paper.name(name), value) for name, value in given]
        yield Step(self.texts("step.lines"), (*values, *self.recorded(self.trace)))

    def figures(self, steps: Sequence[Step]) -> Iterator[Picture | Rows]:
        """What shows the layer at a glance: the drawings of the first two steps."""
        for step in steps[:DRAWN_STEPS]:
            yield from (part for part in step.parts if isinstance(part, Picture))

    def check(self) -> Check | None:
        """The traced result against the layer's real output."""
        traced, real = self.trace.result, self.real
        if isinstance(real, tuple):
            traced, real = traced[0], real[0]
        return shared.check(traced.reshape(real.shape), real, self.backend, self.texts)

    def recorded(self, trace: Trace) -> list[Values]:
        """The values of a trace under their labels."""
        return shared.recorded(trace, self.paper)


def fact_text(name: str, fact: Any, texts: Texts) -> Any:
    """Write a fact of a symbol as a text quotes it; whole numbers stay countable.

    Sizes along several axes are 3×3; a stride, padding or dilation that is the same along all axes is one number.
    """
    if isinstance(fact, (tuple, list)):
        if name in EACH:
            return str(fact[0]) if len(set(fact)) == 1 else f"({', '.join(map(str, fact))})"
        numbers = all(isinstance(part, int) for part in fact)
        parts = [str(part) if isinstance(part, int) else texts.axis(str(part)) for part in fact]
        return Sizes("×".join(parts)) if numbers else " × ".join(parts)
    if isinstance(fact, float):
        return shared.number(fact)
    return texts(f"padding.{fact}") if name == "padding" and isinstance(fact, str) else fact
