"""Explanations of convolutions, poolings and dropouts: the windows and masks that they show are the layer's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from explaining import quietly
from pellucid import nn
from pellucid.explanation.report import Picture, Report

# -- windows --------------------------------------------------------------------------------------------------------


def drawn(report: Report, step: int = 0) -> list[str]:
    picture = next(part for part in report.steps[step].parts if isinstance(part, Picture))
    marks = {"touched": "#", "greatest": "^", "padding touched": "o", "padding": ".", "free": "-"}
    return ["".join(marks[cell] for cell in row) for row in picture.blocks[0]]


def test_dilation_is_drawn():
    report = quietly(nn.Conv2d(1, 1, 3, dilation=2), torch.randn(1, 1, 6, 7))
    assert drawn(report) == ["#-#-#--", "-------", "#-#-#--", "-------", "#-#-#--", "-------"]
    assert drawn(report, 1) == ["-#-#-#-", "-------", "-#-#-#-", "-------", "-#-#-#-", "-------"]


def test_padding_is_drawn():
    report = quietly(nn.Conv2d(1, 1, 3, padding=1, stride=2), torch.randn(1, 1, 4, 4))
    assert drawn(report) == ["ooo..", "o##--", "o##--", ".----", ".----"]
    causal = quietly(nn.Conv1d(1, 1, 3, dilation=2, padding="causal"), torch.randn(1, 1, 5))
    assert drawn(causal) == ["o.o.#----"]


def test_a_text_convolution_spans_all_features_and_moves_along_the_text():
    report = quietly("conv1d", "春眠不觉晓", in_channels=3, kernel_size=2)
    assert drawn(report) == ["##---"] * 3
    assert drawn(report, 1) == ["-##--"] * 3
    picture = next(part for part in report.steps[0].parts if isinstance(part, Picture))
    assert picture.columns == tuple("春眠不觉晓")
    assert len(drawn(quietly(nn.Conv1d(4, 2, 2, groups=2), torch.randn(1, 4, 6)))) == 4
    assert quietly("conv1d", "春眠不觉晓").symbol("weight").shape == (1, 3, 3)  # a character is more than a number
    assert quietly("conv1d", "春眠不觉晓", in_channels=2).symbol("weight").shape == (1, 2, 3)


def test_a_text_convolution_shows_the_window_that_wins():
    layer = nn.TextConv(2, 1, (1, 2), bias=False)
    layer.weight_1.data, layer.weight_2.data = torch.ones(1, 1, 2), torch.ones(1, 2, 2)
    x = torch.tensor([[[3.0, 3.0], [0.0, 1.0], [2.0, 2.0], [2.0, 2.0]], [[9.0, 9.0]] * 4])
    report = quietly(layer, x, tokens=["a", "b", "c", "d"])
    assert [drawn(report, step) for step in (0, 1)] == [["#---"] * 2, ["--##"] * 2]
    assert any("in window 1 of 4: 6 is all" in part for part in report.steps[0].parts if isinstance(part, str))
    assert "There it reads “c d”." in report.steps[1].parts
    assert report.steps[-1].values["y = cat(found, −1)"].numbers.tolist() == [[6, 8]]
    short = quietly(layer, x, lengths=[1, 0])
    assert [drawn(short, step) for step in (0, 1)] == [["#---"] * 2, ["##--"] * 2]
    assert quietly(layer, x, lengths=[0, 4]).check.agrees


def test_a_tcn_shows_which_steps_reach_the_last_output():
    report = quietly(nn.TCN(2, [3, 3], 2), torch.randn(1, 2, 9))
    assert drawn(report) == ["--------#", "------#-#", "----#-#-#", "---######", "--#######"]
    assert any("sees 7 steps" in part for part in report.steps[0].parts if isinstance(part, str))
    last = report.steps[-1].values["x = activation(z + shortcut(x))"]
    assert last.shape == (3, 9)
    layer = nn.TCN(2, [3] * 4, dropout=0.5).train()
    report = quietly(layer, torch.randn(2, 9), steps=1)
    assert layer.training
    assert report.check.agrees
    assert report.steps[-1].parts == ("Blocks 2 to 4 go on in the same way, each with its own weights and its own "
                                      "dilation.",)  # fmt: skip


@pytest.mark.parametrize(
    "layer",
    [nn.TextConv(4, 2, (2,)), nn.TCN(4, [3]), nn.SeparableConv1d(4, 3, 2), nn.ConvPool1d(4, 3, 2), nn.Conv1d(4, 3, 2)],
    ids=lambda layer: type(layer).__name__,
)
def test_these_read_a_sentence_too(layer):
    report = quietly(layer, "春眠不觉晓")
    assert next(p for s in report.steps for p in s.parts if isinstance(p, Picture)).columns == tuple("春眠不觉晓")
    assert report.check.agrees


def test_a_window_s_numbers():
    layer = nn.Conv2d(2, 3, 2).double()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    values = quietly(layer, x).steps[1].values
    window = x[0, :, 0:2, 1:3]
    assert np.array_equal(values["window(x)"].numbers, window.numpy())
    assert np.array_equal(values["weight"].numbers, layer.weight[0].detach().numpy())
    result = values["y = sum(products, window.axes) + bias"].numbers
    assert result == pytest.approx(layer(x)[0, 0, 0, 1].item(), abs=1e-14)


def test_the_window_of_the_greatest_feature_is_marked():
    layer = nn.ConvPool2d(1, 1, 2, padding=1, bias=False)
    x = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 3.0]]])
    with torch.no_grad():
        layer.convolution.weight.fill_(1.0)
    report = quietly(layer, x)
    assert drawn(report) == ["ooo.", "o^#-", "o##-"]  # of equal features, the first
    assert drawn(report, 1) == [".ooo", "-^^o", "-^^o"]
    assert "It is the feature at (1, 2); that it was there the output does not tell." in report.steps[1].parts
    assert report.check.agrees


@pytest.mark.parametrize(("activation", "rises"), [(F.relu, True), (None, True), (F.silu, False)])
def test_only_an_activation_that_never_falls_may_come_after_the_maximum(activation, rises):
    idea = quietly(nn.ConvPool1d(1, 1, 2, activation=activation), torch.randn(1, 1, 6)).idea
    assert any("never falls" in part for part in idea) == rises


def test_the_greatest_entry_is_marked():
    report = quietly("maxpool", [[1.0, 5.0, 2.0, 0.0], [3.0, 4.0, 8.0, 1.0]])
    assert drawn(report) == ["#^--", "##--"]
    assert drawn(report, 1) == ["--##", "--^#"]
    assert "Of 1, 5, 3, 4 the greatest is 5." in report.steps[0].parts


# -- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_dropout_doubles_what_stays(seed: int):
    report = quietly("dropout", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], p=0.5, seed=seed)
    values = report.steps[0].values
    y = next(value.numbers for name, value in values.items() if name.startswith("y ="))
    draws = values["draws"].numbers
    assert np.array_equal(y, np.where(draws < 0.5, 0, 2 * np.arange(1, 7)))
    crowd = report.steps[1]
    assert "2^6 = 64" in crowd.parts[0]
    assert crowd.values["mean of 1,000 masks"].numbers == pytest.approx(np.arange(1, 7), rel=0.15)
    assert np.array_equal(report.steps[2].values["y"].numbers, np.arange(1, 7))


def test_dropout_shows_the_mask_of_the_next_call():
    layer = nn.Dropout(0.5)
    x = torch.arange(1.0, 21.0)
    report = quietly(layer, x)
    shown = next(value.numbers for name, value in report.steps[0].values.items() if name.startswith("y ="))
    assert np.array_equal(layer(x).numpy(), shown)
    assert any("drops nothing" in note for note in quietly(layer.eval(), x).notes)
