"""nn.Linear: torch's numbers and gradients by pellucid's product, and torch's own wherever that has to run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import linear

import pellucid
from pellucid import nn
from pellucid.kernel import linear as kernel
from pellucid.kernel import matmul, memory

SIZES = [(1, 1, 1), (7, 63, 65), (130, 300, 64), (64, 6, 129)]  # rows, in features, out features
KINDS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def made(in_features, out_features, **options):
    """A layer, and torch's with the same weights."""
    torch.manual_seed(0)
    ours = nn.Linear(in_features, out_features, **options)
    theirs = torch.nn.Linear(in_features, out_features, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def results(layer, x, dy=None):
    """The output and all gradients, in float64."""
    x = x.detach().requires_grad_()
    y = layer(x)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape) if dy is None else dy
    return [t.double() for t in (y, *torch.autograd.grad(y, [x, *layer.parameters()], dy))]


def check(ours, theirs, x, **options):
    """Compare with torch's layer in float64: allowed is what adding up so many numbers in this type may do."""
    with pellucid.backend("c"), memory.poison():
        found = results(ours, x, **options)
    assert ours.backend == "c"
    exact = {name: o.double() if isinstance(o, torch.Tensor) else o for name, o in options.items()}
    expected = results(copy.deepcopy(theirs).double(), x.double(), **exact)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        allowed = 8 * torch.finfo(x.dtype).eps * max(x.shape[-1], x.numel() // x.shape[-1]) ** 0.5
        assert (a - b).abs().max() <= allowed * b.abs().max().clamp(min=1)


@KINDS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "inside", "outside"), SIZES)
def test_it_computes_what_torch_does(rows, inside, outside, bias, dtype):
    ours, theirs = made(inside, outside, bias=bias, dtype=dtype)
    check(ours, theirs, torch.randn(rows, inside, dtype=dtype))


@KINDS
@pytest.mark.parametrize("layout", ["1-D", "3-D", "turned", "every other", "expanded", "gradient expanded"])
def test_layouts(layout, dtype):
    ours, theirs = made(20, 24, dtype=dtype)
    x = torch.randn(6, 4, 20, dtype=dtype)
    if layout == "gradient expanded":
        check(ours, theirs, x, dy=torch.ones((), dtype=dtype).expand(6, 4, 24))
        return
    given = {
        "1-D": lambda: x[0, 0],
        "3-D": lambda: x,
        "turned": lambda: torch.randn(20, 9, dtype=dtype).t(),
        "every other": lambda: torch.randn(8, 40, dtype=dtype)[:, ::2],
        "expanded": lambda: x[:1, :1].expand(6, 4, 20),
    }
    check(ours, theirs, given[layout]())


def test_a_weight_in_any_layout_and_a_bias_with_gaps():
    ours, theirs = made(31, 40, dtype=torch.float64)
    for layer in (ours, theirs):
        layer.weight = torch.nn.Parameter(layer.weight.detach().t().contiguous().t())
        layer.bias = torch.nn.Parameter(torch.linspace(0, 1, 80, dtype=torch.float64)[::2])
    check(ours, theirs, torch.randn(5, 31, dtype=torch.float64))


@pytest.mark.parametrize("turned", [True, False])
def test_a_weight_as_it_is_and_turned(turned):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 5, 33), torch.randn(33, 40), torch.randn(40)
    lies = weight.t().contiguous() if turned else weight

    def by_torch(x, lies, bias):
        return linear(x, lies if turned else lies.t(), bias)

    leaves = [t.requires_grad_() for t in (x, lies, bias)]
    with pellucid.backend("c"):
        y = kernel.run(x, lies, bias, by_torch, turned)
    torch.testing.assert_close(y, by_torch(x, lies, bias))
    dy = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(by_torch(*leaves), leaves, dy), atol=1e-4, rtol=1e-4
    )


OPERANDS = {
    "batches": lambda draw: (draw(3, 2, 7, 65), draw(3, 2, 65, 33)),
    "columns side by side": lambda draw: (draw(4, 9, 12), draw(4, 20, 12).mT),
    "heads of one tensor": lambda draw: (draw(2, 5, 3, 8).transpose(1, 2), draw(2, 6, 3, 8).permute(0, 2, 3, 1)),
    "expanded": lambda draw: (draw(1, 4, 6).expand(3, 4, 6), draw(6, 5).expand(3, 6, 5)),
    "with gaps": lambda draw: (draw(2, 8, 12)[:, ::2, ::3], draw(2, 8, 14)[:, ::2, ::2]),
    "of one number": lambda draw: (draw(2, 1, 1), draw(2, 1, 1)),
}


@KINDS
@pytest.mark.parametrize("operands", OPERANDS.values(), ids=OPERANDS)
def test_products_of_batches(operands, dtype, monkeypatch):
    torch.manual_seed(0)
    given = operands(lambda *shape: torch.randn(shape, dtype=dtype))
    ran = []
    multiply = matmul.multiply
    monkeypatch.setattr(matmul, "multiply", lambda pairs: ran.append(len(pairs)) or multiply(pairs))
    leaves = [t.detach().requires_grad_() for t in given]
    with pellucid.backend("c"), memory.poison():
        y = kernel.product(*leaves)
        dy = torch.randn_like(y)
        found = torch.autograd.grad(y, leaves, dy)
    assert ran == [1, 2]
    exact = [t.detach().double().requires_grad_() for t in given]
    expected = exact[0] @ exact[1]
    for a, b in zip((y, *found), (expected, *torch.autograd.grad(expected, exact, dy.double())), strict=True):
        torch.testing.assert_close(a.double(), b, atol=50 * torch.finfo(dtype).eps, rtol=50 * torch.finfo(dtype).eps)
    with torch.no_grad(), pellucid.backend("c"):  # one matrix for all
        torch.testing.assert_close(
            kernel.product(given[0].flatten(0, -3)[0], given[1]), given[0].flatten(0, -3)[0] @ given[1]
        )


def test_products_are_differentiated_again_and_left_to_torch():
    a, b = (torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with pellucid.backend("c"):
        assert torch.autograd.gradcheck(kernel.product, (a, b))
        assert torch.autograd.gradgradcheck(kernel.product, (a, b))
        for x, y in ((a[0], b), (a, b[0]), (a[:, :0], b), (a.to(torch.bfloat16), b.to(torch.bfloat16))):
            assert torch.equal(kernel.product(x, y), x @ y)
        with pytest.raises(RuntimeError, match="size"):
            kernel.product(a[:, :, :2], b)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "none"])
def test_only_the_gradients_that_are_asked_for(wanted):
    ours, theirs = made(12, 16)
    x = torch.randn(9, 12, requires_grad=wanted == "x")
    for layer in (ours, theirs):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name == wanted)
    with pellucid.backend("c"):
        y = ours(x)
    assert ours.backend == "c"
    assert y.requires_grad == (wanted != "none")
    if wanted != "none":
        leaf = [x if wanted == "x" else getattr(layer, wanted) for layer in (ours, theirs)]
        found, expected = (
            torch.autograd.grad(result.sum(), leaf) for result, leaf in zip((y, theirs(x)), leaf, strict=True)
        )
        torch.testing.assert_close(found, expected)


def test_gradients_of_gradients():
    ours, _ = made(3, 4, dtype=torch.float64)
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    parameters = tuple(ours.parameters())

    def run(x, *given):
        return torch.func.functional_call(ours, dict(zip(("weight", "bias"), given, strict=True)), x)

    with pellucid.backend("c"):
        assert torch.autograd.gradcheck(run, (x, *parameters))
        assert torch.autograd.gradgradcheck(run, (x, *parameters))
    assert ours.backend == "c"


def test_an_input_across_may_be_written_to():
    """As with torch, which multiplies a copy of it: attention adds what it gives to its input in place."""
    layers = torch.nn.Linear(64, 48), nn.Linear(64, 48)
    layers[1].load_state_dict(layers[0].state_dict())
    found = []
    for layer in layers:
        x = torch.linspace(-1, 1, 5 * 7 * 64).view(7, 5, 64).requires_grad_()
        across = (2 * x).transpose(0, 1)
        with pellucid.backend("c"):
            y = layer(across)
        across.add_(1)
        y.square().sum().backward()
        found.append((y, x.grad, layer.weight.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_its_output_may_be_written_to():
    ours, theirs = made(8, 8)
    x = torch.randn(2, 3, 8)
    found, expected = [], []
    for layer, kept in ((ours, found), (theirs, expected)):
        with pellucid.backend("c"):
            y = layer(x)
        y[0] = 0
        y.mul_(2)
        y.sum().backward()
        kept += [y, layer.weight.grad, layer.bias.grad]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(0, 4), torch.zeros(2, 0, 4), torch.zeros(3, 4, dtype=torch.bfloat16)],
    ids=["empty batch", "length 0", "bfloat16"],
)
def test_torch_runs_where_there_is_no_kernel(x):
    ours, theirs = made(4, 5, dtype=x.dtype)
    with pellucid.backend("c"):
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    assert ours.backend == "torch"


def test_torch_runs_in_transforms_under_autocast_and_in_compiled_graphs():
    ours, theirs = made(4, 5)
    x = torch.randn(6, 4)
    with pellucid.backend("c"):
        torch.testing.assert_close(torch.vmap(ours)(x), theirs(x))
        torch.testing.assert_close(torch.func.jvp(ours, (x,), (x,)), torch.func.jvp(theirs, (x,), (x,)))
        with torch.autocast("cpu", torch.bfloat16):
            assert ours(x).dtype == torch.bfloat16
        assert ours.backend == "torch"
        compiled = torch.compile(ours, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), theirs(x))
        assert torch.export.export(ours, (x,)).module()(x).shape == (6, 5)


def test_small_work_is_torchs_and_large_work_is_measured(monkeypatch):
    ours, theirs = made(256, 256)
    asked = []
    monkeypatch.setattr(kernel, "_chosen", {})
    monkeypatch.setattr(kernel, "faster", lambda question, *_: asked.append(question) or True)
    small, large = torch.randn(2, 256), torch.randn(64, 256)
    ours(small)
    assert (ours.backend, asked) == ("torch", [])
    for x in (large, large, torch.randn(60, 256)):  # those of about one size are asked about alike
        torch.testing.assert_close(ours(x), theirs(x))
        assert ours.backend == "c"
    assert len(asked) == 2
    assert len(set(asked)) == 1
    assert "64 rows" in asked[0]
    ours(small)
    assert ours.backend == "torch"  # again, though what was left to torch is not decided anew


def test_without_a_compiler_torch_runs(monkeypatch):
    ours, theirs = made(4, 5)
    monkeypatch.setattr(matmul, "ready", lambda dtype: False)
    x = torch.randn(6, 4)
    with pellucid.backend("c"):
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    assert ours.backend == "torch"


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(2, 7, 3), r"batch 2, time 7, features 3.*reads \(\.\.\., features 4\).*in_features=3"),
        (torch.zeros(4, 6), r"features 6.*in_features=6, or pass x\.transpose\(-1, -2\)"),
        (torch.zeros(()), r"Give it an axis of features"),
        (torch.zeros(2, 4, dtype=torch.float64), r"of torch\.float64.*Convert one: x\.to\(torch\.float32\)"),
        (torch.zeros(2, 4, device="meta"), r"on meta, but the weights are on cpu.*x.to"),
    ],
)
def test_errors_name_the_layer_and_the_cure(x, said):
    model = torch.nn.Sequential(nn.Linear(4, 5))
    with pytest.raises(RuntimeError, match=rf'(?s)nn\.Linear "0": the input is .*{said}'):
        model(x)


def test_swap_and_restore():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    model[2].weight = torch.nn.Parameter(model[2].weight.detach())
    x = torch.randn(3, 8)
    expected = model(x)
    report = pellucid.swap(model, verify=x)
    assert [type(layer) for layer in model] == [nn.Linear, torch.nn.ReLU, nn.Linear]
    assert len(report.replaced) == 2
    torch.testing.assert_close(model(x), expected)
    pellucid.restore(model)
    assert [type(layer) for layer in model] == [torch.nn.Linear, torch.nn.ReLU, torch.nn.Linear]
    torch.testing.assert_close(model(x), expected)


def test_it_is_explained_in_short_as_torchs():
    layer = nn.Linear(8, 16)
    x = torch.randn(3, 8)
    text = str(pellucid.explain(torch.nn.Sequential(layer), x))
    assert "y = x Wᵀ + b" in text
