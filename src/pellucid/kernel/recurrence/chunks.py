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

if TYPE_CHECKING:
    from pellucid.kernel.program import Program
    from pellucid.kernel.registry import Runner


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

    def lengths(self, lengths: Tensor | None) -> Tensor | None:
        """How many of its steps are real."""
        return None if lengths is None else (lengths - self.begin).clamp(0, self.end - self.begin)


def plainly(
    forward: Callable[..., Any],
    division: Division,
    x: Tensor,
    states: Sequence[Tensor],
    lengths: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Run ``forward(x, states, lengths, start) -> (output, last, ...)``, itself differentiable, chunk by chunk."""
    if division == WHOLE:
        output, last, *_ = forward(x, states, lengths, 0)
        return output, last
    outputs = []
    for chunk in division.chunks(x.shape[0], reverse):
        if chunk.cut:
            states = [s.detach() for s in states]
        output, states, *_ = forward(chunk.of(x), states, chunk.lengths(lengths), chunk.begin)
        outputs.append(output)
    return torch.cat(outputs[::-1] if reverse else outputs), list(states)


def divided(runner: Runner, division: Division) -> Runner:
    """The runner of chunks, where there are any."""
    if division == WHOLE:
        return runner
    return Chunked(runner, division)


@dataclass(frozen=True)
class Chunked:
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
        self,
        x: Tensor,
        states: Sequence[Tensor],
        parameters: Sequence[Tensor],
        lengths: Tensor | None = None,
        seed: Tensor | None = None,
        reverse: bool = False,
        save: bool = False,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """As `stepwise.Stepwise.forward`; with checkpoints it saves the state before each chunk."""
        if not self.division.checkpoint_every:
            return self.runner.forward(x, states, parameters, lengths, seed, reverse, save)
        before: list[Sequence[Tensor]] = []

        def forward(x: Tensor, states: Sequence[Tensor], lengths: Tensor | None, start: int) -> Any:
            before.append(states)
            return self.runner.forward(x, states, parameters, lengths, seed, reverse, start=start)

        output, last = plainly(forward, self.division, x, states, lengths, reverse)
        return output, last, [torch.stack(entry) for entry in zip(*before, strict=True)] if save else []

    def backward(
        self,
        x: Tensor,
        parameters: Sequence[Tensor],
        lengths: Tensor | None,
        seed: Tensor | None,
        reverse: bool,
        saved: Sequence[Tensor],
        output_gradient: Tensor,
        state_gradients: Sequence[Tensor],
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor | None]]:
        """As `stepwise.Stepwise.backward`."""
        gradients = list(state_gradients)
        of_input: list[Any] = []
        total: list[Tensor | None] = []
        chunks = self.division.chunks(x.shape[0], reverse)
        for index, chunk in reversed(list(enumerate(chunks))):
            part, real = chunk.of(x), chunk.lengths(lengths)
            if self.division.checkpoint_every:
                states = [entry[index] for entry in saved]
                *_, kept = self.runner.forward(part, states, parameters, real, seed, reverse, True, chunk.begin)
            else:
                kept = list(self._saved(saved, chunk, x.shape[1]))
            of_part, gradients, of_parameters = self.runner.backward(
                part, parameters, real, seed, reverse, kept, chunk.of(output_gradient), gradients, needed, chunk.begin
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
        first_to_last = of_input if reverse else of_input[::-1]
        return torch.cat(first_to_last) if needed[0] else None, gradients, total

    def _saved(self, saved: Sequence[Tensor], chunk: Chunk, batch: int) -> Iterator[Tensor]:
        """The part of what forward saved that belongs to a chunk."""
        for name, value in zip((*self.program.saved_folded, *self.program.saved_steps), saved, strict=True):
            if name in self.program.saved_folded:
                rows = batch * self.program.features[name][0]
                yield value[chunk.begin * rows : chunk.end * rows]
            else:
                yield chunk.of(value)
