"""Depthwise convolution in Triton: in its interpreter against torch in float64, and that GPUs can have it."""

from __future__ import annotations

import contextlib
import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fresh
import pellucid
from pellucid import nn
from pellucid.kernel import backends, gpu
from pellucid.kernel.windows import triton_depthwise
from pellucid.kernel.windows.window import Geometry

pytest.importorskip("triton", reason="Triton is not installed")
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
TIME, CHANNELS = False, True  # which axis lies side by side


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """The interpreter runs programs one after the other: tiles are as large as on a GPU with enough to do."""
    triton_depthwise._bound.clear()
    if not torch.cuda.is_available():
        monkeypatch.setattr(triton_depthwise, "ENOUGH", 1)
    yield
    triton_depthwise._bound.clear()


@contextlib.contextmanager
def by_triton(x):
    """On a GPU it is what runs anyway. Memory is full of NaN before it is written."""
    torch.use_deterministic_algorithms(True)
    try:
        with pellucid.backend("auto" if x.is_cuda else "triton"):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def draw(*shape, last=TIME, device="cpu"):
    """Normal numbers in float64, of shape (batch, channels, length)."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(device)
    return x.transpose(1, 2).contiguous().transpose(1, 2) if last else x


def make(channels, *arguments, multiplier=1, **options):
    torch.manual_seed(1)
    return nn.Conv1d(channels, channels * multiplier, *arguments, groups=channels, **options)


def check(layer, x, dtype=torch.float64):
    """Values and all gradients of the kernels in a type, against torch's in float64."""
    layer, x = layer.to(x.device, dtype), x.to(dtype).requires_grad_()
    exact, given = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    with pellucid.backend("stepwise"):
        expected = exact(given)
    dy = torch.cos(torch.arange(expected.numel(), device=x.device)).view(expected.shape).to(dtype)
    gradients = torch.autograd.grad(expected, [given, *exact.parameters()], dy.double())
    with by_triton(x):
        y = layer(x)
        assert layer.backend == "triton"
        found = (y, *torch.autograd.grad(y, [x, *layer.parameters()], dy))
    for ours, theirs in zip(found, (expected, *gradients), strict=True):
        assert ours.dtype == dtype
        most = theirs.abs().max().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=TOLERANCES[dtype] * (1 + most))
    return found


# -- numbers ----------------------------------------------------------------------------------------------------------

CASES = [  # channels, length, layer, its options
    (3, 20, (1,), {}),
    (16, 32, (2,), {"padding": "causal"}),
    (3, 33, (4,), {"padding": "causal"}),
    (8, 40, (4,), {"padding": "causal", "bias": False}),
    (2, 48, (7,), {"padding": 3, "dilation": 2}),
    (8, 24, (3,), {"padding": "causal", "dilation": 8}),
    (4, 21, (4, 2), {"padding": 5}),
    (3, 16, (3, 3), {"dilation": 2, "multiplier": 2}),
    (4, 24, (3,), {"padding": "same", "multiplier": 3}),
    (2, 4, (7,), {"padding": 6}),
    (16, 16, (31,), {"padding": 15}),
]


@pytest.mark.interpreter
@pytest.mark.parametrize("last", [TIME, CHANNELS], ids=["time", "channels"])
@pytest.mark.parametrize(("channels", "length", "arguments", "options"), CASES)
def test_is_the_convolution(channels, length, arguments, options, last):
    x = draw(2, channels, length, last=last)
    y, dx, *_ = check(make(channels, *arguments, **options), x)
    for result in (y, dx):
        assert result.stride(1 if last else 2) == 1  # laid out as the input is


@pytest.mark.interpreter
@pytest.mark.parametrize("last", [TIME, CHANNELS], ids=["time", "channels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("length", [40, 27])
def test_types_in_memory(dtype, length, last):
    check(make(8, 4, padding="causal"), draw(2, 8, length, last=last), dtype)


@pytest.mark.interpreter
@pytest.mark.parametrize("last", [TIME, CHANNELS], ids=["time", "channels"])
def test_more_taps_than_are_unrolled(last, monkeypatch):
    """As a kernel of 63: chunks in a loop, then the rest; sums of weights by several programs."""
    monkeypatch.setattr(triton_depthwise._kernels(), "MOST_UNROLLED", 12)
    monkeypatch.setattr(triton_depthwise, "MOST_UNROLLED", 12)
    check(make(2, 19, padding=9), draw(1, 2, 32, last=last))


@pytest.mark.interpreter
def test_a_kernel_of_63():
    check(make(2, 63, padding="causal"), draw(1, 2, 16))


@pytest.mark.interpreter
@pytest.mark.parametrize("last", [TIME, CHANNELS], ids=["time", "channels"])
def test_cut_into_small_tiles_and_parts(last, monkeypatch):
    """As on a GPU with little to do: sums come from several parts, always the same."""
    monkeypatch.setattr(triton_depthwise, "ENOUGH", 12)
    monkeypatch.setattr(triton_depthwise, "LEAST_SHARE", 1)
    layer, x = make(5, 3, padding="causal"), draw(3, 5, 70, last=last)
    found = check(layer, x, torch.float32)
    (kernel,) = triton_depthwise._bound.values()
    assert kernel._parts > 1
    assert kernel._of_weight.spans * kernel._of_weight.tiles > 1
    for ours, again in zip(found, check(layer, x.detach(), torch.float32), strict=True):
        assert torch.equal(ours, again)


@pytest.mark.interpreter
def test_any_layout():
    """Gaps along time, swapped axes, every other step, one sample for all, a slice that is not aligned; few samples."""
    layer = make(4, 3, padding=1)
    wide = draw(2, 4, 30)
    expanded = draw(1, 4, 16).expand(3, 4, 16)
    swapped = draw(4, 2, 16).transpose(0, 1)
    for x in (wide[..., 3:19], wide[..., ::2], expanded, swapped, draw(1, 4, 9), wide[..., :1], wide[:, :, 2:18:3]):
        with pellucid.backend("stepwise"):
            expected = layer.double()(x)
        with by_triton(x):
            torch.testing.assert_close(layer(x), expected)
            assert layer.backend == "triton"
    check(layer, swapped)
    check(layer, wide[..., ::2])
    with pellucid.backend("triton"):
        assert layer(wide[:0]).shape == (0, 4, 30)
    assert layer.backend == "torch"  # there is nothing to read


@pytest.mark.interpreter
def test_gradients_that_are_not_needed_or_lie_otherwise():
    layer, x = make(2, 3, padding="causal").double(), draw(2, 2, 9)
    for needed in ((True, False, False), (False, True, False), (False, False, True)):
        tensors = [t.detach().requires_grad_(n) for t, n in zip((x, layer.weight, layer.bias), needed, strict=True)]
        values = dict(zip(("weight", "bias"), tensors[1:], strict=True))
        wanted = [t for t in tensors if t.requires_grad]
        found = []
        for backend in ("triton", "stepwise"):
            with pellucid.backend(backend):
                y = torch.func.functional_call(layer, values, (tensors[0],))
            found.append(torch.autograd.grad(y.sum(), wanted))  # the gradient of a sum has no strides
        torch.testing.assert_close(*found)


@pytest.mark.interpreter
def test_gradients_of_gradients():
    layer = make(2, 2, padding="causal").double()
    names = list(dict(layer.named_parameters()))

    def function(x, *values):
        with pellucid.backend("triton"):
            y = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        assert layer.backend == "triton"
        return y

    inputs = [draw(1, 2, 3).requires_grad_(), *layer.parameters()]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


# -- layers -----------------------------------------------------------------------------------------------------------


def stream(layer, x, sizes):
    """Read a sequence in pieces of these sizes."""
    pieces, state = [], layer.initial_state(x.shape[0])
    for piece in x.split(sizes, -1):
        y, state = layer(piece, state=state)
        pieces.append(y)
    return torch.cat(pieces, -1)


@pytest.mark.interpreter
@pytest.mark.parametrize(("stride", "dilation", "mode"), [(1, 1, "zeros"), (1, 3, "replicate"), (2, 1, "zeros")])
def test_piece_by_piece(stride, dilation, mode):
    layer = make(3, 4, stride, padding="causal", dilation=dilation, padding_mode=mode).double()
    x = draw(2, 3, 12)
    with by_triton(x):
        y = stream(layer, x, [1, 1, 4, 0, 1, 5])
        assert layer.backend == "triton"
    torch.testing.assert_close(y, layer(x))


@pytest.mark.interpreter
def test_layers_around_it():
    layer, x = nn.SeparableConv1d(4, 3, 3, padding="causal", depth_multiplier=2).double(), draw(2, 4, 10)
    with by_triton(x):
        found = layer(x), layer(x, [10, 3])
        assert layer.depthwise.backend == "triton"
        assert layer.pointwise.backend == "torch"  # a dense convolution stays there
    torch.testing.assert_close(found, (layer(x), layer(x, [10, 3])))


@pytest.mark.interpreter
def test_casts_as_autocast_does():
    layer, x = make(4, 4, padding="causal"), draw(2, 4, 16).float()
    with torch.autocast("cpu", torch.bfloat16), by_triton(x):
        y = layer(x)
        assert layer.backend == "triton"
        expected = F.conv1d(F.pad(x, (3, 0)), layer.weight, layer.bias, groups=4)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.interpreter
def test_transforms_and_compilers_are_shown_torch():
    layer, x = make(3, 3, padding=1).double(), draw(2, 3, 8)
    expected = torch.func.jacrev(layer)(x)
    with pellucid.backend("triton"):
        torch.testing.assert_close(torch.func.jacrev(layer)(x), expected)
        torch.testing.assert_close(torch.func.vmap(layer)(x[:, None]).squeeze(1), layer(x))
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))
        y = layer(x.requires_grad_())
    vectors = torch.randn(2, *y.shape, dtype=torch.float64)
    (batched,) = torch.autograd.grad(y, x, vectors, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batched[1], torch.autograd.grad(y, x, vectors[1])[0])


@pytest.mark.interpreter
def test_wrong_inputs_are_named():
    layer = make(3, 3)
    for x, words in ((torch.zeros(2, 4, 8), "in_channels is 3"), (torch.zeros(2, 3, 8).double(), "float64")):
        with pellucid.backend("triton"), pytest.raises(RuntimeError, match=rf"nn\.Conv1d.*{words}"):
            layer(x)


@pytest.mark.parametrize("compiles", [True, False])
def test_what_is_missing_is_said(compiles, monkeypatch):
    words = "cannot compile .*no gcc.* C compiler"
    if compiles:
        monkeypatch.setattr(gpu, "interpreted", lambda: False)
        words = "TRITON_INTERPRET=1"
    monkeypatch.setattr(gpu, "_fault", lambda device: None if compiles else RuntimeError("no gcc"))
    backends.warn_once.cache_clear()
    layer, x = make(3, 3), torch.randn(2, 3, 8)
    with pellucid.backend("triton"):
        with pytest.warns(pellucid.PellucidWarning, match=f"a depthwise convolution .*{words}"):
            y = layer(x)
        layer(torch.randn(2, 3, 9))  # once
    assert layer.backend == "torch"
    torch.testing.assert_close(y, F.conv1d(x, layer.weight, layer.bias, groups=3))


# -- without the interpreter ------------------------------------------------------------------------------------------

COMPILE = """
import os, sys
sys.path[:0] = sys.argv[1], os.path.dirname(sys.argv[1])
import test_triton_depthwise as tests
for last in (tests.TIME, tests.CHANNELS):
    for name, text in tests.compiled(last).items():
        print(last, name, *tests.accesses(text))
"""


def compiled(last, architecture=80):
    """Compile both kernels of a causal convolution of width 4 in bfloat16 for a GPU: their texts for the assembler."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    found = {}

    def compile_only(call, *tensors):
        function, fixed = getattr(triton_depthwise._kernels(), call.name), dict(call.constants)
        options = {name: fixed.pop(name) for name in ("num_warps", "enable_fp_fusion") if name in fixed}
        kinds = [f"*{str(t.dtype)[6:].replace('bfloat', 'bf').replace('float', 'fp')}" for t in tensors]
        types = dict(zip(function.arg_names, [*kinds, *["i32"] * len(call.numbers)], strict=False))
        aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(tensors))}
        source = ASTSource(function, types | dict.fromkeys(fixed, "constexpr"), fixed, aligned)
        made = triton.compile(source, GPUTarget("cuda", architecture, 32), options=options)
        found[call.name] = made.asm["ptx"]

    x = torch.empty(8, 4096, 256, dtype=torch.bfloat16)
    x = x.transpose(1, 2) if last else x.transpose(1, 2).contiguous()
    weight, bias = torch.empty(256, 1, 4, dtype=x.dtype), torch.empty(256, dtype=x.dtype)
    kernel = triton_depthwise.Depthwise(x, weight, Geometry((4,), (1,), (1,), (3,), (0,)))
    kernel._launch = compile_only
    y, _ = kernel.forward(x, weight, bias)
    kernel.backward(x, weight, torch.empty_like(y), (True, True, True))
    return found


def accesses(text):
    """Reads and writes of 16 bytes, and those of 2."""
    wide, narrow = r"(v4\.b32|v2\.b64|b128)", r"[bu]16"
    return [
        len(re.findall(rf"\b{way}\.global\S*\.{width}\b", text)) for width in (wide, narrow) for way in ("ld", "st")
    ]


def test_gpus_can_have_it_in_whole_vectors(tmp_path):
    """Every entry of x, dy, y and dx is in accesses of 16 bytes, and none is read for each tap."""
    printed = fresh.for_gpu(COMPILE, tmp_path, str(Path(__file__).parent))
    found = {tuple(line.split()[:2]): [int(n) for n in line.split()[2:]] for line in printed.splitlines()}
    # Along time a thread has some groups of 8 entries: each reads its own and a neighbour's, and writes its own; the
    # taps' weights and the bias are single. With channels side by side the 4 steps of a group read 4 + 3, and backward
    # 4 of x and 4 + 3 of dy; the weights of 4 taps are vectors too, and the bias of forward is.
    reads, writes, single, others = found["False", "forward"]
    assert (reads, single, others) == (2 * writes, 5, 0)
    reads, writes, single, others = found["False", "backward"]
    assert (reads, single, others) == (3 * writes, 4, 0)
    assert found["True", "forward"] == [4 + 3 + 4 + 1, 4, 0, 0]
    assert found["True", "backward"] == [4 + 7 + 4, 4, 0, 0]


# -- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("last", [TIME, CHANNELS], ids=["time", "channels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_is_the_convolution_on_the_gpu(dtype, last):
    for channels, length, arguments, options in (
        (200, 1000, (4,), {"padding": "causal"}),
        (33, 777, (9,), {"padding": 4}),
        (24, 500, (63,), {"padding": "causal", "dilation": 2}),
        (40, 301, (5, 2), {"padding": 3, "multiplier": 2}),
    ):
        x = draw(3, channels, length, last=last, device="cuda")
        check(make(channels, *arguments, **options), x, dtype)


@pytest.mark.gpu
def test_streams_and_graphs_on_the_gpu():
    """No step waits for the GPU, a captured one runs again, on any stream; sums are the same every time."""
    layer = make(64, 4, padding="causal").cuda()
    x = draw(2, 64, 256, device="cuda").float().requires_grad_()
    leaves = [x, *layer.parameters()]

    def step():
        y = layer(x)
        return y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))

    first, whole = step(), layer(x).detach()  # a node of a graph that still lives would bind a capture to its stream
    stream(layer, x.detach(), [1, 255])
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            pieces = stream(layer, x.detach(), [1, 255])
        second = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert layer.backend == "triton"
    torch.testing.assert_close(pieces, whole)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    for results in zip(first, second, captured, strict=True):
        assert all(torch.equal(results[0], other) for other in results[1:])
