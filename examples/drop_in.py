"""Change one import: the layers of torch.nn, with their arguments, their state_dict and their results."""

import torch

from pellucid import nn  # instead of `from torch import nn`


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 64)
        self.recurrent = nn.LSTM(64, 128, num_layers=2, batch_first=True, bidirectional=True, dropout=0.2)
        self.norm = nn.LayerNorm(256)
        self.tags = nn.Linear(256, 12)

    def forward(self, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        states, _ = self.recurrent(self.embedding(words), lengths=lengths)  # no packing
        return self.tags(self.norm(states))


def main() -> None:
    torch.manual_seed(0)
    model = Tagger()
    words, lengths = torch.randint(1000, (4, 20)), torch.tensor([20, 7, 13, 1])
    print(tuple(model(words, lengths).shape))

    theirs = torch.nn.LSTM(64, 128, num_layers=2, batch_first=True, bidirectional=True)
    theirs.load_state_dict(model.recurrent.state_dict())  # weights go both ways
    model.eval()
    whole = torch.full((4,), 20)
    embedded = model.embedding(words)
    difference = model.recurrent(embedded, lengths=whole)[0] - theirs(embedded)[0]
    print(f"largest difference from torch.nn: {difference.abs().max():.1e}")


if __name__ == "__main__":
    main()
