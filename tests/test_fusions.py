"""Layers computed as one after ``swap(model, fuse=True)``: the same numbers, nothing else changed, and undone."""

from __future__ import annotations

import contextlib
import copy
import cProfile
import functools
import gc
import inspect
import json
import logging
import os
import pickle
import random
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrizations

import cases
import pellucid
from pellucid.benchmark.zoo import ZOO
from pellucid.models import fusions, identity, verification
from pellucid.nn.swapped import expression, fused
from pellucid.nn.swapped.exchange import kind_of
from recipe_commands import run
from swapping import saved

logging.getLogger("transformers").setLevel(logging.ERROR)


pytestmark = pytest.mark.usefixtures("few_samples")


class Residual(torch.nn.Module):
    """A block of a residual network: the norm's result is added to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = torch.nn.BatchNorm2d(4)
        self.relu = torch.nn.ReLU(inplace=True)
        self.last = torch.nn.BatchNorm2d(4)
        self.shortcut = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv(x)))
        y = self.last(y)
        y += self.shortcut(x)
        return self.relu(y)


class Output(torch.nn.Module):
    """What a sublayer of a transformer ends with."""

    def __init__(self, norm: torch.nn.Module | None = None, p: float = 0.3) -> None:
        super().__init__()
        self.dense, self.dropout = torch.nn.Linear(6, 6), torch.nn.Dropout(p)
        self.norm = torch.nn.LayerNorm(6) if norm is None else norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.dropout(self.dense(x)) + x)


class Functional(torch.nn.Module):
    """A norm and a function of the user's choice."""

    def __init__(self, norm: torch.nn.Module, function) -> None:
        super().__init__()
        self.norm, self.function = norm, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.norm(x))


def picture(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 6, 6), generator=torch.Generator().manual_seed(1))


def ready(model: torch.nn.Module, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A model whose norms have parameters and statistics that say something."""
    generator = torch.Generator().manual_seed(2)
    for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
        tensor.data.add_(torch.rand(tensor.shape, generator=generator) * 0.5)
    return model.to(dtype)


def results(model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and buffers."""
    x = x.detach().requires_grad_()
    torch.manual_seed(3)
    y = model(x)
    ramp = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    gradients = torch.autograd.grad(y, [x, *model.parameters()], ramp)
    return [y.detach(), *gradients, *(b.detach().clone() for b in model.buffers() if b.is_floating_point())]


def far(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, relative to the largest entry of all: some gradients are 0 but for rounding."""
    scale = max(map(verification.largest, theirs))
    return max(verification.difference(a, b, scale) for a, b in zip(ours, theirs, strict=True))


def follows(model: torch.nn.Module, training: bool) -> bool:
    """Whether a module has a plan for this mode, and runs by it."""
    plans = [
        plan for m in model.modules() if "_fused_plans" in vars(m) for plan in vars(m)["_fused_plans"].known.items()
    ]
    return any(key[0] is training and plan.run is not None for key, plan in plans)


def kinds(report, kind: str = "layers") -> list[str]:
    return [group.before for group in report.fused if group.kind == kind]


# -- the numbers ------------------------------------------------------------------------------------------------------


class Pointwise(torch.nn.Conv2d):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1, bias=False)


class Careful(torch.nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-2)


class Often(torch.nn.Dropout):
    def __init__(self) -> None:
        super().__init__(0.7)


class Even(torch.nn.LayerNorm):
    def __init__(self, features: int) -> None:
        super().__init__(features, bias=False)


class Subclassed(Output):
    def __init__(self) -> None:
        super().__init__(Even(6))
        self.dropout = Often()


S, R = torch.nn.Sequential, torch.nn.ReLU
MODELS = {
    "conv and norm of subclasses": (S(Pointwise(3, 4), Careful(4), R()), picture()),
    "dropout and norm of subclasses": (Subclassed(), picture(3, 4, 6)),
    "conv, norm, relu6": (S(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU6()), picture()),
    "strided depthwise": (
        S(torch.nn.Conv2d(3, 3, 3, 2, "valid", 1, 3, False), torch.nn.BatchNorm2d(3), torch.nn.Hardswish()),
        picture(),
    ),
    "conv1d, norm without γ": (
        S(torch.nn.Conv1d(3, 4, 3, padding=1), torch.nn.BatchNorm1d(4, affine=False)),
        picture(2, 3, 7),
    ),
    "residual block": (Residual(), picture()),
    "group norm": (S(torch.nn.GroupNorm(2, 4), torch.nn.SiLU()), picture(2, 4, 5, 3)),
    "instance norm": (S(torch.nn.InstanceNorm2d(3, affine=True), torch.nn.LeakyReLU(0.2)), picture()),
    "function": (Functional(torch.nn.BatchNorm1d(5), lambda x: F.hardtanh(x, 0, max_val=0.5)), picture(4, 5)),
    "built-in function": (Functional(torch.nn.BatchNorm1d(5), torch.tanh), picture(4, 5)),
    "built-in method": (Functional(torch.nn.BatchNorm1d(5), lambda x: x.sigmoid()), picture(4, 5)),
    "method": (Functional(torch.nn.RMSNorm(6), lambda x: x.relu_()), picture(3, 4, 6)),
    "layer norm": (Output(), picture(3, 4, 6)),
    "rms norm": (Output(torch.nn.RMSNorm(6)), picture(3, 4, 6)),
    "without γ": (Output(torch.nn.LayerNorm(6, elementwise_affine=False)), picture(3, 4, 6)),
    "no dropout": (Output(p=0.0), picture(3, 4, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_numbers(name):
    model, x = MODELS[name]
    model = ready(copy.deepcopy(model))
    one_by_one = copy.deepcopy(model)
    pellucid.swap(one_by_one)
    state = list(model.state_dict())
    values = dict(model.named_parameters())
    report = pellucid.swap(model, fuse=True)
    assert report.fused
    assert report.unfused == ()
    with pellucid.backend("c"):  # one pass, whatever is faster
        for training in (True, False):
            ours, theirs = (results(m.train(training), x.double()) for m in (model, one_by_one))
            assert far(ours, theirs) < 1e-10
            assert follows(model, training)
    assert list(model.state_dict()) == state
    assert all(value is values[name] for name, value in model.named_parameters())


@pytest.mark.parametrize(
    ("name", "before", "left", "without"),
    [
        ("conv", "Pointwise → Careful → ReLU", "0", ["Pointwise → Careful → ReLU"]),  # torch.nn's can be folded too
        ("dropout", "Dropout → add → Even", "dropout", []),
    ],
)
def test_subclasses_that_only_build_themselves_are_fused(name, before, left, without):
    original, x = MODELS[f"{name} and norm of subclasses"]
    original = copy.deepcopy(original).eval()
    model = copy.deepcopy(original)
    assert kinds(pellucid.swap(model, fuse=True)) == [before]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied) is type(model)
        assert kinds(pellucid.restore(copied)) == [before]
        assert [type(m) for m in copied.modules()] == [type(m) for m in original.modules()]
    model = copy.deepcopy(original)
    assert kinds(pellucid.swap(model, fuse=True, only=lambda path, layer: path != left)) == without
    with pellucid.backend("c"), torch.no_grad():
        torch.testing.assert_close(model(x), original(x))


@pytest.mark.parametrize("kind", fused.LAYERS)
def test_every_activation(kind):
    model = ready(S(torch.nn.LayerNorm(6), kind()))
    reference = copy.deepcopy(model)
    x = 4 * picture(5, 6).double()
    assert pellucid.swap(model, fuse=True).fused
    with pellucid.backend("c"):
        assert far(results(model, x), results(reference, x)) < 1e-10
        assert model[0].backend == "c"


def test_float32_and_half():
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        model = ready(S(torch.nn.BatchNorm2d(3), R()), dtype)
        reference = copy.deepcopy(model).float()
        pellucid.swap(model, fuse=True)
        with pellucid.backend("c"):
            found = results(model, picture().to(dtype))
        assert found[0].dtype == dtype
        assert far([t.float() for t in found], results(reference, picture().to(dtype).float())) < tolerance


@pytest.mark.parametrize("name", ["conv, norm, relu6", "residual block", "layer norm", "instance norm"])
def test_gradients_of_gradients(name):
    model, x = MODELS[name]
    model = ready(copy.deepcopy(model)).eval()
    pellucid.swap(model, fuse=True)
    smooth = {"conv, norm, relu6": torch.nn.SiLU, "residual block": torch.nn.Tanh}.get(name)
    for path, child in list(model.named_children()):
        if smooth and type(child) in fused.LAYERS:
            setattr(model, path, smooth())
    x = x.double()[:2, :, :3, :3].clone().requires_grad_() if x.ndim == 4 else x.double()[:1].clone().requires_grad_()
    with pellucid.backend("c"):
        assert torch.autograd.gradcheck(model, x, fast_mode=True)
        assert torch.autograd.gradgradcheck(model, x, fast_mode=True)


def test_what_is_dropped_is_that_of_the_layers():
    model = Output()
    pellucid.swap(model, fuse=True)
    one_by_one = copy.deepcopy(model)
    fusions.unfuse(one_by_one)
    x = picture(40, 6)
    with pellucid.backend("c"):
        for m in (model, one_by_one):
            torch.manual_seed(5)
            m.drawn = torch.cat([m(x), m(x)])
        assert torch.allclose(model.drawn, one_by_one.drawn, atol=1e-6)
        assert not torch.allclose(*model.drawn.chunk(2))
        assert pellucid.monte_carlo(model.eval(), x, 8, seed=0).spread.min() > 0
        assert torch.equal(model(x), model(x))


def test_an_unknown_place_far_from_zero_keeps_its_digits():
    model = S(torch.nn.LayerNorm(64), R())
    x = picture(8, 64) + 1e4
    expected = F.relu(F.layer_norm(x.double(), (64,)))
    pellucid.swap(model, fuse=True)
    with pellucid.backend("c"):
        assert (model(x) - expected).abs().max() < 1e-5


# -- what changes later is seen ---------------------------------------------------------------------------------------


def test_a_hook_lets_the_layers_run_one_by_one():
    model = ready(copy.deepcopy(MODELS["residual block"][0]))
    pellucid.swap(model, fuse=True)
    x, seen = picture().double(), []
    with pellucid.backend("c"):
        for training in (True, False):
            model.train(training)
            expected = model(x)
            handles = [
                getattr(model, path).register_forward_hook(lambda layer, args, y: seen.append(layer))
                for path in ("conv", "bn", "relu", "last")
            ]
            assert torch.allclose(model(x), expected)
            assert seen == [model.conv, model.bn, model.relu, model.last, model.relu]
            for handle in handles:
                handle.remove()
            model(x)
            assert len(seen) == 5
            seen.clear()


def test_hooks_that_come_later_see_the_layers_in_order():
    """What stands between a norm and the sum behind it runs behind the norm."""
    layers = {"norm": torch.nn.LayerNorm(5), "other": torch.nn.Linear(5, 5)}
    model = Body(lambda self, x: self.norm(x) + self.other(x), **layers)
    assert pellucid.swap(model, fuse=True).fused
    x, seen = picture(6, 5), []
    with pellucid.backend("c"):
        expected = model(x)
        for name in layers:
            getattr(model, name).register_forward_hook(lambda *_, name=name: seen.append(name))
        assert torch.allclose(model(x), expected, atol=1e-6)
    assert seen == ["norm", "other"]


class Choosing(torch.nn.Module):
    """What the forward does depends on attributes, its own and those of what it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act, self.other = torch.nn.BatchNorm1d(5), torch.nn.ReLU(), torch.nn.Tanh()
        self.config = type("Config", (), {})()
        self.config.slope = 0.0
        self.scale = 1.0

    def forward(self, x: Tensor, negative: bool = False, more: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        if self.training and self.scale > 0:
            y = self.act(y)
        elif not self.training:
            y = self.other(y) + self.config.slope * x
        y = -y if negative else y
        return y * self.scale if more is None else y + more


def test_what_the_forward_reads_may_change():
    model = Choosing()
    assert kinds(pellucid.swap(model, fuse=True)) == ["BatchNorm1d → ReLU"]
    reference = copy.deepcopy(model)
    fusions.unfuse(reference)
    x = picture(6, 5)

    def agree(*args, **named):
        ours, theirs = model(x, *args, **named), reference(x, *args, **named)
        assert torch.allclose(ours, theirs, atol=1e-5)
        return ours

    with pellucid.backend("c"):
        first = agree()
        agree(True)
        agree(negative=True)
        agree(False, x)
        agree(more=x)
        for m in (model, reference):
            m.scale = -2.0
        assert not torch.allclose(agree(), first)
        for m in (model, reference):
            m.eval()
        agree()
        for m in (model, reference):
            m.config.slope = 3.0
        agree()
        for m in (model, reference):
            m.other = torch.nn.Sigmoid()
        agree()
        for m in (model, reference):
            m.norm = torch.nn.Identity()
        agree()
        for m in (model, reference):
            m.forward = lambda x: x + 1
        agree()


def test_options_of_the_layers_may_change():
    model = S(torch.nn.BatchNorm1d(5), torch.nn.LeakyReLU(0.1), torch.nn.Linear(5, 6), Output())
    model = model.double()
    pellucid.swap(model, fuse=True)
    reference = copy.deepcopy(model)
    for m in reference.modules():
        fusions.unfuse(m)
    x = picture(6, 5).double()
    with pellucid.backend("c"):
        for step in range(4):
            for m in (model, reference):
                if step == 1:
                    m[1].negative_slope, m[0].eps = 0.7, 0.1
                elif step == 2:
                    m[3].dropout.p = 0.9
                elif step == 3:
                    m.append(torch.nn.BatchNorm1d(6))
                    m.append(torch.nn.ReLU())
                    m.double()
            assert far(results(model, x), results(reference, x)) < 1e-10


def test_a_forward_that_never_reads_the_same_is_given_up(monkeypatch):
    model = Choosing()
    pellucid.swap(model, fuse=True)
    traced = []
    real = fusions.trace
    monkeypatch.setattr(fusions, "trace", lambda *args: traced.append(1) or real(*args))
    for step in range(40):
        model.scale = 1.0 + step
        with pellucid.backend("c"):
            model(picture(6, 5))
    assert len(traced) == fusions.MOST_TRACES


def test_scripted_modules_and_tensors_without_strides():
    scripted = torch.jit.script(torch.nn.ELU())
    model = S(scripted, Body(lambda self, x: torch.tanh(x) * 2))
    report = pellucid.swap(model, fuse=True)
    assert [group.paths for group in report.fused] == [("1",)]
    assert model(picture(3, 4)).shape == (3, 4)
    sparse = picture(3, 4).relu().to_sparse()
    assert torch.allclose(model[1](sparse).to_dense(), torch.tanh(sparse.to_dense()) * 2)


def test_what_is_faster_one_by_one_is_not_looked_at_again(monkeypatch):
    """Inputs this small; a hook that comes later is seen, other sizes are asked for again."""
    model = S(S(torch.nn.BatchNorm1d(5), R()), torch.nn.ELU())
    pellucid.swap(model, fuse=True)
    plans = [vars(module)["_fused_plans"] for module in (model[0], model[1])]
    looked = []
    real = fusions.Forward.holds
    monkeypatch.setattr(fusions.Forward, "holds", lambda self, module: looked.append(module) or real(self, module))
    model(picture(6, 5))
    assert [len(p.one_by_one) for p in plans] == [1, 1]
    model(picture(6, 5))
    assert not looked
    with pellucid.backend("c"):
        model(picture(6, 5))
        assert model[0][0].backend == "c"
    assert len(looked) == 2
    seen = []
    model[0][1].register_forward_hook(lambda *_: seen.append(1))
    model(picture(6, 5))
    assert seen == [1]


def test_a_parametrized_layer():
    model = ready(S(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), R()))
    parametrizations.weight_norm(model[0])
    pellucid.swap(model, fuse=True)
    reference = copy.deepcopy(model)
    fusions.unfuse(reference)
    with pellucid.backend("c"):
        for training in (False, True):
            ours, theirs = (results(m.train(training), picture().double()) for m in (model, reference))
            assert far(ours, theirs) < 1e-10


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["Conv1d", "LayerNorm"])
def test_a_parametrized_layer_is_measured(name, training, monkeypatch):
    """Its weight is another tensor at every call: what is measured are the gradients of what that is computed of."""
    monkeypatch.setattr(fused, "LEAST", 0)
    layers = [torch.nn.Conv1d(4, 4, 3), torch.nn.BatchNorm1d(4)] if name == "Conv1d" else [torch.nn.LayerNorm(8)]
    model = S(*layers, torch.nn.GELU())
    parametrizations.weight_norm(model[0], dim=None)
    pellucid.swap(model, fuse=True)
    reference = copy.deepcopy(model)
    fusions.unfuse(reference)
    x, asked = picture(3, 4, 8), []
    real = fused.faster
    monkeypatch.setattr(fused, "faster", lambda *args: asked.append(args[0]) or real(*args))
    ours, theirs = (results(m.train(training), x) for m in (model, reference))
    assert far(ours, theirs) < 1e-5
    assert asked


def test_a_module_that_is_parametrized_later():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.rand(5))

        def forward(self, x):
            return torch.tanh(x * self.scale) + self.scale

    model = Scaled()
    pellucid.swap(model, fuse=True)
    parametrizations.weight_norm(model, "scale", dim=None)
    x = picture(6, 5)
    with pellucid.backend("c"):
        expected = model(x)
        assert torch.allclose(expected, torch.tanh(x * model.scale) + model.scale, atol=1e-6)
        assert pellucid.restore(model).fused
        assert not isinstance(model, fusions.Fused)
        assert torch.allclose(model(x), expected, atol=1e-6)
    torch.nn.utils.parametrize.remove_parametrizations(model, "scale")
    assert type(model) is Scaled


def test_hooks_on_all_modules_see_the_layers():
    model = S(torch.nn.LayerNorm(5), R())
    pellucid.swap(model, fuse=True)
    seen = []
    with pellucid.backend("c"):
        model(picture(6, 5))
        handle = torch.nn.modules.module.register_module_forward_hook(lambda layer, *_: seen.append(layer))
        model(picture(6, 5))
        handle.remove()
    assert seen == [*model, model]


def test_the_modes_of_torch_that_a_forward_asks_for():
    def asking(self, x):
        y = self.act(self.norm(x))
        y = y * 2 if torch.is_autocast_enabled("cpu") else y
        return y * 3 if torch.is_inference_mode_enabled() else y

    model = Body(asking)
    assert pellucid.swap(model, fuse=True).fused
    reference = Body(asking)
    with pellucid.backend("c"):
        for around in (contextlib.nullcontext(), torch.autocast("cpu"), torch.no_grad(), torch.inference_mode()):
            with around:
                assert torch.allclose(model(picture(6, 5)), reference(picture(6, 5)), atol=1e-5)


# -- what is refused --------------------------------------------------------------------------------------------------


class Own(torch.nn.BatchNorm1d):
    def forward(self, input):
        return super().forward(input)


class Doubling(torch.nn.Module):
    """One that changes its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


class Body(torch.nn.Module):
    """A forward of one's own around a norm, a function, a dropout and a convolution."""

    body = staticmethod(lambda self, x: x)

    def __init__(self, body, **layers: torch.nn.Module) -> None:
        super().__init__()
        self.body = body
        self.norm, self.act, self.dropout = torch.nn.BatchNorm1d(5), torch.nn.ReLU(), torch.nn.Dropout(0.5)
        self.layer = torch.nn.LayerNorm(5)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def twice(self, x):
    y = self.norm(x)
    return self.act(y) + y


def in_place_between(self, x):
    y = self.norm(x)
    x.mul_(2)
    return self.act(y)


def drawing_between(self, x):
    y = self.dropout(x)
    z = self.other(x)
    return self.layer(x + y) + z


def in_place_within(self, x):
    y = self.norm(x)
    return self.act(y + self.branch(x))


def in_place_behind(self, x):
    other = x * 2
    y = self.act(self.norm(x) + other)
    other += 1
    return y + other


def hidden_sum(self, x):
    x += self.dropout(x)
    return self.layer(x)


def deciding(self, x):
    return self.act(self.norm(x)) if x.sum() > 0 else x


def by_chance(self, x):
    return self.act(self.norm(x)) if random.random() > 0.5 else x


def keeping(self, x):
    self.last = self.act(self.norm(x))
    return self.last


def reading(self, x):
    return self.act(self.norm(x)) * self.table["scale"]


def within_a_context(self, x):
    with torch.no_grad():
        x = self.act(self.norm(x))
    return x


def hooked() -> torch.nn.Module:
    layer = torch.nn.BatchNorm1d(5)
    layer.register_forward_pre_hook(lambda *_: None)
    return layer


def table(model: torch.nn.Module) -> torch.nn.Module:
    model.table = {"scale": 2.0}
    return model


def looking(self, x):
    y = self.norm(x)
    return self.act(y) if isinstance(y, Tensor) else y


class Silent(torch.nn.Module):
    """One that gives nothing."""

    def forward(self, x: Tensor) -> None:
        return None


def with_more(self, x):
    more = self.other(x)
    y = self.act(self.norm(x))
    return y if more is None else y + 1


def with_more_of_a_pair(self, x):
    y, more = self.other(x, x, x, need_weights=False)
    return self.act(self.norm(y)) if more is None else y


def of_an_identity(self, x):
    return self.act(self.norm(x)) if x.dtype is torch.float32 else x


def of_a_type(self, x):
    return self.act(self.norm(x)) if type(x) is Tensor else x


def of_its_own_type(self, x):
    return self.act(self.norm(x)) if type(self.act) is torch.nn.ReLU else x


def of_an_attribute(self, x):
    return x if hasattr(x, "mask") else self.act(self.norm(x))


class Config:
    def scale(self) -> float:
        return 2.0


def of_its_own_functions(self, x):
    return self.act(self.norm(x)) * self.function()


def with_function(model: torch.nn.Module, make) -> torch.nn.Module:
    model.scale = 2.0
    model.function = make(model)
    return model


def counting(self, x):
    global COUNT
    COUNT += 1
    return self.act(self.norm(x))


COUNT, SCALE, SCALES = 0, 2.0, [2.0]


def of_a_global_list(self, x):
    return self.act(self.norm(x)) * SCALES[0]


def of_the_environment(self, x):
    return self.act(self.norm(x)) if "OF_NO_PROGRAM" not in os.environ else x


def of_all_attributes(self, x):
    return self.act(self.norm(x)) * len(vars(self))


def trying(self, x):
    try:
        self.last = x
    except Exception:
        return x
    return self.act(self.norm(x))


def of_all_parameters(self, x):
    return self.act(self.norm(x)).to(next(self.parameters()).dtype)


REFUSED = {
    "looking": (Body(looking), "depends on the type of a value"),
    "used twice": (Body(twice), "what norm gives is used elsewhere too"),
    "in place between": (Body(in_place_between), "mul_ works in place between them"),
    "in place within": (Body(in_place_within, branch=S(torch.nn.Identity(), R(True))), "branch works in place between"),
    "own within": (
        Body(in_place_within, branch=S(torch.nn.Flatten(0), Doubling(), torch.nn.Unflatten(0, (6, 5)))),
        "branch between them reads the same, and may change it",
    ),
    "own of a view": (
        Body(lambda self, x: self.act(self.norm(x) + self.branch(x.view(6, 5))), branch=Doubling()),
        "branch between them reads the same, and may change it",
    ),
    "in place behind": (Body(in_place_behind), "+= behind them works in place on what they read"),
    "drawing between": (Body(drawing_between, other=torch.nn.Dropout(0.1)), "might draw random numbers before"),
    "own class": (Body(lambda self, x: self.act(self.norm(x)), norm=Own(5)), "Own, not pellucid's layer"),
    "hooked": (Body(lambda self, x: self.act(self.norm(x)), norm=hooked()), "norm has a hook"),
    "deciding": (Body(deciding), "no fixed graph"),
    "by chance": (Body(by_chance), "draws random numbers itself"),
    "keeping": (Body(keeping), "sets 'last'"),
    "reading": (table(Body(reading)), "reads 'table', a dict, which may change unseen"),
    "nothing": (Body(with_more, other=Silent()), "asks what a value is, by is None"),
    "half of nothing": (
        Body(with_more_of_a_pair, other=torch.nn.MultiheadAttention(5, 1)),
        "asks what a value is, by is None",
    ),
    "identity": (Body(of_an_identity), "asks what a value is, by is"),
    "type": (Body(of_a_type), "asks what a value is, by type"),
    "own type": (Body(of_its_own_type), "asks what a value is, by type"),
    "attribute": (Body(of_an_attribute), "reads 'mask' of a tensor"),
    "bound": (with_function(Body(of_its_own_functions), lambda _: Config().scale), "reads 'function', a method"),
    "closure": (
        with_function(Body(of_its_own_functions), lambda model: lambda: model.scale),
        "reads 'function', a function, which may change unseen",
    ),
    "counting": (Body(counting), "sets 'COUNT', a global variable"),
    "global list": (Body(of_a_global_list), "reads 'SCALES', a global list, which may change unseen"),
    "environment": (Body(of_the_environment), "reads 'os.environ', a global _Environ"),
    "attributes": (Body(of_all_attributes), "reads all of its attributes"),
    "trying": (Body(trying), "sets 'last'"),
    "parameters": (Body(of_all_parameters), "goes through its parameters"),
    "context": (Body(within_a_context), "changes torch's modes on the way"),
}
# What is arithmetic all the same.
LEFT_OF_IT = {
    "used twice": ["ReLU → add"],
    **{name: ["add → ReLU"] for name in ("in place within", "own within", "own of a view")},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_left_one_by_one_and_why(name):
    model, words = REFUSED[name]
    model = copy.deepcopy(model)
    reference = copy.deepcopy(model)
    report = pellucid.swap(model, fuse=True)
    assert kinds(report) == []
    assert kinds(report, "operations") == LEFT_OF_IT.get(name, [])
    assert words in report.unfused[0].reason
    assert type(model) is Body or report.fused
    with pellucid.backend("c"):
        found = []
        for m in (model.eval(), reference.eval()):
            random.seed(1)
            found.append(m(picture(6, 5)))
        assert torch.allclose(*found, atol=1e-6)


def test_what_is_written_to_behind_has_a_gradient_still():
    model = ready(Body(in_place_behind, layer=torch.nn.Identity()))
    reference = copy.deepcopy(model)
    pellucid.swap(model, fuse=True)
    x = picture(6, 5).double()
    with pellucid.backend("c"):
        assert far(results(model, x), results(reference, x)) < 1e-10


def test_a_sum_in_place_changes_the_callers_tensor_still():
    model = Body(hidden_sum).eval()
    assert pellucid.swap(model, fuse=True).fused == ()
    x = picture(6, 5)
    y = 2 * x
    model(x)
    assert torch.equal(x, y)


def test_a_sum_in_place_keeps_its_type():
    def adding(self, x):
        y = self.norm(self.conv(x))
        y += x.double()
        return self.act(y)

    for conv, norm, x in (
        (torch.nn.Identity(), torch.nn.LayerNorm(5), picture(6, 5)),
        (torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3), picture()),
    ):
        model = Body(adding, conv=conv, norm=norm).eval()
        reference = copy.deepcopy(model)
        assert "add" in pellucid.swap(model, fuse=True).fused[0].before
        with pellucid.backend("c"):
            ours, theirs = model(x), reference(x)
        assert ours.dtype == theirs.dtype == torch.float32
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_tensor_is_taken_for_one():
    def asking(self, x):
        return self.act(self.norm(x)) if isinstance(x, Tensor) else x[0]

    assert kinds(pellucid.swap(Body(asking), fuse=True)) == ["BatchNorm1d → ReLU"]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_what_is_collected_meanwhile_is_not_heard():
    def collecting(self, x):
        return self.act(self.norm(x)) if [[] for _ in range(1000)] else x

    def callback(*_):
        global COUNT
        COUNT += 1

    thresholds = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(1)
    try:
        assert kinds(pellucid.swap(Body(collecting), fuse=True)) == ["BatchNorm1d → ReLU"]
        assert gc.isenabled()
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(callback)


def test_what_is_asked_is_heard():
    def asking(x, y=None, *rest):
        flag = (
            x is y,
            y  # in a line of its own
            is None,
        )
        if rest is not None and hasattr(y, "shape"):
            return [type(part) for part in (x, y)], flag
        return callable(getattr(x, "shape", None)) or isinstance(x, int) or x is None

    heard = []
    with identity.hearing(lambda what, value: heard.append(what), lambda name: name != __name__, lambda *_: None):
        asking(1)
        asking(2, Tensor())
    always = ["is", "is", "is None", "is None", "hasattr"]
    assert heard == [*always, "callable", *always, "type", "type"]


class Wrapping(torch.nn.Module):
    """Counts the calls of its heirs, as transformers lets theirs compute again in backward."""

    wraps, calls = False, 0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        inner = cls.forward

        @functools.wraps(inner)
        def forward(self, x):
            outermost = type(self).forward is forward
            if self.wraps and outermost:
                return self.count(functools.partial(inner, self), x)
            return inner(self, x)

        cls.forward = forward

    @staticmethod
    def count(run, x):
        Wrapping.calls += 1
        return run(x)


class Wrapped(Wrapping):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = torch.nn.BatchNorm1d(5), torch.nn.ReLU()

    def forward(self, x):
        return self.act(self.norm(x))


def test_a_class_that_wraps_the_forward_of_every_heir_does_it_once():
    model = Wrapped().eval()
    assert kinds(pellucid.swap(model, fuse=True)) == ["BatchNorm1d → ReLU"]
    reference = copy.deepcopy(model)
    pellucid.restore(reference)
    for wraps in (False, True, False):
        for m in (model, reference):
            m.wraps, Wrapping.calls = wraps, 0
            with pellucid.backend("c"):
                assert torch.allclose(m(picture(6, 5)), torch.relu(m.norm(picture(6, 5))), atol=1e-6)
            assert Wrapping.calls == wraps


@pytest.mark.parametrize(
    ("asked", "fused"), [("__name__", True), ("requires_grad_", True), ("forward", False), ("norms", False)]
)
def test_what_is_asked_of_its_class(asked, fused):
    class Asking(torch.nn.Module):
        norms = 1

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act = torch.nn.BatchNorm1d(5), torch.nn.ReLU()

    exec(f"def forward(self, x):\n    return self.act(self.norm(x)) if type(self).{asked} else x", made := {})
    Asking.forward = made["forward"]
    assert bool(kinds(pellucid.swap(Asking(), fuse=True))) is fused


@pytest.mark.parametrize(
    ("forward", "space", "name"),
    [
        (lambda self, x: self.act(self.norm(x)) * SCALE, globals(), "SCALE"),
        (lambda self, x: self.act(self.norm(x)) * Config.factor, Config, "factor"),
        (lambda self, x: self.act(self.norm(x)) * cases.FACTOR, cases, "FACTOR"),
    ],
    ids=["own", "of a class", "of a library"],
)
def test_a_global_variable_may_change(monkeypatch, forward, space, name):
    put = monkeypatch.setitem if isinstance(space, dict) else functools.partial(monkeypatch.setattr, raising=False)
    put(space, name, 2.0)
    model = Body(forward)
    assert kinds(pellucid.swap(model, fuse=True)) == ["BatchNorm1d → ReLU"]
    with pellucid.backend("c"):
        once = model(picture(6, 5))
        put(space, name, 6.0)
        assert torch.allclose(model(picture(6, 5)), 3 * once)


def test_sums_in_place_of_two_norms():
    """What the first activation gives is no memory of the second, though both add the same."""

    def adding(self, x):
        y = self.act(self.norm(x) + x)
        z = self.other(y)
        z += x
        return self.act(z)

    model = Body(adding, act=R(inplace=True), other=torch.nn.BatchNorm1d(5))
    assert kinds(pellucid.swap(model, fuse=True)) == ["BatchNorm1d → add → ReLU"] * 2


def test_a_parameter_may_go_and_come():
    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.ones(5))

        def forward(self, x):
            y = torch.tanh(x) * 2
            return y if self.shift is None else y + self.shift

    model = Shifted()
    assert pellucid.swap(model, fuse=True).fused
    reference, x = Shifted(), picture(6, 5)
    for shift in (model.shift, None, torch.nn.Parameter(torch.zeros(5))):
        model.shift = reference.shift = shift
        with pellucid.backend("c"):
            assert torch.allclose(model(x), reference(x), atol=1e-6)


def test_what_can_be_fused_is_though_its_neighbour_cannot():
    def shared(self, x):
        z = x + 2 * x
        return torch.relu(self.layer(z)) + F.silu(self.norm(z)) + z

    model = Body(shared, act=torch.nn.Identity()).double()
    reference = copy.deepcopy(model)
    assert kinds(pellucid.swap(model, fuse=True)) == ["LayerNorm → relu", "BatchNorm1d → silu"]
    with pellucid.backend("c"):
        assert far(results(model, picture(6, 5).double()), results(reference, picture(6, 5).double())) < 1e-10


def test_torchs_own_blocks():
    model = torch.nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True).double()
    reference = copy.deepcopy(model)
    assert kinds(pellucid.swap(model, fuse=True)) == ["Dropout → add → LayerNorm"] * 3
    x = picture(2, 3, 8).double()
    with pellucid.backend("c"):
        assert torch.allclose(model(x, x), reference(x, x), atol=1e-10)


def test_a_profiler_changes_nothing_and_goes_on():
    report, seen, profiler = None, [], cProfile.Profile()
    with profiler:
        report = pellucid.swap(torch.nn.Sequential(Residual(), Residual()), fuse=True)
        json.dumps("after")
    assert {path.split(".")[0] for group in report.fused for path in group.paths} == {"0", "1"}
    assert any(entry.code.co_name == "dumps" for entry in profiler.getstats() if not isinstance(entry.code, str))

    def note(frame, event, argument):
        seen.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        pellucid.swap(torch.nn.Sequential(Residual()), fuse=True)
        assert sys.getprofile() is note
    finally:
        sys.setprofile(None)
    assert "swap" in seen


def test_a_module_without_a_forward_is_not_said_to_be_unreadable():
    holder = torch.nn.Module()
    holder.norm, holder.act = torch.nn.BatchNorm2d(3), torch.nn.ReLU()
    assert pellucid.swap(holder, fuse=True).unfused == ()


def test_only_says_which_norms():
    model = S(torch.nn.BatchNorm1d(5), R(), torch.nn.LayerNorm(5), R())
    report = pellucid.swap(model, only=torch.nn.LayerNorm, fuse=True)
    assert [group.paths for group in report.fused] == [("2",)]
    assert [(left.paths, left.kind) for left in report.unfused] == [(("0",), "BatchNorm1d → ReLU")]
    assert "torch.nn.BatchNorm1d, not pellucid's" in report.unfused[0].reason


def test_nothing_is_fused_unless_asked_for():
    model = S(torch.nn.BatchNorm1d(5), R())
    report = pellucid.swap(model)
    assert report.fused == report.unfused == ()
    assert type(model) is S


def test_an_inner_layer_that_cannot_be_run_fused_says_what_it_says():
    model = S(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), R()).eval()
    pellucid.swap(model, fuse=True)
    with pellucid.backend("c"), pytest.raises(RuntimeError, match=r"in_channels is 3\. Build it with in_channels=5"):
        model(picture(2, 5, 6, 6))
    one = S(torch.nn.InstanceNorm2d(3), R())
    pellucid.swap(one, fuse=True)
    with pellucid.backend("c"), pytest.raises(ValueError, match="more than 1 spatial element"):
        one(picture(2, 3, 1, 1))


# -- copies, files, transforms ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    model = S(Residual(), torch.nn.Flatten(), torch.nn.Linear(144, 6), Output(p=0.0))
    original = copy.deepcopy(model)
    report = pellucid.swap(model, fuse=True)
    assert len(report.fused) == 3
    return original.eval(), model.eval()


def test_copies_and_files(block):
    original, model = block
    for other in (copy.deepcopy(model), copy.copy(model), saved(model)):
        assert isinstance(other[0], fusions.Fused)
        with pellucid.backend("c"):
            assert torch.allclose(other(picture()), original(picture()), atol=1e-5)
        assert any(plan.run is not None for plan in other[0]._fused_plans.known.values())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].bn.weight.mul_(2)
        with pellucid.backend("c"):
            assert not torch.allclose(other(picture()), model(picture()))
    assert type(model[0]).__name__ == "Residual"
    assert isinstance(model[0], Residual)
    assert list(inspect.signature(model[0].forward).parameters) == ["x"]
    assert repr(model[0]).startswith("Residual(")


def test_compiled_exported_and_transformed(block):
    original, model = block
    x, expected = picture(), original(picture())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), expected, atol=1e-5)
    assert torch.allclose(torch.export.export(model, (x,)).module()(x), expected, atol=1e-5)
    with pellucid.backend("c"):
        called = torch.func.functional_call(model, dict(original.named_parameters()), (x,))
        assert torch.allclose(called, expected, atol=1e-5)
        mapped = torch.func.vmap(model)(torch.stack([x, 2 * x]))
        assert torch.allclose(mapped[0], expected, atol=1e-5)


def test_restored(block):
    original, model = block
    model = copy.deepcopy(model)
    report = pellucid.restore(model)
    assert kinds(report) == ["Conv2d → BatchNorm2d → ReLU", "BatchNorm2d → add → ReLU", "Dropout → add → LayerNorm"]
    assert "3 groups of layers are no longer computed as one." in report.summary
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
    assert not any("_fused_plans" in vars(m) for m in model.modules())
    assert torch.equal(model(picture()), original(picture()))


def test_swapped_once_more(block):
    _, model = block
    model = copy.deepcopy(model)
    report = pellucid.swap(model, fuse=True)
    assert len(report.fused) == 3
    assert type(model[0]).__mro__.count(fusions.Fused) == 1
    assert type(model[0])._own_kind is Residual


def test_a_loaded_state_and_an_optimizer(block):
    original, model = block
    model, original = copy.deepcopy(model).train(), copy.deepcopy(original).train()
    model.load_state_dict(original.state_dict())
    for m in (model, original):
        optimizer = torch.optim.SGD(m.parameters(), 0.1)
        with pellucid.backend("c"):
            for _ in range(2):
                optimizer.zero_grad()
                m(picture()).square().mean().backward()
                optimizer.step()
    pairs = zip(model.parameters(), original.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


# -- the faster way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wins", [True, False])
def test_the_faster_way_is_taken(monkeypatch, wins):
    asked = []
    monkeypatch.setattr(fused, "_chosen", {})
    monkeypatch.setattr(fused, "LEAST", 0)

    def faster(question, kernel, usual, other, leaves):
        asked.append(question)
        usual()
        other()
        return wins

    monkeypatch.setattr(fused, "faster", faster)
    calls: list[int] = []
    layers = fused.one_by_one
    monkeypatch.setattr(fused, "one_by_one", lambda *args: calls.append(1) or layers(*args))
    model = S(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), R(), Residual(), torch.nn.Flatten(2), Output())
    model[3].conv, model[3].shortcut = torch.nn.Conv2d(4, 4, 1), torch.nn.Conv2d(4, 4, 1)
    model[5].norm, model[5].dense = torch.nn.LayerNorm(16), torch.nn.Linear(16, 16)
    reference = copy.deepcopy(model)
    pellucid.swap(model, fuse=True)
    for training, questions in ((True, 3), (False, 4 if wins else 5)):
        asked.clear()
        for m in (model, reference):
            m.train(training)
            m[5].dropout.training = False
        assert far(results(model, picture()), results(reference, picture())) < 1e-5
        assert len(asked) == questions
        calls.clear()
        torch.manual_seed(0)
        state = torch.get_rng_state()
        for m in (model, reference):
            m(picture().requires_grad_())
        assert len(asked) == questions  # of the same size, so known
        assert not calls or not wins
        assert bool(vars(model[5])["_fused_plans"].one_by_one) is not wins
        assert torch.equal(torch.get_rng_state(), state)


# -- real models, the report and the command --------------------------------------------------------------------------

# Of layers, and of operations.
GROUPS = {
    **{"ResNet-18": (12, 0), "ConvNeXt": (0, 4), "MobileNetV2": (52, 0), "EfficientNet-B0": (24, 17)},
    **{"BERT": (5, 3), "GPT-2": (0, 2), "EnCodec": (0, 14)},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("known", [pytest.param(known, id=known.name) for known in ZOO if known.name in GROUPS])
def test_a_real_model_computes_the_same(known, monkeypatch):
    if not known.is_here:
        pytest.skip(f"{known.needs} is not installed")
    monkeypatch.setattr(fused, "_chosen", {})
    for module in (fused, expression):
        monkeypatch.setattr(module, "LEAST", 0)
        monkeypatch.setattr(module, "faster", lambda *_: True)  # one pass everywhere
    model, inputs = known.make(tiny=True)
    model.double()
    inputs = verification.mapped(lambda x: x.double() if x.is_floating_point() else x, inputs)
    types, state = [kind_of(m) for m in model.modules()], list(model.state_dict())
    report = pellucid.swap(model, verify=inputs, fuse=True)
    assert (len(kinds(report)), len(kinds(report, "operations"))) == GROUPS[known.name]
    assert report.verification is not None
    assert report.verification.modes == ("eval", "train")
    assert max(report.verification.outputs, report.verification.gradients or 0) < 1e-10
    assert list(model.state_dict()) == state
    assert pellucid.restore(model).fused == report.fused
    assert [kind_of(m) for m in model.modules()] == types


def test_a_wrong_result_is_refused_and_all_undone(monkeypatch):
    model = S(torch.nn.BatchNorm1d(5), R())
    layers = fused.one_by_one
    monkeypatch.setattr(fused, "one_by_one", lambda *args: layers(*args) + 1e-3)
    with pytest.raises(pellucid.VerificationError, match=r"an output by.*without fuse= all run one by one"):
        pellucid.swap(model, verify=picture(6, 5), fuse=True)
    assert [type(m) for m in model.modules()] == [S, torch.nn.BatchNorm1d, R]


def test_a_forward_that_needs_an_optional_argument_needs_an_example():
    class Masked(Body):
        def forward(self, x, mask=None, scale=None):
            return self.act(self.norm(x)) * mask.float()

    model = Masked(None)
    (left,) = pellucid.swap(model, fuse=True).unfused
    assert "fails when it is called without mask, scale" in left.reason
    assert "'NoneType' object has no attribute 'float'. Give swap one, verify=example" in left.reason
    assert pellucid.swap(model, verify=(picture(6, 5), picture(6, 5)), fuse=True).fused


def test_a_forward_that_asks_for_the_shape_needs_an_example():
    def asking(self, x):
        return self.act(self.norm(x)) if x.shape[0] > 1 else x

    model = Body(asking)
    assert "no fixed graph" in pellucid.swap(model, fuse=True).unfused[0].reason
    assert pellucid.swap(model, verify=picture(6, 5), fuse=True).fused
    model.eval()
    assert torch.equal(model(picture(1, 5)), picture(1, 5))
    assert not torch.equal(model(picture(6, 5)), picture(6, 5))


def test_the_report_tells_what_is_fused():
    shared = Residual()
    model = S(shared, Body(twice), S(torch.nn.Identity(), torch.nn.LayerNorm(5), torch.nn.GELU()))
    model.again = shared
    report = pellucid.swap(model, fuse=True)
    text, markdown, found = str(report), report.markdown(), json.loads(report.json())
    assert "3 groups of layers and 1 group of operations are computed as one." in text
    assert "| Conv2d → BatchNorm2d → ReLU | eval: one convolution; training: one pass behind it | 1 |" in markdown
    assert "0.bn = again.bn" in markdown
    assert "| BatchNorm1d → ReLU | what norm gives is used elsewhere too | 1 | 1.norm |" in markdown
    assert found["fused"][3] == {
        "paths": ["2.1"],
        "layers": ["1", "2"],
        "before": "LayerNorm → GELU",
        "after": "one pass",
        "kind": "layers",
    }
    assert found["unfused"][0]["paths"] == ["1.norm"]
    assert max(map(len, text.splitlines())) <= 120
    assert "No longer fused" in str(pellucid.restore(model))


def test_the_command(tmp_path):
    file = tmp_path / "net.py"
    file.write_text("import torch\nnet = torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.ReLU())\n")
    result = run("swap", f"{file}:net", "--input", "4x5", "--fuse")
    assert result.exit_code == 0, result.output
    assert "1 group of layers is computed as one." in result.output
    assert "BatchNorm1d → ReLU" in result.output
    assert "computed as one" not in run("swap", f"{file}:net").output
