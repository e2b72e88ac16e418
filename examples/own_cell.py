"""A recurrent cell of one's own: write the formula, get the layer, its gradient and its explanation."""

import torch

import pellucid


@pellucid.cell
def leaky(x, h, *, U, W, b=pellucid.zeros, tau: float = 10.0):
    """The state moves by 1/tau of the way to what an Elman network would make of it."""
    return h + (torch.tanh(x @ U + h @ W + b) - h) / tau


def main() -> None:
    torch.manual_seed(0)
    layer = leaky(256, 128, tau=5.0)
    print(layer)
    print({name: tuple(value.shape) for name, value in layer.named_parameters()})  # solved, not declared

    sequences = torch.randn(50, 32, 256)  # (time, batch, features)
    lengths = torch.randint(1, 51, (32,))
    output, state = layer(sequences, lengths=lengths)
    output.sum().backward()
    print(tuple(output.shape), tuple(state.shape), "by", layer.backend)

    pellucid.explain(leaky(4, 3), torch.randn(2, 1, 4))


if __name__ == "__main__":
    main()
