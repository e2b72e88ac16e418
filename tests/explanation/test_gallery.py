"""The gallery: its pages, thumbnails and index."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from pellucid.cli import main
from pellucid.explanation import gallery
from pellucid.explanation.examples import SHORT
from pellucid.explanation.gallery import ITEMS, write_gallery
from pellucid.explanation.texts import languages, load

FEW = tuple(item for item in ITEMS if item.name in ("own_cell", "conv2d_dilated", "droppath"))


class Index(HTMLParser):
    """The links, pictures and texts of an index, by language."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.pictures: list[str] = []
        self.texts: dict[str, list[str]] = {lang: [] for lang in languages()}
        self.open: list[tuple[str, str]] = []
        self.checked: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag not in ("meta", "img", "input"):
            self.open.append((tag, found.get("lang") or (self.open[-1][1] if self.open else "")))
        if tag == "a":
            self.links.append((found["lang"], found["href"]))
        if tag == "img":
            self.pictures.append(found["src"])
        if tag == "input" and "checked" in found:
            self.checked.append(found["value"])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if data.strip() and self.open and self.open[-1][0] in ("p", "b", "span"):
            self.texts[self.open[-1][1]].append(data)


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_gallery(tmp_path, lang):
    folder = tmp_path / "made" / "pages"
    tracked = []
    path = write_gallery(folder, lang, FEW, lambda items: (tracked.append(item.name) or item for item in items))
    assert path == folder / "index.html"
    assert tracked == [item.name for item in FEW]
    index = Index(path.read_text(encoding="utf-8"))
    assert index.checked == [lang]
    assert set(index.links) == {(key, f"{item.name}.html#lang={key}") for key in languages() for item in FEW}
    for _, address in index.links:
        assert (folder / address.partition("#")[0]).is_file()
    written = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert written == {"index.html", *index.pictures, *(f"{item.name}.html" for item in FEW)}
    for key, texts in index.texts.items():
        for item in FEW:
            assert load(key)[f"gallery.item.{item.name}"] in texts
            assert load(key)[f"gallery.family.{item.family}"] in texts
    assert "own_cell：循环层" in index.texts["zh"]
    assert "DropPath: a dropout" in index.texts["en"]
    page = (folder / "own_cell.html").read_text(encoding="utf-8")
    assert ("own_cell：循环层" if lang == "zh" else "own_cell: a recurrent layer") in page
    assert "own_cell：循环层" in (folder / "figures/own_cell.zh.svg").read_text(encoding="utf-8")


def test_the_gallery_is_that_of_the_article():
    names = [item.name for item in ITEMS]
    assert len(set(names)) == len(names) == 19
    assert {item.family for item in ITEMS} == {"recurrence", "convolution", "normalization", "dropout"}
    for lang in languages():
        described = {key.removeprefix("gallery.item.") for key in load(lang) if key.startswith("gallery.item.")}
        assert described == set(names)
    rnn = next(item for item in ITEMS if item.name == "rnn")
    assert (rnn.inputs, rnn.options) == (("你个扑该!",), {"input_size": 256, "hidden_size": 128})
    assert not [item for item in ITEMS if item.subject in SHORT], "names that may mean another layer one day"


@pytest.mark.usefixtures("drawn")
def test_every_component_of_the_gallery(tmp_path):
    """One page of each, with the numbers that the layer gives."""
    path = write_gallery(tmp_path, "en")
    assert len(re.findall(r"<li>", path.read_text(encoding="utf-8"))) == len(ITEMS)


def test_gallery_stops_without_an_index(tmp_path, drawn):
    def fail(report):
        raise KeyboardInterrupt

    drawn.figure.thumbnail = fail
    with pytest.raises(KeyboardInterrupt):
        write_gallery(tmp_path, "en", FEW)
    assert not (tmp_path / "index.html").exists()
    assert not [file for file in tmp_path.rglob(".*") if file.is_file()]


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch, drawn):
    monkeypatch.setattr(gallery.write_gallery, "__defaults__", ("en", FEW, iter))


@pytest.mark.usefixtures("few")
def test_gallery_command(tmp_path):
    result = CliRunner().invoke(main, ["gallery", "--out", str(tmp_path / "pages"), "--lang", "zh"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'pages' / 'index.html'}\n"
    assert "正在生成图集" in result.stderr
    assert len(list((tmp_path / "pages").glob("*.html"))) == len(FEW) + 1


@pytest.mark.usefixtures("few")
def test_gallery_command_errors(tmp_path):
    (tmp_path / "file").touch()
    for arguments, words in (
        (("--out", str(tmp_path), "--lang", "fr"), "'en' and 'zh'"),
        (("--out", str(tmp_path / "file")), "is a file"),
        (("--out", str(tmp_path / "file" / "pages")), "Not a directory"),
        ((), "--out"),
    ):
        result = CliRunner().invoke(main, ["gallery", *arguments])
        assert result.exit_code != 0
        assert words in result.output
        assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
