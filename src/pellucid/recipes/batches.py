"""Series of different lengths, put into batches of similar lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pellucid.recipes.recipe import Data

Series = tuple[Tensor, int]  # steps (time, features), number of the class


class SeriesBatch(NamedTuple):
    """Series side by side: steps (time, batch, features) padded with 0, lengths (batch,), labels (batch,)."""

    steps: Tensor
    lengths: Tensor
    labels: Tensor


class SeriesBatches:
    """Batches of series of similar lengths, in an order that the seed decides; without a seed from short to long.

    Args:
        series: steps and the number of the class.
        size: series in a batch (the last may hold fewer).
        seed: any text or number; the same one gives the same batches in the same order.
    """

    def __init__(self, series: Sequence[Series], size: int, seed: str | int | None = None) -> None:
        self.series, self.size, self.seed = series, size, seed

    def __len__(self) -> int:
        return -(-len(self.series) // self.size)

    def __iter__(self) -> Iterator[SeriesBatch]:
        draw = random.Random(self.seed)
        spread = 0.0 if self.seed is None else 0.1  # lengths are told apart within 10%, so that neighbours change
        keys = [len(steps) * draw.uniform(1 - spread, 1 + spread) for steps, _ in self.series]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        groups = [order[start : start + self.size] for start in range(0, len(order), self.size)]
        if self.seed is not None:
            draw.shuffle(groups)
        for group in groups:
            yield collate([self.series[index] for index in group])


def collate(series: Sequence[Series]) -> SeriesBatch:
    """Pad series to the longest and put them side by side."""
    steps = [steps for steps, _ in series]
    labels = torch.tensor([label for _, label in series])
    return SeriesBatch(pad_sequence(steps), torch.tensor([len(s) for s in steps]), labels)


@dataclass(frozen=True)
class SeriesData(Data):
    """Data of which every sample is a series."""

    evaluation_batch: ClassVar[int]
    parts: Mapping[str, list[Series]]

    @property
    def sizes(self) -> dict[str, int]:
        """How many series each part has."""
        return {name: len(part) for name, part in self.parts.items()}

    def training(self, settings: Any, epoch: int) -> SeriesBatches:
        """Return the batches of an epoch, which seed and epoch decide."""
        return SeriesBatches(self.parts["train"], settings.batch_size, seed=f"{settings.seed}/{epoch}")

    def evaluation(self, part: str) -> SeriesBatches:
        """Return the batches of the validation or the test part, from short to long."""
        return SeriesBatches(self.parts[part], self.evaluation_batch)
