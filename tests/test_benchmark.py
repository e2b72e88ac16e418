from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from pellucid import nn
from pellucid.benchmark import command, comparison, limit, processes
from pellucid.benchmark.comparison import EXACT, Agreement, Failed, Run, Skipped
from pellucid.benchmark.limit import Rates, Work, measure_rates, work
from pellucid.benchmark.processes import FirstResultRow, MemoryRow
from pellucid.benchmark.recipe import RECIPE, Recipe, RecipeRow
from pellucid.benchmark.speed import RECURRENT, SpeedRow
from pellucid.benchmark.streaming import StreamingRow
from pellucid.cli import main
from pellucid.nn import cells

LSTM = SpeedRow("LSTM 2, 3, 4→5", lambda: nn.LSTM(4, 5), lambda: torch.nn.LSTM(4, 5), 2, 3, floor=1e-6)
LEAKY = SpeedRow("leaky 2, 3, 4→5", lambda: cells.leaky(4, 5), None, 2, 3)
RUN = Run(rounds=1, threads=1, device="cpu", rates=Rates(1e9, 1e9))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(limit, "PRODUCT", 64)
    monkeypatch.setattr(limit, "COPIED", 2**16)
    monkeypatch.setattr(comparison, "TIMED_SECONDS", 0.0)


def run(monkeypatch, rows, *arguments):
    monkeypatch.setitem(command.SUITES, "recurrent", rows)
    return CliRunner().invoke(main, ["bench", "recurrent", "--rounds", "2", *arguments])


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
        row = MemoryRow(1, 2, 3)
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
    figure = MemoryRow(2, 300, 8, checkpoint_every=20).measure(RUN)
    assert figure.row == "LSTM 2, 300, 8→8, checkpoint_every=20"
    assert figure.agreement.passed
    assert min(figure.ours_s, figure.torch_nn_s) > 0
    assert max(figure.ours_mib, figure.torch_nn_mib) < 1000


def test_processes_measure_the_cpu():
    for row in (MemoryRow(1, 2, 3), FirstResultRow()):
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
@pytest.mark.parametrize("row", RECIPE, ids=lambda row: row.cell)
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
    compare = pytest.importorskip("pellucid.recipes.compare")
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
        for name in ("pellucid.recipes.sentiment", "pellucid.recipes.compare"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, "lightning", None)
    result = run(monkeypatch, [LEAKY, RecipeRow("gru")], "--check")
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.output.split("left out: ")[1:] if line.startswith("recipe: GRU, sentiment: "))
    assert missing in line.lower()
    assert "pip install 'pellucid[train]'" in " ".join(line.split())
