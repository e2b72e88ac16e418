"""What every component of pellucid shares: one formula, and the values that its symbols take for an input."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from pellucid.errors import unread
from pellucid.kernel.autocast import autocast_dtype
from pellucid.kernel.backends import chosen_backend
from pellucid.kernel.tensors import unseen

LEFT: Any = object()  # in the place of circumstances in which the last input was left to torch


@dataclass(frozen=True)
class SymbolShape:
    """One symbol of a layer's formula: its shape, what its axes mean, and why it has that shape.

    ``reason`` is a key of the explanation texts ("conv.weight"), which are written in several languages; ``facts``
    are the numbers that such a text may quote ({"out_channels": 16, "groups": 2}). ``trainable`` says whether the
    optimiser may change it, ``fixed`` whether it is a weight that it may not change.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    reason: str
    trainable: bool
    facts: Mapping[str, Any] = field(default_factory=dict)
    fixed: bool = False

    @staticmethod
    def of_weight(
        layer: torch.nn.Module, weight: str, name: str, axes: tuple[str, ...], reason: str, **facts: Any
    ) -> SymbolShape:
        """Return the symbol that a weight of a layer is in its formula.

        It is learned if it is a parameter that the optimiser may change, or is computed of one: a parametrization's
        ``original``, or what torch's older functions register as ``weight_orig``, ``weight_g`` and ``weight_v``.
        """
        value: torch.Tensor = operator.attrgetter(weight)(layer)
        own = (f"{weight}_", f"parametrizations.{weight}.")
        learned = any(p.requires_grad for n, p in layer.named_parameters() if n == weight or n.startswith(own))
        return SymbolShape(name, tuple(value.shape), axes, reason, learned, facts, not learned)


class Running:
    """A layer that says what ran it, and what it has beside torch.nn's layer of its name.

    ``added`` are the attributes that its objects have beside those of torch.nn's: what ran last, and the
    circumstances of the last call that was left to torch's operator.
    """

    added: ClassVar[tuple[str, ...]] = ("_ran", "_left")

    @property
    def backend(self) -> str:
        """The name of what ran the formula last ("torch": torch's own operators); before that, of what would."""
        return self.__dict__.get("_ran") or chosen_backend()

    @property
    def beyond_torch(self) -> str | None:
        """The option in use that torch.nn's layer of this name lacks, as one writes it; None if there is none."""
        return None

    def _prepare(self) -> None:
        """Set the attributes that a layer made by torch.nn's constructor lacks."""

    def __prepare_scriptable__(self) -> Any:
        """Say, when torch.jit.script asks, that it cannot read a layer that is a formula."""
        raise NotImplementedError(unread(self, "torch.jit.script"))  # type: ignore[arg-type]

    def _was_run_by(self, backend: str) -> None:
        if not torch.compiler.is_compiling():  # nothing has run, and an exporter refuses attributes that are set
            self.__dict__["_ran"] = backend  # torch.nn.Module would look at every attribute that is set

    def _circumstances(self, x: torch.Tensor, *others: Any) -> Any:
        """All by which a layer decides what runs, beside its own settings; None where a compiler would guard them.

        `LEFT` where they are as they were when it left an input to torch's operator: it does so again, for less than
        the decision costs. That is right whatever has become of its settings, and in transforms too.

        Args:
            x: the input.
            others: what else decides: which of the parameters ask for a gradient, or how states lie.
        """
        if (
            torch.compiler.is_compiling()
            or torch._C._is_tracing()
            or type(x) is not torch.Tensor
            or x.layout is not torch.strided
        ):
            return None
        met = (
            x.shape,
            x.stride(),
            x.dtype,
            x.device,
            x.requires_grad,
            others,
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            chosen_backend(),
        )
        return LEFT if self.__dict__.get("_left") == met else met

    def _leave(self, x: torch.Tensor, met: Any) -> None:
        """Leave to torch's operator what comes in these circumstances, unless a transform or autocast decided that."""
        if met is not None and undisturbed(x):
            self.__dict__["_left"] = met


def undisturbed(x: torch.Tensor) -> bool:
    """Whether neither a transform, a compiler nor autocast has a say in what runs."""
    return unseen(x) and autocast_dtype(x) is None


def written(first: str, **further: tuple[Any, Any]) -> str:
    """Write a layer's arguments: the first ones, and of further ones, each with its default, those that differ."""
    return first + "".join(f", {name}={value}" for name, (value, default) in further.items() if value != default)


def ran_by(layers: Iterable[Any]) -> str:
    """The names of what ran the layers that a layer is made of, each once."""
    return ", ".join(sorted({layer.backend for layer in layers}))


def watched(*layers: torch.nn.Module) -> bool:
    """Whether somebody wants to see what a layer reads or returns."""
    return any(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        for layer in layers
    )


class Component:
    """A layer that is one formula.

    ``formula`` is a plain function of torch operations, written once. ``bind`` says what its symbols stand for when
    the layer reads an input, so that ``layer.formula(**layer.bind(x))`` is what ``layer(x)`` returns. A layer may run
    through a faster operator; the formula stays its definition, the tests compare the two, and every explanation is
    made by running the formula's own lines with the bound values.
    """

    formula: ClassVar[Callable[..., Any]]

    def bind(self, *inputs: Any, **options: Any) -> dict[str, Any]:
        """Return the formula's arguments for these inputs, in the order in which they are to be explained."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its formula's symbols stand for")

    def symbols(self, *inputs: Any) -> list[SymbolShape]:
        """Return the shape of every symbol and its reason; given inputs, those of the input and the output too."""
        raise NotImplementedError(f"{type(self).__name__} does not say which shapes its formula's symbols have")
