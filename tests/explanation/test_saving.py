"""Files that a report is saved as, and how it shows itself in notebooks and browsers."""

from __future__ import annotations

import json
import math
import os
import webbrowser
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser

import numpy as np
import pytest

import fresh
import pellucid
from explaining import SENTENCE, quietly
from formulas import leaky
from pellucid.explanation import examples, load
from pellucid.explanation.markdown import escaped, fenced, markdown
from pellucid.explanation.report import Check, Report, Step, Values
from pellucid.explanation.saving import RENDERERS
from pellucid.explanation.serialization import dumps, loads

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b`c*d_e",
    "]]>\"'&amp;",
    "# 1. - +",
    "😀",
    "\u202eabc",
    "$x$",
    "\x00\x1b[31m",
]


@pytest.fixture(scope="module")
def report() -> Report:
    return quietly("gru", SENTENCE, lang="zh")


@pytest.fixture(scope="module")
def hostile() -> Report:
    return quietly("rnn", HOSTILE, steps=len(HOSTILE))


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("drawn")
def test_the_ending_says_what_is_written(report, tmp_path):
    begins = {
        ".html": b"<!doctype html>",
        ".svg": b"<svg ",
        ".png": b"\x89PNG",
        ".pdf": b"%PDF-",
        ".md": f"# {report.title}".encode(),
        ".json": b'{"pellucid": ',
        ".txt": report.title.encode(),
    }
    assert begins.keys() == RENDERERS.keys()
    for ending, begin in begins.items():
        path = report.save(tmp_path / f"一 gru{ending.upper()}")
        assert path.read_bytes().startswith(begin)
        assert report.title in path.read_bytes().decode(errors="replace") or ending in (".png", ".pdf")
    assert len(list(tmp_path.iterdir())) == len(begins)
    assert (tmp_path / "一 gru.TXT").read_text(encoding="utf-8") == report.text()


def test_paths_that_nothing_can_be_written_to(report, tmp_path, monkeypatch):
    (tmp_path / "folder.html").mkdir()
    for name, kind, words in (
        ("x.gif", ValueError, r"ends in '\.gif'.*\.html, \.svg, \.png, \.pdf, \.md, \.json, \.txt.*x\.html"),
        ("x", ValueError, "has no ending"),
        (".html", ValueError, "has no ending"),
        ("folder.html", IsADirectoryError, r"is a folder; name a file in it, .*report\.html"),
        ("nowhere/x.md", FileNotFoundError, "there is no folder .*nowhere; make it first"),
        ("x" * 300 + ".txt", OSError, "cannot be written: .*too long"),
    ):
        with pytest.raises(kind, match=words):
            report.save(tmp_path / name)
    for denied, words in (("x.txt", "may not be written; name another file"), ("", "folder .* may not be written")):
        (tmp_path / "x.txt").touch()
        monkeypatch.setattr(os, "access", lambda path, mode, denied=tmp_path / denied: path != denied)
        with pytest.raises(PermissionError, match=words):
            report.save(tmp_path / "x.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"folder.html", "x.txt"}
    assert (tmp_path / "x.txt").read_text() == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError("drawing")])
def test_a_file_stays_as_it_was_where_something_fails(report, tmp_path, monkeypatch, drawn, error):
    def fail(*arguments):
        raise error

    path, link = tmp_path / "x.svg", tmp_path / "link.svg"
    path.write_text("before")
    path.chmod(0o640)
    link.symlink_to(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(BaseException, match="cannot be written: No space" if isinstance(error, OSError) else None):
            report.save(path)
    with monkeypatch.context() as patch:
        patch.setattr(drawn.figure, "svg", fail)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            report.save(tmp_path / "new.svg")
    assert {p.name for p in tmp_path.iterdir()} == {"x.svg", "link.svg"}
    assert path.read_text() == "before"
    report.save(link)
    assert link.is_symlink()
    assert path.read_text().startswith("<svg")
    assert path.stat().st_mode & 0o777 == 0o640


def test_files_get_the_permissions_of_new_files(report, tmp_path):
    (tmp_path / "new").touch()
    assert report.save(tmp_path / "x.txt").stat().st_mode == (tmp_path / "new").stat().st_mode


# -- JSON -----------------------------------------------------------------------------------------------------------


def assert_same(one, other):
    """Compare two trees to the last number and dtype."""
    assert type(one) is type(other)
    if is_dataclass(one):
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, strict=True)
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, float) and math.isnan(one):
        assert math.isnan(other)
    else:
        assert one == other


def tree(report: Report) -> Report:
    """The report without what belongs to no file."""
    return replace(report, **{f.name: f.default for f in fields(report) if not f.compare})


@pytest.mark.parametrize("name", examples.names())
def test_every_report_comes_back_from_json(name, tmp_path):
    found = quietly(name, lang="zh")
    back = load(found.save(tmp_path / "x.json"))
    assert_same(tree(found), back)
    assert back.text(80) == found.text(80)


def test_json_keeps_every_kept_number(hostile):
    large = quietly(leaky(40, 30), "ab", steps=1)
    content = json.loads(dumps(large))
    assert content["pellucid"] == pellucid.__version__
    (x,) = [part for part in content["report"]["steps"][0]["parts"] if isinstance(part, dict) and part["name"] == "x₁"]
    values = large.steps[0].values["x₁"]
    assert (x["kind"], x["shape"]) == ("Values", [1, 40])
    assert (x["numbers"]["dtype"], x["numbers"]["shape"]) == ("float32", [1, 40])
    assert np.array_equal(np.float32(x["numbers"]["numbers"]), values.numbers)
    assert_same(tree(hostile), loads(dumps(hostile)))


def test_json_knows_numbers_that_are_none(report, tmp_path):
    odd = np.array([[math.nan, math.inf], [-math.inf, -0.0]], dtype=np.float32)
    parts = ("nan", Values("v", odd, (2, 2)), Values("t", np.array([True, False]), (2,)), Values("e", odd[:0], (0, 2)))
    found = replace(report, steps=(Step("inf", parts),), check=Check(math.nan, False, "\ud800 alone"))
    text = found.save(tmp_path / "x.json").read_text(encoding="utf-8")
    assert '[["nan", "inf"], ["-inf", -0.0]]' in text
    assert report.title in text
    back = load(tmp_path / "x.json")
    assert_same(tree(found), back)
    assert np.signbit(back.steps[0].values["v"].numbers[1, 1])
    json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "# no JSON", r"x\.json is not JSON .*report\.save"),
        (lambda text: "[1]", "holds no report"),
        (lambda text: text.replace('"pellucid"', '"other"'), "holds no report"),
        (lambda text: text.replace('"kind": "Step"', '"kind": "Stride"'), "it has no part 'Stride'"),
        (lambda text: text.replace('"lang"', '"tongue"'), r"unknown: \['tongue'\]; missing: \['lang'\]"),
        (lambda text: text.replace('"symbols": [', '"symbols": [{}, '), "cannot be read"),
        (
            lambda text: '{"pellucid": "1", "report": {"kind": "Total", "label": "", "count": 1}}',
            "a Total, not a report",
        ),
        (lambda text: '{"pellucid": "1", "report": 3}', "an int, not a report"),
    ],
)
def test_json_of_something_else(report, tmp_path, change, words):
    path = tmp_path / "x.json"
    path.write_text(change(dumps(report)), encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        load(path)


# -- Markdown -------------------------------------------------------------------------------------------------------


def parsed(text: str):
    markdown_it = pytest.importorskip("markdown_it")
    return markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def inline_text(token) -> str:
    assert {child.type for child in token.children} <= {"text", "text_special", "strong_open", "strong_close"}, token
    return "".join(child.content for child in token.children)


@pytest.mark.parametrize(
    "text", [*HOSTILE[:-1], "1. one", "2) two", "- a", "=== x", "~~~ a ~~b~~", "![a](b) [c]: d", "a\\"]
)
def test_markdown_shows_any_text(text):
    for line, kinds in (
        (escaped(text), ["paragraph_open", "inline", "paragraph_close"]),
        (f"# {escaped(text)}", ["heading_open", "inline", "heading_close"]),
        (f"| a |\n|---|\n| {escaped(text)} |", None),
    ):
        tokens = parsed(line)
        assert kinds is None or [token.type for token in tokens] == kinds
        assert inline_text([token for token in tokens if token.type == "inline"][-1]) == text
    assert parsed(fenced(["```", text, "````"]))[0].content == f"```\n{text}\n````\n"


def test_markdown_of_a_hostile_sentence(hostile):
    text = markdown(hostile)
    assert "\x00" not in text
    assert "\x1b" not in text
    tokens = parsed(text)
    assert not {token.type for token in tokens} & {"html_block", "hr", "code_block", "blockquote_open"}
    shown = [inline_text(token) for token in tokens if token.type == "inline"]
    for step in hostile.steps[:-2]:
        assert step.title in shown


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", ["lstm", "conv2d", "batchnorm2d", "dropout", "tcn", "addnorm"])
def test_markdown_says_all_that_the_text_says(name, lang):
    found = quietly(name, lang=lang)
    tokens = parsed(markdown(found))
    shown = [inline_text(token) for token in tokens if token.type == "inline"]
    code = [token.content for token in tokens if token.type == "fence"]
    for sentence in (*found.idea, *found.notation, *found.notes, found.check.text, found.cost.convention):
        assert sentence in shown
    for row in found.symbols:
        assert {row.name, row.shape_text, f"{row.count:,}", row.role, " × ".join(row.axes)} <= set(shown)
        assert all(any(reason in line for line in shown) for reason in row.reasons)
    assert "\n".join(found.formula) + "\n" in code
    assert "\n".join(found.code) + "\n" in code
    for step in found.steps:
        assert step.title in shown
        for value in step.values:
            assert any(value in block for block in code), value
    headings = {found.words[key] for key in ("idea", "formula", "symbols", "why", "totals", "cost", "steps", "check")}
    assert headings <= set(shown)


# -- in the browser -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("drawn")
def test_show_opens_the_page(report, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(opened.append(address)) or True)
    path = report.show()
    assert opened == [path.as_uri()]
    assert path.name == "gru.html"
    assert report.title in path.read_text(encoding="utf-8")
    assert capsys.readouterr().out == ""

    def none(address):
        raise webbrowser.Error("could not locate runnable browser")

    for nothing in (none, lambda address: False):
        monkeypatch.setattr(webbrowser, "open", nothing)
        path = report.show()
        assert capsys.readouterr().out == f"没有找到可以打开网页的浏览器。网页在 {path}\n"
        assert path.is_file()


def test_show_leaves_nothing_where_it_fails(report, monkeypatch, tmp_path, drawn):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(webbrowser, "open", lambda address: pytest.fail("opened"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(KeyboardInterrupt):
            report.show()
    monkeypatch.setattr(drawn.page, "html", fail)
    with pytest.raises(KeyboardInterrupt):
        report.show()
    assert list(tmp_path.iterdir()) == []


# -- in notebooks ---------------------------------------------------------------------------------------------------


class Frames(HTMLParser):
    """The frames of an HTML text and what they hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "iframe":
            self.found.append(dict(attributes))


def test_bundle(report, drawn):
    drawn.page.html = lambda report: '<!doctype html>\n<body title="a\'b">&amp; </iframe> 你 "</body>'
    found = report._repr_mimebundle_(("text/html", "image/svg+xml"))
    assert found.keys() == {"text/html", "image/svg+xml"}
    (frame,) = Frames(found["text/html"]).found
    assert frame["srcdoc"] == drawn.page.html(report)
    assert frame["sandbox"] == "allow-scripts", "no same origin, no navigation of the notebook, no forms"
    assert frame["title"] == report.title
    assert report._repr_mimebundle_(exclude=("text/html",)) == {"text/plain": report.text()}


STAND_INS = """
import sys, types, pellucid
page, figure = types.ModuleType("page"), types.ModuleType("figure")
page.html = lambda report: f"<body>{report.subject}</body>"
figure.svg = lambda report: "<svg/>"
sys.modules["pellucid.explanation.page"], sys.modules["pellucid.explanation.figure"] = page, figure
"""
CELLS = {  # what is written in a cell, and how many times the report is then shown
    "pellucid.explain('rnn')": 1,
    "report = pellucid.explain('rnn')": 1,
    "pellucid.explain('rnn', show=False)": 1,
    "report = pellucid.explain('rnn', show=False)": 0,
    "report": 1,
    "display(report)": 1,
    "pellucid.explain('rnn'); pellucid.explain('gru')": 2,
    "for name in ('rnn', 'gru'):\n    last = pellucid.explain(name)": 2,
    "1/0 if pellucid.explain('rnn') else 0": 1,
    "last": 1,
}


def test_a_notebook_shows_a_report_once():
    """In a real kernel: the page where it belongs, never the page and the text, never twice."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    code = nbformat.v4.new_code_cell
    shown = "report.show()"
    book = nbformat.v4.new_notebook(cells=[code(STAND_INS), *map(code, CELLS), code(shown)])
    nbclient.NotebookClient(book, kernel_name="python3", allow_errors=True, timeout=300).execute()
    for cell, times in zip(book.cells[1:], [*CELLS.values(), 1], strict=True):
        outputs = [o for o in cell.outputs if o.output_type != "error"]
        assert all(o.output_type != "stream" for o in outputs), cell
        bundles = [o.data for o in outputs if "text/html" in o.data]
        assert len(bundles) == times, cell
        assert all(set(b) == {"text/plain", "image/svg+xml", "text/html"} for b in bundles)
        named = [o.data["text/plain"] for o in outputs if "text/html" not in o.data]
        assert all(name.startswith("<Report on ") and len(name) < 40 for name in named), cell


def test_ipython_prints_a_report_once():
    """In the terminal the text is printed, and named as the value, not repeated."""
    pytest.importorskip("IPython")
    code = f"""
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell("import pellucid")
for cell in {list(CELLS)!r}:
    print("CELL")
    shell.run_cell(cell)
"""
    _, *printed = fresh.printed(code).split("CELL\n")
    for cell, text in zip(CELLS, printed, strict=True):
        assert text.count("a recurrent layer\n") == CELLS[cell], (cell, text)


@pytest.mark.usefixtures("drawn")
def test_nbconvert_keeps_the_page(hostile, drawn):
    nbformat, nbconvert = pytest.importorskip("nbformat"), pytest.importorskip("nbconvert")
    page = f"<!doctype html>\n<body>{hostile.title} </iframe>&amp;lt; \"'{{}} 你😀</body>\n"
    drawn.page.html = lambda report: page
    outputs = [
        nbformat.v4.new_output("execute_result", hostile._repr_mimebundle_(()) | hostile._repr_mimebundle_(list(KINDS)))
        for _ in range(2)
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("explain(layer)", outputs=outputs)])
    book = nbformat.reads(nbformat.writes(book), as_version=4)
    nbformat.validate(book)
    for template in ("lab", "classic", "basic"):
        text, _ = nbconvert.HTMLExporter(template_name=template).from_notebook_node(book)
        frames = Frames(text).found
        assert [frame["srcdoc"] for frame in frames] == [page, page], template
        assert all(frame["sandbox"] == "allow-scripts" for frame in frames)
    text, _ = nbconvert.MarkdownExporter().from_notebook_node(book)
    assert [frame["srcdoc"] for frame in Frames(text).found] == [page, page]


KINDS = ("text/plain", "image/svg+xml", "text/html")


def test_frames_take_the_height_of_their_pages(browser, report, drawn, tmp_path):
    """Several frames of one notebook; a foreign window, and a page that lies, change nothing else."""
    tell = "parent.postMessage({ pellucidHeight: HEIGHT }, '*')"
    heights = iter(("1234", "2345", "'9e9'", "'<b>'", "null"))
    drawn.page.html = lambda report: f"<body><script>{tell.replace('HEIGHT', next(heights))}</script></body>"
    output = "".join(report._repr_mimebundle_(("text/html",))["text/html"] for _ in range(5))
    foreign = (
        f'<iframe id="foreign" style="height: 99px" srcdoc="<script>{tell.replace("HEIGHT", "777")}</script>"></iframe>'
    )
    file = tmp_path / "notebook.html"
    file.write_text(f"<!doctype html><meta charset='utf-8'>{output}{foreign}", encoding="utf-8")
    measure = "[...document.querySelectorAll('iframe')].map((frame) => frame.clientHeight)"
    for scripts in (True, False):
        context = browser.new_context(java_script_enabled=scripts)
        page = context.new_page()
        page.goto(file.as_uri())
        page.wait_for_load_state("networkidle")
        if scripts:
            assert page.evaluate(measure) == [1234, 2345, 30000, 640, 100, 99]
            inner = page.frames[1]
            assert (
                inner.evaluate("(() => { try { return parent.document.title } catch { return 'refused' } })()")
                == "refused"
            )
        else:
            assert [page.locator("iframe").nth(i).bounding_box()["height"] for i in range(2)] == [640, 640]
        context.close()
