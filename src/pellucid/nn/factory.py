"""An author's formula as the factory of its layers: names, sizes, hyperparameters, and how it is kept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pellucid.errors import FormulaError
from pellucid.formula.shapes import Solution, solve
from pellucid.formula.source import read
from pellucid.kernel import registry


class Factory:
    """What `pellucid.Cell` and `pellucid.Layer` share.

    ``source`` holds the author's names and lines, ``function`` is the undecorated function.
    """

    kind: ClassVar[str]
    beside: ClassVar[str]  # the arguments that every constructor takes, in words

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)  # type: ignore[arg-type]
        self.function = function
        self.source = read(function, self.kind)
        self.name = registry.register(f"{function.__module__}:{function.__qualname__}", self.source)
        self.solve = functools.lru_cache(maxsize=64)(self._solve)

    def __repr__(self) -> str:
        return f"<{self.source.title} at {self.source.where}>"

    def __reduce__(self) -> str:
        """Pickle as functions are pickled: by name."""
        return self.function.__qualname__

    def __deepcopy__(self, memo: Any) -> Factory:
        return self

    @property
    def size_names(self) -> tuple[str, ...]:
        """The sizes that the annotations name beside those always given: keyword arguments of the constructor."""
        axes = [dim for symbol in self.source.symbols for dim in symbol.dims or ()]
        names = [unit.split("*")[-1] for axis in axes for unit in axis.split("+")]
        return tuple(dict.fromkeys(n for n in names if n.isidentifier() and n not in self.source.always_given))

    def sort_options(self, options: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
        """Split keyword arguments into sizes and hyperparameters, defaults filled in.

        Raises:
            TypeError: an unknown or a missing name.
            FormulaError: a size or a hyperparameter of the wrong kind.
        """
        sizes = {name: options[name] for name in self.size_names if name in options}
        known = {symbol.name: symbol for symbol in self.source.hyperparameters}
        values = {name: options.get(name, symbol.default) for name, symbol in known.items()}
        unknown = [name for name in options if name not in known and name not in self.size_names]
        missing = [name for name, s in known.items() if s.required and name not in options]
        if unknown or missing:
            fault = f"unexpected argument {unknown[0]!r}" if unknown else f"missing argument {missing[0]!r}"
            raise TypeError(
                f"{self.source.name}: {fault}. Beside {self.beside} it takes: "
                f"{', '.join((*self.size_names, *known)) or 'none'}"
            )
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise FormulaError(f"{self.source.name}: the size {name} is a whole number from 1, not {size!r}")
        for name, value in values.items():
            word = isinstance(value, str) and not isinstance(known[name].default, (int, float))
            if not isinstance(value, (int, float)) and not word:
                raise FormulaError(
                    f"{self.source.name}: the hyperparameter {name} is a number, not a {type(value).__name__}. A "
                    f"tensor that does not change may stand in the formula as a variable of its module; one that is "
                    f"trained is a parameter (no number as default)."
                )
        return sizes, values

    def check_size(self, name: str, value: Any) -> None:
        """Refuse what is no size.

        Raises:
            TypeError: it is not a whole number. ValueError: it is less than 1.
        """
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{self.source.name}: {name} is a whole number, not {value!r}")
        if value < 1:
            raise ValueError(f"{self.source.name}: {name} must be greater than zero, not {value}")

    def _solve(self, sizes: tuple[tuple[str, int], ...], hyperparameters: tuple[tuple[str, Any], ...]) -> Solution:
        return solve(self.source, dict(sizes), dict(hyperparameters))
