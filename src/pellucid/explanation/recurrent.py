"""Explains a recurrent layer: one worked step for every element of the sequence, by the cell's own lines."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from pellucid.explanation import request as shared
from pellucid.explanation.cost import bytes_of
from pellucid.explanation.mathml import block
from pellucid.explanation.paper import letter
from pellucid.explanation.reading import FirstSequence, Reading, read
from pellucid.explanation.reasons import dim_text, sentences
from pellucid.explanation.report import Cost, Report, Step, SymbolRow, Total, Values
from pellucid.explanation.request import Request
from pellucid.explanation.trace import Trace
from pellucid.explanation.typesetting import shape_of
from pellucid.explanation.unrolling import unrolled
from pellucid.formula.shapes import split_result
from pellucid.nn import cells
from pellucid.nn.recurrence.sequence import SequenceLayer
from pellucid.nn.swapped.exchange import kind_of, runs_as

WORKED = 8  # steps that are worked out unless the caller says otherwise
TWINS = {"rnn": "RNN", "rnn_relu": "RNN", "lstm": "LSTM", "lstm_projected": "LSTM", "gru": "GRU"}
THEIRS = {"U": "weight_ih", "W": "weight_hh", "P": "weight_hr"}


class RecurrentExplained:
    """The parts of the report on one layer."""

    def __init__(self, request: Request) -> None:
        assert isinstance(request.layer, SequenceLayer)
        self.request, self.texts, self.layer = request, request.texts, request.layer
        self.source = self.layer.cell.source
        self.reading = Reading(self.layer)
        self.lines = self.reading.lines
        self.paper = self.lines.paper()
        self.built_in = getattr(cells, self.source.name, None) is self.layer.cell
        with torch.enable_grad():
            every = [self.layer.symbol_values(*place) for place in self.reading.places]
        self.learned_at, self.detached = [], 0  # names in every place; entries in all that the formula detaches
        for values, (level, _) in zip(every, self.reading.places, strict=True):
            names = {name for name, value in values.items() if value.requires_grad}
            detached = set() if self.built_in else names - self.layer.trained(level)
            self.learned_at.append(names - detached)
            self.detached += sum(values[name].numel() for name in detached)
        self.learned = self.learned_at[0]
        self.left_out = () if getattr(self.layer, "bias", True) else ("b", "c")  # torch's biases
        self.twin = self.torch_twin() if self.built_in and self.source.name in TWINS else None

    @parametrize.cached()
    def report(self) -> Report:
        """Put everything together."""
        texts = self.texts
        lines = self.lines.on_paper(self.paper)
        sequence = self.sequence
        worked = min(sequence.steps, WORKED if self.request.steps is None else self.request.steps)
        traced, traces, last = self.reading.run(sequence, worked)
        check = shared.check(traced, sequence.output, sequence.backend, texts)
        if self.layer.training and self.layer.solution().sites:
            traces, last = self.reading.train(sequence, worked, self.request.seed)
        name = runs_as(kind_of(self.layer)).__name__
        return Report(
            lang=texts.lang,
            title=texts("title.recurrent", layer=self.source.name if name == "Recurrent" else name),
            subject=str(self.layer).splitlines()[0],
            idea=self.idea(),
            formula=tuple(map(str, lines)),
            mathml=tuple(map(block, lines)),
            code=tuple(self.lines.code),
            notation=tuple(self.notation()),
            symbols=tuple(self.symbols()),
            totals=tuple(self.totals()),
            cost=self.cost(sequence),
            steps=tuple(self.steps(sequence, traces, last)),
            check=check,
            notes=(*self.request.notes, *shared.unknown_source(self.lines, texts), *self.notes(sequence)),
            figures=(unrolled(self.reading, sequence.steps, self.token, texts),) if sequence.steps else (),
            words=shared.words(texts),
        )

    @functools.cached_property
    def sequence(self) -> FirstSequence:
        """What the layer reads, and what it gave for it."""
        return read(self.request)

    def torch_twin(self) -> torch.nn.Module:
        """Return torch's layer of the same kind and sizes, without storage."""
        layer, name = self.layer, TWINS[self.source.name]
        sizes, bias = (layer.input_size, layer.hidden_size), getattr(layer, "bias", True)
        if isinstance(layer, torch.nn.RNNCellBase):
            return getattr(torch.nn, name + "Cell")(*sizes, bias, device="meta")
        options = {"proj_size": layer.solution().sizes["proj"]} if self.source.name == "lstm_projected" else {}
        options |= {"bias": bias, "bidirectional": layer.bidirectional}
        return getattr(torch.nn, name)(*sizes, layer.num_layers, device="meta", **options)

    # -- words --------------------------------------------------------------------------------------------------

    def idea(self) -> tuple[str, ...]:
        """What a recurrent layer is for; then what this cell is, or what its author says of it."""
        texts, name = self.texts, self.source.name
        own: tuple[str, ...] = ()
        if self.built_in and f"idea.cell.{name}" in texts:
            own = texts.paragraphs(f"idea.cell.{name}")
        elif self.source.doc:
            own = (texts("idea.author", name=name, doc=" ".join(self.source.doc.split())),)
        return (*texts.paragraphs("idea.recurrent"), *own)

    def notation(self) -> list[str]:
        """The moments, the marks, and the numbers that are chosen and not learned."""
        first, state = (letter(symbols[0].name) for symbols in (self.source.inputs, self.source.states))
        found = [self.texts("notation.time", x=first, h=state)]
        found += shared.notation(self.paper, self.texts)
        for name, value in self.layer.hyperparameters.items():
            shown = shared.number(value) if isinstance(value, float) else str(value)
            found.append(self.texts("notation.hyperparameter", name=letter(name), value=shown))
        for symbol in self.source.parameters:
            if symbol.name in self.left_out:
                found.append(self.texts("notation.hyperparameter", name=letter(symbol.name), value="0"))
        return found

    def notes(self, sequence: FirstSequence) -> list[str]:
        """What else the reader should know."""
        texts, layer, found = self.texts, self.layer, []
        if sequence.batch > 1:
            found.append(texts("note.batch", batch=sequence.batch))
        if len(self.reading.places) > 1:
            found.append(texts("note.levels", levels=layer.num_layers, directions=self.reading.directions))
        if layer.num_layers > 1:
            first, above = layer.solution(0).symbols, layer.solution(1).symbols
            other = [f"{letter(n)} {shape_of(s.shape)}" for n, s in above.items() if s.shape != first[n].shape]
            if other:
                found.append(texts("note.above", shapes=texts("punctuation.list").join(other)))
        if layer.training and layer.solution().sites:
            found.append(texts("note.training"))
        if layer.num_layers > 1 and layer.dropout > 0:
            found.append(texts("note.between", p=shared.number(layer.dropout)))
        return found

    # -- symbols and counts -------------------------------------------------------------------------------------

    def symbols(self) -> Iterator[SymbolRow]:
        """Every symbol with its shape and the reasons for it."""
        solution, texts = self.layer.solution(), self.texts
        for symbol in self.source.symbols:
            if symbol.role == "hyperparameter":
                continue
            solved = solution.symbols[symbol.name]
            axes = tuple(dim_text(dim, texts) for dim in solved.dims)
            fixed = symbol.role == "parameter" and symbol.name not in self.learned
            reasons = sentences(solved, solution, symbol.role, texts)
            if not solved.dims:
                reasons = (texts("reason.scalar", name=letter(symbol.name)),)
            yield SymbolRow(
                name=letter(symbol.name),
                shape=solved.shape,
                shape_text=shape_of(solved.shape),
                axes=("1", *axes) if len(axes) == 1 else axes,
                count=prod(solved.shape),
                role=texts("role.fixed" if fixed else f"role.{symbol.role}"),
                trainable=symbol.name in self.learned,
                reasons=(*reasons, *self.transposed(symbol.name)),
            )

    def transposed(self, name: str) -> Iterator[str]:
        """Say where torch keeps a matrix of the formula."""
        ours, theirs = self.layer.solution().symbols[name], THEIRS.get(name, "")
        names = dict(self.twin.named_parameters()) if self.twin is not None else {}
        for key in (f"{theirs}_l0", theirs):
            if key in names:
                facts = {"shape": shape_of(ours.shape), "theirs_shape": shape_of(names[key].shape)}
                layer = f"torch.nn.{type(self.twin).__name__}"
                yield self.texts("reason.transposed", ours=letter(name), layer=layer, theirs=key, **facts)

    def totals(self) -> Iterator[Total]:
        """The formula's weights; and where torch.nn has the layer, their number under the other bias convention."""
        texts, places = self.texts, self.reading.places
        sizes = []
        for (level, _), learned in zip(places, self.learned_at, strict=True):
            shapes = self.layer.solution(level).symbols
            sizes.append({name: prod(shapes[name].shape) for name in shapes if name in learned})
        total = sum(sum(of_place.values()) for of_place in sizes)
        terms = " + ".join(f"{letter(name)} {size:,}" for name, size in sizes[0].items())
        key = "total.formula" if len(places) == 1 else "total.formula_levels"
        yield Total(texts(key if total else "total.none", terms=terms or "0", places=len(places)), total)
        own = dict(self.layer.named_parameters())
        fixed = {name for name, p in own.items() if not p.requires_grad}
        if self.twin is None or not total:
            return
        numbers = {name: p.numel() for name, p in self.twin.named_parameters()}
        if fixed and not own.keys() >= numbers.keys():  # which of the twin's are fixed is not known
            return
        numbers = {name: number for name, number in numbers.items() if name not in fixed}
        both = sum(numbers.values())
        one = both - sum(n for name, n in numbers.items() if name.startswith("bias_hh"))
        layer = f"torch.nn.{type(self.twin).__name__}"
        one_bias = "one_bias" if self.reading.directions == 1 else "one_bias_directions"
        for convention, number in ((one_bias, one), ("two_biases", both)):
            if number != total:
                yield Total(texts(f"total.{convention}", layer=layer), number)

    def cost(self, sequence: FirstSequence) -> Cost:
        """One pass over the whole batch."""
        read_and_written = sequence.x.shape[-1] + sequence.output.shape[-1]
        total, ragged = sum(sequence.lengths), len({*sequence.lengths}) > 1
        least = sequence.x.element_size() * total * read_and_written
        for place in self.reading.places:
            values = self.layer.symbol_values(*place)
            least += bytes_of([value for name, value in values.items() if name not in self.left_out])
        facts = {"steps": total if ragged else sequence.steps, "batch": sequence.batch}
        dtype = str(sequence.x.dtype).removeprefix("torch.")
        scope = self.texts("cost.recurrent_lengths" if ragged else "cost.recurrent", dtype=dtype, **facts)
        tally = self.reading.tally(sequence.lengths, sequence.x.dtype)
        return shared.cost(tally, least, shared.trainable(self.layer) - self.detached, scope, self.texts)

    # -- worked steps -------------------------------------------------------------------------------------------

    def steps(self, sequence: FirstSequence, traces: list[Trace], last: list[Tensor]) -> Iterator[Step]:
        """One worked step for every trace; then the end of the sequence."""
        states = sequence.states[0]
        for t, trace in enumerate(traces, 1):
            _, new = split_result(self.source, trace.result)
            parts = [
                *self.entering(t, sequence.inputs(t - 1), states),
                *shared.recorded(trace, self.lines.paper(t), t == 1),
            ]
            states = list(new)
            yield Step(self.title(t, sequence.steps), (*parts, *self.unnamed(parts, states, t)))
        yield self.ending(sequence.steps, len(traces), last)

    def title(self, t: int, steps: int) -> str:
        """Number a step, and name what enters."""
        token = self.token(t)
        if token is None:
            return self.texts("step.title", t=t, steps=steps)
        return self.texts("step.title_token", t=t, steps=steps, token=token)

    def token(self, t: int) -> str | None:
        """The name of what enters at a step, if it has one."""
        tokens = self.request.tokens
        return tokens[t - 1] if tokens is not None and t <= len(tokens) else None

    def entering(self, t: int, inputs: list[Tensor], states: list[Tensor]) -> list[str | Values]:
        """What a step starts from."""
        texts, paper, token = self.texts, self.lines.paper(t), self.token(t)
        names = [paper.name(symbol.name, "now") for symbol in self.source.inputs]
        parts: list[str | Values] = []
        if token is not None:
            parts.append(texts("step.enters_token", x=names[0], token=token))
        parts += [shared.values(name, value) for name, value in zip(names, inputs, strict=True)]
        for symbol, state in zip(self.source.states, states, strict=True):
            note = texts("step.zeros") if t == 1 and not bool(state.any()) else ""
            parts.append(shared.values(paper.name(symbol.name, "before"), state, note=note))
        return parts

    def unnamed(self, parts: list[Any], states: list[Tensor], t: int) -> Iterator[Values]:
        """The new state entries that no line has shown under their own names."""
        named = {part.name.split(" = ")[0] for part in parts if isinstance(part, Values)}
        paper = self.lines.paper(t)
        for symbol, state in zip(self.source.states, states, strict=True):
            name = paper.name(symbol.name, "now")
            if str(name) not in named:
                yield shared.values(name, state)

    def stands(self) -> str:
        """Which text says what the last state of the first level, forward, stands for."""
        further = ["_level"] * (self.layer.num_layers > 1) + ["_forward"] * (self.reading.directions > 1)
        return "".join(("stands", *further))

    def ending(self, steps: int, worked: int, last: list[Tensor]) -> Step:
        """What is left after the last step."""
        texts: Any = self.texts
        if not steps:
            return Step(texts("step.last_title"), (texts("step.empty"),))
        name = self.lines.paper(steps).name(self.source.states[0].name, "now")
        key = "step.last" if steps > 1 else "step.last_of_one"
        parts: list[str | Values] = [texts(key, h=name, steps=steps, stands=texts(f"step.{self.stands()}"))]
        if worked < steps:
            key = "step.rest" if worked + 1 < steps else "step.rest_one"
            parts = [texts(key, first=worked + 1, last=steps), *parts, shared.values(name, last[0])]
        return Step(texts("step.last_title"), tuple(parts))
