"""Ready row-wise layers: each a formula of a few lines, with its source, and the class that torch.nn would have."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from pellucid.formula.draws import dropout
from pellucid.formula.initializers import constant, ones, zeros
from pellucid.nn.rows.row_formula import Layer, layer
from pellucid.nn.rows.row_wise import RowWise


@layer
def dyt(x, *, alpha: "" = constant(0.5), gamma=ones, beta=zeros):  # type: ignore[valid-type]
    """Dynamic tanh. Zhu, Chen, He, LeCun & Liu 2025, Transformers without normalization, arXiv:2503.10622."""
    return torch.tanh(alpha * x) * gamma + beta


@layer
def scale_norm(x, *, g: "" = ones, eps: float = 1e-5):  # type: ignore[valid-type]
    """Bring every row to the length g. Nguyen & Salazar 2019, Transformers without tears, arXiv:1910.05895."""
    length = x.norm(dim=-1, keepdim=True)
    return g * x / length.clamp(min=eps)


@layer
def swiglu(x, *, W, V, b=zeros, c=zeros):
    """Linear unit with a SiLU gate. Shazeer 2020, GLU variants improve transformer, arXiv:2002.05202."""
    return F.silu(x @ W + b) * (x @ V + c)


@layer
def geglu(x, *, W, V, b=zeros, c=zeros):
    """Linear unit with a GELU gate. Shazeer 2020, GLU variants improve transformer, arXiv:2002.05202."""
    return F.gelu(x @ W + b) * (x @ V + c)


@layer
def add_norm(x, sublayer, *, gamma=ones, beta=zeros, p: float = 0.1, eps: float = 1e-5):
    """Residual connection and layer normalization. Vaswani et al. 2017, Attention is all you need, section 3.1."""
    z = x + dropout(sublayer, p)
    mu = z.mean(-1, keepdim=True)
    var = ((z - mu) ** 2).mean(-1, keepdim=True)
    return (z - mu) / torch.sqrt(var + eps) * gamma + beta


class DyT(RowWise):
    """A bounded curve in place of a normalization: ``tanh(α·x)·γ + β``. Input and output: (..., features).

    Zhu, Chen, He, LeCun and Liu, "Transformers without normalization", CVPR 2025.

    Args:
        features: the size of the last axis.
        alpha: where the scalar α starts; the paper takes 0.5, and other values in large language models.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        RuntimeError: the input has other features, or another type.
    """

    alpha: Tensor

    def __init__(
        self,
        features: int,
        alpha: float = 0.5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.alpha_start = alpha
        super().__init__(dyt, features, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Start α where the constructor says, γ at 1, β at 0."""
        super().reset_parameters()
        init.constant_(self.alpha, self.alpha_start)


class ScaleNorm(RowWise):
    """Bring every vector to one learned length g: ``g·x / max(‖x‖, ε)``. Input and output: (..., features).

    Nguyen and Salazar, "Transformers without tears", IWSLT 2019. g is a scalar that starts at √features, the length of
    a vector whose mean square is 1.

    Args:
        features: the size of the last axis.
        eps: the least length that is divided by.
        device: of the parameter.
        dtype: of the parameter.

    Raises:
        RuntimeError: the input has other features, or another type.
    """

    g: Tensor

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(scale_norm, features, eps=eps, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Start g at √features."""
        init.constant_(self.g, math.sqrt(self.input_size))


class GatedUnit(RowWise):
    """A linear layer, and a gate that another one opens. Input: (..., in_features). Output: (..., out_features).

    Shazeer, "GLU variants improve transformer", 2020.

    Args:
        in_features: the size of the input's last axis.
        out_features: that of the output's.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        RuntimeError: the input has other features, or another type.
    """

    unit: ClassVar[Layer]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(self.unit, in_features, out_features, device=device, dtype=dtype)


class SwiGLU(GatedUnit):
    """``silu(x W + b) ⊙ (x V + c)``; see `GatedUnit`."""

    unit = swiglu


class GEGLU(GatedUnit):
    """``gelu(x W + b) ⊙ (x V + c)``; see `GatedUnit`."""

    unit = geglu


class AddNorm(RowWise):
    """Dropout, residual connection and layer normalization of a transformer's block in one: ``norm(x, sublayer(x))``.

    Vaswani et al., "Attention is all you need", NeurIPS 2017, sections 3.1 and 5.4; Ba, Kiros and Hinton, "Layer
    normalization", 2016. Called ``(x, sublayer)``, both (..., features); the output is too.

    Args:
        features: the size of the last axis.
        p: the probability of dropping an entry of ``sublayer``, in training.
        eps: added to the variance.
        seed: decides the sequence of masks, see `Drawing`.
        generator: where the layer takes its seeds from; by default torch's generator.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        RuntimeError: the inputs have other features, another type, or different axes.
        FormulaError: p is not a probability.
    """

    def __init__(
        self,
        features: int,
        p: float = 0.1,
        eps: float = 1e-5,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(add_norm, features, p=p, eps=eps, seed=seed, generator=generator, device=device, dtype=dtype)
