"""How a trained network reads a picture: the picture as it sees it, its verdict, and its first convolution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from torch import Tensor

from pellucid import nn
from pellucid.explanation import explain
from pellucid.recipes.digits.data import SIZE
from pellucid.recipes.digits.picture import blocks, read_picture
from pellucid.recipes.digits.recipe import Settings
from pellucid.recipes.recipe import Trained
from pellucid.recipes.tables import probability_table

WORDS = {
    "en": {
        "verdict": "digit {digit}, probability {probability:.1%}",
        "own": "digit {digit}; the probability that its own network gives it: {probability:.1%}",
        "among": "(told apart: {digits})",
        "held_out": "a digit of the test part, never trained on: it is a {label}",
        "convolution": "The first convolution where it answers most: filter {filter}, row {row}, column {column} of "
        "the {size}×{size} pixels",
        "window": "What it computes there",
    },
    "zh": {
        "verdict": "数字 {digit}，概率 {probability:.1%}",
        "own": "数字 {digit}；它自己的网络给出的概率：{probability:.1%}",
        "among": "（可区分的数字：{digits}）",
        "held_out": "选自测试集的数字，训练中从未出现；它是 {label}",
        "convolution": "第一层卷积响应最强之处：{size}×{size} 像素中第 {row} 行、第 {column} 列，第 {filter} 个滤波器",
        "window": "它在那里的计算",
    },
}


def predict(trained: Trained, inputs: Sequence[str], explained: bool, lang: str, console: Console) -> None:
    """Read picture files, or without one a digit of the test part, and print what the network sees and finds.

    Raises:
        RecipeError: a file cannot be used; none is read then.
    """
    if inputs:
        pictures = [(path, read_picture(Path(path))) for path in inputs]
    else:
        picture, digit = held_out_digit(trained.settings)
        pictures = [(WORDS[lang]["held_out"].format(label=digit), picture)]
    for title, picture in pictures:
        show(trained, title, picture, explained, lang, console)


def held_out_digit(settings: Settings) -> tuple[Tensor, int]:
    """Return the first picture of the test part, and the digit that it shows."""
    digits = settings.data().parts["test"]
    return digits.pictures[0], settings.digits[int(digits.labels[0])]


def show(trained: Trained, title: str, picture: Tensor, explained: bool, lang: str, console: Console) -> None:
    """Print a picture as the network sees it, the verdict and the probabilities; explained: the first convolution."""
    words, digits = WORDS[lang], trained.settings.digits
    with torch.no_grad():
        probabilities = trained.network.eval().probabilities(picture.unsqueeze(0)).squeeze(0)
    number = int(probabilities.argmax())
    console.print(Panel(blocks(picture), width=2 * SIZE + 4), markup=False, highlight=False)
    console.print(title, markup=False, highlight=False, style="dim")
    said = words["own" if trained.settings.task == "one-vs-rest" else "verdict"]
    line = said.format(digit=digits[number], probability=float(probabilities[number]))
    if len(digits) < 10:
        line += " " + words["among"].format(digits=", ".join(map(str, digits)))
    console.print(line, markup=False, highlight=False, style="bold")
    console.print(probability_table([str(digit) for digit in digits], probabilities.tolist()))
    if explained:
        _explain_first(trained, number, picture, lang, console)


def _explain_first(trained: Trained, number: int, picture: Tensor, lang: str, console: Console) -> None:
    """Print the first convolution, as it is computed under the window where one of its outputs is the largest."""
    words, layer = WORDS[lang], trained.network.reader(number).first.convolution
    framed = trained.network.framed(picture.unsqueeze(0))
    with torch.no_grad():
        maps = layer(framed).squeeze(0)
    chosen, row, column = (int(index) for index in torch.unravel_index(maps.argmax(), maps.shape))
    height, width = layer.kernel_size
    one = nn.Conv2d(1, 1, (height, width))
    one.load_state_dict({name: weight[chosen : chosen + 1] for name, weight in layer.state_dict().items()})
    window = framed[..., row : row + height, column : column + width]
    place = {"filter": chosen + 1, "row": row + 1, "column": column + 1, "size": framed.shape[-1]}
    console.print(f"\n[bold]{words['convolution'].format(**place)}[/bold]")
    console.print(blocks(window.squeeze()), markup=False, highlight=False)
    console.print(f"\n[bold]{words['window']}[/bold]")
    explain(one, window, lang=lang, steps=1, width=console.width)
