"""Arithmetic of a module's own forward, computed in one pass after ``swap(model, fuse=True)``."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor

import pellucid
from pellucid.models import fusions
from pellucid.nn.swapped import expression
from swapping import saved
from tensors import draw

MODES = (True, False)


class Own(torch.nn.Module):
    """A module with a forward of the test's."""

    body = staticmethod(lambda self, x: x)

    def __init__(self, body, **held) -> None:
        super().__init__()
        self.body = body
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


class OfTwo(Own):
    """The same with two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(self, x, y)


def parameter(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5)


def tanh_gelu(self, x):
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def rms_norm(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def rms_norm_in_float32(self, x):  # as transformers writes it
    kept = x.dtype
    x = x.to(torch.float32)
    variance = x.pow(2).mean(-1, keepdim=True)
    x = x * torch.rsqrt(variance + self.eps)
    return self.weight * x.to(kept)


def rms_norm_by_its_weight(self, x):  # as T5 has it
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    x = x * torch.rsqrt(variance + self.eps)
    if self.weight.dtype in (torch.float16, torch.bfloat16):
        x = x.to(self.weight.dtype)
    return self.weight * x if len(self.weight) == self.weight.shape[-1] else x


def of_its_type(self, x):
    return (x.float().pow(2) * 0.5).to(x.dtype)


def gate(self, x, y):
    return self.act(x) * y + y


def masked(self, x, y):
    return torch.where(x > y, x * y, -1.0) / (1 + y.abs())


def scaled(self, x):
    return x + torch.clamp(self.scale * x, -1.0, max=1.0).sigmoid()


def softened(self, x):
    return F.softmax(x * 3.0, dim=-1) * x


def per_row(self, x, y):
    return (x - y.mean(-1, keepdim=True)) * self.scale


# What is computed, what is read, and the names of what becomes one.
FORMULAS = {
    "tanh gelu": (Own(tanh_gelu), [(3, 5)], "mul → pow → mul → add → mul → tanh → add → mul"),
    "rms norm": (
        Own(rms_norm, weight=parameter(7), eps=1e-6),
        [(2, 3, 7)],
        "pow → mean → add → rsqrt → mul → mul",
    ),
    "gate of a layer": (OfTwo(gate, act=torch.nn.SiLU()), [(4, 63), (4, 63)], "SiLU → mul → add"),
    "options of a layer": (OfTwo(gate, act=torch.nn.LeakyReLU(0.3)), [(4, 5), (4, 5)], "LeakyReLU → mul → add"),
    "mask": (OfTwo(masked), [(3, 5), (3, 5)], "gt → mul → where → abs → add → truediv"),
    "spread": (OfTwo(masked), [(2, 3, 4), (3, 1)], "gt → mul → where → abs → add → truediv"),
    "channels": (Own(scaled, scale=parameter(3, 1, 1)), [(2, 3, 4, 5)], "mul → clamp → sigmoid → add"),
    "a number": (Own(scaled, scale=parameter()), [(2, 3)], "mul → clamp → sigmoid → add"),
    "softmax": (Own(softened), [(2, 3, 7)], "mul → softmax → mul"),
    "a row for all": (OfTwo(per_row, scale=parameter(6)), [(2, 4, 6), (6,)], "mean → sub → mul"),
    "one operation": (torch.nn.ELU(0.7), [(3, 5)], "elu"),
}


def results(model: torch.nn.Module, given: list[Tensor]) -> list[Tensor]:
    """The result, and the gradients of what was given and of the parameters."""
    given = [t.detach().requires_grad_() for t in given]
    y = model(*given)
    ramp = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, [*given, *model.parameters()], ramp)]


def kernels(model: torch.nn.Module, backend: str = "c") -> int:
    """By how many kernels of a backend the expressions of a module, which all that are alike share, have been run."""
    plans = vars(model)["_fused_plans"].known.values()
    found = [c for plan in plans for c in plan.constants if isinstance(c, expression.Expression)]
    return sum(way is not None and case.backend == backend for e in found for case, way in e._ways.items())


def ready(name: str) -> tuple[torch.nn.Module, torch.nn.Module, list[Tensor]]:
    """A module that computes in one pass, one that does not, and what both read."""
    module, shapes, _ = FORMULAS[name]
    module = copy.deepcopy(module).double()
    usual = copy.deepcopy(module)
    assert pellucid.swap(module, fuse=True).fused
    return module, usual, [draw(*shape, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("name", FORMULAS)
def test_the_same_numbers_in_one_pass(name):
    module, usual, given = ready(name)
    state = list(module.state_dict())
    with pellucid.backend("c"):
        for training in MODES:
            ours, theirs = (results(m.train(training), given) for m in (module, usual))
            for a, b in zip(ours, theirs, strict=True):
                assert a.dtype == b.dtype
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert kernels(module) > 0
        with torch.no_grad():
            torch.testing.assert_close(module(*given), usual(*given), rtol=1e-10, atol=1e-12)
    assert list(module.state_dict()) == state
    report = pellucid.restore(module)
    assert [(group.before, group.kind) for group in report.fused] == [(FORMULAS[name][2], "operations")]
    assert type(module) is type(usual)


@pytest.mark.parametrize("name", ["tanh gelu", "rms norm", "gate of a layer", "softmax", "channels"])
def test_gradients_of_gradients(name):
    module, _, given = ready(name)
    given = [t.requires_grad_() for t in given]
    with pellucid.backend("c"):
        assert torch.autograd.gradcheck(module, given, fast_mode=True)
        assert torch.autograd.gradgradcheck(module, given, fast_mode=True)


def test_what_is_only_compared_has_no_gradient():
    module = OfTwo(lambda self, x, y: torch.where(y > self.scale, x * 2, -1.0), scale=parameter(5))
    assert pellucid.swap(module, fuse=True).fused
    x, y = draw(3, 5).requires_grad_(), draw(3, 5).requires_grad_()
    with pellucid.backend("c"):
        module(x, y).sum().backward()
        assert kernels(module) == 1
        assert not module(x.detach(), y).requires_grad
    assert torch.equal(x.grad, 2.0 * (y > module.scale))
    assert y.grad is module.scale.grad is None


def test_the_first_call_may_be_in_a_checkpoint():
    module, usual, given = ready("tanh gelu")
    x = given[0].requires_grad_()
    with pellucid.backend("c"):
        for m in (module, usual):
            m.found = torch.utils.checkpoint.checkpoint(m, x * 3, use_reentrant=False)
            m.found = torch.autograd.grad(m.found.sum(), x)[0]
    assert torch.allclose(module.found, usual.found, rtol=1e-10)


def test_a_checkpoint_keeps_the_same_in_both_runs():
    """Of an input this small the operations are faster one by one, which is known behind the first run."""

    def forward(self, x):
        t = torch.tanh(self.first(x))
        return self.second(x) + t * torch.sigmoid(t)

    model = Own(forward, first=torch.nn.Linear(5, 7), second=torch.nn.Linear(5, 7))
    pellucid.swap(model, fuse=True)
    for _ in range(3):
        torch.utils.checkpoint.checkpoint(model, torch.randn(3, 5), use_reentrant=False).sum().backward()
    assert model.first.weight.grad is not None


class Half(float):
    """A number that is not written as one."""

    def __repr__(self) -> str:
        return "one half"


@pytest.mark.parametrize("kind", [np.float64, Half])
def test_numbers_of_other_classes(kind):
    module = Own(lambda self, x: torch.tanh(x.roll(1)) * torch.sigmoid(x) + x.clamp(max=self.kind(0.5)), kind=kind)
    x = draw(3, 5)
    y = module(x)
    with pellucid.backend("c"):
        pellucid.swap(module, fuse=True)
        assert torch.allclose(module(x), y, rtol=1e-12)


def test_any_layout_and_size():
    module, usual, _ = ready("gate of a layer")
    x = draw(4, 63, 6, 8)
    pairs = [
        (x, x),
        (x.mT, draw(4, 63, 8, 6)),  # other strides
        (x[..., ::2], x[..., 1::2]),
        *[(x.to(memory_format=torch.channels_last), y) for y in (x, x[:1, :, :1, :1])],
        (x[:0], x[:0]),
        (x[:1, :1, :1, :1], x[:1, :1, :1, :1]),
        (x[0, 0, 0, 0], x),
        (x, x[0, 0].expand(4, 63, 6, 8)),
    ]
    with pellucid.backend("c"):
        for a, b in pairs:
            ours, theirs = module(a, b), usual(a, b)
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
            assert ours.is_contiguous() or not theirs.is_contiguous()
        for a, b in zip(results(module, [x, x[:, :1]]), results(usual, [x, x[:, :1]]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types(dtype):
    for body in (rms_norm_in_float32, rms_norm_by_its_weight, of_its_type):
        module = Own(body, weight=parameter(64), eps=1e-6).to(dtype)
        exact = copy.deepcopy(module).double()
        pellucid.swap(module, fuse=True)
        x = draw(5, 64).to(dtype)
        with pellucid.backend("c"):
            y = module(x)
        assert y.dtype == dtype
        assert kernels(module) > 0
        torch.testing.assert_close(y.double(), exact(x.double()), rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def in_double(self, x, y):
    return (x.double() * 1e8 + y - x.double() * 1e8).float() * 2


def test_what_is_computed_in_float64_stays_so():
    x, y = draw(3, 5), draw(3, 5, seed=1)
    pairs = [(x.float(), y), (x, y.float()), (x.float(), y[0]), (x.float(), y.float())]
    for body in (gate, in_double):
        module = OfTwo(body, act=torch.nn.Softplus())
        usual = copy.deepcopy(module)
        assert pellucid.swap(module, fuse=True).fused
        with pellucid.backend("c"):
            for a, b in pairs:
                ours, theirs = module(a, b), usual(a, b)
                assert ours.dtype == theirs.dtype
                torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
            if body is gate:
                for a, b in pairs[:2]:
                    torch.testing.assert_close(module(a, b), usual(a.double(), b.double()), rtol=1e-12, atol=1e-12)


def test_types_that_only_torch_decides():
    """A number in a tensor without axes does not raise the type; autocast chooses operators."""
    module = Own(scaled, scale=parameter())
    usual = copy.deepcopy(module)
    pellucid.swap(module, fuse=True)
    x = draw(3, 5).bfloat16()
    with pellucid.backend("c"):
        assert module(x).dtype == usual(x).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(module(x), usual(x))
        module.eval()
        assert module(2.0) == usual(2.0)  # no tensor at all
        assert torch.equal(module(torch.tensor([1, 2])), usual(torch.tensor([1, 2])))


def test_options_hooks_and_constants_may_change():
    module, usual, given = ready("options of a layer")
    seen = []
    with pellucid.backend("c"):
        first = module(*given)
        for m in (module, usual):
            m.act.negative_slope = 0.9
        assert torch.allclose(module(*given), usual(*given))
        assert not torch.allclose(module(*given), first)
        handle = module.act.register_forward_hook(lambda layer, args, y: seen.append(y))
        assert torch.allclose(module(*given), usual(*given))
        assert len(seen) == 1
        handle.remove()
        for m, x in ((module, given[0].clone()), (usual, given[0].clone())):
            m.act.inplace = True
            m(x, given[1])
            assert not torch.equal(x, given[0])
        for m in (module, usual):
            m.act = torch.nn.Tanh()
        assert torch.allclose(module(*given), usual(*given))
    module, usual, given = ready("rms norm")
    with pellucid.backend("c"):
        for m in (module, usual):
            m.eps = 1.0
            m.weight.data.mul_(2)
        assert torch.allclose(module(*given), usual(*given))


def test_what_is_asked_of_a_parameter_may_change():
    module = Own(rms_norm_by_its_weight, weight=parameter(64), eps=1e-6)
    pellucid.swap(module, fuse=True)
    with pellucid.backend("c"):
        for dtype in (torch.float32, torch.bfloat16, torch.float32):
            module.to(dtype)
            assert module(draw(5, 64).to(dtype)).dtype == dtype
        module.weight = parameter(1)
        x = draw(5, 64).float()
        assert torch.allclose(module(x), rms_norm_by_its_weight(module, x), rtol=1e-5)


def writes_between(self, x):
    y = x * 2
    x.mul_(3)
    return torch.tanh(y) + y


def writes_behind(self, x):
    y = x * 1
    z = torch.sigmoid(y) * 2
    y.view(-1).add_(1)
    return z, y


def layer_that_writes(self, x):
    y = x * 2
    return torch.tanh(y) + self.layers(x)


def statistics_of_a_layer(self, x):
    before = self.norm.running_mean * 2
    return torch.tanh(self.norm(x) * 2 + before)


def statistics_of_its_own(self, x):
    before = self.norm.running_mean * 2
    return torch.tanh(F.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True) * 2 + before)


def writes_inside(self, x):
    y = x * 2
    y += x
    return torch.tanh(y).mul_(2)


def used_twice(self, x):
    y = torch.tanh(x)
    return (y, y * 2 + 1)


def cheap(self, x):
    return torch.relu(x)


def along_another_axis(self, x):
    return x * x.mean(0, keepdim=True)


def of_numbers(self, x):
    return x.view(x.size(0) * x.size(1) // 2 + 0, 2)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (writes_between, []),
        (writes_inside, ["tanh"]),
        (writes_behind, []),
        (layer_that_writes, []),
        (statistics_of_a_layer, []),
        (statistics_of_its_own, []),
        (used_twice, ["mul → add", "tanh"]),
        (cheap, []),
        (along_another_axis, []),
        (of_numbers, []),
    ],
)
def test_what_is_no_expression(body, found):
    layers = torch.nn.Sequential(torch.nn.Dropout(0.0), torch.nn.ReLU(inplace=True))
    module = Own(body, layers=layers, norm=torch.nn.BatchNorm1d(4)).double()
    usual = copy.deepcopy(module)
    report = pellucid.swap(module, fuse=True)
    assert [group.before for group in report.fused] == found
    with pellucid.backend("c"):
        x, y = draw(3, 4), draw(3, 4)
        torch.testing.assert_close(module(x), usual(y))
        torch.testing.assert_close(x, y)


def test_only_says_which_modules():
    model = torch.nn.Sequential(torch.nn.ELU(), torch.nn.GELU(), Own(tanh_gelu))
    assert [g.paths for g in pellucid.swap(model, fuse=True, only="2").fused] == [("2",)]
    assert [g.paths for g in pellucid.swap(model, fuse=True, only=torch.nn.ELU).fused] == [("0",)]
    assert [g.paths for g in pellucid.restore(model).fused] == [("0",), ("2",)]


def test_the_faster_way_is_taken(monkeypatch):
    asked = []
    monkeypatch.setattr(expression, "faster", lambda *question: asked.append(question) or question[0].startswith("elu"))
    monkeypatch.setattr(expression, "LEAST", 16)
    x = draw(4, 5).requires_grad_()
    for module, wins in ((torch.nn.ELU(0.3), True), (torch.nn.GELU(), False)):
        pellucid.swap(module, fuse=True)
        module(x[:3])  # too small to ask
        assert not asked
        for _ in range(2):
            y = module(x)
        assert ("_Nested" in type(y.grad_fn).__name__) is wins
        (question,) = asked
        assert question[0].endswith(" float64 [4, 8] with gradient")
        assert [leaf.shape for leaf in question[4]] == [(4, 5)]
        torch.testing.assert_close(question[2](), question[3](), rtol=1e-12, atol=1e-14)
        asked.clear()


def test_alike_modules_share_an_expression():
    model = torch.nn.Sequential(*(Own(tanh_gelu) for _ in range(3)))
    pellucid.swap(model, fuse=True)
    model(draw(2, 3))
    found = {c for m in model for plan in vars(m)["_fused_plans"].known.values() for c in plan.constants}
    assert len(found) == 1


def test_copies_files_compilers_and_transforms():
    module, usual, (x,) = ready("rms norm")
    with pellucid.backend("c"):
        for other in (copy.deepcopy(module), saved(module)):
            assert isinstance(other, fusions.Fused)
            assert torch.allclose(other(x), usual(x))
        assert torch.allclose(torch.func.vmap(module)(x), usual(x))
        assert torch.allclose(
            torch.func.grad(lambda x: module(x).sum())(x), torch.func.grad(lambda x: usual(x).sum())(x)
        )
        exported = torch.export.export(module, (x,))
        assert torch.allclose(exported.module()(x), usual(x))
    assert torch.allclose(torch.compile(module, backend="eager", fullgraph=True)(x), usual(x))


def test_the_text_for_a_gpu():
    for name in ("tanh gelu", "rms norm", "gate of a layer"):
        module, usual, given = ready(name)
        with pellucid.backend("triton"):
            ours, theirs = (results(m, given) for m in (module, usual))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert kernels(module, "triton") > 0


@pytest.mark.gpu
def test_on_a_gpu():
    for name in FORMULAS:
        module, usual, given = ready(name)
        given = [t.cuda() for t in given]
        module, usual = module.cuda(), usual.cuda()
        with pellucid.backend("triton"):
            ours = results(module, given)
        for a, b in zip(ours, results(usual, given), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
        assert kernels(module, "triton") > 0
