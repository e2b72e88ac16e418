"""Row programs of `pellucid.layer`: formulas of rows, in shapes of all kinds, against themselves in float64."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

import formulas
import pellucid
from pellucid.kernel import memory, random
from row_programs import close, trained


@pellucid.layer
def gated_halves(x):
    """A unit of its own halves."""
    a, b = x.chunk(2, -1)
    return a * torch.sigmoid(b)


@pellucid.layer
def attention(x, *, W):
    """Softmax of a product, and what is largest."""
    a = torch.softmax(x @ W, -1)
    return a * (a == a.amax(-1, keepdim=True))


@pellucid.layer
def normed(x, *, W: "input hidden", V, g=pellucid.ones, b=pellucid.zeros):
    """Two products in a row around a norm."""
    h = x @ W
    return torch.relu(F.layer_norm(h, h.shape[-1:], g, b)) @ V + x


@pellucid.layer
def joined(x, z: "beside", *, U, W, b=pellucid.zeros):
    """Inputs of different features, a dropout in the middle."""
    return torch.tanh(pellucid.dropout(x @ U, 0.4) + z @ W + b) * pellucid.dropout(z.sum(-1, keepdim=True) + x @ U, 0.2)


@pellucid.layer
def ordered(x, *, g=pellucid.ones):
    """What has no kernel."""
    return torch.sort(x * g, -1).values


def rows(formula, sizes, exact, shape, ran, **options):
    """Compare a layer of rows, given inputs of these sizes, with its formula in float64; return the layer."""
    torch.manual_seed(0)
    layer = trained(formula(sizes[0], **options))
    inputs = [torch.randn(*shape, size).requires_grad_() for size in sizes]
    ran.take()
    with memory.poison(), warnings.catch_warnings():
        warnings.simplefilter("error")
        y = layer(*inputs)
        leaves = [*inputs, *layer.parameters()]
        gradient = torch.randn(y.shape)
        found = torch.autograd.grad(y, leaves, gradient)
    assert layer.backend == "c"
    assert {"forward", "backward"} <= set(ran.take())
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    wanted = exact(*doubles)
    close(y, wanted)
    for leaf, a, b in zip(leaves, found, torch.autograd.grad(wanted, doubles, gradient.double()), strict=True):
        close(a, b, y.numel() // leaf.numel() + 1)
    return layer


shapes = pytest.mark.parametrize("shape", [(), (1,), (3, 5), (701,)], ids=str)


@shapes
@pytest.mark.parametrize("size", [2, 34, 126])
def test_halves(ran, size, shape):
    rows(gated_halves, (size,), lambda x: x[..., : size // 2] * torch.sigmoid(x[..., size // 2 :]), shape, ran)


@shapes
def test_slices_and_concatenation(ran, shape):
    rows(
        formulas.pieces,
        (17,),
        lambda x, g: torch.cat([x[..., 5:] * g, torch.tanh(x[..., :5]), x[..., 1:3].exp()], -1),
        shape,
        ran,
    )


@shapes
def test_softmax_and_the_largest(ran, shape):
    def exact(x, W):
        a = torch.softmax(x @ W, -1)
        return a * (a == a.amax(-1, keepdim=True))

    rows(attention, (9,), exact, shape, ran, output_size=33)


@shapes
def test_two_products_around_a_norm(ran, shape):
    rows(
        normed, (11,), lambda x, W, V, g, b: torch.relu(F.layer_norm(x @ W, (24,), g, b)) @ V + x, shape, ran, hidden=24
    )


@shapes
def test_dropout_in_the_middle_of_two_inputs(ran, shape):
    def exact(x, z, U, W, b):
        draws = random.uniform((2, *shape, 19), 3)  # first those of the one mask, then those of the other
        first, second = (draws[0] >= 0.4) / 0.6, (draws[1] >= 0.2) / 0.8
        return torch.tanh(x @ U * first + z @ W + b) * ((z.sum(-1, keepdim=True) + x @ U) * second)

    layer = rows(joined, (7, 5), exact, shape, ran, output_size=19, beside=5, seed=3)
    x, z = torch.randn(*shape, 7), torch.randn(*shape, 5)
    found = []
    for backend in ("auto", "stepwise"):
        again = trained(joined(7, 19, beside=5, seed=4))
        with pellucid.backend(backend):
            found.append(again(x, z))
        assert again.backend == ("c" if backend == "auto" else "stepwise")
    close(found[0], found[1].double())
    assert torch.equal(layer.eval()(x, z), layer(x, z))


def test_what_has_no_kernel_warns_once_and_is_right(ran):
    layer = ordered(9)
    x = torch.randn(4, 9, requires_grad=True)
    with pytest.warns(pellucid.errors.PellucidWarning, match=r"ordered runs stepwise.*sort"):
        layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = layer(x)
    assert layer.backend == "stepwise"
    assert torch.equal(y, x.sort(-1).values)
    (grad,) = torch.autograd.grad(y, x, torch.arange(9.0).expand(4, 9))
    assert torch.equal(grad, x.argsort(-1).argsort(-1).float())
    assert not ran


def test_a_parameter_of_three_axes_has_no_kernel():
    @pellucid.layer
    def neighbours(x, *, k: "1 1 3"):
        return F.conv1d(x.unsqueeze(1), k, padding=1).squeeze(1)

    layer, x = neighbours(8), torch.randn(2, 3, 8)
    with pytest.warns(pellucid.errors.PellucidWarning, match=r"neighbours runs stepwise.*3 axes, k"):
        found = layer(x)
    assert layer.backend == "stepwise"
    torch.testing.assert_close(found, F.conv1d(x.view(6, 1, 8), layer.k, padding=1).view(2, 3, 8))
