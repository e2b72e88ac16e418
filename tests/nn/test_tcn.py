"""The temporal convolutional network: against its definition in torch.nn, and sequences of every length."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pellucid import nn
from tensors import draw


class Reference(torch.nn.Module):
    """The paper's network out of torch.nn: convolutions padded on both sides and cut off on the right."""

    def __init__(self, inner, hidden, kernel, dilations):
        super().__init__()
        self.kernel, self.dilations = kernel, dilations
        self.convolutions, self.shortcuts = torch.nn.ModuleList(), torch.nn.ModuleList()
        norm = torch.nn.utils.parametrizations.weight_norm
        for outer, dilation in zip(hidden, dilations, strict=True):
            margin = (kernel - 1) * dilation
            for size in (inner, outer):
                conv = torch.nn.Conv1d(size, outer, kernel, padding=margin, dilation=dilation)
                self.convolutions.append(norm(conv))
            self.shortcuts.append(torch.nn.Identity() if inner == outer else torch.nn.Conv1d(inner, outer, 1))
            inner = outer

    def forward(self, x):
        length = x.shape[-1]
        for index, shortcut in enumerate(self.shortcuts):
            z = x
            for conv in self.convolutions[2 * index : 2 * index + 2]:
                z = conv(z)[..., :length].relu()
            x = (z + shortcut(x)).relu()
        return x


@pytest.mark.parametrize(("hidden", "kernel", "dilations"), [([4, 4, 5], 3, None), ([3], 2, [3]), ([2, 3], 1, [1, 1])])
def test_equals_the_paper_s_network(hidden, kernel, dilations):
    layer = nn.TCN(3, hidden, kernel, dilations=dilations).double().eval()
    reference = Reference(3, hidden, kernel, layer.dilations).double()
    assert len(list(reference.parameters())) == len(list(layer.parameters()))
    for theirs, ours in zip(reference.convolutions, layer._causal(), strict=True):
        theirs.load_state_dict(ours.state_dict())
    for theirs, block in zip(reference.shortcuts, layer.blocks, strict=True):
        theirs.load_state_dict(block["shortcut"].state_dict())
    x = draw(2, 3, 9)
    torch.testing.assert_close(layer(x), reference(x))
    torch.testing.assert_close(layer(x[0]), reference(x)[0])


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3), mode=st.sampled_from(["zeros", "replicate"]))
def test_property_a_sequence_of_a_batch_as_if_alone(lengths, mode):
    layer = nn.TCN(2, [3, 4], 3, activation=torch.tanh, padding_mode=mode).double().eval()
    x = draw(len(lengths), 2, 9)
    for sequence, length in zip(x, lengths, strict=True):
        sequence[:, length:] = float("nan")
    x.requires_grad_()
    y = layer(x, lengths)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    for index, length in enumerate(lengths):
        assert (y[index, :, length:] == 0).all()
        assert (grad[index, :, length:] == 0).all()
        if length:
            alone = x.detach()[index, :, :length].clone().requires_grad_()
            expected = layer(alone)
            torch.testing.assert_close(y[index, :, :length], expected)
            own = torch.autograd.grad(expected.square().sum(), alone)[0]
            torch.testing.assert_close(grad[index, :, :length], own)


def test_never_reads_ahead_and_as_far_back_as_it_says():
    layer = nn.TCN(1, 2, 3, dilations=(1, 2), activation=F.softplus).double().eval()
    (reach,) = layer.receptive_field
    assert reach == 1 + 2 * 2 * 1 + 2 * 2 * 2
    x = draw(1, 1, reach + 4).requires_grad_()
    (grad,) = torch.autograd.grad(layer(x)[..., -2].sum(), x)
    read = grad.flatten().nonzero().flatten().tolist()
    assert (read[0], read[-1]) == (reach + 2 - reach + 1, reach + 2)


def test_dropout_takes_a_channel_for_the_whole_sequence():
    torch.manual_seed(0)
    layer = nn.TCN(2, [50], 1, dropout=0.5)
    with torch.no_grad():
        for name in ("first", "second"):
            layer.blocks[0][name].bias.fill_(1e3)  # nothing is 0 but what is dropped
        z = layer.blocks[0]["drop"](F.relu(layer.blocks[0]["first"](torch.randn(3, 2, 7))))
    dropped = z == 0
    assert torch.equal(dropped.all(-1), dropped.any(-1))
    assert 0.3 < dropped[..., 0].float().mean() < 0.7
    assert not torch.equal(layer(torch.ones(1, 2, 4)), layer(torch.ones(1, 2, 4)))
    layer.eval()
    assert torch.equal(layer(torch.ones(1, 2, 4)), layer(torch.ones(1, 2, 4)))


@pytest.mark.parametrize("normalization", ["weight", None])
def test_trains(normalization):
    torch.manual_seed(0)
    layer = nn.TCN(1, [8, 8], dropout=0.0, normalization=normalization)
    x = torch.randn(16, 1, 12)
    target = x.roll(3, -1)[..., 3:]
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    losses = []
    for _ in range(150):
        loss = (layer(x)[..., 3:].mean(1, keepdim=True) - target.relu()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_compiles_as_one_graph():
    torch._dynamo.reset()
    layer = nn.TCN(2, [3, 4]).eval()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (6, 9):
        x = draw(2, 2, length).float()
        torch.testing.assert_close(compiled(x), layer(x))
        torch.testing.assert_close(compiled(x, torch.tensor([length, 2])), layer(x, [length, 2]))


@pytest.mark.parametrize(
    ("arguments", "kwargs", "words"),
    [
        ((2, 3), {}, ("hidden_channels=3", "[3] * 4", "dilations=")),
        ((2, [3, 3]), {"dilations": (1,)}, ("2 blocks", "(1,)", "one dilation for each block")),
        ((2, []), {}, ("at least one block",)),
        ((2, [0]), {}, ("hidden_channels=(0,)", "at least 1")),
        ((2, [3]), {"normalization": "batch"}, ("'batch'", "'weight' or None")),
        ((2, [3]), {"padding_mode": "circular"}, ("'circular'", "replicate")),
    ],
)
def test_wrong_arguments_are_named(arguments, kwargs, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words follow)
        nn.TCN(*arguments, **kwargs)
    for word in words:
        assert word in str(caught.value)


def test_symbols_are_all_the_weights():
    for normalization in ("weight", None):
        layer = nn.TCN(2, [3, 3], normalization=normalization)
        found = layer.symbols(torch.zeros(4, 2, 7))
        weights = [s for s in found if s.trainable]
        assert sorted(s.shape for s in weights) == sorted(tuple(p.shape) for p in layer.parameters())
        assert (found[0].name, found[-1].shape) == ("x", (4, 3, 7))
