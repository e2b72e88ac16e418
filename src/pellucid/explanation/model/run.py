"""Runs a model and records, layer by layer, what was read, returned and computed."""

from __future__ import annotations

import contextlib
import inspect
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pellucid.errors import naming_layer
from pellucid.explanation.cost import NOTHING, Meter, Tally, bytes_of, entry_by_entry
from pellucid.explanation.model.axes import Axes, Meanings, keeps, meaning
from pellucid.explanation.model.counts import Counts
from pellucid.keeping import Inputs, RandomState, copied, layer_by_layer, left_alone, refuse_lazy

DEEPEST = 4  # structures inside structures whose tensors are listed


@dataclass(frozen=True)
class Seen:
    """A tensor that a layer read or returned: its name among them, shape, type, what is known of its axes.

    ``number`` is that of the tensor in `Meanings`; ``sequences`` is how many a packed one holds, 0 where it is none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    axes: Axes
    number: int
    sequences: int = 0


@dataclass(frozen=True)
class Caught:
    """What a call of a layer read, and the state of torch's generator before it."""

    args: tuple[Any, ...]
    options: dict[str, Any]
    draws: Tensor


@dataclass
class Passed:
    """Calls of a layer that read and returned the same shapes."""

    read: list[Seen]
    given: list[Seen]
    calls: int = 1


@dataclass(eq=False)
class Record:
    """What is known of a layer: the paths at which the model holds it, and the sum over its calls.

    ``reads`` are the weights that it or a layer inside it used, and how many bytes of each at least; ``seconds`` is
    the time of each timed run, over all its calls.
    """

    layer: torch.nn.Module
    paths: list[str]
    calls: int = 0
    passed: dict[Any, Passed] = field(default_factory=dict)
    tally: Tally = NOTHING
    least: int = 0
    reads: dict[int, int] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    backend: str = ""

    @property
    def time(self) -> float | None:
        """The median over the timed runs; None for a layer that was not called."""
        return statistics.median(self.seconds) if self.seconds else None


@dataclass(eq=False)
class _Frame:
    """A call that is going on."""

    record: Record
    known: Axes = ()
    tally: Tally = NOTHING
    reads: dict[int, int] = field(default_factory=dict)
    started: float = 0.0


class Recording:
    """A model, what it was given, and what its layers did with it.

    Args:
        model: any model; it is left as it was.
        inputs: the positional and the keyword arguments of its forward.
        grad: whether gradients can be taken in the run.
        runs: how often it is run again to take the time.
    """

    def __init__(self, model: torch.nn.Module, inputs: Inputs, *, grad: bool = False, runs: int = 1) -> None:
        self.model, self.inputs, self.grad, self.runs = model, inputs, grad, runs
        refuse_lazy(model, "explain")
        self.training = model.training
        self.records = _records(model)
        self.meanings = Meanings()
        self.draws = RandomState(model)
        self._run(_Observer(self))
        for _ in range(runs):
            self._run(_Clock(self))

    def of(self, layer: torch.nn.Module) -> Record:
        """Return what is known of a layer."""
        return self.records[id(layer)]

    def caught(self, wanted: Mapping[torch.nn.Module, int]) -> dict[torch.nn.Module, Caught]:
        """Run the model again, until the wanted call of every layer has begun."""
        found: dict[torch.nn.Module, Caught] = {}
        calls = dict.fromkeys(wanted, 0)

        class Enough(Exception):
            pass

        def keep(module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            calls[module] += 1
            if calls[module] == wanted[module]:
                read = copied((args, options))
                found[module] = Caught(read[0], read[1], torch.get_rng_state())
            if len(found) == len(wanted):
                raise Enough

        handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in wanted]
        try:
            with self._conditions(), contextlib.suppress(Enough):
                args, options = copied(self.inputs)
                self.model(*args, **options)
        finally:
            for handle in handles:
                handle.remove()
        missing = [type(layer).__name__ for layer in wanted if layer not in found]
        if missing:
            raise RuntimeError(
                f"explain: run again, the model did not call {', '.join(missing)} as often as before, so it depends on "
                f"more than its input and torch's, NumPy's and Python's random numbers"
            )
        return found

    @contextlib.contextmanager
    def _conditions(self) -> Iterator[None]:
        """Those under which every run takes place: with the same draws, each layer by its own forward, eagerly."""
        with left_alone(self.model, self.draws), torch.set_grad_enabled(self.grad), layer_by_layer():
            yield

    def _run(self, watcher: _Watcher) -> None:
        handles = []
        try:
            with self._conditions():
                args, options = copied(self.inputs)
                for record in self.records.values():
                    layer = record.layer
                    handles.append(layer.register_forward_pre_hook(watcher.enter, with_kwargs=True))
                    handles.append(layer.register_forward_hook(watcher.leave, with_kwargs=True))
                with watcher.around(), naming_layer(self.model, "explain"):
                    self.model(*args, **options)
        except Exception as error:
            if any(isinstance(value, str) for value in pytree.tree_leaves(self.inputs)):
                error.add_note(
                    "pellucid.explain: the model was given the text itself. Of a recurrent layer or a 1-D convolution "
                    "characters become vectors; a model is given what it reads, explain(model, x)."
                )
            raise
        finally:
            for handle in handles:
                handle.remove()


class _Watcher:
    """What is done before and after the call of a layer."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.stack: list[_Frame] = []

    def around(self) -> contextlib.AbstractContextManager[Any]:
        """What surrounds the run."""
        return contextlib.nullcontext()

    def enter(self, layer: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A layer is called."""
        self.stack.append(_Frame(self.recording.of(layer)))

    def leave(self, layer: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        """A layer has returned."""
        raise NotImplementedError

    def left(self, layer: torch.nn.Module) -> _Frame:
        """Take the frame of a call off the stack, with those above it that an exception has left there."""
        while self.stack[-1].record.layer is not layer:
            self.stack.pop()
        return self.stack.pop()


class _Clock(_Watcher):
    """Takes the time of each call; the layers inside are part of it."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(recording)
        self.waits = any(p.device.type != "cpu" for p in recording.model.parameters())
        self.spent: dict[int, float] = {}

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Add a run to the records when it is over."""
        yield
        for key, seconds in self.spent.items():
            self.recording.records[key].seconds.append(seconds)

    def enter(self, layer: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Start the clock."""
        super().enter(layer, args, options)
        self.stack[-1].started = self.now()

    def leave(self, layer: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        """Stop it."""
        now = self.now()
        spent = now - self.left(layer).started
        self.spent[id(layer)] = self.spent.get(id(layer), 0.0) + spent

    def now(self) -> float:
        """Return the time, once the device is done with what it was given."""
        if self.waits and torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return time.perf_counter()


class _Observer(_Watcher, TorchDispatchMode):
    """Sees shapes and operations: every operation belongs to the innermost layer that is being called."""

    def __init__(self, recording: Recording) -> None:
        TorchDispatchMode.__init__(self)
        _Watcher.__init__(self, recording)
        self.meter, self.counts, self.meanings = Meter(), Counts(), recording.meanings
        model = recording.model
        held = [*model.parameters(), *model.buffers()]
        self.watched = {id(t): bytes_of(t) for t in held}
        self.places = {t.data_ptr(): id(t) for t in held if t.device.type != "meta" and t.numel()}

    def around(self) -> contextlib.AbstractContextManager[Any]:
        """Its own dispatch."""
        return self

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if self.stack:
            frame = self.stack[-1]
            name = function._overloadpacket.__name__
            for value in pytree.tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and (key := self.held(value)) is not None:
                    _add_read(frame.reads, key, _read(name, args, value, self.watched[key]))
            frame.tally = frame.tally + self.meter(function, args, kwargs, result)
            self.meanings.follow(name, args, result, entry_by_entry(function))
        return result

    def held(self, value: Tensor) -> int | None:
        """Return which weight or buffer of the model an operation reads, itself or through another name."""
        if id(value) in self.watched:
            return id(value)
        try:
            return self.places.get(value.data_ptr())
        except RuntimeError:  # a tensor without memory of its own
            return None

    def enter(self, layer: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Learn the axes of what is read, as far as the kind of the layer tells."""
        super().enter(layer, args, options)
        first = next((t for _, t in tensors_in((args, options)) if isinstance(t, Tensor)), None)
        self.stack[-1].known = () if first is None else self.meanings.of(first)

    def leave(self, layer: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        """Add the call to the record of its layer, and to the call around it."""
        with _disable_current_modes():
            self.add(layer, args, options, result)

    def add(self, layer: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        """Add a call."""
        frame = self.left(layer)
        record = frame.record
        own = self.counts.of(layer, args, options)
        if own is not None:  # a kernel of one piece, which has used all its weights
            frame.tally = own
            frame.reads |= {id(t): self.watched[id(t)] for t in layer.parameters() if id(t) in self.watched}
        read, given = list(tensors_in(named(layer, args, options))), list(tensors_in(result))
        self.learn(layer, args, [t for _, t in read], [t for _, t in given], frame.known)
        passed = Passed([self.seen(n, t) for n, t in read], [self.seen(n, t) for n, t in given])
        key = tuple((s.name, s.shape, s.dtype, s.sequences) for s in (*passed.read, *passed.given))
        if key in record.passed:
            record.passed[key].calls += 1
        else:
            record.passed[key] = passed
        record.calls += 1
        record.tally = record.tally + frame.tally
        record.least += bytes_of([_data(t) for _, t in (*read, *given)]) + sum(frame.reads.values())
        record.backend = getattr(layer, "backend", "") if own is not None else ""
        for reads in (record.reads, *([self.stack[-1].reads] if self.stack else ())):
            for weight, size in frame.reads.items():
                _add_read(reads, weight, size)
        if self.stack:
            self.stack[-1].tally = self.stack[-1].tally + frame.tally

    def learn(self, layer: torch.nn.Module, args: tuple[Any, ...], read: Any, given: Any, known: Axes) -> None:
        """Learn what the kind of a layer says of the axes of its tensors."""
        plain, results = [_data(t) for t in read], [_data(t) for t in given]
        if any(isinstance(t, PackedSequence) for t in read[:1]):
            axes: Any = ([("steps", "features")], [("steps", "features")])
        else:
            axes = meaning(layer, args, plain, results, known)
        if keeps(layer, plain, results):
            self.meanings.alike(plain[0], results[0])
        for tensors, names in zip((plain, results), axes, strict=True):
            for tensor, meant in zip(tensors, names, strict=False):
                self.meanings.learn(tensor, meant)

    def seen(self, name: str, value: Tensor | PackedSequence) -> Seen:
        """Note a tensor."""
        tensor = _data(value)
        sequences = int(value.batch_sizes[0]) if isinstance(value, PackedSequence) and tensor.shape[0] else 0
        axes = self.meanings.of(tensor)
        return Seen(name, tuple(tensor.shape), tensor.dtype, axes, self.meanings.number(tensor), sequences)


def _records(model: torch.nn.Module) -> dict[int, Record]:
    found: dict[int, Record] = {}
    for path, layer in model.named_modules(remove_duplicate=False):
        found.setdefault(id(layer), Record(layer, [])).paths.append(path)
    return found


def _add_read(reads: dict[int, int], key: int, size: int) -> None:
    reads[key] = max(size, reads.get(key, 0))


def _read(name: str, args: Any, weight: Tensor, whole: int) -> int:
    """Return how many bytes of a weight an operation reads at least: of a table those rows that are looked up."""
    if name in ("embedding", "_embedding_bag", "_embedding_bag_forward_only") and weight is args[0]:
        return int(args[1].unique().numel()) * bytes_of(weight[:1])
    return whole


def _data(value: Tensor | PackedSequence) -> Tensor:
    return value.data if isinstance(value, PackedSequence) else value


def named(layer: torch.nn.Module, args: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """Name what a layer is called with as its forward does."""
    try:
        bound = inspect.signature(layer.forward).bind(*args, **options).arguments
    except (TypeError, ValueError):  # a forward without a signature, or a wrapper's
        return {**{str(index): value for index, value in enumerate(args)}, **options}
    return dict(bound)


def tensors_in(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor | PackedSequence]]:
    """Return the tensors of a structure, named by their places in it; a packed sequence is one."""
    if isinstance(value, (Tensor, PackedSequence)):
        yield name, value
    elif depth < DEEPEST:
        for key, inner in _inside(value):
            place = f"{name}{key}" if key.startswith("[") else f"{name}.{key}" if name else key
            yield from tensors_in(inner, place, depth + 1)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), inner) for key, inner in value.items())
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((f.name, getattr(value, f.name, None)) for f in fields(value))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, (tuple, list)):
        yield from ((f"[{index}]", inner) for index, inner in enumerate(value))
