"""Convolution and pooling as one layer: one patch, its window that wins, wrong arguments, compiled graphs."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cases import then_pooled
from pellucid import nn
from tensors import draw


@given(
    spatial=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 2),
    bias=st.booleans(),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    activation=st.sampled_from([F.relu, torch.tanh, None, F.silu]),
    size=st.integers(1, 2),
    pool_stride=st.none() | st.integers(1, 3),
)
def test_property_is_the_layers_of_torch(
    spatial, kernel, stride, padding, dilation, groups, bias, mode, activation, size, pool_stride
):
    window = (2, 4, kernel, stride, padding, dilation, groups, bias, mode)
    pooling = {"pool_size": size, "pool_stride": pool_stride}
    layer = getattr(nn, f"ConvPool{spatial}d")(*window, activation=activation, **pooling).double()
    reference = then_pooled(f"Conv{spatial}d")(
        *window, activation=nn.SiLU() if activation is F.silu else activation, **pooling
    )
    reference.double().load_state_dict(layer.state_dict())
    x = draw(2, 2, *(9, 7, 7)[:spatial])
    y = layer(x)
    torch.testing.assert_close(y, reference(x))
    torch.testing.assert_close(layer.formula(**layer.bind(x)), y)
    torch.testing.assert_close(layer(x[1]), y[1])


def test_weights_and_symbols():
    layer = nn.ConvPool2d(1, 6, 5, padding=2, activation=nn.PReLU())
    assert list(layer.state_dict()) == ["convolution.weight", "convolution.bias", "activation.weight"]
    found = layer.symbols(torch.zeros(4, 1, 28, 28))
    assert [s.name for s in found] == ["x", "weight", "bias", "features", "y"]
    assert [s.shape for s in found] == [(4, 1, 28, 28), (6, 1, 5, 5), (6,), (4, 6, 28, 28), (4, 6, 14, 14)]
    assert layer.receptive_field == (6, 6)


@pytest.mark.parametrize("batched", [True, False])
def test_one_patch_is_one_output(batched):
    layer = nn.ConvPool2d(
        2, 4, (3, 2), (1, 2), 1, groups=2, activation=F.silu, pool_size=(2, 3), pool_stride=(2, 1)
    ).double()
    x = draw(2, 2, 6, 7) if batched else draw(2, 6, 7)
    y, features = layer(x), layer.activation(layer.convolution(x))
    for place in itertools.product(*(range(n) for n in y.shape)):
        *sample, channel, row, column = place
        which = {"position": (row, column), "channel": channel, "sample": sample[0] if sample else 0}
        bound = layer.bind(x, **which)
        one = layer.formula(**bound)
        assert one.shape == ()
        torch.testing.assert_close(one, y[place])
        assert bound["window"](x).shape == (2, 3, 1, 3, 2)
        view = layer.window_at(x, **which)
        assert view.output == place
        won = layer.activation((view.entries * view.kernel).sum() + view.bias)
        torch.testing.assert_close(won, y[place])
        held = [features[(*sample, channel, *p)] for p in layer.features_at((row, column))]
        torch.testing.assert_close(torch.stack(held).max(), y[place])


def test_a_patch_that_is_not_there_is_named():
    layer, x = nn.ConvPool2d(2, 3, 3), torch.zeros(1, 2, 6, 6)
    for which, words in (
        ({"position": (2, 0)}, "position (2, 0)"),
        ({"position": (0, 0), "channel": 3}, "out channel 3"),
        ({"position": (0, 0), "sample": 1}, "sample 1"),
    ):
        for ask in (layer.bind, layer.window_at):
            with pytest.raises(IndexError) as caught:
                ask(x, **which)
            assert "nn.ConvPool2d: " in str(caught.value)
            assert words in str(caught.value)


def test_a_change_inside_a_patch_that_stays_below_the_greatest_changes_nothing():
    layer = nn.ConvPool1d(1, 1, 1, bias=False, activation=torch.tanh, pool_size=3)
    x = torch.tensor([[0.1, 0.9, 0.2, 0.5, 0.4, 0.3]])
    moved = torch.tensor([[0.9, 0.1, 0.2, 0.3, 0.4, 0.5]])
    with torch.no_grad():
        layer.convolution.weight.fill_(2.0)
        assert torch.equal(layer(x), layer(moved))
        torch.testing.assert_close(layer(x), torch.tanh(2 * torch.tensor([[0.9, 0.5]])))


def test_what_ran_is_what_ran_the_convolution():
    layer = nn.ConvPool2d(2, 3, 3)
    layer(torch.randn(1, 2, 8, 8, dtype=torch.float32))
    assert layer.backend == layer.convolution.backend
    layer.double()(draw(2, 8, 8))  # without a batch torch's operators run
    assert layer.backend == "torch"


def test_text():
    layer = nn.ConvPool2d(1, 6, 5, padding=2, activation=torch.tanh, pool_stride=1)
    assert layer.extra_repr() == (
        "1, 6, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), activation=tanh, pool_size=(2, 2), pool_stride=(1, 1)"
    )
    assert nn.ConvPool1d(1, 1, 3).extra_repr() == "1, 1, kernel_size=(3,), stride=(1,), pool_size=(2,)"


def test_compiles_as_one_graph():
    torch._dynamo.reset()
    layer = nn.ConvPool1d(2, 3, 3, padding="same", stride=2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (9, 14):
        x = draw(2, 2, length).float()
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.ConvPool2d(2, 3, 3, pool_size=0), ("nn.ConvPool2d", "pool_size is 0", "from 1 on")),
        (lambda: nn.ConvPool2d(2, 3, 3, pool_size=(2, 2, 2)), ("pool_size is (2, 2, 2)", "(height, width)")),
        (lambda: nn.ConvPool1d(2, 3, 3, pool_stride=-1), ("nn.ConvPool1d", "pool_stride is -1")),
        (lambda: nn.ConvPool2d(2, 3, 3, padding="causal"), ("1-D only",)),
    ],
)
def test_wrong_arguments_are_named(make, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words follow)
        make()
    for word in words:
        assert word in str(caught.value)
