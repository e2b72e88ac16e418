"""A layer of one's own without a state: a formula of one row, a module with one kernel forward and one backward."""

import torch

import pellucid
from pellucid import nn


@pellucid.layer
def gated_norm(x, gate, *, gamma=pellucid.ones, eps: float = 1e-6, p: float = 0.1):
    """RMS normalization of what a gate lets through, with dropout: as in the blocks of Mamba-2 and RetNet."""
    z = x * torch.nn.functional.silu(gate)
    return pellucid.dropout(z * torch.rsqrt(z.square().mean(-1, keepdim=True) + eps) * gamma, p)


layer = gated_norm(64)
x, gate = torch.randn(2, 8, 10, 64, requires_grad=True)  # any axes before the features
layer(x, gate).sum().backward()
print(f"{layer}: gamma {tuple(layer.gamma.shape)}, ran by {layer.backend!r}")

block = nn.AddNorm(64, p=0.1)  # residual, dropout and layer norm in one pass
print(f"{block}: {tuple(block(x, layer(x, gate)).shape)}, ran by {block.backend!r}")
