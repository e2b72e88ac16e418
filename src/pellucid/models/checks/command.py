"""The command ``pellucid check``."""

from __future__ import annotations

import click
import torch

from pellucid.commandline import Refusal, console, told
from pellucid.explanation.texts import lang_of_locale, languages
from pellucid.models.checks import check
from pellucid.models.command import example_of, input_option, load_model, seed_option

EPILOG = """\b
Examples
  pellucid check models.py:Tagger --input 8x20x64
  pellucid check models.py:Tagger --input 3x20x64 --lengths 20,13,7
  pellucid check models.py:Reader --input 4x60:int64:5000 --lang zh
  pellucid check models.py:build --input ids=4x60:int64:5000 --input mask=4x60:bool --batch-axis 0
  pellucid check models.py:Tagger --input 8x20x64 --json && python train.py
"""


def parse_lengths(context: click.Context, option: click.Parameter, text: str | None) -> list[int] | None:
    """Read ``20,13,7``."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"{text!r}: give the real steps of each sample, 20,13,7")
    return [int(part) for part in parts]


@click.command("check", epilog=EPILOG)
@click.argument("name", metavar="FILE.PY:MODEL")
@input_option(required=True)
@click.option(
    "--lengths", metavar="N,N,...", callback=parse_lengths, help="How many steps of each sample are real; for padding."
)
@click.option("--batch-axis", type=int, help="The axis of the first input that counts samples. Default: found out.")
@seed_option
@click.option("--lang", metavar="LANG", help=f"The language: {', '.join(languages())}. Default: that of the locale.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def command(
    context: click.Context,
    name: str,
    inputs: tuple[str, ...],
    lengths: list[int] | None,
    batch_axis: int | None,
    seed: int,
    lang: str | None,
    as_json: bool,
) -> None:
    """Look for the mistakes of a model that raise no error, by running it; exit status 1 if something is wrong.

    FILE.PY:MODEL is a class or a function that is called without arguments and gives the model, or the model itself.
    Several samples, with --lengths one of them shorter, show most. In a program this is pellucid.check(model, x).
    """
    torch.manual_seed(seed)
    try:
        model = load_model(name)
        example = example_of(inputs)
        args, options = ((), example) if isinstance(example, dict) else (example, {})
        about = {"lengths": lengths, "batch_axis": batch_axis, "lang": lang or lang_of_locale()}
        found = check(model, *args, **{**about, **options})
    except (ValueError, TypeError, RuntimeError, LookupError, OSError, ImportError) as error:
        raise Refusal(told(error, inputs)) from error  # exit code 1 says that something is wrong with the model
    if as_json:
        click.echo(found.json(), nl=False)
    else:
        console().print(found)
    context.exit(0 if found else 1)
