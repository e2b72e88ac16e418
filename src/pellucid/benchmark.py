"""`pellucid bench`: pellucid's layers beside torch.nn's and beside the Python loop, in one run, after a comparison."""

from __future__ import annotations

import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import pellucid
from pellucid import nn
from pellucid.nn import cells

EXACT = 1e-10  # largest difference in float64, relative to the largest entry
ROUNDING = 1e-4  # the same in float32; a cell that is chaotic may round as badly as its opponent, up to tenfold


@dataclass(frozen=True)
class Row:
    """One comparison: a layer, its opponent in torch.nn (None: the Python loop alone), and the input's sizes."""

    name: str
    make: Callable[[], torch.nn.Module]
    opponent: Callable[[], torch.nn.Module] | None
    batch: int
    steps: int


@dataclass(frozen=True)
class Figure:
    """What was measured: medians of forward and backward together, and the largest relative differences.

    All three are against the opponent in float64: pellucid's in float64, pellucid's and the opponent's in float32.
    """

    row: str
    backend: str
    difference: float
    rounding: float
    opponent_rounding: float
    ours_ms: float
    torch_nn_ms: float | None
    loop_ms: float

    @property
    def passed(self) -> bool:
        """Whether values and gradients agree; a row that does not has no speed."""
        return self.difference <= EXACT and self.rounding <= max(ROUNDING, 10 * self.opponent_rounding)


def _drop_in(name: str, *args: Any, **kwargs: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    return lambda: getattr(nn, name)(*args, **kwargs), lambda: getattr(torch.nn, name)(*args, **kwargs)


RECURRENT = [
    *(Row(f"{n}  1, 128, 256→128", *_drop_in(n, 256, 128), 1, 128) for n in ("RNN", "GRU", "LSTM")),
    *(Row(f"{n}  32, 128, 256→128", *_drop_in(n, 256, 128), 32, 128) for n in ("RNN", "GRU", "LSTM")),
    Row("LSTM  16, 64, 64→64, 2 layers, bidirectional", *_drop_in("LSTM", 64, 64, 2, bidirectional=True), 16, 64),
    Row("layernorm_lstm  1, 128, 256→128", lambda: cells.layernorm_lstm(256, 128), None, 1, 128),
    Row("layernorm_lstm  32, 128, 256→128", lambda: cells.layernorm_lstm(256, 128), None, 32, 128),
    Row("leaky  32, 128, 256→128", lambda: cells.leaky(256, 128), None, 32, 128),
]
SUITES = {"recurrent": RECURRENT}


def measure(row: Row, rounds: int, device: str = "cpu") -> Figure:
    """Compare values and gradients, then time forward + backward, the opponents taking turns."""
    torch.manual_seed(0)
    layer = row.make().to(device)
    x = torch.randn((row.steps, row.batch, int(layer.input_size)), device=device)  # type: ignore[arg-type]
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: _train(layer, x, "auto"),
        "loop": lambda: _train(layer, x, "naive"),
    }
    theirs, by = copy.deepcopy(layer), "naive"
    if row.opponent is not None:
        theirs, by = row.opponent().to(device), "auto"
        theirs.load_state_dict(layer.state_dict())
        runs["torch.nn"] = lambda: _train(theirs, x, "auto")
    exact = _train(copy.deepcopy(theirs).double(), x.double(), by)
    in_double = _differences(_train(copy.deepcopy(layer).double(), x.double(), "auto"), exact)
    in_single, opponent = _differences(_train(layer, x, "auto"), exact), _differences(_train(theirs, x, by), exact)
    backend = str(layer.backend)
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(_clock(run, device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    found = (medians["ours"], medians.get("torch.nn"), medians["loop"])
    return Figure(row.name, backend, in_double, in_single, opponent, *found)


def _train(layer: torch.nn.Module, x: torch.Tensor, backend: str) -> list[torch.Tensor]:
    """One step of forward and backward: the output, and the gradients of input and parameters."""
    x = x.detach().requires_grad_()
    with pellucid.backend(backend):
        output, _ = layer(x)
    weights = torch.linspace(-1, 1, output.shape[-1], dtype=x.dtype, device=x.device)
    gradients = torch.autograd.grad((output * weights).sum(), [x, *layer.parameters()])
    return [output.detach(), *gradients]


def _differences(results: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """The largest difference of any tensor, relative to its largest entry."""
    pairs = zip(results, exact, strict=True)
    return max(float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


def _clock(run: Callable[[], Any], device: str) -> float:
    """Milliseconds of one run."""
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "pellucid": pellucid.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def table(figures: list[Figure]) -> Table:
    """Lay the figures out for the terminal."""
    shown = Table(
        box=box.SIMPLE, padding=(0, 1), title="batch, steps, input→hidden: forward + backward, float32, medians in ms"
    )
    for column in ("row", "backend", "Δ f64", "Δ f32", "pellucid", "torch.nn", "× nn", "loop", "× loop"):
        shown.add_column(column, justify="left" if column in ("row", "backend") else "right", no_wrap=True)
    for f in figures:
        errors = (f"{f.difference:.0e}", f"{f.rounding:.0e}")
        if not f.passed:
            shown.add_row(f.row, f.backend, *errors, "differs", "", "", "", "")
            continue
        theirs = ("", "") if f.torch_nn_ms is None else (f"{f.torch_nn_ms:.1f}", f"{f.torch_nn_ms / f.ours_ms:.2f}")
        loop = (f"{f.loop_ms:.1f}", f"{f.loop_ms / f.ours_ms:.2f}")
        shown.add_row(f.row, f.backend, *errors, f"{f.ours_ms:.1f}", *theirs, *loop)
    return shown


@click.command()
@click.argument("suite", type=click.Choice(sorted(SUITES)), default="recurrent")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1), help="Timed runs of each opponent.")
@click.option("--threads", type=click.IntRange(1), help="Threads of torch; by default torch's own choice.")
@click.option(
    "--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Where the layers run."
)
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures to this file.")
def bench(suite: str, rounds: int, threads: int | None, device: str, path: Path | None) -> None:
    """Time pellucid's layers beside torch.nn's, in one run.

    Every row first compares output and all gradients with the opponent's in float64 (Δ, relative to the largest
    entry, of pellucid in float64 and in float32); a row that differs gets no figure and the command ends with an
    error. Opponents take turns, medians are shown; "× nn" above 1 means that pellucid is faster. "loop" is the
    same formula in a Python loop, as one would write it without pellucid.

    \b
    Examples:
      pellucid bench
      pellucid bench recurrent --rounds 21 --json figures.json
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("--device cuda: torch finds no GPU here. Leave the option out to measure the CPU.")
    if threads:
        torch.set_num_threads(threads)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    figures = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for row in progress.track(SUITES[suite], description=suite):
            figures.append(measure(row, rounds, device))
    where = machine()
    console.print(table(figures))
    console.print(", ".join(f"{name} {value}" for name, value in where.items()), highlight=False)
    if path:
        path.write_text(json.dumps({"machine": where, "figures": [asdict(f) for f in figures]}, indent=2) + "\n")
    if not all(f.passed for f in figures):
        sys.exit(1)
