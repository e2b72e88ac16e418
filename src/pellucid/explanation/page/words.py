"""The words of the page, by language: those of its frame and of each exhibit, a file a language in each folder."""

from __future__ import annotations

import functools
import tomllib

from pellucid.explanation.page.script import asset


@functools.cache
def words(kind: str, lang: str) -> dict[str, str]:
    """Return the words of an exhibit's folder, or of ``core``, in a language."""
    return tomllib.loads(asset(f"{kind}/{lang}.toml"))
