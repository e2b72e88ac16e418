"""How a trained network reads one text: its verdict, the verdict after every character, and the layer that reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pellucid.explanation import explain
from pellucid.recipes.errors import RecipeError
from pellucid.recipes.recipe import Trained
from pellucid.recipes.sentiment.data import Review, read_reviews, split
from pellucid.recipes.sentiment.network import Match

HALF = 20  # columns of a bar from undecided to certain
EXAMPLE_LENGTHS = range(10, 17)  # characters: every step fits on a screen
EXPLAINED_STEPS = 2
SHOWN_MATCHES = 8
WORDS = {
    "en": {
        "good": "good",
        "bad": "bad",
        "verdict": "{label} review, probability {probability:.1%}",
        "held_out": "a review of the test part, never trained on; its label is: {label}",
        "truncated": "only the first {length} characters are read, as in training",
        "reading": "How the verdict moves as the network reads on: the probability that the review is good",
        "unknown": "not in the vocabulary",
        "recurrent": "What the recurrent layer does at these characters",
        "matches": "Where the filters match that weigh most, and what each adds to the log-odds of a good review",
        "textcnn": "What the convolutions find in these characters",
    },
    "zh": {
        "good": "好评",
        "bad": "差评",
        "verdict": "{label}，概率 {probability:.1%}",
        "held_out": "选自测试集的评论，训练中从未出现；其标签是：{label}",
        "truncated": "只读前 {length} 个字符，与训练时相同",
        "reading": "网络逐字往下读时判断如何变化：是好评的概率",
        "unknown": "不在词表中",
        "recurrent": "循环层在这些字符上的计算",
        "matches": "影响最大的滤波器在哪里匹配，各给“好评”的对数几率加上多少",
        "textcnn": "卷积在这些字符中找到了什么",
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
    probabilities = trained.network.probabilities_of_prefixes(trained.fitted.encode(cut))
    known = tuple(character in trained.fitted.numbers for character in cut)
    return Reading(cut, tuple(probabilities.tolist()), known, len(cut) < len(stripped))


def predict(trained: Trained, inputs: Sequence[str], explained: bool, lang: str, console: Console) -> None:
    """Read a sentence, or without one a short review of the test part, and print the verdict.

    Raises:
        RecipeError: there is more than one sentence, or no character in it.
    """
    if len(inputs) > 1:
        raise RecipeError(f"one sentence at a time, and here are {len(inputs)}; put quotation marks around it")
    if inputs:
        sentence = inputs[0]
    else:
        review, words = held_out_review(), WORDS[lang]
        sentence, label = review.text, words["good" if review.label else "bad"]
        console.print(words["held_out"].format(label=label), markup=False, highlight=False, style="dim")
    found = read(trained, sentence)
    console.print(f"「{found.text}」", markup=False, highlight=False)
    console.print(verdict(found, lang), markup=False, highlight=False, style="bold")
    if explained:
        show_reading(trained, found, lang, console)


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
    """Print the probability after each character, then the explanation of the layer that read this very text."""
    words, model = WORDS[lang], trained.settings.model
    console.print(f"\n[bold]{words['reading']}[/bold]")
    console.print(_table(reading, lang))
    network, tokens, ids = trained.network.eval(), list(reading.text), trained.fitted.encode(reading.text)
    if model == "textcnn":
        console.print(f"\n[bold]{words['matches']}[/bold]")
        console.print(_matches(network.matches(ids)[:SHOWN_MATCHES], reading.text))
    console.print(f"\n[bold]{words[model]}[/bold]")
    with torch.no_grad():
        x = network.embed(ids.unsqueeze(1))  # (time, 1, embedding)
    layer, x = (network.recurrent, x) if model == "recurrent" else (network.convolution, x.transpose(0, 1))
    explain(layer, x, lang=lang, tokens=tokens, steps=EXPLAINED_STEPS, width=console.width)


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


def _matches(matches: Sequence[Match], text: str) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1))
    for start, width, added in matches:
        table.add_row(Text(text[start : start + width]), Text(f"{added:+.3f}", "green" if added > 0 else "red"))
    return table


def bars(probability: float) -> tuple[str, str]:
    """Draw a probability as two bars that start in the middle: leftwards below one half, rightwards above."""
    filled = math.ceil(abs(probability - 0.5) * 2 * HALF - 0.5)
    left = filled if probability < 0.5 else 0
    return "█" * left, "█" * (filled - left)
