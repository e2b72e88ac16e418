"""The memory format in which the convolutions of a model work: channels last, where that is asked for or faster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias, TypeGuard

import torch

from pellucid.kernel.windows.window import FORMATS
from pellucid.models.report import Formatted
from pellucid.nn import Conv2d, Conv3d
from pellucid.nn.swapped.exchange import kind_of, runs_as

FASTEST: Final = "fastest"
GAIN = 1.05  # times as fast as without it a model is with a format that "fastest" keeps
RESHAPE = "Where its code calls .view on what a convolution gives, .reshape does the same in every memory format"

Wish: TypeAlias = torch.memory_format | Literal["fastest"] | None


def check_wish(wish: Any, example: Any) -> None:
    """Refuse a ``memory_format=`` that says nothing, or that cannot be measured.

    Raises:
        ValueError: it does.
    """
    if wish is not None and wish not in (*FORMATS.values(), FASTEST):
        raise ValueError(
            f"swap: memory_format= takes {', '.join(map(str, FORMATS.values()))}, {FASTEST!r}, or None, which leaves "
            f"every layer in the format that it works in; not {wish!r}"
        )
    if wish == FASTEST and example is None:
        raise ValueError(
            f"swap: memory_format={FASTEST!r} runs the model to measure it: give verify=, an example of its input "
            f"(--input on the command line), or decide yourself: memory_format=torch.channels_last"
        )


class Formats:
    """Convolutions of pellucid's that may work in another memory format, and what is found out about it.

    Attributes:
        wish: a memory format, or "fastest"; None for nothing.
        layers: those that have such a format, with it.
        kept: whether they work in it.
        refused: why the model cannot do with it; None where it can.
        with_ms: its median time with the format, where it was taken.
        without_ms: the same without.
    """

    def __init__(self, layers: Iterable[torch.nn.Module], wish: Wish) -> None:
        forms = {layer: FORMATS[layer.spatial] for layer in layers if may_be_formatted(layer)}
        self.wish = wish
        self.layers = {layer: form for layer, form in forms.items() if wish in (FASTEST, form)}
        self.kept = wish != FASTEST
        self.refused: str | None = None
        self.with_ms: float | None = None
        self.without_ms: float | None = None
        self._before = {layer: layer.memory_format for layer in self.layers}

    @property
    def name(self) -> str:
        """What the format is called, or both where pictures and volumes are convolved."""
        return _named(self.layers.values() or [torch.channels_last if self.wish == FASTEST else self.wish])

    def turn(self, on: bool) -> None:
        """Let the convolutions work in the format, or in none."""
        for layer, form in self.layers.items():
            layer.memory_format = form if on else None

    def undo(self) -> None:
        """Let those that are pellucid's work as they did."""
        for layer in self.layers:
            if may_be_formatted(layer):
                layer.memory_format = self._before[layer]

    def decide(self) -> None:
        """Keep the format where it was asked for, or the model can do with it and is clearly faster."""
        if self.wish == FASTEST:
            self.kept = self.with_ms is not None and self.with_ms * GAIN <= (self.without_ms or 0.0)

    def told(self, found: Mapping[torch.nn.Module, list[str]]) -> Formatted:
        """Say what became of it."""
        places = tuple(tuple(found[layer]) for layer in self.layers)
        kept = self.kept and bool(self.layers)
        return Formatted(self.name, places, kept, self._reason(), self.with_ms, self.without_ms)

    def _reason(self) -> str | None:
        """Why the convolutions do not work in the format."""
        if not self.layers:
            return "none of the layers that are meant is a Conv2d or Conv3d of pellucid's for which it is made"
        if self.kept:
            return None
        return self.refused or f"it is kept from {GAIN:g}× as fast on"


def may_be_formatted(layer: torch.nn.Module) -> TypeGuard[Conv2d | Conv3d]:
    """Whether a layer is just pellucid's convolution of pictures or volumes, and runs no code of a user's own."""
    return runs_as(kind_of(layer)) in (Conv2d, Conv3d)


def _named(forms: Iterable[Any]) -> str:
    return " and ".join(sorted({str(form).removeprefix("torch.") for form in forms}))


def unformat(found: Mapping[torch.nn.Module, list[str]]) -> Formatted | None:
    """Let convolutions work in the format of their input again; return which did not, None where all did."""
    formed = {layer: layer.memory_format for layer in found if may_be_formatted(layer) and layer.memory_format}
    for layer in formed:
        layer.memory_format = None
    return Formatted(_named(formed.values()), tuple(tuple(found[layer]) for layer in formed), False) if formed else None
