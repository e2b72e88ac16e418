"""The C backend: how work is shared, what stands in for it, what it draws and what a fork may do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

import formulas
import pellucid
from pellucid import nn
from pellucid.kernel import memory
from pellucid.nn import cells
from test_cells import make, results


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize("batch", [1, 2, 33, 200])
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


@pytest.mark.parametrize("size", [1, 7, 63, 128, 257])
@pytest.mark.parametrize("cell", [cells.lstm, cells.gru, cells.layernorm_rnn], ids=lambda c: c.source.name)
def test_float32_rounds_as_float32_does(cell, size):
    """Against float64: no worse than ten times plain torch in float32, on the same numbers."""
    torch.manual_seed(size)
    layer = cell(size, size)
    x = torch.randn(6, 3, size)
    exact = results(layer.double(), x.double(), {}, zeros(layer, 3, torch.float64), [6, 0, 3], "stepwise")
    layer = layer.float()
    found, plain = (
        results(layer, x.clone(), {}, zeros(layer, 3, torch.float32), [6, 0, 3], b) for b in ("c", "stepwise")
    )
    for name, value in exact.items():
        error, usual = ((r[name].double() - value).norm() for r in (found, plain))
        assert error <= 10 * usual + 1e-6 * value.norm() + 1e-12, name


def zeros(layer, batch, dtype):
    return tuple(torch.zeros(1, batch, size, dtype=dtype) for size in layer._state_sizes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_hold_what_float32_computes(dtype):
    torch.manual_seed(0)
    layer = nn.LSTM(33, 65).to(dtype)
    x = torch.randn(20, 3, 33, dtype=dtype)
    exact = layer.double()(x.double())[0]
    layer = layer.to(dtype)
    with pellucid.backend("c"):
        found = layer(x)[0].double()
    with pellucid.backend("stepwise"):
        plain = layer(x)[0].double()
    assert layer.backend == "stepwise"
    assert (found - exact).norm() < (plain - exact).norm()


def test_a_missing_compiler_gives_one_warning_and_the_result(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))

    def fresh(x, h, *, U, W):
        return torch.tanh(x @ U - h @ W)

    layer = pellucid.cell(fresh)(3, 4)
    x = torch.randn(5, 2, 3)
    with pytest.warns(pellucid.PellucidWarning, match="cell .*fresh runs stepwise") as caught:
        outputs = [layer(x)[0] for _ in range(2)]
    assert len(caught) == 1
    assert layer.backend == "stepwise"
    torch.testing.assert_close(*outputs)


def test_many_threads_at_once():
    layer = nn.GRU(5, 6)
    x = torch.randn(30, 3, 5)
    expected = layer(x)[0]
    found = []

    def work() -> None:
        for _ in range(20):
            found.append(layer(x)[0])

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 120
    for output in found:
        torch.testing.assert_close(output, expected, rtol=0, atol=0)


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
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0", done.stderr


INTERRUPT = """
import os, signal, threading, time, torch, pellucid
from pellucid import nn
layer, x = nn.LSTM(256, 256), torch.randn(4000, 64, 256)
with torch.no_grad():
    layer(x[:3])
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        for _ in range(100):
            layer(x)
    except KeyboardInterrupt:
        print("interrupted", layer(x[:3])[0].isfinite().all().item())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGINT"), reason="no signals on this system")
def test_a_long_sequence_can_be_interrupted():
    done = subprocess.run([sys.executable, "-c", INTERRUPT], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "interrupted True", done.stderr
