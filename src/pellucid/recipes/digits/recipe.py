"""The recipe ``digits``: handwritten digits told apart by LeNet-5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.console import RenderableType
from rich.table import Table

from pellucid.recipes import recipe
from pellucid.recipes.digits.data import DigitBatches, Digits, only, read_digits, split
from pellucid.recipes.digits.network import DigitNetwork, OneNetwork, OneVersusRest
from pellucid.recipes.tables import confusion_table

EVALUATION_BATCH = 500
TASKS: dict[str, tuple[range, type[OneNetwork | OneVersusRest]]] = {
    "ten": (range(10), OneNetwork),
    "four": (range(4), OneNetwork),
    "one-vs-rest": (range(4), OneVersusRest),
}


@dataclass(frozen=True)
class Data(recipe.Data):
    """The pictures of the task's digits in three parts."""

    unit: ClassVar[str] = "digits"
    digits: range
    parts: Mapping[str, Digits]

    @property
    def classes(self) -> tuple[str, ...]:
        """The digits."""
        return tuple(map(str, self.digits))

    @property
    def sizes(self) -> dict[str, int]:
        """How many pictures each part has."""
        return {name: len(part.labels) for name, part in self.parts.items()}

    def training(self, settings: Settings, epoch: int) -> DigitBatches:
        """Return the batches of an epoch; seed and epoch decide order and movements."""
        seed = settings.seed * 1_000_003 + epoch
        return DigitBatches(self.parts["train"], settings.batch_size, seed)

    def evaluation(self, part: str) -> DigitBatches:
        """Return the batches of the validation or the test part, as they are."""
        return DigitBatches(self.parts[part], EVALUATION_BATCH)


@dataclass(frozen=True)
class Settings(recipe.Settings):
    """What decides the outcome of a training."""

    recipe: ClassVar[str] = "digits"
    largest_gradient: ClassVar[float | None] = None  # clipping would let the networks of one-vs-rest meet

    batch_size: int = 32
    lr: float = 0.003
    epochs: int = 30
    task: str = "ten"

    @property
    def choice(self) -> str:
        """The task."""
        return f"task {self.task}"

    @property
    def digits(self) -> range:
        """The digits that are told apart."""
        return TASKS[self.task][0]

    def data(self, fitted: Any = None) -> Data:
        """Read the pictures of the task's digits; ``limit`` keeps the first training pictures only."""
        parts = {name: only(part, self.digits) for name, part in split(read_digits()).items()}
        parts["train"] = parts["train"].take(slice(self.limit))
        return Data(self.digits, parts)

    def tables(self, metrics: Mapping[str, Any]) -> list[RenderableType]:
        """Return which digit was taken for which; of a problem that was solved in two ways, both side by side."""
        ways: Mapping[str, Any] = metrics.get("ways", {self.task: metrics})
        beside = Table.grid(padding=(0, 6, 0, 0))
        beside.add_row(*(_outcome(task, figures) for task, figures in ways.items()))
        beside.add_row(*(confusion_table(metrics["classes"], figures["confusion"]) for figures in ways.values()))
        return ["\nThe test part: digits in the rows, found in the columns", beside]

    def network(self, fitted: Any = None) -> DigitNetwork:
        """Make the network."""
        digits, kind = TASKS[self.task]
        return kind(len(digits))


def _outcome(task: str, figures: Mapping[str, Any]) -> str:
    return (
        f"[bold]{task}: accuracy {figures['test_accuracy']:.4f}[/bold]\n"
        f"{figures['parameters']:,} weights, {figures['seconds']:.0f} s"
    )
