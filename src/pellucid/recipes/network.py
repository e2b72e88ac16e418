"""The network that reads a review: embedding, a recurrent layer of any cell, pooling over real steps, one number."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid import nn
from pellucid.nn import cells
from pellucid.nn.cell import Cell, load
from pellucid.recipes.data import PAD
from pellucid.recipes.errors import RecipeError

DROP_IN = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class ReviewNetwork(nn.Module):
    """From the numbers of a text's characters to the log-odds that the review is good.

    A step reads the sum of two vectors: that of its character, and that of the pair which it forms with the character
    before. In training whole vectors are dropped, so that the network cannot rest on single pairs; then entries are.
    Of the recurrent layer's outputs the mean and the maximum over the real steps are taken.

    Args:
        vocabulary_size: numbers that `Vocabulary.encode` gives.
        cell: "rnn", "gru", "lstm", a name in ``pellucid.nn.cells``, or ``path/file.py:cell``.
        embedding_size: features of a character's vector.
        hidden_size: features of the recurrent state.
        drop_grams: probability of dropping a character's or a pair's whole vector.
        drop_input: probability of dropping an entry of a step's vector.
        drop_output: probability of dropping a pooled feature.
    """

    def __init__(
        self,
        vocabulary_size: int,
        cell: str = "gru",
        embedding_size: int = 64,
        hidden_size: int = 64,
        drop_grams: float = 0.4,
        drop_input: float = 0.5,
        drop_output: float = 0.5,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=PAD)
        torch.nn.init.normal_(self.embedding.weight, std=0.1)
        with torch.no_grad():
            self.embedding.weight[PAD] = 0
        self.drop_grams = nn.Dropout1d(drop_grams)
        self.drop_input = nn.Dropout(drop_input)
        self.recurrent = recurrent_layer(cell, embedding_size, hidden_size)
        self.mean, self.max = nn.LengthPool("mean"), nn.LengthPool("max")
        self.drop_output = nn.Dropout(drop_output)
        with torch.no_grad():  # an annotation of the cell may give the output another size
            output, _ = self.recurrent(torch.zeros(1, 1, embedding_size))
        self.linear = nn.Linear(2 * output.shape[-1], 1)

    def embed(self, ids: Tensor) -> Tensor:
        """Return what the recurrent layer reads, (time, batch, embedding), for ids (time, batch, 2)."""
        vectors = self.drop_grams(self.embedding(ids).flatten(0, 1))  # (time × batch, 2, embedding)
        return self.drop_input(vectors.sum(1).unflatten(0, ids.shape[:2]))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the log-odds of a good review, (batch,), for ids (time, batch, 2) and lengths (batch,)."""
        output, _ = self.recurrent(self.embed(ids), lengths=lengths)
        pooled = torch.cat([self.mean(output, lengths), self.max(output, lengths)], dim=1)
        return self.linear(self.drop_output(pooled)).squeeze(1)

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


def known_cells() -> list[str]:
    """Return the names that ``cell`` takes beside files."""
    return sorted(
        {
            *DROP_IN,
            *(name for name, value in vars(cells).items() if isinstance(value, Cell) and len(value.source.inputs) == 1),
        }
    )


def lasting(name: str) -> str:
    """Write ``path/file.py:cell`` so that it holds in another folder; other names as they are."""
    path, colon, cell = name.rpartition(":")
    return f"{Path(path).resolve()}:{cell}" if colon and path.endswith(".py") else name


def recurrent_layer(name: str, input_size: int, hidden_size: int) -> torch.nn.Module:
    """Make the layer of a cell that the user names.

    Raises:
        RecipeError: there is no such cell or file, the file fails, or the cell needs more than its two sizes.
    """
    if name in DROP_IN:
        return DROP_IN[name](input_size, hidden_size)
    found = _of_file(name) if ".py" in name else getattr(cells, name, None)
    if ".py" in name and not isinstance(found, Cell):
        raise RecipeError(f"--cell {name}: that is no cell. Does the function carry @pellucid.cell?")
    if not isinstance(found, Cell):
        close = difflib.get_close_matches(name, known_cells(), n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise RecipeError(
            f"--cell {name}: there is no such cell.{hint} Known: {', '.join(known_cells())}; or path/file.py:name."
        )
    try:
        return found(input_size, hidden_size)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"--cell {name}: {error}. Give what is missing a default in the formula.") from error


def _of_file(name: str) -> Any:
    """Run the author's file and return what the name after the colon stands for."""
    try:
        return load(name)
    except Exception as error:  # the author's file may raise anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise RecipeError(f"--cell {name}: {kind}{error}") from error
