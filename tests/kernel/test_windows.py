"""Kernels that convolve: plain, transposed and depthwise convolution against torch in float64."""

from __future__ import annotations

import copy
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

import pellucid
from pellucid import nn
from windowing import (
    CONVOLUTIONS,
    TRANSPOSED,
    by_kernel,
    by_torch,
    check,
    draw_input,
    few,
    of_every_axis,
    twice_differentiable,
)


@st.composite
def convolutions(draw):
    """Any convolution and an input that it reads."""
    axes, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3]))
    each, out = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 6, 9, 16]))
    tuples = of_every_axis(draw, axes)
    kernel, stride, dilation = tuples(st.integers(1, 4)), tuples(st.integers(1, 3)), tuples(st.integers(1, 3))
    paddings = ["numbers", "same", *(["causal"] if axes == 1 else [])]
    padding = draw(st.sampled_from(paddings))
    if padding == "numbers":
        padding = tuples(st.integers(0, 3))
    size = tuples(st.integers(1, 40 if axes < 3 else 9))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if not isinstance(padding, str):
        size = tuple(max(n, r - 2 * p) for n, r, p in zip(size, reach, padding, strict=True))
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 99)))
        bias = draw(st.booleans())
        layer = CONVOLUTIONS[axes](groups * each, groups * out, kernel, stride, padding, dilation, groups, bias)
    batch = draw(st.sampled_from([1, 2, 5, 8, 17, 35]))  # from 8 or 16 on, samples lie beside each other in short rows
    layout = draw(st.sampled_from(["contiguous", "gaps", "swapped", *(["turned"] if axes == 1 else [])]))
    return layer, draw_input(draw(st.integers(0, 99)), batch, groups * each, *size, layout=layout)


@given(convolutions(), st.sampled_from([torch.float64, torch.float32]))
@few
def test_property_every_convolution(case, dtype):
    check(*case, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv1d(63, 63, 4, groups=63), (3, 63, 65)),
        (lambda: nn.Conv1d(5, 7, 3, padding="causal", dilation=8), (2, 5, 130)),
        (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (2, 6, 63, 31)),
        (lambda: nn.Conv2d(6, 12, 3, 2, padding=1, groups=6), (2, 6, 33, 63)),
        (lambda: nn.Conv2d(1, 6, 5), (7, 1, 28, 28)),
        (lambda: nn.Conv2d(6, 16, 5), (7, 6, 14, 14)),
        (lambda: nn.Conv2d(6, 16, 5), (18, 6, 14, 14)),
        (lambda: nn.Conv2d(4, 6, 3, 2, padding=1, groups=2), (33, 4, 9, 15)),
        (lambda: nn.Conv3d(2, 3, 2, 3, padding="same"), (2, 2, 7, 8, 9)),
        (lambda: nn.ConvTranspose1d(5, 7, 4, 3, padding="same"), (2, 5, 31)),
        (lambda: nn.ConvTranspose1d(5, 7, 4, 2, padding_mode="reflect", padding=3), (17, 5, 31)),
        (lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2), (3, 6, 7, 9)),
    ],
)
def test_types_in_memory(layer, shape, dtype):
    torch.manual_seed(1)
    check(layer(), draw_input(2, *shape), dtype)


@st.composite
def transposed(draw):
    """Any transposed convolution that the kernel takes, and an input that it reads."""
    axes, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3]))
    each, out = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    tuples = of_every_axis(draw, axes)
    kernel, stride, dilation = tuples(st.integers(1, 5)), tuples(st.integers(1, 4)), tuples(st.integers(1, 3))
    padding, more = tuples(st.integers(0, 3)), tuple(draw(st.integers(0, s - 1)) for s in stride)
    size = tuples(st.integers(1, 30 if axes < 2 else 7))
    ends = zip(size, kernel, stride, dilation, padding, more, strict=True)
    assume(all((n - 1) * s + d * (k - 1) + 1 + m > 2 * p for n, k, s, d, p, m in ends))
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 99)))
        options = (kernel, stride, padding, more, groups, draw(st.booleans()), dilation)
        layer = TRANSPOSED[axes](groups * each, groups * out, *options)
    layout = draw(st.sampled_from(["contiguous", "gaps", "swapped", *(["turned"] if axes == 1 else [])]))
    batch = draw(st.sampled_from([1, 2, 5, 17]))
    return layer, draw_input(draw(st.integers(0, 99)), batch, groups * each, *size, layout=layout)


@given(transposed(), st.sampled_from([torch.float64, torch.float32]))
@few
def test_property_every_transposed_convolution(case, dtype):
    check(*case, dtype)
    layer, x = case
    x = x.to(dtype)
    assert by_kernel(layer, x).stride() == by_torch(layer, x).stride()


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.ConvTranspose1d(4, 3, 3, 1, output_padding=2, dilation=3), torch.randn(2, 4, 50)),  # windows end before
        (nn.ConvTranspose2d(4, 3, 3, 2), torch.randn(2, 4, 5, 7).contiguous(memory_format=torch.channels_last)),
        (nn.ConvTranspose1d(4, 3, 3, 2), torch.randn(4, 50)),
        (nn.ConvTranspose1d(4, 3, 3, 2), torch.randn(0, 4, 50)),
        (nn.ConvTranspose1d(4, 4, 3, 2).bfloat16(), torch.randn(2, 4, 50)),
    ],
)
def test_what_torch_does_of_transposed_convolutions(layer, x):
    with pellucid.backend("c"), torch.autocast("cpu", enabled=layer.weight.dtype == torch.bfloat16):
        y = layer(x)
        expected = getattr(torch.nn, type(layer).__name__).forward(layer, x)
    assert layer.backend == "torch"
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()


@pytest.mark.parametrize("name", [f"{kind}Pool{n}d" for kind in ("Max", "Avg") for n in (1, 2, 3)])
def test_pooling_under_autocast_is_of_torchs_type(name):
    x = torch.randn(2, 2, *(6,) * int(name[-2]), dtype=torch.bfloat16)
    with pellucid.backend("c"), torch.autocast("cpu"):
        torch.testing.assert_close(getattr(nn, name)(2)(x), getattr(torch.nn, name)(2)(x))


@pytest.mark.parametrize(
    "make",
    [
        *(
            partial(nn.Conv1d, 3, 3, 2, stride, padding, groups=groups)
            for stride, padding in ((1, "causal"), (2, "same"), (1, 2))
            for groups in (1, 3)
        ),
        partial(nn.ConvTranspose1d, 2, 3, 4, 2, 1, output_padding=1),
    ],
)
def test_gradients_of_gradients(make):
    torch.manual_seed(0)
    layer = make().double()
    names = list(dict(layer.named_parameters()))

    def function(x, *values):
        return by_kernel(Functional(layer), x, dict(zip(names, values, strict=True)))

    twice_differentiable(function, draw_input(1, 2, layer.in_channels, 5).requires_grad_(), *layer.parameters())


class Functional:
    """A layer as a function of its parameters, with its backend."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x, parameters):
        return torch.func.functional_call(self.layer, parameters, (x,))

    @property
    def backend(self):
        return self.layer.backend


def test_only_what_is_needed_is_computed():
    for needed in ((True, False), (False, True)):
        layer, x = nn.Conv2d(2, 2, 3, groups=2), torch.randn(2, 2, 9, 9, requires_grad=needed[0])
        layer.requires_grad_(needed[1])
        y = by_kernel(layer, x)
        y.sum().backward()
        assert (x.grad is not None, layer.weight.grad is not None) == needed
    with torch.no_grad():
        assert not by_kernel(layer, x).requires_grad


def test_frozen_bias_and_frozen_weight():
    layer, x = nn.Conv1d(4, 4, 3, groups=4), torch.randn(2, 4, 9)
    layer.bias.requires_grad_(False)
    by_kernel(layer, x).sum().backward()
    assert layer.bias.grad is None
    assert layer.weight.grad is not None
    layer.weight.grad = None
    layer.requires_grad_(False).bias.requires_grad_(True)
    by_kernel(layer, x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), 14.0))


def test_lengths_and_pieces_of_a_sequence():
    torch.manual_seed(0)
    layer, x = nn.Conv1d(4, 4, 5, padding="causal", groups=4).double(), draw_input(3, 3, 4, 40)
    whole = by_torch(layer, x)
    torch.testing.assert_close(by_kernel(layer, x, lengths=[40, 40, 40]), whole)
    ragged = by_kernel(layer, x, lengths=[40, 7, 0])
    torch.testing.assert_close(ragged[1, :, :7], whole[1, :, :7])
    assert not ragged[1, :, 7:].any()
    assert not ragged[2].any()
    state, pieces = layer.initial_state(3), []
    for piece in x.split([1, 16, 3, 20], -1):
        y, state = by_kernel(layer, piece, state=state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, -1), whole)


def test_layers_made_of_convolutions_say_what_ran_them():
    separable, tcn = nn.SeparableConv1d(4, 3, 3), nn.TCN(4, [3, 3]).eval()
    for backend, name in (("c", "c"), ("stepwise", "torch")):
        with pellucid.backend(backend):
            separable(torch.randn(2, 4, 9)), tcn(torch.randn(2, 4, 9))
        assert (separable.backend, tcn.backend) == (name, name)


def test_what_torch_does():
    layer = nn.Conv2d(8, 8, 3, groups=8)
    x = torch.randn(4, 8, 32, 32)
    with pellucid.backend("c"):
        for given in (x.transpose(2, 3), x[:0], x[0]):
            torch.testing.assert_close(layer(given), F.conv2d(given, layer.weight, layer.bias, groups=8))
            assert layer.backend == "torch"
        with torch.autocast("cpu"):
            assert layer(x).dtype == torch.bfloat16
        assert torch.func.vmap(layer)(x.unsqueeze(0)).shape == (1, 4, 8, 30, 30)
        assert layer.backend == "torch"
        with pytest.raises(RuntimeError, match="in_channels is 8"):
            layer(torch.randn(4, 7, 32, 32))
        with pytest.raises(RuntimeError, match="float64"):
            layer(x.double())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (4, 8, 19, 17)),
        (nn.Conv2d(6, 4, (3, 2), stride=2, dilation=(1, 2)), (9, 6, 14, 13)),
        (nn.Conv3d(4, 6, 2, groups=2, bias=False), (3, 4, 6, 7, 5)),
    ],
    ids=str,
)
def test_channels_that_lie_side_by_side(layer, shape):
    """The result and the gradient of the input lie as the input does; the numbers are torch's."""
    x = torch.randn(shape, dtype=torch.float64)
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    x = x.contiguous(memory_format=last).requires_grad_()
    layer = copy.deepcopy(layer).double()
    y = by_kernel(layer, x)
    assert y.is_contiguous(memory_format=last)
    weights = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *layer.parameters()], weights)
    assert found[0].is_contiguous(memory_format=last)
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)
    function = F.conv2d if x.dim() == 4 else F.conv3d
    expected = function(x, layer.weight, layer.bias, *options)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, [x, *layer.parameters()], weights))
    small = x[:1, :, :4, :4].detach().contiguous(memory_format=last).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: by_kernel(layer, x), small)


@st.composite
def depthwise(draw):
    """Any depthwise convolution, and a picture in channels-last format that it reads."""

    def pair(numbers):
        return draw(numbers), draw(numbers)

    kernel, stride = pair(st.integers(1, 9)), pair(st.integers(1, 4))
    dilation, padding = pair(st.sampled_from([1, 1, 2, 3])), pair(st.integers(0, 5))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [max(n, r - 2 * p) for n, r, p in zip(pair(st.integers(1, 24)), reach, padding, strict=True)]
    channels = draw(st.sampled_from([2, 7, 16, 17, 40, 63, 70]))
    layer = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, channels, draw(st.booleans()))
    x = draw_input(draw(st.integers(0, 99)), draw(st.sampled_from([1, 2, 5])), channels, *size)
    return layer, x.contiguous(memory_format=torch.channels_last)


@given(depthwise(), st.sampled_from([torch.float64, torch.float32]))
@few
def test_property_depthwise_with_channels_last(case, dtype):
    check(*case, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 2), (7, 1)])
def test_depthwise_types_in_memory(kernel, stride, dtype):
    x = draw_input(3, 2, 37, 15, 19).contiguous(memory_format=torch.channels_last)
    check(nn.Conv2d(37, 37, kernel, stride, kernel // 2, groups=37), x, dtype)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 16, 5), (9, 6, 33, 34)),
        (nn.Conv2d(6, 16, 5), (70, 6, 14, 14)),
        (nn.Conv2d(80, 80, 3, padding=1, groups=80), (3, 80, 33, 34)),
    ],
)
def test_results_do_not_depend_on_threads(layer, shape):
    x = torch.randn(*shape).contiguous(memory_format=torch.channels_last if layer.groups > 1 else torch.preserve_format)
    x.requires_grad_()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            y = by_kernel(layer, x)
            results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
        finally:
            torch.set_num_threads(1)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_calls_from_several_threads():
    layer, inputs = nn.Conv1d(8, 8, 3, groups=8), [torch.randn(4, 8, 500 + i) for i in range(4)]
    expected, found = [by_torch(layer, x) for x in inputs], {}

    def work(i):
        for _ in range(20):
            with pellucid.backend("c"):
                found[i] = layer(inputs[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i, y in enumerate(expected):
        torch.testing.assert_close(found[i], y)
