"""How an explanation reads: two languages, the terminal's lines, and whole golden texts."""

from __future__ import annotations

import re
import string
from dataclasses import replace

import pytest
import torch
from rich.cells import cell_len

import pellucid
from explaining import SENTENCE, quietly
from formulas import leaky
from goldens import golden
from pellucid import nn
from pellucid.explanation.report import Report
from pellucid.explanation.texts import Count, Texts, lang_of_locale, languages, load
from pellucid.nn import cells

# -- texts ----------------------------------------------------------------------------------------------------------


def blanks(text: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(text) if field}


def test_the_languages_say_the_same():
    english = load("en")
    for lang in languages():
        texts = load(lang)
        assert set(texts) == set(english), set(texts) ^ set(english)
        for key, text in texts.items():
            assert blanks(text) == blanks(english[key]), key
            assert text.strip() or key.startswith("punctuation"), key
    assert any("\u4e00" <= character <= "\u9fff" for character in load("zh")["idea.recurrent"])


def test_texts_of_one_language_have_no_other():
    for key, text in load("en").items():
        assert not re.search("[\u3000-\u9fff\uff00-\uffef]", text), key
    for key, text in load("zh").items():
        words = re.findall(r"[A-Za-z]{3,}(?: [a-z]+){3,}", text)
        assert not words or key.startswith("total"), (key, words)


def test_numbers_agree_with_their_nouns():
    assert f"{Count(1):row|rows}, {Count(2000):row|rows}, {Count(2000)}" == "1 row, 2,000 rows, 2,000"
    with pytest.raises(ValueError, match="'en' and 'zh'"):
        Texts("de")


def test_numbers_of_a_cost_agree_with_their_nouns():
    one, many = (quietly(nn.Conv1d(1, 1, size, bias=False), torch.ones(1, 1, 2)).text() for size in (1, 2))
    assert re.search(r" 1  trainable weight\n", one)
    assert re.search(r" 2  trainable weights\n", many)
    assert "个要学习的权重" in quietly(nn.Conv1d(1, 1, 1), torch.ones(1, 1, 2), lang="zh").text()


@pytest.mark.parametrize(
    ("environment", "lang"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
    ],
)
def test_language_of_the_locale(environment, lang, monkeypatch):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert lang_of_locale() == lang


# -- the terminal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_lines_keep_to_the_width(lang: str, width: int):
    for report in (quietly("lstm", SENTENCE, lang=lang, input_size=40, hidden_size=30), quietly("conv3d", lang=lang)):
        for line in report.text(width).splitlines():
            assert cell_len(line) <= width or (report.code and line.strip() in report.code), line
            assert line == line.rstrip()


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_code_that_is_too_long_is_folded(lang: str):
    report = quietly("dropblock2d", lang=lang)
    assert max(map(cell_len, report.code)) > 90
    for width in (60, 80):
        lines = report.text(width).splitlines()
        assert all(cell_len(line) <= width for line in lines)
        assert "".join(report.code).replace(" ", "") in "".join(lines).replace(" ", "")
    folded = next(line for line in lines if line.startswith("            ") and line.strip())
    assert folded not in [f"    {line}" for line in report.code]
    assert all(f"    {line}" in report.text(120).splitlines() for line in report.code)


def test_chinese_lines_break_where_they_may():
    report = quietly("lstm", lang="zh")
    lines = report.text(60).splitlines()
    assert not any(line.strip().startswith(tuple("，。；：）")) for line in lines)
    full = [line for line in lines if cell_len(line) >= 57]
    assert len(full) > 10, "lines of Chinese are filled, not broken at spaces only"


def test_columns_are_aligned():
    lines = quietly("rnn", lang="zh").text(100).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("  符号")) + 1
    ends = {cell_len(re.match(r"(.*?\d)  \S+$", line).group(1)) for line in lines[start : start + 5]}
    assert len(ends) == 1


def test_numbers_have_four_digits_at_most():
    text = quietly("gru", SENTENCE, input_size=6, hidden_size=5).text(100)
    for number in re.findall(r"-?\d+\.\d+", text):
        assert len(number.replace("-", "").replace(".", "").lstrip("0")) <= 4, number


def test_slices_say_what_they_show():
    text = quietly("rnn", SENTENCE, input_size=256, hidden_size=128).text(80)
    assert "showing 8 of 256" in text
    assert "showing 8 of 128" in text


@pytest.mark.parametrize(("lang", "enters"), [("en", "“{}” enters as its vector"), ("zh", "“{}”以向量")])
def test_a_sentence_breaks_no_line(lang, enters):
    report = quietly("rnn", "a\nb\t\u2028", lang=lang)
    text = report.text()
    for step, token in enumerate(("a", "␊", "b", "␉", "U+2028")):
        assert report.steps[step].title.endswith(token)
        assert enters.format(token) in text
    assert not set("\t\u2028") & set(text)
    assert [moment.token for moment in report.figures[0].moments] == ["a", "␊", "b", "␉", "U+2028"]


def test_a_sentence_turns_no_line_of_the_terminal():
    written = quietly(nn.RNN(3, 2), ["\u202eabc", "\x1b[31m"]).text()
    assert "\u202e" not in written
    assert "\x1b" not in written
    assert "“U+202Eabc” enters" in written


# -- golden texts ---------------------------------------------------------------------------------------------------


def steady(layer: torch.nn.Module) -> torch.nn.Module:
    """Give a layer float64 weights that are the same on every machine."""
    layer = layer.double()
    with torch.no_grad():
        for index, weight in enumerate(layer.parameters()):
            weight.copy_(torch.sin(torch.arange(1.0, weight.numel() + 1) * (index + 1.37)).reshape(weight.shape) / 2)
    return layer


def picture(*shape: int) -> torch.Tensor:
    numbers = torch.arange(torch.Size(shape).numel())
    return (numbers * 7 % 10).reshape(shape).double()


GOLDENS = {
    "rnn": lambda: ((steady(cells.rnn(256, 128)), SENTENCE), {}),
    "gru": lambda: ((steady(nn.GRU(4, 3)), "ab"), {}),
    "lstm": lambda: ((steady(nn.LSTM(4, 3)), SENTENCE), {"steps": 2}),
    "leaky": lambda: ((steady(leaky(4, 3, tau=5.0)), SENTENCE), {"steps": 2}),
    "conv2d": lambda: ((steady(nn.Conv2d(1, 2, 3, dilation=2, padding=1)), picture(1, 1, 6, 6)), {}),
    "conv1d": lambda: ((steady(nn.Conv1d(4, 2, 2)), SENTENCE), {}),
    "textconv": lambda: ((steady(nn.TextConv(4, 2, (2, 3))), SENTENCE), {}),
    "separable": lambda: ((steady(nn.SeparableConv2d(2, 1, 2)), picture(1, 2, 3, 4)), {"steps": 1}),
    "convpool": lambda: ((steady(nn.ConvPool2d(1, 2, 2)), picture(1, 1, 4, 6)), {}),
    "tcn": lambda: ((steady(nn.TCN(2, [2, 3], 2)), picture(1, 2, 8)), {}),
    "batchnorm": lambda: ((steady(nn.BatchNorm2d(2)), picture(3, 2, 2, 2)), {}),
    "layernorm": lambda: ((steady(nn.LayerNorm(4)), picture(3, 4)), {}),
    "addnorm": lambda: ((steady(nn.AddNorm(4, 0.5, seed=3)), picture(3, 4), picture(3, 4) / 2), {}),
    "swiglu": lambda: ((steady(nn.SwiGLU(4, 3)), picture(2, 4)), {}),
    "dropout": lambda: ((nn.Dropout(0.5, seed=3), torch.arange(1.0, 7.0)), {}),
    "maxpool": lambda: ((nn.MaxPool2d(2), picture(1, 2, 4, 4)), {}),
}


def golden_report(name: str, lang: str) -> Report:
    arguments, options = GOLDENS[name]()
    with pellucid.backend("stepwise"):  # there is one on every machine
        report = quietly(*arguments, lang=lang, **options)
    rounding = re.sub(r"(differ by|最大相差) \S+?(?=[ （])", r"\1 …", report.check.text)  # another on other machines
    return replace(report, check=replace(report.check, text=rounding))


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name: str, lang: str):
    text = golden_report(name, lang).text(80)
    assert text == golden(f"{name}.{lang}.txt", text)
