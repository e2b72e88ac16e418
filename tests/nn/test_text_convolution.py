"""Text convolution: against plain loops, against torch.nn's convolutions, and sentences of every length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import pellucid
from pellucid import nn
from pellucid.nn.convolution.text_convolution import max_over_time
from tensors import draw


def by_hand(layer, sentence):
    """Loop over widths, filters and windows of one sentence, (time, embedding), and keep each filter's greatest."""
    found = []
    for width in layer.widths:
        words = sentence.numpy()
        if 0 < len(words) < width:
            words = np.concatenate([words, np.zeros((width - len(words), words.shape[1]))])
        weight, bias = getattr(layer, f"weight_{width}").detach().numpy(), getattr(layer, f"bias_{width}")
        for index, kernel in enumerate(weight):
            at = 0.0 if bias is None else bias[index].item()
            sums = [float((words[t : t + width] * kernel).sum()) + at for t in range(len(words) - width + 1)]
            features = [float(layer.activation(torch.tensor(s, dtype=torch.float64))) for s in sums]
            found.append(max(features, default=0.0))
    return torch.tensor(found, dtype=torch.float64)


@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=3, unique=True),
    bias=st.booleans(),
    activation=st.sampled_from([F.relu, torch.tanh, None]),
)
def test_property_is_the_definition(lengths, widths, bias, activation):
    layer = nn.TextConv(3, 2, widths, bias=bias, activation=activation).double()
    x = draw(len(lengths), 7, 3)
    expected = torch.stack([by_hand(layer, a[:n]) for a, n in zip(x, lengths, strict=True)])
    for sentence, length in zip(x, lengths, strict=True):
        sentence[length:] = float("nan")
    x.requires_grad_()
    y = layer(x, lengths)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(layer.formula(**layer.bind(x, lengths)), y)
    weights = draw(*y.shape, seed=1)
    (grad,) = torch.autograd.grad((y * weights).sum(), x)
    for index, length in enumerate(lengths):
        alone = x.detach()[index, :length].clone().requires_grad_()
        torch.testing.assert_close(layer(alone), expected[index])
        torch.testing.assert_close(layer(alone.detach().unsqueeze(0))[0], expected[index])
        ours = torch.autograd.grad((layer(alone) * weights[index]).sum(), alone)[0]
        torch.testing.assert_close(grad[index, :length], ours)
        assert (grad[index, length:] == 0).all()


def test_is_torch_nns_convolution_pooling_and_concatenation():
    layer, x = nn.TextConv(5, 4, (2, 3)), draw(3, 6, 5).float()
    parts = []
    for width in layer.widths:
        conv = torch.nn.Conv1d(5, 4, width)
        weight, bias = getattr(layer, f"weight_{width}"), getattr(layer, f"bias_{width}")
        conv.load_state_dict({"weight": weight.mT, "bias": bias})
        parts.append(conv(x.mT).relu().amax(-1))
    torch.testing.assert_close(layer(x), torch.cat(parts, -1))


def test_only_the_winning_window_has_a_gradient():
    x = torch.tensor([[[1.0], [2.0], [2.0], [0.0]]], requires_grad=True)
    weight = torch.ones(1, 1, 1, requires_grad=True)
    y = max_over_time(x, weight, None, None, torch.nn.Identity())
    y.sum().backward()
    assert (y.tolist(), weight.grad.tolist()) == ([[2.0]], [[[2.0]]])
    assert x.grad.flatten().tolist() == [0, 1, 0, 0]  # of equal ones the first


def test_a_short_sentence_is_continued_with_zeros():
    layer = nn.TextConv(2, 1, 3, bias=False, activation=None)
    layer.weight_3.data = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    words = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    assert layer(words).tolist() == [[1 + 2 + 3]]
    longer = F.pad(words, (0, 0, 0, 3), value=7.0)
    assert layer(longer, [2]).tolist() == [[6]]
    assert layer(longer, [0]).tolist() == [[0]]
    assert layer(words[:, :0]).tolist() == [[0]]
    assert layer(words[:0]).shape == (0, 1)
    assert layer(words[:0], []).shape == (0, 1)


def test_gradients_with_lengths():
    layer = nn.TextConv(3, 2, (1, 4), activation=torch.tanh).double()
    names = list(dict(layer.named_parameters()))

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x, [5, 2, 0]))

    inputs = [draw(3, 5, 3), *(p.detach() for p in layer.parameters())]
    inputs = [t.clone().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_an_activation_may_be_a_module():
    layer = nn.TextConv(3, 2, activation=torch.nn.PReLU(init=0.5))
    assert "activation.weight" in layer.state_dict()
    layer(draw(2, 6, 3).float()).sum().backward()
    assert layer.activation.weight.grad is not None


def test_compiles_as_one_graph():
    torch._dynamo.reset()
    layer = nn.TextConv(3, 2, (1, 4))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for time in (6, 9):
        x, lengths = draw(3, time, 3).float(), torch.tensor([time, 2, 0])
        torch.testing.assert_close(compiled(x), layer(x))
        torch.testing.assert_close(compiled(x, lengths), layer(x, lengths))


def test_vmap_and_gradients_per_sample():
    layer = nn.TextConv(3, 2, (1, 4))
    x, lengths = draw(3, 6, 3).float(), torch.tensor([6, 2, 0])
    torch.testing.assert_close(torch.vmap(layer)(x, lengths), layer(x, lengths))
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, x, length):
        return torch.func.functional_call(layer, parameters, (x, length)).square().sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, lengths)
    for index in range(3):
        expected = torch.func.grad(loss)(parameters, x[index], lengths[index])
        for name, value in expected.items():
            torch.testing.assert_close(each[name][index], value)


def test_low_precision_and_autocast():
    layer, x = nn.TextConv(8, 4), draw(2, 9, 8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=2e-2, atol=2e-2)  # 8 bits of mantissa
    assert nn.TextConv(8, 4, dtype=torch.bfloat16)(x.bfloat16(), [9, 2]).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 2), ("embedding_size is 0",)),
        ((3, 0), ("filters is 0",)),
        ((3, 2, ()), ("widths are ()", "at least one")),
        ((3, 2, (3, 0)), ("widths are (3, 0)",)),
        ((3, 2, (3, 3)), ("each once", "filters=")),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words follow)
        nn.TextConv(*arguments)
    for word in ("nn.TextConv", *words):
        assert word in str(caught.value)


def test_token_numbers_are_recognised():
    with pytest.raises(RuntimeError, match=r"nn\.TextConv: .*nn\.Embedding"):
        nn.TextConv(3, 2)(torch.zeros(2, 9, dtype=torch.int64))


def test_symbols_say_why():
    x, weight, bias, *_, y = nn.TextConv(5, 4, (2, 3)).symbols(torch.zeros(7, 6, 5))
    assert (x.axes, weight.axes) == (("batch", "time", "embedding"), ("filters", "window width", "embedding"))
    assert (weight.name, weight.shape, weight.facts["width"]) == ("weight_2", (4, 2, 5), 2)
    assert (bias.shape, y.shape, y.axes) == ((4,), (7, 8), ("batch", "features"))


@pytest.mark.parametrize(("name", "shape"), [("weight_2", (3, 2, 3)), ("bias_2", (2,)), ("weight_2", (4, 2, 5))])
def test_weights_of_another_shape_are_refused(name, shape):
    layer = nn.TextConv(4, 3, (2,))
    setattr(layer, name, torch.nn.Parameter(torch.zeros(shape)))
    with pellucid.backend("c"), pytest.raises(RuntimeError):
        layer(torch.zeros(2, 6, 4))
