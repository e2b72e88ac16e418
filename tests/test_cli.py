"""The commands: what they print and write, and one clear line for everything that cannot be used."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch

import fresh
import pellucid
from pellucid.cli import main
from pellucid.kernel import build
from pellucid.kernel.choice import faster
from pellucid.recipes.checkpoint import load
from recipe_commands import CELL, refused, run

TINY = ["--limit", "200", "--epochs", "1", "--hidden-size", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    pytest.importorskip("lightning")
    out = tmp_path_factory.mktemp("trained")
    result = run("train", "sentiment", *TINY, "--out", out)
    assert result.exit_code == 0, result.output
    return out


def commands(group: click.Group, path: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(("path", "command"), [pytest.param(*c, id="-".join(c[0])) for c in commands(main)])
def test_help_teaches(path, command):
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert f"pellucid {' '.join(path)}" in result.output.replace(f"Usage: main {' '.join(path)}", "")
    assert "Example" in result.output
    if path[0] in ("train", "predict", "doctor"):
        assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_version():
    assert pellucid.__version__ in run("--version").output


def test_python_runs_the_command_too():
    done = subprocess.run([sys.executable, "-m", "pellucid", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: pellucid [OPTIONS] COMMAND")


def test_a_terminal_that_lacks_characters():
    narrow = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "pellucid", "explain", "rnn"]
    done = subprocess.run(command, env={**os.environ, **narrow}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: this terminal is written to in ascii, which lacks ")
    assert "PYTHONUTF8=1" in done.stderr


def test_the_commands_load_no_training_before_there_is_one():
    heavy = "lightning PIL mlxtend sktime snownlp pandas"
    code = f"import sys, pellucid.cli; print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = fresh.run(code)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_doctor(monkeypatch, tmp_path):
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    build.load("int kept(void) { return 1; }")
    monkeypatch.setattr("pellucid.kernel.choice._measured", {})
    faster("adding", "a kernel", lambda: sum(range(10000)), lambda: None)
    found = json.loads(run("doctor", "--json").output)
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["pellucid"] == pellucid.__version__
    assert set(found["extras"]) == {"train", "compiler", "notebook"}
    assert {"c", "stepwise", "naive"} <= set(found["backends"])
    assert (found["machine"]["gpu"] is None) == (not torch.cuda.is_available())
    assert found["machine"]["compiler"] == shlex.join(build.compiler())
    kernels = found["kernels"]
    assert kernels["version"] == build.version(build.compiler())
    assert kernels["milliseconds"] > 0
    assert (kernels["folder"], kernels["kept"]) == (str(tmp_path / "kernels"), 1)
    assert kernels["bytes"] == sum(path.stat().st_size for path in (tmp_path / "kernels").iterdir())
    assert kernels["error"] is kernels["folder error"] is None
    ((question, seconds),) = found["choices"].items()
    assert question.startswith("adding")
    assert seconds["kernel"] < seconds["torch"]
    assert found["triton"] == {"works": torch.cuda.is_available(), "error": None}
    assert ("triton" in found["backends"]) == torch.cuda.is_available()
    shown = run("doctor").output
    assert torch.__version__ in shown
    assert "(kept: 1," in " ".join(shown.split())
    assert "1, of which the kernel is faster in 1" in " ".join(shown.replace("│", " ").split())
    assert ("pip install 'pellucid[compiler]'" in shown) == (not found["extras"]["compiler"])


def test_doctor_without_a_compiler(monkeypatch, tmp_path):
    from pellucid import doctor

    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "compiler", lambda: None)
    monkeypatch.setattr(doctor, "_installed", lambda module: False)
    found = json.loads(run("doctor", "--json").output)
    assert found["machine"]["compiler"] is found["kernels"]["milliseconds"] is None
    assert found["kernels"]["error"] == build.MISSING
    assert not any(found["extras"].values())
    assert "c" not in found["backends"]
    shown = run("doctor").output
    assert "pip install 'pellucid[train]'" in shown
    assert "no C compiler was found" in shown


def test_doctor_names_the_cure_of_a_cache_that_others_can_write_to(monkeypatch, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels").chmod(0o777)
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    kernels = json.loads(run("doctor", "--json").output)["kernels"]
    assert kernels["folder"] is None
    assert "set PELLUCID_CACHE to a folder of your own" in kernels["folder error"]
    assert kernels["error"] is None


# -- what cannot be used -----------------------------------------------------------------------------------------


@pytest.mark.train
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cell", "grv"], ["no such cell", "Did you mean gru?", "layernorm_lstm", "path/file.py:name"]),
        (["--cell", "nothing.py:mine"], ["nothing.py", "no such file"]),
        (["--cell", "nothing.py"], ["which cell of it?", "nothing.py:cell"]),
        (["--cell", "lstm_projected"], ["lstm_projected", "proj"]),
        (["--epochs", "-1"], ["--epochs", "x>=1"]),
        (["--hidden-size", "0"], ["--hidden-size"]),
        (["--lr", "0"], ["--lr"]),
        (["--limit", "0"], ["--limit"]),
        (["--device", "tpu"], ["--device", "cuda"]),
        (["--steps", "3"], ["--compare"]),
        (["--compare", "--resume"], ["leave --resume"]),
        (["--resume"], ["last.ckpt", "Leave --resume out"]),
        (["--model", "textcnn", "--cell", "lstm"], ["--cell belongs to --model recurrent"]),
        (["--model", "textcnn", "--compare"], ["--compare times recurrent layers"]),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_bad_option(tmp_path, arguments, words):
    output = refused("train", "sentiment", "--out", tmp_path / "out", *arguments)
    for word in words:
        assert word in output
    assert not (tmp_path / "out").exists()


@pytest.mark.train
def test_out_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("")
    assert "that is a file" in refused("train", "sentiment", *TINY, "--out", tmp_path / "taken")
    assert "stands inside one" in refused("train", "sentiment", *TINY, "--out", tmp_path / "taken" / "deeper")


@pytest.mark.train
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("option", [[], ["--compare"]])
def test_no_gpu(tmp_path, option):
    message = refused("train", "sentiment", "--device", "cuda", "--out", tmp_path / "out", *option)
    assert "no GPU" in message
    assert "--device auto" in message


def test_without_lightning(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "lightning"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, "pellucid.recipes.training", raising=False)
    monkeypatch.delattr("pellucid.recipes.training", raising=False)
    assert "pip install 'pellucid[train]'" in refused("train", "sentiment", "--out", tmp_path / "out")


def test_no_such_checkpoint(tmp_path):
    message = refused("predict", tmp_path / "best.ckpt", "好")
    assert "no such file" in message
    assert "pellucid train sentiment" in message
    assert "is a folder" in refused("predict", tmp_path, "好")


def test_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "another kind of file" in refused("predict", tmp_path / "notes.txt", "好")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    assert "no checkpoint of pellucid" in refused("predict", tmp_path / "empty.ckpt", "好")
    torch.save({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "other.ckpt")
    assert "another program wrote it" in refused("predict", tmp_path / "other.ckpt", "好")
    torch.save(torch.zeros(2), tmp_path / "tensor.ckpt")
    assert "another program wrote it" in refused("predict", tmp_path / "tensor.ckpt", "好")


class Planted:
    """What a checkpoint must not be able to do: run something when it is loaded."""

    def __reduce__(self):
        return (sys.exit, ("the checkpoint was executed",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    torch.save({"pellucid": Planted(), "state_dict": {}}, tmp_path / "planted.ckpt")
    message = refused("predict", tmp_path / "planted.ckpt", "好")
    assert "objects that a checkpoint should not hold" in message
    assert "executed" not in message


# -- trained ------------------------------------------------------------------------------------------------------


@pytest.mark.train
def test_train_writes_and_prints(tmp_path):
    result = run("train", "sentiment", *TINY, "--out", tmp_path / "deep" / "out", "--seed", "7", "--cell", "leaky")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "deep" / "out" / "metrics.json").read_text())
    assert {"seconds", "torch", "backend", "threads"} <= set(metrics)
    assert (metrics["cell"], metrics["seed"], metrics["epochs"], metrics["limit"]) == ("leaky", 7, 1, 200)
    assert metrics["reviews"] == {"train": 200, "validation": 1_732, "test": 1_784}
    assert f"test accuracy {metrics['test_accuracy']:.4f} (seed 7" in result.output
    assert f"validation accuracy {metrics['validation_accuracy'][0]:.4f}" in result.output
    assert "Warning" not in result.output
    assert "Tip" not in result.output
    assert sorted(p.name for p in (tmp_path / "deep" / "out").iterdir()) == ["best.ckpt", "last.ckpt", "metrics.json"]


@pytest.mark.train
def test_expectation(trained, tmp_path):
    result = run("train", "sentiment", *TINY, "--out", tmp_path, "--expect", "0.99")
    assert result.exit_code == 1
    assert "below the expected 0.99" in result.output
    assert (tmp_path / "metrics.json").exists()


@pytest.mark.train
def test_resume(trained, tmp_path):
    for name in ("best.ckpt", "last.ckpt", "metrics.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    message = refused("train", "sentiment", "--resume", "--out", tmp_path, "--batch-size", "64")
    assert "--batch-size 64" in message
    assert "has 32" in message
    assert "--epochs 2 or more" in refused("train", "sentiment", "--resume", "--out", tmp_path)
    result = run("train", "sentiment", "--resume", "--out", tmp_path, "--epochs", "2", "--limit", "200")
    assert result.exit_code == 0, result.output
    assert "epoch 2/2" in result.output
    assert "epoch 1/2" not in result.output
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    before = json.loads((trained / "metrics.json").read_text())
    assert metrics["epochs"] == len(metrics["validation_accuracy"]) == 2
    assert metrics["validation_accuracy"][0] == before["validation_accuracy"][0]


@pytest.mark.train
def test_interrupted(tmp_path, monkeypatch):
    from pellucid.recipes import training

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Training, "training_step", interrupted)
    result = run("train", "sentiment", *TINY, "--out", tmp_path)
    assert result.exit_code == 130
    assert "no epoch was complete" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.train
def test_compare(tmp_path):
    result = run("train", "sentiment", *TINY, "--compare", "--steps", "2", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "torch.nn.GRU / pellucid = " in result.output
    assert "largest difference" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.train
def test_predict(trained):
    english = run("predict", trained / "best.ckpt", " 房间很干净 ")
    assert english.exit_code == 0, english.output
    assert "「房间很干净」" in english.output
    assert "review, probability" in english.output
    chinese = run("predict", trained / "best.ckpt", "房间很干净", "--lang", "zh")
    assert "评，概率" in chinese.output
    assert "empty" in refused("predict", trained / "best.ckpt", "  ")
    assert "only the first 200 characters" in run("predict", trained / "best.ckpt", "很好" * 150).output


@pytest.mark.train
def test_predict_explains_a_held_out_review(trained):
    result = run("predict", trained / "best.ckpt", "--explain", "--lang", "zh")
    assert result.exit_code == 0, result.output
    from pellucid.recipes.sentiment import reading

    text = reading.held_out_review().text
    assert f"「{text}」" in result.output
    assert "测试集" in result.output
    found = reading.read(load(trained / "best.ckpt"), text)
    rows = [line.split() for line in result.output.splitlines()]
    for character, probability in zip(text, found.probabilities, strict=True):
        assert any(row and row[0] == character and f"{probability:.3f}" in row for row in rows)
    assert "公式" in result.output
    assert "公式" not in run("predict", trained / "best.ckpt", "--lang", "zh").output


@pytest.mark.train
def test_damaged_checkpoints(trained, tmp_path):
    whole = (trained / "best.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "it ends too early" in refused("predict", tmp_path / "cut.ckpt", "好")
    content = torch.load(trained / "best.ckpt", weights_only=True)
    for change, words in (
        ({"format": 99}, "upgrade pellucid"),
        ({"settings": None}, "is damaged"),
        ({"accuracies": ["much"]}, "is damaged"),
        ({"settings": {**content["pellucid"]["settings"], "hidden_size": "wide"}}, "is damaged"),
        ({"settings": {**content["pellucid"]["settings"], "cell": "rnn"}}, "do not fit the cell rnn"),
    ):
        torch.save({**content, "pellucid": {**content["pellucid"], **change}}, tmp_path / "changed.ckpt")
        assert words in refused("predict", tmp_path / "changed.ckpt", "好")


@pytest.mark.train
def test_checkpoint_of_a_cell_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cells_of_mine.py").write_text(CELL)
    result = run("train", "sentiment", *TINY, "--cell", "cells_of_mine.py:mine", "--out", "out")
    assert result.exit_code == 0, result.output
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")  # the path in the checkpoint holds in every folder
    assert run("predict", "../out/best.ckpt", "好").exit_code == 0
    Path("../cells_of_mine.py").rename("../moved.py")
    message = refused("predict", "../out/best.ckpt", "好")
    assert "cells_of_mine.py: there is no such file" in message
    assert "--cell FILE.py:NAME" in message
    assert run("predict", "../out/best.ckpt", "好", "--cell", "../moved.py:mine").exit_code == 0
    Path("../moved.py").write_text(CELL.replace("U, W,", "U, V,").replace("h @ W", "h @ V"))
    assert "do not fit the cell" in refused("predict", "../out/best.ckpt", "好", "--cell", "../moved.py:mine")


@pytest.mark.train
def test_text_convolution(tmp_path):
    result = run("train", "sentiment", *TINY, "--model", "textcnn", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "model textcnn, seed 0" in result.output
    assert json.loads((tmp_path / "metrics.json").read_text())["model"] == "textcnn"
    said = run("predict", tmp_path / "best.ckpt", "房间很干净", "--explain", "--lang", "zh")
    assert said.exit_code == 0, said.output
    assert "卷积在这些字符中找到了什么" in said.output
    trained = load(tmp_path / "best.ckpt")
    match = trained.network.matches(trained.fitted.encode("房间很干净"))[0]
    weightiest = ["房间很干净"[match.start : match.start + match.width], f"{match.added:+.3f}"]
    assert weightiest in [line.split() for line in said.output.splitlines()]
    assert "公式" in said.output
    assert "has no cell" in refused("predict", tmp_path / "best.ckpt", "好", "--cell", "mine.py:mine")
    message = refused("train", "sentiment", "--resume", "--model", "recurrent", "--out", tmp_path)
    assert "--model recurrent: the training in" in message
    assert run("train", "sentiment", "--resume", "--epochs", "2", "--out", tmp_path).exit_code == 0


@pytest.mark.train
def test_one_sentence_at_a_time(trained):
    assert "put quotation marks around it" in refused("predict", trained / "best.ckpt", "房间", "干净")


@pytest.mark.train
@pytest.mark.parametrize("recipe", ["digits", "vowels"])
@pytest.mark.parametrize(("option", "value"), [("--task", "five"), ("--cell", "gru"), ("--compare", None)])
def test_option_of_another_recipe(tmp_path, recipe, option, value):
    refused("train", recipe, "--out", tmp_path / "out", option, *([value] if value else []))
    assert not (tmp_path / "out").exists()
