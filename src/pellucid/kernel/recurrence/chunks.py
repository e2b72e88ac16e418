"""A long sequence taken in chunks of steps: less memory, recomputed in backward, or a gradient that is cut.

Chen, Xu, Zhang & Guestrin 2016, Training deep nets with sublinear memory cost, arXiv:1604.06174; Williams & Peng 1990,
An efficient gradient-based algorithm for on-line training of recurrent network trajectories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pellucid.kernel.recurrence.call import Call, OneByOne

if TYPE_CHECKING:
    from pellucid.formula.program import Program
    from pellucid.kernel.recurrence.runners import Runner


class Division(NamedTuple):
    """How a sequence is taken: 0 is not at all.

    With ``checkpoint_every`` forward keeps the state at the first of so many steps only, and backward computes each
    chunk again before it differentiates it. With ``truncate`` no gradient passes from a chunk of so many steps to the
    one before. Steps are counted in the order in which they are taken. One divides the other.
    """

    checkpoint_every: int = 0
    truncate: int = 0

    def chunks(self, time: int, reverse: bool) -> list[Chunk]:
        """The chunks of a sequence, in the order in which they are taken; one of no steps for a sequence of none."""
        size = self.checkpoint_every or self.truncate or max(time, 1)
        starts = range(0, max(time, 1), size)
        return [
            Chunk(
                *((time - min(a + size, time), time - a) if reverse else (a, min(a + size, time))),
                cut=bool(self.truncate and a and a % self.truncate == 0),
            )
            for a in starts
        ]


WHOLE = Division()


@dataclass(frozen=True)
class Chunk:
    """Steps from ``begin`` to before ``end``; ``cut``: no gradient passes to the chunk that was taken before."""

    begin: int
    end: int
    cut: bool

    def of(self, steps: Tensor) -> Tensor:
        """The steps of this chunk."""
        return steps[self.begin : self.end]

    def part(self, call: Call) -> Call:
        """The call for this chunk alone."""
        lengths = None if call.lengths is None else (call.lengths - self.begin).clamp(0, self.end - self.begin)
        return call._replace(x=self.of(call.x), lengths=lengths, start=self.begin)


def plainly(
    forward: Callable[..., Any], division: Division, call: Call, states: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Run ``forward(call, states) -> (output, last, ...)``, itself differentiable, chunk by chunk."""
    if division == WHOLE:
        output, last, *_ = forward(call, states)
        return output, last
    outputs = []
    for chunk in division.chunks(call.time, call.reverse):
        if chunk.cut:
            states = [s.detach() for s in states]
        output, states, *_ = forward(chunk.part(call), states)
        outputs.append(output)
    return torch.cat(outputs[::-1] if call.reverse else outputs), list(states)


def divided(runner: Runner, division: Division) -> Runner:
    """The runner of chunks, where there are any."""
    if division == WHOLE:
        return runner
    return Chunked(runner, division)


@dataclass(frozen=True)
class Chunked(OneByOne):
    """Another runner, chunk by chunk: the same methods as `stepwise.Stepwise`."""

    runner: Runner
    division: Division

    @property
    def name(self) -> str:
        """The name of what runs the chunks."""
        return self.runner.name

    @property
    def program(self) -> Program:
        """The program of a step."""
        return self.runner.program

    def forward(
        self, call: Call, states: Sequence[Tensor], save: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """As `stepwise.Stepwise.forward`; with checkpoints it saves the state before each chunk."""
        if not self.division.checkpoint_every:
            return self.runner.forward(call, states, save)
        before: list[Sequence[Tensor]] = []

        def forward(part: Call, states: Sequence[Tensor]) -> Any:
            before.append(states)
            return self.runner.forward(part, states)

        output, last = plainly(forward, self.division, call, states)
        return output, last, [torch.stack(entry) for entry in zip(*before, strict=True)] if save else []

    def backward(
        self,
        call: Call,
        saved: Sequence[Tensor],
        output_gradient: Tensor,
        state_gradients: Sequence[Tensor],
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor | None]]:
        """As `stepwise.Stepwise.backward`."""
        gradients = list(state_gradients)
        of_input: list[Any] = []
        total: list[Tensor | None] = []
        chunks = self.division.chunks(call.time, call.reverse)
        for index, chunk in reversed(list(enumerate(chunks))):
            part = chunk.part(call)
            if self.division.checkpoint_every:
                states = [entry[index] for entry in saved]
                *_, kept = self.runner.forward(part, states, save=True)
            else:
                kept = list(self._saved(saved, chunk, call.batch))
            of_part, gradients, of_parameters = self.runner.backward(
                part, kept, chunk.of(output_gradient), gradients, needed
            )
            if chunk.cut:
                gradients = [torch.zeros_like(g) for g in gradients]
            of_input.append(of_part)
            if not total:
                total = of_parameters
            else:
                total = [
                    None if t is None or g is None else t.add_(g) for t, g in zip(total, of_parameters, strict=True)
                ]
        first_to_last = of_input if call.reverse else of_input[::-1]
        return torch.cat(first_to_last) if needed[0] else None, gradients, total

    def _saved(self, saved: Sequence[Tensor], chunk: Chunk, batch: int) -> Iterator[Tensor]:
        """The part of what forward saved that belongs to a chunk."""
        for name, value in zip((*self.program.saved_folded, *self.program.saved_steps), saved, strict=True):
            if name in self.program.saved_folded:
                rows = batch * self.program.features[name][0]
                yield value[chunk.begin * rows : chunk.end * rows]
            else:
                yield chunk.of(value)
