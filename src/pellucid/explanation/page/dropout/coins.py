"""One tensor under masks of several shapes, and the numbers that decide a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid import nn
from pellucid.explanation.lines import Lines
from pellucid.explanation.page.dropout.recomputed import SOME, both
from pellucid.kernel.random import WORD, philox, round_keys
from pellucid.nn.dropout.drop_block import DropBlock2d, drop_block
from pellucid.nn.dropout.dropout import DropoutFamily

BLOCK = 2
SEED = 3  # of the examples: at the usual p its first mask drops something, whatever shares a coin


def words64(value: int) -> list[int]:
    """Return the two words of a number, the low one first."""
    return [value & WORD, (value >> 32) & WORD]


def draws_at(coins: Sequence[int], numbers: tuple[int, int], calls: int) -> Tensor:
    """Return what some coins draw in a call and in those that follow it: (calls, coins)."""
    seed, stream = numbers
    index = torch.tensor(list(coins), dtype=torch.int64)
    streams = (torch.arange(calls) + (stream + 2**63) % 2**64 - 2**63)[:, None]
    low, high = torch.tensor(words64(seed))
    block = index // 4
    drawn = torch.stack(
        philox((block & WORD, block >> 32, streams & WORD, (streams >> 32) & WORD), round_keys(low, high))
    )
    lane = (index % 4).expand(calls, -1)[None]
    return (drawn.expand(4, calls, len(index)).gather(0, lane)[0] >> 8) * torch.tensor(2.0**-24)


def toys(p: float) -> dict[str, Any]:
    """Return the masks of several layers over a small batch of sequences, and over one of pictures."""
    sequence: list[DropoutFamily] = [
        nn.Dropout(p, seed=SEED),
        nn.LockedDropout(p, batch_first=True, seed=SEED),
        nn.Dropout1d(p, seed=SEED),
        nn.DropPath(p, seed=SEED),
    ]
    picture: list[DropoutFamily] = [
        nn.Dropout(p, seed=SEED),
        nn.Dropout2d(p, seed=SEED),
        nn.DropBlock2d(p, block_size=BLOCK, seed=SEED),
        nn.DropPath(p, seed=SEED),
    ]
    return {"sequence": _toy((2, 3, 4), sequence), "picture": _toy((2, 3, 4, 4), picture)}


def _toy(shape: tuple[int, ...], layers: Sequence[DropoutFamily]) -> dict[str, Any]:
    x = torch.ones(shape)
    masks = []
    for layer in layers:
        mask = {"layer": type(layer).__name__, "drawn": list(layer.drawn_shape(x)), "mask": (layer(x) != 0).float()}
        if isinstance(layer, DropBlock2d):
            mask |= {"share": gamma_of(layer, x), "program": squares(x.double(), layer), "block": BLOCK}
        masks.append(mask)
    return {"shape": list(shape), "masks": masks}


def gamma_of(layer: DropBlock2d, x: Tensor) -> float:
    """Return how many times p DropBlock's γ is, as long as something stays."""
    return float(layer._symbol_values(x, x, SOME)["gamma"]) / SOME


def squares(x: Tensor, layer: DropBlock2d) -> dict[str, Any]:
    """Trace DropBlock's formula for inputs of this shape."""
    draws = torch.ones(layer.drawn_shape(x), dtype=torch.float64)
    bound = layer._symbol_values(x, draws, SOME)
    inputs = {"x": x, "draws": draws, "gamma": torch.tensor(bound["gamma"], dtype=torch.float64)}
    return both(Lines(drop_block), inputs, {"block": bound["block"]})
