"""One table of components: what tests, benchmarks and explanations run on.

Each case is a layer of ``pellucid.nn`` with its arguments, the shapes that it reads, and inputs that must fail. Where
torch.nn has a layer of the same name, that layer with the same arguments is the reference; ``reference`` overrides it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from pellucid import nn


@dataclass(frozen=True)
class Wrong:
    """An input that must be refused: its shape, the exception's type, and words that the message must hold."""

    shape: tuple[int, ...]
    words: tuple[str, ...]
    error: type[Exception] = RuntimeError
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Case:
    """A layer with its arguments and inputs."""

    layer: str
    args: tuple[Any, ...]
    shape: tuple[int, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)  # keyword arguments of forward
    wrong: tuple[Wrong, ...] = ()
    reference: Callable[..., Any] | None = None  # (*args, **kwargs) -> the layer to agree with
    twice: bool = True  # whether it has a second derivative worth checking
    random: bool = False  # whether its training output is drawn

    @property
    def name(self) -> str:
        """A readable test id."""
        options = [str(a) for a in self.args] + [f"{k}={v}" for k, v in {**self.kwargs, **self.call}.items()]
        return f"{self.layer}({','.join(options)})-{'x'.join(map(str, self.shape))}".replace(" ", "")

    def build(self, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        """Make pellucid's layer, with weights drawn from seed 0."""
        torch.manual_seed(0)
        return getattr(nn, self.layer)(*self.args, **self.kwargs).to(dtype)

    def build_reference(self, dtype: torch.dtype = torch.float32) -> torch.nn.Module | None:
        """Make the reference layer, with weights drawn from seed 0; None where there is none."""
        make = self.reference or getattr(torch.nn, self.layer, None)
        if make is None or self.call:
            return None
        torch.manual_seed(0)
        return make(*self.args, **self.kwargs).to(dtype)

    def input(self, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
        """Draw an input."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


CONVOLUTION: list[Case] = []

POOLING: list[Case] = []

NORMALIZATION: list[Case] = []

DROPOUT: list[Case] = []

ALL = CONVOLUTION + POOLING + NORMALIZATION + DROPOUT
