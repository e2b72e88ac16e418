"""Row programs: every layout, type and set of axes of the norms against the formula in float64."""

from __future__ import annotations

import math
import os
import threading

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

import fresh
import pellucid
from pellucid import nn
from pellucid.kernel import memory
from pellucid.kernel.rows import nested, nested_c
from pellucid.nn.normalization.formula import ALONE
from pellucid.nn.swapped import fused
from row_programs import LAYOUTS, close, few, lay, rounded_once, trained

# -- the formula in float64 ---------------------------------------------------------------------------------------


def expected(x, axes, weight=None, bias=None, eps=1e-5, real=None, root_mean_square=False):
    """The formula of the family; weight and bias lie along x, ``real`` marks the entries that count."""
    real = torch.ones_like(x, dtype=torch.bool) if real is None else real.expand(x.shape)
    x = torch.where(real, x, 0)
    count = real.sum(axes, keepdim=True).clamp(min=1)
    mean = 0 if root_mean_square else x.sum(axes, keepdim=True) / count
    moved = torch.where(real, x - mean, 0)
    y = moved / ((moved**2).sum(axes, keepdim=True) / count + eps).sqrt()
    y = y if weight is None else y * weight
    return torch.where(real, y if bias is None else y + bias, 0)


sizes = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 16, 17])


def compare(layer, x, formula, ran, other=lambda g: g, **call):
    """Values and all gradients of a layer against ``formula(x, *parameters)`` in float64; return the layer's result."""
    parameters = [p for p in layer.parameters() if p.requires_grad]
    leaves = [t for t in (x, *parameters) if t.requires_grad]
    gradient = other(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype))
    ran.take()
    with memory.poison():
        y = layer(x, **call)
        found = torch.autograd.grad(y, leaves, gradient) if leaves else []
    assert ran.take() == (["forward", "backward"] if leaves else ["inference"])
    exact = {t: t.detach().double().contiguous().requires_grad_(t.requires_grad) for t in (x, *layer.parameters())}
    wanted = formula(*exact.values())
    close(y, wanted, what="the result")
    if leaves:
        gradients = torch.autograd.grad(wanted, [exact[t] for t in leaves], gradient.double())
        for leaf, a, b in zip(leaves, found, gradients, strict=True):
            assert a.dtype == leaf.dtype
            close(a, b, x.numel() // leaf.numel(), f"the gradient of {tuple(leaf.shape)}")
    return y


# -- layouts and axes ---------------------------------------------------------------------------------------------


@few
@given(data=st.data())
def test_any_axes_in_any_layout(ran, data):
    count = data.draw(st.integers(1, 5), "number of axes")
    shape = data.draw(st.lists(sizes, min_size=count, max_size=count), "shape")
    if count < 4:
        shape[data.draw(st.integers(0, count - 1))] = data.draw(st.sampled_from([2, 63, 65, 1030]))
    places = st.sets(st.integers(0, count - 1))
    averaged = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1), "averaged"))
    affine = sorted(data.draw(places, "affine"))
    layout, order = data.draw(st.sampled_from(LAYOUTS), "layout"), data.draw(st.integers(0, 119), "order")
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]), "dtype")
    along = [size if axis in affine else 1 for axis, size in enumerate(shape)]
    layer = nn.Normalization(averaged, affine, [shape[a] for a in affine], 0.1, bias=data.draw(st.booleans(), "bias"))
    layer = trained(layer).to(dtype)
    x = lay(torch.randn(shape, generator=torch.Generator().manual_seed(order)).to(dtype) + 2, layout, order)
    x = x.detach().requires_grad_(data.draw(st.booleans(), "x wants"))
    for p in layer.parameters():
        p.requires_grad_(data.draw(st.booleans(), "parameter wants"))

    def formula(x, weight=None, bias=None):
        spread = [None if p is None else p.reshape(along) for p in (weight, bias)]
        return expected(x, averaged, *spread, eps=0.1)

    nested._bound.clear()
    other = data.draw(st.sampled_from(LAYOUTS[:5]), "the gradient's layout")
    y = compare(layer, x, formula, ran, lambda g: lay(g, other, order) if count > 1 else g)
    like = torch.empty_like(x)
    assert [s for s, n in zip(y.stride(), x.shape, strict=True) if n > 1] == [
        s for s, n in zip(like.stride(), x.shape, strict=True) if n > 1
    ]


@pytest.mark.parametrize("wants", ["gamma", "beta", "both"])
@pytest.mark.parametrize("shape", [(7, 5, 4), (2, 2049)])
def test_parameters_alone_want_a_gradient(ran, wants, shape):
    """Nothing is reduced in backward then: the first entry along an axis is no entry of the row."""
    last = len(shape) - 1
    layer = trained(nn.Normalization(last, range(last + 1), shape, 0.1))
    layer.weight.requires_grad_(wants != "beta")
    layer.bias.requires_grad_(wants != "gamma")
    compare(layer, torch.randn(shape) + 3, lambda x, w, b: expected(x, (last,), w, b, 0.1), ran)


def channels(parameter: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return parameter.reshape(1, -1, *(1,) * (x.ndim - 2))


def of_groups(groups: int):
    def formula(x, weight, bias):
        grouped = x.unflatten(1, (groups, -1))
        y = expected(grouped, tuple(range(2, grouped.ndim))).flatten(1, 2)
        return y * channels(weight, x) + channels(bias, x)

    return formula


def over_space(x, weight, bias):
    return expected(x, tuple(range(2, x.ndim)), channels(weight, x), channels(bias, x))


def over_batch(x, weight, bias):
    return expected(x, (0, *range(2, x.ndim)), channels(weight, x), channels(bias, x))


MEMBERS = [
    ("BatchNorm1d", (5,), (7, 5), over_batch),
    ("BatchNorm1d", (63,), (4, 63, 9), over_batch),
    ("BatchNorm2d", (17,), (3, 17, 4, 5), over_batch),
    ("BatchNorm3d", (3,), (2, 3, 4, 3, 2), over_batch),
    ("InstanceNorm1d", (5, 1e-5, 0.1, True), (3, 5, 63), over_space),
    ("InstanceNorm2d", (17, 1e-5, 0.1, True), (2, 17, 3, 5), over_space),
    ("GroupNorm", (3, 6), (4, 6, 5, 3), of_groups(3)),
    ("GroupNorm", (1, 17), (3, 17, 9), of_groups(1)),
    ("GroupNorm", (5, 5), (3, 5, 4), of_groups(5)),
    ("LayerNorm", (63,), (3, 4, 63), lambda x, w, b: expected(x, (-1,), w, b)),
    ("LayerNorm", ((4, 9),), (5, 4, 9), lambda x, w, b: expected(x, (-2, -1), w, b)),
    (
        "RMSNorm",
        (17,),
        (3, 2, 17),
        lambda x, w: expected(x, (-1,), w, eps=torch.finfo(torch.float32).eps, root_mean_square=True),
    ),
]
member = pytest.mark.parametrize(
    ("name", "args", "shape", "formula"), MEMBERS, ids=[f"{m[0]}-{'x'.join(map(str, m[2]))}" for m in MEMBERS]
)


@member
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_member_in_a_layout(ran, name, args, shape, formula, layout):
    layer = trained(getattr(nn, name)(*args))
    reference = getattr(torch.nn, name)(*args)
    for order in (1, 2) if layout in ("permuted", "gaps") else (1,):
        x = lay(torch.randn(shape, generator=torch.Generator().manual_seed(3)), layout, order).requires_grad_()
        if layout == "expanded" and name.startswith("Layer"):
            x = x.detach().clone().narrow(0, 0, 1).expand(shape).requires_grad_()
        y = compare(layer, x, formula, ran)
        if layout == "contiguous" or (layout == "channels last" and len(shape) > 3 and "Inst" not in name):
            assert y.stride() == reference(x).stride()


# -- types and far-off inputs -------------------------------------------------------------------------------------


@member
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_rounded_once(ran, name, args, shape, formula, dtype):
    layer = trained(getattr(nn, name)(*args))
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 2 + 1).to(dtype).requires_grad_()
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    y = layer(x)
    y.backward(gradient)
    assert ran == ["forward", "backward"]
    exact = [t.detach().double().requires_grad_() for t in (x, *layer.parameters())]
    wanted = formula(*exact)
    wanted.backward(gradient.double())
    assert (y.dtype, x.grad.dtype) == (dtype, dtype)
    rounded_once(y, wanted.detach())
    rounded_once(x.grad, exact[0].grad)
    for p, e in zip(layer.parameters(), exact[1:], strict=True):
        assert p.grad.dtype == torch.float32
        close(p.grad, e.grad, x.numel() // p.numel())


FAR = [
    ("BatchNorm1d", (16,), (64, 16), over_batch),
    ("BatchNorm1d", (16,), (8, 16, 40), over_batch),
    ("BatchNorm2d", (16,), (4, 16, 5, 8), over_batch),
    ("BatchNorm3d", (6,), (4, 6, 5, 3, 4), over_batch),
    ("InstanceNorm1d", (5, 1e-5, 0.1, True), (3, 5, 63), over_space),
    ("InstanceNorm2d", (6, 1e-5, 0.1, True), (2, 6, 9, 7), over_space),
    ("InstanceNorm3d", (6, 1e-5, 0.1, True), (2, 6, 3, 4, 5), over_space),
    ("GroupNorm", (3, 6), (4, 6, 5, 3), of_groups(3)),
    ("LayerNorm", (64,), (9, 64), lambda x, w, b: expected(x, (-1,), w, b)),
    ("LayerNorm", ((6, 9),), (5, 6, 9), lambda x, w, b: expected(x, (-2, -1), w, b)),
    ("Normalization", ((0, 2), 1, 5), (8, 5, 40), over_batch),
]


@pytest.mark.parametrize("path", ["kernel", "default"])
@pytest.mark.parametrize("last", [False, True], ids=["", "channels last"])
@pytest.mark.parametrize(("name", "args", "shape", "formula"), FAR, ids=[f"{m[0]}-{len(m[2])}d" for m in FAR])
def test_a_million_deviations_from_zero(request, name, args, shape, formula, last, path):
    """Mean 1e4, deviation 1e-2: what the layer adds to the input's own rounding is a few units of the last place."""
    if path == "kernel":
        request.getfixturevalue("ran")
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-2 + 1e4).float()
    x = lay(x, "channels last" if last else "contiguous", 0).requires_grad_()
    layer = trained(getattr(nn, name)(*args))
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    y = layer(x)
    y.backward(gradient)
    exact = [t.detach().double().requires_grad_() for t in (x, *layer.parameters())]
    wanted = formula(*exact)
    wanted.backward(gradient.double())
    bound = 16 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(y.double(), wanted.detach(), rtol=bound, atol=bound)
    for leaf, e in zip((x, *layer.parameters()), exact, strict=True):
        largest = max(float(e.grad.abs().max()), math.sqrt(x.numel() / leaf.numel()))
        torch.testing.assert_close(leaf.grad.double(), e.grad, rtol=bound, atol=bound * largest)
    if name.startswith("Batch"):
        var = x.detach().double().var((0, *range(2, x.ndim)))
        torch.testing.assert_close(layer.running_var.double(), 0.9 + 0.1 * var, rtol=bound, atol=0)


@pytest.mark.parametrize("path", ["kernel", "default"])
@pytest.mark.parametrize(("name", "args", "shape", "formula"), FAR, ids=[f"{m[0]}-{len(m[2])}d" for m in FAR])
def test_a_constant_input_has_no_deviation(request, name, args, shape, formula, path):
    if path == "kernel":
        request.getfixturevalue("ran")
    layer = trained(getattr(nn, name)(*args))
    x = torch.full(shape, 12345.678)
    exact = [t.detach().double() for t in (x, *layer.parameters())]
    torch.testing.assert_close(layer(x).double(), formula(*exact), rtol=1e-6, atol=1e-6)


def test_what_earlier_batches_left_normalizes_a_sum():
    layer = trained(nn.BatchNorm2d(3)).eval()
    layer.running_mean.fill_(2)
    x, beside = torch.randn(2, 2, 3, 4, 5)
    with pellucid.backend("c"):
        found = fused.normalize_in_company(layer, x, beside)
    torch.testing.assert_close(found, layer(x + beside))


@pytest.mark.parametrize("name", ["GroupNorm", "LayerNorm"])
def test_of_one_entry_beta_is_left(name):
    layer = trained(nn.GroupNorm(4, 4) if name == "GroupNorm" else nn.LayerNorm(1))
    y = layer(torch.randn(5, 4, 1, generator=torch.Generator().manual_seed(0)) + 12345)
    assert torch.equal(y, layer.bias.reshape(1, -1, 1).expand(5, 4, 1))


# -- gradients ----------------------------------------------------------------------------------------------------

SMALL_MEMBERS = [
    ("BatchNorm1d", (3,), (4, 3, 2)),
    ("InstanceNorm1d", (2, 1e-5, 0.1, True), (2, 2, 4)),
    ("GroupNorm", (2, 4), (2, 4, 3)),
    ("LayerNorm", ((2, 3),), (3, 2, 3)),
    ("RMSNorm", (5,), (3, 5)),
    ("Normalization", ((0, 2), (0, 1), (3, 2)), (3, 2, 4)),
]


@pytest.mark.parametrize(("name", "args", "shape"), SMALL_MEMBERS, ids=[m[0] for m in SMALL_MEMBERS])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_first_and_second_derivative(ran, name, args, shape, masked):
    layer = trained(getattr(nn, name)(*args)).double()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    feature = {"LayerNorm": -1, "RMSNorm": -1}.get(name, 1)
    seen = [size for axis, size in enumerate(shape) if axis != feature % len(shape) or name == "Normalization"]
    mask = torch.arange(math.prod(seen)).reshape(seen) % 5 != 1
    call = {"mask": mask} if masked else {}
    names = [n for n, _ in layer.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,), call)

    given = (x, *layer.parameters())
    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)
    assert "backward" in ran


def test_what_autograd_asks(ran):
    layer = trained(nn.LayerNorm(9))
    x = torch.randn(4, 9, requires_grad=True)
    with torch.no_grad():
        assert not layer(x).requires_grad
    assert ran.take() == ["inference"]
    y = layer(x)
    (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (again,) = torch.autograd.grad(y, x, torch.ones(()).expand(4, 9))
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), x)
    y = layer(x * 1)
    (partly,) = torch.autograd.grad(y, [layer.weight], torch.randn(9, 4).t())
    assert partly.shape == (9,)


@pytest.mark.parametrize("changed", ["input", "weight"])
def test_what_backward_reads_may_not_change(ran, changed):
    layer = trained(nn.LayerNorm(9))
    x = torch.randn(4, 9, requires_grad=True) * 2
    y = layer(x)
    with torch.no_grad():
        (x if changed == "input" else layer.weight).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("layer", "side_by_side", "together"),
    [
        (nn.BatchNorm2d(8), False, False),
        (nn.BatchNorm2d(8), True, True),
        (nn.InstanceNorm2d(8, affine=True), True, True),
    ],
    ids=["planes", "channels last", "channels last of a sample"],
)
def test_rows_are_taken_together_for_what_they_share(layer, side_by_side, together):
    """Parameters of the columns, or sums over the rows. Otherwise a row is written whole before the next."""
    x = torch.randn(20, 8, 5, 6)
    text = layer.kernel_with(x.contiguous(memory_format=torch.channels_last) if side_by_side else x, ALONE)
    assert ("first_row" in text) == together


# -- padding ------------------------------------------------------------------------------------------------------


@few
@given(data=st.data())
def test_padding_of_any_axes_holds_anything(ran, data):
    """Where a mask broadcasts, in any layout: as the formula over the entries that count."""
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 5, 8, 17]), min_size=3, max_size=3), "shape")
    averaged = sorted(data.draw(st.sets(st.integers(0, 2), min_size=1), "averaged"))
    affine = data.draw(st.sampled_from([(), (2,), (1,)]), "affine")
    of_mask = [size if data.draw(st.booleans()) else 1 for size in shape]
    # γ and β times the mask must vary along all axes or along all that are not averaged: other sums have no kernel.
    lacking = [a for a in range(3) if of_mask[a] == 1 and a not in affine and shape[a] > 1]
    assume(not affine or lacking in ([], [a for a in averaged if shape[a] > 1]))
    assume(any(shape[a] > 1 for a in averaged))
    layout, order = data.draw(st.sampled_from(LAYOUTS[:5]), "layout"), data.draw(st.integers(0, 5), "order")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "seed"))
    mask = torch.rand(of_mask, generator=generator) < 0.7
    along = [size if axis in affine else 1 for axis, size in enumerate(shape)]
    layer = trained(nn.Normalization(averaged, affine, [shape[a] for a in affine], 0.1))
    x = torch.randn(shape, generator=generator) + 3
    x = x.masked_fill(~mask, data.draw(st.sampled_from([math.nan, math.inf, -1e30]), "garbage"))
    x = lay(x, layout, order).requires_grad_()

    def formula(x, weight=None, bias=None):
        spread = [None if p is None else p.reshape(along) for p in (weight, bias)]
        return expected(x, averaged, *spread, eps=0.1, real=mask)

    compare(layer, x, formula, ran, mask=mask)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "args"), [("BatchNorm1d", (5,)), ("GroupNorm", (1, 5)), ("InstanceNorm1d", (5,))])
def test_lengths_in_a_kernel(ran, name, args, training):
    lengths = [9, 1, 0, 4]
    real = (torch.arange(9) < torch.tensor(lengths).unsqueeze(-1)).unsqueeze(1)
    layer = trained(getattr(nn, name)(*args)).train(training)
    if name.startswith("Batch"):
        layer.running_var.copy_(torch.linspace(0.5, 2, 5))
    x = (torch.randn(4, 5, 9) + 2).masked_fill(~real, math.nan).requires_grad_()
    axes = {"BatchNorm1d": (0, 2), "GroupNorm": (1, 2), "InstanceNorm1d": (2,)}[name]
    var = layer.running_var.double() if name.startswith("Batch") else None

    def formula(x, weight=None, bias=None):
        weight, bias = (None if p is None else channels(p, x) for p in (weight, bias))
        if name.startswith("Batch") and not training:
            y = torch.where(real, x, 0) / (channels(var, x) + 1e-5).sqrt() * weight + bias
            return torch.where(real, y, 0)
        return expected(x, axes, weight, bias, real=real)

    compare(layer, x, formula, ran, lengths=lengths)


# -- running statistics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
def test_running_statistics_of_many_batches(ran, momentum, affine, dtype):
    layer, reference = (source.BatchNorm2d(5, momentum=momentum, affine=affine) for source in (nn, torch.nn))
    for step in range(20):
        x = torch.randn(step % 3 + 1, 5, 3, step % 4 + 1, generator=torch.Generator().manual_seed(step)) * 2 + step
        x = x.to(dtype)
        torch.testing.assert_close(
            layer(x).float(),
            reference(x.float()),
            rtol=1e-2 if dtype != x.dtype else 1e-4,
            atol=1e-4 if dtype == torch.float32 else 2e-2,
        )
    assert len(ran.take()) == 20
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value, rtol=1e-5, atol=1e-5, msg=key)
    x = torch.randn(2, 5, 3, 3, requires_grad=True)
    y, wanted = layer.eval()(x), reference.eval()(x)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    assert ran.take() == ["forward"]
    g = torch.randn_like(x)
    for a, b in zip(
        *(torch.autograd.grad(o, [x, *m.parameters()], g) for o, m in ((y, layer), (wanted, reference))), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracking", [True, False])
def test_running_statistics_of_instance_norm(ran, affine, tracking):
    options = {"affine": affine, "track_running_stats": tracking}
    layer, reference = (source.InstanceNorm2d(3, **options) for source in (nn, torch.nn))
    for step in range(9):
        x = torch.randn(4, 3, 5, step + 1, generator=torch.Generator().manual_seed(step)) + step
        torch.testing.assert_close(layer(x), reference(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(x[0]), reference(x[0]), rtol=1e-4, atol=1e-4)
    assert len(ran.take()) == 10
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value, rtol=1e-5, atol=1e-5, msg=key)
    torch.testing.assert_close(layer.eval()(x), reference.eval()(x), rtol=1e-4, atol=1e-4)
    assert ran.take() == ["inference" if not affine else "forward"]


@pytest.mark.parametrize(
    "name", ["GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "BatchNorm1d", "BatchNorm2d", "LayerNorm"]
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wanted", ["all", "parameters", "nothing"])
def test_torchs_operators_take_every_layout(name, layout, wanted):
    """Small inputs, the default way. Torch's own GroupNorm crashes where channels lie side by side (2.13)."""
    shape = (3, 6, 4) if "1d" in name or name == "GroupNorm" else (3, 6, 2, 4)
    args, formula = {
        "GroupNorm": ((2, 6), of_groups(2)),
        "LayerNorm": ((4,), lambda x, w, b: expected(x, (-1,), w, b)),
    }.get(name, ((6, 1e-5, 0.1, True), over_batch if "Batch" in name else over_space))
    layer = trained(getattr(nn, name)(*args)).requires_grad_(wanted != "nothing")
    first = lay(torch.randn(shape, generator=torch.Generator().manual_seed(0)), layout, 1)
    for shaped in (first, first.unsqueeze(-2)) if name == "GroupNorm" else (first,):
        x = shaped.detach().requires_grad_(wanted == "all")
        exact = {t: t.detach().double().requires_grad_(t.requires_grad) for t in (x, *layer.parameters())}
        y, expect = layer(x), formula(*exact.values())
        close(y, expect)
        leaves = [t for t in exact if t.requires_grad]
        if leaves:
            gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
            found = torch.autograd.grad(y, leaves, gradient)
            for leaf, a, b in zip(
                leaves, found, torch.autograd.grad(expect, [exact[t] for t in leaves], gradient.double()), strict=True
            ):
                close(a, b, x.numel() // leaf.numel())


@pytest.mark.parametrize(
    ("shape", "averaged", "affine", "of_mask", "layout"),
    [
        ((4, 5, 3), (2,), (1,), (4, 1, 1), "channels last"),
        ((4, 5, 3), (2,), (1,), (4, 1, 1), "contiguous"),
        ((2, 3, 4), (0,), (1,), (1, 3, 4), "contiguous"),
        ((4, 5, 3, 6), (1, 3), (2,), (4, 1, 1, 1), "contiguous"),
    ],
)
def test_a_mask_that_does_not_vary_along_what_is_averaged(ran, shape, averaged, affine, of_mask, layout):
    """The gradients of γ and β are sums over rows of what loops have added up: one term a row."""
    mask = torch.arange(math.prod(of_mask)).reshape(of_mask) % 3 != 1
    along = [size if axis in affine else 1 for axis, size in enumerate(shape)]
    layer = trained(nn.Normalization(averaged, affine, [shape[a] for a in affine]))
    x = lay(torch.randn(shape).masked_fill(~mask, math.nan), layout, 0).requires_grad_()

    def formula(x, weight, bias):
        return expected(x, averaged, weight.reshape(along), bias.reshape(along), real=mask)

    compare(layer, x, formula, ran, mask=mask)


# -- threads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.BatchNorm2d(5), (7, 5, 9, 31)),
        (lambda: nn.BatchNorm1d(300), (65, 300)),
        (lambda: nn.LayerNorm(65), (64, 65)),
        (lambda: nn.GroupNorm(2, 6), (5, 6, 33)),
        (lambda: nn.RMSNorm(17), (300, 17)),
        (lambda: nn.Normalization(0, 1, 300), (65, 300)),
        (lambda: nn.Normalization((0, 2), 1, 200), (3, 200, 9)),
        (lambda: nn.Normalization((1, 2), 0, 2), (2, 40, 300)),
        (lambda: nn.Normalization(1, (0, 2), (2, 1500)), (2, 9, 1500)),
    ],
)
def test_the_same_bits_for_every_number_of_threads(ran, threads, monkeypatch, make, shape):
    monkeypatch.setattr("pellucid.kernel.threads.OPERATIONS_FOR_A_THREAD", 1)
    monkeypatch.setattr(nested_c, "ENTRIES_OF_A_PART", 512)
    layer = trained(make())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = []
    for number in (1, 2, 3, 2, 1):
        threads(number)
        nested._bound.clear()
        y = layer(x)
        found.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], gradient)])
    assert ran.take() == ["forward", "backward"] * 5
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_several_python_threads(ran):
    layers = [trained(nn.LayerNorm(33)), trained(nn.Normalization(0, 1, 33)), nn.Dropout(0.3)]
    inputs = [torch.randn(rows, 33) for rows in range(2, 9)]
    alone = [[layer(x) for x in inputs] for layer in layers[:2]]
    nested._bound.clear()
    failures = []

    def work() -> None:
        try:
            for _ in range(20):
                for layer, results in zip(layers, [*alone, None], strict=True):
                    for i, x in enumerate(inputs):
                        given = x.clone().requires_grad_()
                        y = layer(given)
                        y.sum().backward()
                        if results is not None:
                            assert torch.equal(y, results[i])
                        else:
                            torch.testing.assert_close(y, torch.where(y == 0, 0, x / 0.7))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


# In the child nothing but kernels may be shared among threads: torch's own operators would wait for ever.
FORKED = """
import os, numpy, torch
from pellucid import nn
from pellucid.kernel.rows import nested_c
from pellucid.nn.dropout import dropout
from pellucid.nn.normalization import normalization
normalization.SMALL = dropout.FEW_COINS = 0
torch.set_num_threads(2)
layer = nn.LayerNorm(512)
x, gradient = torch.randn(9000, 512, requires_grad=True), torch.randn(9000, 512)
def run():
    y = nn.Dropout(0.3, seed=1)(layer(x))
    return [t.detach().numpy() for t in (y, *torch.autograd.grad(y, [x, *layer.parameters()], gradient))]
found = run()
assert nested_c.useful(1e9).number == 2
pid = os.fork()
if not pid:
    os._exit(0 if all(map(numpy.array_equal, run(), found)) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork():
    fresh.printed(FORKED)


# -- torch around it ----------------------------------------------------------------------------------------------


def small_layers() -> list[torch.nn.Module]:
    return [trained(nn.LayerNorm(6)), trained(nn.BatchNorm1d(6)), nn.Dropout(0.5), trained(nn.Normalization(0, 1, 6))]


@pytest.mark.parametrize("index", range(4))
def test_torch_compile_takes_it_whole(ran, index):
    torch._dynamo.reset()
    layer = small_layers()[index]
    x = torch.randn(5, 6, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    assert not ran
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    if isinstance(layer, nn.Dropout):
        torch.testing.assert_close(y, torch.where(y == 0, 0, 2 * x))
        torch.testing.assert_close(grad, 4 * y)
    else:
        again = small_layers()[index]
        expect = again(x)
        assert ran == ["forward"]
        torch.testing.assert_close(y, expect, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grad, torch.autograd.grad(expect.square().sum(), x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("index", [0, 2, 3])
def test_torch_func_takes_it(ran, index):
    layer = small_layers()[index]
    x, tangent = torch.randn(3, 5, 6), torch.randn(3, 5, 6)
    if isinstance(layer, nn.Dropout):
        y = torch.func.vmap(layer, randomness="different")(x)
        torch.testing.assert_close(y, torch.where(y == 0, 0, 2 * x))
        y, moved = torch.func.jvp(layer, (x,), (tangent,))
        torch.testing.assert_close(moved, torch.where(y == 0, 0, 2 * tangent))
        assert not ran
        return
    found = torch.func.vmap(layer)(x)
    y, moved = torch.func.jvp(layer, (x[0],), (tangent[0],))
    assert not ran
    assert layer(x[0]) is not None
    assert ran
    exact = layer.double()
    torch.testing.assert_close(found.double(), torch.stack([exact(row) for row in x.double()]), rtol=1e-5, atol=1e-5)
    given = x[0].double()
    change = (exact(given + 1e-6 * tangent[0]) - exact(given - 1e-6 * tangent[0])) / 2e-6
    torch.testing.assert_close(moved.double(), change, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("tracing_mode", ["real", "symbolic"])
def test_tracing_records_torchs_operations(ran, index, tracing_mode):
    """And nothing of what a kernel has computed."""
    layer = small_layers()[index]
    traced = make_fx(lambda x: layer(x), tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(torch.randn(5, 6))
    assert not ran
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert all(getattr(t, "namespace", "aten") in ("aten", "prims") for t in targets)
    held = [getattr(traced, node.target) for node in traced.graph.nodes if node.op == "get_attr"]
    own = [t.data_ptr() for t in (*layer.parameters(), *layer.buffers())]
    assert all(t.data_ptr() in own or t.numel() == 1 for t in held)
    if not isinstance(layer, nn.Dropout):
        x = torch.randn(5, 6)
        torch.testing.assert_close(traced(x), small_layers()[index](x), rtol=1e-5, atol=1e-5)


def test_numbers_are_given_in_their_order(ran):
    """Whatever the order in which a formula reads them."""

    def formula(averaged, x, a, b):
        return (x * b - a,)

    recipe = nested.Recipe("numbers", formula, (), ("x",), ("a", "b"))
    x = torch.randn(5, 7, dtype=torch.float64)
    (y,) = nested.run(recipe, (x,), lambda x: nested.Axes((5, 7), (), (nested.View((7, 1)),)), None, (2.0, 3.0))
    assert torch.equal(y, x * 3 - 2)
    assert ran.take() == ["inference"]


def test_a_zero_has_its_sign(ran):
    """Of operations that differ in nothing else, each is computed."""

    def formula(averaged, x):
        return (torch.copysign(x, 0.0) + 2 * torch.copysign(x, -0.0) + torch.where(1 / (x * -0.0) > 0, x * 0.0, 1.0),)

    recipe = nested.Recipe("zeros", formula, (), ("x",))
    x = 1 + torch.rand(5, 7, dtype=torch.float64)
    (y,) = nested.run(recipe, (x,), lambda x: nested.Axes((5, 7), (), (nested.View((7, 1)),)), None)
    assert torch.equal(y, 1 - x)
    assert ran.take() == ["inference"]


def test_what_many_share_is_asked_once(ran):
    """Of chains whose links are each read twice there would be no end."""

    def formula(averaged, x):
        mean = x.mean(averaged, keepdim=True)
        y, z = x - mean, mean.expand_as(x)
        for _ in range(links):
            y, z = y + 0.1 * torch.tanh(y), z + 0.1 * torch.tanh(z)
        return (y + z.mean(averaged, keepdim=True),)

    links = 20
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    axes = nested.Axes((5, 7), (1,), (nested.View((7, 1)),))
    (y,) = nested.run(nested.Recipe("chains", formula, (), ("x",)), (x,), lambda x: axes, None)
    (expected,) = formula((1,), x)
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, x, dy))
    assert ran.take() == ["forward", "backward"]
