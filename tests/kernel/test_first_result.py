"""A new formula in a fresh process: the time to its first result, what that imports, and kernels as users get them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("sympy", "torch._dynamo", "torch._inductor")
FRESH = """
import json, sys, time
import torch
import torch.nn.functional as F

imported = set(sys.modules)
import pellucid

def values(layer, x):
    output, last = layer(x)
    layer.zero_grad()
    output.square().mean().backward()
    return [output.detach(), last[0].detach(), *(p.grad for p in layer.parameters())]

torch.manual_seed(0)
torch.set_num_threads(1)
x = torch.randn(20, 33, 65)
start = time.perf_counter()

@pellucid.cell
def mine(x, h, c, *, U, W, b=pellucid.zeros, gamma=pellucid.ones, beta=pellucid.zeros):
    i, f, g, o = (x @ U + h @ W + b).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(F.layer_norm(c, h.shape[-1:], gamma, beta)), c

layer = mine(65, 129)
found = values(layer, x)
seconds = time.perf_counter() - start
new, backend = sorted(set(sys.modules) - imported), layer.backend
with pellucid.backend("stepwise"):
    expected = values(layer, x)
print(json.dumps([seconds, new, backend, [float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)]]))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What two processes say, one after the other: the second finds the kernel of the first."""
    environment = {name: value for name, value in os.environ.items() if name != "PELLUCID_CFLAGS"}
    environment["PELLUCID_CACHE"] = str(tmp_path_factory.mktemp("first"))
    file = tmp_path_factory.mktemp("program") / "fresh.py"
    file.write_text(FRESH)

    def run():
        command = [sys.executable, "-W", "error:::pellucid", str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run(), run()


def test_the_first_result_of_a_known_formula_comes_soon(runs):
    seconds, _, backend, _ = runs[1]
    assert backend == "c"
    assert seconds < 3  # 0.2 to 0.3 s on two cores with nothing else to do


def test_neither_sympy_nor_the_compiler_of_torch_is_imported(runs):
    for _, new, _, _ in runs:
        assert not [name for name in new if name.startswith(HEAVY)]


def test_a_kernel_with_all_optimisations_is_right(runs):
    for _, _, backend, differences in runs:
        assert backend == "c"
        assert len(differences) == 7
        assert max(differences) < 1e-5
