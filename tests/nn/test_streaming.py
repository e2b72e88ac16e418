"""Sequences that come piece by piece: what causal convolutions give is what the whole sequence gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid import nn
from tensors import draw

MODES = ["zeros", "replicate"]


def streamed(layer, x, sizes):
    """Give a layer the pieces of these sizes, and return what it gave for all of them, and the last state."""
    state, outputs = layer.initial_state(*x.shape[:-2]), []
    for piece in x.split(sizes, -1):
        y, state = layer(piece, state=state)
        outputs.append(y)
    return torch.cat(outputs, -1), state


chunks = st.lists(st.integers(0, 4), min_size=1, max_size=8).filter(any)
batches = st.sampled_from([(), (1,), (3,)])


@given(
    sizes=chunks,
    kernel=st.integers(1, 4),
    dilation=st.integers(1, 3),
    stride=st.integers(1, 5),
    groups=st.integers(1, 2),
    mode=st.sampled_from(MODES),
    batch=batches,
)
def test_property_pieces_of_a_convolution_are_the_whole(sizes, kernel, dilation, stride, groups, mode, batch):
    arguments = {"dilation": dilation, "stride": stride, "groups": groups, "padding_mode": mode}
    layer = nn.Conv1d(2, 4, kernel, **arguments, padding="causal").double()
    x = draw(*batch, 2, sum(sizes)).requires_grad_()
    y, _ = streamed(layer, x, sizes)
    expected = layer(x)
    torch.testing.assert_close(y, expected)
    weights = draw(*y.shape, seed=1)
    for grad, wanted in zip(
        torch.autograd.grad((y * weights).sum(), (x, *layer.parameters())),
        torch.autograd.grad((expected * weights).sum(), (x, *layer.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(grad, wanted)


@given(
    sizes=chunks,
    kernel=st.integers(1, 3),
    dilations=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    mode=st.sampled_from(MODES),
    batch=batches,
)
def test_property_pieces_of_a_tcn_are_the_whole(sizes, kernel, dilations, mode, batch):
    layer = nn.TCN(2, 3, kernel, dilations=dilations, padding_mode=mode).double().eval()
    x = draw(*batch, 2, sum(sizes))
    y, state = streamed(layer, x, sizes)
    torch.testing.assert_close(y, layer(x))
    assert len(state) == 2 * len(dilations)


@given(sizes=chunks, stride=st.integers(1, 3), multiplier=st.integers(1, 2))
def test_property_pieces_of_a_separable_convolution_are_the_whole(sizes, stride, multiplier):
    layer = nn.SeparableConv1d(2, 3, 3, stride, "causal", 2, multiplier).double()
    x = draw(2, 2, sum(sizes))
    y, _ = streamed(layer, x, sizes)
    torch.testing.assert_close(y, layer(x))


@pytest.mark.parametrize("stride", [1, 3])
def test_a_state_stays_small_and_owns_its_memory(stride):
    layer = nn.Conv1d(2, 3, 4, stride=stride, dilation=2, padding="causal")
    x = torch.randn(5, 2, 1000)
    for length in range(990, 1000):
        _, state = layer(x[..., :length], state=layer.initial_state(5))
        assert 6 <= state.shape[-1] < 6 + stride
        assert state.untyped_storage().nbytes() == state.numel() * 4


def test_the_gradient_ends_where_a_state_is_detached():
    layer = nn.Conv1d(1, 1, 2, padding="causal", bias=False)
    first, second = torch.ones(1, 1, 1, requires_grad=True), torch.ones(1, 1, 1)
    _, state = layer(first, state=layer.initial_state(1))
    assert state.requires_grad
    y, _ = layer(second, state=state.detach())
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(y.sum(), first)
    y, _ = layer(second, state=state)
    assert torch.autograd.grad(y.sum(), first)[0].item() == layer.weight[0, 0, 0].item()


def test_without_gradients_and_in_other_types():
    layer = nn.TCN(2, [3, 3], dtype=torch.bfloat16).eval()
    with torch.no_grad():
        y, state = layer(draw(2, 2, 5).bfloat16(), state=layer.initial_state(2))
    assert y.dtype == torch.bfloat16
    assert {s.dtype for s in state} == {torch.bfloat16}
    assert not any(s.requires_grad for s in state)
    meta = nn.TCN(2, [3], device="meta")
    y, state = meta(torch.empty(2, 2, 5, device="meta"), state=meta.initial_state(2))
    assert (y.shape, y.device.type, state[0].device.type) == ((2, 3, 5), "meta", "meta")


def test_pieces_under_autocast():
    layer = nn.TCN(2, [3, 4]).eval()
    x = draw(2, 2, 9).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = streamed(layer, x, [4, 0, 5])
        expected = layer(x)
    assert (y.dtype, state[1].dtype) == (torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close(y, expected)


def test_the_gradient_goes_through_a_tcn_s_states():
    layer = nn.TCN(2, [3], dropout=0.0).double()
    x = draw(2, 2, 9).requires_grad_()
    y, _ = streamed(layer, x, [4, 1, 4])
    wanted = torch.autograd.grad(layer(x).square().sum(), (x, *layer.parameters()))
    for grad, expected in zip(torch.autograd.grad(y.square().sum(), (x, *layer.parameters())), wanted, strict=True):
        torch.testing.assert_close(grad, expected)


def test_a_parametrized_convolution_streams():
    layer = nn.parametrizations.weight_norm(nn.Conv1d(2, 3, 3, padding="causal").double())
    x = draw(2, 2, 9)
    torch.testing.assert_close(streamed(layer, x, [4, 5])[0], layer(x))


def test_pieces_compile_as_one_graph():
    torch._dynamo.reset()
    layer = nn.TCN(2, [3, 4]).eval()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = draw(2, 2, 9).float()
    state, outputs = layer.initial_state(2), []
    for piece in x.split([4, 4, 1], -1):
        y, state = compiled(piece, state=state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, -1), layer(x))


CAUSAL = nn.Conv1d(2, 3, 3, padding="causal")
STRIDED = nn.Conv1d(2, 3, 3, padding="causal", stride=2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: nn.Conv1d(2, 3, 3).initial_state(1), ValueError, ("nn.Conv1d", "padding=(0,)", "'causal'")),
        (
            lambda: nn.Conv1d(2, 3, 3, padding="same")(torch.zeros(1, 2, 4), state=torch.zeros(1, 2, 2)),
            ValueError,
            ("padding='same'", "next piece"),
        ),
        (lambda: CAUSAL(torch.zeros(1, 2, 4), [4], torch.zeros(1, 2, 2)), ValueError, ("nn.Conv1d", "lengths")),
        (
            lambda: CAUSAL(torch.zeros(1, 2, 4), state=torch.zeros(1, 2, 1)),
            RuntimeError,
            ("nn.Conv1d: the state is (batch 1, in channels 2, entries 1)", "entries 2)", "initial_state(1)"),
        ),
        (
            lambda: STRIDED(torch.zeros(2, 4), state=torch.zeros(2, 4)),
            RuntimeError,
            ("(in channels 2, entries 4)", "entries 2 to 3)", "initial_state(None)"),
        ),
        (
            lambda: CAUSAL(torch.zeros(3, 2, 4), state=torch.zeros(1, 2, 2)),
            RuntimeError,
            ("(batch 1, in channels 2, entries 2)", "(batch 3, in channels 2, entries 2)"),
        ),
        (
            lambda: CAUSAL(torch.zeros(1, 2, 4), state=torch.zeros(1, 2, 2, dtype=torch.float64)),
            RuntimeError,
            ("torch.float64", "torch.float32", "state.to(x)"),
        ),
        (
            lambda: CAUSAL(torch.zeros(1, 3, 4), state=CAUSAL.initial_state(1)),
            RuntimeError,
            ("channels 3", "in_channels is 2"),
        ),
        (
            lambda: nn.SeparableConv1d(2, 3, 3, 1, "causal")(torch.zeros(1, 3, 4), state=torch.zeros(1, 3, 2)),
            RuntimeError,
            ("nn.SeparableConv1d", "channels 3", "in_channels is 2"),
        ),
        (
            lambda: nn.TCN(2, [3])(torch.zeros(1, 2, 4), state=torch.zeros(1, 2, 2)),
            RuntimeError,
            ("nn.TCN: the state is a Tensor", "there are 2", "layer.initial_state()"),
        ),
        (
            lambda: nn.TCN(2, [3])(torch.zeros(1, 2, 4), [4], nn.TCN(2, [3]).initial_state(1)),
            ValueError,
            ("nn.TCN", "lengths"),
        ),
    ],
)
def test_wrong_states_are_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
