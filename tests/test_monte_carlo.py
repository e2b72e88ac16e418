"""Monte-Carlo dropout: the moments of the crowd, and a model that is left as it was."""

from __future__ import annotations

import math

import pytest
import torch

import pellucid
from pellucid import nn


def network(source=nn) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        source.Linear(3, 8), source.BatchNorm1d(8), source.Dropout(0.5), source.ReLU(), source.Linear(8, 2)
    )


def modes(model: torch.nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("source", [nn, torch.nn], ids=["pellucid", "torch"])
@pytest.mark.parametrize("training", [True, False])
def test_mean_and_spread(source, training):
    model = network(source).train(training)
    model[0].eval()  # a model half of which is frozen
    before, state = modes(model), {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(4, 3)
    crowd = pellucid.monte_carlo(model, x, 30, seed=1)
    assert crowd.samples.shape == (30, 4, 2)
    torch.testing.assert_close(crowd.mean, crowd.samples.mean(0))
    torch.testing.assert_close(crowd.spread, crowd.samples.std(0, correction=0))
    assert (crowd.spread > 0).all()
    assert not crowd.mean.requires_grad
    assert modes(model) == before
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), f"{name} changed"


def test_the_crowd_of_one_unit():
    """y = w·x·mask/(1 − p) has mean w·x and spread w·x·√(p/(1 − p)), within what chance allows once in 10^9."""
    p, count = 0.2, 2000
    crowd = pellucid.monte_carlo(nn.Dropout(p).double(), torch.full((50,), 3.0, dtype=torch.float64), count, seed=2)
    every = count * 50
    stray = 3 / (1 - p) * math.sqrt(math.log(2e9) / 2 / every)  # Hoeffding
    assert abs(crowd.mean.mean() - 3) < stray
    variance = (crowd.samples**2).mean() - 9
    assert abs(variance - 9 * p / (1 - p)) < (3 / (1 - p)) ** 2 * math.sqrt(math.log(2e9) / 2 / every)


def test_a_seed_repeats_and_leaves_the_generator_alone():
    model, x = network(), torch.randn(4, 3)
    state = torch.get_rng_state()
    first, again = (pellucid.monte_carlo(model, x, 5, seed=7).samples for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    free = pellucid.monte_carlo(model, x, 5).samples
    assert not torch.equal(free, pellucid.monte_carlo(model, x, 5).samples)
    torch.manual_seed(3)
    assert torch.equal(free, pellucid.monte_carlo(model, x, 5).samples)


class Several(torch.nn.Module):
    """Reads two inputs and an option; returns a tree."""

    def __init__(self, fails: bool = False):
        super().__init__()
        self.dropout, self.fails = nn.Dropout(), fails

    def forward(self, x, y, *, scale=1):
        if self.fails:
            raise ArithmeticError("no")
        z = self.dropout(x + y) * scale
        return {"z": z, "parts": (z.argmax(-1), None), "sum": [float(z.sum())]}


def test_trees():
    crowd = pellucid.monte_carlo(Several(), (torch.ones(2, 3), torch.ones(2, 3)), 4, seed=1, scale=10)
    assert crowd.samples["z"].shape == (4, 2, 3)
    assert set(crowd.samples["z"].unique().tolist()) == {0, 40}
    assert crowd.mean["parts"][0].shape == (2,)
    assert crowd.mean["parts"][0].dtype == torch.float32
    assert crowd.mean["parts"][1] is crowd.spread["parts"][1] is None
    torch.testing.assert_close(crowd.mean["sum"][0], crowd.samples["z"].sum((1, 2)).mean())


def test_modes_come_back_after_an_error():
    model = torch.nn.Sequential(Several(fails=True)).eval()
    model[0].dropout.train()
    before = modes(model)
    with pytest.raises(ArithmeticError):
        pellucid.monte_carlo(model[0], (torch.ones(1), torch.ones(1)), 4)
    assert modes(model) == before


@pellucid.cell
def forgetful(x, h, *, U, W):
    return torch.tanh(x @ U + pellucid.dropout(h, 0.5) @ W)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.GRU(3, 4, 2, dropout=0.5), (5, 2, 3)),
        (torch.nn.GRU(3, 4, 2, dropout=0.5), (5, 2, 3)),
        (forgetful(3, 4), (5, 2, 3)),
        (nn.DropConnect(nn.Linear(3, 4)), (2, 3)),
        (torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True), (2, 5, 8)),
        (nn.LockedDropout(0.5), (5, 2, 3)),
    ],
    ids=["GRU", "torch.GRU", "cell", "DropConnect", "transformer", "LockedDropout"],
)
def test_whatever_drops_is_on(model, shape):
    crowd = pellucid.monte_carlo(model.eval(), torch.ones(shape), 8, seed=1)
    spread = crowd.spread[0] if isinstance(crowd.spread, tuple) else crowd.spread
    assert (spread > 0).any()
    assert not any(modes(model))


def test_attention_with_dropout():
    attention = torch.nn.MultiheadAttention(8, 2, dropout=0.3).eval()
    x = torch.ones(5, 2, 8)
    assert (pellucid.monte_carlo(attention, (x, x, x), 8, seed=1).spread[0] > 0).any()


class Functional(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout(x, 0.5, self.training)


def test_a_type_of_ones_own():
    with pytest.raises(ValueError, match=r"Functional holds no layer.*also="):
        pellucid.monte_carlo(Functional(), torch.ones(8), 4)
    assert (pellucid.monte_carlo(Functional(), torch.ones(8), 40, also=(Functional,)).spread > 0).any()


def test_refusals():
    for model in (nn.Linear(3, 2), nn.Dropout(0.0), nn.GRU(3, 4, 1), torch.nn.GRU(3, 4, 2)):
        with pytest.raises(ValueError, match=r"holds no layer that drops.*nn.Dropout"):
            pellucid.monte_carlo(model, torch.ones(1, 3), 3)
    for samples in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="samples"):
            pellucid.monte_carlo(nn.Dropout(), torch.ones(3), samples)
    with pytest.raises(TypeError, match="returns a str"):
        pellucid.monte_carlo(Words(), torch.ones(3), 2)


class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout()

    def forward(self, x):
        return "yes"


def test_one_sample_has_no_spread():
    crowd = pellucid.monte_carlo(nn.Dropout(), torch.ones(3), 1)
    assert torch.equal(crowd.spread, torch.zeros(3))


@pytest.mark.parametrize("options", [{"seed": 1}, {"generator": torch.Generator()}], ids=["seed", "generator"])
def test_a_seed_decides_the_draws_of_layers_with_one_of_their_own_too(options):
    model, x = torch.nn.Sequential(torch.nn.Linear(3, 8), nn.Dropout(**options)), torch.randn(4, 3)
    first, again = (pellucid.monte_carlo(model, x, 8, seed=3) for _ in range(2))
    assert torch.equal(first.samples, again.samples)
    assert {name: getattr(model[1], name) for name in options} == options


def test_packed_sequences_are_one_input():
    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.drop = nn.GRU(3, 4), nn.Dropout()

        def forward(self, x):
            return self.drop(self.rnn(x)[1][0])

    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(n, 3) for n in (4, 2)])
    assert pellucid.monte_carlo(Tagger(), packed, 5).mean.shape == (2, 4)
