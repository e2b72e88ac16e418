"""Files that packages carry, and files that are either whole or not there."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pellucid.recipes.errors import RecipeError


def package_folder(package: str, what: str) -> Path:
    """Find an installed package without importing it, which may take seconds.

    Args:
        package: the package that carries the data.
        what: the data, for the error: "the reviews come".

    Raises:
        RecipeError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(f"{what} with the package {package}, which is missing: pip install 'pellucid[train]'")
    return Path(spec.submodule_search_locations[0])


def read_carried(path: Path, package: str) -> bytes:
    """Read a file that a package carries.

    Raises:
        RecipeError: the package is installed, but not this file.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RecipeError(f"{path} is missing: pip install --force-reinstall --no-deps {package}") from None


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let ``write`` fill a new file beside ``path``, then put it in place in one move; an interruption leaves neither.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary as text that a person can read, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
