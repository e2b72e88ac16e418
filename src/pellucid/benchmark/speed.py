"""Forward + backward of a recurrent layer beside its opponents, and beside the limit of the machine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pellucid import nn
from pellucid.benchmark.comparison import Figure, Run, agree, times, train
from pellucid.benchmark.limit import work
from pellucid.nn import cells


@dataclass(frozen=True)
class Timed(Figure):
    """Medians in milliseconds; ``limit_ms`` is the machine's least time, ``floor`` the factor that is promised."""

    limit_ms: float
    ours_ms: float
    floor: float | None

    @property
    def opponent(self) -> tuple[str, float]:
        """Whom the floor is about, and its milliseconds."""
        raise NotImplementedError

    @property
    def factor(self) -> float:
        """How many times as fast as the opponent."""
        return self.opponent[1] / self.ours_ms

    def shortfall(self) -> str | None:
        """Say what is missing to the floor."""
        if self.floor is None or self.factor >= self.floor:
            return None
        return f"{self.factor:.2f}× as fast as {self.opponent[0]}, the floor is {self.floor:g}×"


@dataclass(frozen=True)
class Speed(Timed):
    """A recurrent layer beside torch.nn's, where torch.nn has such a layer, and beside the Python loop."""

    torch_nn_ms: float | None
    loop_ms: float

    @property
    def opponent(self) -> tuple[str, float]:
        """torch.nn, or the Python loop where torch.nn has no such layer."""
        return ("the Python loop", self.loop_ms) if self.torch_nn_ms is None else ("torch.nn", self.torch_nn_ms)


@dataclass(frozen=True)
class SpeedRow:
    """A layer, its opponent (None: the Python loop alone), and the input's sizes; floors are for two CPU threads.

    The loss is one of all steps, or of the ``last`` one alone, as where a sequence is classified.
    """

    section: ClassVar[str] = "speed"
    name: str
    make: Callable[[], torch.nn.Module]
    opponent: Callable[[], torch.nn.Module] | None
    batch: int
    steps: int
    floor: float | None = None
    last: bool = False

    def measure(self, run: Run) -> Speed:
        """Compare values and gradients, then time forward + backward, the opponents taking turns.

        Where torch.nn is the opponent the loop, many times slower, runs after them and a third as often.
        """
        torch.manual_seed(0)
        layer: Any = self.make().to(run.device)
        x = torch.randn((self.steps, self.batch, layer.input_size), device=run.device)
        theirs, by = copy.deepcopy(layer), "naive"
        if self.opponent is not None:
            theirs, by = self.opponent().to(run.device), "auto"
            theirs.load_state_dict(layer.state_dict())
        ours, other = (Last(each) if self.last else each for each in (layer, theirs))
        agreement = agree(train, ours, other, x, by=by)
        backend, limit = str(layer.backend), work(layer, x).seconds(run.rates)
        sides = {"ours": lambda: train(ours, x), "theirs": lambda: train(other, x, by=by)}
        found = times(sides, run.rounds, run.device)
        torch_nn, loop = None, found["theirs"]
        if self.opponent is not None:
            alone = times({"loop": lambda: train(ours, x, by="naive")}, -(-run.rounds // 3), run.device)
            torch_nn, loop = 1e3 * found["theirs"], alone["loop"]
        figures = (1e3 * limit, 1e3 * found["ours"], self.floor)
        return Speed(self.name, backend, agreement, *figures, torch_nn, 1e3 * loop)


class Last(torch.nn.Module):
    """The output of a recurrent layer's last step."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, features) for (time, batch, features)."""
        return self.layer(x)[0][-1]


def layernorm_lstm(input_size: int = 256, hidden_size: int = 128) -> torch.nn.Module:
    """With γ = 1 this cell is chaotic: one ulp of the input grows 10⁵-fold in 128 steps, and a comparison says nothing.

    γ = 0.1 is Cooijmans et al. 2016, Recurrent batch normalization, arXiv:1603.09025; the work is the same.
    """
    layer = cells.layernorm_lstm(input_size, hidden_size)
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if name.startswith("gamma"):
                value.fill_(0.1)
    return layer


def _drop_in(
    name: str, sizes: str, floor: float | None, *args: int, note: str = "", last: bool = False, **kwargs: Any
) -> SpeedRow:
    """A layer of torch.nn's and ours of the same name; ``sizes`` is "batch, steps, input→hidden"."""
    batch, steps, features = sizes.split(", ")
    shape = (*(int(size) for size in features.split("→")), *args)
    makers = (lambda: getattr(nn, name)(*shape, **kwargs), lambda: getattr(torch.nn, name)(*shape, **kwargs))
    return SpeedRow(f"{name} {sizes}{note}", *makers, int(batch), int(steps), floor, last)


def _own(name: str, make: Callable[[], torch.nn.Module], batch: int, floor: float | None) -> SpeedRow:
    return SpeedRow(f"{name} {batch}, 128, 256→128", make, None, batch, 128, floor)


FLOORS = {  # RNN, GRU, LSTM
    "1, 128, 256→128": (8, 8, 2),
    "32, 128, 256→128": (2.2, 2.2, 1.4),
    "32, 128, 512→512": (1.3, 1.3, 1.15),
    "128, 64, 256→256": (1.4, 1.4, 1.2),
}
RECURRENT = [
    *(
        _drop_in(name, sizes, floor)
        for sizes, floors in FLOORS.items()
        for name, floor in zip(("RNN", "GRU", "LSTM"), floors, strict=True)
    ),
    _drop_in("LSTM", "16, 64, 64→64", 1.5, 2, note=", 2 layers, bidirectional", bidirectional=True),
    _drop_in("RNN", "32, 128, 256→128", None, note=", last step", last=True),
    _drop_in("LSTM", "8, 500, 64→64", None, note=", last step", last=True),
    _own("layernorm_lstm", layernorm_lstm, 1, 20),
    _own("layernorm_lstm", layernorm_lstm, 32, 5),
    _own("leaky", lambda: cells.leaky(256, 128), 32, None),
    SpeedRow("delta_rule 16, 128, 256→64, key 64", lambda: cells.delta_rule(256, 64, key=64), None, 16, 128),
]
