"""Normalization: padding against the unpadded computation, far-off inputs, every type, and batches of two processes."""

from __future__ import annotations

import copy
import datetime
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pellucid
from pellucid import nn
from pellucid.nn.normalization import batch_norm
from pellucid.nn.normalization.averages import Grouped, Neighbours, Over
from pellucid.nn.normalization.formula import normalize
from pellucid.nn.normalization.normalization import SMALL
from tensors import draw

GARBAGE = (float("nan"), float("inf"), 1e30)


def padded(lengths: list[int], channels: int, first: bool, garbage: float) -> torch.Tensor:
    """Draw (batch, channels, time) or (batch, time, channels), float64, with garbage behind each length."""
    x = draw(len(lengths), max(lengths), channels) * 3 + 5
    for row, length in zip(x, lengths, strict=True):
        row[length:] = garbage
    return x.transpose(1, 2).contiguous() if first else x


def trained(layer: torch.nn.Module) -> torch.nn.Module:
    """Give a layer weights that are not 1 and 0."""
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.linspace(0.5, 2, parameter.numel()).reshape(parameter.shape) + index)
    return layer.double()


def grads(layer: torch.nn.Module, x: torch.Tensor, run) -> dict[str, torch.Tensor]:
    """Return the gradients of a weighted sum of what ``run`` makes of the input."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = run(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    (y * weights).sum().backward()
    return {"input": x.grad} | {name: p.grad for name, p in layer.named_parameters()}


some_lengths = st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(lambda lengths: max(lengths) > 1)

# What each member computes for the real steps of one sample, (1, channels, length) or (1, length, features).
ALONE = {
    "InstanceNorm1d": ((4,), {"affine": True}, True),
    "GroupNorm": ((2, 4), {}, True),
    "LocalResponseNorm": ((3,), {"alpha": 0.5}, True),
    "LayerNorm": ((4,), {}, False),
    "RMSNorm": ((4,), {}, False),
}


@pytest.mark.parametrize("name", ALONE)
@settings(max_examples=25, deadline=None)
@given(lengths=some_lengths, garbage=st.sampled_from(GARBAGE), by_mask=st.booleans())
def test_padding_is_as_if_absent(name, lengths, garbage, by_mask):
    args, options, first = ALONE[name]
    layer, reference = (trained(getattr(source, name)(*args, **options)) for source in (nn, torch.nn))
    x = padded(lengths, 4, first, garbage)
    time = 2 if first else 1

    def alone(x):
        rows = torch.zeros_like(x)
        for index, length in enumerate(lengths):
            real = x[index : index + 1].narrow(time, 0, length)
            if length == 1 and name == "InstanceNorm1d":  # torch refuses it: a lone value is its own mean
                rows[index].narrow(time - 1, 0, 1).copy_(reference.bias.unsqueeze(-1))
            elif length:
                rows[index].narrow(time - 1, 0, length).copy_(reference(real)[0])
        return rows

    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(-1)
    call = {"mask": mask} if by_mask else {"lengths": lengths}
    y = layer(x, **call)
    torch.testing.assert_close(y, alone(x))
    expected = grads(reference, x, alone)
    for key, grad in grads(layer, x, lambda x: layer(x, **call)).items():
        torch.testing.assert_close(grad, expected[key].nan_to_num(0.0) if key == "input" else expected[key], msg=key)


@pytest.mark.parametrize("momentum", [0.1, None])
@settings(max_examples=25, deadline=None)
@given(batches=st.lists(some_lengths, min_size=1, max_size=3), garbage=st.sampled_from(GARBAGE))
def test_batch_norm_of_the_real_steps(momentum, batches, garbage):
    """Several batches in training, then one in eval, against torch on the real steps alone."""
    layer, reference = (trained(source.BatchNorm1d(3, momentum=momentum)) for source in (nn, torch.nn))
    for training, lengths in [*((True, lengths) for lengths in batches), (False, batches[0])]:
        layer.train(training)
        reference.train(training)
        x = padded(lengths, 3, True, garbage)
        real = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(-1)

        def together(x, real=real):
            steps = x.transpose(1, 2)
            return torch.zeros_like(steps).masked_scatter(real.unsqueeze(-1), reference(steps[real])).transpose(1, 2)

        expected = grads(reference, x, together)
        for key, grad in grads(layer, x, lambda x, lengths=lengths: layer(x, lengths=lengths)).items():
            torch.testing.assert_close(grad, expected[key].nan_to_num(0.0), msg=key)
        for key, value in reference.state_dict().items():
            torch.testing.assert_close(layer.state_dict()[key], value, msg=key)
        reference.eval()
        torch.testing.assert_close(layer.eval()(x, lengths=lengths), together(x))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), names=st.sampled_from([("BatchNorm2d", 2), ("BatchNorm3d", 3)]))
def test_batch_norm_under_a_mask_with_holes(seed, names):
    name, space = names
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, *(3, 2, 2)[:space], generator=generator) < 0.6
    mask.flatten()[:2] = True
    layer, reference = (trained(getattr(source, name)(4)) for source in (nn, torch.nn))
    x = torch.randn(2, 4, *mask.shape[1:], dtype=torch.float64, generator=generator)
    pixels = x.movedim(1, -1)[mask]  # (pixels, 4)
    expected = reference(pixels.reshape(-1, 4, *(1,) * space)).reshape(-1, 4)
    y = layer(x.masked_fill(~mask.unsqueeze(1), float("nan")), mask=mask)
    torch.testing.assert_close(y.movedim(1, -1)[mask], expected)
    assert (y.movedim(1, -1)[~mask] == 0).all()
    torch.testing.assert_close(layer.running_var, reference.running_var)


def test_instance_norm_remembers_real_samples():
    """A sample without steps says nothing, one with a single step nothing of the variance."""
    lengths = [5, 0, 2, 1]
    layer = trained(nn.InstanceNorm1d(3, affine=True, track_running_stats=True))
    x = padded(lengths, 3, True, float("nan"))
    layer(x, lengths=lengths)
    samples = [x[i, :, :length] for i, length in enumerate(lengths)]
    mean = torch.stack([s.mean(1) for s in samples if s.shape[1]]).mean(0)
    var = torch.stack([s.var(1) for s in samples if s.shape[1] > 1]).mean(0)
    torch.testing.assert_close(layer.running_mean, 0.1 * mean)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * var)
    reference = trained(torch.nn.InstanceNorm1d(3, affine=True, track_running_stats=True))
    reference.load_state_dict(layer.state_dict())
    y = layer.eval()(x, lengths=lengths)
    torch.testing.assert_close(y[0], reference.eval()(x[:1])[0])
    assert (y[1] == 0).all()


def test_statistics_over_padded_steps_of_a_layer_norm():
    lengths = [3, 1]
    x = padded(lengths, 4, False, float("nan"))
    for name in ("LayerNorm", "RMSNorm"):
        layer = trained(getattr(nn, name)((3, 4), eps=1e-5))
        y = layer(x, lengths=lengths)
        for row, values, length in zip(y, x, lengths, strict=True):
            real = values[:length]
            moved = real - real.mean() if name == "LayerNorm" else real
            expected = moved / (moved.square().mean() + 1e-5).sqrt() * layer.weight[:length]
            expected = expected + layer.bias[:length] if name == "LayerNorm" else expected
            torch.testing.assert_close(row[:length], expected)
            assert (row[length:] == 0).all()


@pytest.mark.parametrize(
    ("mask", "same_as"),
    [
        (torch.tensor([True, True, False]), [[1, 1, 0], [1, 1, 0]]),
        (torch.tensor([[True], [False]]), [[1, 1, 1], [0, 0, 0]]),
        (torch.tensor(True), [[1, 1, 1], [1, 1, 1]]),
    ],
    ids=["time", "batch", "all"],
)
@pytest.mark.parametrize("name", ["BatchNorm1d", "LayerNorm", "GroupNorm", "Normalization"])
def test_masks_broadcast(name, mask, same_as):
    args = {"GroupNorm": (2, 4), "Normalization": ((0, 1), 2, 4)}.get(name, (4,))
    layer = trained(getattr(nn, name)(*args))
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    x = x if name in ("LayerNorm", "Normalization") else x.transpose(1, 2)
    full = torch.tensor(same_as).bool()
    if name == "Normalization":
        mask, full = mask.unsqueeze(-1), full.unsqueeze(-1)
    torch.testing.assert_close(layer(x, mask=mask), copy.deepcopy(layer)(x, mask=full))


# -- running statistics ------------------------------------------------------------------------------------------


def test_bind_does_not_learn():
    x = torch.randn(4, 3, 5)
    for layer in (nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True)):
        before = copy.deepcopy(layer.state_dict())
        layer.bind(x)
        layer.formula(**layer.bind(x, lengths=[5, 2, 3, 1]))
        for key, value in layer.state_dict().items():
            assert torch.equal(value, before[key])


def test_a_batch_of_padding_teaches_nothing():
    layer = nn.BatchNorm1d(3)
    x = torch.full((2, 3, 4), float("nan"), requires_grad=True)
    y = layer(x, lengths=[0, 0])
    assert torch.equal(y, torch.zeros(2, 3, 4))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros(2, 3, 4))
    assert torch.equal(layer.running_mean, torch.zeros(3))
    assert torch.equal(layer.running_var, torch.ones(3))
    with pytest.raises(ValueError, match=r"nn.BatchNorm1d.*more than 1 value.*one entry"):
        layer(x, lengths=[0, 1])
    y = layer.eval()(torch.ones(2, 3, 4), lengths=[0, 1])
    torch.testing.assert_close(y[1, :, 0], torch.full((3,), (1 + 1e-5) ** -0.5))


def test_the_unbiased_variance_has_all_digits():
    """The counts of instance norm and of padding are integers, whose quotient alone would be of float32."""
    x = torch.randn(4, 3, 20, dtype=torch.float64)
    for name in ("InstanceNorm1d", "BatchNorm1d"):
        layer, reference = (getattr(made, name)(3, track_running_stats=True).double() for made in (nn, torch.nn))
        layer(x, lengths=[20] * 4)
        reference(x)
        torch.testing.assert_close(layer.running_var, reference.running_var, rtol=1e-14, atol=0)


def test_track_running_stats_off():
    layer, reference = (source.BatchNorm1d(3, track_running_stats=False).double() for source in (nn, torch.nn))
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    for training in (True, False):
        y = layer.train(training)(x, mask=torch.ones(4, 5).bool())
        torch.testing.assert_close(y, reference.train(training)(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_running_statistics_whose_keeping_is_switched_later(track, training):
    layer, reference = (source.InstanceNorm1d(3, track_running_stats=True) for source in (nn, torch.nn))
    x = torch.randn(4, 3, 5)
    for each in (layer, reference):
        each.train(training).track_running_stats = track
    torch.testing.assert_close(layer(x), reference(x))
    torch.testing.assert_close(layer.state_dict(), reference.state_dict())


@pytest.mark.parametrize("missing", ["running_mean", "running_var"])
@pytest.mark.parametrize("name", ["BatchNorm1d", "InstanceNorm1d"])
def test_eval_without_running_statistics_is_named(name, missing):
    layer = getattr(nn, name)(3, track_running_stats=True).eval()
    setattr(layer, missing, None)
    with pytest.raises(RuntimeError, match=rf"nn.{name}: in eval, {missing} must be defined"):
        layer(torch.ones(4, 3, 5))


# -- numbers -----------------------------------------------------------------------------------------------------

BY_FORMULA = [
    pytest.param(lambda: nn.BatchNorm1d(16), {"mask": torch.ones(64, 1).bool().expand(64, 40)}, (0, 2), id="batch"),
    pytest.param(lambda: nn.InstanceNorm1d(16), {"lengths": [40] * 64}, (2,), id="instance"),
    pytest.param(lambda: nn.Normalization((0, 2)), {}, (0, 2), id="general"),
    pytest.param(lambda: nn.GroupNorm(1, 16), {"lengths": [40] * 64}, (1, 2), id="group"),
]


@pytest.mark.parametrize(("make", "call", "axes"), BY_FORMULA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_from_zero(make, call, axes, dtype):
    """Mean 1e4, deviation 1e-2: the input's own rounding is 10% of it, the layer must add next to nothing."""
    x = (torch.randn(64, 16, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-2 + 1e4).to(
        dtype
    )
    layer = make().to(dtype)
    exact = x.to(torch.float64)  # in float64 the two-pass formula loses 1e-16·1e4/1e-2 = 1e-10 at most
    moved = exact - exact.mean(axes, keepdim=True)
    expected = moved / (moved.square().mean(axes, keepdim=True) + 1e-5).sqrt()
    bound = {torch.float32: 20 * torch.finfo(torch.float32).eps, torch.float64: 1e-9}[dtype]
    y = layer(x.requires_grad_(), **call)
    torch.testing.assert_close(y.double(), expected, rtol=bound, atol=bound)
    weights = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (y * weights.to(dtype)).sum().backward()
    exact.requires_grad_()
    moved = exact - exact.mean(axes, keepdim=True)
    (moved / (moved.square().mean(axes, keepdim=True) + 1e-5).sqrt() * weights).sum().backward()
    largest = float(exact.grad.abs().max())
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=bound, atol=bound * largest)
    if isinstance(layer, nn.BatchNorm1d):
        torch.testing.assert_close(
            layer.running_var.double(), 0.9 + 0.1 * exact.detach().var((0, 2)), rtol=bound, atol=0
        )


@pytest.mark.parametrize(("mean", "backend"), [(0.3, "torch"), (1e4, "c"), (torch.nan, "c")])
def test_what_earlier_batches_left_is_far_from_zero(mean, backend):
    """In eval torch's operator, which loses digits there, runs only where it does not."""
    layer = nn.BatchNorm2d(3).eval()
    layer.running_mean[1], layer.running_var[1] = mean, 1e-4
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64) * 1e-2 + layer.running_mean.double().view(-1, 1, 1)
    x = x.float()
    expected = (x.double() - layer.running_mean.double().view(-1, 1, 1)) / (
        layer.running_var.double().view(-1, 1, 1) + 1e-5
    ).sqrt()
    y = layer(x)
    assert layer.backend == backend
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


TYPES = [
    ("BatchNorm1d", (4,)),
    ("InstanceNorm1d", (4, 1e-5, 0.1, True, True)),
    ("GroupNorm", (2, 4)),
    ("LayerNorm", (6,)),
    ("RMSNorm", (6,)),
    ("LocalResponseNorm", (3,)),
    ("Normalization", (1, 2, 6)),
]


@pytest.mark.parametrize("padding", [False, True], ids=["plain", "lengths"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "args"), TYPES, ids=[name for name, _ in TYPES])
def test_half_types_with_float32_weights(name, args, dtype, training, padding):
    layer = trained(getattr(nn, name)(*args)).float().train(training)
    exact = copy.deepcopy(layer).double()
    x = (torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)) * 2 + 1).to(dtype)
    call = {"lengths": [4, 2, 3]} if padding else {}
    y = layer(x, **call)
    assert y.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), exact(x.double(), **call), rtol=eps, atol=1e-5 if training else eps)
    for key, value in exact.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key].double(), value.double(), rtol=1e-5, atol=1e-6)
    weak = copy.deepcopy(layer).to(dtype)
    assert weak(x, **call).dtype == dtype


def test_autocast_and_meta():
    x = torch.randn(2, 3, 4)
    for name, args in (("BatchNorm1d", (3,)), ("LayerNorm", (4,)), ("GroupNorm", (3, 3))):
        layer = getattr(nn, name)(*args)
        reference = getattr(torch.nn, name)(*args)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for given in (x, x.bfloat16()):
                assert layer(given).dtype == reference(given).dtype
                assert layer(given, mask=torch.ones(1, 1).bool()).dtype == given.dtype or name == "LayerNorm"
        assert layer.to("meta")(x.to("meta"), mask=torch.ones(1, 1).bool()).shape == x.shape


# -- the family --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("general", "member"),
    [
        ((-1, -1, 6), nn.LayerNorm(6)),
        (((1, 2), (1, 2), (4, 6)), nn.LayerNorm((4, 6))),
        (((0, 2), 1, 4), nn.BatchNorm1d(4)),
        ((2, 1, 4), nn.InstanceNorm1d(4, affine=True)),
        (((1, 2), 1, 4), nn.GroupNorm(1, 4)),
    ],
    ids=["LayerNorm", "LayerNorm2", "BatchNorm1d", "InstanceNorm1d", "GroupNorm"],
)
def test_the_general_member_is_each(general, member):
    layer, member = trained(nn.Normalization(*general)), trained(member)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), member(x))
    expected = grads(member, x, member)
    for key, grad in grads(layer, x, layer).items():
        torch.testing.assert_close(grad, expected[key], msg=key)


def test_axes_out_of_order():
    layer = trained(nn.Normalization((1, 3), (3, 0), (2, 5)))
    x = torch.randn(5, 4, 3, 2, dtype=torch.float64)
    moved = x - x.mean((1, 3), keepdim=True)
    expected = moved / (moved.square().mean((1, 3), keepdim=True) + 1e-5).sqrt()
    gamma, beta = layer.weight.t()[:, None, None, :], layer.bias.t()[:, None, None, :]
    torch.testing.assert_close(layer(x), expected * gamma + beta)


@pytest.mark.parametrize(
    ("layer", "shape", "axes"),
    [
        (nn.BatchNorm2d(3), (2, 3, 4, 5), ((0, "batch"), (2, "height"), (3, "width"))),
        (nn.LayerNorm(5), (2, 3, 5), ((2, "features"),)),
        (nn.InstanceNorm1d(3), (3, 5), ((1, "length"),)),
        (nn.GroupNorm(3, 3), (2, 3, 4), ((1, "channels"), (2, "length"))),
        (nn.RMSNorm((3, 5)), (2, 3, 5), ((1, "feature axis 1"), (2, "feature axis 2"))),
        (nn.LocalResponseNorm(3), (2, 3, 5), ((1, "channels"),)),
        (nn.Normalization((-1, 0)), (2, 3), ((1, "axis 1"), (0, "axis 0"))),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_the_direction_of_the_average(layer, shape, axes):
    x = torch.randn(shape)
    assert layer.averaged_axes(x) == axes
    bound = layer.bind(x)
    first = bound["average"](bound["x"])
    told = {symbol.name: symbol for symbol in layer.symbols(x)}
    if len(shape) == bound["x"].ndim:
        assert told.get("mu", told.get("mean_square")).shape == tuple(first.shape)
    parameters = dict(layer.named_parameters())
    for name, title in (("gamma", "weight"), ("beta", "bias")):
        assert (name in told) == (title in parameters)
        if name in told:
            assert told[name].shape == tuple(parameters[title].shape)
            assert told[name].trainable
            assert told[name].facts == {"parameter": title}


def test_symbols_without_an_input():
    names = [symbol.name for symbol in nn.BatchNorm1d(3).symbols()]
    assert names == ["gamma", "beta", "running_mean", "running_var"]
    assert nn.LocalResponseNorm(3).symbols() == []


def test_averages():
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(Grouped(2)(x)[:, 1], x[:, :2].mean((1, 2)).unsqueeze(-1))
    torch.testing.assert_close(Neighbours(3)(x)[:, 0], (x[:, 0] + x[:, 1]) / 3)
    torch.testing.assert_close(Neighbours(2)(x)[:, 1], (x[:, 0] + x[:, 1]) / 2)
    real = torch.tensor([[[True, False, True]], [[False, False, False]]])
    torch.testing.assert_close(Over((2,), real)(x)[0], x[0][:, [0, 2]].mean(1, keepdim=True))
    assert torch.equal(Over((2,), real)(x)[1], torch.zeros(4, 1, dtype=torch.float64))


def test_the_formula_on_paper():
    x = torch.tensor([[1.0, 2, 3, 4]], dtype=torch.float64)
    y = normalize(x, average=lambda v: v.mean(-1, keepdim=True), gamma=2.0, beta=1.0, eps=0.0)
    torch.testing.assert_close(y, (x - 2.5) / 1.25**0.5 * 2 + 1)


def test_members_are_torchs():
    made = [nn.BatchNorm1d(2), nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.InstanceNorm2d(2), nn.RMSNorm(2)]
    made += [nn.LocalResponseNorm(2), nn.SyncBatchNorm(2)]
    for layer in made:
        assert isinstance(layer, getattr(torch.nn, type(layer).__name__))
    assert nn.RMSNorm(2)(x=torch.ones(1, 2)).shape == (1, 2)
    assert nn.LayerNorm(2)(input=torch.ones(1, 2)).shape == (1, 2)


# -- refusals ----------------------------------------------------------------------------------------------------


def test_refused_padding():
    x = torch.ones(2, 3, 4)
    layer = torch.nn.Sequential(nn.BatchNorm1d(3))[0]
    with pytest.raises(ValueError, match=r"nn.BatchNorm1d.*lengths and mask"):
        layer(x, lengths=[1, 2], mask=torch.ones(2, 4).bool())
    with pytest.raises(TypeError, match=r"mask is of torch.int64.*True at real"):
        layer(x, mask=torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(RuntimeError, match=r"mask has the shape \(2, 3\).*batch 2, length 4"):
        layer(x, mask=torch.ones(2, 3).bool())
    with pytest.raises(RuntimeError, match=r"broadcast"):
        layer(x, mask=torch.ones(1, 1, 2, 4).bool())
    with pytest.raises(RuntimeError, match=r"lengths\[1\] is 5"):
        layer(x, lengths=[4, 5])
    with pytest.raises(ValueError, match=r"no axis is known to be time.*\(2, 4, 5\)"):
        nn.BatchNorm2d(3)(torch.ones(2, 3, 4, 5), lengths=[1, 2])
    with pytest.raises(ValueError, match="no axis is known to be time"):
        nn.LayerNorm(3)(torch.ones(2, 3), lengths=[1, 2])


def test_refused_types():
    for layer in (nn.BatchNorm1d(3), nn.LayerNorm(3), nn.RMSNorm(3), nn.GroupNorm(1, 3)):
        with pytest.raises(NotImplementedError, match=r"complex64.*view_as_real"):
            layer(torch.ones(2, 3, dtype=torch.complex64))
        with pytest.raises(NotImplementedError, match=r"int64.*x.float"):
            layer(torch.ones(2, 3, dtype=torch.int64))


@pytest.mark.parametrize("size", [5, 6000])
@pytest.mark.parametrize("types", [(torch.float32, torch.float64), (torch.float64, torch.bfloat16)])
def test_rms_norm_takes_weights_of_any_type(types, size):
    layer, reference = (kind(size, dtype=types[1]) for kind in (nn.RMSNorm, torch.nn.RMSNorm))
    for each in (layer, reference):
        torch.nn.init.constant_(each.weight, 0.3)
    x = torch.linspace(-1, 3, 2 * size, dtype=types[0]).reshape(2, size)
    torch.testing.assert_close(layer(x), reference(x))


@pytest.mark.parametrize("size", [2, 200_000])
@pytest.mark.parametrize("make", [lambda: nn.LayerNorm(3), lambda: nn.GroupNorm(1, 3), lambda: nn.BatchNorm1d(3)])
def test_parameters_of_another_type_than_the_input(make, size):
    x = torch.linspace(-1, 3, 3 * size).reshape(size, 3)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(
            RuntimeError, match=rf"nn\.\w+: the input is of torch.float32, but .* of {dtype}. Pass x.to"
        ):
            make().to(dtype)(x)
        assert make()(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [5, 200_000])
@pytest.mark.parametrize("types", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_instance_norm_remembers_in_any_type(types, size, training):
    layer, reference = (source.InstanceNorm1d(3, track_running_stats=True).to(types[1]) for source in (nn, torch.nn))
    x = torch.linspace(-1, 3, 3 * size, dtype=types[0]).reshape(1, 3, size)
    torch.testing.assert_close(layer.train(training)(x), reference.train(training)(x))
    torch.testing.assert_close(layer.state_dict(), reference.state_dict())


def test_batch_norm_trains_with_a_positive_eps():
    layer, x = nn.BatchNorm1d(3), torch.randn(4, 3)
    layer(x)
    layer.eps = 0.0
    with pytest.raises(ValueError, match=r"nn.BatchNorm1d: in training eps must be positive, but it is 0"):
        layer(x)
    torch.testing.assert_close(layer.eval()(x), (x - layer.running_mean) / layer.running_var.sqrt())


@pytest.mark.parametrize("training", [True, False])
def test_onednns_own_layout(training):
    layer, x = nn.BatchNorm2d(3).train(training), torch.randn(2, 3, 4, 5)
    y = layer(x.to_mkldnn())
    assert y.layout is torch._mkldnn
    torch.testing.assert_close(y.to_dense(), torch.nn.BatchNorm2d(3).train(training)(x))


def test_one_value_per_channel_without_running_statistics():
    layer = nn.BatchNorm1d(3, track_running_stats=False).eval()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.ones(1, 3))


@pytest.mark.parametrize("count", [8, 70000])
def test_channels_that_were_cut_out(count):
    """Whoever prunes replaces the tensors, and may leave num_features as it was; torch does not ask for it."""
    layer, reference = nn.BatchNorm1d(4).eval(), torch.nn.BatchNorm1d(4).eval()
    for each in (layer, reference):
        for store in (each._parameters, each._buffers):
            store.update({name: value[:3] + 0.5 for name, value in store.items() if value.ndim})
    x = torch.linspace(-1, 3, 3 * count).reshape(count, 3)
    torch.testing.assert_close(layer(x), reference(x))


@pytest.mark.parametrize("layer", [nn.LayerNorm(3), nn.RMSNorm(3), nn.GroupNorm(1, 3), nn.BatchNorm1d(3)])
@pytest.mark.parametrize("backend", ["c", "auto"])
def test_a_parametrized_weight_is_computed_once(layer, backend):
    class Counted(torch.nn.Module):
        count = 0

        def forward(self, weight):
            Counted.count += 1
            return 2 * weight

    layer = copy.deepcopy(layer)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Counted())
    x = torch.linspace(-1, 3, 12).reshape(4, 3)
    with pellucid.backend(backend):
        layer(x)  # is checked, for which the weight is asked for, too
        Counted.count = 0
        layer(x)
    assert Counted.count == 1


def test_refused_arguments_of_the_general_member():
    with pytest.raises(ValueError, match="axes is empty"):
        nn.Normalization(())
    with pytest.raises(ValueError, match=r"affine_axes=\(1, 2\) and shape=\(3,\)"):
        nn.Normalization(0, (1, 2), 3)
    with pytest.raises(RuntimeError, match="Name each once"):
        nn.Normalization((1, -1))(torch.ones(2, 3))


def test_instance_norm_of_other_channels_warns_as_torchs():
    x = torch.randn(2, 4, 5)
    with pytest.warns(UserWarning, match="does not match num_features"):
        y = nn.InstanceNorm1d(3)(x)
    torch.testing.assert_close(nn.InstanceNorm1d(3)(x, mask=torch.ones(2, 5).bool()), y)


# -- transforms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "args"), TYPES[:5], ids=[name for name, _ in TYPES[:5]])
def test_compiles_whole(name, args):
    layer = trained(getattr(nn, name)(*args)).float()
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for batch in (3, 2):
        x, lengths = torch.randn(batch, 4, 6), torch.tensor([4, 2, 3])[:batch]
        torch.testing.assert_close(compiled(x, lengths=lengths), layer(x, lengths=lengths))
    for key, value in layer.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[key], value)


@pytest.mark.parametrize("name", ["LayerNorm", "GroupNorm", "InstanceNorm1d"])
def test_gradients_per_sample(name):
    args = {"LayerNorm": (6,), "GroupNorm": (2, 4), "InstanceNorm1d": (4,)}[name]
    layer = trained(getattr(nn, name)(*args))
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    steps = 4 if name == "LayerNorm" else 6
    mask = torch.arange(steps) < torch.tensor([4, 2, 3]).unsqueeze(-1)

    def loss(x, mask):
        return layer(x.unsqueeze(0), mask=mask.unsqueeze(0)).pow(3).sum()

    rows = torch.func.vmap(torch.func.grad(loss))(x, mask)
    for row, sample, real in zip(rows, x, mask, strict=True):
        torch.testing.assert_close(row, torch.func.grad(loss)(sample, real))


# -- several processes -------------------------------------------------------------------------------------------

# The share of the batch of each process; one may have nothing.
SPLITS = {"even": [0, 3, 6], "uneven": [0, 1, 6], "empty": [0, 0, 6]}
LENGTHS = torch.tensor([4, 1, 3, 2, 4, 0])


def _whole(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(2, 6, 3, 4, generator=generator, dtype=torch.float64).to(dtype)
    return x + 2, weights


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=60)
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", rendezvous, patience, world_size=2, rank=rank)
    x, weights = _whole(torch.float64)
    answers = {}
    for name, split in SPLITS.items():
        for padding in (False, True):
            rows = slice(split[rank], split[rank + 1])
            layer = trained(nn.SyncBatchNorm(3))
            call = {"lengths": LENGTHS[rows]} if padding else {}
            mine = x[rows].clone().requires_grad_()
            y = layer(mine, **call)
            (y * weights[rows]).sum().backward()
            bound = layer.formula(**layer.bind(mine, **call))
            torch.testing.assert_close(bound, y)
            answers[name, padding] = {
                "rows": (y.detach(), mine.grad, layer.eval()(mine, **call).detach()),
                "gradients": {key: p.grad for key, p in layer.named_parameters()},
                "state": layer.state_dict(),
            }
    torch.save(answers, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_sync_batch_norm_of_two_processes(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    answers = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    x, weights = _whole(torch.float64)
    for key in answers[0]:
        layer = trained(nn.BatchNorm1d(3))
        call = {"lengths": LENGTHS} if key[1] else {}
        whole = x.clone().requires_grad_()
        y = layer(whole, **call)
        (y * weights).sum().backward()
        parts = [answer[key] for answer in answers]
        expected = (y, whole.grad, copy.deepcopy(layer).eval()(x, **call))
        for name, value, *made in zip(
            ("value", "gradient", "eval"), expected, *(p["rows"] for p in parts), strict=True
        ):
            torch.testing.assert_close(torch.cat(made), value.detach(), msg=f"{key} {name}")
        for name, p in layer.named_parameters():
            torch.testing.assert_close(sum(part["gradients"][name] for part in parts), p.grad, msg=f"{key} {name}")
        for name, value in layer.state_dict().items():
            for part in parts:
                torch.testing.assert_close(part["state"][name], value, msg=f"{key} {name}")


def test_convert_sync_batch_norm():
    model = torch.nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), torch.nn.Sequential(torch.nn.BatchNorm1d(3)))
    model(torch.randn(4, 2, 5))
    model[1].eval()
    state = copy.deepcopy(model.state_dict())
    weight = model[1].weight
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model, process_group=None)
    assert type(converted[1]) is type(converted[2][0]) is nn.SyncBatchNorm
    assert converted[1].weight is weight
    assert not converted[1].training
    assert converted[2][0].training
    for key, value in converted.state_dict().items():
        assert torch.equal(value, state[key])
    theirs = torch.nn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.Sequential(nn.BatchNorm1d(3)))
    assert type(theirs[0]) is torch.nn.SyncBatchNorm


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_of_a_small_and_of_a_large_input(momentum):
    """The first is torch's operator's, which keeps the running statistics for its gradient."""
    layer, reference = (trained(source.BatchNorm2d(8, momentum=momentum)) for source in (nn, torch.nn))
    generator = torch.Generator().manual_seed(0)
    small, large = (torch.randn(2, 8, n, n, dtype=torch.float64, generator=generator) for n in (2, 200))
    for mine in (layer, reference):
        (mine(small.requires_grad_()).square().sum() + 3 * mine(large).square().sum()).backward()
        mine(small)
    assert large.numel() > SMALL
    assert torch.allclose(layer.weight.grad, reference.weight.grad, rtol=1e-10)
    for name, value in reference.named_buffers():
        torch.testing.assert_close(layer.get_buffer(name), value, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("chosen", ["torch", "c"])
@pytest.mark.parametrize(("name", "shape"), [("BatchNorm1d", (9, 64, 1001)), ("BatchNorm2d", (10, 64, 30, 31))])
def test_batch_norm_where_channels_lie_side_by_side(monkeypatch, name, shape, chosen, training):
    """The faster of two is taken, as it was measured; to torch a sequence is a picture one pixel high."""
    monkeypatch.setattr(batch_norm, "_chosen", {})
    monkeypatch.setattr(batch_norm, "faster", lambda *_: chosen == "c")
    layer, reference = (trained(getattr(source, name)(64)).double().train(training) for source in (nn, torch.nn))
    x, gradient = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).movedim(2, -1)
    x, gradient = (value.contiguous().movedim(-1, 1).requires_grad_() for value in (x, gradient))
    assert x.numel() > SMALL
    y, expected = layer(x), reference(x)
    assert layer.backend == (chosen if training else "c")
    assert y.stride() == x.stride()
    torch.testing.assert_close(y, expected)
    found, wanted = (
        torch.autograd.grad(value, (x, *mine.parameters()), gradient)
        for value, mine in ((y, layer), (expected, reference))
    )
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(layer.state_dict(), reference.state_dict())


@pytest.mark.parametrize("name", ["BatchNorm1d", "InstanceNorm1d"])
def test_export_in_training_with_lengths(name):
    layer, x, lengths = getattr(nn, name)(3, track_running_stats=True), torch.randn(2, 3, 5), torch.tensor([5, 2])
    file = io.BytesIO()
    torch.export.save(torch.export.export(layer, (x,), {"lengths": lengths}), file)
    file.seek(0)
    program = torch.export.load(file).module()
    torch.testing.assert_close(program(x, lengths=lengths), layer(x, lengths=lengths))
    torch.testing.assert_close(program.state_dict(), layer.state_dict())
