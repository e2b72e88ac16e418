"""Weights computed from parameters: against their definitions and torch's own, copied, pickled, trained and removed."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch.nn.utils import parametrizations as theirs
from torch.nn.utils import parametrize

import formulas
import pellucid
from pellucid import nn
from pellucid.nn import parametrizations as ours
from pellucid.nn.parametrizations import SpectralNorm, WeightNorm, WeightStandardization
from swapping import COPIES, first

FUNCTIONS = (ours.weight_standardization, ours.weight_norm, ours.spectral_norm)
function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)

# (layer, arguments, options, input, parameter)
LAYERS = [
    ("Linear", (5, 4), {}, (2, 5), "weight"),
    ("Conv1d", (4, 6, 3), {"groups": 2}, (2, 4, 7), "weight"),
    ("Conv2d", (3, 4, (3, 2)), {"stride": 2}, (2, 3, 7, 6), "weight"),
    ("Conv3d", (2, 3, 2), {}, (1, 2, 4, 3, 3), "weight"),
    ("ConvTranspose1d", (3, 4, 3), {}, (2, 3, 5), "weight"),
    ("ConvTranspose2d", (4, 6, 2), {"groups": 2, "stride": 2}, (2, 4, 3, 3), "weight"),
    ("ConvTranspose3d", (2, 3, 2), {}, (1, 2, 3, 3, 2), "weight"),
    ("RNN", (3, 4), {}, (5, 2, 3), "weight_ih_l0"),
    ("LSTM", (3, 4), {"bidirectional": True}, (5, 2, 3), "weight_hh_l0_reverse"),
    ("GRU", (3, 4), {"num_layers": 2}, (5, 2, 3), "weight_ih_l1"),
    ("LSTMCell", (3, 4), {}, (2, 3), "weight_ih"),
]
SOURCES = {"pellucid": nn, "torch": torch.nn}
layers = pytest.mark.parametrize("layer", LAYERS, ids=lambda entry: entry[0])
source = pytest.mark.parametrize("source", SOURCES)


def build(layer, source="pellucid", dtype=torch.float64):
    """Make a layer of the table and its input."""
    name, arguments, options, shape, _ = layer
    torch.manual_seed(0)
    return getattr(SOURCES[source], name)(*arguments, **options).to(dtype), torch.randn(shape, dtype=dtype)


def held(module, name="weight"):
    """Return what a weight is computed from."""
    return module.parametrizations[name]


def same_gradients(module, reference, y, expected):
    """Compare the gradients of two results with respect to the parameters of the same names."""
    y.square().sum().backward()
    expected.square().sum().backward()
    theirs_by_name = dict(reference.named_parameters())
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs_by_name[key].grad)


def linear(function, dtype=torch.float64, shape=(4, 5)):
    torch.manual_seed(1)
    layer = torch.nn.Linear(1, 1, dtype=dtype)
    layer.weight = torch.nn.Parameter(torch.randn(shape, dtype=dtype))
    layer.bias = torch.nn.Parameter(torch.randn(shape[0], dtype=dtype))
    return function(layer)


# -- values -------------------------------------------------------------------------------------------------------


def standardized(weight, transposed, groups, eps):
    """Standardize the weights of each output, one output after the other."""
    result = torch.empty_like(weight)
    for group in range(groups if transposed else 1):
        rows = weight.shape[0] // groups if transposed else weight.shape[0]
        part = slice(group * rows, (group + 1) * rows)
        for output in range(weight.shape[1] if transposed else weight.shape[0]):
            place = (part, output) if transposed else (output,)
            one = weight[place]
            result[place] = (one - one.mean()) / (one.var(correction=0) + eps).sqrt()
    return result


@layers
@source
def test_weight_standardization_is_its_definition(layer, source):
    module, x = build(layer, source)
    name, plain = layer[-1], copy.deepcopy(module)
    transposed = "Transpose" in layer[0]
    expected = standardized(getattr(module, name).detach(), transposed, layer[2].get("groups", 1), 1e-3)
    assert ours.weight_standardization(module, name, eps=1e-3) is module
    torch.testing.assert_close(getattr(module, name), expected)
    plain.get_parameter(name).data.copy_(expected)
    torch.testing.assert_close(first(module(x)), first(plain(x)))


def test_weight_standardization_is_the_layer_norm_of_a_filter():
    conv = torch.nn.Conv2d(3, 4, 5).double()
    weight = conv.weight.detach().clone()
    expected = torch.nn.functional.layer_norm(weight.flatten(1), (75,), eps=1e-5).reshape(weight.shape)
    torch.testing.assert_close(ours.weight_standardization(conv).weight, expected)
    conv = torch.nn.Conv2d(3, 4, 5).double()
    expected = standardized(conv.weight.detach(), True, 1, 1e-5)
    torch.testing.assert_close(ours.weight_standardization(conv, dim=1).weight, expected)


@layers
@source
@pytest.mark.parametrize("dim", [0, 1, -2, None])
def test_weight_norm_is_torchs(layer, source, dim):
    module, x = build(layer, source)
    name, plain, reference = layer[-1], copy.deepcopy(module), copy.deepcopy(module)
    ours.weight_norm(module, name, dim)
    theirs.weight_norm(reference, name, dim)
    torch.testing.assert_close(first(module(x)), first(plain(x)))  # nothing has changed yet
    with torch.no_grad():
        for tensor, other in zip(held(module, name).parameters(), held(reference, name).parameters(), strict=True):
            assert tensor.shape == other.shape
            other.copy_(tensor.copy_(torch.randn_like(tensor)))
    torch.testing.assert_close(getattr(module, name), getattr(reference, name))
    y, expected = first(module(x)), first(reference(x))
    torch.testing.assert_close(y, expected)
    same_gradients(module, reference, y, expected)


def test_weight_norm_separates_magnitude_and_direction():
    layer = linear(ours.weight_norm)
    with torch.no_grad():
        held(layer).original0.copy_(torch.tensor([[1.0], [-2.0], [0.0], [4.0]]))
    norms = torch.linalg.vector_norm(layer.weight, dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 2.0, 0.0, 4.0], dtype=torch.float64))
    before = layer.weight.detach().clone()
    with torch.no_grad():
        held(layer).original1.mul_(3)
    torch.testing.assert_close(layer.weight, before)


def test_weight_norm_counts_axes_from_the_end():
    """torch's reads -1 as None, the norm of the whole weight."""
    layer = linear(functools.partial(ours.weight_norm, dim=-1))
    assert held(layer).original0.shape == (1, 5)
    assert held(linear(functools.partial(theirs.weight_norm, dim=-1))).original0.shape == ()
    torch.testing.assert_close(held(layer).original0, layer.weight.norm(dim=0, keepdim=True))


@layers
@source
def test_spectral_norm_is_torchs(layer, source):
    module, x = build(layer, source)
    name, reference, calls = layer[-1], copy.deepcopy(module), 3
    for each, make in ((module, ours.spectral_norm), (reference, theirs.spectral_norm)):
        torch.manual_seed(2)
        make(each, name, n_power_iterations=2)
    for _ in range(calls):
        y, expected = first(module(x)), first(reference(x))
        torch.testing.assert_close(y, expected)
    assert module.state_dict().keys() == reference.state_dict().keys()
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[key])
    same_gradients(module, reference, y, expected)


@layers
@pytest.mark.parametrize("backend", ["auto", "c"])
def test_a_call_computes_the_weight_once(layer, backend):
    """The power iterations of spectral norm, or masks that are drawn, go one step further at every computation."""
    calls = []

    class Counted(torch.nn.Module):
        def forward(self, weight):
            calls.append(weight)
            return weight * 1

    module, x = build(layer)
    parametrize.register_parametrization(module, layer[-1], Counted())
    calls.clear()
    with pellucid.backend(backend):
        module(x)
    assert len(calls) == 1


@layers
def test_spectral_norm_divides_by_the_largest_singular_value(layer):
    module, _ = build(layer)
    name = layer[-1]
    weight = getattr(module, name).detach().clone()
    matrix = (weight.transpose(0, 1) if "Transpose" in layer[0] else weight).flatten(1)
    ours.spectral_norm(module, name, n_power_iterations=500)
    torch.testing.assert_close(getattr(module, name), weight / torch.linalg.svdvals(matrix)[0])


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_spectral_norm_of_any_axis(dim):
    conv = torch.nn.Conv1d(3, 4, 5).double()
    sigma = torch.linalg.svdvals(conv.weight.detach().movedim(dim, 0).flatten(1))[0]
    expected = conv.weight.detach() / sigma
    torch.testing.assert_close(ours.spectral_norm(conv, n_power_iterations=500, dim=dim).weight, expected)


@function
@layers
def test_the_formula_is_the_weight(function, layer):
    module, _ = build(layer)
    name = layer[-1]
    function(module, name)
    with torch.no_grad():
        for tensor in held(module, name).parameters():
            tensor.normal_()
    inputs = list(held(module, name).parameters())
    weight = getattr(module, name)
    part = held(module, name)[0]
    torch.testing.assert_close(part.formula(**part.bind(*inputs)), weight)


# -- derivatives --------------------------------------------------------------------------------------------------


def of_parameters(layer, x):
    """Return a layer's output as a function of what its weight is computed from, and these tensors."""
    names = [f"parametrizations.weight.{name}" for name, _ in held(layer).named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in held(layer).parameters()]

    def run(*values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    return run, values


@function
@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 2), lambda: nn.ConvTranspose1d(2, 4, 2, groups=2)])
def test_first_and_second_derivatives(function, make):
    torch.manual_seed(3)
    layer = function(make().double()).eval()
    run, values = of_parameters(layer, torch.randn(2, 2, 3 if isinstance(layer, torch.nn.Linear) else 2).double())
    assert torch.autograd.gradcheck(run, values, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, values)


@pytest.mark.parametrize("dim", [0, 1, -1, None])
def test_second_derivatives_of_weight_norm(dim):
    """torch's are wrong but for dim=None: its backward takes the norm as a constant."""
    layer = linear(functools.partial(ours.weight_norm, dim=dim), shape=(3, 2))
    run, values = of_parameters(layer, torch.randn(2, 2).double())
    assert torch.autograd.gradgradcheck(run, values)


def test_two_calls_before_a_backward():
    """D(real) − D(fake): the second call moves the vectors that the first call's gradient needs."""
    layer, reference = linear(ours.spectral_norm), linear(theirs.spectral_norm)
    reference.load_state_dict(layer.state_dict())
    real, fake = torch.randn(2, 3, 5, dtype=torch.float64)
    for each in (layer, reference):
        (each(real).square().mean() - each(fake).square().mean()).backward()
    torch.testing.assert_close(held(layer).original.grad, held(reference).original.grad)


# -- weights of zeros, odd shapes and types -------------------------------------------------------------------------


def test_weights_of_zeros_learn():
    for function in FUNCTIONS:
        layer = linear(lambda layer: layer)
        torch.nn.init.zeros_(layer.weight)
        function(layer)
        x = torch.randn(64, 5, dtype=torch.float64)
        target = x @ torch.randn(5, 4, dtype=torch.float64)
        optimizer = torch.optim.SGD(layer.parameters(), 0.01)
        assert (layer.weight == 0).all()
        for _ in range(20):
            optimizer.zero_grad()
            (layer(x) - target).square().mean().backward()
            optimizer.step()
        assert torch.isfinite(layer.weight).all()
        assert (layer.weight.abs().sum(1) > 0).all(), function.__name__


def test_spectral_norm_follows_a_weight_that_was_zero():
    layer = linear(lambda layer: layer)
    weight = layer.weight.detach().clone()
    torch.nn.init.zeros_(layer.weight)
    ours.spectral_norm(layer, n_power_iterations=500)
    assert (layer.weight == 0).all()
    layer.weight = weight
    torch.testing.assert_close(layer.weight, weight / torch.linalg.svdvals(weight)[0])


def test_weight_norm_of_a_direction_that_is_zero():
    layer = linear(ours.weight_norm)
    with torch.no_grad():
        held(layer).original1[0] = 0
    weight = layer.weight
    assert (weight[0] == 0).all()
    weight.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in held(layer).parameters())


@function
@pytest.mark.parametrize(
    "shape", [(0, 5), (4, 0), (0, 0), (0, 3, 3), (3, 0, 2), (1, 4), (1, 1, 3), (3, 1, 2, 1)], ids=str
)
def test_empty_axes_and_axes_of_one(function, shape):
    layer = linear(function, shape=shape)
    weight = layer.weight
    assert weight.shape == shape
    assert torch.isfinite(weight).all()
    weight.sum().backward()
    assert all(p.grad.shape == p.shape for p in held(layer).parameters())
    if function is ours.spectral_norm and weight.numel() and weight.shape[0] == 1:
        torch.testing.assert_close(weight.norm(), torch.ones((), dtype=torch.float64))


def test_one_weight_an_output_cannot_be_standardized():
    conv = nn.Conv2d(4, 4, 1, groups=4)
    with pytest.raises(ValueError, match=r"weight_standardization.*nn.Conv2d.*outputs 4, inputs 1.*always be 0"):
        ours.weight_standardization(conv)
    assert type(conv) is nn.Conv2d
    with pytest.raises(ValueError, match="always be 0"):  # two inputs in two groups
        ours.weight_standardization(torch.nn.ConvTranspose1d(2, 4, 1, groups=2))


@function
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_computed_in_float32(function, dtype):
    layer = linear(function, dtype, (16, 300))
    precise = linear(function, torch.float64, (16, 300))
    state = {key: value.double() for key, value in layer.state_dict().items()}
    precise.load_state_dict(state)
    layer.eval()
    precise.eval()
    assert layer.weight.dtype == dtype
    assert {p.dtype for p in layer.state_dict().values()} == {dtype}
    error = (layer.weight.double() - precise.weight).abs()
    kind = torch.finfo(dtype)
    assert (error <= kind.eps * (0.505 * precise.weight.abs() + kind.tiny)).all(), "rounded more than once"
    layer.weight.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in held(layer).parameters())


def test_spectral_norm_of_half_types_is_close_to_one():
    layer = linear(functools.partial(ours.spectral_norm, n_power_iterations=100), torch.bfloat16, (16, 300))
    sigma = torch.linalg.svdvals(layer.weight.detach().double())[0]
    assert abs(sigma - 1) < torch.finfo(torch.bfloat16).eps


def test_complex_weights():
    layer = linear(ours.weight_norm, torch.complex128)
    torch.testing.assert_close(layer.weight, held(layer).original1)
    assert held(layer).original0.dtype == torch.float64
    layer = linear(functools.partial(ours.spectral_norm, n_power_iterations=500), torch.complex128)
    sigma = torch.linalg.svdvals(held(layer).original.detach())[0]
    torch.testing.assert_close(layer.weight, held(layer).original / sigma)


@function
def test_autocast_computes_the_weight_as_without(function):
    layer = linear(function, torch.float32).eval()
    expected = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer.weight, expected, rtol=0, atol=0)
        assert layer(torch.randn(2, 5)).dtype == torch.bfloat16


@function
@pytest.mark.parametrize("zero", [False, True])
def test_channels_last_weights_stay_so(function, zero):
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    if zero:
        torch.nn.init.zeros_(conv.weight)
    strides = conv.weight.stride()
    function(conv)
    assert conv.weight.stride() == strides != (27, 9, 3, 1)
    x = torch.randn(2, 3, 5, 5)
    plain = torch.nn.functional.conv2d(x, conv.eval().weight.contiguous(), conv.bias)
    torch.testing.assert_close(conv(x.contiguous(memory_format=torch.channels_last)), plain)


@function
def test_meta_device(function):
    assert function(torch.nn.Linear(5, 4, device="meta")).weight.is_meta


# -- training, eval and removal -------------------------------------------------------------------------------------


def test_eval_leaves_the_singular_vectors_alone():
    layer = linear(ours.spectral_norm)
    with torch.no_grad():
        held(layer).original.normal_()
    part, x = held(layer)[0], torch.randn(2, 5, dtype=torch.float64)
    before = (part._u.clone(), part._v.clone())
    layer.eval()
    torch.testing.assert_close(layer(x), layer(x), rtol=0, atol=0)
    assert torch.equal(part._u, before[0])
    assert torch.equal(part._v, before[1])
    place = part._u.data_ptr()
    layer.train()(x)
    assert not torch.equal(part._u, before[0])
    assert part._u.data_ptr() == place  # replicas share it
    layer = linear(lambda layer: ours.spectral_norm(layer.eval()))
    before = held(layer)[0]._u.clone()
    layer(x)
    assert torch.equal(held(layer)[0]._u, before), "a layer in eval is parametrized in eval"


@function
@layers
@source
def test_removal_restores_a_plain_parameter(function, layer, source):
    module, x = build(layer, source)
    name, kind = layer[-1], type(module)
    function(module, name).eval()
    expected = first(module(x)).detach()
    parametrize.remove_parametrizations(module, name)
    assert type(module) is kind
    assert isinstance(getattr(module, name), torch.nn.Parameter)
    assert module.state_dict().keys() == build(layer, source)[0].state_dict().keys()
    torch.testing.assert_close(first(module(x)), expected)
    torch.testing.assert_close(first(pickle.loads(pickle.dumps(module))(x)), expected)


@function
def test_assignment_sets_what_the_weight_is_computed_from(function):
    layer = linear(function)
    weight = torch.randn(4, 5, dtype=torch.float64) * 7
    layer.weight = weight
    if function is ours.weight_norm:
        torch.testing.assert_close(layer.weight, weight)
    else:
        torch.testing.assert_close(held(layer).original, weight)


def test_parametrizations_in_a_row():
    layer = ours.weight_standardization(linear(ours.weight_norm))
    both = layer.weight
    before = parametrize.remove_parametrizations(linear(ours.weight_norm), "weight").weight.detach()
    torch.testing.assert_close(both, standardized(before, False, 1, 1e-5))
    ours.spectral_norm(layer, n_power_iterations=500)
    torch.testing.assert_close(layer.weight, both / torch.linalg.svdvals(both.detach())[0])
    torch.testing.assert_close(pickle.loads(pickle.dumps(layer)).eval().weight, layer.eval().weight)


# -- copies -------------------------------------------------------------------------------------------------------


def step(module, x):
    """Take a step of training."""
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    optimizer.zero_grad()
    first(module(x)).square().sum().backward()
    optimizer.step()


@function
@layers
@source
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_apart(function, layer, source, how):
    module, x = build(layer, source)
    name = layer[-1]
    function(module, name)
    step(module, x)  # the layer has run: torch's recurrent layers keep the weights that they have computed
    state = {key: value.clone() for key, value in module.state_dict().items()}
    twin = COPIES[how](module)
    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key]), f"copying changed {key}"
    assert type(twin) is not type(module)
    assert type(twin).__bases__ == type(module).__bases__
    torch.testing.assert_close(first(copy.deepcopy(twin)(x)), first(copy.deepcopy(module)(x)), rtol=0, atol=0)
    for _ in range(2):
        step(twin, x)
    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key]), f"training the copy changed {key}"
    for key, _ in held(module, name).named_parameters():
        assert not torch.equal(
            twin.state_dict()[f"parametrizations.{name}.{key}"], state[f"parametrizations.{name}.{key}"]
        )
    parametrize.remove_parametrizations(twin, name)
    step(module, x)  # torch's deepcopy shares the class, and removal took the weight from both
    assert isinstance(getattr(twin, name), torch.nn.Parameter)
    assert not isinstance(getattr(module, name), torch.nn.Parameter)


@function
def test_a_copy_of_a_copy_and_a_copy_within_a_model(function):
    model = torch.nn.Sequential(linear(function), torch.nn.ReLU(), function(torch.nn.Linear(4, 4).double()))
    model.append(model[0])  # the same layer twice stays one
    twin = pickle.loads(pickle.dumps(copy.deepcopy(copy.deepcopy(model))))
    assert twin[3] is twin[0]
    for ours_, twins in zip(model.eval().parameters(), twin.eval().parameters(), strict=True):
        assert torch.equal(ours_, twins)
    assert torch.equal(twin[0].weight, model[0].weight)


def test_a_cell_of_ones_own():
    layer, x = formulas.leaky(3, 4), torch.randn(5, 2, 3)
    expected = standardized(layer.U_l0.detach(), True, 1, 1e-5)
    ours.weight_standardization(layer, "U_l0", dim=1)  # rows times U: the outputs are its columns
    torch.testing.assert_close(layer.U_l0, expected)
    ours.spectral_norm(layer, "W_l0")
    twin = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    torch.testing.assert_close(first(twin(x)), first(layer(x)))
    step(layer, x)


@function
def test_a_copy_of_several_parametrized_weights(function):
    lstm = nn.LSTM(3, 4).double()
    for name in ("weight_ih_l0", "weight_hh_l0"):
        function(lstm, name)
    twin = pickle.loads(pickle.dumps(lstm))
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(first(twin(x)), first(lstm(x)))
    parametrize.remove_parametrizations(twin, "weight_ih_l0")
    assert parametrize.is_parametrized(twin, "weight_hh_l0")
    torch.testing.assert_close(first(twin.eval()(x)), first(lstm.eval()(x)), rtol=1e-3, atol=1e-3)
    copy.deepcopy(twin)(x)


@function
@layers
def test_state_dict_round_trip(function, layer):
    module, x = build(layer)
    name = layer[-1]
    function(module, name)
    step(module, x)
    other, _ = build(layer)
    function(other, name).load_state_dict(module.state_dict())
    torch.testing.assert_close(first(other(x)), first(module(x)), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_state_dicts_of_torchs(name):
    theirs_, ours_ = linear(getattr(theirs, name)).eval(), linear(getattr(ours, name)).eval()
    for parameter in theirs_.parameters():
        torch.nn.init.normal_(parameter)
    ours_.load_state_dict(theirs_.state_dict())
    torch.testing.assert_close(ours_.weight, theirs_.weight)
    theirs_.load_state_dict(ours_.state_dict())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_state_dicts_of_torchs_older_weight_norm():
    old = linear(torch.nn.utils.weight_norm)
    torch.nn.init.normal_(old.weight_g)
    model, x = torch.nn.Sequential(linear(ours.weight_norm)), torch.randn(2, 5, dtype=torch.float64)
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.nn.init.zeros_(each[0].parametrizations.weight.original0)
        each.load_state_dict({f"0.{key}": value for key, value in old.state_dict().items()})
        torch.testing.assert_close(each(x), old(x))
    parametrize.remove_parametrizations(model[0], "weight")
    with pytest.raises(RuntimeError, match="weight_g"):
        model.load_state_dict({f"0.{key}": value for key, value in old.state_dict().items()})


# -- transforms and compilers -----------------------------------------------------------------------------------------


@function
@pytest.mark.parametrize("training", [True, False])
def test_torch_func(function, training):
    layer = linear(function).train(training)
    x = torch.randn(3, 5, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    buffers = {name: b.clone() for name, b in layer.named_buffers()}

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    found = torch.func.grad(loss)(parameters, x)
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, buffers[name]) is not training
        buffer.copy_(buffers[name])
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
    layer.eval()
    one_by_one = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    together = torch.func.grad(loss)(parameters, x)
    for name in parameters:
        torch.testing.assert_close(one_by_one[name].sum(0), together[name])
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    slope = torch.func.jvp(lambda p: loss(p, x), (parameters,), (tangents,))[1]
    torch.testing.assert_close(slope, sum((together[name] * tangents[name]).sum() for name in parameters))
    torch.func.jvp(lambda p: loss(p, x), (parameters,), (tangents,))


@function
@pytest.mark.parametrize("training", [True, False])
def test_ensembles(function, training):
    models = [torch.nn.Sequential(function(torch.nn.Linear(5, 4).double())).train(training) for _ in range(3)]
    alone = copy.deepcopy(models)
    state = torch.func.stack_module_state(models)
    x = torch.randn(2, 5, dtype=torch.float64)

    def run(parameters, buffers):
        return torch.func.functional_call(models[0], (parameters, buffers), (x,))

    together = torch.func.vmap(run)(*state)
    for index, model in enumerate(alone):
        torch.testing.assert_close(together[index], model(x))
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(state[1][name][index], buffer)


@function
def test_forward_mode_in_training(function):
    """The power iteration takes no part in the derivative, forward as backward."""
    layer = linear(function)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    x, twin = torch.randn(2, 5, dtype=torch.float64), copy.deepcopy(layer)

    def run(module, parameters):
        return torch.func.functional_call(module, parameters, (x,)).square().sum()

    _, slope = torch.func.jvp(functools.partial(run, layer), (parameters,), (tangents,))
    gradient = torch.func.grad(functools.partial(run, twin))(parameters)
    torch.testing.assert_close(slope, sum((gradient[name] * tangents[name]).sum() for name in parameters))


@function
def test_compiled_whole(function):
    layer = linear(function)
    twin, x = copy.deepcopy(layer), torch.randn(3, 5, dtype=torch.float64)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        y, expected = compiled(x), twin(x)
        torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for parameter, other in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)
    for buffer, other in zip(layer.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(buffer, other)


# -- where they are, and what they refuse -----------------------------------------------------------------------------


def test_the_namespace_has_all_of_torchs():
    assert nn.parametrizations is ours
    assert set(theirs.__all__) <= set(ours.__all__)
    assert ours.orthogonal is theirs.orthogonal
    assert nn.utils.parametrizations is theirs


def test_representations():
    part = held(ours.weight_standardization(nn.ConvTranspose1d(4, 6, 3, groups=2)))[0]
    assert repr(part) == "WeightStandardization(axes=(0, 2), eps=1e-05, groups=2)"
    assert repr(WeightStandardization(0, 3)) == "WeightStandardization(axes=(1, 2), eps=1e-05)"
    assert repr(WeightNorm(None)) == "WeightNorm(dim=None)"
    assert repr(SpectralNorm(torch.ones(2, 3), dim=1)) == "SpectralNorm(n_power_iterations=1, dim=1, eps=1e-12)"


@function
@pytest.mark.parametrize(
    ("module", "name", "error", "words"),
    [
        (
            lambda: nn.Conv1d(3, 4, 5),
            "wheight",
            ValueError,
            r"'wheight' of nn.Conv1d does not exist. It has weight, bias",
        ),
        (lambda: nn.Conv1d(3, 4, 5, bias=False), "bias", ValueError, r"'bias' of nn.Conv1d.* It has weight\."),
        (lambda: nn.Linear(3, 4), "in_features", ValueError, "'in_features' of nn.Linear does not exist"),
        (lambda: nn.Sequential(nn.Linear(3, 4)), "0.weight", ValueError, "none of its own: pass the layer"),
        (lambda: nn.LazyLinear(4), "weight", ValueError, "no shape yet. Call the layer once"),
    ],
    ids=["unknown", "none", "no tensor", "container", "lazy"],
)
def test_parameters_that_are_not_there(function, module, name, error, words):
    layer = module()
    kind = type(layer)
    with pytest.raises(error, match=rf"nn.parametrizations.{function.__name__}: .*{words}"):
        function(layer, name)
    assert type(layer) is kind


@function
@pytest.mark.parametrize("dim", [2, -3, 7])
def test_axes_that_are_not_there(function, dim):
    with pytest.raises(
        IndexError, match=rf"Linear has the shape \(outputs 4, inputs 3\), so dim is from -2 to 1, not {dim}"
    ):
        function(nn.Linear(3, 4), dim=dim)
    transposed = nn.ConvTranspose2d(3, 4, (5, 6))
    with pytest.raises(IndexError, match=r"\(inputs 3, outputs 4, height 5, width 6\), so dim is from -4 to 3, not 4"):
        function(transposed, dim=4)


@function
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool], ids=str)
def test_integers(function, dtype):
    layer = nn.Linear(3, 4)
    layer.weight = torch.nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(NotImplementedError, match=rf"'weight' of nn.Linear is of {dtype}"):
        function(layer)


def test_vectors_and_scalars():
    layer = nn.Linear(3, 4)
    for function in (ours.spectral_norm, ours.weight_standardization):
        with pytest.raises(ValueError, match=r"'bias' of nn.Linear has the shape \(4\)"):
            function(layer, "bias")
    bias = layer.bias.detach().clone()
    torch.testing.assert_close(ours.weight_norm(layer, "bias").bias, bias)
    assert held(layer, "bias").original0.shape == (4,)
    layer.scale = torch.nn.Parameter(torch.tensor(2.0))
    with pytest.raises(IndexError, match="dim is None, not 0"):
        ours.weight_norm(layer, "scale")
    for function in (ours.spectral_norm, ours.weight_standardization):
        with pytest.raises(ValueError, match="'scale' of"):
            function(layer, "scale")
    assert ours.weight_norm(layer, "scale", dim=None).scale == 2


def test_weight_norm_comes_first():
    for make in FUNCTIONS:
        layer = linear(make)
        weight = layer.eval().weight
        with pytest.raises(
            ValueError, match=r"is computed by \w+ already.*remove_parametrizations\(module, 'weight'\)"
        ):
            ours.weight_norm(layer)
        torch.testing.assert_close(layer.weight, weight)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="n_power_iterations=0 is not positive"):
        ours.spectral_norm(nn.Linear(3, 4), n_power_iterations=0)
    with pytest.raises(NotImplementedError, match="complex64, which has no deviation"):
        ours.weight_standardization(nn.Linear(3, 4, dtype=torch.complex64))
