"""The recipe ``sentiment``: good and bad Chinese reviews told apart, character by character."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pellucid.recipes import recipe
from pellucid.recipes.batches import SeriesData
from pellucid.recipes.cells import lasting, recurrent_layer
from pellucid.recipes.sentiment.data import Review, Vocabulary, read_reviews, split
from pellucid.recipes.sentiment.network import ConvolutionalReader, Reader, RecurrentReader

MODELS = ("recurrent", "textcnn")


@dataclass(frozen=True)
class Data(SeriesData):
    """The three parts, encoded with the vocabulary of the training part."""

    unit: ClassVar[str] = "reviews"
    evaluation_batch: ClassVar[int] = 256
    vocabulary: Vocabulary
    longest: int
    truncated: int  # texts that are longer

    @classmethod
    def load(cls, settings: Settings, vocabulary: Vocabulary | None = None) -> Data:
        """Read, split and encode the reviews; ``limit`` keeps the first training reviews only."""
        reviews: dict[str, list[Review]] = split(read_reviews())
        reviews["train"] = reviews["train"][: settings.limit]
        vocabulary = vocabulary or Vocabulary.of(review.text for review in reviews["train"])
        longest = settings.max_length
        parts = {
            name: [(vocabulary.encode(review.text[:longest]), review.label) for review in part]
            for name, part in reviews.items()
        }
        truncated = sum(len(review.text) > longest for part in reviews.values() for review in part)
        return cls(parts, vocabulary, longest, truncated)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels."""
        return "bad", "good"

    @property
    def fitted(self) -> Vocabulary:
        """The vocabulary."""
        return self.vocabulary

    @property
    def notes(self) -> list[str]:
        """How many texts are cut."""
        return [f"{self.truncated:,} are longer than {self.longest} characters; of these the beginning is read."]

    @property
    def facts(self) -> dict[str, Any]:
        """How many texts are cut."""
        return {"truncated": self.truncated}


@dataclass(frozen=True)
class Settings(recipe.Settings):
    """What decides the outcome of a training."""

    recipe: ClassVar[str] = "sentiment"
    cell_option: ClassVar[str | None] = "cell"

    model: str = "recurrent"
    cell: str = "gru"
    embedding_size: int = 64
    hidden_size: int = 64  # with textcnn: filters of each width
    max_length: int = 200

    @property
    def choice(self) -> str:
        """The cell, or the model where it has none."""
        return f"cell {self.cell}" if self.has_cell else f"model {self.model}"

    @property
    def has_cell(self) -> bool:
        """Whether it is the recurrent model."""
        return self.model == "recurrent"

    def checked(self) -> Settings:
        """Make the cell's path absolute, and refuse a cell that cannot be used."""
        if not self.has_cell:
            return self
        cell = lasting(self.cell)
        recurrent_layer(cell, 1, 1)
        return replace(self, cell=cell)

    def data(self, fitted: Vocabulary | None = None) -> Data:
        """Read the reviews."""
        return Data.load(self, fitted)

    def network(self, fitted: Vocabulary) -> Reader:
        """Make the network."""
        if self.model == "textcnn":
            return ConvolutionalReader(len(fitted), self.embedding_size, self.hidden_size)
        return RecurrentReader(len(fitted), self.cell, self.embedding_size, self.hidden_size)

    def stored(self, fitted: Vocabulary) -> dict[str, Any]:
        """Write the vocabulary."""
        return {"vocabulary": list(fitted.entries)}

    def restored(self, stored: Mapping[str, Any]) -> Vocabulary:
        """Read the vocabulary."""
        return Vocabulary(tuple(stored["vocabulary"]))
