"""Where the columns of a value are cut: a concatenation is written part by part."""

from __future__ import annotations

import itertools
from collections.abc import Collection

from pellucid.kernel.language.values import Value

Known = dict[tuple[Value, int, int], set[int]]  # the cuts of values between two columns


class Pieces:
    """Cuts values into pieces of columns that are each written in one way."""

    def _lies(self, value: Value) -> bool:
        """Whether a value is read from memory."""
        raise NotImplementedError

    def _own_cuts(self, value: Value) -> Collection[int]:
        """Where a value that is read or made as a whole is cut nevertheless."""
        return ()

    def _pieces(self, value: Value) -> list[tuple[int, int]]:
        cuts = sorted({0, value.width, *self._cuts(value, 0, value.width)})
        return [(a, b - a) for a, b in itertools.pairwise(cuts)]

    def _cuts(self, value: Value, start: int, stop: int, known: Known | None = None) -> set[int]:
        """Columns of a value between start and stop where another part of a concatenation begins.

        ``known`` are those that were looked for already: of values that many share there would be no end.
        """
        known = {} if known is None else known
        place = value, start, stop
        if place not in known:
            known[place] = self._looked_for(value, start, stop, known)
        return known[place]

    def _looked_for(self, value: Value, start: int, stop: int, known: Known) -> set[int]:
        if value.width == 1 or self._lies(value) or value.kind in ("memory", "draws", "product", "reduce", "spread"):
            return {cut for cut in self._own_cuts(value) if start < cut < stop}
        if value.kind == "slice":
            inner = self._cuts(value.values[0], start + value.start, stop + value.start, known)
            return {cut - value.start for cut in inner}
        if value.kind == "cat":
            cuts, place = set(), 0
            for part in value.values:
                begin, end = max(start, place), min(stop, place + part.width)
                if begin < end:
                    cuts |= {begin, end} | {c + place for c in self._cuts(part, begin - place, end - place, known)}
                place += part.width
            return {cut for cut in cuts if start < cut < stop}
        return set().union(*(self._cuts(v, start, stop, known) for v in value.values))


def part_of(value: Value, column: int) -> tuple[Value, int]:
    """The part of a concatenation in which a column lies, and which of its columns that is."""
    for part in value.values:
        if column < part.width:
            return part, column
        column -= part.width
    raise AssertionError(f"{value.name} has no column {column}")
