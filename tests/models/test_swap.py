"""Models whose layers become pellucid's and torch.nn's again: nothing else changes, and what differs is said."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize

import pellucid
from cases import ALL, Case
from pellucid import nn
from pellucid.nn.swapped.exchange import has_twin, twin_of
from recipe_commands import run
from swapping import COPIES, PATHS, Tagger, classes, first, held, ids, tagger, train

SHARED = [  # torch.nn has it, with these arguments
    pytest.param(case, id=case.name)
    for case in ALL
    if case.reference is None and not case.own and not case.call and hasattr(torch.nn, case.layer)
]

pytestmark = pytest.mark.usefixtures("few_samples")


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
        (("swapped.py:Net", "--input", "2x3:int65"), "4x60:int32:5000"),
        (("swapped.py:Net", "--input", "2x3:int6:50"), "4x60:int32:5000"),
        (("swapped.py:Net", "--input", "2x3:int64:5:6"), "4x60:int32:5000"),
        (("swapped.py:Net", "--input", "2x3:int64:0"), "below a number from 1"),
        (("swapped.py:Two", "--input", "x=2x3x4", "--input", "2x3x1"), "a name of its own to all"),
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
