"""The formulas of layers that are shown in short: one line each, as on paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pellucid.nn.swapped.exchange import runs_as, torchs_of

Formula = str | Callable[[Any], str]
NUMBER = "{:.4g}".format


def _linear(layer: Any) -> str:
    return "y = x Wᵀ" + (" + b" if layer.bias is not None else "")


def _bilinear(layer: Any) -> str:
    return "yₖ = x₁ Wₖ x₂ᵀ" + (" + bₖ" if layer.bias is not None else "")


def _attention(layer: Any) -> str:
    return (
        f"{layer.num_heads} × softmax(Q Kᵀ / √{layer.head_dim}) V, Q = q W_qᵀ, K = k W_kᵀ, V = v W_vᵀ; y = heads W_oᵀ"
    )


def _gelu(layer: Any) -> str:
    if layer.approximate == "tanh":
        return "y = x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2"
    return "y = x Φ(x)"


FORMULAS: dict[type[nn.Module], Formula] = {
    nn.Linear: _linear,
    nn.Bilinear: _bilinear,
    nn.Embedding: "y = W[x]",
    nn.EmbeddingBag: lambda layer: f"y = {layer.mode} of W[x]",
    nn.MultiheadAttention: _attention,
    nn.Identity: "y = x",
    nn.Flatten: lambda layer: f"axes {layer.start_dim} … {layer.end_dim} → 1",
    nn.ReLU: "y = max(0, x)",
    nn.ReLU6: "y = min(max(0, x), 6)",
    nn.LeakyReLU: lambda layer: f"y = max(0, x) + {NUMBER(layer.negative_slope)} min(0, x)",
    nn.PReLU: "y = max(0, x) + a min(0, x)",
    nn.ELU: lambda layer: f"y = max(0, x) + {NUMBER(layer.alpha)} min(0, eˣ − 1)",
    nn.SELU: "y = 1.0507 (max(0, x) + 1.6733 min(0, eˣ − 1))",
    nn.GELU: _gelu,
    nn.SiLU: "y = x σ(x)",
    nn.Mish: "y = x tanh(ln(1 + eˣ))",
    nn.Sigmoid: "y = σ(x) = 1 / (1 + e⁻ˣ)",
    nn.LogSigmoid: "y = ln σ(x)",
    nn.Tanh: "y = tanh(x)",
    nn.Hardtanh: lambda layer: f"y = min(max({NUMBER(layer.min_val)}, x), {NUMBER(layer.max_val)})",
    nn.Hardsigmoid: "y = min(max(0, x/6 + 1/2), 1)",
    nn.Hardswish: "y = x min(max(0, x/6 + 1/2), 1)",
    nn.Softplus: lambda layer: f"y = ln(1 + exp({NUMBER(layer.beta)} x)) / {NUMBER(layer.beta)}",
    nn.Softsign: "y = x / (1 + |x|)",
    nn.Softmax: "yᵢ = exp(xᵢ) / Σⱼ exp(xⱼ)",
    nn.LogSoftmax: "yᵢ = xᵢ − ln Σⱼ exp(xⱼ)",
    nn.Softmin: "yᵢ = exp(−xᵢ) / Σⱼ exp(−xⱼ)",
    nn.GLU: "y = a σ(b), x = [a, b]",
    nn.CosineSimilarity: "y = x₁·x₂ / (‖x₁‖ ‖x₂‖)",
    nn.PixelShuffle: lambda layer: f"channels / {layer.upscale_factor**2} → space × {layer.upscale_factor}",
}


def formula_of(layer: nn.Module) -> str:
    """Return the formula of a layer of torch.nn that is shown in short, "" where there is none."""
    kind = runs_as(type(layer))
    found = FORMULAS.get(torchs_of(kind) or kind)
    return "" if found is None else found if isinstance(found, str) else found(layer)
