"""What a recipe consists of: the settings that decide its outcome, its data, and a network that learns from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar, Protocol, Self

import torch
from rich.console import RenderableType
from torch import Tensor

from pellucid.recipes.errors import RecipeError

RECIPES = ("sentiment", "digits", "vowels")


class Batch(Protocol):
    """Samples side by side; what they are is the recipe's own, the numbers of their classes are (batch,) int64."""

    @property
    def labels(self) -> Tensor:
        """The numbers of the classes."""


class Batches(Iterable[Any], Sized, Protocol):
    """Batches in a fixed order."""


class Network(torch.nn.Module, ABC):
    """A network that tells classes apart."""

    @property
    @abstractmethod
    def backend(self) -> str:
        """The name of what ran the layer that the recipe is about."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Return what training makes small."""

    @abstractmethod
    def classes(self, batch: Any) -> Tensor:
        """Return the numbers of the classes that the network finds, (batch,)."""


class Data(ABC):
    """The three parts of a recipe's data."""

    unit: ClassVar[str]  # what is counted: "reviews"

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers."""

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """How many samples there are in "train", "validation" and "test"."""

    @property
    def fitted(self) -> Any:
        """What was read off the training part before the network is made: a vocabulary, statistics, nothing."""
        return None

    @property
    def notes(self) -> list[str]:
        """What else is to be said of the data, a line each."""
        return []

    @property
    def facts(self) -> dict[str, Any]:
        """What else ``metrics.json`` is to say of the data."""
        return {}

    @abstractmethod
    def training(self, settings: Any, epoch: int) -> Batches:
        """Return the batches of an epoch, which seed and epoch decide."""

    @abstractmethod
    def evaluation(self, part: str) -> Batches:
        """Return the batches of the validation or the test part."""


@dataclass(frozen=True)
class Settings(ABC):
    """What decides the outcome of a training; it travels in the checkpoint."""

    recipe: ClassVar[str]
    cell_option: ClassVar[str | None] = None  # the field that may name a cell in a file
    largest_gradient: ClassVar[float | None] = 1.0  # norm

    batch_size: int = 32
    lr: float = 0.006
    epochs: int = 4
    seed: int = 0
    limit: int | None = None

    @property
    @abstractmethod
    def choice(self) -> str:
        """The choice that is the recipe's own, in two words: "cell gru"."""

    def checked(self) -> Self:
        """Return settings that hold in every folder, before any data are read.

        Raises:
            RecipeError: one of them cannot be used.
        """
        return self

    @property
    def has_cell(self) -> bool:
        """Whether the network has a cell that may be in a file."""
        return False

    @property
    def named_cell(self) -> str | None:
        """The cell, as the user named it, of a network that has one."""
        return getattr(self, self.cell_option) if self.cell_option and self.has_cell else None

    def with_cell(self, cell: str) -> Self:
        """Return the settings with the cell's file where it is now.

        Raises:
            RecipeError: this network has no cell.
        """
        if self.cell_option is None or not self.has_cell:
            raise RecipeError(f"--cell {cell}: this network of {self.recipe} has no cell. Leave --cell out.")
        changed: dict[str, Any] = {self.cell_option: cell}
        return replace(self, **changed)

    @abstractmethod
    def data(self, fitted: Any = None) -> Data:
        """Read the data; what an earlier training fitted is taken as it is."""

    @abstractmethod
    def network(self, fitted: Any) -> Any:
        """Make the network, with weights drawn from torch's generator."""

    def tables(self, metrics: Mapping[str, Any]) -> list[RenderableType]:
        """Return what is to be printed of ``metrics.json`` when a training is complete."""
        return []

    def stored(self, fitted: Any) -> dict[str, Any]:
        """Write as plain types what was fitted."""
        return {}

    def restored(self, stored: Mapping[str, Any]) -> Any:
        """Read what `stored` wrote."""
        return None


@dataclass(frozen=True)
class Trained:
    """A network with what it needs to be used, and the validation accuracy after each epoch so far."""

    network: Any
    settings: Any
    fitted: Any = None
    accuracies: tuple[float, ...] = ()


def settings_of(recipe: str) -> type[Settings]:
    """Return the settings of a recipe that is given by name."""
    return import_module(f"pellucid.recipes.{recipe}.recipe").Settings
