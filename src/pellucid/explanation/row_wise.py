"""Explains a row-wise layer: the author's lines on the rows of an input, with the draws of the layer's next call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from pellucid.explanation import examples
from pellucid.explanation.component import ComponentExplained
from pellucid.explanation.lines import Lines
from pellucid.explanation.paper import letter
from pellucid.explanation.reasons import dim_text, sentences
from pellucid.explanation.report import SymbolRow
from pellucid.explanation.request import Request
from pellucid.explanation.trace import Trace
from pellucid.formula.draws import provided_by
from pellucid.formula.graph import Given
from pellucid.nn.component import SymbolShape
from pellucid.nn.rows.row_wise import DRAWS, RowWise


class RowWiseExplained(ComponentExplained):
    """The parts of the report on a row-wise layer."""

    family = "row_wise"
    layer: Any

    def __init__(self, request: Request) -> None:
        assert isinstance(request.layer, RowWise)
        self.source = request.layer.layer.source
        _complete(request, [symbol.name for symbol in self.source.inputs])
        super().__init__(request)
        self.kind = request.layer._get_name()

    def read_lines(self) -> Lines:
        """The author's lines; a scalar counts as a number there."""
        scalars = [n for n, v in self.bound.items() if isinstance(v, (int, float)) or (_is_tensor(v) and not v.ndim)]
        return Lines(self.source.function, numbers=scalars)

    def run(self) -> Trace:
        """Run the lines with the draws of the next call."""
        values = {name: value for name, value in self.bound.items() if name != DRAWS}
        inputs = [values.pop(symbol.name) for symbol in self.source.inputs]
        with provided_by(Given(self.bound.get(DRAWS, ()), self.layer.training)):
            return self.tracer(*inputs, **values)

    def idea(self) -> tuple[str, ...]:
        """What such a layer is for; then what this one is, or what its author says of it."""
        found, doc = super().idea(), " ".join(self.source.doc.split())
        known = f"idea.{self.family}_{self.kind.lower()}" in self.texts and type(self.layer) is not RowWise
        return found if known or not doc else (*found, self.texts("idea.author", name=self.kind, doc=doc))

    def notes(self) -> Iterator[str]:
        """Whether the formula draws now."""
        yield from super().notes()
        if self.layer.solution().sites:
            yield self.texts("note.row_training" if self.layer.training else "note.row_eval")

    def row(self, symbol: SymbolShape) -> SymbolRow:
        """Translate one symbol, with the reasons that the solver kept."""
        row, texts, solution = super().row(symbol), self.texts, self.layer.solution()
        if symbol.reason == "rows.output":
            return replace(row, name=letter(self.lines.output), role=texts("role.output"))
        role = next(known.role for known in self.source.symbols if known.name == symbol.name)
        solved = solution.symbols[symbol.name]
        reasons = (*row.reasons, *sentences(solved, solution, role, texts))
        if role == "parameter":
            reasons = reasons if solved.dims else (texts("reason.scalar", name=letter(symbol.name)),)
            row = replace(row, axes=tuple(dim_text(dim, texts) for dim in solved.dims))
        return replace(row, role=row.role if symbol.fixed else texts(f"role.{role}"), reasons=reasons)


def _complete(request: Request, names: list[str]) -> None:
    """Give a layer of several inputs all of them in order: those given by name, and made-up ones for the rest."""
    given = dict(zip(names, request.inputs, strict=False))
    given |= {name: request.options.pop(name) for name in names if name in request.options and name not in given}
    sizes = request.layer.solution().input_sizes(request.layer.layer.source)  # type: ignore[operator, union-attr]
    for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
        first = given[names[0]]
        if name not in given and _is_tensor(first):
            given[name] = examples.draw((*first.shape[:-1], size), request.seed + index).to(first)
            request.notes.append(request.texts("note.made_up", name=name, seed=request.seed))
    request.inputs = (*(given[name] for name in names if name in given), *request.inputs[len(names) :])


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
