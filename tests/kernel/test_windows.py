"""Kernels that read through windows: convolution, pooling, the best match in a sentence, against torch in float64."""

from __future__ import annotations

import copy
import json
import os
import random
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import pellucid
from pellucid import nn
from pellucid.kernel import build, choice, linear, memory
from pellucid.kernel.windows import convolve, pool

few = settings(max_examples=int(os.environ.get("WINDOW_EXAMPLES", "60")), deadline=None)
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAXIMA = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
STAGES = {1: nn.ConvPool1d, 2: nn.ConvPool2d, 3: nn.ConvPool3d}
AVERAGES = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def by_kernel(layer, *inputs, **options):
    """The result of a layer, which the kernel must have computed, in memory that is full of NaN before."""
    with pellucid.backend("c"), memory.poison():
        y = layer(*inputs, **options)
    assert layer.backend == "c"
    return y


def by_torch(layer, *inputs, **options):
    """The same by torch."""
    with pellucid.backend("stepwise"):
        y = layer(*inputs, **options)
    assert layer.backend == "torch"
    return y


def check(layer, x, dtype=torch.float64, **options):
    """Values and all gradients of the kernel in a type, against torch's in float64."""
    tolerances = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
    x, layer, results = x.detach().to(dtype), layer.to(dtype), []  # both read the same numbers
    for run, kind in ((by_torch, torch.float64), (by_kernel, dtype)):
        layer, given = layer.to(kind), x.to(kind).requires_grad_()
        y = run(layer, given, **options)
        assert y.dtype == kind
        dy = torch.cos(torch.arange(y.numel())).view(y.shape).to(dtype).to(kind)
        with memory.poison():
            gradients = torch.autograd.grad(y, [given, *layer.parameters()], dy)
        results.append([y, *gradients])
    for theirs, ours in zip(*results, strict=True):
        most = theirs.abs().max().item() if theirs.numel() else 0
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerances[dtype] * (1 + most))


def twice_differentiable(function, *inputs):
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def draw_input(seed, *shape, layout="contiguous"):
    """Normal numbers in float64, laid out in memory as is said."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if layout == "gaps":  # rows of a larger tensor
        return F.pad(x, (2, 3))[..., 2:-3]
    if layout == "swapped":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "turned":
        return x.mT.contiguous().mT
    return x


def of_every_axis(draw, axes):
    """What draws a number for each axis."""
    return lambda numbers: tuple(draw(numbers) for _ in range(axes))


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


def test_what_was_left_of_transposed_convolutions_is_not_decided_again(kept, monkeypatch):
    monkeypatch.setattr(convolve, "faster", lambda *_: False)
    decided = []
    monkeypatch.setattr(convolve, "run", lambda *given, run=convolve.run: decided.append(1) or run(*given))
    layer, x = nn.ConvTranspose1d(4, 3, 4, 2), torch.randn(4, 4, 1000)
    for count, read in enumerate((x, x.clone().requires_grad_(), x.double()), 1):
        layer.to(read.dtype)(read), layer(read)
        assert len(decided) == count
        assert layer.backend == "torch"
    torch.testing.assert_close(by_kernel(layer, read), layer(read))


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


# -- which way is faster -----------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder of its own for what is measured, and nothing measured yet; returns the file."""
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    monkeypatch.setattr(choice, "WORKING", 0)  # whatever else runs
    another_process(monkeypatch)
    monkeypatch.setattr(convolve, "_bound", {})
    return tmp_path / "choices.json"


def another_process(monkeypatch):
    """Forget what this one has measured and read."""
    for name, nothing in (("_measured", {}), ("_read", set()), ("_asked", set())):
        monkeypatch.setattr(choice, name, nothing)


def ways(calls, slow):
    """Two ways of which one is slow, noting who is called."""

    def way(name):
        def call():
            calls.append(name)
            if name == slow:
                sum(range(20000))

        return call

    return way("usual"), way("other")


def test_a_choice_is_measured_once_and_kept(kept, monkeypatch):
    calls = []
    assert choice.faster("adding", "text", *ways(calls, "usual"))
    assert set(calls) == {"usual", "other"}
    calls.clear()
    assert choice.faster("adding", "text", *ways(calls, "usual"))
    assert not choice.faster("taking away", "text", *ways([], "other"))
    another_process(monkeypatch)
    assert choice.faster("adding", "text", *ways(calls, "usual"))
    assert not calls
    (times,) = json.loads(kept.read_text()).values()
    assert {question.split(";")[0] for question in times} == {"adding", "taking away"}
    assert all(set(seconds) == {"usual", "other", "disturbed"} for seconds in times.values())
    assert choice.faster("adding", "another text", *ways(calls, "usual"))
    assert calls


def test_what_was_disturbed_is_measured_again_by_other_processes(kept, monkeypatch):
    question = f"adding; {torch.get_num_threads()} threads"
    for disturbed, asked, attempts in ((True, True, 1), (True, True, 2), (False, True, 0), (True, False, 0)):
        monkeypatch.setattr(choice, "WORKING", float("inf") if disturbed else 0)
        another_process(monkeypatch)
        calls = []
        assert choice.faster("adding", "text", *ways(calls, "usual"))
        assert bool(calls) == asked
        assert json.loads(kept.read_text())[choice._place("text")][question]["disturbed"] == attempts
        calls.clear()
        assert choice.faster("adding", "text", *ways(calls, "usual"))
        assert not calls, "the same process asked twice"


def test_disturbed_measurements_come_to_an_end(kept, monkeypatch):
    monkeypatch.setattr(choice, "WORKING", float("inf"))
    asked = []
    for _ in range(choice.MOST_ATTEMPTS + 1):
        another_process(monkeypatch)
        asked.append([])
        choice.faster("adding", "text", *ways(asked[-1], "usual"))
    assert [bool(calls) for calls in asked] == [True, True, True, False]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"PLACE": 3}', '{"PLACE": {"adding; 1 threads": "fast"}}'])
def test_a_damaged_file_is_measured_again(kept, damage):
    kept.write_text(damage.replace("PLACE", choice._place("text")))
    calls = []
    assert choice.faster("adding", "text", *ways(calls, "usual"))
    assert calls
    assert json.loads(kept.read_text())[choice._place("text")]["adding; 1 threads"]["other"] > 0


def test_without_a_folder_it_is_measured_by_every_process(monkeypatch, kept):
    monkeypatch.setattr(choice, "usable_cache", lambda: (_ for _ in ()).throw(OSError("read-only")))
    calls = []
    assert choice.faster("adding", "text", *ways(calls, "usual"))
    assert calls
    assert not kept.exists()


def test_the_faster_way_convolves(kept, monkeypatch):
    layer, x, asked = nn.Conv1d(8, 8, 3, groups=8), torch.randn(8, 8, 500), []

    def faster(question, text, usual, ours, leaves):
        usual(), ours()
        asked.append(question)
        return len(asked) == 1

    monkeypatch.setattr(convolve, "faster", faster)
    expected = F.conv1d(x, layer.weight, layer.bias, groups=8)
    for backend, size in (("c", 500), ("c", 500), ("torch", 400)):
        torch.testing.assert_close(layer(x[..., :size]), expected[..., : size - 2])
        assert layer.backend == backend
    assert len(asked) == 2
    assert "float32 [8, 512]" in asked[0]
    assert "gradients of weight, bias" in asked[0]
    by_torch(layer, x)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("size", "layout"),
    [
        *(((1, 1), torch.contiguous_format), ((9,), torch.contiguous_format), ((4, 4), torch.contiguous_format)),
        *(((5, 7), torch.contiguous_format), ((3, 4, 5), torch.contiguous_format)),  # one place, few and many
        *(((5, 7), torch.channels_last), ((3, 4, 5), torch.channels_last_3d)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_window_of_one_place_is_a_matrix_product(kept, monkeypatch, size, layout, bias, dtype):
    monkeypatch.setattr(convolve, "faster", lambda question, *_: "beside a product" not in question)
    products = []
    monkeypatch.setattr(convolve, "_by", lambda *given, by=convolve._by: products.append(given[0]) or by(*given))
    layer = CONVOLUTIONS[len(size)](33, 17, 1, bias=bias).to(dtype)
    x, dy = (draw_input(i, 5, n, *size).to(dtype, memory_format=layout).requires_grad_() for i, n in ((0, 33), (1, 17)))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    found = []
    for run in (by_torch, type(layer).__call__):
        with memory.poison():
            y = run(layer, x)
            first = torch.autograd.grad(y, [x, *layer.parameters()], dy, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, layer.weight, dy])
        changed = y.clone().relu_(), torch.autograd.grad(F.relu_(run(layer, x)).sum(), layer.weight)[0]
        found.append((y, *first, *second, *changed))
        assert layer.backend == "torch"
    assert found[1][0].stride() == torch.empty_like(found[1][0], memory_format=layout).stride()
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * (1 + theirs.abs().max().item()))
    torch.testing.assert_close(layer(x.detach()), layer(x).detach(), rtol=tolerance, atol=tolerance)
    layer.weight.data = layer.weight.data.transpose(0, 1).contiguous().transpose(0, 1)  # the same numbers
    frozen = layer.requires_grad_(False)(x)
    torch.testing.assert_close(torch.autograd.grad(frozen, x, dy)[0], found[0][1], rtol=tolerance, atol=tolerance)
    assert len(products) == 5
    assert all(isinstance(kernel, convolve.Pointwise) for kernel in products)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7)])  # one place, few and many
def test_a_window_of_one_place_says_which_product_ran(kept, monkeypatch, size, layout):
    monkeypatch.setattr(convolve, "faster", lambda question, *_: "beside a product" not in question)
    monkeypatch.setattr(linear, "LEAST_PRODUCTS", 0)
    monkeypatch.setattr(linear, "_chosen", {})
    layer, x = nn.Conv2d(33, 17, 1), draw_input(0, 5, 33, *size).float().to(memory_format=layout)
    expected = F.conv2d(x, layer.weight, layer.bias)
    for backend in ("torch", "c"):
        monkeypatch.setattr(linear, "faster", lambda *_, ours=backend == "c": ours)
        linear._chosen.clear()
        for wanted in (True, False):
            torch.testing.assert_close(layer.requires_grad_(wanted)(x), expected, rtol=1e-4, atol=1e-4)
            assert layer.backend == backend


def test_a_kernel_may_be_faster_than_a_product(kept, monkeypatch):
    layer, x, asked = nn.Conv1d(8, 16, 1), torch.randn(2, 8, 2000), []

    def faster(question, text, usual, ours, leaves):
        torch.testing.assert_close(usual(), ours())
        asked.append(question)
        return True

    monkeypatch.setattr(convolve, "faster", faster)
    torch.testing.assert_close(layer(x), F.conv1d(x, layer.weight, layer.bias))
    assert layer.backend == "c"
    assert ["beside a product" in question for question in asked] == [False, True]


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(64, 64, 1, stride=2), torch.randn(2, 64, 4, 4)),
        (nn.Conv2d(64, 64, 1, padding=1), torch.randn(2, 64, 4, 4)),
        (nn.Conv2d(64, 64, 1, groups=2), torch.randn(2, 64, 4, 4)),
        (nn.Conv2d(64, 64, 3, padding=1), torch.randn(2, 64, 4, 4)),
        (nn.Conv2d(64, 64, 1).bfloat16(), torch.randn(2, 64, 4, 4).bfloat16()),
        (nn.Conv2d(4, 4, 1), torch.randn(2, 4, 4, 4)),
    ],
)
def test_other_small_convolutions_are_torchs_to_the_last_digit(kept, monkeypatch, layer, x):
    monkeypatch.setattr(convolve, "faster", lambda *_: True)
    expected = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    assert torch.equal(layer(x), expected)
    assert layer(x).stride() == expected.stride()


def test_what_was_left_to_torch_is_not_decided_again(kept, monkeypatch):
    monkeypatch.setattr(convolve, "faster", lambda *_: False)
    decided = []
    monkeypatch.setattr(convolve, "run", lambda *given, run=convolve.run: decided.append(1) or run(*given))
    layer, x = nn.Conv2d(8, 8, 3, groups=8), torch.randn(2, 8, 32, 32)
    changes = [
        lambda x: layer(x),
        lambda x: layer(x.contiguous(memory_format=torch.channels_last)),
        lambda x: layer(x[:1].expand(2, -1, -1, -1)),
        lambda x: layer(x.detach().requires_grad_()),
        lambda x: layer(torch.cat([x, x])),
        lambda x: layer.requires_grad_(False)(x),
        lambda x: layer.double()(x.double()),
    ]
    for count, change in enumerate(changes, 1):
        change(x), change(x)
        assert len(decided) == count
        assert layer.backend == "torch"
    small = x[:, :, :16].double()
    with torch.autocast("cpu", torch.bfloat16):
        layer(small)
    torch.func.vmap(layer)(small.unsqueeze(0))
    layer(small)
    assert len(decided) == len(changes) + 2  # what autocast or a transform decides does not last
    by_kernel(layer, x.double())
    copied = copy.deepcopy(layer)
    copied.stride = (2, 2)  # which torch's operator then does
    torch.testing.assert_close(copied(x.double()), layer(x.double())[..., ::2, ::2])
    model = torch.nn.Sequential(layer)
    pellucid.restore(model)
    assert type(model[0]) is torch.nn.Conv2d
    assert vars(model[0]).keys() == vars(torch.nn.Conv2d(8, 8, 3)).keys()


@pytest.mark.parametrize("kind", ["MaxPool2d", "AvgPool2d"])
def test_a_pooling_that_was_left_to_torch_is_not_decided_again(monkeypatch, kind):
    monkeypatch.setattr(pool, "_bound", {})
    monkeypatch.setattr(pool, "faster", lambda *_: False)
    decided = []
    monkeypatch.setattr(pool, "_run", lambda *given, run=pool._run: decided.append(1) or run(*given))
    layer, theirs = getattr(nn, kind)(3), getattr(torch.nn, kind)(3)
    for count, size in enumerate(((32, 33), (33, 32)), 1):
        x = torch.randn(1, 8, *size)
        assert torch.equal(layer(x), theirs(x))
        assert torch.equal(layer(x), theirs(x))
        assert layer.backend == "torch"
        assert len(decided) == count
    by_kernel(layer, x)


def test_without_a_compiler_torch_convolves(monkeypatch):
    def missing(*_):
        raise build.BuildError("no C compiler was found")

    monkeypatch.setattr(convolve, "_bound", {})
    monkeypatch.setattr("pellucid.kernel.windows.window.library", missing)
    layer, x = nn.Conv1d(8, 8, 3, groups=8), torch.randn(8, 8, 500)
    with pytest.warns(pellucid.errors.PellucidWarning, match="a convolution runs stepwise.*no C compiler"):
        y = layer(x)
    torch.testing.assert_close(y, F.conv1d(x, layer.weight, layer.bias, groups=8))
    assert layer.backend == "torch"


def sweep(count=40):
    """Many shapes of all kernels, for a process in which every access is watched over."""
    draws = random.Random(0)
    for _ in range(count):
        axes = draws.randint(1, 3)
        kernel, stride, padding = ([draws.randint(low, 3) for _ in range(axes)] for low in (1, 1, 0))
        size, groups = [draws.randint(6, 18) for _ in range(axes)], draws.choice((1, 2))
        x = torch.randn(draws.choice((3, 19)), 2 * groups, *size, requires_grad=True)
        layers = [CONVOLUTIONS[axes](2 * groups, 3 * groups, kernel, stride, padding, groups=groups)]
        layers.append(STAGES[axes](2 * groups, 3 * groups, kernel, 1, padding, groups=groups, pool_stride=1))
        layers += [kind[axes](kernel, stride, [min(p, k // 2) for p, k in zip(padding, kernel, strict=True)])
                   for kind in (MAXIMA, AVERAGES)]  # fmt: skip
        for layer in layers:
            with pellucid.backend("c"):
                layer(x).sum().backward()
            assert layer.backend == "c"
    for mode in ("mean", "max"):
        with pellucid.backend("c"):
            nn.LengthPool(mode)(torch.randn(5, 3, 37, requires_grad=True), [5, 1, 0]).sum().backward()
    layer = nn.TextConv(5, 19, (1, 2, 7))
    for batch, time in ((1, 1), (3, 6), (4, 9)):
        with pellucid.backend("c"):
            layer(torch.randn(batch, time, 5, requires_grad=True)).sum().backward()
        assert layer.backend == "c"
