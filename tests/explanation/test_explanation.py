"""Explanations: the numbers are the layer's own, the counts are right, the texts are whole in every language."""

from __future__ import annotations

import ast
import builtins
import re

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
from pellucid.explanation.paper import letter
from pellucid.nn import cells
from running import sizes_of

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
    cell = getattr(cells, name)
    layer = cell(3, 4, 2, bidirectional=True, **sizes_of(cell)).double()
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


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_functions_that_lay_out_a_matrix_are_explained(lang):
    report = quietly(cells.delta_rule(4, 3, key=2), torch.randn(3, 1, 4), lang=lang)
    said = " ".join(report.notation)
    assert all(f"{name}(v" in said for name in ("normalize", "unflatten", "unsqueeze", "flatten"))


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
        ((3,), {}, TypeError, ("is explained, not an int. A function",)),
        ((len,), {}, TypeError, ("is explained, not a function. A function",)),
        ((None,), {}, TypeError, ("is explained, not a NoneType. A function",)),
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
