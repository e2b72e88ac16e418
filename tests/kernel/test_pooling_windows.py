"""Kernels that pool: over windows, behind a convolution, the best match in a sentence, and over real steps."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

import pellucid
from pellucid import nn
from windowing import (
    AVERAGES,
    MAXIMA,
    STAGES,
    by_kernel,
    by_torch,
    check,
    draw_input,
    few,
    of_every_axis,
    twice_differentiable,
)

# -- pooling ----------------------------------------------------------------------------------------------------------


@st.composite
def poolings(draw):
    """Any pooling and an input that it reads."""
    axes, kind = draw(st.integers(1, 3)), draw(st.sampled_from(["max", "average"]))
    tuples = of_every_axis(draw, axes)
    kernel, stride = tuples(st.integers(1, 4)), tuples(st.integers(1, 4))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size, ceil = tuples(st.integers(4, 40 if axes < 3 else 11)), draw(st.booleans())
    if kind == "max":
        dilation = tuples(st.integers(1, 2))
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        assume(all(n >= r for n, r in zip(size, reach, strict=True)))
        assume(all(d * (k // 2) <= n for n, d, k in zip(size, dilation, kernel, strict=True)))
        layer = MAXIMA[axes](kernel, stride, padding, dilation, ceil_mode=ceil)
    else:
        layer = AVERAGES[axes](kernel, stride, padding, ceil_mode=ceil)
    layout = draw(st.sampled_from(["contiguous", "gaps", "swapped"]))
    x = draw_input(draw(st.integers(0, 99)), 2, 3, *size, layout=layout)
    return layer, x.mul(2).round() if draw(st.booleans()) else x  # many equal entries


@given(poolings(), st.sampled_from([torch.float64, torch.float32]))
@few
def test_property_every_pooling(case, dtype):
    layer, x = case
    with pellucid.backend("c"):
        layer(x)
    if layer.backend == "torch":  # a mean over windows that count different numbers of entries
        assert isinstance(layer, tuple(AVERAGES.values()))
        assert layer.ceil_mode
        return
    check(layer, x, dtype)


def test_the_first_of_equal_entries_and_nan_as_in_torch():
    x = torch.tensor([[[1.0, 2.0, 2.0, 0.0, float("nan"), 3.0, float("nan"), 9.0, -1.0, float("-inf")]]])
    for kernel, stride in ((2, 2), (3, 1), (4, 3)):
        layer, results = nn.MaxPool1d(kernel, stride), []
        for run in (by_torch, by_kernel):
            given = x.clone().requires_grad_()
            y = run(layer, given)
            y.backward(torch.arange(1.0, 1 + y.numel()).view_as(y))
            results.append((y, given.grad))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AvgPool2d((3, 1))])
def test_gradients_of_gradients_of_pooling(layer):
    x = torch.randperm(72, generator=torch.Generator().manual_seed(0)).view(1, 2, 6, 6).double().requires_grad_()
    twice_differentiable(partial(by_kernel, layer), x)


def test_divisors():
    x = draw_input(0, 2, 3, 9, 9)
    check(nn.AvgPool2d(3, divisor_override=2), x)
    check(nn.AvgPool2d(3, padding=1), x)
    for layer in (nn.AvgPool2d(3, padding=1, count_include_pad=False), nn.AvgPool2d(2, ceil_mode=True)):
        with pellucid.backend("c"):
            torch.testing.assert_close(layer(x), by_torch(layer, x))
            layer(x)
        assert layer.backend == "torch"


def test_indices_are_torchs():
    layer, x = nn.MaxPool2d(2, return_indices=True), torch.randn(2, 3, 8, 8)
    with pellucid.backend("c"):
        for ours, theirs in zip(layer(x), F.max_pool2d(x, 2, return_indices=True), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.AvgPool2d(3, 2)])
def test_pooling_of_types_in_memory(layer, dtype):
    check(layer, draw_input(1, 2, 3, 31, 63), dtype)


# -- convolution and pooling in one pass -------------------------------------------------------------------------------


@st.composite
def stages(draw):
    """Any convolution with a pooling behind it, and an input that gives it a patch."""
    axes, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2]))
    tuples = of_every_axis(draw, axes)
    window = (
        tuples(st.integers(1, 3)),
        tuples(st.integers(1, 2)),
        tuples(st.integers(0, 2)),
        tuples(st.integers(1, 2)),
    )
    pool_size, pool_stride = tuples(st.integers(1, 3)), tuples(st.integers(1, 3))
    if draw(st.booleans()):
        pool_size = pool_stride = (2,) * axes
    activation = draw(st.sampled_from([F.relu, torch.tanh, None]))
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 99)))
        options = {"activation": activation, "pool_size": pool_size, "pool_stride": pool_stride}
        channels = (groups * draw(st.integers(1, 3)), groups * draw(st.sampled_from([1, 2, 6, 9])))
        layer = STAGES[axes](*channels, *window, groups, draw(st.booleans()), **options)
    size = tuples(st.integers(9, 24 if axes < 3 else 10))
    batch = draw(st.sampled_from([1, 2, 5, 17, 35]))
    return layer, draw_input(draw(st.integers(0, 99)), batch, channels[0], *size)


@given(stages(), st.sampled_from([torch.float64, torch.float32]))
@few
def test_property_every_stage(case, dtype):
    check(*case, dtype)


@pytest.mark.parametrize("shape", [(2, 1, 12, 13), (17, 1, 12, 13)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_stage_of_types_in_memory(shape, dtype):
    torch.manual_seed(3)
    layer = nn.ConvPool2d(1, 3, 3, padding=1, activation=None).to(dtype)
    x = draw_input(5, *shape).to(dtype).requires_grad_()
    y = by_kernel(layer, x)
    whole = F.max_pool2d(F.conv2d(x.double(), *(p.double() for p in layer.parameters()), padding=1), 2)
    torch.testing.assert_close(y.double(), whole, rtol=2e-2, atol=2e-2)
    y.sum().backward()
    torch.testing.assert_close(layer.convolution.bias.grad.double(), torch.full((3,), float(y[:, 0].numel())).double())


def test_gradients_of_gradients_of_a_stage():
    torch.manual_seed(0)
    layer = nn.ConvPool2d(2, 3, 2, padding="same", activation=torch.tanh).double()
    x = draw_input(6, 2, 2, 7, 7).requires_grad_()
    twice_differentiable(partial(by_kernel, layer), x)


def test_what_a_stage_does_step_by_step():
    layer, x = nn.ConvPool2d(2, 4, 3), torch.randn(3, 2, 9, 9)
    expected = by_kernel(layer, x)
    with pellucid.backend("c"):
        layer.convolution.register_forward_hook(lambda *_: None)  # whoever looks at the convolution must see it
        torch.testing.assert_close(layer(x), expected)
        assert layer.backend == layer.convolution.backend == "c"
        falling = nn.ConvPool2d(2, 4, 3, activation=F.gelu)
        falling.load_state_dict(layer.state_dict())
        torch.testing.assert_close(falling(x), F.max_pool2d(F.gelu(layer.convolution(x)), 2))


# -- the best match in a sentence --------------------------------------------------------------------------------------


@given(
    st.integers(1, 4),
    st.integers(1, 12),
    st.sampled_from([1, 3, 17]),
    st.sets(st.integers(1, 9), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from([None, torch.tanh, F.relu]),
    st.randoms(use_true_random=False),
)
@few
def test_property_text_convolution(batch, time, size, widths, bias, activation, draws):
    torch.manual_seed(0)
    layer = nn.TextConv(size, 19, tuple(widths), bias=bias, activation=activation)
    x = draw_input(draws.randint(0, 99), batch, time, size)
    check(layer, x)
    lengths = [draws.randint(0, time) for _ in range(batch)]
    check(layer, x, torch.float32, lengths=lengths)
    padded = x.clone()
    for row, length in zip(padded, lengths, strict=True):
        row[length:] = float("nan")
    torch.testing.assert_close(
        by_kernel(layer.double(), padded, lengths=lengths), by_torch(layer, x, lengths=lengths), rtol=1e-6, atol=1e-6
    )


def test_gradients_of_gradients_of_text_convolution():
    layer = nn.TextConv(3, 2, (1, 4), activation=torch.tanh).double()
    x = draw_input(4, 3, 5, 3).requires_grad_()
    twice_differentiable(lambda x: by_kernel(layer, x, lengths=[5, 2, 0]), x)


def test_gradients_to_differentiate_of_sentences_shorter_than_the_widest_window():
    torch.manual_seed(0)
    layer, x = nn.TextConv(3, 20, (1, 4)).double(), draw_input(4, 3, 3, 3).requires_grad_()
    y = by_kernel(layer, x)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x, create_graph=True), first)


def test_an_activation_that_falls_somewhere_is_torchs():
    layer, x = nn.TextConv(3, 2, activation=F.gelu), torch.randn(2, 9, 3)
    with pellucid.backend("c"):
        torch.testing.assert_close(layer(x), by_torch(layer, x))
        layer(x)
    assert layer.backend == "torch"


# -- over the real steps of a sequence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mode", ["mean", "max"])
@pytest.mark.parametrize("shape", [(7, 3, 63), (1, 1, 1), (300, 5, 600)])
def test_pooling_over_real_steps(shape, mode, batch_first, dtype):
    time, batch, _ = shape
    layer, x = nn.LengthPool(mode, batch_first), draw_input(7, *shape).mul(2).round()  # many equal entries
    x = x.transpose(0, 1).contiguous() if batch_first else x
    check(layer, x, dtype)
    lengths = [(time * (i + 1)) // batch - (i == 0) for i in range(batch)]
    check(layer, x, dtype, lengths=lengths)
    padded = x.clone()
    for row, length in zip(padded if batch_first else padded.transpose(0, 1), lengths, strict=True):
        row[length:] = float("nan")
    padded.requires_grad_()
    y = by_kernel(layer, padded, lengths=lengths)
    torch.testing.assert_close(y, by_torch(layer, x, lengths=lengths))
    y.sum().backward()
    assert not padded.grad.isnan().any()


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_gradients_of_gradients_over_real_steps(mode):
    layer, x = nn.LengthPool(mode), draw_input(8, 5, 3, 2).requires_grad_()
    twice_differentiable(lambda x: by_kernel(layer, x, lengths=[5, 2, 0]), x)


def test_a_nan_is_the_greatest_step():
    x = torch.randn(4, 1, 3)
    x[1, 0, 1] = float("nan")
    torch.testing.assert_close(by_kernel(nn.LengthPool("max"), x), x.amax(0), equal_nan=True)
