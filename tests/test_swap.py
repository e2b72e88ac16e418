"""Models whose layers become pellucid's and torch.nn's again: nothing else changes, and what differs is said."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import re
import time
import warnings

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_sequence

import pellucid
from cases import ALL, Case
from explaining import quietly
from pellucid import nn
from pellucid.models import formats, verification
from pellucid.models.report import Formatted
from pellucid.models.verification import TOLERANCE, difference
from pellucid.nn.exchange import has_twin, ours_of, runs_as, torchs_of, twin_of
from recipe_commands import run

SHARED = [  # torch.nn has it, with these arguments
    pytest.param(case, id=case.name)
    for case in ALL
    if case.reference is None and not case.own and not case.call and hasattr(torch.nn, case.layer)
]


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch):
    monkeypatch.setattr(verification, "TIMED_SECONDS", 0)


def first(result):
    return result if isinstance(result, torch.Tensor) else first(result[0])


def held(layer: torch.nn.Module):
    """What a layer holds by itself, and the objects in it; a class may keep what ran it."""
    return {name: id(value) for name, value in vars(layer).items()}


class Tagger(torch.nn.Module):
    """One layer of each kind, in every kind of container, one of them shared."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 6)
        self.norm = torch.nn.LayerNorm(6)
        self.convolutions = torch.nn.ModuleList([torch.nn.Conv1d(6, 6, k, padding="same", groups=6) for k in (1, 3)])
        self.parts = torch.nn.ModuleDict({"batch": torch.nn.BatchNorm1d(6), "drop": torch.nn.Dropout(p)})
        self.rnn = torch.nn.LSTM(6, 5, 2, batch_first=True, dropout=p, bidirectional=True)
        self.head = torch.nn.Sequential(torch.nn.Linear(10, 6), torch.nn.ReLU(), self.norm)
        self.output = torch.nn.Linear(6, 11, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, ids):
        x = self.norm(self.embedding(ids)).mT
        x = sum(convolution(x) for convolution in self.convolutions)
        x, _ = self.rnn(self.parts["drop"](self.parts["batch"](x)).mT)
        return self.output(self.head(x))


PATHS = {"norm", "convolutions.0", "convolutions.1", "parts.batch", "parts.drop", "rnn", "head.0", "output"}


def tagger(p: float = 0.0, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    torch.manual_seed(0)
    return Tagger(p).to(dtype)


def ids() -> torch.Tensor:
    return torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(1))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": saved}


def classes(model):
    return {path: type(module) for path, module in model.named_modules()}


def train(model, optimizer, steps: int = 3):
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(ids()).flatten(0, 1), ids().flatten()).backward()
        optimizer.step()


# -- single layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SHARED)
def test_every_layer_becomes_pellucids_and_torchs_again(case: Case):
    torch.manual_seed(0)
    layer = getattr(torch.nn, case.layer)(*case.args, **case.kwargs).double().eval()
    x = case.input(torch.float64)
    expected, before, text = first(layer(x.clone())), held(layer), repr(layer)
    report = pellucid.swap(layer)
    assert type(layer) is getattr(nn, case.layer)
    assert [(r.paths, r.before, r.after) for r in report.replaced] == [
        (("",), f"torch.nn.{case.layer}", f"pellucid.nn.{case.layer}")
    ]
    assert report.left == ()
    torch.testing.assert_close(first(layer(x.clone())), expected)
    assert repr(layer) == text
    pellucid.restore(layer)
    assert type(layer) is getattr(torch.nn, case.layer)
    assert held(layer) == before
    assert torch.equal(first(layer(x.clone())), expected)


def test_every_class_of_the_namespace_is_replaced():
    """A new layer of pellucid's with a name of torch.nn's is known to swap by itself."""
    ours = {
        n for n, kind in vars(nn).items() if isinstance(kind, type) and isinstance(getattr(torch.nn, n, None), type)
    }
    tested = {param.values[0].layer for param in SHARED}
    assert ours == tested


# -- whole models -----------------------------------------------------------------------------------------------------


def test_a_model_computes_the_same_with_every_layer_in_place():
    model, reference = tagger(), tagger()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    keys, original = list(model.state_dict()), classes(model)
    report = pellucid.swap(model)
    assert {path for layer in report.replaced for path in layer.paths} == {*PATHS, "head.2"}
    assert [layer.paths for layer in report.replaced if len(layer.paths) > 1] == [("norm", "head.2")]
    assert {layer.kind for layer in report.left} == {"torch.nn.Embedding", "torch.nn.ReLU"}
    assert all(type(model.get_submodule(path)).__module__.startswith("pellucid.") for path in PATHS)
    assert model.norm is model.head[2]
    assert model.output.weight is model.embedding.weight
    assert all(value is parameters[name] for name, value in model.named_parameters())
    assert all(value is buffers[name] for name, value in model.named_buffers())
    assert list(model.state_dict()) == keys
    optimizer, other = (torch.optim.Adam(m.parameters()) for m in (model, reference))
    train(model, optimizer)
    train(reference, other)
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=1e-7, atol=1e-9)
    pellucid.restore(model)
    assert classes(model) == original
    train(model, optimizer)  # the optimizer that was made with torch.nn's layers, and used with pellucid's, goes on
    train(reference, other)
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=1e-7, atol=1e-9)


def test_swap_again_says_that_nothing_is_left_to_do():
    model = tagger()
    pellucid.swap(model)
    report = pellucid.swap(model)
    assert report.replaced == ()
    assert {path for left in report.left if left.reason == "pellucid's already" for path in left.paths} >= PATHS


def test_hooks_of_all_kinds_go_on():
    model, seen = tagger(), []

    def note(kind):
        return lambda module, *_, **__: seen.append((kind, type(module).__module__.split(".")[0]))

    layer = model.rnn
    layer.register_forward_pre_hook(note("pre"))
    layer.register_forward_pre_hook(note("pre with kwargs"), with_kwargs=True)
    layer.register_forward_hook(note("forward"))
    layer.register_forward_hook(note("always"), always_call=True)
    handle = layer.register_full_backward_hook(note("backward"))
    layer.register_full_backward_pre_hook(note("backward pre"))
    layer.register_state_dict_pre_hook(note("state pre"))
    layer.register_load_state_dict_pre_hook(note("load pre"))
    layer.register_load_state_dict_post_hook(note("load post"))
    layer._register_state_dict_hook(note("state"))

    def happenings():
        seen.clear()
        model(ids()).sum().backward()
        model.load_state_dict(model.state_dict())
        return list(seen)

    before = happenings()
    assert len({kind for kind, _ in before}) == 10
    pellucid.swap(model)
    assert happenings() == [(kind, "pellucid") for kind, _ in before]
    pellucid.restore(model)
    assert happenings() == before
    handle.remove()
    assert "backward" not in {kind for kind, _ in happenings()}


def test_whatever_a_user_sets_stays():
    model = tagger()
    model.norm.note = {"lr": 3}
    model.norm.weight.requires_grad_(False)
    model.parts["batch"].eval()
    pellucid.swap(model)
    assert model.norm.note == {"lr": 3}
    assert not model.norm.weight.requires_grad
    assert not model.parts["batch"].training
    assert model.norm.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtype_and_device_stay(dtype):
    model = tagger(dtype=dtype)
    pellucid.swap(model)
    assert {p.dtype for p in model.parameters()} == {dtype}
    meta = tagger().to("meta")
    pellucid.swap(meta)
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    pellucid.restore(meta)
    assert type(meta.rnn) is torch.nn.LSTM


# -- computed weights -------------------------------------------------------------------------------------------------


def old(function, layer, name="weight"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return function(layer, name)


COMPUTED = {
    "weight_norm": lambda: parametrizations.weight_norm(torch.nn.Conv1d(4, 6, 3)),
    "spectral_norm": lambda: parametrizations.spectral_norm(torch.nn.Conv1d(4, 6, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(torch.nn.Conv1d(4, 6, 1)),
    "pellucid's weight_norm": lambda: nn.parametrizations.weight_norm(torch.nn.Conv1d(4, 6, 3)),
    "two": lambda: parametrizations.weight_norm(parametrizations.weight_norm(torch.nn.Conv1d(4, 6, 3)), "bias"),
    "of an LSTM": lambda: parametrizations.weight_norm(torch.nn.LSTM(5, 4), "weight_hh_l0"),
    "old weight_norm": lambda: old(torch.nn.utils.weight_norm, torch.nn.Conv1d(4, 6, 3)),
    "old spectral_norm": lambda: old(torch.nn.utils.spectral_norm, torch.nn.ConvTranspose1d(4, 6, 3)),
    "old weight_norm of an LSTM": lambda: old(torch.nn.utils.weight_norm, torch.nn.LSTM(5, 4), "weight_hh_l0"),
}


@pytest.mark.parametrize("make", COMPUTED.values(), ids=COMPUTED)
def test_computed_weights_are_computed_on(make):
    torch.manual_seed(0)
    layer = make().double().eval()
    kind, x = type(layer), torch.randn(2, 4, 5, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    expected = first(layer(x))
    report = pellucid.swap(layer)
    assert type(layer).__name__ == kind.__name__
    assert isinstance(layer, getattr(nn, kind.__name__.removeprefix("Parametrized")))
    assert report.left == ()
    torch.testing.assert_close(first(layer(x)), expected)
    with torch.no_grad():
        for value in parameters.values():
            value.mul_(1.5)
    assert all(value is parameters[name] for name, value in layer.named_parameters())
    changed = first(layer(x))
    assert not torch.allclose(changed, expected)
    pellucid.restore(layer)
    assert type(layer).__mro__[-2:] == kind.__mro__[-2:]
    assert not isinstance(layer, getattr(nn, kind.__name__.removeprefix("Parametrized")))
    torch.testing.assert_close(first(layer(x)), changed)
    assert list(layer.state_dict()) == list(make().state_dict())


def test_a_parametrization_is_removed_from_either_kind():
    model = torch.nn.Sequential(parametrizations.weight_norm(torch.nn.Conv1d(4, 6, 3)))
    twin = copy.deepcopy(model)  # torch lets both share a class
    pellucid.swap(model)
    assert not isinstance(twin[0], nn.Conv1d)
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is nn.Conv1d
    assert parametrize.is_parametrized(twin[0])
    pellucid.swap(twin)
    pellucid.restore(twin)
    parametrize.remove_parametrizations(twin[0], "weight")
    assert type(twin[0]) is torch.nn.Conv1d


# -- subclasses that only build themselves otherwise ------------------------------------------------------------------


class Depthwise(torch.nn.Conv2d):
    """A convolution of every channel by itself."""

    __constants__ = (*torch.nn.Conv2d.__constants__, "made_by")
    made_by = "Depthwise"
    weight: torch.nn.Parameter

    def __init__(self, channels: int, depth_multiplier: int = 1) -> None:
        super().__init__(channels, channels * depth_multiplier, 3, padding=1, groups=channels)

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.weight)
        torch.nn.init.zeros_(self.bias)


class Stem(Depthwise):
    def __init__(self) -> None:
        super().__init__(3, depth_multiplier=2)

    def extra_repr(self) -> str:
        return f"stem, {super().extra_repr()}"


class Careful(torch.nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-2)


class Quarter(torch.nn.Dropout):
    def __init__(self) -> None:
        super().__init__(0.25)

    def _get_name(self) -> str:
        return "AQuarter"


class Both(torch.nn.LSTM):
    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, 2, bidirectional=True)

    def extra_repr(self) -> str:
        return f"both ways, {super().extra_repr()}"


class Step(torch.nn.GRUCell):
    pass


HEIRS = {
    "Conv2d": (lambda: Depthwise(3), (2, 3, 5, 5)),
    "Conv2d, a grandchild": (Stem, (2, 3, 5, 5)),
    "BatchNorm2d": (lambda: Careful(3), (2, 3, 5, 5)),
    "Dropout": (Quarter, (2, 3)),
    "LSTM": (lambda: Both(3, 4), (5, 2, 3)),
    "GRUCell": (lambda: Step(3, 4), (2, 3)),
}


@pytest.mark.parametrize(("base", "make", "shape"), [(n.split(",")[0], *v) for n, v in HEIRS.items()], ids=HEIRS)
def test_a_subclass_that_only_builds_itself_computes_by_pellucids_class(base, make, shape):
    torch.manual_seed(0)
    layer, x = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    kind, text, before, expected = type(layer), repr(layer), held(layer), first(layer(x))
    assert has_twin(layer)
    assert runs_as(kind) is getattr(torch.nn, base)
    report = pellucid.swap(layer, verify=x)
    heir = type(layer)
    assert {kind, getattr(torch.nn, base), getattr(nn, base)} < set(heir.__mro__)
    assert heir.forward is getattr(nn, base).forward
    assert runs_as(heir) is getattr(nn, base)
    assert torchs_of(heir) is kind
    assert heir is ours_of(kind)
    assert (heir.__name__, heir.__qualname__, heir.__module__, heir.__doc__) == (
        kind.__name__,
        kind.__qualname__,
        kind.__module__,
        kind.__doc__,
    )
    name = f"{kind.__module__}.{kind.__name__}"
    assert [(r.before, r.after) for r in report.replaced] == [(name, f"{name}, computed by pellucid.nn.{base}")]
    assert repr(layer) == text
    torch.testing.assert_close(first(layer(x)), expected)
    assert not has_twin(layer)
    (left,) = pellucid.swap(layer).left
    assert left.reason == "pellucid's already"
    for copied in COPIES.values():
        twin = copied(layer)
        assert type(twin) is heir
        torch.testing.assert_close(first(twin(x)), expected)
        pellucid.restore(twin)
        assert type(twin) is kind
    report = pellucid.restore(layer)
    assert [(r.before, r.after) for r in report.replaced] == [(f"{name}, computed by pellucid.nn.{base}", name)]
    assert type(layer) is kind
    assert held(layer) == before
    assert torch.equal(first(layer(x)), expected)
    twin = twin_of(layer)
    assert type(twin) is heir
    assert type(layer) is kind


def test_heirs_are_known_by_the_classes_above_and_below():
    def model():
        return torch.nn.Sequential(Depthwise(3), Stem(), torch.nn.Conv2d(6, 3, 1), Both(3, 2))

    for only, wanted in (
        (torch.nn.Conv2d, {"0", "1", "2"}),
        (nn.Conv2d, {"0", "1", "2"}),
        (Depthwise, {"0", "1"}),
        (Stem, {"1"}),
        (nn.LSTM, {"3"}),
        (torch.nn.LSTM, {"3"}),
    ):
        layers = model()
        report = pellucid.swap(layers, only=only)
        assert {r.paths[0] for r in report.replaced} == wanted
    assert isinstance(layers[3], torch.nn.LSTM)
    assert isinstance(layers[3], nn.LSTM)
    layers = model()
    formatted = pellucid.swap(layers, memory_format=LAST).formatted
    assert formatted is not None
    assert formatted.paths == (("0",), ("1",), ("2",))
    assert layers[0](torch.randn(1, 3, 4, 4)).is_contiguous(memory_format=LAST)
    pellucid.restore(layers)
    assert type(layers[0]) is Depthwise
    assert "_memory_format" not in vars(layers[0])


torchs = parametrizations.weight_norm  # which cannot be pickled, nor of an LSTM be copied


@pytest.mark.parametrize("parametrized", [torchs, nn.parametrizations.weight_norm], ids=["torch's", "pellucid's"])
@pytest.mark.parametrize(
    ("make", "weight", "shape"),
    [(lambda: Depthwise(3), "weight", (2, 3, 5, 5)), (lambda: Both(3, 4), "weight_hh_l0", (5, 2, 3))],
    ids=["Conv2d", "LSTM"],
)
def test_computed_weights_of_subclasses(parametrized, make, weight, shape):
    torch.manual_seed(0)
    layer, x = parametrized(make(), weight).double(), torch.randn(shape).double()
    kind, expected = type(layer), first(layer(x))
    assert len(pellucid.swap(layer).replaced) == 1
    assert type(layer).__bases__ == (ours_of(kind.__bases__[0]),)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))] if parametrized is not torchs else []
    for other in (layer, *copies):
        torch.testing.assert_close(first(other(x)), expected)
        pellucid.restore(other)
        assert type(other).__bases__ == kind.__bases__
        torch.testing.assert_close(first(other(x)), expected)
    later = make().double()
    pellucid.swap(later)
    parametrized(later, weight)
    pellucid.restore(later)
    parametrize.remove_parametrizations(later, weight)
    assert type(later) is kind.__bases__[0]


def test_hooks_optimizer_and_compiler_go_on_with_a_subclass():
    model, x = torch.nn.Sequential(Depthwise(3), Careful(3), Stem()).double(), picture()
    expected, seen = model(x), []
    model[0].register_forward_hook(lambda layer, *_: seen.append(type(layer)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state = list(model.state_dict())
    pellucid.swap(model)
    torch.testing.assert_close(model(x), expected)
    assert seen == [ours_of(Depthwise)]
    with torch.no_grad():
        compiled = torch.compile(model.eval(), fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), model(x))
    before = model[2].weight.detach().clone()
    model.train()(x).sum().backward()
    optimizer.step()
    assert not torch.equal(model[2].weight, before)
    assert list(model.state_dict()) == state


def test_an_option_that_torch_lacks_is_told_of_a_subclass_too():
    layer = Quarter()
    pellucid.swap(layer)
    layer.draw_from(5, None)
    (left,) = pellucid.restore(layer).left
    assert left.reason == "torch.nn.Dropout has no seed=5"


def test_a_class_that_was_given_code_since_is_itself_again(monkeypatch):
    layer = Careful(3).eval()
    pellucid.swap(layer)
    pickled = pickle.dumps(layer)
    monkeypatch.setattr(Careful, "forward", lambda self, x: x, raising=False)
    assert layer(picture().float()).equal(picture().float())  # as it would without pellucid
    assert type(pickle.loads(pickled)) is Careful
    pellucid.restore(layer)
    assert type(layer) is Careful
    assert runs_as(Careful) is Careful


def test_subclasses_are_explained_alike():
    class Terse(Depthwise):
        def extra_repr(self):
            return ""

    model, x = torch.nn.Sequential(Terse(3), Terse(3, 2), Careful(6), Quarter()), torch.randn(1, 3, 4, 4)
    macs = [4 * 4 * 9 * 3, 4 * 4 * 9 * 6]
    found = []
    for _ in range(2):
        report = quietly(model.eval(), x, runs=0)
        assert [row.macs for row in report.rows() if row.path in ("0", "1")] == macs
        found.append([(row.path, row.class_name, row.macs, row.flops) for row in report.rows()])
        pellucid.swap(model)
    assert found[0] == found[1]


# -- what is left -----------------------------------------------------------------------------------------------------


def subclass(base=torch.nn.LayerNorm, *beside, **own):
    return type("Own", (*beside, base), own)(3)


class Counting(type):
    pass


class Announced(torch.nn.LayerNorm):
    def __init_subclass__(cls):
        raise AssertionError("a class was made of this one")


class OwnNorm(torch.nn.LayerNorm):
    def forward(self, input):
        return super().forward(input) + 1


class OwnGRU(nn.GRU):
    pass


class Scale(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def replaced_forward():
    layer = torch.nn.LayerNorm(3)
    layer.forward = lambda x: x
    return layer


def with_attribute(name):
    layer = torch.nn.Dropout(0.3)
    setattr(layer, name, 7)
    return layer


DECIDING = {
    "forward": lambda self, input: input,
    "forward_as_torch": torch.nn.LayerNorm.forward,
    "__call__": torch.nn.LayerNorm.__call__,
    "__new__": staticmethod(lambda kind, *_: object.__new__(kind)),
    "__getattr__": torch.nn.LayerNorm.__getattr__,
    "__setattr__": torch.nn.LayerNorm.__setattr__,
    "__setstate__": torch.nn.LayerNorm.__setstate__,
    "__slots__": ("more",),
    "_load_from_state_dict": torch.nn.LayerNorm._load_from_state_dict,
    "eps": property(lambda self: 1e-3, lambda self, value: None),
    "helper": lambda self: None,
    "made": classmethod(lambda cls: None),
    "Config": type("Config", (), {}),
    "formula": 3,
    "added": (),
    "_ran": "c",
    "centred": False,
}


@pytest.mark.parametrize("name", DECIDING)
def test_a_subclass_with_code_of_its_own_is_left(name):
    for layer in (
        subclass(**{name: DECIDING[name]}),
        type("Child", (type(subclass(**{name: DECIDING[name]})),), {})(3),  # which inherits it
        subclass(torch.nn.LayerNorm, type("Mixin", (), {name: DECIDING[name]})),
    ):
        kind = type(layer)
        (left,) = pellucid.swap(layer).left
        assert left.reason == "a subclass of torch.nn.LayerNorm, whose own code decides what it does"
        assert type(layer) is kind
        assert not has_twin(layer)
        assert twin_of(layer) is None


def test_attributes_that_pellucid_has_no_use_for_stay():
    layer = subclass(note={"a": 1}, _version=2, __constants__=["note"], _get_name=lambda self: "Mine")
    assert pellucid.swap(layer).left == ()
    assert isinstance(layer, nn.LayerNorm)
    assert (layer.note, layer._version, str(layer)[:5]) == ({"a": 1}, 2, "Mine(")


def test_no_class_is_made_of_one_that_watches():
    for layer in (Announced(3), Counting("Own", (torch.nn.LayerNorm,), {})(3)):
        kind = type(layer)
        (left,) = pellucid.swap(layer).left
        assert "whose own code" in left.reason
        assert type(layer) is kind


def test_a_method_that_a_subclass_sets_on_its_objects_is_told():
    class Sets(torch.nn.LayerNorm):
        def __init__(self):
            super().__init__(3)
            self.forward = lambda x: x

    class Needs(torch.nn.Dropout):
        def __init__(self):
            super().__init__()
            self.seed = 4

    for layer, reason in ((Sets(), "its method forward was replaced"), (Needs(), "'seed', set on the object")):
        kind = type(layer)
        (left,) = pellucid.swap(layer).left
        assert reason in left.reason
        assert type(layer) is kind


LEFT = {
    "a subclass of torch.nn.LayerNorm": lambda: OwnNorm(3),
    "a subclass of pellucid.nn.GRU": lambda: OwnGRU(3, 3),
    "pellucid has no layer of its own": lambda: torch.nn.PReLU(3),
    "not a layer of torch.nn": Scale,
    "no shape yet": lambda: torch.nn.LazyBatchNorm1d(),
    "TorchScript": lambda: torch.jit.trace(torch.nn.LayerNorm(3), torch.ones(2, 3)),
    "method forward was replaced": replaced_forward,
    "'seed', set on the object": lambda: with_attribute("seed"),
    "'formula', set on the object": lambda: with_attribute("formula"),
}


@pytest.mark.parametrize(("reason", "make"), LEFT.items(), ids=LEFT)
def test_what_is_left_and_why(reason, make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = make()
    model = torch.nn.Sequential(torch.nn.LayerNorm(3), layer)
    kind, before = type(layer), held(layer)
    report = pellucid.swap(model)
    assert [r.paths for r in report.replaced] == [("0",)]
    (left,) = report.left
    assert left.paths == ("1",)
    assert reason in left.reason
    assert type(layer) is kind
    assert held(layer) == before


BEYOND = {
    "padding='causal'": lambda: nn.Conv1d(2, 2, 3, padding="causal"),
    "padding='same' with stride=(2,)": lambda: nn.Conv1d(2, 2, 3, stride=2, padding="same"),
    "padding='same'": lambda: nn.ConvTranspose2d(2, 2, 3, padding="same"),
    "padding_mode='circular'": lambda: nn.ConvTranspose1d(2, 2, 3, padding_mode="circular"),
    "seed=5": lambda: nn.Dropout(seed=5),
    "generator=": lambda: nn.Dropout2d(generator=torch.Generator()),
    "torch.nn has no such layer": lambda: nn.DropPath(0.1),
    "a subclass of pellucid.nn.GRU": lambda: OwnGRU(3, 3),
}


@pytest.mark.parametrize(("reason", "make"), BEYOND.items(), ids=BEYOND)
def test_restore_leaves_what_torch_does_not_have(reason, make):
    model = torch.nn.Sequential(make(), nn.Conv1d(2, 2, 3, padding="same"), nn.Dropout(), torch.nn.Linear(2, 2))
    kind = type(model[0])
    report = pellucid.restore(model)
    assert [r.paths for r in report.replaced] == [("1",), ("2",)]
    assert type(model[1]) is torch.nn.Conv1d
    (left,) = report.left
    assert reason in left.reason
    assert type(model[0]) is kind


def test_layers_made_as_pellucids_become_torchs():
    torch.manual_seed(0)
    layer, x = nn.LSTM(3, 4, bidirectional=True).double(), torch.randn(5, 2, 3).double()
    expected = first(layer(x))
    fresh = torch.nn.LSTM(3, 4, bidirectional=True).double()
    pellucid.restore(layer)
    assert type(layer) is torch.nn.LSTM
    assert vars(layer).keys() == vars(fresh).keys()
    torch.testing.assert_close(first(layer(x)), expected)


def test_a_module_that_holds_its_own_parent_is_no_trap():
    model = tagger()
    model.norm.parent = model
    assert {path for layer in pellucid.swap(model).replaced for path in layer.paths} == {*PATHS, "head.2"}


# -- only -------------------------------------------------------------------------------------------------------------

ONLY = [
    (torch.nn.LSTM, {"rnn"}),
    (nn.LSTM, {"rnn"}),
    (torch.nn.modules.batchnorm._BatchNorm, {"parts.batch"}),
    ("parts", {"parts.batch", "parts.drop"}),
    ("convolutions.1", {"convolutions.1"}),
    ("*.1", {"convolutions.1"}),
    ("head.2", {"norm"}),  # the second place of the shared one
    (lambda path, layer: getattr(layer, "bias", None) is not None, PATHS - {"parts.drop", "output"}),
    ([torch.nn.LSTM, "parts.drop"], {"rnn", "parts.drop"}),
    ([], set()),
]


@pytest.mark.parametrize(("only", "wanted"), ONLY)
def test_only(only, wanted):
    model = tagger()
    report = pellucid.swap(model, only=only)
    assert {layer.paths[0] for layer in report.replaced} == wanted
    assert {left.paths[0] for left in report.left if left.reason == "only= leaves it out"} == PATHS - wanted
    assert type(model.rnn) is (nn.LSTM if "rnn" in wanted else torch.nn.LSTM)


def test_only_a_module_of_the_model():
    model = tagger()
    report = pellucid.swap(model, only=[model.parts, model.rnn])
    assert {layer.paths[0] for layer in report.replaced} == {"parts.batch", "parts.drop", "rnn"}


def test_what_cannot_be_meant_is_refused():
    model = tagger()
    with pytest.raises(ValueError, match=r"'encodr' fits no module.*convolutions\.0"):
        pellucid.swap(model, only=["norm", "encodr"])
    with pytest.raises(TypeError, match="not 7"):
        pellucid.swap(model, only=[7])
    with pytest.raises(TypeError, match="not 7"):
        pellucid.swap(model, only=7)
    with pytest.raises(TypeError, match=r"swap: a model .*Model\(\)"):
        pellucid.swap(Tagger)
    with pytest.raises(TypeError, match="restore: a model"):
        pellucid.restore(None)
    assert type(model.norm) is torch.nn.LayerNorm


# -- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_swapped_model_is_restored_by_itself(copied):
    model = tagger()
    original = classes(model)
    pellucid.swap(model)
    train(model, torch.optim.SGD(model.parameters(), 0.1))
    twin = copied(model)
    expected = model.eval()(ids())
    torch.testing.assert_close(twin.eval()(ids()), expected)
    pellucid.restore(twin)
    assert classes(twin) == original
    assert type(model.rnn) is nn.LSTM
    torch.testing.assert_close(twin(ids()), expected)
    assert twin.output.weight is twin.embedding.weight
    fresh = tagger().eval()
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(fresh(ids()), twin(ids()))


def test_a_state_dict_of_either_kind_is_loaded():
    model, other = tagger(), tagger()
    pellucid.swap(model)
    train(other, torch.optim.SGD(other.parameters(), 0.1))
    model.load_state_dict(other.state_dict())
    pellucid.restore(model)
    assert torch.equal(model.eval()(ids()), other.eval()(ids()))


def test_a_compiled_model_notices():
    model = tagger().eval()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected = compiled(ids())
        report = pellucid.swap(compiled)
        assert ("_orig_mod.rnn",) in [layer.paths for layer in report.replaced]
        torch.testing.assert_close(compiled(ids()), expected)
        assert type(model.rnn) is nn.LSTM
        pellucid.restore(model)
        torch.testing.assert_close(compiled(ids()), expected)


# -- verification -----------------------------------------------------------------------------------------------------


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
    with pytest.raises(IndexError):
        pellucid.swap(model, verify=ids() + 20)
    assert type(model.norm) is torch.nn.LayerNorm
    assert model.training


def test_a_mode_in_which_the_model_fails_is_said():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    check = pellucid.swap(model, verify=torch.randn(1, 3)).verification
    assert check is not None
    assert check.modes == ("eval",)
    assert "more than 1 value per channel" in check.notes[0]
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


# -- memory formats ---------------------------------------------------------------------------------------------------


class Pictures(torch.nn.Module):
    """A small network; one that flattens by ``view`` cannot do with channels last."""

    def __init__(self, flatten: str = "reshape") -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.depthwise = torch.nn.Conv2d(4, 4, 3, groups=4)
        self.output = torch.nn.Linear(64, 2)
        self.flatten = flatten

    def forward(self, x):
        features = self.depthwise(self.norm(self.first(x)).relu())
        return self.output(getattr(features, self.flatten)(len(x), -1))


CONVOLUTIONS = (("first",), ("depthwise",))
LAST = torch.channels_last


def pictures(flatten: str = "reshape") -> torch.nn.Module:
    torch.manual_seed(0)
    return Pictures(flatten).double()


def picture() -> torch.Tensor:
    return torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def formats_of(model):
    return [getattr(module, "memory_format", None) for module in (model.first, model.depthwise)]


def test_convolutions_work_in_channels_last():
    model, x = pictures(), picture()
    expected = model(x)
    strides = [p.stride() for p in model.parameters()]
    report = pellucid.swap(model, memory_format=LAST)
    torch.testing.assert_close(model(x), expected)
    assert model.norm(model.first(x)).is_contiguous(memory_format=LAST)
    assert formats_of(model) == [LAST, LAST]
    assert [p.stride() for p in model.parameters()] == strides
    assert report.formatted == Formatted("channels_last", CONVOLUTIONS, True)
    assert "2 convolutions work in channels_last." in str(report)
    assert report.verification is None
    assert formats_of(copy.deepcopy(model)) == formats_of(pickle.loads(pickle.dumps(model))) == [LAST, LAST]
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), model(x))


def test_a_format_is_verified_and_measured():
    model, x = pictures(), picture()
    report = pellucid.swap(model, verify=x, memory_format=LAST)
    check, formatted = report.verification, report.formatted
    assert check is not None
    assert formatted is not None
    assert check.modes == ("eval", "train")
    assert max(check.outputs, check.gradients or 0) < 1e-12
    assert check.after_ms == formatted.with_ms
    assert formatted.factor == (formatted.without_ms or 0) / check.after_ms > 0
    assert formats_of(model) == [LAST, LAST]
    for text in (str(report), report.markdown()):
        assert re.search(
            r"2 convolutions work in channels_last: [\d.]+ ms with it, [\d.]+ ms without, [\d.]+× as", text
        )
    assert json.loads(report.json())["formatted"]["factor"] == formatted.factor


@pytest.mark.parametrize(("gain", "kept"), [(0, True), (1e9, False)])
def test_the_fastest_format_is_kept_where_it_gains(monkeypatch, gain, kept):
    monkeypatch.setattr(formats, "GAIN", gain)
    model = pictures()
    report = pellucid.swap(model, verify=picture(), memory_format="fastest")
    check, formatted = report.verification, report.formatted
    assert check is not None
    assert formatted is not None
    assert formats_of(model) == ([LAST, LAST] if kept else [None, None])
    assert formatted.kept is kept
    assert check.after_ms == (formatted.with_ms if kept else formatted.without_ms)
    assert formatted.reason == (None if kept else "it is kept from 1e+09× as fast on")
    said = "2 convolutions work in" if kept else "2 convolutions could work in channels_last, but do not:"
    assert said in str(report)


@pytest.mark.parametrize(("slow", "kept"), [(None, True), (LAST, False)])
def test_the_times_decide(slow, kept):
    model = pictures()

    def wait(module, args):
        time.sleep(0.005 * (getattr(module, "memory_format", None) is slow))

    model.first.register_forward_pre_hook(wait)
    formatted = pellucid.swap(model, verify=picture(), memory_format="fastest").formatted
    assert formatted is not None
    assert formatted.kept is kept
    assert (formatted.factor or 0) > formats.GAIN if kept else (formatted.factor or 0) < 1


def test_a_view_of_what_stands_otherwise_is_told():
    model = pictures("view")
    original = classes(model)
    report = pellucid.swap(model, verify=picture(), memory_format="fastest")
    formatted = report.formatted
    assert formatted is not None
    assert not formatted.kept
    assert formatted.factor is None
    assert re.search(
        r"with it the model fails in eval mode.*view size is not compatible.*\.reshape", formatted.reason or ""
    )
    assert "2 convolutions could work in channels_last, but do not: with it" in " ".join(str(report).split())
    assert formats_of(model) == [None, None]
    assert type(model.first) is nn.Conv2d
    pellucid.restore(model)
    with pytest.raises(
        pellucid.VerificationError,
        match=r"convolutions in channels_last the model fails in eval mode.*view size.*torch.nn's.*\.reshape.*fastest",
    ):
        pellucid.swap(model, verify=picture(), memory_format=LAST)
    assert classes(model) == original
    assert not hasattr(model.first, "memory_format")


def test_restore_takes_the_format_away():
    model, x = pictures(), picture()
    before, expected = held(model.first), model(x)
    pellucid.swap(model, memory_format=LAST)
    model(x)
    report = pellucid.restore(model)
    assert held(model.first) == before
    assert torch.equal(model(x), expected)
    assert report.formatted == Formatted("channels_last", CONVOLUTIONS, False)
    assert "2 convolutions no longer work in channels_last." in report.summary
    assert "channels_last" not in str(pellucid.restore(model))
    layer = nn.Conv2d(3, 4, 3, padding="same", stride=2)  # which torch.nn lacks
    layer.memory_format = LAST
    assert pellucid.restore(layer).replaced == ()
    assert layer.memory_format is None


def test_a_second_swap_changes_the_format_alone(monkeypatch):
    model, x = pictures(), picture()
    pellucid.swap(model)
    assert pellucid.swap(model, verify=x, memory_format=LAST).replaced == ()
    assert formats_of(model) == [LAST, LAST]
    assert pellucid.swap(model, verify=x).formatted is None
    assert formats_of(model) == [LAST, LAST]
    monkeypatch.setattr(formats, "GAIN", 1e9)
    pellucid.swap(model, verify=x, memory_format="fastest")
    assert formats_of(model) == [None, None]
    model.first.memory_format = LAST  # and only this one

    def refuses(module, args):
        assert module.memory_format is None

    model.depthwise.register_forward_pre_hook(refuses)
    with pytest.raises(pellucid.VerificationError, match=r"(?s)fails in eval mode.*The model is as it was\."):
        pellucid.swap(model, verify=x, memory_format=LAST)
    assert formats_of(model) == [LAST, None]


def test_only_decides_on_the_format_and_own_classes_keep_theirs():
    class Own(nn.Conv2d):
        pass

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), Own(4, 4, 1), nn.ConvPool2d(4, 4, 1))
    plain = lambda path, layer: type(layer) is torch.nn.Conv2d  # noqa: E731
    report = pellucid.swap(model, only=plain, memory_format=LAST)
    assert report.formatted is not None
    assert report.formatted.paths == (("0",),)
    assert "1 convolution works in channels_last." in str(report)
    report = pellucid.swap(model, memory_format=LAST)
    assert report.formatted is not None
    assert report.formatted.paths == (("0",), ("1",), ("3.convolution",))
    assert model[2].memory_format is None


def test_volumes_have_a_format_of_their_own():
    model = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 1), torch.nn.Flatten(0, 1), torch.nn.Conv2d(4, 3, 1))
    report = pellucid.swap(model, memory_format=LAST)
    assert (model[0].memory_format, model[2].memory_format) == (None, LAST)
    report = pellucid.swap(model, memory_format=torch.channels_last_3d)
    assert report.formatted is not None
    assert report.formatted.name == "channels_last_3d"
    assert model[0].memory_format is torch.channels_last_3d
    assert pellucid.restore(model).formatted == Formatted("channels_last and channels_last_3d", (("0",), ("2",)), False)


def test_a_model_without_pictures_says_so():
    for wish, verify in ((LAST, None), ("fastest", ids())):
        report = pellucid.swap(tagger(), verify=verify, memory_format=wish)
        assert report.formatted is not None
        assert not report.formatted.kept
        assert "No convolution works in channels_last: none of the layers" in str(report)


@pytest.mark.parametrize("wish", ["channels_last", torch.contiguous_format, 3])
def test_what_is_no_format_is_refused(wish):
    model = pictures()
    with pytest.raises(ValueError, match=rf"memory_format= takes torch.channels_last, .*not .*{wish}"):
        pellucid.swap(model, memory_format=wish)
    with pytest.raises(ValueError, match="'fastest' runs the model to measure it: give verify="):
        pellucid.swap(model, memory_format="fastest")
    assert type(model.first) is torch.nn.Conv2d


def test_a_format_goes_with_fusions():
    model, x = pictures().eval(), picture()
    expected = model(x)
    report = pellucid.swap(model, verify=x, fuse=True, memory_format=LAST)
    assert report.fused
    assert report.verification is not None
    torch.testing.assert_close(model(x), expected)
    assert formats_of(model) == [LAST, LAST]


# -- the report and the command ---------------------------------------------------------------------------------------


def test_the_report_says_it_in_words(monkeypatch):
    report = pellucid.swap(tagger(dtype=torch.float32), verify=ids(), only=["norm", "rnn"])
    text, markdown, found = str(report), report.markdown(), json.loads(report.json())
    for words in (
        "2 layers are pellucid's now, 8 left as they were.",
        "torch.nn.LayerNorm",
        "norm = head.2",
        "only= leaves it out",
        "pellucid has no layer of its own for it",
        "float32 may differ by 1e-04",
        "Forward + backward:",
        "× as fast",
    ):
        assert words in text, words
        assert words in markdown, words
    assert "| torch.nn.LSTM | pellucid.nn.LSTM | 1 | rnn |" in markdown
    assert found["replaced"][1] == {"paths": ["rnn"], "before": "torch.nn.LSTM", "after": "pellucid.nn.LSTM"}
    assert found["verification"]["factor"] > 0
    assert max(map(len, text.splitlines())) <= 120
    one = pellucid.swap(torch.nn.LayerNorm(3))
    assert "1 layer is pellucid's now, 0 left as they were." in str(one)
    assert "(the model itself)" in str(one)


MODELS = """
import torch

class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Embedding(50, 4), torch.nn.LayerNorm(4), torch.nn.Dropout(0.1))

net = Net()

class Picture(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU())

class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(4)

    def forward(self, x, mask):
        return torch.where(mask, self.norm(x), 0)
"""


def test_the_command(tmp_path):
    file = tmp_path / "swapped.py"
    file.write_text(MODELS)
    result = run("swap", f"{file}:Net", "--input", "2x3:int64:50", "--report", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert "2 layers are pellucid's now" in result.output
    assert "Forward + backward" in result.output
    assert json.loads((tmp_path / "r.json").read_text())["verification"]["modes"] == ["eval", "train"]
    result = run("swap", f"{file}:net", "--only", "1", "--report", tmp_path / "r.md")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "r.md").read_text().startswith("# pellucid swap\n\n1 layer is pellucid's now")
    result = run("swap", f"{file}:Two", "--input", "x=2x3x4", "--input", "mask=2x3x1:bool", "--eval")
    assert result.exit_code == 0, result.output
    assert "Forward: " in result.output
    for wish, said in (("channels_last", "1 convolution works in channels_last"), ("fastest", "ms without")):
        result = run("swap", f"{file}:Picture", "--input", "1x1x4x4", "--memory-format", wish)
        assert result.exit_code == 0, result.output
        assert said in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("swapped.py:Net", "--input", "2x"), "write a shape, 1x3x224x224"),
        (("swapped.py:Net", "--input", "2x3:int65"), "4x60:int64"),
        (("swapped.py:Net", "--input", "2x3:int64:0"), "below a number from 1"),
        (("swapped.py:Two", "--input", "x=2x3x4", "--input", "2x3x1"), "a name to all"),
        (("swapped.py:Net", "--only", "encoder"), "fits no module"),
        (("swapped.py:Picture", "--memory-format", "fastest"), "--input on the command line"),
        (("swapped.py:Picture", "--memory-format", "nhwc"), "is not one of 'channels_last'"),
        (("swapped.py:torch",), "name a torch.nn.Module"),
        (("swapped.py:Nut",), "has no 'Nut'"),
        (("missing.py:Net",), "no such file"),
        (("Net",), "FILE.PY:MODEL"),
    ],
)
def test_the_command_says_what_cannot_be_used(tmp_path, monkeypatch, arguments, words):
    (tmp_path / "swapped.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    result = run("swap", *arguments)
    assert result.exit_code in (1, 2)
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output
