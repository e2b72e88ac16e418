"""Networks that read a digit: LeNet-5, or one LeNet-5 for every digit against the rest."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid import nn
from pellucid.recipes.digits.data import Digits
from pellucid.recipes.recipe import Network

MARGIN = 2  # pixels of paper around the 28×28, as LeNet-5 reads 32×32


class LeNet(nn.Module):
    """LeNet-5: two convolutions, each followed by pooling, and three fully connected layers.

    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", Proceedings of the
    IEEE 86, 1998; with today's relu, maximum pooling and dropout, and with every feature map of the second convolution
    reading all those of the first.

    Args:
        outputs: numbers that it returns for a picture.

    Shapes:
        input (batch, 1, 32, 32); output (batch, outputs).
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first = nn.ConvPool2d(1, 6, 5)
        self.second = nn.ConvPool2d(6, 16, 5)
        self.connected = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Dropout(0.25), nn.Linear(120, 84), nn.ReLU(), nn.Dropout(0.25)
        )
        self.output = nn.Linear(84, outputs)

    def forward(self, pictures: Tensor) -> Tensor:
        """Read pictures (batch, 1, 32, 32)."""
        return self.output(self.connected(self.second(self.first(pictures)).flatten(1)))


class DigitNetwork(Network):
    """From pictures (batch, 28, 28) to one number for each digit, (batch, digits), the greatest for the one found."""

    @property
    def backend(self) -> str:
        """The name of what ran the first convolution and its pooling."""
        return self.reader(0).first.backend

    @staticmethod
    def framed(pictures: Tensor) -> Tensor:
        """Return what a LeNet-5 reads, (batch, 1, 32, 32), for pictures (batch, 28, 28)."""
        return F.pad(pictures.unsqueeze(1), [MARGIN] * 4)

    @abstractmethod
    def probabilities(self, pictures: Tensor) -> Tensor:
        """Return what the network makes of each digit, (batch, digits)."""

    @abstractmethod
    def reader(self, number: int) -> LeNet:
        """Return the LeNet-5 that decides on the digit with this number."""

    def classes(self, batch: Digits) -> Tensor:
        """Return the numbers of the digits found, (batch,)."""
        return self(batch.pictures).argmax(1)


class OneNetwork(DigitNetwork):
    """One LeNet-5 for all digits; its numbers are logits.

    Args:
        count: how many digits there are.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.lenet = LeNet(count)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits, (batch, digits)."""
        return self.lenet(self.framed(pictures))

    def loss(self, batch: Digits) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        return F.cross_entropy(self(batch.pictures), batch.labels)

    def probabilities(self, pictures: Tensor) -> Tensor:
        """Return probabilities that add up to 1."""
        return self(pictures).softmax(1)

    def reader(self, number: int) -> LeNet:
        """Return the one that there is."""
        return self.lenet


class OneVersusRest(DigitNetwork):
    """A LeNet-5 of two classes for each digit, its own against the rest; its number is the log-odds of its own.

    They share nothing but the batches: the loss is the sum of theirs, and no weight stands in two of its terms.

    Args:
        count: how many digits there are.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.lenets = nn.ModuleList(LeNet(1) for _ in range(count))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the log-odds, (batch, digits)."""
        framed = self.framed(pictures)
        return torch.cat([lenet(framed) for lenet in self.lenets], 1)

    def loss(self, batch: Digits) -> Tensor:
        """Return the sum of the networks' mean cross-entropies."""
        odds = self(batch.pictures)
        own = F.one_hot(batch.labels, odds.shape[1]).to(odds.dtype)
        return F.binary_cross_entropy_with_logits(odds, own, reduction="none").mean(0).sum()

    def probabilities(self, pictures: Tensor) -> Tensor:
        """Return every network's own probability; they do not add up to 1."""
        return self(pictures).sigmoid()

    def reader(self, number: int) -> LeNet:
        """Return the network of this digit."""
        return self.lenets[number]
