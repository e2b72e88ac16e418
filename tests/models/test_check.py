"""Every mistake is found in a model that makes it and not in its cured twin; healthy models have none."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import pellucid
from pellucid import nn as own
from pellucid.benchmark.zoo import ZOO
from pellucid.recipes.digits.network import LeNet, OneVersusRest
from pellucid.recipes.sentiment.network import ConvolutionalReader, RecurrentReader
from pellucid.recipes.vowels.data import FEATURES, Statistics
from pellucid.recipes.vowels.network import SpeakerNetwork
from recipe_commands import run

B, T, C = 6, 9, 5  # samples, steps, features
LENGTHS = [9, 4, 7, 9, 5, 2]


def series(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (B, T, C), generator=torch.Generator().manual_seed(3))


def padded() -> torch.Tensor:
    """Series of different lengths, with zeros behind them."""
    return series() * (torch.arange(T) < torch.tensor(LENGTHS)[:, None])[..., None]


class Of(nn.Module):
    """A model of some layers and a function of it and its input."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.body = forward

    def forward(self, x, *more):
        return self.body(self, x, *more)


def kinds(found, severity=None):
    return {f.kind for f in found.findings if severity in (None, f.severity)}


def finds(kind, model, *inputs, path="", severity="wrong", **options):
    """Check a model, and that it makes this mistake there, and no other that is wrong."""
    found = pellucid.check(model, *inputs, **options)
    assert kinds(found, "wrong") <= {kind}, str(found)
    (mistake, *_) = [f for f in found.findings if f.kind == kind] or [None]
    assert mistake is not None, str(found)
    assert (mistake.path, mistake.severity) == (path, severity)
    assert bool(found) is found.ok is (severity != "wrong")
    assert mistake.text
    assert mistake.cure
    return mistake


def lacks(kind, model, *inputs, **options):
    """Check the cured twin."""
    found = pellucid.check(model, *inputs, **options)
    assert kind not in kinds(found), str(found)
    assert found.ok, str(found)
    return found


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# -- samples ----------------------------------------------------------------------------------------------------------


def last_step(**options):
    return Of(lambda m, x: m.out(m.rnn(x)[0][:, -1]), rnn=nn.LSTM(C, 4, **options), out=nn.Linear(4, 3))


def tagger(kind, **options):
    return Of(lambda m, x, *more: m.out(m.rnn(x)[0]), rnn=kind(C, 4, **options), out=nn.Linear(4, 3))


def test_batch_and_time_swapped():
    found = finds("batch-time-swapped", last_step(), series(), path="rnn")
    assert found.numbers == {"samples": B, "changed": 0, "others": 5, "read_as_time": B, "read_as_batch": T}
    assert "(6, 9, 5) as 6 steps of 9 samples" in found.text
    assert "batch_first=True" in found.cure
    lacks("batch-time-swapped", last_step(batch_first=True), series())


def test_the_other_way_round():
    def first(**options):
        return Of(lambda m, x: m.out(m.rnn(x)[0][-1]), rnn=nn.GRU(C, 4, **options), out=nn.Linear(4, 3))

    x = series(T, B, C)
    assert "batch_first=False" in finds("batch-time-swapped", first(batch_first=True), x, path="rnn").cure
    lacks("batch-time-swapped", first(), x)


@pytest.mark.parametrize("kind", [nn.LSTM, own.GRU], ids=["torch", "pellucid"])
def test_lengths_and_the_axis_tell_where_results_do_not(kind):
    x = series()
    note = finds("batch-is-second", tagger(kind), x, severity="note")
    assert note.numbers == {"samples": T, "steps": B}
    finds("batch-time-swapped", tagger(kind), x, path="rnn", lengths=LENGTHS)
    finds("batch-time-swapped", tagger(kind), x, path="rnn", batch_axis=0)
    lacks("batch-is-second", tagger(kind, batch_first=True), x, lengths=LENGTHS)
    assert not pellucid.check(tagger(kind), series(T, B, C), lengths=LENGTHS).findings


def test_other_inputs_tell():
    def both(**options):
        layers = {"rnn": nn.GRU(C, 4, **options), "out": nn.Linear(4, 3), "about": nn.Linear(2, 3)}
        return Of(lambda m, x, about: m.out(m.rnn(x)[0]) * (1 + 0 * m.about(about).sum()), **layers)

    found = finds("batch-time-swapped", both(), series(), series(B, 2), path="rnn", severity="suspect")
    assert "other inputs" in found.text
    lacks("batch-time-swapped", both(batch_first=True), series(), series(B, 2))


def test_attention_over_the_batch():
    def encoder(**options):
        layer = nn.TransformerEncoderLayer(4, 2, 8, **options)
        return Of(lambda m, x: m.out(m.block(m.inn(x)).mean(1)), inn=nn.Linear(C, 4), block=layer, out=nn.Linear(4, 3))

    finds("batch-time-swapped", encoder(), series(), path="block.self_attn")
    lacks("batch-time-swapped", encoder(batch_first=True), series())


def test_a_batch_read_as_one_sequence():
    def pooled(forward):
        return Of(forward, rnn=nn.GRU(C, 4), out=nn.Linear(4, 3))

    finds("read-as-unbatched", pooled(lambda m, x: m.out(m.rnn(x.mean(1))[0])), series(), path="rnn")
    lacks("read-as-unbatched", pooled(lambda m, x: m.out(m.rnn(x.mean(1)[None])[0][0])), series())
    rows = pooled(lambda m, x: m.out(m.rnn(x)[0]))
    finds("read-as-unbatched", rows, series(B, C), path="rnn", severity="suspect")  # it may be one sequence
    finds("read-as-unbatched", rows, series(B, C), path="rnn", batch_axis=0)


def test_samples_that_influence_one_another():
    def attends(dim):
        return Of(lambda m, x: m.out(m.score(x).softmax(dim) * x), score=nn.Linear(C, 1), out=nn.Linear(C, 3))

    x = series(B, C)
    found = finds("samples-mixed", attends(0), x, batch_axis=0)
    assert found.numbers == {"samples": B, "changed": 0, "others": 5}
    finds("samples-mixed", attends(0), x, severity="suspect")  # the rows may be no samples
    lacks("samples-mixed", attends(1), x, batch_axis=0)


def test_a_reshape_that_does_not_exchange_axes_is_found_where_it_stands():
    class Turned(nn.Module):
        def __init__(self, right):
            super().__init__()
            self.right = right

        def forward(self, x):
            return x.transpose(1, 2) if self.right else x.reshape(x.shape[1], x.shape[0], -1).permute(1, 2, 0)

    def model(right):
        return Of(lambda m, x: m.conv(m.turned(x)).mean(2), turned=Turned(right), conv=nn.Conv1d(C, 3, 3))

    finds("samples-mixed", model(False), series(), path="turned", batch_axis=0)
    lacks("samples-mixed", model(True), series(), batch_axis=0)


def test_batch_norm_is_no_mixing():
    lacks("samples-mixed", nn.Sequential(nn.Linear(C, 4), nn.BatchNorm1d(4)), series(B, C), batch_axis=0)


# -- padding ----------------------------------------------------------------------------------------------------------


def packed_tagger(m, x, lengths):
    y, h = m.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    return m.out(pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0]), m.out(h[-1])


class Lengths(Of):
    def forward(self, x, lengths):
        return self.body(self, x, lengths)


def test_padding_in_a_backward_recurrence():
    def layers(kind=nn.LSTM):
        return {"rnn": kind(C, 4, batch_first=True, bidirectional=True), "out": nn.Linear(8, 3)}

    plain = Of(lambda m, x: m.out(m.rnn(x)[0]), **layers())
    found = finds("padding-in-recurrence", plain, padded(), path="rnn", lengths=LENGTHS)
    assert (found.numbers["sample"], found.numbers["real"], found.numbers["time"]) == (5, 2, T)
    assert found.numbers["difference"] > 0.01
    lacks("padding-in-recurrence", Of(lambda m, x: m.out(m.rnn(x)[0][..., :4].repeat(1, 1, 2)), **layers()), padded())
    own_lengths = Lengths(lambda m, x, lengths: m.out(m.rnn(x, lengths=lengths)[0]), **layers(own.GRU))
    assert lacks("padding-in-recurrence", own_lengths, padded(), torch.tensor(LENGTHS)).unchecked == ()


def test_the_last_state_after_padding():
    layers = {"rnn": nn.GRU(C, 4, batch_first=True), "out": nn.Linear(4, 3)}
    state = Of(lambda m, x: m.out(m.rnn(x)[1][-1]), **layers)
    finds("state-after-padding", state, padded(), path="rnn", lengths=LENGTHS)
    lacks("state-after-padding", Lengths(packed_tagger, **layers), padded(), lengths=torch.tensor(LENGTHS))


def test_padding_in_a_mean_and_in_the_last_step():
    def pooled(forward):
        return Lengths(forward, rnn=nn.GRU(C, 4, batch_first=True), out=nn.Linear(4, 3))

    def mean_of_real(m, x, lengths):
        y = m.rnn(x)[0]
        real = (torch.arange(x.shape[1]) < lengths[:, None])[..., None]
        return m.out((y * real).sum(1) / lengths[:, None])

    for forward in (lambda m, x, lengths: m.out(m.rnn(x)[0].mean(1)), lambda m, x, lengths: m.out(m.rnn(x)[0][:, -1])):
        finds("padding-in-result", pooled(forward), padded(), torch.tensor(LENGTHS))
    lacks("padding-in-result", pooled(mean_of_real), padded(), torch.tensor(LENGTHS))
    last = pooled(lambda m, x, lengths: m.out(m.rnn(x)[0][torch.arange(len(x)), lengths - 1]))
    lacks("padding-in-result", last, padded(), torch.tensor(LENGTHS))


def test_padding_in_batch_norm_is_found_in_training():
    def normed(norm, forward):
        return Lengths(forward, norm=norm, out=nn.Linear(C, 3))

    without = normed(nn.BatchNorm1d(C), lambda m, x, lengths: m.out(m.norm(x.mT).mT))
    found = finds("padding-in-norm", without, padded(), torch.tensor(LENGTHS), path="norm")
    assert "running statistics" in found.text
    given = normed(own.BatchNorm1d(C), lambda m, x, lengths: m.out(m.norm(x.mT, lengths=lengths).mT))
    lacks("padding-in-norm", given, padded(), torch.tensor(LENGTHS))


def test_padding_in_attention_and_masks():
    class Encoder(nn.Module):
        def __init__(self, masks):
            super().__init__()
            self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.embedding, self.masks = nn.Embedding(20, 4, padding_idx=0), masks

        def forward(self, ids, mask=None):
            return self.block(self.embedding(ids), src_key_padding_mask=~mask if self.masks else None)

    mask = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(1, 20, (B, T)) * mask
    finds("padding-in-result", Encoder(False), ids, mask=mask, path="block.self_attn")
    lacks("padding-in-result", Encoder(True), ids, mask=mask)


def test_lengths_that_are_guessed_leave_a_suspicion():
    model = Of(lambda m, x: m.out(m.rnn(x)[0].mean(1)), rnn=nn.GRU(C, 4, batch_first=True), out=nn.Linear(4, 3))
    found = finds("padding-in-result", model, padded(), severity="suspect")
    assert "guessed" in found.text
    lacks("padding-in-result", model, series())


# -- dropout ----------------------------------------------------------------------------------------------------------


def test_dropout_in_eval():
    def model(training):
        return Of(lambda m, x: m.out(F.dropout(x, 0.2, training=training(m))), out=nn.Linear(C, 3))

    assert finds("dropout-in-eval", model(lambda m: True), series()).numbers["p"] == 0.2
    lacks("dropout-in-eval", model(lambda m: m.training), series())


def test_dropout_of_attention_in_eval():
    def model(rate):
        return Of(lambda m, x: F.scaled_dot_product_attention(x, x, m.v(x), dropout_p=rate(m)), v=nn.Linear(C, 3))

    assert "dropout_p" in finds("dropout-in-eval", model(lambda m: 0.3), series()).cure
    lacks("dropout-in-eval", model(lambda m: 0.3 * m.training), series())


@pytest.mark.parametrize("dropout", [nn.Dropout, own.Dropout])
def test_a_dropout_that_eval_does_not_reach(dropout):
    model = Of(lambda m, x: m.out(m.drop(x)), drop=dropout(0.4), out=nn.Linear(C, 3))
    lacks("dropout-in-eval", model, series())
    model.drop.train = lambda mode=True: nn.Module.train(model.drop, True)
    assert "this layer stays in training" in finds("dropout-in-eval", model, series(), path="drop").cure.lower()


def test_other_draws_in_eval_are_suspect():
    finds("random-in-eval", Of(lambda m, x: m.a(x) + torch.randn(3), a=nn.Linear(C, 3)), series(), severity="suspect")


def test_dropout_that_is_off_in_training():
    def model():
        inner = nn.Sequential(nn.Linear(C, 4), nn.Dropout(0.2))
        return nn.Sequential(inner, nn.Linear(4, 3))

    half = model()
    half[0].eval()
    found = finds("dropout-off", half, series(), path="0.1")
    assert "eval() was called on 0 " in found.text
    lacks("dropout-off", model(), series())
    lacks("dropout-off", model().eval(), series())
    half[0].requires_grad_(False)
    finds("dropout-off", half, series(), path="0.1", severity="note")


def test_dropout_that_never_drops():
    forgotten = Of(lambda m, x: m.out(x), drop=nn.Dropout(0.2), out=nn.Linear(C, 3))
    finds("dropout-unused", forgotten, series(), path="drop", severity="suspect")
    by_hand = Of(lambda m, x: m.out(F.dropout(x, m.drop.p, m.training)), drop=nn.Dropout(0.2), out=nn.Linear(C, 3))
    assert not pellucid.check(by_hand, series(B, C)).findings
    with pytest.warns(UserWarning, match="dropout"):
        one = last_step(batch_first=True, dropout=0.3)
    finds("dropout-of-one-level", one, series(), path="rnn")
    lacks("dropout-of-one-level", last_step(batch_first=True, dropout=0.3, num_layers=2), series())


# -- norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "shape", "cured", "other"),
    [
        (nn.BatchNorm1d(4), (1, 4), nn.BatchNorm1d(4), (3, 4)),
        (own.BatchNorm2d(4), (1, 4, 1, 1), own.BatchNorm2d(4), (1, 4, 2, 2)),
        (nn.GroupNorm(4, 4), (3, 4), nn.GroupNorm(1, 4), (3, 4)),
        (nn.LayerNorm(1), (3, 4, 1), nn.LayerNorm((4, 1)), (3, 4, 1)),
    ],
    ids=["batch", "batch of a pixel", "group", "layer"],
)
def test_a_norm_over_one_value(norm, shape, cured, other):
    found = finds("norm-of-one", nn.Sequential(norm), series(*shape), path="0")
    assert found.numbers == {"values": 1}
    lacks("norm-of-one", nn.Sequential(cured), series(*other))


def test_a_norm_over_two_values_is_suspect():
    model = nn.Sequential(nn.Linear(C, 4), nn.BatchNorm1d(4))
    finds("norm-of-two", model, series(2, C), path="1", severity="suspect")
    lacks("norm-of-two", model, series(3, C))


# -- units and sequences ----------------------------------------------------------------------------------------------


def test_dead_units():
    def model(bias, activation):
        net = Of(lambda m, x: m.out(activation(m, m.inn(x))), inn=nn.Linear(C, 8), relu=nn.ReLU(), out=nn.Linear(8, 3))
        with torch.no_grad():
            net.inn.bias += torch.tensor(bias)
        return net

    x = series(32, C)
    found = finds("dead-units", model(-100.0, lambda m, y: m.relu(y)), x, path="relu")
    assert found.numbers == {"dead": 8, "units": 8, "share": 1.0, "observed": 32}
    finds("dead-units", model(-100.0, lambda m, y: F.relu(y)), x)
    half = [-100.0] * 5 + [0.0] * 3
    assert finds("dead-units", model(half, lambda m, y: F.relu(y)), x, severity="suspect").numbers["dead"] == 5
    lacks("dead-units", model(0.0, lambda m, y: m.relu(y)), x)


def test_dead_channels():
    conv = nn.Conv2d(1, 4, 3)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    x = series(3, 1, 6, 6)
    model(x)
    lacks("dead-units", model, x)
    with torch.no_grad():
        conv.bias -= 100
    assert finds("dead-units", model, x, path="1").numbers["observed"] == 48


def test_saturated_units():
    def model(scale, activation):
        net = nn.Sequential(nn.Linear(C, 8, bias=False), activation, nn.Linear(8, 3))
        with torch.no_grad():
            net[0].weight *= scale
        return net

    x = series(32, C)
    assert finds("saturated-units", model(1e3, nn.Tanh()), x, path="1").numbers["share"] > 0.9
    finds("saturated-units", model(1e3, nn.Sigmoid()), x, path="1", severity="suspect")
    lacks("saturated-units", model(1, nn.Tanh()), x)
    rnn = last_step(batch_first=True)
    assert lacks("saturated-units", rnn, series())
    elman = Of(lambda m, x: m.out(m.rnn(x)[0][:, -1]), rnn=nn.RNN(C, 4, batch_first=True), out=nn.Linear(4, 3))
    finds("saturated-units", elman, 1e4 * series(), path="rnn")


def recurrence(scale, layer):
    model = Of(lambda m, x: m.out(m.rnn(x)[0][:, -1]), rnn=layer, out=nn.Linear(4, 3))
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if name.startswith(("weight_hh", "W")):
                value.copy_(scale * torch.eye(4))
    return model


@pellucid.cell
def leaky(x, h, *, U, W):
    return F.leaky_relu(x @ U + h @ W)


def test_states_and_gradients_along_the_sequence():
    x = series(4, 40, C)
    for layer in (nn.RNN(C, 4, nonlinearity="relu", batch_first=True), leaky(C, 4, batch_first=True)):
        found = {f.kind: f for f in pellucid.check(recurrence(2.0, layer), x).findings}
        assert {"state-explodes", "gradient-explodes"} <= set(found)
        assert found["state-explodes"].path == found["gradient-explodes"].path == "rnn"
        assert found["state-explodes"].severity == "wrong"
        norms = found["state-explodes"].numbers["norms"]
        assert len(norms) == 40
        assert norms[-1] / norms[0] > 1e4
        gone = {f.kind: f for f in pellucid.check(recurrence(0.1, layer), x).findings}
        assert gone["gradient-vanishes"].severity == "suspect"
        assert gone["gradient-vanishes"].numbers["reach"] < 40
        lacks("gradient-vanishes", recurrence(0.95, layer), x)


# -- gradients --------------------------------------------------------------------------------------------------------


def two(forward):
    return Of(forward, first=nn.Linear(C, 4), second=nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda m, x: m.second(m.first(x).detach()), "cut after it"),
        (lambda m, x: m.second(torch.as_tensor(m.first(x).tolist())), "cut after it"),
        (lambda m, x: m.second(m.first(x).round()), None),
    ],
)
def test_parameters_that_are_cut_off(forward, words):
    if words is None:  # rounding has a gradient of 0, so nothing is cut
        found = finds("zero-gradient", two(forward), series(), path="first", severity="suspect")
    else:
        found = finds("no-gradient", two(forward), series(), path="first")
        assert words in found.text
    assert found.numbers == {"parameters": 2, "entries": 24}
    lacks("no-gradient", two(lambda m, x: m.second(m.first(x))), series())


def test_weights_that_start_at_0_hold_the_gradient_up_for_one_step_only():
    gated = two(lambda m, x: x[..., :3] + m.gate * m.second(m.first(x)))
    gated.gate = nn.Parameter(torch.zeros(3))
    assert not pellucid.check(gated, series(), batch_axis=0).findings
    gated.gate.requires_grad_(False)  # it never leaves 0
    finds("zero-gradient", gated, series(), path="first", severity="suspect")
    dead = two(lambda m, x: m.second(m.first(x).relu()))
    nn.init.constant_(dead.first.bias, -100.0)
    nn.init.zeros_(dead.second.bias)  # one step of it alone wakes nothing
    assert {"dead-units", "zero-gradient"} <= kinds(pellucid.check(dead, series(), batch_axis=0))


def test_a_parameter_without_entries_needs_no_gradient():
    model = two(lambda m, x: torch.cat([m.second(m.first(x)), m.more.expand(*x.shape[:-1], 0)], -1))
    model.more = nn.Parameter(torch.empty(0))
    assert not pellucid.check(model, series(), batch_axis=0).findings


def test_a_layer_that_runs_without_gradients():
    class Quiet(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x)

    model = nn.Sequential(Quiet(C, 4), nn.Linear(4, 3))
    assert "inside this layer" in finds("no-gradient", model, series(), path="0").text


def test_parameters_that_are_not_used():
    finds("never-called", two(lambda m, x: m.first(x)), series(), path="second", severity="suspect")
    model = two(lambda m, x: m.second(m.first(x)))
    model.register_parameter("spare", nn.Parameter(torch.ones(3)))
    assert "spare" in finds("unused-parameter", model, series(), severity="suspect").text
    checkpointed = two(lambda m, x: m.second(checkpoint(m.first, x, use_reentrant=True)))
    assert not pellucid.check(checkpointed, series(B, C).requires_grad_(), batch_axis=0).findings
    functional = two(lambda m, x: m.second(F.linear(x, m.first.weight, m.first.bias)))
    assert not pellucid.check(functional, series()).findings
    model = two(lambda m, x: m.second(m.first(x)))
    model.first.requires_grad_(False)
    finds("frozen", model, series(), path="first", severity="note")


def test_layers_that_are_left_out_in_training():
    always = two(lambda m, x: m.second(m.first(x) if not m.training else x[..., :4]))
    finds("skipped-in-training", always, series(), path="first", severity="suspect")
    torch.manual_seed(0)
    p = float(torch.rand(())) + 0.01  # so that the first draw of the seed leaves it out
    by_chance = two(lambda m, x: m.second(x[..., :4] if m.training and torch.rand(()) < p else m.first(x)))
    assert not pellucid.check(by_chance, series()).findings


def test_a_loss_of_ones_own():
    model = two(lambda m, x: (m.first(x), m.second(m.first(x))))
    finds("no-gradient", model, series(), path="second", loss=lambda y: y[0].mean())
    lacks("no-gradient", model, series(), loss=lambda y: y[1].mean())
    with pytest.raises(TypeError, match="loss= gives 3"):
        pellucid.check(model, series(), loss=lambda y: 3)
    whole = two(lambda m, x: m.second(m.first(x)).argmax(-1))
    assert any("whole numbers" in sentence for sentence in pellucid.check(whole, series()).unchecked)


# -- numbers that are none --------------------------------------------------------------------------------------------


def test_where_numbers_stop_being_finite():
    class Log(nn.Module):
        def forward(self, x):
            return x.log()

    class Safe(nn.Module):
        def forward(self, x):
            return x.exp().log1p()

    def model(middle):
        return nn.Sequential(nn.Linear(C, 4), middle, nn.Linear(4, 3))

    found = finds("not-finite", model(Log()), series(), path="1")
    assert found.numbers["nan"] > 0
    lacks("not-finite", model(Safe()), series())
    broken = model(Safe())
    with torch.no_grad():
        broken[2].weight[0, 0] = float("nan")
    assert "weight of Linear" in finds("not-finite", broken, series(), path="2").text
    assert "input itself" in finds("not-finite", model(Safe()), series() / 0).text


def test_numbers_that_are_not_finite_in_training_only():
    class Wild(nn.Module):
        def forward(self, x):
            return x / 0 if self.training else x

    found = finds("not-finite", nn.Sequential(nn.Linear(C, 4), Wild()), series(), path="1")
    assert found.text.startswith("In train, Wild")


def test_minus_infinity_of_a_mask_may_be_meant():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = Of(lambda m, x, mask: m.block(m.inn(x), src_mask=mask), inn=nn.Linear(C, 4), block=layer)
    assert not pellucid.check(model, series(), nn.Transformer.generate_square_subsequent_mask(T)).findings
    logits = Of(lambda m, x: m.a(x).masked_fill(x[..., :3] > 0, -torch.inf), a=nn.Linear(C, 3))
    finds("not-finite", logits, series(B, C), severity="suspect")


def test_gradients_that_are_not_finite():
    def root(extra):
        return Of(lambda m, x: ((m.a(x) - m.a(x)).square().sum(-1) + extra).sqrt(), a=nn.Linear(C, 3))

    finds("gradient-not-finite", root(0.0), series(), path="a", loss=lambda y: y.sum())
    lacks("gradient-not-finite", root(1e-6), series(), loss=lambda y: y.sum())


# -- healthy models ---------------------------------------------------------------------------------------------------


STATISTICS = Statistics([0.0] * FEATURES, [1.0] * FEATURES)
COUNTS = torch.tensor([7, 3, 5])


def transformer():
    layer = nn.TransformerEncoderLayer(C - 1, 2, 8, dropout=0.1)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def digits():
    return torch.rand(4, 28, 28)


def ids(*shape):
    return torch.randint(1, 20, shape)


HEALTHY = {
    "LeNet": lambda: (LeNet(10), (torch.rand(4, 1, 32, 32),)),
    "one versus rest": lambda: (OneVersusRest(2), (digits(),)),
    "CNN": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        ),
        (series(4, 3, 8, 8),),
    ),
    "MLP": lambda: (nn.Sequential(nn.Linear(C, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2)), (series(8, C),)),
    "LSTM, batch first": lambda: (last_step(batch_first=True), (series(),)),
    "LSTM, time first, one sample": lambda: (tagger(nn.LSTM), (series(T, 1, C),)),
    "one sequence": lambda: (Of(lambda m, x: m.rnn(x)[0][-1], rnn=nn.GRU(C, 4)), (series(T, C),)),
    "packed": lambda: (
        Lengths(packed_tagger, rnn=nn.GRU(C, 4, batch_first=True), out=nn.Linear(4, 3)),
        (padded(), torch.tensor(LENGTHS)),
    ),
    "packed input": lambda: (
        Of(lambda m, x: m.rnn(x)[1][-1], rnn=nn.GRU(C, 4)),
        (pack_sequence([series(4, C), series(2, C)]),),
    ),
    "both directions with lengths": lambda: (
        Lengths(
            lambda m, x, n: m.pool(m.rnn(x, lengths=n)[0], n),
            rnn=own.LSTM(C, 4, 2, batch_first=True, bidirectional=True, dropout=0.2),
            pool=own.LengthPool("mean", batch_first=True),
        ),
        (padded(), torch.tensor(LENGTHS)),
    ),
    "transformer, time first": lambda: (transformer(), (series(T, B, C - 1),)),
    "TCN": lambda: (own.TCN(C, [6, 6], 3, dropout=0.1), (series(B, C, T),)),
    "sentiment, recurrent": lambda: (RecurrentReader(20, "gru", 6, 5), (ids(7, 3, 2), COUNTS)),
    "sentiment, convolutional": lambda: (ConvolutionalReader(20, 6, 5, (2, 3)), (ids(7, 3, 2), COUNTS)),
    "vowels, LSTM": lambda: (SpeakerNetwork("lstm", 6, STATISTICS), (series(7, 3, FEATURES), COUNTS)),
    "vowels, TCN": lambda: (SpeakerNetwork("tcn", 6, STATISTICS), (series(7, 3, FEATURES), COUNTS)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_models(name):
    model, inputs = HEALTHY[name]()
    found = pellucid.check(model, *inputs)
    assert found.ok, str(found)
    assert not found.findings or kinds(found) == {"batch-is-second"}, str(found)


@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in ZOO])
def test_real_models(entry):
    if not entry.is_here:
        pytest.skip(f"{entry.needs} is not installed")
    model, inputs = entry.make(tiny=True)
    found = pellucid.check(model, **inputs)
    assert found.ok, str(found)
    assert not any("fails" in sentence for sentence in found.unchecked), found.unchecked


def test_a_mask_of_transformers():
    bert = next(entry for entry in ZOO if entry.name == "BERT")
    if not bert.is_here:
        pytest.skip("transformers is not installed")
    model, inputs = bert.make(tiny=True)
    ids = inputs["input_ids"]
    mask = (torch.arange(ids.shape[1]) < torch.tensor([16, 5])[:, None]).long()
    found = pellucid.check(model, ids, attention_mask=mask)
    assert not found.findings, str(found)
    assert found.unchecked == ()


# -- the model is left alone, inputs of every kind, what a check says ------------------------------------------------


class Merging(nn.Linear):
    """Adds to its weight in eval mode what is learned beside it, as LoRA's layers do."""

    merged = False

    def train(self, mode=True):
        if self.merged is mode:
            self.weight.data += -1 if mode else 1
            self.merged = not mode
        return super().train(mode)


def test_a_mode_that_changes_weights_is_left_by_the_models_own_method():
    model = Merging(C, 3)
    before = model.weight.detach().clone()
    pellucid.check(model, series(B, C), batch_axis=0)
    assert (model.training, model.merged) == (True, False)
    torch.testing.assert_close(model.weight.detach(), before)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(
        nn.Linear(C, 4),
        nn.Unflatten(1, (4, 1)),
        nn.BatchNorm1d(4),
        nn.Flatten(),
        nn.Dropout(0.2),
        own.Dropout(0.1, seed=4),
    )
    model[4].eval()
    model(series(B, C)).sum().backward()
    model.register_parameter("spare", nn.Parameter(torch.ones(1)))
    stepped = []
    model[0].weight.register_post_accumulate_grad_hook(stepped.append)  # as an optimizer in backward is
    calls = []
    model[0].register_forward_hook(lambda *args: calls.append(1))
    hooks = {layer: (len(layer._forward_hooks), len(layer._forward_pre_hooks)) for layer in model.modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    modes = [layer.training for layer in model.modules()]
    draws = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    x = series(B, C).requires_grad_()
    before = x.detach().clone()
    pellucid.check(model, x, batch_axis=0)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(model.get_parameter(name).grad, gradient) for name, gradient in grads.items())
    assert model.spare.grad is None
    assert not stepped
    assert [layer.training for layer in model.modules()] == modes
    assert {layer: (len(layer._forward_hooks), len(layer._forward_pre_hooks)) for layer in model.modules()} == hooks
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert random.getstate() == draws[1]
    assert np.random.get_state()[1].tolist() == draws[2]
    assert torch.equal(x, before)
    assert x.grad is None
    assert model[5].calls == 1
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        pellucid.check(model, series(B, C + 1))
    assert [layer.training for layer in model.modules()] == modes


def test_inputs_of_every_structure():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(C, 4)

        def forward(self, data, scale=1.0):
            return {"y": self.rnn(data["x"])[0].mean(1) * scale, "more": [data["about"], None, "words"]}

    data = {"x": series(), "about": series(B, 2)}
    finds("batch-time-swapped", Reads(), path="rnn", data=data, scale=torch.tensor(2.0))


def test_what_a_check_says():
    found = pellucid.check(last_step(), series())
    text = str(found)
    for words in ("1 thing is wrong", 'LSTM "rnn"', "batch and time are swapped", "Cure: ", "lengths="):
        assert words in text, words
    assert max(map(len, text.splitlines())) <= 120
    plain = json.loads(found.json())
    assert plain["ok"] is False
    assert plain["findings"][0]["kind"] == "batch-time-swapped"
    assert plain["findings"][0]["numbers"]["samples"] == B
    with pytest.raises(pellucid.CheckError, match=r'LSTM "rnn": It reads .* Cure: Make'):
        found.raise_if_wrong()
    healthy = pellucid.check(last_step(batch_first=True), series())
    assert healthy.raise_if_wrong() is healthy
    assert "nothing found" in str(healthy)
    chinese = str(pellucid.check(last_step(), series(), lang="zh"))
    assert "批与时间颠倒了" in chinese
    assert "改法：" in chinese


def test_the_same_mistake_in_many_layers_is_told_once():
    model = nn.Sequential(*(layer for _ in range(7) for layer in (nn.LayerNorm(1), nn.Linear(1, 1))))
    text = str(pellucid.check(model, series(B, 1)))
    assert text.count("a norm over a single value") == 1
    assert 'The same in 6 more: LayerNorm "2", LayerNorm "4", LayerNorm "6", LayerNorm "8", …' in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lengths": [1, 2]}, "lengths of 2 samples"),
        ({"lengths": [0.5] * B}, "whole number"),
        ({"batch_axis": 3}, "has 3 axes"),
        ({"mask": torch.ones(B, T)}, "it is bool"),
        ({"mask": torch.arange(T).expand(B, T) > 2}, "Turn it around"),
        ({"mask": torch.ones(B, T).bool(), "lengths": LENGTHS}, "pass one of them"),
        ({"lang": "de"}, "'en' and 'zh'"),
    ],
)
def test_what_cannot_be_used(options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        pellucid.check(last_step(batch_first=True), series(), **options)


def test_a_class_is_no_model():
    with pytest.raises(TypeError, match="make an object"):
        pellucid.check(nn.Linear, series())


# -- the command ------------------------------------------------------------------------------------------------------


MODELS = """
import torch

class Net(torch.nn.Module):
    def __init__(self, first=False):
        super().__init__()
        self.rnn = torch.nn.GRU(4, 3, batch_first=first)

    def forward(self, x):
        return self.rnn(x)[0].mean(1)

def cured():
    return Net(True)
"""


def test_a_model_that_fails_in_training_alone_is_told_with_its_layer():
    norm = nn.BatchNorm1d(C)
    model = Of(lambda m, x: m.norm(x.mean(1)) if m.training else x, norm=norm)
    found = pellucid.check(model, series()[:1], lang="en")
    assert any('fails: BatchNorm1d "norm": Expected more than 1 value' in said for said in found.unchecked), str(found)


def test_the_command(tmp_path):
    file = tmp_path / "checked.py"
    file.write_text(MODELS)
    result = run("check", f"{file}:Net", "--input", "8x20x4", "--lang", "en")
    assert result.exit_code == 1
    assert "batch and time are swapped" in result.output
    result = run("check", f"{file}:cured", "--input", "x=8x20x4", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["ok"] is True
    result = run("check", f"{file}:cured", "--input", "3x20x4", "--lengths", "20,13,7", "--lang", "zh")
    assert result.exit_code == 1
    assert "填充" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("checked.py:Net",), "Missing option '--input'"),
        (("checked.py:Net", "--input", "2x"), "write a shape"),
        (("checked.py:Net", "--input", "8x20x4", "--lengths", "a,b"), "20,13,7"),
        (("checked.py:Net", "--input", "8x20x4", "--lengths", "3"), "lengths of 1 samples"),
        (("checked.py:Net", "--input", "8x20x5"), 'pellucid.check: this was raised in GRU "rnn"'),
        (("checked.py:Nut", "--input", "8x20x5"), "has no 'Nut'"),
        (("Net", "--input", "8x20x5"), "FILE.PY:MODEL"),
    ],
)
def test_the_command_says_what_cannot_be_used(tmp_path, monkeypatch, arguments, words):
    (tmp_path / "checked.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    result = run("check", *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output
