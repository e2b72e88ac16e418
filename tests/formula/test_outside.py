"""What a formula reads from outside decides at every call, wherever it stands and whatever runs."""

from __future__ import annotations

import pickle
import types
import warnings

import pytest
import torch

import pellucid
from pellucid.formula import outside

GAIN = 1.0
TABLE = {"gain": 1.0}
SPACE = types.SimpleNamespace(gain=1.0)
SIGNS = torch.ones(5)
SLOPE = 1.0
BENT = torch.tanh


def bent(z):
    return BENT(z) * GAIN


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (z,) = ctx.saved_tensors
        return gradient / (1 + (SLOPE * z).abs()) ** 2


@pellucid.cell
def everywhere(x, h, *, U, W):
    return bent(TABLE["gain"] * SPACE.gain * SIGNS * (x @ U + h @ W))


@pellucid.cell
def spiking(x, h, *, U, W):
    return 0.5 * h + Spike.apply(x @ U + h @ W)


@pellucid.layer
def scaled(x, *, gamma=pellucid.ones):
    return x * gamma * GAIN


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (1.0, 1.0, True),
        (1.0, 1, False),
        (float("nan"), float("nan"), True),
        ((1, "a"), (1, "a"), True),
        ((SIGNS, 1), (SIGNS, 1), True),
        ((SIGNS, 1), (torch.ones(5), 1), False),
        (torch.nn.ReLU.forward.__get__(SPACE), torch.nn.ReLU.forward.__get__(SPACE), True),
        (TABLE.get, TABLE.get, True),
        ([1], [1], False),
    ],
    ids=range(9),
)
def test_what_is_the_same(a, b, same):
    assert outside.same(a, b) is same


def test_what_is_read():
    assert {o.name for o in outside.read_by(everywhere.function)} == {
        *("bent", "TABLE['gain']", "SPACE.gain", "SIGNS", "BENT", "GAIN")
    }
    assert {o.name for o in outside.read_by(spiking.function)} == {"Spike", "SLOPE"}
    assert outside.read_by(pellucid.nn.cells.lstm.function) == []


CHANGES = [
    lambda patch: patch.setitem(globals(), "GAIN", 0.5),
    lambda patch: patch.setitem(TABLE, "gain", 0.5),
    lambda patch: patch.setattr(SPACE, "gain", 0.5),
    lambda patch: patch.setitem(globals(), "SIGNS", -torch.ones(5)),
    lambda patch: patch.setitem(globals(), "BENT", torch.relu),
]


@pytest.mark.filterwarnings("ignore:cell everywhere.*has changed 8 times")
@pytest.mark.parametrize("change", CHANGES, ids=["number", "entry", "attribute", "tensor", "function"])
def test_another_value_decides_from_the_next_call_on(change, monkeypatch):
    layer, x = everywhere(3, 5, 2), torch.randn(12, 2, 3)
    before = layer(x)[0]
    change(monkeypatch)
    after, backend = layer(x)[0], layer.backend
    with pellucid.backend("naive"):
        expected = layer(x)[0]
    torch.testing.assert_close(after, expected)
    assert backend == "c"
    assert not torch.allclose(after, before)
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(x)[0], expected)
    monkeypatch.undo()
    key = layer._keys
    torch.testing.assert_close(layer(x)[0], before, rtol=0, atol=0)
    assert layer._keys != key
    change(monkeypatch)
    torch.testing.assert_close(layer(x)[0], expected)
    assert (layer._keys == key) == (change is not CHANGES[3])  # what was there before is known, but another tensor
    monkeypatch.undo()
    torch.testing.assert_close(layer.eval()(x)[0], before, rtol=0, atol=1e-6)


def test_a_variable_around_the_formula_and_an_attribute_of_its_model():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = 1.0

            @pellucid.cell
            def own(x, h, *, U, W):
                return self.gain * torch.tanh(x @ U + h @ W)

            self.layer = own(3, 4)

    model, x = Model(), torch.randn(12, 2, 3)
    assert model.layer(x)[0].abs().max() > 0
    model.gain = 0.0
    assert model.layer(x)[0].abs().max() == 0


def test_the_slope_of_a_spike_decides_in_backward(monkeypatch):
    layer, x = spiking(3, 5), torch.randn(12, 2, 3, requires_grad=True)

    def gradient():
        return torch.autograd.grad(layer(x)[0].sum(), x)[0]

    before = gradient()
    monkeypatch.setitem(globals(), "SLOPE", 50.0)
    after = gradient()
    with pellucid.backend("naive"):
        torch.testing.assert_close(after, gradient())
    assert not torch.allclose(after, before)


def test_what_is_made_anew_at_every_access_is_not_looked_at():
    class Space:
        @property
        def signs(self):
            return torch.ones(4)

    space, table = Space(), {"gain": 2.0}

    @pellucid.cell
    def fresh(x, h, *, U, W):
        return torch.tanh(x @ U + h @ W) * space.signs * table.get("gain")

    layer, x = fresh(3, 4), torch.randn(12, 2, 3)
    layer(x)
    key = layer._keys
    layer(x)
    assert layer._keys is key
    assert [o.name for o in outside.read_by(fresh.function)] == ["table.get"]


def test_rows_too(monkeypatch):
    layer, x = scaled(300), torch.randn(600, 300)
    with pellucid.backend("c"):
        before = layer(x)
        monkeypatch.setitem(globals(), "GAIN", 0.5)
        torch.testing.assert_close(layer(x), before / 2)
    assert layer.backend == "c"


def test_what_changes_often_is_told_of(monkeypatch):
    @pellucid.cell
    def annealed(x, h, *, U, W):
        return torch.tanh(x @ U + h @ W) * GAIN

    layer, x = annealed(3, 4), torch.randn(2, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(1, 8):
            monkeypatch.setitem(globals(), "GAIN", 1.0 / (step + 1))
            layer(x)
    monkeypatch.setitem(globals(), "GAIN", 0.0)
    with pytest.warns(pellucid.PellucidWarning, match="cell annealed: GAIN, .* from outside, has changed 8 times"):
        assert layer(x)[0].abs().max() == 0
