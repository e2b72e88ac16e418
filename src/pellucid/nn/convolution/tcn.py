"""The temporal convolutional network: residual blocks of causal convolutions whose dilation grows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from pellucid.errors import kind_text, label, mismatch, refuse_proxies, shape_text
from pellucid.nn import lengths as real
from pellucid.nn.axes import name_axes
from pellucid.nn.component import Component, SymbolShape, ran_by, written
from pellucid.nn.convolution import streaming
from pellucid.nn.convolution.conv1d import Conv1d
from pellucid.nn.dropout.dropout import Dropout1d
from pellucid.nn.parametrizations import weight_norm

State = tuple[Tensor, ...]
CAUSAL = ("first", "second")  # the convolutions of a block that read earlier steps


def temporal_convolve(x, *, blocks, activation, real):
    """Pass a sequence through residual blocks of two dilated causal convolutions each.

    ``real(x)`` are the steps that are no padding; the others are 0 there.
    """
    for first, second, drop, shortcut in blocks:
        z = drop(activation(first(x)))
        z = drop(activation(second(z)))
        x = activation(z + shortcut(x))
    return real(x)


@dataclass(frozen=True, eq=False)
class RealSteps:
    """Keep the steps where ``kept`` holds, all without; the others become 0."""

    kept: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Keep them."""
        return x if self.kept is None else torch.where(self.kept, x, 0)


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
    blocks: Any  # a ModuleList of a ModuleDict each

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
    def backend(self) -> str:
        """What ran the convolutions last."""
        return ran_by(module for module in self.modules() if isinstance(module, Conv1d))

    @property
    def receptive_field(self) -> tuple[int]:
        """How many steps of the input one output sees: its own and the ones before."""
        return (1 + sum(2 * dilation * (self.kernel_size - 1) for dilation in self.dilations),)

    def extra_repr(self) -> str:
        """Write the arguments."""
        sizes = f"{self.in_channels}, {list(self.hidden_channels)}, kernel_size={self.kernel_size}"
        given = f"{sizes}, dilations={self.dilations}, dropout={self.dropout}"
        given = written(given, activation=(getattr(self.activation, "__name__", "relu"), "relu"))
        return f"{given}, normalization={self.normalization!r}"

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
        refuse_proxies(self, input, lengths, state)
        if state is not None:
            self._refuse_misfit(input, piece=True)
            if lengths is not None:
                raise ValueError(f"{label(self)}: a state goes on for the whole batch; lengths cannot go with it.")
            return self._stream(input, state)
        bound = self.bind(input, lengths)
        try:
            return self.formula(**bound)
        except RuntimeError as error:
            if text := mismatch(input, self._causal()[0].bias):
                raise self._refusal(input, text) from error
            raise

    def _real(self, x: Tensor, lengths: real.Lengths | None) -> RealSteps:
        """Mark the real steps: (batch, 1, length), or (1, length)."""
        if lengths is None:
            return RealSteps(None)
        batch = x.shape[:-2]
        size = real.check(lengths, batch[0] if batch else 1, x.shape[-1], self, x.device)
        return RealSteps(real.mask(size, x.shape[-1]).reshape(*batch, 1, x.shape[-1]))

    def initial_state(self, batch_size: int | None = None) -> State:
        """Return the state of a layer that has read nothing, for a batch or for input without one."""
        return tuple(convolution.initial_state(batch_size) for convolution in self._causal())

    def _causal(self) -> list[Any]:
        """Return the convolutions that read earlier steps, in the order of their states."""
        return [block[name] for block in self.blocks for name in CAUSAL]

    def _stream(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        count = len(CAUSAL) * len(self.blocks)
        if not isinstance(state, (tuple, list)) or len(state) != count:
            given = f"{len(state)} states" if isinstance(state, (tuple, list)) else kind_text(state)
            raise RuntimeError(
                f"{label(self)}: the state is {given}, but there are {count}, one for each causal convolution. "
                f"Pass what the call on the piece before returned; the first is layer.initial_state()."
            )
        before = iter(state)
        following: list[Tensor] = []

        def streamed(convolution: Any) -> Callable[[Tensor], Tensor]:
            def call(piece: Tensor) -> Tensor:
                y, after = convolution(piece, state=next(before))
                following.append(after)
                return y

            return call

        def at_each_step(shortcut: Any) -> Callable[[Tensor], Tensor]:
            return functools.partial(streaming.pointwise, shortcut) if isinstance(shortcut, Conv1d) else shortcut

        blocks = [
            (streamed(block["first"]), streamed(block["second"]), block["drop"], at_each_step(block["shortcut"]))
            for block in self.blocks
        ]
        y = self.formula(x, blocks=blocks, activation=self.activation, real=RealSteps(None))
        return y, tuple(following)

    def bind(self, input: Tensor, lengths: real.Lengths | None = None) -> dict[str, Any]:
        """Return the formula's arguments for this input, whose padding is read as zeros."""
        self._refuse_misfit(input)
        kept = self._real(input, lengths)
        blocks = [(block["first"], block["second"], block["drop"], block["shortcut"]) for block in self.blocks]
        return {"x": kept(input), "blocks": blocks, "activation": self.activation, "real": kept}

    def symbols(self, *inputs: Tensor) -> list[SymbolShape]:
        """Return the weights with the reasons of their shapes; given an input, it and the output too."""
        found: list[SymbolShape] = []
        for number, (block, dilation) in enumerate(zip(self.blocks, self.dilations, strict=True)):
            for name in (*CAUSAL, "shortcut"):
                if isinstance(block[name], Conv1d):
                    found += self._of_convolution(f"{name}[{number}]", block[name], dilation)
        facts = {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "reach": self.receptive_field[0],
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
        if is_parametrized(convolution):
            original = "parametrizations.weight.original"
            parts = [("g", f"{original}0", "tcn.length"), ("v", f"{original}1", "tcn.direction")]
        else:
            kind = "shortcut" if name.startswith("shortcut") else "causal"
            parts = [("weight", "weight", f"tcn.{kind}")]
        of = SymbolShape.of_weight
        found = [of(convolution, weight, f"{name}.{part}", axes, why, **facts) for part, weight, why in parts]
        return [*found, of(convolution, "bias", f"{name}.bias", axes[:1], "conv.bias", **facts)]

    def _refuse_misfit(self, x: Tensor, piece: bool = False) -> None:
        """Raise if the input does not fit the first convolution; a piece of a sequence may be empty."""
        text = self.blocks[0]["first"]._misfit(x)
        if text and not (piece and x.shape[-2:] == (self.in_channels, 0)):
            raise self._refusal(x, text)

    def _refusal(self, x: Tensor, text: str) -> RuntimeError:
        return RuntimeError(f"{label(self)}: the input is {shape_text(x.shape, name_axes(x, 1))}, {text}")
