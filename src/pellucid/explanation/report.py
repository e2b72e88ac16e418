"""The tree of an explanation: strings in one language and numbers; renderers know nothing else of the layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.explanation.presented import Presented
from pellucid.explanation.texts import languages

if TYPE_CHECKING:
    from pellucid.explanation.origin import Origin

KEPT = 4096  # a larger value is kept as its first KEPT_AXIS entries along every axis
KEPT_AXIS = 16


@dataclass(frozen=True)
class SymbolRow:
    """One symbol of the formula: its name, shape, the meaning of its axes, how many entries, and why that shape."""

    name: str
    shape: tuple[int, ...]
    shape_text: str
    axes: tuple[str, ...]
    count: int
    role: str
    trainable: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Total:
    """A number of trainable weights and what it counts."""

    label: str
    count: int


@dataclass(frozen=True)
class Cost:
    """What one pass of the formula over the input costs.

    ``macs`` multiply-accumulates stand in the matrix products, two FLOPs each; ``other_flops`` are the entry-by-entry
    operations and the sums. ``bytes_least`` counts every input, weight and output once; ``bytes_moved`` lets every
    operation read its operands and write its result. ``uncounted`` names operations without a rule.
    """

    scope: str
    parameters: int
    macs: int
    other_flops: int
    bytes_least: int
    bytes_moved: int
    convention: str
    uncounted: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """All floating-point operations."""
        return 2 * self.macs + self.other_flops


@dataclass(frozen=True, eq=False)
class Values:
    """A named value: its numbers (all of them, or of a large one the first along every axis) and its full shape.

    ``mathml`` is the name as MathML; empty where the name is a sentence.
    """

    name: str
    numbers: np.ndarray
    shape: tuple[int, ...]
    note: str = ""
    mathml: str = ""


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawing on a grid: blocks of rows of cells. A cell is a key of ``legend``, which says what it means.

    ``across`` and ``down`` name the axes; ``columns`` are the heads of the columns, if they have any. ``numbers`` are
    the numbers that stand in the cells, one array a block, NaN where none is known; ``beside`` are values that belong
    to the picture, such as the kernel that lies over the window and the output that it gives.
    """

    title: str
    blocks: tuple[tuple[tuple[str, ...], ...], ...]
    block_titles: tuple[str, ...]
    across: str
    down: str
    legend: Mapping[str, str]
    columns: tuple[str, ...] = ()
    numbers: tuple[np.ndarray, ...] = ()
    beside: tuple[Values, ...] = ()
    note: str = ""

    @property
    def axes(self) -> list[str]:
        """The axes that have a name, each behind its arrow."""
        return [f"{arrow} {name}" for arrow, name in (("→", self.across), ("↓", self.down)) if name]

    @property
    def meanings(self) -> dict[str, str]:
        """What the cells mean that are drawn."""
        used = {cell for block in self.blocks for row in block for cell in row}
        return {cell: meaning for cell, meaning in self.legend.items() if cell in used}


@dataclass(frozen=True)
class Arrow:
    """What enters a cell or leaves it: the symbol's shape, and the names of the weights it is multiplied by there."""

    shape_text: str
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class Moment:
    """One step of an unrolled network: the names of what goes in and comes out, with the step's index.

    ``before`` and ``after`` are the state's entries, ``output`` what the step hands to the outside.
    """

    number: int
    token: str
    inputs: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Unrolled:
    """A recurrent network laid out along time: the first steps and the last, the same cell and weights at each.

    ``inputs`` and ``states`` belong to the entries of every moment, in their order; ``weights`` are (name, shape) of
    all that is the same at every step, which ``shared`` says. Of many ``steps`` those between the last two moments are
    left out.
    """

    title: str
    cell: str
    steps: int
    moments: tuple[Moment, ...]
    inputs: tuple[Arrow, ...]
    states: tuple[Arrow, ...]
    output: Arrow
    weights: tuple[tuple[str, str], ...]
    shared: str

    @property
    def inside(self) -> tuple[str, ...]:
        """The weights that act inside the cell and on no arrow."""
        outside = {name for arrow in (*self.inputs, *self.states) for name in arrow.weights}
        return tuple(name for name, _ in self.weights if name not in outside)


@dataclass(frozen=True)
class Rows:
    """Dropout in aligned rows: values, draws, threshold, mask and result, entry under entry.

    What drew less than ``threshold`` is dropped; the keys of ``legend`` are "dropped" and "kept". ``note`` writes out
    the factor.
    """

    title: str
    values: Values
    draws: Values
    threshold: float
    threshold_label: str
    mask: Values
    result: Values
    legend: Mapping[str, str]
    note: str


@dataclass(frozen=True)
class Step:
    """A worked step: sentences, values and drawings in their order."""

    title: str
    parts: tuple[str | Values | Picture, ...]

    @property
    def values(self) -> dict[str, Values]:
        """The values of the step by name."""
        return {part.name: part for part in self.parts if isinstance(part, Values)}


@dataclass(frozen=True)
class Check:
    """The traced result against the layer's real output: their largest difference, and whether they agree."""

    difference: float
    agrees: bool
    text: str


@dataclass(frozen=True, eq=False)
class Exhibit:
    """The numbers of an interactive picture; the folder of this kind under ``page`` draws it.

    ``data`` holds mappings, sequences, strings, numbers, arrays and tensors, without words in a language.
    """

    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class Report(Presented):
    """An explanation of one layer in one language.

    ``subject`` is the layer as Python writes it, ``formula`` are the author's lines as on paper, ``mathml`` the same
    lines as MathML, in which every symbol has its `SymbolRow.name` as ``data-symbol``, ``code`` the lines as they
    stand in the file; ``figures`` are the drawings that show the layer at a glance, some of which also stand in the
    steps; ``words`` are the headings and labels that a renderer needs.
    """

    lang: str
    title: str
    subject: str
    idea: tuple[str, ...]
    formula: tuple[str, ...]
    code: tuple[str, ...]
    notation: tuple[str, ...]
    symbols: tuple[SymbolRow, ...]
    totals: tuple[Total, ...]
    cost: Cost | None
    steps: tuple[Step, ...]
    check: Check | None
    notes: tuple[str, ...] = ()
    figures: tuple[Unrolled | Rows | Picture, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict, repr=False)
    mathml: tuple[str, ...] = ()
    origin: Origin | None = field(default=None, repr=False, compare=False)

    def translations(self) -> tuple[Report, ...]:
        """Return the report in every language, this one first; a report without its origin has one language.

        Raises:
            RuntimeError: the layer or its input has changed since.
        """
        others = [] if self.origin is None else [lang for lang in languages() if lang != self.lang]
        return (self, *(self.origin.report(lang) for lang in others if self.origin is not None))

    def symbol(self, name: str) -> SymbolRow:
        """Return the row of a symbol."""
        for row in self.symbols:
            if row.name == name:
                return row
        raise KeyError(f"no symbol {name!r}; the formula has {', '.join(row.name for row in self.symbols)}")
