"""The page around the exhibits: in Chromium, without a network, by keyboard, in both languages, for hostile input."""

from __future__ import annotations

import re

import pytest
import torch

from explaining import SENTENCE, quietly
from formulas import leaky
from pages import NARROW, WIDE, complaints_of_axe, opened, write
from pellucid import nn
from pellucid.explanation import page
from pellucid.explanation.page.script import asset, script, style
from pellucid.explanation.page.words import words

LIMIT = 300 * 1024  # bytes of a page before the user's data
HOSTILE = "<script>alert(1)</script>&\"'`</style>\u202e٣ש\u200f👩‍👩‍👧\x00\x1b\ud800"


@pytest.fixture
def rnn_page(tmp_path):
    return write(quietly("rnn", SENTENCE, input_size=6, hidden_size=4), tmp_path / "rnn.html")


def visible(page_, selector="main"):
    return page_.inner_text(selector)


def test_both_languages(browser, rnn_page):
    with opened(browser, rnn_page) as shown:
        assert "Main idea" in visible(shown)
        assert "主要思想" not in visible(shown)
        shown.click('[data-speak="zh"]')
        assert shown.evaluate("document.documentElement.lang") == "zh"
        assert "lang=zh" in shown.url
        chinese = visible(shown)
        assert "Main idea" not in chinese
        assert quietly("rnn", SENTENCE, input_size=6, hidden_size=4, lang="zh").title in chinese
        assert shown.title() == quietly("rnn", SENTENCE, input_size=6, hidden_size=4, lang="zh").title
    with opened(browser, rnn_page, "lang=zh") as shown:
        assert visible(shown) == chinese


def test_language_of_the_report_is_first(browser, tmp_path):
    path = write(quietly("layernorm", lang="zh"), tmp_path / "page.html")
    with opened(browser, path) as shown:
        assert shown.evaluate("document.documentElement.lang") == "zh"
        assert quietly("layernorm", lang="zh").title in visible(shown)


def test_colours(browser, rnn_page):
    paper = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, rnn_page, color_scheme="dark") as shown:
        dark = shown.evaluate(paper)
        shown.click('[data-colour="light"]')
        light = shown.evaluate(paper)
        assert light != dark
        assert "theme=light" in shown.url
    with opened(browser, rnn_page, "theme=dark") as shown:
        assert shown.evaluate(paper) == dark
    with opened(browser, rnn_page, "theme=<b>&lang=xx&recurrence.step=NaN") as shown:
        assert shown.evaluate(paper) == light


@pytest.mark.parametrize("subject", ["rnn", "conv2d", "batchnorm", "dropout"])
def test_text_without_javascript(browser, tmp_path, subject):
    given = [SENTENCE] if subject == "rnn" else []
    reports = [quietly(subject, *given, lang=lang) for lang in ("en", "zh")]
    path = write(reports[0], tmp_path / "page.html")
    with opened(browser, path, java_script_enabled=False) as shown:
        seen = re.sub(r"\s+", "", visible(shown))
    for report in reports:
        said = [report.title, *report.idea, *report.notation, *report.notes, report.check.text, *report.code]
        said += [reason for row in report.symbols for reason in row.reasons]
        said += [step.title for step in report.steps] + [total.label for total in report.totals]
        said += [part for step in report.steps for part in step.parts if isinstance(part, str)]
        for sentence in said:
            assert re.sub(r"\s+", "", sentence) in seen, sentence


def test_hostile_names_and_sentences_are_text(browser, tmp_path):
    words = [HOSTILE, "<img src=x onerror=alert(1)>", "]]>", "${x}", "\\u003c/script>", HOSTILE[::-1]]
    path = write(quietly(leaky(5, 3), words), tmp_path / "page.html")
    with opened(browser, path) as shown:
        shown.on("dialog", lambda dialog: pytest.fail("a script of the user's ran"))
        text = shown.evaluate("document.querySelector('main').textContent")
        for word in words[1:-1]:
            assert word in text
        assert "<script>alert(1)</script>&\"'`</style>U+202E٣ש\u200f👩\u200d👩\u200d👧\ufffd\ufffd" in text
        assert "\u202e" not in shown.content()
        assert shown.eval_on_selector_all("script", "list => list.length") == 2
        assert shown.eval_on_selector_all("main b, main img", "list => list.length") == 0
    path = write(quietly("rnn", "字" * 10_000, input_size=4, hidden_size=3), tmp_path / "long.html")
    with opened(browser, path) as shown:
        assert "512" in visible(shown)


@pytest.mark.parametrize(("viewport", "lang"), [(WIDE, "en"), (NARROW, "zh")], ids=["wide", "narrow"])
@pytest.mark.parametrize(
    "subject",
    ["lstm", "conv2d", "conv1d", "maxpool", "batchnorm2d", "dropout", "swiglu", "tcn", "convpool2d", "dropblock2d"],
)
def test_nothing_is_wider_than_the_window(browser, tmp_path, subject, viewport, lang):
    path = write(quietly(subject), tmp_path / "page.html")
    with opened(browser, path, f"lang={lang}", viewport) as shown:
        shown.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
        if subject == "batchnorm2d":
            shown.check('[data-setting="kind"][value="group"]', force=True)
        assert shown.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_a_narrow_table_breaks_no_word(browser, tmp_path):
    path = write(quietly("batchnorm2d"), tmp_path / "page.html")
    with opened(browser, path, "lang=en", NARROW) as shown:
        boxes = ".scroll:has(> table.symbols)"
        assert shown.eval_on_selector_all(boxes, "boxes => boxes.every(box => box.scrollWidth <= box.clientWidth)")
        words = "cells => cells.every(cell => getComputedStyle(cell).overflowWrap == 'break-word')"
        assert shown.eval_on_selector_all("table.symbols :is(th, td)", words)
        widths = shown.eval_on_selector_all("table.shapes tr > :last-child", "cells => cells.map(c => c.clientWidth)")
        assert min(widths) > 250


@pytest.mark.parametrize(
    ("subject", "lang", "theme"),
    [
        ("rnn", "zh", "light"),
        ("conv2d", "en", "dark"),
        ("textconv", "zh", "light"),
        ("batchnorm", "zh", "dark"),
        ("dropout", "en", "light"),
        ("dropout", "zh", "dark"),
    ],
)
def test_accessibility(browser, tmp_path, subject, lang, theme):
    path = write(quietly(subject), tmp_path / "page.html")
    with opened(browser, path, f"lang={lang}&theme={theme}") as shown:
        shown.evaluate("document.querySelectorAll('details').forEach(node => node.open = true)")
        assert complaints_of_axe(shown, "serious", "critical") == []


def test_symbols_light_up_together(browser, rnn_page):
    with opened(browser, rnn_page) as shown:
        assert shown.eval_on_selector_all(".lit", "list => list.length") == 0
        shown.focus('th[data-symbol="W"]')
        lit = shown.eval_on_selector_all(".lit", "list => list.map(node => node.dataset.symbol)")
        assert set(lit) == {"W"}
        assert shown.eval_on_selector_all("math .lit", "list => list.length") >= 1
        shown.keyboard.press("Escape")
        assert shown.eval_on_selector_all(".lit", "list => list.length") == 0


TOP_OF = "id => Math.round(document.getElementById(id).getBoundingClientRect().top)"


@pytest.mark.parametrize("scripted", [True, False])
def test_contents_lead_to_every_section(browser, rnn_page, scripted):
    with opened(browser, rnn_page, "lang=zh" if scripted else "", java_script_enabled=scripted) as shown:
        links = shown.eval_on_selector_all("nav.contents a", "links => links.map(link => link.hash.slice(1))")
        titles = shown.eval_on_selector_all("main > section", "sections => sections.map(section => section.id)")
        assert links == titles
        assert {"idea", "formula", "explore", "symbols", "steps"} <= set(links)
        shown.click('nav.contents a[href="#symbols"]')
        assert 0 <= shown.evaluate(TOP_OF, "symbols") < 60
        assert shown.eval_on_selector("nav.contents", "nav => nav.getBoundingClientRect().top") == 0
        assert shown.is_visible('nav.contents a[href="#explore"]') == shown.is_visible("#explore") == scripted
        if scripted:
            assert shown.evaluate("[location.hash, document.activeElement.id]") == ["#lang=zh", "symbols"]
            assert visible(shown, "nav.contents").split()[:2] == ["主要思想", "公式"]


def test_badge(browser, rnn_page):
    report = quietly("rnn", SENTENCE, input_size=6, hidden_size=4)
    with opened(browser, rnn_page) as shown:
        assert f"max |Δ| = {report.check.difference:.2g}" in visible(shown, "#check")
        assert report.check.text in visible(shown, "#check")


def test_pages_are_small():
    from pellucid.explanation.page import exhibits

    kinds = sorted({maker.__module__.split(".")[-2] for maker in exhibits.EXHIBITS.values()})
    assert len(kinds) == 4
    for kind in kinds:
        own = sum(len(asset(f"{folder}/{lang}.toml").encode()) for folder in ("core", kind) for lang in ("en", "zh"))
        assert len(script([kind]).encode()) + len(style([kind]).encode()) + own < LIMIT


def test_script_loads_nothing():
    for kind in ("recurrence", "convolution", "normalization", "dropout"):
        text = script([kind]) + style([kind])
        assert not re.search(
            r"https?://(?!www\.w3\.org/)|innerHTML|outerHTML|insertAdjacentHTML|eval\(|@import|url\((?!#)", text
        )


def blanks(text):
    return sorted(re.findall(r"\{(\w+)", text))


def test_eval_has_one_name_in_chinese():
    for kind in ("recurrence", "convolution", "normalization", "dropout"):
        assert "推理" not in str(words(kind, "zh")), kind


def test_what_happens_in_some_ways_does_not_happen_on_them():
    english = " ".join(str(words(kind, "en")) for kind in ("recurrence", "convolution", "normalization", "dropout"))
    assert not re.search(r"\bon (\w+ ){1,3}ways\b", english)


@pytest.mark.parametrize("kind", ["core", "recurrence", "convolution", "normalization", "dropout"])
def test_words_are_the_same_in_both_languages(kind):
    english, chinese = words(kind, "en"), words(kind, "zh")
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        assert sorted(set(blanks(text))) == sorted(set(blanks(chinese[key]))), key


def test_a_changed_layer_is_refused():
    layer = nn.LayerNorm(4)
    report = quietly(layer, torch.rand(2, 4))
    page.html(report)
    with torch.no_grad():
        layer.weight += 1
    with pytest.raises(RuntimeError, match="have changed since it was explained"):
        page.html(report)


@pytest.mark.parametrize(
    ("layer", "shape", "name", "value"),
    [
        (nn.cells.leaky(4, 3), (5, 2, 4), "tau", 2.0),
        (nn.AddNorm(4, p=0.5), (2, 4), "p", 0.1),
        (nn.Dropout(0.5), (2, 4), "training", False),
        (nn.BatchNorm1d(4, track_running_stats=False), (3, 4), "eps", 1.0),
    ],
)
def test_a_page_shows_the_mode_and_the_numbers_that_were_explained(layer, shape, name, value):
    report = quietly(layer, torch.rand(shape))
    before, translated = page.html(report), report.translations()[1].text()
    setattr(layer, name, value)
    state = dict(vars(layer))
    assert page.html(report) == before
    assert report.translations()[1].text() == translated
    assert vars(layer) == state
    assert getattr(layer, name) == value
    assert page.html(quietly(layer, torch.rand(shape))) != before


def test_running_statistics_are_left_alone():
    layer = nn.BatchNorm1d(4)
    report = quietly(layer, torch.rand(5, 4))
    page.html(report)
    assert torch.equal(layer.running_mean, torch.zeros(4))
    layer(torch.rand(5, 4))
    with pytest.raises(RuntimeError, match="have changed since it was explained"):
        page.html(report)
