"""Long sequences in chunks (checkpoints, a gradient that is cut), and values recorded on the way."""

from __future__ import annotations

import pytest
import torch

import formulas
import pellucid
from pellucid import nn
from pellucid.nn import cells

BACKENDS = ("naive", "stepwise", "c")


def run(layer, x, lengths=None, backend="c", seed=5, **options):
    """Output, last state, what is recorded, and the gradients of input and parameters."""
    x = x.detach().requires_grad_()
    torch.manual_seed(seed)
    with pellucid.backend(backend):
        output, last, *recorded = layer(x, None, lengths, **options)
    values = [output, *(last if isinstance(last, tuple) else [last]), *(recorded[0].values() if recorded else ())]
    loss = sum((v * torch.sin(torch.arange(v.numel(), dtype=v.dtype)).view(v.shape)).sum() for v in values)
    return [*values, *torch.autograd.grad(loss, [x, *layer.parameters()])]


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=["one", "levels"])
@pytest.mark.parametrize("steps", [1, 3, 7, 100])
@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpoints_change_nothing(backend, steps, options):
    layer = cells.lstm(3, 4, dtype=torch.float64, **options)
    x = torch.randn(7, 3, 3, dtype=torch.float64)
    for lengths in (None, [7, 0, 4]):
        expected = run(layer, x, lengths, "naive")
        torch.testing.assert_close(run(layer, x, lengths, backend, checkpoint_every=steps), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_draw_what_the_whole_draws(backend):
    for cell in (formulas.variational, formulas.noisy):
        layer = cell(3, 4, dtype=torch.float64)
        x = torch.randn(7, 2, 3, dtype=torch.float64)
        expected = run(layer, x, backend="naive")
        torch.testing.assert_close(run(layer, x, backend=backend, checkpoint_every=3), expected)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_truncate_cuts_the_gradient(backend, reverse):
    torch.manual_seed(1)
    layer = cells.gru(3, 4, dtype=torch.float64, bidirectional=reverse)
    x = torch.randn(7, 2, 3, dtype=torch.float64, requires_grad=True)
    loss = torch.randn(7, 2, 4, dtype=torch.float64)
    for options in ({"truncate": 2}, {"truncate": 4, "checkpoint_every": 2}):
        with pellucid.backend(backend):
            output, _ = layer(x, **options)
        found = torch.autograd.grad((output[..., -4:] * loss).sum(), x)[0]
        state, outputs = torch.zeros(2, 4, dtype=torch.float64), [None] * 7
        values = layer.symbol_values(0, reverse)
        for taken, t in enumerate(reversed(range(7)) if reverse else range(7)):
            if taken % options["truncate"] == 0:
                state = state.detach()
            state = outputs[t] = cells.gru.function(x[t], state, **values)
        expected = torch.autograd.grad((torch.stack(outputs) * loss).sum(), x)[0]
        torch.testing.assert_close(found, expected)


def test_double_backward_through_chunks():
    layer = cells.rnn(2, 3, dtype=torch.float64)
    x = torch.randn(5, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x, checkpoint_every=2)[0], x)


def test_checkpoints_save_memory():
    layer = nn.LSTM(8, 8)
    x = torch.randn(400, 2, 8)

    def saved(**options) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            layer(x, **options)
        return sum(sizes) - x.nbytes

    assert saved(checkpoint_every=20) < saved() / 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_record_is_what_the_formula_computes(backend):
    layer = cells.lstm(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    with pellucid.backend(backend):
        output, (_, c), recorded = layer(x, lengths=[5, 2, 0], record=("c", "i"))
    assert list(recorded) == ["c", "i"]
    assert recorded["c"].shape == recorded["i"].shape == (4, 5, 3, 4)
    values = layer.symbol_values(0, True)
    state = cell = torch.zeros(1, 4, dtype=torch.float64)
    for t in reversed(range(5)):
        gate = torch.sigmoid((x[t, :1] @ values["U"] + state @ values["W"] + values["b"])[:, :4])
        state, cell = cells.lstm.function(x[t, :1], state, cell, **values)
        torch.testing.assert_close(recorded["c"][1, t, :1], cell)
        # the formula's i is the sum, of which it takes the sigmoid where it stands
        torch.testing.assert_close(torch.sigmoid(recorded["i"][1, t, :1]), gate)
    torch.testing.assert_close(recorded["c"][1, 0, 0], c[1, 0])
    assert not recorded["c"][:, 2:, 1].any()  # past the end
    assert output.shape == (5, 3, 8)


def test_what_is_recorded_is_differentiable_on_every_backend():
    layer = cells.layernorm_lstm(3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    options = {"record": ("h", "c", "a"), "checkpoint_every": 2}
    expected = run(layer, x, [5, 3], "naive", **options)
    for backend in BACKENDS[1:]:
        torch.testing.assert_close(run(layer, x, [5, 3], backend, **options), expected)


def test_record_follows_the_layout():
    layer = nn.GRU(3, 4, batch_first=True)
    x = torch.randn(2, 5, 3)
    output, _, recorded = layer(x, record="z")
    assert output.shape == (2, 5, 4)
    assert recorded["z"].shape == (1, 2, 5, 4)
    torch.testing.assert_close(layer(x[0], record="z")[2]["z"], recorded["z"][:, 0])


def test_chunks_and_records_compile():
    layer = nn.LSTM(3, 4)
    x = torch.randn(7, 2, 3)

    def loss(x):
        output, _, recorded = layer(x, checkpoint_every=3, truncate=6, record=("c",))
        return (output * recorded["c"][0]).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    wanted = list(layer.parameters())
    torch.testing.assert_close(torch.autograd.grad(compiled(x), wanted), torch.autograd.grad(loss(x), wanted))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"record": "q"}, "nn.LSTM: record has no 'q'; its formula computes h, c, i, f, g, o"),
        ({"record": ("c", "U")}, "record has no 'U'"),
        ({"checkpoint_every": 0}, "nn.LSTM: checkpoint_every is a number of steps from 1, not 0"),
        ({"truncate": 2.5}, "truncate is a number of steps from 1, not 2.5"),
        ({"truncate": 3, "checkpoint_every": 2}, "truncate=3 must be a multiple of checkpoint_every=2"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        nn.LSTM(3, 4)(torch.randn(2, 1, 3), **options)


def test_what_has_no_rows_cannot_be_recorded():
    with pytest.raises(pellucid.FormulaError, match="continuous_time: rate cannot be recorded"):
        cells.continuous_time(3, 4)(torch.randn(2, 1, 3), record="rate")


def test_a_record_has_as_many_features_in_every_level():
    def joined(x, h, *, U, W):
        both = torch.cat([x, h], -1)
        return torch.tanh(x @ U + both[:, :1] + h @ W)

    layer = pellucid.cell(joined)(4, 3, num_layers=2)
    with pytest.raises(ValueError, match="joined: record='both' has 7 and 6 features in the levels"):
        layer(torch.randn(2, 1, 4), record="both")
    alike = pellucid.cell(joined)(3, 3, num_layers=2)
    assert alike(torch.randn(2, 1, 3), record="both")[2]["both"].shape == (2, 2, 1, 6)
