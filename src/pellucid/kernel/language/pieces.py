"""Where the columns of a value are cut: a concatenation is written part by part."""

from __future__ import annotations

import itertools
from collections.abc import Collection

from pellucid.kernel.language.values import Value


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

    def _cuts(self, value: Value, start: int, stop: int) -> set[int]:
        """Columns of a value between start and stop where another part of a concatenation begins."""
        if value.width == 1 or self._lies(value) or value.kind in ("memory", "draws", "product", "reduce", "spread"):
            return {cut for cut in self._own_cuts(value) if start < cut < stop}
        if value.kind == "slice":
            inner = self._cuts(value.values[0], start + value.start, stop + value.start)
            return {cut - value.start for cut in inner}
        if value.kind == "cat":
            cuts, place = set(), 0
            for part in value.values:
                begin, end = max(start, place), min(stop, place + part.width)
                if begin < end:
                    cuts |= {begin, end} | {c + place for c in self._cuts(part, begin - place, end - place)}
                place += part.width
            return {cut for cut in cuts if start < cut < stop}
        return set().union(*(self._cuts(v, start, stop) for v in value.values))
