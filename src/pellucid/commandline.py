"""What the commands share: the terminal, a refusal, and what FILE.py:NAME on a command line means."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from pellucid.nn.recurrence.cell import Cell


class Refusal(click.ClickException):
    """What cannot be used: one line, exit code 2 as for a wrong option."""

    exit_code = 2


def console(plain_width: int = 100) -> Console:
    """The terminal, or as wide a page where there is none."""
    return Console() if sys.stdout.isatty() else Console(width=plain_width)


def load(name: str) -> Any:
    """Return what ``path/file.py:cell`` or ``path/file.py:Model`` names; any other name as it is.

    Raises:
        ValueError: there is no such file, or nothing of that name in it.
    """
    path, colon, attribute = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        if name.endswith(".py"):
            raise ValueError(f"{name}: which cell of it? Write {name}:cell")
        return name
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, module)
    spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        cells = [key for key, value in vars(module).items() if isinstance(value, Cell)]
        kinds = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == file.stem]
        models = [kind.__name__ for kind in kinds if issubclass(kind, torch.nn.Module)]
        known = f"its cells are {', '.join(cells) or 'none'}" + (f", its models {', '.join(models)}" if models else "")
        raise ValueError(f"{path} has no {attribute!r}; {known}")
    return getattr(module, attribute)
