"""Convolution: against torch.nn, against plain loops over numpy arrays, and what only pellucid's own can do."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import pellucid
from pellucid import nn
from tensors import draw

MODES = ["zeros", "reflect", "replicate", "circular"]
NUMPY_MODE = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
NAMES = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
quick = settings(max_examples=120, deadline=None)


def correlate(x, layer, before, positions):
    """Loop over every number: x (batch, channels, *size), extended by numpy, under kernels (out, in/groups, *k)."""
    space = x.ndim - 2
    weight = layer.weight.detach().numpy()
    after = [
        max(0, (p - 1) * s + d * (k - 1) + 1 - n - b)
        for p, s, d, k, n, b in zip(
            positions, layer.stride, layer.dilation, layer.kernel_size, x.shape[2:], before, strict=True
        )
    ]
    margins = [(0, 0), (0, 0), *zip(before, after, strict=True)]
    padded = np.pad(x.numpy(), margins, mode=NUMPY_MODE[layer.padding_mode])
    y = np.zeros((x.shape[0], layer.out_channels, *positions))
    each_in, each_out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for place in np.ndindex(*y.shape):
        sample, channel, *position = place
        y[place] = 0.0 if layer.bias is None else layer.bias[channel].item()
        first = channel // each_out * each_in
        for entry in np.ndindex(*weight.shape[1:]):
            read = [p * s + k * d for p, s, k, d in zip(position, layer.stride, entry[1:], layer.dilation, strict=True)]
            y[place] += weight[(channel, *entry)] * padded[(sample, first + entry[0], *read)]
    assert y.ndim == space + 2
    return torch.from_numpy(y)


def scatter(x, layer, crop, positions):
    """Loop over every number of a transposed convolution: every input, and those beyond the ends, adds its kernel."""
    weight = layer.weight.detach().numpy()  # (in, out/groups, *k)
    margin = [d * (k - 1) // s + 1 for d, k, s in zip(layer.dilation, layer.kernel_size, layer.stride, strict=True)]
    margins = [(0, 0), (0, 0), *((m, m) for m in margin)]
    padded = np.pad(x.numpy(), margins, mode=NUMPY_MODE[layer.padding_mode])
    y = np.zeros((x.shape[0], layer.out_channels, *positions))
    if layer.bias is not None:
        y += layer.bias.detach().numpy().reshape(-1, *(1 for _ in positions))
    each_in, each_out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for place in np.ndindex(*padded.shape):
        sample, channel, *at = place
        for entry in np.ndindex(*weight.shape[1:]):
            out, *kernel = entry
            target = [
                (a - m) * s + k * d - c
                for a, m, s, k, d, c in zip(at, margin, layer.stride, kernel, layer.dilation, crop, strict=True)
            ]
            if all(0 <= t < n for t, n in zip(target, positions, strict=True)):
                y[(sample, channel // each_in * each_out + out, *target)] += padded[place] * weight[(channel, *entry)]
    return torch.from_numpy(y)


@st.composite
def options(draw_, spatial):
    """Draw a constructor's arguments and a small input's shape."""
    each = st.tuples(*[st.integers(1, 3)] * spatial)
    groups = draw_(st.integers(1, 2))
    channels = (groups * draw_(st.integers(1, 2)), groups * draw_(st.integers(1, 2)))
    arguments = {
        "kernel_size": draw_(st.tuples(*[st.integers(1, 4)] * spatial)),
        "stride": draw_(each),
        "dilation": draw_(each),
        "groups": groups,
        "bias": draw_(st.booleans()),
    }
    size = draw_(st.tuples(*[st.integers(1, 9 if spatial == 1 else 5)] * spatial))
    return channels, arguments, (draw_(st.integers(1, 2)), channels[0], *size)


def same_as_torchs(name, channels, arguments, shape, words=""):
    """Compare a layer and its formula with torch's layer; what that refuses is refused, in these words."""
    layer = getattr(nn, name)(*channels, **arguments).double()
    reference = getattr(torch.nn, name)(*channels, **arguments).double()
    reference.load_state_dict(layer.state_dict())
    x = draw(*shape)
    try:
        expected = reference(x)
    except RuntimeError as error:
        with pytest.raises(type(error), match=f"nn.{name}: {words}"):
            layer(x)
        return
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(layer.formula(**layer.bind(x)), expected)


@quick
@given(spec=st.integers(1, 3).flatmap(options), padding=st.integers(0, 3), mode=st.sampled_from(MODES))
def test_property_numbers_as_padding_are_torch_nn(spec, padding, mode):
    channels, arguments, shape = spec
    name = f"Conv{len(shape) - 2}d"
    same_as_torchs(name, channels, arguments | {"padding": padding, "padding_mode": mode}, shape, "the input is")


@quick
@given(
    spec=st.integers(1, 3).flatmap(options),
    padding=st.tuples(*[st.integers(0, 2)] * 3),
    extra=st.integers(0, 2),
)
def test_property_transposed_numbers_as_padding_are_torch_nn(spec, padding, extra):
    channels, arguments, shape = spec
    spatial = len(shape) - 2
    name = f"ConvTranspose{spatial}d"
    arguments |= {"padding": padding[:spatial], "output_padding": extra}
    same_as_torchs(name, channels, arguments, shape)


@quick
@given(spec=st.integers(1, 2).flatmap(options), mode=st.sampled_from(MODES))
def test_property_same_at_every_stride(spec, mode):
    channels, arguments, shape = spec
    layer = getattr(nn, f"Conv{len(shape) - 2}d")(*channels, **arguments, padding="same", padding_mode=mode).double()
    positions = [-(-n // s) for n, s in zip(shape[2:], layer.stride, strict=True)]
    total = [
        max(0, (p - 1) * s + r - n) for p, s, r, n in zip(positions, layer.stride, layer.reach, shape[2:], strict=True)
    ]
    x = draw(*shape)
    most = {"reflect": -1, "circular": 0}.get(mode)
    if most is not None and any(t - t // 2 > n + most for t, n in zip(total, shape[2:], strict=True)):
        with pytest.raises(RuntimeError, match="at most"):
            layer(x)
        return
    expected = correlate(x, layer, [t // 2 for t in total], positions)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.formula(**layer.bind(x)), expected)


@quick
@given(spec=options(1), mode=st.sampled_from(["zeros", "replicate"]))
def test_property_causal(spec, mode):
    channels, arguments, shape = spec
    layer = nn.Conv1d(*channels, **arguments, padding="causal", padding_mode=mode).double()
    x = draw(*shape)
    expected = correlate(x, layer, [layer.reach[0] - 1], [-(-shape[2] // layer.stride[0])])
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.formula(**layer.bind(x)), expected)


@quick
@given(spec=st.integers(1, 2).flatmap(options), padding=st.sampled_from(["same", 0, 1, 2]), mode=st.sampled_from(MODES))
def test_property_transposed_padding_modes(spec, padding, mode):
    channels, arguments, shape = spec
    layer = getattr(nn, f"ConvTranspose{len(shape) - 2}d")(*channels, **arguments, padding=padding, padding_mode=mode)
    layer = layer.double()
    x = draw(*shape)
    if padding == "same":
        positions = [n * s for n, s in zip(shape[2:], layer.stride, strict=True)]
        crop = [max(0, r - s) // 2 for r, s in zip(layer.reach, layer.stride, strict=True)]
    else:
        crop = [padding] * (len(shape) - 2)
        sizes = zip(shape[2:], layer.stride, layer.reach, strict=True)
        positions = [(n - 1) * s + r - 2 * padding for n, s, r in sizes]
    margins = zip(shape[2:], layer._margins(shape[2:]), strict=True)
    most = {"reflect": -1, "circular": 0}.get(mode)
    too_far = most is not None and any(max(margin) > n + most for n, margin in margins)
    if too_far or min(positions) <= 0:
        with pytest.raises(RuntimeError, match=r"at most|cuts off every output"):
            layer(x)
        return
    y = layer(x)
    torch.testing.assert_close(y, scatter(x, layer, crop, positions))
    torch.testing.assert_close(layer.formula(**layer.bind(x)), y)


@quick
@given(spec=st.integers(1, 2).flatmap(options))
def test_property_transposed_same_is_the_adjoint_of_same(spec):
    (some, more), arguments, shape = spec
    spatial = len(shape) - 2
    arguments |= {"bias": False, "padding": "same"}
    up = getattr(nn, f"ConvTranspose{spatial}d")(some, more, **arguments).double()
    down = getattr(nn, f"Conv{spatial}d")(more, some, **arguments).double()
    down.load_state_dict(up.state_dict())
    x = draw(*shape)
    y = up(x)
    other = draw(*y.shape, seed=1)
    torch.testing.assert_close((y * other).sum(), (x * down(other)).sum())


@pytest.mark.parametrize("name", NAMES)
def test_a_drop_in(name):
    ours, torchs = getattr(nn, name), getattr(torch.nn, name)
    assert issubclass(ours, torchs)
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(torchs).parameters)
    defaults = [p.default for p in inspect.signature(torchs).parameters.values()]
    assert [p.default for p in inspect.signature(ours).parameters.values()] == defaults


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("Conv1d", {"groups": 3}),
        ("Conv2d", {"groups": 0}),
        ("Conv2d", {"padding": "full"}),
        ("Conv1d", {"padding_mode": "mirror"}),
        ("ConvTranspose2d", {"groups": 3}),
        ("ConvTranspose1d", {"padding_mode": "mirror"}),
    ],
)
def test_wrong_arguments_raise_what_torch_raises(name, kwargs):
    with pytest.raises(ValueError) as expected:  # noqa: PT011 (torch's own words)
        getattr(torch.nn, name)(4, 4, 3, **kwargs)
    with pytest.raises(type(expected.value)):
        getattr(nn, name)(4, 4, 3, **kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("Conv2d", {"padding": "causal"}, ("nn.Conv2d", "1-D only", "nn.Conv1d")),
        ("ConvTranspose1d", {"padding": "causal"}, ("nn.ConvTranspose1d", "nn.Conv1d")),
        ("Conv1d", {"padding": "causal", "padding_mode": "circular"}, ("'circular'", "later entries", "replicate")),
        ("Conv1d", {"padding": "half"}, ("'half'", "'valid', 'same', 'causal'")),
        ("ConvTranspose2d", {"padding": "valid"}, ("'valid'", "'same'")),
        ("ConvTranspose2d", {"padding": "same", "output_padding": 1}, ("'same'", "output_padding")),
        ("ConvTranspose1d", {"padding_mode": "mirror"}, ("'mirror'", "circular")),
    ],
)
def test_wrong_arguments_are_named(name, kwargs, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words follow)
        getattr(nn, name)(4, 4, 3, **kwargs, stride=2)
    for word in words:
        assert word in str(caught.value)


def test_output_size_is_torch_nns():
    torch.manual_seed(0)
    ours, torchs = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), torch.nn.ConvTranspose2d(2, 3, 3, 2, 1)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 2, 3, 4)
    for size in ([5, 8], [2, 3, 6, 7]):
        torch.testing.assert_close(ours(x, output_size=size), torchs(x, output_size=size), rtol=0, atol=0)
        torch.testing.assert_close(ours.formula(**ours.bind(x, output_size=size)), ours(x, output_size=size))
    for layer in (ours, torchs):
        with pytest.raises(ValueError, match="valid sizes range"):
            layer(x, output_size=[9, 9])
    same = nn.ConvTranspose2d(2, 3, 3, stride=2, padding="same")
    assert same(x, output_size=[6, 8]).shape == (2, 3, 6, 8)
    with pytest.raises(ValueError, match=r"nn.ConvTranspose2d: output_size is \[5, 8\], but padding='same'"):
        same(x, output_size=[5, 8])


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_causal_never_reads_ahead(stride, mode):
    layer = nn.Conv1d(2, 3, 3, dilation=2, stride=stride, padding="causal", padding_mode=mode).double()
    x = draw(1, 2, 8)
    y = layer(x)
    for t in range(y.shape[-1]):
        poisoned = x.clone()
        poisoned[..., t * stride + 1 :] = float("nan")
        torch.testing.assert_close(layer(poisoned)[..., : t + 1], y[..., : t + 1], rtol=0, atol=0)


PADDINGS = [0, 2, "valid", "same", "causal"]


@quick
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    spec=options(1),
    padding=st.sampled_from(PADDINGS),
    mode=st.sampled_from(MODES),
)
def test_property_a_sequence_of_a_batch_as_if_alone(lengths, spec, padding, mode):
    channels, arguments, _ = spec
    if padding == "causal" and mode in ("reflect", "circular"):
        return
    layer = nn.Conv1d(*channels, **arguments, padding=padding, padding_mode=mode).double()
    x = draw(len(lengths), channels[0], 9)
    for sequence, length in zip(x, lengths, strict=True):
        sequence[:, length:] = float("nan")
    x.requires_grad_()
    try:
        whole = layer(torch.zeros_like(x)).shape
        alone = [layer(a[None, :, :n])[0] if fits(layer, n) else None for a, n in zip(x, lengths, strict=True)]
    except RuntimeError:
        with pytest.raises(RuntimeError, match=r"^nn\.Conv1d: "):
            layer(x, lengths)
        return
    y = layer(x, lengths)
    assert y.shape == whole
    counts = layer.output_lengths(lengths).tolist()
    for i, expected in enumerate(alone):
        assert counts[i] == (0 if expected is None else expected.shape[-1])
        assert (y[i, :, counts[i] :] == 0).all()
        if expected is not None:
            torch.testing.assert_close(y[i, :, : counts[i]], expected)
    bound = layer.bind(x, lengths)
    torch.testing.assert_close(layer.formula(**bound), y)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    parts = [a.square().sum() for a in alone if a is not None]
    expected = torch.autograd.grad(sum(parts), x)[0] if parts else torch.zeros_like(x)
    torch.testing.assert_close(grad, expected)


def fits(layer, length):
    """Whether a sequence has any output: an empty one has none, however much padding surrounds it."""
    if length == 0:
        return False
    before = layer.padding[0] if isinstance(layer.padding, tuple) else 0
    return layer.padding in ("same", "causal") or length + 2 * before >= layer.reach[0]


def test_lengths_of_every_kind():
    layer = nn.Conv1d(2, 3, 3, padding="same")
    x = torch.randn(2, 2, 7)
    expected = layer(x, torch.tensor([7, 4]))
    for lengths in ([7, 4], (7, 4), torch.tensor([7, 4], dtype=torch.int32), np.array([7, 4])):
        torch.testing.assert_close(layer(x, lengths), expected, rtol=0, atol=0)
    torch.testing.assert_close(layer(x[1], 4), expected[1])
    assert layer(x[:0], []).shape == (0, 3, 7)
    for wrong in ([7, 8], [7, -1], [7]):
        with pytest.raises(RuntimeError, match=r"nn.Conv1d: lengths"):
            layer(x, wrong)
    for refuse in (lambda lengths: layer(x, lengths), layer.output_lengths):
        with pytest.raises(TypeError, match=r"nn.Conv1d: lengths"):
            refuse([7.0, 4.0])


def test_the_window_of_every_output():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(2, 3), padding=(1, 0), groups=2).double()
    x = draw(2, 4, 7, 6)
    y = layer(x)
    for place in itertools.product(*(range(n) for n in y.shape)):
        sample, channel, *position = place
        view = layer.window_at(x, position, channel, sample)
        assert view.output == place
        assert view.entries.shape == view.kernel.shape == (2, 3, 2)
        torch.testing.assert_close((view.entries * view.kernel).sum() + view.bias, y[place])
        one = layer.bind(x, position=position, channel=channel, sample=sample)
        torch.testing.assert_close(layer.formula(**one), y[place])
        for entry in itertools.product(range(3), range(2)):
            row, column = view.coordinates[entry].tolist()
            expected = [position[0] * 2 - 1 + entry[0] * 2, position[1] + entry[1] * 3]
            if view.padding[entry]:
                assert not (0 <= expected[0] < 7 and 0 <= expected[1] < 6)
                assert row == -1 or column == -1
                assert (view.entries[(slice(None), *entry)] == 0).all()
            else:
                assert [row, column] == expected
                torch.testing.assert_close(
                    view.entries[(slice(None), *entry)], x[sample, list(view.channels), row, column]
                )


def test_a_window_that_can_be_checked_by_hand():
    layer = nn.Conv1d(1, 1, 3, dilation=2, padding=3, padding_mode="reflect")
    view = layer.window_at(torch.arange(10.0, 15.0).reshape(1, 1, 5), 0)
    assert view.coordinates.squeeze(-1).tolist() == [3, 1, 1]  # places -3, -1, 1
    assert view.padding.tolist() == [True, True, False]
    assert view.entries.tolist() == [[13.0, 11.0, 11.0]]
    assert view.output == (0, 0, 0)
    assert view.channels == range(1)


def test_a_transposed_window_shows_the_holes():
    layer = nn.ConvTranspose1d(1, 1, 3, stride=2, bias=False)
    layer.weight.data = torch.tensor([[[1.0, 2.0, 3.0]]])
    x = torch.tensor([[[10.0, 20.0]]])
    assert layer(x).flatten().tolist() == [10, 20, 30 + 20, 40, 60]
    view = layer.window_at(x, 2)
    assert view.coordinates.squeeze(-1).tolist() == [0, -1, 1]
    assert view.kernel.tolist() == [[3.0, 2.0, 1.0]]
    assert view.entries.tolist() == [[10.0, 0.0, 20.0]]
    assert view.padding.tolist() == [False, False, False]
    assert layer.window_at(x, 0).padding.tolist() == [True, True, False]
    assert layer.receptive_field == (2,)


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ({"position": 5}, ("position (5,)", "length 5")),
        ({"position": (1, 1)}, ("position (1, 1)",)),
        ({"position": 0, "channel": 6}, ("out channel 6", "6")),
        ({"position": 0, "sample": 2}, ("sample 2", "batch of 2")),
    ],
)
def test_a_window_that_is_not_there(which, words):
    with pytest.raises(IndexError) as caught:
        nn.Conv1d(4, 6, 3).window_at(torch.zeros(2, 4, 7), **which)
    for word in ("nn.Conv1d", *words):
        assert word in str(caught.value)


def test_the_window_of_a_sequence_with_a_length():
    layer = nn.Conv1d(2, 3, 3, padding="same", stride=2).double()
    x, lengths = draw(2, 2, 7), [7, 4]
    y = layer(x, lengths)
    for place in itertools.product(range(2), range(3), range(4)):
        sample, channel, position = place
        one = layer.bind(x, lengths, position=position, channel=channel, sample=sample)
        torch.testing.assert_close(layer.formula(**one), y[place])
    assert layer.window_at(x, 1, sample=1, lengths=lengths).coordinates.squeeze(-1).tolist() == [2, 3, -1]


def test_symbols_say_why():
    layer = nn.Conv2d(12, 16, 5, groups=2, padding="same", stride=2)
    x, weight, bias, y = layer.symbols(torch.zeros(3, 12, 9, 8))
    assert weight.shape == (16, 6, 5, 5) == tuple(layer.weight.shape)
    assert weight.axes == ("out channels", "in channels per group", "kernel height", "kernel width")
    assert (weight.reason, weight.trainable, weight.facts["groups"]) == ("conv.weight.grouped", True, 2)
    assert (bias.shape, bias.reason) == ((16,), "conv.bias")
    assert (x.shape, x.axes) == ((3, 12, 9, 8), ("batch", "in channels", "height", "width"))
    assert (y.shape, y.axes) == (
        tuple(layer(torch.zeros(3, 12, 9, 8)).shape),
        ("batch", "out channels", "height", "width"),
    )
    (weight,) = nn.ConvTranspose1d(4, 6, 3, bias=False).symbols()
    assert (weight.axes[:2], weight.reason) == (("in channels", "out channels per group"), "conv.weight.transposed")
    assert nn.Conv2d(1, 1, (3, 5), dilation=2).receptive_field == (5, 9)


OWN = [
    nn.Conv1d(2, 4, 3, padding="causal", dilation=2),
    nn.Conv2d(2, 4, (4, 3), padding="same", stride=2),
    nn.ConvTranspose2d(2, 4, 3, padding="same", stride=2, padding_mode="circular"),
]


def example(layer):
    return draw(2, 2, *[6, 5][: layer.spatial]).float()


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 4, 3, padding=1), *OWN[1:]], ids=repr)
def test_channels_last_is_kept(layer):
    x = example(layer)
    y = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, layer.to(memory_format=torch.contiguous_format)(x))


@pytest.mark.parametrize("layer", OWN, ids=repr)
def test_low_precision_and_autocast(layer):
    x = example(layer)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)  # 8 bits of mantissa
    half = type(layer)(2, 4, 3, padding="same", dtype=torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("layer", OWN, ids=repr)
def test_compiles_as_one_graph(layer):
    x = example(layer).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (6, 9):
        x = draw(2, 2, *[size, 5][: layer.spatial]).float().requires_grad_()
        y, expected = compiled(x), layer(x)
        torch.testing.assert_close(y, expected)
        grads = [torch.autograd.grad(z.square().sum(), (x, layer.weight))[0] for z in (y, expected)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("mode", MODES)
def test_lengths_compile_as_one_graph(mode):
    torch._dynamo.reset()
    layer = nn.Conv1d(2, 4, 3, padding="same", stride=2, padding_mode=mode)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, lengths = draw(3, 2, 9).float(), torch.tensor([9, 4, 0])
    torch.testing.assert_close(compiled(x, lengths), layer(x, lengths))


@pytest.mark.parametrize("layer", OWN, ids=repr)
def test_vmap_and_gradients_per_sample(layer):
    x = example(layer)
    torch.testing.assert_close(torch.vmap(layer)(x), layer(x))
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        expected = torch.func.grad(loss)(parameters, sample)
        for name, value in expected.items():
            torch.testing.assert_close(each[name][i], value)


def test_vmap_over_lengths():
    layer = nn.Conv1d(2, 4, 3, padding="same")
    x, lengths = draw(3, 2, 7).float(), torch.tensor([7, 4, 0])
    torch.testing.assert_close(torch.vmap(layer)(x, lengths), layer(x, lengths))


@pytest.mark.parametrize("layer", OWN, ids=repr)
def test_exports_with_a_dynamic_size(layer):
    x = draw(2, 2, *[8, 6][: layer.spatial]).float()
    program = torch.export.export(
        layer,
        (x,),
        dynamic_shapes={"input": {0: torch.export.Dim("batch"), 2: torch.export.Dim("size", min=5, max=64)}},
    )
    other = draw(3, 2, *[7, 6][: layer.spatial]).float()
    torch.testing.assert_close(program.module()(other), layer(other))


def test_torch_tools_see_a_layer_of_torch_nn():
    layer = nn.Conv2d(2, 4, 3, padding=1, stride=2)
    x = example(layer)
    expected = layer(x)
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), expected)
    torch.nn.utils.parametrizations.weight_norm(layer)
    torch.testing.assert_close(layer(x), expected)
    lazy = nn.LazyConv2d(4, 3)
    assert lazy(x).shape == (2, 4, 4, 3)


def test_an_independent_reference_with_torchs_padding():
    layer = nn.Conv1d(2, 3, 4, stride=2, padding="same")
    x = torch.randn(1, 2, 63)
    assert layer(x).shape == (1, 3, 32)
    torch.testing.assert_close(layer(x), F.conv1d(F.pad(x, (1, 2)), layer.weight, layer.bias, 2))
    layer = nn.Conv1d(2, 3, 4, stride=2, dilation=3, padding="causal")
    torch.testing.assert_close(layer(x), F.conv1d(F.pad(x, (9, 0)), layer.weight, layer.bias, 2, dilation=3))


# -- memory formats ---------------------------------------------------------------------------------------------------

LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def stands_last(y):
    """Whether the channels of every place stand side by side, and torch sees it, one channel or many."""
    return y.stride(1) == 1 and y.is_contiguous(memory_format=LAST[y.ndim - 2])


def given_grads(layer, x):
    y = layer(x)
    return y, torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])


FORMATTED = {
    "plain": (nn.Conv2d, (4, 6, 3), {"padding": 1}, (2, 4, 7, 5)),
    "strided and same": (nn.Conv2d, (4, 6, 3), {"padding": "same", "stride": 2}, (2, 4, 7, 5)),
    "reflect": (nn.Conv2d, (4, 6, 3), {"padding": 1, "padding_mode": "reflect"}, (2, 4, 7, 5)),
    "circular": (nn.Conv2d, (4, 6, 3), {"padding": 1, "padding_mode": "circular"}, (2, 4, 7, 5)),
    "circular and same": (
        nn.Conv2d,
        (4, 6, 3),
        {"padding": "same", "stride": 2, "padding_mode": "circular"},
        (2, 4, 7, 5),
    ),
    "depthwise": (nn.Conv2d, (4, 4, 3), {"groups": 4}, (2, 4, 7, 5)),
    "pointwise": (nn.Conv2d, (4, 6, 1), {}, (2, 4, 7, 5)),
    "one channel": (nn.Conv2d, (1, 6, 3), {}, (2, 1, 7, 5)),
    "one place": (nn.Conv2d, (4, 6, 1), {}, (2, 4, 1, 1)),
    "volume": (nn.Conv3d, (2, 3, 2), {"padding": 1, "padding_mode": "circular"}, (2, 2, 4, 3, 5)),
}


@pytest.mark.parametrize("by", ["auto", "c"])
@pytest.mark.parametrize(("kind", "args", "kwargs", "shape"), FORMATTED.values(), ids=FORMATTED)
def test_channels_last_changes_strides_alone(kind, args, kwargs, shape, by):
    torch.manual_seed(0)
    layer, x = kind(*args, **kwargs).double(), draw(*shape).requires_grad_()
    strides = [w.stride() for w in layer.parameters()]
    with pellucid.backend(by):
        expected, grads = given_grads(layer, x)
        layer.memory_format = LAST[layer.spatial]
        for _ in range(2):  # the second call is left to torch on shorter ways
            y, found = given_grads(layer, x)
            torch.testing.assert_close(y, expected)
            torch.testing.assert_close(found, grads)
            assert max(y.shape[2:]) == 1 or stands_last(y)
        assert layer._formatted(y) is y  # what stands so already is not copied
        alone = layer(x[0])
    torch.testing.assert_close(alone, expected[0])
    assert alone.is_contiguous()
    assert [w.stride() for w in layer.parameters()] == strides
    layer.memory_format = None
    torch.testing.assert_close(layer(x), expected)
    assert "_memory_format" not in vars(layer)


def test_a_picture_that_was_turned_is_brought_into_the_format():
    layer, x = nn.Conv2d(4, 6, 3).double(), draw(2, 4, 7, 5)
    layer.memory_format = torch.channels_last
    turned = x.contiguous(memory_format=torch.channels_last).mT
    assert turned.stride(1) == 1
    y = layer(turned)
    assert stands_last(y)
    torch.testing.assert_close(y, F.conv2d(x.mT, layer.weight, layer.bias))


def test_a_pooled_convolution_takes_the_format_too():
    layer, x = nn.ConvPool2d(3, 4, 3).double(), draw(2, 3, 9, 8)
    expected = layer(x)
    layer.convolution.memory_format = torch.channels_last
    for by in ("auto", "c"):
        with pellucid.backend(by):
            y = layer(x)
        torch.testing.assert_close(y, expected)
        assert stands_last(y)


def test_transforms_and_autocast_go_through_the_format():
    layer, xs = nn.Conv2d(3, 4, 3, padding=1).double(), draw(2, 2, 3, 5, 6)
    expected = layer(xs[1])
    loss = lambda x: layer(x).sin().sum()  # noqa: E731
    grad, second = torch.func.grad(loss)(xs[1]), torch.func.grad(lambda x: torch.func.grad(loss)(x).sum())(xs[1])
    layer.memory_format = torch.channels_last
    torch.testing.assert_close(torch.vmap(layer)(xs)[1], expected)
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(xs)[1], grad)
    torch.testing.assert_close(torch.func.grad(lambda x: torch.func.grad(loss)(x).sum())(xs[1]), second)
    value, tangent = torch.func.jvp(layer, (xs[1],), (xs[0],))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(tangent, F.conv2d(xs[0], layer.weight, padding=1))
    with torch.autocast("cpu"):
        y = layer.float()(xs[1].float())
    assert y.dtype == torch.bfloat16
    assert stands_last(y)


def test_a_compiled_layer_notices_its_format():
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 5, 6)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    expected = compiled(x)
    layer.memory_format = torch.channels_last
    y = compiled(x)
    torch.testing.assert_close(y, expected)
    assert stands_last(y)
    assert stands_last(compiled(torch.randn(3, 3, 7, 6)))
    exported = torch.export.export(layer, (x,)).module()
    assert stands_last(exported(x))
    assert stands_last(torch.jit.trace(layer, x)(x))
    layer.memory_format = None
    assert compiled(x).is_contiguous()


def test_a_format_is_shown_kept_and_checked():
    layer = nn.Conv2d(3, 4, 3)
    plain = repr(layer)
    assert layer.memory_format is None
    layer.memory_format = torch.channels_last
    assert repr(layer) == f"{plain[:-1]}, memory_format=torch.channels_last)"
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.memory_format is torch.channels_last
    assert nn.Conv3d(1, 1, 1).memory_format is None  # it is the object's, not the class's
    for wrong in ("channels_last", torch.channels_last_3d, torch.contiguous_format):
        with pytest.raises(
            ValueError, match=rf"nn.Conv2d: memory_format is .*{wrong}.*torch.channels_last, or to None"
        ):
            layer.memory_format = wrong
    assert layer.memory_format is torch.channels_last


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("size", [1, 3])
def test_a_result_whose_channels_stand_last_may_be_written_to(size, groups):
    ours = nn.Conv2d(6, 6, size, groups=groups)
    theirs = torch.nn.Conv2d(6, 6, size, groups=groups)
    theirs.load_state_dict(ours.state_dict())
    x = torch.linspace(-1, 1, 2 * 6 * 5 * 4).view(2, 5, 4, 6).permute(0, 3, 1, 2).requires_grad_()
    found = []
    for layer in (ours, theirs):
        with pellucid.backend("c"):
            y = torch.relu_(layer(x))
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
