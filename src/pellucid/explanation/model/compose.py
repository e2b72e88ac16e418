"""Makes the tree of a model's explanation of what was recorded of its run, in one language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from pellucid.errors import below
from pellucid.explanation.model.axes import sizes
from pellucid.explanation.model.formulas import formula_of
from pellucid.explanation.model.run import Record, Recording, Seen
from pellucid.explanation.model.tree import LayerRow, ModelReport, TensorRow, Weight
from pellucid.explanation.report import Total
from pellucid.explanation.texts import Texts
from pellucid.explanation.typesetting import sizes_of
from pellucid.nn.component import Component
from pellucid.nn.recurrence.sequence import SequenceLayer
from pellucid.nn.swapped.exchange import has_twin

NAMED = 8  # layers or weights that a note names
ARGUMENTS = 200  # characters of a layer's arguments


def opens(layer: nn.Module) -> bool:
    """Whether pellucid has a formula for a layer, and so a full explanation."""
    return isinstance(layer, (SequenceLayer, Component)) or has_twin(layer)


class Composer:
    """Writes a recording in one language."""

    def __init__(self, recording: Recording, texts: Texts) -> None:
        self.recording, self.texts, self.model = recording, texts, recording.model
        self.first: dict[int, str] = {}  # of every parameter the path at which it stands first
        for path, parameter in self.model.named_parameters(remove_duplicate=False):
            self.first.setdefault(id(parameter), path)

    def report(self) -> ModelReport:
        """Put everything together."""
        texts, root = self.texts, self.row(self.model, "", "")
        count = len(self.recording.records) - 1
        return ModelReport(
            lang=texts.lang,
            title=texts("model.title", name=root.class_name, layers=count)
            if count
            else texts("model.single", name=root.class_name),
            subject=f"{root.class_name}({root.arguments})" if root.arguments or not count else root.class_name,
            root=root,
            totals=tuple(self.totals()),
            counted=tuple(self.counted()),
            notes=tuple(self.notes(root)),
            words=texts.group("punctuation") | texts.group("model_word"),
        )

    # -- layers -------------------------------------------------------------------------------------------------

    def row(self, layer: nn.Module, path: str, name: str) -> LayerRow:
        """Write a layer and those inside it."""
        record = self.recording.of(layer)
        about: dict[str, Any] = {
            "path": path,
            "name": name,
            "class_name": layer._get_name(),
            "arguments": _arguments(layer),
        }
        if path != record.paths[0]:
            note = self.texts("model.shared", path=record.paths[0])
            return LayerRow(**about, **_numbers([]), shared=record.paths[0], note=note)
        inside = [self.row(child, below(path, key), key) for key, child in layer._modules.items() if child is not None]
        weights = tuple(self.weights(layer, path))
        parameters = sum(w.count for w in weights if not w.shared) + sum(row.parameters for row in inside)
        if record.calls:
            passed = next(iter(record.passed.values()))
            tally = record.tally
            numbers: dict[str, Any] = {
                "calls": record.calls,
                "inputs": self.tensors(passed.read),
                "outputs": self.tensors(passed.given),
                "macs": tally.macs,
                "other_flops": tally.other,
                "bytes_least": record.least,
                "seconds": record.time,
                "uncounted": tally.uncounted,
            }
        else:
            numbers = _numbers(inside)
        numbers |= {"parameters": parameters, "weights": weights}
        return LayerRow(
            **about,
            **numbers,
            formula=formula_of(layer),
            note=self.note(record, inside),
            opens=bool(record.calls) and opens(layer),
            backend=record.backend,
            layers=tuple(inside),
        )

    def note(self, record: Record, inside: Sequence[LayerRow]) -> str:
        """Say what is special about the calls of a layer."""
        if len(record.passed) > 1:
            return self.texts("model.other_shapes", shapes=len(record.passed))
        if record.calls or any(row.calls for layer in inside for row in layer.walk()):
            return ""
        user = self.user(record)
        return self.texts("model.uncalled") if user is None else self.texts("model.used_by", path=user or self.name())

    def name(self) -> str:
        """The name of the model."""
        return self.model._get_name()

    def user(self, record: Record) -> str | None:
        """Return the innermost layer around one that was not called which used its weights, or holds it as a part."""
        path, own = record.paths[0], {id(p) for p in record.layer.parameters()}
        while path:
            path = path.rpartition(".")[0]
            around = self.recording.of(self.model.get_submodule(path))
            if around.calls and (own & around.reads.keys() or (not own and opens(around.layer))):
                return path
        return None

    def weights(self, layer: nn.Module, path: str) -> Iterator[Weight]:
        """The layer's own parameters."""
        for name, parameter in layer._parameters.items():
            if parameter is None:
                continue
            place = below(path, name)
            first = self.first[id(parameter)]
            shape = tuple(parameter.shape)
            about = (name, shape, sizes_of(shape), prod(shape), parameter.requires_grad, _type(parameter.dtype))
            yield Weight(*about, shared="" if first == place else first)

    def tensors(self, seen: Sequence[Seen]) -> tuple[TensorRow, ...]:
        """The tensors of a call."""
        return tuple(map(self.tensor, seen))

    def tensor(self, seen: Seen) -> TensorRow:
        """A tensor in words, its axes as they are known after the run."""
        texts = self.texts
        known = seen.axes if all(seen.axes) and seen.axes else self.recording.meanings.of_number(seen.number)
        named = [(texts.axis(name) if name else "", size) for name, size in sizes(seen.shape, known)]
        text = " × ".join(f"{name} {size}" if name else str(size) for name, size in named) or texts("model.scalar")
        if not (seen.dtype.is_floating_point or seen.dtype.is_complex):
            text += texts("model.type", type=_type(seen.dtype))
        if seen.sequences:
            text += texts("model.packed", sequences=seen.sequences)
        return TensorRow(seen.name, seen.shape, tuple(name for name, _ in named), _type(seen.dtype), text)

    # -- the whole ----------------------------------------------------------------------------------------------

    def totals(self) -> Iterator[Total]:
        """The parameters and what the model keeps beside them."""
        parameters = list(self.model.parameters())
        every = sum(p.numel() for p in parameters)
        yield Total(self.texts("model.parameters"), every)
        fixed = sum(p.numel() for p in parameters if not p.requires_grad)
        if fixed:
            yield Total(self.texts("model.fixed"), fixed)
        named = [p.numel() for _, p in self.model.named_parameters(remove_duplicate=False)]
        if sum(named) > every:
            yield Total(self.texts("model.counted_once"), sum(named) - every)
        kept = sum(b.numel() for b in self.model.buffers())
        if kept:
            yield Total(self.texts("model.buffers"), kept)

    def counted(self) -> Iterator[str]:
        """How everything was counted and measured."""
        texts, device = self.texts, next((p.device for p in self.model.parameters()), torch.device("cpu"))
        yield texts("model.convention")
        yield texts("model.bytes")
        if self.recording.runs:
            key = "model.time_once" if self.recording.runs == 1 else "model.time"
            yield texts(key, runs=self.recording.runs, device=str(device), threads=torch.get_num_threads())

    def notes(self, root: LayerRow) -> Iterator[str]:
        """What the reader should know of the run."""
        texts, rows = self.texts, [row for row in root.walk() if row.path]
        yield texts("model.train" if self.recording.training else "model.eval")
        uncalled = [r.path for r in rows if r.note == texts("model.uncalled")]
        if uncalled:
            yield texts("model.never", n=len(uncalled), names=self.few(uncalled))
        read = self.recording.of(self.model).reads
        unread = [path for key, path in self.first.items() if key not in read]
        if unread:
            yield texts("model.unread", n=len(unread), names=self.few(unread))
        tied = [f"{path} = {self.first[id(p)]}" for path, p in self.ties()]
        if tied:
            yield texts("model.tied", names=self.few(tied))
        if root.uncounted:
            yield texts("model.uncounted", names=self.few(root.uncounted))
        if any(isinstance(layer, nn.MultiheadAttention) for layer in self.model.modules()):
            yield texts("model.fast_path")
        if any(row.opens for row in root.walk()):
            yield texts("model.opens")

    def ties(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that stand in another layer as well."""
        for record in self.recording.records.values():
            for name, parameter in record.layer._parameters.items():
                place = below(record.paths[0], name)
                if parameter is not None and self.first[id(parameter)] != place:
                    yield place, parameter

    def few(self, names: Sequence[str]) -> str:
        """Name the first of many."""
        text = self.texts("punctuation.comma").join(names[:NAMED])
        return text + (self.texts("model.more", n=len(names) - NAMED) if len(names) > NAMED else "")


def _numbers(inside: Sequence[LayerRow]) -> dict[str, Any]:
    """The numbers of a layer that was not called: the sums over those inside it."""
    times = [row.seconds for row in inside if row.seconds is not None]
    return {
        "calls": 0,
        "inputs": (),
        "outputs": (),
        "weights": (),
        "parameters": 0,
        "macs": sum(row.macs for row in inside),
        "other_flops": sum(row.other_flops for row in inside),
        "bytes_least": sum(row.bytes_least for row in inside),
        "seconds": sum(times) if times else None,
    }


def _arguments(layer: nn.Module) -> str:
    """What a layer's own print shows of its arguments, on one line."""
    try:
        text = " ".join(str(layer.extra_repr()).split())
    except Exception:  # a foreign layer's print
        return ""
    return text if len(text) <= ARGUMENTS else text[: ARGUMENTS - 1] + "…"


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
