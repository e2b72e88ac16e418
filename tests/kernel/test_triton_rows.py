"""Row programs in Triton: norms, dropouts and row formulas in the interpreter and on a GPU, against float64."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import formulas
import fresh
import pellucid
from pellucid import nn
from pellucid.kernel import gpu
from pellucid.kernel.rows import nested, nested_triton
from pellucid.nn.dropout import dropout
from pellucid.nn.normalization import normalization
from pellucid.nn.swapped import fused

pytest.importorskip("triton", reason="Triton is not installed")
HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float64, torch.float32, *HALF)
SMALL_TILES = {"REGISTERS": 1, "FEWEST_COLUMNS": 4, "ENOUGH_COLUMNS": 4, "WARPS": 1}
ONE_PROCESSOR = {**SMALL_TILES, "TARGET": 32, "INTERPRETED_PROCESSORS": 1}
WAYS = {  # how a nest is cut: what a block holds, entries of a tile, columns side by side, programs
    "whole": {},
    "looped": {**ONE_PROCESSOR, "INTERPRETED_CACHE": 0},
    "in turns": ONE_PROCESSOR,
    "split": {**SMALL_TILES, "TARGET": 16, "INTERPRETED_PROCESSORS": 8},
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
        return plans

    monkeypatch.setattr(dropout, "FEW_COINS", 0)
    yield choose
    nested._bound.clear()


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


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("way", "name"),
    [("whole", name) for name in NORMS]
    + [(("looped", "in turns", "split")[i % 3], n) for i, n in enumerate(REDUCED)]
    + [("in turns", "group"), ("split", "group"), ("looped", "group last"), ("split", "group last")],
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
        assert any(plan.tile.turns for plan in reduced) == (way == "in turns")


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["layer", "rms", "group", "batch last"])
def test_sixteen_bits(cut, name, dtype):
    make, shape, lay = NORMS[name]
    cut("whole")
    compare(make(), lay(torch.randn(shape, generator=torch.Generator().manual_seed(2)) + 1), dtype)


@pytest.mark.interpreter
@pytest.mark.parametrize("way", WAYS)
def test_padding_far_inputs_and_an_empty_batch(cut, way):
    """A mask along the rows; a million deviations from 0; nothing at all."""
    cut(way)
    generator = torch.Generator().manual_seed(0)
    layer, x = nn.GroupNorm(2, 4).double(), torch.randn(2, 4, 17, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([16, 0])
    with pellucid.backend("triton"):
        found = layer(x, lengths=lengths)
        assert layer.backend == "triton"
    torch.testing.assert_close(found, layer(x, lengths=lengths))
    far, norm = torch.randn(3, 200, generator=generator, dtype=torch.float64) * 1e-2 + 1e4, nn.LayerNorm(200)
    with pellucid.backend("triton"):
        near = norm(far.float()).double()
        assert norm(torch.empty(0, 200)).shape == (0, 200)
    torch.testing.assert_close(near, norm.double()(far.float().double()), rtol=1e-5, atol=1e-5)


@pytest.mark.interpreter
def test_places_beyond_32_bits(cut, monkeypatch):
    cut("looped")
    monkeypatch.setattr(nested_triton, "FARTHEST", 0)
    make, shape, lay = NORMS["group last"]
    compare(make(), lay(torch.randn(shape, dtype=torch.float64)), torch.float64)
    layer, x = nn.Dropout(0.4, seed=3), torch.randn(5, 64)
    with pellucid.backend("triton"):
        found = layer(x)
    torch.testing.assert_close(found, nn.Dropout(0.4, seed=3)(x))


@pytest.mark.interpreter
@pytest.mark.parametrize("begin", [2**31 - 8, 2**31 - 3, 2**33])
def test_draws_that_begin_before_32_bits_end(cut, monkeypatch, begin):
    """As those of a formula's second dropout do: their elements are counted on, beyond what 32 bits hold."""
    cut("whole")
    monkeypatch.setattr(nested.Draws, "of", lambda seed, stream, _: nested.Draws(seed, int(stream), {"draws": begin}))
    found, x = [], torch.ones(5, 16)
    for backend in ("triton", "c"):
        with pellucid.backend(backend):
            found.append(nn.Dropout(0.4, seed=3)(x))
    torch.testing.assert_close(*found)


# -- dropouts ---------------------------------------------------------------------------------------------------------

DROPOUTS = {
    "Dropout": (nn.Dropout, (5, 64), lambda x: x),
    "Dropout odd": (nn.Dropout, (3, 63), gaps),
    "Dropout last": (nn.Dropout, (2, 4, 3, 5), last),
    "Dropout1d": (nn.Dropout1d, (3, 5, 7), lambda x: x),
    "Dropout2d": (nn.Dropout2d, (3, 8, 4, 4), lambda x: x),
    "Dropout2d last": (nn.Dropout2d, (3, 8, 4, 4), last),
    "Dropout3d": (nn.Dropout3d, (2, 3, 2, 2, 3), lambda x: x),
    "LockedDropout": (nn.LockedDropout, (5, 3, 12), lambda x: x),
    "DropPath": (nn.DropPath, (9, 3), lambda x: x),
    "AlphaDropout": (nn.AlphaDropout, (7, 9), lambda x: x),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout, (4, 5, 3), lambda x: x),
}


def drops_as_on_the_cpu(name, dtype, seed, device="cpu"):
    """The mask is that of C bit for bit, in forward and backward, call after call."""
    make, shape, lay = DROPOUTS[name]
    layers = [make(0.4, seed=seed) for _ in range(2)]
    for _ in range(2):
        x = lay(torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 1).to(dtype)
        found = []
        for layer, place, backend in zip(layers, (device, "cpu"), ("triton", "auto"), strict=True):
            given = x.to(place, memory_format=torch.preserve_format).requires_grad_()
            with pellucid.backend(backend):
                y = layer(given)
            assert layer.backend == ("triton" if backend == "triton" else "c")
            (gradient,) = torch.autograd.grad(y.sum(), given)
            found.append((y.detach().cpu(), gradient.cpu()))
        for a, b in zip(*found, strict=True):
            assert torch.equal(a == 0, b == 0)
            torch.testing.assert_close(a, b, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", DROPOUTS)
def test_masks_are_those_of_the_cpu(cut, name):
    cut("looped" if name in ("Dropout1d", "DropPath") else "whole")
    drops_as_on_the_cpu(name, DTYPES[len(name) % 4], (-1) ** len(name) * (2**40 + len(name)))


# -- formulas of rows -------------------------------------------------------------------------------------------------


@pellucid.layer
def attention(x, *, W, b=pellucid.zeros):
    """A softmax behind a product and a dropout, and what is largest."""
    a = torch.softmax(pellucid.dropout(x @ W, 0.4) + b, -1)
    return a * (a == a.amax(-1, keepdim=True))


@pellucid.layer
def ranged(x, *, g):
    """The largest and the smallest entry, one of which may be no number."""
    return x * g + x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)


@pellucid.layer
def turned(x, *, g):
    """What no Triton is written for."""
    return torch.atan2(x, g)


ROWS = {
    "stepped": (formulas.stepped, 5, {}),
    "scaled twice": (formulas.scaled_twice, 63, {}),
    "shared": (formulas.shared, 6, {}),
    "pieces": (formulas.pieces, 17, {}),
    "attention": (attention, 9, {"output_size": 12}),
    "weighed": (formulas.weighed, 6, {}),
    "AddNorm": (nn.AddNorm, 21, {"p": 0.3}),
    "SwiGLU": (nn.SwiGLU, 8, {"out_features": 5}),
    "GEGLU": (nn.GEGLU, 7, {"out_features": 16}),
    "DyT": (nn.DyT, 33, {}),
    "ScaleNorm": (nn.ScaleNorm, 16, {}),
}


def rows_are_the_formula(name, rows, dtype, device="cpu"):
    make, size, options = ROWS[name]
    torch.manual_seed(0)
    layer = make(size, **options).double()
    for p in layer.parameters():
        p.data.normal_()
    layer.to(dtype)
    sizes = [layer.solution().symbols[symbol.name].shape[-1] for symbol in layer.layer.source.inputs]
    given = [torch.randn(rows, own).to(dtype) for own in sizes]
    found = []
    for backend, place, kind in (("triton", device, dtype), ("stepwise", "cpu", torch.float64)):
        own = copy.deepcopy(layer).to(place, kind)
        leaves = [x.to(place, kind).requires_grad_() for x in given]
        torch.manual_seed(5)
        with pellucid.backend(backend):
            y = own(*leaves)
        assert own.backend == backend
        weights = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape).to(dtype)
        gradients = torch.autograd.grad(y, [*leaves, *own.parameters()], weights.to(y))
        found.append([y.detach(), *gradients])
    for a, b in zip(*found, strict=True):
        bound = 256 * torch.finfo(dtype).eps
        scale = max(1.0, float(b.abs().max()), math.sqrt(rows))
        torch.testing.assert_close(a.double().cpu() / scale, b / scale, rtol=bound, atol=bound)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", ROWS)
def test_formulas_of_rows(cut, name):
    cut("split" if len(name) % 2 else "whole")
    rows_are_the_formula(name, 1 + 6 * (len(name) % 3), DTYPES[len(name) % 2])


@pytest.mark.interpreter
def test_the_largest_of_a_row_is_nan_where_one_is(cut):
    cut("whole")
    layer, x = ranged(9).double(), torch.randn(3, 9, dtype=torch.float64)
    x[1, 4] = torch.nan
    with pellucid.backend("triton"):
        found = layer(x)
        assert layer.backend == "triton"
    with pellucid.backend("stepwise"):
        expected = layer(x)
    assert torch.isnan(expected[1]).all()
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", ["stepped", "scaled twice", "shared"])
def test_rows_are_shared_among_programs(cut, name):
    """Nothing but rows is added up over rows, so that no program has to have all of them."""
    plans = cut("whole")
    rows_are_the_formula(name, 999, torch.float64)
    assert len(plans) == 2
    assert all(plan.programs > 1 for plan in plans)


@pytest.mark.interpreter
def test_a_row_whose_columns_are_cut_is_computed_once(cut, monkeypatch):
    plans = cut("whole")
    monkeypatch.setattr(nested_triton, "TARGET", 4)
    rows_are_the_formula("pieces", 3, torch.float32)
    assert plans
    assert all(plan.tile.blocks[-1] == 32 for plan in plans if not plan.nest.inner)  # of 17 columns


@pytest.mark.interpreter
def test_what_cannot_be_written_runs_in_plain_torch():
    layer = turned(3)
    x = torch.randn(2, 3)
    with pellucid.backend("triton"), pytest.warns(pellucid.PellucidWarning, match=r"atan2 .* Triton(.|\n)*stepwise"):
        found = layer(x)
    assert layer.backend == "stepwise"
    torch.testing.assert_close(found, layer(x))


# -- what stands around a norm ----------------------------------------------------------------------------------------


@pytest.mark.interpreter
def test_a_norm_in_company(cut):
    """Dropout, sum, norm, another sum and activation as one kernel, with the masks of the layers one by one."""
    cut("whole")
    norm, x, beside = nn.LayerNorm(24).double(), *torch.randn(2, 5, 24, dtype=torch.float64)
    alone = [nn.Dropout(0.4, seed=2), norm, torch.nn.GELU()]
    together = [nn.Dropout(0.4, seed=2), copy.deepcopy(norm), torch.nn.GELU()]
    wanted = fused.one_by_one(norm, x, beside, alone[0], beside, alone[2])
    with pellucid.backend("triton"):
        found = fused.normalize_in_company(together[1], x, beside, together[0], beside, together[2])
    assert together[0].backend == together[1].backend == "triton"
    torch.testing.assert_close(found, wanted)


@pytest.mark.interpreter
def test_second_gradients_and_transforms(cut):
    cut("whole")
    layer = nn.LayerNorm(3, 0.1).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with pellucid.backend("triton"):
        assert torch.autograd.gradgradcheck(layer, x)
        torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
        _, tangent = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.zeros_like(x))


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("count", "columns"), [(2, 1), (63, 31), (64, 32), (65, 33), (200, 100)])
def test_parts_of_sums_are_added(count, columns, dtype):
    real = torch.float64 if dtype == torch.float64 else torch.float32
    parts = torch.randint(-1, 2, (count, columns)).to(real)  # sums that every type has
    found = gpu.added(parts, dtype)
    assert found.dtype == dtype
    assert torch.equal(found, parts.double().sum(0).to(dtype))


@pytest.mark.interpreter
def test_sums_over_rows_are_the_same_every_time(cut):
    """Several programs add up, each its own rows."""
    plans = cut("looped")
    nested_triton.REGISTERS, nested_triton.INTERPRETED_PROCESSORS = 2**12, 3
    layer, x = nn.LayerNorm(16), torch.randn(40, 16)
    gradients = []
    for _ in range(2):
        layer.zero_grad()
        with pellucid.backend("triton"):
            layer(x).backward(x)
        gradients.append(torch.cat([p.grad for p in layer.parameters()]))
    assert any(plan.programs == 3 for plan in plans)
    assert torch.equal(*gradients)


# -- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_input_is_small(monkeypatch):
    monkeypatch.setattr(normalization, "SMALL_ON_GPU", 0)


@pytest.mark.parametrize("entries", [12, 13])
def test_small_inputs_are_torchs_on_a_gpu(monkeypatch, entries):
    """Unless Triton is asked for; a fused neighbour or padding stays with the kernel."""
    monkeypatch.setattr(normalization, "SMALL_ON_GPU", 13)
    monkeypatch.setattr(normalization, "language", lambda *tensors: "triton")
    layer, x = nn.BatchNorm1d(1), torch.randn(entries, 1)
    called = [layer._call(x, real, False, normalization.ALONE) for real in (None, torch.ones(entries, 1))]
    assert (called[0] is None) == (entries < 13)
    assert called[1] is not None
    with pellucid.backend("triton"):
        assert layer._call(x, None, False, normalization.ALONE) is not None


LARGE = {  # beside the small ones: several blocks, rows that no block holds, few channels of many entries
    "layer 1024": (lambda: nn.LayerNorm(1024), (300, 1024), lambda x: x),
    "layer 40000": (lambda: nn.LayerNorm(40000), (9, 40000), lambda x: x),
    "rms 1000": (lambda: nn.RMSNorm(1000), (77, 1000), lambda x: x),
    "group large": (lambda: nn.GroupNorm(4, 32), (5, 32, 57, 60), lambda x: x),
    "group large last": (lambda: nn.GroupNorm(4, 32), (5, 32, 57, 60), last),
    "group of many": (lambda: nn.GroupNorm(32, 128), (16, 128, 96, 97), lambda x: x),
    "batch large": (lambda: nn.BatchNorm2d(8), (70, 8, 48, 48), lambda x: x),
    "batch large last": (lambda: nn.BatchNorm2d(8), (70, 8, 48, 48), last),
}


SMALL = ["layer", "layer with gaps", "group last", "batch", "batch eval last", "instance", "general"]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "dtype"), [(name, DTYPES[i % 4]) for i, name in enumerate([*SMALL, *LARGE])])
def test_every_norm_on_the_gpu(name, dtype):
    make, shape, lay = (NORMS | LARGE)[name]
    compare(make(), lay(torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 1), dtype, "cuda", "auto")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["Dropout", "Dropout odd", "Dropout2d last", "AlphaDropout"])
def test_masks_on_the_gpu(monkeypatch, name):
    monkeypatch.setattr(dropout, "FEW_COINS", 0)
    drops_as_on_the_cpu(name, DTYPES[len(name) % 4], 2**40 + len(name), "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["pieces", "attention", "AddNorm", "GEGLU"])
def test_formulas_of_rows_on_the_gpu(name):
    rows_are_the_formula(name, 300, DTYPES[len(name) % 2], "cuda")


@pytest.mark.gpu
def test_streams_graphs_and_autocast_on_the_gpu():
    """Another stream is kept to; a graph replays, with masks of a generator on the GPU; autocast is torch's."""
    layer, x = nn.LayerNorm(256, device="cuda"), torch.randn(1000, 256, device="cuda")
    wanted, stream = layer(x), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = layer(x)
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(found, wanted)
    drop = nn.Dropout(0.5, generator=torch.Generator("cuda"))
    drop(layer(x))
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(drop.generator)
    with torch.cuda.graph(graph):
        y = drop(layer(x))
    masks = []
    for _ in range(2):
        graph.replay()
        masks.append(y != 0)
    assert not torch.equal(*masks)
    torch.testing.assert_close(y, torch.where(masks[-1], 2 * wanted, 0))
    with torch.autocast("cuda", torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.nn.functional.layer_norm(x.bfloat16(), (256,)).dtype
        assert nn.Dropout(0.5).cuda()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu():
    """No call fetches a number from the GPU, in forward or backward."""
    layer = torch.nn.Sequential(nn.LayerNorm(64), nn.Dropout(0.3), nn.BatchNorm1d(64, momentum=None))
    layer.cuda()
    x = torch.randn(500, 64, device="cuda", requires_grad=True)
    layer(x).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# -- without the interpreter ------------------------------------------------------------------------------------------

COMPILE = """
import os, sys
sys.path[:0] = sys.argv[1], os.path.dirname(sys.argv[1])
import test_triton_rows as tests
tests.compile_all()
"""
STORAGE = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}


def compile_all():
    """Compile kernels for a GPU that is not here, and print how each reads memory."""
    gpu.check = lambda device: None
    gpu.launch = _compile
    nested_triton.INTERPRETED_PROCESSORS = 132
    with pellucid.backend("triton"):
        for layer, shape, lay in (
            (nn.LayerNorm(1000), (64, 1000), lambda x: x),
            (nn.GroupNorm(8, 64), (64, 64, 4, 4), last),
            (nn.BatchNorm2d(16), (64, 16, 32, 32), lambda x: x),
            (nn.Dropout(0.3), (64, 64), lambda x: x),
            (nn.AddNorm(512), (64, 512), lambda x: x),
        ):
            given = [
                lay(torch.empty(shape)).bfloat16().requires_grad_() for _ in range(1 + isinstance(layer, nn.AddNorm))
            ]
            y = layer.bfloat16()(*given)
            y.backward(torch.empty_like(y))


def _compile(function, _, given, constants, *, num_warps):
    """Compile a kernel for what it would be launched with."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds, known, hints = dict.fromkeys(constants, "constexpr"), dict(constants), {}
    for place, (name, value) in enumerate(zip(function.arg_names, given, strict=False)):
        if isinstance(value, torch.Tensor):
            kinds[name] = STORAGE[value.dtype]
        else:
            kinds[name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, float) or name in function.do_not_specialize:
                continue
            if value == 1:
                kinds[name], known[name] = "constexpr", 1
        if isinstance(value, torch.Tensor) or value % 16 == 0:
            hints[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, kinds, known, hints)
    options = {"num_warps": num_warps, **gpu.OPTIONS}
    built = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
    vectors = sum(map(built.asm["ptx"].count, ("ld.global.v4.b32", "cp.async.cg.shared.global")))  # of 16 bytes
    print(function.__name__, vectors, built.metadata.shared)


def test_gpus_can_have_it_and_read_vectors(tmp_path):
    """Machine code of every kind of kernel; what lies side by side is read by 16 bytes."""
    printed = fresh.for_gpu(COMPILE, tmp_path, str(Path(__file__).parent))
    lines = [line.split() for line in printed.splitlines()]
    assert len(lines) >= 2 * 5
    for name, vectors, shared in lines:
        assert int(vectors) > 0, (name, printed)
        assert int(shared) <= 48 * 2**10
