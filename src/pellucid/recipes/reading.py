"""How a trained network reads one text: its verdict, the verdict after every character, and its recurrent layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pellucid.explanation import explain
from pellucid.recipes.checkpoint import Trained
from pellucid.recipes.data import Review, read_reviews, split
from pellucid.recipes.errors import RecipeError

HALF = 20  # columns of a bar from undecided to certain
EXAMPLE_LENGTHS = range(10, 17)  # characters: every step fits on a screen
EXPLAINED_STEPS = 2
WORDS = {
    "en": {
        "good": "good",
        "bad": "bad",
        "verdict": "{label} review, probability {probability:.1%}",
        "held_out": "a review of the test part, never trained on; its label is: {label}",
        "truncated": "only the first {length} characters are read, as in training",
        "reading": "How the verdict moves as the network reads on: the probability that the review is good",
        "unknown": "not in the vocabulary",
        "layer": "What the recurrent layer does at these characters",
    },
    "zh": {
        "good": "好评",
        "bad": "差评",
        "verdict": "{label}，概率 {probability:.1%}",
        "held_out": "选自测试集的评论，训练中从未出现；其标签是：{label}",
        "truncated": "只读前 {length} 个字符，与训练时相同",
        "reading": "网络逐字往下读时判断如何变化：是好评的概率",
        "unknown": "不在词表中",
        "layer": "循环层在这些字符上的计算",
    },
}


@dataclass(frozen=True)
class Reading:
    """A text as far as it is read, and the probability that it is a good review after each of its characters."""

    text: str
    probabilities: tuple[float, ...]
    known: tuple[bool, ...]  # whether a character is in the vocabulary
    truncated: bool

    @property
    def good(self) -> bool:
        """The verdict on the whole text."""
        return self.probabilities[-1] > 0.5

    @property
    def certainty(self) -> float:
        """The probability of the verdict."""
        return max(self.probabilities[-1], 1 - self.probabilities[-1])


def read(trained: Trained, text: str) -> Reading:
    """Let the network read a text, stripped and cut as the training texts are.

    Raises:
        RecipeError: there is no character in the text.
    """
    stripped = text.strip()
    if not stripped:
        raise RecipeError("the sentence is empty; give at least one character")
    cut = stripped[: trained.settings.max_length]
    probabilities = trained.network.probabilities_of_prefixes(trained.vocabulary.encode(cut))
    known = tuple(character in trained.vocabulary.numbers for character in cut)
    return Reading(cut, tuple(probabilities.tolist()), known, len(cut) < len(stripped))


def held_out_review() -> Review:
    """Return the first review of the test part that is short enough to show every step."""
    return next(review for review in split(read_reviews())["test"] if len(review.text) in EXAMPLE_LENGTHS)


def verdict(reading: Reading, lang: str) -> str:
    """Say what the network thinks of the text."""
    words = WORDS[lang]
    said = words["verdict"].format(label=words["good" if reading.good else "bad"], probability=reading.certainty)
    note = words["truncated"].format(length=len(reading.text))
    return f"{said} ({note})" if reading.truncated else said


def show_reading(trained: Trained, reading: Reading, lang: str, console: Console) -> None:
    """Print the probability after each character, then the explanation of the recurrent layer on this very text."""
    words = WORDS[lang]
    console.print(f"\n[bold]{words['reading']}[/bold]")
    console.print(_table(reading, lang))
    console.print(f"\n[bold]{words['layer']}[/bold]")
    with torch.no_grad():
        x = trained.network.eval().embed(trained.vocabulary.encode(reading.text).unsqueeze(1))  # (time, 1, embedding)
    tokens = list(reading.text)
    explain(trained.network.recurrent, x, lang=lang, tokens=tokens, steps=EXPLAINED_STEPS, width=console.width)


def _table(reading: Reading, lang: str) -> Table:
    words = WORDS[lang]
    table = Table(box=None, show_header=True, padding=(0, 1))
    table.add_column()
    table.add_column(words["bad"], justify="right", no_wrap=True)
    table.add_column(words["good"], no_wrap=True)
    table.add_column(justify="right")
    table.add_column(style="dim")
    for character, probability, known in zip(reading.text, reading.probabilities, reading.known, strict=True):
        left, right = bars(probability)
        note = "" if known else words["unknown"]
        table.add_row(Text(character), Text(left, "red"), Text(right, "green"), f"{probability:.3f}", note)
    return table


def bars(probability: float) -> tuple[str, str]:
    """Draw a probability as two bars that start in the middle: leftwards below one half, rightwards above."""
    filled = math.ceil(abs(probability - 0.5) * 2 * HALF - 0.5)
    left = filled if probability < 0.5 else 0
    return "█" * left, "█" * (filled - left)
