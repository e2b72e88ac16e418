"""The gallery: a page for every component of the article, and an index that links them in every language."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from pellucid.explanation import explain, figure
from pellucid.explanation.texts import Texts, languages
from pellucid.files import write_whole
from pellucid.formula.initializers import zeros
from pellucid.nn.recurrence.cell import cell

SENTENCE = "你个扑该!"
FIGURES = "figures"


@cell
def own_cell(x, h, *, U, W, b=zeros, tau: float = 4.0):
    """h moves by 1/τ of the way to tanh(…). h 每一步只朝 tanh(…) 走 1/τ 的路。"""
    return h + (torch.tanh(x @ U + h @ W + b) - h) / tau


@dataclass(frozen=True)
class Item:
    """A component of the gallery: the name of its file, its family, and what ``explain`` is given."""

    name: str
    family: str
    subject: Any
    inputs: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


ITEMS = (
    Item("rnn", "recurrence", "rnn", (SENTENCE,), {"input_size": 256, "hidden_size": 128}),
    Item("lstm", "recurrence", "lstm", (SENTENCE,)),
    Item("gru", "recurrence", "gru", (SENTENCE,)),
    Item("own_cell", "recurrence", own_cell, (SENTENCE,)),
    Item("conv2d", "convolution", "conv2d"),
    Item("conv2d_dilated", "convolution", "conv2d", (), {"dilation": 2}),
    Item("conv1d", "convolution", "conv1d", (SENTENCE,), {"in_channels": 4, "out_channels": 2, "kernel_size": 2}),
    Item("textconv", "convolution", "textconv", (SENTENCE,)),
    Item("maxpool", "convolution", "maxpool2d"),
    Item("separable", "convolution", "separableconv2d"),
    Item("batchnorm", "normalization", "batchnorm2d"),
    Item("layernorm", "normalization", "layernorm"),
    Item("instancenorm", "normalization", "instancenorm2d"),
    Item("groupnorm", "normalization", "groupnorm"),
    Item("rmsnorm", "normalization", "rmsnorm"),
    Item("dropout", "dropout", "dropout"),
    Item("dropout2d", "dropout", "dropout2d"),
    Item("lockeddropout", "dropout", "lockeddropout"),
    Item("droppath", "dropout", "droppath"),
)
Track = Callable[[Sequence[Item]], Iterable[Item]]


def write_gallery(folder: Path, lang: str = "en", items: Sequence[Item] = ITEMS, track: Track = iter) -> Path:
    """Write the pages, their thumbnails and, last of all, the index.

    Args:
        folder: where they go; it is made if need be. Files of the same names are replaced, others stay.
        lang: the language that is shown first.
        items: the components.
        track: passes the components on while it shows how far the work is.

    Returns:
        The index.

    Raises:
        ValueError: an unknown language. OSError: the folder cannot be written.
    """
    heads = {lang: Texts(lang)} | {other: Texts(other) for other in languages()}
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    titles: dict[str, dict[str, str]] = {}
    for item in track(items):
        first = explain(item.subject, *item.inputs, lang=lang, show=False, **item.options)
        reports = {report.lang: report for report in first.translations()}
        first.save(folder / f"{item.name}.html")
        for key, report in reports.items():
            _write(folder / _thumbnail(item, key), figure.thumbnail(report))
        titles[item.name] = {key: report.title for key, report in reports.items()}
    index = folder / "index.html"
    _write(index, _index(items, titles, heads))
    return index


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write(text.encode("utf-8", "replace")))


def _thumbnail(item: Item, lang: str) -> str:
    return f"{FIGURES}/{item.name}.{lang}.svg"


STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1d1f24, #e8e6e1); --paper: light-dark(#fdfcf9, #17191e);
  --raised: light-dark(#ffffff, #1f2229); --muted: light-dark(#595e69, #a5a9b3); --line: light-dark(#d6d3cb, #3a3e48);
  --accent: light-dark(#7a3e9d, #d0a2ea); }
* { box-sizing: border-box; }
html { font: 17px/1.55 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--paper); color: var(--ink); }
fieldset { border: 0; padding: 0; margin: 0; display: flex; gap: 1rem; justify-content: flex-end; }
legend { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; white-space: nowrap; }
label { cursor: pointer; padding: 0.2rem 0; }
input { accent-color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
h1 { font-size: 1.7rem; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2rem 0 0.8rem; border-bottom: 2px solid var(--line); }
p { margin: 0.3rem 0; max-width: 46rem; }
ul { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); }
li { display: flex; }
a { flex: 1; display: block; color: inherit; text-decoration: none; background: var(--raised);
  border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
a:hover { border-color: var(--accent); }
a b { display: block; padding: 0.6rem 0.9rem 0; color: var(--accent); text-decoration: underline;
  text-underline-offset: 3px; }
a p { padding: 0 0.9rem 0.8rem; }
img { display: block; width: 100%; aspect-ratio: 3 / 2; object-fit: contain;
  background: light-dark(#ffffff, #14171c); border-bottom: 1px solid var(--line); } /* the paper of figures */
"""


def _index(items: Sequence[Item], titles: Mapping[str, Mapping[str, str]], heads: Mapping[str, Texts]) -> str:
    """Write the index; which language it shows is decided by CSS alone."""
    first = next(iter(heads))

    def spoken(tag: str, key: str) -> str:
        return "".join(f'<{tag} lang="{lang}">{escape(texts(key))}</{tag}>' for lang, texts in heads.items())

    def link(item: Item, lang: str) -> str:
        return (
            f'<a lang="{lang}" href="{item.name}.html#lang={lang}">'
            f'<img src="{_thumbnail(item, lang)}" alt="" loading="lazy">'
            f"<b>{escape(titles[item.name][lang])}</b><p>{escape(heads[lang](f'gallery.item.{item.name}'))}</p></a>"
        )

    choices = "".join(
        f'<label lang="{lang}"><input type="radio" name="lang" value="{lang}"{" checked" if lang == first else ""}> '
        f"{escape(texts('gallery.language'))}</label>\n"
        for lang, texts in heads.items()
    )
    hidden = "".join(
        f'body:has(input[value="{lang}"]:checked) main [lang]:not([lang="{lang}"]) {{ display: none; }}\n'
        for lang in heads
    )
    sections = []
    for family, members in groupby(items, lambda item: item.family):
        cards = "\n".join("<li>" + "".join(link(item, lang) for lang in heads) + "</li>" for item in members)
        sections.append(
            f"<section><h2>{spoken('span', f'gallery.family.{family}')}</h2>\n<ul>\n{cards}\n</ul></section>"
        )
    name = " · ".join(texts("gallery.title") for texts in heads.values())
    legend = " · ".join(texts("gallery.choose") for texts in heads.values())
    return (
        f'<!doctype html>\n<html lang="{first}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(name)}</title>\n'
        f"<style>{STYLE}{hidden}</style>\n</head>\n<body>\n"
        f"<header><fieldset><legend>{escape(legend)}</legend>\n{choices}</fieldset></header>\n"
        f"<main>\n<h1>{spoken('span', 'gallery.title')}</h1>\n{spoken('p', 'gallery.intro')}\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )
