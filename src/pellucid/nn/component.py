"""What every component of pellucid shares: one formula, and the values that its symbols take for an input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar


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
