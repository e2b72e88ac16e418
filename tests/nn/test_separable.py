"""Depthwise separable convolution: against the two convolutions of torch.nn that it is made of."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid import nn
from tensors import draw

MODES = ["zeros", "reflect", "replicate", "circular"]


def torchs(layer, arguments):
    """Build both convolutions of torch.nn, with the layer's weights."""
    kind = getattr(torch.nn, f"Conv{layer.spatial}d")
    inner = layer.in_channels * layer.depth_multiplier
    depthwise = kind(layer.in_channels, inner, **arguments, groups=layer.in_channels, bias=False)
    pointwise = kind(inner, layer.out_channels, 1, bias=layer.bias is not None)
    both = torch.nn.Sequential(depthwise, pointwise).double()
    both.load_state_dict(dict(zip(both.state_dict(), layer.state_dict().values(), strict=True)))
    return both


@given(
    spatial=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 1),
    multiplier=st.integers(1, 3),
    bias=st.booleans(),
    mode=st.sampled_from(MODES),
)
def test_property_is_the_two_convolutions(spatial, kernel, stride, dilation, padding, multiplier, bias, mode):
    arguments = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    arguments["padding_mode"] = mode
    layer = getattr(nn, f"SeparableConv{spatial}d")(2, 3, **arguments, depth_multiplier=multiplier, bias=bias).double()
    x = draw(2, 2, *(5, 6, 5)[:spatial])
    y = layer(x)
    torch.testing.assert_close(y, torchs(layer, arguments)(x))
    torch.testing.assert_close(layer.formula(**layer.bind(x)), y)
    torch.testing.assert_close(layer(x[1]), y[1])


def test_weights_and_their_number():
    layer = nn.SeparableConv2d(8, 16, 3, depth_multiplier=2)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    expected = {"depthwise.weight": (16, 1, 3, 3), "pointwise.weight": (16, 16, 1, 1), "pointwise.bias": (16,)}
    assert shapes == expected
    found = layer.symbols(torch.zeros(4, 8, 6, 5))
    assert [s.name for s in found] == ["x", "depthwise", "pointwise", "bias", "y"]
    assert [s.shape for s in found[1:4]] == list(expected.values())
    assert found[-1].shape == tuple(layer(torch.zeros(4, 8, 6, 5)).shape)
    assert (layer.reach, layer.receptive_field) == ((3, 3), (3, 3))


def test_one_window_is_one_output():
    layer = nn.SeparableConv2d(2, 3, (3, 2), stride=(2, 1), padding=1, depth_multiplier=2).double()
    x = draw(2, 2, 5, 4)
    y = layer(x)
    for place in itertools.product(*(range(n) for n in y.shape)):
        sample, channel, *position = place
        one = layer.bind(x, position=position, channel=channel, sample=sample)
        torch.testing.assert_close(layer.formula(**one), y[place])
    view = layer.window_at(x, (0, 0))
    assert view.entries.shape == (4, 3, 2)
    assert torch.equal(view.entries[0], view.entries[1])  # two kernels read the first channel
    assert view.output == (0, 0, 0, 0)
    for which, words in (({"channel": 3}, "out channel 3"), ({"sample": 2}, "sample 2")):
        with pytest.raises(IndexError, match=rf"nn\.SeparableConv2d: .*{words}"):
            layer.bind(x, position=(0, 0), **which)


@given(
    lengths=st.lists(st.integers(0, 8), min_size=1, max_size=3),
    padding=st.sampled_from([0, 1, "same", "causal"]),
    stride=st.integers(1, 2),
)
def test_property_a_sequence_of_a_batch_as_if_alone(lengths, padding, stride):
    layer = nn.SeparableConv1d(2, 3, 3, stride, padding, depth_multiplier=2).double()
    x = draw(len(lengths), 2, 8)
    for sequence, length in zip(x, lengths, strict=True):
        sequence[:, length:] = float("nan")
    y, counts = layer(x, lengths), layer.output_lengths(lengths).tolist()
    torch.testing.assert_close(layer.formula(**layer.bind(x, lengths)), y)
    for index, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        assert (y[index, :, count:] == 0).all()
        if count:
            torch.testing.assert_close(y[index, :, :count], layer(x[index, :, :length]))


def test_compiles_as_one_graph():
    torch._dynamo.reset()
    layer = nn.SeparableConv1d(2, 3, 3, padding="same", stride=2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (6, 9):
        x = draw(2, 2, length).float()
        torch.testing.assert_close(compiled(x), layer(x))
        torch.testing.assert_close(compiled(x, torch.tensor([length, 2])), layer(x, [length, 2]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.SeparableConv2d(2, 3, 3, depth_multiplier=0), ("nn.SeparableConv2d", "depth_multiplier is 0")),
        (lambda: nn.SeparableConv2d(2, 3, 3, padding="causal"), ("1-D only",)),
        (lambda: nn.SeparableConv1d(2, 3, 3).initial_state(1), ("padding=(0,)", "'causal'")),
    ],
)
def test_wrong_arguments_are_named(make, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words follow)
        make()
    for word in words:
        assert word in str(caught.value)
