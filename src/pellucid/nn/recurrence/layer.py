"""The layer of a cell: its parameters under the author's names, and torch.nn's conventions around it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import init
from torch.nn.utils.rnn import PackedSequence

from pellucid.nn.factory import Authored
from pellucid.nn.lengths import Lengths
from pellucid.nn.recurrence.sequence import SequenceLayer, State

if TYPE_CHECKING:
    from pellucid.nn.recurrence.cell import Cell


class Recurrent(Authored, SequenceLayer):
    """The layer of a cell; what calling a cell returns.

    Args:
        cell: the formula of a step, made by ``pellucid.cell``.
        input_size: features of the input.
        hidden_size: features of the first state entry, unless an annotation names its size otherwise.
        num_layers: levels, each reading the output of the one below.
        batch_first: input and output are (batch, time, features).
        dropout: probability of dropping an entry between levels, in training.
        bidirectional: a second set of parameters reads each sequence from its end; outputs are concatenated.
        options: the hyperparameters of the formula, and the sizes that its annotations name.

    Parameters have the author's names with torch's suffixes: ``U_l0``, ``W_l1_reverse``. Those without an initialiser
    start uniformly within 1/√hidden_size, as torch's do.
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            cell.check_size(name, value)
        if not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ValueError(f"{cell.source.name}: dropout is a probability from 0 to 1, not {dropout!r}")
        self.cell = cell
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.bidirectional = batch_first, float(dropout), bidirectional
        self._adopt(options)
        self._prepare()
        for name, shape in self._expected():
            self.register_parameter(name, torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @property
    def _factory(self) -> Cell:
        return self.cell

    def _prepare(self) -> None:
        sizes = {"input": self.input_size, "hidden": self.hidden_size, **self._sizes}
        self._solve(sizes, self.hyperparameters, self._version)

    def _expected(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for level in range(self.num_layers):
            for suffix in ("", "_reverse")[: self._directions]:
                for symbol in self.cell.source.parameters:
                    yield f"{symbol.name}_l{level}{suffix}", self.solution(level).symbols[symbol.name].shape

    def reset_parameters(self) -> None:
        """Start every parameter as its initialiser says."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, value in self.named_parameters():
            symbol = next(s for s in self.cell.source.parameters if name.rpartition("_l")[0] == s.name)
            with torch.no_grad():
                if symbol.initializer is None:
                    init.uniform_(value, -bound, bound)
                else:
                    self._start(symbol, value)

    def symbol_values(self, level: int = 0, reverse: bool = False) -> dict[str, Tensor]:
        """Return the parameters of one level and direction by the author's names."""
        suffix = f"_l{level}{'_reverse' if reverse else ''}"
        return {symbol.name: self._weight(symbol.name + suffix) for symbol in self.cell.source.parameters}

    def forward(
        self,
        x: Tensor | PackedSequence,
        state: State | None = None,
        lengths: Lengths | None = None,  # and what follows by position too: so torch.onnx gives defaults (dynamo=False)
        record: Sequence[str] = (),
        checkpoint_every: int | None = None,
        truncate: int | None = None,
        **further: Tensor | PackedSequence,
    ) -> Any:
        """Read sequences.

        Args:
            x: (time, batch, features), (batch, time, features) with ``batch_first``, (time, features) for one
                sequence, or a PackedSequence.
            state: the initial state, (layers × directions, batch, size), a tuple where it has several entries;
                zeros by default.
            lengths: (batch,) the number of real steps of each sequence, from 0; all by default. What stands behind
                them is never read, the output there is 0, the last state is that of the last real step.
            record: names of the formula, a state entry ("c") or an intermediate value ("i"): their values at every step
                are returned too, differentiable like the output.
            checkpoint_every: in training keep the state of every so many steps only, and compute the steps between
                again in backward: memory for long sequences at the price of a second forward pass.
            truncate: let no gradient pass from a part of so many steps to the one before (truncated backpropagation
                through time); values stay as they are.
            further: the formula's inputs after the first, by the author's names: of the axes of x with features of
                their own, (time, batch, features); without the last axis where that is 1. Every level reads them.

        Returns:
            The output of the top level at every step, and the last state of every level. With ``record`` also a
            dictionary of (layers × directions, time, batch, size), batch before time with ``batch_first``.

        Raises:
            RuntimeError: sizes that do not fit. ValueError: wrong number of axes, or another dtype. TypeError: an input
            of the formula is missing, or unknown.
        """
        self._look_outside()
        return self.run(x, state, lengths, record, checkpoint_every, truncate, further)

    def _get_name(self) -> str:
        return self.cell.source.name

    def extra_repr(self) -> str:
        """Write the arguments that differ from their defaults."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"num_layers": 1, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        parts += [f"{name}={getattr(self, name)}" for name, value in defaults.items() if getattr(self, name) != value]
        parts += [f"{name}={value}" for name, value in {**self._sizes, **self.hyperparameters}.items()]
        return ", ".join(parts)
