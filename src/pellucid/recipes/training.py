"""The training that all recipes share: Lightning's Trainer, the best epoch kept by validation and then tested."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import click
import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from pellucid.files import write_json, write_whole
from pellucid.recipes import checkpoint
from pellucid.recipes.errors import RecipeError, Stopped
from pellucid.recipes.recipe import Batch, Batches, Data, Settings, Trained

BEST, LAST, METRICS = "best.ckpt", "last.ckpt", "metrics.json"
WARM_UP = 0.1  # of all steps
OF_NO_CONCERN = (r"`isinstance\(treespec, LeafSpec\)` is deprecated",)


def rate(step: int, steps: int) -> float:
    """The learning rate's factor: a linear rise, then half a cosine down to 0."""
    return (
        min(1.0, (step + 1) / max(1, WARM_UP * steps)) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))
    )


class Training(lightning.LightningModule):
    """What Lightning's Trainer runs.

    Every epoch draws its dropout from seed and epoch alone, as its batches are; so a resumed training repeats what an
    uninterrupted one would have done.
    """

    def __init__(self, trained: Trained, data: Data, out: Path) -> None:
        super().__init__()
        self.network, self.settings = trained.network, trained.settings
        self.trained, self.data, self.out = trained, data, out
        self.started = 0.0
        count = len(data.classes)
        self.confusion = torch.zeros(count, count, dtype=torch.int64)  # of the test: right class, class found

    def train_dataloader(self) -> Batches:
        """The batches of this epoch; the Trainer asks before each one."""
        return self.data.training(self.settings, self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Make the epoch's random draws its own, and start the clock."""
        self.started = time.perf_counter()
        torch.manual_seed(self.settings.seed * 1_000_003 + self.current_epoch)

    def on_train_epoch_end(self) -> None:
        """Keep and print what the epoch reached, just before its checkpoint is written."""
        metrics = self.trainer.callback_metrics
        accuracy, before = float(metrics["validation_accuracy"]), self.trained.accuracies
        self.trained = replace(self.trained, accuracies=(*before, accuracy))
        (self.out / METRICS).unlink(missing_ok=True)  # its figures are those of an older network from now on
        best = "  (best so far)" if accuracy >= max(before, default=0.0) else ""
        click.echo(
            f"epoch {self.current_epoch + 1}/{self.trainer.max_epochs}  loss {float(metrics['mean_loss']):.3f}  "
            f"validation accuracy {accuracy:.4f}  {time.perf_counter() - self.started:.1f} s{best}"
        )

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of a batch."""
        loss = self.network.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=False, prog_bar=True)
        self.log("mean_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Count what is right."""
        self._log_accuracy("validation_accuracy", self.network.classes(batch), batch.labels)

    def test_step(self, batch: Batch, index: int) -> None:
        """Count what is right, and which class is taken for which."""
        found, count = self.network.classes(batch), len(self.data.classes)
        self._log_accuracy("test_accuracy", found, batch.labels)
        pairs = torch.bincount((batch.labels * count + found).cpu(), minlength=count**2)
        self.confusion += pairs.reshape(count, count)

    def _log_accuracy(self, name: str, found: Tensor, labels: Tensor) -> None:
        right = (found == labels).double().mean()
        self.log(name, right, on_step=False, on_epoch=True, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        """Adam with the schedule of `rate`, over the steps of all epochs."""
        steps = self.settings.epochs * len(self.train_dataloader())
        optimizer = adam(self.network, self.settings.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, content: dict[str, Any]) -> None:
        """Let settings and what was fitted travel with the weights."""
        content[checkpoint.ENTRY] = checkpoint.entry(self.trained)


def adam(network: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    """The optimiser, in one kernel for all weights."""
    return torch.optim.Adam(network.parameters(), lr=lr, fused=True)


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoints, put in place in one move."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, whole or not at all."""
        write_whole(Path(path), lambda file: torch.save(checkpoint, file))


class Keep(Checkpoint):
    """After every epoch ``last.ckpt`` is written, and before it ``best.ckpt`` where none was better.

    Of epochs that are equally good the last one stays: it was trained for longer, and at a lower rate.

    What the best accuracy was is read from the training itself, so that a folder may be moved and resumed.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write; Lightning calls checkpoints after everything else."""
        *before, accuracy = cast(Training, pl_module).trained.accuracies
        if accuracy >= max(before, default=-1.0):
            trainer.save_checkpoint(self.out / BEST)
        trainer.save_checkpoint(self.out / LAST)


def train(out: Path, settings: Settings, device: str = "auto") -> dict[str, Any]:
    """Train, keep the epoch with the best validation accuracy, and measure that one on the test part.

    Args:
        out: the folder of ``best.ckpt``, ``last.ckpt`` and ``metrics.json``; made if it is not there. What an older
            training left in it is replaced when the first epoch is done.
        settings: what decides the outcome. The same settings give the same result on the same machine; torch's global
            generator is seeded.
        device: "auto", "cpu" or "cuda".

    Returns:
        What ``metrics.json`` holds.

    Raises:
        RecipeError: an option or the folder cannot be used.
        Stopped: the user stopped it; the checkpoints of the epochs so far are whole.
    """
    started, accelerator = time.perf_counter(), pick_device(device)
    settings = settings.checked()
    _make_folder(out)
    data = settings.data()
    torch.manual_seed(settings.seed)
    trained = Trained(settings.network(data.fitted), settings, data.fitted)
    return _run(trained, data, out, accelerator, started)


def resume(out: Path, epochs: int | None = None, cell: str | None = None, device: str = "auto") -> dict[str, Any]:
    """Go on with a training from its ``last.ckpt``, as if it had not been interrupted.

    Args:
        out: the folder of that training.
        epochs: how many there are to be in all; by default as many as were asked for.
        cell: where the cell's file is now, if it has moved.
        device: "auto", "cpu" or "cuda".

    Returns:
        What ``metrics.json`` holds; its seconds are those of this run.

    Raises:
        RecipeError: there is nothing to resume.
        Stopped: see `train`.
    """
    started, accelerator = time.perf_counter(), pick_device(device)
    trained = unfinished(out, cell)
    settings = replace(trained.settings, epochs=epochs or trained.settings.epochs)
    if complete(out, trained, settings.epochs):
        done = len(trained.accuracies)
        raise RecipeError(f"{out / LAST} has done its {done} epochs; to go on: --resume --epochs {done + 1} or more")
    data = settings.data(trained.fitted)
    return _run(replace(trained, settings=settings), data, out, accelerator, started)


def complete(out: Path, trained: Trained, epochs: int) -> bool:
    """Tell whether a training has done its epochs and was tested."""
    return len(trained.accuracies) >= epochs and (out / METRICS).is_file()


def unfinished(out: Path, cell: str | None = None) -> Trained:
    """Read the training that `resume` goes on with.

    Raises:
        RecipeError: there is none in this folder, or its checkpoint cannot be used.
    """
    if not (out / LAST).is_file():
        raise RecipeError(f"--resume: there is no {out / LAST}. Leave --resume out to start a training there.")
    return checkpoint.load(out / LAST, cell)


def _run(trained: Trained, data: Data, out: Path, accelerator: str, started: float) -> dict[str, Any]:
    """Fit, test the best epoch, report; ``trained`` has done as many epochs as it has accuracies."""
    settings, sizes = trained.settings, data.sizes
    lines = [
        f"{sum(sizes.values()):,} {data.unit}: {sizes['train']:,} to train on, {sizes['validation']:,} to choose the "
        f"epoch, {sizes['test']:,} to test.",
        *data.notes,
        f"The network has {parameters(trained.network):,} weights; {settings.choice}, seed {settings.seed}, "
        f"{accelerator}.",
    ]
    click.echo("\n".join(lines))
    trained.network.train()  # one from a checkpoint is in eval mode
    training = Training(trained, data, out)
    with _quiet(), _stoppable(training):
        trainer = _trainer(out, settings, accelerator)
        if len(trained.accuracies) < settings.epochs:  # not stopped after the last one
            path = out / LAST if trained.accuracies else None
            trainer.fit(training, val_dataloaders=data.evaluation("validation"), ckpt_path=path)
            if trainer.interrupted:
                raise KeyboardInterrupt
        best = Training(checkpoint.load(out / BEST, settings.named_cell), data, out)
        (result,) = trainer.test(best, data.evaluation("test"), verbose=False)
    accuracies = list(training.trained.accuracies)
    metrics = {
        "test_accuracy": result["test_accuracy"],
        "seconds": round(time.perf_counter() - started, 1),
        "epochs": len(accuracies),
        "best_epoch": len(accuracies) - accuracies[::-1].index(max(accuracies)),
        "validation_accuracy": accuracies,
        **{name: value for name, value in asdict(settings).items() if name != "epochs"},
        "parameters": parameters(trained.network),
        data.unit: sizes,
        **data.facts,
        "classes": list(data.classes),
        "confusion": best.confusion.tolist(),
        "device": accelerator,
        "threads": torch.get_num_threads(),
        "backend": trained.network.backend,
        "torch": torch.__version__,
    }
    write_json(out / METRICS, metrics)
    return metrics


def metrics_in(out: Path) -> dict[str, Any]:
    """Read the figures of a training that is complete."""
    return json.loads((out / METRICS).read_text(encoding="utf-8"))


def parameters(network: torch.nn.Module) -> int:
    """Count the weights."""
    return sum(weight.numel() for weight in network.parameters())


def pick_device(name: str) -> str:
    """Return "cpu" or "cuda".

    Raises:
        RecipeError: a GPU is asked for, and torch finds none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device cuda: torch finds no GPU here. Use --device auto, and see pellucid doctor.")
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RecipeError(f"--out {out}: that is a file, or stands inside one; name a folder") from None
    except OSError as error:
        raise RecipeError(f"--out {out}: the folder cannot be made: {error.strerror}") from error


def _trainer(out: Path, settings: Settings, accelerator: str) -> lightning.Trainer:
    """Make a Trainer that writes nothing but the two checkpoints."""
    interactive = sys.stdout.isatty()
    return lightning.Trainer(
        max_epochs=settings.epochs,
        accelerator="gpu" if accelerator == "cuda" else "cpu",
        devices=1,
        logger=False,
        callbacks=[Keep(out), RichProgressBar()] if interactive else [Keep(out)],
        plugins=[WholeFiles()],
        enable_progress_bar=interactive,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=settings.largest_gradient,
        reload_dataloaders_every_n_epochs=1,
        deterministic="warn" if accelerator == "cuda" else None,
        default_root_dir=out,
    )


@contextmanager
def _stoppable(training: Training) -> Iterator[None]:
    """Turn the user's interruption, which Lightning turns into the end of the process, into `Stopped`."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        done, asked = len(training.trained.accuracies), training.settings.epochs
        kept = f"{training.out / LAST} holds {done} of {asked} epochs; go on with --resume"
        raise Stopped(kept if done else "no epoch was complete, nothing was changed") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what Lightning says of its own workings: devices, restored states, its own old habits."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in OF_NO_CONCERN:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
