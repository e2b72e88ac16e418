"""Explanations of whole models: what is recorded, counted, shown, and that the model is left as it was."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.cells import cell_len
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

import pellucid
from explaining import quietly
from formulas import leaky
from pages import NARROW, WIDE, complaints_of_axe, opened
from pellucid.explanation import ModelReport, Report, load
from pellucid.explanation.command import command, parse_numbers
from pellucid.explanation.model.terminal import seconds, short
from pellucid.explanation.page.model.document import chosen

HOSTILE = ["<script>alert(1)</script>", "a|b`c*d_e", "]]>\"'&amp;", "\u202eabc", "\x1b[31m", "名"]


class Convolutional(nn.Module):
    """A small network with BatchNorm, a residual sum, a shared activation and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.mix = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.conv(x)))
        x = self.pool(x + self.act(self.mix(x)))
        return self.head(self.drop(x.mean((2, 3))))


class Packed(nn.Module):
    """Reads sequences of different lengths; padding is never seen."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 6, **options)

    def forward(self, x: Any) -> Any:
        return self.rnn(x)


@dataclass
class Result:
    logits: torch.Tensor
    others: dict[str, Any]


class Branching(nn.Module):
    """Data-dependent control flow, keyword inputs, a dataclass, and numbers that change in the run."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)
        self.positive, self.negative = nn.Linear(4, 2), nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(1))
        self.calls = 0

    def forward(self, x: torch.Tensor, *, steps: int, scale: torch.Tensor) -> Result:
        self.calls += 1
        self.seen += 1
        self.last = x
        h = x.new_zeros(x.shape[0], 4)
        for _ in range(steps):
            h = self.cell(x * scale, h)
        branch = self.positive if float(x.sum()) > 0 else self.negative
        return Result(branch(h), {"h": h, "noise": [torch.rand(2), random.random(), np.random.rand()]})


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.norm = nn.LayerNorm(8)
        self.again = self.norm
        self.decode = nn.Linear(8, 50, bias=False)
        self.decode.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.decode(self.again(self.norm(self.embed(ids))))


def flops(model: nn.Module, *inputs: Any, **options: Any) -> int:
    """What torch's own counter says: products only, two a multiply-accumulate; it misses attention's kernel on CPUs."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(*inputs, **options)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def convolutional() -> ModelReport:
    torch.manual_seed(0)
    report = quietly(Convolutional(), torch.randn(2, 3, 8, 8))
    assert isinstance(report, ModelReport)
    return report


# -- what is recorded -----------------------------------------------------------------------------------------------


def test_layers_shapes_and_axes(convolutional):
    root = convolutional.row("")
    assert [row.path for row in convolutional.rows()][1:] == "conv norm act mix pool drop head unused".split()
    assert root.inputs[0].text == "batch 2 × channels 3 × height 8 × width 8"  # told by the convolution that reads it
    assert convolutional.row("pool").outputs[0].text == "batch 2 × channels 8 × height 4 × width 4"
    assert convolutional.row("pool").inputs[0].axes == ("batch", "channels", "height", "width")  # through a sum
    assert convolutional.row("head").outputs[0].text == "batch 2 × features 5"
    assert convolutional.row("drop").inputs[0].text == "batch 2 × features 8"  # told by what comes after
    assert convolutional.row("act").calls == 2
    weight, bias = convolutional.row("conv").weights
    assert (weight.name, weight.shape_text, weight.count, weight.trainable) == ("weight", "8×3×3×3", 216, True)
    assert bias.shape == (8,)
    assert all(row.seconds > 0 for row in convolutional.rows() if row.calls)
    assert root.seconds >= max(row.seconds for row in root.layers if row.calls)
    assert convolutional.row("unused").note == "never called in this run"
    assert any("unused.weight, unused.bias" in note for note in convolutional.notes)
    assert [row.path for row in convolutional.rows() if row.opens] == "conv norm mix pool drop".split()


def test_parameters_are_counted_once():
    model = Tied()
    report = quietly(model, torch.randint(50, (2, 7)))
    assert report.row("").parameters == sum(p.numel() for p in model.parameters()) == 50 * 8 + 16 + 3
    assert report.totals[0].count == report.row("").parameters
    decode = report.row("decode")
    assert decode.parameters == 0
    assert decode.weights[0].shared == "embed.weight"
    assert report.row("again").shared == "norm"
    assert report.row("norm").calls == 2
    assert report.row("embed").outputs[0].text == "2 × 7 × embedding 8"
    assert report.row("embed").inputs[0].text == "2 × 7 (int64)"
    assert any("decode.weight = embed.weight" in note for note in report.notes)
    fixed = next(total for total in report.totals if "requires_grad" in total.label)
    assert fixed.count == 3
    assert "frozen" in next(note for note in report.notes if "not used" in note)


def test_control_flow_keywords_and_structures():
    torch.manual_seed(0)
    model = Branching()
    report = quietly(model, torch.ones(2, 3), steps=3, scale=torch.tensor(2.0))
    cell = report.row("cell")
    assert cell.calls == 3
    assert [t.text for t in cell.inputs] == ["batch 2 × features 3", "batch 2 × features 4"]
    assert [t.name for t in report.row("").inputs] == ["x", "scale"]
    assert report.row("").inputs[1].text == "one number"
    assert [t.name for t in report.row("").outputs] == ["logits", "others.h", "others.noise[0]"]
    assert report.row("positive").calls == 1
    assert report.row("negative").calls == 0
    assert cell.macs == 3 * 2 * (3 * 4 * (3 + 4))
    assert quietly(model, -torch.ones(2, 3), steps=1, scale=torch.tensor(1.0)).row("negative").calls == 1


def test_layers_that_others_use_are_not_called_missing():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2).eval()
    report = quietly(model, torch.randn(3, 5, 16), src_key_padding_mask=torch.zeros(3, 5, dtype=torch.bool))
    assert report.row("layers.0.self_attn.out_proj").note.startswith("not called itself: layers.0.self_attn")
    assert not any("never" in note for note in report.notes)
    assert report.row("layers.1.self_attn").inputs[0].text == "batch 3 × time 5 × features 16"
    assert report.row("layers.1.linear1").calls == 1  # the fused path would not have called it
    assert report.row("").parameters == sum(p.numel() for p in model.parameters())


def test_layers_inside_a_list_and_with_many_shapes():
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts[0](x[:1]) + self.parts[0](x)

    report = quietly(Rows(), torch.randn(4, 3))
    assert report.row("parts").note == ""
    assert report.row("parts").macs == report.row("").macs == 5 * 9
    assert report.row("parts.0").note.startswith("called with 2 sets of shapes")
    assert report.row("parts.1").note == "never called in this run"


# -- the model is left as it was ------------------------------------------------------------------------------------


def state(model: nn.Module) -> dict[str, Any]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    tensors = {name: t.clone() for name, t in model.state_dict().items()}
    return {"hooks": hooks, "modes": modes, "tensors": tensors, "attributes": [list(vars(m)) for m in model.modules()]}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = one["tensors"].keys() == other["tensors"].keys() and all(
        torch.equal(t, other["tensors"][name]) for name, t in one["tensors"].items()
    )
    return tensors and all(one[key] == other[key] for key in ("hooks", "modes", "attributes"))


def test_the_model_is_left_as_it_was():
    torch.manual_seed(1)
    model = nn.Sequential(Convolutional(), nn.Dropout(0.5))
    model[0].norm.eval()
    x = torch.randn(4, 3, 8, 8)
    kept, before, drawn = x.clone(), state(model), torch.get_rng_state()
    report = quietly(model, x, runs=2)
    report.layer("0.conv")
    assert same(state(model), before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(x, kept)
    branching = Branching()
    before, python, numpy = state(branching), random.getstate(), np.random.get_state()[1].copy()
    quietly(branching, torch.ones(1, 3), steps=2, scale=torch.tensor(1.0))
    assert same(state(branching), before)
    assert branching.calls == 0
    assert not hasattr(branching, "last")
    assert random.getstate() == python
    assert (np.random.get_state()[1] == numpy).all()
    assert torch.backends.mha.get_fastpath_enabled()


def test_gradients_only_where_they_are_wanted():
    class Asks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = (x**2).sum()
            return torch.autograd.grad(y, x)[0]

    x = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="grad"):
        quietly(Asks(), x)
    assert quietly(Asks(), x, grad=True).row("").outputs[0].shape == (3,)
    assert x.grad is None


def test_an_error_says_in_which_layer():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 2)))
    before = state(model)
    with pytest.raises(RuntimeError) as caught:
        quietly(model, torch.ones(2, 3))
    assert caught.value.__notes__ == ['pellucid.explain: this was raised in Linear "1.1"']
    assert same(state(model), before)


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"needs something to read: explain\(model, x\)"):
        quietly(Convolutional())
    with pytest.raises(TypeError, match=r"ModuleList has no forward"):
        quietly(nn.ModuleList([nn.Linear(2, 3)]), torch.ones(2, 2))
    with pytest.raises(TypeError, match=r"must be Tensor, not str") as caught:
        quietly(nn.Sequential(nn.Linear(2, 3)), "a sentence")
    assert "the model was given the text itself" in caught.value.__notes__[-1]
    with pytest.raises(TypeError, match=r"'0.weight' of Sequential has no shape yet.*Run the model once"):
        quietly(nn.Sequential(nn.LazyLinear(3)), torch.ones(2, 2))
    with pytest.raises(ValueError, match="runs is how often"):
        quietly(nn.Sequential(nn.ReLU()), torch.ones(2), runs=-1)
    report = quietly(nn.Sequential(nn.ReLU()), torch.ones(2), runs=0)
    assert report.row("").seconds is None
    assert not any("Time" in sentence for sentence in report.counted)


# -- counts ---------------------------------------------------------------------------------------------------------


def test_products_equal_torchs_counter(convolutional):
    torch.manual_seed(0)
    assert 2 * convolutional.row("").macs == flops(Convolutional(), torch.randn(2, 3, 8, 8))
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
    x = torch.randn(3, 5, 16)
    for mode in (True, False):
        encoder.train(mode)
        assert 2 * quietly(encoder, x).row("").macs == flops(encoder, x)
    spread = nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2, bias=False), nn.Conv2d(4, 6, 3, groups=2, dilation=2))
    x = torch.randn(2, 3, 7, 7)
    assert 2 * quietly(spread, x).row("").macs == flops(spread, x)


class Experts(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 16, 32, dtype=dtype))

    def forward(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return torch._grouped_mm(x, self.weight, offs=ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_experts(dtype):
    """Every row is multiplied with the matrix of its own expert."""
    model, x, ends = Experts(dtype), torch.randn(10, 16, dtype=dtype), torch.tensor([2, 7, 10], dtype=torch.int32)
    try:
        model(x, ends)
    except (AttributeError, RuntimeError) as error:
        pytest.skip(f"not of this torch: {error}")
    assert quietly(model, x, ends).row("").macs == 10 * 16 * 32


def test_torch_does_not_write_of_what_is_not_counted():
    """Of an operation that needs real tensors: explain says that it is not counted, which is enough."""
    logger, silent = logging.getLogger("torch._subclasses.fake_tensor"), []

    @torch.library.custom_op("pellucid_tests::real_only", mutates_args=())
    def real_only(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @real_only.register_fake
    def without_storage(x: torch.Tensor) -> torch.Tensor:
        silent.append(logger.disabled)
        raise RuntimeError("not without numbers")

    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return real_only(x)

    assert any("real_only" in sentence for sentence in quietly(Odd(), torch.ones(8)).notes)
    assert silent
    assert all(silent)
    assert not logger.disabled


def test_attention_that_drops_its_weights_is_counted():
    report = quietly(nn.TransformerEncoderLayer(4, 2, 8), torch.randn(3, 1, 4))
    assert not any("without a rule" in sentence for sentence in report.notes)
    # Three biases and the one behind; both factors scaled; softmax and the rows that are masked altogether; dropout.
    assert report.row("self_attn").other_flops == 36 + 12 + 2 * 12 + (5 + 1) * 18 + 2 * 18


class Attention(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v) @ v.mT


def test_attention_without_layers_of_its_own():
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
    report = quietly(Attention(), q, k, v)
    assert 2 * report.row("").macs == flops(Attention(), q, k, v)
    assert report.row("").macs == 2 * 4 * 6 * 9 * (8 + 8) + 2 * 4 * 6 * 8 * 9
    assert report.row("").other_flops == 2 * 4 * 6 * 9 * 6  # scale, largest, difference, exponential, sum, quotient


def recurrent_macs(kind: str, inputs: int, hidden: int, proj: int, levels: int, directions: int) -> int:
    """Multiply-accumulates of one step of one sequence, by hand."""
    gates, state = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], proj or hidden
    total = 0
    for level in range(levels):
        read = inputs if level == 0 else directions * state
        total += directions * (gates * hidden * (read + state) + hidden * proj)
    return total


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {}),
        ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        ("LSTM", {"proj_size": 3, "num_layers": 2}),
        ("GRU", {"num_layers": 2}),
        ("GRU", {"bidirectional": True}),
        ("RNN", {"nonlinearity": "relu"}),
        ("RNN", {"num_layers": 3, "bias": False}),
    ],
)
@pytest.mark.parametrize("ours", [False, True])
def test_recurrent_layers_are_counted_where_torch_counts_nothing(kind, options, ours):
    layer = getattr(pellucid.nn if ours else nn, kind)(5, 7, **options)
    model = nn.Sequential(layer)
    levels, directions = options.get("num_layers", 1), 2 if options.get("bidirectional") else 1
    row_macs = recurrent_macs(kind, 5, 7, options.get("proj_size", 0), levels, directions)
    batch = quietly(model, torch.randn(4, 6, 5)).row("0")
    assert batch.macs == 4 * 6 * row_macs
    assert quietly(model, torch.randn(6, 5)).row("0").macs == 6 * row_macs  # unbatched
    packed = quietly(model, pack_sequence([torch.randn(n, 5) for n in (6, 3, 1)])).row("0")
    assert packed.macs == 10 * row_macs
    assert packed.other_flops * 24 == batch.other_flops * 10
    assert "3 sequences" in packed.inputs[0].text
    assert batch.parameters == sum(p.numel() for p in layer.parameters())
    if kind == "RNN":  # a sum of two products, the bias that the formula has a place for, the activation
        assert batch.other_flops == 4 * 6 * 7 * levels * 3


def test_recurrent_layers_with_lengths_and_cells_of_ones_own():
    class Lengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.own = pellucid.nn.GRU(3, 4), leaky(4, 2)

        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            y, _ = self.rnn(x, lengths=lengths)
            return self.own(y, lengths=lengths)[0]

    report = quietly(Lengths(), torch.randn(5, 2, 3), torch.tensor([5, 2]))
    assert report.row("rnn").macs == 7 * 3 * 4 * (3 + 4)
    assert report.row("own").macs == 7 * 2 * (4 + 2)
    assert report.row("own").inputs[0].text == "time 5 × batch 2 × features 4"
    assert report.row("own").opens
    assert isinstance(report.layer("own"), Report)


def test_norms_dropout_and_pooling():
    def other(layer: nn.Module, *shape: int, train: bool = True) -> int:
        row = quietly(nn.Sequential(layer.train(train)), torch.randn(*shape)).row("0")
        assert row.macs == 0
        return row.other_flops

    n = 2 * 6 * 5 * 5
    variance = 4 * n  # mean, difference, square, sum
    # x − μ, · 1/√(σ² + ε), · γ, + β
    assert variance + 4 * n <= other(nn.BatchNorm2d(6), 2, 6, 5, 5) <= variance + 4 * n + 20 * 6
    assert 4 * n <= other(nn.BatchNorm2d(6), 2, 6, 5, 5, train=False) <= 4 * n + 20 * 6
    assert other(nn.LayerNorm(8), 3, 8) == 8 * 24 + 2 * 3  # and ε and a root for each row
    assert other(pellucid.nn.LayerNorm(8), 3, 8) == other(nn.LayerNorm(8), 3, 8)
    assert other(nn.Dropout(0.3), 4, 10) == other(pellucid.nn.Dropout(0.3), 4, 10) > 0
    for dropout in (nn.Dropout(0.3), pellucid.nn.Dropout(0.3), pellucid.nn.LockedDropout(0.3)):
        assert other(dropout, 4, 2, 10, train=False) == 0
    assert other(nn.MaxPool2d(2), 2, 3, 8, 8) == other(pellucid.nn.MaxPool2d(2), 2, 3, 8, 8) == 2 * 3 * 8 * 8
    assert other(nn.AdaptiveAvgPool2d(1), 2, 3, 8, 8) == 2 * 3 * 8 * 8


def test_bytes_are_the_least():
    row = quietly(nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4)).row("0")
    assert row.bytes_least == 4 * (2 * 4 + 3 * 4 + 3 + 2 * 3)
    assert (row.macs, row.other_flops, row.flops) == (24, 6, 54)
    looked_up = quietly(nn.Sequential(nn.Embedding(1000, 8)), torch.tensor([[1, 1, 7]])).row("0")
    assert looked_up.bytes_least == 3 * 8 + 4 * (2 * 8 + 3 * 8)  # two different rows of the table


def test_pellucids_own_layers_and_totals():
    torch.manual_seed(0)
    p = pellucid.nn
    model = nn.Sequential(
        p.Conv2d(3, 4, 3), p.BatchNorm2d(4), p.MaxPool2d(2), p.Dropout2d(0.2), nn.Flatten(), p.SwiGLU(36, 5)
    )
    x = torch.randn(2, 3, 8, 8)
    report, theirs = quietly(model, x), nn.Conv2d(3, 4, 3)
    assert 2 * report.row("0").macs == flops(theirs, x)
    assert report.row("5").macs == 2 * 2 * 36 * 5
    assert report.row("").macs == sum(row.macs for row in report.row("").layers)
    assert report.row("").other_flops == sum(row.other_flops for row in report.row("").layers)
    assert report.row("0").backend
    assert report.row("4").outputs[0].text == "batch 2 × features 36"
    assert not any("not used" in note for note in report.notes)


# -- single layers --------------------------------------------------------------------------------------------------


def test_layers_open_with_the_tensors_that_reached_them():
    torch.manual_seed(0)
    model = Convolutional()
    x = torch.randn(2, 3, 8, 8)
    report = quietly(model, x)
    norm = report.layer("norm")
    assert isinstance(norm, Report)
    with torch.no_grad():
        expected = model.conv(x)
    shown = norm.steps[1].values["x"]
    assert shown.shape == (2, 8, 8, 8)
    assert np.allclose(shown.numbers, expected.numpy()[:2, :8, :8, :8])
    assert norm.check.agrees
    assert norm.notes[0] == "These are the tensors that reached norm in the model, call 1 of 1."
    assert [other.lang for other in norm.translations()] == ["en", "zh"]
    assert np.array_equal(norm.translations()[1].steps[1].values["x"].numbers, shown.numbers)
    part = report.layer("head")
    assert isinstance(part, ModelReport)
    assert "y = x Wᵀ + b" in part.text()
    assert [other.root.path for other in part.translations()] == ["head", "head"]
    with pytest.raises(KeyError, match=r"no layer 'conf'.*Did you mean 'conv'"):
        report.layer("conf")
    with pytest.raises(ValueError, match="was called 1 times, so there is no call 2"):
        report.layer("norm", call=2)
    with torch.no_grad():
        model.conv.weight.add_(1)
    for ask in (lambda: report.layer("norm"), report.translations):
        with pytest.raises(RuntimeError, match="have changed since"):
            ask()
    again = quietly(model, x)
    shown = again.layer("norm").text()
    model.eval()
    model.norm.eps = 1.0
    assert again.layer("norm").text() == shown
    assert not model.training
    assert model.norm.eps == 1.0


def test_every_call_of_a_shared_layer_opens():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.rnn = nn.Dropout(0.5), nn.GRU(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, h = self.rnn(self.drop(x))
            return self.rnn(input=self.drop(y), hx=h)[0]

    torch.manual_seed(3)
    model, x = Twice(), torch.randn(4, 2, 3)
    state = torch.get_rng_state()
    report = quietly(model, x)
    torch.rand(5)  # what is drawn later does not matter
    torch.set_rng_state(state)
    with torch.no_grad():
        y, _ = model.rnn(model.drop(x))
        second = model.drop(y)
    first, later = report.layer("rnn"), report.layer("rnn", call=2)
    for shown, expected in ((later, second),):
        name = next(key for key in shown.steps[0].values if key.startswith("x"))
        assert np.allclose(shown.steps[0].values[name].numbers, expected[0, :1].numpy())
    assert first.check.agrees
    assert later.check.agrees
    assert "call 2 of 2" in later.notes[0]


def test_packed_sequences_open():
    model = nn.Sequential(Packed(bidirectional=True))
    report = quietly(model, pack_sequence([torch.randn(n, 4) for n in (3, 1)]))
    assert report.row("0.rnn").inputs[0].text == "steps 4 × features 4, packed: 2 sequences"
    assert report.layer("0.rnn").check.agrees


# -- how it is shown ------------------------------------------------------------------------------------------------


def test_text(convolutional):
    text = convolutional.text(100)
    assert all(len(line) <= 100 for line in text.splitlines())
    for words in ("Convolutional: a model of 8 layers", "├─conv: Conv2d ▸", "weight 8×3×3×3, bias 8", "never called"):
        assert words in text
    assert "2×: batch 2 × channels 8 × height 8 × width 8 →" in text
    assert len(convolutional.text(60).splitlines()) > len(text.splitlines())
    flat = convolutional.text(100, depth=0)
    assert "Conv2d" not in flat
    assert "Shown to depth 0 of 1." in flat
    deep = quietly(nn.Sequential(*[nn.Sequential(nn.ReLU(), nn.ReLU()) for _ in range(40)]), torch.ones(2))
    assert "Shown to depth 1 of 2." in deep.text()
    assert "depth" not in deep.text(depth=2)


def test_both_languages(convolutional):
    chinese = convolutional.translations()[1]
    assert chinese.lang == "zh"
    assert chinese.row("conv").outputs[0].text == "批 2 × 通道 8 × 高 8 × 宽 8"
    assert chinese.row("unused").note == "本次运行从未被调用"
    assert chinese.words.keys() == convolutional.words.keys()
    for one, other in zip(convolutional.rows(), chinese.rows(), strict=True):
        assert (one.path, one.macs, one.parameters, one.seconds) == (
            other.path,
            other.macs,
            other.parameters,
            other.seconds,
        )
    assert "参数" in chinese.text()
    with pytest.raises(ValueError, match="lang="):
        quietly(Convolutional(), torch.ones(1, 3, 4, 4), lang="fr")


def test_chinese_punctuation(convolutional, tmp_path):
    report = quietly(Tied(), torch.zeros(2, 7, dtype=torch.int64), lang="zh")
    assert report.row("embed").inputs[0].text == "2 × 7（int64）"
    assert "权重：frozen 3（固定）" in report.text(140)
    attention = quietly(nn.TransformerEncoderLayer(4, 2, 4), torch.zeros(3, 2, 4), lang="zh").text(140)
    assert "query 时间 3 × 批 2 × 特征 4；key 时间 3" in attention
    chinese = convolutional.translations()[1]
    for text in (chinese.text(140), chinese.save(tmp_path / "x.md").read_text(encoding="utf-8")):
        assert "weight 8×3×3×3、bias 8" in text
    assert "2 次：批 2 ×" in chinese.text(140)


def test_files(convolutional, tmp_path):
    for ending in (".txt", ".md", ".json"):
        path = convolutional.save(tmp_path / f"x{ending}")
        assert "Convolutional" in path.read_text(encoding="utf-8")
    assert load(tmp_path / "x.json") == convolutional
    assert "| conv: Conv2d ▸ | batch 2 × channels 3" in (tmp_path / "x.md").read_text().replace("\N{EM SPACE}", "")
    with pytest.raises(ValueError, match=r"\.html, \.md, \.json, \.txt"):
        convolutional.save(tmp_path / "x.svg")
    with pytest.raises(RuntimeError, match="read from a file"):
        load(tmp_path / "x.json").layer("conv")
    assert convolutional._repr_mimebundle_().keys() == {"text/plain"}


def hostile_model() -> nn.Module:
    class Odd(nn.Module):
        def extra_repr(self) -> str:
            return HOSTILE[0] + "\n" + HOSTILE[2]

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {HOSTILE[0]: x}

    class Holder(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return [layer(x) for layer in self.children()]

    Odd.__name__ = HOSTILE[0]
    holder = Holder()
    for name in HOSTILE:
        holder.add_module(name.replace(".", ""), Odd())
    return holder


def test_hostile_names_stay_text(tmp_path):
    report = quietly(hostile_model(), torch.ones(2))
    page = report.save(tmp_path / "x.html").read_text(encoding="utf-8")
    assert HOSTILE[0] not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert HOSTILE[0] not in report.save(tmp_path / "x.md").read_text(encoding="utf-8").replace("\n```\n", "")
    assert "\x1b" not in report.text()


def test_numbers_are_written_short():
    assert [
        short(n) for n in (0, 999, 1000, 9_408, 999_600, 118_013_952, 1_820_000_000)
    ] == "0|999|1.00 K|9.41 K|1.00 M|118 M|1.82 G".split("|")
    assert [seconds(s) for s in (None, 2e-6, 1.5e-3, 0.999, 12.0)] == ["", "2 µs", "1.5 ms", "999 ms", "12 s"]


# -- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(convolutional, tmp_path_factory) -> Path:
    return convolutional.save(tmp_path_factory.mktemp("page") / "tree.html")


def test_page_is_a_tree(browser, tree, convolutional):
    with opened(browser, tree) as shown:
        names = [name.split(":")[0] for name in shown.locator("details.layer .name").all_inner_texts()]
        assert names == ["Convolutional", *(row.name for row in convolutional.rows()[1:])]
        assert "batch 2 × channels 3 × height 8 × width 8" in shown.inner_text("main")
        conv = shown.locator('details[data-path="conv"]')
        assert "weight 8×3×3×3" not in shown.inner_text("main")
        conv.locator("summary").first.focus()
        shown.keyboard.press("Enter")
        assert "weight 8×3×3×3" in shown.inner_text("main")
        conv.locator("details.full > summary").focus()
        shown.keyboard.press("Space")
        assert convolutional.layer("conv").check.text in conv.inner_text()
        shown.click('[data-tree="fold"]')
        assert shown.locator("details.layer[open]").count() == 1
        shown.click('[data-tree="open"]')
        assert shown.locator("details.layer[open]").count() == len(convolutional.rows())
        shown.click('[data-speak="zh"]')
        assert "批 2 × 通道 8 × 高 4 × 宽 4" in shown.inner_text("main")
        assert "batch" not in shown.locator("dl.facts").first.inner_text()


@pytest.mark.parametrize(("viewport", "theme"), [(WIDE, "light"), (NARROW, "dark")], ids=["wide", "narrow"])
def test_page_fits_and_is_accessible(browser, tree, viewport, theme):
    with opened(browser, tree, f"layer=drop&theme={theme}", viewport) as shown:
        assert shown.locator('details[data-path="drop"]').get_attribute("open") is not None
        shown.click('[data-tree="open"]')
        for details in shown.locator("details.full").all()[:2]:
            details.locator("summary").first.click()
        assert shown.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert complaints_of_axe(shown) == []


def test_page_of_a_large_model_opens_a_few_layers(tmp_path):
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout(0.1)) for _ in range(12)]
    report = quietly(nn.Sequential(*blocks), torch.randn(2, 4))
    assert [row.path for row in chosen(report.root)] == ["0.1", "0.2"]  # of each kind and form one
    page = report.save(tmp_path / "x.html").read_text(encoding="utf-8")
    assert page.count('<details class="full">') == 2
    assert "report.layer(&#x27;11.1&#x27;).show()" in page


# -- the command ----------------------------------------------------------------------------------------------------


MODELS = """
import torch
from rich.cells import cell_len
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.body = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
    def forward(self, x):
        return self.body(self.conv(x))

class Ids(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.rnn = nn.GRU(4, 3, batch_first=True)
    def forward(self, ids, scale):
        return self.rnn(self.table(ids) * scale)

def make():
    return Net(2)

ready = Net(5)
"""


@pytest.fixture
def models(tmp_path) -> Iterator[str]:
    file = tmp_path / "some_models.py"
    file.write_text(MODELS)
    return str(file)


def run(*arguments: str):
    return CliRunner().invoke(command, [*arguments, "--lang", "en"])


def test_command(models, tmp_path):
    result = run(f"{models}:Net", "--input", "1x3x9x9", "--width", "100", "--depth", "1")
    assert result.exit_code == 0, result.output
    assert "batch 1 × channels 4 × height 7 × width 7" in result.output
    assert "BatchNorm2d" not in result.output
    assert "weight 6×3×3×3" in run(f"{models}:Net", "--input", "1x3x9x9", "--width=100", "--seed", "1").output.replace(
        "weight 4×", "weight 6×"
    )
    for name, channels in (("make", 2), ("ready", 5)):
        assert f"weight {channels}×3×3×3" in run(f"{models}:{name}", "--input", "1x3x9x9").output
    evaluated = run(f"{models}:Net", "--input", "1x3x9x9", "--eval", "--runs", "3")
    assert "ran in eval mode" in evaluated.output
    assert "median of 3 forward runs" in " ".join(evaluated.output.split())
    layer = run(f"{models}:Ids", "--input", "2x7:10", "--input", "2x7x4", "--layer", "rnn")
    assert layer.exit_code == 0, layer.output
    assert "GRU: a recurrent layer" in layer.output
    files = [tmp_path / "x.json", tmp_path / "x.md"]
    saved = run(f"{models}:Net", "--input", "1x3x9x9", *(part for file in files for part in ("--save", str(file))))
    assert saved.output.splitlines() == [str(file) for file in files]
    assert isinstance(load(files[0]), ModelReport)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Net",), "needs something to read"),
        (("Nett", "--input", "1x3x9x9"), "its models Net, Ids"),
        (("Net", "--input", "1x3x9x9", "--layer", "bodi.0"), "Did you mean 'body.0'"),
        (("Net", "--input", "1x2x9x9"), 'raised in Conv2d "conv"'),
        (("Net", "--input", "1x3x9x9", "--depht", "1"), "takes no 'depht'"),
        (("Net", "--input", "1x3x9x9", "--save", "x.svg"), ".html, .md, .json, .txt"),
        (("Ids", "--input", "ids=2x5:10", "--input", "2x5x4"), "a name of its own to all"),
        (("Ids", "--input", "ids=2x5:10", "--input", "ids=2x5:10"), "a name of its own to all"),
        (("Ids", "--input", "idz=2x5:10", "--input", "scale=2x5x4"), "unexpected keyword argument 'idz'"),
    ],
)
def test_command_errors(models, arguments, words):
    result = run(f"{models}:{arguments[0]}", *arguments[1:])
    assert result.exit_code != 0
    assert words in " ".join(result.output.split())


def test_command_takes_inputs_by_name(models):
    result = run(f"{models}:Ids", "--input", "scale=2x5x4", "--input", "ids=2x5:10", "--layer", "rnn", "--lang", "en")
    assert result.exit_code == 0, result.output
    assert "GRU" in result.output
    result = run("rnn", "--input", "x=2x5x4")
    assert result.exit_code == 2
    assert "the inputs of rnn come in order" in result.output


def test_command_for_single_layers_knows_no_layers_inside():
    assert "names a layer of a model" in run("gru", "--layer", "x").output


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("width", [40, 60, 66, 80])
def test_the_tree_keeps_to_the_width(lang, width):
    model = nn.Sequential(nn.Sequential(nn.Linear(400, 300), nn.ReLU()))
    report = pellucid.explain(model, torch.randn(64, 400), show=False, lang=lang)
    text = report.text(width)
    assert all(cell_len(line) <= width for line in text.splitlines()), text
    assert "120,300" in text
    assert (f"{report.words['parameters']} 120,300" in text) == (width < 66)


def test_command_names_what_a_file_has(models):
    result = run(models)
    assert result.exit_code == 2
    assert f"which cell or model of it? Write {models}:Net; its cells are none, its models Net, Ids" in result.output


@pytest.mark.parametrize("given", ["2x7", "ids=2x7"])
def test_command_says_how_to_draw_rows_of_a_table(models, given):
    scale = "scale=2x7x4" if "=" in given else "2x7x4"
    result = run(f"{models}:Ids", "--input", given, "--input", scale)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert f"write --input {given}:1000" in result.output


def test_shapes_on_the_command_line():
    assert parse_numbers("2x3x4").shape == (2, 3, 4)
    assert torch.equal(parse_numbers("2x3", 1), parse_numbers("2x3", 1))
    whole = parse_numbers("5x100:7")
    assert whole.dtype == torch.int64
    assert (int(whole.min()), int(whole.max())) == (0, 6)
    assert parse_numbers("4:3").shape == (4,)
    assert parse_numbers("5x100:int32:7").dtype == torch.int32
    assert parse_numbers("2×3:bool").dtype == torch.bool
    assert parse_numbers("1,2").tolist() == [1, 2]


# -- real models ----------------------------------------------------------------------------------------------------


def transformer(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Build a small model of transformers by its configuration, with something to read."""
    t = pytest.importorskip("transformers")
    ids = torch.randint(0, 50, (2, 9))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    if name == "bert":
        return t.BertModel(t.BertConfig(vocab_size=50, **sizes)), (), {"input_ids": ids}
    if name == "gpt2":
        config = t.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16)
        return t.GPT2LMHeadModel(config), (ids,), {"use_cache": False}
    if name == "resnet":
        config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
        return t.ResNetModel(config), (torch.randn(2, 3, 32, 32),), {}
    if name == "convnext":
        config = t.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
        return t.ConvNextModel(config), (torch.randn(1, 3, 64, 64),), {}
    config = t.EncodecConfig(num_filters=4, hidden_size=16, upsampling_ratios=[4, 2], codebook_dim=16, codebook_size=32)
    return t.EncodecModel(config), (torch.randn(1, 1, 960),), {}


@pytest.mark.parametrize("name", ["bert", "gpt2", "resnet", "convnext", "encodec"])
def test_models_of_transformers(name, tmp_path):
    torch.manual_seed(0)
    model, inputs, options = transformer(name)
    model.eval()
    before = state(model)
    report = quietly(model, *inputs, **options)
    assert same(state(model), before)
    assert report.row("").parameters == sum(p.numel() for p in model.parameters())
    lstms = sum(row.macs for row in report.rows() if row.class_name == "LSTM")
    assert 2 * (report.row("").macs - lstms) == flops(model, *inputs, **options)
    assert (lstms > 0) == (name == "encodec")
    assert all(row.inputs or row.outputs for row in report.rows() if row.calls)
    assert {r.lang for r in report.translations()} == {"en", "zh"}
    opened = [row for row in report.rows() if row.opens]
    assert opened
    norms = [row for row in opened if "Norm" in row.class_name or row.class_name == "LSTM"]
    assert all(report.layer(row.path).check.agrees for row in norms[:2])
    assert report.text(100)
