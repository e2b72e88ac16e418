"""Static figures: what they show is what was computed, nothing overlaps or leaves its box, hostile text stays text."""

from __future__ import annotations

import re
import struct
import sys
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from test_explanation_text import golden_report

import formulas
import pellucid
from explaining import SENTENCE, quietly
from goldens import golden
from pellucid import nn
from pellucid.explanation import examples, figure
from pellucid.explanation.figure import convert, measure
from pellucid.explanation.figure.sheet import style
from pellucid.explanation.report import Picture, Rows, Unrolled, Values
from pellucid.nn.recurrence.cell import Cell

SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Written:
    """A text of a figure with the box that it takes."""

    content: str
    kind: str
    left: float
    right: float
    baseline: float


def texts_of(svg: str) -> tuple[list[Written], tuple[float, float, float, float]]:
    """Return all texts of a figure in its own coordinates, and its view."""
    root = ET.fromstring(svg)
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    return list(_walked(root, 0.0, 0.0)), (left, top, left + width, top + height)


def _walked(node: ET.Element, dx: float, dy: float) -> Iterator[Written]:
    for child in node:
        if child.tag == SVG + "g":
            x, y = map(float, re.fullmatch(r"translate\((\S+) (\S+)\)", child.attrib["transform"]).groups())
            yield from _walked(child, dx + x, dy + y)
        elif child.tag == SVG + "text":
            kind = child.attrib["class"].split()[0].removeprefix("pf-")
            content = child.text
            wide = measure.width(content, kind)
            share = {"start": 0.0, "middle": 0.5, "end": 1.0}[child.attrib.get("text-anchor", "start")]
            x, y = dx + float(child.attrib["x"]) - share * wide, dy + float(child.attrib["y"])
            yield Written(content, kind, x, x + wide, y)


def assert_tidy(svg: str) -> None:
    """Every text lies in the view, and no two texts of one row overlap."""
    written, (left, top, right, bottom) = texts_of(svg)
    assert written
    for text in written:
        assert left <= text.left + 0.1, text
        assert text.right <= right + 0.1, text
        assert top <= text.baseline <= bottom, text
    written.sort(key=lambda text: (text.baseline, text.left))
    for index, text in enumerate(written):
        size = measure.KINDS[text.kind].size
        for other in written[index + 1 :]:
            if other.baseline - text.baseline >= 0.7 * size:
                break
            assert other.right <= text.left + 0.1 or text.right <= other.left + 0.1, (text, other)


def words_of(svg: str) -> list[str]:
    return [text.content for text in texts_of(svg)[0]]


@pellucid.cell
def with_very_long_names(
    the_input_of_this_step_of_the_sequence,
    the_state_that_the_step_before_has_left,
    *,
    the_matrix_that_the_input_is_multiplied_with,
    the_matrix_that_the_state_is_multiplied_with,
):
    return torch.tanh(
        the_input_of_this_step_of_the_sequence @ the_matrix_that_the_input_is_multiplied_with
        + the_state_that_the_step_before_has_left @ the_matrix_that_the_state_is_multiplied_with
    )


@pellucid.cell
def with_two_inputs(x, k: "key", /, h, c, *, U, V, W, P: "hidden hidden"):
    c = c * torch.sigmoid(x @ U + k @ V) + h @ W
    return torch.tanh(c) @ P, (torch.tanh(c), c)


# -- layout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", examples.names())
def test_every_figure_is_tidy(name: str, lang: str):
    report = quietly(name, lang=lang)
    assert_tidy(figure.svg(report))
    for step in report.steps:
        for part in (*report.figures, *step.parts):
            if not isinstance(part, str):
                assert_tidy(figure.drawing(part, report, 360))


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_long_names_tokens_and_sizes_are_tidy(lang: str):
    words = ["W" * 80, "an extraordinarily long token of many words", "一个非常非常非常非常长的词", "m" * 7] * 3
    for layer in (with_very_long_names(1000, 2000), with_two_inputs(300, 200, key=7), nn.LSTM(2048, 1024, 2)):
        inputs = (words,) if len(layer.cell.source.inputs) == 1 else (torch.ones(12, 1, 300),)
        report = quietly(layer, *inputs, lang=lang, steps=1, tokens=None if len(inputs[0]) == len(words) else words)
        assert_tidy(figure.svg(report))
    assert_tidy(figure.svg(quietly(nn.Conv1d(64, 3, 5, padding=2), words, lang=lang)))
    assert_tidy(figure.svg(quietly(nn.TextConv(64, 2, (2, 3)), words, lang=lang)))
    assert_tidy(figure.svg(quietly(nn.Conv2d(3, 8, 5, padding=4), torch.randn(2, 3, 64, 64) * 1e6, lang=lang)))
    assert_tidy(figure.svg(quietly(nn.LayerNorm(300), torch.randn(40, 300) * 1e-7, lang=lang)))


CELLS = [c for c in vars(formulas).values() if isinstance(c, Cell)]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.source.name)
def test_every_kind_of_cell_is_tidy(cell: Cell):
    with pellucid.backend("stepwise"):
        report = quietly(cell(4, 4, **dict.fromkeys(cell.size_names, 2)), torch.rand(9, 1, 4), steps=1)
    assert_tidy(figure.svg(report))
    assert report.text(60)


def test_matrices_one_after_the_other_stand_at_their_arrow():
    layer = formulas.low_rank(4, 3, rank=2)
    (network,) = quietly(layer, torch.rand(2, 1, 4)).figures
    assert network.states[0].weights == ("M", "N")


def test_an_overlap_is_seen():
    """The test of the layout itself can fail."""
    sheet = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 200 40">{}</svg>'
    text = '<text class="pf-text" x="{}" y="20">a word</text>'
    assert_tidy(sheet.format(text.format(0) + text.format(100)))
    for places in ((0, 30), (0, 190), (-5, 100)):
        with pytest.raises(AssertionError):
            assert_tidy(sheet.format("".join(map(text.format, places))))


# -- what is shown --------------------------------------------------------------------------------------------------


def test_the_unrolled_network_has_every_size_and_one_set_of_weights():
    report = quietly("rnn", SENTENCE, input_size=256, hidden_size=128)
    (network,) = report.figures
    assert isinstance(network, Unrolled)
    assert [moment.token for moment in network.moments] == list(SENTENCE)
    assert [arrow.weights for arrow in (*network.inputs, *network.states)] == [("U",), ("W",)]
    assert network.inside == ("b",)
    written = words_of(figure.svg(report))
    assert written.count("U 256×128") == written.count("W 128×128") == written.count("b 1×128") == 5
    assert written.count("1×256") == 6, "five inputs and the table"
    assert "U 256×128 · W 128×128 · b 1×128" in written
    assert {"x₁", "x₅", "h₀", "h₅", *SENTENCE} <= set(written)


def test_a_cell_of_ones_own_has_its_own_names():
    layer = with_two_inputs(3, 2, key=1)
    report = quietly(layer, torch.ones(4, 1, 3), k=torch.ones(4, 1, 1))
    (network,) = report.figures
    assert [arrow.weights for arrow in network.inputs] == [("U",), ("V",)]
    assert [arrow.weights for arrow in network.states] == [("W",), ()]
    assert network.inside == ("P",)
    assert network.moments[0].output == "y₁"
    assert {"k₁", "c₀", "y₄"} <= set(words_of(figure.svg(report)))


@pytest.mark.parametrize(("lang", "said"), [("en", "{} left out"), ("zh", "略去 {} 步")])
def test_a_long_sequence_is_shortened_and_says_by_how_much(lang: str, said: str):
    report = quietly("gru", torch.ones(40, 1, 4), lang=lang, steps=1)
    written = words_of(figure.svg(report))
    drawn = {text for text in written if re.fullmatch("x[₀-₉]+", text)}
    assert "x₄₀" in drawn
    assert said.format(40 - len(drawn)) in written
    narrow = words_of(figure.drawing(report.figures[0], report, 300))
    assert said.format(38) in narrow
    text = report.text(80)
    assert said.format(36) in text
    assert said.format(39) in report.text(40)


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv3d", "maxpool2d", "avgpool1d", "textconv"])
def test_a_windows_numbers_are_the_inputs(name: str):
    shapes = {"conv1d": (2, 3, 9), "textconv": (1, 9, 4), "avgpool1d": (1, 1, 6), "conv3d": (1, 1, 6, 6, 6)}
    x = torch.randn(shapes.get(name, (1, 1, 6, 6)))
    report = quietly(name, x, **({} if name == "textconv" else {"kernel_size": 2, "stride": 2}))
    for picture in report.figures:
        marked = [
            float(number)
            for cells, numbers in zip(picture.blocks, picture.numbers, strict=True)
            for row, line in zip(cells, numbers, strict=True)
            for cell, number in zip(row, line, strict=True)
            if cell in ("touched", "greatest")
        ]
        step = next(step for step in report.steps if any(part is picture for part in step.parts))
        if name == "textconv":
            known = x[0].numpy()
            assert np.isin(np.float32(marked), known).all()
        else:
            assert np.float32(sorted(marked)).tolist() == sorted(step.values["window(x)"].numbers.ravel().tolist())


def test_padding_shows_what_is_read_there():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    zeros = quietly(nn.Conv2d(1, 1, 3, padding=1), x).figures[0]
    assert zeros.numbers[0][0, 0] == 0
    assert np.isnan(zeros.numbers[0][0, 4])
    mirrored = quietly(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), x).figures[0]
    assert mirrored.numbers[0][0, 0] == 5
    greatest = quietly(nn.MaxPool2d(3, padding=1), x)
    assert "−∞" in words_of(figure.svg(greatest))


def test_the_output_beside_a_window_is_the_layers():
    layer, x = nn.Conv2d(2, 3, 3, dilation=2, stride=2), torch.randn(2, 2, 9, 9)
    first, second = quietly(layer, x).figures
    y = layer(x)
    for picture, column in ((first, 0), (second, 1)):
        kernel, result = picture.beside
        assert torch.equal(torch.from_numpy(kernel.numbers), layer.weight[0].detach())
        assert float(result.numbers) == pytest.approx(y[0, 0, 0, column].item(), abs=1e-6)  # a sum, which may be near 0
        assert picture.note


@pytest.mark.parametrize(("name", "shared"), [("batchnorm2d", 12), ("layernorm", 4), ("instancenorm2d", 4)])
def test_cells_that_share_a_mean_are_marked(name: str, shared: int):
    own, other = quietly(name).figures
    marks = [[cell for block in p.blocks for row in block for cell in row] for p in (own, other)]
    assert marks[0].count("averaged") == shared
    assert marks[0] != marks[1]
    assert own.numbers[0].shape == np.shape(own.blocks[0])


@pytest.mark.parametrize("name", ["dropout", "dropout2d", "lockeddropout", "droppath"])
def test_dropouts_rows_stand_under_one_another(name: str):
    report = quietly(name, p=0.3)
    (rows,) = report.figures
    assert isinstance(rows, Rows)
    x, draws, mask, y = (value.numbers for value in (rows.values, rows.draws, rows.mask, rows.result))
    assert x.shape == draws.shape == mask.shape == y.shape
    assert np.array_equal(mask, draws >= 0.3)
    assert np.allclose(y, x * mask / 0.7)
    written = words_of(figure.svg(report))
    assert "<" in written or "≥" in written
    assert any("1/(1 − 0.3) = 1.429" in text for text in written)


def test_dropout_in_eval_has_no_rows():
    assert quietly(nn.Dropout(0.5).eval(), torch.ones(4)).figures == ()


def test_a_matrix_prints_its_signs_and_says_what_it_shows():
    report = quietly("rnn", SENTENCE, input_size=256, hidden_size=128)
    svg = figure.drawing(report.steps[0].values["x₁"], report)
    assert "showing 8 of 256" in words_of(svg)
    svg = figure.drawing(Values("M", np.array([[1.5, -2.0], [0.0, np.nan]]), (2, 2)), report)
    assert {"1.500", "−2.000", "0", "nan"} <= set(words_of(svg))
    assert "pf-tint-warm" in svg
    assert "pf-tint-cool" in svg


def test_a_layer_without_drawings_shows_values():
    report = quietly("swiglu")
    assert report.figures == ()
    assert any(text.startswith("y = ") for text in words_of(figure.svg(report))[3:])


# -- svg ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", ["rnn", "conv2d", "batchnorm", "dropout", "swiglu"])
def test_a_drawing_has_a_text_alternative(name: str, lang: str):
    report = quietly(name, lang=lang)
    parts = report.figures or tuple(report.steps[0].values.values())
    for part in parts:
        root = ET.fromstring(figure.drawing(part, report))
        assert root.attrib["role"] == "img"
        title, description = root.find(SVG + "title").text, root.find(SVG + "desc").text
        assert title
        assert len(description) > 10
        if lang == "zh":
            assert measure.has_chinese(description)
        assert "currentColor" in root.find(SVG + "style").text
        assert "--figure-cool" in root.find(SVG + "style").text


def test_the_text_alternative_says_what_is_drawn():
    report = quietly("rnn", SENTENCE, input_size=256, hidden_size=128)
    assert "x₁ (1×256), multiplied by U (256×128)" in figure.drawing(report.figures[0], report)
    report = quietly("conv2d", kernel_size=2)
    assert "4 read by the window" in figure.drawing(report.figures[0], report)
    assert "Beside it weight" in figure.drawing(report.figures[0], report)


def test_schemes():
    report = quietly("rnn")
    assert "prefers-color-scheme:dark" in figure.svg(report)
    light, dark = figure.svg(report, "light"), figure.svg(report, "dark")
    assert "var(" not in light + dark
    assert "@media" not in light + dark
    assert light != dark
    with pytest.raises(ValueError, match="scheme='blue'"):
        style("blue")
    with pytest.raises(TypeError, match="a str has no drawing"):
        figure.drawing("text", report)


def test_nothing_is_fetched_and_nothing_runs():
    for name in ("lstm", "conv2d", "dropout"):
        svg = figure.svg(quietly(name))
        assert set(re.findall(r"https?://[^\"' <]+", svg)) == {"http://www.w3.org/2000/svg"}
        tags = {node.tag.removeprefix(SVG) for node in ET.fromstring(svg).iter()}
        assert tags <= {"svg", "title", "desc", "style", "g", "path", "rect", "text"}


HOSTILE = [
    "<script>alert(1)</script>",
    "]]>&amp;\"'`",
    "</text></svg>",
    "😀👩‍👩‍👧",
    "שלום\u202eabc",
    "\x00\x1b\n\t",
    "\ud800\uffff",
    " ",
]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_hostile_tokens_show_as_text(lang: str):
    for name in ("rnn", "conv1d", "textconv", "tcn"):
        report = quietly(name, HOSTILE[:5], lang=lang)
        also = quietly(name, HOSTILE[3:], lang=lang)
        for part in (report, also):
            svg = figure.svg(part)
            assert_tidy(svg)
            svg.encode()
            assert "<script" not in svg
            assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", svg)
            for drawn in part.figures:
                ET.fromstring(figure.drawing(drawn, part))
    written = words_of(figure.svg(quietly("rnn", HOSTILE[:5])))
    assert any(text.startswith("<script>") for text in written)
    assert "␣" in words_of(figure.svg(quietly("rnn", HOSTILE[5:])))
    assert any(text.startswith("␀␛␊") for text in words_of(figure.svg(quietly("rnn", HOSTILE[5:]))))


def test_hostile_sentence_of_10000_characters():
    sentence = "".join(HOSTILE[:5]) * 200
    sentence = (sentence * 10)[:10_000]
    for name in ("rnn", "conv1d", "textconv"):
        report = quietly(name, sentence, steps=1)
        svg = figure.svg(report)
        assert_tidy(svg)
        assert len(svg) < 60_000


def test_hostile_report():
    report = quietly("swiglu")
    bad = "".join(HOSTILE)
    svg = figure.svg(replace(report, title=bad, subject=bad * 50, formula=(bad, "    " + bad)))
    assert_tidy(svg)
    assert "<script" not in svg


def test_a_value_that_is_no_number_is_written():
    x = torch.tensor([[[float("nan"), 1, 2, float("inf")]]])
    svg = figure.svg(quietly(nn.Conv1d(1, 1, 2, padding=1, dilation=2), x))
    assert svg.count(">nan</text>") >= 2
    assert ">∞</text>" in svg
    assert "nan" not in figure.svg(quietly(nn.Conv1d(1, 1, 2, padding=2), torch.ones(1, 1, 4)))


# -- golden figures -------------------------------------------------------------------------------------------------

FIGURES = ("rnn", "lstm", "conv2d", "conv1d", "batchnorm", "layernorm", "dropout")


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", FIGURES)
def test_golden(name: str, lang: str):
    svg = figure.svg(golden_report(name, lang)).replace("><", ">\n<")
    assert svg == golden(f"{name}.{lang}.svg", svg)
    assert len(svg.encode()) < 40_000


# -- png and pdf ----------------------------------------------------------------------------------------------------


def test_png_has_two_pixels_for_one():
    pytest.importorskip("vl_convert")
    report = quietly("rnn")
    root = ET.fromstring(figure.svg(report))
    picture = figure.png(report)
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", picture[16:24])
    assert width == pytest.approx(float(root.attrib["width"]) * 2, abs=1)
    assert height == pytest.approx(float(root.attrib["height"]) * 2, abs=1)


def test_text_stays_text_in_a_pdf():
    pytest.importorskip("vl_convert")
    content = figure.pdf(quietly("rnn"))
    assert content.startswith(b"%PDF-")
    streams = [_inflated(part) for part in re.findall(rb"stream\r?\n(.*?)endstream", content, re.DOTALL)]
    assert any(b"beginbfchar" in s or b"beginbfrange" in s for s in streams), "glyphs are mapped to characters"
    assert any(b" Tf" in s for s in streams), "a typeface is set"


def _inflated(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return stream


def test_chinese_needs_a_typeface(monkeypatch):
    pytest.importorskip("vl_convert")
    report = quietly("rnn", lang="zh")
    if convert.shows_chinese():
        assert figure.png(report).startswith(b"\x89PNG")
    monkeypatch.setattr(convert, "shows_chinese", lambda: False)
    for write in (figure.png, figure.pdf):
        with pytest.raises(RuntimeError, match="fonts-noto-cjk"):
            write(report)
        assert write(quietly("rnn", "abc")), "a text without Chinese needs none"


def test_without_the_converter(monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    report = quietly("rnn")
    assert figure.svg(report)
    for write in (figure.png, figure.pdf):
        with pytest.raises(ImportError, match=re.escape("pip install 'pellucid[figures]'")):
            write(report)


def test_pictures_of_one_kind_of_report():
    """What the tree calls a figure is one of the parts that can be drawn."""
    for name in examples.names():
        assert all(isinstance(part, (Unrolled, Rows, Picture)) for part in quietly(name).figures)
