"""Forward + backward on a GPU: recurrence beside cuDNN, and what moves memory beside a copy and torch.compile."""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

import pellucid
from pellucid import nn
from pellucid.benchmark.comparison import (
    EXACT,
    ROUNDING,
    Agreement,
    Failed,
    Figure,
    Row,
    Run,
    Skipped,
    agree,
    reason,
    times,
)
from pellucid.benchmark.convolution import WindowedRow
from pellucid.benchmark.limit import Rates
from pellucid.benchmark.peers import PEERS, installed
from pellucid.benchmark.rows import ADD_NORM, DROPOUT, LayerRow, PostNorm
from pellucid.benchmark.speed import layernorm_lstm
from pellucid.benchmark.twins import SEED, TwinRow, makers, ran, step

NN, COMPILED, LOOP, CUDNN_LSTM, TRITON = "torch.nn", "torch.compile", "the Python loop", "torch.nn.LSTM", "triton"
CUDNN = "cuDNN"
LEAST_SHARE = 0.75  # of the rate of a copy
TF32_UNIT = 2.0**-10  # of TF32, whose fractions have ten bits

F = TypeVar("F", bound=Figure)


@dataclass(frozen=True)
class Close(Agreement):
    """In the measured type, at most twice as far from float64 as the opponent, and a unit of that type."""

    unit: float

    @property
    def passed(self) -> bool:
        """Whether both sides compute the same; a row where they do not has no figure."""
        return self.difference <= EXACT and self.rounding <= max(ROUNDING, 2 * self.opponent_rounding + self.unit)


@dataclass(frozen=True)
class Beside(Figure):
    """Median milliseconds beside those of opponents; ``floors`` are the factors that are promised, by opponent.

    ``missing`` says why an opponent has no figure. ``forced`` is the comparison of the layer under the backend
    "triton", None where nothing had to be forced. ``limit_ms`` is the time of a copy of as many bytes. Where the
    figures are of recorded steps, ``launched_ms`` are those of steps that Python launches one by one.
    """

    ours_ms: float
    others_ms: Mapping[str, float]
    floors: Mapping[str, float]
    missing: Mapping[str, str]
    forced: Agreement | None = None
    limit_ms: float | None = None
    least_share: float | None = None
    launched_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def agreements(self) -> Sequence[Agreement]:
        """What `auto` ran, and what was forced."""
        return (self.agreement,) if self.forced is None else (self.agreement, self.forced)

    def factor(self, opponent: str) -> float:
        """How many times as fast as an opponent."""
        return self.others_ms[opponent] / self.ours_ms

    def short_of(self, opponent: str) -> bool:
        """Whether the floor about an opponent is missed."""
        return opponent in self.others_ms and self.factor(opponent) < self.floors.get(opponent, 0.0)

    def share(self, milliseconds: float) -> float:
        """The time of a copy over this time."""
        return (self.limit_ms or 0.0) / milliseconds

    def short_of_share(self) -> bool:
        """Whether the share of the rate of a copy is less than promised."""
        return self.least_share is not None and self.share(self.ours_ms) < self.least_share

    def shortfall(self) -> str | None:
        """Say what is missing to the floors."""
        found = [
            f"{self.factor(name):.2f}× as fast as {name}, the floor is {floor:g}×"
            for name, floor in self.floors.items()
            if self.short_of(name)
        ]
        if self.short_of_share():
            share = f"{self.share(self.ours_ms):.0%} of the rate of a copy"
            found.append(f"{share}, the floor is {self.least_share:.0%}")
        return "; ".join(found) or None


class Recurrence(Beside):
    """A recurrent layer beside cuDNN's."""


class OwnCell(Beside):
    """A cell that cuDNN has not, beside the loop that a user would write, and beside cuDNN's plain LSTM."""


class Bandwidth(Beside):
    """A layer that moves more than it computes, beside a copy of as many bytes."""


def _kept_going(measure: Callable[[Any, Run], F]) -> Callable[[Any, Run], F]:
    """Let whatever breaks be a failure of the row, its traceback on stderr: the others are measured all the same."""

    @functools.wraps(measure)
    def guarded(row: Any, run: Run) -> F:
        try:
            if run.device == "cuda":
                torch.cuda.empty_cache()
            return measure(row, run)
        except (Skipped, Failed):
            raise
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            raise Failed(reason(error)) from error

    return guarded


def _same(agreement: Close) -> Close:
    """Time on a GPU is scarce: what differs is not measured.

    Raises:
        Failed: values or gradients differ.
    """
    if not agreement.passed:
        raise Failed(agreement.differing())
    return agreement


# -- recurrence -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Precision:
    """The type of input, parameters and output, and whether products of float32 may be rounded to TF32."""

    name: str
    dtype: torch.dtype
    unit: float
    tf32: bool = False

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Let cuDNN and all other products do the same: by default cuDNN alone takes TF32."""
        places: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
        before = [place.allow_tf32 for place in places]
        try:
            for place in places:
                place.allow_tf32 = self.tf32
            yield
        finally:
            for place, allowed in zip(places, before, strict=True):
                place.allow_tf32 = allowed


BFLOAT16 = Precision("bfloat16", torch.bfloat16, torch.finfo(torch.bfloat16).eps)
FLOAT32 = Precision("float32", torch.float32, torch.finfo(torch.float32).eps)
TF32 = Precision("TF32", torch.float32, TF32_UNIT, tf32=True)


class Forced(torch.nn.Module):
    """A layer under the backend "triton"."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Any:
        """Call the layer."""
        with pellucid.backend("triton"):
            return self.layer(*inputs)


@dataclass(frozen=True)
class RecurrentRow:
    """A recurrent layer of torch.nn's and ours of the same name and weights."""

    kind: str
    batch: int
    steps: int
    sizes: tuple[int, int]
    precision: Precision
    floor: float | None = None
    section: str = "recurrence"

    @property
    def name(self) -> str:
        """How the line is called."""
        size, hidden = self.sizes
        return f"{self.kind} {self.batch}, {self.steps}, {size}→{hidden}, {self.precision.name}"

    @_kept_going
    def measure(self, run: Run) -> Beside:
        """Compare values and gradients, then time forward + backward, all taking turns."""
        with self.precision.asked():
            torch.manual_seed(SEED)
            made = {"device": run.device, "dtype": self.precision.dtype}
            layer, theirs = (getattr(space, self.kind)(*self.sizes, **made) for space in (nn, torch.nn))
            theirs.load_state_dict(layer.state_dict())
            given = self._given(run.device)
            compared = functools.partial(_close, self.precision, theirs, given)
            found = self._beside(run, layer, given, compared, {NN: (theirs, "auto")}, {NN: self.floor})
            return _without_cudnn(Recurrence(*found), theirs, given[0])

    def _given(self, device: str) -> list[Tensor]:
        """The input, and the gradient of the output."""
        made: dict[str, Any] = {"device": device, "dtype": self.precision.dtype}
        return [torch.randn((self.steps, self.batch, size), **made) for size in self.sizes]

    def _beside(
        self,
        run: Run,
        layer: Any,
        given: Sequence[Tensor],
        compared: Callable[[torch.nn.Module], Close],
        opponents: Mapping[str, tuple[torch.nn.Module, str]],
        floors: Mapping[str, float | None],
    ) -> tuple[Any, ...]:
        """The fields of the figure; opponents are layers with their backends."""
        agreement = _same(compared(layer))
        backend, forced = ran(layer), None
        sides = {"ours": (layer, "auto"), **opponents}
        theirs, _ = opponents.get(NN, (layer, ""))
        peers, missing = installed(PEERS.get(self.kind, ()), theirs, given, agreement, self.precision.unit)
        sides |= {name: (peer, "auto") for name, peer in peers.items()}
        if backend != TRITON:
            other = Forced(layer)
            try:
                forced = _forced(other, compared)
                sides[TRITON] = (other, "auto")
            except Skipped as skipped:
                missing[TRITON] = str(skipped)
        if forced is not None and not forced.passed:
            missing[TRITON] = forced.differing()
            del sides[TRITON]
        calls = {name: functools.partial(step, side, *given, by=by) for name, (side, by) in sides.items()}
        launched, found = self._times(calls, run, missing)
        ours = found.pop("ours")
        rest = (None, None, launched)
        return self.name, backend, agreement, ours, found, _given_floors(floors), missing, forced, *rest

    def _times(
        self, calls: Mapping[str, Callable[[], Any]], run: Run, missing: dict[str, str]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Milliseconds of steps that Python launches, where they are not the figures, and the figures."""
        return _launched_and_recorded(calls, run, missing)


def _without_cudnn(figure: Beside, theirs: torch.nn.Module, x: Tensor) -> Beside:
    """Say so where torch.nn's layer does not run cuDNN."""
    if by_cudnn(theirs(x)[0]):
        return figure
    return replace(figure, missing={**figure.missing, CUDNN: f"torch.nn.{type(theirs).__name__} does not run it here"})


def by_cudnn(output: Tensor) -> bool:
    """Whether the graph of an output has cuDNN's recurrence; not every torch takes it for bfloat16."""
    seen: set[Any] = set()
    nodes: list[Any] = [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name().startswith("CudnnRnn"):
            return True
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
    return False


def _given_floors(floors: Mapping[str, float | None]) -> dict[str, float]:
    return {name: floor for name, floor in floors.items() if floor is not None}


def _close(
    precision: Precision, theirs: torch.nn.Module, given: Sequence[Tensor], layer: torch.nn.Module, by: str = "auto"
) -> Close:
    """Compare with torch.nn's layer, or with the Python loop of the same."""
    return Close(**asdict(agree(step, layer, theirs, *given, by=by)), unit=precision.unit)


def _forced(layer: Forced, compared: Callable[[torch.nn.Module], Close]) -> Close:
    """Compare what the backend "triton" computes.

    Raises:
        Skipped: it does not run there.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = compared(layer)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            raise Skipped(reason(error)) from error
    if ran(layer.layer) != TRITON:
        reasons = [str(w.message) for w in told if issubclass(w.category, pellucid.PellucidWarning)]
        raise Skipped(next(iter(reasons), f"runs as {ran(layer.layer)} there too"))
    return found


@dataclass(frozen=True)
class OwnCellRow(RecurrentRow):
    """A layer-normalised LSTM, as a user may write it; ``floor`` is about the same cell in a Python loop."""

    kind: str = "layernorm_lstm"
    batch: int = 32
    steps: int = 512
    sizes: tuple[int, int] = (256, 128)
    precision: Precision = BFLOAT16
    floor: float | None = 20.0
    section: str = "own cell"
    plain_floor: float | None = 0.5

    @_kept_going
    def measure(self, run: Run) -> Beside:
        """Compare with the loop, then time both and cuDNN's plain LSTM, which computes something else."""
        with self.precision.asked():
            torch.manual_seed(SEED)
            made: dict[str, Any] = {"device": run.device, "dtype": self.precision.dtype}
            layer = layernorm_lstm(*self.sizes).to(**made)
            loop, given = copy.deepcopy(layer), self._given(run.device)
            compared = functools.partial(_close, self.precision, loop, given, by="naive")
            plain = torch.nn.LSTM(*self.sizes, **made)
            opponents: Any = {LOOP: (loop, "naive"), CUDNN_LSTM: (plain, "auto")}
            floors = {LOOP: self.floor, CUDNN_LSTM: self.plain_floor}
            return _without_cudnn(
                OwnCell(*self._beside(run, layer, given, compared, opponents, floors)), plain, given[0]
            )

    def _times(
        self, calls: Mapping[str, Callable[[], Any]], run: Run, missing: dict[str, str]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """As Python launches them: a loop over the steps is written for nothing else."""
        return {}, _milliseconds(calls, run)


# -- what moves memory ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BandwidthRow:
    """A row of another suite, with torch.compile of torch's layer for a further opponent.

    ``floors`` are about torch's layer and torch.compile, ``least_share`` is about the rate of a copy.
    """

    twin: TwinRow
    section: str = "bandwidth"
    least_share: float | None = LEAST_SHARE
    compile_floor: float | None = 1.0

    @property
    def name(self) -> str:
        """How the line is called."""
        return f"{self.twin.name}, {str(self.twin.dtype).removeprefix('torch.')}"

    @_kept_going
    def measure(self, run: Run) -> Bandwidth:
        """Compare, then time forward + backward, all taking turns."""
        layer, theirs, given = self.twin.prepare(run.device)
        unit = torch.finfo(self.twin.dtype).eps
        agreement = _same(Close(**asdict(self.twin.agree(layer, theirs, *given)), unit=unit))
        peers, missing = installed(PEERS.get(self.twin.kind, ()), theirs, given, agreement, unit)
        sides = {"ours": layer, NN: theirs, **peers}
        try:
            sides[COMPILED] = compiled(theirs, given)
        except Exception as error:
            missing[COMPILED] = reason(error)
        calls = {name: functools.partial(step, side, *given) for name, side in sides.items()}
        launched, found = _launched_and_recorded(calls, run, missing)
        ours, floors = found.pop("ours"), _given_floors({COMPILED: self.compile_floor})
        limit = 1e3 * self.twin.work(theirs, *given).bytes / run.rates.bytes
        beside = (agreement, ours, found, floors, missing, None, limit, self.least_share, launched)
        return Bandwidth(self.name, ran(layer), *beside)


def _milliseconds(calls: Mapping[str, Callable[[], Any]], run: Run) -> dict[str, float]:
    return {name: 1e3 * seconds for name, seconds in times(calls, run.rounds, run.device).items()}


def _launched_and_recorded(
    calls: Mapping[str, Callable[[], Any]], run: Run, missing: dict[str, str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds of steps that Python launches one by one, and of the same, recorded; what cannot be is missing."""
    launched, replays = _milliseconds(calls, run), {}
    for name, call in calls.items():
        try:
            replays[name] = recorded(call, run.device)
        except Exception as error:
            if name == "ours":
                raise
            missing[name] = f"cannot be recorded: {reason(error)}"
    return launched, _milliseconds(replays, run)


def recorded(call: Callable[[], Any], device: str) -> Callable[[], Any]:
    """A call as a CUDA graph that runs again: what the GPU does, without what Python takes to launch it."""
    if torch.device(device).type != "cuda":
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is done the first time only is not for a graph
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def compiled(layer: torch.nn.Module, given: Sequence[Tensor]) -> torch.nn.Module:
    """torch.compile of a copy, forward and backward compiled for what is given."""
    torch.compiler.reset()
    other: Any = torch.compile(copy.deepcopy(layer))
    step(other, *given)
    return other


class CausalConv1d(torch.nn.Module):
    """torch.nn's convolution as one makes it causal: padded at both ends, and cut."""

    def __init__(self, channels: int, kernel_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        options: dict[str, Any] = {"padding": kernel_size - 1, "groups": channels, "dtype": dtype}
        self.layer = torch.nn.Conv1d(channels, channels, kernel_size, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; no output reads what follows it."""
        return self.layer(x)[..., : x.shape[-1]]


# -- the rows: 2**26 entries where memory is what counts --------------------------------------------------------------

MATRIX, PICTURE, SERIES = (16384, 4096), (32, 128, 128, 128), (8, 2048, 4096)
KERNEL = 4
HALF: dict[str, Any] = {"dtype": torch.bfloat16}
LAST: dict[str, Any] = {"layout": torch.channels_last}


def _norm(kind: str, shape: tuple[int, ...], *arguments: Any, note: str = "", **fields: Any) -> BandwidthRow:
    """A norm of torch.nn's and ours of the same name, parameters in bfloat16 too."""
    ours, theirs = makers(kind, *arguments, **HALF)
    return BandwidthRow(LayerRow(kind, shape, ours, theirs, note, **HALF, **fields))


def _add_norm() -> BandwidthRow:
    features, p = MATRIX[-1], 0.1
    both = (lambda: nn.AddNorm(features, p=p, **HALF), lambda: PostNorm(features, p).to(**HALF))
    row = LayerRow("AddNorm", MATRIX, *both, inputs=2, passes=ADD_NORM, p=p, **HALF)
    return BandwidthRow(row, compile_floor=None)


def _causal() -> BandwidthRow:
    channels = SERIES[1]
    ours: dict[str, Any] = {"padding": "causal", "groups": channels, **HALF}
    both = (
        lambda: nn.Conv1d(channels, channels, KERNEL, **ours),
        lambda: CausalConv1d(channels, KERNEL, torch.bfloat16),
    )
    row = WindowedRow("Conv1d", SERIES, *both, note=f", causal, depthwise, kernel {KERNEL}", **HALF)
    return BandwidthRow(row, "convolution", least_share=None, compile_floor=None)


def _recurrent(batch: int, sizes: tuple[int, int], floor: float, *precisions: Precision) -> list[RecurrentRow]:
    return [RecurrentRow(kind, batch, 512, sizes, p, floor) for p in precisions for kind in ("RNN", "GRU", "LSTM")]


BANDWIDTH = [
    _norm("LayerNorm", MATRIX, MATRIX[-1]),
    _norm("RMSNorm", MATRIX, MATRIX[-1]),
    _norm("GroupNorm", PICTURE, 32, PICTURE[1], note=", 32 groups"),
    _norm("GroupNorm", PICTURE, 32, PICTURE[1], note=", 32 groups, channels_last", **LAST),
    _norm("BatchNorm2d", PICTURE, PICTURE[1]),
    _norm("BatchNorm2d", PICTURE, PICTURE[1], note=", channels_last", **LAST),
    BandwidthRow(LayerRow("Dropout", MATRIX, *makers("Dropout", 0.5), passes=DROPOUT, p=0.5, **HALF)),
    _add_norm(),
]
GPU: list[Row] = [  # what is promised first, for time may be short
    *_recurrent(32, (256, 128), 1.5, BFLOAT16, FLOAT32),
    OwnCellRow(),
    OwnCellRow(precision=FLOAT32),
    *BANDWIDTH,
    _causal(),
    *_recurrent(64, (512, 512), 1.0, BFLOAT16, FLOAT32),
    *_recurrent(32, (256, 128), 1.5, TF32),
    *_recurrent(64, (512, 512), 1.0, TF32),
]


def compile_rows(part: int, parts: int) -> None:
    """Measure one of so many parts of the rows, for their kernels to be kept; what breaks is told later."""
    for row in GPU[part::parts]:
        with contextlib.suppress(Exception):
            row.measure(Run(1, 1, "cuda", Rates(1.0, 1.0)))
