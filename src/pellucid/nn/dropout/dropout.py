"""Dropout: x·mask/(1 − p). The members of the family differ in the axes along which one coin flip is shared."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from pellucid.errors import label, refuse_others, shape_text
from pellucid.formula.drop import drop, dropping
from pellucid.kernel.random import kept
from pellucid.kernel.rows import nested
from pellucid.kernel.tensors import in_plain_python, language, language_for
from pellucid.nn.axes import AXES, name_axes
from pellucid.nn.component import Component, Running, SymbolShape
from pellucid.nn.dropout.drawing import Drawing, Numbers

# Coins below which a mask is made and multiplied with: what Python does around a kernel takes longer. Of more entries,
# whose product has to have new memory, that is no longer so.
FEW_COINS, FEW_ENTRIES = 2**14, 2**18


@functools.lru_cache(maxsize=64)
def _recipe(name: str, formula: Callable[..., Tensor]) -> nested.Recipe:
    return nested.Recipe(f"nn.{name}", _by_formula, (formula,), ("x",), ("p",), ("draws",))


def _by_formula(
    averaged: tuple[int, ...], formula: Callable[..., Tensor], x: Tensor, p: Tensor | float, draws: Tensor
) -> tuple[Tensor, ...]:
    return (formula(x=x, draws=draws, p=p).to(x.dtype),)


class DropoutFamily(Running, Component, Drawing, torch.nn.modules.dropout._DropoutNd):
    """What the members share: in training the formula, in eval, and for p = 0, the input itself.

    Args:
        p: the probability of being dropped.
        inplace: write the result into the input.
        seed: decides the sequence of masks of this layer, see `Drawing`.
        generator: where the layer takes its seeds from; by default torch's generator. ``torch.compile`` cannot
            follow a generator of one's own and falls back to eager there.

    Raises:
        ValueError: p is no probability, or seed and generator are both given.
    """

    added = (*Running.added, "seed", "generator", "_eager_calls", "_compiled_calls")
    entrywise = True  # whether the formula is one of x, draws and p, entry by entry

    def __init__(
        self,
        p: float = 0.5,
        inplace: bool = False,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        super().__init__(p, inplace)
        self.draw_from(seed, generator)

    @property
    def formula(self) -> Callable[..., Tensor]:  # type: ignore[override]
        """The family's formula; what drops everything has one of its own."""
        return dropping(self.p if self.training else 0.0)

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes of an input; () where the layer does not know. Raises what a wrong input deserves."""
        return ()

    def shared_axes(self, x: Tensor) -> tuple[int, ...]:
        """Return the axes along which one coin flip is shared."""
        return ()

    def drawn_shape(self, x: Tensor) -> tuple[int, ...]:
        """Return the shape of the draws: 1 where a coin flip is shared."""
        shared = self.shared_axes(x)
        return tuple(1 if axis in shared else size for axis, size in enumerate(x.shape))

    def forward(self, input: Tensor) -> Tensor:
        """Drop in training, return the input itself in eval."""
        self._check(input)
        if not self.training or self.p == 0 or input.numel() == 0:
            return input
        numbers, formula = self.sequence(), self.formula
        shape = self.drawn_shape(input)
        if self._is_small(input, math.prod(shape)) and formula is drop and input.dtype == torch.float32:
            scale = kept(shape, *numbers, self.p, 1 / (1 - self.p))
            if scale is not None:
                self._was_run_by("c")
                return input.mul_(scale) if self.inplace else input * scale
        y = None
        if self.entrywise and input.dim() and language(input) is not None:
            y = self._by_kernel(input, numbers, shape)
        self._was_run_by("torch" if y is None else language_for(input))
        if y is None:
            (draws,) = self.draw([shape], input.device, numbers)
            y = formula(**self._symbol_values(input, draws, self.p))
        return input.copy_(y) if self.inplace else y

    def _is_small(self, x: Tensor, coins: int) -> bool:
        """Whether a mask that C makes and a product are as fast as a kernel."""
        return in_plain_python(x) and coins < FEW_COINS and x.numel() < FEW_ENTRIES and language_for(x) == "c"

    def _by_kernel(self, input: Tensor, numbers: Numbers, shape: tuple[int, ...]) -> Tensor | None:
        """Run the formula as one kernel that draws in place; None where it has none."""
        formula, p = self.formula, self.p
        draws = nested.Draws.of(*numbers, {"draws": 0})

        def axes(x: Tensor) -> nested.Axes:
            steps = torch.empty(shape, device="meta").stride()
            drawn = tuple(None if size == 1 else step for size, step in zip(shape, steps, strict=True))
            return nested.Axes(tuple(x.shape), (), (nested.View(x.stride()), nested.View(drawn)))

        def again(x: Tensor) -> tuple[Tensor, ...]:
            return _by_formula((), formula, x, p, draws.tensor("draws", shape, x.device))

        results = nested.run(_recipe(type(self).__name__, formula), (input,), axes, again, (p,), draws, shape)
        return None if results is None else results[0]

    def bind(self, input: Tensor) -> dict[str, Any]:
        """Return what the formula's symbols stand for in the next call, whose draws stay to be drawn."""
        self._check(input)
        if not self.training or self.p == 0:  # nothing drawn is less than 0
            return self._symbol_values(input, torch.zeros(self.drawn_shape(input), device=input.device), 0.0)
        with self.rehearsal():
            (draws,) = self.draw([self.drawn_shape(input)], input.device)
        return self._symbol_values(input, draws, self.p)

    def symbols(self, *inputs: Tensor) -> list[SymbolShape]:
        """Return the shapes of input and draws; without an input there is nothing to tell, for nothing is trained."""
        if not inputs:
            return []
        (x,) = inputs
        axes, shape = self.axes(x), self.drawn_shape(x)
        shared = [axes[axis] if axes else axis for axis in self.shared_axes(x)]
        facts = {"p": self.p, "shared": shared}
        return [
            SymbolShape("x", tuple(x.shape), axes, "dropout.input", False),
            SymbolShape("draws", shape, axes, "dropout.draws", False, facts),
        ]

    @property
    def beyond_torch(self) -> str | None:
        """A seed or a generator of its own."""
        if self.seed is not None:
            return f"seed={self.seed}"
        return None if self.generator is None else "generator="

    def _prepare(self) -> None:
        self.draw_from(None, None)

    def extra_repr(self) -> str:
        """Write the arguments as torch.nn does, and the seed if there is one."""
        return super().extra_repr() + self._source_text()

    def _symbol_values(self, x: Tensor, draws: Tensor, p: float) -> dict[str, Any]:
        return {"x": x, "draws": draws, "p": p}

    def _check(self, x: Tensor) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"{label(self)}: dropout probability has to be between 0 and 1, but got {self.p}")
        refuse_others(self, x)
        self.axes(x)
        if self.training and self.p > 0 and not x.is_floating_point():
            kind = NotImplementedError if x.is_complex() else RuntimeError
            cure = "Drop the two parts of torch.view_as_real(x)" if x.is_complex() else "Pass x.float()"
            raise kind(f"{label(self)}: the input is of {x.dtype}, but dropout scales real numbers. {cure}.")

    def _axes_of_space(self, x: Tensor, count: int) -> tuple[str, ...]:
        """Name the axes of channels and so many of space, with or without a batch; refuse any others."""
        axes = name_axes(x, count)
        if not axes:
            one = f"channels, {', '.join(AXES[count])}"
            raise self._wrong_axes(x, f"(batch, {one}) or ({one})", "For other shapes: nn.Dropout.")
        return axes

    def _wrong_axes(self, x: Tensor, wanted: str, cure: str) -> RuntimeError:
        return RuntimeError(
            f"{label(self)}: the input has the shape {shape_text(x.shape)}, but the layer reads {wanted}. {cure}"
        )


class Dropout(DropoutFamily, torch.nn.Dropout):
    """Drop entries, each by its own coin. Input and output: any shape. Arguments: see `DropoutFamily`.

    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 2014.
    """


class ChannelDropout(DropoutFamily):
    """What the members share that drop whole channels over ``spatial`` axes of space, with or without a batch."""

    spatial: ClassVar[int]

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes."""
        return self._axes_of_space(x, self.spatial)

    def shared_axes(self, x: Tensor) -> tuple[int, ...]:
        """Space."""
        return tuple(range(x.ndim - self.spatial, x.ndim))


class Dropout1d(ChannelDropout, torch.nn.Dropout1d):
    """Drop whole channels. Input and output: (batch, channels, length) or (channels, length).

    Tompson et al., "Efficient object localization using convolutional networks", CVPR 2015. Arguments: see
    `DropoutFamily`.

    Raises:
        RuntimeError: the input has another number of axes.
    """

    spatial = 1


class Dropout2d(DropoutFamily, torch.nn.Dropout2d):
    """Drop whole channels. Input and output: (batch, channels, height, width). Arguments: see `DropoutFamily`.

    As in torch.nn, what follows the first two axes is space, whatever the number of axes: a 3-D input is read as
    (batch, channels, length) with a warning, not as a picture without a batch.

    Tompson et al., "Efficient object localization using convolutional networks", CVPR 2015.

    Raises:
        RuntimeError: the input has fewer than two axes.
    """

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes."""
        if x.ndim < 2:
            raise self._wrong_axes(x, "(batch, channels, height, width)", "For other shapes: nn.Dropout.")
        if x.ndim == 4:
            return ("batch", "channels", *AXES[2])
        better = {2: "nn.Dropout", 3: "nn.Dropout1d", 5: "nn.Dropout3d"}.get(x.ndim, "nn.Dropout")
        warnings.warn(
            f"{label(self)}: an input of shape {shape_text(x.shape)} is read as (batch, channels, ...) with one coin "
            f"for each channel of each sample, as torch.nn does. {better} says so without this warning; a picture "
            f"without a batch needs x.unsqueeze(0).",
            stacklevel=3,
        )
        return ("batch", "channels", "length")[: x.ndim] if x.ndim < 4 else ()

    def shared_axes(self, x: Tensor) -> tuple[int, ...]:
        """Space."""
        return tuple(range(2, x.ndim))


class Dropout3d(ChannelDropout, torch.nn.Dropout3d):
    """Drop whole channels. Input and output: (batch, channels, depth, height, width), or without the batch.

    Tompson et al., "Efficient object localization using convolutional networks", CVPR 2015. Arguments: see
    `DropoutFamily`.

    Raises:
        RuntimeError: the input has another number of axes.
    """

    spatial = 3


class LockedDropout(DropoutFamily):
    """Drop features for the whole of a sequence: one mask over time.

    Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", NeurIPS 2016;
    Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models", ICLR 2018.

    Input and output: (time, batch, features), (batch, time, features) if ``batch_first``, or (time, features).
    Further arguments: see `DropoutFamily`.

    Raises:
        RuntimeError: the input has another number of axes.
    """

    def __init__(
        self,
        p: float = 0.5,
        inplace: bool = False,
        *,
        batch_first: bool = False,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(p, inplace, seed=seed, generator=generator)
        self.batch_first = batch_first

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes."""
        batched = ("batch", "time", "features") if self.batch_first else ("time", "batch", "features")
        if x.ndim not in (2, 3):
            raise self._wrong_axes(x, f"({', '.join(batched)}) or (time, features)", "For other shapes: nn.Dropout.")
        return batched if x.ndim == 3 else ("time", "features")

    def shared_axes(self, x: Tensor) -> tuple[int, ...]:
        """Time."""
        return (1,) if self.batch_first and x.ndim == 3 else (0,)

    def extra_repr(self) -> str:
        """Write the arguments."""
        return super().extra_repr() + (", batch_first=True" if self.batch_first else "")


class DropPath(DropoutFamily):
    """Drop whole samples: stochastic depth, for the residual branch of a block, ``x + path(branch(x))``.

    Huang, Sun, Liu, Sedra and Weinberger, "Deep networks with stochastic depth", ECCV 2016; scaled by 1/(1 − p) in
    training as Larsson, Maire and Shakhnarovich, "FractalNet", ICLR 2017, do, so that eval needs no factor.

    Input and output: (batch, ...). Arguments: see `DropoutFamily`.

    Raises:
        RuntimeError: the input has no axis.
    """

    def axes(self, x: Tensor) -> tuple[str, ...]:
        """Name the axes."""
        if x.ndim == 0:
            raise self._wrong_axes(x, "(batch, ...)", "It drops whole samples and finds them on the first axis.")
        return ()

    def shared_axes(self, x: Tensor) -> tuple[int, ...]:
        """All but the samples."""
        return tuple(range(1, x.ndim))
