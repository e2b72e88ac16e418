"""The derived program of every cell against its definition, the author's function in a Python loop."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import formulas
import pellucid
from defining import further, make, results
from pellucid import nn
from pellucid.formula.drop import drop
from pellucid.kernel import memory
from pellucid.nn import cells
from running import sizes_of

BUILT_IN = [(value, sizes_of(value)) for value in vars(cells).values() if isinstance(value, pellucid.Cell)]
NO_KERNEL = pytest.mark.filterwarnings("ignore:cell .* runs stepwise")
CELLS = [
    pytest.param(cell, sizes, id=cell.source.name, marks=[NO_KERNEL] if cell in formulas.WITHOUT_KERNEL else [])
    for cell, sizes in BUILT_IN + formulas.WORKING
]


def compare(layer, time, batch, lengths=None, backends=("stepwise", "c")):
    x = torch.randn(time, batch, layer.input_size, dtype=torch.float64)
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    state = tuple(
        torch.rand(rows, batch, size, dtype=torch.float64) for size in layer.solution().state_sizes(layer.cell.source)
    )
    others = further(layer, time, batch)
    expected = results(layer, x, others, state, lengths, "naive")
    for backend in backends:
        with memory.poison():
            found = results(layer, x, others, state, lengths, backend)
        for name, value in found.items():
            torch.testing.assert_close(
                value, expected[name], msg=lambda text, name=name, backend=backend: f"{backend}, {name}: {text}"
            )


@pytest.mark.parametrize("options", [{}, {"lengths": [0, 5, 2]}], ids=["whole", "lengths"])
@pytest.mark.parametrize(("cell", "sizes"), CELLS)
def test_program_is_the_definition(cell, sizes, options):
    compare(make(cell, sizes), 5, 3, **options)


@pytest.mark.parametrize(
    ("cell", "sizes"),
    [p for p in CELLS if p.values[0] not in (formulas.constant_sign, formulas.unparameterised, formulas.masked)],
)  # these work for one size of the input only
def test_levels_and_directions(cell, sizes):
    compare(make(cell, sizes, num_layers=2, bidirectional=True), 4, 2, lengths=[4, 1])


@pytest.mark.parametrize(("cell", "sizes"), CELLS)
def test_first_and_second_derivative(cell, sizes):
    layer = make(cell, sizes)
    names, others = list(dict(layer.named_parameters())), further(layer, 3, 2)

    def function(x, *values):
        torch.manual_seed(1)
        given = dict(zip(others, values, strict=False))
        weights = dict(zip(names, values[len(given) :], strict=True))
        return torch.func.functional_call(layer, weights, (x,), given)[0]

    inputs = [
        torch.randn(3, 2, layer.input_size, dtype=torch.float64),
        *others.values(),
        *(p.detach().clone() for p in layer.parameters()),
    ]
    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_values_that_many_share_are_looked_at_once():
    compare(make(formulas.iterated, {}), 2, 3)


class Spike(torch.autograd.Function):
    """A step, of which a smooth slope is told."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient / (1 + x.abs()) ** 2


def detached(x, h, *, U, W):
    z = torch.tanh(x @ U + (h @ W).detach())
    return z + (torch.round(z) - z).detach() + 0.5 * h.detach()


def unseen(x, h, *, U, W):
    z = torch.tanh(x @ U + h @ W)
    with torch.no_grad():
        scale = 1 + z.abs()
    return z * scale


def spiking(x, h, *, U, W):
    return Spike.apply(x @ U + h @ W) + 0.1 * h


@pytest.mark.parametrize("backend", ["c", "stepwise"])
@pytest.mark.parametrize("formula", [detached, unseen, spiking], ids=lambda f: f.__name__)
def test_a_gradient_that_is_not_that_of_the_operations(formula, backend):
    """It is the author's function's where it is differentiated again, and by torch.func, too."""
    layer = make(pellucid.cell(formula), {})
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    weights = dict(layer.named_parameters())

    def loss(weights):
        return torch.func.functional_call(layer, weights, (x,))[0].square().sum()

    def gradients(of, **options):
        return torch.autograd.grad(of, list(weights.values()), materialize_grads=True, **options)

    results = []
    for name in ("naive", backend):
        with pellucid.backend(name):
            first = gradients(loss(weights), create_graph=True)
            norm = sum(g.square().sum() for g in first if g.requires_grad)
            found = [gradients(loss(weights)), first, gradients(norm)]
            if formula is not spiking:  # torch refuses a function of this old form
                found.append(torch.func.grad(loss)(weights))
            results.append(found)
    torch.testing.assert_close(results[1], results[0])


@settings(max_examples=15, deadline=None)
@given(
    cell=st.sampled_from([cells.rnn, cells.gru, cells.lstm, formulas.leaky, formulas.noisy]),
    time=st.integers(0, 6),
    batch=st.integers(0, 4),
    sizes=st.tuples(st.integers(1, 9), st.sampled_from([1, 2, 7, 63])),
    reverse=st.booleans(),
    data=st.data(),
)
def test_any_size_and_any_lengths(cell, time, batch, sizes, reverse, data):
    layer = make(cell, {}, *sizes, bidirectional=reverse)
    lengths = data.draw(st.none() | st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    if time == 0:
        x = torch.randn(0, batch, sizes[0], dtype=torch.float64, requires_grad=True)
        output, last = layer(x, lengths=lengths)
        assert output.shape == (0, batch, sizes[1] * (2 if reverse else 1))
        last = last if isinstance(last, tuple) else (last,)
        sum((s.sum() for s in last), output.sum()).backward()
        assert all(not s.any() for s in last)
    else:
        compare(layer, time, batch, lengths)


def formula(one):
    """Strategies of a random formula whose functions of one argument are these."""
    expressions = st.recursive(
        st.sampled_from(formulas.LEAVES),
        lambda inner: (
            st.tuples(st.sampled_from(one), inner).map(lambda parts: parts[0].format(parts[1]))
            | st.tuples(st.sampled_from(formulas.TWO), inner, inner).map(lambda parts: parts[0].format(*parts[1:]))
        ),
        max_leaves=6,
    )
    lengths = st.none() | st.lists(st.integers(0, 3), min_size=2, max_size=2)
    return {"new_h": expressions, "new_c": expressions, "output": st.none() | expressions, "lengths": lengths}


@settings(max_examples=40)
@given(**formula(formulas.ONE + formulas.NO_KERNEL))
def test_any_formula(new_h, new_c, output, lengths):
    compare(make(formulas.written(new_h, new_c, output), {}), 3, 2, lengths, ["stepwise"])


@settings(max_examples=20)
@given(**formula(formulas.ONE))
def test_any_formula_in_c(new_h, new_c, output, lengths):
    compare(make(formulas.written(new_h, new_c, output), {}), 3, 2, lengths, ["c"])


@pytest.mark.parametrize("start", range(0, len(formulas.FURTHER), 4))
def test_further_operations(start):
    pieces = [piece.replace("{}", "(h @ W + x @ U)") for piece in formulas.FURTHER[start : start + 4]]
    compare(make(formulas.written(" + ".join(pieces), "c * b", None), {}), 3, 2, [3, 1])


@pytest.mark.parametrize("piece", formulas.NO_KERNEL)
def test_a_formula_without_a_kernel_runs_stepwise(piece):
    layer = make(formulas.written(piece.format("h @ W + x @ U"), "c", None, "no_kernel"), {})
    with pytest.warns(pellucid.PellucidWarning, match=r"cell no_kernel.* runs stepwise.* because .* has no C kernel"):
        compare(layer, 3, 2, backends=["c"])


@pytest.mark.parametrize("make_layer", [pellucid.cell, pellucid.layer])
def test_a_chain_that_is_too_long_for_a_kernel_runs_stepwise(make_layer):
    def recurrent(x, h, *, U, W):
        return chained(x @ U + h @ W)

    def alone(x, *, g):
        return chained(x * g)

    def chained(y):
        for _ in range(300):
            y = 0.9 * y + 0.01 * y * y
        return y

    layer = make_layer(recurrent)(3, 2) if make_layer is pellucid.cell else make_layer(alone)(3)
    with pytest.warns(pellucid.PellucidWarning, match="stepwise.* a chain of hundreds of operations has no C kernel"):
        results = layer(torch.rand(2, 1, 3))
    assert layer.backend == "stepwise"
    assert (results[0] if make_layer is pellucid.cell else results).isfinite().all()


def test_a_large_and_sensitive_formula_is_not_taken_for_one_that_mixes_rows():
    def wave(x, h, *, U, W):
        return torch.sin(x @ U + h @ W)

    layer = pellucid.cell(wave)(5000, 3)
    assert layer(torch.randn(2, 1, 5000))[0].shape == (2, 1, 3)


@pytest.mark.parametrize("features", [256, 257, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", [cells.layernorm_rnn, cells.layernorm_lstm], ids=lambda cell: cell.source.name)
def test_a_norm_of_nearly_equal_features_is_not_taken_for_one_that_mixes_rows(cell, dtype, features):
    layer = cell(features, features, dtype=dtype)  # whose products MKL rounds by the number of rows
    assert layer(torch.randn(2, 1, features, dtype=dtype))[0].isfinite().all()


def test_an_initialiser_may_return_what_it_makes():
    def own(x, h, *, U, W=lambda t: torch.eye(len(t)), b=pellucid.zeros):
        return torch.relu(x @ U + h @ W + b)

    assert torch.equal(pellucid.cell(own)(3, 4).W_l0, torch.eye(4))


@pytest.mark.parametrize("make_layer", [pellucid.cell, pellucid.layer])
@pytest.mark.parametrize(
    ("initialiser", "said"),
    [(torch.zeros, r"raised TypeError: zeros\(\)"), (lambda t: torch.eye(7), r"returned \(7, 7\)")],
    ids=["raises", "another_shape"],
)
def test_an_initialiser_that_cannot_fill_is_told_of(make_layer, initialiser, said):
    def recurrent(x, h, *, U, W, b=initialiser):
        return torch.tanh(x @ U + h @ W + b)

    def alone(x, *, b=initialiser):
        return x + b

    formula = recurrent if make_layer is pellucid.cell else alone
    with pytest.raises(pellucid.FormulaError, match=rf"the initialiser of b, \(4\), {said}(.|\n)*pellucid.zeros"):
        make_layer(formula)(4, 4)


@pytest.mark.parametrize("backend", ["c", "stepwise", "naive"])
def test_what_the_formula_detaches_has_no_gradient(backend):
    def reservoir(x, h, *, U, W, b=pellucid.zeros):
        return torch.tanh(x @ U.detach() + h @ W.detach() + b)

    layer = pellucid.cell(reservoir)(3, 4, 2)
    with pellucid.backend(backend):
        layer(torch.randn(12, 2, 3))[0].sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == {"b_l0", "b_l1"}
    assert layer.trained() == {"b"}


def test_an_error_of_the_upper_levels_says_so():
    def sru(x, c, *, W, V):
        f = torch.sigmoid(x @ V)
        return f * c + (1 - f) * (x @ W) + x

    with pytest.raises(pellucid.FormulaError, match="they read 12 features, what both directions"):
        pellucid.cell(sru)(6, 6, 2, bidirectional=True)


def test_rows_that_are_mixed_a_little_are_found():
    def drifts(x, h, *, U):
        return torch.tanh(x @ U) + 1e-4 * h.roll(1)  # of all rows as one

    with pytest.raises(pellucid.FormulaError, match=r"other samples of the batch(.|\n)*h\.roll\(1\)"):
        pellucid.cell(drifts)(3, 4)(torch.randn(5, 2, 3))


def test_padding_is_never_read():
    layer = make(cells.gru, {}, bidirectional=True)
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    lengths = torch.tensor([5, 0, 2])
    expected = layer(x, lengths=lengths)
    spoilt = x.clone()
    for row, length in enumerate(lengths):
        spoilt[length:, row] = torch.nan
    spoilt.requires_grad_()
    output, last = layer(spoilt, lengths=lengths)
    torch.testing.assert_close((output, last), expected)
    output.sum().backward()
    assert spoilt.grad.isfinite().all()
    assert not spoilt.grad[:, 1].any()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    for row, length in enumerate(lengths):
        alone, _ = layer(x[:length, row])
        torch.testing.assert_close(output[:length, row], alone)
        assert not output[length:, row].any()


def logarithmic(x, h, *, U, W):
    return torch.tanh(torch.log(x.abs()) @ U + h @ W) + 0.1 * h


@pytest.mark.parametrize("lengths", [[5, 0, 2], [0, 0, 3], [0, 0, 0]])
def test_padding_meets_no_slope_that_real_steps_do_not(lengths):
    layer = make(pellucid.cell(logarithmic), {}, num_layers=2, bidirectional=True)
    x = torch.rand(5, 3, 3, dtype=torch.float64) + 0.1
    for row, length in enumerate(lengths):
        x[length:, row] = torch.nan
    if any(lengths):
        compare_to_single_sequences(layer, x, lengths)
    else:
        output, _ = layer(x, lengths=lengths)
        assert not output.any()


def compare_to_single_sequences(layer, x, lengths):
    """Output and gradients of a padded batch are those of its sequences, one after the other."""
    results = []
    for padded in (True, False):
        layer.zero_grad()
        if padded:
            output = layer(x, lengths=lengths)[0]
            parts = [output[:length, row] for row, length in enumerate(lengths)]
        else:
            parts = [layer(x[:length, row])[0] for row, length in enumerate(lengths)]
        sum(part.square().sum() for part in parts).backward()
        results.append([*(p.detach() for p in parts), *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(*results)


def test_draws_follow_the_seed_and_stop_in_eval():
    layer = make(formulas.variational, {})
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    torch.manual_seed(1)
    first = layer(x)[0]
    torch.manual_seed(1)
    assert torch.equal(layer(x)[0], first)
    assert not torch.equal(layer(x)[0], first)
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])
    layer.train()
    still = torch.ones(1, 64, 3, dtype=torch.float64).expand(6, 64, 3)
    with torch.no_grad():
        for name in ("U_l0", "b_l0"):
            getattr(layer, name).zero_()
        layer.W_l0.copy_(torch.eye(4))
    kept = layer(still, torch.full((1, 64, 4), 0.5, dtype=torch.float64))[0] != 0
    assert (kept == kept[0]).all()  # shared="time": what is dropped at the first step is dropped at each
    assert not kept.all()
    assert kept.any()


def test_a_parameter_whose_name_begins_as_another_s():
    @pellucid.cell
    def cell(x, h, *, U, W, W_long=pellucid.ones):
        return torch.tanh(x @ U + h @ W) * W_long

    assert cell(2, 3).W_long_l0.tolist() == [1.0] * 3


def test_draws_outside_a_cell_and_of_no_sense_are_refused():
    one = torch.ones(2)
    with pytest.raises(pellucid.FormulaError, match=r"nn\.Dropout"):
        pellucid.dropout(one)
    with pytest.raises(pellucid.FormulaError, match=r"zoneout stands inside a cell"):
        pellucid.zoneout(one, one)
    with pytest.raises(pellucid.FormulaError, match=r"torch\.randn_like"):
        pellucid.noise(one)
    with pytest.raises(pellucid.FormulaError, match=r'None or "time", not .steps.'):
        pellucid.noise(one, shared="steps")
    for call in (lambda: pellucid.dropout(one, 1.5), lambda: pellucid.zoneout(one, one, -0.1)):
        with pytest.raises(ValueError, match="probability"):
            call()
    with pytest.raises(ValueError, match="standard deviation"):
        pellucid.noise(one, -1.0)

    def learned(x, h, *, U, s):
        return x @ U + pellucid.noise(h, s)

    with pytest.raises(pellucid.FormulaError, match=r"(?s)s \* pellucid\.noise.*\^\^\^"):
        pellucid.cell(learned)(3, 4)


@pellucid.cell
def pure_noise(x, h, *, U, sigma: float = 2.0):
    return x @ U + pellucid.noise(h, sigma), (pellucid.noise(h, sigma, shared="time"),)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_noise_is_gaussian_and_everyones_own(dtype):
    layer = pure_noise(1, 64).to(dtype)
    x = torch.zeros(30, 50, 1, dtype=dtype)
    torch.manual_seed(0)
    z = layer(x)[0].double() / 2
    count = z.numel()
    assert abs(z.mean()) < 5 / count**0.5
    assert abs(z.var() - 1) < 5 * (2 / count) ** 0.5 + torch.finfo(dtype).eps
    assert abs((z**4).mean() - 3) < 5 * (96 / count) ** 0.5 + 4 * torch.finfo(dtype).eps
    for shifted in (z.roll(1, 0), z.roll(1, 1), z.roll(1, 2)):  # steps, samples and units draw apart
        assert abs((z * shifted).mean()) < 5 / count**0.5
    assert not layer.eval()(x)[0].any()


def test_noise_shared_over_time_is_one_draw():
    def held(x, h, *, U):
        return x @ U + pellucid.noise(h, shared="time")

    output, _ = pellucid.cell(held)(1, 4)(torch.zeros(5, 3, 1))
    assert (output == output[0]).all()
    assert output[0].unique().numel() == 12


@pellucid.cell
def zoned_counter(x, h, *, U, p: float = 0.3):
    return pellucid.zoneout(x @ U + h + 1, h, p)


def test_zoneout_keeps_with_probability_p_and_expects_in_eval():
    x, p = torch.zeros(30, 50, 1), 0.3
    layer = zoned_counter(1, 64, p=p)
    output, _ = layer(x)
    steps = torch.diff(output, dim=0, prepend=torch.zeros(1, 50, 64))
    assert ((steps == 0) | (steps == 1)).all()  # the old entry or the new one
    count = steps.numel()
    assert abs(1 - steps.mean() - p) < 5 * (p * (1 - p) / count) ** 0.5
    both_kept = ((steps == 0) & (steps.roll(1, 0) == 0)).double().mean()
    assert abs(both_kept - p**2) < 5 * (p**2 / count) ** 0.5
    expected = torch.arange(1, 31).view(30, 1, 1) * (1 - p)
    torch.testing.assert_close(layer.eval()(x)[0], expected.expand_as(output))
    for p, end in ((0.0, 30), (1.0, 0)):
        layer = zoned_counter(1, 4, p=p)
        for training in (True, False):
            assert (layer.train(training)(x)[1] == end).all()


@pytest.mark.parametrize(("cell", "sizes"), BUILT_IN, ids=[cell.source.name for cell, _ in BUILT_IN])
def test_drop_connect_masks_the_weights_of_any_cell_once_a_call(cell, sizes):
    layer = make(cell, sizes, num_layers=2, bidirectional=True)
    x, others = torch.randn(4, 2, 3, dtype=torch.float64), further(layer, 4, 2)
    dropping = nn.DropConnect(layer, 0.5, seed=2)
    draws = dropping.bind(x)["draws"]
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for name, drawn in draws.items():
            twin.get_parameter(name).copy_(drop(layer.get_parameter(name), drawn, 0.5))
    torch.manual_seed(2)
    output, _ = dropping(x, **others)
    torch.manual_seed(2)
    torch.testing.assert_close(output, twin(x, **others)[0])
    output.sum().backward()
    for name, drawn in draws.items():
        assert not layer.get_parameter(name).grad[drawn < 0.5].any()
        assert layer.get_parameter(name).grad.any()


def outputs_of_extremes(layer):
    """Of each backend what a cell of several states makes of large numbers, which with its gradients is finite."""
    layer = layer.float()
    extreme = torch.cat([torch.full((1, 2, 3), s) for s in (300.0, -300.0, 0.0)]).requires_grad_()
    for backend in ("stepwise", "c"):
        with pellucid.backend(backend):
            output, last = layer(extreme)
        assert all(t.isfinite().all() for t in (output, *last, *torch.autograd.grad(output.sum(), extreme)))
        yield output


def test_slstm_is_the_paper_without_its_stabilizer_and_stays_finite():
    layer = make(cells.slstm, {})
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    h, c, n = (torch.zeros(2, 4, dtype=torch.float64) for _ in range(3))
    for t in range(6):
        i, f, g, o = (x[t] @ layer.U_l0 + h @ layer.W_l0 + layer.b_l0).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.exp(i) * torch.tanh(g)
        n = torch.sigmoid(f) * n + torch.exp(i)
        h = torch.sigmoid(o) * c / n
    output, (last, last_c, last_n, m) = layer(x)
    torch.testing.assert_close((output[-1], last[0]), (h, h))
    torch.testing.assert_close((last_c[0] * m[0].exp(), last_n[0] * m[0].exp()), (c, n))
    for output in outputs_of_extremes(layer):
        assert output.abs().max() <= 1


def test_mlstm_is_the_paper_without_its_stabilizer_and_stays_finite():
    layer = cells.mlstm(3, 4, key=2, dtype=torch.float64)
    x = torch.randn(12, 2, 3, dtype=torch.float64)
    C, n = torch.zeros(2, 2, 4, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for t in range(12):
        q, k, v = x[t] @ layer.U_q_l0, x[t] @ layer.U_k_l0 / 2**0.5, x[t] @ layer.U_v_l0
        i, f = (x[t] @ layer.U_g_l0 + layer.b_g_l0).chunk(2, -1)
        C = torch.sigmoid(f)[..., None] * C + torch.exp(i)[..., None] * torch.einsum("bk,bv->bkv", k, v)
        n = torch.sigmoid(f) * n + torch.exp(i) * k
        read = torch.einsum("bk,bkv->bv", q, C) / (q * n).sum(-1, keepdim=True).abs().clamp(min=1)
    output, (last, last_n, m) = layer(x)
    assert layer.backend == "c"
    torch.testing.assert_close(output[-1], torch.sigmoid(x[-1] @ layer.U_o_l0 + layer.b_o_l0) * read)
    torch.testing.assert_close(last[0] * m[0].exp(), C.flatten(1))
    torch.testing.assert_close(last_n[0] * m[0].exp(), n)
    assert len(list(outputs_of_extremes(layer))) == 2


def test_the_delta_rule_reads_what_it_has_written_last_under_a_key():
    layer = cells.delta_rule(3, 4, key=2, dtype=torch.float64)
    with torch.no_grad():
        layer.U_k_l0.copy_(layer.U_q_l0)
        layer.b_l0.fill_(50.0)  # every correction is whole
    x = torch.randn(12, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], x @ layer.U_v_l0)


def test_dale_keeps_every_units_sign_through_training():
    layer = make(cells.dale, {}, hidden_size=10, sigma=0.0)
    x, state = torch.randn(1, 1, 3, dtype=torch.float64), torch.rand(1, 1, 10, dtype=torch.float64) + 0.1
    signs = torch.tensor([1.0] * 8 + [-1.0] * 2, dtype=torch.float64)

    def sent() -> torch.Tensor:
        jacobian = torch.autograd.functional.jacobian(lambda s: layer(x, s)[1].flatten(), state).reshape(10, 10)
        return jacobian - torch.diag(jacobian.diag())

    before = layer.W_l0.detach().clone()
    assert (sent() * signs >= 0).all()
    output, _ = layer(torch.randn(5, 8, 3, dtype=torch.float64))
    assert (output >= 0).all()
    output.square().sum().backward()
    with torch.no_grad():
        layer.W_l0 -= layer.W_l0.grad / layer.W_l0.grad.abs().mean()
    assert (before.sign() != layer.W_l0.sign()).any()
    assert (sent() * signs >= 0).all()
    assert (sent() != 0).sum() == 90


def test_names_text_and_copies():
    layer = formulas.low_rank(3, 4, num_layers=2, bidirectional=True, rank=2)
    assert [n for n, _ in layer.named_parameters()][:5] == ["U_l0", "M_l0", "N_l0", "b_l0", "U_l0_reverse"]
    assert repr(layer) == "low_rank(3, 4, num_layers=2, bidirectional=True, rank=2)"
    assert repr(formulas.leaky(3, 4, tau=2.5)) == "leaky(3, 4, tau=2.5)"
    assert layer.W_l1_reverse.shape == (8, 4) if hasattr(layer, "W_l1_reverse") else layer.U_l1_reverse.shape == (8, 4)
    assert torch.equal(layer.b_l0, torch.full((4,), 0.5))
    bound = 1 / 4**0.5
    assert layer.U_l0.abs().max() <= bound
    x = torch.randn(3, 2, 3)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x)[0], layer(x)[0])
        assert twin.cell is layer.cell


def test_state_of_several_entries_is_checked():
    layer = formulas.noisy(3, 4)
    x = torch.randn(5, 2, 3)
    with pytest.raises(RuntimeError, match=r"noisy: the state has 2 entries, but 1 were given.*\(h, c\)"):
        layer(x, torch.zeros(1, 2, 4))
    with pytest.raises(RuntimeError, match=r"state c is .*batch 3.*expected .*batch 2"):
        layer(x, (torch.zeros(1, 2, 4), torch.zeros(1, 3, 4)))


def test_backend_names_are_checked():
    with (
        pytest.raises(ValueError, match="backends are auto, c, triton, stepwise, naive, not 'fast'"),
        pellucid.backend("fast"),
    ):
        pass


# -- several inputs -------------------------------------------------------------------------------------------------


def test_cfc_is_its_paper_for_every_layout():
    layer = make(cells.cfc, {}, num_layers=2)
    x, dt = torch.randn(6, 3, 3, dtype=torch.float64), torch.rand(6, 3, dtype=torch.float64)
    expected = x
    for level in range(2):
        U, W, V, b, d = (getattr(layer, f"{name}_l{level}") for name in "UWVbd")
        h, outputs = torch.zeros(3, 4, dtype=torch.float64), []
        for t in range(6):
            f, g, k = (torch.tanh(expected[t] @ U + h @ W + b) @ V + d).chunk(3, -1)
            gate = torch.sigmoid(-f * dt[t].unsqueeze(-1))
            h = gate * torch.tanh(g) + (1 - gate) * torch.tanh(k)
            outputs.append(h)
        expected = torch.stack(outputs)
    torch.testing.assert_close(layer(x, dt=dt)[0], expected)
    torch.testing.assert_close(layer(x, dt=dt.unsqueeze(-1))[0], expected)
    torch.testing.assert_close(layer(x[:, 1], dt=dt[:, 1])[0], expected[:, 1])
    lengths = [6, 2, 4]
    packed = [pack_padded_sequence(v, lengths, enforce_sorted=False) for v in (x, dt, dt[..., None])]
    for gaps in packed[1:]:
        output, found = pad_packed_sequence(layer(packed[0], dt=gaps)[0])
        assert found.tolist() == lengths
        torch.testing.assert_close(output, layer(x, lengths=lengths, dt=dt)[0])
    report = pellucid.explain(layer, x, dt=dt, lengths=lengths, show=False)
    assert report.check.difference < 1e-12
    assert report.symbol("dt").shape == (1, 1)
    layer.batch_first = True
    torch.testing.assert_close(layer(x.transpose(0, 1), dt=dt.t())[0], expected.transpose(0, 1))


def test_padding_of_every_input_is_never_read():
    layer = make(cells.cfc, {}, bidirectional=True)
    x, dt = torch.randn(5, 2, 3, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    expected = layer(x, lengths=[5, 2], dt=dt)
    dt[2:, 1] = torch.nan
    dt.requires_grad_()
    found = layer(x, lengths=[5, 2], dt=dt)
    torch.testing.assert_close(found, expected)
    found[0].sum().backward()
    assert dt.grad.isfinite().all()
    assert not dt.grad[2:, 1].any()
    assert dt.grad[:2].all()


def test_several_inputs_compile_and_map():
    layer = cells.cfc(3, 4)
    x, dt = torch.randn(5, 2, 3), torch.rand(5, 2, requires_grad=True)
    expected, _ = layer(x, dt=dt)
    compiled, _ = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, dt=dt)
    torch.testing.assert_close(compiled, expected)
    gradients = [torch.autograd.grad(output.square().sum(), dt)[0] for output in (compiled, expected)]
    torch.testing.assert_close(*gradients)
    mapped = torch.func.vmap(lambda x, dt: layer(x, dt=dt)[0], in_dims=1, out_dims=1)(x, dt)
    torch.testing.assert_close(mapped, expected)


def test_a_state_as_wide_as_the_input_has_levels_of_one_width_only():
    cell = formulas.remembering
    for options in ({}, {"bidirectional": True}):
        with pytest.raises(pellucid.FormulaError, match=r"state before would have \d+ there instead of 5"):
            cell(5, 8, num_layers=2, **options)
    x = torch.randn(7, 2, 8)
    assert [entry.shape for entry in cell(8, 8, num_layers=2)(x)[1]] == [(2, 2, 8), (2, 2, 8)]


def test_several_inputs_are_checked():
    layer, x, dt = cells.cfc(3, 4), torch.randn(5, 2, 3), torch.rand(5, 2)
    with pytest.raises(TypeError, match=r"cfc: the input dt is missing.*layer\(x, dt=\.\.\.\)"):
        layer(x)
    with pytest.raises(TypeError, match=r"cfc: unexpected argument 'gaps'.*dt="):
        layer(x, dt=dt, gaps=dt)
    with pytest.raises(TypeError, match="leaky: unexpected argument 'dt'"):
        cells.leaky(3, 4)(x, dt=dt)
    with pytest.raises(
        RuntimeError, match=r"input dt is \(4, 2\), expected \(time 5, batch 2, features 1\), or.*\(time 5, batch 2\)"
    ):
        layer(x, dt=dt[:4])
    with pytest.raises(ValueError, match=r"input dt is of torch\.int64.*dt\.to\(torch\.float32\)"):
        layer(x, dt=torch.ones(5, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="dt must be one too"):
        layer(pack_padded_sequence(x, [5, 2]), dt=dt)
    with pytest.raises(RuntimeError, match=r"dt have lengths \[5, 3\].*\[5, 2\]"):
        layer(pack_padded_sequence(x, [5, 2]), dt=pack_padded_sequence(dt, [5, 3]))

    with pytest.raises(pellucid.FormulaError, match="further input seen would have 4 there instead of 3"):
        formulas.masked(3, 4, num_layers=2)

    def clashing(x, lengths, /, h, *, U):
        return h + x @ U + lengths

    with pytest.raises(pellucid.FormulaError, match=r"(?s)layer\(x, lengths=...\) has something else.*\^{7}"):
        pellucid.cell(clashing)
