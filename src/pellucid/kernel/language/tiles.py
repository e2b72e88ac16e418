"""Triton of values, a tile at a time: what loops over time and nests of loops are both written with."""

from __future__ import annotations

from typing import Any

from pellucid.errors import Unsupported
from pellucid.kernel.language.pieces import Pieces, part_of
from pellucid.kernel.language.text_triton import ARITHMETIC, identifier, number_text
from pellucid.kernel.language.values import Value

Home = tuple[dict[Any, str], list[str]]  # names of values, and the lines where these are written


class Tiles(Pieces):
    """Writes values where they are asked for, the tile of each piece of columns once.

    ``ones`` is the shape of a tile of a single number.
    """

    ones = "[1, 1]"
    taken: set[str]

    def _home(self, value: Value) -> Home:
        """Where a value is written."""
        raise NotImplementedError

    def _read(self, value: Value, start: int, length: int) -> str:
        """The tile of what is no arithmetic: of memory, of draws, of a product or a reduction."""
        raise NotImplementedError

    def _evaluate(self, value: Value, start: int, length: int) -> str:
        """The name of the tile of a value's columns, written where it is new."""
        if value.width == 1:
            start, length = 0, 1
        if value.kind == "slice":
            return self._evaluate(value.values[0], start + value.start, length)
        if value.kind == "spread":
            return self._evaluate(value.values[0], 0, 1)
        if value.kind == "cat":
            return self._evaluate(*part_of(value, start), length)
        names, lines = self._home(value)
        key = (value, start, length)
        if key not in names:
            text = self._arithmetic(value, start, length) if value.kind == "math" else self._read(value, start, length)
            names[key] = self._fresh(value.name, start)
            lines.append(f"{names[key]} = {text}")
        return names[key]

    def _arithmetic(self, value: Value, start: int, length: int) -> str:
        if value.operation not in ARITHMETIC:
            raise Unsupported(f"{value.operation} of a tile")
        text = ARITHMETIC[value.operation]
        alone = value.operation == "constant" or text.startswith("functions.") or not value.values
        operands = [
            self._evaluate(o, start, length)
            if isinstance(o, Value)
            else f"tl.full({self.ones}, {number_text(o)}, REAL)"
            if alone
            else number_text(o)
            for o in value.operands
        ]
        return text.format(*operands)

    def _fresh(self, name: str, start: int = 0) -> str:
        """A name that is not taken; of columns that begin at another one than the first with its number."""
        name = identifier(f"{name}_{start}" if start else name)
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name
