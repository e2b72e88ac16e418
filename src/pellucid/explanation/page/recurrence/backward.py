"""Backward through time: the gradient of every state and weight, and how much of it is left after many steps."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.explanation.reading import Provider
from pellucid.formula.draws import provided_by
from pellucid.formula.shapes import split_result

if TYPE_CHECKING:
    from pellucid.explanation.page.recurrence.data import Recurrence

PATCH = 8  # rows and columns of a gradient
MOMENTS = 12  # moments of the sequence whose gradients are shown one by one
UNITS = 8  # losses of one unit
WIDEST = 128  # states whose Jacobians are multiplied out
MOST = 4_000_000_000  # multiplications that this may take


class Backward:
    """The gradients of losses that are read off the last output.

    The first loss is the sum of its entries; where the page cannot compute others, single units follow.
    """

    def __init__(self, of: Recurrence) -> None:
        self.of = of
        self.function, self.source = of.layer.cell.function, of.source
        self.numbers = of.layer.hyperparameters
        for convert in (Tensor.double, Tensor.clone):  # float64, unless the cell holds constants of another type
            self.weights = {name: convert(value) for name, value in of.weights.items()}
            self.inputs = [convert(value) for value in of.inputs]
            with contextlib.suppress(RuntimeError), provided_by(Provider(False)), torch.no_grad():
                self.last, self.trajectory = self.forward([convert(value[:1]) for value in of.trajectory])
                break
        steps = of.steps
        few = steps <= MOMENTS
        self.moments = (
            list(range(steps + 1)) if few else sorted({round(k * steps / (MOMENTS - 1)) for k in range(MOMENTS)})
        )

    def data(self) -> dict[str, Any]:
        """Gradients of every state at every step, norms, and the weights' gradients step by step."""
        of = self.of
        width = of.output.shape[-1]
        alone = of.programs[0] is None
        units = [unit for unit in of.units or range(width) if unit < width][:UNITS] if alone else []
        seeds = self.last.new_zeros(1 + len(units), width)
        seeds[0] = 1
        for row, unit in enumerate(units, 1):
            seeds[row, unit] = 1
        with provided_by(Provider(False)):
            states = self.states(seeds)
            norms = self.norms()
            parts, total = self.weight_parts(states)
            checked = self.checked(total)
        return {
            "moments": self.moments,
            "units": units,
            "states": [
                {"columns": None if of.whole or of.units is None else of.units, "rows": self.carried(rows)}
                for rows in states
            ],
            "lengths": [rows.double().norm(dim=-1) for rows in states],  # (steps + 1, losses)
            "norms": norms,
            "parts": parts,
            "checked": checked,
        }

    def carried(self, rows: Tensor) -> Tensor:
        """Of (steps + 1, losses, size) what the page carries: the moments that it shows."""
        of, rows = self.of, rows[self.moments]
        if not of.whole and of.units is not None:
            rows = rows[..., [unit for unit in of.units if unit < rows.shape[-1]]]
        return rows

    def forward(self, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Take all steps; return the last output, and every state entry (steps + 1, size)."""
        kept = [states]
        for step in range(self.of.steps):
            output, states = self.once(step, states, self.weights)
            kept.append(states)
        return output, [torch.cat([moment[entry] for moment in kept]) for entry in range(len(states))]

    def once(
        self, step: int, states: Sequence[Tensor], weights: Mapping[str, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Take a step with a row for each loss; return the output and the new state."""
        inputs = [value[step].expand(states[0].shape[0], -1) for value in self.inputs]
        return split_result(self.source, self.function(*inputs, *states, **weights, **self.numbers))

    # -- one step -----------------------------------------------------------------------------------------------

    def step(
        self, step: int, seeds: Tensor | None, after: Sequence[Tensor], weights: bool = False
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Take gradients, a row for each loss, through one step; ``seeds`` are those of the output, if it has any."""
        rows = after[0].shape[0]
        with torch.enable_grad():
            before = [value[step].expand(rows, -1).detach().clone().requires_grad_() for value in self.trajectory]
            used = {name: value.detach().requires_grad_(weights) for name, value in self.weights.items()}
            output, states = self.once(step, before, used)
        pairs = [(value, grad) for value, grad in zip(states, after, strict=True) if value.requires_grad]
        if seeds is not None and output.requires_grad:
            pairs.append((output, seeds))
        wanted = [*before, *(used.values() if weights else ())]
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if pairs:
            results, grads = zip(*pairs, strict=True)
            found = torch.autograd.grad(results, wanted, grads, allow_unused=True)
        got = [torch.zeros_like(v) if g is None else g for v, g in zip(wanted, found, strict=True)]
        return got[: len(before)], dict(zip(used, got[len(before) :], strict=False))

    def states(self, seeds: Tensor) -> list[Tensor]:
        """Return ∂L/∂ of every state entry: (steps + 1, losses, size)."""
        steps = self.of.steps
        separate = self.of.returned > len(self.of.sizes)
        last = [seeds.new_zeros(len(seeds), size) for size in self.of.sizes]
        if not separate:
            last[0] = seeds
        kept, now = [last], list(last)
        for step in reversed(range(steps)):
            now, _ = self.step(step, seeds if separate and step == steps - 1 else None, now)
            kept.append(now)
        return [torch.stack([grads[entry] for grads in reversed(kept)]) for entry in range(len(last))]

    def norms(self) -> list[Tensor] | None:
        """Return the Frobenius norm of ∂h_T/∂ every state entry of every step, h being the first; None if costly."""
        of, size = self.of, self.of.sizes[0]
        numbers = sum(value.numel() for value in self.weights.values())
        if size > WIDEST or 3 * size * numbers * of.steps > MOST:
            return None
        now = [self.last.new_zeros(size, other) for other in of.sizes]
        now[0] = torch.eye(size, dtype=self.last.dtype, device=self.last.device)
        kept = [now]
        for step in reversed(range(of.steps)):
            now, _ = self.step(step, None, now)
            kept.append(now)
        entries = range(len(of.sizes))
        return [torch.stack([grads[entry].double().norm() for grads in reversed(kept)]) for entry in entries]

    def weight_parts(self, states: list[Tensor]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """Return each weight's gradient through every step alone, its corner of carried steps, and their sum."""
        of = self.of
        separate = of.returned > len(of.sizes)
        parts: dict[str, list[Tensor]] = {name: [] for name in self.weights}
        total = {name: torch.zeros_like(value) for name, value in self.weights.items()}
        for step in range(of.steps):
            after = [rows[step + 1, :1] for rows in states]
            seeds = after[0].new_ones(1, of.output.shape[-1]) if separate and step == of.steps - 1 else None
            _, grads = self.step(step, seeds, after, weights=True)
            for name, grad in grads.items():
                parts[name].append(_corner(grad))
                total[name] += grad
        found = [{"name": name, "corners": torch.stack(corners).to(of.output.dtype)} for name, corners in parts.items()]
        return found, total

    def checked(self, total: dict[str, Tensor]) -> dict[str, Any]:
        """Compare the sums with the gradient that autograd takes through the whole sequence at once."""
        of = self.of
        with torch.enable_grad():
            used = {name: value.detach().requires_grad_() for name, value in self.weights.items()}
            states: Sequence[Tensor] = [value[:1] for value in self.trajectory]
            for step in range(of.steps):
                output, states = self.once(step, states, used)
            loss = output.sum()
            found: Sequence[Tensor | None] = [None] * len(used)
            if loss.requires_grad:
                found = torch.autograd.grad(loss, list(used.values()), allow_unused=True)
        gaps, scale = [0.0], [0.0]
        for value, grad in zip(total.values(), found, strict=True):
            other = torch.zeros_like(value) if grad is None else grad
            if value.numel():
                gaps.append(float((value - other).double().abs().max()))
                scale.append(float(other.double().abs().max()))
        difference = max(gaps) if all(gap == gap for gap in gaps) else float("nan")
        eps = torch.finfo(self.last.dtype).eps
        return {"difference": difference, "agrees": difference <= eps**0.5 * max(1.0, max(scale))}


def _corner(value: Tensor) -> Tensor:
    return value[tuple(slice(0, PATCH) for _ in range(value.ndim))]
