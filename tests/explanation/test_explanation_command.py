"""The command `pellucid explain`."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from explaining import SENTENCE
from pellucid.explanation import load
from pellucid.explanation.command import command
from pellucid.explanation.options import parse_arguments
from pellucid.explanation.texts import load as load_texts

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
    for name, words in (
        (f"{file}:fast", "its cells are slow"),
        (f"{file}", f"which cell of it? Write {file}:slow; its cells are slow"),
        ("no.py:x", "no such file"),
        ("no.py", "which cell"),
    ):
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
        (("dropout", "--p", "2"), "raised by dropout(p=2"),
        (("rnn", "--device", "nowhere"), "raised by rnn("),
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


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("dropout", "--p"), "--p"),
        (("dropout", "--p", "--input", "1,2"), "--p"),
        (("dropout", "--p="), "--p"),
        (("conv2d", "--kernel-size", "--stride", "2"), "--kernel-size"),
        (("conv2d", "--device"), "--device"),
        (("batchnorm1d", "--eps"), "--eps"),
        (("leaky", "--tau"), "--tau"),
        (("RNN", "--nonlinearity"), "--nonlinearity"),
    ],
)
def test_an_option_whose_argument_takes_a_value_needs_one(arguments, option):
    result = run(*arguments, "--lang", "en")
    assert result.exit_code == 2
    assert result.output == f"Error: {option} needs a value\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gru", "--bidirectional", "--hidden-size", "2"), "2 directions"),
        (("conv2d", "--bias"), "bias"),
        (("batchnorm1d", "--affine", "--num-features", "3"), "γ"),
    ],
)
def test_an_option_that_is_true_or_false_may_stand_alone(arguments, words):
    result = run(*arguments, "--lang", "en")
    assert result.exit_code == 0, result.output
    assert words in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("batchnorm2d", "--num-features", "0"), "--num-features: expected a whole number from 1, but received '0'"),
        (("conv2d", "--padding=-1"), "--padding: expected 3 or 3,5, whole numbers from 0, but received '-1'"),
        (("conv2d", "--groups", "1.5"), "--groups: expected a whole number from 1, but received '1.5'"),
        (("conv2d", "--bias", "no"), "--bias: expected true or false, but received 'no'"),
        (("leaky", "--tau", "x"), "--tau: expected a number, 0.5 say, but received 'x'"),
        *(
            (("dropout", "--p", p), f"--p: expected a number, 0.5 say, but received {p!r}")
            for p in ("nan", "inf", "abc", "true", "1e999", "1,2")
        ),
        *(
            (
                ("conv2d", "--kernel-size", size),
                f"--kernel-size: expected 3 or 3,5, whole numbers from 1, but received {size!r}",
            )
            for size in ("abc", "3x5", "0", "3,0", "none")
        ),
        (
            ("rnn", "--bias", "false"),
            "explain: rnn takes no 'bias'. It takes input_size, hidden_size, num_layers, batch_first, dropout, "
            "bidirectional, device, dtype.",
        ),
    ],
)
def test_an_option_of_another_kind_is_refused_in_one_line(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.output == f"Error: {message}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("conv2d", "--padding", "same"), "padding=same"),
        (("conv2d", "--padding", "0,1"), "padding=(0, 1)"),
        (("conv2d", "--bias", "0"), "weight"),
        (("maxpool2d", "--stride", "none"), "kernel_size=2"),
        (("batchnorm1d", "--momentum", "none"), "momentum=None"),
        (("dropout", "--p", "0"), "p=0"),
        (("dropout", "--seed", "-3"), "p=0.5"),
        (("lstm", "--hidden-size", "4", "--dropout", "0.5", "--num-layers", "2"), "dropout=0.5"),
    ],
)
def test_an_option_of_a_kind_that_goes_is_read(arguments, words):
    result = run(*arguments, "--lang", "en")
    assert result.exit_code == 0, result.output
    assert words in result.output


@pytest.mark.parametrize("name", ["dropout", "batchnorm", "drop_path"])
def test_eval_of_a_single_layer(tmp_path, name):
    own = tmp_path / "own.py"
    own.write_text(
        "import pellucid\n\n@pellucid.layer\ndef drop_path(x, *, p: float = 0.5):\n"
        "    return pellucid.dropout(x, p) * 2\n"
    )
    name = f"{own}:drop_path" if name == "drop_path" else name
    training, evaluated = (run(name, "--input", "1,2,3,4", "--lang", "en", *more).output for more in ((), ("--eval",)))
    assert training != evaluated
    known = {"dropout": "it drops nothing", "batchnorm": "average is what training has kept"}
    assert known.get(name, "") in evaluated


def test_an_option_may_stand_alone_where_nothing_is_known_of_its_argument(tmp_path):
    file = tmp_path / "open.py"
    file.write_text(
        "import torch\n\ndef make(deep, wide=4, **more):\n"
        "    assert deep is True and more in ({}, {'other': True})\n    return torch.nn.Linear(wide, 2)\n"
    )
    result = run(f"{file}:make", "--deep", "--other", "--input", "2x4", "--lang", "en")
    assert result.exit_code == 0, result.output
    assert run(f"{file}:make", "--deep", "--wide").output == "Error: --wide needs a value\n"


# -- files and the browser ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("drawn")
def test_command_saves_instead_of_printing(tmp_path):
    files = [tmp_path / name for name in ("一.html", "b.svg", "c.json", "d.md")]
    result = run("gru", "--lang", "zh", *(part for file in files for part in ("--save", str(file))))
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [str(file) for file in files]
    for file in files:
        assert "gru：循环层" in file.read_text(encoding="utf-8")
    assert load(files[2]).lang == "zh"


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("found", [True, False])
@pytest.mark.usefixtures("drawn")
def test_command_opens_the_browser(tmp_path, monkeypatch, lang, found):
    opened = []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or found)
    result = run("conv2d", "--open", "--lang", lang)
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.rglob("*.html")
    assert opened == [file.as_uri()]
    sentence = load_texts(lang)["show.no_browser"].format(path=file)
    assert result.output == f"{file if found else sentence}\n"


def test_command_refuses_files_before_it_computes(tmp_path, monkeypatch):
    monkeypatch.setattr("pellucid.explanation.explain", lambda *arguments, **options: pytest.fail("computed"))
    for name, words in (
        ("x.gif", "x.html"),
        ("x", "no ending"),
        ("no/x.md", "there is no folder"),
        ("", "is a folder"),
    ):
        result = run("rnn", "--save", str(tmp_path / "x.svg"), "--save", str(tmp_path / name))
        assert result.exit_code == 2, result.output
        assert words in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, ImportError("pip install 'pellucid[figures]'"), RuntimeError("x")]
)
def test_command_leaves_nothing_where_it_stops(tmp_path, monkeypatch, drawn, error):
    def fail(report):
        raise error

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    drawn.figure.pdf = fail
    result = run("rnn", "--save", str(tmp_path / "x.md"), "--save", str(tmp_path / "x.pdf"), "--open")
    assert result.exit_code == 1
    assert ("Aborted" if error is KeyboardInterrupt else f"Error: {error}") in result.output
    assert list(tmp_path.iterdir()) == []
