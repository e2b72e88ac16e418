"""What `pellucid.swap` and `pellucid.restore` did, in plain words: printed, as Markdown, as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

# What is computed as one, in words: of one, of several.
KINDS = {
    "layers": ("group of layers", "groups of layers"),
    "operations": ("group of operations", "groups of operations"),
    "functions": ("function of torch", "functions of torch"),
}
SHOWN = 4  # paths of a group that are printed


@dataclass(frozen=True)
class Replaced:
    """A layer that was exchanged: the paths of its places, more than one where it is shared, and both classes."""

    paths: tuple[str, ...]
    before: str
    after: str


@dataclass(frozen=True)
class Left:
    """A layer that stayed as it was: the paths of its places, its class, and why."""

    paths: tuple[str, ...]
    kind: str
    reason: str


@dataclass(frozen=True)
class Fused:
    """What is computed as one.

    Attributes:
        paths: the places of the norm among the layers; else those of the module whose forward computes it.
        layers: the paths of the layers, in the module that holds them.
        before: the names of layers and operations, in the order in which they act.
        after: what they are computed as.
        kind: "layers" around a norm, "operations" that a forward does itself, or "functions" of torch that it calls.
    """

    paths: tuple[str, ...]
    layers: tuple[str, ...]
    before: str
    after: str
    kind: str = "layers"


@dataclass(frozen=True)
class Formatted:
    """The memory format of convolutions.

    Attributes:
        name: "channels_last" for pictures, "channels_last_3d" for volumes, or both.
        paths: the places of each convolution that works in it, or could.
        kept: whether they work in it now.
        reason: why they do not.
        with_ms: the model's median time with the format, where both were taken.
        without_ms: the same without.
    """

    name: str
    paths: tuple[tuple[str, ...], ...]
    kept: bool
    reason: str | None = None
    with_ms: float | None = None
    without_ms: float | None = None

    @property
    def factor(self) -> float | None:
        """How many times as fast the model is with the format; None where that was not measured."""
        return None if self.with_ms is None or self.without_ms is None else self.without_ms / self.with_ms

    @property
    def convolutions(self) -> str:
        """How many there are."""
        return f"{len(self.paths)} convolution{'' if len(self.paths) == 1 else 's'}"

    def line(self) -> str:
        """Write it as a sentence."""
        one = len(self.paths) == 1
        if self.kept:
            said = f"{self.convolutions} {'works' if one else 'work'} in {self.name}"
        elif self.paths:
            said = f"{self.convolutions} could work in {self.name}, but {'does' if one else 'do'} not"
        else:
            said = f"No convolution works in {self.name}"
        details = [] if self.reason is None else [self.reason]
        if self.factor is not None:
            times = f"{self.with_ms:.2f} ms with it, {self.without_ms:.2f} ms without"
            details.insert(0, f"{times}, {self.factor:.2f}× as fast (medians, taking turns)")
        return f"{said}: {'; '.join(details)}." if details else f"{said}."


@dataclass(frozen=True)
class Verification:
    """A model run on an example before and after.

    Attributes:
        outputs: the largest difference of an output, relative to the largest entry of that output.
        gradients: the largest difference of a gradient, relative to the largest entry of all; None where nothing has
            one.
        tolerance: what both may be for ``dtype``, the coarsest type that takes part.
        modes: in which modes they were compared, dropouts off.
        notes: what could not be compared, and why.
        timed: "forward + backward" or "forward".
        before_ms: its median time with torch.nn's layers.
        after_ms: the same with pellucid's.
    """

    outputs: float
    gradients: float | None
    tolerance: float
    dtype: str
    modes: tuple[str, ...]
    notes: tuple[str, ...]
    timed: str
    before_ms: float
    after_ms: float

    @property
    def factor(self) -> float:
        """How many times as fast the model is afterwards."""
        return self.before_ms / self.after_ms

    def lines(self) -> list[str]:
        """Write it as sentences."""
        compared = f"Largest difference of an output {self.outputs:.1e}"
        if self.gradients is not None:
            compared += f", of a gradient {self.gradients:.1e}"
        return [
            f"{compared}, relative to the largest entry ({' and '.join(self.modes)} mode, dropouts off; {self.dtype} "
            f"may differ by {self.tolerance:.0e}).",
            *self.notes,
            f"{self.timed.capitalize()}: {self.before_ms:.2f} ms before, {self.after_ms:.2f} ms after: "
            f"{self.factor:.2f}× as fast (medians, taking turns).",
        ]


class Printable:
    """What can be printed by rich and told as plain values, printed as text and written as JSON."""

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        raise NotImplementedError

    def __rich__(self) -> Any:
        raise NotImplementedError

    def json(self) -> str:
        """Write it as JSON."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=120).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


@dataclass(frozen=True)
class Report(Printable):
    """What happened to a model's layers. ``print(report)`` shows it; rich prints it in its own width.

    Attributes:
        action: "swap" or "restore".
        replaced: the layers that were exchanged.
        left: those that were not. Modules that only hold others are not mentioned.
        verification: the model before and after, where an example was given.
        fused: layers, and operations, that are computed as one; of "restore", those that were.
        unfused: what stands side by side and is not, and why.
        formatted: the memory format that convolutions work in, and what it gains, where one was asked for; of
            "restore", that in which they did.
    """

    action: str
    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]
    verification: Verification | None = None
    fused: tuple[Fused, ...] = ()
    unfused: tuple[Left, ...] = ()
    formatted: Formatted | None = None

    @property
    def summary(self) -> str:
        """One sentence."""
        whose = "pellucid's" if self.action == "swap" else "torch.nn's"
        count = len(self.replaced)
        stayed = f"{len(self.left)} left as {'it was' if len(self.left) == 1 else 'they were'}"
        said = f"{count} {'layer is' if count == 1 else 'layers are'} {whose} now, {stayed}."
        counts = {names: sum(group.kind == kind for group in self.fused) for kind, names in KINDS.items()}
        groups = [f"{count} {names[count > 1]}" for names, count in counts.items() if count]
        if groups:
            verb = "is" if len(self.fused) == 1 else "are"
            together = "computed as one" if self.action == "swap" else "no longer computed as one"
            said += f" {_listed(groups)} {verb} {together}."
        if self.formatted is not None and self.action == "restore":
            verb = "works" if len(self.formatted.paths) == 1 else "work"
            said += f" {self.formatted.convolutions} no longer {verb} in {self.formatted.name}."
        return said

    def lines(self) -> list[str]:
        """Write what was measured as sentences."""
        said = [] if self.verification is None else self.verification.lines()
        return said if self.formatted is None or self.action == "restore" else [*said, self.formatted.line()]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        found = {"summary": self.summary, **asdict(self)}
        if self.verification is not None:
            found["verification"]["factor"] = self.verification.factor
        if self.formatted is not None:
            found["formatted"]["factor"] = self.formatted.factor
        return found

    def markdown(self) -> str:
        """Write it as Markdown, with every path."""
        lines = [f"# pellucid {self.action}", "", self.summary, ""]
        if said := self.lines():
            lines += [*(f"- {line}" for line in said), ""]
        for title, header, rows in self._sections(None):
            lines += [f"## {title}", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
            lines += [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows]
            lines.append("")
        return "\n".join(lines)

    def __rich__(self) -> Any:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        parts: list[Any] = [Text(self.summary, style="bold")]
        for title, header, rows in self._sections(SHOWN):
            table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1))
            for name in header:
                table.add_column(name, justify="right" if name in ("layers", "groups") else "left", overflow="fold")
            for row in rows:
                table.add_row(*map(Text, row))
            parts.append(table)
        parts += map(Text, self.lines())
        return Group(*parts)

    def _sections(self, shown: int | None) -> Iterable[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
        """The tables that are not empty: title, header and a row for each class and reason."""
        replaced = _grouped(((layer.before, layer.after), layer.paths) for layer in self.replaced)
        left = _grouped(((layer.kind, layer.reason), layer.paths) for layer in self.left)
        fused = _grouped(((group.before, group.after), group.paths) for group in self.fused)
        unfused = _grouped(((group.kind, group.reason), group.paths) for group in self.unfused)
        title_of_fused = "Fused" if self.action == "swap" else "No longer fused"
        for title, header, groups in (
            ("Replaced", ("before", "after", "layers", "where"), replaced),
            ("Left", ("class", "why", "layers", "where"), left),
            (title_of_fused, ("one by one", "as one", "groups", "where"), fused),
            ("Not fused", ("one by one", "why", "groups", "where"), unfused),
        ):
            if groups:
                yield title, header, [(*key, str(len(paths)), _where(paths, shown)) for key, paths in groups.items()]


def _listed(parts: list[str]) -> str:
    return " and ".join([*([", ".join(parts[:-1])] if parts[:-1] else []), parts[-1]])


def _grouped(
    layers: Iterable[tuple[tuple[str, str], tuple[str, ...]]],
) -> dict[tuple[str, str], list[tuple[str, ...]]]:
    groups: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for key, paths in layers:
        groups.setdefault(key, []).append(paths)
    return groups


def _where(layers: list[tuple[str, ...]], shown: int | None) -> str:
    """The paths of several layers; those of a shared one with =."""
    texts = [" = ".join(path or "(the model itself)" for path in paths) for paths in layers[:shown]]
    return ", ".join([*texts, *(["..."] if len(texts) < len(layers) else [])])
