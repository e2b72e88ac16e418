"""Pooling: against torch.nn, against plain loops, the indices, and pooling over real lengths."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pellucid
from pellucid import nn
from tensors import draw

NAMES = [f"{kind}Pool{n}d" for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for n in (1, 2, 3)]
ALL_MODES = ["mean", "max", "last"]
quick = settings(max_examples=60, deadline=None)


@st.composite
def sliding(draw_):
    """Draw a sliding pooling, its arguments and an input's shape."""
    spatial = draw_(st.integers(1, 3))
    each = st.tuples(*[st.integers(1, 3)] * spatial)
    kernel = draw_(st.tuples(*[st.integers(1, 5 - spatial // 2)] * spatial))
    arguments = {
        "kernel_size": kernel,
        "stride": draw_(st.none() | each),
        "padding": tuple(draw_(st.integers(0, k // 2)) for k in kernel),
        "ceil_mode": draw_(st.booleans()),
    }
    kind = draw_(st.sampled_from(["Max", "Avg"]))
    if kind == "Max":
        arguments |= {"dilation": draw_(each), "return_indices": draw_(st.booleans())}
    else:
        arguments["count_include_pad"] = draw_(st.booleans())
        if spatial > 1:
            arguments["divisor_override"] = draw_(st.none() | st.integers(1, 5))
    lead = draw_(st.sampled_from([(2,), (2, 2), (0, 2)]))
    return f"{kind}Pool{spatial}d", arguments, (*lead, *(draw_(st.integers(1, 8 - spatial)) for _ in range(spatial)))


@st.composite
def adaptive(draw_):
    """Draw an adaptive pooling, its arguments and an input's shape."""
    spatial = draw_(st.integers(1, 3))
    kind = draw_(st.sampled_from(["AdaptiveMax", "AdaptiveAvg"]))
    size = st.integers(1, 6)
    output = draw_(st.tuples(*[size if spatial == 1 else st.none() | size] * spatial))
    arguments = {"output_size": output} | ({"return_indices": draw_(st.booleans())} if kind == "AdaptiveMax" else {})
    lead = draw_(st.sampled_from([(2,), (2, 2)]))
    return f"{kind}Pool{spatial}d", arguments, (*lead, *(draw_(size) for _ in range(spatial)))


@settings(max_examples=150, deadline=None)
@given(spec=sliding() | adaptive())
def test_property_torch_nn_and_the_formula(spec):
    name, arguments, shape = spec
    layer, reference = getattr(nn, name)(**arguments), getattr(torch.nn, name)(**arguments)
    x = draw(*shape)
    try:
        expected = reference(x)
    except RuntimeError as error:
        with pytest.raises(type(error), match=f"^nn.{name}: "):
            layer(x)
        return
    bound = layer.formula(**layer.bind(x))
    results = zip(*(y if isinstance(y, tuple) else (y,) for y in (layer(x), bound, expected)), strict=True)
    for y, formulated, wanted in results:
        torch.testing.assert_close(y, wanted, rtol=0, atol=0)
        there = expected[0].isfinite() if isinstance(expected, tuple) else torch.tensor(True)
        torch.testing.assert_close(formulated.where(there, 0), wanted.where(there, 0))  # no index where nothing is read


@pytest.mark.parametrize("name", NAMES)
def test_a_drop_in(name):
    ours, torchs = getattr(nn, name), getattr(torch.nn, name)
    assert issubclass(ours, torchs)
    assert inspect.signature(ours.__init__) == inspect.signature(torchs.__init__)


@pytest.mark.parametrize("name", ["MaxPool2d", "AdaptiveMaxPool2d"])
def test_indices_are_where_the_greatest_stands(name):
    layer = getattr(nn, name)(2, return_indices=True)
    x = draw(2, 3, 5, 6)
    values, index = layer(x)
    torch.testing.assert_close(x.flatten(2).gather(2, index.flatten(2)).view_as(values), values, rtol=0, atol=0)
    if name == "MaxPool2d":
        back = nn.MaxUnpool2d(2)(values, index, output_size=x.shape)
        assert torch.equal(back[back != 0].sort().values, values.flatten().sort().values)


@pytest.mark.parametrize("kind", ["Max", "Avg"])
def test_nan_in_a_window_is_seen_and_elsewhere_is_not(kind):
    x = draw(1, 1, 6)
    x[..., 4] = float("nan")
    layer = getattr(nn, f"{kind}Pool1d")(2)
    for y in (layer(x), layer.formula(**layer.bind(x))):
        assert y.isnan().tolist() == [[[False, False, True]]]


@pytest.mark.parametrize(("size", "options"), [((5,), {}), ((7, 6), {"dilation": 2}), ((5, 8, 4), {"ceil_mode": True})])
def test_nothing_but_minus_infinity_in_a_window_has_the_gradient_of_its_first_entry(size, options):
    x, given = (draw(2, 3, *size, seed=seed) for seed in (0, 1))
    x[given > 0] = -torch.inf
    options = {"kernel_size": 3, "stride": 2, "padding": 1, **options}
    with pellucid.backend("c"):
        found = [
            torch.autograd.grad(layer(x.requires_grad_()).sum(), x)[0]
            for layer in (getattr(module, f"MaxPool{len(size)}d")(**options) for module in (nn, torch.nn))
        ]
    assert torch.equal(*found)


def test_a_mean_may_sum_beyond_the_range_of_half_precision():
    x = torch.full((1, 1, 4000), 60.0, dtype=torch.float16)
    layer = nn.AdaptiveAvgPool1d(1)
    assert layer.formula(**layer.bind(x)).item() == layer(x).item() == 60.0
    assert nn.LengthPool("mean", batch_first=True)(x.mT, [4000]).item() == 60.0


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d((3, 2), stride=2, padding=1, ceil_mode=True),
        nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.AdaptiveMaxPool2d((3, 2), return_indices=True),
    ],
    ids=repr,
)
def test_the_window_of_every_output(layer):
    x = draw(2, 2, 5, 6)
    result = layer(x)
    results = result if isinstance(result, tuple) else (result,)
    for place in itertools.product(*(range(n) for n in results[0].shape)):
        sample, channel, *position = place
        one = layer.formula(**layer.bind(x, position=position, channel=channel, sample=sample))
        for value, y in zip(one if isinstance(one, tuple) else (one,), results, strict=True):
            torch.testing.assert_close(value, y[place])
        view = layer.window_at(x, position, channel, sample)
        assert view.output == place
        assert view.kernel is view.bias is None
        assert view.channels == range(channel, channel + 1)
        read = view.coordinates.ge(0).all(-1)
        expected = torch.stack([x[(sample, channel, *at)] for at in view.coordinates[read].tolist()])
        torch.testing.assert_close(view.entries[read], expected)
        assert not (view.padding & read).any()
    with pytest.raises(IndexError, match=r"there is no channel 2"):
        layer.window_at(x, (0, 0), channel=2)
    with pytest.raises(IndexError, match=r"no output at position \(9, 0\)"):
        layer.window_at(x, (9, 0))


def test_adaptive_windows_can_be_checked_by_hand():
    layer = nn.AdaptiveAvgPool1d(3)
    x = torch.arange(7.0).reshape(1, 1, 7)
    assert layer(x).flatten().tolist() == [1, 3, 5]
    windows = [layer.window_at(x, i).coordinates.squeeze(-1).tolist() for i in range(3)]
    assert windows == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert nn.AdaptiveAvgPool1d(2).window_at(x[..., :3], 1).coordinates.squeeze(-1).tolist() == [1, 2]


def test_symbols_say_why():
    layer = nn.AvgPool2d(3, stride=2, padding=1)
    x, y = layer.symbols(torch.zeros(2, 4, 7, 5))
    assert (x.shape, x.axes, x.reason) == ((2, 4, 7, 5), ("batch", "channels", "height", "width"), "pool.input")
    assert (y.shape, y.reason, y.facts["stride"]) == ((2, 4, 4, 3), "pool.output", 2)
    assert nn.AdaptiveMaxPool1d(3).symbols(torch.zeros(4, 7))[1].reason == "pool.adaptive.output"
    assert layer.symbols() == []
    x, y = nn.LengthPool().symbols(torch.zeros(5, 2, 3))
    assert (x.axes, y.shape, y.axes) == (("time", "batch", "features"), (2, 3), ("batch", "features"))


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2)], ids=repr)
def test_numbers_that_torch_does_not_pool_are_named(layer):
    for dtype, cure in ((torch.complex64, "x.real and x.imag"), (torch.bool, r"x\.float\(\)")):
        with pytest.raises(NotImplementedError, match=rf"nn\.\w+: the input is \(batch 1, .*of {dtype}, .*{cure}"):
            layer(torch.ones(1, 1, 4, 4, dtype=dtype))


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2)], ids=repr)
def test_channels_last_and_low_precision(layer):
    x = draw(2, 3, 6, 6).float()
    last = layer(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, layer(x))
    half = layer(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, layer.formula(**layer.bind(x.bfloat16())))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x), layer(x.clone()))


LAYERS = [nn.MaxPool1d(3, 2, 1), nn.AvgPool1d(3, 2, 1), nn.AdaptiveMaxPool1d(3), nn.AdaptiveAvgPool1d(3)]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_transforms(layer):
    x = draw(3, 2, 9).float()
    expected = layer(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), expected)
    torch.testing.assert_close(torch.vmap(layer)(x), expected)
    dynamic = {"input": {0: torch.export.Dim("batch")}}
    program = torch.export.export(layer, (x[:2],), dynamic_shapes=dynamic)
    torch.testing.assert_close(program.module()(x), expected)


# Pooling over real lengths


def alone(mode, steps):
    """Pool one sequence (time, features) by what each mode means."""
    if len(steps) == 0:
        return torch.zeros_like(steps.sum(0))
    return {"mean": steps.mean(0), "max": steps.amax(0), "last": steps[-1]}[mode]


@quick
@given(
    mode=st.sampled_from(ALL_MODES),
    batch_first=st.booleans(),
    lengths=st.lists(st.integers(0, 6), max_size=4),
    time=st.sampled_from([6, 7]),
)
def test_property_each_sequence_as_if_alone(mode, batch_first, lengths, time):
    x = draw(len(lengths), time, 2)
    for sequence, length in zip(x, lengths, strict=True):
        sequence[length:] = float("nan")
    x.requires_grad_()
    y = nn.LengthPool(mode, batch_first)(x if batch_first else x.transpose(0, 1), lengths)
    parts = [alone(mode, sequence[:length]) for sequence, length in zip(x, lengths, strict=True)]
    expected = torch.stack(parts) if parts else torch.zeros(0, 2, dtype=torch.float64)
    torch.testing.assert_close(y, expected)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    wanted = torch.autograd.grad(expected.square().sum(), x)[0] if sum(lengths) else torch.zeros_like(x)
    torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("mode", ALL_MODES)
def test_without_lengths_every_step_is_real(mode):
    x = draw(5, 3, 2)
    expected = torch.stack([alone(mode, x[:, i]) for i in range(3)])
    torch.testing.assert_close(nn.LengthPool(mode)(x), expected)
    torch.testing.assert_close(nn.LengthPool(mode)(x[:, 1]), expected[1])
    torch.testing.assert_close(nn.LengthPool(mode, batch_first=True)(x.transpose(0, 1)), expected)


@pytest.mark.parametrize("mode", ALL_MODES)
def test_no_time_and_no_batch(mode):
    layer = nn.LengthPool(mode)
    assert torch.equal(layer(torch.zeros(0, 2, 3)), torch.zeros(2, 3))
    assert torch.equal(layer(torch.zeros(0, 2, 3), [0, 0]), torch.zeros(2, 3))
    assert torch.equal(layer(torch.zeros(0, 3)), torch.zeros(3))
    assert layer(torch.zeros(4, 0, 3), []).shape == (0, 3)


def test_equal_maxima_share_the_gradient():
    x = torch.tensor([[[1.0]], [[3.0]], [[3.0]], [[9.0]]], requires_grad=True)
    nn.LengthPool("max")(x, [3]).sum().backward()
    assert x.grad.flatten().tolist() == [0.0, 0.5, 0.5, 0.0]


@pytest.mark.parametrize("mode", ALL_MODES)
def test_nan_among_the_real_steps_is_shown(mode):
    x = draw(4, 2, 1)
    x[2, 0] = float("nan")
    assert nn.LengthPool(mode)(x, [3, 4]).isnan().flatten().tolist() == [True, False]


@pytest.mark.parametrize("mode", ALL_MODES)
def test_lengths_of_every_kind_and_dtype(mode):
    layer, x = nn.LengthPool(mode), draw(5, 2, 3)
    expected = layer(x, [5, 2])
    for lengths in ((5, 2), torch.tensor([5, 2]), torch.tensor([5, 2], dtype=torch.int32)):
        torch.testing.assert_close(layer(x, lengths), expected, rtol=0, atol=0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        y = layer(x.to(dtype), [5, 2])
        assert y.dtype == dtype
        torch.testing.assert_close(y, layer(x.to(dtype).double(), [5, 2]).to(dtype))


@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        ([6, 2], RuntimeError, ("lengths[0] is 6", "5 steps")),
        ([5, -2], RuntimeError, ("lengths[1] is -2", "negative")),
        ([5], RuntimeError, ("shape (1,)", "batch of 2")),
        ([5.0, 2.0], TypeError, ("torch.float32",)),
    ],
)
def test_wrong_lengths_are_named(lengths, error, words):
    with pytest.raises(error) as caught:
        nn.LengthPool()(torch.zeros(5, 2, 3), lengths)
    for word in ("nn.LengthPool", *words):
        assert word in str(caught.value)
    with pytest.raises(ValueError, match=r"nn\.LengthPool: mode is 'sum'; it is one of"):
        nn.LengthPool("sum")


@pytest.mark.parametrize("mode", ALL_MODES)
def test_length_pool_under_transforms(mode):
    layer = nn.LengthPool(mode, batch_first=True)
    x, lengths = draw(3, 5, 2).float(), torch.tensor([5, 2, 0])
    expected = layer(x, lengths)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x, lengths), expected)
    torch.testing.assert_close(torch.vmap(layer)(x, lengths), expected)
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    program = torch.export.export(layer, (x[:2], lengths[:2]), dynamic_shapes={"input": dims, "lengths": {0: dims[0]}})
    torch.testing.assert_close(program.module()(x, lengths), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x, lengths).dtype == torch.float32
