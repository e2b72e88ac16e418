"""Where a report comes from: what was explained, to be asked again as long as weights and input are the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from pellucid.keeping import HELD, RandomState, left_alone
from pellucid.nn.dropout.drawing import Drawing

if TYPE_CHECKING:
    from pellucid.explanation.report import Report

Answer = TypeVar("Answer")


class Origin:
    """The layer and the inputs of a report.

    A page shows more than the printed text, in more than one language; that is worked out when it is wanted.

    Args:
        explained: what put the report together.
        again: makes the report in another language.
        layer: the layer that the user gave.
        given: what it read; tensors among it are watched.
    """

    def __init__(
        self, explained: Any, again: Callable[[str], Report], layer: torch.nn.Module, given: Iterable[Any]
    ) -> None:
        self.explained, self._again, self._layer = explained, again, layer
        self._given = [value for value in given if isinstance(value, Tensor)]
        self._state = self._versions()
        self._attributes = [(m, {k: v for k, v in vars(m).items() if k not in HELD}) for m in layer.modules()]
        drawing = [module for module in layer.modules() if isinstance(module, Drawing)]
        self._calls = [(module, module.calls) for module in drawing]
        self._draws = RandomState(layer)
        self._buffers = {name: value.clone() for name, value in layer.named_buffers()}

    def report(self, lang: str) -> Report:
        """Return the report in another language."""
        with self._as_it_was():
            return self._again(lang)

    def ask(self, question: Callable[[Any], Answer]) -> Answer:
        """Return what a question finds out about what was explained; the layer stays as it is."""
        with self._as_it_was(), parametrize.cached():
            return question(self.explained)

    @contextlib.contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Let the layer have the mode and the hyperparameters with which it was explained, and draw what it drew.

        Raises:
            RuntimeError: other numbers would be shown all the same.
        """
        self._refuse_changed()
        with left_alone(self._layer, self._draws):
            for module, attributes in self._attributes:
                vars(module).update(attributes)
            for drawing, calls in self._calls:  # of which a compiled graph counts some in a tensor
                drawing._eager_calls -= drawing.calls - calls
            yield

    def _versions(self) -> list[tuple[Any, ...]]:
        tensors = [*self._layer.parameters(), *self._given]
        return [(t.data_ptr(), None if t.is_inference() else t._version) for t in tensors]

    def _refuse_changed(self) -> None:
        buffers = dict(self._layer.named_buffers())
        same = self._state == self._versions() and buffers.keys() == self._buffers.keys()
        if not same or not all(torch.equal(value, buffers[name]) for name, value in self._buffers.items()):
            raise RuntimeError(
                "explain: the layer's weights or its input have changed since it was explained, so the page would show "
                "other numbers than the report. Save the page before training goes on, or explain the layer again."
            )
