"""Row programs in Triton: norms, dropouts and row formulas in the interpreter and on a GPU, against float64."""

from __future__ import annotations

import copy
import math
import os

import numpy as np
import pytest
import torch

import pellucid
from pellucid import nn
from pellucid.kernel import nested, nested_triton
from pellucid.nn import dropout

pytest.importorskip("triton", reason="Triton is not installed")
IN_INTERPRETER = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="on a GPU Triton compiles; these run in its interpreter"
)
HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float64, torch.float32, *HALF)
WAYS = {  # how a nest is cut: what a block holds, entries of a tile, columns side by side, programs
    "whole": {},
    "looped": {"REGISTERS": 1, "TARGET": 32, "FEWEST_COLUMNS": 4, "INTERPRETED_PROCESSORS": 1, "WARPS": 1},
    "split": {"REGISTERS": 1, "TARGET": 16, "FEWEST_COLUMNS": 4, "INTERPRETED_PROCESSORS": 8, "WARPS": 1},
}


@pytest.fixture(autouse=True)
def _quiet():
    """What stands beyond the last entry is not stored; numpy warns of what is made of it."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def cut(monkeypatch):
    """Cut nests in one of the ways, whatever was cut before, and tell how they were."""
    plans, plan = [], nested_triton._plan

    def noted(*args):
        plans.append(plan(*args))
        return plans[-1]

    def choose(way):
        nested._bound.clear()
        for name, value in WAYS[way].items():
            monkeypatch.setattr(nested_triton, name, value)
        monkeypatch.setattr(nested_triton, "_plan", noted)
        nested_triton._processors.cache_clear()
        return plans

    monkeypatch.setattr(dropout, "SMALL", 0)
    yield choose
    nested._bound.clear()
    nested_triton._processors.cache_clear()


def last(x):
    """The same values with the channels side by side."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def gaps(x):
    """The same values, between others."""
    wide = x.new_full((*x.shape[:-1], x.shape[-1] + 3), 7.0)
    wide[..., 1:-2] = x
    return wide[..., 1:-2]


def eval_mode(layer):
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2.0)
    return layer.eval()


# -- norms ------------------------------------------------------------------------------------------------------------

NORMS = {
    "layer": (lambda: nn.LayerNorm(63), (1, 3, 63), lambda x: x),
    "layer 1": (lambda: nn.LayerNorm((1, 1), 1.0), (3, 1, 1), lambda x: x),
    "layer 1003": (lambda: nn.LayerNorm(1003), (2, 1003), lambda x: x),
    "layer with gaps": (lambda: nn.LayerNorm((3, 32)), (2, 3, 32), gaps),
    "rms": (lambda: nn.RMSNorm(64), (3, 64), lambda x: x),
    "group": (lambda: nn.GroupNorm(2, 4), (2, 4, 5, 7), lambda x: x),
    "group last": (lambda: nn.GroupNorm(2, 8), (2, 8, 3, 5), last),
    "group alone": (lambda: nn.GroupNorm(1, 7), (3, 7), lambda x: x),
    "batch 1d": (lambda: nn.BatchNorm1d(5), (33, 5), lambda x: x),
    "batch": (lambda: nn.BatchNorm2d(3), (2, 3, 5, 7), lambda x: x),
    "batch last": (lambda: nn.BatchNorm2d(8), (2, 8, 7, 3), last),
    "batch eval": (lambda: eval_mode(nn.BatchNorm2d(3)), (3, 3, 7, 9), lambda x: x),
    "batch eval last": (lambda: eval_mode(nn.BatchNorm2d(8)), (3, 8, 7, 3), last),
    "instance": (lambda: nn.InstanceNorm2d(2, affine=True), (2, 2, 9, 7), lambda x: x),
    "instance last": (lambda: nn.InstanceNorm2d(6, affine=True), (2, 6, 5, 7), last),
    "general": (lambda: nn.Normalization((0, 2), (1, 2), (3, 5)), (4, 3, 5, 3), lambda x: x),
}


def results(layer, x, gradient, backend, dtype, device="cpu"):
    """The result and all gradients, and what the layer has remembered, in float64 on the CPU."""
    layer = copy.deepcopy(layer).to(device, dtype)
    x = x.to(dtype).to(device, memory_format=torch.preserve_format).detach().requires_grad_()
    with pellucid.backend(backend):
        y = layer(x)
        y.backward(gradient.to(device, y.dtype))
    found = {"y": y.detach(), "x": x.grad} | {name: p.grad for name, p in layer.named_parameters()}
    found |= {name: b for name, b in layer.named_buffers() if b.is_floating_point()}
    if backend != "stepwise":
        assert layer.backend == "triton"
        assert (y.dtype, y.stride()) == (dtype, torch.empty_like(x).stride())
    return {name: t.double().cpu() for name, t in found.items()}


def compare(layer, x, dtype, device="cpu", backend="triton"):
    """Values and all gradients are those of float64, rounded once or twice."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) + 1)
        layer.to(dtype)
    x = x.to(dtype)
    gradient = torch.randn(layer.double()(x.double()).shape, generator=generator).to(dtype)
    found = results(layer, x, gradient, backend, dtype, device)
    wanted = results(layer, x.double(), gradient, "stepwise", torch.float64)
    unit = torch.finfo(dtype).eps
    for name, value in wanted.items():
        terms = math.sqrt(max(1, x.numel() / value.numel()))
        bound = (64 if dtype in (torch.float64, torch.float32) else 1) * unit
        scale = max(1.0, terms, float(value.abs().max()))
        torch.testing.assert_close(
            found[name] / scale, value / scale, rtol=bound, atol=bound, msg=lambda m, n=name: f"{n}: {m}"
        )


REDUCED = [
    name for name in NORMS if name not in ("layer 1", "layer 1003", "group alone", "batch eval", "batch eval last")
]


@IN_INTERPRETER
@pytest.mark.parametrize(
    ("way", "name"), [("whole", name) for name in NORMS] + [(w, n) for w in ("looped", "split") for n in REDUCED]
)
def test_every_norm_is_the_formula(cut, name, way):
    make, shape, lay = NORMS[name]
    plans = cut(way)
    x = lay(torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 2)
    dtype = torch.float64 if (len(name) + len(way)) % 3 else torch.float32
    compare(make(), x, dtype)
    reduced = [plan for plan in plans if plan.nest.inner and math.prod(shape) > 1]
    if way == "whole":
        assert all(plan.tile.whole for plan in reduced)
    else:
        assert any(not plan.tile.whole for plan in reduced)
        assert any(plan.tile.split for plan in reduced) == (way == "split")


@IN_INTERPRETER
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["layer", "rms", "group", "batch last"])
def test_sixteen_bits(cut, name, dtype):
    make, shape, lay = NORMS[name]
    cut("whole")
    compare(make(), lay(torch.randn(shape, generator=torch.Generator().manual_seed(2)) + 1), dtype)
