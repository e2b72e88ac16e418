"""Which way a convolution or a pooling takes: what is measured, kept, and left to torch."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F

import pellucid
from pellucid import nn
from pellucid.kernel import build, choice, linear, memory
from pellucid.kernel.windows import convolve, pool
from windowing import CONVOLUTIONS, by_kernel, by_torch, draw_input


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder of its own for what is measured, and nothing measured yet; returns the file."""
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    monkeypatch.setattr(choice, "WORKING", 0)  # whatever else runs
    another_process(monkeypatch)
    monkeypatch.setattr(convolve, "_bound", {})
    return tmp_path / "choices.json"


def another_process(monkeypatch):
    """Forget what this one has measured and read."""
    for name, nothing in (("_measured", {}), ("_read", set()), ("_asked", set())):
        monkeypatch.setattr(choice, name, nothing)


def ways(calls, slow):
    """Two ways of which one is slow, noting who is called."""

    def way(name):
        def call():
            calls.append(name)
            if name == slow:
                sum(range(20000))

        return call

    return way("usual"), way("other")


def test_a_choice_is_measured_once_and_kept(kept, monkeypatch):
    calls = []
    assert choice.faster("adding", "text", *ways(calls, "usual"))
    assert set(calls) == {"usual", "other"}
    calls.clear()
    assert choice.faster("adding", "text", *ways(calls, "usual"))
    assert not choice.faster("taking away", "text", *ways([], "other"))
    another_process(monkeypatch)
    assert choice.faster("adding", "text", *ways(calls, "usual"))
    assert not calls
    (times,) = json.loads(kept.read_text()).values()
    assert {question.split(";")[0] for question in times} == {"adding", "taking away"}
    assert all(set(seconds) == {"usual", "other", "disturbed"} for seconds in times.values())
    assert choice.faster("adding", "another text", *ways(calls, "usual"))
    assert calls


def test_what_was_disturbed_is_measured_again_by_other_processes(kept, monkeypatch):
    question = f"adding; {torch.get_num_threads()} threads"
    for disturbed, asked, attempts in ((True, True, 1), (True, True, 2), (False, True, 0), (True, False, 0)):
        monkeypatch.setattr(choice, "WORKING", float("inf") if disturbed else 0)
        another_process(monkeypatch)
        calls = []
        assert choice.faster("adding", "text", *ways(calls, "usual"))
        assert bool(calls) == asked
        assert json.loads(kept.read_text())[choice._place("text")][question]["disturbed"] == attempts
        calls.clear()
        assert choice.faster("adding", "text", *ways(calls, "usual"))
        assert not calls, "the same process asked twice"


def test_disturbed_measurements_come_to_an_end(kept, monkeypatch):
    monkeypatch.setattr(choice, "WORKING", float("inf"))
    asked = []
    for _ in range(choice.MOST_ATTEMPTS + 1):
        another_process(monkeypatch)
        asked.append([])
        choice.faster("adding", "text", *ways(asked[-1], "usual"))
    assert [bool(calls) for calls in asked] == [True, True, True, False]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"PLACE": 3}', '{"PLACE": {"adding; 1 threads": "fast"}}'])
def test_a_damaged_file_is_measured_again(kept, damage):
    kept.write_text(damage.replace("PLACE", choice._place("text")))
    calls = []
    assert choice.faster("adding", "text", *ways(calls, "usual"))
    assert calls
    assert json.loads(kept.read_text())[choice._place("text")]["adding; 1 threads"]["other"] > 0


def test_without_a_folder_it_is_measured_by_every_process(monkeypatch, kept):
    monkeypatch.setattr(choice, "usable_cache", lambda: (_ for _ in ()).throw(OSError("read-only")))
    calls = []
    assert choice.faster("adding", "text", *ways(calls, "usual"))
    assert calls
    assert not kept.exists()


def test_the_faster_way_convolves(kept, monkeypatch):
    layer, x, asked = nn.Conv1d(8, 8, 3, groups=8), torch.randn(8, 8, 500), []

    def faster(question, text, usual, ours, leaves):
        usual(), ours()
        asked.append(question)
        return len(asked) == 1

    monkeypatch.setattr(convolve, "faster", faster)
    expected = F.conv1d(x, layer.weight, layer.bias, groups=8)
    for backend, size in (("c", 500), ("c", 500), ("torch", 400)):
        torch.testing.assert_close(layer(x[..., :size]), expected[..., : size - 2])
        assert layer.backend == backend
    assert len(asked) == 2
    assert "float32 [8, 512]" in asked[0]
    assert "gradients of weight, bias" in asked[0]
    by_torch(layer, x)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("size", "layout"),
    [
        *(((1, 1), torch.contiguous_format), ((9,), torch.contiguous_format), ((4, 4), torch.contiguous_format)),
        *(((5, 7), torch.contiguous_format), ((3, 4, 5), torch.contiguous_format)),  # one place, few and many
        *(((5, 7), torch.channels_last), ((3, 4, 5), torch.channels_last_3d)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_window_of_one_place_is_a_matrix_product(kept, monkeypatch, size, layout, bias, dtype):
    monkeypatch.setattr(convolve, "faster", lambda question, *_: "beside a product" not in question)
    products = []
    monkeypatch.setattr(convolve, "_by", lambda *given, by=convolve._by: products.append(given[0]) or by(*given))
    layer = CONVOLUTIONS[len(size)](33, 17, 1, bias=bias).to(dtype)
    x, dy = (draw_input(i, 5, n, *size).to(dtype, memory_format=layout).requires_grad_() for i, n in ((0, 33), (1, 17)))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    found = []
    for run in (by_torch, type(layer).__call__):
        with memory.poison():
            y = run(layer, x)
            first = torch.autograd.grad(y, [x, *layer.parameters()], dy, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, layer.weight, dy])
        changed = y.clone().relu_(), torch.autograd.grad(F.relu_(run(layer, x)).sum(), layer.weight)[0]
        found.append((y, *first, *second, *changed))
        assert layer.backend == "torch"
    assert found[1][0].stride() == torch.empty_like(found[1][0], memory_format=layout).stride()
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * (1 + theirs.abs().max().item()))
    torch.testing.assert_close(layer(x.detach()), layer(x).detach(), rtol=tolerance, atol=tolerance)
    layer.weight.data = layer.weight.data.transpose(0, 1).contiguous().transpose(0, 1)  # the same numbers
    frozen = layer.requires_grad_(False)(x)
    torch.testing.assert_close(torch.autograd.grad(frozen, x, dy)[0], found[0][1], rtol=tolerance, atol=tolerance)
    assert len(products) == 5
    assert all(isinstance(kernel, convolve.Pointwise) for kernel in products)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7)])  # one place, few and many
def test_a_window_of_one_place_says_which_product_ran(kept, monkeypatch, size, layout):
    monkeypatch.setattr(convolve, "faster", lambda question, *_: "beside a product" not in question)
    monkeypatch.setattr(linear, "LEAST_PRODUCTS", 0)
    monkeypatch.setattr(linear, "_chosen", {})
    layer, x = nn.Conv2d(33, 17, 1), draw_input(0, 5, 33, *size).float().to(memory_format=layout)
    expected = F.conv2d(x, layer.weight, layer.bias)
    for backend in ("torch", "c"):
        monkeypatch.setattr(linear, "faster", lambda *_, ours=backend == "c": ours)
        linear._chosen.clear()
        for wanted in (True, False):
            torch.testing.assert_close(layer.requires_grad_(wanted)(x), expected, rtol=1e-4, atol=1e-4)
            assert layer.backend == backend


def test_a_kernel_may_be_faster_than_a_product(kept, monkeypatch):
    layer, x, asked = nn.Conv1d(8, 16, 1), torch.randn(2, 8, 2000), []

    def faster(question, text, usual, ours, leaves):
        torch.testing.assert_close(usual(), ours())
        asked.append(question)
        return True

    monkeypatch.setattr(convolve, "faster", faster)
    torch.testing.assert_close(layer(x), F.conv1d(x, layer.weight, layer.bias))
    assert layer.backend == "c"
    assert ["beside a product" in question for question in asked] == [False, True]


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(64, 64, 1, stride=2), torch.randn(2, 64, 4, 4)),
        (nn.Conv2d(64, 64, 1, padding=1), torch.randn(2, 64, 4, 4)),
        (nn.Conv2d(64, 64, 1, groups=2), torch.randn(2, 64, 4, 4)),
        (nn.Conv2d(64, 64, 3, padding=1), torch.randn(2, 64, 4, 4)),
        (nn.Conv2d(64, 64, 1).bfloat16(), torch.randn(2, 64, 4, 4).bfloat16()),
        (nn.Conv2d(4, 4, 1), torch.randn(2, 4, 4, 4)),
    ],
)
def test_other_small_convolutions_are_torchs_to_the_last_digit(kept, monkeypatch, layer, x):
    monkeypatch.setattr(convolve, "faster", lambda *_: True)
    expected = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    assert torch.equal(layer(x), expected)
    assert layer(x).stride() == expected.stride()


def test_what_was_left_to_torch_is_not_decided_again(kept, monkeypatch):
    monkeypatch.setattr(convolve, "faster", lambda *_: False)
    decided = []
    monkeypatch.setattr(convolve, "run", lambda *given, run=convolve.run: decided.append(1) or run(*given))
    layer, x = nn.Conv2d(8, 8, 3, groups=8), torch.randn(2, 8, 32, 32)
    changes = [
        lambda x: layer(x),
        lambda x: layer(x.contiguous(memory_format=torch.channels_last)),
        lambda x: layer(x[:1].expand(2, -1, -1, -1)),
        lambda x: layer(x.detach().requires_grad_()),
        lambda x: layer(torch.cat([x, x])),
        lambda x: layer.requires_grad_(False)(x),
        lambda x: layer.double()(x.double()),
    ]
    for count, change in enumerate(changes, 1):
        change(x), change(x)
        assert len(decided) == count
        assert layer.backend == "torch"
    small = x[:, :, :16].double()
    with torch.autocast("cpu", torch.bfloat16):
        layer(small)
    torch.func.vmap(layer)(small.unsqueeze(0))
    layer(small)
    assert len(decided) == len(changes) + 2  # what autocast or a transform decides does not last
    by_kernel(layer, x.double())
    copied = copy.deepcopy(layer)
    copied.stride = (2, 2)  # which torch's operator then does
    torch.testing.assert_close(copied(x.double()), layer(x.double())[..., ::2, ::2])
    model = torch.nn.Sequential(layer)
    pellucid.restore(model)
    assert type(model[0]) is torch.nn.Conv2d
    assert vars(model[0]).keys() == vars(torch.nn.Conv2d(8, 8, 3)).keys()


@pytest.mark.parametrize("kind", ["MaxPool2d", "AvgPool2d"])
def test_a_pooling_that_was_left_to_torch_is_not_decided_again(monkeypatch, kind):
    monkeypatch.setattr(pool, "_bound", {})
    monkeypatch.setattr(pool, "faster", lambda *_: False)
    decided = []
    monkeypatch.setattr(pool, "_run", lambda *given, run=pool._run: decided.append(1) or run(*given))
    layer, theirs = getattr(nn, kind)(3), getattr(torch.nn, kind)(3)
    for count, size in enumerate(((32, 33), (33, 32)), 1):
        x = torch.randn(1, 8, *size)
        assert torch.equal(layer(x), theirs(x))
        assert torch.equal(layer(x), theirs(x))
        assert layer.backend == "torch"
        assert len(decided) == count
    by_kernel(layer, x)


def test_without_a_compiler_torch_convolves(monkeypatch):
    def missing(*_):
        raise build.BuildError("no C compiler was found")

    monkeypatch.setattr(convolve, "_bound", {})
    monkeypatch.setattr("pellucid.kernel.windows.window.library", missing)
    layer, x = nn.Conv1d(8, 8, 3, groups=8), torch.randn(8, 8, 500)
    with pytest.warns(pellucid.errors.PellucidWarning, match="a convolution runs stepwise.*no C compiler"):
        y = layer(x)
    torch.testing.assert_close(y, F.conv1d(x, layer.weight, layer.bias, groups=8))
    assert layer.backend == "torch"


def test_what_was_left_of_transposed_convolutions_is_not_decided_again(kept, monkeypatch):
    monkeypatch.setattr(convolve, "faster", lambda *_: False)
    decided = []
    monkeypatch.setattr(convolve, "run", lambda *given, run=convolve.run: decided.append(1) or run(*given))
    layer, x = nn.ConvTranspose1d(4, 3, 4, 2), torch.randn(4, 4, 1000)
    for count, read in enumerate((x, x.clone().requires_grad_(), x.double()), 1):
        layer.to(read.dtype)(read), layer(read)
        assert len(decided) == count
        assert layer.backend == "torch"
    torch.testing.assert_close(by_kernel(layer, read), layer(read))
