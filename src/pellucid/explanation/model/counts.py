"""What a call of a layer costs where its operations do not show it: kernels of one piece, and pellucid's own layers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pellucid.explanation.cost import NOTHING, Tally, count
from pellucid.explanation.reading import Reading
from pellucid.keeping import left_alone
from pellucid.nn.component import Component
from pellucid.nn.dropout.dropout import DropoutFamily
from pellucid.nn.recurrence.sequence import SequenceLayer
from pellucid.nn.swapped.exchange import has_twin, kind_of, runs_as, twin_of


class Counts:
    """Counts calls of layers; layers of the same kind, arguments and input sizes are counted once."""

    def __init__(self) -> None:
        self._known: dict[str, Tally | None] = {}

    def of(self, layer: torch.nn.Module, args: tuple[Any, ...], options: Mapping[str, Any]) -> Tally | None:
        """Return what a call costs; None where the operations that it runs say so themselves."""
        if not isinstance(layer, (torch.nn.RNNBase, torch.nn.RNNCellBase, SequenceLayer, Component)):
            return None
        if isinstance(layer, SequenceLayer) or _has_twin(layer):
            return self._once(layer, str(dtype_of(args)), lambda: _of_a_row(layer), _rows(args, options))
        if not isinstance(layer, Component):
            return None  # a subclass of torch's recurrent layers with a forward of its own
        read = [(tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v for v in (*args, *options.values())]
        return self._once(layer, f"{list(options)} {read}", lambda: _of_component(layer, args, options))

    def _once(self, layer: torch.nn.Module, read: str, compute: Any, times: int = 1) -> Tally | None:
        kind = runs_as(kind_of(layer))  # whose text has all arguments; a subclass may write what it likes
        key = f"{kind} {kind.extra_repr(layer)} {layer.training} {read}"
        if key not in self._known:
            try:
                with left_alone(layer):
                    self._known[key] = compute()
            except Exception:  # a formula that needs the numbers themselves: its operations are counted as they ran
                self._known[key] = None
        found = self._known[key]
        return None if found is None else found.times(times)


def dtype_of(args: Any) -> torch.dtype | None:
    """Return the type of the first tensor."""
    for value in args:
        if isinstance(value, (Tensor, PackedSequence)):
            return (value.data if isinstance(value, PackedSequence) else value).dtype
    return None


def _has_twin(layer: torch.nn.Module) -> bool:
    recurrent = isinstance(layer, (torch.nn.RNNBase, torch.nn.RNNCellBase))
    return recurrent and has_twin(layer)


def _rows(args: tuple[Any, ...], options: Mapping[str, Any]) -> int:
    """Return how many steps of how many sequences a recurrent layer takes: padding is not among them."""
    x = args[0] if args else next(iter(options.values()))
    lengths = options.get("lengths", args[2] if len(args) > 2 else None)
    if isinstance(x, PackedSequence):
        return x.data.shape[0]
    if lengths is not None:
        return int(torch.as_tensor(lengths).sum())
    return x.numel() // x.shape[-1] if x.shape[-1] else 0


def _of_a_row(layer: Any) -> Tally:
    """One step of one sequence, over all levels and directions."""
    own: Any = layer if isinstance(layer, SequenceLayer) else twin_of(layer)
    dtype = next((p.dtype for p in layer.parameters()), torch.float32)
    return Reading(own).tally([1], dtype)


def _of_component(layer: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Tally:
    """A layer that is one formula: as torch's layer of that name computes it, else as its formula does."""
    theirs: Any = next(
        (k for k in type(layer).__mro__ if k.__module__.startswith("torch.nn.modules.")), torch.nn.Module
    )
    if theirs.__name__ == runs_as(kind_of(layer)).__name__:
        return count(functools.partial(theirs.forward, layer), args, options)
    if isinstance(layer, DropoutFamily) and not layer.training:
        return NOTHING  # it hands its input on
    return count(layer.formula, (), layer.bind(*args, **options))
