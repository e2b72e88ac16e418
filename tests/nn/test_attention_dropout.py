"""Attention and functions that drop: the same as torch's with the same draws, and in their place after swap."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import pellucid
from pellucid.kernel.random import draw_seed
from pellucid.kernel.rows.direction import Draws
from pellucid.models import functions
from pellucid.nn.dropout.attention_dropout import scaled_dot_product_attention, weights
from tensors import draw

P = 0.3


pytestmark = pytest.mark.usefixtures("few_samples")


def look_at_some(*shape: int) -> Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(7)) > 0.4
    mask[..., :1] = True
    return mask


def nothing_for_the_second(*shape: int) -> Tensor:
    mask = torch.ones(shape, dtype=torch.bool)
    mask[..., 1, :] = False
    return mask


CASES = {
    "plain": ((2, 3, 5, 4), (2, 3, 7, 4), {}),
    "odd": ((1, 63, 8), (1, 63, 8), {}),
    "one key": ((2, 3, 5, 4), (2, 3, 1, 4), {}),
    "causal": ((2, 3, 5, 4), (2, 3, 5, 4), {"is_causal": True}),
    "causal, more keys": ((2, 3, 4), (2, 6, 4), {"is_causal": True}),
    "bool mask": ((2, 3, 5, 4), (2, 3, 7, 4), {"attn_mask": look_at_some(2, 1, 5, 7)}),
    "padding": ((2, 3, 5, 4), (2, 3, 7, 4), {"attn_mask": look_at_some(2, 1, 1, 7)}),
    "added": ((2, 3, 5, 4), (2, 3, 7, 4), {"attn_mask": draw(3, 5, 7, seed=5)}),
    "nothing to look at": ((2, 3, 5, 4), (2, 3, 7, 4), {"attn_mask": nothing_for_the_second(5, 7)}),
    "scale": ((2, 3, 5, 4), (2, 3, 7, 4), {"scale": 2.0}),
}


def attention(query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
    """What the kernel computes, step by step in torch."""
    mask, scale = options.get("attn_mask"), options.get("scale", 1 / math.sqrt(query.shape[-1]))
    if options.get("is_causal"):
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    scores = query @ key.mT
    draws = Draws.of(draw_seed(None), 0, {"draws": 0}).tensor("draws", scores.shape)
    return weights(scores, mask, draws, P, scale) @ value


def given(name: str) -> tuple[list[Tensor], dict]:
    queries, keys, options = CASES[name]
    values = (*keys[:-1], 3)
    return [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate((queries, keys, values))], options


def results(function, tensors: list[Tensor], **options) -> list[Tensor]:
    torch.manual_seed(3)
    y = function(*tensors, **options)
    ramp = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, tensors, ramp)]


@pytest.mark.parametrize("name", CASES)
def test_the_formula(name):
    tensors, options = given(name)
    with pellucid.backend("c"):
        ours = results(scaled_dot_product_attention, tensors, dropout_p=P, **options)
    for a, b in zip(ours, results(attention, tensors, **options), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(ours[0], F.scaled_dot_product_attention(*tensors, **options))
    with torch.no_grad():  # without dropout it is torch's
        drawless = [t.detach() for t in tensors]
        scores = drawless[0] @ drawless[1].mT
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if options.get("is_causal") else None
        mask = options.get("attn_mask", mask)
        scale = options.get("scale", 1 / math.sqrt(scores.shape[-1] and tensors[0].shape[-1]))
        expected = F.scaled_dot_product_attention(*drawless, **options)
        kept = weights(scores, mask, torch.ones_like(scores), 0.0, scale) @ drawless[2]
        torch.testing.assert_close(kept, expected, rtol=1e-10, atol=1e-12)


def test_how_many_are_dropped_and_that_the_mean_stays():
    """With the unit matrix as value the result is the weights."""
    query, key = draw(4, 64, 8), draw(4, 64, 8, seed=1)
    one = torch.eye(64, dtype=torch.float64).expand(4, 64, 64).contiguous()
    with pellucid.backend("c"):
        torch.manual_seed(0)
        found = torch.stack([scaled_dot_product_attention(query, key, one, dropout_p=P) for _ in range(64)])
    usual = F.scaled_dot_product_attention(query, key, one)
    assert abs((found == 0).double().mean() - P) < 4 * math.sqrt(P * (1 - P) / found.numel())
    assert torch.allclose(found[found != 0], (usual / (1 - P)).expand_as(found)[found != 0], rtol=1e-10)
    assert abs(found.sum(-1).mean() - 1) < 0.01


def test_training_after_inference_mode():
    """The causal mask is kept from call to call."""
    tensors = [draw(2, 3, 9, 4, seed=i) for i in range(3)]
    with pellucid.backend("c"):
        with torch.inference_mode():
            scaled_dot_product_attention(*tensors, dropout_p=P, is_causal=True)
        assert (
            len(
                results(
                    scaled_dot_product_attention, [t.requires_grad_() for t in tensors], dropout_p=P, is_causal=True
                )
            )
            == 4
        )


@pytest.mark.parametrize("name", ["plain", "causal", "added"])
def test_gradients_of_gradients(name):
    tensors, options = given(name)

    def function(*tensors: Tensor) -> Tensor:
        torch.manual_seed(3)
        return scaled_dot_product_attention(*tensors, dropout_p=P, **options)

    with pellucid.backend("c"):
        assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_everything_else_is_torchs():
    query, key, value = (draw(2, 3, 5, 4, seed=i).float() for i in range(3))
    learned = torch.zeros(5, 5, requires_grad=True)
    calls = [
        ((query, key, value), {}),
        ((query, key, value), {"dropout_p": 1.0}),
        ((query[:0], key[:0], value[:0]), {"dropout_p": P}),
        ((query[0, 0], key[0, 0], value[0, 0]), {"dropout_p": P}),
        ((query.bfloat16(), key.bfloat16(), value.bfloat16()), {"dropout_p": P}),
        ((query, key[:, :1], value[:, :1]), {"dropout_p": P, "enable_gqa": True}),
        ((query, key[:, :1].expand(2, 3, 5, 4)[:1], value), {"dropout_p": P}),
        ((query, key, value), {"dropout_p": P, "attn_mask": learned}),
    ]
    with pellucid.backend("c"):
        for tensors, options in calls:
            found = []
            for function in (scaled_dot_product_attention, F.scaled_dot_product_attention):
                torch.manual_seed(3)
                found.append(function(*tensors, **options))
            assert torch.equal(*found)
        with torch.autocast("cpu", torch.bfloat16):
            assert scaled_dot_product_attention(query, key, value, dropout_p=P).dtype == torch.bfloat16
        for tensors, options in [
            ((query, key[..., :3], value), {}),
            ((query, key, value.double()), {}),
            ((query, key[0, 0, 0], value), {}),
            ((query, key, value), {"attn_mask": look_at_some(2, 1, 4, 5)}),
            ((query, key, value), {"attn_mask": look_at_some(5, 5), "is_causal": True}),
        ]:
            with pytest.raises(RuntimeError) as ours:
                scaled_dot_product_attention(*tensors, dropout_p=P, **options)
            with pytest.raises(RuntimeError) as theirs:
                F.scaled_dot_product_attention(*tensors, dropout_p=P, **options)
            assert str(ours.value) == str(theirs.value)


def test_the_choice_draws_nothing(monkeypatch):
    asked = []
    module = pellucid.nn.dropout.attention_dropout
    monkeypatch.setattr(module, "_chosen", {})
    monkeypatch.setattr(module, "LEAST", 0)
    monkeypatch.setattr(module, "faster", lambda *question: (asked.append(question), question[3]())[0] is None)
    tensors = [draw(2, 3, 5, 4, seed=i) for i in range(3)]
    torch.manual_seed(0)
    first = scaled_dot_product_attention(*tensors, dropout_p=P)
    torch.manual_seed(0)
    assert torch.equal(first, scaled_dot_product_attention(*tensors, dropout_p=P))
    (question,) = asked
    assert question[0] == "attention float64 [2, 4, 8, 4], [2, 4, 8, 4], [2, 4, 8, 4] without gradient"
    assert question[2]().shape == question[3]().shape == (2, 3, 5, 4)


# -- in a model -------------------------------------------------------------------------------------------------------


class Attending(torch.nn.Module):
    """Self-attention as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=P if self.training else 0.0, is_causal=True)
        return y.transpose(1, 2).flatten(2)


class Dropping(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


def functions_of(report) -> list[tuple[tuple[str, ...], str]]:
    return [(group.paths, group.before) for group in report.fused if group.kind == "functions"]


def test_in_the_place_of_torchs():
    model = torch.nn.Sequential(Attending(), Dropping(), torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    usual, x = copy.deepcopy(model), draw(2, 6, 8).float()
    seen = [(("0",), "scaled_dot_product_attention"), (("2.self_attn",), "multi_head_attention_forward")]
    assert functions_of(pellucid.swap(copy.deepcopy(model), fuse=True)) == seen
    report = pellucid.swap(model, fuse=True, verify=x)
    assert functions_of(report) == [seen[0], (("1",), "dropout"), seen[1]]
    assert "3 functions of torch are computed as one" in report.summary
    assert report.verification.modes == ("eval", "train")
    assert report.verification.outputs < 1e-5
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in (("scaled_dot_product_attention", functions.INSTEAD), ("dropout", functions.INSTEAD)):
            instead = kind[getattr(F, name)]

            def noting(*args, name=name, own=instead.function, **named):
                calls.append(name)
                return own(*args, **named)

            patch.setitem(kind, getattr(F, name), functions.Instead(noting, instead.becomes, instead.p))
        model(x)
        assert calls == ["scaled_dot_product_attention", "dropout"]
        model.eval()
        model(x)
        assert len(calls) == 2
    assert torch.allclose(model(x), usual.eval()(x), atol=1e-6)
    assert functions_of(pellucid.restore(model)) == functions_of(report)
    assert [type(m) for m in model.modules()] == [type(m) for m in usual.modules()]


def test_attention_of_torchs_module_is_ours(monkeypatch):
    attend = torch.nn.MultiheadAttention(8, 2, dropout=P, batch_first=True).double()
    usual, x = copy.deepcopy(attend), draw(2, 6, 8)
    pellucid.swap(attend, fuse=True)
    with pellucid.backend("c"):
        torch.manual_seed(3)
        found = attend(x, x, x, need_weights=False)[0]
        monkeypatch.setattr(
            F, "scaled_dot_product_attention", lambda q, k, v, mask, p, causal: attention(q, k, v, attn_mask=mask)
        )
        torch.manual_seed(3)
        torch.testing.assert_close(found, usual(x, x, x, need_weights=False)[0], rtol=1e-10, atol=1e-12)
        y, seen = attend(x, x, x)
    assert seen.shape == (2, 6, 6)
    assert y.shape == x.shape


def test_whoever_looks_on_sees_torchs():
    model, x = Attending(), draw(2, 6, 8).float()
    pellucid.swap(model, fuse=True)
    with functions.WithoutDropout():
        torch.testing.assert_close(model(x), model.eval()(x))
    model.train()
    with pellucid.backend("c"):
        torch.manual_seed(3)
        expected = model(x)
        torch.manual_seed(3)
        assert torch.equal(expected, checkpoint(model, x, use_reentrant=False))
    exported = torch.export.export(model.eval(), (x,)).module()
    assert torch.allclose(exported(x), model(x), atol=1e-6)
    assert torch.compile(model.train(), backend="eager", fullgraph=True)(x).shape == (2, 6, 8)


def test_the_same_mask_in_a_checkpoint():
    model, found = Attending().double(), []
    x = draw(2, 6, 8).requires_grad_()
    pellucid.swap(model, fuse=True)
    with pellucid.backend("c"):
        for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
            torch.manual_seed(3)
            found.append(torch.autograd.grad(run(x).pow(2).sum(), x)[0])
    torch.testing.assert_close(*found)


def test_only_says_which_modules():
    model = torch.nn.Sequential(Attending(), Attending())
    assert functions_of(pellucid.swap(model, fuse=True, only="1")) == [(("1",), "scaled_dot_product_attention")]


def test_arithmetic_is_found_within_a_mode():
    module = torch.nn.ELU().double()
    pellucid.swap(module, fuse=True)
    with functions.WithoutDropout(), pellucid.backend("c"):
        y = module(draw(3, 5).requires_grad_())
    assert "_Nested" in type(y.grad_fn).__name__


class Mixed(torch.nn.Module):
    """A layer of another library's, by torch.addmm with a weight that lies turned."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.randn(8, 12)), torch.nn.Parameter(torch.randn(12))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, 8), self.weight).view(*x.shape[:-1], 12)


def test_a_product_of_a_forward_is_ours_in_both_modes(monkeypatch):
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(Mixed(), torch.nn.Tanh()), torch.randn(3, 4, 8, requires_grad=True)
    expected = model(x)
    leaves = [x, *model.parameters()]
    gradients = torch.autograd.grad(expected.sum(), leaves)
    report = pellucid.swap(model, fuse=True)
    assert functions_of(report) == [(("0",), "addmm")]
    ran = []
    run = functions.linear.run
    monkeypatch.setattr(functions.linear, "run", lambda *args, **named: ran.append(named) or run(*args, **named))
    for training in (True, False):
        with pellucid.backend("c"):
            y = model.train(training)(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), leaves), gradients)
    assert ran == [{"turned": False}] * 2
    pellucid.restore(model)
    model(x)
    assert len(ran) == 2


def test_other_sums_of_products_are_torchs():
    matrix, bias, rows = torch.randn(3, 3), torch.randn(3), torch.randn(3, 3)
    with pellucid.backend("c"):
        assert torch.equal(functions.linear.addmm(rows, matrix, rows), torch.addmm(rows, matrix, rows))
        assert torch.equal(functions.linear.addmm(bias, matrix, rows, beta=2), torch.addmm(bias, matrix, rows, beta=2))
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            functions.linear.addmm(bias, torch.randn(3, 2), rows)


def test_projections_of_torchs_attention_are_ours_in_training(monkeypatch):
    torch.manual_seed(0)
    ran = []
    run = functions.linear.run
    monkeypatch.setattr(
        functions.linear, "run", lambda *args, **named: ran.append(args[1].shape) or run(*args, **named)
    )
    for options, shapes in (({}, [(24, 8), (8, 8)]), ({"kdim": 6, "vdim": 5}, [(8, 8), (8, 6), (8, 5), (8, 8)])):
        model = torch.nn.MultiheadAttention(8, 2, **options)
        q, k, v = torch.randn(3, 2, 8), torch.randn(4, 2, 6), torch.randn(4, 2, 5)
        given = (q, k, v) if options else (q, q, q)
        expected = model(*given)
        pellucid.swap(model, fuse=True)
        ran.clear()
        with pellucid.backend("c"):
            torch.testing.assert_close(model(*given), expected)
        assert ran == shapes
