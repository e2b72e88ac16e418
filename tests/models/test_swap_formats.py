"""Convolutions of a swapped model work on channels that stand last, where that is asked for or faster."""

from __future__ import annotations

import copy
import json
import pickle
import re
import time

import pytest
import torch

import pellucid
from pellucid import nn
from pellucid.models import formats
from pellucid.models.report import Formatted
from swapping import LAST, classes, held, ids, picture, tagger

pytestmark = pytest.mark.usefixtures("few_samples")


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


def pictures(flatten: str = "reshape") -> torch.nn.Module:
    torch.manual_seed(0)
    return Pictures(flatten).double()


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
