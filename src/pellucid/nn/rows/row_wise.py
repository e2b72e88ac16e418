"""The module of a row-wise formula: its parameters under the author's names, and any axes before the features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import init

from pellucid.errors import kind_text, label, refuse_proxies, shape_text
from pellucid.formula.graph import step
from pellucid.formula.shapes import Solution
from pellucid.kernel.autocast import autocast_dtype
from pellucid.kernel.rows.direction import Draws
from pellucid.kernel.small import as_leaves, definition_is_faster, runs_definition
from pellucid.kernel.tensors import language, language_for
from pellucid.nn.axes import axes_of_features
from pellucid.nn.component import Component, Running, SymbolShape
from pellucid.nn.dropout.drawing import Drawing, Numbers
from pellucid.nn.factory import Authored

if TYPE_CHECKING:
    from pellucid.nn.rows.row_formula import Layer

SMALL = 2**16  # entries of an input above which a call takes longer than what Python adds to it
DRAWS = "random draws"  # beside the author's names, of which none has a space


class RowWise(Authored, Running, Component, Drawing):
    """The module of a layer's formula; what calling a ``pellucid.Layer`` returns.

    Input and output: (..., features), any axes before the features or none; several inputs have the same ones.

    Args:
        layer: the formula, made by ``pellucid.layer``.
        input_size: features of the first input.
        output_size: features of the result; needed only where the formula leaves them open, as ``x @ W`` does.
        seed: decides the sequence of draws of a formula that draws, see `Drawing`.
        generator: where such a layer takes its seeds from; by default torch's generator.
        device: of the parameters.
        dtype: of the parameters.
        options: the hyperparameters of the formula, and the sizes that its annotations name.

    Parameters have the author's names. Those without an initialiser start uniformly as in ``torch.nn.Linear``: a
    matrix within 1/√rows, what it takes in; any other within 1/√input_size.

    Raises:
        FormulaError: shapes cannot be solved, or rows know of each other. TypeError: an unknown or missing argument.
    """

    layer: Layer
    input_size: int
    output_size: int
    _main: dict[str, int]  # the sizes that no annotation names, as far as they were given
    _solution: Solution

    def __init__(
        self,
        layer: Layer,
        input_size: int,
        output_size: int | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.layer = layer
        given = {"input": input_size} | ({} if output_size is None else {"output": output_size})
        for name, value in given.items():
            layer.check_size(f"{name}_size", value)
        self._main = given
        self._adopt(options)
        self.input_size = input_size
        self._prepare()
        self.draw_from(seed, generator)
        for symbol in layer.source.parameters:
            empty = torch.empty(self._solution.symbols[symbol.name].shape, device=device, dtype=dtype)
            self.register_parameter(symbol.name, torch.nn.Parameter(empty))
        self._check_rows()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start every parameter as its initialiser says."""
        for symbol in self.layer.source.parameters:
            value = getattr(self, symbol.name)
            with torch.no_grad():
                if symbol.initializer is None:
                    bound = 1 / math.sqrt(value.shape[0] if value.dim() > 1 else self.input_size)
                    init.uniform_(value, -bound, bound)
                else:
                    self._start(symbol, value)

    @property
    def _factory(self) -> Layer:
        return self.layer

    def _prepare(self) -> None:
        sizes = tuple((self._main | self._sizes).items())
        self._key = (sizes, tuple(self.hyperparameters.items()), self._version)
        self._solution = self.layer.solve(*self._key)
        self.output_size = self._solution.output

    def _expected(self) -> Iterable[tuple[str, tuple[int, ...]]]:
        return ((s.name, self._solution.symbols[s.name].shape) for s in self.layer.source.parameters)

    def _check_fit(self, name: str) -> None:
        super()._check_fit(name)
        self._check_rows()

    def _check_rows(self) -> None:
        if not any(parameter.is_meta for parameter in self.parameters()):
            self.layer.check_rows(*self._key)

    def solution(self) -> Solution:
        """The solved shapes, with their reasons."""
        return self._solution

    @property
    def formula(self) -> Callable[..., Tensor]:  # type: ignore[override]
        """The author's function; called with what `bind` gives, draws too."""
        return self._evaluate

    def forward(self, /, *inputs: Tensor, **named: Tensor) -> Tensor:
        """Compute every row.

        Args:
            inputs: (..., features) each, in the order of the formula's inputs.
            named: inputs by the author's names, behind those in order.

        Returns:
            (..., output_size).

        Raises:
            RuntimeError: shapes or types that do not fit. TypeError: an input is missing, unknown, or no tensor.
        """
        refuse_proxies(self, inputs, named)
        self._look_outside()
        given = self._checked(inputs, named)
        y = self._rows(_flat(given))
        return y if given[0].ndim == 2 else y.reshape(*given[0].shape[:-1], y.shape[-1])

    def bind(self, /, *inputs: Tensor, **named: Tensor) -> dict[str, Any]:
        """Return what the formula's symbols stand for, rows × features, and the draws of the next call."""
        with self.rehearsal():
            return self._values(self._given(_flat(self._checked(inputs, named))))

    def symbols(self, *inputs: Tensor) -> list[SymbolShape]:
        """Return the shapes of the parameters; given inputs, theirs and the result's too."""
        solved, source = self._solution.symbols, self.layer.source
        shapes = []
        for symbol, x in zip(source.inputs, inputs, strict=False):
            shapes.append(SymbolShape(symbol.name, tuple(x.shape), axes_of_features(x.ndim), "rows.input", False))
        for symbol in source.parameters:
            shapes.append(SymbolShape.of_weight(self, symbol.name, symbol.name, solved[symbol.name].dims, ""))
        if inputs:
            shape = (*inputs[0].shape[:-1], self.output_size)
            facts = {"size": self.output_size}
            shapes.append(SymbolShape("y", shape, axes_of_features(len(shape)), "rows.output", False, facts))
        return shapes

    def extra_repr(self) -> str:
        """Write the arguments."""
        parts = [str(self.input_size)]
        parts += [str(self.output_size)] if self.output_size != self.input_size else []
        parts += [f"{name}={value}" for name, value in {**self._sizes, **self.hyperparameters}.items()]
        return ", ".join(parts) + self._source_text()

    def _get_name(self) -> str:
        return self.layer.source.name if type(self) is RowWise else type(self).__name__

    # -- running ------------------------------------------------------------------------------------------------

    def _rows(self, inputs: Sequence[Tensor]) -> Tensor:
        """Compute the result of all rows, (rows, features) each."""
        given = self._given(inputs)
        numbers = self.sequence() if self.training and self._solution.sites else None
        y = None
        if language(*given) is not None and autocast_dtype(given[0]) is None and not self._is_left(given, numbers):
            y = self._by_kernels(given, numbers)
        self._was_run_by("stepwise" if y is None else language_for(given[0]))
        return self._by_function(given, numbers) if y is None else y

    def _given(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Inputs and parameters."""
        return [*inputs, *(getattr(self, symbol.name) for symbol in self.layer.source.parameters)]

    def _by_kernels(self, given: Sequence[Tensor], numbers: Numbers | None) -> Tensor | None:
        """The result by kernels; None where a part of the formula has none."""
        program = self.layer.program(*self._key, self.training, given[0].dtype)
        return program.run(given, None if numbers is None else Draws.of(*numbers, {}))

    def _by_function(self, given: Sequence[Tensor], numbers: Numbers | None) -> Tensor:
        """The result by the author's function."""
        return self._evaluate(**self._values(given, numbers))

    def _is_left(self, given: Sequence[Tensor], numbers: Numbers | None) -> bool:
        """Whether small work is left to the author's function, because that was measured to be faster."""
        x = given[0]
        if x.numel() > SMALL:
            return False
        grad = torch.is_grad_enabled()
        wanted = tuple([grad and t.requires_grad for t in given])

        def measured() -> bool:
            copies = as_leaves(given)

            def by_kernels() -> list[Tensor]:
                y = self._by_kernels(copies, numbers)
                return by_function() if y is None else [y]

            def by_function() -> list[Tensor]:
                return [self._by_function(copies, numbers)]

            source = self.layer.source
            formula = f"{source.text}{self._key}"
            return definition_is_faster(
                f"rows of {source.name}", self.training, formula, copies, by_kernels, by_function
            )

        return runs_definition(self.layer.left, self._key, self.training, x, wanted, measured)

    def _values(self, given: Sequence[Tensor], numbers: Numbers | None = None) -> dict[str, Any]:
        """What the formula's symbols stand for, and fresh draws where it draws."""
        source, sites = self.layer.source, self._solution.sites
        symbols = (*source.inputs, *source.parameters)
        values: dict[str, Any] = {s.name: t for s, t in zip(symbols, given, strict=True)} | self.hyperparameters
        if self.training and sites:
            rows, device = given[0].shape[0], given[0].device
            values[DRAWS] = self.draw([(rows, size) for size, _ in sites], device, numbers)
        return values

    def _evaluate(self, /, **values: Any) -> Tensor:
        source = self.layer.source
        given = [values[symbol.name] for symbol in (*source.inputs, *source.parameters)]
        numbers = {symbol.name: values[symbol.name] for symbol in source.hyperparameters}
        return step(source, numbers, self.training, [*given, *values.get(DRAWS, ())])[0]

    # -- checks -------------------------------------------------------------------------------------------------

    def _checked(self, inputs: Sequence[Any], named: dict[str, Any]) -> list[Tensor]:
        """The inputs in the order of the formula, whatever they were given by."""
        names = [symbol.name for symbol in self.layer.source.inputs]
        values = dict(zip(names, inputs, strict=False)) | named
        missing = [name for name in names if name not in values]
        unknown = [name for name in named if name not in names[len(inputs) :]]
        if missing or unknown or len(inputs) > len(names):
            fault = f"{len(inputs)} inputs were given"
            if unknown:
                fault = f"{unknown[0]} was given twice" if unknown[0] in names else f"unexpected input {unknown[0]!r}"
            elif missing:
                fault = f"the input {missing[0]} is missing"
            raise TypeError(f"{label(self)}: {fault}. It is called layer({', '.join(names)})")
        given = [values[name] for name in names]
        for name, x, size in zip(names, given, self._solution.input_sizes(self.layer.source), strict=True):
            if not isinstance(x, Tensor):
                refuse_proxies(self, x)
                raise TypeError(f"{label(self)}: the input {name} is a tensor, not {kind_text(x)}")
            self._check_shape(name, x, size, given[0])
            self._check_type(name, x, given[0])
        return given

    def _check_shape(self, name: str, x: Tensor, size: int, first: Tensor) -> None:
        own = self.layer.source.inputs[0].name
        if not x.ndim or x.shape[-1] != size:
            places = [axis for axis in range(x.ndim) if x.shape[axis] == size]
            decided = "its input_size" if name == own else f"which its formula decides for input_size={self.input_size}"
            cure = "Make the layer with another input_size, or change what comes before."
            if places:
                cure = (
                    f"Axis {places[-1]} has that size: if it holds the features, pass {name}.movedim({places[-1]}, -1)."
                )
            raise RuntimeError(f"{self._found(name, x)} the layer reads (..., {size}), {decided}. {cure}")
        if x.shape[:-1] != first.shape[:-1]:
            raise RuntimeError(
                f"{self._found(name, x)} {own} has {shape_text(first.shape, axes_of_features(first.ndim))}: all axes "
                f"but the last must be the same. To repeat it: {name}.expand{(*first.shape[:-1], size)}."
            )

    def _found(self, name: str, x: Tensor) -> str:
        return f"{label(self)}: the input {name} has the shape {shape_text(x.shape, axes_of_features(x.ndim))}, but"

    def _check_type(self, name: str, x: Tensor, first: Tensor) -> None:
        if x.is_floating_point() and autocast_dtype(x) is not None:
            return
        if not x.is_floating_point():
            raise RuntimeError(
                f"{label(self)}: the input {name} is of {x.dtype}, no real numbers. Pass {name}.float()."
            )
        symbols = [*self.layer.source.parameters]
        parameter = getattr(self, symbols[0].name) if symbols else None
        dtype = first.dtype if parameter is None else parameter.dtype
        if x.dtype != dtype:
            others = "the first input is" if parameter is None else "the parameters are"
            raise RuntimeError(
                f"{label(self)}: the input {name} is of {x.dtype}, but {others} of {dtype}. Convert one of them: "
                f"{name}.to({dtype}) or layer.to({x.dtype})."
            )


def _flat(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Inputs as rows × features."""
    return [x if x.ndim == 2 else x.reshape(-1, x.shape[-1]) for x in inputs]
