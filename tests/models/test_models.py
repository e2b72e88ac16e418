"""Real models after `pellucid.swap`: the same outputs and gradients, and after `pellucid.restore` the same models."""

from __future__ import annotations

import logging

import pytest
import torch

import pellucid
from explaining import quietly
from pellucid.benchmark.zoo import ZOO, ZooModel
from pellucid.models import verification
from pellucid.models.structures import arguments, mapped
from pellucid.models.verification import SwapTrial
from pellucid.nn.swapped.exchange import kind_of

logging.getLogger("transformers").setLevel(logging.ERROR)

# How many layers pellucid has of its own for, at the least: convolutions, norms, dropouts, poolings, recurrent layers.
REPLACED = {
    "ResNet-18": 20,
    "ConvNeXt": 5,
    "MobileNetV2": 100,
    "EfficientNet-B0": 50,
    "RegNet": 30,
    "BERT": 10,
    "GPT-2": 10,
    "Whisper": 9,
    "Wav2Vec2": 15,
    "EnCodec": 20,
    "Deep Speech 2 (GRU)": 6,
    "CRNN (LSTM)": 7,
    "forecaster (LSTM)": 3,
    "forecaster (GRU)": 3,
}


def results(model: torch.nn.Module, inputs: dict[str, torch.Tensor], training: bool):
    return SwapTrial(model, (), arguments(inputs)).results(training)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("known", [pytest.param(known, id=known.name) for known in ZOO])
def test_a_real_model_computes_the_same(known: ZooModel, monkeypatch):
    if not known.is_here:
        pytest.skip(f"{known.needs} is not installed")
    monkeypatch.setattr(verification, "TIMED_SECONDS", 0)
    monkeypatch.setattr(verification, "SAMPLES", 1)
    model, inputs = known.make(tiny=True)
    classes = {path: kind_of(module) for path, module in model.named_modules()}
    state, values = list(model.state_dict()), dict(model.named_parameters())
    report = pellucid.swap(model, verify=inputs)  # float32
    assert report.verification is not None
    assert report.verification.modes == ("eval", "train")
    assert len(report.replaced) >= REPLACED[known.name]
    pellucid.restore(model)
    model.double()
    inputs = mapped(lambda x: x.double() if x.is_floating_point() else x, inputs)
    before = [results(model, inputs, training) for training in (False, True)]
    check = pellucid.swap(model, verify=inputs).verification
    assert check is not None
    assert max(check.outputs, check.gradients or 0) < 1e-10
    assert list(model.state_dict()) == state
    assert all(value is values[name] for name, value in model.named_parameters())
    pellucid.restore(model)
    assert {path: kind_of(module) for path, module in model.named_modules()} == classes
    for training, expected in zip((False, True), before, strict=True):
        found = results(model, inputs, training)
        for ours, theirs in zip(found.outputs + found.gradients, expected.outputs + expected.gradients, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("known", [pytest.param(known, id=known.name) for known in ZOO])
def test_a_real_model_is_explained(known: ZooModel):
    """As it stands and swapped, with the same counts."""
    if not known.is_here:
        pytest.skip(f"{known.needs} is not installed")
    model, inputs = known.make(tiny=True)
    counts = []
    for _ in range(2):
        report = quietly(model.eval(), **inputs, runs=0)
        counts.append([(row.path, row.parameters, row.macs) for row in report.rows()])
        pellucid.swap(model)
    assert counts[0] == counts[1]
    assert report.row("").parameters == sum(p.numel() for p in model.parameters())
    assert report.row("").macs > 0


@pytest.mark.filterwarnings("ignore")
def test_layers_that_only_build_themselves_otherwise_are_replaced_in_a_real_model():
    (known,) = (known for known in ZOO if known.name == "EfficientNet-B0")
    if not known.is_here:
        pytest.skip(f"{known.needs} is not installed")
    model, _ = known.make(tiny=True)
    depthwise = [m for m in model.modules() if type(m).__name__ == "EfficientNetDepthwiseConv2d"]
    (kind,) = {type(m) for m in depthwise}
    report = pellucid.swap(model)
    assert len(depthwise) == sum(layer.before.endswith(".EfficientNetDepthwiseConv2d") for layer in report.replaced) > 0
    assert all(isinstance(m, kind) and isinstance(m, pellucid.nn.Conv2d) for m in depthwise)
    assert not any("whose own code" in left.reason for left in report.left)
    pellucid.restore(model)
    assert all(type(m) is kind for m in depthwise)


def test_the_zoo_is_whole():
    assert REPLACED.keys() == {known.name for known in ZOO}
