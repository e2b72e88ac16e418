"""Four classes in two ways with the same options: four networks of one against the rest, and one network for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pellucid.files import write_json
from pellucid.recipes import training
from pellucid.recipes.checkpoint import load
from pellucid.recipes.digits.recipe import Settings

FOUR = "four"  # the folder of the one network
SHOWN = ("test_accuracy", "best_epoch", "seconds", "parameters", "confusion")


def train(out: Path, settings: Settings, device: str = "auto") -> dict[str, Any]:
    """Train one-vs-rest into ``out`` and the one network into ``out/four``; see `training.train`.

    Returns:
        What ``metrics.json`` of ``out`` holds: the figures of one-vs-rest, and under "ways" those of both.
    """
    metrics = training.train(out, settings, device)
    return _beside(out, metrics, training.train(out / FOUR, replace(settings, task=FOUR), device))


def resume(out: Path, epochs: int | None = None, cell: str | None = None, device: str = "auto") -> dict[str, Any]:
    """Go on with whatever of the two is not done; see `training.resume`."""
    trained = training.unfinished(out, cell)
    settings = replace(trained.settings, epochs=epochs or trained.settings.epochs)
    four, last = replace(settings, task=FOUR), out / FOUR / training.LAST
    begun = last.is_file() and replace(load(last).settings, epochs=settings.epochs) == four
    done = begun and training.complete(out / FOUR, load(last), settings.epochs)
    if done or not training.complete(out, trained, settings.epochs):
        metrics = training.resume(out, epochs, device=device)
    else:
        metrics = training.metrics_in(out)
    if done:
        other = training.metrics_in(out / FOUR)
    elif begun:
        other = training.resume(out / FOUR, epochs, device=device)
    else:
        other = training.train(out / FOUR, four, device)
    return _beside(out, metrics, other)


def _beside(out: Path, metrics: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    ways = {each["task"]: {name: each[name] for name in SHOWN} for each in (other, metrics)}
    metrics = {**metrics, "ways": ways}
    write_json(out / training.METRICS, metrics)
    return metrics
