"""The graphs that `swap(model, fuse=True)` makes of forwards: what changes later is seen, and what is left alone."""

from __future__ import annotations

import contextlib
import copy
import cProfile
import functools
import gc
import json
import logging
import os
import random
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrizations

import cases
import pellucid
from fusing import Body, Output, R, Residual, S, far, kinds, picture, ready, results, twice
from pellucid.models import fusions, identity
from pellucid.nn.swapped import fused

logging.getLogger("transformers").setLevel(logging.ERROR)


pytestmark = pytest.mark.usefixtures("few_samples")


# -- what changes later is seen ---------------------------------------------------------------------------------------


def test_a_hook_lets_the_layers_run_one_by_one():
    model = ready(Residual())
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
