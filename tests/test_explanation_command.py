"""The command `pellucid explain`."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from explaining import SENTENCE
from pellucid.explanation.command import command, parse_arguments

# -- the command ----------------------------------------------------------------------------------------------------


def run(*arguments: str, env: dict[str, str] | None = None):
    return CliRunner().invoke(command, list(arguments), env=env)


def test_command_in_chinese():
    sizes = ("--input-size", "256", "--hidden-size", "128")
    result = run("rnn", *sizes, "--sentence", SENTENCE, "--lang", "zh", "--width", "80")
    assert result.exit_code == 0, result.output
    for words in ("49,280", "256×128", "128×128", "1×128", *(f"第 {t} 步，共 5 步：" for t in range(1, 6))):
        assert words in result.output
    assert run("rnn", *sizes, env={"LC_ALL": "zh_CN.UTF-8"}).output.startswith("rnn：循环层")


def test_command_for_dropout():
    result = run("dropout", "--p", "0.5", "--input", "1,2,3,4,5,6", "--lang", "en")
    assert result.exit_code == 0, result.output
    line = next(line for line in result.output.splitlines() if re.match(r"  y = x ⊙ mask.*\)  ", line))
    kept = [int(number) for number in line.split(")")[-1].split()]
    assert all(y in (0, 2 * x) for x, y in zip(range(1, 7), kept, strict=True))
    assert 0 < kept.count(0) < 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("textconv", "--embedding-size", "8", "--widths", "2,3", "--sentence", "你好世界"),
            ("2×2×8", "2×3×8", "你 好 世 界"),
        ),
        (("tcn", "--in-channels", "3", "--hidden-channels", "4,5"), ("dilations=(1, 2)", "first[1].v", "5×4×2")),
        (("separableconv2d", "--in-channels", "2", "--depth-multiplier", "3"), ("6×1×3×3", "1×6×1×1")),
        (("convpool2d", "--kernel-size", "5", "--pool-size", "3"), ("1×1×5×5", "relu, never falls", "1×1×3×3")),
    ],
)
def test_command_for_convolutions(arguments, words):
    result = run(*arguments, "--lang", "en")
    assert result.exit_code == 0, result.output
    for word in words:
        assert word in result.output


def test_command_reads_a_cell_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch, pellucid\n\n@pellucid.cell\ndef slow(x, h, *, U, W, tau: float = 2.0):\n"
        "    return h + (torch.tanh(x @ U + h @ W) - h) / tau\n"
    )
    result = run(f"{file}:slow", "--tau", "4", "--hidden-size=2", "--lang", "en", "--steps", "1")
    assert result.exit_code == 0, result.output
    assert "τ = 4" in result.output
    for name, words in ((f"{file}:fast", "its cells are slow"), (f"{file}", "which cell"), ("no.py:x", "no such file")):
        result = run(name)
        assert result.exit_code != 0
        assert words in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dropuot",), "Did you mean 'dropout'?"),
        (("dropout", "--input", "1,x"), "give numbers"),
        (("dropout", "--input", "1,2;3"), "same number"),
        (("rnn", "--input", "1", "--sentence", "a"), "both the input"),
        (("rnn", "--lang", "fr"), "'en' and 'zh'"),
        (("conv2d", "--kernel", "3"), "Did you mean 'kernel_size'?"),
        (("conv2d", "3"), "belongs to no option"),
        (("conv2d", "--input", "1,2"), "nn.Conv2d"),
    ],
)
def test_command_errors(arguments, words):
    result = run(*arguments)
    assert result.exit_code != 0
    assert words in result.output
    assert "Traceback" not in result.output


def test_command_teaches():
    result = run("--help")
    assert result.exit_code == 0
    assert result.output.count("pellucid explain ") >= 6


def test_arguments_of_a_layer():
    given = ["--kernel-size", "3,5", "--bias=false", "--p", "0.5", "--bidirectional", "--mode", "max", "--shift", "-2"]
    expected = {"kernel_size": (3, 5), "bias": False, "p": 0.5, "bidirectional": True, "mode": "max", "shift": -2}
    assert parse_arguments(given) == expected
