"""Text convolution: windows as wide as the embedding move along a sentence, and each filter keeps its best match."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.errors import label, mismatch, refuse_proxies, shape_text
from pellucid.kernel.windows.best import greatest_over_time
from pellucid.kernel.windows.window import worthwhile
from pellucid.nn import lengths as real
from pellucid.nn.component import Component, Running, SymbolShape, written
from pellucid.nn.pooling.pooling import lowest, rises_from_zero
from pellucid.nn.windows import NOWHERE, Line, Window, slide

AXES = ("batch", "time", "embedding")


def text_convolve(x, *, windows, weights, biases, activation, pools):
    """Lay windows of several widths over a sentence, and of every filter keep the greatest feature.

    ``window(x)`` lays out the words that every position reads: (batch, 1, positions, width, embedding).
    """
    found = []
    for window, weight, bias, greatest in zip(windows, weights, biases, pools, strict=True):
        products = window(x) * weight
        features = activation(products.sum((-2, -1)) + bias)
        found.append(greatest(features))
    return torch.cat(found, -1)


@dataclass(frozen=True, eq=False)
class WordWindow:
    """Lay out the words under every window: (..., time, embedding) → (..., 1, positions, width, embedding).

    The axis of size 1 is that of the filters, which all read the same words.
    """

    line: Line

    def __call__(self, x: Tensor) -> Tensor:
        """Read the windows."""
        entries = Window((self.line,))(x.mT)  # (..., embedding, positions, width)
        return entries.movedim(-3, -1).unsqueeze(-4)


@dataclass(frozen=True, eq=False)
class OverTime:
    """The greatest entry along the last axis, of those where ``kept`` holds; 0 where it holds nowhere.

    Of equal entries the first one has the gradient.
    """

    kept: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Reduce."""
        values = torch.where(self.kept, features, lowest(features.dtype)).max(-1).values
        return torch.where(self.kept.any(-1), values, 0)


def positions_of(lengths: Any, width: int) -> Any:
    """Return how many windows sentences of these lengths have: one where they are shorter, none where empty.

    ``lengths`` is a number or a tensor of them.
    """
    if isinstance(lengths, Tensor):
        return torch.where(lengths > 0, (lengths - width + 1).clamp(min=1), 0)
    return max(lengths - width + 1, 1)


def max_over_time(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """Convolve along time, add the bias, activate, and keep the greatest feature over the real positions.

    A sentence shorter than the window is continued with zeros to one window; an empty one gives zeros. Of equal
    features the first one has the gradient, so one position of each filter and sentence does.

    Args:
        x: (batch, time, embedding); steps beyond ``lengths`` may hold anything, NaN too, and get no gradient.
        weight: (filters, width, embedding).
        bias: (filters,).
        lengths: (batch,) int64 on the device of ``x``; all steps are real without.
        activation: works entry by entry on (batch, filters, positions).

    Returns:
        (batch, filters).
    """
    time, width = x.shape[-2], weight.shape[-2]
    if lengths is not None:
        x = torch.where(real.mask(lengths, time).unsqueeze(-1), x, 0)
    if time < width:
        x = F.pad(x, (0, 0, 0, width - time))
    features = activation(F.conv1d(x.mT, weight.mT, bias))
    if lengths is None and time > 0:
        return features.max(-1).values
    steps = x.new_zeros(x.shape[0], dtype=torch.int64) if lengths is None else lengths
    return OverTime(real.mask(positions_of(steps, width), features.shape[-1]).unsqueeze(-2))(features)


class TextConv(Running, Component, torch.nn.Module):
    """Find the best match of every filter in a sentence: convolutions of several widths and max-over-time pooling.

    Kim, "Convolutional neural networks for sentence classification", EMNLP 2014. A filter of width h reads h
    neighbouring words with their whole embeddings, at every place of the sentence; only its greatest feature is kept,
    so sentences of every length give vectors of one size.

    A sentence that is shorter than a width is continued with zeros to one window of it; one without words gives zeros.

    The filters of a width are ``weight_<width>``, (filters, width, embedding): the words under the window as they
    stand in the input, so that the input is read as it lies in memory, and ``weight.flatten(1)`` is Kim's filter
    w ∈ ℝʰᵏ. What ``torch.nn.Conv1d`` has is its transpose, ``weight_3.mT``.

    Args:
        embedding_size: the size of a word's vector.
        filters: how many filters each width has.
        widths: how many words a filter reads, one number for each group of filters.
        bias: whether the filters have a bias, ``bias_<width>``, (filters,).
        activation: works entry by entry: a function, or a module such as ``nn.Tanh()``; None for none.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        input (batch, time, embedding) or (time, embedding);
        output (batch, filters · number of widths) or (filters · number of widths), in the order of ``widths``.

    Raises:
        ValueError: a size is not positive, or there is no width or one twice.
        RuntimeError, TypeError: the input does not fit; the lengths are wrong, see ``lengths.check``.
    """

    formula = staticmethod(text_convolve)

    def __init__(
        self,
        embedding_size: int,
        filters: int,
        widths: Sequence[int] = (3, 4, 5),
        *,
        bias: bool = True,
        activation: Callable[[Tensor], Tensor] | None = F.relu,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embedding_size, self.filters = embedding_size, filters
        self.widths = (widths,) if isinstance(widths, int) else tuple(widths)
        self._check_sizes()
        self.bias = bias
        self.activation = torch.nn.Identity() if activation is None else activation
        for width in self.widths:
            weight = torch.empty(filters, width, embedding_size, device=device, dtype=dtype)
            self.register_parameter(f"weight_{width}", torch.nn.Parameter(weight))
            own = torch.nn.Parameter(torch.empty(filters, device=device, dtype=dtype)) if bias else None
            self.register_parameter(f"bias_{width}", own)
        self.reset_parameters()

    def _check_sizes(self) -> None:
        for name in ("embedding_size", "filters"):
            if getattr(self, name) < 1:
                raise ValueError(f"{label(self)}: {name} is {getattr(self, name)}; it counts, so it is at least 1.")
        if not self.widths or min(self.widths) < 1 or len(set(self.widths)) < len(self.widths):
            raise ValueError(
                f"{label(self)}: widths are {self.widths}; give at least one, each a number of words from 1 on, and "
                f"each once: more filters of a width come with filters=."
            )

    def reset_parameters(self) -> None:
        """Draw the weights as torch.nn's convolutions do: uniformly within ±1/√(width · embedding)."""
        for width in self.widths:
            bound = 1 / math.sqrt(width * self.embedding_size)
            for parameter in self._of_width(width):
                if parameter is not None:
                    torch.nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        """Write the arguments."""
        sizes = f"{self.embedding_size}, {self.filters}, widths={self.widths}"
        activation = getattr(self.activation, "__name__", "relu")
        return written(sizes, bias=(self.bias, True), activation=(activation, "relu"))

    def forward(self, input: Tensor, lengths: real.Lengths | None = None) -> Tensor:
        """Extract the features; with ``lengths``, of every sentence as if it stood alone.

        Steps at or beyond its length are padding and may hold anything, NaN too; they get no gradient.

        Args:
            input: (batch, time, embedding) or (time, embedding).
            lengths: (batch,) integers: how many steps of each sentence are real.
        """
        refuse_proxies(self, input, lengths)
        self._refuse_misfit(input)
        steps = None if lengths is None else self._steps(input, lengths).reshape(-1)
        x = input if input.ndim == 3 else input.unsqueeze(0)
        try:
            y = self._greatest(x, steps)
        except RuntimeError as error:
            if text := mismatch(input, self._of_width(self.widths[0])[0]):
                raise self._refusal(input, text) from error
            raise
        return y if input.ndim == 3 else y.squeeze(0)

    def _greatest(self, x: Tensor, steps: Tensor | None) -> Tensor:
        """Extract the features of a batch: by the kernel, or width by width by torch."""
        weights, biases = zip(*(self._of_width(width) for width in self.widths), strict=True)
        y = None
        if worthwhile(x, 1) and rises_from_zero(self.activation):
            real_x = x if steps is None else torch.where(real.mask(steps, x.shape[1]).unsqueeze(-1), x, 0)
            y = greatest_over_time(
                real_x,
                weights,
                biases if self.bias else None,
                steps,
                lambda x, *parameters: self._by_torch(x, parameters, steps, torch.nn.Identity()),
            )
        self._was_run_by("torch" if y is None else "c")
        if y is not None:
            return self.activation(y)
        return self._by_torch(x, (*weights, *biases), steps, self.activation)

    def _by_torch(
        self, x: Tensor, parameters: Sequence[Tensor], steps: Tensor | None, activation: Callable[[Tensor], Tensor]
    ) -> Tensor:
        count = len(self.widths)
        weights, biases = parameters[:count], parameters[count:] or (None,) * count
        pairs = zip(weights, biases, strict=True)
        return torch.cat([max_over_time(x, weight, bias, steps, activation) for weight, bias in pairs], -1)

    def bind(self, input: Tensor, lengths: real.Lengths | None = None) -> dict[str, Any]:
        """Return the formula's arguments for this input, the windows' and weights' one for each width."""
        self._refuse_misfit(input)
        time = input.shape[-2]
        steps = self._steps(input, time if lengths is None else lengths)
        bound: dict[str, Any] = {"x": input, "windows": [], "weights": [], "biases": []}
        pools = []
        for width in self.widths:
            weight, bias = self._of_width(width)
            positions = positions_of(time, width)
            kept = real.mask(positions_of(steps, width), positions).unsqueeze(-2)  # (batch, 1, positions)
            line = slide(steps[..., None, None, None], positions, width, device=input.device)
            read = line.coordinates.masked_fill(~kept.unsqueeze(-1), NOWHERE)
            bound["windows"].append(WordWindow(Line(read.reshape(line.coordinates.shape), line.padding)))
            bound["weights"].append(weight.unsqueeze(1))
            bound["biases"].append(0.0 if bias is None else bias.unsqueeze(-1))
            pools.append(OverTime(kept))
        return bound | {"activation": self.activation, "pools": pools}

    def symbols(self, *inputs: Tensor) -> list[SymbolShape]:
        """Return the weights with the reasons of their shapes; given an input, it and the output too."""
        facts = {"filters": self.filters, "embedding": self.embedding_size, "widths": ", ".join(map(str, self.widths))}
        found = []
        for width in self.widths:
            own = {**facts, "width": width}
            for kind, parameter in zip(("weight", "bias"), self._of_width(width), strict=True):
                axes = ("filters", "window width", "embedding")[: None if kind == "weight" else 1]
                if parameter is not None:
                    name = f"{kind}_{width}"
                    found.append(SymbolShape.of_weight(self, name, name, axes, f"textconv.{kind}", **own))
        for x in inputs:
            self._refuse_misfit(x)
            axes, shape = AXES[-x.ndim :], (*x.shape[:-2], self.filters * len(self.widths))
            found.insert(0, SymbolShape("x", tuple(x.shape), axes, "textconv.input", False, facts))
            found.append(SymbolShape("y", shape, (*axes[:-2], "features"), "textconv.output", False, facts))
        return found

    def _of_width(self, width: int) -> tuple[Tensor, Tensor | None]:
        return getattr(self, f"weight_{width}"), getattr(self, f"bias_{width}")

    def _steps(self, x: Tensor, lengths: real.Lengths) -> Tensor:
        """Return the real steps of every sentence, (batch,), or () without a batch."""
        batch = x.shape[:-2]
        if isinstance(lengths, int) and batch:
            return torch.full(batch, lengths, device=x.device)
        return real.check(lengths, batch[0] if batch else 1, x.shape[-2], self, x.device).reshape(batch)

    def _refuse_misfit(self, x: Tensor) -> None:
        """Raise if the input does not fit."""
        if x.ndim not in (2, 3):
            cure = "Token numbers become vectors by nn.Embedding." if x.ndim < 2 else "x.flatten(0, -3) joins batches."
            raise self._refusal(x, f"but the layer reads (batch, time, embedding {self.embedding_size}). {cure}")
        if x.shape[-1] != self.embedding_size:
            cure = f"Build it with embedding_size={x.shape[-1]}."
            if not x.is_floating_point() and x.ndim == 2:
                cure = "Are these token numbers? Then nn.Embedding makes vectors of them."
            elif x.shape[-2] == self.embedding_size:
                cure = "Are the features before time? Then pass x.mT."
            raise self._refusal(x, f"but embedding_size is {self.embedding_size}. {cure}")

    def _refusal(self, x: Tensor, text: str) -> RuntimeError:
        axes = AXES[-x.ndim :] if x.ndim in (2, 3) else ()
        return RuntimeError(f"{label(self)}: the input is {shape_text(x.shape, axes)}, {text}")
