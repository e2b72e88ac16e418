"""The shape of every symbol, solved from the formula by running it on shapes alone, with the reason of each size."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from pellucid.errors import FormulaError
from pellucid.formula import draws
from pellucid.formula.dims import Conflict, Dim, Reason
from pellucid.formula.shape_rules import apply
from pellucid.formula.source import Source
from pellucid.formula.tracer import ROWS, Shape, Traced, Tracer


@dataclass(frozen=True)
class SolvedShape:
    """The shape of one symbol: names (``("input", "4*hidden")``), sizes, and per axis the reasons."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    reasons: tuple[tuple[Reason, ...], ...]


@dataclass(frozen=True)
class Solution:
    """Everything that the shapes of a formula say.

    ``symbols`` holds inputs, states and parameters; ``output`` is the size of what is returned for a row, at each step;
    ``sites`` are the random draws, each with its size and "time" or None.
    """

    sizes: Mapping[str, int]
    symbols: Mapping[str, SolvedShape]
    output: int
    sites: tuple[tuple[int, str | None], ...]

    def input_sizes(self, source: Source) -> tuple[int, ...]:
        """The size of every input."""
        return tuple(self.symbols[symbol.name].shape[-1] for symbol in source.inputs)

    def state_sizes(self, source: Source) -> tuple[int, ...]:
        """The size of every state entry."""
        return tuple(self.symbols[state.name].shape[-1] for state in source.states)


def solve(source: Source, sizes: Mapping[str, int], hyperparameters: Mapping[str, Any]) -> Solution:
    """Solve every shape of a formula for given sizes.

    They are "input", for a cell "hidden", for a layer "output" where the formula leaves it open, and the names of its
    annotations.

    Raises:
        FormulaError: with a caret under the author's line, where shapes cannot agree, a size stays open, a name is
            unknown, Python control flow depends on values, or a state is not returned.
    """
    return _Solver(source, sizes).run(hyperparameters)


def split_result(source: Source, result: Any) -> tuple[Any, tuple[Any, ...]]:
    """Sort what a formula returned into output and new state, both in the order of the arguments."""
    names = [state.name for state in source.states]
    if not names:
        if result is None or isinstance(result, (tuple, list)):
            what = "nothing" if result is None else f"{len(result)} values"
            raise FormulaError(
                f"{source.title}: {what} came back, where one tensor is returned, rows × output features.\n"
                + caret_at_return(source)
            )
        return result, ()
    expected = names[0] if len(names) == 1 else ", ".join(names)
    values = tuple(result) if isinstance(result, (tuple, list)) else () if result is None else (result,)
    if len(values) == 2 and isinstance(values[1], (tuple, list)):
        output, states = values[0], tuple(values[1])
    elif len(names) == 1 and len(values) == 2:
        output, states = values[0], values[1:]
    else:
        output, states = (values[0] if values else None), values
    if len(states) != len(names) or any(value is None for value in (output, *states)):
        missing = names[len(states) :]
        what = f"{', '.join(missing)} is not returned" if missing else f"{len(states)} values came back"
        what = what if values else "nothing came back"
        raise FormulaError(
            f"{source.title}: the state is ({', '.join(names)}), and every entry must be returned in that order, "
            f"but {what}. Write return {expected}, or return y, ({', '.join(names)},) with an output of its own.\n"
            + caret_at_return(source)
        )
    return output, states


def caret_at_return(source: Source) -> str:
    """The author's line that returns, with what it returns marked."""
    nodes = ast.walk(source.tree) if source.tree else ()
    returns = [node for node in nodes if isinstance(node, ast.Return)]
    if not returns:
        return source.caret_at_name(source.symbols[0].name)
    node = returns[-1]
    return source.caret(
        node.lineno, node.col_offset, (node.end_col_offset or 0) if node.lineno == node.end_lineno else 0
    )


class _Solver(Tracer):
    """Runs a formula on shapes, and reads the solution off its symbols."""

    training = True

    def __init__(self, source: Source, sizes: Mapping[str, int]) -> None:
        super().__init__(source, sizes, apply)
        self.sizes = dict(sizes)
        self.output = Dim.named("output") if "output" in sizes else self.unifier.fresh()
        self.anchors = "the input or the state" if source.states else "the input"
        self.sites: list[tuple[Dim, str | None]] = []

    def run(self, hyperparameters: Mapping[str, Any]) -> Solution:
        values = {symbol.name: self._start(symbol) for symbol in self.source.symbols if symbol.role != "hyperparameter"}
        first = [values[s.name] for s in (*self.source.inputs, *self.source.states)]
        keywords = {s.name: values[s.name] for s in self.source.parameters} | dict(hyperparameters)
        try:
            with draws.provided_by(self):
                result = self.source.function(*first, **keywords)
        except FormulaError:
            raise
        except Exception as error:
            raise FormulaError(
                f"{self.source.title}: {type(error).__name__}: {error}\n" + self.source.caret_at(error.__traceback__)
            ) from error
        output, states = split_result(self.source, result)
        for symbol, new in zip(self.source.states, states, strict=True):
            self._return(symbol.name, values[symbol.name], new)
        if self.source.kind == "layer":
            self._end(output)
        for operands, operation in self.deferred:
            if all(self.dims_of(v) is not None for v in operands):
                self.agree(operands, operation)
        symbols = {name: self._solved(name, value) for name, value in values.items()}  # first: they name what is open
        size = self._row_size(output)
        sites = tuple((self._number(dim), shared) for dim, shared in self.sites)
        return Solution(dict(self.sizes), symbols, size, sites)

    def draw(self, like: Any, shared: str | None) -> Any:
        """Note a random site; its numbers have the shape of what they act on."""
        dims = self.dims_of(like)
        if dims is None or len(dims) != 2 or dims[0] != ROWS:
            self.fail("random numbers are drawn for rows (batch × features), not for a parameter")
        if shared and self.source.kind == "layer":
            self.fail(
                f'shared="{shared}" draws once for all steps of a sequence, but a layer computes each row by itself '
                f"and knows no {shared}. Leave shared out; nn.LockedDropout shares its draws over {shared}, and so may "
                "a cell"
            )
        self.sites.append((dims[1], shared))
        return Traced(self, Shape(dims))

    def _start(self, symbol: Any) -> Traced:
        if symbol.role in ("input", "state") and symbol.dims is not None and len(symbol.dims) != 1:
            whole = "*".join(symbol.dims) or "1"
            raise FormulaError(
                f"{self.source.title}: the {symbol.role} {symbol.name} is annotated with {len(symbol.dims)} axes, but "
                f'it is a row of features: {symbol.name}: "{whole}". A matrix of each sample is made of such a row by '
                f"{symbol.name}.unflatten(-1, (rows, columns)), and returned by .flatten(1).\n"
                + self.source.caret_at_name(symbol.name)
            )
        if symbol.dims is not None:
            reason = Reason("annotated", {"name": symbol.name, "dims": " ".join(symbol.dims) or "scalar"})
            dims = [self._annotated(symbol, text) for text in symbol.dims]
            dims = dims if symbol.role == "parameter" else [ROWS, *dims]
            shape = Shape(None)
            shape.set(dims, ((reason,),) * len(dims))
            return Traced(self, shape)
        if symbol.role == "parameter":
            return Traced(self, Shape(None))
        first = (self.source.inputs[0], *self.source.states[:1])
        known = next((size for size, s in zip(("input", "hidden"), first, strict=False) if s is symbol), None)
        if known is None:
            return Traced(self, Shape([ROWS, self.unifier.fresh()]))
        shape = Shape(None)
        reason = Reason("given", {"name": symbol.name, "argument": f"{known}_size"})
        shape.set([ROWS, Dim.named(known)], ((), (reason,)))
        return Traced(self, shape)

    def _annotated(self, symbol: Any, text: str) -> Dim:
        """Read one axis of an annotation: ``hidden``, ``4*hidden``, ``16``, ``input+hidden``, ``key*hidden``."""
        total = Dim()
        for part in text.split("+"):
            factors = part.split("*")
            numbers, names = [f for f in factors if f.isdigit()], [f for f in factors if f.isidentifier()]
            if len(numbers) + len(names) < len(factors):
                raise FormulaError(
                    f"{self.source.title}: the annotation of {symbol.name} has the axis {text!r}; an axis is a "
                    f"name, a number, or a sum of products such as 4*hidden.\n" + self.source.caret_at_name(symbol.name)
                )
            count = math.prod(map(int, numbers))
            if names == ["output"] and self.source.kind == "layer":
                total = total + self.output.times(count)
                continue
            unknown = [name for name in names if name not in self.sizes]
            if unknown:
                raise FormulaError(
                    f"{self.source.title}: the annotation of {symbol.name} names the size {unknown[0]!r}; give it to "
                    f"the constructor: {self.source.name}(..., {unknown[0]}=16)\n"
                    + self.source.caret_at_name(symbol.name)
                )
            unit = "*".join(names)
            self.unifier.sizes.setdefault(unit, math.prod(self.sizes[name] for name in names))
            total = total + (Dim.named(unit).times(count) if names else Dim((), count))
        return total

    def _return(self, name: str, old: Traced, new: Any) -> None:
        dims = self.dims_of(new)
        if dims is None or len(dims) != 2:
            self._returned_wrong(name, old, new)
        reason = Reason("returned", {"state": name})
        try:
            self.unifier.unify(dims[0], ROWS, reason)
            self.unifier.unify(dims[1], old.dims[1], reason)
        except Conflict:
            self._returned_wrong(name, old, new)

    def _returned_wrong(self, name: str, old: Traced, new: Any) -> NoReturn:
        raise FormulaError(
            f"{self.source.title}: the state {name} is {self.text(old)}, but what is returned for it is "
            f"{self.text(new)}; a state entry keeps its shape from step to step.\n" + caret_at_return(self.source)
        )

    def _end(self, output: Any) -> None:
        """Make what a layer returns as wide as its output_size, or say that there is none."""
        dims = self.dims_of(output)
        if dims is None or len(dims) != 2:
            return  # _row_size refuses it
        name, sizes = self.source.name, self.sizes
        try:
            self.unifier.unify(dims[1], self.output, Reason("result", {"argument": "output_size"}))
        except Conflict:
            raise FormulaError(
                f"{self.source.title}: output_size is {sizes['output']}, but what the formula returns for input_size "
                f"{sizes['input']} is {self.text(output)}. Leave output_size out where the formula decides it.\n"
                + caret_at_return(self.source)
            ) from None
        if "output" not in sizes and self.unifier.value(self.output) is None:
            raise FormulaError(
                f"{self.source.title}: the formula leaves open how many features its result has. Give the constructor "
                f"output_size, its second argument: {name}({sizes['input']}, 16).\n" + caret_at_return(self.source)
            )

    def _row_size(self, output: Any) -> int:
        dims = self.dims_of(output)
        if dims is None or len(dims) != 2 or self.unifier.resolve(dims[0]) != ROWS:
            raise FormulaError(
                f"{self.source.title}: the output must be rows (batch × features), but it is {self.text(output)}.\n"
                + caret_at_return(self.source)
            )
        return self._number(dims[1])

    def _number(self, dim: Dim) -> int:
        value = self.unifier.value(dim)
        if value is None:
            raise FormulaError(
                f"{self.source.title}: the size {self.unifier.resolve(dim)} stays open: nothing in the formula "
                f"ties it to {self.anchors}. Name it in an annotation.\n  in {self.source.where}"
            )
        return value

    def _solved(self, name: str, value: Traced) -> SolvedShape:
        if value.shape_.dims is None:
            raise FormulaError(
                f"{self.source.title}: the shape of {name} stays open: the formula never uses it together with "
                f'{self.anchors}. Remove it, or annotate its axes: {name}: "{self.source.always_given[1]}"\n'
                + self.source.caret_at_name(name)
            )
        dims = value.shape_.dims
        numbers = [1 if dim == ROWS else self.unifier.value(dim) for dim in dims]
        if None in numbers:
            axis = numbers.index(None)
            example = " ".join(
                "rank" if n is None else str(self.unifier.resolve(d))
                for n, d in zip(numbers, dims, strict=True)
                if d != ROWS
            )
            raise FormulaError(
                f"{self.source.title}: the size of axis {axis} of {name} stays open: nothing ties it to "
                f'{self.anchors}. Name it in an annotation, {name}: "{example}", and give the constructor rank=16.\n'
                + self.source.caret_at_name(name)
            )
        own = value.shape_.reasons or ((),) * len(dims)
        reasons = tuple((*r, *self.unifier.reasons(d)) for r, d in zip(own, dims, strict=True))
        texts = tuple("1" if dim == ROWS else str(self.unifier.resolve(dim)) for dim in dims)
        return SolvedShape(name, texts, tuple(n for n in numbers if n is not None), reasons)
