"""The layers of a model with all their places, and which of them a user means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch

from pellucid.errors import below
from pellucid.nn.swapped.exchange import Kind, kind_of, ours_of

Predicate: TypeAlias = Callable[[str, torch.nn.Module], bool]
Rule: TypeAlias = Predicate | Kind | str | torch.nn.Module
Only: TypeAlias = Rule | Iterable[Rule]


def places(model: torch.nn.Module) -> dict[torch.nn.Module, list[str]]:
    """Return every module of a model, itself too, with the paths of all its places; "" is the model's own."""
    found: dict[torch.nn.Module, list[str]] = {}
    for path, module in _walk(model, "", ()):
        found.setdefault(module, []).append(path)
    return found


def _walk(
    module: torch.nn.Module, path: str, within: tuple[torch.nn.Module, ...]
) -> Iterator[tuple[str, torch.nn.Module]]:
    yield path, module
    for name, child in module._modules.items():
        if child is not None and child not in (*within, module):  # a module may hold the one that holds it
            yield from _walk(child, below(path, name), (*within, module))


class Selection:
    """What ``only=`` lets through: any of predicates of (path, layer), classes, modules, paths and patterns of paths.

    Raises:
        TypeError: something else was given.
    """

    def __init__(self, only: Only | None) -> None:
        if only is None:
            self.rules: list[Rule] | None = None
        elif isinstance(only, (str, type)) or callable(only):
            self.rules = [only]
        elif isinstance(only, Iterable):
            self.rules = list(only)
        else:
            raise _unknown(only)
        for rule in self.rules or ():
            if not isinstance(rule, str) and not callable(rule):
                raise _unknown(rule)

    def admits(self, layer: torch.nn.Module, paths: Iterable[str]) -> bool:
        """Whether a layer with these places is meant."""
        return self.rules is None or any(self._fits(rule, layer, paths) for rule in self.rules)

    def check(self, found: dict[torch.nn.Module, list[str]]) -> None:
        """Refuse a path or pattern that no module has.

        Raises:
            ValueError: there is one.
        """
        for rule in self.rules or ():
            if isinstance(rule, str) and not any(_named(rule, path) for paths in found.values() for path in paths):
                known = [path for paths in found.values() for path in paths if path]
                shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
                raise ValueError(
                    f"swap: only={rule!r} fits no module of the model. It has {shown or 'no modules inside'}. A path "
                    f"means a module and all inside it; a pattern has *: 'encoder.*.norm'."
                )

    @staticmethod
    def _fits(rule: Rule, layer: torch.nn.Module, paths: Iterable[str]) -> bool:
        if isinstance(rule, str):
            return any(_named(rule, path) for path in paths)
        if isinstance(rule, type):
            kind = kind_of(layer)
            ours = ours_of(kind)
            return issubclass(kind, rule) or (ours is not None and issubclass(ours, rule))
        if isinstance(rule, torch.nn.Module):
            return layer in set(rule.modules())
        return any(rule(path, layer) for path in paths)


def _named(rule: str, path: str) -> bool:
    return path == rule or path.startswith(f"{rule}.") or fnmatchcase(path, rule)


def _unknown(rule: object) -> TypeError:
    return TypeError(
        f"swap: only= takes a class, a module, a path or pattern of paths, a function of (path, layer), or several of "
        f"these; not {rule!r}"
    )
