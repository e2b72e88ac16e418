"""The network that recognises a speaker: a recurrent layer of any cell, or a temporal convolutional network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid import nn
from pellucid.recipes.batches import SeriesBatch
from pellucid.recipes.cells import recurrent_layer
from pellucid.recipes.recipe import Network
from pellucid.recipes.vowels.data import FEATURES, SPEAKERS, Statistics

BLOCKS, KERNEL_SIZE = 3, 3  # of the temporal convolutional network


class TemporalConvolutions(nn.Module):
    """A temporal convolutional network that is called as a recurrent layer is.

    Args:
        input_size: features of a step.
        hidden_size: channels of every block.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.tcn: Any = nn.TCN(input_size, [hidden_size] * BLOCKS, KERNEL_SIZE, dropout=0.1)

    @property
    def backend(self) -> str:
        """The name of what ran the first convolution."""
        return self.tcn.blocks[0]["first"].backend

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, None]:
        """Read (time, batch, features)."""
        return self.tcn(x.permute(1, 2, 0), lengths=lengths).permute(2, 0, 1), None


class SpeakerNetwork(Network):
    """From the steps of utterances to one logit for each speaker.

    Every feature is normalised by the training part's statistics. Of the layer's outputs the mean and the maximum over
    the real steps are taken.

    Args:
        model: "tcn", or the cell of a recurrent layer: see `recurrent_layer`.
        hidden_size: features of the state, channels of a block.
        statistics: of the training part.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: str, hidden_size: int, statistics: Statistics) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(statistics.mean), persistent=False)
        self.register_buffer("deviation", torch.tensor(statistics.deviation), persistent=False)
        # an input feature of a step, and a feature of the whole utterance
        self.drop_input, self.drop_output = nn.Dropout(0.2), nn.Dropout(0.2)
        self.layer: Any = (
            TemporalConvolutions(FEATURES, hidden_size)
            if model == "tcn"
            else recurrent_layer(model, FEATURES, hidden_size, "--model", ("tcn",))
        )
        self.average, self.max = nn.LengthPool("mean"), nn.LengthPool("max")
        with torch.no_grad():  # an annotation of the cell may give the output another size
            output, _ = self.layer(torch.zeros(1, 1, FEATURES))
        self.linear = nn.Linear(2 * output.shape[-1], SPEAKERS)

    @property
    def backend(self) -> str:
        """The name of what ran the recurrent layer or the convolutions."""
        return self.layer.backend

    def normalised(self, steps: Tensor) -> Tensor:
        """Return what the layer reads, (time, batch, 12), for steps as they are recorded."""
        return (steps - self.mean) / self.deviation

    def forward(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits, (batch, speakers), for steps (time, batch, 12) and lengths (batch,)."""
        output, _ = self.layer(self.drop_input(self.normalised(steps)), lengths=lengths)
        pooled = torch.cat([self.average(output, lengths), self.max(output, lengths)], dim=1)
        return self.linear(self.drop_output(pooled))

    def loss(self, batch: SeriesBatch) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        return F.cross_entropy(self(batch.steps, batch.lengths), batch.labels)

    def classes(self, batch: SeriesBatch) -> Tensor:
        """Return the numbers of the speakers found, (batch,)."""
        return self(batch.steps, batch.lengths).argmax(1)

    def probabilities_of_prefixes(self, steps: Tensor) -> Tensor:
        """Return the speakers' probabilities after each step of one utterance, (time, speakers), for steps (time, 12).

        The network reads every prefix as an utterance of its own, all of them as one batch, without dropout.
        """
        time, training = len(steps), self.training
        with torch.no_grad():
            logits = self.eval()(steps.unsqueeze(1).expand(-1, time, -1), torch.arange(1, time + 1))
        self.train(training)
        return logits.softmax(1)
