"""Recurrence in Triton: its numbers in the interpreter against the reference, its text, and that GPUs can have it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import formulas
import fresh
import pellucid
from goldens import golden
from pellucid import nn
from pellucid.kernel import gpu, registry
from pellucid.kernel.language import layout
from pellucid.kernel.recurrence import emit_triton, jitted, runners
from pellucid.kernel.windows import triton_depthwise
from pellucid.nn import cells
from pellucid.nn.recurrence import torch_recurrence
from running import CELLS, HALF, TIME, amplified, check, compare, inputs, make, run

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(autouse=True)
def _quiet():
    """Rows and columns beyond the real ones hold zeros; numpy warns of what is made of them, and nobody reads."""
    with np.errstate(all="ignore"):
        yield


# -- every cell against the reference ---------------------------------------------------------------------------------

SIZES = ((7, 5, 4), (16, 16, 18), (33, 1, 1), (1, 7, 3))  # hidden, input, batch: powers of two and others, two blocks


@pytest.mark.interpreter
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_the_reference(name):
    number = list(CELLS).index(name)
    hidden, size, batch = SIZES[number % len(SIZES)]
    dtype, turned = (torch.float32 if number % 3 == 0 else torch.float64), number % 2 == 0
    layer = make(CELLS[name], size, hidden, dtype, bidirectional=turned, num_layers=1 if turned else 2)
    lengths = [(TIME - i) % (TIME + 1) for i in range(batch)] if number % 3 else None
    compare(layer, lengths, batch, dtype, "triton")


@pytest.mark.interpreter
@pytest.mark.parametrize("name", ["lstm", "layernorm_gru", "lstm_projected", "cfc"])
def test_matrices_that_are_too_large_to_be_held(name, monkeypatch):
    """So does a kernel for which the GPU has too little shared memory: the next one is taken, for good."""
    layer, launch, launched = make(CELLS[name], 5, 41, torch.float64), jitted._Written.launch, []

    def small(written, *arguments):
        division = written.kernel.division
        launched.append((division.held, division.single))
        if division.held:
            raise gpu.out_of_resources()(200_000, 100_000, "shared memory")
        launch(written, *arguments)

    monkeypatch.setattr(jitted._Written, "launch", small)
    _forget()
    compare(layer, [3, 2, 1, 0], 2 * jitted.MOST_TURNS, torch.float64, "triton")
    assert launched.count((False, False)) >= 2
    assert launched.count((True, False)) == launched.count((True, True)) == 2


@pytest.mark.interpreter
@pytest.mark.parametrize("name", CELLS)
def test_a_row_for_every_block(name, monkeypatch):
    """Where there are few rows the threads of a block multiply by the columns that are in their registers."""
    number, launch, launched = list(CELLS).index(name), jitted._Written.launch, []
    hidden, size, batch = ((41, 5, 2), (7, 33, 1), (16, 16, 2), (1, 3, 2))[number % 4]
    dtype, turned = (torch.float64, torch.float32, torch.float32)[number % 3], number % 2 == 0

    def noted(written, *arguments):
        launched.append(written.kernel.division.single)
        launch(written, *arguments)

    monkeypatch.setattr(jitted._Written, "launch", noted)
    layer = make(CELLS[name], size, hidden, dtype, bidirectional=turned)
    compare(layer, [TIME, 2][:batch] if number % 3 else None, batch, dtype, "triton")
    assert launched
    assert all(launched) == (name not in ("indrnn", "mlstm", "delta_rule"))  # which have no matrix of the state


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("cell", "dtype", "held", "batch"),
    [
        (cells.lstm, torch.float64, True, 18),
        (cells.gru, torch.float64, False, 3),
        (cells.layernorm_gru, torch.float64, True, 3),
        (cells.lstm_projected, torch.bfloat16, True, 3),
        (formulas.noisy, torch.float64, True, 3),
        (formulas.headed, torch.float64, True, 3),
        (formulas.concatenated, torch.float64, False, 3),
    ],
    ids=lambda value: value.source.name if isinstance(value, pellucid.Cell) else str(value),
)
def test_columns_shared_among_blocks(cell, dtype, held, batch, monkeypatch):
    """Each block is a process: they wait for each other, which the interpreter's blocks, one by one, cannot."""
    monkeypatch.setattr(jitted, "divisions", lambda *_: [jitted.Division(4 if batch > 16 else 2, held)])
    _rows_together(monkeypatch)
    monkeypatch.setattr(jitted._Written, "launch", _in_processes)
    _forget()
    layer = make(cell, 3, 21 if cell is not formulas.concatenated else 6, dtype)
    compare = _as_defined if dtype == torch.float64 else _within_rounding
    compare(layer, [(i + 1) % (TIME + 1) for i in range(batch)], batch)
    _forget()


def _forget():
    """Let the kernels be written anew."""
    runners._fused.cache_clear()
    runners._ready.cache_clear()


def _in_processes(written, blocks, given, constants):
    tensors = [value for value in given if isinstance(value, torch.Tensor)]
    shared = {t.data_ptr(): torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).share_memory_() for t in tensors}
    for tensor in tensors:
        shared[tensor.data_ptr()].copy_(tensor)
    given = [shared[value.data_ptr()] if isinstance(value, torch.Tensor) else value for value in given]
    children = []
    for block, split in itertools.product(range(blocks), range(written.kernel.division.splits)):
        child = os.fork()
        if not child:
            failed = 1
            try:
                written._function[(1, 1)](*given[:-2], given[-2] + block, split, **constants)
                failed = 0
            finally:
                os._exit(failed)
        children.append(child)
    failed = [os.waitpid(child, 0)[1] for child in children]
    assert not any(failed)
    for tensor in tensors:
        tensor.copy_(shared[tensor.data_ptr()])


@pytest.mark.interpreter
@pytest.mark.parametrize(("name", "dtype"), [("lstm", HALF[0]), ("layernorm_lstm", HALF[1])], ids=str)
def test_sixteen_bits(name, dtype):
    """Operands of products are rounded to 16 bits, sums and states have 32: within what torch's rounding does."""
    _within_rounding(make(CELLS[name], 5, 21, dtype), [3, 2, 1, 0, 3, 3, 3], 7)


def _within_rounding(layer, lengths, batch):
    given = inputs(layer, TIME, batch)
    expected = run(layer, given, lengths, "stepwise", torch.float64)
    allowed = amplified(layer, given, lengths, expected, next(layer.parameters()).dtype)
    check(layer, given, lengths, expected, {n: 2 * limit for n, limit in allowed.items()}, "triton")


@pytest.mark.interpreter
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize(
    "cell",
    [formulas.variational, formulas.noisy, formulas.zoned, formulas.shaken, cells.dale],
    ids=lambda cell: cell.source.name,
)
def test_draws_are_those_of_every_backend(cell, lengths):
    _as_defined(make(cell, 3, 9), [i % 5 for i in range(19)] if lengths else None, 19)


OTHERS = {cell.source.name: (cell, sizes) for cell, sizes in formulas.WORKING}


@pytest.mark.interpreter
@pytest.mark.parametrize(
    "name",
    "low_rank read_out masked half_outside concatenated indexed crowded rooted shifted delayed".split(),
)
def test_every_feature_of_a_formula(name):
    cell, sizes = OTHERS[name]
    _as_defined(cell(3, 5, dtype=torch.float64, **sizes), [3, 2, 4, 0], 4)


@pytest.mark.interpreter
def test_values_that_many_share_are_looked_at_once():
    _as_defined(make(formulas.iterated, 3, 4), None, 2)


def _as_defined(layer, lengths, batch):
    given = inputs(layer, 4, batch)
    found, defined = (run(layer, given, lengths, backend, torch.float64) for backend in ("triton", "naive"))
    torch.testing.assert_close(found, defined)


@pytest.mark.interpreter
def test_the_largest_of_columns_is_nan_where_one_is():
    layer, x = make(formulas.ranged, 3, 5), torch.randn(2, 4, 3, dtype=torch.float64)
    x[1, 2, 0] = torch.nan
    with pellucid.backend("triton"):
        found = layer(x)[0]
    with pellucid.backend("naive"):
        defined = layer(x)[0]
    assert torch.isnan(defined[1, 2]).all()
    torch.testing.assert_close(found, defined, equal_nan=True)


@pytest.mark.interpreter
def test_edges():
    """No step, no row, one of each; a sequence in chunks; inputs and states that are not contiguous."""
    layer = make(cells.gru, 3, 5)
    for time, batch in ((0, 2), (2, 0), (1, 1)):
        given = inputs(layer, time, batch)
        torch.testing.assert_close(
            run(layer, given, None, "triton", torch.float64), run(layer, given, None, "stepwise", torch.float64)
        )
    x = torch.randn(4, 6, 3, dtype=torch.float64).transpose(0, 1)
    with pellucid.backend("triton"):
        whole = layer(x)
        torch.testing.assert_close(layer(x, checkpoint_every=2), whole)
    torch.testing.assert_close(layer(x), whole)


@pytest.mark.interpreter
def test_double_backward():
    layer = make(cells.leaky, 1, 2)
    x = torch.randn(2, 1, 1, dtype=torch.float64, requires_grad=True)
    with pellucid.backend("triton"):
        assert torch.autograd.gradcheck(lambda x: layer(x)[0], x)
        assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], x)


# -- on a GPU ---------------------------------------------------------------------------------------------------------


def on_gpu(test):
    """A test that a GPU is needed for, which is exact there."""

    @pytest.mark.gpu
    @functools.wraps(test)
    def exactly(*arguments, **named):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            test(*arguments, **named)

    return exactly


def _rows_together(monkeypatch):
    """Let blocks have several rows, however few there are."""
    monkeypatch.setattr(jitted, "MOST_TURNS", 0)
    monkeypatch.setattr(jitted, "MOST_TURNS_OF_SPLIT", 0)


@on_gpu
@pytest.mark.parametrize("blocks", ["single", "few", "many"])
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_the_reference_on_the_gpu(name, blocks, monkeypatch):
    """A block for every row, for several, and columns of many units that are shared among blocks."""
    if blocks != "single":
        _rows_together(monkeypatch)
    few = [(7, torch.float64), (64, torch.float32)][list(CELLS).index(name) % 2]
    hidden, dtype = (200, torch.float32) if blocks == "many" else few
    layer = make(CELLS[name], 20, hidden, dtype, bidirectional=hidden == 7)
    compare(layer, [i % (TIME + 1) for i in range(35)], 35, dtype, "triton", "cuda")


@on_gpu
@pytest.mark.parametrize("name", ["lstm", "layernorm_gru", "noisy"])
def test_float64_of_many_units_on_the_gpu(name):
    cell = CELLS.get(name) or getattr(formulas, name)
    layer = make(cell, 20, 200)
    given = inputs(layer, TIME, 19)
    expected = run(layer, given, None, "stepwise", torch.float64)
    torch.testing.assert_close(run(layer, given, None, "triton", torch.float64, device="cuda"), expected)


@on_gpu
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    ("name", "hidden", "single"),
    [
        ("lstm", 128, False),
        ("lstm", 128, True),
        ("gru", 512, False),
        ("rnn", 300, False),
        ("layernorm_lstm", 64, False),
        ("layernorm_lstm", 64, True),
    ],
)
def test_sixteen_bits_on_the_gpu(name, hidden, single, dtype, monkeypatch):
    if not single:
        _rows_together(monkeypatch)
    layer = make(CELLS[name], 20, hidden, dtype)
    given = inputs(layer, TIME, 33)
    expected = run(layer, given, None, "stepwise", torch.float64)
    allowed = amplified(layer, given, None, expected, dtype)
    check(layer, given, None, expected, {n: 2 * limit for n, limit in allowed.items()}, "triton", "cuda")


@on_gpu
def test_tf32_is_torchs_switch_for_recurrent_layers(monkeypatch):
    _rows_together(monkeypatch)  # a single row is multiplied exactly
    layer = make(cells.lstm, 20, 128, torch.float32).cuda()
    x = torch.randn(50, 33, 20, device="cuda")
    with pellucid.backend("stepwise"):
        exact = layer(x)[0]
    differences = []
    for allowed in (False, True):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed), pellucid.backend("triton"):
            differences.append((layer(x)[0] - exact).abs().max().item())
    assert differences[0] < 1e-5 < differences[1] < 1e-2


@on_gpu
@pytest.mark.parametrize("by_torch", [False, True], ids=["ours", "torch"])
def test_the_choice_on_the_gpu(by_torch, monkeypatch):
    """`auto` takes Triton for cells of one's own, and the faster of Triton and cuDNN for layers of torch.nn."""
    monkeypatch.setattr(torch_recurrence, "faster", lambda *_: by_torch)
    monkeypatch.setattr(torch_recurrence, "_chosen", {})
    torch.manual_seed(0)
    theirs = torch.nn.GRU(5, 9, 2, device="cuda", dtype=torch.float64)
    ours = pellucid.nn.GRU(5, 9, 2, device="cuda", dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(7, 3, 5, device="cuda", dtype=torch.float64)
    results = []
    for layer in (theirs, ours):
        given = x.clone().requires_grad_()
        y, h = layer(given)
        (y.square().sum() + h.sum()).backward()
        results.append([y, h, given.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(results[1], results[0])
    assert ours.backend == ("torch" if by_torch else "triton")
    own = cells.leaky(5, 9, device="cuda")
    own(x.float())
    assert own.backend == "triton"


@on_gpu
def test_a_compiled_graph_has_the_operator_on_the_gpu():
    layer = cells.leaky(5, 9, device="cuda", dtype=torch.float64)
    x = torch.randn(7, 3, 5, device="cuda", dtype=torch.float64, requires_grad=True)
    results = []
    for run_layer in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        y = run_layer(x)[0]
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    torch.testing.assert_close(results[1], results[0])


@on_gpu
def test_graphs_and_streams_of_the_gpu():
    """A step that a graph has recorded is the step; a layer computes on the current stream."""
    layer = make(cells.lstm, 8, 200, torch.float32).cuda()
    x = torch.randn(20, 5, 8, device="cuda")

    def step():
        for parameter in layer.parameters():
            parameter.grad = None
        y = layer(x)[0]
        y.square().sum().backward()
        return [y.detach().clone(), *(p.grad.clone() for p in layer.parameters())]

    with pellucid.backend("triton"):
        expected = step()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.testing.assert_close(step(), expected, rtol=0, atol=0)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded = step()
        for tensor in recorded:
            tensor.zero_()
        graph.replay()
        torch.testing.assert_close(recorded, expected, rtol=0, atol=0)


# -- functions --------------------------------------------------------------------------------------------------------


@pytest.mark.interpreter
@pytest.mark.parametrize(
    "name",
    "tanh sigmoid expm1 log1p softplus gelu gelu_slope sinh cosh asinh acosh atanh trunc nearest sign relu".split(),
)
def test_functions(name):
    """Near 0, far from it, at the ends and beyond: a few units, in float64."""
    import triton
    import triton.language as tl

    from pellucid.kernel.language import triton_functions

    function = getattr(triton_functions, name)

    @triton.jit
    def kernel(x, y, COUNT: tl.constexpr):
        at = tl.arange(0, COUNT)
        value = function(tl.load(x + at))
        assert value.dtype == tl.float64
        tl.store(y + at, value)

    kernel.fn.__globals__["function"] = function
    small = torch.logspace(-20, 2.8, 110, dtype=torch.float64)
    ends = torch.tensor([0.0, -0.0, 0.5, 1.5, 2.5, -2.5, 1.0, -1.0, torch.inf, -torch.inf, torch.nan])
    x = torch.cat([small, -small, ends.double(), torch.ones(25)])
    y = torch.empty_like(x)
    kernel[(1,)](x, y, len(x))
    others = {
        "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        "nearest": torch.round,
        "gelu": torch.nn.functional.gelu,
        "gelu_slope": lambda x: torch.ops.aten.gelu_backward(torch.ones_like(x), x),
    }
    expected = others.get(name, getattr(torch, name, None))(x)
    torch.testing.assert_close(y, expected, rtol=1e-14, atol=0, equal_nan=True)


@pytest.mark.interpreter
def test_the_two_parts_of_float32_are_float32():
    """What exact products multiply apart: both parts are TF32, and their sum is the number but for its last bit."""
    import triton
    import triton.language as tl

    from pellucid.kernel.language import triton_functions as functions

    @triton.jit
    def kernel(x, high, low, COUNT: tl.constexpr):
        at = tl.arange(0, COUNT)
        value = tl.load(x + at)
        leading = functions.leading_bits(value)
        tl.store(high + at, leading)
        tl.store(low + at, functions.trailing_bits(value, leading))

    kernel.fn.__globals__["functions"] = functions
    torch.manual_seed(0)
    x = torch.cat([torch.randn(1020), torch.tensor([0.0, -0.0, torch.inf, -torch.inf])])
    high, low = torch.empty_like(x), torch.empty_like(x)
    kernel[(1,)](x, high, low, len(x))
    for part in (high, low):
        assert not (part.view(torch.int32) & 0x1FFF).any()
    torch.testing.assert_close(high + low, x, rtol=2**-23, atol=0)
    assert ((high - x).abs()[:1020] <= 2**-11 * x.abs()[:1020]).all()


# -- the text ---------------------------------------------------------------------------------------------------------


def _written(layer, dtype, splits=1, single=False, held=True):
    """Both loops of a layer."""
    program = registry.program(layer._keys[0], True, dtype, "cpu", fused=True, products=False)
    division = jitted.Division(splits, held, single)
    return [(work, emit_triton.emit(program, work, dtype, division)) for work in layout.works(program, dtype, True)]


@pytest.mark.parametrize(("name", "single"), [("rnn", False), ("rnn", True), ("layernorm_lstm", False)])
def test_golden(name, single):
    loops = _written(make(CELLS[name], 40, 24, torch.float32), torch.float32, single=single)
    text = "\n".join(written.text for _, written in loops)
    assert text == golden(f"{name}{'_single' if single else ''}.triton.txt", text)


def test_what_cannot_be_written_goes_stepwise():
    @pellucid.cell
    def turning(x, h, *, U, W):
        return torch.atan2(x @ U, h @ W)

    layer = turning(3, 4)
    x = torch.randn(2, 3, 3)
    with pellucid.backend("triton"), pytest.warns(pellucid.PellucidWarning, match="atan2 .* Triton"):
        found = layer(x)
    assert layer.backend == "stepwise"
    torch.testing.assert_close(found, layer(x))


@pytest.mark.interpreter
def test_what_would_be_cut_column_by_column_goes_stepwise():
    """A state that moves by a column at every step: each cut is met again a column further."""
    layer = make(formulas.delayed, 3, 40)
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    with pellucid.backend("triton"), pytest.warns(pellucid.PellucidWarning, match="32 pieces has no Triton"):
        found = layer(x)
    assert layer.backend == "stepwise"
    torch.testing.assert_close(found, layer(x))


@pytest.mark.interpreter
@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize("kind", ["cell", "formula", "convolution"])
def test_what_does_not_compile_runs_in_plain_torch(kind, part, monkeypatch):
    """A kernel is compiled when it is launched first, that of backward behind a forward that has run."""
    from triton.errors import TritonError

    layer, x = _fresh(kind)
    broken = part == "forward"

    @contextlib.contextmanager
    def on(device, on=gpu.on):
        with on(device):
            if broken:
                raise TritonError(f"ptxas is out of patience with the {part} of a {kind}")
            yield

    monkeypatch.setattr(gpu, "on", on)
    weights = list(layer.parameters())

    def gradients():
        nonlocal broken
        y = layer(x)
        y = y[0] if isinstance(y, tuple) else y
        broken = True
        return y, torch.autograd.grad(y.square().sum(), [x, *weights])

    with pellucid.backend("triton"), pytest.warns(pellucid.PellucidWarning, match="could not compile.*out of patience"):
        found = gradients()
    with pellucid.backend("triton"):  # with neither a warning nor another attempt
        again = gradients()
    assert layer.backend in ("stepwise", "torch")
    with pellucid.backend("stepwise"):
        expected = gradients()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(again, expected)


@pytest.mark.interpreter
@pytest.mark.parametrize("kind", ["cell", "formula"])
def test_what_python_cannot_read_runs_in_plain_torch(kind, monkeypatch):
    """Such as more parentheses, one in another, than it takes."""
    layer, x = _fresh(kind)
    monkeypatch.setattr(gpu, "load", lambda text, load=gpu.load: load(f"{text}\n{'(' * 300}{')' * 300}\n"))
    with pellucid.backend("triton"), pytest.warns(pellucid.PellucidWarning, match="cannot read .*too many nested"):
        found = layer(x)
    assert layer.backend == "stepwise"
    with pellucid.backend("stepwise"):
        torch.testing.assert_close(found, layer(x))


def _fresh(kind):
    """A layer whose kernels nobody has compiled yet, and an input."""
    if kind == "cell":

        @pellucid.cell
        def waning(x, h, *, U, W):
            return torch.tanh(x @ U + h @ W) * 0.5

        return waning(3, 4).double(), torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    if kind == "formula":

        @pellucid.layer
        def shifted(x, *, gain):
            return torch.tanh(x) * gain

        return shifted(5).double(), torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 6, 11, dtype=torch.float64, requires_grad=True)
    triton_depthwise._bound.clear()
    return nn.Conv1d(6, 6, 3, groups=6).double(), x


# -- without the interpreter ------------------------------------------------------------------------------------------

ARCHITECTURE = 80  # A100; newer ones have more shared memory
MOST_SHARED = 163 * 2**10  # bytes; what a block of an A100 may have
COMPILE = """
import os, sys
sys.path[:0] = sys.argv[1], os.path.dirname(sys.argv[1])
import torch
import test_triton as tests
for dtype, splits, single in ((torch.bfloat16, 1, False), (torch.float32, 2, False), (torch.float32, 1, True)):
    for built in tests.compiled(tests.make(tests.cells.gru, 8, 32, dtype), dtype, splits, single):
        print(built.metadata.shared, built.asm["ptx"].count("fma.rn.f32"))
for built in tests.compiled(tests.make(tests.cells.rnn, 8, 512, torch.float32), torch.float32, held=False):
    print(built.metadata.shared, 0)
"""


def compiled(layer, dtype, splits=1, single=False, held=True):
    """Compile both loops of a layer for a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for work, written in _written(layer, dtype, splits, single, held):
        function, kernel = getattr(gpu.load(written.text), work.name), written.kernel
        flags = {"LENGTHS": True, "OUTPUT": True, "BACKWARDS": work.name == "backward", "EXCHANGED": kernel.exchanged}
        rows = 1 if single else jitted.LEAST_ROWS * (1 if gpu.multiplies_few_rows() else 2)
        flags |= {"WIDE": False, "ROWS": rows, "INTERPRETED": False, "TF32": False}
        types = _types(work, kernel.layout, dtype)
        rest = dict.fromkeys(function.arg_names[len(types) :], "i32") | dict.fromkeys(flags, "constexpr")
        rest |= {"scratch": _pointer(kernel.passed_storage), "exchange": _pointer(layout.real_of(dtype))}
        rest |= {"meetings": "*i32", "lengths": "*i64", "seed": "*i64"}
        kinds, hints = dict(zip(function.arg_names, types, strict=False)) | rest, {}
        if single:  # as `packed` lays them
            flags |= (ones := {f"{name}_in": 1 for name in kernel.layout.matrices})
            kinds |= dict.fromkeys(ones, "constexpr")
            even = [
                function.arg_names.index(f"{n}_{what}") for n in kernel.layout.matrices for what in ("matrix", "out")
            ]
            hints = {(place,): [["tt.divisibility", 16]] for place in even}
        many = jitted.warps_of_row(kernel, 3 * 32 * 32) if single else jitted.warps(kernel, rows)
        source = ASTSource(function, kinds, flags, hints)
        yield triton.compile(
            source, target=GPUTarget("cuda", ARCHITECTURE, 32), options={"num_warps": many, **gpu.OPTIONS}
        )


def _types(work, laid_out, dtype):
    """The types of a kernel's pointers and strides, in their order."""
    storage = {n: str(p.meta["val"].dtype)[6:] for n, p in work.stage.placeholders.items() if n != "rows"}
    pointers = [storage[name] for name in laid_out.inputs] + [work.storage] * len(work.states)
    pointers += [kind for _, kind in laid_out.outputs.values()] + [layout.real_of(dtype)] * len(laid_out.totals)
    found = [_pointer(kind) for kind in (*pointers, work.storage)]
    for matrix in laid_out.matrices:
        found += [_pointer(storage[matrix]), "i32", "i32"]
    return found + ["i32"] * len(work.states)


def _pointer(storage):
    return "*i1" if storage == "bool" else "*" + storage.replace("bfloat", "bf").replace("float", "fp")


def test_gpus_can_have_it(tmp_path):
    """Triton compiles to machine code for a GPU that is not here, whose shared memory suffices."""
    printed = fresh.for_gpu(COMPILE, tmp_path, str(Path(__file__).parent))
    found = [tuple(map(int, line.split())) for line in printed.splitlines()]
    assert len(found) == 4 * 2
    assert max(shared for shared, _ in found) <= MOST_SHARED
    share, elementwise = 3 * 32 * 32 // (4 * 32), 10  # of a single row's products, for every thread; and the rest
    assert all(shared <= 1024 and multiplied <= share + elementwise for shared, multiplied in found[4:6])


LAUNCH = """
import torch, triton
from triton.backends.compiler import GPUTarget

class Driver:
    # Of a GPU that loads kernels and does nothing with them.
    def __init__(self):
        self.utils, self.launched = self, []
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0
    def get_device_properties(self, device):
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}
    def load_binary(self, *given):
        return 1, 2, 64, 0, 1024  # module, function, registers, spills, threads
    def launcher_cls(self, source, metadata):
        return self.launch
    def launch(self, *given):
        lazy = type(given[6])  # what a profiler may ask
        kinds = {torch.Tensor: lambda a: (a.dtype, a.shape), lazy: type}
        self.launched.append([kinds.get(type(a), lambda a: a)(a) for a in given])

driver = Driver()
triton.runtime.driver.set_active(driver)
torch.cuda.current_device = lambda: 0
import pellucid
from pellucid import nn
from pellucid.kernel import gpu

gpu.check = lambda device: None
gpu.processors = lambda device: 132
norm = nn.LayerNorm(8, dtype=torch.bfloat16)
convolution = nn.Conv1d(32, 32, 4, groups=32)
layers = nn.GRU(8, 32), nn.RNN(8, 32), norm, nn.LayerNorm(8), nn.Dropout(), convolution
shapes = (2, 3, 8), (2, 300, 8), (9999, 8), (77, 8), (5, 8), (2, 32, 64)
compiled = []
jitted = triton.JITFunction.run
triton.JITFunction.run = lambda *given, **options: compiled.append(1) or jitted(*given, **options)
for layer, shape in zip(layers, shapes, strict=True):
    x = torch.randn(shape, dtype=next(layer.parameters(), torch.empty(0)).dtype, requires_grad=True)
    seen = []
    for _ in range(3):
        torch.manual_seed(0)
        driver.launched.clear()
        compiled.clear()
        with pellucid.backend("triton"):
            y = layer(x)
        (y[0] if isinstance(y, tuple) else y).sum().backward()
        seen.append((list(driver.launched), len(compiled)))
    (first, looked), (second, _), (third, looked_again) = seen
    assert first == second == third and looked == len(first), layer
    print(layer.backend, len(first), looked_again)
"""


def test_triton_takes_what_launches_give_it(tmp_path):
    """All but the launch itself, which is another matter in the interpreter: arguments, constants and options.

    When the same come again they reach the driver without Triton looking at them.
    """
    printed = fresh.for_gpu(LAUNCH, tmp_path)
    assert printed.split() == "triton 2 0 triton 2 0 triton 3 0 triton 2 0 triton 2 0 triton 3 0".split()


def test_neither_gpu_nor_interpreter(tmp_path):
    """What is missing is said, and the layer runs."""
    code = """
import warnings
import torch, pellucid
from pellucid import nn
layer = nn.GRU(3, 4)
with warnings.catch_warnings(record=True) as caught, pellucid.backend("triton"):
    warnings.simplefilter("always")
    layer(torch.randn(2, 3, 3))
print(layer.backend, [str(w.message) for w in caught])
"""
    printed = fresh.printed(code, TRITON_INTERPRET="0")
    assert printed.startswith("stepwise")
    assert "TRITON_INTERPRET=1" in printed
