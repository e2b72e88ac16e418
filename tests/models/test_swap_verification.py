"""A swapped model runs before and after: what is compared, measured, refused, undone and told."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import pellucid
from pellucid import nn
from pellucid.models.structures import difference
from pellucid.models.verification import TOLERANCE
from swapping import Tagger, classes, ids, tagger

pytestmark = pytest.mark.usefixtures("few_samples")


def test_a_verified_model_is_as_it_was():
    model = tagger(0.3, torch.float32)
    model.rnn.eval()
    model(ids()).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    objects = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    modes = {path: module.training for path, module in model.named_modules()}
    random.seed(4)
    np.random.seed(4)
    torch.manual_seed(4)
    report = pellucid.swap(model, verify=ids())
    drawn = random.random(), np.random.random(), float(torch.rand(()))
    random.seed(4)
    np.random.seed(4)
    torch.manual_seed(4)
    assert drawn == (random.random(), np.random.random(), float(torch.rand(())))
    assert {path: module.training for path, module in model.named_modules()} == modes
    assert {name: id(value) for name, value in model.state_dict(keep_vars=True).items()} == objects
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, grads[name]), name
    assert model.parts["drop"].p == model.rnn.dropout == 0.3
    assert type(model.rnn) is nn.LSTM
    check = report.verification
    assert check is not None
    assert check.modes == ("eval", "train")
    assert check.notes == ()
    assert 0 < check.outputs < check.tolerance == TOLERANCE[torch.float32]
    assert check.gradients is not None
    assert 0 < check.gradients < check.tolerance
    assert check.timed == "forward + backward"
    assert check.factor == check.before_ms / check.after_ms > 0


def test_in_eval_the_forward_pass_is_timed():
    check = pellucid.swap(tagger().eval(), verify=ids()).verification
    assert check is not None
    assert check.timed == "forward"
    assert check.outputs < 1e-12
    assert check.gradients is not None
    assert check.gradients < 1e-12


class Reads(torch.nn.Module):
    """Takes inputs of every structure, and gives a mapping."""

    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.GRU(3, 4)
        self.norm = torch.nn.LayerNorm(4)

    def forward(self, x, scale=1.0, more=()):
        y, h = self.rnn(x)
        h = self.norm(h) * scale
        for part in more:
            h = h + part
        return {"y": y, "state": [h, (h > 0, None, "words")]}


EXAMPLES = [
    torch.randn(5, 2, 3),
    (torch.randn(5, 2, 3), torch.tensor(2.0)),
    {"x": torch.randn(5, 2, 3), "more": [torch.ones(4), torch.zeros(4)]},
    pack_sequence([torch.randn(4, 3), torch.randn(2, 3)]),
    (pack_sequence([torch.randn(4, 3), torch.randn(2, 3)]), 3.0),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=["tensor", "tuple", "dict", "packed", "packed and number"])
def test_examples_of_every_structure(example):
    check = pellucid.swap(Reads(), verify=example).verification
    assert check is not None
    assert check.gradients is not None
    assert max(check.outputs, check.gradients) < 1e-5


def wrong_by(amount, monkeypatch):
    right = nn.LayerNorm.forward
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, x: right(self, x) * (1 + amount))


def test_a_difference_is_refused_and_undone(monkeypatch):
    model = tagger(dtype=torch.float32)
    original = classes(model)
    wrong_by(1e-3, monkeypatch)
    with pytest.raises(pellucid.VerificationError, match=r"an output by 1\.\de-03.*float32 may differ by 1e-04.*only="):
        pellucid.swap(model, verify=ids())
    assert classes(model) == original
    pellucid.swap(model, only=torch.nn.LSTM, verify=ids())  # without the layer at fault


def test_a_wrong_gradient_is_refused(monkeypatch):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            return 1.01 * dy

    right = nn.LayerNorm.forward
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, x: Wrong.apply(right(self, x)))
    model = tagger()
    with pytest.raises(pellucid.VerificationError, match=r"an output by \d\.\de-1\d and a gradient by \d\.\de-0[23]"):
        pellucid.swap(model, verify=ids())
    assert type(model.norm) is torch.nn.LayerNorm


def test_what_is_only_rounding_is_let_through_and_told(monkeypatch):
    class Cancels(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(6)

        def forward(self, x):
            y = self.norm(x)
            return (y + 1e5) - 1e5

    model = Cancels()
    check = pellucid.swap(model, verify=torch.randn(9, 6)).verification
    assert check is not None
    assert check.notes == ()  # the same rounding on both sides
    pellucid.restore(model)
    wrong_by(1e-3, monkeypatch)  # less than what cancels, so it cannot be told from rounding in float32
    check = pellucid.swap(model, verify=torch.randn(9, 6)).verification
    assert check is not None
    assert check.outputs > check.tolerance
    assert "Rounding is large in eval mode: from float64 torch.nn's layers differ, an output by" in check.notes[0]
    pellucid.restore(model)
    with pytest.raises(pellucid.VerificationError, match="float64 may differ"):
        pellucid.swap(model.double(), verify=torch.randn(9, 6).double())


def test_what_the_last_bit_of_a_weight_would_change_too_is_rounding(monkeypatch):
    class Edge(torch.nn.Module):
        """Every unit is as near to where a gradient jumps as a float32 can be, and torch's is exact."""

        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(6, eps=0.0)
            self.scale = torch.nn.Parameter(torch.ones(6))

        def forward(self, x):
            y = self.norm(x) * self.scale
            return y + torch.relu(y - (1 - 2**-24))

    x = torch.tensor([[1.0, -1.0] * 3])
    wrong_by(-1e-6, monkeypatch)
    check = pellucid.swap(Edge(), verify=x).verification
    assert check is not None
    assert check.gradients is not None
    assert check.gradients > 0.1
    assert "torch.nn's layers, also with another last bit in their weights, differ, an output by" in check.notes[0]
    wrong_by(-1e-2, monkeypatch)  # more than a bit
    with pytest.raises(pellucid.VerificationError, match="a gradient by"):
        pellucid.swap(torch.nn.Sequential(torch.nn.LayerNorm(6)), verify=torch.randn(9, 6))


def test_whole_numbers_that_change_are_no_rounding(monkeypatch):
    class Decides(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(6)

        def forward(self, x):
            return self.norm(x).round().long()

    x = torch.randn(9, 6)
    check = pellucid.swap(Decides(), verify=x).verification
    assert check is not None
    assert (check.outputs, check.gradients, check.timed) == (0, None, "forward")
    wrong_by(0.5, monkeypatch)
    with pytest.raises(pellucid.VerificationError, match="an output by inf"):
        pellucid.swap(Decides(), verify=x)


def test_a_failure_with_pellucids_layers_is_told_and_undone(monkeypatch):
    def fails(self, x):
        raise RuntimeError("cannot")

    monkeypatch.setattr(nn.LayerNorm, "forward", fails)
    model = tagger()
    with pytest.raises(pellucid.VerificationError, match=r"fails in eval mode.*: cannot"):
        pellucid.swap(model, verify=ids())
    assert type(model.norm) is torch.nn.LayerNorm


def test_an_example_that_does_not_fit_is_the_models_own_error():
    model = tagger()
    with pytest.raises(IndexError) as caught:
        pellucid.swap(model, verify=ids() + 20)
    assert caught.value.__notes__ == ['pellucid.swap: this was raised in Embedding "embedding"']
    assert type(model.norm) is torch.nn.LayerNorm
    assert model.training


def test_a_mode_in_which_the_model_fails_is_said():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    check = pellucid.swap(model, verify=torch.randn(1, 3)).verification
    assert check is not None
    assert check.modes == ("eval",)
    assert 'itself fails: BatchNorm1d "0": Expected more than 1 value per channel' in check.notes[0]
    assert check.timed == "forward"


class Trained(torch.nn.Module):
    """A model that can be differentiated in train mode alone."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(4)

    def forward(self, x):
        y = self.norm(x)
        if y.requires_grad and not self.training:
            y.register_hook(self.refuse)
        return y

    @staticmethod
    def refuse(gradient):
        raise AssertionError("train me")


def test_a_mode_in_which_the_model_has_no_gradient_is_said():
    check = pellucid.swap(Trained().eval(), verify=torch.randn(3, 4)).verification
    assert check.modes == ("eval", "train")
    assert check.gradients is not None
    assert "Gradients are not compared in eval mode, where the model itself fails: train me" in check.notes[0]


def test_what_a_model_draws_itself_is_drawn_alike():
    class Noisy(Tagger):
        def forward(self, ids):
            noise = torch.randn(()) + random.random() + np.random.random()
            return torch.nn.functional.dropout(super().forward(ids), 0.5, self.training) * float(noise)

    check = pellucid.swap(Noisy(0.3).double(), verify=ids()).verification
    assert check is not None
    assert check.modes == ("eval", "train")
    assert check.outputs < 1e-12


def test_differences():
    a = torch.tensor([1.0, -4.0, float("inf"), float("nan")])
    assert difference(a, a) == 0
    assert difference(a + torch.tensor([1.0, 0, 0, 0]), a) == 0.25
    assert difference(a.neg().abs(), a) == 2
    assert difference(a.neg(), a) == float("inf")  # of another infinity
    assert difference(a.nan_to_num(), a) == float("inf")
    assert difference(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == float("inf")
    assert difference(torch.ones(2), torch.ones(3)) == float("inf")
    assert difference(torch.zeros(0), torch.zeros(0)) == 0


class Watched(torch.nn.Module):
    """Gives itself hooks when it first runs, and counts calls in a list and a dict, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.watching = False
        self.seen: list[torch.Tensor] = []
        self.sums = {"all": torch.zeros(())}

    def forward(self, x):
        if not self.watching:
            self.layer.register_forward_hook(lambda layer, args, y: self.seen.append(y))
            self.watching = True
        y = self.layer(x)
        self.sums["all"] += 1
        self.sums[f"{len(self.sums)}"] = y.detach().sum()
        return y


@pytest.mark.parametrize(
    "look",
    [
        lambda m, x: pellucid.explain(m, x, show=False),
        pellucid.check,
        lambda m, x: pellucid.swap(m, verify=x, fuse=True),
    ],
    ids=["explain", "check", "swap"],
)
def test_hooks_that_a_model_gives_itself_when_it_first_runs_are_there_once(look):
    model = Watched()
    look(model, torch.ones(2, 3))
    model.seen.clear()
    before = float(model.sums["all"])
    model(torch.ones(2, 3))
    assert len(model.seen) == 1
    assert float(model.sums["all"]) == before + 1


def test_a_model_that_is_explained_keeps_its_lists_and_dicts():
    model = Watched()
    pellucid.explain(model, torch.ones(2, 3), show=False)
    assert (model.seen, model.sums) == ([], {"all": torch.zeros(())})


class Keeping(torch.nn.Module):
    """Keeps in eval mode what it computes of a parameter, until it trains again, as LeViT of transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.ones(3))
        self.layer = torch.nn.Linear(3, 3)
        self.kept: dict[str, torch.Tensor] = {}

    def train(self, mode: bool = True):
        self.kept = {} if mode else self.kept
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return self.layer(x) + self.bias.exp()
        if "bias" not in self.kept:
            self.kept["bias"] = self.bias.exp()
        return self.layer(x) + self.kept["bias"]


def test_what_one_run_keeps_is_not_used_by_the_next():
    report = pellucid.swap(Keeping().eval(), verify=torch.ones(2, 3))
    assert report.verification is not None
    assert report.verification.modes == ("eval", "train")
    assert report.verification.notes == ()
