"""Layers computed as one after ``swap(model, fuse=True)``: the same numbers, nothing else changed, and undone."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F

import pellucid
from fusing import Body, Functional, Output, R, Residual, S, far, follows, kinds, picture, ready, results, twice
from pellucid.benchmark.zoo import ZOO
from pellucid.models import fusions, verification
from pellucid.nn.swapped import expression, fused
from pellucid.nn.swapped.exchange import kind_of
from recipe_commands import run
from swapping import saved

logging.getLogger("transformers").setLevel(logging.ERROR)


pytestmark = pytest.mark.usefixtures("few_samples")


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
