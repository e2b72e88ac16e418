"""Row-wise layers: values against plain torch, derivatives, every shape of input, draws, copies, what is refused."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

import fresh
import pellucid
from explaining import quietly
from pellucid import nn
from pellucid.nn.rows import row_layers

SCALE = torch.tensor([1.0, -2.0, 0.5])


@pellucid.layer
def feed_forward(x, residual, *, U: "input hidden", W, a=pellucid.zeros, s: "" = pellucid.ones, k: float = 2.0):
    """A block of a transformer."""
    return residual + s / k * (pellucid.dropout(torch.relu(x @ U + a), 0.4) @ W)


@pellucid.layer
def blurred(x, *, gamma=pellucid.ones, sigma: float = 0.5):
    return (x + pellucid.noise(x, sigma)) * gamma


@pellucid.layer
def gated(x, *, W):
    return pellucid.zoneout(torch.tanh(x @ W), x, 0.3)


@pellucid.layer
def signed(x, /, *, power: int):
    return x**power * SCALE.to(x)


def weights(layer: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter of a layer values of its own."""
    with torch.no_grad():
        for index, value in enumerate(layer.parameters()):
            value.copy_(torch.sin(torch.arange(1.0, value.numel() + 1) * (index + 1.3)).reshape(value.shape) + 0.2)
    return layer


def made(name: str, features: int, dtype: torch.dtype = torch.float64):
    """Return a ready layer of so many features, and what it computes, written in plain torch."""
    output = 2 * features + 1
    if name == "DyT":
        layer = nn.DyT(features)
        return weights(layer).to(dtype), lambda x: torch.tanh(x * layer.alpha) * layer.gamma + layer.beta
    if name == "ScaleNorm":
        layer = nn.ScaleNorm(features)
        return weights(layer).to(dtype), lambda x: layer.g * F.normalize(x, dim=-1, eps=1e-5)
    if name == "AddNorm":
        layer = nn.AddNorm(features, p=0.0, eps=1e-3)
        shape = (features,)
        return weights(layer).to(dtype), lambda x, y: F.layer_norm(x + y, shape, layer.gamma, layer.beta, 1e-3)
    layer = getattr(nn, name)(features, output)
    gate = {"SwiGLU": F.silu, "GEGLU": F.gelu}[name]
    return (
        weights(layer).to(dtype),
        lambda x: gate(F.linear(x, layer.W.T, layer.b)) * F.linear(x, layer.V.T, layer.c),
    )


READY = ("DyT", "ScaleNorm", "SwiGLU", "GEGLU", "AddNorm")


def inputs(name: str, *shape: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    count = 2 if name == "AddNorm" else 1
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


# -- values and derivatives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (1, 1), (4, 63), (0, 5), (3, 0, 5), (2, 3, 1, 6)], ids=str)
@pytest.mark.parametrize("name", READY)
def test_a_ready_layer_is_its_paper(name: str, shape: tuple[int, ...]):
    layer, expected = made(name, shape[-1])
    given = [x.requires_grad_() for x in inputs(name, *shape)]
    y = layer(*given)
    assert y.shape == (*shape[:-1], layer.output_size)
    torch.testing.assert_close(y, expected(*given))
    of = [*given, *layer.parameters()]
    gradient = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape)
    ours, theirs = (torch.autograd.grad(result, of, gradient) for result in (y, expected(*given)))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def named_as_a_kernels_steps(x, *, p: "" = pellucid.constant(3.0)):
    return x.abs().mean(-1, keepdim=True).pow(1 / p)  # the gradient of pow multiplies, and 1 / p is called mul


def named_as_gradients(x, gradient, x_gradient, *, tanh=pellucid.ones):
    return torch.tanh(x) * gradient * tanh + x_gradient


def same_gradients(function):
    """Compare a formula's kernel with the author's function, run by torch."""
    layer = weights(pellucid.layer(function)(6).double())
    generator = torch.Generator().manual_seed(2)
    count = len(layer.layer.source.inputs)
    given = [torch.randn(3, 6, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(count)]
    values = dict(layer.named_parameters())
    of = [*given, *values.values()]
    y, expected = layer(*given), function(*given, **values)
    torch.testing.assert_close(y, expected)
    gradient = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape)
    ours, theirs = (torch.autograd.grad(r, of, gradient, materialize_grads=True) for r in (y, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    return layer


@pytest.mark.parametrize("function", [named_as_a_kernels_steps, named_as_gradients])
def test_a_name_of_the_formula_is_no_step_of_its_kernel(function):
    assert same_gradients(function).backend == "c"


class Rounded(torch.autograd.Function):
    """Rounds, with a gradient of its own."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


def straight_through(x, *, gamma=pellucid.ones):
    return x + ((gamma * x).round() - x).detach()


def scaled_by_a_constant(x, *, W: "input input"):
    return torch.sigmoid(x @ W).detach() * x / x.square().mean(-1, keepdim=True).detach()


def without_gradients(x, *, gamma=pellucid.ones):
    with torch.no_grad():
        largest = x.abs().amax(-1, keepdim=True)
    return x * gamma / largest


def with_a_gradient_of_its_own(x, *, gamma=pellucid.ones):
    return Rounded.apply(x * gamma) * x


@pytest.mark.parametrize("function", [straight_through, scaled_by_a_constant])
def test_a_gradient_stops_where_the_formula_detaches(function):
    assert same_gradients(function).backend == "c"


@pytest.mark.parametrize("function", [without_gradients, with_a_gradient_of_its_own])
def test_a_gradient_that_operations_do_not_show_is_torchs(function):
    with pytest.warns(pellucid.PellucidWarning, match=r"stepwise.*torch\.no_grad, or by a torch\.autograd\.Function"):
        assert same_gradients(function).backend == "stepwise"


def test_a_gradient_of_0_is_written():
    """Though nothing in it depends on the result's gradient: what memory held before shows where torch fills it."""

    def stepped(x, *, g, b):
        return torch.sign(x * g + b) * x

    torch.use_deterministic_algorithms(True)
    try:
        assert same_gradients(stepped).backend == "c"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_deviation_of_0_has_a_gradient_of_0():
    """That of std, not of the root that it is made of: rows of equal entries, as padding is."""

    @pellucid.layer
    def spread(x, *, gamma=pellucid.ones):
        return x / (x.std(-1, keepdim=True) + 1) * gamma

    layer = spread(4).double()
    x = torch.zeros(3, 4, dtype=torch.float64)
    x[1] = torch.arange(4)
    x.requires_grad_()
    found = torch.autograd.grad(layer(x).sum(), x)
    assert layer.backend == "c"
    torch.testing.assert_close(found, torch.autograd.grad((x / (x.std(-1, keepdim=True) + 1)).sum(), x))


def test_a_part_without_a_gradient_is_differentiated_again():
    @pellucid.layer
    def stepped(x, *, U, W):
        return (x * U > 0).to(x.dtype) @ W

    layer = weights(stepped(4, 3).double())
    (x,) = inputs("", 5, 4)
    first = torch.autograd.grad(layer(x).square().sum(), [layer.U, layer.W], create_graph=True, materialize_grads=True)
    assert first[0].eq(0).all()
    expected = torch.autograd.grad(layer(x).square().sum(), layer.W)
    torch.testing.assert_close(first[1:], expected)


@pytest.mark.parametrize("name", READY)
def test_first_and_second_derivative_of_every_input_and_parameter(name: str):
    layer, _ = made(name, 4)
    names = [key for key, _ in layer.named_parameters()]
    given = inputs(name, 3, 4)

    def function(*values):
        state = dict(zip(names, values[len(given) :], strict=True))
        return torch.func.functional_call(layer, state, values[: len(given)])

    values = [v.detach().clone().requires_grad_() for v in (*given, *layer.parameters())]
    assert torch.autograd.gradcheck(function, values)
    assert torch.autograd.gradgradcheck(function, values)


def test_a_vector_of_zeros_has_no_direction_and_a_finite_gradient():
    layer = nn.ScaleNorm(4)
    x = torch.zeros(2, 4, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, torch.zeros(2, 4))
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert layer.g.grad == 0


@pytest.mark.parametrize("name", READY)
def test_strides_do_not_matter(name: str):
    layer, _ = made(name, 6)
    given = inputs(name, 5, 4, 6)
    strided = [x.permute(1, 2, 0).contiguous().permute(2, 0, 1) for x in given]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(layer(*strided), layer(*given))
    wide = [torch.cat([x, x], -1)[..., 6:] for x in given]
    torch.testing.assert_close(layer(*wide), layer(*given))


@pytest.mark.parametrize("name", READY)
def test_bfloat16(name: str):
    layer, expected = made(name, 8, torch.bfloat16)
    given = inputs(name, 5, 8, dtype=torch.bfloat16)
    y = layer(*given)
    assert y.dtype == torch.bfloat16
    layer.double()
    exact = expected(*(x.double() for x in given)).detach()
    error = (y.double() - exact).abs().max()
    assert error <= 4 * torch.finfo(torch.bfloat16).eps * exact.abs().max()


def test_autocast_follows_torchs_rules():
    layer, _ = made("SwiGLU", 5, torch.float32)
    x = torch.randn(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        by_rule = F.silu(x @ layer.W + layer.b) * (x @ layer.V + layer.c)
        assert torch.equal(layer(x), by_rule)
        assert torch.equal(layer(x.bfloat16()), layer(x))  # as after a product, whose result is of that type
    assert not torch.equal(layer(x), by_rule)


def test_a_paper_s_starting_values():
    assert nn.DyT(4).alpha.item() == 0.5
    assert nn.DyT(4, alpha=0.8).alpha.item() == pytest.approx(0.8)
    assert nn.ScaleNorm(16).g.item() == 4
    x = torch.randn(5, 16)
    torch.testing.assert_close(nn.ScaleNorm(16)(x), nn.RMSNorm(16, eps=0.0, elementwise_affine=False)(x))
    layer = nn.SwiGLU(100, 3)
    assert not layer.b.any()
    assert 0.08 < layer.W.abs().max() <= 0.1  # within 1/√100
    assert feed_forward(4, 1000, hidden=400).W.abs().max() <= 0.05  # within 1/√400, what it takes in


# -- a formula of one's own -------------------------------------------------------------------------------------------


def test_shapes_are_solved_and_named():
    layer = feed_forward(4, 6, hidden=3)
    shapes = {name: tuple(value.shape) for name, value in layer.named_parameters()}
    assert shapes == {"U": (4, 3), "W": (3, 6), "a": (3,), "s": ()}
    assert list(layer.state_dict()) == list(shapes)
    assert layer.solution().input_sizes(layer.layer.source) == (4, 6)
    assert layer.hyperparameters == {"k": 2.0}
    assert repr(layer) == "feed_forward(4, 6, hidden=3, k=2.0)"
    assert repr(feed_forward(4, 4, hidden=3, k=1, seed=5)) == "feed_forward(4, hidden=3, k=1, seed=5)"
    assert layer.backend == "auto"
    layer(torch.randn(2, 4), torch.randn(2, 6))
    assert layer.backend == "c"
    with pellucid.backend("stepwise"):
        layer(torch.randn(2, 4), torch.randn(2, 6))
    assert layer.backend == "stepwise"
    assert "layer feed_forward at" in repr(feed_forward)


def test_without_an_annotation_a_factor_is_a_vector_of_features():
    def scaled(x, *, alpha):
        return alpha * x

    assert pellucid.layer(scaled)(3).alpha.shape == (3,)


def test_the_same_layer_for_every_shape_and_name():
    layer = feed_forward(4, 6, hidden=3).double().eval()
    x, residual = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    expected = residual + layer.s / 2 * (torch.relu(x @ layer.U + layer.a) @ layer.W)
    torch.testing.assert_close(layer(x, residual), expected)
    torch.testing.assert_close(layer(x, residual=residual), expected)
    torch.testing.assert_close(layer(residual=residual, x=x), expected)
    torch.testing.assert_close(layer(x[1, 2], residual[1, 2]), expected[1, 2])
    mapped = torch.func.vmap(layer)(x, residual)
    torch.testing.assert_close(mapped, expected)


def test_a_formula_without_parameters_reads_positional_only_inputs():
    layer = signed(3, power=3)
    x = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x**3 * SCALE.double())
    assert list(layer.parameters()) == []


def test_meta_and_dtype():
    layer = feed_forward(4, 6, hidden=3, device="meta", dtype=torch.float64)
    assert all(value.is_meta and value.dtype == torch.float64 for value in layer.parameters())
    assert layer(
        torch.empty(5, 4, device="meta", dtype=torch.float64), torch.empty(5, 6, device="meta").double()
    ).is_meta


# -- draws ------------------------------------------------------------------------------------------------------------


def test_draws_follow_the_seed_and_stop_in_eval():
    x, y = torch.randn(50, 8), torch.randn(50, 8)
    layer, twin = nn.AddNorm(8, p=0.4, seed=3), nn.AddNorm(8, p=0.4, seed=3)
    first, second = layer(x, y), layer(x, y)
    assert not torch.equal(first, second)
    assert torch.equal(twin(x, y), first)
    assert torch.equal(twin(x, y), second)
    assert layer.calls == 2
    torch.testing.assert_close(layer.eval()(x, y), F.layer_norm(x + y, (8,)))
    assert layer.calls == 2
    free = nn.AddNorm(8, p=0.4)
    torch.manual_seed(1)
    drawn = free(x, y)
    torch.manual_seed(1)
    assert torch.equal(free(x, y), drawn)
    owner = nn.AddNorm(8, p=0.4, generator=torch.Generator().manual_seed(5))
    state = torch.get_rng_state()
    assert not torch.equal(owner(x, y), owner(x, y))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_mask_drops_with_probability_p_and_scales():
    @pellucid.layer
    def dropped(x, *, p: float = 0.3):
        return pellucid.dropout(x, p)

    y = dropped(50, seed=1)(torch.ones(20, 40, 50))
    kept = y != 0
    assert torch.equal(y[kept], torch.full_like(y[kept], 1 / 0.7))
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.01)
    x = torch.ones(2, 50)
    assert torch.equal(dropped(50, p=0.0)(x), x)
    assert torch.equal(dropped(50, p=1.0)(x), 0 * x)


def test_noise_is_gaussian_and_zoneout_expects_in_eval():
    layer = blurred(100, seed=2)
    drawn = layer(torch.zeros(500, 100))
    assert drawn.std().item() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(layer.eval()(torch.ones(2, 100)), torch.ones(2, 100))
    mixed, x = gated(5, seed=2), torch.randn(400, 5)
    new = torch.tanh(x @ mixed.W)
    y = mixed(x)
    old = y == x
    assert old.float().mean().item() == pytest.approx(0.3, abs=0.05)
    torch.testing.assert_close(y[~old], new[~old])
    torch.testing.assert_close(mixed.eval()(x), 0.3 * x + 0.7 * new)


def test_monte_carlo_asks_a_layer_that_draws():
    x = torch.randn(3, 8)
    layer = feed_forward(8, hidden=16, output_size=8).eval()
    prediction = pellucid.monte_carlo(layer, (x, x), 20, seed=1)
    assert prediction.spread.max() > 0
    assert not layer.training
    with pytest.raises(ValueError, match="holds no layer that drops anything"):
        pellucid.monte_carlo(nn.DyT(8), x, 3)


def test_checkpointing_repeats_torchs_own_draws():
    layer = nn.AddNorm(6, p=0.5)
    x = torch.randn(4, 6, requires_grad=True)
    torch.manual_seed(0)
    y = torch.utils.checkpoint.checkpoint(layer, x, x, use_reentrant=False)
    (again,) = torch.autograd.grad(y.pow(2).sum(), x)
    torch.manual_seed(0)
    (plain,) = torch.autograd.grad(layer(x, x).pow(2).sum(), x)
    torch.testing.assert_close(again, plain)


# -- copies -----------------------------------------------------------------------------------------------------------


def test_copies_and_state_go_on_alike():
    layer, x = feed_forward(4, 6, hidden=3, seed=9), torch.randn(5, 4)
    residual = torch.randn(5, 6)
    layer(x, residual)
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    expected = layer(x, residual)
    for twin in twins:
        assert twin.layer is feed_forward
        assert torch.equal(twin(x, residual), expected)
        assert repr(twin) == repr(layer)
    other = feed_forward(4, 6, hidden=3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.eval()(x, residual), layer.eval()(x, residual))


def test_a_pickle_is_read_in_another_process(tmp_path):
    layer, x = nn.DyT(4, alpha=0.7), torch.randn(2, 4)
    torch.save((layer, x, layer(x)), tmp_path / "layer.pt")
    script = f"""
import torch
layer, x, y = torch.load({str(tmp_path / "layer.pt")!r}, weights_only=False)
assert torch.allclose(layer(x), y) and repr(layer) == "DyT(4)"
layer.reset_parameters()
assert abs(layer.alpha.item() - 0.7) < 1e-6
"""
    fresh.printed(script)


def test_torch_compile_takes_it():
    layer, x = nn.ScaleNorm(6), torch.randn(3, 6)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


@pellucid.layer
def dropped(x, *, g=pellucid.ones, p: float):
    return pellucid.dropout(torch.tanh(x) * g, p)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_torch_compile_takes_its_draws(p):
    layer, x = dropped(6, p=p), torch.randn(3, 6)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), compiled(x)) == (p == 0)
    torch.manual_seed(0)
    found = compiled(x)
    torch.manual_seed(0)
    torch.testing.assert_close(found, layer(x))
    layer.eval()
    torch.testing.assert_close(compiled(x), torch.tanh(x))


# -- what is refused --------------------------------------------------------------------------------------------------


def open_result(x, *, W):
    return x @ W


def open_inside(x, *, U, W):
    return torch.relu(x @ U) @ W


def open_input(x, other, *, U):
    return x + other @ U


def fixed_result(x, *, gamma):
    return x * gamma


def two_results(x, *, gamma):
    return x * gamma, x


def no_result(x, *, gamma):
    x * gamma


def no_rows(x, *, gamma):
    return (x * gamma).sum(-1)


def mixes_rows(x, *, gamma):
    return x * gamma - x.mean(0)


def sorts_rows(x, *, gamma):
    y = x * gamma
    y = torch.sort(y, 0).values
    return torch.tanh(y)


def counts_rows(x, *, gamma):
    return x * gamma / x.shape[0]


def shares_draws(x, *, gamma):
    return pellucid.dropout(x, 0.5, shared="time") * gamma


def draws_for_parameters(x, *, W: "input output"):
    return x @ pellucid.dropout(W, 0.5)


def draws_by_itself(x, *, gamma):
    return F.dropout(x, 0.5) * gamma


def changes_input(x, *, gamma):
    x *= gamma
    return x


def unused(x, *, gamma, q):
    return x * gamma


# function, sizes, words of the message, the part of the line under which the carets stand
BROKEN = [
    (open_result, {}, ("how many features its result has", "output_size", "open_result(3, 16)"), "return x @ W"),
    (open_inside, {"output_size": 2}, ("axis 1 of U stays open", 'U: "input rank"', "rank=16"), "U"),
    (open_input, {}, ("axis 1 of other stays open", 'other: "rank"'), "other"),
    (fixed_result, {"output_size": 2}, ("output_size is 2", "input_size 3 is 1×3"), "return x * gamma"),
    (two_results, {}, ("2 values came back", "one tensor"), "return x * gamma, x"),
    (no_result, {}, ("nothing came back",), "x"),
    (no_rows, {}, ("must be rows",), "return (x * gamma).sum(-1)"),
    (mixes_rows, {}, ("invisible to a layer", "dim=-1"), "x.mean(0)"),
    (sorts_rows, {}, ("other samples of the batch",), "torch.sort(y, 0)"),
    (counts_rows, {}, ("other samples of the batch",), "x * gamma / x.shape[0]"),
    (shares_draws, {}, ("knows no time", "nn.LockedDropout"), 'pellucid.dropout(x, 0.5, shared="time")'),
    (draws_for_parameters, {"output_size": 2}, ("not for a parameter",), "pellucid.dropout(W, 0.5)"),
    (draws_by_itself, {}, ("draws random numbers", "Use pellucid.dropout"), "F.dropout(x, 0.5)"),
    (changes_input, {}, ("in place",), "x *= gamma"),
    (unused, {}, ("the shape of q stays open", "Remove it"), "q"),
]


@pytest.mark.parametrize(("function", "sizes", "words", "marked"), BROKEN, ids=lambda v: getattr(v, "__name__", ""))
def test_a_broken_formula_is_told_where(function, sizes, words, marked):
    with pytest.raises(pellucid.FormulaError) as caught:
        pellucid.layer(function)(3, **sizes)
    message = str(caught.value)
    for word in (f"layer {function.__name__}", "test_row_wise.py", *words):
        assert word in message
    assert " cell " not in message.replace("so may a cell", "")
    *_, line, carets = message.splitlines()
    assert line[carets.index("^") : carets.rindex("^") + 1] == marked


def test_where_the_rows_of_a_cell_meet_is_shown_too():
    @pellucid.cell
    def sorting(x, h, *, U: "input hidden", W):
        z = x @ U + h @ W
        return torch.sort(z, 0).values

    with pytest.raises(pellucid.FormulaError, match=r"(?s)cell sorting: .*invisible to a cell.*\n *\^{16}$"):
        sorting(3, 4)(torch.randn(5, 2, 3))


def test_a_cell_that_draws_by_itself_is_told_where():
    @pellucid.cell
    def noisy(x, h, *, U, W):
        return torch.tanh(x @ U + h @ W) + torch.randn_like(h)

    with pytest.raises(pellucid.FormulaError, match=r"(?s)cell noisy: .*pellucid\.noise.*\n *\^{19}$"):
        noisy(3, 4)(torch.randn(5, 2, 3))


def no_input(*, gamma):
    return gamma


def default_of_an_input(x, y=None, *, gamma):
    return x * gamma


def named_as_a_modules_own(x, *, training):
    return x * training


def named_as_the_constructors_own(x, *, device: float = 1.0):
    return x * device


def sized_as_the_constructors_own(x, *, W: "input seed", V: "seed input"):
    return x @ W @ V


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (no_input, "layer no_input: at least one input must be a positional argument"),
        (default_of_an_input, "y is an input and cannot have a default"),
        (named_as_a_modules_own, "the parameter training"),
        (named_as_the_constructors_own, "the hyperparameter device"),
        (sized_as_the_constructors_own, "the size seed"),
    ],
)
def test_a_signature_outside_the_contract_is_refused(function, words):
    with pytest.raises(pellucid.FormulaError, match=words):
        pellucid.layer(function)


@pytest.mark.parametrize(
    ("sizes", "options", "error", "words"),
    [
        ((4,), {"hidden": 3}, pellucid.FormulaError, r"output_size"),
        ((4, 6), {}, pellucid.FormulaError, r"names the size 'hidden'.*hidden=16"),
        ((0, 6), {"hidden": 3}, ValueError, "input_size must be greater than zero"),
        ((4, 6.0), {"hidden": 3}, TypeError, "output_size is a whole number"),
        ((4, 6), {"hidden": True}, pellucid.FormulaError, "hidden is a whole number from 1"),
        ((4, 6), {"hidden": 3, "q": 1}, TypeError, "unexpected argument 'q'.*output_size.*hidden, k"),
        ((4, 6), {"hidden": 3, "k": torch.ones(2)}, pellucid.FormulaError, "hyperparameter k is a number"),
        ((4, 6), {"hidden": 3, "k": "2"}, pellucid.FormulaError, "hyperparameter k is a number, not a str"),
        ((4, 6), {"hidden": 3, "seed": 1, "generator": torch.Generator()}, ValueError, "pass one of them"),
    ],
)
def test_constructor_arguments_are_checked(sizes, options, error, words):
    with pytest.raises(error, match=words):
        feed_forward(*sizes, **options)


def test_a_missing_hyperparameter_and_a_probability_that_is_none():
    with pytest.raises(TypeError, match="missing argument 'power'"):
        signed(3)
    with pytest.raises(pellucid.FormulaError, match=r"p is the probability of dropping an entry, from 0 to 1, not 2"):
        nn.AddNorm(3, p=2)


X, R = torch.zeros(2, 3, 4), torch.zeros(2, 3, 6)


@pytest.mark.parametrize(
    ("given", "named", "error", "words"),
    [
        ((X,), {}, TypeError, ("the input residual is missing", "layer(x, residual)")),
        ((X, R, R), {}, TypeError, ("3 inputs were given", "layer(x, residual)")),
        ((X, R), {"residual": R}, TypeError, ("residual was given twice",)),
        ((X, R), {"rest": R}, TypeError, ("unexpected input 'rest'",)),
        ((X, 3.0), {}, TypeError, ("residual is a tensor, not a float",)),
        ((X, R[:, :, :5]), {}, RuntimeError, ("residual", "features 5", "(..., 6)", "decides for input_size=4")),
        ((X, R[0]), {}, RuntimeError, ("batch 3, features 6", "x has (batch 2, time 3", "residual.expand(2, 3, 6)")),
        ((X, R.double()), {}, RuntimeError, ("residual is of torch.float64", "parameters are of torch.float32")),
        ((X.int(), R), {}, RuntimeError, ("torch.int32", "x.float()")),
    ],
)
def test_inputs_are_checked(given, named, error, words):
    model = torch.nn.ModuleDict({"block": feed_forward(4, 6, hidden=3)})
    with pytest.raises(error) as caught:
        model["block"](*given, **named)
    for word in ("feed_forward", *words):
        assert word in str(caught.value)


def test_inputs_without_parameters_are_of_one_type():
    @pellucid.layer
    def difference(x, y):
        return x - y

    with pytest.raises(RuntimeError, match=r"y is of torch.float64, but the first input is of torch.float32"):
        difference(2)(torch.ones(2), torch.ones(2).double())


# -- explanations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("training", [True, False])
def test_a_formula_of_one_s_own_is_explained(lang: str, training: bool):
    torch.manual_seed(0)  # now and then nothing at all is dropped
    layer = feed_forward(4, 6, hidden=3).double().train(training)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    state = torch.get_rng_state()
    report = quietly(layer, x, lang=lang, residual=torch.ones(2, 3, 6).double())
    assert report.check.difference == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert list(report.formula) == ["y = residual + s / k · dropout(relu(x U + a), 0.4) W"]
    assert [row.name for row in report.symbols] == ["x", "residual", "U", "W", "a", "s", "y"]
    assert all(row.reasons for row in report.symbols)
    assert report.symbol("W").axes == (("hidden", "output") if lang == "en" else ("隐藏", "输出"))
    assert report.totals[0].count == 4 * 3 + 3 * 6 + 3 + 1
    dropped = report.steps[0].values["dropout(relu(x U + a), 0.4)"].numbers
    rectified = report.steps[0].values["relu(x U + a)"].numbers
    assert ((dropped == 0).sum() > (rectified == 0).sum()) == training
    assert "A block of a transformer." in report.idea[-1]
    assert report.text(80)


def test_the_explanation_shows_the_draws_of_the_next_call():
    layer, x = nn.AddNorm(6, p=0.5), torch.randn(3, 6)
    y = torch.randn(3, 6)
    shown = next(v for n, v in quietly(layer, x, y).steps[0].values.items() if n.startswith("y ="))
    torch.testing.assert_close(layer(x, y), torch.from_numpy(shown.numbers))


def test_what_is_not_given_is_made_up():
    report = quietly(feed_forward, hidden=3, output_size=5)
    assert report.check.agrees
    assert report.symbol("residual").shape == (2, 5)
    assert sum("made up" in note for note in report.notes) == 2
    assert quietly(nn.DyT(7)).symbol("x").shape == (2, 7)
    assert quietly(row_layers.dyt, [1.0, 2.0]).symbol("x").shape == (1, 2)
    assert math.isclose(quietly("scalenorm").symbol("g").count, 1)
