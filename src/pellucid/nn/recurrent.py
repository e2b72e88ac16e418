"""Recurrent layers: one for any cell, and torch.nn's RNN, GRU, LSTM and their cells on the same formulas."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence

from pellucid.errors import label, shape_text
from pellucid.nn import cells
from pellucid.nn.cell import Cell
from pellucid.nn.lengths import Lengths
from pellucid.nn.sequence import SequenceLayer, State


class Recurrent(SequenceLayer):
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

    _sizes: dict[str, int]  # those that the annotations name

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
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{cell.source.name}: {name} is a whole number, not {value!r}")
            if value < 1:
                raise ValueError(f"{cell.source.name}: {name} must be greater than zero, not {value}")
        if not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ValueError(f"{cell.source.name}: dropout is a probability from 0 to 1, not {dropout!r}")
        self.cell = cell
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.bidirectional = batch_first, float(dropout), bidirectional
        self._sizes, hyperparameters = cell.sort_options(options)
        self._solve({"input": input_size, "hidden": hidden_size, **self._sizes}, hyperparameters)
        for level in range(num_layers):
            for suffix in ("", "_reverse")[: self._directions]:
                for symbol in cell.source.parameters:
                    shape = self.solution(level).symbols[symbol.name].shape
                    empty = torch.empty(shape, device=device, dtype=dtype)
                    self.register_parameter(f"{symbol.name}_l{level}{suffix}", torch.nn.Parameter(empty))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start every parameter as its initialiser says."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, value in self.named_parameters():
            symbol = next(s for s in self.cell.source.parameters if name.startswith(f"{s.name}_l"))
            with torch.no_grad():
                if symbol.initializer is None:
                    init.uniform_(value, -bound, bound)
                else:
                    symbol.initializer(value)

    def symbol_values(self, level: int = 0, reverse: bool = False) -> dict[str, Tensor]:
        """Return the parameters of one level and direction by the author's names."""
        suffix = f"_l{level}{'_reverse' if reverse else ''}"
        return {symbol.name: getattr(self, symbol.name + suffix) for symbol in self.cell.source.parameters}

    def forward(
        self, x: Tensor | PackedSequence, state: State | None = None, lengths: Lengths | None = None
    ) -> tuple[Any, State]:
        """Read sequences.

        Args:
            x: (time, batch, features), (batch, time, features) with ``batch_first``, (time, features) for one
                sequence, or a PackedSequence.
            state: the initial state, (layers × directions, batch, size), a tuple where it has several entries;
                zeros by default.
            lengths: (batch,) the number of real steps of each sequence, from 0; all by default. What stands behind
                them is never read, the output there is 0, the last state is that of the last real step.

        Returns:
            The output of the top level at every step, and the last state of every level.

        Raises:
            RuntimeError: sizes that do not fit. ValueError: wrong number of axes, or another dtype.
        """
        return self.run(x, state, lengths)

    def _get_name(self) -> str:
        return self.cell.source.name

    def extra_repr(self) -> str:
        """Write the arguments that differ from their defaults."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"num_layers": 1, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        parts += [f"{name}={getattr(self, name)}" for name, value in defaults.items() if getattr(self, name) != value]
        parts += [f"{name}={value}" for name, value in {**self._sizes, **self._hyperparameters}.items()]
        return ", ".join(parts)


class _TorchLayout(SequenceLayer):
    """Parameters as torch.nn registers them: the formula's U is weight_ih transposed, b the sum of two biases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare()

    def _cell(self) -> Cell:
        raise NotImplementedError

    def _prepare(self) -> None:
        self.cell = self._cell()
        named = {"proj": self.proj_size} if self.proj_size else {}
        self._solve({"input": self.input_size, "hidden": self.hidden_size, **named}, {})

    def forward(
        self, input: Tensor | PackedSequence, hx: State | None = None, lengths: Lengths | None = None
    ) -> tuple[Any, State]:
        """Read sequences: as torch.nn's layer of this name, and with ``lengths`` as `Recurrent.forward`."""
        return self.run(input, hx, lengths)

    def symbol_values(self, level: int = 0, reverse: bool = False) -> dict[str, Tensor]:
        """Return the formula's parameters, made from torch's: U = weight_ihᵀ, W = weight_hhᵀ, b = bias_ih + bias_hh."""
        suffix = f"_l{level}{'_reverse' if reverse else ''}"
        values = _rows(self, suffix)
        if self.proj_size:
            values["P"] = getattr(self, f"weight_hr{suffix}").t()
        return values


def _rows(layer: Any, suffix: str) -> dict[str, Tensor]:
    """torch's matrices act from the right of a column; a formula's act on rows."""
    weight = getattr(layer, f"weight_ih{suffix}")
    values = {"U": weight.t(), "W": getattr(layer, f"weight_hh{suffix}").t()}
    zero = None if layer.bias else weight.new_zeros(weight.shape[0])
    of_input = getattr(layer, f"bias_ih{suffix}") if zero is None else zero
    of_state = getattr(layer, f"bias_hh{suffix}") if zero is None else zero
    if any(symbol.name == "c" for symbol in layer.cell.source.parameters):
        return {**values, "b": of_input, "c": of_state}
    return {**values, "b": of_input + of_state}


# torch.compile refuses instances of torch.nn.RNN, GRU and LSTM themselves, so these are siblings, not subclasses: the
# same base, hence the same parameters, initialisation and text.


class RNN(_TorchLayout, RNNBase):
    """Elman network with tanh or ReLU: the arguments and results of ``torch.nn.RNN``, and ``lengths``."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nn.RNN: nonlinearity is 'tanh' or 'relu', not {nonlinearity!r}")
        self.nonlinearity = nonlinearity
        mode, shape = f"RNN_{nonlinearity.upper()}", (input_size, hidden_size, num_layers)
        super().__init__(mode, *shape, bias, batch_first, dropout, bidirectional, device=device, dtype=dtype)

    def _cell(self) -> Cell:
        return cells.rnn if self.nonlinearity == "tanh" else cells.rnn_relu


class GRU(_TorchLayout, RNNBase):
    """Gated recurrent units: the arguments and results of ``torch.nn.GRU``, and ``lengths``."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (input_size, hidden_size, num_layers)
        super().__init__("GRU", *shape, bias, batch_first, dropout, bidirectional, device=device, dtype=dtype)

    def _cell(self) -> Cell:
        return cells.gru


class LSTM(_TorchLayout, RNNBase):
    """Long short-term memory: the arguments and results of ``torch.nn.LSTM`` with ``proj_size``, and ``lengths``."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (input_size, hidden_size, num_layers)
        super().__init__(
            "LSTM", *shape, bias, batch_first, dropout, bidirectional, proj_size, device=device, dtype=dtype
        )

    def _cell(self) -> Cell:
        return cells.lstm_projected if self.proj_size else cells.lstm


class _TorchCell(_TorchLayout):
    """One step of a layer: input (batch, features) or (features,), state likewise."""

    num_layers, batch_first, bidirectional, dropout, proj_size = 1, False, False, 0.0, 0

    def forward(self, input: Tensor, hx: State | None = None) -> State:  # type: ignore[override]
        """Take one step: as torch.nn's cell of this name."""
        if input.dim() not in (1, 2):
            raise ValueError(
                f"{label(self)}: the input has {input.dim()} axes, shape {shape_text(input.shape)}; one step reads "
                f"(batch, features) or (features,). A whole sequence is read by nn.{type(self).__name__[:-4]}."
            )
        given = (hx,) if isinstance(hx, Tensor) else hx
        state = None if given is None else tuple(entry.unsqueeze(0) for entry in given)
        _, last = self.run(input.unsqueeze(0), state, None)
        new = tuple(entry.squeeze(0) for entry in ((last,) if isinstance(last, Tensor) else last))
        return new[0] if len(new) == 1 else new

    def symbol_values(self, level: int = 0, reverse: bool = False) -> dict[str, Tensor]:
        """Return the formula's parameters, made from torch's."""
        return _rows(self, "")

    def _axes(self, batched: bool) -> tuple[str, ...]:
        return ("step", "batch", "features") if batched else ("step", "features")


class RNNCell(_TorchCell, torch.nn.RNNCell):  # type: ignore[misc]  # torch's forward is typed for one state
    """One step of an Elman network: ``torch.nn.RNNCell``."""

    def _cell(self) -> Cell:
        return cells.rnn if self.nonlinearity == "tanh" else cells.rnn_relu


class GRUCell(_TorchCell, torch.nn.GRUCell):  # type: ignore[misc]
    """One step of gated recurrent units: ``torch.nn.GRUCell``."""

    def _cell(self) -> Cell:
        return cells.gru


class LSTMCell(_TorchCell, torch.nn.LSTMCell):  # type: ignore[misc]
    """One step of long short-term memory: ``torch.nn.LSTMCell``."""

    def _cell(self) -> Cell:
        return cells.lstm
