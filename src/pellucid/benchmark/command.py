"""The command `pellucid bench`."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import Progress

import pellucid
from pellucid.benchmark.apart import Apart
from pellucid.benchmark.comparison import Figure, Row, Run
from pellucid.benchmark.convolution import CAUSAL, CONVOLUTION, FORMATS, POOLING
from pellucid.benchmark.gpu import GPU
from pellucid.benchmark.limit import measure_rates
from pellucid.benchmark.models import MEAN_FLOOR, MODELS, ModelSpeed, geometric_mean
from pellucid.benchmark.networks import NETWORKS
from pellucid.benchmark.processes import FIRST_RESULT, MEMORY, ROWS_MEMORY
from pellucid.benchmark.recipe import RECIPE
from pellucid.benchmark.report import Report
from pellucid.benchmark.rows import ROWS
from pellucid.benchmark.speed import RECURRENT
from pellucid.benchmark.streaming import STREAMING
from pellucid.benchmark.table import tables
from pellucid.commandline import console
from pellucid.doctor import processor_name

SUITES: dict[str, Sequence[Row]] = {
    "recurrent": [*RECURRENT, *STREAMING, *FIRST_RESULT, *MEMORY, *RECIPE],
    "rows": [*ROWS, *ROWS_MEMORY],
    "conv": [*CONVOLUTION, *NETWORKS, *POOLING, *FORMATS, *CAUSAL],
    "models": MODELS,
    "gpu": GPU,
}
CPU_INSTEAD = "To measure the CPU: pellucid bench recurrent, rows, conv or models, without --device."
PLAIN_WIDTH = 140  # columns where there is no terminal


@click.command()
@click.argument("suite", type=click.Choice(sorted(SUITES)), default="recurrent")
@click.option("--rows", "wanted", metavar="TEXT", help="Only the rows whose section and name have all words of TEXT.")
@click.option("--check", is_flag=True, help="End with exit status 1 too if a row misses its floor.")
@click.option(
    "--rounds", default=9, show_default=True, type=click.IntRange(1), help="Least timed samples of each side."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of torch; by default torch's own choice.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Where the layers run; by default on the CPU, those of `gpu` with CUDA.",
)
@click.option(
    "--budget",
    metavar="SECONDS",
    type=click.FloatRange(0),
    help="Begin no row later than this after the start, and say which are left out.",
)
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures to this file.")
@click.option(
    "--markdown", "table", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables to this file."
)
def bench(
    suite: str,
    wanted: str | None,
    check: bool,
    rounds: int,
    threads: int | None,
    device: str | None,
    budget: float | None,
    path: Path | None,
    table: Path | None,
) -> None:
    """Time pellucid's layers beside torch.nn's and beside what the machine can do, in one run.

    There are five suites: `recurrent`, which is the usual one; `rows`, layers without time: norms, dropout and
    formulas of one's own; `conv`, layers that read their input through windows: convolution and pooling; `models`,
    whole models as people have them; and `gpu`, what is promised of a GPU.

    Every row first compares values and gradients with the opponent's in float64 and in the type that is measured,
    float32 unless the row says otherwise: Δ is the largest difference in float64, relative to the largest entry. A row
    that differs gets no figure, and the command ends with exit status 1. Then both sides take turns, and medians are
    shown; a call that is over in less than half a millisecond is timed with others of its kind. "2.03 < 2.2" is a row
    that misses its floor of 2.2. Floors are promises for two threads of a CPU, those of `gpu` for a GPU.

    With --device cuda CUDA events stand before and behind every sample, of as many calls as take 10 ms: the gaps
    between launches count as they do for a user, no graph is replayed, and no cache is emptied between calls. The
    files of --json and --markdown are replaced after every row: a run that is stopped leaves what it measured.

    The sections of `recurrent`, about two and a half minutes on two cores; rows are called by batch, steps,
    input→hidden:

    \b
    speed         A training step: forward + backward. "× nn" above 1 means that pellucid is faster than torch.nn;
                  "loop" is the same formula in a Python loop, as one writes it without pellucid. "last step": the loss
                  is one of the last step's output, as of a classifier, and its gradient vanishes on the way back.
    streaming     Inference one step at a time, the state carried: a layer with an input of one step, and a cell.
    first result  From @pellucid.cell on a new formula to the end of its first training step, in a new process; with
                  a cold cache the kernel is compiled, with a warm one it is found on disk.
    memory        The peak of a training step on 10,000 steps.
    recipe        A whole training step of the network of `pellucid train sentiment`, which reads reviews of any length:
                  what its --compare measures. torch.nn's layer reads packed sequences; Δ is the largest difference
                  of the losses. Left out where the extra is missing: pip install 'pellucid[train]'.

    The sections of `rows`, about two minutes on two cores; rows are called by the shape of an input:

    \b
    speed         Forward + backward, given the gradient of the output. "torch" is torch.nn's layer. AddNorm, which is
                  LayerNorm(x + Dropout(sublayer)), stands beside three layers of torch.nn; "own" is a function that
                  @pellucid.layer made a layer, beside the same function called on tensors. Linear's limit is that of
                  three products at the rate of torch's own, which is not all that every processor can do.
    small         The same where calling costs more than computing, in µs.
    formats       bfloat16, with parameters in float32; pictures whose channels stand last.
    memory        The peak of a training step of Dropout.

    The sections of `conv`, about 40 seconds on two cores; rows are called by the shape of an input, what
    goes in and comes out, and the kernel:

    \b
    speed         Forward + backward, given the gradient of the output; "torch" is torch.nn's layer.
    training      A whole training step: zero_grad, forward, loss, backward and SGD. LeNet-5 on pictures of 28×28, and
                  TextCNN, which reads texts of any length: embedding 300, 100 filters of each of the widths 3, 4 and
                  5, the maximum over real steps, dropout. torch.nn's has a convolution and a masked maximum for each
                  width. Losses and gradients of a few steps are compared, with no entry dropped.
    pooling       Forward + backward of maxima and means.
    formats       bfloat16, parameters too; pictures whose channels stand last.
    streaming     Inference one step at a time, the state carried; with torch.nn's layer the entries that the next
                  window reads are kept by hand.

    The sections of `models`, of which there is one:

    \b
    models        A whole training step of a model after pellucid.swap(model, fuse=True), beside the model as it was:
                  zero_grad, forward, loss, backward and SGD. Those of transformers, without weights, are left out
                  where that is missing: pip install transformers. "12 of 31" layers were replaced; as many groups of
                  layers, operations and functions are computed as one where that is faster; "channels_last" is the
                  format of convolutions where memory_format="fastest" found it faster. All outputs and gradients are
                  compared, without dropouts; gradients relative to the largest entry of all of them.

    The sections of `gpu`, which implies --device cuda; its floors are those of a GPU, and with --budget 240 no row
    begins later than four minutes after the start. Rows are called as above, with the type that input, parameters and
    output have. TF32 is float32 whose products may be rounded to it, in cuDNN and elsewhere alike; in rows of float32
    none are. A row that breaks the GPU's context or takes longer than 90 s is given up, and the others are measured in
    a new process. The largest difference in the measured type is at most twice the opponent's own and a unit of that
    type, or 1e-4, relative to the largest entry. Steps are recorded as CUDA graphs and replayed: the figures are what
    the GPU does. "launched" are those of pellucid and torch.nn where Python launches every step, which may take longer
    than the GPU does. The own cell is launched on all sides.

    \b
    recurrence    Beside torch.nn, which is cuDNN; where it is not, that is said below the table. "triton" is the same
                  layer under pellucid.backend("triton"), where the backend in the second column, which `auto` took,
                  is another one.
    own cell      A layer-normalised LSTM beside the Python loop of the same cell, with which it is compared, and
                  beside cuDNN's plain LSTM, which computes something else.
    bandwidth     Layers without time on 64 Mi entries: the share of the rate of a copy of bfloat16, 256 MiB long,
                  measured first. "torch.compile" is that of torch.nn's layer, compiled before it is timed; below the
                  table stands why where it cannot be. AddNorm counts as one pass over its tensors. Steps are recorded
                  as CUDA graphs and replayed: the figures are what the GPU does. "launched" are those of pellucid and
                  torch.nn where Python launches every step, which may take longer than the GPU does.
                  "peers" are Liger-Kernel and apex, and in recurrence flashrnn's Triton, where they are installed.
    convolution   A causal depthwise Conv1d; torch.nn's is padded at both ends and cut.

    \b
    What is compared of a layer that throws coins:
      A run in float64 shows which entries are kept: those whose input has a gradient. How many they are must lie
      within 5 standard deviations of 1 - p. With the same seed in every type, output and gradients must be those of
      torch.nn's layer when exactly these entries are dropped: x / (1 - p) where kept, 0 elsewhere. Where a whole
      channel shares a coin, one coin is read for each channel. For norms the running statistics are compared too.

    \b
    After the time stands the share of the machine's limit, the least time that the step could take:
      recurrent: limit = max(FLOPs / rate of a matrix product, bytes / rate of a copy)
        FLOPs = 6 × multiply-accumulates of forward's products (two FLOPs each; backward has twice the products)
        bytes = 3 × those of input, outputs and parameters (forward, again in backward, gradient)
      rows: limit = bytes / rate of a copy, bytes = passes × those of an input in its type. The passes:
        5, a norm and a function of one's own: x read, y written; x and dy read, dx written
        4, dropout, whose gradient needs no x: x read, y written; dy read, dx written
        8, AddNorm: x and sublayer read, y written; x, sublayer and dy read, the two gradients written
      conv: limit = max(FLOPs / rate of a matrix product, bytes / rate of a copy)
        FLOPs = 6 × multiply-accumulates of forward (a convolution's backward has twice as many; a pooling has none)
        bytes = 2 × those of x and y, and for a convolution those of x once more and 3 × those of the parameters
          (forward: x and parameters read, y written; backward: dy, x and parameters read, their gradients written)
        training: FLOPs of all products and convolutions of a step, the gradient of the pictures left out
        models: FLOPs = 6 × multiply-accumulates of forward, as pellucid.explain counts them
        bytes = 4 × those of the parameters (backward writes their gradient; SGD reads both and writes the parameters)
        streaming: FLOPs = 2 × multiply-accumulates of a step, bytes = those of x, y and the parameters
      gpu: bandwidth and convolution: bytes / rate of a copy, the bytes as in rows and conv, BatchNorm's 5 passes too
    Both rates are measured first, with the same threads, and stand below the tables. A share above 100% says that
    the machine was busy then, or that the data of a small row stays in a cache faster than memory: repeat the run.

    \b
    Examples:
      pellucid bench
      pellucid bench --rows lstm
      pellucid bench --rows "gru 32," --rounds 51
      pellucid bench --rows memory
      pellucid bench recurrent --check --json figures.json
      pellucid bench rows --threads 2 --check
      pellucid bench rows --rows "speed dropout"
      pellucid bench conv --rows depthwise
      pellucid bench models --check
      pellucid bench gpu --budget 240 --json gpu.json --markdown gpu.md
    """
    start = time.perf_counter()
    device = _device(suite, device, check)
    rows = _pick(suite, wanted)
    if threads:
        torch.set_num_threads(threads)

    def late() -> str | None:
        spent = time.perf_counter() - start
        return f"{spent:.0f} s had gone by, --budget is {budget:g} s" if budget is not None and spent > budget else None

    shown = console(PLAIN_WIDTH)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("the machine's limit", total=len(rows) + 1)
        rates = measure_rates(device, torch.bfloat16 if suite == "gpu" else torch.float32)
        run = Run(rounds, torch.get_num_threads(), device, rates)
        report = Report(machine(run), rates, path, table)
        with _measuring(suite, run) as measure:
            report.measure(rows, measure, late, lambda called: progress.update(task, advance=1, description=called))
    for laid_out in tables(report.figures):
        shown.print(laid_out)
    complaints = report.complaints(check)
    speeds = [f for f in report.figures.get("models", ()) if isinstance(f, ModelSpeed) and f.agreement.passed]
    mean = geometric_mean(speeds) if speeds else None
    if mean is not None:
        shown.print(f"geometric mean of {len(speeds)} models: {mean:.2f}× as fast", highlight=False)
    for line in [*report.notes(), report.where()]:
        shown.print(line, highlight=False, markup=False)
    failed = f"{len(complaints)} of {len(rows)} rows fail"
    if check and mean is not None and wanted is None and mean < MEAN_FLOOR:
        complaints.append(
            f"all models: {mean:.2f}× as fast as torch, the floor of the geometric mean is {MEAN_FLOOR:g}×"
        )
    if complaints:
        raise click.ClickException("\n  ".join([failed, *complaints]))


@contextlib.contextmanager
def _measuring(suite: str, run: Run) -> Iterator[Callable[[Row], Figure]]:
    """What measures the rows of a suite; those of a GPU in another process, for kernels may break or not end there."""
    if suite == "gpu":
        with Apart(functools.partial(_row, suite), run) as apart:
            yield apart.measure
    else:
        yield lambda row: row.measure(run)


def _row(suite: str, called: str) -> Row:
    return next(row for row in SUITES[suite] if f"{row.section}: {row.name}" == called)


def _device(suite: str, asked: str | None, check: bool) -> str:
    """Where a suite runs."""
    device = asked or ("cuda" if suite == "gpu" else "cpu")
    if suite == "gpu" and device == "cpu":
        raise click.UsageError(
            "--device cpu: the rows of gpu are for a GPU. Leave --device out, or take another suite."
        )
    if device == "cuda" and not torch.cuda.is_available():
        what = "the suite gpu" if asked is None else "--device cuda"
        raise click.ClickException(f"{what}: torch finds no GPU here: {_lacking()}. {CPU_INSTEAD}")
    if device == "cuda" and check and suite != "gpu":
        raise click.UsageError("--check: the floors are those of the CPU. Leave --check or --device cuda out.")
    return device


def _lacking() -> str:
    """What there must be for torch to find a GPU."""
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is built without CUDA. "
            "Install a build that has it on a machine with an NVIDIA GPU: https://pytorch.org/get-started"
        )
    return (
        f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, but has no driver or no device. "
        "nvidia-smi must list a GPU, and CUDA_VISIBLE_DEVICES must not hide it"
    )


def _pick(suite: str, wanted: str | None) -> list[Row]:
    """The rows of a suite that have all words of a text, in which -> and 8x64 may be typed for → and 8×64."""
    words = re.sub(r"(?<=\d)x(?=\d)", "×", (wanted or "").lower().replace("->", "→")).split()
    called = {f"{row.section}: {row.name}": row for row in SUITES[suite]}
    found = [row for name, row in called.items() if all(word in name.lower() for word in words)]
    if not found:
        names = "".join(f"\n  {name}" for name in called)
        raise click.UsageError(f"--rows {wanted!r}: no row of {suite} has these words. The rows are:{names}")
    return found


def machine(run: Run) -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        **(_gpu() if run.device == "cuda" else {}),
        "threads": run.threads,
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "pellucid": pellucid.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _gpu() -> dict[str, Any]:
    """What of the GPU's machine decides a figure there."""
    cudnn = torch.backends.cudnn.version()
    triton = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None
    return {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "cudnn": cudnn, "triton": triton}
