"""An author's formula as the factory of its layers: names, sizes, hyperparameters, and how it is kept."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch

from pellucid.errors import FormulaError, PellucidWarning, kind_text, label, shape_text
from pellucid.formula import outside
from pellucid.formula.shapes import Solution, solve
from pellucid.formula.source import Symbol, read
from pellucid.kernel import registry

MANY_VERSIONS = 8  # after which a warning says what each costs
MOST_VERSIONS = 64  # that are remembered


class Factory:
    """What `pellucid.Cell` and `pellucid.Layer` share.

    ``source`` holds the author's names and lines, ``function`` is the undecorated function.
    """

    kind: ClassVar[str]
    beside: ClassVar[str]  # the arguments that every constructor takes, in words
    attributes: ClassVar[tuple[str, ...]] = ("hyperparameter",)  # what a layer has under the author's names

    def __init__(self, function: Callable[..., Any], layer: type[Authored]) -> None:
        functools.update_wrapper(self, function)  # type: ignore[arg-type]
        self.function = function
        self.source = read(function, self.kind)
        self.name = registry.register(f"{function.__module__}:{function.__qualname__}", self.source)
        self._seen: dict[int, tuple[Any, ...]] = {}  # what it read from outside, in its last versions
        self.solve = functools.lru_cache(maxsize=64)(self._solve)
        self.layer_class = layer
        self._refuse_taken(layer)

    def __repr__(self) -> str:
        return f"<{self.source.title} at {self.source.where}>"

    def __reduce__(self) -> str:
        """Pickle as functions are pickled: by name."""
        return self.function.__qualname__

    def __deepcopy__(self, memo: Any) -> Factory:
        return self

    @functools.cached_property
    def _outside(self) -> list[outside.Outside]:
        return outside.read_by(self.function)

    def look_outside(self) -> int:
        """The version of the formula: another one whenever what it reads from outside is what it never was."""
        if not self._outside:
            return 0
        values = tuple([found.value() for found in self._outside])
        known = next((version for version, seen in reversed(self._seen.items()) if outside.same(values, seen)), None)
        if known is not None:
            return known
        version = next(reversed(self._seen), -1) + 1
        if version == MANY_VERSIONS:
            before = self._seen[version - 1]
            changed = [o.name for o, a, b in zip(self._outside, values, before, strict=True) if not outside.same(a, b)]
            warnings.warn(
                f"{self.source.title}: {', '.join(changed)}, which it reads from outside, has changed {MANY_VERSIONS} "
                "times, and every time its kernels were made anew, about a second each. What changes often is better "
                "an input of the formula, or a tensor that is written to in place.",
                PellucidWarning,
                stacklevel=2,
            )
        self._seen[version] = values
        if len(self._seen) > MOST_VERSIONS:
            del self._seen[next(iter(self._seen))]
        return version

    def name_of(self, version: int) -> str:
        """By what name the formula is known, as it reads from outside in a version."""
        return registry.renew(self.name, version) if version else self.name

    @property
    def size_names(self) -> tuple[str, ...]:
        """The sizes that the annotations name beside those always given: keyword arguments of the constructor."""
        axes = [dim for symbol in self.source.symbols for dim in symbol.dims or ()]
        names = [name for axis in axes for unit in axis.split("+") for name in unit.split("*")]
        return tuple(dict.fromkeys(n for n in names if n.isidentifier() and n not in self.source.always_given))

    def parameters(self) -> dict[str, inspect.Parameter]:
        """The arguments of the constructor by name, with the sizes and the hyperparameters of the formula."""
        of_layer = list(inspect.signature(self.layer_class.__init__).parameters.values())[2:]  # without self and cell
        named = {p.name: p for p in of_layer if p.kind is not p.VAR_KEYWORD}
        own: list[tuple[str, Any, Any]] = [(name, inspect.Parameter.empty, int) for name in self.size_names]
        for symbol in self.source.hyperparameters:
            number = float if isinstance(symbol.default, (int, float)) else float | str
            own.append((symbol.name, symbol.default, bool if isinstance(symbol.default, bool) else number))
        return named | {
            name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, default, kind in own
        }

    def _refuse_taken(self, layer: type[Authored]) -> None:
        """Refuse names under which a layer, its constructor or its call has something else.

        Raises:
            FormulaError: there is one.
        """
        constructor, forward = (inspect.signature(f).parameters for f in (layer.__init__, layer.forward))
        annotated = {name for base in layer.__mro__ for name in vars(base).get("__annotations__", ())}
        roles = [(s.name, s.role) for s in self.source.symbols] + [(name, "size") for name in self.size_names]
        for name, role in roles:
            owner = ""
            if role in ("hyperparameter", "size") and name in constructor:
                owner = "the constructor"
            elif role in self.attributes and (name in annotated or hasattr(layer, name)):
                owner = "every torch.nn.Module of its kind"
            elif role == "input" and name in forward and name != self.source.inputs[0].name:
                owner = f"layer({self.source.inputs[0].name}, {name}=...)"
            if owner:
                raise FormulaError(
                    f"{self.kind} {self.source.name}: the {role} {name} would stand where {owner} has something else "
                    f"of that name; give it another name.\n" + self.source.caret_at_name(name)
                )

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
            own = ", ".join((*self.size_names, *known))
            raise TypeError(
                f"{self.source.name}: {fault}. It takes {self.beside}" + (f"; of its formula {own}." if own else ".")
            )
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise FormulaError(f"{self.source.name}: the size {name} is a whole number from 1, not {size!r}")
        for name, value in values.items():
            word = isinstance(value, str) and not isinstance(known[name].default, (int, float))
            if not isinstance(value, (int, float)) and not word:
                raise FormulaError(
                    f"{self.source.name}: the hyperparameter {name} is a number, not {kind_text(value)}. A "
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

    def _solve(
        self, sizes: tuple[tuple[str, int], ...], hyperparameters: tuple[tuple[str, Any], ...], version: int
    ) -> Solution:
        return solve(self.source, dict(sizes), dict(hyperparameters))


class Authored:
    """A layer of an author's formula, which a `Factory` made.

    The hyperparameters of the formula are attributes of the layer, and may be set: ``layer.tau = 5.0`` decides from
    the next call on, as ``norm.eps`` does in torch.nn; another value is another formula, whose kernels are compiled
    once.
    """

    _sizes: dict[str, int]  # those that the annotations name
    _version: int  # of the formula, see `Factory.look_outside`
    forward: Callable[..., Any]

    @property
    def _factory(self) -> Factory:
        raise NotImplementedError

    def _prepare(self) -> None:
        """Solve the shapes of the formula with the sizes and hyperparameters as they are."""
        raise NotImplementedError

    def _look_outside(self) -> None:
        """Take the formula as it is now, with what it reads from outside; in a compiled graph it is as it was."""
        if torch.compiler.is_compiling():
            return
        version = self._factory.look_outside()
        if version != self.__dict__.get("_version", 0):
            self._version = version
            self._prepare()

    def _start(self, symbol: Symbol, value: torch.Tensor) -> None:
        """Give a parameter what its initialiser fills it with, or returns.

        Raises:
            FormulaError: it can do neither.
        """
        assert symbol.initializer is not None
        told = f"{self._factory.source.title}: the initialiser of {symbol.name}, {shape_text(value.shape)},"
        cure = "It fills the tensor that it is given, as pellucid.zeros and torch.nn.init.orthogonal_ do"
        try:
            made = symbol.initializer(value)
        except Exception as error:
            where = self._factory.source.caret_at_name(symbol.name)
            raise FormulaError(f"{told} raised {type(error).__name__}: {error}\n{cure}.\n{where}") from error
        if isinstance(made, torch.Tensor) and made is not value:
            if made.shape != value.shape:
                where = self._factory.source.caret_at_name(symbol.name)
                raise FormulaError(
                    f"{told} returned {shape_text(made.shape)}. {cure}, or returns one like it.\n{where}"
                )
            value.copy_(made)

    def _expected(self) -> Iterable[tuple[str, tuple[int, ...]]]:
        """The names of the parameters, and the shapes that were solved for them."""
        raise NotImplementedError

    def _adopt(self, options: Mapping[str, Any]) -> None:
        """Take the constructor's keyword arguments."""
        self._sizes, hyperparameters = self._factory.sort_options(options)
        self.__dict__.update(hyperparameters)
        self._version = self._factory.look_outside()

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The numbers of the formula."""
        return {symbol.name: self.__dict__[symbol.name] for symbol in self._factory.source.hyperparameters}

    def __setattr__(self, name: str, value: Any) -> None:
        """Let a hyperparameter decide from now on; nothing changes where it cannot be what it is set to.

        Raises:
            FormulaError: the formula cannot have it. ValueError: it wants parameters of other shapes.
        """
        if "_sizes" not in self.__dict__ or name not in self.hyperparameters:
            super().__setattr__(name, value)
            return
        self._factory.sort_options({**self._sizes, **self.hyperparameters, name: value})
        before = dict(self.__dict__)
        try:
            self.__dict__[name] = value
            self._prepare()
            self._check_fit(name)
        except BaseException:
            self.__dict__.update(before)
            raise

    def _check_fit(self, name: str) -> None:
        assert isinstance(self, torch.nn.Module)
        for parameter, shape in self._expected():
            own = getattr(self, parameter).shape
            if own != shape:
                raise ValueError(
                    f"{label(self)}: with {name}={getattr(self, name)} its parameter {parameter} would be "
                    f"{shape_text(shape)}, but it is {shape_text(own)}. Make another layer with it."
                )
