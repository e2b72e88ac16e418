"""The C backend: how work is shared, what stands in for it, what it draws and what a fork may do."""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import formulas
import fresh
import pellucid
from defining import make, results
from pellucid import nn
from pellucid.kernel import build, matmul, memory
from pellucid.kernel.recurrence import compiled
from pellucid.nn import cells


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("batch", [1, 2, 3, 33, 200])
@pytest.mark.parametrize(
    "cell", [cells.rnn, cells.lstm, cells.layernorm_lstm, formulas.noisy], ids=lambda c: c.source.name
)
def test_threads_share_the_work(two_threads, cell, batch, lengths):
    """Enough work for two threads: rows are split, or the input product of a single row."""
    layer = make(cell, {}, input_size=65, hidden_size=63, bidirectional=True)
    x = torch.randn(40, batch, 65, dtype=torch.float64)
    state = tuple(torch.rand(2, batch, size, dtype=torch.float64) for size in layer._state_sizes)
    real = torch.randint(0, 41, (batch,)) if lengths else None
    expected = results(layer, x, {}, state, real, "stepwise")
    with memory.poison():
        found = results(layer, x, {}, state, real, "c")
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="other processors are not slowed down"
)
@pytest.mark.parametrize(("dtype", "steps"), [(torch.float32, 200), (torch.float64, 1100)])
def test_what_vanishes_is_zero_before_it_is_slow(two_threads, dtype, steps):
    @pellucid.cell
    def leak(x, h, *, U):
        return 0.5 * h + 0 * (x @ U)

    layer = leak(2, 64, dtype=dtype)
    start = torch.ones(1, 64, 64, dtype=dtype, requires_grad=True)
    with pellucid.backend("c"):
        output, _ = layer(torch.zeros(steps, 64, 2, dtype=dtype), start)
    assert layer.backend == "c"
    last_normal = -math.frexp(torch.finfo(dtype).smallest_normal)[1]  # 2 to the minus that, after so many steps and one
    assert (output[last_normal] == torch.finfo(dtype).smallest_normal).all()
    assert not output[last_normal + 1 :].any()  # 2**-127 and so on have fewer digits
    output[last_normal - 1].sum().backward()
    assert (start.grad == 2 * torch.finfo(dtype).smallest_normal).all()

    small = torch.full((2**20,), torch.finfo(dtype).smallest_normal, dtype=dtype)
    assert (0.5 * small).ne(0).all()  # of torch's threads nothing has changed


def test_a_number_that_c_takes_for_zero_has_no_kernel():
    def with_epsilon(x, h, *, U):
        return torch.log(h * h + 1e-40) + x @ U

    for dtype, ran in ((torch.float32, "stepwise"), (torch.float64, "c")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer = pellucid.cell(with_epsilon)(2, 3, dtype=dtype)
            output, _ = layer(torch.zeros(9, 4, 2, dtype=dtype))
        assert layer.backend == ran
        assert output.isfinite().all()
        warned = any("the number 1e-40, which C takes for 0 in float32," in str(w.message) for w in caught)
        assert warned == (ran == "stepwise")


@pytest.mark.parametrize(
    ("layer", "together"),
    [
        (
            lambda: nn.LSTM(256, 256),
            {1: True, 2: True, 4: True, 5: False, 32: False},
        ),  # a large matrix is read by shares
        (lambda: nn.RNN(32, 32), {1: False, 2: False, 4: False}),  # a small one is in the cache of every thread
    ],
    ids=["large", "small"],
)
def test_threads_that_would_have_few_rows_work_on_all(two_threads, monkeypatch, layer, together):
    found = []

    def division(self, *sizes, by=compiled._Loop._division):
        found.append(by(self, *sizes))
        return found[-1]

    monkeypatch.setattr(compiled._Loop, "_division", division)
    layer, done = layer(), {}
    for batch in together:
        found.clear()
        with pellucid.backend("c"), torch.no_grad():
            layer(torch.randn(300, batch, layer.input_size))
        ((threads, block, done[batch]),) = found
        assert threads.number <= 2
        assert block == (batch if done[batch] else -(-batch // threads.number))
    assert done == together


@pytest.mark.parametrize(("batch", "blocks"), [(1, 1), (16, 1), (100, 3)])
def test_two_directions_are_taken_side_by_side(two_threads, monkeypatch, batch, blocks):
    """Each thread has a direction, and its rows are not shared; so has each thread of backward."""
    found = []

    def fill(self, jobs, histories, by=compiled._Loop._fill):
        found.append((self.layout.name, len(jobs), -(-batch // self._division(batch, 80, len(jobs))[1])))
        by(self, jobs, histories)

    monkeypatch.setattr(compiled._Loop, "_fill", fill)
    layer = nn.LSTM(256, 256, bidirectional=True)
    x, state = torch.randn(80, batch, 256), (torch.rand(2, batch, 256), torch.rand(2, batch, 256))
    expected = results(layer, x, {}, state, None, "stepwise")
    assert found == []
    with memory.poison():
        values = results(layer, x, {}, state, None, "c")
    assert found == [("forward", 2, blocks), ("backward", 2, blocks)]
    for name, value in values.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


def test_directions_of_which_one_is_frozen():
    layer, x = nn.GRU(3, 4, bidirectional=True).double(), torch.randn(5, 2, 3, dtype=torch.float64)
    for frozen in (layer.weight_ih_l0_reverse, layer.bias_hh_l0, layer.weight_hh_l0):
        frozen.requires_grad_(False)
        wanted = [p for p in layer.parameters() if p.requires_grad]
        found = []
        for backend in ("stepwise", "c"):
            with pellucid.backend(backend):
                output, _ = layer(x)
            found.append(torch.autograd.grad((output**2).sum(), wanted))
        torch.testing.assert_close(*found)


# -- what comes in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "batch", "lengths"), [(0, 2, None), (4, 0, None), (4, 0, []), (4, 2, [0, 0]), (1, 1, [1])]
)
def test_nothing_to_do(time, batch, lengths):
    layer = make(cells.lstm, {}, bidirectional=True)
    x = torch.randn(time, batch, 3, dtype=torch.float64)
    state = tuple(torch.rand(2, batch, 4, dtype=torch.float64) for _ in range(2))
    expected, found = (results(layer, x, {}, state, lengths, backend) for backend in ("stepwise", "c"))
    for name, value in found.items():
        assert value.shape == expected[name].shape
        torch.testing.assert_close(value, expected[name])


def test_strides_of_any_kind():
    """Input, state, parameters and the gradient of the output lie as they like."""
    layer = make(cells.lstm, {})
    dense = torch.randn(5, 2, 3, dtype=torch.float64)
    wide = torch.randn(3, 2, 10, dtype=torch.float64).permute(2, 1, 0)[::2].copy_(dense)
    repeated = dense[:1, :1].expand(5, 2, 3)
    state = torch.rand(1, 4, 2, dtype=torch.float64).transpose(1, 2), torch.rand(1, 1, 1).double().expand(1, 2, 4)
    weights = {n: p.detach().t().contiguous().t().requires_grad_() for n, p in layer.named_parameters() if p.dim() == 2}
    weights["b_l0"] = torch.rand(32, dtype=torch.float64)[::2].requires_grad_()
    for x in (dense, wide, repeated):
        found = []
        for backend, given in (("stepwise", x.contiguous()), ("c", x)):
            with pellucid.backend(backend):
                output, _ = torch.func.functional_call(layer, weights, (given, state))
            gradient = torch.ones((), dtype=torch.float64).expand_as(output)
            found.append((output, *torch.autograd.grad(output, list(weights.values()), gradient)))
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("backend", ["c", "stepwise"])
@pytest.mark.parametrize("state", [False, True], ids=["output", "state"])
def test_gradients_end_at_what_a_layer_reads(backend, state):
    """Of a layer whose input or state was computed from its own weights, where they are differentiated again too."""
    layer = make(formulas.leaky, {}, input_size=5, hidden_size=5)
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    with pellucid.backend(backend):
        output, last = layer(x)
        loss = (layer(x, last) if state else layer(output))[0].pow(3).sum()
        leaves = [x, *layer.parameters()]
        plain = torch.autograd.grad(loss, leaves, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(loss, leaves, create_graph=True), plain)


@pytest.mark.parametrize("frozen", ["x", "U_l0", "W_l0", "state 0", "everything else"])
def test_what_needs_no_gradient_gets_none(frozen):
    layer, x = make(cells.gru, {}), torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    state = torch.rand(1, 2, 4, dtype=torch.float64, requires_grad=True)
    inputs = {"x": x, "state 0": state, **dict(layer.named_parameters())}
    for name, tensor in inputs.items():
        tensor.requires_grad_((name == "b_l0") if frozen == "everything else" else name != frozen)
    wanted = [t for t in inputs.values() if t.requires_grad]
    found = []
    for backend in ("stepwise", "c"):
        with pellucid.backend(backend), memory.poison():
            output, last = layer(x, state, [5, 3])
        found.append(torch.autograd.grad((output * output).sum() + last.sum(), wanted))
    torch.testing.assert_close(*found)


def test_second_derivatives_of_what_c_computes():
    layer = make(cells.gru, {}, bidirectional=True)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)

    def function(x, *weights):
        given = dict(zip(dict(layer.named_parameters()), weights, strict=True))
        with pellucid.backend("c"):
            output = torch.func.functional_call(layer, given, (x,), {"lengths": [3, 1]})[0]
        assert layer.backend == "c"
        return output

    weights = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradgradcheck(function, (x, *weights), fast_mode=True)


@pytest.mark.parametrize("cell", [cells.lstm, formulas.noisy], ids=lambda c: c.source.name)
def test_the_operators_promise_what_c_returns(cell):
    layer = make(cell, {})
    values = [p.detach().clone().requires_grad_() for p in layer.symbol_values().values()]
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    states = [torch.rand(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for lengths, reverse in ((None, False), (torch.tensor([5, 2]), True)):
        options = (lengths, torch.tensor(7), layer._keys[0], True, reverse, 0, 0)
        with pellucid.backend("c"):
            torch.library.opcheck(torch.ops.pellucid.recurrence.default, (x, states, values, *options, True))
            detached = [t.detach() for t in values]
            results = torch.ops.pellucid.recurrence(x.detach(), [s.detach() for s in states], detached, *options, True)
            saved, gradients = results[3:], [torch.ones_like(r) for r in results[:3]]
            arguments = (x.detach(), [s.detach() for s in states], detached, *options, saved, gradients)
            torch.library.opcheck(torch.ops.pellucid.recurrence_backward.default, arguments)


# -- compilers, threads, processes and signals ------------------------------------------------------------------


def without_compiler(monkeypatch, folder):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)


def with_compiler(line):
    def spoil(monkeypatch, folder):
        script = folder / "compiler.sh"
        script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo mine && exit\n{line}\n')
        script.chmod(0o700)
        monkeypatch.setenv("CC", str(script))
        monkeypatch.setenv("PELLUCID_COMPILER_TIMEOUT", "0.5")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without_compiler, "no C compiler was found.*install one"),
        (with_compiler("echo no space left; exit 3"), r"ended with exit status 3(.|\n)*no space left"),
        (with_compiler("sleep 60"), r"was stopped after 0\.5 s"),
    ],
    ids=["missing", "failing", "hanging"],
)
def test_without_a_compiler_there_is_one_warning_and_the_result(monkeypatch, tmp_path, spoil, reason, request):
    request.addfinalizer(matmul.ready.cache_clear)  # other tests of this process have a compiler

    def fresh(x, h, *, U, W):
        return torch.tanh(x @ U - h @ W)

    layer = pellucid.cell(fresh)(3, 4)
    x = torch.randn(5, 2, 3)
    with pellucid.backend("naive"):
        expected = layer(x)[0]
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))
    spoil(monkeypatch, tmp_path)
    with pytest.warns(pellucid.PellucidWarning, match=f"cell .*fresh.* runs stepwise.*{reason}") as caught:
        outputs = [layer(x)[0] for _ in range(2)]
    assert len(caught) == 1
    assert layer.backend == "stepwise"
    for output in outputs:
        torch.testing.assert_close(output, expected)


def trained(layer, x):
    """Output and gradients of a layer by the C backend."""
    with pellucid.backend("c"):
        output = layer(x)[0]
    assert layer.backend == "c"
    return [output.detach(), *torch.autograd.grad(output.square().sum(), list(layer.parameters()))]


def test_many_threads_at_once(two_threads):
    """Eight threads run the same and other layers, whose programs nothing has built yet."""

    def fresh(x, h, *, U, W, b):
        return torch.sigmoid(x @ U + h @ W + b)

    layers = [pellucid.cell(fresh)(65, 63), cells.lstm(65, 63)] * 4
    x = torch.randn(60, 16, 65)
    barrier = threading.Barrier(len(layers))

    def work(layer):
        barrier.wait()
        return [trained(layer, x) for _ in range(5)]

    with ThreadPoolExecutor(len(layers)) as threads:
        found = list(threads.map(work, layers))
    for layer, several in zip(layers, found, strict=True):
        for result in several:
            torch.testing.assert_close(result, trained(layer, x), rtol=0, atol=0)


def train_at_barrier(barrier, layer, x, expected):
    barrier.wait(10)
    torch.testing.assert_close(trained(layer, x), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 warns of forks beside threads
def test_many_processes_compile_a_formula_at_once(monkeypatch, tmp_path):
    def fresh(x, h, *, U, W):
        return torch.tanh(x @ U) * torch.sigmoid(h @ W)

    layer, x = pellucid.cell(fresh)(3, 4), torch.randn(5, 2, 3)
    with pellucid.backend("stepwise"):
        output = layer(x)[0]
    expected = [output.detach(), *torch.autograd.grad(output.square().sum(), list(layer.parameters()))]
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(4)
    children = [fork.Process(target=train_at_barrier, args=(barrier, layer, x, expected)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        child.kill()
    assert [child.exitcode for child in children] == [0] * 4
    assert {path.suffix for path in (tmp_path / "kernels").iterdir()} == {".c", ".so", ".sha256"}
    assert len(list((tmp_path / "kernels").glob("*.so"))) == 1


FORK = """
import os, torch, pellucid
from pellucid import nn
torch.set_num_threads(2)
layer, x = nn.LSTM(64, 64), torch.randn(100, 32, 64)
expected = layer(x)[0]
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(layer(x)[0][-1], expected[-1]) else 3)  # few enough for torch to stay on one thread
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_computes_too():
    done = fresh.run(FORK)
    assert done.stdout.strip() == "0", done.stderr


INTERRUPT = """
import os, signal, threading, time, torch, pellucid
from pellucid import nn
layer, x = nn.LSTM(256, 256), torch.randn(4000, 64, 256)
sent = []
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have let it be ignored
def interrupt():
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)
with torch.no_grad():
    expected = layer(x[:3])[0]
    for _ in range(3):
        threading.Timer(0.3, interrupt).start()
        try:
            while True:
                layer(x)
        except KeyboardInterrupt:
            print(time.monotonic() - sent[-1], torch.equal(layer(x[:3])[0], expected))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGINT"), reason="no signals on this system")
def test_a_long_sequence_can_be_interrupted():
    done = fresh.run(INTERRUPT)
    delays, right = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
    assert right == ("True",) * 3, done.stderr
    assert min(map(float, delays)) < 0.2
