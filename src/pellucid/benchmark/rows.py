"""Forward + backward of layers without time, which move data more than they compute: norms, dropout, own formulas."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pellucid
from pellucid import nn
from pellucid.benchmark.comparison import Agreement, Failed, agree
from pellucid.benchmark.limit import Work
from pellucid.benchmark.twins import SEED, TwinRow, makers, step

DEVIATIONS = 5  # standard deviations that the rate of a dropout may be off
NORM, DROPOUT, ADD_NORM = 5, 4, 8  # passes over an input's bytes, see `LayerRow`


@dataclass(frozen=True)
class LayerRow(TwinRow):
    """A layer without time.

    ``passes`` says how often a step moves as many bytes as one input has. Forward reads the inputs and writes y;
    backward reads dy, and the inputs again where their gradients need them, and writes the gradients:
    5 for a norm (x, y; x, dy, dx), 4 for a dropout (x, y; dy, dx), 8 for x + sublayer normalized.

    ``p`` is the probability with which the last input is dropped, ``shared`` are the axes that share a coin.
    """

    passes: int = NORM
    p: float = 0.0
    shared: tuple[int, ...] = ()

    def work(self, layer: torch.nn.Module, *given: Tensor) -> Work:
        """Count the bytes of all passes."""
        return Work(flops=0, bytes=self.passes * given[0].nbytes)

    def agree(self, ours: torch.nn.Module, theirs: torch.nn.Module, *given: Tensor) -> Agreement:
        """Compare values, gradients and running statistics, given the mask of a dropout."""
        return agree_given_the_mask(ours, theirs, *given, p=self.p, shared=self.shared)


@dataclass(frozen=True)
class LinearRow(LayerRow):
    """A linear layer: three products as large as that of forward, which multiplies every row by the weight."""

    def work(self, layer: torch.nn.Module, *given: Tensor) -> Work:
        """Count multiplications and additions of the products, and each of their operands once a product."""
        (x, dy), weight = given, dict(layer.named_parameters())["weight"]
        return Work(flops=3 * 2 * x.numel() * len(weight), bytes=3 * (x.nbytes + weight.nbytes + dy.nbytes))


# -- what is compared where coins are thrown ----------------------------------------------------------------------


class Masked(torch.nn.Module):
    """A layer without its own coins, whose last input is dropped by these: x·coins/(1 − p)."""

    def __init__(self, layer: torch.nn.Module, coins: Tensor, p: float) -> None:
        super().__init__()
        self.layer, self.coins, self.p = copy.deepcopy(layer).eval(), coins, p

    def forward(self, *inputs: Tensor) -> Tensor:
        """Drop, then call the layer."""
        *others, last = inputs
        return self.layer(*others, last * self.coins / (1 - self.p))


def agree_given_the_mask(
    ours: torch.nn.Module, theirs: torch.nn.Module, *given: Tensor, p: float = 0.0, shared: tuple[int, ...] = ()
) -> Agreement:
    """Compare outputs, gradients and buffers of `step`; where coins are thrown, torch.nn's layer takes ours as given.

    The same seed throws the same coins in every type, so those of a float64 run are right for all.

    Raises:
        Failed: the rate of what is kept is not 1 − p.
    """
    if p:
        theirs = Masked(theirs, _coins(ours, given, p, shared), p)
    return agree(_seeded_step, ours, theirs, *given)


def _seeded_step(layer: torch.nn.Module, *given: Tensor, by: str = "auto") -> list[Tensor]:
    torch.manual_seed(SEED)
    return [*step(layer, *given, by=by), *(buffer.double() for buffer in layer.buffers())]


def _coins(layer: torch.nn.Module, given: tuple[Tensor, ...], p: float, shared: tuple[int, ...]) -> Tensor:
    """Which entries of the last input are kept: those that have a gradient, which in float64 is never 0 by chance."""
    inputs, dy = given[:-1], 0.5 + torch.rand_like(given[-1], dtype=torch.float64)
    results = _seeded_step(copy.deepcopy(layer).double(), *(x.double() for x in inputs), dy)
    kept = results[len(inputs)] != 0  # the output comes first, then the gradient of every input
    coins = kept.any(dim=shared, keepdim=True) if shared else kept
    deviation = (int(coins.sum()) - coins.numel() * (1 - p)) / (coins.numel() * p * (1 - p)) ** 0.5
    if abs(deviation) > DEVIATIONS:
        raise Failed(
            f"{int(coins.sum())} of {coins.numel()} coins keep, which is {abs(deviation):.1f} standard deviations "
            f"from what p={p:g} promises"
        )
    return coins


# -- the rows -----------------------------------------------------------------------------------------------------


class PostNorm(torch.nn.Module):
    """Residual, dropout and LayerNorm, as three layers of torch.nn."""

    def __init__(self, features: int, p: float) -> None:
        super().__init__()
        self.norm, self.dropout = torch.nn.LayerNorm(features), torch.nn.Dropout(p)

    def forward(self, x: Tensor, sublayer: Tensor) -> Tensor:
        """Normalize the sum."""
        return self.norm(x + self.dropout(sublayer))


class Eager(torch.nn.Module):
    """A function of one's own, called on tensors, with the parameters of a layer that pellucid made of it."""

    def __init__(self, function: Callable[..., Tensor], layer: torch.nn.Module) -> None:
        super().__init__()
        self.function, self.values = function, torch.nn.ParameterDict(layer.named_parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Call the function."""
        return self.function(x, **dict(self.values.items()))


def dyt(x, *, alpha=pellucid.constant(0.5), gamma=pellucid.ones, beta=pellucid.zeros):  # noqa: B008
    """Dynamic tanh, in the place of a norm: Zhu et al., "Transformers without normalization", CVPR 2025."""
    return torch.tanh(alpha * x) * gamma + beta


def rms_norm(x, *, gamma=pellucid.ones):
    """RMSNorm as one writes it: Zhang and Sennrich, NeurIPS 2019."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gamma


MATRIX, PICTURE = (16384, 768), (32, 64, 56, 56)
BFLOAT16 = {"section": "formats", "note": ", bfloat16", "dtype": torch.bfloat16}
CHANNELS_LAST = {"section": "formats", "note": ", channels_last", "layout": torch.channels_last}
SMALL = {"section": "small", "floor": 1}
HALF = {"passes": DROPOUT, "p": 0.5}


def _drop_in(kind: str, shape: tuple[int, ...], *arguments: Any, **fields: Any) -> LayerRow:
    """A layer of torch.nn's and ours of the same name; ``fields`` are those of `LayerRow`."""
    return LayerRow(kind, shape, *makers(kind, *arguments), **fields)


def _linear(shape: tuple[int, ...], out_features: int, **fields: Any) -> LinearRow:
    return LinearRow("Linear", shape, *makers("Linear", shape[-1], out_features), note=f"→{out_features}", **fields)


def _own(kind: str, function: Callable[..., Tensor], floor: float) -> LayerRow:
    """A function of one's own as a layer, beside itself in eager torch."""

    def make() -> torch.nn.Module:
        return pellucid.layer(function)(MATRIX[-1])

    return LayerRow(kind, MATRIX, make, lambda: Eager(function, make()), note=", own", floor=floor)


def _add_norm(floor: float) -> LayerRow:
    """Residual, dropout and LayerNorm in one layer, beside three of torch.nn's."""
    both = (lambda: nn.AddNorm(768, p=0.1), lambda: PostNorm(768, 0.1))
    return LayerRow("AddNorm", MATRIX, *both, inputs=2, passes=ADD_NORM, p=0.1, floor=floor)


ROWS = [
    _drop_in("LayerNorm", MATRIX, 768, floor=3),
    _drop_in("RMSNorm", MATRIX, 768, floor=10),
    _drop_in("BatchNorm2d", PICTURE, 64, floor=2),
    _drop_in("InstanceNorm2d", PICTURE, 64, 1e-5, 0.1, True, note=", affine", floor=2),
    _drop_in("GroupNorm", PICTURE, 32, 64, note=", 32 groups", floor=1.5),
    _drop_in("Dropout", MATRIX, 0.5, **HALF, floor=15),
    _drop_in("Dropout2d", PICTURE, 0.5, **HALF, shared=(2, 3), floor=1.5),
    _add_norm(8),
    _own("DyT", dyt, 5),
    _own("RMSNorm", rms_norm, 5),
    _linear((1024, 768), 3072, floor=1),
    _linear((4096, 512), 512, floor=1),
    _drop_in("LayerNorm", (8, 64), 64, **SMALL),
    _drop_in("RMSNorm", (8, 64), 64, **SMALL),
    _drop_in("BatchNorm1d", (8, 64), 64, **SMALL),
    _drop_in("Dropout", (8, 64), 0.5, **HALF, **SMALL),
    _linear((8, 64), 64, **SMALL),
    _drop_in("LayerNorm", (1, 768), 768, **SMALL),
    _drop_in("RMSNorm", (1, 768), 768, **SMALL),
    _drop_in("Dropout", (1, 768), 0.5, **HALF, **SMALL),
    _drop_in("LayerNorm", MATRIX, 768, **BFLOAT16),
    _drop_in("RMSNorm", MATRIX, 768, **BFLOAT16),
    _drop_in("BatchNorm2d", PICTURE, 64, **BFLOAT16),
    _drop_in("Dropout", MATRIX, 0.5, **HALF, **BFLOAT16),
    _drop_in("BatchNorm2d", PICTURE, 64, **CHANNELS_LAST),
    _drop_in("BatchNorm1d", (32, 256, 512), 256, **CHANNELS_LAST),
]
