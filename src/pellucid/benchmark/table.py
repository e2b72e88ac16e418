"""The figures laid out for the terminal and as Markdown, a table for each section."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pellucid.benchmark.comparison import Figure
from pellucid.benchmark.convolution import StepSpeed
from pellucid.benchmark.gpu import COMPILED, CUDNN_LSTM, LOOP, NN, TRITON, Bandwidth, Beside, OwnCell, Recurrence
from pellucid.benchmark.models import ModelSpeed
from pellucid.benchmark.networks import NetworkSpeed
from pellucid.benchmark.peers import APEX, FLASHRNN, LIGER
from pellucid.benchmark.processes import FirstResult, Memory
from pellucid.benchmark.recipe import Recipe
from pellucid.benchmark.speed import Speed, Timed
from pellucid.benchmark.streaming import Streaming
from pellucid.benchmark.twins import RowSpeed

Columns = Mapping[str, Callable[[Any], str | Text]]


def _factor(figure: Timed, opponent_ms: float | None) -> str | Text:
    """How many times as fast as an opponent, and the floor where it is the one that the floor is about."""
    if opponent_ms is None:
        return ""
    factor = f"{opponent_ms / figure.ours_ms:.2f}"
    if figure.floor is None or opponent_ms != figure.opponent[1]:
        return factor
    return _promised(factor, f"{figure.floor:g}", figure.shortfall() is not None)


def _promised(value: str, floor: str, short: bool) -> Text:
    return Text(f"{value} {'<' if short else '≥'} {floor}", style="red" if short else "green")


def _beside(name: str) -> Callable[[Beside], str]:
    """The milliseconds of an opponent, and its share of the rate of a copy where that is what counts."""

    def write(figure: Beside) -> str:
        milliseconds = figure.others_ms.get(name)
        if milliseconds is None or figure.limit_ms is None:
            return "" if milliseconds is None else f"{milliseconds:.3f}"
        return f"{milliseconds:.3f} · {figure.share(milliseconds):.0%}"

    return write


def _times(name: str) -> Callable[[Beside], str | Text]:
    """How many times as fast as an opponent, and the floor where there is one."""

    def write(figure: Beside) -> str | Text:
        if name not in figure.others_ms:
            return ""
        factor = f"{figure.factor(name):.2f}"
        return _promised(factor, f"{figure.floors[name]:g}", figure.short_of(name)) if name in figure.floors else factor

    return write


def _peers(figure: Beside) -> str:
    """Other libraries that are installed, a line each."""
    return "\n".join(f"{name} {_beside(name)(figure)}" for name in (LIGER, APEX, FLASHRNN) if name in figure.others_ms)


def _launched(figure: Beside) -> str:
    """Steps that Python launches: ours and torch.nn's."""
    return " / ".join(f"{figure.launched_ms[name]:.3f}" for name in ("ours", NN) if name in figure.launched_ms)


def _share(figure: Beside) -> str | Text:
    share = f"{figure.share(figure.ours_ms):.0%}"
    if figure.least_share is None:
        return share
    return _promised(share, f"{figure.least_share:.0%}", figure.short_of_share())


def _ms(milliseconds: float | None, limit: float) -> str:
    return "" if milliseconds is None else f"{milliseconds:.1f} · {limit / milliseconds:.0%}"


def _time(figure: RowSpeed, milliseconds: float) -> str:
    """In the unit that suits both sides of a row."""
    small = max(figure.ours_ms, figure.torch_ms) < 1
    shown = f"{1e3 * milliseconds:.1f} µs" if small else f"{milliseconds:.2f} ms"
    return f"{shown} · {figure.limit_ms / milliseconds:.0%}"


def _seconds(figure: FirstResult, seconds: float) -> str | Text:
    return Text(f"{seconds:.2f}", style="red") if seconds > figure.ceiling_s else f"{seconds:.2f}"


SPEED: Columns = {
    "pellucid": lambda f: _ms(f.ours_ms, f.limit_ms),
    "torch.nn": lambda f: _ms(f.torch_nn_ms, f.limit_ms),
    "× nn": lambda f: _factor(f, f.torch_nn_ms),
    "loop": lambda f: _ms(f.loop_ms, f.limit_ms),
    "× loop": lambda f: _factor(f, f.loop_ms),
}
ROWS: Columns = {
    "pellucid": lambda f: _time(f, f.ours_ms),
    "torch": lambda f: _time(f, f.torch_ms),
    "× torch": lambda f: _factor(f, f.torch_ms),
}
MODELS: Columns = {
    "layers": lambda f: f.layers,
    "as one": lambda f: str(f.fused),
    "format": lambda f: f.memory_format or "",
    **ROWS,
}
STREAMING: Columns = {
    "pellucid layer": lambda f: f"{f.ours_us:.1f}",
    "torch.nn layer": lambda f: f"{f.torch_nn_us:.1f}",
    "pellucid cell": lambda f: f"{f.our_cell_us:.1f}",
    "torch.nn cell": lambda f: f"{f.torch_nn_cell_us:.1f}",
}
FIRST_RESULT: Columns = {
    "cold cache": lambda f: _seconds(f, f.cold_s),
    "warm cache": lambda f: _seconds(f, f.warm_s),
    "floor": lambda f: f"{f.ceiling_s:g}",
    "import torch": lambda f: f"{f.import_torch_s:.2f}",
    "import pellucid": lambda f: f"{f.import_pellucid_s:.2f}",
}
MEMORY: Columns = {
    "pellucid": lambda f: f"{f.ours_mib:.0f} MiB",
    "torch.nn": lambda f: f"{f.torch_nn_mib:.0f} MiB",
    "pellucid's step": lambda f: f"{f.ours_s:.2g} s",
    "torch.nn's step": lambda f: f"{f.torch_nn_s:.2g} s",
}
RECIPE: Columns = {
    "pellucid": lambda f: f"{f.ours_ms:.1f}",
    "torch.nn": lambda f: f"{f.torch_nn_ms:.1f}",
    "× nn": lambda f: f"{f.factor:.2f}",
    "steps": lambda f: str(f.steps),
}
BESIDE: Columns = {
    "pellucid": lambda f: f"{f.ours_ms:.3f}",
    "triton": _beside(TRITON),
}
RECURRENCE: Columns = {
    **BESIDE,
    "torch.nn": _beside(NN),
    "× nn": _times(NN),
    "launched": _launched,
    "peers": _peers,
}
OWN_CELL: Columns = {
    **BESIDE,
    "loop": _beside(LOOP),
    "× loop": _times(LOOP),
    "torch.nn.LSTM": _beside(CUDNN_LSTM),
    "× LSTM": _times(CUDNN_LSTM),
}
BANDWIDTH: Columns = {
    "pellucid": lambda f: f"{f.ours_ms:.3f}",
    "of a copy": _share,
    "torch.nn": _beside(NN),
    "× nn": _times(NN),
    "torch.compile": _beside(COMPILED),
    "× compile": _times(COMPILED),
    "launched": _launched,
    "peers": _peers,
}
TABLES: Mapping[type, tuple[str, Columns]] = {
    Speed: ("forward + backward, float32, ms · share of the machine's limit", SPEED),
    RowSpeed: ("forward + backward, share of the machine's limit", ROWS),
    NetworkSpeed: ("a whole training step, float32, share of the machine's limit", ROWS),
    ModelSpeed: ("a whole training step, float32, share of the machine's limit", MODELS),
    StepSpeed: ("inference one step at a time, batch 1, float32, share of the machine's limit", ROWS),
    Streaming: ("inference one step at a time, batch 1, float32, µs a step", STREAMING),
    FirstResult: ("seconds from @pellucid.cell to the end of a training step", FIRST_RESULT),
    Memory: ("peak of a training step above what the process held", MEMORY),
    Recurrence: ("forward + backward, ms, beside cuDNN", RECURRENCE),
    OwnCell: ("forward + backward, ms, beside a Python loop and cuDNN's plain LSTM", OWN_CELL),
    Bandwidth: ("forward + backward, ms · share of the rate of a copy", BANDWIDTH),
    Recipe: ("a whole training step of `pellucid train sentiment`, float32, ms", RECIPE),
}
TEXTS = 2  # the first columns, which say what was measured


def tables(sections: Mapping[str, Sequence[Figure]]) -> Iterable[Table]:
    """Lay out every section that has figures; a row whose comparison fails shows its differences alone."""
    for title, names, rows in _laid_out(sections):
        table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1))
        for name in names[:TEXTS]:
            table.add_column(name)
        for name in names[TEXTS:]:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        yield table


def markdown(sections: Mapping[str, Sequence[Figure]]) -> str:
    """The same tables as Markdown."""
    written = []
    for title, names, rows in _laid_out(sections):
        ruled = ["---"] * TEXTS + ["---:"] * (len(names) - TEXTS)
        lines = [_line(cells) for cells in [names, ruled, *rows]]
        written.append("\n".join([f"### {title}", "", *lines, ""]))
    return "\n".join(written)


def _line(cells: Sequence[str | Text]) -> str:
    return f"| {' | '.join([', '.join(str(cell).splitlines()) for cell in cells])} |"


def _laid_out(
    sections: Mapping[str, Sequence[Figure]],
) -> Iterable[tuple[str, Sequence[str], Sequence[Sequence[str | Text]]]]:
    """The title, the names of the columns and the rows of every section."""
    for section, figures in sections.items():
        if figures:
            title, columns = TABLES[type(figures[0])]
            yield f"{section}: {title}", ["row", "backend", "Δ", *columns], [_row(columns, f) for f in figures]


def _row(columns: Columns, figure: Figure) -> list[str | Text]:
    if figure.agreement.passed:
        shown = [write(figure) for write in columns.values()]
    else:
        shown = [Text("differs", style="red"), *[""] * (len(columns) - 1)]
    return [figure.row, figure.backend, f"{figure.agreement.difference:.0e}", *shown]
