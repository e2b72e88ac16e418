"""The affine map of torch.nn, by pellucid's matrix product where that is the faster one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.errors import label, mismatch, shape_text
from pellucid.kernel import linear
from pellucid.nn.axes import axes_of_features
from pellucid.nn.component import LEFT, Running


class Linear(Running, torch.nn.Linear):
    """Multiply rows of features by a matrix: ``y = x Wᵀ + b``.

    A drop-in for ``torch.nn.Linear``, whose arguments, weights, results and gradients it shares. On the CPU, in float32
    and float64, whichever product takes less time runs: torch's, or pellucid's own, which uses all the vectors of the
    processor. ``layer.backend`` says which one it was.

    Shapes:
        input (..., in features), weight (out features, in features), bias (out features,); output (..., out features).

    Raises:
        RuntimeError: the input does not fit the layer.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in features) to (..., out features)."""
        own, weight, bias = self.__dict__, self.weight, self.bias
        met = self._circumstances(input, weight.requires_grad, bias is not None and bias.requires_grad)
        if met is not LEFT and isinstance(input, Tensor):
            y = linear.run(input, weight, bias, F.linear)
            if y is not None:
                own["_ran"] = "c"
                return y
            self._leave(input, met)
        own["_ran"] = "torch"
        try:
            return F.linear(input, weight, bias)
        except RuntimeError as error:
            self._explain(error, input)
            raise

    def _explain(self, error: RuntimeError, x: Tensor) -> None:
        """Say what torch said in words that name the layer, and the cure where it is known."""
        if type(error) is not RuntimeError:
            return
        found = f"{label(self)}: the input is {shape_text(x.shape, axes_of_features(x.dim()))}"
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            cure = f"Build it with in_features={x.shape[-1]}" if x.dim() else "Give it an axis of features"
            turned = x.dim() > 1 and x.shape[-2] == self.in_features
            cure += ", or pass x.transpose(-1, -2)." if turned else ", or check which axis holds the features."
            raise RuntimeError(f"{found}, but the layer reads (..., features {self.in_features}). {cure}") from error
        if text := mismatch(x, self.weight):
            raise RuntimeError(f"{found}, {text}") from error
