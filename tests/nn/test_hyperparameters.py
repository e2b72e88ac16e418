"""The hyperparameters of an author's formula as attributes of its layers."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import pellucid
from pellucid import nn
from pellucid.nn import cells


@pellucid.cell
def repeated(x, h, *, U, W, times: int = 2):
    return torch.tanh(x @ U + torch.cat([h] * times, -1) @ W)


@pellucid.layer
def shifted(x, *, gamma: "input", across: int = 0):
    return x * gamma - (x.roll(1, 0) if across else x)


def test_a_hyperparameter_that_is_set_decides_from_the_next_call_on():
    x = torch.randn(5, 2, 6)
    layer = cells.leaky(6, 4, 2, bidirectional=True)
    assert layer.tau == 10.0
    assert layer.hyperparameters == {"tau": 10.0}
    before = layer(x)[0]
    layer.tau = 2.0
    twin = cells.leaky(6, 4, 2, bidirectional=True, tau=2.0)
    twin.load_state_dict(layer.state_dict())
    assert repr(layer) == repr(twin)
    assert "tau=2.0" in repr(layer)
    output = layer(x)[0]
    torch.testing.assert_close(output, twin(x)[0], rtol=0, atol=0)
    assert not torch.allclose(output, before)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.tau == 2.0
        torch.testing.assert_close(copied(x)[0], output, rtol=0, atol=0)
    layer.tau = 10.0
    torch.testing.assert_close(layer(x)[0], before, rtol=0, atol=0)


def test_a_compiled_model_sees_that_it_was_set():
    layer, x = cells.leaky(6, 4), torch.randn(5, 2, 6)
    compiled = torch.compile(lambda x: layer(x)[0], backend="eager")
    before = compiled(x)
    layer.tau = 2.0
    torch.testing.assert_close(compiled(x), layer(x)[0], rtol=0, atol=0)
    assert not torch.allclose(compiled(x), before)


def test_the_probability_of_a_ready_layer_can_be_set():
    x, y = torch.randn(2, 7, 16)
    layer = nn.AddNorm(16, p=0.5, seed=1)
    layer.p, layer.eps = 0.0, 1e-3
    torch.testing.assert_close(layer(x, y), F.layer_norm(x + y, (16,), eps=1e-3))


def test_what_the_formula_cannot_be_leaves_the_layer_as_it_was():
    x, y = torch.randn(2, 7, 16)
    layer = nn.AddNorm(16, p=0.0)
    before, state = layer(x, y), dict(layer.__dict__)
    with pytest.raises(pellucid.FormulaError, match=r"from 0 to 1, not 2\.0"):
        layer.p = 2.0
    with pytest.raises(pellucid.FormulaError, match="eps is a number, not a Tensor"):
        layer.eps = torch.tensor(1.0)
    assert layer.p == 0.0
    assert {**layer.__dict__, "_ran": None} == {**state, "_ran": None}
    torch.testing.assert_close(layer(x, y), before, rtol=0, atol=0)


def test_rows_that_a_hyperparameter_mixes_are_refused():
    layer = shifted(8)
    with pytest.raises(pellucid.FormulaError, match="dim=0 is the batch"):
        layer.across = 1
    assert layer.across == 0


def test_parameters_that_would_have_another_shape_are_named():
    layer, x = repeated(3, 4), torch.randn(5, 2, 3)
    before = layer(x)[0]
    with pytest.raises(ValueError, match=r"with times=3 its parameter W_l0 would be \(12, 4\), but it is \(8, 4\)"):
        layer.times = 3
    assert layer.times == 2
    torch.testing.assert_close(layer(x)[0], before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["half", "dropout", "training", "cell", "hidden_size", "hyperparameters"])
def test_a_name_that_the_layer_has_for_something_else_is_refused(name):
    text = f"def cell(x, h, *, U, W, {name}: float = 1.0):\n    return torch.tanh(x @ U + h @ W) * {name}\n"
    names = {"torch": torch}
    exec(text, names)
    with pytest.raises(pellucid.FormulaError, match=rf"the hyperparameter {name} would stand where .* give it another"):
        pellucid.cell(names["cell"])
