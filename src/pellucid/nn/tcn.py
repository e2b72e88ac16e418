"""The temporal convolutional network: residual blocks of causal convolutions whose dilation grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from pellucid.errors import label, shape_text
from pellucid.nn import lengths as real
from pellucid.nn.component import Component, SymbolShape
from pellucid.nn.convolution import Conv1d
from pellucid.nn.dropout import Dropout1d
from pellucid.nn.parametrizations import weight_norm
from pellucid.nn.windowed import mismatch, name_axes, wrong_axes

State = tuple[Tensor, ...]
CAUSAL = ("first", "second")  # the convolutions of a block that read earlier steps


def temporal_convolve(x, *, blocks, activation):
    """Pass a sequence through residual blocks of two dilated causal convolutions each."""
    for first, second, drop, shortcut in blocks:
        z = drop(activation(first(x)))
        z = drop(activation(second(z)))
        x = activation(z + shortcut(x))
    return x


class TCN(Component, torch.nn.Module):
    """Read a sequence by a stack of dilated causal convolutions with residual connections.

    Bai, Kolter and Koltun, "An empirical evaluation of generic convolutional and recurrent networks for sequence
    modeling", arXiv:1803.01271, 2018. The output at step t reads no later input; with dilations 1, 2, 4, … the number
    of steps that it reads doubles with every block: ``receptive_field``.

    Args:
        in_channels: the features of a step.
        hidden_channels: the channels of every block, one number each; or one number for all blocks, whose number
            ``dilations`` then says.
        kernel_size: how many steps a kernel reads.
        dilations: how far apart these are, one number for each block; by default 1, 2, 4, 8, …
        dropout: the probability of dropping a channel, for the whole of the sequence, after each convolution.
        activation: works entry by entry: a function, or a module such as ``nn.GELU()``; by default relu.
        normalization: "weight", weight normalization of the two convolutions as in the paper; or None.
        padding_mode: "zeros" or "replicate": what stands ahead of the first step.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        input (batch, in channels, length) or (in channels, length);
        output (batch, last hidden channels, length) or (last hidden channels, length).

    Raises:
        ValueError: a size is not positive, or there are not as many dilations as blocks.
        RuntimeError, TypeError: the input does not fit; the lengths or the state are wrong.
    """

    formula = staticmethod(temporal_convolve)

    def __init__(
        self,
        in_channels: int,
        hidden_channels: Sequence[int] | int,
        kernel_size: int = 3,
        *,
        dilations: Sequence[int] | None = None,
        dropout: float = 0.2,
        activation: Callable[[Tensor], Tensor] = F.relu,
        normalization: Literal["weight"] | None = "weight",
        padding_mode: Literal["zeros", "replicate"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.kernel_size, self.dropout = in_channels, kernel_size, dropout
        self.hidden_channels, self.dilations = self._sizes(hidden_channels, dilations)
        self.activation, self.normalization = activation, normalization
        if normalization not in ("weight", None):
            raise ValueError(f"{label(self)}: normalization is {normalization!r}; it is 'weight' or None.")
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.blocks = torch.nn.ModuleList()
        inner = in_channels
        for outer, dilation in zip(self.hidden_channels, self.dilations, strict=True):
            causal = made | {"dilation": dilation, "padding": "causal", "padding_mode": padding_mode}
            first, second = (Conv1d(size, outer, kernel_size, **causal) for size in (inner, outer))
            if normalization == "weight":
                first, second = weight_norm(first), weight_norm(second)  # type: ignore[assignment]
            shortcut = torch.nn.Identity() if inner == outer else Conv1d(inner, outer, 1, **made)
            parts = {"first": first, "second": second, "drop": Dropout1d(dropout), "shortcut": shortcut}
            self.blocks.append(torch.nn.ModuleDict(parts))
            inner = outer

    def _sizes(
        self, hidden: Sequence[int] | int, dilations: Sequence[int] | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return channels and dilation of every block."""
        if isinstance(hidden, int):
            if dilations is None:
                raise ValueError(
                    f"{label(self)}: hidden_channels={hidden} does not say how many blocks there are. Give one number "
                    f"for each, as in hidden_channels=[{hidden}] * 4, or dilations=(1, 2, 4, 8)."
                )
            hidden = [hidden] * len(dilations)
        channels = tuple(hidden)
        spread = tuple(2**i for i in range(len(channels))) if dilations is None else tuple(dilations)
        if len(spread) != len(channels) or not channels:
            raise ValueError(
                f"{label(self)}: hidden_channels {channels} make {len(channels)} blocks, and dilations {spread} are "
                f"for {len(spread)}. Give one dilation for each block, and at least one block."
            )
        if min(self.in_channels, self.kernel_size, *channels, *spread) < 1:
            raise ValueError(
                f"{label(self)}: in_channels={self.in_channels}, hidden_channels={channels}, kernel_size="
                f"{self.kernel_size} and dilations={spread} are all at least 1."
            )
        return channels, spread

    @property
    def out_channels(self) -> int:
        """The channels of the output: those of the last block."""
        return self.hidden_channels[-1]

    @property
    def receptive_field(self) -> tuple[int]:
        """How many steps of the input one output sees: its own and the ones before."""
        return (1 + sum(2 * dilation * (self.kernel_size - 1) for dilation in self.dilations),)

    def extra_repr(self) -> str:
        """Write the arguments."""
        sizes = f"{self.in_channels}, {list(self.hidden_channels)}, kernel_size={self.kernel_size}"
        return f"{sizes}, dilations={self.dilations}, dropout={self.dropout}, normalization={self.normalization!r}"

    def forward(self, input: Tensor, lengths: real.Lengths | None = None, state: State | None = None) -> Any:
        """Read a sequence; with ``lengths``, every one as if it stood alone; with ``state``, the next piece of one.

        Args:
            input: (batch, in channels, length) or (in channels, length).
            lengths: (batch,) integers: how many steps of each sequence are real. The others may hold anything, NaN
                too; output there is zero.
            state: what the call on the piece before has returned, or ``initial_state``. In eval, pieces of any length
                then give what the whole sequence does; in training each piece has dropout masks of its own.

        Returns:
            The output; with ``state`` the pair of the output and the next state.
        """
        self._refuse_misfit(input)
        if state is not None:
            if lengths is not None:
                raise ValueError(f"{label(self)}: a state goes on for the whole batch; lengths cannot go with it.")
            return self._stream(input, state)
        if lengths is None:
            return self._read(input)
        kept = self._kept(input, lengths)
        return torch.where(kept, self._read(torch.where(kept, input, 0)), 0)

    def _read(self, x: Tensor) -> Tensor:
        try:
            return self.formula(**self.bind(x))
        except RuntimeError as error:
            if text := mismatch(x, self._causal()[0].bias):
                raise self._refusal(x, text) from error
            raise

    def _kept(self, x: Tensor, lengths: real.Lengths) -> Tensor:
        """Mark the real steps: (batch, 1, length), or (1, length)."""
        batch = x.shape[:-2]
        size = real.check(lengths, batch[0] if batch else 1, x.shape[-1], self, x.device)
        return real.mask(size, x.shape[-1]).reshape(*batch, 1, x.shape[-1])

    def initial_state(self, batch_size: int | None = None) -> State:
        """Return the state of a layer that has read nothing, for a batch or for input without one."""
        return tuple(convolution.initial_state(batch_size) for convolution in self._causal())

    def _causal(self) -> list[Any]:
        """Return the convolutions that read earlier steps, in the order of their states."""
        blocks: Iterable[Any] = self.blocks
        return [block[name] for block in blocks for name in CAUSAL]

    def _stream(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        convolutions = self._causal()
        if not isinstance(state, (tuple, list)) or len(state) != len(convolutions):
            given = f"{len(state)} states" if isinstance(state, (tuple, list)) else f"a {type(state).__name__}"
            raise RuntimeError(
                f"{label(self)}: the state is {given}, but there are {len(convolutions)}, one for each causal "
                f"convolution. Pass what the call on the piece before returned; the first is layer.initial_state()."
            )
        if x.shape[-1] == 0:  # no step to read: the shortcuts could not
            return x.new_zeros((*x.shape[:-2], self.out_channels, 0)), tuple(state)
        following: list[Tensor] = []

        def streamed(convolution: Any, before: Tensor) -> Callable[[Tensor], Tensor]:
            def call(piece: Tensor) -> Tensor:
                y, after = convolution(piece, state=before)
                following.append(after)
                return y

            return call

        runs = iter([streamed(*pair) for pair in zip(convolutions, state, strict=True)])
        blocks = [(next(runs), next(runs), block["drop"], block["shortcut"]) for block in self._blocks()]
        return self.formula(x, blocks=blocks, activation=self.activation), tuple(following)

    def _blocks(self) -> Iterable[Any]:
        return self.blocks

    def bind(self, input: Tensor) -> dict[str, Any]:
        """Return the formula's arguments for this input."""
        self._refuse_misfit(input)
        blocks = [(block["first"], block["second"], block["drop"], block["shortcut"]) for block in self._blocks()]
        return {"x": input, "blocks": blocks, "activation": self.activation}

    def symbols(self, *inputs: Tensor) -> list[SymbolShape]:
        """Return the weights with the reasons of their shapes; given an input, it and the output too."""
        found: list[SymbolShape] = []
        for number, (block, dilation) in enumerate(zip(self._blocks(), self.dilations, strict=True)):
            for name in (*CAUSAL, "shortcut"):
                if isinstance(block[name], Conv1d):
                    found += self._of_convolution(f"{name}[{number}]", block[name], dilation)
        facts = {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "reach": self.receptive_field,
            "blocks": len(self.dilations),
        }
        for x in inputs:
            self._refuse_misfit(x)
            axes, shape = name_axes(x, 1), (*x.shape[:-2], self.out_channels, x.shape[-1])
            found.insert(0, SymbolShape("x", tuple(x.shape), axes, "tcn.input", False, facts))
            found.append(SymbolShape("y", shape, axes, "tcn.output", False, facts))
        return found

    def _of_convolution(self, name: str, convolution: Any, dilation: int) -> list[SymbolShape]:
        facts = {
            "in_channels": convolution.in_channels,
            "out_channels": convolution.out_channels,
            "kernel_size": convolution.kernel_size,
            "dilation": dilation,
        }
        axes = ("out channels", "in channels", "kernel length")
        kind = "shortcut" if name.startswith("shortcut") else "causal"
        if is_parametrized(convolution):
            length, direction = convolution.parametrizations.weight.parameters()
            parts = [("g", length, "tcn.length"), ("v", direction, f"tcn.{kind}")]
        else:
            parts = [("weight", convolution.weight, f"tcn.{kind}")]
        found = [SymbolShape(f"{name}.{part}", tuple(w.shape), axes, why, True, facts) for part, w, why in parts]
        shape = tuple(convolution.bias.shape)
        return [*found, SymbolShape(f"{name}.bias", shape, axes[:1], "conv.bias", True, facts)]

    def _refuse_misfit(self, x: Tensor) -> None:
        """Raise if the input does not fit."""
        if x.ndim not in (2, 3):
            raise self._refusal(x, wrong_axes(x, 1, f"channels {self.in_channels}"))
        if x.shape[-2] != self.in_channels:
            cure = f"Build it with in_channels={x.shape[-2]}, or check which axis of the input holds the channels."
            if x.shape[-1] == self.in_channels:
                cure = "Are the channels last? Then pass x.movedim(-1, -2)."
            raise self._refusal(x, f"but in_channels is {self.in_channels}. {cure}")

    def _refusal(self, x: Tensor, text: str) -> RuntimeError:
        return RuntimeError(f"{label(self)}: the input is {shape_text(x.shape, name_axes(x, 1))}, {text}")
