"""Values on the way as further columns of the output: what is recorded is differentiated and fused like the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pellucid.errors import FormulaError
from pellucid.formula.capture import call_by_variables
from pellucid.formula.rewrite import returning
from pellucid.formula.shapes import split_result
from pellucid.formula.source import Source


def recordable(source: Source) -> tuple[str, ...]:
    """The names whose values can be recorded: state entries, then what the formula assigns."""
    code = source.function.__code__
    given = {symbol.name for symbol in source.symbols}
    assigned = [name for name in (*code.co_varnames, *code.co_cellvars) if name not in given]
    return (*(state.name for state in source.states), *dict.fromkeys(assigned))


def recording(source: Source, names: Sequence[str]) -> Source:
    """Return the cell whose output is followed by the values that these names have at the end of a step.

    A state entry's name stands for its new value.

    Raises:
        FormulaError: Python keeps no source of the function, or a value is not a row of features.
    """
    if source.tree is None:
        raise FormulaError(
            f"cell {source.name}: record needs the lines of the formula, and Python keeps none for {source.where}; "
            "write the cell in a file or a notebook"
        )

    def collect(result: Any, values: Mapping[str, Any]) -> Any:
        call_by_variables(source, values)
        output, states = split_result(source, result)
        known = {**values, **{s.name: value for s, value in zip(source.states, states, strict=True)}}
        columns = [output]
        for name in names:
            if name not in known:
                raise FormulaError(f"cell {source.name}: {name} has no value at the end of a step\n  in {source.where}")
            value = known[name]
            if not hasattr(value, "ndim") or value.ndim != 2:
                raise FormulaError(
                    f"cell {source.name}: {name} cannot be recorded, for it is no row of features (batch × features)\n"
                    f"  in {source.where}"
                )
            columns.append(value.to(output.dtype) if isinstance(value, torch.Tensor) else value)
        return torch.cat(columns, -1), states

    return returning(source, collect)
