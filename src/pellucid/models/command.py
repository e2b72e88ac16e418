"""The command ``pellucid swap``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from pellucid.commandline import console, drawn, load, parse_inputs, told
from pellucid.explanation.saving import write
from pellucid.models.formats import FASTEST
from pellucid.models.swap import swap

EPILOG = """\b
Examples
  pellucid swap models.py:ResNet --input 1x3x224x224
  pellucid swap models.py:ResNet --input 8x3x224x224 --fuse --eval --report swap.md
  pellucid swap models.py:MobileNet --input 8x3x96x96 --memory-format fastest
  pellucid swap models.py:Tagger --input 4x60:int64:5000 --only encoder
  pellucid swap models.py:build --input ids=4x60:int64:5000 --input mask=4x60:bool --report swap.json
"""

FORMATS = ("channels_last", "channels_last_3d")  # by their names in torch

input_option = functools.partial(
    click.option,
    "--input",
    "inputs",
    metavar="[NAME=]SHAPE[:TYPE][:BELOW]",
    multiple=True,
    help="What the model reads, of random numbers; once for each input. Integers are from 0 to BELOW - 1, default 2.",
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Decides weights and inputs.")


@click.command("swap", epilog=EPILOG)
@click.argument("name", metavar="FILE.PY:MODEL")
@input_option()
@click.option("--only", metavar="PATH", multiple=True, help="Only a module and what is inside, or a pattern: 'enc.*'.")
@click.option(
    "--fuse", is_flag=True, help="Compute layers and arithmetic that follow each other as one, where that is faster."
)
@click.option(
    "--memory-format",
    "form",
    type=click.Choice([*FORMATS, FASTEST]),
    help="Let convolutions work on pictures (channels_last) or volumes (channels_last_3d) whose channels stand last in "
    "memory, as the network behind them then does too: the same values, often sooner with depthwise and grouped "
    "convolutions. 'fastest' measures it, with --input, and takes it where it is.",
)
@click.option("--eval", "evaluate", is_flag=True, help="Time inference; by default a forward and backward pass.")
@seed_option
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all of it to this file: JSON if it ends in .json, Markdown otherwise.",
)
def command(
    name: str,
    inputs: tuple[str, ...],
    only: tuple[str, ...],
    fuse: bool,
    form: str | None,
    evaluate: bool,
    seed: int,
    report: Path | None,
) -> None:
    """Say which layers of a model pellucid replaces, whether it computes the same with them, and how fast.

    FILE.PY:MODEL is a class or a function that is called without arguments and gives the model, or the model itself.
    Without --input nothing is run: the layers are listed. Layers of a subclass of torch.nn's are replaced where it only
    has a constructor of its own, left where it has other code. In a program this is pellucid.swap(model,
    verify=example).
    """
    torch.manual_seed(seed)
    try:
        model = load_model(name)
        example = example_of(inputs)
        wish: Any = getattr(torch, form) if form in FORMATS else form
        done = swap(model.train(not evaluate), only or None, example, fuse=fuse, memory_format=wish)
        if report is not None:
            content = done.json() if report.suffix == ".json" else done.markdown()
            write(report, content.encode())
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise click.ClickException(told(error, inputs)) from error
    console().print(done)


def load_model(name: str) -> Any:
    """Return the model that FILE.PY:MODEL names, made by calling it where it is a class or a function.

    Raises:
        ValueError: there is no such file, nothing of that name in it, or it is no model.
    """
    if ".py:" not in name:
        raise click.UsageError(f"{name!r}: name a file and what is in it, FILE.PY:MODEL")
    found = load(name)
    model = found if isinstance(found, torch.nn.Module) or not callable(found) else found()
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"{name} gives {model!r}: name a torch.nn.Module, or what makes one")
    return model


def example_of(texts: Sequence[str]) -> Any:
    """What ``--input`` says: a tuple of tensors, a dict where they have names, None where there are none."""
    inputs, named = parse_inputs(texts, lambda text, index: drawn(text))
    return named or tuple(inputs) or None
