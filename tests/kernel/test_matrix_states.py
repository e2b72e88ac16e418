"""Formulas whose samples have several axes, a matrix say: linear attention, delta rule, selective scans, slots."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import pellucid
from running import compare, make

ROWS, COLUMNS = 3, 5


@pellucid.cell
def outer(x, S: "15", *, K: "input 3", V: "input 5", Q: "input 3", decay: "3" = pellucid.constant(0.5)):
    q, k, v = x @ Q, x @ K, x @ V
    M = torch.sigmoid(decay).unsqueeze(-1) * S.unflatten(-1, (3, 5)) + k.unsqueeze(-1) * v.unsqueeze(-2)
    return (q.unsqueeze(-2) @ M).squeeze(-2), M.flatten(-2)


@pellucid.cell
def delta_rule(x, S: "15", *, K: "input 3", V: "input 5", Q: "input 3", B: "input 1"):
    q, k, v = x @ Q, F.normalize(x @ K, dim=-1), x @ V
    M = S.view(-1, 3, 5)
    M = M + torch.einsum("bi,bj->bij", k, torch.sigmoid(x @ B) * (v - torch.einsum("bi,bij->bj", k, M)))
    return torch.einsum("bi,bij->bj", q, M), M.flatten(-2)


@pellucid.cell
def columns_first(x, S: "15", *, K: "input 3", V: "input 5", Q: "input 5"):
    M = S.unflatten(-1, (3, 5)) * 0.9 + (x @ K)[:, :, None] * (x @ V)[:, None]
    return torch.tanh((M @ (x @ Q).unsqueeze(-1)).squeeze(-1)), M.reshape(-1, 15)


@pellucid.cell
def mlstm(x, C: "15", n: "3", m: "1", *, K: "input 3", V: "input 5", Q: "input 3", G: "input 2", R: "input 5"):
    (i, f), q, k, v = (x @ G).chunk(2, -1), x @ Q, x @ K / 3**0.5, x @ V
    f = F.logsigmoid(f)
    new = torch.maximum(f + m, i)
    i, f = torch.exp(i - new), torch.exp(f + m - new)
    M = f.unsqueeze(-1) * C.unflatten(-1, (3, 5)) + i.unsqueeze(-1) * k.unsqueeze(-1) * v.unsqueeze(-2)
    n = f * n + i * k
    size = torch.clamp((q * n).sum(-1, keepdim=True).abs(), min=1.0)
    return torch.sigmoid(x @ R) * (q.unsqueeze(-2) @ M).squeeze(-2) / size, (M.flatten(-2), n, new)


@pellucid.cell
def selective(x, S: "15", *, A: "3 5", B: "input 3", C: "input 3", D: "input 5", W: "input 5"):
    step, u = F.softplus(x @ D).unsqueeze(-2), (x @ W).unsqueeze(-2)
    H = torch.exp(-A.abs() * step) * S.unflatten(-1, (3, 5)) + (x @ B).unsqueeze(-1) * step * u
    return ((x @ C).unsqueeze(-1) * H).sum(-2), H.flatten(-2)


@pellucid.cell
def slots(x, S: "15", *, Q: "input 5", V: "input 5", gain: "5" = pellucid.ones):
    M = F.layer_norm(S.unflatten(-1, (3, 5)), (5,), gain, gain.sin())
    share = torch.softmax((M * (x @ Q).unsqueeze(-2)).sum(-1), -1)
    M = M + share.unsqueeze(-1) * (x @ V).unsqueeze(-2)
    return (share.unsqueeze(-1) * M).sum(-2), M.flatten(-2)


@pellucid.cell
def heads(x, S: "24", *, K: "input 4", V: "input 6", Q: "input 4", G: "input 2"):
    q, k, v = (t.unflatten(-1, (2, -1)) for t in (x @ Q, x @ K, x @ V))
    M = torch.sigmoid(x @ G)[..., None, None] * S.unflatten(-1, (2, 2, 6))[..., :3] + k[..., None] * v[..., None, :]
    out = torch.softmax((q[..., None] * M).sum(-2), -1)
    return out.flatten(-2), torch.cat([M, M.sin()], -1).flatten(-3)


@pellucid.cell
def reductions(x, S: "15", *, V: "input 5"):
    M = torch.tanh(S.unflatten(-1, (3, 5)) + (x @ V).unsqueeze(-2))
    a = M.amax(1) + M.mean(1) + M.var(1) + M.sum((1, 2)).unsqueeze(-1) + torch.logsumexp(M, 1)
    b = M.amin(-1) + M.std(-1) + M.mean((1, 2), keepdim=True).squeeze(-1) + torch.linalg.vector_norm(M, dim=-1)
    b = b + torch.log_softmax(M, 1).sum(-1)
    return torch.cat([a, b], -1), (M - M.mean(-1, keepdim=True) + M.softmax(1) * a.unsqueeze(1)).flatten(1)


@pellucid.cell
def parts(x, S: "15", *, V: "input 5"):
    M = torch.where((x @ V).unsqueeze(1) > 0, S.unflatten(-1, (3, 5)), -0.5)
    first, last, others = M[:, 0], M[:, -1], M[:, :, 1:3]
    a, b, c = M.unbind(1)
    left, right = M.split([2, 3], -1)
    stacked = torch.stack([first * b, last, torch.tanh(a + c)], 1)
    M = torch.cat([right, left], -1) + stacked
    return others.flatten(1) + M[:, 1:, :3].flatten(1), (M * 0.5).flatten(1)


@pellucid.cell
def square(x, S: "16", *, V: "input 4", gain: "4" = pellucid.ones, b: "4 4" = pellucid.ones):
    """Rows and columns are as many: what goes along which cannot be seen from their number."""
    M = F.layer_norm(S.unflatten(-1, (4, 4)) + (x @ V).unsqueeze(-1) + b, (4,), gain, gain.sin())
    M = M + torch.softmax(M, 1) * (x @ V).unsqueeze(1) + M.var(1, keepdim=True) * torch.softmax(M * b, -1)
    return M.amax(2) + M.sum(1), M.flatten(1)


CELLS = [square, outer, delta_rule, columns_first, mlstm, selective, slots, heads, reductions, parts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.source.name)
def test_c_is_the_reference(cell, dtype):
    more = {"num_layers": 2, "bidirectional": True} if cell in (outer, delta_rule) else {}
    layer = make(cell, 4, 5, dtype, **more)
    compare(layer, [3, 0, 2, 1], 4, dtype)
    compare(layer, None, 1, dtype)


@pytest.mark.interpreter
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.source.name)
def test_triton_is_the_reference(cell):
    pytest.importorskip("triton", reason="Triton is not installed")
    compare(make(cell, 4, 5, torch.float64), [3, 0, 2, 1], 4, torch.float64, "triton")
