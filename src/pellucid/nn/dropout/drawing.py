"""Where a layer's random draws come from: torch's generator, a generator of its own, or a seed and a count of calls."""

from __future__ import annotations

import contextlib
import math
import operator
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import PellucidWarning, label
from pellucid.kernel.random import draw_seed, uniform

Numbers = tuple[Tensor | int, Tensor | int]  # the seed and the stream that decide a call's draws


class Drawing(torch.nn.Module):
    """A layer that draws.

    With neither ``seed`` nor ``generator`` every call takes its seed from torch's CPU generator, so that
    ``torch.manual_seed`` decides it. With ``generator`` it is taken from that one. With ``seed`` the draws of call
    number k depend on (seed, k) alone: the same layer built again draws the same sequence, whatever else is drawn
    in the program; a copy or a pickle goes on from where it was made. ``calls`` counts them.

    Draws are float32 whatever the input's type, so that one seed gives one mask.
    """

    seed: int | None
    generator: torch.Generator | None
    _eager_calls: int
    _compiled_calls: Tensor

    @property
    def calls(self) -> int:
        """How many calls have drawn from the seed."""
        return self._eager_calls + (0 if self.seed is None else int(self._compiled_calls))

    def draw_from(self, seed: int | None, generator: torch.Generator | None) -> None:
        """Say where the draws come from; called once, by the constructor."""
        if seed is not None and generator is not None:
            raise ValueError(f"{label(self)}: seed and generator both decide the draws; pass one of them")
        if seed is not None:
            given: Any = None if isinstance(seed, bool) else seed
            try:
                seed = operator.index(given)  # NumPy's and torch's integers too
            except TypeError:
                raise TypeError(
                    f"{label(self)}: seed is an integer, not {seed!r}; a torch.Generator goes to generator="
                ) from None
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"{label(self)}: generator is a torch.Generator, not {generator!r}; a number goes to seed=")
        self.seed, self.generator = seed, generator
        # A compiled graph counts in a tensor, which a transform of torch.func must not write to; eager calls in a
        # number. The tensor is no buffer: it stays on the CPU and out of state_dict.
        self._eager_calls = 0
        if seed is not None:
            self._compiled_calls = torch.zeros((), dtype=torch.int64, device="cpu")

    def draw(
        self, shapes: Sequence[Sequence[int]], device: torch.device, sequence: Numbers | None = None
    ) -> list[Tensor]:
        """Return fresh numbers in [0, 1) of these shapes, all of one `sequence`; by default of the next one."""
        seed, stream = sequence or self.sequence()
        drawn, offset = [], 0
        for shape in shapes:
            drawn.append(uniform(shape, seed, device=device, stream=stream, offset=offset))
            offset += math.prod(shape)
        return drawn

    def sequence(self) -> Numbers:
        """Begin a call that draws: the seed and the stream of its numbers."""
        if self._is_recomputed():
            raise RuntimeError(
                f"{label(self)} is run again inside a backward pass (torch.utils.checkpoint does that), where the "
                f"draws of its own {'generator' if self.seed is None else 'seed'} cannot be repeated and the gradient "
                f"would be another mask's. Leave seed and generator out: checkpoint repeats torch's own generator."
            )
        return self._next()

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Let what is drawn inside be drawn again afterwards."""
        calls = self._eager_calls
        generator = torch.default_generator if self.generator is None else self.generator
        state = generator.get_state()
        try:
            yield
        finally:
            self._eager_calls = calls
            generator.set_state(state)

    def _next(self) -> Numbers:
        """Seed and stream of this call."""
        if self.seed is None:
            return draw_seed(self.generator), 0
        call = self._compiled_calls + self._eager_calls
        if torch.compiler.is_compiling():
            self._compiled_calls.copy_(self._compiled_calls + 1)  # torch.export would not only note an add_, but do it
        elif torch._C._is_tracing():
            warnings.warn(
                f"{label(self)}: a trace cannot count its calls, so it draws the same for seed={self.seed} at every "
                "call. Trace it without seed, or export it by torch.export.",
                PellucidWarning,
                stacklevel=2,
            )
        else:
            self._eager_calls += 1
        return (self.seed + 2**63) % 2**64 - 2**63, call  # the same 64 bits, with a sign

    def _is_recomputed(self) -> bool:
        own = self.seed is not None or self.generator is not None
        return own and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1

    def _source_text(self) -> str:
        return "" if self.seed is None else f", seed={self.seed}"
