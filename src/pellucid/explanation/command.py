"""The commands ``pellucid explain`` and ``pellucid gallery``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import track

from pellucid.commandline import Refusal, drawn, load, looked_up, parse_inputs, told
from pellucid.explanation import ModelReport, explain
from pellucid.explanation.examples import build, parameters_of
from pellucid.explanation.gallery import write_gallery
from pellucid.explanation.notebook import explained
from pellucid.explanation.options import parse_arguments
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
  pellucid explain my_models.py:Net --input 1x3x32x32 --depth 2
  pellucid explain my_models.py:Net --input 1x3x32x32 --eval --layer encoder.rnn
  pellucid explain my_models.py:Bert --input input_ids=2x12:1000 --save bert.html
"""

SHAPE = re.compile(r"\d+([x×]\d+)+(:.*)?|\d+:.*")


@click.command(
    "explain",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog=EPILOG,
    options_metavar="[OPTIONS] [--ARGUMENT VALUE ...]",
)
@click.argument("name", metavar="NAME")
@click.option(
    "--input",
    "numbers",
    metavar="NUMBERS",
    multiple=True,
    help="What it reads: 1,2,3 or, in rows, '1,2; 3,4'; or the shape of random numbers, 1x3x32x32, or of whole numbers "
    "below 1000, 2x12:1000. May be given repeatedly; to a model also by name, input_ids=2x12:1000.",
)
@click.option("--sentence", metavar="TEXT", help="Read a sentence, character by character.")
@click.option("--lang", metavar="LANG", help=f"The language: {', '.join(languages())}. Default: that of the locale.")
@click.option("--steps", type=click.IntRange(min=0), help="How many steps or positions are worked out.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides weights, example inputs and masks.")
@click.option("--depth", type=click.IntRange(min=0), help="Of a model: how many levels of layers are printed.")
@click.option(
    "--layer", metavar="PATH", help="Of a model: explain this layer of it, encoder.rnn, with what reached it."
)
@click.option("--runs", type=click.IntRange(min=0), help="Of a model: how often it is run to take the time.")
@click.option(
    "--eval", "in_eval", is_flag=True, help="Call eval() first: no dropout, BatchNorm with its running averages."
)
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
    numbers: tuple[str, ...],
    sentence: str | None,
    lang: str | None,
    steps: int | None,
    seed: int,
    depth: int | None,
    layer: str | None,
    runs: int | None,
    in_eval: bool,
    width: int | None,
    in_browser: bool,
    files: list[Path],
) -> None:
    """Explain a layer, or a whole model, with real numbers.

    NAME is a layer such as rnn, lstm, conv2d, batchnorm, layernorm, dropout or maxpool, a cell of your own,
    path/file.py:cell, or a model, path/file.py:Model: a class, a function that makes one, or the model itself.
    Further options are the layer's own arguments: --hidden-size 128, --kernel-size 3, --p 0.5.
    The weights are drawn from a seed; without --input or --sentence an example input is made up.
    With --open and --save the explanation becomes a page or a file, and the terminal names it.
    """
    if numbers and sentence is not None:
        raise click.UsageError("--input and --sentence are both the input: give one of them")
    try:
        from pellucid.explanation.subject import Maker  # imports all of pellucid.nn

        found = load(name)
        maker = Maker.of(found)
        if maker is not None:
            maker.training = not in_eval
        subject, arguments = built(maker or found, context.args, seed, ready=isinstance(found, str))
        if in_eval and isinstance(subject, torch.nn.Module):
            subject.eval()
        inputs, named = parse_inputs(numbers, lambda text, index: parse_numbers(text, seed + index))
        if named and not isinstance(subject, torch.nn.Module):
            raise click.UsageError(f"--input {next(iter(named))}=: the inputs of {name} come in order, without names")
        inputs = inputs if sentence is None else [sentence]
        lang = lang or lang_of_locale()
        about: dict[str, Any] = {"lang": lang, "steps": steps, "seed": seed, "depth": depth, "runs": runs}
        report = explain(subject, *inputs, show=False, **about, **arguments, **named)
        if layer is not None:
            if not isinstance(report, ModelReport):
                raise click.UsageError(f"--layer names a layer of a model; {name} is a single layer")
            report = report.layer(layer)
        if not (in_browser or files):
            explained(report, width, depth)
        contents = [(path, rendered(report, path)) for path in files]  # all or, where one fails, none is written
        for path, content in contents:
            write(path, content)
            click.echo(path)
        if in_browser:
            path, found = opened(report)
            click.echo(path if found else Texts(lang)("show.no_browser", path=path))
    except UnicodeEncodeError:
        raise  # of all commands, if the terminal cannot write something
    except (ValueError, TypeError, RuntimeError, AssertionError, LookupError, OSError, ImportError) as error:
        wrong = isinstance(error, (ValueError, TypeError)) or looked_up(error, numbers)
        raise (Refusal if wrong else click.ClickException)(told(error, numbers)) from error


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


def built(subject: Any, rest: Sequence[str], seed: int, ready: bool) -> tuple[Any, dict[str, Any]]:
    """Make a model of its class, or by a function, with these arguments; return what is left of them for others."""
    construct = getattr(subject, "construct", subject)  # of a layer that is given by name
    if isinstance(construct, torch.nn.Module) or not callable(construct):
        return subject, parse_arguments(rest)
    arguments = parse_arguments(rest, parameters_of(construct), ready)
    if construct is not subject:
        return subject, arguments
    return build(subject, subject.__name__, arguments, seed), {}


def parse_numbers(text: str, seed: int = 0) -> Any:
    """Read ``1,2,3``, or rows ``1,2; 3,4``, as a tensor; draw one for a shape, ``2x3``, or ``2x3:10`` below 10."""
    if SHAPE.fullmatch(text.strip()):
        return drawn(text, torch.Generator().manual_seed(seed))
    rows = [[part.strip() for part in row.split(",") if part.strip()] for row in text.split(";") if row.strip()]
    try:
        values = [[float(part) for part in row] for row in rows]
    except ValueError as error:
        raise click.UsageError(
            f"--input: {error}; give numbers, 1,2,3 or in rows '1,2; 3,4', or the shape of random ones, 2x3, of whole "
            "ones below 10 2x3:10"
        ) from error
    if not values or len({len(row) for row in values}) != 1:
        raise click.UsageError("--input: every row needs the same number of numbers, at least one: '1,2; 3,4'")
    return torch.tensor(values if ";" in text else values[0])
