"""A recurrent layer read once more by its author's own lines, level by level and step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from pellucid.errors import label, shape_text
from pellucid.explanation.cost import NOTHING, Tally, count
from pellucid.explanation.lines import Lines
from pellucid.explanation.request import Request, in_eval
from pellucid.explanation.trace import Trace, Tracer
from pellucid.formula import draws
from pellucid.formula.shapes import split_result
from pellucid.nn.recurrence.sequence import SequenceLayer

READ = 512  # a longer sequence is read this far


class Provider:
    """Answers the draws of a cell: none in eval; in training numbers of its own, the same for the same seed."""

    def __init__(self, training: bool, seed: int = 0) -> None:
        self.training = training
        self.generator = torch.Generator().manual_seed(seed)
        self.first: list[Tensor] = []  # what each site drew at the first step
        self.site = 0

    def draw(self, like: Tensor, shared: str | None) -> Tensor:
        """Return numbers in [0, 1) of the shape of ``like``."""
        fresh = torch.rand(like.shape, generator=self.generator, dtype=like.dtype).to(like.device)
        if len(self.first) == self.site:
            self.first.append(fresh)
        self.site += 1
        return self.first[self.site - 1] if shared == "time" else fresh


@dataclass
class FirstSequence:
    """The first sequence of a batch: x (steps, 1, features), and the initial state of every level and direction.

    ``further`` are the inputs after the first, (steps, 1, size), ``output`` is what the layer itself gave for this
    sequence, ``lengths`` are how many real steps each sequence of the batch has, ``backend`` is what ran the layer.
    """

    x: Tensor
    further: list[Tensor]
    states: list[list[Tensor]]
    output: Tensor
    lengths: list[int]
    backend: str

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return self.x.shape[0]

    def inputs(self, step: int) -> list[Tensor]:
        """What the first level reads at a step."""
        return [self.x[step], *(value[step] for value in self.further)]


class Reading:
    """A layer and how its cell is run by itself."""

    def __init__(self, layer: SequenceLayer) -> None:
        self.layer, self.source = layer, layer.cell.source
        self.directions = 2 if layer.bidirectional else 1
        now = [symbol.name for symbol in self.source.inputs]
        before = [symbol.name for symbol in self.source.states]
        self.lines = Lines(layer.cell.function, now, before, numbers=layer.hyperparameters)
        self.tracer = Tracer(self.lines)

    @property
    def places(self) -> list[tuple[int, bool]]:
        """Every level and direction: (level, whether it reads from the end)."""
        return [(level, r) for level in range(self.layer.num_layers) for r in (False, True)[: self.directions]]

    def keywords(self, level: int = 0, reverse: bool = False) -> dict[str, Any]:
        """Return the parameters and hyperparameters of a level and direction."""
        return {**self.layer.symbol_values(level, reverse), **self.layer.hyperparameters}

    def run(self, sequence: FirstSequence, worked: int) -> tuple[Tensor, list[Trace], list[Tensor]]:
        """Run every level by the author's lines, without draws.

        Returns:
            The top's output (steps, features); the traces of the ``worked`` first steps of the first level, forward;
            and that level's last state.
        """
        traces: list[Trace] = []
        last: list[Tensor] = []
        x, outputs = list(sequence.x), []
        with draws.provided_by(Provider(False)):
            for place, (level, reverse) in enumerate(self.places):
                first = place == 0
                states = sequence.states[place]
                rows = [[row, *sequence.inputs(t)[1:]] for t, row in enumerate(x)]
                output, states = self.loop(rows, level, reverse, states, traces, worked if first else 0)
                last = states if first else last
                outputs.append(output)
                if len(outputs) == self.directions:
                    x, outputs = [torch.cat(row, -1) for row in zip(*outputs, strict=True)], []
        top = torch.cat(x) if x else sequence.output
        return top, traces, last

    def loop(
        self,
        rows: Sequence[list[Tensor]],
        level: int,
        reverse: bool,
        states: list[Tensor],
        traces: list[Trace],
        worked: int,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Take the steps of one level and direction, the first ``worked`` recorded; ``rows`` are each step's inputs."""
        keywords, outputs = self.keywords(level, reverse), []
        for step, row in enumerate(reversed(rows) if reverse else rows):
            if step < worked:
                traces.append(self.tracer(*row, *states, **keywords))
                result = traces[-1].result
            else:
                with torch.no_grad():
                    result = self.layer.cell.function(*row, *states, **keywords)
            output, new = split_result(self.source, result)
            states = list(new)
            outputs.append(output)
        return (outputs[::-1] if reverse else outputs), states

    def train(self, sequence: FirstSequence, worked: int, seed: int) -> tuple[list[Trace], list[Tensor]]:
        """Take the worked steps of the first level in training, with draws of the explanation's own."""
        provider, states = Provider(True, seed), sequence.states[0]
        traces: list[Trace] = []
        with draws.provided_by(provider):
            for step in range(worked):
                provider.site = 0
                _, states = self.loop([sequence.inputs(step)], 0, False, states, traces, 1)
        return traces, states

    def tally(self, lengths: Sequence[int], dtype: torch.dtype) -> Tally:
        """Count what a batch of sequences of these lengths costs, over all levels and directions."""
        running = Counter(sum(length > step for length in lengths) for step in range(max(lengths)))
        steps = (
            self.tally_of_step(batch, dtype, level, reverse).times(times)
            for batch, times in running.items()
            for level, reverse in self.places
        )
        return sum(steps, NOTHING)

    def tally_of_step(self, batch: int, dtype: torch.dtype, level: int = 0, reverse: bool = False) -> Tally:
        """Count what one step of a level and direction costs."""
        solved, keywords = self.layer.solution(level).symbols, self.keywords(level, reverse)
        device = next((value.device for value in keywords.values() if isinstance(value, Tensor)), None)
        sizes = [(batch, solved[s.name].shape[-1]) for s in (*self.source.inputs, *self.source.states)]
        rows = [torch.empty(size, dtype=dtype, device=device) for size in sizes]
        with draws.provided_by(Provider(False)):
            return count(self.layer.cell.function, rows, keywords)


def read(request: Request) -> FirstSequence:
    """Run the layer itself and pick the first sequence of what it read; a wrong input gets the layer's own error."""
    layer = request.layer
    assert isinstance(layer, SequenceLayer)
    one_step = isinstance(layer, torch.nn.RNNCellBase)
    x, *rest = request.inputs
    options = dict(request.options)
    state = options.pop("state", options.pop("hx", rest[0] if rest else None))
    lengths = options.pop("lengths", rest[1] if len(rest) > 1 else None)
    further = {symbol.name: options.pop(symbol.name, None) for symbol in layer.cell.source.inputs[1:]}
    further = {name: _ones(request, x, name) if value is None else value for name, value in further.items()}
    x, further, lengths = _cut(request, x, further, lengths, one_step)
    given = further if lengths is None else {"lengths": lengths, **further}
    with torch.no_grad(), in_eval(layer):
        result = layer(x, state, **given, **options)
        backend = layer.backend
    if one_step:
        output = result if isinstance(result, Tensor) else result[0]
        output, x = output.unsqueeze(0), x.unsqueeze(0)
        state = None if state is None else [entry.unsqueeze(0) for entry in _entries(state)]
    else:
        output = result[0]
    read = [x, output, *further.values()]
    if isinstance(x, PackedSequence):
        lengths = pad_packed_sequence(x)[1]
        read = [pad_packed_sequence(value)[0] for value in read]
    read = [value if value.ndim == read[0].ndim else value.unsqueeze(-1) for value in read]  # a further input of one
    states = None if state is None else list(_entries(state))
    if read[0].ndim == 2:
        read = [value.unsqueeze(1) for value in read]
        states = None if states is None else [entry.unsqueeze(1) for entry in states]
    elif layer.batch_first and not one_step and not isinstance(x, PackedSequence):
        read = [value.transpose(0, 1) for value in read]
    return _first(layer, read, states, lengths, backend)


def _ones(request: Request, x: Any, name: str) -> Any:
    """What an input after the first is taken to be where none is given."""
    request.notes.append(request.texts("note.ones", name=name))
    data = x.data if isinstance(x, PackedSequence) else x
    size = request.layer.solution().symbols[name].shape[-1]  # type: ignore[operator]
    ones = data.new_ones(*data.shape[:-1], size)
    return x._replace(data=ones) if isinstance(x, PackedSequence) else ones


def _cut(
    request: Request, x: Any, further: dict[str, Any], lengths: Any, one_step: bool
) -> tuple[Any, dict[str, Any], Any]:
    """Keep the first READ steps of a long input."""
    if not isinstance(x, Tensor) or one_step or x.ndim not in (2, 3):
        return x, further, lengths
    axis = 1 if x.ndim == 3 and request.layer.batch_first else 0
    if x.shape[axis] <= READ:
        return x, further, lengths
    request.notes.append(request.texts("note.cut", read=READ, steps=x.shape[axis]))
    lengths = None if lengths is None else torch.as_tensor(lengths).clamp(max=READ)
    cut = {name: value.narrow(axis, 0, READ) for name, value in further.items()}
    return x.narrow(axis, 0, READ), cut, lengths


def _first(
    layer: SequenceLayer, read: list[Tensor], states: list[Tensor] | None, lengths: Any, backend: str
) -> FirstSequence:
    """Pick the first sequence; ``read`` are x, output and further inputs, (steps, batch, features)."""
    x, output, *further = read
    if not x.shape[1]:
        shape = shape_text(x.shape, ("time", "batch", "features"))
        raise ValueError(f"explain: {label(layer)} was given {shape}: no sequence that could be worked out. Give one.")
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    if states is None:
        sizes = layer.solution().state_sizes(layer.cell.source)
        states = [x.new_zeros(rows, x.shape[1], size) for size in sizes]
    every = [x.shape[0]] * x.shape[1] if lengths is None else torch.as_tensor(lengths).reshape(-1).tolist()
    steps = every[0]
    initial = [[entry[row, :1] for entry in states] for row in range(rows)]
    return FirstSequence(x[:steps, :1], [v[:steps, :1] for v in further], initial, output[:steps, 0], every, backend)


def _entries(state: Any) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else tuple(state)
