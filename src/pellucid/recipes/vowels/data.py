"""Real utterances of two vowels by nine speakers: series of 12 features, each of its own length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pellucid.recipes.batches import Series
from pellucid.recipes.errors import RecipeError
from pellucid.recipes.files import package_folder, read_carried

SPEAKERS, FEATURES = 9, 12
HELD_BACK = 6  # of the utterances to learn from, every sixth of a speaker chooses the epoch


def read_utterances() -> dict[str, list[Series]]:
    """Read the Japanese Vowels that the installed package ``sktime`` carries: steps (time, 12) and the speaker, 0 to 8.

    Kudo, Toyama and Shimbo, "Multidimensional curve classification using passing-through regions", Pattern Recognition
    Letters 20, 1999. Nine men say the vowels a and e one after the other; a step is the 12 cepstral coefficients of a
    frame. The authors' own division stays: 270 utterances to learn from, of which 45 are the validation part, and 370
    to test. In the training part every nine neighbours are of the nine speakers.

    Raises:
        RecipeError: ``sktime`` is not installed, its files are missing, or one cannot be read.
    """
    folder = package_folder("sktime", "the utterances come") / "datasets" / "data" / "JapaneseVowels"
    learn, test = (_series(folder / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST"))
    parts: dict[str, list[Series]] = {"train": [], "validation": [], "test": test}
    by_speaker = [[each for each in learn if each[1] == speaker] for speaker in range(SPEAKERS)]
    for index, utterances in enumerate(zip(*by_speaker, strict=True)):
        parts["validation" if index % HELD_BACK == HELD_BACK - 1 else "train"].extend(utterances)
    return parts


def _series(path: Path) -> list[Series]:
    """Read a file of the format ts: after "@data" a line for each series, its features and its class parted by ":"."""
    lines = read_carried(path, "sktime").decode().splitlines()
    try:
        rows = [line.split(":") for line in lines[lines.index("@data") + 1 :] if line.strip()]
        return [(_steps(features), int(speaker) - 1) for *features, speaker in rows]
    except ValueError as error:
        raise RecipeError(f"{path} is damaged ({error}): pip install --force-reinstall --no-deps sktime") from error


def _steps(features: Sequence[str]) -> Tensor:
    """Read the features of a series, each a line of numbers parted by commas, as (time, features)."""
    steps = torch.tensor([[float(number) for number in feature.split(",")] for feature in features]).T
    if steps.shape[1] != FEATURES:
        raise ValueError(f"a series has {steps.shape[1]} features instead of {FEATURES}")
    return steps.contiguous()


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of every feature over all steps of the training part."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, series: Sequence[Series]) -> Statistics:
        """Read them off some series."""
        steps = torch.cat([steps for steps, _ in series]).double()
        return cls(tuple(steps.mean(0).tolist()), tuple(steps.std(0, correction=0).tolist()))
