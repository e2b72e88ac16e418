"""Texts that are kept in the folder ``golden``."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def golden(name: str, text: str) -> str:
    """The text that is kept under a name; PELLUCID_GOLDEN=write keeps this one, to be read and committed."""
    path = FOLDER / name
    if os.environ.get("PELLUCID_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    return path.read_text(encoding="utf-8")
