"""A trained network in a file: what is added to Lightning's checkpoint, and how it is read without trust."""

from __future__ import annotations

import zipfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from pellucid.recipes.cells import lasting
from pellucid.recipes.errors import RecipeError
from pellucid.recipes.recipe import RECIPES, Settings, Trained, settings_of

ENTRY, FORMAT, PREFIX = "pellucid", 1, "network."


def entry(trained: Trained) -> dict[str, Any]:
    """Return what a checkpoint holds beside the weights: plain types only, for ``weights_only=True``."""
    return {
        "format": FORMAT,
        "recipe": trained.settings.recipe,
        "settings": asdict(trained.settings),
        "accuracies": list(trained.accuracies),
        **trained.settings.stored(trained.fitted),
    }


def load(path: Path, cell: str | None = None) -> Trained:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: a file that ``pellucid train`` wrote.
        cell: where the cell's file is now, if it has moved.

    Raises:
        RecipeError: no such file, a damaged one, another program's, or weights that do not fit the cell.
    """
    content = _read(path)
    stored = content.get(ENTRY)
    if not isinstance(stored, dict) or "state_dict" not in content:
        raise RecipeError(
            f"{path} holds no network of a recipe; another program wrote it. Make one: pellucid train sentiment"
        )
    if stored.get("format") != FORMAT or stored.get("recipe") not in RECIPES:
        raise RecipeError(
            f"{path} has the format {stored.get('format')} of the recipe {stored.get('recipe')}, this pellucid reads "
            f"format {FORMAT} of {', '.join(RECIPES)}; upgrade pellucid"
        )
    kind = settings_of(stored["recipe"])
    try:
        names = {field.name for field in fields(kind)}
        settings = kind(**{name: value for name, value in stored["settings"].items() if name in names})
        fitted = settings.restored(stored)
        accuracies = tuple(float(accuracy) for accuracy in stored["accuracies"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"{path} is damaged: its settings cannot be read ({error})") from error
    if cell:
        settings = settings.with_cell(lasting(cell))
    return Trained(_network(path, content, settings, fitted, cell), settings, fitted, accuracies)


def _network(path: Path, content: dict[str, Any], settings: Settings, fitted: Any, moved: str | None) -> Any:
    try:
        network = settings.network(fitted)
    except RecipeError as error:
        cure = "" if moved else " The network was trained with this cell; if the file has moved: --cell FILE.py:NAME"
        raise RecipeError(f"{path}: {str(error).rstrip('.')}.{cure}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"{path} is damaged: its settings make no network ({error})") from error
    weights = {key.removeprefix(PREFIX): value for key, value in content["state_dict"].items()}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise RecipeError(
            f"{path}: the weights do not fit the {settings.choice}; has its formula changed? {reason}"
        ) from error
    return network.eval()


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        inside = path / "best.ckpt"
        hint = f"did you mean {inside}?" if inside.is_file() else "there is no best.ckpt in it"
        raise RecipeError(f"{path} is a folder; {hint}")
    if not path.is_file():
        raise RecipeError(f"{path}: there is no such file. Make one, say: pellucid train sentiment --out {path.parent}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch raises half a dozen types for a file that is none of its own
        raise RecipeError(
            f"{path} is no checkpoint of pellucid: {_what_it_is(path)}. A checkpoint is named like best.ckpt; "
            "make one: pellucid train sentiment"
        ) from error
    return content if isinstance(content, dict) else {}


def _what_it_is(path: Path) -> str:
    if zipfile.is_zipfile(path):
        return "another program wrote it, or it holds objects that a checkpoint should not hold"
    with path.open("rb") as file:
        return "it ends too early" if file.read(4) == b"PK\x03\x04" else "it is another kind of file"
