"""A formula as on paper, and the tracer that runs its own lines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import pellucid
from explaining import quietly
from formulas import leaky
from pellucid import nn
from pellucid.explanation.lines import Lines
from pellucid.explanation.paper import Paper
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
