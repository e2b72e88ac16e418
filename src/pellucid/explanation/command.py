"""The commands ``pellucid explain`` and ``pellucid gallery``."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from pellucid.explanation.saving import RENDERERS, destination, opened, rendered, write
from pellucid.explanation.texts import Texts, lang_of_locale, languages

EPILOG = """\b
Examples
  pellucid explain rnn --input-size 256 --hidden-size 128 --sentence "你个扑该!" --lang zh
  pellucid explain lstm --sentence "a quick brown fox" --steps 3
  pellucid explain conv2d --kernel-size 3 --dilation 2
  pellucid explain textconv --embedding-size 8 --widths 2,3 --sentence "你好世界"
  pellucid explain layernorm --input "1,2,3,4; 2,4,6,8"
  pellucid explain dropout --p 0.5 --input 1,2,3,4,5,6
  pellucid explain maxpool --input "1,5,2,0; 3,4,8,1; 0,2,6,6; 7,1,0,9"
  pellucid explain my_cells.py:leaky --hidden-size 4 --tau 5
  pellucid explain gru --sentence "你个扑该!" --open
  pellucid explain conv2d --dilation 2 --save conv.html --save conv.svg
"""


@click.command(
    "explain",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog=EPILOG,
    options_metavar="[OPTIONS] [--ARGUMENT VALUE ...]",
)
@click.argument("name", metavar="NAME")
@click.option("--input", "numbers", metavar="NUMBERS", help="What it reads: 1,2,3 or, in rows, '1,2; 3,4'.")
@click.option("--sentence", metavar="TEXT", help="Read a sentence, character by character.")
@click.option("--lang", metavar="LANG", help=f"The language: {', '.join(languages())}. Default: that of the locale.")
@click.option("--steps", type=click.IntRange(min=0), help="How many steps or positions are worked out.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides weights, example inputs and masks.")
@click.option("--width", type=click.IntRange(min=40), help="Columns of the text. Default: those of the terminal.")
@click.option(
    "--open", "in_browser", is_flag=True, help="Open the interactive page in the browser; nothing is printed."
)
@click.option(
    "--save",
    "files",
    metavar="FILE",
    multiple=True,
    callback=lambda context, option, files: destinations(files),
    help=f"Write a file instead of printing; the ending says as what: {', '.join(RENDERERS)}. May be given repeatedly.",
)
@click.pass_context
def command(
    context: click.Context,
    name: str,
    numbers: str | None,
    sentence: str | None,
    lang: str | None,
    steps: int | None,
    seed: int,
    width: int | None,
    in_browser: bool,
    files: list[Path],
) -> None:
    """Explain a layer with real numbers.

    NAME is a layer such as rnn, lstm, conv2d, batchnorm, layernorm, dropout or maxpool, or a cell of your own,
    path/file.py:cell. Further options are the layer's own arguments: --hidden-size 128, --kernel-size 3, --p 0.5.
    The weights are drawn from a seed; without --input or --sentence an example input is made up.
    With --open and --save the explanation becomes a page or a file, and the terminal names it.
    """
    from pellucid.explanation import explain  # torch takes a while to load; --help does without
    from pellucid.nn.cell import load

    if numbers is not None and sentence is not None:
        raise click.UsageError("--input and --sentence are both the input: give one of them")
    try:
        subject = load(name)
        arguments = parse_arguments(context.args)
        inputs = [sentence] if sentence is not None else [] if numbers is None else [parse_numbers(numbers)]
        lang = lang or lang_of_locale()
        show = not (in_browser or files)
        report = explain(subject, *inputs, lang=lang, show=show, steps=steps, seed=seed, width=width, **arguments)
        contents = [(path, rendered(report, path)) for path in files]  # all or, where one fails, none is written
        for path, content in contents:
            write(path, content)
            click.echo(path)
        if in_browser:
            path, found = opened(report)
            click.echo(path if found else Texts(lang)("show.no_browser", path=path))
    except (ValueError, TypeError, RuntimeError, IndexError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="The folder of the pages.")
@click.option("--lang", metavar="LANG", help="The language shown first. Default: that of the locale.")
def gallery(out: Path, lang: str | None) -> None:
    """Write a page for every component, and an index of them.

    Recurrence, convolution and pooling, normalization and dropout; every page is one file, in English and Chinese.

    \b
    Example:
      pellucid gallery --out pages
    """
    from rich.progress import track

    from pellucid.explanation.gallery import write_gallery

    lang = lang or lang_of_locale()
    try:
        progress = partial(track, description=Texts(lang)("gallery.progress"), console=Console(stderr=True))
        click.echo(write_gallery(out, lang, track=progress))
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error


def destinations(files: Sequence[str]) -> list[Path]:
    """Check the files to be written before anything is computed."""
    try:
        return [destination(file) for file in files]
    except (ValueError, OSError) as error:
        raise click.BadParameter(str(error).removeprefix("save: ")) from error


def parse_numbers(text: str) -> Any:
    """Read ``1,2,3``, or rows ``1,2; 3,4``, as a tensor."""
    import torch

    rows = [[part.strip() for part in row.split(",") if part.strip()] for row in text.split(";") if row.strip()]
    try:
        values = [[float(part) for part in row] for row in rows]
    except ValueError as error:
        raise click.UsageError(f"--input: {error}; give numbers, 1,2,3 or in rows '1,2; 3,4'") from error
    if not values or len({len(row) for row in values}) != 1:
        raise click.UsageError("--input: every row needs the same number of numbers, at least one: '1,2; 3,4'")
    return torch.tensor(values if ";" in text else values[0])


def parse_arguments(rest: list[str]) -> dict[str, Any]:
    """Read ``--kernel-size 3 --bias=false --bidirectional`` as arguments of a layer."""
    found: dict[str, Any] = {}
    waiting = list(rest)
    while waiting:
        option = waiting.pop(0)
        if not option.startswith("--"):
            raise click.UsageError(f"{option!r} belongs to no option; arguments of the layer are --name value")
        key, equals, value = option[2:].partition("=")
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "true"
        found[key.replace("-", "_")] = parse_value(value)
    return found


def parse_value(text: str) -> Any:
    """Read a number, a tuple of numbers, true, false or none; anything else is a word."""
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
