"""Models to be swapped: one of a layer of each kind, one of pictures, and what is asked of their copies."""

from __future__ import annotations

import copy
import io
import pickle

import torch

from tensors import draw

LAST = torch.channels_last


def first(result):
    return result if isinstance(result, torch.Tensor) else first(result[0])


def held(layer: torch.nn.Module):
    """What a layer holds by itself, and the objects in it; a class may keep what ran it."""
    return {name: id(value) for name, value in vars(layer).items()}


class Tagger(torch.nn.Module):
    """One layer of each kind, in every kind of container, one of them shared."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6)
        self.norm = torch.nn.LayerNorm(6)
        self.convolutions = torch.nn.ModuleList([torch.nn.Conv1d(6, 6, k, padding="same", groups=6) for k in (1, 3)])
        self.parts = torch.nn.ModuleDict({"batch": torch.nn.BatchNorm1d(6), "drop": torch.nn.Dropout(p)})
        self.rnn = torch.nn.LSTM(6, 5, 2, batch_first=True, dropout=p, bidirectional=True)
        self.head = torch.nn.Sequential(torch.nn.Linear(10, 6), torch.nn.ReLU(), self.norm)
        self.output = torch.nn.Linear(6, 11, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, ids):
        x = self.norm(self.embedding(ids)).mT
        x = sum(convolution(x) for convolution in self.convolutions)
        x, _ = self.rnn(self.parts["drop"](self.parts["batch"](x)).mT)
        return self.output(self.head(x))


PATHS = {"norm", "convolutions.0", "convolutions.1", "parts.batch", "parts.drop", "rnn", "head.0", "output"}


def tagger(p: float = 0.0, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    torch.manual_seed(0)
    return Tagger(p).to(dtype)


def ids() -> torch.Tensor:
    return torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(1))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": saved}


def classes(model):
    return {path: type(module) for path, module in model.named_modules()}


def train(model, optimizer, steps: int = 3):
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(ids()).flatten(0, 1), ids().flatten()).backward()
        optimizer.step()


def picture() -> torch.Tensor:
    return draw(2, 3, 6, 6, seed=1)
