"""torch.nn's RNN, GRU, LSTM and their cells, on the formulas of `cells`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence

from pellucid.errors import label, refuse_others, shape_text
from pellucid.kernel.recurrence.chunks import WHOLE
from pellucid.nn import cells
from pellucid.nn.component import LEFT, undisturbed
from pellucid.nn.lengths import Lengths
from pellucid.nn.recurrence import torch_recurrence
from pellucid.nn.recurrence.cell import Cell
from pellucid.nn.recurrence.sequence import Options, SequenceLayer, State

CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _TorchLayout(SequenceLayer):
    """Parameters as torch.nn registers them: the formula's U is weight_ih transposed, b the sum of two biases."""

    added = (
        *SequenceLayer.added,
        "cell",
        "_solutions",
        "_keys",
        "_parameter_shapes",
        "_state_sizes",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare()

    def _cell(self) -> Cell:
        raise NotImplementedError

    def _prepare(self) -> None:
        self.cell = self._cell()
        named: dict[str, Any] = {"proj": self.proj_size} if self.proj_size else {}
        self._solve({"input": self.input_size, "hidden": self.hidden_size, **named}, {})

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        lengths: Lengths | None = None,  # and what follows by position too: so torch.onnx gives defaults (dynamo=False)
        record: Sequence[str] = (),
        checkpoint_every: int | None = None,
        truncate: int | None = None,
    ) -> Any:
        """Read sequences: as torch.nn's layer of this name; what comes after ``hx`` is as in `Recurrent.forward`."""
        return self.run(input, hx, lengths, record, checkpoint_every, truncate)

    @property
    def _weights(self) -> Sequence[str]:
        """The names of torch's parameters, in the order of its operator."""
        raise NotImplementedError

    def _by_torch(self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Output and last state by torch's operator, of input and states as `SequenceLayer._levels` takes them."""
        raise NotImplementedError

    def _levels(
        self, x: Tensor, states: Sequence[Tensor], lengths: Tensor | None, options: Options
    ) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor]]:
        if lengths is not None or options.record or options.division != WHOLE:
            return super()._levels(x, states, lengths, options)
        found = torch_recurrence.run(self, functools.partial(self._by_kernels, options), x, states)
        if found is None:
            return super()._levels(x, states, lengths, options)
        self._was_run_by("torch")
        return found[0], found[1:], {}

    def _by_kernels(self, options: Options, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Output and last state as pellucid computes them, of the input, the states and torch's weights."""
        count = len(self._state_sizes)
        twin = object.__new__(type(self))  # whose weights are these
        twin.__dict__ = {**vars(self), "_parameters": dict(zip(self._weights, tensors[count:], strict=True))}
        output, last, _ = SequenceLayer._levels(twin, x, tensors[:count], None, options)
        return output, *last

    def symbol_values(self, level: int = 0, reverse: bool = False) -> dict[str, Tensor]:
        """Return the formula's parameters, made from torch's: U = weight_ihᵀ, W = weight_hhᵀ, b = bias_ih + bias_hh."""
        suffix = f"_l{level}{'_reverse' if reverse else ''}"
        values = self._rows(suffix)
        if self.proj_size:
            values["P"] = self._weight(f"weight_hr{suffix}").t()
        return values

    def _rows(self, suffix: str) -> dict[str, Tensor]:
        """torch's matrices act from the right of a column; a formula's act on rows."""
        weight = self._weight(f"weight_ih{suffix}")
        values = {"U": weight.t(), "W": self._weight(f"weight_hh{suffix}").t()}
        zero = None if self._biased else weight.new_zeros(weight.shape[0])
        of_input = self._weight(f"bias_ih{suffix}") if zero is None else zero
        of_state = self._weight(f"bias_hh{suffix}") if zero is None else zero
        if any(symbol.name == "c" for symbol in self.cell.source.parameters):
            return {**values, "b": of_input, "c": of_state}
        return {**values, "b": of_input + of_state}

    @property
    def _biased(self) -> bool:
        return bool(self.bias)


class _TorchLayer(_TorchLayout):
    """Levels and directions over sequences, for which torch has one operator."""

    mode: str  # torch's operator
    _flat_weights_names: list[str]

    @property
    def _weights(self) -> Sequence[str]:
        return self._flat_weights_names

    def _by_torch(self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        options = (self.bias, self.num_layers, 0.0, self.training, self.bidirectional, False)
        state = states[0] if len(states) == 1 else states
        return getattr(torch._VF, self.mode.lower())(x, state, weights, *options)


# torch.compile refuses instances of torch.nn.RNN, GRU and LSTM themselves, so these are siblings, not subclasses: the
# same base, hence the same parameters, initialisation and text.


def _elman(layer: Any, option: str, tanh: str, relu: str) -> Cell:
    """The formula of an Elman network, which an attribute of the layer decides."""
    formulas, given = {tanh: cells.rnn, relu: cells.rnn_relu}, getattr(layer, option)
    if given not in formulas:
        raise RuntimeError(f"{label(layer)}: {option} is {tanh!r} or {relu!r}, not {given!r}")
    return formulas[given]


class RNN(_TorchLayer, RNNBase):
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
        self.nonlinearity = nonlinearity  # for who asks: as in torch.nn, the mode decides
        mode, shape = f"RNN_{nonlinearity.upper()}", (input_size, hidden_size, num_layers)
        super().__init__(mode, *shape, bias, batch_first, dropout, bidirectional, device=device, dtype=dtype)

    def _cell(self) -> Cell:
        return _elman(self, "mode", "RNN_TANH", "RNN_RELU")


class GRU(_TorchLayer, RNNBase):
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

    _keeps_types = (True, True)  # as in torch.nn

    def _cell(self) -> Cell:
        return cells.gru


class LSTM(_TorchLayer, RNNBase):
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

    # Of two state entries, for subclasses with a forward of their own.
    check_forward_args = torch.nn.LSTM.check_forward_args  # type: ignore[assignment]
    get_expected_cell_size = torch.nn.LSTM.get_expected_cell_size
    permute_hidden = torch.nn.LSTM.permute_hidden  # type: ignore[assignment]

    @property
    def _keeps_types(self) -> tuple[bool, ...]:
        return (False, False, True) if self.proj_size else ()

    def _cell(self) -> Cell:
        return cells.lstm_projected if self.proj_size else cells.lstm


class _TorchCell(_TorchLayout):
    """One step of a layer: input (batch, features) or (features,), state likewise."""

    num_layers, batch_first, bidirectional, dropout, proj_size = 1, False, False, 0.0, 0
    _hidden_axes = 1  # the step
    _another_dtype = RuntimeError
    mode: str  # torch's operator

    def forward(self, input: Tensor, hx: State | None = None) -> State:  # type: ignore[override]
        """Take one step: as torch.nn's cell of this name."""
        refuse_others(self, input)
        if input.dim() not in (1, 2):
            raise ValueError(
                f"{label(self)}: the input has {input.dim()} axes, shape {shape_text(input.shape)}; one step reads "
                f"(batch, features) or (features,). A whole sequence is read by nn.{type(self).__name__[:-4]}."
            )
        if hx is None:
            shape = (*input.shape[:-1], self.hidden_size)
            hx = (torch.zeros(shape, dtype=input.dtype, device=input.device),) * len(self._state_sizes)
        states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        for state in states:
            refuse_others(self, state, "state")
        weights = [self._parameters.get(name) for name in self._weights]
        met = None
        if input.is_cpu and not any(w is None for w in weights):  # none of them is computed
            kinds = [(t.shape, t.dtype, t.requires_grad) for t in (*weights, *states)]  # type: ignore[union-attr]
            met = self._circumstances(input, kinds)
        if met is LEFT and undisturbed(input):
            return self._step_by_torch(input, states, weights)
        _, last = self.run(input.unsqueeze(0), tuple([s.unsqueeze(0) for s in states]), None)
        if met is not None and self.backend == "torch":
            self._leave(input, met)
        return last.squeeze(0) if isinstance(last, Tensor) else tuple([s.squeeze(0) for s in last])

    def _step_by_torch(self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Any]) -> State:
        """The new state by torch's operator."""
        return getattr(torch._VF, self.mode)(x, states[0] if len(states) == 1 else states, *weights)

    @property
    def _weights(self) -> Sequence[str]:
        return CELL_WEIGHTS if self._biased else CELL_WEIGHTS[:2]

    @property
    def _biased(self) -> bool:
        known = self._parameters.get("bias_ih")  # what it has decides, as in torch.nn, which looks there last
        return known is not None or getattr(self, "bias_ih", None) is not None

    def _by_torch(self, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        new = self._step_by_torch(x[0], [entry[0] for entry in states], weights)
        entries = (new,) if isinstance(new, Tensor) else new
        return tuple([entry.unsqueeze(0) for entry in (entries[0], *entries)])  # the output is the first state entry

    def symbol_values(self, level: int = 0, reverse: bool = False) -> dict[str, Tensor]:
        """Return the formula's parameters, made from torch's."""
        return self._rows("")

    def _axes(self, batched: bool) -> tuple[str, ...]:
        return ("step", "batch", "features") if batched else ("step", "features")


class RNNCell(_TorchCell, torch.nn.RNNCell):  # type: ignore[misc]  # torch's forward is typed for one state
    """One step of an Elman network: ``torch.nn.RNNCell``."""

    @property
    def mode(self) -> str:  # type: ignore[override]
        """torch's operator."""
        return f"rnn_{self.nonlinearity}_cell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, nonlinearity, device, dtype)

    def _cell(self) -> Cell:
        return _elman(self, "nonlinearity", "tanh", "relu")


class _GatedCell(_TorchCell):
    """A cell whose nonlinearities are not to be chosen."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)


class GRUCell(_GatedCell, torch.nn.GRUCell):  # type: ignore[misc]
    """One step of gated recurrent units: ``torch.nn.GRUCell``."""

    mode = "gru_cell"
    _keeps_types = (True, True)

    def _cell(self) -> Cell:
        return cells.gru


class LSTMCell(_GatedCell, torch.nn.LSTMCell):  # type: ignore[misc]
    """One step of long short-term memory: ``torch.nn.LSTMCell``."""

    mode = "lstm_cell"
    _keeps_types = (True, True, True)

    def _cell(self) -> Cell:
        return cells.lstm
