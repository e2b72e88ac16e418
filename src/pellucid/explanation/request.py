"""What is to be explained, and the parts that every family's explanation shares."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pellucid.explanation.cost import Tally
from pellucid.explanation.lines import Lines
from pellucid.explanation.mathml import inline
from pellucid.explanation.paper import SAID, Paper
from pellucid.explanation.pieces import Piece
from pellucid.explanation.report import Check, Cost, Total, Values
from pellucid.explanation.texts import Texts
from pellucid.explanation.trace import Trace, kept
from pellucid.keeping import left_alone

MARKS = {"product": "product", "⊙": "entrywise", "·": "scaled", "σ": "sigmoid", "split": "split"}
MARKS |= {name: name for name in SAID}


@dataclass
class Request:
    """A layer with what it reads: ``forward`` takes ``inputs`` and ``options``.

    ``tokens`` name the steps of a sequence, ``steps`` is how many are worked out, ``seed`` decides whatever the
    explanation draws itself, ``notes`` are sentences that the report ends with.
    """

    layer: torch.nn.Module
    inputs: tuple[Any, ...]
    texts: Texts
    options: dict[str, Any] = field(default_factory=dict)
    tokens: Sequence[str] | None = None
    steps: int | None = None
    seed: int = 0
    notes: list[str] = field(default_factory=list)


def words(texts: Texts) -> dict[str, str]:
    """Return the headings and labels that renderers use."""
    return texts.group("word")


def values(name: Piece | str, value: torch.Tensor, shape: Sequence[int] | None = None, note: str = "") -> Values:
    """Put a tensor into the tree: its numbers as far as they are kept, and its shape; ``name`` may be a sentence."""
    full = tuple(value.shape) if shape is None else tuple(shape)
    numbers = kept(value).cpu()
    if numbers.dtype in (torch.bfloat16, torch.float16):
        numbers = numbers.float()
    return Values(str(name), np.asarray(numbers.numpy()), full, note, "" if isinstance(name, str) else inline(name))


def recorded(trace: Trace, paper: Paper, constants: bool = True) -> list[Values]:
    """The values of a trace under their labels, those that never change if wanted; what repeats is shown once."""
    shown: dict[str, torch.Tensor] = {}
    found = []
    for record in trace.records:
        label = record.site.label(paper)
        repeated = str(label) in shown and torch.equal(shown[str(label)], record.value)
        if not repeated and (constants or not record.site.constant):
            shown[str(label)] = record.value
            found.append(values(label, record.value, record.shape))
    return found


def notation(paper: Paper, texts: Texts) -> list[str]:
    """Explain the marks that the printed lines used."""
    return [texts(f"notation.{key}") for mark, key in MARKS.items() if mark in paper.used]


def unknown_source(lines: Lines, texts: Texts) -> list[str]:
    """Say why there are no lines to show, if there are none."""
    return [] if lines.known else [texts("note.no_source", name=lines.function.__name__)]


def trainable(layer: torch.nn.Module) -> int:
    """Count the weights that an optimiser may change."""
    return sum(p.numel() for p in layer.parameters() if p.requires_grad)


def registered(layer: torch.nn.Module, totals: Sequence[Total], texts: Texts) -> Iterator[Total]:
    """The weights that an optimiser changes, where they are others than have been counted: what is computed of them."""
    if (count := trainable(layer)) not in {total.count for total in totals}:
        names = [(name, p.numel()) for name, p in layer.named_parameters() if p.requires_grad]
        terms = " + ".join(f"{name} {number:,}" for name, number in names)
        yield Total(texts("total.registered", terms=terms), count)


def cost(tally: Tally, least: int, parameters: int, scope: str, texts: Texts) -> Cost:
    """Put a tally into the tree."""
    convention = texts("cost.convention")
    numbers = (tally.macs, tally.other, least, tally.moved)
    return Cost(scope, parameters, *numbers, convention, tally.uncounted)


def check(traced: torch.Tensor, real: torch.Tensor, backend: str | None, texts: Texts) -> Check:
    """Compare what the lines gave with what the layer gave."""
    traced, real = traced.detach(), real.detach()
    difference = scale = 0.0
    if traced.shape == real.shape and real.numel():
        same = (traced == real) | (traced.isnan() & real.isnan())
        gaps = torch.where(same, 0, (traced.double() - real.double()).abs())
        difference, scale = float(gaps.max()), float(real.double().abs().nan_to_num(0, 0).max())
    eps = torch.finfo(real.dtype).eps if real.is_floating_point() else 0.0
    agrees = traced.shape == real.shape and difference <= eps**0.5 * max(1.0, scale)  # half of the digits
    key = "check.agrees" if agrees else "check.differs"
    facts: Mapping[str, Any] = {"difference": number(difference), "dtype": str(real.dtype).removeprefix("torch.")}
    text = texts(key, **facts)
    return Check(difference, agrees, text + (texts("check.backend", backend=backend) if backend else ""))


def function_name(function: Any) -> str:
    """Name a function or a module as its user does: relu, Tanh."""
    return getattr(function, "__name__", type(function).__name__)


def number(value: float) -> str:
    """Write a number that stands in a sentence with at most four digits."""
    return f"{value:.2g}" if abs(value) < 1e-3 else f"{value:.4g}"


@contextlib.contextmanager
def in_eval(layer: torch.nn.Module) -> Iterator[None]:
    """Let a layer and what it holds be in eval mode for a while."""
    with left_alone(layer):
        layer.eval()
        yield
