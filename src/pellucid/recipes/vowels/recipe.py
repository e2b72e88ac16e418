"""The recipe ``vowels``: nine speakers told apart by utterances of different lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rich.console import RenderableType

from pellucid.recipes import recipe
from pellucid.recipes.batches import SeriesData
from pellucid.recipes.cells import lasting, recurrent_layer
from pellucid.recipes.tables import confusion_table
from pellucid.recipes.vowels.data import FEATURES, SPEAKERS, Statistics, read_utterances
from pellucid.recipes.vowels.network import SpeakerNetwork


@dataclass(frozen=True)
class Data(SeriesData):
    """The utterances in three parts, as they are recorded."""

    unit: ClassVar[str] = "utterances"
    evaluation_batch: ClassVar[int] = 128
    statistics: Statistics

    @property
    def classes(self) -> tuple[str, ...]:
        """The speakers."""
        return tuple(map(str, range(1, SPEAKERS + 1)))

    @property
    def fitted(self) -> Statistics:
        """The statistics of the training part."""
        return self.statistics

    @property
    def notes(self) -> list[str]:
        """How long they are."""
        lengths = [len(steps) for part in self.parts.values() for steps, _ in part]
        return [f"They have {min(lengths)} to {max(lengths)} steps of {FEATURES} features."]


@dataclass(frozen=True)
class Settings(recipe.Settings):
    """What decides the outcome of a training."""

    recipe: ClassVar[str] = "vowels"
    cell_option: ClassVar[str | None] = "model"

    batch_size: int = 16
    lr: float = 0.006
    epochs: int = 30
    model: str = "gru"
    hidden_size: int = 64

    @property
    def choice(self) -> str:
        """The model."""
        return f"model {self.model}"

    @property
    def has_cell(self) -> bool:
        """Whether the model is recurrent."""
        return self.model != "tcn"

    def checked(self) -> Settings:
        """Make the cell's path absolute, and refuse a cell that cannot be used."""
        if not self.has_cell:
            return self
        model = lasting(self.model)
        recurrent_layer(model, 1, 1, "--model", ("tcn",))
        return replace(self, model=model)

    def data(self, fitted: Statistics | None = None) -> Data:
        """Read the utterances; ``limit`` keeps the first training utterances only."""
        parts = read_utterances()
        parts["train"] = parts["train"][: self.limit]
        return Data(parts, fitted or Statistics.of(parts["train"]))

    def network(self, fitted: Statistics) -> SpeakerNetwork:
        """Make the network."""
        return SpeakerNetwork(self.model, self.hidden_size, fitted)

    def tables(self, metrics: Mapping[str, Any]) -> list[RenderableType]:
        """Return which speaker was taken for which."""
        title = "\nThe test part: speakers in the rows, found in the columns"
        return [title, confusion_table(metrics["classes"], metrics["confusion"])]

    def stored(self, fitted: Statistics) -> dict[str, Any]:
        """Write the statistics."""
        return {"mean": list(fitted.mean), "deviation": list(fitted.deviation)}

    def restored(self, stored: Mapping[str, Any]) -> Statistics:
        """Read the statistics."""
        return Statistics(tuple(map(float, stored["mean"])), tuple(map(float, stored["deviation"])))
