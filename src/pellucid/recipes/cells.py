"""The cell that a user names: one of pellucid's own, or one in a file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch

from pellucid import nn
from pellucid.commandline import load
from pellucid.explanation.examples import known_cells
from pellucid.nn import cells
from pellucid.nn.recurrence.cell import Cell
from pellucid.recipes.errors import RecipeError

DROP_IN = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def cell_names() -> list[str]:
    """Return the names that ``cell`` takes beside files: of cells that read one input."""
    return sorted({*DROP_IN, *(name for name, cell in known_cells().items() if len(cell.source.inputs) == 1)})


def lasting(name: str) -> str:
    """Write ``path/file.py:cell`` so that it holds in another folder; other names as they are."""
    path, colon, cell = name.rpartition(":")
    return f"{Path(path).resolve()}:{cell}" if colon and path.endswith(".py") else name


def recurrent_layer(
    name: str, input_size: int, hidden_size: int, option: str = "--cell", others: tuple[str, ...] = ()
) -> torch.nn.Module:
    """Make the layer of a cell that the user names.

    Args:
        name: "rnn", "gru", "lstm", a name in ``pellucid.nn.cells``, or ``path/file.py:cell``.
        input_size: features of a step.
        hidden_size: features of the state.
        option: the option that named it, for errors.
        others: what else the option takes, for errors.

    Raises:
        RecipeError: there is no such cell or file, the file fails, or the cell needs more than its two sizes.
    """
    if name in DROP_IN:
        return DROP_IN[name](input_size, hidden_size)
    found = _of_file(name, option) if ".py" in name else getattr(cells, name, None)
    if ".py" in name and not isinstance(found, Cell):
        raise RecipeError(f"{option} {name}: that is no cell. Does the function carry @pellucid.cell?")
    if not isinstance(found, Cell):
        known = [*cell_names(), *others]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise RecipeError(
            f"{option} {name}: there is no such cell.{hint} Known: {', '.join(known)}; or path/file.py:name."
        )
    try:
        return found(input_size, hidden_size)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{option} {name}: {error}. Give what is missing a default in the formula.") from error


def _of_file(name: str, option: str) -> Any:
    """Run the author's file and return what the name after the colon stands for."""
    try:
        return load(name)
    except Exception as error:  # the author's file may raise anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise RecipeError(f"{option} {name}: {kind}{error}") from error
