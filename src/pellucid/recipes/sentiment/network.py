"""Networks that read a review: embedding, a recurrent layer of any cell or convolutions along the text, one number."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pellucid import nn
from pellucid.recipes.batches import SeriesBatch
from pellucid.recipes.cells import recurrent_layer
from pellucid.recipes.recipe import Network
from pellucid.recipes.sentiment.data import PAD


class Reader(Network):
    """From the numbers of a text's characters to the log-odds that the review is good.

    A step reads the sum of two vectors: that of its character, and that of the pair which it forms with the character
    before. In training whole vectors are dropped, so that the network cannot rest on single pairs; then entries are.

    Args:
        vocabulary_size: numbers that `Vocabulary.encode` gives.
        embedding_size: features of a character's vector.
    """

    linear: torch.nn.Linear

    def __init__(self, vocabulary_size: int, embedding_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=PAD)
        torch.nn.init.normal_(self.embedding.weight, std=0.1)
        with torch.no_grad():
            self.embedding.weight[PAD] = 0
        self.drop_grams = nn.Dropout1d(0.4)  # a character's or a pair's whole vector
        self.drop_input = nn.Dropout(0.5)  # an entry of a step's vector
        self.drop_output = nn.Dropout(0.5)  # a feature of the whole text

    def embed(self, ids: Tensor) -> Tensor:
        """Return the vectors of the steps, (time, batch, embedding), for ids (time, batch, 2)."""
        vectors = self.drop_grams(self.embedding(ids).flatten(0, 1))  # (time × batch, 2, embedding)
        return self.drop_input(vectors.sum(1).unflatten(0, ids.shape[:2]))

    @abstractmethod
    def features(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Return the features of whole texts, (batch, features), for vectors (time, batch, embedding)."""

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the log-odds of a good review, (batch,), for ids (time, batch, 2) and lengths (batch,)."""
        return self.linear(self.drop_output(self.features(self.embed(ids), lengths))).squeeze(1)

    def loss(self, batch: SeriesBatch) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        odds = self(batch.steps, batch.lengths)
        return torch.nn.functional.binary_cross_entropy_with_logits(odds, batch.labels.to(odds.dtype))

    def classes(self, batch: SeriesBatch) -> Tensor:
        """Return 1 for a good review and 0 for a bad one, (batch,)."""
        return (self(batch.steps, batch.lengths) > 0).long()

    def probability(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the probability of a good review, (batch,), as the network gives it when it is not training."""
        training = self.training
        with torch.no_grad():
            odds = self.eval()(ids, lengths)
        self.train(training)
        return torch.sigmoid(odds)

    def probabilities_of_prefixes(self, ids: Tensor) -> Tensor:
        """Return the probability after each character of one text, (time,), for its ids (time, 2).

        The network reads every prefix of the text as a text of its own, all of them as one batch.
        """
        time = len(ids)
        prefixes = ids.unsqueeze(1).expand(-1, time, -1)
        return self.probability(prefixes, torch.arange(1, time + 1, device=ids.device))


class RecurrentReader(Reader):
    """Reads with a recurrent layer; of its outputs the mean and the maximum over the real steps are taken.

    Args:
        vocabulary_size: numbers that `Vocabulary.encode` gives.
        cell: "rnn", "gru", "lstm", a name in ``pellucid.nn.cells``, or ``path/file.py:cell``.
        embedding_size: features of a character's vector.
        hidden_size: features of the recurrent state.
    """

    def __init__(
        self,
        vocabulary_size: int,
        cell: str = "gru",
        embedding_size: int = 64,
        hidden_size: int = 64,
    ) -> None:
        super().__init__(vocabulary_size, embedding_size)
        self.recurrent: Any = recurrent_layer(cell, embedding_size, hidden_size)
        self.mean, self.max = nn.LengthPool("mean"), nn.LengthPool("max")
        with torch.no_grad():  # an annotation of the cell may give the output another size
            output, _ = self.recurrent(torch.zeros(1, 1, embedding_size))
        self.linear = nn.Linear(2 * output.shape[-1], 1)

    @property
    def backend(self) -> str:
        """The name of what ran the recurrent layer."""
        return self.recurrent.backend

    def features(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Return mean and maximum of the outputs."""
        output, _ = self.recurrent(vectors, lengths=lengths)
        return torch.cat([self.mean(output, lengths), self.max(output, lengths)], dim=1)


class Match(NamedTuple):
    """Where in a text a filter matches best, and what it adds to the log-odds of a good review."""

    start: int
    width: int
    added: float


class ConvolutionalReader(Reader):
    """Reads with filters over several neighbouring characters; of each filter the best match in the text is kept.

    Kim, "Convolutional neural networks for sentence classification", EMNLP 2014.

    Args:
        vocabulary_size: numbers that `Vocabulary.encode` gives.
        embedding_size: features of a character's vector.
        filters: filters of each width.
        widths: how many neighbouring characters a filter reads.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int = 64,
        filters: int = 64,
        widths: Sequence[int] = (3, 4, 5),
    ) -> None:
        super().__init__(vocabulary_size, embedding_size)
        self.convolution = nn.TextConv(embedding_size, filters, widths)
        self.linear = nn.Linear(filters * len(widths), 1)

    @property
    def backend(self) -> str:
        """The name of what ran the convolutions."""
        return self.convolution.backend

    def features(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Return the best match of every filter."""
        return self.convolution(vectors.transpose(0, 1), lengths=lengths)

    def matches(self, ids: Tensor) -> list[Match]:
        """Return what every filter adds to the log-odds for one text, ids (time, 2), the weightiest first.

        The windows of a width are read as texts of their own: there each filter of that width has one place to match.
        """
        found, weights = [], self.linear.weight.squeeze(0)
        with torch.no_grad():
            vectors = self.embed(ids.unsqueeze(1)).squeeze(1)  # (time, embedding)
            for index, width in enumerate(self.convolution.widths):
                starts = range(max(len(ids) - width + 1, 1))
                windows = torch.stack([vectors[start : start + width] for start in starts])
                own = slice(index * self.convolution.filters, (index + 1) * self.convolution.filters)
                best = self.convolution(windows)[:, own].max(0)
                added = (best.values * weights[own]).tolist()
                found += [Match(*each) for each in zip(best.indices.tolist(), [width] * len(added), added, strict=True)]
        return sorted(found, key=lambda match: -abs(match.added))
