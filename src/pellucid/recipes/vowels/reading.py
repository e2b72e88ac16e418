"""How a trained network recognises the speaker of an utterance: its verdict, and how it moves from step to step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pellucid.explanation import explain
from pellucid.recipes.errors import RecipeError
from pellucid.recipes.recipe import Trained
from pellucid.recipes.tables import WIDTH, probability_table
from pellucid.recipes.vowels.data import SPEAKERS, read_utterances

EXPLAINED_STEPS = 2
WORDS = {
    "en": {
        "utterance": "utterance {number} of the test part, {steps} steps, never trained on; its speaker is {speaker}",
        "verdict": "speaker {speaker}, probability {probability:.1%}",
        "reading": "How the verdict moves as the network reads on: the probability of speaker {speaker}",
        "step": "step",
        "likeliest": "likeliest",
        "recurrent": "What the recurrent layer does at the first steps",
        "tcn": "What the temporal convolutional network does",
    },
    "zh": {
        "utterance": "测试集中第 {number} 段发音，{steps} 步，训练中从未出现；说话人是 {speaker} 号",
        "verdict": "{speaker} 号说话人，概率 {probability:.1%}",
        "reading": "网络逐步往下读时判断如何变化：是 {speaker} 号说话人的概率",
        "step": "步",
        "likeliest": "最可能",
        "recurrent": "循环层在最初几步的计算",
        "tcn": "时间卷积网络的计算",
    },
}


def predict(trained: Trained, inputs: Sequence[str], explained: bool, lang: str, console: Console) -> None:
    """Recognise the speaker of an utterance of the test part, by default the first one.

    Raises:
        RecipeError: the input is no number of one.
    """
    words, test = WORDS[lang], read_utterances()["test"]
    number = _number(inputs, len(test))
    steps, speaker = test[number - 1]
    said = words["utterance"].format(number=number, steps=len(steps), speaker=speaker + 1)
    console.print(said, markup=False, highlight=False, style="dim")
    probabilities = trained.network.probabilities_of_prefixes(steps)
    found = int(probabilities[-1].argmax())
    said = words["verdict"].format(speaker=found + 1, probability=float(probabilities[-1, found]))
    console.print(said, markup=False, highlight=False, style="bold")
    console.print(probability_table([str(n + 1) for n in range(SPEAKERS)], probabilities[-1].tolist()))
    if explained:
        console.print(f"\n[bold]{words['reading'].format(speaker=found + 1)}[/bold]")
        console.print(_table(probabilities, found, lang))
        _explain_layer(trained, steps, lang, console)


def _number(inputs: Sequence[str], count: int) -> int:
    if not inputs:
        return 1
    if len(inputs) > 1 or not inputs[0].isdecimal() or not 1 <= int(inputs[0]) <= count:
        raise RecipeError(
            f"{' '.join(inputs)}: a network of vowels reads an utterance of the test part, by its number, 1 to {count}"
        )
    return int(inputs[0])


def _table(probabilities: Tensor, found: int, lang: str) -> Table:
    words = WORDS[lang]
    table = Table(box=None, padding=(0, 1))
    table.add_column(words["step"], justify="right")
    table.add_column("", justify="right")
    table.add_column("", no_wrap=True, min_width=WIDTH)
    table.add_column(words["likeliest"], justify="right")
    for step, row in enumerate(probabilities, 1):
        probability = float(row[found])
        likeliest = str(int(row.argmax()) + 1)
        table.add_row(str(step), f"{probability:.3f}", "█" * round(probability * WIDTH), likeliest)
    return table


def _explain_layer(trained: Trained, steps: Tensor, lang: str, console: Console) -> None:
    model = "recurrent" if trained.settings.has_cell else "tcn"
    console.print(f"\n[bold]{WORDS[lang][model]}[/bold]")
    with torch.no_grad():
        x = trained.network.normalised(steps).unsqueeze(1)  # (time, 1, 12)
    layer, x = (trained.network.layer, x) if model == "recurrent" else (trained.network.layer.tcn, x.permute(1, 2, 0))
    explain(layer, x, lang=lang, steps=EXPLAINED_STEPS, width=console.width)
