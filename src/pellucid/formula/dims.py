"""Sizes as linear expressions of named sizes (``4*hidden``), and their unification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """Why a size is what it is: the rule that fixed it and the facts of the place where it did.

    ``kind`` is a key of the explanations' texts (``reason.<kind>``); ``facts`` fill its blanks. The kinds are
    "given" (a constructor argument), "annotated", "product", "agree" (two sides of an elementwise operation),
    "returned" (becomes a state entry), "result" (is what a layer returns), "split" and "normalized".
    """

    kind: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Dim:
    """One size: a sum of whole multiples of named sizes plus a constant.

    Names that start with ``?`` are open (to be solved); others are known by name.
    """

    terms: tuple[tuple[str, int], ...] = ()
    constant: int = 0

    @staticmethod
    def named(name: str) -> Dim:
        """The size of that name."""
        return Dim(((name, 1),))

    def __add__(self, other: Dim) -> Dim:
        return self.combine(other, 1)

    def __sub__(self, other: Dim) -> Dim:
        return self.combine(other, -1)

    def combine(self, other: Dim, factor: int) -> Dim:
        """Return ``self + factor * other``."""
        terms = dict(self.terms)
        for name, count in other.terms:
            terms[name] = terms.get(name, 0) + factor * count
        kept = tuple(sorted((name, count) for name, count in terms.items() if count))
        return Dim(kept, self.constant + factor * other.constant)

    def times(self, factor: int) -> Dim:
        """Return ``factor * self``."""
        return Dim().combine(self, factor)

    def divided(self, parts: int) -> Dim | None:
        """Return ``self / parts`` where every term divides evenly, else None."""
        if self.constant % parts or any(count % parts for _, count in self.terms):
            return None
        return Dim(tuple((name, count // parts) for name, count in self.terms), self.constant // parts)

    @property
    def open_names(self) -> list[str]:
        """The names that are still to be solved."""
        return [name for name, _ in self.terms if name.startswith("?")]

    def __str__(self) -> str:
        parts = [name if count == 1 else f"{count}*{name}" for name, count in self.terms]
        if self.constant or not parts:
            parts.append(str(self.constant))
        return "+".join(parts)


class Conflict(Exception):
    """Two sizes that must be one cannot be."""


class Unifier:
    """Solves open sizes. ``sizes`` gives the value of every known name."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        self._solved: dict[str, tuple[Dim, Reason]] = {}
        self._count = 0

    def fresh(self) -> Dim:
        """Return a new open size."""
        self._count += 1
        return Dim.named(f"?{self._count}")

    def resolve(self, dim: Dim) -> Dim:
        """Replace what has been solved."""
        while True:
            name = next((n for n in dim.open_names if n in self._solved), None)
            if name is None:
                return dim
            count = dict(dim.terms)[name]
            dim = dim.combine(Dim.named(name), -count).combine(self._solved[name][0], count)

    def value(self, dim: Dim) -> int | None:
        """Return the number, None while a part of it is open."""
        dim = self.resolve(dim)
        if dim.open_names:
            return None
        return dim.constant + sum(count * self.sizes[name] for name, count in dim.terms)

    def unify(self, left: Dim, right: Dim, reason: Reason) -> Dim:
        """Make two sizes one, or raise `Conflict`."""
        left, right = self.resolve(left), self.resolve(right)
        rest = left - right
        solvable = next((n for n, count in rest.terms if n.startswith("?") and abs(count) == 1), None)
        if solvable is not None:
            sign = dict(rest.terms)[solvable]
            self._solved[solvable] = (Dim.named(solvable).combine(rest, -sign), reason)
        elif rest.open_names:
            self._divide(rest, reason)
        elif self.value(left) != self.value(right):
            raise Conflict
        return self.resolve(left)

    def _divide(self, rest: Dim, reason: Reason) -> None:
        """Solve ``4*?1 - 4*hidden = 0`` by the common factor; by value where the names do not divide."""
        name = rest.open_names[0]
        count = dict(rest.terms)[name]
        others = rest.combine(Dim.named(name), -count)
        solution = others.times(-1 if count > 0 else 1).divided(abs(count))
        if solution is None and not others.open_names:
            total = others.constant + sum(c * self.sizes[n] for n, c in others.terms)
            if total % count == 0:
                solution = Dim((), -total // count)
        if solution is None:
            raise Conflict
        self._solved[name] = (solution, reason)

    def reasons(self, dim: Dim) -> list[Reason]:
        """Return the chain of reasons that led from an open size to its solution."""
        found: list[Reason] = []
        while True:
            name = next((n for n in dim.open_names if n in self._solved), None)
            if name is None:
                return found
            dim, reason = self._solved[name]
            found.append(reason)
