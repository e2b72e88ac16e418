"""DropConnect: dropout over a layer's weights instead of its values."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import below, label
from pellucid.formula.drop import dropping
from pellucid.nn.component import SymbolShape
from pellucid.nn.dropout.dropout import DropoutFamily


def drop_connect(
    inputs: tuple[Any, ...],
    options: Mapping[str, Any],
    layer: torch.nn.Module,
    weights: Mapping[str, Tensor],
    draws: Mapping[str, Tensor],
    p: float,
) -> Any:
    """Run a layer with some entries of its weights dropped: Wan et al., ICML 2013."""
    dropped = {name: dropping(p)(weights[name], draws[name], p) for name in weights}
    places = _everywhere(layer, weights, dropped)
    return torch.func.functional_call(layer, places, inputs, dict(options), tie_weights=False)


def _everywhere(
    layer: torch.nn.Module, weights: Mapping[str, Tensor], dropped: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What is dropped under all names of a weight that several modules share, but one of each module.

    torch.func.functional_call ties the names of a module that stands in several places too, takes what it has put there
    itself for the parameter, and leaves it there.
    """
    return {
        below(path, own): dropped[name]
        for path, module in layer.named_modules()
        for own, parameter in module._parameters.items()
        for name, weight in weights.items()
        if weight is parameter
    }


class DropConnect(DropoutFamily):
    """A layer whose weights lose entries in training, new ones at every call: ``DropConnect(nn.Linear(3, 4), p=0.5)``.

    The masks hold for the whole call: over the hidden weights of a recurrent layer (``names=["weight_hh_l0"]``) it is
    the weight-dropped LSTM of Merity, Keskar and Socher, ICLR 2018.

    Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of neural networks using DropConnect", ICML 2013. The kept
    weights are scaled by 1/(1 − p), so that eval uses the layer as it is.

    Input and output: those of the layer.

    Args:
        module: the layer.
        p: the probability of an entry of a weight to be dropped.
        names: the parameters to drop from, as ``module.named_parameters()`` calls them; by default all that have at
            least two axes, which leaves biases out.
        seed: see `DropoutFamily`.
        generator: see `DropoutFamily`.

    Raises:
        ValueError: p is no probability, a name is unknown, or there is nothing to drop from.
    """

    formula = staticmethod(drop_connect)

    def __init__(
        self,
        module: torch.nn.Module,
        p: float = 0.5,
        names: Sequence[str] | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(p, seed=seed, generator=generator)
        parameters = dict(module.named_parameters())
        names = [names] if isinstance(names, str) else names
        chosen = [n for n, w in parameters.items() if w.ndim >= 2] if names is None else list(names)
        unknown = [name for name in chosen if name not in parameters]
        if unknown or not chosen:
            fault = f"has no parameter {unknown[0]!r}" if unknown else "has no weights to drop from"
            raise ValueError(
                f"{label(self)}: {label(module)} {fault}. Its parameters are {', '.join(parameters) or 'none'}."
            )
        self.module, self.names = module, tuple(chosen)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters that are dropped from, by name."""
        return {name: operator.attrgetter(name)(self.module) for name in self.names}

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the layer, in training with weights dropped."""
        if not self.training or self.p == 0:
            return self.module(*inputs, **options)
        return self.formula(**self._values(inputs, options, self._draws()))

    def bind(self, *inputs: Any, **options: Any) -> dict[str, Any]:
        """Return what the formula's symbols stand for in the next call, whose draws stay to be drawn."""
        if not self.training or self.p == 0:
            nothing = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in self.weights.items()}
            return self._values(inputs, options, nothing) | {"p": 0.0}
        with self.rehearsal():
            return self._values(inputs, options, self._draws())

    def symbols(self, *inputs: Any) -> list[SymbolShape]:
        """Return the shapes of the weights that are dropped from; their draws have the same."""
        return [SymbolShape.of_weight(self.module, name, name, (), "dropout.weight", p=self.p) for name in self.names]

    def extra_repr(self) -> str:
        """Write the arguments."""
        return f"p={self.p}, names={list(self.names)}{self._source_text()}"

    def _draws(self) -> dict[str, Tensor]:
        shapes = [tuple(weight.shape) for weight in self.weights.values()]
        device = next(iter(self.weights.values())).device
        return dict(zip(self.names, self.draw(shapes, device), strict=True))

    def _values(self, inputs: tuple[Any, ...], options: dict[str, Any], draws: dict[str, Tensor]) -> dict[str, Any]:
        values = {"inputs": inputs, "options": options, "layer": self.module, "weights": self.weights}
        return values | {"draws": draws, "p": self.p}
