"""What is measured on a GPU, and the script that tests and measures in one go; what needs none of it is tested here."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from pellucid import nn, timing
from pellucid.benchmark import apart, command, gpu
from pellucid.benchmark.apart import Apart
from pellucid.benchmark.comparison import Failed, Run, Skipped
from pellucid.benchmark.convolution import WindowedRow
from pellucid.benchmark.gpu import (
    BANDWIDTH,
    BFLOAT16,
    COMPILED,
    CUDNN,
    CUDNN_LSTM,
    FLOAT32,
    GPU,
    LOOP,
    NN,
    TF32,
    TRITON,
    Bandwidth,
    BandwidthRow,
    CausalConv1d,
    Close,
    OwnCell,
    OwnCellRow,
    Recurrence,
    RecurrentRow,
    compiled,
    recorded,
)
from pellucid.benchmark.limit import Rates, measure_rates
from pellucid.benchmark.peers import APEX, LIGER, PEERS, Peer, installed
from pellucid.benchmark.report import Report
from pellucid.benchmark.rows import LayerRow
from pellucid.benchmark.twins import makers, twins
from pellucid.cli import main

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
RUN = Run(rounds=1, threads=1, device="cpu", rates=Rates(1e9, 1e9))
EXACT = Close(0.0, 0.0, 0.0, 0.0)
LSTM = RecurrentRow("LSTM", 2, 3, (4, 5), FLOAT32, 1e-6)
CELL = OwnCellRow(batch=2, steps=3, sizes=(4, 5), precision=FLOAT32)
NORM = BandwidthRow(LayerRow("LayerNorm", (6, 5), *makers("LayerNorm", 5, dtype=torch.bfloat16), dtype=torch.bfloat16))
RECURRENT = [row for row in GPU if isinstance(row, RecurrentRow)]
LIMITED = [row for row in GPU if isinstance(row, BandwidthRow)]
pytestmark = pytest.mark.usefixtures("small_benchmark")


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "AHEAD", 0)
    return module


# -- the rows ---------------------------------------------------------------------------------------------------------


def test_the_rows_are_those_that_are_promised():
    floors = {(row.batch, *row.sizes): row.floor for row in RECURRENT if row.section == "recurrence"}
    assert floors == {(32, 256, 128): 1.5, (64, 512, 512): 1.0}
    assert {row.steps for row in RECURRENT} == {512}
    for precision in (BFLOAT16, FLOAT32, TF32):
        found = [row.kind for row in RECURRENT if row.precision is precision and row.section == "recurrence"]
        assert found == ["RNN", "GRU", "LSTM"] * 2
    own = [(row.batch, row.sizes, row.floor, row.plain_floor) for row in RECURRENT if row.section == "own cell"]
    assert own == [(32, (256, 128), 20, 0.5)] * 2
    kinds = ["LayerNorm", "RMSNorm", *["GroupNorm", "BatchNorm2d"] * 2, "Dropout", "AddNorm"]
    assert sorted(row.twin.kind for row in BANDWIDTH) == sorted(kinds)
    assert {row.least_share for row in BANDWIDTH} == {0.75}
    assert {row.compile_floor for row in BANDWIDTH if row.twin.kind != "AddNorm"} == {1}


@pytest.mark.parametrize("row", LIMITED, ids=lambda row: row.name)
def test_layers_without_time_have_64_mi_entries_of_bfloat16_and_the_same_parameters(row):
    assert torch.Size(row.twin.shape).numel() == 2**26
    layer, theirs = twins(row.twin.make, row.twin.opponent)
    pairs = list(zip(layer.parameters(), theirs.parameters(), strict=True))
    assert all(torch.equal(ours, other) for ours, other in pairs)
    assert {row.twin.dtype, *(p.dtype for p in layer.parameters())} == {torch.bfloat16}
    inputs = [torch.empty(row.twin.shape, dtype=torch.bfloat16, device="meta")] * row.twin.inputs
    assert theirs.to("meta")(*inputs).shape == row.twin.shape
    assert ("channels_last" in row.name) == (row.twin.layout is torch.channels_last)


def test_a_recurrent_layer_is_compared_and_timed_beside_torch_and_under_triton_where_auto_takes_another():
    figure = LSTM.measure(RUN)
    assert isinstance(figure, Recurrence)
    assert figure.row == "LSTM 2, 3, 4→5, float32"
    assert all(agreement.passed for agreement in figure.agreements)
    assert NN in figure.others_ms
    assert (TRITON in figure.others_ms) != (TRITON in figure.missing)
    assert min(figure.ours_ms, *figure.others_ms.values()) > 0
    assert figure.shortfall() is None
    assert figure.missing[CUDNN] == "torch.nn.LSTM does not run it here"
    missed = replace(figure, floors={NN: 1e9})
    assert missed.shortfall() == f"{figure.factor(NN):.2f}× as fast as torch.nn, the floor is 1e+09×"


def test_an_own_cell_is_compared_with_its_loop_and_timed_beside_a_plain_lstm(monkeypatch):
    monkeypatch.setattr(gpu, "ran", lambda layer: TRITON)  # nothing has to be forced
    figure = CELL.measure(RUN)
    assert isinstance(figure, OwnCell)
    assert all(agreement.passed for agreement in figure.agreements)
    assert figure.others_ms.keys() == {LOOP, CUDNN_LSTM}
    assert figure.floors == {LOOP: 20, CUDNN_LSTM: 0.5}


def test_whether_torch_takes_cudnn_is_read_off_its_graph():
    class CudnnRnn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, dy):
            return 2 * dy

    x = torch.ones(3, 3, requires_grad=True)
    assert gpu.by_cudnn(CudnnRnn.apply(x).transpose(0, 1) + x)
    assert not gpu.by_cudnn(torch.nn.LSTM(3, 4)(x)[0])


def test_what_triton_computes_is_compared_too(monkeypatch):
    wrong = EXACT
    monkeypatch.setattr(gpu, "_forced", lambda layer, compared: wrong)
    wrong = replace(EXACT, difference=1e-3)
    figure = LSTM.measure(RUN)
    assert TRITON not in figure.others_ms
    assert "1e-03 in float64" in figure.missing[TRITON]
    assert not all(agreement.passed for agreement in figure.agreements)


def test_where_triton_cannot_run_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(gpu, "ran", lambda layer: "c")
    assert LSTM.measure(RUN).missing[TRITON] == "runs as c there too"

    def broken(self, *inputs):
        raise RuntimeError("out of shared memory\nand more")

    monkeypatch.setattr(gpu.Forced, "forward", broken)
    assert LSTM.measure(RUN).missing[TRITON] == "RuntimeError: out of shared memory"


@pytest.mark.parametrize("precision", [BFLOAT16, FLOAT32, TF32], ids=lambda precision: precision.name)
def test_both_sides_may_round_to_tf32_or_neither(precision):
    def allowed():
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = allowed()
    with precision.asked():
        assert set(allowed()) == {precision is TF32}
    assert allowed() == before


def test_the_measured_type_may_differ_by_twice_what_the_opponent_does_and_a_unit():
    unit = 2.0**-7
    assert Close(0.0, 0.02 + unit, 0.01, unit).passed
    assert not Close(0.0, 0.03, 0.01, unit).passed
    assert Close(0.0, 1e-4, 0.0, 0.0).passed
    assert not Close(1e-9, 0.0, 0.0, unit).passed
    assert not Close(0.0, float("nan"), 0.01, unit).passed


def test_a_row_that_differs_or_breaks_has_no_figure(monkeypatch, capfd):
    class Wrong(torch.nn.LayerNorm):
        def forward(self, input):
            return super().forward(input) * (1 + 1e-8)

    other = functools.partial(Wrong, 5, dtype=torch.bfloat16)
    with pytest.raises(Failed, match="values or gradients differ: 1e-08 in float64"):
        replace(NORM, twin=replace(NORM.twin, opponent=other)).measure(RUN)
    with pytest.raises(Failed, match=r"AttributeError: .*NoSuchLayer"):
        replace(LSTM, kind="NoSuchLayer").measure(RUN)
    assert "Traceback" in capfd.readouterr().err


def test_a_layer_without_time_stands_beside_a_copy_and_torch_compile(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    figure = NORM.measure(RUN)
    assert isinstance(figure, Bandwidth)
    assert figure.row == "LayerNorm 6×5, bfloat16"
    assert figure.others_ms.keys() >= {NN, COMPILED}
    assert figure.limit_ms == pytest.approx(1e3 * 5 * (6 * 5 * 2) / 1e9)
    assert figure.share(figure.limit_ms) == 1
    slow = replace(figure, ours_ms=2 * figure.limit_ms, others_ms={COMPILED: figure.limit_ms})
    assert slow.shortfall() == (
        "0.50× as fast as torch.compile, the floor is 1×; 50% of the rate of a copy, the floor is 75%"
    )


def test_where_torch_cannot_compile_the_reason_is_said(monkeypatch):
    def refuse(layer):
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(RuntimeError):
        compiled(torch.nn.LayerNorm(5), [torch.zeros(6, 5)] * 2)
    figure = NORM.measure(RUN)
    assert figure.missing[COMPILED] == "RuntimeError: no compiler here"
    assert NN in figure.others_ms
    assert COMPILED not in figure.others_ms


def test_a_causal_convolution_is_compared_with_one_that_is_padded_and_cut(monkeypatch):
    monkeypatch.setattr(gpu, "compiled", lambda layer, given: layer)
    both = (lambda: nn.Conv1d(3, 3, 4, padding="causal", groups=3), lambda: CausalConv1d(3, 4, torch.float32))
    row = BandwidthRow(WindowedRow("Conv1d", (2, 3, 8), *both), "convolution", None, None)
    figure = row.measure(RUN)
    assert figure.limit_ms == pytest.approx(1e3 * 4 * (5 * 2 * 3 * 8 + 3 * (3 * 4 + 3)) / 1e9)
    assert figure.shortfall() is None


# -- other libraries --------------------------------------------------------------------------------------------------


def flashrnn(Wx, R, b, function, backend, dtype):
    """What flashrnn computes: gates i, f, g, o of one head, all states."""
    assert (function, dtype) == ("lstm", "float32")
    h = c = Wx.new_zeros(Wx.shape[0], Wx.shape[-1])
    states = []
    for step in Wx.unbind(1):
        i, f, g, o = (step[:, :, 0] + torch.einsum("gdp,bp->bgd", R[:, 0], h) + b[:, 0]).unbind(1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append(torch.stack([h, c]))
    return torch.stack(states, 2).unsqueeze(3), None


def liger_rms_norm(features, in_place):
    assert not in_place
    return torch.nn.RMSNorm(features, eps=1e-6)


def liger_group_norm(channels, groups, eps, bias):
    return torch.nn.GroupNorm(groups, channels, eps, bias)


LIBRARIES = {
    "liger_kernel.transformers.layer_norm": {"LigerLayerNorm": torch.nn.LayerNorm},
    "liger_kernel.transformers.rms_norm": {"LigerRMSNorm": liger_rms_norm},
    "liger_kernel.transformers.group_norm": {"LigerGroupNorm": liger_group_norm},
    "apex.normalization": {"FusedLayerNorm": torch.nn.LayerNorm, "FusedRMSNorm": torch.nn.RMSNorm},
    "flashrnn": {"flashrnn": flashrnn},
}
LAYERS = {
    "LayerNorm": (torch.nn.LayerNorm, (6,), (4, 6)),
    "RMSNorm": (torch.nn.RMSNorm, (6,), (4, 6)),
    "GroupNorm": (torch.nn.GroupNorm, (2, 6), (4, 6, 3)),
    "LSTM": (torch.nn.LSTM, (6, 5), (3, 2, 6)),
}


@pytest.mark.parametrize("kind", PEERS)
def test_layers_of_other_libraries_are_those_of_torch_or_are_missing(kind, monkeypatch):
    make, arguments, shape = LAYERS[kind]
    theirs, x = make(*arguments), torch.randn(shape)
    if kind != "LSTM":
        torch.nn.init.normal_(theirs.weight)
    given = [x, torch.randn(*shape[:-1], 5) if kind == "LSTM" else torch.randn(shape)]
    for name in ("liger_kernel", "liger_kernel.transformers", "apex", *LIBRARIES):
        monkeypatch.setitem(sys.modules, name, None)
    found, missing = installed(PEERS[kind], theirs, given, EXACT, 0.0)
    assert not found
    assert all("is not installed: " in reason for reason in missing.values())
    for name in ("liger_kernel", "liger_kernel.transformers", "apex"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, layers in LIBRARIES.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**layers))
    found, missing = installed(PEERS[kind], theirs, given, EXACT, 0.0)
    assert found.keys() == {peer.name for peer in PEERS[kind]}
    assert not missing


def test_a_layer_of_another_library_that_differs_or_breaks_has_no_figure():
    theirs, given = torch.nn.LayerNorm(6), [torch.randn(4, 6), torch.randn(4, 6)]

    def off(theirs):
        layer = torch.nn.LayerNorm(6)
        torch.nn.init.constant_(layer.weight, 1.1)
        return layer

    def broken(theirs):
        raise RuntimeError("no kernel for this\nand more")

    found, missing = installed([Peer("off", "", off), Peer("broken", "", broken)], theirs, given, EXACT, 0.0)
    assert not found
    assert missing["off"].startswith("values or gradients differ: ")
    assert missing["broken"] == "RuntimeError: no kernel for this"


# -- the command ------------------------------------------------------------------------------------------------------


class Done:
    """A row that was measured elsewhere; ``then`` is what it does when its turn comes."""

    def __init__(self, figure, section="recurrence", then=lambda: None):
        self.figure, self.name, self.section, self.then = figure, figure.row, section, then

    def measure(self, run):
        assert run.device == "cuda"
        self.then()
        return self.figure


LAUNCHED = {"launched_ms": {"ours": 3.0, NN: 6.0}}
RNN_FIGURE = Recurrence("RNN", TRITON, EXACT, 2.0, {NN: 5.0}, {NN: 1.5}, {}, **LAUNCHED)
GRU_FIGURE = Recurrence("GRU", "stepwise", EXACT, 5.0, {NN: 4.0, TRITON: 2.0}, {NN: 1.5}, {}, EXACT)
CELL_FIGURE = OwnCell("mine", TRITON, EXACT, 2.0, {LOOP: 90.0, CUDNN_LSTM: 0.5}, {LOOP: 20.0, CUDNN_LSTM: 0.5}, {})
NORM_FIGURE = Bandwidth(
    "norm",
    "torch",
    EXACT,
    2.0,
    {NN: 5.0, LIGER: 2.5, APEX: 4.0},
    {COMPILED: 1.0},
    {COMPILED: "no"},
    None,
    1.6,
    0.75,
    {"ours": 2.1, NN: 5.2},
)


@pytest.fixture
def bench(monkeypatch):
    """`pellucid bench gpu` with these rows, as if there were a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)  # which a build for GPUs asks the GPU
    monkeypatch.setattr(command, "measure_rates", lambda device, dtype: Rates(1e15, 3e12, str(dtype)))

    def in_this_process(suite, run):
        return contextlib.nullcontext(lambda row: row.measure(run))

    monkeypatch.setattr(command, "_measuring", in_this_process)

    def invoke(rows, *arguments):
        monkeypatch.setitem(command.SUITES, "gpu", rows)
        return CliRunner().invoke(main, ["bench", "gpu", *arguments])

    return invoke


def cells(text, row):
    return [cell for line in text.splitlines() if line.split()[:1] == [row] for cell in line.split()[1:]]


def test_the_tables_of_a_gpu(bench, tmp_path):
    rows = [Done(RNN_FIGURE), Done(GRU_FIGURE), Done(CELL_FIGURE, "own cell"), Done(NORM_FIGURE, "bandwidth")]
    result = bench(rows, "--json", str(tmp_path / "f.json"), "--markdown", str(tmp_path / "f.md"))
    assert result.exit_code == 0, result.output
    assert cells(result.output, "RNN") == "triton 0e+00 2.000 5.000 2.50 ≥ 1.5 3.000 / 6.000".split()
    assert cells(result.output, "GRU") == "stepwise 0e+00 5.000 2.000 4.000 0.80 < 1.5".split()
    assert cells(result.output, "mine") == "triton 0e+00 2.000 90.000 45.00 ≥ 20 0.500 0.25 < 0.5".split()
    assert (
        cells(result.output, "norm")
        == "torch 0e+00 2.000 80% ≥ 75% 5.000 · 32% 2.50 2.100 / 5.200 Liger-Kernel 2.500 · 64%".split()
    )
    assert "left out: bandwidth: norm: torch.compile: no" in result.output
    assert "3000.0 GB/s in a copy, torch.bfloat16" in result.output
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["machine"]["gpu"] == "a GPU"
    assert [figure["ours_ms"] for figure in found["figures"]["recurrence"]] == [2.0, 5.0]
    table = (tmp_path / "f.md").read_text()
    assert "| RNN | triton | 0e+00 | 2.000 |  | 5.000 | 2.50 ≥ 1.5 | 3.000 / 6.000 |  |" in table.splitlines()
    assert "- left out: bandwidth: norm: torch.compile: no" in table.splitlines()
    assert "Liger-Kernel 2.500 · 64%, apex 4.000 · 40% |" in table


def test_the_floors_of_a_gpu_may_be_checked(bench):
    result = bench([Done(RNN_FIGURE), Done(GRU_FIGURE)], "--check")
    assert result.exit_code == 1
    assert "1 of 2 rows fail" in result.output
    assert "recurrence: GRU: 0.80× as fast as torch.nn, the floor is 1.5×" in result.output


def test_triton_that_differs_fails_without_check_too(bench):
    differing = replace(GRU_FIGURE, forced=replace(EXACT, difference=1e-3))
    result = bench([Done(differing)])
    assert result.exit_code == 1
    assert "recurrence: GRU: values or gradients differ: 1e-03 in float64" in result.output


def test_what_is_measured_is_on_disk_before_the_next_row(bench, tmp_path):
    path, seen = tmp_path / "f.json", []

    def look():
        seen.append(json.loads(path.read_text()) if path.exists() else None)

    def break_off():
        look()
        raise KeyboardInterrupt

    failing = Done(replace(RNN_FIGURE, row="broken"), then=lambda: (_ for _ in ()).throw(Failed("no memory")))
    bench([Done(RNN_FIGURE, then=look), failing, Done(GRU_FIGURE, then=break_off)], "--json", str(path))
    first, last = seen
    assert first is None
    assert [figure["row"] for figure in last["figures"]["recurrence"]] == ["RNN"]
    assert last["failed"] == {"recurrence: broken": "no memory"}
    assert json.loads(path.read_text()) == last
    assert [file.name for file in tmp_path.iterdir()] == ["f.json"]


def test_rows_that_would_begin_too_late_are_left_out_and_named(bench, monkeypatch):
    now = 0.0
    monkeypatch.setattr(command.time, "perf_counter", lambda: now)

    def take():
        nonlocal now
        now += 60

    rows = [Done(replace(RNN_FIGURE, row=name), then=take) for name in ("first", "second", "third")]
    result = bench(rows, "--budget", "59")
    assert result.exit_code == 0
    assert cells(result.output, "first")
    for name in ("second", "third"):
        assert f"left out: recurrence: {name}: 60 s had gone by, --budget is 59 s" in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("built", "missing"), [(None, "is built without CUDA"), ("13.0", "nvidia-smi must list a GPU")]
)
def test_without_a_gpu_the_command_says_what_is_missing(monkeypatch, built, missing):
    monkeypatch.setattr(torch.version, "cuda", built)
    for arguments, who in ((["gpu"], "the suite gpu"), (["rows", "--device", "cuda"], "--device cuda")):
        result = CliRunner().invoke(main, ["bench", *arguments])
        assert result.exit_code == 1
        text = " ".join(result.output.split())
        assert f"{who}: torch finds no GPU here: torch {torch.__version__}" in text
        assert missing in text
        assert "To measure the CPU: pellucid bench" in text


def test_rows_of_a_gpu_do_not_run_on_the_cpu():
    result = CliRunner().invoke(main, ["bench", "gpu", "--device", "cpu"])
    assert result.exit_code == 2
    assert "--device cpu: the rows of gpu are for a GPU" in result.output


# -- rows in another process ------------------------------------------------------------------------------------------


class Odd(Done):
    """A row that does something to the process which measures it."""

    def __init__(self, name, then=lambda: None):
        super().__init__(replace(RNN_FIGURE, row=name), then=then)


def refuse():
    raise Skipped("not here")


ODD = [
    Odd("first"),
    Odd("gone", lambda: os._exit(3)),
    Odd("second"),
    Odd("endless", lambda: time.sleep(60)),
    Odd("skipped", refuse),
    Odd("last"),
]


def odd(called):
    return next(row for row in ODD if f"recurrence: {row.name}" == called)


def test_a_row_that_ends_its_process_or_does_not_end_costs_its_own_figure_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(apart, "_sound", lambda device: True)
    report = Report({}, RUN.rates, tmp_path / "f.json")
    with Apart(odd, replace(RUN, device="cuda"), seconds=1.0, method="fork") as other:
        report.measure(ODD, other.measure, lambda: None, lambda called: None)
        process = other.process
    assert [figure.row for figure in report.figures["recurrence"]] == ["first", "second", "last"]
    assert report.failed == {
        "recurrence: gone": "its process ended with exit status 3",
        "recurrence: endless": "was given up after 1 s",
    }
    assert report.left_out == {"recurrence: skipped": "not here"}
    assert not process.is_alive()


def test_a_process_whose_gpu_is_broken_is_not_asked_again(monkeypatch):
    class Broken:
        def synchronize(self):
            raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch, "cuda", Broken())
    with Apart(odd, replace(RUN, device="cuda"), method="fork") as other:
        assert other.measure(ODD[0]).row == "first"
        assert other.process is None
        assert other.measure(ODD[2]).row == "second"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_rows_of_the_suite_are_found_in_a_new_process():
    with command._measuring("gpu", replace(RUN, device="cuda")) as measure, pytest.raises(Failed, match=r"CUDA|NVIDIA"):
        measure(GPU[0])


# -- the time on a GPU ------------------------------------------------------------------------------------------------


def test_events_stand_before_and_behind_all_calls_of_a_sample(monkeypatch):
    happened = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            happened.append(self)

        def elapsed_time(self, end):
            assert (happened[1], happened[-2]) == (self, end)
            return 30.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: happened.append("waited"))
    assert timing.clock(lambda: happened.append("call"), "cuda", 3) == 0.01
    assert happened[0] == happened[-1] == "waited"
    assert happened[2:-2] == ["call"] * 3


def test_a_rate_is_measured_in_the_type_that_moves():
    rates = measure_rates("cpu", torch.bfloat16)
    assert rates.dtype == "bfloat16"
    assert min(rates.flops, rates.bytes) > 0


@pytest.mark.gpu
def test_a_recorded_step_is_the_step():
    layer = torch.nn.Linear(3, 4, device="cuda")
    x, results = torch.randn(2, 3, device="cuda"), []
    replay = recorded(lambda: results.append(layer(x).detach()), "cuda")
    expected = layer(x.neg_()).detach()
    replay()
    torch.testing.assert_close(results[-1], expected)


@pytest.mark.gpu
def test_the_time_of_a_copy_on_the_gpu():
    source, target = torch.zeros((2, 2**26), device="cuda")
    seconds = min(timing.clock(lambda: target.copy_(source), "cuda", 5) for _ in range(3))
    assert 0.5e12 < 2 * source.nbytes / seconds < 20e12


@pytest.mark.gpu
@pytest.mark.parametrize("row", [LSTM, replace(LSTM, precision=BFLOAT16), CELL, NORM], ids=lambda row: row.name)
def test_small_rows_are_measured_on_the_gpu(row, monkeypatch):
    monkeypatch.setattr(gpu, "compiled", lambda layer, given: layer)
    figure = row.measure(replace(RUN, device="cuda"))
    assert all(agreement.passed for agreement in figure.agreements)
    assert min(figure.ours_ms, *figure.others_ms.values()) > 0


# -- tests and benchmarks in one go -----------------------------------------------------------------------------------

REPORT = """<testsuites><testsuite><testcase classname="a" name="one"/><testcase classname="a" name="two"><failure/>
</testcase><testcase classname="b" name="three"><skipped/></testcase></testsuite></testsuites>"""


def python(text):
    return [sys.executable, "-S", "-c", text]


def test_the_benchmark_comes_whatever_the_tests_say(script, tmp_path, monkeypatch, capsys):
    (tmp_path / "gpu.md").write_text("of another run")
    monkeypatch.setattr(
        script, "pytest", lambda report: python(f"open({str(report)!r}, 'w').write({REPORT!r}); exit(1)")
    )
    monkeypatch.setattr(
        script,
        "benchmark",
        lambda figures, table, seconds, rows: python(
            f"""open({str(figures)!r}, 'w').write('{{"rates": 1}}'); open({str(table)!r}, 'w').write('| a |')"""
        ),
    )
    assert script.main(["--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["rates"] == 1
    assert {key: found["tests"][key] for key in ("passed", "failed", "skipped", "status", "stopped")} == {
        "passed": 1,
        "failed": ["a::two"],
        "skipped": 1,
        "status": 1,
        "stopped": False,
    }
    text = (tmp_path / "gpu.md").read_text()
    assert "- pytest -m gpu: 1 passed, 1 failed, 1 skipped; exit status 1" in text
    assert "- failed: a::two" in text
    assert "- pellucid bench gpu: exit status 0" in text
    assert text.endswith("| a |")
    assert "1 failed" in capsys.readouterr().out


def test_what_takes_too_long_is_stopped_and_the_rest_is_written(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "PATIENCE", 0.1)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    monkeypatch.setattr(script, "pytest", lambda report: python(deaf))
    monkeypatch.setattr(script, "benchmark", lambda *arguments: python("import time; time.sleep(60)"))
    assert script.main(["--out", str(tmp_path), "--tests", "0.5", "--bench", "0.5"]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["tests"]["stopped"]
    assert found["bench"]["stopped"]
    assert "pellucid bench gpu: stopped after" in (tmp_path / "gpu.md").read_text()


def test_rows_are_compiled_beside_the_tests_and_end_with_them(script, tmp_path, monkeypatch):
    begun = f"import os, time; open(os.path.join({str(tmp_path)!r}, str(os.getpid())), 'w'); "
    monkeypatch.setattr(script, "AHEAD", 2)
    monkeypatch.setattr(script, "ahead", lambda part, parts: python(begun + f"time.sleep({60 * part})"))
    monkeypatch.setattr(script, "pytest", lambda report: python("import time; time.sleep(0.5)"))
    monkeypatch.setattr(script, "benchmark", lambda *arguments: python(""))
    assert script.main(["--out", str(tmp_path), "--tests", "1"]) == 0
    processes = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    assert len(processes) == 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_rows_that_break_do_not_stop_those_behind_them(monkeypatch):
    class Broken:
        def measure(self, run):
            measured.append(self)
            raise RuntimeError

    measured, rows = [], [Broken() for _ in range(5)]
    monkeypatch.setattr(gpu, "GPU", rows)
    gpu.compile_rows(1, 2)
    assert measured == [rows[1], rows[3]]


def test_the_commands_of_the_script(script, tmp_path):
    tests = script.pytest(tmp_path / "tests.xml")
    names = {Path(part).name for part in tests if part.endswith(".py")}
    assert {"test_triton.py", Path(__file__).name} <= names
    assert "test_page.py" not in names
    assert tests[tests.index("-m", 3) + 1] == "gpu"
    bench = script.benchmark(tmp_path / "f.json", tmp_path / "f.md", 300, "lstm")
    budget = float(bench[bench.index("--budget") + 1])
    assert 0 < budget < 300
    assert bench[-2:] == ["--rows", "lstm"]
    assert script.benchmark(tmp_path / "f.json", tmp_path / "f.md", 5, None)[-1] == str(tmp_path / "f.md")
    assert 240 + 300 + 2 * script.PATIENCE <= 600


def test_the_sources_beside_the_script_are_measured(script, monkeypatch):
    for others in ([], ["elsewhere"]):
        monkeypatch.setenv("PYTHONPATH", ":".join(others))
        assert script.environment()["PYTHONPATH"].split(":") == [str(SCRIPT.parents[1] / "src"), *others]
