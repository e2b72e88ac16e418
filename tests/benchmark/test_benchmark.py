from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from pellucid import nn
from pellucid.benchmark import command, comparison, convolution, networks, processes, rows
from pellucid.benchmark.comparison import EXACT, Agreement, Failed, Run, Skipped
from pellucid.benchmark.convolution import CAUSAL, CONVOLUTION, FORMATS, POOLING, ByHand, CausalRow, WindowedRow
from pellucid.benchmark.limit import Rates, Work, measure_rates, work
from pellucid.benchmark.models import ModelRow, geometric_mean
from pellucid.benchmark.networks import NETWORKS, TextCNN, TorchTextCNN, backends, lenet5, work_of
from pellucid.benchmark.processes import FirstResultRow, MemoryRow, long_lstm, wide_dropout
from pellucid.benchmark.recipe import RECIPE, Recipe, RecipeRow
from pellucid.benchmark.rows import ROWS, LayerRow, agree_given_the_mask
from pellucid.benchmark.speed import RECURRENT, SpeedRow
from pellucid.benchmark.streaming import StreamingRow
from pellucid.benchmark.twins import RowSpeed, makers, step, twins
from pellucid.benchmark.zoo import Sized, ZooModel
from pellucid.cli import main
from pellucid.models import formats, verification
from pellucid.nn import cells

LSTM = SpeedRow("LSTM 2, 3, 4→5", lambda: nn.LSTM(4, 5), lambda: torch.nn.LSTM(4, 5), 2, 3, floor=1e-6)
LEAKY = SpeedRow("leaky 2, 3, 4→5", lambda: cells.leaky(4, 5), None, 2, 3)
NORM = LayerRow("LayerNorm", (6, 5), lambda: nn.LayerNorm(5), lambda: torch.nn.LayerNorm(5), floor=1e-6)
DROPOUT = LayerRow("Dropout", (40, 50), lambda: nn.Dropout(0.4), lambda: torch.nn.Dropout(0.4), passes=4, p=0.4)
CONV = WindowedRow("Conv1d", (2, 3, 8), *makers("Conv1d", 3, 4, 2), ", 3→4, kernel 2", floor=1e-6)
LENET, TEXT = NETWORKS
RUN = Run(rounds=1, threads=1, device="cpu", rates=Rates(1e9, 1e9))
pytestmark = pytest.mark.usefixtures("small_benchmark")


def run(monkeypatch, rows, *arguments, suite="recurrent"):
    monkeypatch.setitem(command.SUITES, suite, rows)
    return CliRunner().invoke(main, ["bench", suite, "--rounds", "2", *arguments])


def test_the_json_holds_the_figures_and_where_they_come_from(monkeypatch, tmp_path):
    path = tmp_path / "figures.json"
    result = run(monkeypatch, [LSTM, LEAKY, StreamingRow("GRU", 4, 5)], "--check", "--json", str(path))
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["rates"]["flops"] > 0
    assert found["rates"]["bytes"] > 0
    where = found["machine"]
    assert (where["torch"], where["threads"]) == (torch.__version__, torch.get_num_threads())
    assert {"cpu", "cores", "date", "pellucid", "python", "system"} <= where.keys()
    lstm, leaky = found["figures"]["speed"]
    assert (lstm["row"], lstm["floor"]) == ("LSTM 2, 3, 4→5", 1e-6)
    assert lstm["backend"] in ("c", "stepwise")
    assert min(lstm[key] for key in ("limit_ms", "ours_ms", "torch_nn_ms", "loop_ms")) > 0
    assert lstm["agreement"]["difference"] <= EXACT
    assert leaky["torch_nn_ms"] is None
    (gru,) = found["figures"]["streaming"]
    assert gru["row"] == "GRU 4→5"
    assert min(gru[key] for key in ("ours_us", "torch_nn_us", "our_cell_us", "torch_nn_cell_us")) > 0
    for text in ("LSTM 2, 3, 4→5", "≥ 1e-06", "GRU 4→5", "GFLOP/s", "% "):
        assert text in result.output


def test_check_ends_with_1_where_a_floor_is_missed_and_only_then(monkeypatch):
    rows = [replace(LSTM, floor=1e9), replace(LEAKY, floor=1e9), StreamingRow("RNN", 4, 5)]
    result = run(monkeypatch, rows, "--check")
    assert result.exit_code == 1
    assert "2 of 3 rows fail" in result.output
    assert "as fast as torch.nn, the floor is 1e+09×" in result.output
    assert "as fast as the Python loop, the floor is 1e+09×" in result.output
    result = run(monkeypatch, rows)
    assert result.exit_code == 0
    assert "< 1e+09" in result.output


@pytest.mark.parametrize("wrong", [1 + 1e-8, float("nan")])
def test_a_row_that_differs_has_no_figure_and_fails_without_check_too(monkeypatch, wrong):
    class Wrong(torch.nn.LSTM):
        def forward(self, *arguments):
            output, state = super().forward(*arguments)
            return output * wrong, state

    result = run(monkeypatch, [replace(LSTM, opponent=lambda: Wrong(4, 5)), LEAKY])
    assert result.exit_code == 1
    assert "1 of 2 rows fail" in result.output
    assert "values or gradients differ" in result.output
    line = next(line for line in result.output.splitlines() if "LSTM 2, 3" in line)
    assert line.split()[-1] == "differs"


def test_rows_are_picked_by_their_words(monkeypatch):
    rows = [LSTM, LEAKY, StreamingRow("LSTM", 4, 5)]
    picked = run(monkeypatch, rows, "--rows", "speed lstm 4->5")
    assert picked.exit_code == 0
    assert "LSTM 2, 3, 4→5" in picked.output
    assert "leaky" not in picked.output
    assert "streaming" not in picked.output
    none = run(monkeypatch, rows, "--rows", "gru")
    assert none.exit_code == 2
    assert "--rows 'gru': no row of recurrent has these words" in none.output
    assert "streaming: LSTM 4→5" in none.output


def test_the_floors_are_those_of_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    result = run(monkeypatch, [LSTM], "--check", "--device", "cuda")
    assert result.exit_code == 2
    assert "the floors are those of the CPU" in result.output


def test_what_is_skipped_is_named_and_what_breaks_fails(monkeypatch):
    def unmeasured(error):
        row = long_lstm(1, 2, 3)
        monkeypatch.setattr(MemoryRow, "measure", lambda self, run: (_ for _ in ()).throw(error))
        return row

    skipped = run(monkeypatch, [LSTM, unmeasured(Skipped("no /proc here"))], "--check")
    assert skipped.exit_code == 0
    assert "left out: memory: LSTM 1, 2, 3→3: no /proc here" in skipped.output
    failed = run(monkeypatch, [LSTM, unmeasured(Failed("memory.py ended with exit status 1"))])
    assert failed.exit_code == 1
    assert "memory: LSTM 1, 2, 3→3: memory.py ended with exit status 1" in failed.output


def test_rounding_is_measured_by_the_opponent_and_exactness_is_not():
    assert Agreement(1e-14, 9e-3, 1e-3).passed
    assert not Agreement(1e-14, 2e-3, 1e-5).passed
    assert not Agreement(1e-9, 1e-7, 1e-3).passed
    assert not Agreement(float("nan"), 1e-7, 1e-7).passed


def test_the_work_of_two_levels_in_both_directions():
    layer = nn.LSTM(4, 5, 2, bidirectional=True)
    rows = 2 * 3  # batch × steps
    macs = rows * 2 * (4 * 20 + 5 * 20) + rows * 2 * (10 * 20 + 5 * 20)
    outputs = 2 * rows * 10
    entries = rows * 4 + outputs + sum(p.numel() for p in layer.parameters())
    assert work(layer, torch.zeros(3, 2, 4)) == Work(flops=6 * macs, bytes=3 * 4 * entries)


def test_the_limit_is_the_larger_time():
    assert Work(flops=200, bytes=10).seconds(Rates(flops=100.0, bytes=10.0)) == 2.0
    assert Work(flops=200, bytes=90).seconds(Rates(flops=100.0, bytes=10.0)) == 9.0
    rates = measure_rates("cpu")
    assert rates.flops > 0
    assert rates.bytes > 0


@pytest.mark.parametrize("row", RECURRENT, ids=lambda row: row.name)
def test_every_row_sets_layers_of_the_same_weights_side_by_side(row):
    layer = row.make()
    batch, steps, sizes = row.name.split(" ", 1)[1].split(", ")[:3]
    assert (row.batch, row.steps) == (int(batch), int(steps))
    assert sizes == f"{layer.input_size}→{layer.hidden_size}"
    if row.opponent is not None:
        row.opponent().load_state_dict(layer.state_dict())


def test_memory_is_measured_in_processes_of_their_own():
    figure = long_lstm(2, 300, 8, checkpoint_every=20).measure(RUN)
    assert figure.row == "LSTM 2, 300, 8→8, checkpoint_every=20"
    assert figure.agreement.passed
    assert min(figure.ours_s, figure.torch_nn_s) > 0
    assert max(figure.ours_mib, figure.torch_nn_mib) < 1000


def test_memory_of_a_dropout_holds_at_least_its_output_and_its_gradient():
    figure = wide_dropout(2048, 512).measure(RUN)
    assert figure.row == "Dropout 2048×512"
    assert figure.agreement.passed
    assert 8 <= min(figure.ours_mib, figure.torch_nn_mib) < 1000


def test_processes_measure_the_cpu():
    for row in (long_lstm(1, 2, 3), wide_dropout(2, 3), FirstResultRow()):
        with pytest.raises(Skipped, match="CPU only"):
            row.measure(replace(RUN, device="cuda"))


def test_a_script_that_breaks_is_a_failure(tmp_path):
    with pytest.raises(Failed, match=r"memory\.py ended with exit status 1: ValueError"):
        processes._process("memory.py", str(tmp_path), "pellucid")


def test_the_first_result_is_timed_in_a_fresh_process(tmp_path):
    found = processes._process("first_result.py", str(tmp_path), 1)
    assert min(found[key] for key in ("first_s", "import_torch_s", "import_pellucid_s")) > 0
    assert Agreement(**found["agreement"]).passed


def test_the_first_result_takes_medians_and_shares_a_cache_between_cold_and_warm(monkeypatch):
    agreement = {"difference": 0.0, "rounding": 0.0, "opponent_rounding": 0.0}
    cold, warm, folders = iter([3.0, 1.2, 1.4]), iter([0.5, 0.3, 0.4]), []

    def process(script, folder, threads):
        folders.append(folder)
        first = next(warm if folders.count(folder) == 2 else cold)
        imports = {"import_torch_s": 2.0, "import_pellucid_s": 0.2}
        return {"first_s": first, "backend": "c", "agreement": agreement, **imports}

    monkeypatch.setattr(processes, "_process", process)
    figure = FirstResultRow().measure(RUN)
    assert len(set(folders)) == 3
    assert (figure.cold_s, figure.warm_s) == (1.4, 0.4)
    assert figure.shortfall() == "1.40 s with a cold cache, at most 1 s is promised"
    assert replace(figure, cold_s=0.9).shortfall() is None


@pytest.mark.train
@pytest.mark.parametrize("row", RECIPE[:1], ids=lambda row: row.cell)
def test_a_recipe_trains_both_alike_in_either_precision(row):
    pytest.importorskip("lightning")
    figure = replace(row, steps=3).measure(RUN)
    assert figure.row == f"{row.cell.upper()}, sentiment"
    assert figure.backend in ("c", "stepwise")
    assert figure.steps == 3
    assert figure.agreement.passed
    assert min(figure.ours_ms, figure.torch_nn_ms) > 0


@pytest.mark.train
def test_a_recipe_whose_losses_differ_has_no_figure(monkeypatch):
    compare = pytest.importorskip("pellucid.recipes.sentiment.compare")
    honest = compare.opponent_of

    def other(network, cell):
        twin, name = honest(network, cell)
        with torch.no_grad():
            twin.recurrent.layer.weight_hh_l0.mul_(1 + 1e-6)
        return twin, name

    monkeypatch.setattr(compare, "opponent_of", other)
    result = run(monkeypatch, [RecipeRow("gru", steps=1), LEAKY])
    assert result.exit_code == 1
    assert "1 of 2 rows fail" in result.output
    assert "recipe: GRU, sentiment: values or gradients differ" in result.output
    line = next(line for line in result.output.splitlines() if line.strip().startswith("GRU, sentiment"))
    assert line.split()[-1] == "differs"


def test_the_table_of_a_recipe_shows_the_ratio_and_the_steps(monkeypatch):
    figure = Recipe("GRU, sentiment", "c", Agreement(0.0, 0.0, 0.0), 40, 20.0, 30.0)
    monkeypatch.setattr(RecipeRow, "measure", lambda self, run: figure)
    result = run(monkeypatch, [RecipeRow("gru")])
    line = next(line for line in result.output.splitlines() if line.strip().startswith("GRU, sentiment"))
    assert line.split()[2:] == ["c", "0e+00", "20.0", "30.0", "1.50", "40"]


@pytest.mark.parametrize("missing", ["lightning", "snownlp"])
def test_a_recipe_is_left_out_where_its_extra_is_missing(monkeypatch, missing):
    if missing == "snownlp":
        pytest.importorskip("lightning")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    else:
        for name in ("pellucid.recipes.training", "pellucid.recipes.sentiment.compare"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, "lightning", None)
    result = run(monkeypatch, [LEAKY, RecipeRow("gru")], "--check")
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.output.split("left out: ")[1:] if line.startswith("recipe: GRU, sentiment: "))
    assert missing in line.lower()
    assert "pip install 'pellucid[train]'" in " ".join(line.split())


def test_rows_are_a_suite_of_their_own_and_recurrent_stays_the_usual_one(monkeypatch, tmp_path):
    path = tmp_path / "figures.json"
    small = [NORM, replace(DROPOUT, section="small")]
    result = run(monkeypatch, small, "--check", "--json", str(path), suite="rows")
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text(encoding="utf-8"))["figures"]
    assert {section: [figure["row"] for figure in figures] for section, figures in found.items()} == {
        "speed": ["LayerNorm 6×5"],
        "small": ["Dropout 40×50"],
    }
    for (figure,) in found.values():
        assert min(figure["limit_ms"], figure["ours_ms"], figure["torch_ms"]) > 0
        assert figure["agreement"]["difference"] <= EXACT
    assert "speed: forward + backward, share" in result.output
    assert "small: forward + backward, share" in result.output
    monkeypatch.setitem(command.SUITES, "recurrent", [LEAKY])
    usual = CliRunner().invoke(main, ["bench", "--rounds", "1"])
    assert "leaky 2, 3, 4→5" in usual.output
    assert "LayerNorm" not in usual.output


def test_rows_miss_their_floors_and_are_picked_by_shapes_as_one_types_them(monkeypatch):
    both = [replace(NORM, floor=1e9), DROPOUT]
    missed = run(monkeypatch, both, "--check", suite="rows")
    assert missed.exit_code == 1
    assert "1 of 2 rows fail" in missed.output
    assert "speed: LayerNorm 6×5:" in missed.output
    assert "as fast as torch, the floor is 1e+09×" in missed.output
    picked = run(monkeypatch, both, "--rows", "speed 40x50", suite="rows")
    assert picked.exit_code == 0
    assert "Dropout 40×50" in picked.output
    assert "LayerNorm" not in picked.output


def test_help_teaches_every_suite_and_section():
    text = " ".join(CliRunner().invoke(main, ["bench", "--help"]).output.split())
    for words in ("bytes = passes ×", "within 5 standard deviations", "bytes = 2 × those of x and y"):
        assert words in text
    for suite, found in command.SUITES.items():
        _, here = text.split(f"The sections of `{suite}`")
        assert all(f" {section} " in here for section in {row.section for row in found})


@pytest.mark.parametrize("suite", command.SUITES)
def test_no_two_rows_of_a_suite_are_called_alike(suite):
    called = [f"{row.section}: {row.name}" for row in command.SUITES[suite]]
    assert len(called) == len(set(called))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.section}-{row.name}")
def test_every_row_without_time_sets_the_same_parameters_side_by_side(row):
    layer, theirs = twins(row.make, row.opponent)
    pairs = list(zip(layer.parameters(), theirs.parameters(), strict=True))
    assert all(torch.equal(ours, other) for ours, other in pairs)
    assert all(p.unique().numel() > 1 for p in layer.parameters() if p.numel() > 1)
    # What backward reads again of x is what a dropout alone needs not.
    assert row.passes == (2 if row.make().__class__.__name__.startswith("Dropout") else 3) * row.inputs + 2


def test_the_limit_of_a_row_is_its_passes_over_the_bytes_of_its_type():
    measured = {dtype: replace(NORM, dtype=dtype).measure(RUN) for dtype in (torch.float32, torch.bfloat16)}
    assert measured[torch.float32].limit_ms == pytest.approx(1e3 * 5 * (6 * 5 * 4) / 1e9)
    assert measured[torch.bfloat16].limit_ms == pytest.approx(1e3 * 5 * (6 * 5 * 2) / 1e9)
    assert all(figure.agreement.passed for figure in measured.values())
    assert measured[torch.bfloat16].agreement.opponent_rounding > 1e-4


def test_channels_may_stand_last():
    seen = []

    class Watching(nn.BatchNorm2d):
        def forward(self, input):
            seen.append(input.is_contiguous(memory_format=torch.channels_last))
            return super().forward(input)

    make = (lambda: Watching(4), lambda: torch.nn.BatchNorm2d(4))
    row = LayerRow("BatchNorm2d", (2, 4, 3, 5), *make, layout=torch.channels_last)
    assert row.measure(RUN).agreement.passed
    assert all(seen)


def test_running_statistics_are_compared():
    class Forgetful(nn.BatchNorm1d):
        def forward(self, input):
            return torch.nn.functional.batch_norm(input, None, None, self.weight, self.bias, training=True)

    row = LayerRow("BatchNorm1d", (8, 4), lambda: nn.BatchNorm1d(4), lambda: torch.nn.BatchNorm1d(4))
    assert row.measure(RUN).agreement.passed
    assert not replace(row, make=lambda: Forgetful(4)).measure(RUN).agreement.passed


class Scaled(nn.Dropout):
    """Forgets the factor 1/(1 - p)."""

    def forward(self, input):
        return super().forward(input) * (1 - self.p)


class OtherGradient(nn.Dropout):
    """Its gradient is that of another mask."""

    def forward(self, input):
        y, other = super().forward(input), super().forward(input)
        return other + (y - other).detach()


class Leaking(nn.Dropout):
    """Lets a little of what is dropped pass, which has no gradient."""

    def forward(self, input):
        return super().forward(input) + 1e-6 * input.detach()


@pytest.mark.parametrize("wrong", [Scaled, OtherGradient, Leaking])
def test_a_dropout_that_differs_given_its_mask_has_no_figure(wrong):
    assert DROPOUT.measure(RUN).agreement.passed
    assert not replace(DROPOUT, make=lambda: wrong(0.4)).measure(RUN).agreement.passed


def test_a_dropout_of_another_rate_fails(monkeypatch):
    with pytest.raises(Failed, match=r"of 2000 coins keep, .* standard deviations from what p=0\.4 promises"):
        replace(DROPOUT, make=lambda: nn.Dropout(0.5)).measure(RUN)
    result = run(monkeypatch, [NORM, replace(DROPOUT, make=lambda: nn.Dropout(0.5))], suite="rows")
    assert result.exit_code == 1
    assert "1 of 2 rows fail" in result.output


def test_coins_are_found_where_the_gradient_of_the_output_is_zero():
    x, layers = torch.randn(40, 50), (nn.Dropout(0.4), torch.nn.Dropout(0.4))
    assert agree_given_the_mask(*layers, x, torch.zeros(40, 50), p=0.4).passed


def test_a_coin_is_shared_by_a_channel():
    makers = (lambda: nn.Dropout2d(0.5), lambda: torch.nn.Dropout2d(0.5))
    row = LayerRow("Dropout2d", (8, 6, 3, 3), *makers, passes=4, p=0.5, shared=(2, 3))
    assert row.measure(RUN).agreement.passed
    with pytest.raises(Failed, match="coins keep"):  # 9 coins a channel: nearly all have an entry that is kept
        replace(row, make=lambda: nn.Dropout(0.5)).measure(RUN)
    few = replace(row, shape=(2, 3, 1, 2))  # too few for the rate to tell
    assert not replace(few, make=lambda: nn.Dropout(0.5)).measure(RUN).agreement.passed


class Sum(rows.PostNorm):
    """A stand-in for a layer of pellucid's, with its dropout; ``dropped`` is the input that it drops."""

    def __init__(self, features, p, dropped="sublayer"):
        super().__init__(features, p)
        self.dropout, self.dropped = nn.Dropout(p), dropped

    def forward(self, x, sublayer):
        return super().forward(*((x, sublayer) if self.dropped == "sublayer" else (sublayer, x)))


def test_a_normalized_sum_is_compared_given_the_mask_of_its_second_input():
    makers = (lambda: Sum(50, 0.1), lambda: rows.PostNorm(50, 0.1))
    row = LayerRow("AddNorm", (40, 50), *makers, inputs=2, passes=8, p=0.1)
    figure = row.measure(RUN)
    assert figure.agreement.passed
    assert figure.limit_ms == pytest.approx(1e3 * 8 * (40 * 50 * 4) / 1e9)
    with pytest.raises(Failed, match="2000 of 2000 coins keep"):
        replace(row, make=lambda: Sum(50, 0.1, dropped="x")).measure(RUN)


def test_a_function_of_ones_own_is_called_with_the_parameters_of_its_layer():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma, self.alpha = torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(()))
            self.beta = torch.nn.Parameter(torch.zeros(5))

        def forward(self, x):
            return torch.tanh(x * self.alpha) * self.gamma + self.beta

    row = LayerRow("DyT", (6, 5), Layer, lambda: rows.Eager(rows.dyt, Layer()))
    assert row.measure(RUN).agreement.passed


def test_own_formulas_are_what_they_are_called():
    x, gamma = torch.randn(4, 6), torch.rand(6)
    torch.testing.assert_close(rows.rms_norm(x, gamma=gamma), torch.nn.functional.rms_norm(x, (6,), gamma, 1e-6))
    zero = dict.fromkeys(("alpha", "gamma", "beta"), torch.zeros(()))
    assert torch.equal(rows.dyt(x, **zero | {"beta": gamma}), gamma.expand(4, 6))


def test_short_calls_are_timed_together(monkeypatch):
    now, sides = 0.0, {"short": 1e-4, "long": 2.0}
    monkeypatch.setattr(comparison.time, "perf_counter", lambda: now)
    calls = dict.fromkeys(sides, 0)

    def call(name):
        nonlocal now
        now += sides[name]
        calls[name] += 1

    found = comparison.times({name: lambda name=name: call(name) for name in sides}, rounds=3, device="cpu")
    assert found == pytest.approx(sides)
    assert calls == {"short": 2 + 3 * 5, "long": 2 + 3}  # a warm-up, one to see how long it takes, the samples


def test_small_rows_are_shown_in_microseconds(monkeypatch):
    exact = Agreement(0.0, 0.0, 0.0)
    figures = {
        "LayerNorm 6×5": RowSpeed("LayerNorm 6×5", "c", exact, 0.004, 0.0201, 1.0, 0.0302),
        "Dropout 40×50": RowSpeed("Dropout 40×50", "c", exact, 1.0, 2.0, 3.0, 5.0),
    }
    monkeypatch.setattr(LayerRow, "measure", lambda self, run: figures[self.name])
    result = run(monkeypatch, [NORM, DROPOUT], suite="rows")
    lines = {" ".join(line.split()[:2]): line.split()[4:] for line in result.output.splitlines() if "0e+00" in line}
    assert lines["LayerNorm 6×5"] == "20.1 µs · 20% 30.2 µs · 13% 1.50 ≥ 1".split()
    assert lines["Dropout 40×50"] == "2.00 ms · 50% 5.00 ms · 20% 2.50 < 3".split()


def test_a_step_gives_the_gradients_that_it_is_asked_for():
    layer, (x, dy) = torch.nn.Linear(3, 2), (torch.randn(4, 3), torch.randn(4, 2))
    y, dx, weight, bias = step(layer, x, dy)
    torch.testing.assert_close([y, dx], [layer(x).detach(), dy @ layer.weight.detach()])
    torch.testing.assert_close([weight, bias], [dy.T @ x, dy.sum(0)])


def test_convolution_is_a_suite_of_its_own(monkeypatch, tmp_path):
    path = tmp_path / "figures.json"
    small = [CONV, replace(LENET, floor=1e-6), replace(CONV, section="pooling"), CausalRow(2, 3, 2)]
    result = run(monkeypatch, small, "--check", "--json", str(path), suite="conv")
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text(encoding="utf-8"))["figures"]
    assert {section: figure["row"] for section, (figure,) in found.items()} == {
        "speed": "Conv1d 2×3×8, 3→4, kernel 2",
        "training": "LeNet-5, batch 64",
        "pooling": "Conv1d 2×3×8, 3→4, kernel 2",
        "streaming": "Conv1d 2→3, kernel 2, causal",
    }
    for (figure,) in found.values():
        assert min(figure["limit_ms"], figure["ours_ms"], figure["torch_ms"]) > 0
    for title in ("pooling: forward + backward", "training: a whole training step", "streaming: inference one step"):
        assert title in result.output
    missed = run(monkeypatch, [replace(CONV, floor=1e9), replace(LENET, floor=1e9)], "--check", suite="conv")
    assert missed.exit_code == 1
    assert "2 of 2 rows fail" in missed.output


@pytest.mark.parametrize("row", [*CONVOLUTION, *POOLING, *FORMATS], ids=lambda row: f"{row.section}-{row.name}")
def test_every_windowed_row_sets_layers_of_either_kind_side_by_side(row):
    layer, theirs = twins(row.make, row.opponent)
    assert (type(layer), type(theirs)) == (getattr(nn, row.kind), getattr(torch.nn, row.kind))
    assert repr(layer) == repr(theirs)
    assert all(torch.equal(ours, other) for ours, other in zip(layer.parameters(), theirs.parameters(), strict=True))
    assert {p.dtype for p in layer.parameters()} <= {row.dtype}
    theirs.to("meta")(torch.empty(row.shape, dtype=row.dtype, device="meta"))
    assert ("depthwise" in row.name) == (getattr(layer, "groups", 1) == row.shape[1] > 1)


def test_the_limit_of_a_convolution_and_of_a_pooling():
    x, y = 2 * 3 * 8, 2 * 4 * 7
    given = torch.zeros(2, 3, 8), torch.zeros(2, 4, 7)
    moved = 3 * x + 2 * y + 3 * (4 * 3 * 2 + 4)
    assert CONV.work(CONV.opponent(), *given) == Work(flops=6 * y * 3 * 2, bytes=4 * moved)
    halves = [value.bfloat16() for value in given]
    assert CONV.work(CONV.opponent().bfloat16(), *halves) == Work(flops=6 * y * 3 * 2, bytes=2 * moved)
    depthwise = torch.nn.Conv1d(3, 3, 2, groups=3, bias=False)
    assert CONV.work(depthwise, given[0], torch.zeros(2, 3, 7)).flops == 6 * (2 * 3 * 7) * 2
    pooled = torch.zeros(2, 3, 4)
    assert CONV.work(torch.nn.MaxPool1d(2), given[0], pooled) == Work(flops=0, bytes=4 * 2 * (x + pooled.numel()))


def test_a_windowed_row_gives_the_gradient_of_an_output_of_another_shape_in_its_type_and_layout(monkeypatch):
    seen = []

    def watch(layer, *given, **options):
        seen.append([(v.shape, v.dtype, v.is_contiguous(memory_format=torch.channels_last)) for v in given])
        return step(layer, *given, **options)

    monkeypatch.setattr("pellucid.benchmark.twins.step", watch)
    both = makers("Conv2d", 3, 4, 2, dtype=torch.bfloat16)
    row = WindowedRow("Conv2d", (2, 3, 5, 6), *both, dtype=torch.bfloat16, layout=torch.channels_last)
    assert row.measure(RUN).agreement.passed
    assert seen[-1] == [((2, 3, 5, 6), torch.bfloat16, True), ((2, 4, 4, 5), torch.bfloat16, True)]


class OneKernel(torch.nn.Conv1d):
    """Its second kernel gets no gradient."""

    def forward(self, input):
        own = torch.cat([self.weight[:1], self.weight[1:2].detach(), self.weight[2:]])
        return self._conv_forward(input, own, self.bias)


def test_a_convolution_whose_gradient_differs_has_no_figure():
    assert CONV.measure(RUN).agreement.passed
    assert not replace(CONV, make=lambda: OneKernel(3, 4, 2)).measure(RUN).agreement.passed


@pytest.mark.parametrize("row", NETWORKS, ids=lambda row: row.name)
def test_networks_are_trained_alike_from_the_same_weights(row):
    torch.manual_seed(0)
    ours, theirs = row.twins()
    examples = row.examples("cpu")
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(*examples.inputs), theirs.eval()(*examples.inputs))
    figure = row.measure(RUN)
    assert figure.agreement.passed
    assert set(figure.backend.split(", ")) <= {"c", "torch"}
    assert min(figure.ours_ms, figure.torch_ms) > 0


def test_a_network_that_learns_something_else_has_no_figure():
    class Sloping(torch.nn.ReLU):
        """Lets a little of the gradient pass where the output is 0."""

        def forward(self, input):
            return super().forward(input) + 1e-8 * (input - input.detach())

    def sloping():
        network = lenet5(nn)
        network[4] = Sloping()
        return network

    assert not replace(LENET, make=sloping).measure(RUN).agreement.passed


def test_the_texts_have_different_lengths_and_padding_is_not_read():
    class Padded(TextCNN):
        def forward(self, ids, lengths):
            return super().forward(ids, torch.full_like(lengths, ids.shape[1]))

    assert not replace(TEXT, make=Padded).measure(RUN).agreement.passed


def test_a_network_drops_where_it_is_timed_and_not_where_it_is_compared():
    modes = []

    class Watching(TextCNN):
        def forward(self, ids, lengths):
            modes.append(self.training)
            return super().forward(ids, lengths)

    replace(TEXT, make=Watching).measure(RUN)
    compared = 2 * networks.COMPARED_STEPS  # in float64 and in float32
    assert not any(modes[:compared])
    assert all(modes[compared:])
    assert len(modes) > compared


def test_the_work_of_a_training_step_leaves_the_gradient_of_the_pictures_out():
    torch.manual_seed(0)
    network, examples = LENET.opponent(), LENET.examples("cpu")
    first, others = 28 * 28 * 6 * 25, 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10
    before = [w.clone() for w in network.parameters()]
    found = work_of(network, examples.step)
    assert found.flops == networks.LENET_BATCH * (4 * first + 6 * others)
    assert found.bytes == 4 * 4 * sum(w.numel() for w in before)
    assert all(map(torch.equal, network.parameters(), before))


def test_the_backends_of_a_network_are_those_of_pellucids_layers():
    class Fast(nn.MaxPool2d):
        backend = "c"

    class Slow(nn.AvgPool2d):
        backend = "torch"

    assert backends(torch.nn.Sequential(Fast(2), torch.nn.Sequential(Slow(2), Fast(2)), torch.nn.ReLU())) == "c, torch"
    assert backends(torch.nn.Sequential(Fast(2), torch.nn.Linear(2, 2))) == "c"


def test_kernels_of_text_are_laid_out_as_those_of_a_convolution():
    ours, theirs = TextCNN(), TorchTextCNN()
    for weight, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert TextCNN.as_torch(weight).shape == other.shape


def test_a_causal_convolution_is_streamed_beside_one_whose_state_is_kept_by_hand():
    layer, theirs = twins(lambda: nn.Conv1d(2, 3, 4, padding="causal"), lambda: ByHand(2, 3, 4))
    x = torch.randn(5, 1, 2, 1)
    (streamed,) = convolution._stream(theirs, x)
    torch.testing.assert_close(streamed, layer(x.permute(1, 2, 0, 3).squeeze(-1)).detach())
    (row,) = CAUSAL
    assert row.name == "Conv1d 64→64, kernel 3, causal"
    figure = CausalRow(2, 3, 4).measure(RUN)
    assert figure.agreement.passed
    assert figure.limit_ms == pytest.approx(1e3 * 4 * (2 * 3 * 4 + 3 + 2 + 3) / 1e9)


def test_a_stream_that_forgets_has_no_figure(monkeypatch):
    class Forgetful(nn.Conv1d):
        def forward(self, input, lengths=None, state=None):
            y, _ = super().forward(input, state=self.initial_state(1))
            return y, state

    monkeypatch.setattr(convolution.nn, "Conv1d", Forgetful)
    assert not CausalRow(2, 3, 4).measure(RUN).agreement.passed


# -- models -----------------------------------------------------------------------------------------------------------


def small_model(**arguments):
    layers = [torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Dropout(0.5), torch.nn.LayerNorm(5)]
    return torch.nn.Sequential(*layers)


def small_row(name="small", needs=None, floor=1e-6):
    size = Sized({}, lambda: {"input": torch.randn(4, 6)})
    return ModelRow(ZooModel(name, small_model, size, size, needs), floor)


def test_a_model_is_measured_after_swap_and_compared_without_its_dropouts(monkeypatch, tmp_path):
    path = tmp_path / "figures.json"
    result = run(monkeypatch, [small_row()], "--rows", "small", "--check", "--json", str(path), suite="models")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(path.read_text(encoding="utf-8"))["figures"]["models"]
    assert found["layers"] == "4 of 4"
    assert found["fused"] == 0
    assert found["agreement"]["difference"] <= EXACT
    assert min(found["limit_ms"], found["ours_ms"], found["torch_ms"]) > 0
    assert "4 of 4" in result.output
    assert f"geometric mean of 1 models: {found['torch_ms'] / found['ours_ms']:.2f}× as fast" in result.output


def picture_row():
    def build():
        return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Conv2d(2, 2, 1))

    size = Sized({}, lambda: {"input": torch.randn(1, 1, 5, 5)})
    return ModelRow(ZooModel("pictures", build, size, size, None))


@pytest.mark.parametrize(("gain", "form"), [(0, "channels_last"), (1e9, None)])
def test_a_model_of_pictures_is_measured_in_the_format_that_is_faster(monkeypatch, tmp_path, gain, form):
    monkeypatch.setattr(formats, "GAIN", gain)
    monkeypatch.setattr(verification, "TIMED_SECONDS", 0)
    path = tmp_path / "figures.json"
    result = run(monkeypatch, [picture_row(), small_row()], "--json", str(path), suite="models")
    assert result.exit_code == 0, result.output
    found, other = json.loads(path.read_text(encoding="utf-8"))["figures"]["models"]
    assert found["memory_format"] == form
    assert other["memory_format"] is None
    assert ("channels_last" in result.output) is (form is not None)


def test_a_model_that_fails_to_verify_fails_its_row_alone(monkeypatch):
    right = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: right(self, x) * 1.1)
    result = run(monkeypatch, [picture_row(), small_row()], suite="models")
    assert result.exit_code == 1
    assert "1 of 2 rows fail" in result.output
    assert "swap: with pellucid's layers the model differs in eval mode" in " ".join(result.output.split())


def test_a_model_that_differs_has_no_figure(monkeypatch):
    right = nn.LayerNorm.forward
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, x: right(self, x) * (1 + 1e-8))
    result = run(monkeypatch, [small_row()], suite="models")
    assert result.exit_code == 1
    assert "values or gradients differ" in result.output
    assert "geometric mean" not in result.output


def test_models_have_a_floor_each_and_one_together(monkeypatch):
    monkeypatch.setattr(command, "MEAN_FLOOR", 1e9)
    result = run(monkeypatch, [small_row(floor=1e8)], "--check", suite="models")
    assert result.exit_code == 1
    assert "1 of 1 rows fail" in result.output
    assert "as fast as torch, the floor is 1e+08×" in result.output
    assert "the floor of the geometric mean is 1e+09×" in result.output


def test_a_model_whose_code_is_missing_is_left_out(monkeypatch):
    result = run(monkeypatch, [small_row("far", "no_such_package"), small_row()], suite="models")
    assert result.exit_code == 0, result.output
    assert "left out: models: far: needs no_such_package: pip install no_such_package" in result.output


def test_the_geometric_mean_is_that_of_the_factors():
    figure = small_row().measure(RUN)
    pair = [replace(figure, ours_ms=1.0, torch_ms=4.0), replace(figure, ours_ms=2.0, torch_ms=2.0)]
    assert geometric_mean(pair) == pytest.approx(2)
