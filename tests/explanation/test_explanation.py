"""Explanations: the numbers are the layer's own, the counts are right, the texts are whole in every language."""

from __future__ import annotations

import ast
import builtins
import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.cells import cell_len
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import pellucid
from cases import COMPONENTS, Case
from explaining import SENTENCE, noisy, quietly
from formulas import leaky
from pellucid import nn
from pellucid.explanation import examples
from pellucid.explanation.cost import count
from pellucid.explanation.lines import Lines
from pellucid.explanation.page.exhibits import exhibits_of
from pellucid.explanation.paper import Paper, letter
from pellucid.explanation.report import Picture, Report
from pellucid.explanation.subject import characters
from pellucid.explanation.trace import Tracer
from pellucid.nn import cells

# -- the formula on paper -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "paper"),
    [
        ("torch.tanh(x @ U + h @ W + b)", "tanh(x U + h W + b)"),
        ("x @ (U * m)", "x (U ⊙ m)"),
        ("(x * m) @ U", "(x ⊙ m) U"),
        ("a - (b - c)", "a − (b − c)"),
        ("a - b - c", "a − b − c"),
        ("a / (b * c)", "a / (b ⊙ c)"),
        ("-(a + b) * c", "−(a + b) ⊙ c"),
        ("(1 - z) * n + z * h", "(1 − z) ⊙ n + z ⊙ h"),
        ("2 * x * tau", "2 · x · τ"),
        ("x ** 2 + y ** -1 + z ** 0.5", "x² + y⁻¹ + √(z)"),
        ("F.layer_norm(v, (4,), gamma, beta)", "layer_norm(v, γ, β)"),
        ("torch.sigmoid(x).chunk(4, -1)", "split₄(σ(x))"),
        ("W.abs() @ V.T", "|W| Vᵀ"),
        ("(x - mean).square().mean(dim=-1, keepdim=True)", "mean((x − mean)²)"),
        ("x.sum(axes) / n", "sum(x, axes) / n"),
        ("torch.where(mask >= p, x, 0.0)", "where(mask ≥ p, x, 0.0)"),
        ("(x - mu) * torch.rsqrt(v + eps)", "(x − μ) ⊙ (1 / √(v + ε))"),
        ("x.exp().log1p()", "log1p(exp(x))"),
        ("helper(x, k=2)", "helper(x, k=2)"),
        ("z[:, 0:3]", "z[:, 0:3]"),
        ("a if flag else b", "a if flag else b"),
        ("(a if p else b) if q else c if r else d", "(a if p else b) if q else c if r else d"),
    ],
)
def test_paper(code: str, paper: str):
    printer = Paper(modules={"torch", "F"}, numbers={"tau", "eps"})
    assert str(printer.expression(ast.parse(code, mode="eval").body)) == paper


@pytest.mark.parametrize(
    ("cell", "lines"),
    [
        (cells.rnn, ["hₜ = tanh(xₜ U + hₜ₋₁ W + b)"]),
        (
            cells.lstm,
            [
                "iₜ, fₜ, gₜ, oₜ = split₄(xₜ U + hₜ₋₁ W + b)",
                "cₜ = σ(fₜ) ⊙ cₜ₋₁ + σ(iₜ) ⊙ tanh(gₜ)",
                "hₜ = σ(oₜ) ⊙ tanh(cₜ)",
            ],
        ),
        (leaky, ["hₜ = hₜ₋₁ + (tanh(xₜ U + hₜ₋₁ W + b) − hₜ₋₁) / τ"]),
    ],
)
def test_formula_as_on_paper(cell, lines):
    assert list(quietly(cell).formula) == lines


# -- the tracer -----------------------------------------------------------------------------------------------------

SCALE = 3.0


def halves(x):
    return x / 2


def make_branching(shift):
    def branching(x, h, *, n=2, deep=True):
        """Loops, branches, a closure, a helper, a global and an in-place change."""
        z = x * SCALE + shift
        z += 1.0
        for k in range(n):
            z = z + h * k
        if deep:
            first, second = torch.tanh(z), halves(z)
        else:
            first = second = z
        return first - second, h

    return branching


@pytest.mark.parametrize("deep", [True, False])
def test_tracer_runs_the_function_itself(deep: bool):
    function = make_branching(shift=0.25)
    x, h = torch.linspace(-1, 1, 4), torch.linspace(0, 1, 4)
    trace = Tracer(Lines(function))(x.clone(), h, n=3, deep=deep)
    expected = function(x.clone(), h, n=3, deep=deep)
    for got, wanted in zip(trace.result, expected, strict=True):
        assert torch.equal(got, wanted)
    values = [(r.site.name, r.value) for r in trace.records]
    z = x * SCALE + 0.25
    assert values[0][0] is None
    assert torch.equal(values[0][1], x * SCALE)  # the part comes before the whole
    assert values[1][0] == "z"
    assert torch.equal(values[1][1], z)
    assert torch.equal(values[2][1], z + 1)  # recorded after +=, and not changed by it afterwards
    loops = [value for name, value in values if name == "z"][2:]
    assert len(loops) == 3
    assert torch.equal(loops[-1], z + 1 + h * 0 + h * 1 + h * 2)
    assert {"first", "second"} <= {name for name, _ in values}


def test_tracer_keeps_an_authors_own_error_in_place():
    def wrong(x):
        return x @ torch.ones(3)

    with pytest.raises(RuntimeError) as caught:
        Tracer(Lines(wrong))(torch.ones(2))
    line = caught.traceback[-1].lineno + 1
    assert caught.traceback[-1].path == Path(__file__)
    assert "torch.ones(3)" in Path(__file__).read_text().splitlines()[line - 1]


def test_without_source_the_layer_is_still_explained():
    space = {"torch": torch, "pellucid": pellucid}
    exec("def unseen(x, h, *, U, W):\n    return torch.tanh(x @ U + h @ W)", space)
    report = quietly(pellucid.cell(space["unseen"]), torch.ones(2, 3), hidden_size=2)
    assert report.formula == ()
    assert report.check.agrees
    assert any("no source of unseen" in note for note in report.notes)
    assert list(report.steps[0].values) == ["x₁", "h₀", "h₁"]


def test_large_values_are_kept_in_part_with_their_shape():
    layer = nn.LSTM(300, 2000)
    values = quietly(layer, torch.randn(1, 300)).steps[0].values
    assert values["x₁ U"].shape == (1, 8000)
    assert values["x₁ U"].numbers.shape == (1, 16)


# -- every layer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "lang", "training", "width"),
    [
        pytest.param(case, ("en", "zh")[i % 2], i % 4 < 2, (80, 60)[i % 2], id=case.name)
        for i, case in enumerate(COMPONENTS)
    ],
)
def test_every_case_is_explained(case: Case, lang: str, training: bool, width: int):
    layer = case.build().train(training)
    x = case.input()
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    random = torch.get_rng_state()
    report = quietly(layer, x, lang=lang, steps=1, **case.call)
    assert report.check.agrees, report.check.text
    assert not report.cost.uncounted
    assert sum(p.numel() for p in layer.parameters()) in [total.count for total in report.totals]
    assert all(row.reasons for row in report.symbols), "a symbol without a reason"
    text = report.text(width)
    assert all(cell_len(line) <= width for line in text.splitlines() if not line.startswith("    "))
    assert layer.training is training
    assert torch.equal(torch.get_rng_state(), random), "the random numbers of the program went on"
    for name, value in layer.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("name", examples.names())
def test_every_name_is_explained(name: str):
    report = quietly(name, lang="zh", steps=1)
    assert report.check.agrees
    assert report.title
    assert report.idea or name == "localresponsenorm"


@pytest.mark.parametrize("name", examples.known_cells())
def test_every_cell_is_explained(name: str):
    torch.manual_seed(0)
    options = {"proj": 2} if name == "lstm_projected" else {}
    layer = getattr(cells, name)(3, 4, 2, bidirectional=True, **options).double()
    report = quietly(layer, torch.randn(5, 2, 3, dtype=torch.float64))
    assert report.check.difference < 1e-12
    solution = layer.solution()
    for symbol in layer.cell.source.parameters:
        row = report.symbol(letter(symbol.name))
        assert row.shape == solution.symbols[symbol.name].shape
        assert row.trainable
        assert row.reasons


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_name_in_a_formula_is_explained(lang):
    """A symbol with its shape, a line's own result, or a name that a sentence says something of."""
    for name in examples.names():
        report = quietly(name, lang=lang)
        tree = ast.parse("def f():\n " + "\n ".join(report.code))
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        read = {node.id for node in names} - own - {"torch", "F", "math", "pellucid"} - set(dir(builtins))
        shown = {row.name for row in report.symbols} | set(re.findall(r"\w+", " ".join(report.notation)))
        missing = set(map(letter, read)) - shown - {"weights", "biases", "windows", "pools", "blocks"}
        assert not missing, (name, missing)


def test_the_check_finds_a_layer_that_is_not_its_formula():
    class Wrong(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x) + 0.01

    check = quietly(Wrong(4), torch.randn(3, 4)).check
    assert not check.agrees
    assert check.difference == pytest.approx(0.01, rel=1e-3)
    assert "DIFFER" in check.text
    x = torch.randn(3, 4)
    x[1, 2] = float("nan")
    assert quietly(nn.LayerNorm(4), x).check.agrees  # both have it in the same places


@pytest.mark.parametrize(
    ("layer", "shape", "ran"),
    [
        (leaky(3, 4), (5, 1, 3), "stepwise"),
        (nn.GRU(3, 4), (5, 1, 3), "stepwise"),
        (nn.Conv1d(2, 3, 3), (1, 2, 6), "torch"),
        (nn.MaxPool2d(2), (1, 1, 4, 4), "torch"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_check_names_what_ran_the_layer(layer: nn.Module, shape: tuple[int, ...], ran: str):
    x = torch.randn(shape)
    with pellucid.backend("naive"):
        layer(x)
    with pellucid.backend("stepwise"):
        assert quietly(layer, x).check.text.endswith(f"The layer ran on the backend “{ran}”.")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_dtype(dtype):
    for layer, shape in ((nn.LSTM(4, 3), (5, 4)), (nn.Conv1d(2, 3, 2), (1, 2, 6)), (nn.LayerNorm(4), (3, 4))):
        report = quietly(layer.to(dtype), torch.randn(shape).to(dtype))
        assert report.check.agrees
        assert str(dtype).removeprefix("torch.") in report.cost.scope
        assert report.text(80)


# -- recurrent layers ---------------------------------------------------------------------------------------------


def test_the_article_s_numbers():
    report = quietly("rnn", SENTENCE, input_size=256, hidden_size=128)
    shapes = {row.name: row.shape_text for row in report.symbols}
    assert shapes == {"x": "1×256", "h": "1×128", "U": "256×128", "W": "128×128", "b": "1×128"}
    assert [total.count for total in report.totals] == [49_280, 49_408]
    assert [step.title for step in report.steps] == [
        *(f"Step {t} of 5: {character}" for t, character in enumerate(SENTENCE, 1)),
        "After the last step",
    ]
    reasons = " ".join(report.symbol("U").reasons)
    assert "x is 1×256 and stands left of U in x @ U, so U has 256 rows." in reasons
    assert "x @ U is added to h @ W" in reasons
    assert "the result becomes the next h, which is 1×128, so U has 128 columns." in reasons
    assert "weight_ih_l0, 128×256" in reasons
    assert any("random vector of 256 numbers (seed 0)" in note for note in report.notes)


def test_worked_steps_are_the_layer_s():
    torch.manual_seed(0)
    layer = cells.rnn(3, 4).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    output, _ = layer(x)
    U, W, b = layer.symbol_values().values()
    h = torch.zeros(1, 4, dtype=torch.float64)
    report = quietly(layer, x)
    for t, step in enumerate(report.steps[:-1], 1):
        low = [str(n).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")) for n in (t, t - 1)]
        assert list(step.values) == [
            f"x{low[0]}",
            f"h{low[1]}",
            f"x{low[0]} U",
            f"h{low[1]} W",
            f"x{low[0]} U + h{low[1]} W + b",
            f"h{low[0]} = tanh(x{low[0]} U + h{low[1]} W + b)",
        ]
        values = [torch.from_numpy(v.numbers) for v in step.values.values()]
        new = torch.tanh(x[t - 1 : t] @ U + h @ W + b)
        for got, wanted in zip(values, (x[t - 1 : t], h, x[t - 1 : t] @ U, h @ W, None, new), strict=True):
            assert wanted is None or torch.allclose(got, wanted, atol=1e-14)
        h = new
        assert torch.allclose(h[0], output[t - 1], atol=1e-14)


def test_bias_conventions_of_other_layers():
    assert [t.count for t in quietly(nn.LSTM(256, 128), torch.zeros(1, 256)).totals] == [197_120, 197_632]
    assert [t.count for t in quietly(nn.GRU(256, 128), torch.zeros(1, 256)).totals] == [148_224, 147_840]
    two = quietly(nn.RNN(3, 4, 2, bidirectional=True), torch.zeros(1, 3))
    torchs = sum(p.numel() for p in torch.nn.RNN(3, 4, 2, bidirectional=True).parameters())
    assert [t.count for t in two.totals] == [torchs - 4 * 4, torchs]
    assert quietly(nn.RNN(3, 4, bias=False), torch.zeros(1, 3)).totals[0].count == 28
    assert len(quietly(leaky(256, 128), torch.zeros(1, 256)).totals) == 1


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM, nn.RNN], ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", ["unbatched", "batched", "batch_first", "lengths", "packed", "state", "bidirectional"])
def test_inputs_of_a_recurrent_layer(layer, kind: str):
    torch.manual_seed(0)
    options = {"batch_first": kind == "batch_first", "bidirectional": kind == "bidirectional"}
    made = layer(3, 4, 2, **options).double().eval()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    call = {}
    if kind == "unbatched":
        x = x[:, 0]
    elif kind == "batch_first":
        x = x.transpose(0, 1)
    elif kind == "lengths":
        call = {"lengths": [3, 5]}
    elif kind == "packed":
        x = pack_padded_sequence(x, torch.tensor([3, 5]), enforce_sorted=False)
    elif kind == "state":
        h = torch.randn(2, 2, 4, dtype=torch.float64)
        call = {"hx": (h, h) if layer is nn.LSTM else h}
    report = quietly(made, x, **call)
    assert report.check.difference < 1e-12
    assert len(report.steps) == (4 if kind in ("lengths", "packed") else 6)
    first = report.steps[0].values["h₀"].numbers
    assert np.any(first != 0) == (kind == "state")


@pytest.mark.parametrize("layer", [nn.RNNCell, nn.GRUCell, nn.LSTMCell], ids=lambda c: c.__name__)
def test_one_step_layers(layer):
    made = layer(3, 4).double()
    report = quietly(made, torch.randn(2, 3, dtype=torch.float64))
    assert report.check.difference < 1e-12
    assert len(report.steps) == 2


def test_long_and_empty_sequences():
    layer = cells.rnn(2, 3)
    long = quietly(layer, torch.randn(600, 2))
    assert len(long.steps) == 9
    assert any("first 512 of 600" in note for note in long.notes)
    assert "Steps 9 to 512" in long.steps[-1].parts[0]
    empty = quietly(layer, torch.randn(4, 1, 2), lengths=[0])
    assert empty.check.agrees
    assert len(empty.steps) == 1


def test_training_cell_shows_masks_and_is_checked_without():
    layer = noisy(3, 4)
    report = quietly(layer, torch.randn(4, 3))
    assert report.check.agrees
    masked = [
        step.values[f"dropout(h{before}, 0.5, shared='time')"]
        for step, before in zip(report.steps[1:4], "₁₂₃", strict=True)
    ]
    dropped = [value.numbers == 0 for value in masked]
    assert np.array_equal(dropped[0], dropped[1])  # one mask for the whole sequence
    assert 0 < dropped[0].sum() < 4
    assert any("masks drawn for this explanation" in note for note in report.notes)
    assert layer.training


# -- cost -----------------------------------------------------------------------------------------------------------


def test_cost_of_a_recurrent_layer_by_hand():
    cost = quietly(cells.rnn(256, 128), torch.zeros(5, 3, 256)).cost
    assert cost.macs == 5 * 3 * (256 * 128 + 128 * 128)
    assert cost.other_flops == 5 * 3 * 3 * 128  # two sums and tanh
    assert cost.flops == 2 * cost.macs + cost.other_flops
    assert cost.parameters == 49_280
    assert cost.bytes_least == 4 * (49_280 + 5 * 3 * (256 + 128))


def test_cost_of_other_layers_by_hand():
    conv = quietly(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(2, 3, 10, 10)).cost
    assert conv.macs == 2 * 8 * 10 * 10 * 3 * 3 * 3
    assert conv.other_flops == 2 * 8 * 10 * 10  # the bias
    assert conv.bytes_least == 4 * (2 * 3 * 100 + 8 * 27 + 8 + 2 * 8 * 100)
    assert quietly(nn.MaxPool2d(2), torch.zeros(1, 1, 6, 6)).cost.flops == 36
    assert quietly(nn.Dropout(0.5), torch.ones(6)).cost.flops == 18  # compare, multiply, divide


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, w: x @ w, [(7, 5), (5, 3)]),
        (lambda x, w: x @ w, [(4, 7, 5), (5, 3)]),
        (lambda x, w: torch.bmm(x, w), [(4, 7, 5), (4, 5, 3)]),
        (F.linear, [(4, 7, 5), (3, 5), (3,)]),
        (lambda x, w: F.conv1d(x, w, stride=2, groups=2), [(2, 4, 9), (6, 2, 3)]),
        (lambda x, w: torch.einsum("bik,bjk->bij", x, w), [(4, 7, 5), (4, 3, 5)]),
    ],
)
def test_matrix_products_as_torch_counts_them(function, shapes):
    tensors = [torch.zeros(shape) for shape in shapes]
    with FlopCounterMode(display=False) as torchs:
        function(*tensors)
    assert 2 * count(function, tensors).macs == torchs.get_total_flops()


def test_counting_rules():
    x = torch.zeros(6, 5)
    assert count(lambda x: (x * x).sum(-1), [x]).macs == 30  # a product that is summed
    assert count(lambda x: x.sum(-1), [x]).other == 30
    assert count(lambda x: torch.exp(x) / 2, [x]).other == 60
    assert count(lambda x: x.t().reshape(5, 2, 3)[0], [x]).other == 0
    assert count(lambda x: torch.where(x > 0, x, 0.0), [x]).other == 30  # the comparison; choosing is none
    assert count(lambda x: F.softmax(x, -1), [x]).other == 5 * 30  # greatest, difference, exp, sum, division
    assert count(lambda x: x.var(-1), [x]).other == 4 * 30
    assert count(torch.exp, [x]).moved == 2 * 30 * 4
    assert count(lambda x: x + x[:, :1].expand(6, 5), [x]).moved == (30 + 6 + 30) * 4
    assert count(torch.linalg.inv, [torch.eye(3)]).uncounted


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


# -- torch's layers, errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (torch.nn.GRU(3, 4, 2, bidirectional=True), (5, 3)),
        (torch.nn.RNN(3, 4, nonlinearity="relu", bias=False), (5, 3)),
        (torch.nn.LSTM(3, 4, proj_size=2, batch_first=True), (2, 5, 3)),
        (torch.nn.Conv2d(2, 3, (2, 3), padding="same", dilation=2, bias=False), (1, 2, 8, 9)),
        (torch.nn.ConvTranspose1d(2, 3, 3, stride=2, output_padding=1), (1, 2, 5)),
        (torch.nn.MaxPool2d(2, return_indices=True), (1, 1, 6, 6)),
        (torch.nn.AdaptiveAvgPool1d(3), (1, 1, 8)),
        (torch.nn.Dropout(0.3).eval(), (6,)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_a_layer_of_torch_is_explained_by_its_twin(layer, shape):
    layer = layer.double()
    x = torch.randn(shape, dtype=torch.float64)
    report = quietly(layer, x)
    assert report.check.agrees
    assert any(f"torch.nn.{type(layer).__name__}" in note for note in report.notes)
    assert layer.training is not isinstance(layer, torch.nn.Dropout)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (("dropuot",), {}, ValueError, ("'dropuot'", "Did you mean 'dropout'?", "conv2d")),
        (("rnn",), {"lang": "fr"}, ValueError, ("'fr'", "'en' and 'zh'")),
        (("conv2d",), {"kernel": 3}, TypeError, ("'kernel'", "Did you mean 'kernel_size'?")),
        (("lstm",), {"foo": 3}, TypeError, ("'foo'",)),
        (("layernorm", "a sentence"), {}, TypeError, ("does not read sentences",)),
        (("rnn", ""), {}, ValueError, ("sentence is empty",)),
        (("conv2d", "cat.png"), {}, TypeError, ("does not read sentences", "a picture's are numpy.asarray(")),
        (("conv2d",), {"kernel_size": 3, "padding": "some"}, ValueError, ("some",)),
        (("layernorm", [[1, 2], [3]]), {}, TypeError, ("layernorm", "a list", "[[1, 2], [3, 4]]")),
        ((nn.GRU(3, 4), {"x": 1}), {}, TypeError, ("nn.GRU", "a dict", "a tensor or an array")),
        ((nn.GRU(3, 4), None), {}, TypeError, ("nn.GRU", "None", "a tensor or an array")),
        ((nn.GRU,), {}, TypeError, ("GRU is a class", "explain(GRU(...), x)")),
        (("rnn",), {"steps": -1}, ValueError, ("steps is how many", "-1")),
        (("rnn",), {"steps": "2"}, ValueError, ("steps is how many", "'2'")),
        (
            (nn.GRU(3, 4), "ab"),
            {"langs": "zh"},
            TypeError,
            ("nn.GRU: got an unexpected", "'langs'", "lengths", "lang,"),
        ),
        ((nn.Conv2d(1, 1, 1), torch.ones(1, 2, 2), 3), {}, TypeError, ("nn.Conv2d: too many", "explain itself")),
        ((nn.LayerNorm(3), torch.eye(3).to_sparse()), {}, TypeError, ("nn.LayerNorm", "sparse_coo", "x.to_dense()")),
        ((nn.GRU(3, 4, device="meta"), "ab"), {}, RuntimeError, ("nn.GRU: weight_ih_l0, (12, 3), is on the meta",)),
        ((nn.LayerNorm(3), torch.ones(2, 3, device="meta")), {}, RuntimeError, ("nn.LayerNorm: the input, (2, 3)",)),
        ((torch.nn.Linear(2, 3),), {}, TypeError, ("Linear", "something to read", "explain(model, x)")),
        ((print,), {}, TypeError, ("@pellucid.cell",)),
        ((nn.GRU(3, 4), torch.ones(5, 2)), {}, RuntimeError, ("nn.GRU", "input_size is 3")),
        ((nn.Conv2d(1, 1, 3), torch.ones(1, 1, 2, 2)), {}, RuntimeError, ("nn.Conv2d", "kernel")),
    ],
)
def test_errors(arguments, options, error, words):
    with pytest.raises(error) as caught:
        quietly(*arguments, **options)
    for word in words:
        assert word in str(caught.value)


def test_numbers_of_other_kinds_are_read():
    rows = [[1.0, 2.0], [4.0, 8.0]]
    expected = quietly(nn.LayerNorm(2), torch.tensor(rows)).steps
    for given in (rows, tuple(map(tuple, rows)), np.array(rows), list(torch.tensor(rows))):
        assert repr(quietly(nn.LayerNorm(2), given).steps) == repr(expected)
    assert quietly(nn.GRU(2, 3).double(), rows, tokens=[1, 2]).steps[0].title == "Step 1 of 2: 1"


def test_an_error_names_the_arguments_that_raised_it():
    with pytest.raises(ValueError, match="probability") as caught:
        quietly("dropout", p=2)
    assert caught.value.__notes__ == ["pellucid.explain: this was raised by dropout(p=2, seed=0)"]


def test_an_empty_batch_is_refused_in_words():
    with pytest.raises(ValueError, match=r"time 2, batch 0, features 4.*no sequence"):
        quietly(nn.RNN(4, 3), torch.zeros(2, 0, 4))


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_an_empty_input_has_no_mean(lang: str):
    nothing = {
        "en": "The input has no numbers, so there is nothing to average.",
        "zh": "输入里一个数也没有，没有什么可取平均。",
    }
    for layer, x in ((nn.BatchNorm1d(4), torch.zeros(0, 4)), (nn.LayerNorm(0), torch.zeros(2, 0))):
        assert said_in(quietly(layer, x, lang=lang)) == [nothing[lang]]
    assert not said_in(quietly(nn.LayerNorm(2), torch.tensor([[1, torch.inf]]), lang=lang))


def said_in(report):
    return [part for step in report.steps for part in step.parts if isinstance(part, str)]


def test_sentences_without_words_are_explained():
    report = quietly(nn.TextConv(4, 3), torch.zeros(2, 0, 4))
    assert report.check.agrees
    assert "There are no words here: every filter gives 0." in report.steps[0].parts


def test_complex_numbers_are_refused_and_not_made_real():
    for layer in (nn.GRU(3, 2), nn.Conv1d(3, 2, 1), nn.LayerNorm(3), nn.MaxPool1d(1)):
        with pytest.raises(
            NotImplementedError, match=r"nn\.\w+: .*\(3, 3\) of torch.complex64, and explanations .*view_as_real"
        ):
            quietly(layer, torch.ones(3, 3, dtype=torch.complex64))


@pytest.mark.parametrize("make", [nn.Conv1d, nn.ConvTranspose1d])
def test_weights_that_are_computed_stay_the_same(make, tmp_path):
    torch.manual_seed(0)
    layer = torch.nn.utils.parametrizations.spectral_norm(make(8, 16, 3))  # whose estimate goes on in training
    state = copy.deepcopy(layer.state_dict())
    report = quietly(layer, torch.randn(1, 8, 5))
    assert report.check.difference < 1e-5
    report.save(tmp_path / "page.html")
    for name, value in layer.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_layer_without_bias_counts_none():
    report = quietly(nn.GRU(4, 3, bias=False), torch.zeros(2, 1, 4))
    assert [total.count for total in report.totals] == [sum(p.numel() for p in nn.GRU(4, 3, bias=False).parameters())]
    assert {row.name: row.role for row in report.symbols if row.name in "Ub"} == {"U": "learned", "b": "not learned"}
    assert report.cost.bytes_least == 4 * (2 * (4 + 3) + report.totals[0].count)
    assert "b = 0, chosen when the layer was made, not learned." in report.notation
    assert "b = 0" not in "".join(quietly(nn.GRU(4, 3), torch.zeros(2, 1, 4)).notation)


def test_of_a_frozen_layer_nothing_is_learned():
    for layer, x in (
        (nn.GRU(4, 3), torch.zeros(2, 1, 4)),
        (nn.DyT(4), torch.zeros(2, 4)),
        (nn.Conv1d(2, 3, 2), torch.zeros(2, 2, 4)),
        (nn.LayerNorm(4), torch.zeros(2, 4)),
        (nn.TCN(2, [3]), torch.zeros(2, 2, 4)),
    ):
        report = quietly(layer.requires_grad_(False), x)
        assert [(total.label, total.count) for total in report.totals] == [("nothing is learned here", 0)]
        assert "learned" not in {row.role for row in report.symbols}


def test_a_partly_frozen_layer_says_what_is_learned():
    pair = torch.zeros(2, 2, 4, 4)
    for layer, x, weight, bias in (
        (nn.Conv2d(2, 3, 2), pair, "weight", "bias"),
        (nn.BatchNorm2d(2), pair, "γ", "β"),
        (nn.ConvPool2d(2, 3, 2, pool_size=2), pair, "weight", "bias"),
        (nn.DyT(4), pair, "α", "γ"),
        (nn.DropConnect(nn.Linear(4, 3), names=["weight", "bias"]), pair, "weight", "bias"),
    ):
        next(layer.parameters()).requires_grad_(False)
        report = quietly(layer, x)
        roles = {row.name: (row.role, row.trainable) for row in report.symbols}
        assert (roles[weight], roles[bias]) == (("not learned", False), ("learned", True)), type(layer)
        assert report.totals[0].count == report.cost.parameters
        assert weight not in report.totals[0].label


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("normed", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm])
def test_a_weight_that_is_computed_is_learned_if_what_it_is_computed_of_is(normed):
    layer = normed(nn.Conv1d(2, 3, 2, bias=False))
    for frozen, role in (("weight_g", "learned"), ("weight_v", "not learned")):
        parameters = dict(zip(("weight_g", "weight_v"), layer.parameters(), strict=True))
        parameters[frozen].requires_grad_(False)
        with torch.no_grad():
            report = quietly(layer, torch.zeros(1, 2, 4))
        assert report.symbols[1].role == role


def test_what_a_weight_is_computed_of_is_counted_beside_it():
    normed = torch.nn.utils.parametrizations.weight_norm
    for layer, x, counts in (
        (normed(nn.Conv2d(2, 3, 3)), torch.zeros(1, 2, 4, 4), [57, 60]),
        (torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)), torch.zeros(1, 2, 4, 4), [57]),
        (nn.TCN(2, [3]), torch.zeros(1, 2, 4), None),
    ):
        totals = quietly(layer, x).totals
        assert counts is None or [total.count for total in totals] == counts
        assert totals[-1].count == sum(p.numel() for p in layer.parameters())
    label = quietly(normed(nn.Conv2d(2, 3, 3)), torch.zeros(1, 2, 4, 4)).totals[1].label
    assert "computed of these: bias 3 + parametrizations.weight.original0 3 + " in label


def test_what_running_statistics_keep_without_a_momentum():
    layer, x = nn.BatchNorm1d(2, momentum=None), torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    layer(x)
    (note,) = quietly(layer, x).notes
    assert "this one, number 2, has a share of 1/2" in note
    (note,) = quietly(nn.InstanceNorm1d(2, momentum=None, track_running_stats=True), torch.ones(1, 2, 3)).notes
    assert "no batch moves them" in note


def test_a_dilated_pooling_says_so():
    *_, output = quietly(nn.MaxPool2d(2, dilation=(1, 3)), torch.zeros(1, 1, 6, 6)).symbols
    said = "2×2 entries that are (1, 3) apart, so that it reaches over 2×4 places"
    assert said in output.reasons[0]


def test_a_convolution_without_bias_reads_none():
    for layer, x in (
        (nn.Conv2d(2, 3, 2, bias=False), torch.zeros(2, 2, 3, 3)),
        (nn.ConvTranspose1d(2, 3, 2, bias=False), torch.zeros(2, 2, 3)),
        (nn.ConvPool1d(2, 3, 2, pool_size=2, bias=False), torch.zeros(2, 2, 5)),
        (nn.SeparableConv1d(2, 3, 2, bias=False), torch.zeros(2, 2, 5)),
        (nn.TextConv(4, 3, bias=False), torch.zeros(2, 5, 4)),
    ):
        report = quietly(layer, x)
        numbers = x.numel() + sum(p.numel() for p in layer.parameters()) + layer(x).numel()
        assert report.cost.bytes_least == 4 * numbers
        assert "bias = 0, chosen when the layer was made, not learned." in report.notation
        assert "bias" not in report.steps[0].values


def test_frozen_weights_of_any_level_are_counted_in_no_convention():
    layer = nn.RNN(3, 2, 2)
    layer.weight_hh_l1.requires_grad_(False)
    report = quietly(layer, torch.zeros(4, 1, 3))
    assert [total.count for total in report.totals] == [18, 22]
    assert report.cost.parameters == 22
    layer.requires_grad_(False)
    layer.weight_hh_l1.requires_grad_(True)
    assert [total.count for total in quietly(layer, torch.zeros(4, 1, 3)).totals] == [4]
    layer = cells.rnn(3, 2)
    next(layer.parameters()).requires_grad_(False)
    assert [total.count for total in quietly(layer, torch.zeros(4, 1, 3)).totals] == [6]


def test_sequences_of_different_lengths_cost_their_real_steps():
    layer, x = nn.GRU(3, 2, bidirectional=True), torch.randn(4, 2, 3)
    both = quietly(layer, x, lengths=[2, 4]).cost
    alone = [quietly(layer, x[:n, :1]).cost for n in (2, 4)]
    assert both.macs == sum(cost.macs for cost in alone)
    assert both.other_flops == sum(cost.other_flops for cost in alone)
    assert both.scope == "6 steps in all, of 2 sequences of different lengths, float32"
    assert both.bytes_least == 4 * (6 * (3 + 4) + 2 * 42)
    assert quietly(layer, x, lengths=[0, 4]).cost.scope.startswith("4 steps in all")


def test_one_step_is_not_many():
    assert quietly(nn.RNN(3, 2), torch.zeros(1, 3)).steps[-1].parts == (
        "h₁ has taken in the only step; it stands for the whole sequence.",
    )
    assert quietly(nn.RNN(3, 2), "abc", steps=2).steps[-1].parts[0].startswith("Step 3 goes on")
    assert quietly(nn.TCN(1, [1] * 3), torch.zeros(1, 1, 4)).steps[-1].parts[0].startswith("Block 3 goes on")
    assert quietly(nn.RNN(3, 2), ["two", "words"]).notes[0].startswith("A word is no vector")


def test_what_is_read_as_one_character_stays_together():
    assert characters("👩‍👩‍👧🇩🇪🇫🇷e\u0301👍🏽❤️a你") == ["👩‍👩‍👧", "🇩🇪", "🇫🇷", "e\u0301", "👍🏽", "❤️", "a", "你"]
    assert characters("\u0301a🇩") == ["\u0301", "a", "🇩"]
    assert not characters("")


def test_a_number_without_axes_has_a_reason():
    @pellucid.cell
    def scaled(x, h, *, U, a: "" = pellucid.zeros):  # noqa: F722
        return a * h + x @ U

    rows = {row.name: row for row in quietly(scaled(2, 2), torch.zeros(1, 2)).symbols}
    assert rows["a"].reasons == ("The author of the formula gave a no axes: it is one number.",)


def test_dropout_in_eval_keeps_its_own_p():
    for layer, x in (
        (nn.Dropout(0.3), torch.ones(3)),
        (nn.DropBlock2d(0.3), torch.ones(1, 1, 9, 9)),
        (nn.DropConnect(nn.Linear(3, 2), 0.3), torch.ones(1, 3)),
    ):
        said = "p = 0.3, chosen when the layer was made, not learned; in eval it counts as 0."
        assert said in quietly(layer.eval(), x).notation
    notation = quietly(nn.DropBlock2d(0.3, 3), torch.ones(1, 2, 5, 5)).notation
    assert notation[-2] == "γ = 0.09259, which follows from p = 0.3, the size of the blocks and that of the input."
    assert notation[-1] == "block = (3, 3), chosen when the layer was made, not learned."


def test_what_averages_and_draws_are_of():
    notation = quietly(nn.LocalResponseNorm(3), torch.ones(1, 5, 2)).notation
    assert notation[-1].startswith("average is the mean over 3 neighbouring channels;")
    (reason,) = quietly(nn.DropBlock2d(0.3, 3), torch.ones(1, 2, 5, 5)).symbol("draws").reasons
    assert "the upper left corner of a block can lie; a block is 3×3" in reason


def test_drop_connect_reads_its_layer():
    cost = quietly(nn.DropConnect(nn.Linear(3, 2)), torch.ones(1, 3)).cost
    assert cost.bytes_least == 4 * (3 + 2 * 6 + 2 + 2)  # input, weight and its draws, bias, output


def test_every_norm_s_last_formula_has_its_own_title():
    titles = {kind: quietly(kind).steps[-1].title for kind in ("layernorm", "rmsnorm", "localresponsenorm")}
    assert titles["layernorm"] == "Formula 4: times γ, plus β"
    assert titles["rmsnorm"] == "Formula 2: the value over the root of the mean square, times γ"
    assert titles["localresponsenorm"] == "Formula 2: the value over a power of what its neighbours have"


def test_what_is_said_of_groups_and_paddings_is_so():
    report = quietly(nn.Conv1d(4, 6, 3, groups=2, padding="causal"), torch.zeros(1, 4, 5))
    assert "(4 in 2 groups, 2 each)" in report.symbols[1].reasons[0]
    assert "padding “causal” (before the first place only" in report.symbols[-1].reasons[0]
    assert not any("all features" in part for part in report.idea)
    report = quietly(nn.Conv1d(4, 6, 3, groups=2, padding="causal"), torch.zeros(1, 4, 5), lang="zh")
    assert "共 4 个，分 2 组，每组 2 个" in report.symbols[1].reasons[0]
    assert "填充 “causal”（只填在开头之前" in report.symbols[-1].reasons[0]
    report = quietly(nn.LayerNorm((2, 3)), torch.zeros(2, 2, 3), lang="zh")
    assert report.symbols[0].axes == ("批", "特征轴 1", "特征轴 2")


def test_one_length_serves_all_sentences():
    layer, x = nn.TextConv(4, 3), torch.randn(2, 9, 4)
    assert str(quietly(layer, x, lengths=5).steps) == str(quietly(layer, x, lengths=[5, 5]).steps)


def test_several_kernels_of_a_channel_read_the_same_padding():
    report = quietly(nn.SeparableConv1d(2, 1, 3, padding=1, depth_multiplier=2), torch.ones(1, 2, 4))
    drawn = next(part for part in report.steps[0].parts if isinstance(part, Picture))
    assert drawn.numbers[0].tolist() == [[0, 1, 1, 1, 1]] * 2


def test_the_window_goes_on_to_the_next_row():
    report = quietly(nn.Conv2d(1, 1, 1, stride=(3, 2)), torch.zeros(1, 1, 4, 4), steps=3)
    second, third = (next(part for part in step.parts if isinstance(part, str)) for step in report.steps[1:3])
    assert second == "The window moves on by the stride, 2."
    assert third == "This row is done; the next position begins the next row."


def test_what_is_said_of_an_output_agrees_with_it():
    def said(layer, x, **options):
        row = quietly(layer, x, **options).symbols[-1]
        return row.shape, row.reasons[0]

    shape, _ = said(nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1), torch.zeros(2, 2, 5), output_size=[10])
    assert shape == (2, 3, 10)
    shape, text = said(nn.AdaptiveAvgPool2d((3, None)), torch.zeros(2, 2, 5, 7))
    assert shape == (2, 2, 3, 7)
    assert text == "The input is shared out among 3×7 windows, as evenly as it goes."
    assert "reaches over 1 place and" in said(nn.Conv1d(2, 2, 1), torch.zeros(1, 2, 4))[1]
    assert "reaches over 3 places and" in said(nn.Conv1d(2, 2, 2, dilation=2), torch.zeros(1, 2, 4))[1]


SIGNS = torch.tensor([[1.0, 0.0], [0.0, -1.0]])


@pellucid.cell
def from_outside(x, h, *, U):
    return torch.tanh(x @ U + h @ SIGNS)


def test_a_cell_may_read_a_tensor_from_outside():
    report = quietly(from_outside(3, 2), torch.rand(4, 1, 3))
    assert report.check.agrees
    assert report.cost.macs == 4 * (3 * 2 + 2 * 2)
    (exhibit,) = exhibits_of(report)
    assert exhibit.data["ledger"]["macs"] == 3 * 2 + 2 * 2


@pytest.mark.parametrize(("lengths", "worked"), [([3, 5], 1), ([4, 5], 2), ([0, 5], 0)])
def test_no_window_beyond_the_length_of_the_first_sequence_is_worked_out(lengths, worked):
    steps = quietly(nn.Conv1d(1, 1, 3), torch.randn(2, 1, 6), lengths=lengths).steps
    titles = [step.title for step in steps]
    assert titles == [*(f"Position {n} of {worked}: output ({n - 1})" for n in range(1, worked + 1)), "All positions"]
