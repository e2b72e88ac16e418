"""The sentences of explanations, by key, in the languages of the folder ``text``."""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any


class Count(int):
    """A whole number that agrees with its noun: ``{n:row|rows}`` gives "1 row", "2 rows"; ``{n}`` gives "49,280"."""

    def __format__(self, spec: str) -> str:
        if "|" not in spec:
            return format(int(self), spec or ",")
        one, many = spec.split("|")
        return f"{int(self):,} {one if self == 1 else many}"


class Noun(Count):
    """A count of which only the noun is written: the number stands in a column of its own."""

    def __format__(self, spec: str) -> str:
        one, many = spec.split("|")
        return one if self == 1 else many


class Sizes(str):
    """Sizes along several axes, 3×3, that agree with their noun as a `Count` does."""

    def __format__(self, spec: str) -> str:
        if "|" not in spec:
            return str(self)
        one, many = spec.split("|")
        return f"{self} {one if set(self) <= set('1×') else many}"


class Texts:
    """The texts of one language."""

    def __init__(self, lang: str) -> None:
        self.lang = lang
        self._texts = load(lang)

    def __contains__(self, key: str) -> bool:
        return key in self._texts

    def __call__(self, key: str, **facts: Any) -> str:
        """Return the text of a key with its blanks filled; whole numbers are written with thousands separators."""
        counted = {
            name: Count(fact) if isinstance(fact, int) and not isinstance(fact, bool) else fact
            for name, fact in facts.items()
        }
        return self._texts[key].format(**counted)

    def paragraphs(self, key: str, **facts: Any) -> tuple[str, ...]:
        """Return a text of several paragraphs, one string each."""
        return tuple(_one_line(part) for part in self(key, **facts).strip().split("\n\n"))

    def group(self, prefix: str) -> dict[str, str]:
        """Return all texts under a prefix, unfilled, by the rest of their keys."""
        start = prefix + "."
        return {key[len(start) :]: text for key, text in self._texts.items() if key.startswith(start)}

    def axis(self, name: str) -> str:
        """Translate the name of an axis, which may end with its number; an author's own name is kept."""
        kind, _, number = name.rpartition(" ")
        if number.isdecimal() and f"axis_number.{kind.replace(' ', '_')}" in self:
            return self(f"axis_number.{kind.replace(' ', '_')}", n=int(number))
        return self._texts.get(f"axis.{name.replace(' ', '_')}", name)

    def joined(self, clauses: list[str]) -> str:
        """Join clauses by the language's semicolon."""
        return self._texts["punctuation.semicolon"].join(clauses)


def _one_line(text: str) -> str:
    """Join lines: by a space, between two Chinese characters by nothing."""
    return " ".join(re.sub(r"(?<=[\u2e80-\uffef])\s*\n\s*(?=[\u2e80-\uffef])", "", text).split())


def languages() -> list[str]:
    """Return the languages that there are texts in."""
    files = resources.files("pellucid.explanation").joinpath("text").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


@functools.cache
def load(lang: str) -> Mapping[str, str]:
    """Return all texts of a language by dotted key.

    Raises:
        ValueError: there are no texts in this language.
    """
    if lang not in languages():
        raise ValueError(f"lang={lang!r}: explanations are written in {' and '.join(map(repr, languages()))}")
    file = resources.files("pellucid.explanation").joinpath("text", f"{lang}.toml")
    return dict(_flat(tomllib.loads(file.read_text(encoding="utf-8")), ""))


def _flat(table: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in table.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


def lang_of_locale() -> str:
    """Return the language of the environment's locale where it has texts, else English."""
    for variable in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(variable):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"
