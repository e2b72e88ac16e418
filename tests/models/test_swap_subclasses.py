"""Subclasses of torch.nn's layers that only build themselves otherwise compute by pellucid's classes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize

import pellucid
from explaining import quietly
from pellucid import nn
from pellucid.nn.swapped.exchange import has_twin, ours_of, runs_as, torchs_of, twin_of
from swapping import COPIES, LAST, first, held, picture

pytestmark = pytest.mark.usefixtures("few_samples")


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
