"""Conv1d, along sequences: of different lengths, with a causal padding, and piece by piece with a state."""

from __future__ import annotations

from typing import Any

import torch

from pellucid.errors import label, mismatch, refuse_proxies
from pellucid.nn import lengths as real
from pellucid.nn.convolution import streaming
from pellucid.nn.convolution.convolution import Convolution
from pellucid.nn.windows import NOWHERE, Line, Window, at_least_zero, slide


class Conv1d(Convolution, torch.nn.Conv1d):
    """Convolve along one axis: text and other sequences, sound.

    A drop-in for ``torch.nn.Conv1d``, whose arguments, weights, results and errors it shares. In addition:

    Args:
        padding: besides numbers and "valid": "same" for every stride, with ceil(length / stride) outputs, an odd
            entry of padding on the right; "causal", where the output at t reads no input after t · stride.

    Shapes:
        input (batch, in channels, length) or (in channels, length);
        output (batch, out channels, positions) or (out channels, positions).

    Raises:
        ValueError: an argument is unknown or contradicts another.
        RuntimeError: the input does not fit the layer.

    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998; causal: van den Oord et
    al., "WaveNet", 2016.
    """

    spatial = 1
    paddings = ("valid", "same", "causal")

    def forward(
        self, input: torch.Tensor, lengths: real.Lengths | None = None, state: torch.Tensor | None = None
    ) -> Any:
        """Convolve; with ``lengths``, every sequence as if it stood alone; with ``state``, the next piece of one.

        Entries at or beyond its length are padding and may hold anything, NaN too. Output beyond
        ``output_lengths(lengths)`` is zero, and so is all output of an empty sequence.

        Args:
            input: (batch, in channels, length) or (in channels, length).
            lengths: (batch,) integers: how many entries of each sequence are real.
            state: what the call on the piece before has returned, or ``initial_state``; for padding="causal". Pieces
                of any length, 0 too, then give together what the whole sequence does. The gradient goes through the
                state unless it is detached.

        Returns:
            The output; with ``state`` the pair of the output and the next state.
        """
        if state is not None:
            refuse_proxies(self, state)
            return self._stream(input, state, lengths)
        if lengths is None:
            return super().forward(input)
        refuse_proxies(self, input, lengths)
        self._refuse_misfit(input)
        size, kept = self._sizes(input, lengths)
        try:
            y = self._conv_real(input, size, kept.shape[-1])
        except RuntimeError as error:
            self._explain(error, input, mismatch(input, self.weight))
            raise
        return torch.where(kept, y, 0)

    def initial_state(self, batch_size: int | None = None) -> torch.Tensor:
        """Return the state of a layer that has read nothing, for a batch or for input without one."""
        self._refuse_other_padding()
        return streaming.initial_state(self, batch_size)

    def _refuse_other_padding(self) -> None:
        """Raise if outputs read entries that a later piece brings."""
        if self.padding != "causal":
            raise ValueError(
                f"{label(self)}: a sequence comes piece by piece with a state, but padding={self.padding!r} is not "
                f"'causal': an output would read entries of the next piece. Build it with padding='causal'."
            )

    def _stream(
        self, x: torch.Tensor, state: torch.Tensor, lengths: real.Lengths | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Convolve the next piece of a sequence."""
        self._refuse_other_padding()
        if lengths is not None:
            raise ValueError(f"{label(self)}: a state goes on for the whole batch; lengths cannot go with it.")
        if x.shape[-1:] != (0,):  # a piece may be empty
            self._refuse_misfit(x)
        streaming.refuse_misfit(self, x, state, self.reach[0])
        try:
            return streaming.advance(self, x, state, self.reach[0])
        except RuntimeError as error:
            self._explain(error, x, mismatch(x, self.weight))
            raise

    def _conv_real(self, x: torch.Tensor, size: torch.Tensor, positions: int) -> torch.Tensor:
        """Convolve sequences whose entries beyond ``size`` are read as padding."""
        before = self._placement(0, size)[0]
        if self.padding_mode == "zeros" and isinstance(before, int):  # the windows lie alike in every sequence
            steps = real.mask(size, x.shape[-1]).reshape(*x.shape[:-2], 1, x.shape[-1])
            return self._conv_forward(torch.where(steps, x, 0), self.weight, self.bias)
        spanned = (positions - 1) * self.stride[0] + self.reach[0]
        line = slide(size, spanned, 1, before=before, mode=self.padding_mode, device=x.device)
        return self.convolve_padded(Window((line,))(x).squeeze(-1), self.weight, self.bias)

    def output_lengths(self, lengths: real.Lengths) -> torch.Tensor:
        """Return how many outputs belong to sequences of these lengths, as int64: none to an empty one."""
        size = real.whole(lengths, self)
        return torch.where(size > 0, at_least_zero(self._placement(0, size)[1]), 0)

    def bind(self, input: torch.Tensor, lengths: real.Lengths | None = None, **which: Any) -> dict[str, Any]:
        """Return the formula's arguments for this input; see ``Convolution.bind``."""
        return super().bind(input, lengths=lengths, **which)

    def _sizes(self, x: torch.Tensor, lengths: real.Lengths) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the lengths and which outputs they leave.

        The lengths are (batch, 1, 1, 1), to go with tables of (batch, 1, positions, entries), or () without a batch;
        the outputs bool (batch, 1, positions) or (1, positions).
        """
        batch = x.shape[:-2]  # (batch,) or ()
        size = real.check(lengths, batch[0] if batch else 1, x.shape[-1], self, x.device)
        before, positions = self._placement(0, size)
        after = (positions - 1) * self.stride[0] + self.reach[0] - size - before
        most = {"reflect": size - 1, "circular": size}.get(self.padding_mode)
        if most is not None:
            beyond = (self.output_lengths(size) > 0) & ((most < before) | (most < after))
            if real.known_any(beyond):
                raise RuntimeError(
                    f"{label(self)}: padding_mode={self.padding_mode!r} cannot continue a sequence of length "
                    f"{int(size[beyond].min())} as far as padding={self.padding!r} asks. Pad less, or use 'zeros' or "
                    f"'replicate'."
                )
        positions = self._placement(0, x.shape[-1])[1]
        kept = real.mask(self.output_lengths(size), positions).reshape(*batch, 1, positions)
        return size.reshape(*batch, 1, 1, 1) if batch else size.reshape(()), kept

    def _lines(self, x: torch.Tensor, lengths: real.Lengths | None = None, **call: Any) -> tuple[Line, ...]:
        if lengths is None:
            return super()._lines(x)
        size, kept = self._sizes(x, lengths)
        line = self._line(x, 0, size, kept.shape[-1])
        beyond = ~kept.reshape(*line.coordinates.shape[:-1], 1)
        return (Line(line.coordinates.masked_fill(beyond, NOWHERE), line.padding),)

    def _biases(self, x: torch.Tensor, lengths: real.Lengths | None = None, **call: Any) -> torch.Tensor | float:
        return self._kept(super()._biases(x), x, lengths)

    def _kept(
        self, biases: torch.Tensor | float, x: torch.Tensor, lengths: real.Lengths | None
    ) -> torch.Tensor | float:
        """The biases, (out channels, 1), of outputs that belong to a sequence; 0 of the others."""
        if lengths is None or not isinstance(biases, torch.Tensor):
            return biases
        return torch.where(self._sizes(x, lengths)[1], biases, 0)
