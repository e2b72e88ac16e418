"""Two implementations side by side: pellucid's layer and its opponent, step by step on the same batches."""

from __future__ import annotations

import copy
import math
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pellucid
from pellucid.recipes.cells import DROP_IN
from pellucid.recipes.sentiment.network import RecurrentReader
from pellucid.recipes.sentiment.recipe import Settings
from pellucid.recipes.training import adam, rate


class TorchLayer(torch.nn.Module):
    """torch.nn's layer, called as pellucid's is: lengths instead of packing."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        """Read (time, batch, features)."""
        packed, state = self.layer(pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False))
        output, _ = pad_packed_sequence(packed, total_length=x.shape[0])
        return output, state


class PythonLoop(torch.nn.Module):
    """The author's formula called in a Python loop, which torch's autograd differentiates."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        """Read (time, batch, features)."""
        with pellucid.backend("naive"):
            return self.layer(x, lengths=lengths)


@dataclass(frozen=True)
class Comparison:
    """What was measured; times are medians in milliseconds of a whole training step."""

    opponent: str
    steps: int
    ours_ms: float
    opponent_ms: float
    largest_difference: float
    first_difference: float
    backend: str  # of pellucid's layer

    @property
    def ratio(self) -> float:
        """How many of pellucid's steps fit into one of the opponent's."""
        return self.opponent_ms / self.ours_ms

    def text(self) -> str:
        """Say it in two lines."""
        return (
            f"training step, median of {self.steps}: pellucid {self.ours_ms:.1f} ms, {self.opponent} "
            f"{self.opponent_ms:.1f} ms; {self.opponent} / pellucid = {self.ratio:.2f}\n"
            f"loss curves: largest difference {self.largest_difference:.2g}, at the first step "
            f"{self.first_difference:.2g}"
        )


def opponent_of(network: RecurrentReader, cell: str) -> tuple[RecurrentReader, str]:
    """Copy a network with its weights, the recurrent layer replaced by torch.nn's or, where there is none, a loop."""
    twin = copy.deepcopy(network)
    layer: Any = twin.recurrent
    if cell in DROP_IN:
        name = DROP_IN[cell].__name__
        theirs = getattr(torch.nn, name)(layer.input_size, layer.hidden_size)
        theirs.load_state_dict(layer.state_dict())
        twin.recurrent = TorchLayer(theirs)
        return twin, f"torch.nn.{name}"
    twin.recurrent = PythonLoop(layer)
    return twin, "Python loop"


class Contestant:
    """A network with its own optimiser and schedule."""

    def __init__(self, network: RecurrentReader, settings: Settings, steps: int) -> None:
        self.network, self.optimizer = network.train(), adam(network, settings.lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: rate(step, steps))
        self.largest_gradient = settings.largest_gradient or math.inf
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, batch: Any, seed: int) -> None:
        """Train on a batch; the seed decides the dropout."""
        torch.manual_seed(seed)
        self._synchronise()
        started = time.perf_counter()
        loss = self.network.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.largest_gradient)
        self.optimizer.step()
        self._synchronise()
        self.seconds.append(time.perf_counter() - started)
        self.schedule.step()
        self.losses.append(loss.item())

    def _synchronise(self) -> None:
        if next(self.network.parameters()).is_cuda:
            torch.cuda.synchronize()


def compare(
    settings: Settings, device: str, most_steps: int | None = None, dtype: torch.dtype = torch.float32
) -> Comparison:
    """Train pellucid's layer and its opponent from the same weights on the same batches, in turns.

    Both take every step with the same dropout masks; who goes first alternates, so that noise of the machine hits
    both. Nothing is kept.

    Args:
        settings: as for a training; its epochs say how many steps there are.
        device: "cpu" or "cuda".
        most_steps: stop after so many.
        dtype: of weights and loss.
    """
    data = settings.data()
    torch.manual_seed(settings.seed)
    network: Any = settings.network(data.fitted).to(device, dtype)
    twin, name = opponent_of(network, settings.cell)
    twin.to(device, dtype)
    epochs = [data.training(settings, epoch) for epoch in range(settings.epochs)]
    steps = min(sum(map(len, epochs)), most_steps or sys.maxsize)
    ours, theirs = Contestant(network, settings, steps), Contestant(twin, settings, steps)
    batches = (batch for epoch in epochs for batch in epoch)
    for index, batch in enumerate(islice(batches, steps)):
        moved = type(batch)(*(tensor.to(device) for tensor in batch))
        for contestant in (ours, theirs) if index % 2 else (theirs, ours):
            contestant.step(moved, settings.seed + index)
    differences = [abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
    ours_ms, theirs_ms = (statistics.median(contestant.seconds) * 1e3 for contestant in (ours, theirs))
    backend = str(network.recurrent.backend)
    return Comparison(name, steps, ours_ms, theirs_ms, max(differences), differences[0], backend)
