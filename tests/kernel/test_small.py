"""Few steps and few rows by the author's function itself, where that was measured to be faster than a kernel."""

from __future__ import annotations

import pytest
import torch

import pellucid
from pellucid import nn
from pellucid.kernel import small
from pellucid.kernel.recurrence import few_steps


@pellucid.cell
def leaky(x, h, *, U, W, b, p: float = 0.25):
    """A step that drops some of what it reads."""
    return 0.5 * h + 0.5 * torch.tanh(pellucid.dropout(x, p) @ U + h @ W + b)


@pellucid.cell
def gated(x, h, c, *, U, W, V, R):
    """Two states, of which c knows nothing of V and R."""
    c = torch.sigmoid(x @ U + h @ W) * c
    h = torch.tanh(x @ V + h @ R) * c
    return h, (h, c)


@pellucid.cell
def keeping(x, h, old, *, W):
    """Whose second state is the first one before the step, the same memory."""
    new = torch.tanh(x + h @ W)
    return new, (new, h)


@pellucid.cell
def halves(x, h, c, *, U):
    """Whose states are views of one value."""
    h, c = (torch.tanh(x @ U) + torch.cat([h, c], -1)).chunk(2, -1)
    return h, (h, c)


@pytest.fixture
def asked(monkeypatch):
    """The questions that were asked; the author's function is always found to be faster."""
    questions = []
    monkeypatch.setattr(small, "faster", lambda *given: questions.append(given) or True)
    monkeypatch.setattr(few_steps, "_chosen", {})
    return questions


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "batch_first": True}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_function_computes_what_the_kernels_do(options, dtype):
    """Output, state and gradients of both orders, with the same entries dropped."""
    torch.manual_seed(0)
    layer, found = leaky(5, 4, dtype=dtype, **options), {}
    x = torch.randn(3, 3, 5, dtype=dtype, requires_grad=True)
    weights = [x, *layer.parameters()]
    for name in ("auto", "c"):
        torch.manual_seed(1)
        with pellucid.backend(name):
            output, last = layer(x)
        first = torch.autograd.grad(output.square().sum() + last.sum(), weights, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), weights)
        with torch.no_grad(), pellucid.backend(name):
            silent = layer.eval()(x)
        assert layer.train().backend == ("naive" if name == "auto" else "c")
        found[name] = [output, last, first, second, silent]
    torch.testing.assert_close(*found.values())


def test_it_is_asked_once_for_each_circumstance(asked):
    layer, x = leaky(5, 4), torch.randn(1, 3, 5)
    for _ in range(2):
        layer(x)
    with torch.no_grad():
        layer(x)
    layer.eval()(x)
    assert [given[0] for given in asked] == [
        "small steps of leaky in training [1, 4, 8] float32, 3 gradients",
        "small steps of leaky in training [1, 4, 8] float32, 0 gradients",
        "small steps of leaky in eval [1, 4, 8] float32, 3 gradients",
    ]
    for _, kernel, usual, other, leaves in asked:
        assert "0.5 * h" in kernel
        assert len(leaves) in (0, 3)
        torch.testing.assert_close(usual(), other())


def test_a_kernel_that_is_faster_runs(asked, monkeypatch):
    monkeypatch.setattr(small, "faster", lambda *given: asked.append(given) and False)
    layer = leaky(5, 4)
    layer(torch.randn(1, 3, 5))
    assert layer.backend == "c"
    assert asked


def test_what_it_is_not_asked_for(asked):
    """Many steps, lengths, chunks, none of a batch, half the precision, another backend, transforms."""

    def ran(layer, x, **options):
        layer(x, **options)
        return layer.backend

    layer, x = leaky(5, 4).eval(), torch.randn(2, 3, 5)
    assert ran(layer, torch.randn(9, 3, 5)) == "c"
    for options in {"lengths": [2, 1, 0]}, {"checkpoint_every": 1}, {"truncate": 1}:
        assert ran(layer, x, **options) == "c"
    assert ran(layer, torch.randn(2, 0, 5)) == "c"
    assert ran(leaky(5, 4, dtype=torch.bfloat16), x.bfloat16()) == "c"
    with torch.autocast("cpu", torch.bfloat16):
        assert ran(layer, x) == "c"
    with pellucid.backend("stepwise"):
        assert ran(layer, x) == "stepwise"
    torch.func.vmap(layer, in_dims=2, out_dims=1)(x.unsqueeze(2))
    assert layer.backend == "stepwise"
    assert not asked
    assert ran(layer, x) == "naive"


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("formula", [keeping, halves])
def test_states_have_memory_of_their_own(formula):
    """What a layer returns may be written to; where a function returns what it was given, or views, kernels run."""
    layer, x, state = formula(4, 4), torch.randn(1, 2, 4), (torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    kept = [s.clone() for s in state]
    with torch.no_grad():
        for s in layer(x, state)[1]:
            s.zero_()
    assert layer.backend == "c"
    torch.testing.assert_close(list(state), kept, rtol=0, atol=0)


@pytest.mark.usefixtures("asked")
def test_every_parameter_has_a_gradient_whatever_the_loss_reads():
    """Parameters that a state does not depend on have 0 by the kernels, and None would stop a data-parallel model."""
    layer, x = gated(4, 4), torch.randn(1, 2, 4)
    layer(x)[1][1].sum().backward()
    assert layer.backend == "c"
    assert all(p.grad is not None for p in layer.parameters())
    with torch.no_grad():
        layer(x)
    assert layer.backend == "naive"


@pytest.mark.usefixtures("asked")
def test_a_record_of_few_steps():
    layer, x = nn.LSTM(5, 4), torch.randn(2, 3, 5)
    with torch.no_grad():
        output, _, values = layer(x, record=["i", "c"])
        assert layer.backend == "naive"
        with pellucid.backend("c"):
            torch.testing.assert_close((output, values), layer(x, record=["i", "c"])[::2])


# -- rows -----------------------------------------------------------------------------------------------------------


def masked(x, *, gamma=pellucid.ones, p: float = 0.25):
    """Rows of which some entries are dropped."""
    return pellucid.dropout(torch.tanh(x), p) * gamma


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_function_computes_what_the_kernels_of_rows_do(shape, dtype):
    layer, found = pellucid.layer(masked)(6, dtype=dtype), {}
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    for name in ("auto", "c"):
        torch.manual_seed(1)
        with pellucid.backend(name):
            y = layer(x)
        first = torch.autograd.grad(y.square().sum(), [x, layer.gamma], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, layer.gamma])
        with torch.no_grad(), pellucid.backend(name):
            silent = layer.eval()(x)
        assert layer.train().backend == ("stepwise" if name == "auto" else "c")
        found[name] = [y, first, second, silent]
    torch.testing.assert_close(*found.values())


def test_rows_are_asked_for_once_and_where_they_are_few(asked, monkeypatch):
    layer, x = pellucid.layer(masked)(6), torch.randn(5, 6)
    for _ in range(2):
        layer(x)
    layer.eval()(x)
    assert [given[0] for given in asked] == [
        "small rows of masked in training [8, 8] float32, 1 gradients",
        "small rows of masked in eval [8, 8] float32, 1 gradients",
    ]
    for _, kernel, usual, other, leaves in asked:
        assert "torch.tanh(x)" in kernel
        assert len(leaves) == 1
        torch.testing.assert_close(usual(), other())
    assert layer.backend == "stepwise"
    monkeypatch.setattr("pellucid.nn.rows.row_wise.SMALL", 29)
    layer(x)
    assert layer.backend == "c"


@pytest.mark.usefixtures("asked")
def test_rows_have_memory_of_their_own():
    """A view of what a layer reads is left to the kernel, which copies."""
    layer, x = pellucid.layer(lambda x: x[:, :2])(4), torch.randn(3, 4)
    kept = x.clone()
    layer(x).zero_()
    torch.testing.assert_close(x, kept, rtol=0, atol=0)
