"""Dropout: who shares a coin flip, what chance allows, whose generator decides, and every transform of torch."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

import pellucid
from pellucid import nn
from pellucid.formula.drop import drop
from pellucid.kernel import random
from pellucid.nn.dropout.alpha_dropout import SATURATED, drop_alpha

CHANCE = 1e-9  # the probability with which a right layer would fail a statistical test

# Every member with an input, and the axes along which its mask may not change.
MEMBERS = [
    ("Dropout", {}, (40, 50), ()),
    ("Dropout1d", {}, (40, 30, 5), (2,)),
    ("Dropout1d", {}, (60, 5), (1,)),
    ("Dropout2d", {}, (40, 30, 3, 2), (2, 3)),
    ("Dropout3d", {}, (40, 30, 3, 2, 2), (2, 3, 4)),
    ("Dropout3d", {}, (60, 3, 2, 2), (1, 2, 3)),
    ("LockedDropout", {}, (7, 40, 30), (0,)),
    ("LockedDropout", {"batch_first": True}, (40, 7, 30), (1,)),
    ("DropPath", {}, (900, 3, 2), (1, 2)),
    ("AlphaDropout", {}, (40, 50), ()),
    ("FeatureAlphaDropout", {}, (40, 30, 5), (2,)),
]
member = pytest.mark.parametrize(
    ("name", "options", "shape", "shared"), MEMBERS, ids=[f"{m[0]}-{len(m[2])}d{'-bf' * bool(m[1])}" for m in MEMBERS]
)


def make(name: str, p: float = 0.5, **options) -> torch.nn.Module:
    return getattr(nn, name)(p, **options)


def kept(layer: torch.nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """Return which entries of an input a layer keeps."""
    y = layer(torch.full(shape, 3.0))
    return y != y.min() if layer.formula is drop_alpha else y != 0


def binomial_bound(count: int) -> float:
    """Hoeffding 1963: how far the sum of ``count`` independent coins strays with probability ``CHANCE`` at most."""
    return math.sqrt(count * math.log(2 / CHANCE) / 2)


@member
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_as_many_are_dropped_as_chance_allows(name, options, shape, shared, p):
    mask = kept(make(name, p, seed=1, **options), shape)
    coins = mask[tuple(0 if axis in shared else slice(None) for axis in range(mask.ndim))]
    assert torch.equal(mask, coins[tuple(None if a in shared else slice(None) for a in range(mask.ndim))].expand(shape))
    assert abs(coins.sum() - coins.numel() * (1 - p)) < binomial_bound(coins.numel())
    for axis in range(coins.ndim):  # along the other axes every coin is its own
        first, second = coins.narrow(axis, 0, coins.shape[axis] - 1), coins.narrow(axis, 1, coins.shape[axis] - 1)
        agree = (first == second).flatten()
        for half in (agree[::2], agree[1::2]):
            assert abs(half.sum() - half.numel() * (p**2 + (1 - p) ** 2)) < 2 * binomial_bound(half.numel())


@member
def test_formula_in_float64(name, options, shape, shared):
    layer = make(name, 0.3, seed=2, **options)
    x = torch.randn(shape, dtype=torch.float64)
    mask = kept(copy.deepcopy(layer), shape)
    a = (0.7 * (1 + 0.3 * SATURATED**2)) ** -0.5
    expected = {drop: x * mask / 0.7, drop_alpha: a * torch.where(mask, x, SATURATED) - a * 0.3 * SATURATED}
    torch.testing.assert_close(layer(x), expected[layer.formula])


@member
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_mask_for_every_type(name, options, shape, shared, dtype):
    layer = make(name, 0.3, seed=2, **options)
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    expected = copy.deepcopy(layer)(x.double())
    y = layer(x)
    assert y.dtype == dtype
    bound = torch.finfo(dtype).eps * (4 if layer.formula is drop_alpha else 1)  # operations that round, in units of 1
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=bound, atol=bound if layer.formula is drop_alpha else least)


@pytest.mark.parametrize(
    ("name", "shape"), [("Dropout", (300,)), ("AlphaDropout", (300,)), ("Dropout2d", (9, 30, 2, 2))]
)
def test_values_are_those_of_torch(name, shape):
    """Whatever torch draws, its outputs are the two values that ours may take."""
    x = torch.randn(shape, dtype=torch.float64)
    layer, reference = make(name, 0.4), getattr(torch.nn, name)(0.4)
    y = reference(x)
    both = [layer.formula(x, torch.full_like(x, draw), 0.4) for draw in (0.0, 0.9)]
    nearest = torch.where((y - both[0]).abs() < (y - both[1]).abs(), *both)
    torch.testing.assert_close(y, nearest)
    assert {bool((nearest == side).any()) for side in both} == {True}


def test_the_articles_example():
    torch.manual_seed(0)
    y = nn.Dropout(0.5)(torch.tensor([1.0, 2, 3, 4, 5, 6]))
    assert set(y.tolist()) <= {0.0, 2, 4, 6, 8, 10, 12}
    drawn = drop(torch.tensor([1.0, 2, 3, 4, 5, 6]), torch.tensor([0.1, 0.5, 0.2, 0.4, 0.0, 0.9]), 0.5)
    assert drawn.tolist() == [0, 4, 0, 0, 0, 12]


@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(0, 9), min_size=1, max_size=4), chunk=st.integers(1, 60), seed=st.integers(0, 2**64))
def test_same_mask_however_it_is_made(shape, chunk, seed):
    x = torch.ones(shape)
    expected = nn.Dropout(seed=seed)(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "_chunk", lambda device: chunk)
        assert torch.equal(nn.Dropout(seed=seed)(x), expected)
    strided = torch.ones(shape[::-1]).permute(*reversed(range(len(shape))))
    assert torch.equal(nn.Dropout(seed=seed)(strided), expected)


def test_self_normalizing_statistics():
    """Mean 0 and variance 1 stay so, within what chance allows the mean of bounded numbers."""
    count = 200_000
    x = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    x = (x - x.mean()) / x.std(correction=0)
    for p in (0.1, 0.5):
        layer = nn.AlphaDropout(p, seed=5)
        draws = layer.bind(x)["draws"]
        y = layer(x)
        low, high = y.min(), y.max()
        bound = float(high - low) * math.sqrt(math.log(2 / CHANCE) / 2 / count)
        assert abs(y.mean()) < bound
        largest = float(torch.maximum(low**2, high**2))
        assert abs((y**2).mean() - 1) < largest * math.sqrt(math.log(2 / CHANCE) / 2 / count)
        assert torch.equal(y == y[draws < p][0], draws < p)


# -- DropBlock ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), block=st.integers(1, 10), p=st.sampled_from([0.1, 0.5, 1.0]))
def test_drop_block_drops_whole_blocks(rows, columns, block, p):
    layer = nn.DropBlock2d(p, block, seed=3)
    x = torch.randn(2, 3, rows, columns, dtype=torch.float64)
    bound = layer.bind(x)
    high, wide = bound["block"]
    assert (high, wide) == (min(block, rows), min(block, columns))
    mask = torch.ones(x.shape, dtype=torch.bool)
    for sample, channel, row, column in (bound["draws"] < bound["gamma"]).nonzero().tolist():
        mask[sample, channel, row : row + high, column : column + wide] = False
    expected = x * mask * (mask.numel() / max(1, int(mask.sum())))
    torch.testing.assert_close(layer(x), expected)
    if p == 1:
        assert not mask.any()


def test_drop_block_drops_about_p():
    """Against the exact expectation; McDiarmid 1989: one corner changes at most a block of entries."""
    p, block, shape = 0.2, 3, (50, 20, 8, 9)
    layer = nn.DropBlock2d(p, block, seed=4)
    gamma = layer.bind(torch.ones(shape))["gamma"]
    corners = torch.ones(1, 1, 6, 7)
    reach = torch.nn.functional.conv_transpose2d(corners, torch.ones(1, 1, block, block))  # corners that cover a place
    expected = ((1 - gamma) ** reach).sum() * 1000
    kept = (layer(torch.ones(shape)) != 0).sum()
    assert abs(kept - expected) < math.sqrt(1000 * 42 * block**4 * math.log(2 / CHANCE) / 2)
    overlaps = (reach * (reach - 1) / 2).mean() * gamma**2  # Bonferroni: they keep the share below p by at most this
    assert p - overlaps < 1 - expected / math.prod(shape) < p


def test_drop_block_of_one_is_dropout():
    x = torch.randn(2, 3, 4, 5)
    mask = nn.Dropout(0.4, seed=6)(x) != 0
    y = nn.DropBlock2d(0.4, 1, seed=6)(x)
    assert torch.equal(y != 0, mask)
    with pytest.raises(ValueError, match=r"block_size.*0"):
        nn.DropBlock2d(0.4, 0)


# -- DropConnect -------------------------------------------------------------------------------------------------


def test_drop_connect_linear():
    layer = nn.DropConnect(nn.Linear(30, 40), 0.4, seed=1).double()
    x = torch.randn(5, 30, dtype=torch.float64)
    draws = layer.bind(x)["draws"]["weight"]
    weight, bias = layer.module.weight, layer.module.bias
    expected = torch.nn.functional.linear(x, drop(weight, draws, 0.4), bias)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert torch.equal(weight.grad == 0, draws < 0.4)
    assert abs((draws < 0.4).sum() - 1200 * 0.4) < binomial_bound(1200)
    torch.testing.assert_close(layer.eval()(x), layer.module(x), rtol=0, atol=0)


@pytest.mark.parametrize("source", [torch.nn, nn], ids=["torch", "pellucid"])
def test_drop_connect_recurrent(source):
    lstm = source.LSTM(3, 4, num_layers=2).double()
    layer = nn.DropConnect(lstm, 0.5, ["weight_hh_l0", "weight_hh_l1"], seed=1)
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    bound = layer.bind(x)
    y, (h, _) = layer(x)
    plain = torch.nn.LSTM(3, 4, num_layers=2).double()
    plain.load_state_dict(lstm.state_dict())
    with torch.no_grad():
        for name in layer.names:
            plain.get_parameter(name).copy_(drop(plain.get_parameter(name), bound["draws"][name], 0.5))
    expected, (expected_h, _) = plain(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(h, expected_h)
    formula, _ = layer.formula(**bound)
    torch.testing.assert_close(formula, y)
    assert (lstm.weight_hh_l0 != 0).all(), "the layer's own weights stay whole"


def test_drop_connect_passes_options_and_refuses_names():
    layer = nn.DropConnect(nn.GRU(3, 4), 0.5)
    assert layer.names == ("weight_ih_l0", "weight_hh_l0")
    layer(torch.zeros(5, 2, 3), lengths=[5, 2])
    with pytest.raises(ValueError, match=r"Linear.*'wheight'.*weight, bias"):
        nn.DropConnect(nn.Linear(3, 4), names=["wheight"])
    with pytest.raises(ValueError, match="no weights to drop"):
        nn.DropConnect(nn.BatchNorm1d(3))
    assert nn.DropConnect(nn.Linear(3, 4), names="bias").names == ("bias",)


def test_drop_connect_of_shared_weights():
    one, other = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
    other.weight = weight = one.weight
    torch.manual_seed(0)
    layer = nn.DropConnect(torch.nn.Sequential(one, one, other))
    y = layer(torch.eye(64))
    assert one.weight is other.weight is weight
    y.sum().backward()
    torch.manual_seed(0)
    dropped = drop(weight, layer.bind(torch.eye(64))["draws"]["0.weight"], 0.5)
    torch.testing.assert_close(y, torch.linalg.matrix_power(dropped.T, 3))


def test_drop_connect_draws_of_one_call_differ():
    draws = nn.DropConnect(nn.GRU(8, 8), 0.5, seed=1).bind(torch.zeros(1, 1, 8))["draws"]
    assert not torch.equal(draws["weight_ih_l0"], draws["weight_hh_l0"])


# -- whose generator decides -------------------------------------------------------------------------------------


def test_manual_seed_decides():
    layer, x = nn.Dropout(), torch.ones(64)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert torch.equal(nn.Dropout()(x), second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("own", ["seed", "generator"])
def test_own_source_leaves_torchs_generator_alone(own):
    def build():
        return nn.Dropout(seed=5) if own == "seed" else nn.Dropout(generator=torch.Generator().manual_seed(5))

    x = torch.ones(64)
    before = torch.get_rng_state()
    layer = build()
    drawn = [layer(x) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = build()
    assert all(torch.equal(again(x), expected) for expected in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        expected = copy.deepcopy(layer)(x)
        assert torch.equal(twin(x), expected), "a copy goes on from where it was made"
        assert not torch.equal(expected, drawn[2])


def test_calls_count_and_stay_out_of_the_state_dict():
    layer = nn.Dropout(seed=5)
    layer(torch.ones(3))
    layer.eval()(torch.ones(3))
    assert layer.calls == 1
    assert layer.state_dict() == {}
    assert not list(layer.buffers())
    assert repr(layer) == "Dropout(p=0.5, inplace=False, seed=5)"


def test_any_integer_is_a_seed():
    x = torch.ones(200, 200)
    for seed in (torch.tensor(5), np.int64(5)):
        assert torch.equal(nn.Dropout(seed=seed)(x), nn.Dropout(seed=5)(x))
    for large in (2**63, 2**64 - 1, -(2**63)):
        assert torch.equal(nn.Dropout(seed=large)(x), nn.Dropout(seed=large % 2**64 - 2**64)(x))


@pytest.mark.parametrize("options", [{}, {"seed": 5}, {"generator": torch.Generator()}], ids=["torch", "seed", "own"])
def test_bind_tells_the_next_call(options):
    layer, x = nn.Dropout(**options), torch.ones(64)
    for _ in range(2):
        bound = layer.formula(**layer.bind(x))
        assert torch.equal(layer(x), bound)


def test_refused_arguments():
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
            nn.Dropout(p)
    with pytest.raises(ValueError, match="pass one of them"):
        nn.Dropout(seed=1, generator=torch.Generator())
    with pytest.raises(TypeError, match="generator="):
        nn.Dropout(seed=torch.Generator())
    with pytest.raises(TypeError, match=r"nn.Dropout: seed is an integer, not tensor\(0.5"):
        nn.Dropout(seed=torch.tensor(0.5))
    with pytest.raises(TypeError, match="seed="):
        nn.Dropout(generator=3)
    layer = nn.Dropout()
    layer.p = 2
    with pytest.raises(ValueError, match=r"nn.Dropout.*but got 2"):
        layer(torch.ones(3))


@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("name", ["Dropout", "AlphaDropout"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_number(name, p, dtype):
    torch.manual_seed(0)
    layer, x = getattr(nn, name)(p), torch.tensor(1.0, dtype=dtype)
    values = torch.stack([layer(x) for _ in range(40)])
    assert len(values.unique()) == (1 if p == 1 else 2)


def test_refused_types_are_named_in_training_only():
    model = torch.nn.Sequential(nn.Dropout())
    with pytest.raises(RuntimeError, match=r'nn.Dropout "0".*int64.*x.float'):
        model(torch.ones(3, dtype=torch.int64))
    with pytest.raises(NotImplementedError, match=r"complex64.*view_as_real"):
        model(torch.ones(3, dtype=torch.complex64))
    model.eval()(torch.ones(3, dtype=torch.int64))


# -- torch's conventions -----------------------------------------------------------------------------------------


def test_eval_and_p_zero_are_the_input_itself():
    x = torch.randn(3, 4)
    assert nn.Dropout().eval()(x) is x
    assert nn.Dropout(0.0)(x) is x
    assert torch.equal(nn.Dropout(1.0)(x), torch.zeros_like(x))
    assert torch.equal(nn.AlphaDropout(1.0)(x), torch.zeros_like(x))


@pytest.mark.parametrize("name", ["Dropout", "AlphaDropout", "DropBlock2d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_inplace(name, dtype):
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    expected = make(name, 0.3, seed=1)(x)
    y = make(name, 0.3, seed=1, inplace=True)(x)
    assert y is x
    torch.testing.assert_close(x, expected)
    leaf = torch.randn(2, 3, 8, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="in-place"):
        make(name, 0.3, inplace=True)(leaf)
    make(name, 0.3, seed=1, inplace=True)(leaf * 1).sum().backward()
    plain = leaf.detach().clone().requires_grad_()
    make(name, 0.3, seed=1)(plain).sum().backward()
    torch.testing.assert_close(leaf.grad, plain.grad)


def test_dropout2d_reads_other_axes_as_torch_does():
    with pytest.warns(UserWarning, match=r"nn.Dropout2d.*nn.Dropout1d"):
        mask = kept(nn.Dropout2d(seed=1), (40, 30, 5))
    assert torch.equal(mask, mask[..., :1].expand_as(mask))
    assert mask[:, 0, 0].unique().numel() == 2
    with pytest.warns(UserWarning, match=r"nn.Dropout says"):
        mask = kept(nn.Dropout2d(seed=1), (40, 30))
    assert mask[0].unique().numel() == 2


def test_members_are_torchs():
    for name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"):
        assert isinstance(make(name), getattr(torch.nn, name))


def test_symbols_tell_the_shape_of_the_draws():
    x = torch.zeros(2, 3, 4, 5)
    by_name = {symbol.name: symbol for symbol in nn.Dropout2d(0.2).symbols(x)}
    assert by_name["draws"].shape == (2, 3, 1, 1)
    assert by_name["draws"].axes == ("batch", "channels", "height", "width")
    assert by_name["draws"].facts == {"p": 0.2, "shared": ["height", "width"]}
    assert by_name["x"].shape == (2, 3, 4, 5)
    assert nn.Dropout().symbols() == []
    assert nn.DropBlock2d(0.2, 3).symbols(x)[1].shape == (2, 3, 2, 3)
    assert [s.name for s in nn.DropConnect(nn.Linear(3, 4)).symbols()] == ["weight"]


# -- transforms --------------------------------------------------------------------------------------------------


@member
def test_derivatives(name, options, shape, shared):
    small = tuple(min(size, 3) for size in shape)
    layer = make(name, 0.4, **options)

    def function(x):
        torch.manual_seed(8)
        return layer(x) ** 2

    x = torch.randn(small, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,), fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x,), fast_mode=True)


def test_derivatives_of_drop_block():
    def function(x):
        torch.manual_seed(8)
        return nn.DropBlock2d(0.3, 2)(x) ** 2

    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,), fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x,), fast_mode=True)


@pytest.mark.parametrize("name", ["Dropout", "AlphaDropout", "DropPath", "DropBlock2d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vmap(name, dtype):
    layer, x = make(name), torch.full((3, 4, 2, 8, 8), 2.0, dtype=dtype)
    rows = torch.func.vmap(layer, randomness="different")(x)
    assert not torch.equal(rows[0], rows[1])
    same = torch.func.vmap(layer, randomness="same")(x)
    assert torch.equal(same[0], same[1])
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(layer)(x)
    seeded = torch.func.vmap(make(name, seed=1))(x)  # nothing is drawn from torch: one mask for the call
    assert torch.equal(seeded[0], seeded[1])


def test_vmap_draws_what_a_loop_over_seeds_draws():
    x = torch.ones(3, 50)
    torch.manual_seed(0)
    seeds = torch.func.vmap(lambda row: random.draw_seed(), randomness="different")(x)
    torch.manual_seed(0)
    rows = torch.func.vmap(nn.Dropout(0.3), randomness="different")(x)
    expected = [drop(row, random.uniform((50,), seed), 0.3) for row, seed in zip(x, seeds, strict=True)]
    torch.testing.assert_close(rows, torch.stack(expected))


@pytest.mark.parametrize("options", [{}, {"seed": 1}], ids=["torch", "seed"])
def test_gradients_per_sample(options):
    layer = nn.Dropout(**options)

    def loss(weight, x):
        return layer(x * weight).sum()

    weight, x = torch.ones(20), torch.rand(3, 20) + 1
    torch.manual_seed(0)
    grads = torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="different")(weight, x)
    assert set((grads / x).unique().tolist()) == {0.0, 2.0}
    assert layer.calls == len(options)


def test_drop_connect_under_func():
    layer = nn.DropConnect(nn.Linear(3, 2), seed=1)
    parameters = dict(layer.named_parameters())
    x = torch.randn(5, 3)

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).sum()

    twin = copy.deepcopy(layer)
    grads = torch.func.grad(loss)(parameters, x)
    twin(x).sum().backward()
    torch.testing.assert_close(grads["module.weight"], twin.module.weight.grad)


@pytest.mark.parametrize("name", ["Dropout", "AlphaDropout", "LockedDropout", "DropBlock2d"])
def test_compiles_whole(name):
    layer = make(name, 0.4, seed=1)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 4):
        x = torch.randn(3, batch, 8, 8)[..., 0] if name == "LockedDropout" else torch.randn(batch, 3, 8, 8)
        for _ in range(2):
            torch.testing.assert_close(compiled(x), layer(x))


def test_compiled_masks_are_new_at_every_call_and_the_same_in_backward():
    compiled = torch.compile(nn.Dropout(0.5), fullgraph=True, backend="aot_eager")
    x = torch.ones(64, requires_grad=True)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    (grad,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(grad, first)


def test_compiled_and_eager_calls_share_one_sequence():
    layer, x = nn.Dropout(seed=1), torch.ones(64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = nn.Dropout(seed=1)
    for run in (layer, compiled, layer, compiled):
        assert torch.equal(run(x), expected(x))
    assert layer.calls == 4


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_seed_begins_where_the_layer_is(strict):
    layer, x, expected = nn.Dropout(seed=1), torch.ones(64), nn.Dropout(seed=1)
    program = torch.export.export(layer, (x,), strict=strict).module()
    assert layer.calls == 0
    for _ in range(3):
        assert torch.equal(program(x), expected(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_with_a_seed_repeats_itself_and_says_so():
    layer, x = nn.Dropout(seed=1), torch.ones(64)
    with pytest.warns(pellucid.PellucidWarning, match=r"nn.Dropout: a trace cannot count.*seed=1.*torch.export"):
        trace = torch.jit.trace(layer, x, check_trace=False)
    assert layer.calls == 0
    assert torch.equal(trace(x), trace(x))


def test_blocks_of_a_free_size():
    layer, free = nn.DropBlock2d(0.3, 3), torch.export.Dim("height", min=4)
    program = torch.export.export(layer, (torch.ones(2, 3, 9, 8),), dynamic_shapes=({2: free},)).module()
    for height in (4, 30):
        x = torch.ones(2, 3, height, 8)
        torch.manual_seed(0)
        found = program(x)
        torch.manual_seed(0)
        torch.testing.assert_close(found, layer(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_of_a_large_example_reads_a_small_one():
    trace = torch.jit.trace(nn.Dropout(), torch.ones(400, 400), check_trace=False)
    torch.manual_seed(0)
    found = trace(torch.ones(5, 5))
    torch.manual_seed(0)
    assert torch.equal(found, nn.Dropout()(torch.ones(5, 5)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant):
    x = torch.rand(64, requires_grad=True)
    y = checkpoint(nn.Dropout(0.5), x, use_reentrant=reentrant)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x, y)
    # torch cannot repeat a source of the layer's own: better no gradient than another mask's
    for options in ({"seed": 1}, {"generator": torch.Generator()}):
        block = torch.nn.Sequential(nn.Softplus(), nn.Dropout(**options), nn.Softplus())
        y = checkpoint(block, x, use_reentrant=reentrant)
        with pytest.raises(RuntimeError, match=r"nn.Dropout.*checkpoint"):
            y.sum().backward()


def test_meta_and_autocast():
    assert nn.Dropout()(torch.empty(2, 3, device="meta")).shape == (2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = nn.Dropout(seed=1)(nn.Linear(3, 4)(torch.ones(2, 3)))
        assert y.dtype == torch.bfloat16
        assert nn.DropConnect(nn.Linear(3, 4))(torch.ones(2, 3)).dtype == torch.bfloat16


@pytest.mark.gpu
@member
def test_the_same_mask_on_the_gpu(name, options, shape, shared):
    x = torch.randn(shape)
    for source in ({"seed": 1}, {}):
        layer = make(name, 0.3, **options, **source)
        twin = copy.deepcopy(layer).cuda()
        torch.manual_seed(2)
        y = layer(x)
        torch.manual_seed(2)
        torch.testing.assert_close(twin(x.cuda()).cpu(), y)
