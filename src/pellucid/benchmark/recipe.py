"""Training steps of a whole network, that which reads reviews, with pellucid's layer and with torch.nn's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from pellucid.benchmark.comparison import Agreement, Figure, Run, Skipped
from pellucid.recipes.errors import RecipeError

EXACT_STEPS = 3  # in float64, before those that are timed


@dataclass(frozen=True)
class Recipe(Figure):
    """Medians in milliseconds of a whole step: embedding, layer, pooling, loss, backward and optimiser."""

    steps: int
    ours_ms: float
    torch_nn_ms: float

    @property
    def factor(self) -> float:
        """How many times as fast as torch.nn."""
        return self.torch_nn_ms / self.ours_ms


@dataclass(frozen=True)
class RecipeRow:
    """What ``pellucid train sentiment --compare`` measures, for a cell that torch.nn has, and the least steps."""

    section: ClassVar[str] = "recipe"
    cell: str
    steps: int = 40

    @property
    def name(self) -> str:
        """How the line is called."""
        return f"{self.cell.upper()}, sentiment"

    def measure(self, run: Run) -> Recipe:
        """Train both networks on the same batches, in float64 and in float32: the loss curves are what is compared."""
        try:
            from pellucid.recipes.sentiment.compare import compare
            from pellucid.recipes.sentiment.recipe import Settings

            settings: Any = Settings(cell=self.cell)
            exact = compare(settings, run.device, EXACT_STEPS, torch.float64)
            found = compare(settings, run.device, max(self.steps, run.rounds))
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "lightning":
                raise
            raise Skipped("training runs on Lightning, which is missing: pip install 'pellucid[train]'") from error
        except RecipeError as error:
            raise Skipped(str(error)) from error
        agreement = Agreement(exact.largest_difference, found.largest_difference, 0.0)
        return Recipe(self.name, found.backend, agreement, found.steps, found.ours_ms, found.opponent_ms)


RECIPE = [RecipeRow("gru"), RecipeRow("lstm")]
