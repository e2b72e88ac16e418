"""What a check found: printed, as plain values, as an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pellucid.errors import CheckError, labelled
from pellucid.explanation.texts import Texts
from pellucid.models.report import SHOWN, Printable

Severity = Literal["wrong", "suspect", "note"]
SEVERITIES: tuple[Severity, ...] = ("wrong", "suspect", "note")
COLOURS = {"wrong": "bold red", "suspect": "bold yellow", "note": "bold"}


@dataclass(frozen=True)
class Finding:
    """A mistake, or what may be one.

    Attributes:
        kind: which mistake, such as "batch-time-swapped".
        path: of the layer, "" for the model itself.
        layer: the name of its class.
        severity: "wrong" for what was shown by an experiment or cannot be right, "suspect" for what is right in some
            models, "note" for what is good to know.
        numbers: those that show it.
        text: what is wrong, and why it matters.
        cure: what to do.
        title: the mistake in a few words.
    """

    kind: str
    path: str
    layer: str
    severity: Severity
    numbers: Mapping[str, Any]
    text: str
    cure: str
    title: str

    @property
    def place(self) -> str:
        """The layer as its user knows it: ``LSTM "encoder.rnn"``."""
        return labelled(self.layer, self.path)


@dataclass(frozen=True)
class Check(Printable):
    """What a check found; true where nothing is wrong. ``print(check)`` shows it.

    Attributes:
        model: the name of the model's class.
        findings: the mistakes, those that are wrong first.
        unchecked: what could not be judged, and what would let it be.
        lang: the language of the texts.
    """

    model: str
    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...]
    lang: str = "en"

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; what is only suspect does not count."""
        return not self.of("wrong")

    def __bool__(self) -> bool:
        return self.ok

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of a severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    @property
    def summary(self) -> str:
        """One line."""
        texts = Texts(self.lang)
        if not self.findings:
            return texts("mistake.nothing", model=self.model)
        counts = [
            texts(f"mistake.count.{severity}", n=len(self.of(severity))) for severity in SEVERITIES if self.of(severity)
        ]
        return self.model + texts("word.colon") + texts("punctuation.comma").join(counts)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"ok": self.ok, "summary": self.summary, **asdict(self)}

    def raise_if_wrong(self) -> Check:
        """Return the check itself if nothing is wrong.

        Raises:
            CheckError: something is; the text has every such finding and its cure.
        """
        if not self.ok:
            words = Texts(self.lang)
            lines = [f"{f.place}: {f.text} {words('mistake.cure')}{f.cure}" for f in self.of("wrong")]
            raise CheckError("\n".join([self.summary, *lines]))
        return self

    def _grouped(self) -> list[tuple[Finding, list[Finding]]]:
        """Pair the first finding of a kind and cure with the others."""
        groups: dict[tuple[str, str, str], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.kind, finding.severity, finding.cure), []).append(finding)
        return [(first, others) for first, *others in groups.values()]

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        words = Texts(self.lang)
        parts: list[Any] = [Text(self.summary, style="bold")]
        for finding, others in self._grouped():
            severity = (words(f"mistake.severity.{finding.severity}"), COLOURS[finding.severity])
            head = Text.assemble("\n", severity, "  ", (finding.place, "bold"), f"  {finding.title}")
            body = Text(f"{finding.text}\n{words('mistake.cure')}{finding.cure}")
            if others:
                places = ", ".join(other.place for other in others[:SHOWN]) + (", …" if len(others) > SHOWN else "")
                body.append(f"\n{words('mistake.same', n=len(others), places=places)}")
            parts += [head, Padding(body, (0, 0, 0, 2))]
        if self.unchecked:
            parts.append(Text("\n" + words("mistake.unchecked"), style="bold"))
            parts += [Padding(Text(sentence), (0, 0, 0, 2)) for sentence in self.unchecked]
        return Group(*parts)
