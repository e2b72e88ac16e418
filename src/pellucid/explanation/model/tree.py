"""The tree of a model's explanation: strings in one language and numbers; renderers know nothing else of the model."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pellucid.explanation.presented import Presented
from pellucid.explanation.report import Report, Total

if TYPE_CHECKING:
    from pellucid.explanation.model.origin import ModelOrigin

LINES = 60  # of layers that a text shows where it is not told how deep to go


@dataclass(frozen=True)
class TensorRow:
    """A tensor that a layer reads or returns: its name among them, shape, the meaning of its axes ("" if unknown).

    ``text`` is all of it in words: "batch 8 × channels 64 × height 56 × width 56".
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: str
    text: str


@dataclass(frozen=True)
class Weight:
    """A parameter: its name in the layer, shape, number of entries, whether an optimiser may change it.

    ``shared`` is the path at which the same parameter stands first and is counted; "" where that is here.
    """

    name: str
    shape: tuple[int, ...]
    shape_text: str
    count: int
    trainable: bool
    dtype: str
    shared: str = ""


@dataclass(frozen=True)
class LayerRow:
    """A layer of the model and those inside it, which all its numbers include.

    ``weights`` are the layer's own parameters; ``parameters`` is the number of entries of these and of those inside,
    each counted once. ``macs``, ``other_flops``, ``bytes_least`` and ``seconds`` are of all calls together. ``shared``
    is the path at which the same layer stands first, with its numbers; ``opens`` says that `ModelReport.layer` has a
    full explanation of it, ``note`` what is special about it.
    """

    path: str
    name: str
    class_name: str
    arguments: str
    calls: int
    inputs: tuple[TensorRow, ...]
    outputs: tuple[TensorRow, ...]
    weights: tuple[Weight, ...]
    parameters: int
    macs: int
    other_flops: int
    bytes_least: int
    seconds: float | None
    formula: str = ""
    note: str = ""
    shared: str = ""
    opens: bool = False
    backend: str = ""
    uncounted: tuple[str, ...] = ()
    layers: tuple[LayerRow, ...] = ()

    @property
    def flops(self) -> int:
        """All floating-point operations."""
        return 2 * self.macs + self.other_flops

    def walk(self, depth: int | None = None) -> Iterator[LayerRow]:
        """Return this layer and those inside it down to a depth, from top to bottom."""
        yield self
        if depth is None or depth > 0:
            for layer in self.layers:
                yield from layer.walk(None if depth is None else depth - 1)


@dataclass(frozen=True, repr=False)
class ModelReport(Presented):
    """An explanation of a whole model in one language: the tree of its layers with their shapes, weights and counts.

    ``root`` is the model itself; ``totals`` count its parameters; ``counted`` says how the numbers are counted.
    """

    lang: str
    title: str
    subject: str
    root: LayerRow
    totals: tuple[Total, ...]
    counted: tuple[str, ...]
    notes: tuple[str, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict, repr=False)
    origin: ModelOrigin | None = field(default=None, repr=False, compare=False)

    def translations(self) -> tuple[ModelReport, ...]:
        """Return the report in every language, this one first; a report without its origin has one language.

        Raises:
            RuntimeError: the model or its input has changed since.
        """
        return (self,) if self.origin is None else (self, *self.origin.others(self))

    def rows(self, depth: int | None = None) -> tuple[LayerRow, ...]:
        """Return the layers down to a depth, from top to bottom, the model itself first."""
        return tuple(self.root.walk(depth))

    def row(self, path: str) -> LayerRow:
        """Return the row of a layer, ``row("encoder.rnn")``; "" is the model itself.

        Raises:
            KeyError: there is no layer of this path.
        """
        for row in self.root.walk():
            if row.path == path:
                return row
        raise _unknown_layer(path, [row.path for row in self.root.walk()])

    def layer(self, path: str, call: int = 1) -> Report | ModelReport:
        """Explain one layer with the tensors that really reached it, ``layer("encoder.rnn")``.

        The model is run again, up to this layer, with the same random draws. A recurrent layer, a convolution, a norm,
        a pooling, a dropout and whatever else pellucid has a formula for gives its full `Report`; any other layer its
        part of this tree.

        Args:
            path: where the layer stands in the model.
            call: of a layer that is called several times, which call.

        Raises:
            KeyError: there is no layer of this path. ValueError: the layer was not called as often as that.
            RuntimeError: the model or its input has changed since.
        """
        row = self.row(path)
        if not row.opens:
            return replace(
                self, title=f"{row.path}: {row.class_name}", subject=f"{row.class_name}({row.arguments})", root=row
            )
        if self.origin is None:
            raise RuntimeError(
                "explain: this report was read from a file, and the model is not in it. Explain the model again."
            )
        return self.origin.layer(row, call, self.lang)

    def text(self, width: int = 100, depth: int | None = None) -> str:
        """Return the tree as plain text of at most ``width`` columns.

        Args:
            width: the columns.
            depth: how many levels below the model are shown; by default as many as fit into 60 lines of layers.
        """
        from pellucid.explanation.model.terminal import text

        return text(self, width, depth)


def _unknown_layer(path: str, known: Sequence[str]) -> KeyError:
    """Say that a model has no layer of this path, and which are near."""
    near = difflib.get_close_matches(path, known, 3, 0.4) or [p for p in known if p.endswith(f".{path}")][:3]
    hint = (
        f" Did you mean {' or '.join(map(repr, near))}?" if near else f" It has {', '.join(filter(None, known[:6]))}."
    )
    return KeyError(f"explain: the model has no layer {path!r}.{hint}")
