"""What the parts of a check share: what its user said, and a mistake before it is put into words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pellucid.errors import labelled
from pellucid.explanation.texts import Texts
from pellucid.models.checks.findings import Finding, Severity


@dataclass
class Given:
    """What is known besides the inputs.

    Attributes:
        batch_axis: the axis of the first input that counts samples.
        lengths: how many steps of each sample are real.
        explicit: whether its user said so, and not a name among the arguments of the model.
        guessed: whether they were read off constant steps at the ends.
        mixed: whether samples were found to influence one another.
        unchecked: what could not be judged, with the facts of its sentence.
    """

    batch_axis: int | None = None
    lengths: list[int] | None = None
    explicit: bool = False
    guessed: bool = False
    mixed: bool = False
    unchecked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def miss(self, what: str, **facts: Any) -> None:
        """Note what could not be judged."""
        if (what, facts) not in self.unchecked:
            self.unchecked.append((what, facts))


class Found:
    """A mistake: its kind, layer, place, severity and numbers, and the further facts of its sentences.

    ``variant`` and ``known`` choose among sentences of a kind.
    """

    def __init__(
        self,
        kind: str,
        layer: torch.nn.Module,
        path: str,
        severity: Severity,
        numbers: Mapping[str, Any],
        *,
        variant: str = "",
        known: str = "",
        **facts: Any,
    ) -> None:
        self.kind, self.layer, self.path, self.severity = kind, layer, path, severity
        self.numbers, self.variant, self.known, self.facts = dict(numbers), variant, known, facts

    def told(self, texts: Texts) -> Finding:
        """Put it into words."""
        name = self.layer._get_name()
        facts = {**self.facts, **self.numbers, "place": labelled(name, self.path), "layer": name}
        start = f"mistake.{self.kind}"

        def said(part: str) -> str:
            own = f"{start}.{part}_{self.variant}"
            return texts(own if self.variant and own in texts else f"{start}.{part}", **facts)

        sentences = [said("text"), *([texts(f"mistake.known.{self.known}", **facts)] if self.known else [])]
        numbers = {key: list(value) if isinstance(value, tuple) else value for key, value in self.numbers.items()}
        return Finding(
            self.kind,
            self.path,
            name,
            self.severity,
            numbers,
            ("" if texts.lang == "zh" else " ").join(sentences),
            said("cure"),
            texts(f"{start}.title"),
        )
