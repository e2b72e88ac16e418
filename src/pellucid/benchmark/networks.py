"""Training steps of whole networks of convolution, with pellucid's layers and with torch.nn's."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import pellucid
from pellucid import nn
from pellucid.benchmark.comparison import Run, agree, times
from pellucid.benchmark.limit import Work
from pellucid.benchmark.twins import SEED, RowSpeed, ran
from pellucid.nn.component import Component

COMPARED_STEPS = 3
RATE = 0.01  # of SGD
LENET_BATCH = 64
REVIEWS, CHARACTERS, VOCABULARY = 32, 60, 3000
EMBEDDING, FILTERS, WIDTHS = 300, 100, (3, 4, 5)


class NetworkSpeed(RowSpeed):
    """A network of pellucid's layers beside that of torch.nn's."""


@dataclass(frozen=True)
class Examples:
    """What a network is trained on: its inputs, and the loss of its output."""

    inputs: tuple[Tensor, ...]
    loss: Callable[[Tensor], Tensor]

    def step(self, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        """Train once, and return the loss."""
        dtype = next(network.parameters()).dtype
        optimizer.zero_grad()
        loss = self.loss(network(*(x.to(dtype) if x.is_floating_point() else x for x in self.inputs)))
        loss.backward()
        optimizer.step()
        return loss.detach()

    def train(
        self, network: torch.nn.Module, by: str = "auto", as_torch: Callable[[Tensor], Tensor] = torch.detach
    ) -> list[Tensor]:
        """Train a copy a few times, with no entry dropped: the losses, and the gradients of the last step.

        Args:
            network: stays as it is.
            by: the backend.
            as_torch: see `NetworkRow`.
        """
        network = copy.deepcopy(network).eval()
        optimizer = sgd(network)
        with pellucid.backend(by):
            losses = torch.stack([self.step(network, optimizer) for _ in range(COMPARED_STEPS)])
        return [losses, *(as_torch(w.grad) for w in network.parameters() if w.grad is not None)]


@dataclass(frozen=True)
class NetworkRow:
    """A network, its opponent and what both are trained on; the floor is for two CPU threads.

    ``as_torch`` lays a parameter of ours out as the opponent's, which come in the same order.
    """

    section: ClassVar[str] = "training"
    name: str
    make: Callable[[], torch.nn.Module]
    opponent: Callable[[], torch.nn.Module]
    examples: Callable[[str], Examples]
    floor: float | None = None
    as_torch: Callable[[Tensor], Tensor] = torch.detach

    def twins(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        """Both networks, with the same weights."""
        ours, theirs = self.make(), self.opponent()
        with torch.no_grad():
            for weight, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                other.copy_(self.as_torch(weight))
        return ours, theirs

    def measure(self, run: Run) -> NetworkSpeed:
        """Compare a few steps, then time zero_grad, forward, loss, backward and SGD, both taking turns."""
        torch.manual_seed(SEED)
        ours, theirs = (network.to(run.device) for network in self.twins())
        examples = self.examples(run.device)
        agreement = agree(examples.train, ours, theirs, as_torch=self.as_torch)
        limit = work_of(theirs, examples.step).seconds(run.rates)
        sides = {
            "ours": functools.partial(examples.step, ours, sgd(ours)),
            "torch": functools.partial(examples.step, theirs, sgd(theirs)),
        }
        found = times(sides, run.rounds, run.device)
        figures = (1e3 * limit, 1e3 * found["ours"], self.floor, 1e3 * found["torch"])
        return NetworkSpeed(self.name, backends(ours), agreement, *figures)


def work_of(network: torch.nn.Module, step: Callable[[torch.nn.Module, torch.optim.Optimizer], Any]) -> Work:
    """Count what a training step cannot do without.

    FLOPs: those of the matrix products and convolutions of a step, forward and backward, as torch counts them.

    Bytes: 4 × those of the parameters. Backward writes the gradient; SGD reads it and the parameter, and writes.
    """
    network = copy.deepcopy(network)
    with FlopCounterMode(display=False) as counter:
        step(network, sgd(network))
    return Work(flops=counter.get_total_flops(), bytes=4 * sum(w.nbytes for w in network.parameters()))


def sgd(network: torch.nn.Module, rate: float = RATE) -> torch.optim.Optimizer:
    """Return the optimizer of the training steps."""
    return torch.optim.SGD(network.parameters(), lr=rate)


def backends(network: torch.nn.Module) -> str:
    """What pellucid's layers in a network say that they ran on, but for those inside a layer that ran in one pass."""
    found = {ran(layer) for layer in network.modules() if isinstance(layer, Component)}
    return ", ".join(sorted(found - {"auto"}))


# -- the networks -------------------------------------------------------------------------------------------------


def lenet5(space: Any) -> torch.nn.Module:
    """LeNet-5 of LeCun et al. 1998, as it is written today, with ReLU and maxima, of pellucid.nn or torch.nn.

    pellucid.nn has a layer for a convolution with its activation and its pooling.
    """
    if space is nn:
        stages = [nn.ConvPool2d(1, 6, 5, padding=2), nn.ConvPool2d(6, 16, 5)]
    else:
        convolutions = (space.Conv2d(1, 6, 5, padding=2), space.Conv2d(6, 16, 5))
        stages = [space.Sequential(each, space.ReLU(), space.MaxPool2d(2)) for each in convolutions]
    return space.Sequential(
        *stages,
        space.Flatten(),
        space.Linear(16 * 5 * 5, 120),
        space.ReLU(),
        space.Linear(120, 84),
        space.ReLU(),
        space.Linear(84, 10),
    )


def digits(device: str) -> Examples:
    """Pictures and classes as MNIST has them, of noise."""
    classes = torch.randint(10, (LENET_BATCH,), device=device)
    return Examples((torch.rand(LENET_BATCH, 1, 28, 28, device=device),), lambda odds: F.cross_entropy(odds, classes))


class TextCNN(torch.nn.Module):
    """Convolutions over characters and their maxima over time: Kim, EMNLP 2014, arXiv:1408.5882; pellucid's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING, padding_idx=0)
        self.convolution = nn.TextConv(EMBEDDING, FILTERS, WIDTHS)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(FILTERS * len(WIDTHS), 1)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return log-odds, (batch,), for ids (batch, time) and lengths (batch,)."""
        features = self.convolution(self.embedding(ids), lengths)
        return self.linear(self.dropout(features)).squeeze(1)

    @staticmethod
    def as_torch(weight: Tensor) -> Tensor:
        """Lay the filters' words, (filters, width, embedding), out as a convolution's."""
        return weight.detach().mT if weight.ndim == 3 else weight.detach()


class TorchTextCNN(torch.nn.Module):
    """The same as one writes it with torch.nn."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, EMBEDDING, padding_idx=0)
        self.convolutions = torch.nn.ModuleList(torch.nn.Conv1d(EMBEDDING, FILTERS, width) for width in WIDTHS)
        self.dropout = torch.nn.Dropout(0.5)
        self.linear = torch.nn.Linear(FILTERS * len(WIDTHS), 1)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return log-odds, (batch,), for ids (batch, time) and lengths (batch,)."""
        x = self.embedding(ids).transpose(1, 2)
        features = []
        for width, convolution in zip(WIDTHS, self.convolutions, strict=True):
            y = F.relu(convolution(x))
            ends = torch.arange(width, x.shape[-1] + 1, device=x.device)
            y = y.masked_fill(ends > lengths[:, None, None], float("-inf"))
            features.append(y.max(-1).values)
        return self.linear(self.dropout(torch.cat(features, 1))).squeeze(1)


def reviews(device: str) -> Examples:
    """Padded texts of any length and what is thought of them, by chance."""
    lengths = torch.randint(max(WIDTHS), CHARACTERS + 1, (REVIEWS,), device=device)
    lengths[0] = CHARACTERS
    ids = torch.randint(1, VOCABULARY, (REVIEWS, CHARACTERS), device=device)
    ids[torch.arange(CHARACTERS, device=device) >= lengths[:, None]] = 0
    good = torch.randint(2, (REVIEWS,), device=device)
    return Examples((ids, lengths), lambda odds: F.binary_cross_entropy_with_logits(odds, good.to(odds.dtype)))


NETWORKS = [
    NetworkRow(f"LeNet-5, batch {LENET_BATCH}", lambda: lenet5(nn), lambda: lenet5(torch.nn), digits, 1.5),
    NetworkRow(
        f"TextCNN, batch {REVIEWS}, {CHARACTERS} characters", TextCNN, TorchTextCNN, reviews, 1.3, TextCNN.as_torch
    ),
]
