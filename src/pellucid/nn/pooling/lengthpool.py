"""Pooling over the real steps of sequences of different lengths: the same formula, with the whole line as window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from pellucid.errors import label, refuse_proxies, shape_text
from pellucid.kernel.windows.steps import pool_steps
from pellucid.kernel.windows.window import worthwhile
from pellucid.nn import lengths as real
from pellucid.nn.component import Component, Running, SymbolShape
from pellucid.nn.pooling.pooling import Mean, lowest, pool

Mode = Literal["mean", "max", "last"]


@dataclass(frozen=True, eq=False)
class RealSteps:
    """Read the steps where ``kept`` holds, and ``fill`` elsewhere; time goes to the last axis."""

    axis: int
    kept: torch.Tensor
    fill: torch.Tensor | float = 0.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Read the window."""
        return torch.where(self.kept, x.movedim(self.axis, -1), self.fill)


@dataclass(frozen=True, eq=False)
class LastStep:
    """Read the step ``index``, or 0 where ``kept`` does not hold; time, now of one step, goes to the last axis."""

    axis: int
    index: torch.Tensor
    kept: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Read the window."""
        x = x.movedim(self.axis, -1)
        return torch.where(self.kept, x.gather(-1, self.index.expand(*x.shape[:-1], 1)), 0.0)


def greatest(entries: torch.Tensor) -> torch.Tensor:
    """Take the greatest entry; equal ones share its gradient."""
    return entries.amax(-1)


def only(entries: torch.Tensor) -> torch.Tensor:
    """Take the one step that was read."""
    return entries.squeeze(-1)


class LengthPool(Running, Component, torch.nn.Module):
    """Reduce every sequence of a batch to one vector over its real steps.

    Args:
        mode: "mean", "max", or "last", the last real step.
        batch_first: whether the input is (batch, time, features) instead of (time, batch, features).

    Shapes:
        input (time, batch, features), or (batch, time, features) with ``batch_first``, or (time, features);
        output (batch, features), or (features,).

    Raises:
        ValueError: the mode is unknown.
        RuntimeError, TypeError: the input has another number of axes; the lengths are wrong, see ``lengths.check``.
    """

    formula = staticmethod(pool)

    def __init__(self, mode: Mode = "mean", batch_first: bool = False) -> None:
        super().__init__()
        if mode not in get_args(Mode):
            raise ValueError(f"{label(self)}: mode is {mode!r}; it is one of {get_args(Mode)}.")
        self.mode = mode
        self.batch_first = batch_first

    def extra_repr(self) -> str:
        """Write the arguments."""
        return f"mode={self.mode!r}, batch_first={self.batch_first}"

    def forward(self, input: torch.Tensor, lengths: real.Lengths | None = None) -> torch.Tensor:
        """Pool over the real steps; all are real without ``lengths``.

        Padding may hold anything, NaN too, and gets no gradient. A sequence without steps gives zeros.

        Args:
            input: see the shapes of the class.
            lengths: (batch,) integers, on any device.
        """
        refuse_proxies(self, input, lengths)
        y = self._by_kernel(input, lengths)
        self._was_run_by("torch" if y is None else "c")
        return self._by_formula(input, lengths) if y is None else y

    def _by_formula(self, input: torch.Tensor, lengths: real.Lengths | None) -> torch.Tensor:
        return self.formula(**self.bind(input, lengths))

    def _by_kernel(self, input: torch.Tensor, lengths: real.Lengths | None) -> torch.Tensor | None:
        """Pool in one pass; None where torch is to do it."""
        if self.mode == "last" or not worthwhile(input, 1):
            return None
        x = input.transpose(0, 1) if self.batch_first else input
        time, batch, _ = x.shape
        steps = torch.full((batch,), time) if lengths is None else real.check(lengths, batch, time, self, input.device)

        def by_torch(x: torch.Tensor) -> torch.Tensor:
            return self._by_formula(x.transpose(0, 1) if self.batch_first else x, steps)

        return pool_steps(x, steps, self.mode == "max", by_torch)

    def bind(self, input: torch.Tensor, lengths: real.Lengths | None = None) -> dict[str, Any]:
        """Return the formula's arguments for this input."""
        axes = self._axes(input)
        axis, batch = axes.index("time"), input.shape[axes.index("batch")] if "batch" in axes else 1
        time = input.shape[axis]
        if lengths is None:
            steps = torch.full((batch,), time, device=input.device)
        else:
            steps = real.check(lengths, batch, time, self, input.device)
        if "batch" not in axes:
            steps = steps.reshape(())
        kept = real.mask(steps, time).unsqueeze(-2)  # (batch, 1, time)
        some = steps[..., None, None] > 0
        if self.mode == "mean" or time == 0:  # of no step at all there is no greatest and no last
            mean = Mean((-1,), steps.clamp(min=1).unsqueeze(-1))
            return {"x": input, "window": RealSteps(axis, kept), "reduce": mean}
        if self.mode == "max":
            fill = torch.where(some, lowest(input.dtype), 0).to(input.dtype)
            return {"x": input, "window": RealSteps(axis, kept, fill), "reduce": greatest}
        last = (steps - 1).clamp(min=0)[..., None, None]
        return {"x": input, "window": LastStep(axis, last, some), "reduce": only}

    def symbols(self, *inputs: torch.Tensor) -> list[SymbolShape]:
        """Return nothing, as there are no weights; given an input, it and the output."""
        found = []
        for x in inputs:
            axes, facts = self._axes(x), {"mode": self.mode}
            kept = [(name, size) for name, size in zip(axes, x.shape, strict=True) if name != "time"]
            names, size = zip(*kept, strict=True)
            found.append(SymbolShape("x", tuple(x.shape), axes, "lengthpool.input", False, facts))
            found.append(SymbolShape("y", size, names, "lengthpool.output", False, facts))
        return found

    def _axes(self, x: torch.Tensor) -> tuple[str, ...]:
        """Name the axes of an input."""
        axes = ("batch", "time", "features") if self.batch_first else ("time", "batch", "features")
        if x.ndim == 3:
            return axes
        if x.ndim == 2:
            return ("time", "features")
        raise RuntimeError(
            f"{label(self)}: the input is {shape_text(x.shape)}, but the layer reads ({', '.join(axes)}), or (time, "
            f"features) without a batch. A recurrent layer's output fits; its last state does not."
        )
